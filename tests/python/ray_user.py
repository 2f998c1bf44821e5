"""A program that uses Ray with workers in sandboxes: `python ray_user.py STORE DIRECTORY`.

Prints a line of JSON for each scenario: its name, and what went wrong or nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import io
import json
import os
import re
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import gpucontainer.ray
import host_python
import ray

import gpucontainer
from gpucontainer import GpuAllocator, Mount

PATIENCE = 120.0

Seen = tuple[list[str], list[str]]


def configuration(**more: object) -> dict[str, Any]:
    mounts = [f"{path}:{path}:ro" for path in host_python.mounts()]
    basic = {"image": "python:test", "store": sys.argv[1], "python": host_python.PYTHON, "mounts": mounts}
    # What imports this file by its name finds it.
    return {"gpucontainer": {**basic, "env": {"PYTHONPATH": str(Path(__file__).parent)}, **more}}


def look(seconds: float = 0.0) -> Seen:
    """The device nodes of GPUs, and the variable."""
    time.sleep(seconds)
    nodes = sorted(glob.glob("/dev/nvidia[0-9]*"))
    return nodes, [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]


def drive() -> int:
    """Uses the driver, as far as the one of the tests goes."""
    return int(ctypes.CDLL("libcuda.so.1").fake_version())


def process_one() -> str:
    return Path("/proc/1/comm").read_text().strip()


class Holder:
    """An actor."""

    def look(self) -> Seen:
        return look()

    def pid(self) -> int:
        return os.getpid()


def task(function: Any, **options: Any) -> Any:
    """A remote function in a sandbox."""
    options.setdefault("runtime_env", configuration())
    return ray.remote(**options)(function)


def get(*references: Any) -> Any:
    results = ray.get(list(references), timeout=PATIENCE)
    return results if len(results) > 1 else results[0]


def two_tasks_see_a_gpu_each() -> None:
    assert get(task(process_one).remote()) == "gpuc-init"
    assert get(task(look).remote()) == ([], [])
    looking = task(look, num_gpus=1)
    (first, one), (second, other) = get(looking.remote(2), looking.remote(2))
    assert len(first) == len(second) == len(one) == len(other) == 1
    assert first != second and one != other and one[0].startswith("GPU-")
    nodes, names = get(task(look, num_gpus=2).remote())
    assert sorted(first + second) == nodes and sorted(one + other) == sorted(names)
    assert get(task(drive, num_gpus=1).remote()) == 550


def a_gpu_goes_with_its_task() -> None:
    # A worker that stays for others.
    staying = task(look, num_gpus=1, max_calls=0)
    for _ in range(2):
        assert len(get(staying.remote())[0]) == 1
    assert [get(task(look).remote()) for _ in range(3)] == [([], [])] * 3


def actors_keep_theirs() -> None:
    holder = task(Holder, num_gpus=1)
    one, other = holder.remote(), holder.remote()
    (first, _), (second, _) = get(one.look.remote(), other.look.remote())
    assert first != second and len(first) == len(second) == 1
    assert get(one.look.remote())[0] == first
    ray.kill(one)
    assert get(holder.remote().look.remote())[0] == first


def halves_share_a_gpu() -> None:
    holder = task(Holder, num_gpus=0.5)
    actors = [holder.remote() for _ in range(4)]
    seen = [nodes[0] for nodes, _ in get(*(actor.look.remote() for actor in actors))]
    assert sorted(seen.count(node) for node in set(seen)) == [2, 2], seen


def numbers_of_processes_are_those_of_the_node() -> None:
    actor = task(Holder).remote()
    pid = get(actor.pid.remote())
    assert b"gpucontainer.ray_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def memory_is_limited() -> None:
    def limit() -> int:
        for name in ("memory/memory.limit_in_bytes", "memory.max"):
            path = Path("/sys/fs/cgroup", name)
            if path.exists():
                return int(path.read_text())
        raise FileNotFoundError("no limit")

    assert (
        get(
            task(
                limit,
                runtime_env=configuration(memory="1G", cpus=1, pids=500, env_all=False, home=False, temporary=False),
            ).remote()
        )
        == 1 << 30
    )


class Keeper:
    """An actor that has something, and asks another one for what that has."""

    def __init__(self, text: str) -> None:
        self.text = text

    def tell(self) -> str:
        return self.text

    def ask(self, other: Any) -> str:
        return str(ray.get(other.tell.remote()))

    def address(self) -> str:
        return str(ray.util.get_node_ip_address())


def workers_have_a_network_of_their_own() -> None:
    private = configuration(network="private")

    def reaches(address: tuple[str, int]) -> bool:
        try:
            socket.create_connection(address, timeout=5).close()
        except ConnectionRefusedError:
            return False
        return True

    def doubled(number: int) -> int:
        # A worker asks for another one.
        return int(ray.get(task(lambda: number, runtime_env=private).remote())) * 2

    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = listener.getsockname()
        assert get(task(reaches).remote(here))
        assert not get(task(reaches, runtime_env=private).remote(here))
    # Both ways, beside those that are on the node's network, with objects of some size.
    inside = [task(Keeper, runtime_env=private).remote(text) for text in ("one", "two" * 1_000_000)]
    outside = task(Keeper).remote("three")
    plain = ray.remote(Keeper).remote("four")
    asked = [(a, b) for a in (*inside, outside, plain) for b in (*inside, outside, plain) if a is not b]
    # One after the other: an actor that asks does not answer meanwhile.
    answers = [get(a.ask.remote(b)) for a, b in asked]
    texts = dict(zip((*inside, outside, plain), ("one", "two" * 1_000_000, "three", "four"), strict=True))
    assert answers == [texts[b] for _, b in asked]
    addresses = get(*(actor.address.remote() for actor in (*inside, outside)))
    assert len(set(addresses)) == 3 and addresses[2] == ray.util.get_node_ip_address(), addresses
    assert get(task(doubled, runtime_env=private).remote(21)) == 42
    assert len(get(task(look, num_gpus=1, runtime_env=private).remote())[0]) == 1


def what_is_wrong_is_said() -> None:
    wrong = [
        ({"image": "/no/such/root"}, "/no/such/root"),
        ({"python": "/no/such/python"}, "/no/such/python"),
        ({"python": "/bin/cat"}, "cannot import ray"),
        ({"network": "none"}, "is 'host' or 'private'"),
        ({"memory": "much"}, "'much' is no size"),
        ({"colour": "red"}, "'colour' is none of"),
    ]
    for more, said in wrong:
        try:
            get(task(process_one, runtime_env=configuration(**more)).remote())
        except ray.exceptions.RuntimeEnvSetupError as error:
            assert said in str(error), error
        else:
            raise AssertionError(f"nothing was wrong with {more}")


def gpus_of_others_are_not_had() -> None:
    def failures(references: list[Any]) -> int:
        failed = 0
        for reference in references:
            try:
                assert len(get(reference)[0]) == 1
            except (ray.exceptions.RayTaskError, ray.exceptions.RayActorError) as error:
                failed += 1
                assert "leased by process" in str(error), error
        return failed

    with GpuAllocator().acquire("0"):
        # One of the two that Ray has is somebody else's now.
        impatient = configuration(gpu_wait=0.2)
        looking = task(look, num_gpus=1, runtime_env=impatient, max_retries=0)
        assert failures([looking.remote(2) for _ in range(2)]) == 1
        holder = task(Holder, num_gpus=1, runtime_env=impatient)
        actors = [holder.remote() for _ in range(2)]
        assert failures([actor.look.remote() for actor in actors]) == 1
        del actors
    assert len(get(task(look, num_gpus=2).remote())[0]) == 2


def a_task_starts_a_sandbox_itself() -> None:
    def start(store: str) -> tuple[list[str], str]:
        ids = [str(gpu) for gpu in ray.get_gpu_ids()]
        code = "import glob; print(*glob.glob('/dev/nvidia[0-9]*'))"
        mounts = [Mount.bind(path, path, read_only=True) for path in host_python.mounts()]
        image = gpucontainer.ImageStore(store).image("python:test")
        done = gpucontainer.run(
            image, [host_python.PYTHON, "-c", code], gpus=ids, mounts=mounts, capture_output=True, text=True, check=True
        )
        return ids, done.stdout.strip()

    starting = task(start, num_gpus=1, runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}})
    (ids, seen), (other_ids, others) = get(starting.remote(sys.argv[1]), starting.remote(sys.argv[1]))
    assert len(ids) == len(seen.split()) == 1 and (ids != other_ids) == (seen != others)


def the_example_of_the_readme_runs() -> None:
    readme = (host_python.ROOT / "README.md").read_text()
    (block,) = re.findall(r"^```py\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    # The cluster is there, and the image is the one of the tests.
    changes = {"ray.init()": "", '"image": "my/image:1"': json.dumps(configuration()["gpucontainer"])[1:-1]}
    for old, new in changes.items():
        assert block.count(old) == 1
        block = block.replace(old, new)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    assert len(re.findall(r"'nvidia\d+'", said.getvalue())) == 1, said.getvalue()


def what_is_killed_is_gone() -> None:
    sleeping = task(look, num_gpus=1, max_retries=0)
    reference = sleeping.remote(1000)
    actor = task(Holder, num_gpus=1).remote()
    get(actor.look.remote())
    ray.kill(actor)
    ray.cancel(reference, force=True)
    try:
        get(reference)
    except (ray.exceptions.TaskCancelledError, ray.exceptions.WorkerCrashedError):
        pass
    # Both GPUs are to be had again.
    assert len(get(task(look, num_gpus=2).remote())[0]) == 2


SCENARIOS = [
    two_tasks_see_a_gpu_each,
    a_gpu_goes_with_its_task,
    actors_keep_theirs,
    halves_share_a_gpu,
    numbers_of_processes_are_those_of_the_node,
    memory_is_limited,
    workers_have_a_network_of_their_own,
    what_is_wrong_is_said,
    gpus_of_others_are_not_had,
    a_task_starts_a_sandbox_itself,
    the_example_of_the_readme_runs,
    what_is_killed_is_gone,
]


def main() -> None:
    directory = Path(sys.argv[2])
    os.environ.update(
        RAY_RUNTIME_ENV_PLUGINS=gpucontainer.ray.PLUGINS,
        RAY_AUTH_MODE="disabled",
        RAY_USAGE_STATS_ENABLED="0",
        HOME=str(directory),
    )
    ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=str(directory / "ray"))
    for scenario in SCENARIOS:
        started = time.monotonic()
        try:
            scenario()
            wrong = ""
        except Exception:
            wrong = traceback.format_exc()
        print(json.dumps([scenario.__name__, wrong, time.monotonic() - started]), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
