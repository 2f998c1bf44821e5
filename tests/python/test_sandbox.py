"""Sandboxes: start, streams, waiting, signals, ports, further processes, limits, errors, event loops."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from starting import BUSYBOX, IS_ROOT, NEEDED, Start

import gpucontainer
from gpucontainer import DEVNULL, PIPE, GpuRequest, IoLimit, Limits, Mount, Sandbox, errors

pytestmark = NEEDED
needs_root = pytest.mark.skipif(not IS_ROOT, reason="not root")


def test_the_image_says_what_runs(image: gpucontainer.Image) -> None:
    with Sandbox(image, stdout=PIPE) as sandbox:
        output = sandbox.communicate(timeout=30)
    assert output.stdout == b"from the image\n"
    assert output.status.success
    assert sandbox.returncode == 0


def test_streams_environment_and_exit_code(start: Start) -> None:
    sandbox = start("cat; echo $GREETING >&2; pwd; exit 3", stdin=PIPE, env={"GREETING": "hello"}, cwd="/srv")
    assert sandbox.returncode is None
    output = sandbox.communicate(b"input\n", timeout=30)
    assert (output.stdout, output.stderr) == (b"input\n/srv\n", b"hello\n")
    assert output.status == gpucontainer.ExitStatus(code=3, signal=None, oom_killed=False)
    assert sandbox.returncode == 3
    assert sandbox.wait() == output.status


def test_much_data_flows_both_ways(start: Start) -> None:
    data = bytes(range(256)) * 8192
    output = start("cat", stdin=PIPE).communicate(data, timeout=60)
    assert output.stdout == data


def test_streams_by_hand_and_into_files(start: Start, tmp_path: Path) -> None:
    with (tmp_path / "errors").open("wb") as file:
        sandbox = start("cat; echo err >&2", stdin=PIPE, stderr=file)
        assert sandbox.stdin is not None
        assert sandbox.stdout is not None
        assert sandbox.stderr is None
        sandbox.stdin.write(b"line\n")
        sandbox.stdin.close()
        assert sandbox.stdout.readline() == b"line\n"
        assert sandbox.wait(30).success
    assert (tmp_path / "errors").read_bytes() == b"err\n"


def test_waiting_polling_and_signals(start: Start) -> None:
    sandbox = start("exec sleep 1000")
    assert sandbox.poll() is None
    with pytest.raises(TimeoutError) as caught:
        sandbox.wait(timeout=0.05)
    assert isinstance(caught.value, errors.TimedOutError)
    assert select.select([sandbox], [], [], 0)[0] == []
    sandbox.terminate()
    assert select.select([sandbox], [], [], 30)[0] == [sandbox]
    status = sandbox.wait()
    assert (status.code, status.signal) == (None, signal.SIGTERM)
    assert sandbox.returncode == -signal.SIGTERM
    sandbox.kill()
    with pytest.raises(errors.InvalidArgumentError, match="99"):
        sandbox.kill(99)


def test_a_closed_sandbox_says_so(start: Start) -> None:
    sandbox = start("exec sleep 1000")
    sandbox.close()
    sandbox.close()
    with pytest.raises(errors.ClosedError):
        sandbox.wait()


def test_a_wait_honours_signals(start: Start) -> None:
    sandbox = start("exec sleep 1000")
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        sandbox.wait()
    timer.join()
    assert sandbox.poll() is None


def test_other_threads_go_on_during_a_wait(start: Start) -> None:
    sandbox = start("exec sleep 1000")
    timer = threading.Timer(0.2, sandbox.kill)
    timer.start()
    assert sandbox.wait(30).signal == signal.SIGKILL
    timer.join()


def test_an_event_loop_goes_on_during_a_wait(start: Start) -> None:
    async def main() -> tuple[int, list[gpucontainer.ExitStatus]]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticker = asyncio.create_task(tick())
        sandbox = start("sleep 0.3; exit 4")
        statuses = await asyncio.gather(sandbox.wait_async(), sandbox.wait_async())
        ticker.cancel()
        return ticks, [*statuses, await sandbox.wait_async()]

    ticks, statuses = asyncio.run(main())
    assert ticks >= 5
    assert [status.code for status in statuses] == [4, 4, 4]


def test_further_processes(start: Start) -> None:
    sandbox = start("echo main > /tmp/x; exec sleep 1000")
    with sandbox.exec(["sh", "-c", "pwd; echo $A; exit 9"], env={"A": "b"}, cwd="/srv", stdout=PIPE) as process:
        output = process.communicate(timeout=30)
    assert (output.stdout, output.status.code) == (b"/srv\nb\n", 9)
    if IS_ROOT:
        with sandbox.exec(["id", "-u"], user="web", stdout=PIPE) as process:
            assert process.communicate(timeout=30).stdout == b"33\n"
    with sandbox.exec(["sleep", "1000"]) as process:
        assert process.poll() is None
        process.kill()
        assert process.wait(30).signal == signal.SIGKILL
    with sandbox.exec(["tty"], terminal=(24, 80)) as process:
        assert process.terminal is not None
        assert process.wait(30).success


@needs_root
def test_gpus_of_a_running_sandbox(start: Start, tmp_path: Path) -> None:
    # A device that the host surely has stands for a GPU.
    edits = {"deviceNodes": [{"path": "/dev/fast", "hostPath": "/dev/zero"}], "env": ["FAST=yes"]}
    devices = [{"name": "0", "containerEdits": edits}]
    spec = {"cdiVersion": "0.7.0", "kind": "example.com/accelerator", "devices": devices}
    (tmp_path / "example.json").write_text(json.dumps(spec))
    sandbox = start("exec sleep 1000")

    def seen() -> bytes:
        with sandbox.exec(["sh", "-c", "echo $FAST; test -c /dev/fast && echo node"], stdout=PIPE) as process:
            return process.communicate(timeout=30).stdout

    assert (seen(), sandbox.granted, sandbox.gpus, sandbox.gpu_lease) == (b"\n", [], [], None)
    name = "example.com/accelerator=0"
    grant = sandbox.attach_gpus(GpuRequest(name, cdi_directories=[tmp_path]))
    assert (grant.gpus, grant.left_out, grant.driver_version, sandbox.gpus) == ([name], [], None, [name])
    assert grant.facts["device_nodes"][0]["path"] == "/dev/fast" and name in repr(grant)
    assert seen() == b"yes\nnode\n"
    assert sandbox.granted == [grant] and hash(sandbox.granted[0]) == hash(grant)
    with pytest.raises(errors.AlreadyExistsError):
        sandbox.attach_gpus(GpuRequest(name, cdi_directories=[tmp_path]))
    sandbox.detach_gpus(grant)
    assert (seen(), sandbox.granted) == (b"\n", [])
    with pytest.raises(errors.NotFoundError):
        sandbox.detach_gpus(grant, force=True)
    with pytest.raises(errors.InvalidArgumentError, match="teleport"):
        sandbox.attach_gpus(GpuRequest(1, extras=["gds", "teleport"]))  # type: ignore[list-item]
    sandbox.kill()
    sandbox.wait(30)


def test_a_terminal(start: Start) -> None:
    sandbox = start("tty; read line; echo got $line", terminal=(24, 80), stdin=None, stdout=None, stderr=None)
    assert sandbox.terminal is not None
    sandbox.terminal.write(b"word\n")
    assert sandbox.wait(30).success
    seen = b""
    while b"got word" not in seen:
        seen += sandbox.terminal.read(4096) or b""
    assert b"/dev/" in seen


def test_published_ports(start: Start) -> None:
    sandbox = start("echo hi | nc -l -p 8080 >/dev/null; exec sleep 1000", ports={8080: 0, 9090: ("127.0.0.1", 0)})
    ports = {port.container_port: port for port in sandbox.ports}
    assert sorted(ports) == [8080, 9090]
    assert ports[8080].host == "127.0.0.1"
    assert ports[8080].host_port > 0
    deadline = time.monotonic() + 30
    while True:
        try:
            with sandbox.dial(8080, timeout=5) as connection:
                assert connection.recv(16) == b"hi\n"
            break
        except OSError:
            # The server may not listen yet.
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert (ports[8080].accepted, ports[8080].last_error) == (0, None)
    with pytest.raises(errors.PortInUseError, match=str(ports[8080].host_port)):
        start("true", ports={8080: ports[8080].host_port})


def test_ports_of_a_running_sandbox(start: Start) -> None:
    sandbox = start("exec sleep 1000")
    address, port = sandbox.publish(8080)
    assert (address, [known.host_port for known in sandbox.ports]) == ("127.0.0.1", [port])
    address6, port6 = sandbox.publish(8080, address="::1")
    assert address6 == "::1"
    with pytest.raises(errors.PortInUseError, match=str(port)):
        sandbox.publish(8080, port)
    sandbox.unpublish(address, port)
    assert [known.host_port for known in sandbox.ports] == [port6]
    with pytest.raises(errors.NotFoundError, match=str(port)):
        sandbox.unpublish(address, port)
    with pytest.raises(ValueError, match="nowhere"):
        sandbox.publish(8080, address="nowhere")


def test_port_mappings(start: Start) -> None:
    mapping = gpucontainer.PortMapping(5000, protocol="udp", count=10, mode="relay", idle_timeout=1.5, name="many")
    sandbox = start("exec sleep 1000", ports=[mapping])
    (port,) = sandbox.ports
    assert (port.protocol, port.count, port.container_port, port.mode, port.why) == (
        "udp",
        10,
        5000,
        "relay",
        "asked for",
    )
    assert port.hosts[0] == "127.0.0.1"
    with pytest.raises(errors.PortInUseError, match=str(port.host_port + 9)):
        sandbox.publish(gpucontainer.PortMapping(1, port.host_port + 9, protocol="udp"))
    # TCP has numbers of its own.
    assert sandbox.publish(gpucontainer.PortMapping(1, port.host_port, source="proxy-v2"))[1] == port.host_port
    sandbox.unpublish(port.host, port.host_port)
    assert sandbox.ports == []
    everywhere = sandbox.publish(gpucontainer.PortMapping(80, all_interfaces=True))
    assert everywhere[0] in {"::", "0.0.0.0"}
    with pytest.raises(errors.InvalidArgumentError, match="for TCP"):
        sandbox.publish(gpucontainer.PortMapping(80, protocol="udp", source="proxy-v2"))
    with pytest.raises(errors.InvalidArgumentError, match="sctp"):
        sandbox.publish(gpucontainer.PortMapping(80, protocol="sctp"))  # type: ignore[arg-type]


def test_sockets_of_the_process(start: Start) -> None:
    assert gpucontainer.activated() == []
    sandbox = start("exec sleep 1000", injectable_ports=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert sandbox.publish_socket(listener, 80) == listener.getsockname()
    (port,) = sandbox.ports
    assert (port.container_port, port.mode) == (80, "relay")
    sandbox.unpublish(port.host, port.host_port)
    with socket.socket() as plain, pytest.raises(errors.InvalidArgumentError, match="listens"):
        sandbox.publish_socket(plain, 80)


def test_host_services(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, number = server.getsockname()
        wanted = gpucontainer.HostService(5432, host, number)
        script = "until echo from inside | nc 127.0.0.1 5432; do sleep 0.01; done; exec sleep 1000"
        sandbox = start(script, host_services=[wanted])
        server.settimeout(30)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(30)
            assert connection.recv(64) == b"from inside\n"
        (status,) = sandbox.host_services
        assert (status.port, status.host_port, status.protocol, status.accepted) == (5432, number, "tcp", 1)
        with pytest.raises(errors.PortInUseError, match="inside"):
            sandbox.expose_host(wanted)
        assert sandbox.expose_host(gpucontainer.HostService(0, host, number, protocol="udp")) > 0
        sandbox.withdraw_host(5432)
        with pytest.raises(errors.NotFoundError, match="5432"):
            sandbox.withdraw_host(5432)


def test_mounts(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host\n")
    sandbox = start(
        "cat /data/file; echo x > /data/new; echo y > /mem/new && cat /mem/new",
        mounts=[Mount.bind(tmp_path, "/data", read_only=True), Mount.tmpfs("/mem", size=1 << 20)],
        user=0,
    )
    output = sandbox.communicate(timeout=30)
    assert output.stdout == b"of the host\ny\n"
    assert b"Read-only" in output.stderr
    assert not (tmp_path / "new").exists()


def test_the_plan_can_be_read(image: gpucontainer.Image, start: Start) -> None:
    plan = Sandbox.explain(image, ["true"], mounts=[Mount.tmpfs("/scratch")], drop_capabilities=["ALL"])
    assert "/scratch" in plan
    sandbox = start("true", name="py-named", hostname="machine")
    assert sandbox.name == "py-named"
    assert "py-named" in repr(sandbox)
    assert "machine" in sandbox.plan
    assert sandbox.gpus == []
    names = [name for name, _ in sandbox.timeline]
    assert len(names) > 2
    assert all(seconds >= 0 for _, seconds in sandbox.timeline)


@needs_root
def test_limits_statistics_and_pause(start: Start) -> None:
    sandbox = start("exec sleep 1000", limits=Limits(memory=64 << 20, cpus=0.5), pids=20)
    stats = sandbox.stats()
    assert stats["memory"]["limit"] == 64 << 20
    assert stats["pids"]["limit"] == 20
    sandbox.update(Limits(pids=40))
    assert sandbox.stats()["pids"]["limit"] == 40
    sandbox.pause()
    sandbox.resume()
    assert sandbox.poll() is None


@needs_root
def test_limits_of_devices_and_in_the_kernels_words(start: Start) -> None:
    sandbox = start("exec sleep 1000", limits=Limits(raw={"pids.max": "17"}))
    assert sandbox.stats()["pids"]["limit"] == 17
    # No block device has these numbers.
    nowhere = Limits(io=[IoLimit(4095, 1, read_bytes=1 << 20, write_operations=100)])
    with pytest.raises(errors.LimitNotAppliedError, match="4095:1"):
        sandbox.update(nowhere)
    with pytest.raises(errors.InvalidArgumentError, match="no rate"):
        start("true", limits=Limits(io=[IoLimit(8, 0)]))


def test_a_filter_of_ones_own(start: Start, tmp_path: Path) -> None:
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(profile))
    for given in (profile, file, str(file)):
        output = start("busybox mkdir /tmp/new", seccomp=given).communicate(timeout=60)
        assert b"No space left on device" in output.stderr
        assert output.status.code == 1
    file.write_text("nonsense")
    with pytest.raises(errors.InvalidArgumentError, match=r"profile\.json"):
        start("true", seccomp=file)


def test_what_dead_processes_left_is_removed(image: gpucontainer.Image, tmp_path: Path) -> None:
    path = tmp_path / "store"
    store = gpucontainer.ImageStore(path)
    assert BUSYBOX is not None
    store.build().copy(BUSYBOX, "/bin/sleep", follow_links=True).commit("sleep:1")
    script = (
        "import os, sys, gpucontainer\n"
        "store = gpucontainer.ImageStore(sys.argv[1])\n"
        "sandbox = gpucontainer.Sandbox('sleep:1', ['sleep', '1000'], store=store, stdin=gpucontainer.DEVNULL)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, path], stdout=subprocess.DEVNULL)
    assert ended.returncode == -signal.SIGKILL
    # What was in the sandbox ends soon after its owner, and holds its claim until then.
    end = time.monotonic() + 60
    while True:
        gpucontainer.collect_abandoned(store)
        left = [entry.name for entry in (path / "scratch").iterdir() if entry.name.startswith("s-")]
        if not left or time.monotonic() > end:
            break
        time.sleep(0.01)
    assert left == []


@needs_root
def test_a_memory_hog_is_reported(start: Start) -> None:
    sandbox = start("x=1234567890123456; while :; do x=$x$x; done", memory=16 << 20)
    status = sandbox.wait(60)
    assert status.oom_killed
    assert not status.success


@pytest.mark.parametrize(
    ("options", "expected", "words"),
    [
        ({"user": "nobody-here"}, errors.UserNotFoundError, "nobody-here"),
        ({"cwd": "/nowhere"}, errors.WorkingDirectoryNotFoundError, "/nowhere"),
        ({"add_capabilities": ["FLY"]}, errors.InvalidArgumentError, "FLY"),
        ({"resource_limits": {"wings": 2}}, errors.InvalidArgumentError, "wings"),
        ({"network": "carrier pigeon"}, errors.InvalidArgumentError, "pigeon"),
        ({"mounts": [Mount.tmpfs("relative")]}, errors.InvalidArgumentError, "relative"),
        ({"gpus": ["GPU-no-such"]}, errors.GpuUnavailableError, "GPU"),
        ({"gpus": GpuRequest("GPU-no-such", capabilities=["video"])}, errors.GpuUnavailableError, "GPU"),
        ({"gpus": GpuRequest(1, capabilities=["warp"])}, errors.InvalidArgumentError, "warp"),
        ({"gpus": GpuRequest(1), "min_gpu_memory": 1}, TypeError, "min_free_memory"),
        ({"memory": 0}, errors.InvalidArgumentError, "memory"),
    ],
)
def test_what_cannot_be_is_said(start: Start, options: dict[str, Any], expected: type[Exception], words: str) -> None:
    with pytest.raises(expected, match=words):
        start("true", **options)


def test_a_missing_command_is_named(image: gpucontainer.Image) -> None:
    with pytest.raises(errors.CommandNotFoundError, match="no-such-program"):
        Sandbox(image, ["no-such-program"])
    with pytest.raises(TypeError, match="list of words"):
        Sandbox(image, "one string")


def test_dropping_it_ends_it(image: gpucontainer.Image) -> None:
    sandbox = Sandbox(image, ["sleep", "1000"], stdin=DEVNULL)
    pid = sandbox.pid
    assert Path(f"/proc/{pid}").exists()
    del sandbox
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()


def test_many_in_a_row_leave_nothing(start: Start, image: gpucontainer.Image) -> None:
    for number in range(30):
        with Sandbox(image, ["sh", "-c", f"exit {number}"], stdin=DEVNULL) as sandbox:
            assert sandbox.wait(30).code == number


def test_many_at_once(image: gpucontainer.Image) -> None:
    codes: list[int | None] = []

    def run(number: int) -> None:
        with Sandbox(image, ["sh", "-c", f"exit {number}"], stdin=DEVNULL) as sandbox:
            codes.append(sandbox.wait(60).code)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(code for code in codes if code is not None) == list(range(12))


def _in_a_child(store: Path, queue: multiprocessing.Queue[object]) -> None:
    image = gpucontainer.ImageStore(store).image("test:1")
    with Sandbox(image, stdout=PIPE) as sandbox:
        queue.put(sandbox.communicate(timeout=60).stdout)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_its_own(start: Start, image: gpucontainer.Image, tmp_path: Path) -> None:
    sandbox = start("exec sleep 1000")
    store = gpucontainer.ImageStore(tmp_path / "store")
    assert BUSYBOX is not None
    builder = store.build().copy(BUSYBOX, "/bin/busybox", follow_links=True).symlink("busybox", "/bin/echo")
    builder.command(["echo", "from a child"]).commit("test:1")
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[object] = context.Queue()
    child = context.Process(target=_in_a_child, args=(tmp_path / "store", queue))
    child.start()
    assert queue.get(timeout=60) == b"from a child\n"
    child.join(60)
    assert child.exitcode == 0
    queue.close()
    queue.join_thread()
    child.close()
    # The end of the child, with its copies of our objects, ended nothing of ours.
    assert sandbox.poll() is None
