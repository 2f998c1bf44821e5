"""One row of the table of scenarios: what is there before it, its steps, and what came of them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpucontainer
from gpucontainer import (
    PIPE,
    Cancel,
    ExitStatus,
    GpuAllocator,
    GpuRequest,
    HostService,
    Image,
    ImageStore,
    Limits,
    MigDevices,
    Mount,
    PortMapper,
    PrivateNetwork,
    Sandbox,
    cdi,
    errors,
)

REPOSITORY = Path(__file__).resolve().parents[2]
SCENARIOS = REPOSITORY / "tests" / "scenarios"

#: How long anything may take on a loaded machine.
LIMIT = 30.0


@dataclasses.dataclass
class Outcome:
    """What came of a step."""

    status: ExitStatus | None = None
    stdout: str = ""
    stderr: str = ""
    text: str = ""
    count: int | None = None
    error: errors.Error | None = None


class Greeter:
    """A service of the host that says one line to everybody."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._over = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with client:
                if self._over:
                    return
                with contextlib.suppress(OSError):
                    client.sendall(b"hello from the host\n")

    def close(self) -> None:
        self._over = True
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join()
        self._listener.close()


def fake_host(machine: str, directory: Path) -> Path:
    """A driver root with GPUs that are a stand-in."""
    subprocess.run([REPOSITORY / "tests/fake-host", machine, directory], check=True, stdin=subprocess.DEVNULL)
    return directory


def _kind(error: errors.Error) -> str:
    """The kind that all languages know; a class of Python's own stands below the one of its kind."""
    names = {kind: name for name, kind in errors._BY_KIND.items()}
    return next(names[kind] for kind in type(error).__mro__ if kind in names)


def _limits(value: dict[str, Any]) -> Limits:
    return Limits(**value)


def _mount(value: dict[str, Any]) -> Mount:
    return Mount(**{"source": "", **value})


def _network(value: dict[str, Any]) -> PrivateNetwork:
    return PrivateNetwork(**value)


def _service(value: dict[str, Any]) -> HostService:
    host, _, port = value["host"].rpartition(":")
    return HostService(value["port"], host, int(port), address=value.get("address"))


def _talk(stream: socket.socket, send: str | None) -> str:
    """Sends a line, if there is one, and reads to the end."""
    with stream:
        stream.settimeout(LIMIT)
        if send is not None:
            stream.sendall(send.encode())
        answer = b""
        # One whom nobody inside takes yet is reset.
        with contextlib.suppress(OSError):
            stream.shutdown(socket.SHUT_WR)
            while data := stream.recv(65536):
                answer += data
    return answer.decode()


def _served(host: str, port: int, send: str | None) -> str:
    """The same, until somebody inside listens."""
    end = time.monotonic() + LIMIT
    while True:
        answer = ""
        # Between two servers nobody takes it, and whom one had not taken yet loses the connection with it.
        with contextlib.suppress(ConnectionRefusedError, ConnectionResetError):
            answer = _talk(socket.create_connection((host, port)), send)
        if answer or time.monotonic() > end:
            return answer


def _config(image: Image) -> str:
    config = dataclasses.asdict(image.config)
    del config["architecture"], config["created"]
    return json.dumps({"id": image.id, "reference": image.reference, **config}, sort_keys=True, separators=(",", ":"))


class Scene:
    """What the steps of a row share."""

    def __init__(self, row: dict[str, Any], image: dict[str, Any], directory: Path) -> None:
        self._directory = directory
        self._busybox = shutil.which("busybox") or ""
        (directory / "host").mkdir()
        (directory / "host" / "greeting").write_text("from the host\n")
        (directory / "root" / "bin").mkdir(parents=True)
        shutil.copy(self._busybox, directory / "root" / "bin" / "sh")
        self._row = row
        self._greeter = Greeter() if "$PORT" in json.dumps(row) else None
        self._port = str(self._greeter.port if self._greeter else 0)
        self._store = ImageStore(directory / "store")
        self._driver = fake_host(row["host"], directory / "driver") if "host" in row else None
        self._allocator = None
        if self._driver is not None:
            self._allocator = GpuAllocator(directory / "leases", driver_root=self._driver, respect_outer=False)
        self._sandboxes: dict[str, Sandbox] = {}
        self._leases: dict[str, gpucontainer.GpuLease] = {}
        self._tickets: dict[str, gpucontainer.GpuTicket] = {}
        self._grants: list[gpucontainer.GpuGrant] = []
        self._members: dict[str, gpucontainer.NetworkMember] = {}
        self._mig: dict[str, gpucontainer.MigLease] = {}
        self._reservations: dict[str, gpucontainer.Reservation] = {}
        self._published: dict[str, gpucontainer.Published] = {}
        self._image = self._build(self._whole(image), "fixture:1")

    def _whole(self, value: Any) -> Any:
        said = json.dumps(value).replace('"$PORT"', self._port).replace("$PORT", self._port)
        said = said.replace("$DIR", str(self._directory)).replace("$DATA", str(SCENARIOS))
        return json.loads(said.replace("$BUSYBOX", self._busybox))

    def run(self) -> Iterator[str]:
        """Does the steps, checks what came of each, and says so in a line that is the same in all languages."""
        for number, step in enumerate(map(self._whole, self._row["steps"])):
            try:
                outcome = self._step(step)
            except errors.Error as error:
                outcome = Outcome(error=error)
            yield self._line(number, step, outcome)
            self._check(number, step, outcome)

    def close(self) -> None:
        for published in self._published.values():
            published.close()
        for reservation in self._reservations.values():
            reservation.close()
        for sandbox in self._sandboxes.values():
            sandbox.close()
        for member in self._members.values():
            member.leave()
        for ticket in self._tickets.values():
            ticket.close()
        for lease in self._leases.values():
            lease.close()
        for device in self._mig.values():
            device.close()
        self._grants.clear()
        if self._greeter is not None:
            self._greeter.close()

    def _line(self, number: int, step: dict[str, Any], outcome: Outcome) -> str:
        error, status = outcome.error, outcome.status
        if error is not None:
            said: list[Any] = [_kind(error), error.errno, str(error)]
        elif status is not None:
            said = [status.code, status.signal, status.oom_killed, outcome.stdout, outcome.stderr]
        else:
            said = [outcome.count, None if step.get("loose") else outcome.text]
        line = json.dumps([self._row["name"], number, step["do"], *said], ensure_ascii=False, separators=(",", ":"))
        line = line.replace(str(self._directory), "$DIR").replace(str(SCENARIOS), "$DATA")
        return line if self._greeter is None else line.replace(self._port, "$PORT")

    def _check(self, number: int, step: dict[str, Any], outcome: Outcome) -> None:
        expected = step.get("expect", {})
        place = f"{self._row['name']}, step {number}: {outcome}"
        if outcome.error is not None:
            assert expected.get("error") == _kind(outcome.error), place
        for key, value in expected.items():
            match key:
                case "error":
                    assert outcome.error is not None, place
                case "says":
                    assert all(part in str(outcome.error) for part in value), place
                case "errno":
                    assert outcome.error is not None and outcome.error.errno == value, place
                case "code":
                    assert outcome.status is not None and outcome.status.code == value, place
                case "signal":
                    assert outcome.status is not None and outcome.status.signal == value, place
                case "oom":
                    assert outcome.status is not None and outcome.status.oom_killed == value, place
                case "stdout" | "stderr" | "text" | "count":
                    assert getattr(outcome, key) == value, place
                case "stdout_has" | "stderr_has" | "text_has":
                    assert all(part in getattr(outcome, key.removesuffix("_has")) for part in value), place
                case "json":
                    for pointer, wanted in value.items():
                        found = json.loads(outcome.text)
                        for name in pointer.split("/")[1:]:
                            found = found[name]
                        assert found == wanted, place
                case other:
                    raise AssertionError(f"no expectation is called {other!r}")

    def _build(self, value: dict[str, Any], reference: str) -> Image:
        builder = self._store.build()
        if "base" in value:
            builder = builder.base(self._store.image(value["base"]))
        for key, one in value.items():
            match key:
                case "reference" | "base":
                    pass
                case "copy":
                    for source, target in one:
                        builder = builder.copy(source, target, follow_links=True)
                case "files":
                    for path, text, mode in one:
                        builder = builder.file(path, text.encode(), mode)
                case "directories":
                    for path, mode in one:
                        builder = builder.directory(path, mode)
                case "symlinks":
                    for target, path in one:
                        builder = builder.symlink(target, path)
                case "env":
                    for name in sorted(one):
                        builder = builder.env(name, one[name])
                case "labels":
                    for name, text in one.items():
                        builder = builder.label(name, text)
                case "expose":
                    for port in one:
                        builder = builder.expose(port)
                case "volumes":
                    for path in one:
                        builder = builder.volume(path)
                case "entrypoint" | "command" | "user" | "working_dir" | "stop_signal" | "created":
                    builder = getattr(builder, key)(one)
                case other:
                    raise AssertionError(f"no option of a build is called {other!r}")
        return builder.commit(reference)

    def _arguments(self, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The image and the keyword arguments that the table means; :class:`Sandbox` refuses what it does not know."""
        options = {key: value for key, value in given.items() if key not in ("image", "directory", "join", "lease")}
        image: Any = self._image
        if "image" in given:
            image = given["image"]
        elif "directory" in given:
            image = Path(given["directory"])
        if self._driver is not None:
            options["driver_root"] = self._driver
        if "join" in given:
            options["network"] = self._sandboxes[given["join"]]
        if "lease" in given:
            options["gpus"] = self._leases[given["lease"]]
        if isinstance(options.get("network"), dict):
            options["network"] = _network(options["network"])
        if "limits" in options:
            options["limits"] = _limits(options["limits"])
        if "mounts" in options:
            options["mounts"] = [_mount(mount) for mount in options["mounts"]]
        if "publish" in options:
            options["ports"] = dict(options.pop("publish"))
        if "host_services" in options:
            options["host_services"] = [_service(service) for service in options["host_services"]]
        if isinstance(options.get("gpus"), dict):
            options["gpus"] = GpuRequest(**options["gpus"])
            options["gpu_allocator"] = self._allocator
        for pair in ("terminal", "time_offsets"):
            if pair in options:
                options[pair] = tuple(options[pair])
        return image, {"store": self._store, **options}

    def _start(self, given: dict[str, Any]) -> Sandbox:
        image, options = self._arguments(given)
        return Sandbox(image, options.pop("command", None), stdin=PIPE, stdout=PIPE, stderr=PIPE, **options)

    @staticmethod
    def _output(output: gpucontainer.Output) -> Outcome:
        return Outcome(output.status, output.stdout.decode(), output.stderr.decode())

    @staticmethod
    def _input(step: dict[str, Any]) -> bytes:
        text: str = step.get("input", "") * step.get("times", 1)
        return text.encode()

    def _cancel(self, step: dict[str, Any]) -> Cancel:
        cancel = Cancel()
        if step.get("cancelled"):
            cancel.cancel()
        return cancel

    def _step(self, step: dict[str, Any]) -> Outcome:
        given, name = step.get("with", {}), step.get("as", "one")
        timeout = step["timeout"] / 1000 if "timeout" in step else None
        match step["do"]:
            case "run":
                with self._start(given) as sandbox:
                    return self._output(sandbox.communicate(self._input(step), timeout=LIMIT))
            case "start":
                self._sandboxes[name] = self._start(given)
                return Outcome()
            case "explain":
                image, options = self._arguments(given)
                return Outcome(text=Sandbox.explain(image, options.pop("command", None), **options))
            case "build":
                return Outcome(text=_config(self._build(given, given["reference"])))
            case "file":
                return Outcome(text=Path(step["path"]).read_text())
            case "probe":
                return Outcome(text=str(gpucontainer.Host.probe()))
            case "communicate" | "wait" | "line" | "kill" | "exec" | "stats" | "update" | "pause" | "resume":
                return self._with_process(self._sandboxes[name], step, given, LIMIT if timeout is None else timeout)
            case "ready":
                self._sandboxes[name].wait_ready(step["port"], LIMIT if timeout is None else timeout)
                return Outcome()
            case "dial" | "connect" | "publish" | "unpublish" | "ports" | "expose" | "services" | "withdraw":
                return self._with_ports(self._sandboxes[name], step, given)
            case "close":
                self._sandboxes.pop(name).close()
                return Outcome()
            case "detach":
                return self._detach(self._sandboxes.pop(name))
            case "image" | "tag" | "remove" | "images" | "garbage" | "import" | "pull" | "push":
                return self._with_images(step, given)
            case "join":
                member = _network(given).join(step["name"])
                self._members[name] = member
                return Outcome(text=str(member.addresses[0]))
            case "leave":
                self._members.pop(name).leave()
                return Outcome()
            case "addresses":
                return Outcome(text=str(self._sandboxes[name].addresses[0]))
            case "reserve":
                reservation = PortMapper().reserve(
                    [gpucontainer.PortMapping(inside, outside) for inside, outside in step["ports"]]
                )
                self._reservations[name] = reservation
                return Outcome(count=len(reservation.ports))
            case "relay":
                published = self._reservations.pop(name).relay(self._sandboxes[name].network_namespace)
                self._published[name] = published
                return Outcome(count=len(published.ports))
            case "relayed":
                port = self._published[name].ports[0]
                return Outcome(text=_served(port.host, port.host_port, step.get("send")))
            case "unrelay":
                self._published.pop(name).close()
                return Outcome()
            case _:
                return self._with_gpus(step, given, name, timeout)

    def _with_process(self, sandbox: Sandbox, step: dict[str, Any], given: dict[str, Any], timeout: float) -> Outcome:
        match step["do"]:
            case "communicate":
                return self._output(sandbox.communicate(self._input(step), timeout=timeout))
            case "wait":
                if timeout == 0:
                    return Outcome(sandbox.poll(), text="running")
                return Outcome(sandbox.wait(timeout))
            case "line":
                assert sandbox.stdout is not None
                return Outcome(text=sandbox.stdout.readline().decode().removesuffix("\n"))
            case "kill":
                sandbox.kill(step["signal"])
            case "exec":
                options = dict(given)
                command = options.pop("command")
                with sandbox.exec(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, **options) as process:
                    return self._output(process.communicate(self._input(step), timeout=LIMIT))
            case "stats":
                return Outcome(text=json.dumps(sandbox.stats()))
            case "update":
                sandbox.update(_limits(given))
            case "pause":
                sandbox.pause()
            case "resume":
                sandbox.resume()
        return Outcome()

    def _with_ports(self, sandbox: Sandbox, step: dict[str, Any], given: dict[str, Any]) -> Outcome:
        match step["do"]:
            case "dial":
                return Outcome(text=_talk(sandbox.dial(step["port"], LIMIT), step.get("send")))
            case "connect":
                port = sandbox.ports[0]
                return Outcome(text=_served(port.host, port.host_port, step.get("send")))
            case "publish":
                sandbox.publish(step["port"], step.get("host_port", 0))
                return Outcome(count=1)
            case "unpublish":
                if "host_port" in step:
                    sandbox.unpublish("127.0.0.1", step["host_port"])
                else:
                    sandbox.unpublish(sandbox.ports[0].host, sandbox.ports[0].host_port)
            case "ports":
                return Outcome(count=len(sandbox.ports))
            case "expose":
                sandbox.expose_host(_service(given))
                return Outcome(count=1)
            case "services":
                return Outcome(count=len(sandbox.host_services))
            case "withdraw":
                sandbox.withdraw_host(step["port"])
        return Outcome()

    def _detach(self, sandbox: Sandbox) -> Outcome:
        pid = sandbox.pid
        sandbox.detach()
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + LIMIT
        # Whoever detaches a child and lives on waits for it, like for any other.
        with contextlib.suppress(ChildProcessError):
            while time.monotonic() < end:
                os.waitpid(-1, os.WNOHANG)
        scratch = self._store.path / "scratch"
        while True:
            gpucontainer.collect_abandoned(self._store)
            if not scratch.exists() or not any(scratch.iterdir()) or time.monotonic() > end:
                return Outcome()

    def _with_images(self, step: dict[str, Any], given: dict[str, Any]) -> Outcome:
        store = self._store
        match step["do"]:
            case "image":
                return Outcome(text=_config(store.image(step["reference"])))
            case "tag":
                return Outcome(text=_config(store.tag(store.image(step["reference"]), step["new"])))
            case "push":
                image = store.image(step["image"])
                return Outcome(text=store.push(image, step["reference"], anonymous=True))
            case "remove":
                store.remove(step["reference"])
                return Outcome()
            case "images":
                return Outcome(count=len(store.list()))
            case "garbage":
                return Outcome(count=store.collect_garbage(cancel=self._cancel(step))[0])
            case "import":
                options = dict(given)
                image = store.import_(options.pop("path"), cancel=self._cancel(step), **options)
                return Outcome(text=_config(image))
            case _:
                return Outcome(text=_config(store.pull(step["reference"], anonymous=True)))

    def _with_gpus(self, step: dict[str, Any], given: dict[str, Any], name: str, timeout: float | None) -> Outcome:
        allocator = self._allocator
        assert allocator is not None, step
        assert self._driver is not None
        match step["do"]:
            case "gpus":
                return Outcome(count=len(self._sandboxes[name].gpus))
            case "lease":
                lease = allocator.acquire(GpuRequest(**given), timeout=timeout or 0, cancel=self._cancel(step))
                self._leases[name] = lease
                return Outcome(count=len(lease.gpus))
            case "release":
                self._leases.pop(name).release()
            case "drop":
                self._leases.pop(name).close()
            case "leases":
                return Outcome(count=len(allocator.status().leases))
            case "queue":
                ticket = allocator.enqueue(GpuRequest(**given))
                self._tickets[name] = ticket
                got = ticket.wait(0)
                if got is not None:
                    self._leases[name] = got
                return Outcome(count=0 if got is None else len(got.gpus))
            case "served":
                got = self._tickets.pop(name).wait(LIMIT)
                assert got is not None
                self._leases[name] = got
                return Outcome(count=len(got.gpus))
            case "quarantine" | "readmit":
                gpu = step.get("gpu") or allocator.status().gpus[0].uuid
                act = allocator.quarantine if step["do"] == "quarantine" else allocator.readmit
                return Outcome(count=int(act(gpu)))
            case "quarantined":
                return Outcome(count=len(allocator.status().quarantined))
            case "attach":
                sandbox = self._sandboxes[name]
                wanted = self._leases[given["lease"]] if "lease" in given else GpuRequest(**given)
                self._grants.append(sandbox.attach_gpus(wanted))
                return Outcome(count=len(sandbox.granted))
            case "take":
                self._sandboxes[name].detach_gpus(self._grants.pop())
            case "mig":
                device = MigDevices(self._directory / "mig", driver_root=self._driver).acquire(step["profile"])
                self._mig[name] = device
                return Outcome(count=int(device.created))
            case "unmig":
                self._mig.pop(name).release()
            case "cdi":
                spec = cdi.spec(GpuRequest(**given), driver_root=self._driver)
                return Outcome(text=spec if isinstance(spec, str) else json.dumps(spec))
            case other:
                raise AssertionError(f"no step is called {other!r}")
        return Outcome()
