"""Leases on the GPUs of a machine that is a stand-in: a DGX A100."""

from __future__ import annotations

import concurrent.futures
import json
import math
import os
import shutil
import signal as signals
import subprocess
from pathlib import Path
from typing import Any

import pytest

import gpucontainer
from gpucontainer import Cancel, GpuAllocator, GpuRequest, Mps, Sandbox, cdi, errors

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def allocator(tmp_path: Path) -> GpuAllocator:
    cargo = shutil.which("cargo")
    if cargo is None:
        pytest.skip("cargo is not installed")
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    command: list[str | Path] = [
        cargo,
        "build",
        "--quiet",
        "--offline",
        "--package",
        "fake-nvml",
        "--target-dir",
        target,
    ]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    libraries = tmp_path / "driver" / "usr" / "lib" / f"{os.uname().machine}-linux-gnu"
    libraries.mkdir(parents=True)
    shutil.copy(target / "debug" / "libnvidia_ml.so", libraries / "libnvidia-ml.so.1")
    shutil.copy(REPOSITORY / "tests/fake-nvml/profiles/dgx-a100.json", libraries / "fake-nvml.json")
    return GpuAllocator(tmp_path / "table", driver_root=tmp_path / "driver", respect_outer=False)


def test_leases_exclude_each_other_and_end(allocator: GpuAllocator) -> None:
    with allocator.acquire(2) as two, allocator.acquire(GpuRequest(6, model="*a100*"), timeout=0) as six:
        assert len({*two.gpus, *six.gpus}) == 8
        assert two.cpus and "NVLink" in two.description and two.id in repr(two)
        with pytest.raises(errors.GpuUnavailableError, match=r"0 of 8 free: 8 leased by process"):
            allocator.acquire(1, timeout=0)
        with pytest.raises(errors.TimedOutError):
            allocator.acquire(1, timeout=0.05)
        cancel = Cancel()
        cancel.cancel()
        with pytest.raises(errors.CancelledError):
            allocator.acquire(1, cancel=cancel)
    with allocator.acquire("all") as all_of_them:
        descriptor = all_of_them.into_fd()
    with pytest.raises(errors.GpuUnavailableError):
        allocator.acquire(1, timeout=0)
    os.close(descriptor)
    lease = allocator.acquire(1, timeout=10)
    lease.release()
    lease.release()
    with pytest.raises(errors.ClosedError):
        lease.into_fd()
    assert allocator.status().leases == ()


def test_a_lease_has_an_mps_daemon(allocator: GpuAllocator, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not installed")
    programs = tmp_path / "driver" / "usr" / "bin"
    programs.mkdir(parents=True)
    source = REPOSITORY / "gpucontainer/tests/driver/mps.c"
    subprocess.run([compiler, "-static", "-o", programs / "nvidia-cuda-mps-control", source], check=True)
    with pytest.raises(errors.GpuUnavailableError, match=r"has no nvidia-cuda-mps-server"):
        allocator.acquire(GpuRequest(1, mps=Mps()), timeout=0)
    (programs / "nvidia-cuda-mps-server").symlink_to("nvidia-cuda-mps-control")
    (libcuda,) = (tmp_path / "driver").glob("usr/lib/*")
    shutil.copy(libcuda / "libnvidia-ml.so.1", libcuda / "libnvidia-ml.so.550.163.01")
    with pytest.raises(errors.InvalidArgumentError, match=r"0 % of the threads"):
        allocator.acquire(GpuRequest(1, mps=Mps(active_threads=0)), timeout=0)
    limits = Mps(active_threads=30, device_memory=2 << 30)
    request = GpuRequest(1, shared=2, mps=limits)
    with allocator.acquire(request, timeout=0) as one, allocator.acquire("7", timeout=0) as plain:
        group = one.mps
        assert group is not None and group.running and group.leases == (one.id,)
        assert (group.active_threads, group.device_memory) == (30, 2 << 30)
        assert group.gpus == tuple(one.gpus) and (group.pipe_directory / "control").is_socket()
        status = allocator.status()
        assert [status.mps_of(lease) is None for lease in status.leases] == [False, True]
        assert f"MPS daemon {group.pid}" in str(status) and f"MPS daemon {group.pid}" in status._repr_html_()
        assert plain.mps is None
    assert allocator.status().mps == () and not Path(f"/proc/{group.pid}/exe").exists()


def test_a_sandbox_leases_what_it_asks_for(allocator: GpuAllocator, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()

    def start(gpus: int | str, **options: Any) -> Sandbox:
        driver = tmp_path / "driver"
        return Sandbox(root, ["/program"], gpus=gpus, gpu_allocator=allocator, driver_root=driver, **options)

    with allocator.acquire(7) as seven:
        with pytest.raises(errors.GpuUnavailableError, match=r"1 of 8 free: 7 leased by process"):
            start(2)
        with pytest.raises(errors.GpuUnavailableError, match=r"0 of 1 free"):
            start(seven.gpus[0])
        with pytest.raises(errors.TimedOutError):
            start(2, gpu_timeout=0.05)
        # Without a lease, only the files that the stand-in for a driver lacks are in the way.
        with pytest.raises(errors.GpuUnavailableError, match=r"grant GPUs: find the NVIDIA driver"):
            start(seven.gpus[0], lease_gpus=False)
        # The lease that was taken for the last GPU is given back by the start that fails.
        with pytest.raises(errors.GpuUnavailableError, match=r"grant GPUs: find the NVIDIA driver"):
            start(1, gpu_timeout=math.inf)
        assert [lease.id for lease in allocator.status().leases] == [seven.id]
    with allocator.acquire("all"):
        previous = signals.signal(signals.SIGALRM, signals.default_int_handler)
        signals.setitimer(signals.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(KeyboardInterrupt):
                start(1, gpu_timeout=math.inf)
        finally:
            signals.signal(signals.SIGALRM, previous)
        assert allocator.status().waiting == ()


def test_the_status_is_a_table(allocator: GpuAllocator) -> None:
    with allocator.acquire(GpuRequest("0,1", fraction=8 << 30)) as lease:
        status = allocator.status()
        (held,) = status.leases
        assert (held.id, held.pid, held.user) == (lease.id, os.getpid(), os.geteuid())
        assert [gpu.fraction for gpu in held.gpus] == [8 << 30] * 2
        assert held.age is not None and held.age >= 0 and held.since is not None
        assert status.leases_of(lease.gpus[0]) == [held]
        assert f"process {os.getpid()}" in str(status)
        table = status._repr_html_()
        assert table.startswith("<table>") and table.count("<tr>") == 9
        assert table.count(f"process {os.getpid()}") == 2 and table.count("<td>free</td>") == 6
        assert status.gpus[0].nvlinks == 12 and not status.gpus[0].mig_enabled


@pytest.mark.parametrize(
    ("request_", "expected", "words"),
    [
        (GpuRequest(9), errors.GpuUnavailableError, "8"),
        (GpuRequest(0), errors.InvalidArgumentError, "GPU"),
        (GpuRequest(1, model="*B200*"), errors.GpuUnavailableError, "B200"),
        (GpuRequest(1, shared=2, fraction=1), TypeError, "exclude"),
        (GpuRequest(1, placement="nowhere"), errors.InvalidArgumentError, "nowhere"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_said_at_once(
    allocator: GpuAllocator, request_: GpuRequest, expected: type[Exception], words: str
) -> None:
    with pytest.raises(expected, match=words):
        allocator.acquire(request_, timeout=60)


def test_a_gpu_can_be_kept_back(allocator: GpuAllocator) -> None:
    uuid = allocator.status().gpus[3].uuid
    assert allocator.quarantine(uuid) and not allocator.quarantine(uuid)
    with allocator.acquire(7, timeout=0) as seven:
        assert uuid not in seven.gpus
        with pytest.raises(errors.GpuUnavailableError, match="in quarantine: kept back on request"):
            allocator.acquire([uuid], timeout=0)
    status = allocator.status()
    (kept,) = status.quarantined
    assert (kept.gpu, kept.reason) == (uuid, "kept back on request") and kept.since.tzinfo is not None
    assert "in quarantine: kept back on request" in status._repr_html_()
    assert allocator.readmit(uuid) and not allocator.readmit(uuid)
    assert allocator.status().quarantined == ()
    allocator.acquire([uuid], timeout=0).release()
    with pytest.raises(errors.InvalidArgumentError):
        allocator.quarantine("../../x")


def test_a_gpu_comes_back_with_its_memory(allocator: GpuAllocator, tmp_path: Path) -> None:
    (machine,) = tmp_path.glob("driver/usr/lib/*/fake-nvml.json")
    state = json.loads(machine.read_text())
    free = json.dumps(state)
    uuid = state["gpus"][2]["uuid"]
    with allocator.acquire([uuid], timeout=0):
        state["gpus"][2]["memory"] = {"total": 40 << 30, "used": 30 << 30}
        machine.write_text(json.dumps(state))
        assert allocator.status().returning == ()
    status = allocator.status()
    assert status.returning == (uuid,) and status.leases == ()
    assert "memory not back from the last lease" in str(status)
    assert "memory not back from the last lease" in status._repr_html_()
    with pytest.raises(errors.GpuUnavailableError, match="1 whose memory is not back from the last lease"):
        allocator.acquire([uuid], timeout=0)
    machine.write_text(free)
    allocator.acquire([uuid], timeout=0).release()
    assert allocator.status().returning == ()


def test_a_faulty_gpu_is_kept_back(allocator: GpuAllocator, tmp_path: Path) -> None:
    assert allocator.review() == ()
    (machine,) = tmp_path.glob("driver/usr/lib/*/fake-nvml.json")
    state = json.loads(machine.read_text())
    healthy = json.dumps(state)
    state["gpus"][2]["health"] = {"uncorrectable_errors": 3}
    machine.write_text(json.dumps(state))
    (kept,) = allocator.review()
    assert kept.gpu == state["gpus"][2]["uuid"] and "could not be corrected" in kept.reason
    with allocator.acquire(7, timeout=0) as seven:
        assert kept.gpu not in seven.gpus
    assert allocator.status().quarantined == (kept,)
    machine.write_text(healthy)
    assert allocator.review() == (), "after a reset"


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_other_engines_are_told_of_the_gpus(tmp_path: Path) -> None:
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    machine = tmp_path / "machine"
    subprocess.run([REPOSITORY / "tests/fake-host", "dgx-a100", machine], check=True)
    described = cdi.spec(driver_root=machine)
    assert described["kind"] == "nvidia.com/gpu" and cdi.spec("0", driver_root=machine) != described
    names = {device["name"] for device in described["devices"]}
    assert {"all", "0", "7"} <= names
    (tmp_path / "cdi").mkdir()
    (tmp_path / "cdi/nvidia.json").write_text(json.dumps(described))
    (tmp_path / "cdi/broken.json").write_text("{")
    known = cdi.devices([tmp_path / "cdi"])
    assert set(known.names) == {f"nvidia.com/gpu={name}" for name in names}
    (problem,) = known.problems
    assert "broken.json" in problem
    with pytest.raises(errors.GpuUnavailableError):
        cdi.spec(driver_root=tmp_path / "nowhere")


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_what_is_attached_is_leased(tmp_path: Path) -> None:
    if shutil.which("cargo") is None or shutil.which("busybox") is None:
        pytest.skip("cargo and busybox are needed")
    machine, root = tmp_path / "machine", tmp_path / "root"
    subprocess.run([REPOSITORY / "tests/fake-host", "dgx-a100", machine], check=True)
    (root / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/sh")
    allocator = GpuAllocator(tmp_path / "table", driver_root=machine, respect_outer=False)

    names = {name: f"{name}-{os.getpid()}" for name in ("one", "other")}

    def start(name: str) -> Sandbox:
        # The driver is where the allocator's is.
        return Sandbox(
            root, ["/bin/sh", "-c", "read line"], name=names[name], gpu_allocator=allocator, stdin=gpucontainer.PIPE
        )

    with start("one") as one, start("other") as other, allocator.acquire("7") as own:
        grant = one.attach_gpus(2)
        assert one.gpus == grant.gpus and [lease.gpus for lease in one.gpu_leases] == [grant.gpus]
        assert one.gpu_lease is None and other.gpu_leases == []
        status = allocator.status()
        held = next(lease for lease in status.leases if lease.sandbox == names["one"])
        assert [gpu.uuid for gpu in held.gpus] == grant.gpus and held.since is not None and held.pid == os.getpid()
        words = f"sandbox {names['one']} of process"
        assert words in str(status) and words in status._repr_html_()
        with pytest.raises(errors.GpuUnavailableError, match="leased by process"):
            other.attach_gpus(grant.gpus)
        with pytest.raises(errors.TimedOutError):
            other.attach_gpus(grant.gpus, timeout=0.05)
        with pytest.raises(errors.AlreadyExistsError):
            one.attach_gpus(grant.gpus[0], timeout=None)
        cancel = Cancel()
        cancel.cancel()
        with pytest.raises(errors.CancelledError):
            other.attach_gpus(grant.gpus, timeout=None, cancel=cancel)
        beside = other.attach_gpus(grant.gpus, lease=False)
        assert other.gpu_leases == [] and other.gpus == grant.gpus
        other.detach_gpus(beside)
        mine = other.attach_gpus(own)
        assert [lease.id for lease in other.gpu_leases] == [own.id]
        other.detach_gpus(mine)
        one.detach_gpus(grant)
        assert [lease.id for lease in allocator.status().leases] == [own.id]

        # Who waits looks after signals, and ends when the sandbox is closed.
        everything = allocator.acquire("0,1,2,3,4,5,6")
        previous = signals.signal(signals.SIGALRM, signals.default_int_handler)
        signals.setitimer(signals.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(KeyboardInterrupt):
                other.attach_gpus(1, timeout=None)
        finally:
            signals.signal(signals.SIGALRM, previous)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            waits = pool.submit(other.attach_gpus, 1, timeout=None)
            while not [ticket for ticket in allocator.status().waiting if ticket.sandbox == names["other"]]:
                pass
            other.close()
            with pytest.raises((errors.CancelledError, errors.ClosedError)):
                waits.result(30)
        assert allocator.status().waiting == ()
        everything.release()
    assert allocator.status().leases == ()


def test_the_topology_is_a_table() -> None:
    assert "NUMA" in gpucontainer.Host.topology()
