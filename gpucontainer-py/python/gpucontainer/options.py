"""The arguments of a start, as the native half wants them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from . import _native
from .gpu import GpuLease, GpuRequest
from .limits import Limits
from .network import PrivateNetwork
from .ports import _port
from .process import DEVNULL, PIPE, _Stream


def _words(name: str, value: Sequence[str]) -> list[str]:
    if isinstance(value, str):
        raise TypeError(f"{name} is a list of words, not one string")
    return list(value)


def _stream(value: _Stream) -> str | int:
    if value == PIPE:
        return "pipe"
    if value == DEVNULL:
        return "null"
    if isinstance(value, int):
        return value
    assert value is not None
    return value.fileno()


def _options(arguments: dict[str, Any]) -> dict[str, Any]:
    """What the native half wants of the arguments; those that are None are left out."""
    given = {name: value for name, value in arguments.items() if value is not None}
    for name in ("self", "image", "__class__", "min_gpu_memory", "lease_gpus"):
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
            given[name] = _stream(given[name])
    if "pass_fds" in given:
        passed = given["pass_fds"]
        given["pass_fds"] = list(passed.items()) if isinstance(passed, Mapping) else [(fd, fd) for fd in passed]
    if "mounts" in given:
        given["mounts"] = [dataclasses.astuple(mount) for mount in given["mounts"]]
    network = given.get("network")
    if isinstance(network, PrivateNetwork):
        given["private_network"] = given.pop("network")._fields()
    elif isinstance(getattr(network, "_handle", None), _native._Sandbox):
        given["join_sandbox"] = given.pop("network")._handle
    elif network is not None and not isinstance(network, str):
        descriptor = given.pop("network")
        given["join_namespace"] = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    if "ports" in given:
        ports = given["ports"]
        wanted = [_port(*port) for port in ports.items()] if isinstance(ports, Mapping) else ports
        given["ports"] = [port._fields() for port in wanted]
    if "host_services" in given:
        given["host_services"] = [service._fields() for service in given["host_services"]]
    if isinstance(given.get("gpus"), GpuLease):
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
    if not isinstance(wanted, GpuRequest):
        wanted = GpuRequest(wanted, min_free_memory=free)
    elif free:
        raise TypeError("min_gpu_memory is said by the request for GPUs itself, as min_free_memory")
    return wanted._fields()
