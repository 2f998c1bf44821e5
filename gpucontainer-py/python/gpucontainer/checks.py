"""What the options of a start may be, said with their names before anything is changed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

#: What a count of bytes or processes can be at most.
_MOST = 2**64 - 1


class _Kind(NamedTuple):
    """What an option is, in words, and whether a value is that."""

    words: str
    fits: Callable[[Any], bool]
    #: Raises ValueError, with the reason, for a value of the right kind.
    within: Callable[[Any], str | None] = lambda _: None


def _is_whole(value: object) -> bool:
    # Also the numbers of numpy and the like.
    return not isinstance(value, bool) and hasattr(value, "__index__")


def _is_number(value: object) -> bool:
    return not isinstance(value, (bool, str)) and (hasattr(value, "__float__") or hasattr(value, "__index__"))


def _is_flag(value: object) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")


def _is_words(value: object) -> bool:
    return not isinstance(value, (str, bytes, Mapping)) and isinstance(value, Iterable)


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(_is_whole(one) for one in value)


def _is_map(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_text_map(value: object) -> bool:
    return _is_map(value) and isinstance(value, Mapping) and all(isinstance(one, str) for one in value.values())


def _is_limits_map(value: object) -> bool:
    return (
        _is_map(value) and isinstance(value, Mapping) and all(_is_whole(one) or _is_pair(one) for one in value.values())
    )


def _is_descriptors(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(_is_whole(number) and _is_whole(fd) for number, fd in value.items())
    return _is_words(value) and isinstance(value, Iterable) and all(_is_whole(fd) for fd in value)


def _is_instance(value: object, *names: str) -> bool:
    return any(one.__name__ in names and one.__module__.startswith("gpucontainer") for one in type(value).__mro__)


def _between(least: int, most: int) -> Callable[[Any], str | None]:
    return lambda value: None if least <= value.__index__() <= most else f"it is from {least} to {most}"


def _positive(value: Any) -> str | None:
    return None if math.isfinite(value) and value > 0 else "it is above 0"


def _not_negative(value: Any) -> str | None:
    return None if value >= 0 else "it is 0 or more"


_TEXT = _Kind("text", lambda value: isinstance(value, str))
_FLAG = _Kind("True or False", _is_flag)
_BYTES = _Kind("a whole number of bytes", _is_whole, _between(0, _MOST))
_WORDS = _Kind("a list of words", _is_words)
_PATH = _Kind("a path", lambda value: isinstance(value, (str, os.PathLike)))
_NETWORK = _Kind(
    "'none', 'host', 'outbound', a PrivateNetwork, a Sandbox or a descriptor",
    lambda value: (
        isinstance(value, str)
        or _is_whole(value)
        or hasattr(value, "fileno")
        or _is_instance(value, "PrivateNetwork", "Sandbox")
    ),
)
_GPUS = _Kind(
    "a number, 'all', indices or identifiers, a GpuRequest or a GpuLease",
    lambda value: (
        _is_whole(value) or isinstance(value, str) or _is_words(value) or _is_instance(value, "GpuRequest", "GpuLease")
    ),
)

_KINDS: dict[str, _Kind] = {
    "store": _Kind("an ImageStore", lambda value: _is_instance(value, "ImageStore")),
    "name": _TEXT,
    "command": _WORDS,
    "entrypoint": _WORDS,
    "env": _Kind("a mapping from names to text", _is_text_map),
    "cwd": _TEXT,
    "user": _Kind("a name or a number", lambda value: isinstance(value, str) or _is_whole(value)),
    "hostname": _TEXT,
    "init": _FLAG,
    "read_only": _FLAG,
    "writable_memory": _BYTES,
    "limits": _Kind("Limits", lambda value: _is_instance(value, "Limits")),
    "memory": _BYTES,
    "cpus": _Kind("a number of cores", _is_number, _positive),
    "pids": _Kind("a whole number", _is_whole, _between(0, _MOST)),
    "cgroup": _FLAG,
    "cgroup_view": _FLAG,
    "injectable_ports": _FLAG,
    "network": _NETWORK,
    "user_namespace": _Kind(
        "'auto', 'host', 'oneself', 'subordinate', or the first id and how many",
        lambda value: isinstance(value, str) or _is_pair(value),
    ),
    "time_offsets": _Kind("two whole numbers of seconds", _is_pair),
    "mounts": _Kind("a list of Mount", lambda value: _is_words(value)),
    "shm_size": _BYTES,
    "ports": _Kind(
        "a mapping from ports to ports, or a list of PortMapping",
        lambda value: isinstance(value, Mapping) or _is_words(value),
    ),
    "host_services": _Kind("a list of HostService", _is_words),
    "gpus": _GPUS,
    "min_gpu_memory": _BYTES,
    "gpu_timeout": _Kind("a number of seconds", _is_number, _not_negative),
    "gpu_allocator": _Kind("a GpuAllocator", lambda value: _is_instance(value, "GpuAllocator")),
    "lease_gpus": _FLAG,
    "driver_root": _PATH,
    "add_capabilities": _WORDS,
    "drop_capabilities": _WORDS,
    "new_privileges": _FLAG,
    "unfiltered": _FLAG,
    "seccomp": _Kind(
        "a mapping or the path of a file", lambda value: isinstance(value, (str, os.PathLike)) or _is_map(value)
    ),
    "resource_limits": _Kind("a mapping from names to numbers, or pairs of them", _is_limits_map),
    "sysctls": _Kind("a mapping from names to text", _is_text_map),
    "oom_score": _Kind("a whole number", _is_whole),
    "umask": _Kind("a whole number", _is_whole, _between(0, 0o777)),
    "application_pid": _Kind("a whole number", _is_whole),
    "pass_fds": _Kind("descriptors, or a mapping from numbers to descriptors", _is_descriptors),
    "terminal": _Kind("rows and columns", _is_pair, lambda value: _first(_between(0, 65535), value)),
}

#: What is in the lists of some options.
_MEMBERS = {"mounts": "Mount", "host_services": "HostService", "ports": "PortMapping"}


def _first(within: Callable[[Any], str | None], values: Iterable[Any]) -> str | None:
    return next((why for why in map(within, values) if why), None)


def check(given: Mapping[str, Any]) -> None:
    """Refuses, by its name, what is no value of an option; None is always one."""
    for name, value in given.items():
        kind = _KINDS.get(name)
        if kind is None or value is None:
            continue
        if not kind.fits(value):
            raise TypeError(f"{name} is {kind.words}, not {_told(value)}")
        why = kind.within(value)
        if why:
            raise ValueError(f"{name} of {value!r}: {why}")


def members(name: str, values: Iterable[Any]) -> list[Any]:
    """A list of such an option, of which every one is of the right class."""
    found = list(values)
    for value in found:
        if not _is_instance(value, _MEMBERS[name]):
            raise TypeError(f"{name} is a list of {_MEMBERS[name]}, not of {_told(value)}")
    return found


def words(name: str, value: Any) -> list[str]:
    """The words of a list of words."""
    if not _is_words(value):
        raise TypeError(f"{name} is a list of words, not {_told(value)}")
    found = list(value)
    for word in found:
        if not isinstance(word, str):
            raise TypeError(f"{name} is a list of words, and {word!r} is {type(word).__name__}")
    return found


def _told(value: Any) -> str:
    return "one string" if isinstance(value, str) else type(value).__name__
