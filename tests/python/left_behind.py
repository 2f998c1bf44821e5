"""Sees that nothing of sandboxes is left: processes, control groups, mounts, shared memory, directories of the store."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gpucontainer

#: A variable by which processes are known that came of a test.
_MARK = "GPUC_TEST_MARK"

_DEADLINE = 30.0


@contextmanager
def nothing(store: gpucontainer.ImageStore, *, killed: bool = False) -> Iterator[None]:
    """Waits at the end until all is as it was at the beginning, and fails if it is not soon.

    :param killed: whether something is killed so that the next sandbox, here a call, has to clean up.
    """
    mark = uuid.uuid4().hex
    os.environ[_MARK] = mark
    before = _things(store, mark)
    try:
        yield
    finally:
        del os.environ[_MARK]
    deadline = time.monotonic() + _DEADLINE
    while True:
        left = _things(store, mark) - before
        # What software that ended in good order leaves needs no collecting.
        if killed and left and not any(thing.startswith("process") for thing in left):
            gpucontainer.collect_abandoned(store)
            left = _things(store, mark) - before
        if not left:
            return
        assert time.monotonic() < deadline, f"left behind: {sorted(left)}"
        time.sleep(0.05)


def _things(store: gpucontainer.ImageStore, mark: str) -> set[str]:
    found = {f"mount {line.split()[4]}" for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    found |= {f"process {pid}" for pid in _marked(mark)}
    for pattern in ("*/gpucontainer-*", "gpucontainer-*", "unified/gpucontainer/*", "gpucontainer/*"):
        found |= {f"control group {path}" for path in Path("/sys/fs/cgroup").glob(pattern) if _is_empty(path)}
    found |= {f"shared memory {path}" for path in Path("/dev/shm").glob("*") if path.name[:4] in ("sem.", "psm_")}
    found |= {f"scratch {path}" for path in (store.path / "scratch").glob("*")}
    return found


def _is_empty(group: Path) -> bool:
    """Whether nobody is in a control group any more, and it is there all the same; others on the machine use theirs."""
    try:
        return not (group / "cgroup.procs").read_text()
    except OSError:
        return False


def _marked(mark: str) -> Iterator[int]:
    wanted = f"{_MARK}={mark}".encode()
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and int(entry) != os.getpid():
            try:
                environment = Path("/proc", entry, "environ").read_bytes()
            except OSError:
                # It has ended, or is somebody else's.
                continue
            if wanted in environment.split(b"\0"):
                yield int(entry)
