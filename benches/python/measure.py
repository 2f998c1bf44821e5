"""The Python half of the bench `python`: does what its input says, a line each, and prints how long that took.

start DIRECTORY COUNT   nanoseconds of each start, and of each from the start to the end, as JSON
pipe DIRECTORY BYTES    seconds for as many bytes through `cat` in a sandbox, and through one of `subprocess`, as JSON
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import gpucontainer
from gpucontainer import DEVNULL, PIPE, Sandbox


def start(root: Path, count: int) -> list[list[int]]:
    starts, wholes = [], []
    for _ in range(count):
        before = time.perf_counter_ns()
        sandbox = Sandbox(root, ["/bin/true"], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
        started = time.perf_counter_ns()
        sandbox.wait()
        sandbox.close()
        starts.append(started - before)
        wholes.append(time.perf_counter_ns() - before)
    return [starts, wholes]


def pipe(root: Path, count: int) -> list[float]:
    data = bytes(count)
    before = time.perf_counter()
    with Sandbox(root, ["/bin/cat"], stdin=PIPE, stdout=PIPE) as sandbox:
        assert len(sandbox.communicate(data).stdout) == count
    ours = time.perf_counter() - before
    before = time.perf_counter()
    done = subprocess.run([root / "bin/cat"], input=data, stdout=PIPE, check=True)
    assert len(done.stdout) == count
    return [ours, time.perf_counter() - before]


def main() -> None:
    print(gpucontainer.__version__, flush=True)
    for line in sys.stdin:
        what, root, count = line.split()
        answer = (start if what == "start" else pipe)(Path(root), int(count))
        print(json.dumps(answer), flush=True)


main()
