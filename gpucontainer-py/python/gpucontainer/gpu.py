"""GPUs: requests for them, and leases that nobody else on the host gets."""

from __future__ import annotations

import dataclasses
import datetime
import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from . import _native
from ._native import Cancel
from .closing import Closing
from .host import Gpu, _gpu
from .xid import XidEvent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mps:
    """A daemon of NVIDIA's Multi-Process Service for the GPUs of a lease, and the limits of those who use it.

    Kernels of several processes then run on a GPU at the same time. The daemon starts with the lease and ends with it;
    leases that share the same GPUs and want the same, of one user, have one daemon, which ends with the last of them.

    The limits hold for each process that is a client, and are ceilings: nothing is reserved or isolated. A fatal fault
    of one client may end the work of all others, and a program that does not look for the daemon uses the GPU without
    it. The containers of one daemon share ``/dev/shm``. See https://docs.nvidia.com/deploy/mps/index.html.
    """

    #: The share of a GPU's threads that each client gets at most, 1 to 100 percent; no limit if None.
    active_threads: int | None = None
    #: Bytes that each client can allocate at most on each GPU, at least a mebibyte; no limit if None.
    device_memory: int | None = None


@dataclasses.dataclass(frozen=True)
class GpuRequest:
    """Which GPUs, and which parts of the driver with them."""

    #: How many, ``"all"``, indices as in ``"0,1"``, identifiers, names of CDI as in ``"vendor.com/class=name"``, or
    #: ``"image"`` for what ``NVIDIA_VISIBLE_DEVICES`` of the image says.
    gpus: int | str | Sequence[str]
    _: dataclasses.KW_ONLY
    vendor: Literal["nvidia", "amd", "intel"] = "nvidia"
    #: Bytes that must be free on each GPU.
    min_free_memory: int = 0
    #: Bytes that each GPU must have, used or not.
    min_total_memory: int = 0
    #: The CUDA compute capability that each must have at least, as in ``(8, 0)``.
    min_compute_capability: tuple[int, int] | None = None
    #: The form of the product's name, as in ``*A100*``: ``*`` stands for anything, ``?`` for one character.
    model: str | None = None
    #: The profile of MIG devices, as in ``1g.10gb``, instead of whole GPUs. A GPU that is named stands for one on it.
    mig_profile: str | None = None
    #: Whether MIG devices of the profile that are missing are made, on GPUs in MIG mode, where the caller may, and
    #: destroyed after their last lease.
    make_mig_devices: bool = True
    #: At most so many leases in all on the same GPUs; nobody else's if None.
    shared: int | None = None
    #: Bytes of each GPU that this lease takes, which shares it with others who say so, as long as all of it fits.
    fraction: int | None = None
    #: How the GPUs of a lease lie together.
    placement: Literal["best", "nvlink-required", "same-numa-node", "keep-pairs", "spread"] = "best"
    #: What to do about processes on a GPU that belong to no lease.
    foreign_processes: Literal["avoid", "ignore", "fail"] = "avoid"
    #: How early it comes in the queue: more is earlier, each step worth ten seconds of waiting.
    priority: int = 0
    #: The parts of the driver, by the names of ``NVIDIA_DRIVER_CAPABILITIES``; ``compute`` and ``utility`` if None.
    #: An empty list gives device nodes without libraries.
    capabilities: Sequence[str] | None = None
    #: A daemon of NVIDIA's Multi-Process Service for the lease, whose clients the processes in its containers are.
    mps: Mps | None = None
    #: Whether a Multi-Process Service of the host, which somebody else runs, is shared with the container.
    multi_process_service: bool = False
    #: Parts of NVIDIA's software with devices of their own; or rights that no image gets by asking: ``mig-config``, to
    #: make and destroy MIG devices of the container's GPUs, and ``mig-monitor``, to look at those that it was not granted.
    extras: Sequence[Literal["gds", "mofed", "gdrcopy", "nvswitch", "mig-config", "mig-monitor"]] = ()
    #: Channels of IMEX, through which GPUs of several hosts share memory.
    imex_channels: Sequence[int] = ()
    #: Where specifications of CDI are looked for, if not in ``/etc/cdi`` and ``/var/run/cdi``.
    cdi_directories: Sequence[str | os.PathLike[str]] | None = None
    #: What to do about programs that a specification wants to be run on the host, other than NVIDIA's, which are done
    #: without being run.
    vendor_hooks: Literal["refuse", "skip", "run"] = "refuse"

    def _fields(self) -> dict[str, Any]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if isinstance(self.capabilities, str):
            raise TypeError("capabilities is a list of names, not one string")
        if self.shared is not None and self.fraction is not None:
            raise TypeError("shared and fraction exclude each other")
        if self.mps is not None:
            fields["mps"] = (self.mps.active_threads, self.mps.device_memory)
        return {name: value for name, value in fields.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class HeldGpu:
    """A GPU or MIG device of a lease."""

    #: The identifier of the GPU or MIG device.
    uuid: str
    #: The identifier of the GPU that it is, or is a slice of.
    gpu: str
    #: At most so many leases in all, if it is shared so.
    shared: int | None
    #: The bytes that the lease takes, if it is shared so.
    fraction: int | None


@dataclasses.dataclass(frozen=True)
class LeaseStatus:
    """A lease that somebody holds."""

    id: str
    #: The user and the process who took it; no process where the account is damaged.
    user: int
    pid: int | None
    #: The PID namespace in which the process has that number.
    pid_namespace: str
    program: str
    #: The name of the sandbox that the process leased for: at its start, or when the GPUs were attached.
    sandbox: str | None
    #: For how many seconds it has been held.
    age: float | None
    gpus: tuple[HeldGpu, ...]

    @property
    def since(self) -> datetime.datetime | None:
        """When it was taken, by the clock as it is set now."""
        if self.age is None:
            return None
        return datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=self.age)


@dataclasses.dataclass(frozen=True)
class MpsGroup:
    """The daemon of NVIDIA's Multi-Process Service that a group of leases has."""

    #: The group's name: that of its lease, if that is held alone.
    id: str
    #: The user whose leases they are.
    user: int
    #: The control daemon, and the PID namespace in which it has that number.
    pid: int
    pid_namespace: str
    #: Whether it lives, and for how many seconds it has.
    running: bool
    age: float
    #: The GPUs and MIG devices that it serves.
    gpus: tuple[str, ...]
    #: The limits of each client, as :class:`Mps` has them.
    active_threads: int | None
    device_memory: int | None
    #: The leases of the group, by name.
    leases: tuple[str, ...]
    #: The daemon's pipes, for ``CUDA_MPS_PIPE_DIRECTORY``.
    pipe_directory: Path
    #: What the daemon and its servers say.
    log: Path


@dataclasses.dataclass(frozen=True)
class TicketStatus:
    """Somebody who waits for GPUs."""

    user: int
    pid: int
    program: str
    #: The name of the sandbox that the GPUs are for, if a sandbox waits for them.
    sandbox: str | None
    #: For how many seconds it has waited.
    age: float
    #: What it waits for, in words.
    wants: str


@dataclasses.dataclass(frozen=True)
class QuarantinedGpu:
    """A GPU that gets no new leases."""

    #: Its identifier.
    gpu: str
    #: What is wrong with it, in words.
    reason: str
    #: When that was first seen.
    since: datetime.datetime


@dataclasses.dataclass(frozen=True)
class GpuStatus:
    """The GPUs, leases and queue of an allocator at one moment. ``str()`` is a table, and so is it in a notebook."""

    directory: Path
    #: Why the account is of this user alone, if it is.
    private: str | None
    gpus: tuple[Gpu, ...]
    #: The oldest first.
    leases: tuple[LeaseStatus, ...]
    #: In the order in which they are served.
    waiting: tuple[TicketStatus, ...]
    quarantined: tuple[QuarantinedGpu, ...]
    #: The GPUs and MIG devices that nobody holds and whose memory is not back from their last lease, by identifier.
    returning: tuple[str, ...]
    #: The daemons of NVIDIA's Multi-Process Service that leases of the caller have, and for root those of all users. One
    #: that has died is there as long as its leases are.
    mps: tuple[MpsGroup, ...]
    _text: str = dataclasses.field(repr=False, compare=False)

    def leases_of(self, uuid: str) -> list[LeaseStatus]:
        """The leases on a GPU, its MIG devices included, or on one MIG device."""
        return [lease for lease in self.leases if any(uuid in (held.gpu, held.uuid) for held in lease.gpus)]

    def mps_of(self, lease: LeaseStatus) -> MpsGroup | None:
        """The daemon of NVIDIA's Multi-Process Service that the lease has, if it has one."""
        return next((group for group in self.mps if lease.id in group.leases), None)

    def __str__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        def row(tag: str, *cells: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        rows = [row("th", "GPU", "name", "free", "held by", "for")]
        for gpu in self.gpus:
            free = "" if gpu.memory is None else f"{gpu.memory.free / 2**30:.1f} of {gpu.memory.total / 2**30:.1f} GiB"
            leases = self.leases_of(gpu.uuid)
            holders = [
                f"{_of(lease.sandbox)}process {lease.pid or '?'} ({lease.program or '?'}, user {lease.user}"
                f"{_slices(lease, gpu.uuid)}){_daemon(self.mps_of(lease))}"
                for lease in leases
            ]
            ages = [_time(lease.age) for lease in leases]
            if not leases and gpu.processes:
                holders = ["foreign process " + ", ".join(map(str, gpu.processes))]
            elif not leases and gpu.uuid in self.returning:
                holders = ["memory not back from the last lease"]
            holders += [f"in quarantine: {one.reason}" for one in self.quarantined if one.gpu == gpu.uuid]
            rows.append(row("td", str(gpu.index), gpu.name, free, "; ".join(holders) or "free", "; ".join(ages)))
        for ticket in self.waiting:
            who = f"{_of(ticket.sandbox)}process {ticket.pid} ({ticket.program}, user {ticket.user})"
            rows.append(row("td", "waiting", ticket.wants, "", who, _time(ticket.age)))
        note = "" if self.private is None else f"<p>{html.escape(self.private)}</p>"
        return f"<table>{''.join(rows)}</table>{note}"


def _of(sandbox: str | None) -> str:
    return "" if sandbox is None else f"sandbox {sandbox} of "


def _slices(lease: LeaseStatus, gpu: str) -> str:
    slices = [held.uuid for held in lease.gpus if held.gpu == gpu and held.uuid != gpu]
    return f": {', '.join(slices)}" if slices else ""


def _daemon(group: MpsGroup | None) -> str:
    if group is None:
        return ""
    return f", MPS daemon {group.pid}" if group.running else ", MPS daemon dead"


def _time(age: float | None) -> str:
    return "?" if age is None else str(datetime.timedelta(seconds=int(age)))


class GpuLease(Closing):
    """GPUs that are the holder's; made by :meth:`GpuAllocator.acquire`.

    Leaving a ``with`` block gives them up. Dropping the last reference does so too, unless a sandbox that was started
    with the lease still runs; that one holds it also when this process is gone.
    """

    def __init__(self, handle: _native._GpuLease) -> None:
        self._handle = handle
        self._id, self._gpus, self._cpus, self._numa_nodes, self._description = handle.fields()

    @property
    def id(self) -> str:
        """The name, as the status of the allocator shows it."""
        return self._id

    @property
    def gpus(self) -> list[str]:
        """The identifiers of the GPUs and MIG devices, in the order in which a container counts them."""
        return list(self._gpus)

    @property
    def cpus(self) -> list[int]:
        """The processors near to the GPUs; empty if unknown."""
        return list(self._cpus)

    @property
    def numa_nodes(self) -> list[int]:
        """The memory nodes near to the GPUs; empty if unknown, or if the host has one."""
        return list(self._numa_nodes)

    @property
    def description(self) -> str:
        """What was chosen, and what connects it, in words."""
        return self._description

    @property
    def mps(self) -> MpsGroup | None:
        """The daemon of NVIDIA's Multi-Process Service that it asked for, as it is now; None if it did not."""
        encoded = self._handle.mps()
        return None if encoded is None else _group(json.loads(encoded))

    def release(self) -> None:
        """Gives the GPUs up now, whoever else holds the lease. A second time does nothing.

        Raises BusyError if a process still uses a MIG device that was made for the lease; the lease is over then, and the
        device is destroyed later.
        """
        self._handle.release()

    def close(self) -> None:
        """Gives the GPUs up, unless a sandbox holds the lease still."""
        self._handle.close()

    def into_fd(self) -> int:
        """Turns the lease into a descriptor that holds it, in whatever process, until its last copy is closed."""
        return self._handle.descriptor()

    def __repr__(self) -> str:
        return f"<gpucontainer.GpuLease {self._id} {self._description}>"


class GpuTicket(Closing):
    """A place in the queue for GPUs; made by :meth:`GpuAllocator.enqueue`.

    Leaving a ``with`` block, or dropping it, gives the place up. A lease that it gave lives on.
    """

    def __init__(self, handle: _native._GpuTicket) -> None:
        self._handle = handle

    def wait(self, timeout: float | None = None) -> GpuLease | None:
        """Waits for the GPUs; None when the time has passed, and the place is kept then.

        :param timeout: seconds; None is for ever, and 0 only looks.
        """
        lease = self._handle.wait(timeout)
        return None if lease is None else GpuLease(lease)

    def fileno(self) -> int:
        """A descriptor for :mod:`select` and for the loop of :mod:`asyncio`: readable when it is time for ``wait(0)``.

        It may be so without need. It is the same for the life of the ticket, and nothing is to be read from it.
        """
        return self._handle.fileno()

    @property
    def reason(self) -> str:
        """Why the GPUs were not to be had when it was last tried."""
        return self._handle.reason()

    def close(self) -> None:
        """Gives the place up. A second time does nothing."""
        self._handle.close()


class GpuGrant:
    """What a sandbox has for some of its GPUs: nodes, files of the driver, variables."""

    def __init__(self, handle: _native._GpuGrant) -> None:
        """Made by :class:`~gpucontainer.Sandbox`."""
        self._handle = handle
        self._facts: dict[str, Any] = json.loads(handle.json())

    @property
    def gpus(self) -> list[str]:
        """The identifiers of the GPUs and MIG devices, in the order of their numbers inside."""
        return list(self._facts["gpus"])

    @property
    def driver_version(self) -> str | None:
        """The version of the driver whose files are granted."""
        version: str | None = self._facts["driver_version"]
        return version

    @property
    def left_out(self) -> list[str]:
        """What was asked for and left out because the image cannot use it, and why: a sentence each."""
        return list(self._facts["left_out"])

    @property
    def facts(self) -> dict[str, Any]:
        """All of it: ``device_nodes``, ``mounts``, ``links``, ``environment`` and more, as JSON has it."""
        return dict(self._facts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GpuGrant) and self._handle.same(other._handle)

    def __hash__(self) -> int:
        return hash(tuple(self.gpus))

    def __repr__(self) -> str:
        return f"<gpucontainer.GpuGrant {' '.join(self.gpus)}>"


class GpuAllocator:
    """Gives out GPUs of this host, so that nobody else who asks an allocator gets the same.

    All allocators of a host that use the same directory share one account, whichever process, thread or user they are
    in. An allocator holds nothing open and needs no daemon.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        driver_root: str | os.PathLike[str] | None = None,
        memory_return: float | None = None,
        mps_start: float | None = None,
        respect_outer: bool = True,
    ) -> None:
        """Opens the allocator of this host.

        :param path: a directory, best on a tmpfs, for an account of its own.
        :param driver_root: where the GPU driver's user space is, if not in the host's own root.
        :param memory_return: seconds for which a GPU is held back whose memory does not return after its lease, however
            that ended. Who does not wait for GPUs still bears with it for a second.
        :param mps_start: seconds that the daemon of a lease with :class:`Mps` may take until it answers.
        :param respect_outer: whether GPUs are left out that an outer scheduler keeps from this process.
        """
        self._handle = _native._GpuAllocator(path, driver_root, memory_return, mps_start, respect_outer)

    @property
    def path(self) -> Path:
        """The directory of the leases."""
        return self._handle.path()

    def acquire(
        self,
        gpus: int | str | Sequence[str] | GpuRequest,
        *,
        timeout: float | None = None,
        cancel: Cancel | None = None,
    ) -> GpuLease:
        """Leases GPUs. Requests are served in the order in which they came, those of a higher priority earlier.

        :param timeout: seconds to wait; None is for ever, and with 0 what is not free raises at once, with the reason.
        """
        request = gpus if isinstance(gpus, GpuRequest) else GpuRequest(gpus)
        return GpuLease(self._handle.acquire(request._fields(), timeout, cancel))

    def enqueue(self, gpus: int | str | Sequence[str] | GpuRequest) -> GpuTicket:
        """Takes a place in the queue, which is kept while :meth:`GpuTicket.wait` is called again and again."""
        request = gpus if isinstance(gpus, GpuRequest) else GpuRequest(gpus)
        return GpuTicket(_native._GpuTicket(self._handle, request._fields()))

    def report_xid(self, event: XidEvent) -> bool:
        """Keeps the GPU of an event of a :class:`~gpucontainer.XidWatch` from new leases; whether that is new.

        An XID that concerns the application only changes nothing.
        """
        return self._handle.report_xid(event.gpu, event.xid)

    def quarantine(self, gpu: str) -> bool:
        """Keeps a GPU from new leases, by its identifier, until :meth:`readmit`; whether it was not so before."""
        return self._handle.quarantine(gpu)

    def readmit(self, gpu: str) -> bool:
        """Lets a GPU be leased again, whatever it was kept back for; whether it was."""
        return self._handle.readmit(gpu)

    def review(self) -> tuple[QuarantinedGpu, ...]:
        """Looks after the health of the GPUs, and says who is in quarantine then.

        Those that are faulty by their own account, or by the XIDs of the kernel's log as far as the caller may read it,
        get no new leases from now on; those that a reset has mended do again. Leases that are held stay.
        """
        return _quarantined(self._handle.review())

    def status(self) -> GpuStatus:
        """Who holds what since when, and who waits."""
        encoded, text, quarantined = self._handle.status()
        facts: dict[str, Any] = json.loads(encoded)
        return GpuStatus(
            directory=Path(facts["directory"]),
            private=facts["private"],
            gpus=tuple(_gpu(gpu) for gpu in facts["gpus"]),
            leases=tuple(_lease(lease) for lease in facts["leases"]),
            waiting=tuple(TicketStatus(**{**ticket, "age": _seconds(ticket["age"])}) for ticket in facts["waiting"]),
            quarantined=_quarantined(quarantined),
            returning=tuple(facts["returning"]),
            mps=tuple(_group(group) for group in facts["mps"]),
            _text=text,
        )

    def __repr__(self) -> str:
        return f"<gpucontainer.GpuAllocator {self.path}>"


def _quarantined(facts: Sequence[tuple[str, str, float]]) -> tuple[QuarantinedGpu, ...]:
    def when(since: float) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(since, datetime.timezone.utc)

    return tuple(QuarantinedGpu(gpu, reason, when(since)) for gpu, reason, since in facts)


def _seconds(duration: dict[str, int]) -> float:
    return duration["secs"] + duration["nanos"] / 1e9


def _group(facts: dict[str, Any]) -> MpsGroup:
    return MpsGroup(
        id=facts["id"],
        user=facts["user"],
        pid=facts["pid"],
        pid_namespace=facts["pid_namespace"],
        running=facts["running"],
        age=_seconds(facts["age"]),
        gpus=tuple(facts["gpus"]),
        active_threads=facts["active_threads"],
        device_memory=facts["device_memory"],
        leases=tuple(facts["leases"]),
        pipe_directory=Path(facts["pipe_directory"]),
        log=Path(facts["log"]),
    )


def _lease(facts: dict[str, Any]) -> LeaseStatus:
    def held(facts: dict[str, Any]) -> HeldGpu:
        sharing = facts["sharing"] if isinstance(facts["sharing"], dict) else {}
        return HeldGpu(facts["uuid"], facts["gpu"], sharing.get("shared"), sharing.get("fraction"))

    return LeaseStatus(
        id=facts["id"],
        user=facts["user"],
        pid=facts["pid"],
        pid_namespace=facts["pid_namespace"],
        program=facts["program"],
        sandbox=facts["sandbox"],
        age=None if facts["age"] is None else _seconds(facts["age"]),
        gpus=tuple(held(gpu) for gpu in facts["gpus"]),
    )
