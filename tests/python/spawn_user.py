"""A program that uses all of multiprocessing with another Python: `python spawn_user.py PYTHON [SCENARIO]`."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing import shared_memory
from multiprocessing.context import SpawnContext
from multiprocessing.synchronize import Event, Lock
from pathlib import Path

PATIENCE = 60.0


def square(number: int) -> tuple[int, str]:
    """Together with who is process 1 where it was computed."""
    return number * number, Path("/proc/1/comm").read_text().strip()


def pool(context: SpawnContext) -> None:
    """Pools that are closed, are terminated, and are an executor's."""
    with context.Pool(2) as workers:
        assert workers.map(square, range(5)) == [(number * number, "gpuc-init") for number in range(5)]
        workers.close()
        workers.join()
    with context.Pool(2) as workers:
        workers.apply_async(time.sleep, (1000,))
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        assert list(executor.map(square, [3, 4])) == [(9, "gpuc-init"), (16, "gpuc-init")]


def sharing(context: SpawnContext) -> None:
    """Semaphores and memory between processes in sandboxes of their own."""
    memory = shared_memory.SharedMemory(create=True, size=16)
    assert memory.buf is not None
    try:
        lock = context.Lock()
        processes = [context.Process(target=add, args=(lock, memory.name, 100)) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE)
        assert [process.exitcode for process in processes] == [0, 0]
        assert memory.buf[0] == 200
    finally:
        memory.close()
        memory.unlink()


def add(lock: Lock, name: str, count: int) -> None:
    memory = shared_memory.SharedMemory(name)
    assert memory.buf is not None
    for _ in range(count):
        with lock:
            memory.buf[0] = memory.buf[0] + 1
    memory.close()


def ends(context: SpawnContext) -> None:
    """Processes that are terminated, are killed, and end by themselves."""
    for end, code in (("terminate", -signal.SIGTERM), ("kill", -signal.SIGKILL), ("join", 7)):
        ready = context.Event()
        process = context.Process(target=tell, args=(ready, 7 if end == "join" else None))
        process.start()
        assert ready.wait(PATIENCE)
        getattr(process, end)()
        process.join(PATIENCE)
        assert process.exitcode == code, (end, process.exitcode)


def tell(ready: Event, code: int | None) -> None:
    ready.set()
    if code is None:
        time.sleep(1000)
    sys.exit(code)


def manager(context: SpawnContext) -> None:
    """A server in a sandbox, a client in another."""
    with context.Manager() as server:
        shared = server.dict()
        process = context.Process(target=shared.update, args=({"a": os.getpid()},))
        process.start()
        process.join(PATIENCE)
        assert dict(shared) == {"a": os.getpid()}


SCENARIOS = {scenario.__name__: scenario for scenario in (pool, sharing, ends, manager)}


if __name__ == "__main__":
    spawning = multiprocessing.get_context("spawn")
    spawning.set_executable(sys.argv[1])
    SCENARIOS[sys.argv[2]](spawning)
    print("done")
