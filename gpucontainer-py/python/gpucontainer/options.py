"""The arguments of a start, as the native half wants them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from . import _native
from .checks import check, members
from .checks import words as _words
from .limits import Limits
from .ports import _port
from .streams import _Stream, stream

if TYPE_CHECKING:
    from .gpu import GpuAllocator, GpuLease, GpuRequest
    from .limits import Mount
    from .network import PrivateNetwork
    from .ports import HostService, PortMapping
    from .sandbox import Sandbox

_Descriptor: TypeAlias = int | IO[Any]
_Path: TypeAlias = str | os.PathLike[str]


class SandboxOptions(TypedDict, total=False):
    """The options of :class:`~gpucontainer.Sandbox`, for functions of yours that take them as keywords and hand them on.

    ``def train(image: str, **options: Unpack[SandboxOptions])`` is how they are typed.
    """

    store: _native.ImageStore | None
    name: str | None
    entrypoint: Sequence[str] | None
    env: Mapping[str, str] | None
    cwd: str | None
    user: str | int | None
    hostname: str | None
    init: bool | None
    read_only: bool | None
    writable_memory: int | None
    limits: Limits | None
    memory: int | None
    cpus: float | None
    pids: int | None
    cgroup: bool | None
    cgroup_view: bool | None
    injectable_ports: bool | None
    network: Literal["none", "host", "outbound"] | PrivateNetwork | Sandbox[Any] | _Descriptor | None
    user_namespace: Literal["auto", "host", "oneself", "subordinate"] | tuple[int, int] | None
    time_offsets: tuple[int, int] | None
    mounts: Iterable[Mount] | None
    shm_size: int | None
    ports: Mapping[int, int | tuple[str, int]] | Iterable[PortMapping] | None
    host_services: Iterable[HostService] | None
    gpus: int | str | Sequence[str] | GpuRequest | GpuLease | None
    min_gpu_memory: int
    gpu_timeout: float | None
    gpu_allocator: GpuAllocator | None
    lease_gpus: bool
    driver_root: _Path | None
    add_capabilities: Iterable[str] | None
    drop_capabilities: Iterable[str] | None
    new_privileges: bool | None
    unfiltered: bool
    seccomp: Mapping[str, Any] | _Path | None
    resource_limits: Mapping[str, int | tuple[int, int]] | None
    sysctls: Mapping[str, str] | None
    oom_score: int | None
    umask: int | None
    application_pid: int | None
    terminal: tuple[int, int] | None
    stdin: _Stream
    stdout: _Stream
    stderr: _Stream
    pass_fds: Mapping[int, int] | Iterable[int] | None


class ExecOptions(TypedDict, total=False):
    """The options of :meth:`Sandbox.exec`, in the same way."""

    env: Mapping[str, str] | None
    cwd: str | None
    user: str | int | None
    terminal: tuple[int, int] | None
    stdin: _Stream
    stdout: _Stream
    stderr: _Stream
    pass_fds: Mapping[int, int] | Iterable[int] | None


def known(options: Mapping[str, Any]) -> None:
    """Refuses what is no option of a sandbox, with the name that may have been meant."""
    for name in options:
        if name not in SandboxOptions.__annotations__:
            import difflib

            near = difflib.get_close_matches(name, SandboxOptions.__annotations__, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{name!r} is no option of a sandbox{meant}")


def _options(arguments: dict[str, Any]) -> dict[str, Any]:
    """What the native half wants of the arguments; those that are None are left out."""
    check(arguments)
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in ("self", "image", "__class__", "text", "encoding", "errors", "min_gpu_memory", "lease_gpus"):
        given.pop(name, None)
    limits = given.pop("limits", None) or Limits()
    own = {name: given.pop(name) for name in ("memory", "cpus", "pids") if name in given}
    limits = dataclasses.replace(limits, **own)
    if limits != Limits():
        given["limits"] = limits._fields()
    for name in ("command", "entrypoint", "add_capabilities", "drop_capabilities"):
        if name in given:
            given[name] = _words(name, given[name])
    if "ALL" in (name.upper() for name in given.get("drop_capabilities", [])):
        # First everything goes, then what is added comes back.
        del given["drop_capabilities"]
        given = {"drop_all_capabilities": True, **given}
    for name in ("env", "sysctls"):
        if name in given:
            given[name] = list(given[name].items())
    if "user" in given:
        given["user"] = str(given["user"])
    for name in ("stdin", "stdout", "stderr"):
        if name in given:
            given[name] = stream(name, given[name])
    if "pass_fds" in given:
        passed = given["pass_fds"]
        given["pass_fds"] = list(passed.items()) if isinstance(passed, Mapping) else [(fd, fd) for fd in passed]
    if "mounts" in given:
        given["mounts"] = [dataclasses.astuple(mount) for mount in members("mounts", given["mounts"])]
    network = given.get("network")
    if hasattr(network, "_fields"):
        given["private_network"] = given.pop("network")._fields()
    elif isinstance(getattr(network, "_handle", None), _native._Sandbox):
        given["join_sandbox"] = given.pop("network")._handle
    elif network is not None and not isinstance(network, str):
        descriptor = given.pop("network")
        given["join_namespace"] = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    if "ports" in given:
        ports = given["ports"]
        mappings = [_port(*port) for port in ports.items()] if isinstance(ports, Mapping) else members("ports", ports)
        given["ports"] = [port._fields() for port in mappings]
    if "host_services" in given:
        given["host_services"] = [service._fields() for service in members("host_services", given["host_services"])]
    if isinstance(getattr(given.get("gpus"), "_handle", None), _native._GpuLease):
        given["gpu_lease"] = given.pop("gpus")._handle
    if "gpus" in given:
        wanted = _gpus(given.pop("gpus"), arguments.get("min_gpu_memory", 0))
        given["gpus" if arguments.get("lease_gpus", True) else "gpus_unleased"] = wanted
    if "gpu_allocator" in given:
        given["gpu_allocator"] = given["gpu_allocator"]._handle
    if "seccomp" in given:
        profile = given.pop("seccomp")
        if isinstance(profile, Mapping):
            given["seccomp_json"] = json.dumps(profile)
        else:
            given["seccomp_file"] = profile
    if "resource_limits" in given:
        pairs = (
            (name, value if isinstance(value, tuple) else (value, value))
            for name, value in given["resource_limits"].items()
        )
        given["resource_limits"] = [(name, soft, hard) for name, (soft, hard) in pairs]
    return given


def _gpus(wanted: int | str | Sequence[str] | GpuRequest, free: int) -> dict[str, Any]:
    from .gpu import GpuRequest

    if not isinstance(wanted, GpuRequest):
        wanted = GpuRequest(wanted, min_free_memory=free)
    elif free:
        raise TypeError("min_gpu_memory is said by the request for GPUs itself, as min_free_memory")
    return wanted._fields()
