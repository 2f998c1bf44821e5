"""The half of a Ray worker that is outside: starts its sandbox, and attaches GPUs when Ray assigns some."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from .. import command_line, stand_in
from ..errors import BusyError, ClosedError, Error
from ..gpu import GpuGrant, GpuRequest
from ..limits import Mount
from ..network import PrivateNetwork
from ..ports import HostService
from ..sandbox import Sandbox

#: The variable with the words of an ``exec``.
CONFIGURATION = "GPUCONTAINER_RAY_WORKER"

#: Where the other half is inside.
_INSIDE = "/run/gpucontainer/ray_worker.py"

#: Where workers with an address of their own are. The node's services, and drivers on it, are at the node's address.
_PRIVATE = PrivateNetwork("ray", host_access=True)

#: As many workers may share a GPU as Ray allows, which knows of parts down to a ten thousandth.
_SHARED = 10_000

#: What Ray sends to its workers, and people to Ray's.
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class _Gpus:
    """The GPUs that the worker has now."""

    def __init__(self, sandbox: Sandbox, wait: float) -> None:
        self._sandbox = sandbox
        self._wait = wait
        self._ids: list[str] = []
        self._grant: GpuGrant | None = None

    def assign(self, ids: list[str]) -> dict[str, Any]:
        """Lets the worker have these and no others; the variables that go with them, or what is wrong."""
        try:
            if ids != self._ids:
                self._detach()
                self._attach(ids)
        except Error as error:
            return {"error": str(error)}
        if self._grant is None:
            return {"visible": [], "environment": {}}
        return {"visible": self._grant.gpus, "environment": dict(self._grant.facts["environment"])}

    def _attach(self, ids: list[str]) -> None:
        if ids:
            request = GpuRequest(ids, shared=_SHARED, foreign_processes="ignore")
            self._grant = self._sandbox.attach_gpus(request, timeout=self._wait)
            self._ids = ids

    def _detach(self) -> None:
        grant, self._grant, self._ids = self._grant, None, []
        if grant is None:
            return
        try:
            self._sandbox.detach_gpus(grant)
        except BusyError:
            # The worker's process keeps what it has opened; for what it starts from now on it is gone.
            self._sandbox.detach_gpus(grant, force=True)


def encoded(words: Sequence[str]) -> str:
    """Words as the value of a variable."""
    return base64.b64encode(json.dumps(words).encode()).decode()


def network_of(options: dict[str, Any]) -> Any:
    """The network that a worker is in, or what is to be like one."""
    return _PRIVATE if isinstance(options["network"], PrivateNetwork) else options["network"]


def main() -> NoReturn:
    """Becomes the worker that the variable describes; the arguments are what Ray says to it."""
    words: list[str] = json.loads(base64.b64decode(os.environ.pop(CONFIGURATION)))
    try:
        code = _run(words, sys.argv[1:])
    except (Error, OSError, ValueError) as error:
        print(f"gpucontainer: a worker of Ray could not be started: {error}", file=sys.stderr)
        code = command_line.FAILED
    sys.exit(code)


def _run(words: Sequence[str], given: Sequence[str]) -> int:
    image, options = command_line.described(words, os.getcwd(), ())
    wait = options.pop("gpu_timeout")
    # In a control group of its own a device that is taken away is kept from whoever has found its node before.
    del options["cgroup"]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Ray names the file of its worker on the node; inside it is a module.
    at = next((number for number, word in enumerate(given) if word.endswith(".py")), None)
    if at is None:
        raise ValueError(f"Ray starts its worker in a way that is not known here: {list(given)}")
    options["command"] = [*options["command"], *given[:at], _INSIDE, *given[at + 1 :]]
    mounts: list[Mount] = options["mounts"]
    mounts.append(Mount.bind(Path(__file__).with_name("inside.py"), _INSIDE, read_only=True))
    said = {name: value for name, _, value in (word.partition("=") for word in given)}
    if "--temp-dir" in said:
        # Sockets of the node, logs, and what it has fetched for its workers.
        _show(mounts, os.path.abspath(said["--temp-dir"]))
    environ = options["env"]
    options["network"] = network_of(options)
    if options["network"] is _PRIVATE:
        options["host_services"] = _services(said)
        environ["GPUCONTAINER_RAY_NODE"] = said["--node-ip-address"]
    # What Ray tells its workers; it counts GPUs among those that the node was given.
    for name, value in os.environ.items():
        if name.startswith("RAY_") or name == "CUDA_VISIBLE_DEVICES":
            environ.setdefault(name, value)
    raylet = os.environ.get("RAY_RAYLET_PID")
    # The worker looks whether the process of this number lives. Inside that is the supervisor; this half looks after Ray's.
    environ["RAY_RAYLET_PID"] = "1"
    environ["GPUCONTAINER_RAY_FD"] = str(theirs.fileno())
    sandbox = Sandbox(image, pass_fds=[*stand_in.inherited(), theirs.fileno()], application_pid=os.getpid(), **options)
    theirs.close()
    with ours, sandbox:
        return _serve(sandbox, ours, _Gpus(sandbox, 60 if wait is None else wait), raylet)


def _services(said: Mapping[str, str]) -> list[HostService]:
    """What of the node a worker looks for at its own address, or on loopback."""
    node = said.get("--node-ip-address", "")
    if ipaddress.ip_address(node).is_loopback:
        raise ValueError(
            f"the node has the address {node}, which leads nowhere in a private network; start Ray with another"
        )
    services = []
    if (port := int(said.get("--node-manager-port", 0))) > 0:
        services.append(HostService(port, node, port, address="0.0.0.0"))
    if (port := int(said.get("--metrics-agent-port", 0))) > 0:
        services.append(HostService(port, "127.0.0.1", port))
    return services


def _show(mounts: list[Mount], path: str) -> None:
    """Shows a directory, unless one above it is shown under its own path."""
    above = (mount for mount in mounts if mount.kind == "bind" and mount.source == mount.target and not mount.read_only)
    if not any(Path(path).is_relative_to(mount.target) for mount in above):
        mounts.append(Mount.bind(path, path))


def _serve(sandbox: Sandbox, requests: socket.socket, gpus: _Gpus, raylet: str | None) -> int:
    def forward(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ClosedError):
            sandbox.kill(number)

    for number in _FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        selector.register(sandbox, selectors.EVENT_READ)
        selector.register(requests, selectors.EVENT_READ)
        if raylet is not None:
            node = _pidfd(int(raylet))
            if node is None:
                return command_line.FAILED
            stack.callback(os.close, node)
            selector.register(node, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if sandbox in ready:
                return _code(sandbox)
            if requests in ready:
                said = requests.recv(65536)
                if said:
                    requests.send(json.dumps(gpus.assign(json.loads(said))).encode())
                else:
                    selector.unregister(requests)
            elif ready:
                # Without its node a worker has nothing to do.
                sandbox.kill()
                sandbox.wait()
                return _code(sandbox)


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _code(sandbox: Sandbox) -> int:
    status = sandbox.wait()
    return status.code if status.code is not None else 128 + (status.signal or 0)
