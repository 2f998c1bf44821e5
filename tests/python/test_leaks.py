"""A thousand starts leave the process as it was: its memory, descriptors, threads and objects."""

from __future__ import annotations

import gc
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest

import gpucontainer
from gpucontainer import PIPE, Sandbox, errors

STARTS = 1000
#: What the first starts allocate once.
WARM_UP = 100
#: Kibibytes by which the process may grow in half of the starts.
GROWTH = 512

pytestmark = [
    pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed"),
    pytest.mark.skipif(
        os.geteuid() != 0 and not gpucontainer.Host.probe().has("user-namespaces"), reason="no user namespaces"
    ),
]


def start(image: gpucontainer.Image, number: int) -> None:
    """All that a start makes: streams, a port, and every so often a further process and an exception."""
    with Sandbox(image, stdin=PIPE, stdout=PIPE, ports={80: 0}) as sandbox:
        if number % 10 == 0:
            with sandbox.exec(["/bin/busybox", "true"]) as process:
                assert process.wait(60).success
            with pytest.raises(errors.CommandNotFoundError):
                Sandbox(image, ["nothing"])
        assert sandbox.communicate(b"x", timeout=60).stdout == b"x"
        assert len(sandbox.ports) == 1


def size() -> tuple[int, int, int, int]:
    """Private memory in kibibytes, descriptors, threads, objects."""
    gc.collect()
    rollup = Path("/proc/self/smaps_rollup").read_text()
    (private,) = (int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_Dirty"))
    count = len(gc.get_objects())
    return private, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), count


def make(tmp_path: Path) -> gpucontainer.Image:
    busybox = shutil.which("busybox")
    assert busybox is not None
    builder = gpucontainer.ImageStore(tmp_path / "store").build()
    return builder.copy(busybox, "/bin/busybox", follow_links=True).command(["/bin/busybox", "cat"]).commit("leak:1")


def test_a_thousand_starts_leave_nothing_in_the_process(tmp_path: Path) -> None:
    image = make(tmp_path)
    for number in range(WARM_UP):
        start(image, number)
    for number in range(STARTS // 2):
        start(image, number)
    half = size()
    for number in range(STARTS // 2):
        start(image, number)
    whole = size()
    assert whole[1:3] == half[1:3], "descriptors, threads"
    assert whole[0] <= half[0] + GROWTH, "KiB of memory"
    assert whole[3] <= half[3] + 20, "objects that the collector knows"


def test_starts_leave_no_memory_of_python(tmp_path: Path) -> None:
    image = make(tmp_path)
    for number in range(20):
        start(image, number)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(50):
            start(image, number)
        gc.collect()
        half, _ = tracemalloc.get_traced_memory()
        for number in range(100):
            start(image, number)
        gc.collect()
        whole, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A hundred lost objects of any kind are more than that.
    assert whole <= half + 4096, "bytes that Python allocated"
