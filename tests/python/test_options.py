"""What is no value of an option is refused by the option's name."""

from __future__ import annotations

from typing import Any

import pytest
from starting import NEEDED

import gpucontainer
from gpucontainer import DEVNULL, GpuRequest, Image, Sandbox, SandboxOptions

pytestmark = NEEDED

#: A wrong type for each option.
WRONG_TYPES: dict[str, Any] = {
    "store": 3,
    "name": 3,
    "entrypoint": "one string",
    "env": {"A": 3},
    "cwd": 3,
    "user": 3.5,
    "hostname": b"host",
    "init": "yes",
    "read_only": 1,
    "writable_memory": "1g",
    "limits": {"memory": 3},
    "memory": 1.5,
    "cpus": "2",
    "pids": "many",
    "cgroup": "no",
    "cgroup_view": 0,
    "injectable_ports": 3,
    "network": 3.5,
    "user_namespace": 3,
    "time_offsets": (1,),
    "mounts": ["/data:/data"],
    "shm_size": True,
    "ports": [80],
    "host_services": 5432,
    "gpus": 1.5,
    "min_gpu_memory": "1g",
    "gpu_timeout": "soon",
    "gpu_allocator": "host",
    "lease_gpus": "no",
    "driver_root": 3,
    "add_capabilities": "NET_ADMIN",
    "drop_capabilities": [3],
    "new_privileges": "no",
    "unfiltered": 1,
    "seccomp": 3,
    "resource_limits": {"nofile": "many"},
    "sysctls": {"net.ipv4.ip_forward": 1},
    "oom_score": "high",
    "umask": "022",
    "application_pid": "first",
    "pass_fds": ["stdin"],
    "terminal": 80,
    "stdin": "file",
    "stdout": 3.5,
    "stderr": True,
}

#: Values that cannot be, of the right type.
WRONG_VALUES: list[tuple[str, Any]] = [
    ("writable_memory", -1),
    ("memory", -1),
    ("memory", 2**64),
    ("cpus", 0),
    ("cpus", -2.5),
    ("cpus", float("nan")),
    ("pids", -1),
    ("shm_size", -1),
    ("gpu_timeout", -1),
    ("umask", 0o1000),
    ("terminal", (24, 70000)),
    ("network", "carrier pigeon"),
    ("stdin", -7),
    ("stdout", -7),
]


def test_the_table_is_whole() -> None:
    assert set(WRONG_TYPES) == set(SandboxOptions.__annotations__)


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_a_wrong_type(image: Image, name: str) -> None:
    options: dict[str, Any] = {"stdin": DEVNULL, name: WRONG_TYPES[name]}
    for start in (gpucontainer.run, Sandbox, Sandbox.explain):
        call: Any = start
        with pytest.raises(TypeError, match=rf"\b{name}\b"):
            call(image, ["true"], **options)


@pytest.mark.parametrize(("name", "value"), WRONG_VALUES)
def test_a_wrong_value(image: Image, name: str, value: object) -> None:
    options: dict[str, Any] = {"stdin": DEVNULL, name: value}
    for start in (gpucontainer.run, Sandbox):
        call: Any = start
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            call(image, ["true"], **options)


def test_options_that_are_none(image: Image) -> None:
    for start in (gpucontainer.run, Sandbox, Sandbox.explain):
        call: Any = start
        with pytest.raises(TypeError, match="bogus"):
            call(image, ["true"], bogus=1)
    with pytest.raises(TypeError, match=r"command.*one string"):
        gpucontainer.run(image, "one string")
    with pytest.raises(TypeError, match=r"command.*3"):
        gpucontainer.run(image, ["sleep", 3])  # type: ignore[list-item]


def test_what_is_like_a_number_is_one(image: Image) -> None:
    class Whole:
        def __index__(self) -> int:
            return 1 << 20

    whole: Any = Whole()
    assert (
        gpucontainer.run(image, ["echo"], stdin=DEVNULL, shm_size=whole, mounts=(), capture_output=True).returncode == 0
    )
    assert "echo" in Sandbox.explain(image, ("echo",), writable_memory=whole)
    with pytest.raises(TypeError, match="min_free_memory"):
        Sandbox.explain(image, ["true"], gpus=GpuRequest(1), min_gpu_memory=1)
