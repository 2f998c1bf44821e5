"""What a sandbox may use and is shown: limits and mounts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

_Path: TypeAlias = str | os.PathLike[str]

#: No limit, where a limit is a number.
UNLIMITED = 2**64 - 1


@dataclasses.dataclass(frozen=True)
class IoLimit:
    """What processes may do with one block device, a whole disk, at most; what is None has no limit."""

    major: int
    minor: int
    #: Bytes a second.
    read_bytes: int | None = None
    write_bytes: int | None = None
    #: Operations a second.
    read_operations: int | None = None
    write_operations: int | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
    """What processes in a sandbox may use at most; what is None has no limit."""

    #: Bytes of memory, page cache included.
    memory: int | None = None
    #: Bytes of swap.
    swap: int | None = None
    #: Bytes of memory above which processes are slowed down.
    memory_high: int | None = None
    #: Bytes of memory that are protected from being reclaimed.
    memory_low: int | None = None
    #: Processor time, in cores, for example 1.5.
    cpus: float | None = None
    #: The share of processor time when it is short, 1 to 10,000; 100 is normal.
    cpu_weight: int | None = None
    #: The processors that may be used, as in ``0-3,8``.
    cpuset_cpus: str | None = None
    #: The memory nodes that may be used, as in ``0-1``.
    cpuset_mems: str | None = None
    #: Processes and threads.
    pids: int | None = None
    #: The share of block devices when they are busy, 1 to 10,000; 100 is normal.
    io_weight: int | None = None
    #: Bytes of huge pages, by page size in bytes.
    hugetlb: Mapping[int, int] | None = None
    #: Rates of block devices.
    io: Sequence[IoLimit] | None = None
    #: Control files of this host's version of control groups, and what is written into them as it stands.
    raw: Mapping[str, str] | None = None

    def _fields(self) -> dict[str, object]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.hugetlb is not None:
            fields["hugetlb"] = list(self.hugetlb.items())
        if self.io is not None:
            fields["io"] = [dataclasses.astuple(device) for device in self.io]
        if self.raw is not None:
            fields["raw"] = list(self.raw.items())
        return {name: value for name, value in fields.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Mount:
    """A mount; made by :meth:`bind`, :meth:`volume` or :meth:`tmpfs`."""

    kind: Literal["bind", "volume", "tmpfs"]
    source: str
    target: str
    size: int | None = None
    read_only: bool = False
    recursive: bool = True
    executable: bool = True
    propagation: Literal["private", "slave", "shared"] = "private"

    @staticmethod
    def bind(
        source: _Path,
        target: str,
        *,
        read_only: bool = False,
        recursive: bool = True,
        executable: bool = True,
        propagation: Literal["private", "slave", "shared"] = "private",
    ) -> Mount:
        """Shows a file or directory of the host, with what is mounted below it."""
        return Mount("bind", os.fspath(source), target, None, read_only, recursive, executable, propagation)

    @staticmethod
    def volume(name: str, target: str, *, read_only: bool = False, executable: bool = True) -> Mount:
        """Shows a directory of the image store that outlives sandboxes, made when first named."""
        return Mount("volume", name, target, read_only=read_only, executable=executable)

    @staticmethod
    def tmpfs(target: str, *, size: int | None = None, executable: bool = True) -> Mount:
        """Makes an empty file system in memory, which counts as the sandbox's memory."""
        return Mount("tmpfs", "", target, size, executable=executable)
