"""Sandboxes: a program of an image, isolated, with limits and GPUs."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import ipaddress
import json
import os
import selectors
import signal as signals
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Literal, Protocol, TypeAlias

from . import _native
from ._native import Cancel, Image, ImageStore
from .errors import TimedOutError
from .gpu import GpuAllocator, GpuGrant, GpuLease, GpuRequest
from .network import PrivateNetwork

#: For ``stdin``, ``stdout`` and ``stderr``: a pipe, or the null device. The same as those of ``subprocess``.
PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL

_Stream: TypeAlias = int | IO[Any] | None
_Path: TypeAlias = str | os.PathLike[str]
_Descriptor: TypeAlias = int | IO[Any]

#: No limit, where a limit is a number.
UNLIMITED = 2**64 - 1


@dataclasses.dataclass(frozen=True)
class ExitStatus:
    """How a process ended."""

    #: The exit code, if it ended by itself.
    code: int | None
    #: The signal that killed it, if one did.
    signal: int | None
    #: Whether something in the sandbox was killed because it was at its memory limit.
    oom_killed: bool

    @property
    def success(self) -> bool:
        """Whether it ended by itself with exit code 0."""
        return self.code == 0

    @property
    def returncode(self) -> int:
        """The exit code, or the signal's number below zero, as ``subprocess`` has it."""
        return self.code if self.code is not None else -(self.signal or 0)


@dataclasses.dataclass(frozen=True)
class Output:
    """What a process wrote, and how it ended."""

    stdout: bytes
    stderr: bytes
    status: ExitStatus


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


@dataclasses.dataclass(frozen=True)
class Port:
    """A published port."""

    container_port: int
    #: The address and the port of the host.
    host: str
    host_port: int
    #: Connections taken from clients so far, those that exist now, and those that nothing inside took.
    accepted: int
    open: int
    refused: int
    #: Bytes that went in and came out.
    bytes_in: int
    bytes_out: int
    #: Why the last connection that was reset was.
    last_error: str | None


class _Handle(Protocol):
    def fileno(self) -> int: ...
    def pid(self) -> int: ...
    def wait(self, timeout: float | None) -> tuple[int | None, int | None, bool] | None: ...
    def kill(self, signal: int) -> None: ...
    def take_stream(self, stream: int) -> int | None: ...
    def take_terminal(self) -> int | None: ...


class _Running:
    """What a sandbox and a further process in it have in common."""

    #: The writing end of standard input, if that is piped.
    stdin: io.BufferedWriter | None
    #: The reading end of standard output, if that is piped.
    stdout: io.BufferedReader | None
    #: The reading end of standard error, if that is piped.
    stderr: io.BufferedReader | None
    #: The master of the terminal, if one was asked for.
    terminal: io.FileIO | None
    #: How it ended, once that was seen.
    status: ExitStatus | None

    def __init__(self, handle: _Handle) -> None:
        self._running = handle
        self._pid = handle.pid()
        self.status = None
        numbers = [handle.take_stream(stream) for stream in range(3)]
        terminal = handle.take_terminal()
        self.stdin = None if numbers[0] is None else open(numbers[0], "wb")
        self.stdout = None if numbers[1] is None else open(numbers[1], "rb")
        self.stderr = None if numbers[2] is None else open(numbers[2], "rb")
        self.terminal = None if terminal is None else open(terminal, "r+b", buffering=0)

    @property
    def pid(self) -> int:
        """The process id, as the host sees it; 0 if the process had ended before it could be asked."""
        return self._pid

    @property
    def returncode(self) -> int | None:
        """As ``subprocess`` has it: None until :meth:`wait` or :meth:`poll` has seen the end."""
        return None if self.status is None else self.status.returncode

    def fileno(self) -> int:
        """A descriptor that becomes readable when the process has ended, for ``select`` and event loops."""
        return self._running.fileno()

    def _look(self, timeout: float | None) -> ExitStatus | None:
        if self.status is None:
            ended = self._running.wait(timeout)
            if ended is not None:
                self.status = ExitStatus(*ended)
        return self.status

    def poll(self) -> ExitStatus | None:
        """How it ended, or None if it still runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> ExitStatus:
        """Waits until it has ended, at most ``timeout`` seconds; :class:`TimedOutError` after that."""
        status = self._look(timeout)
        if status is None:
            raise TimedOutError(f"process {self.pid} did not end in {timeout} seconds")
        return status

    async def wait_async(self) -> ExitStatus:
        """Waits until it has ended, while the event loop goes on. No thread is used."""
        status = self.poll()
        if status is not None:
            return status
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        # A descriptor of its own: others may wait for the same process.
        descriptor = os.dup(self.fileno())

        def ended() -> None:
            if not future.done():
                future.set_result(None)

        loop.add_reader(descriptor, ended)
        try:
            await future
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return self.wait()

    def kill(self, signal: int = signals.SIGKILL) -> None:
        """Sends a signal. A process that has ended already is no error."""
        self._running.kill(int(signal))

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.kill(signals.SIGTERM)

    def communicate(self, input: bytes | None = None, timeout: float | None = None) -> Output:
        """Writes ``input`` to standard input and closes it, collects what is piped, and waits.

        After ``timeout`` seconds :class:`TimedOutError` is raised, and the process still runs.
        """
        end = None if timeout is None else time.monotonic() + timeout
        parts: dict[IO[bytes], list[bytes]] = {}
        left = memoryview(input or b"")
        with selectors.DefaultSelector() as selector:
            if self.stdin is not None and not self.stdin.closed:
                self.stdin.flush()
                os.set_blocking(self.stdin.fileno(), False)
                selector.register(self.stdin, selectors.EVENT_WRITE)
            elif left:
                raise ValueError("input was given, but standard input is not piped")
            for stream in (self.stdout, self.stderr):
                if stream is not None and not stream.closed:
                    parts[stream] = []
                    selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(None if end is None else max(0.0, end - time.monotonic()))
                if not ready and end is not None and time.monotonic() >= end:
                    raise TimedOutError(f"process {self.pid} did not end in {timeout} seconds")
                for key, _ in ready:
                    if key.fileobj is self.stdin:
                        try:
                            left = left[os.write(key.fd, left[:_CHUNK]) if left else 0 :]
                        except BlockingIOError:
                            continue
                        except BrokenPipeError:
                            left = left[:0]
                        if not left:
                            selector.unregister(key.fileobj)
                            self._close_stdin()
                    else:
                        data = os.read(key.fd, _CHUNK)
                        assert isinstance(key.fileobj, io.BufferedReader)
                        if data:
                            parts[key.fileobj].append(data)
                        else:
                            selector.unregister(key.fileobj)
                            key.fileobj.close()
        status = self.wait(None if end is None else max(0.0, end - time.monotonic()))
        out = b"".join(parts.get(self.stdout, [])) if self.stdout is not None else b""
        err = b"".join(parts.get(self.stderr, [])) if self.stderr is not None else b""
        return Output(out, err, status)

    def _close_stdin(self) -> None:
        if self.stdin is not None:
            try:
                self.stdin.close()
            except BrokenPipeError:
                # The process ended without reading what was buffered.
                pass

    def _close_streams(self) -> None:
        self._close_stdin()
        for stream in (self.stdout, self.stderr, self.terminal):
            if stream is not None:
                stream.close()


#: What a pipe holds.
_CHUNK = 65536


class Process(_Running):
    """A further process in a sandbox, started by :meth:`Sandbox.exec`. Leaving a ``with`` block kills it."""

    def __init__(self, handle: _native._Process) -> None:
        self._handle = handle
        super().__init__(handle)

    def close(self) -> None:
        """Kills the process, if it still runs, and closes its streams."""
        self._close_streams()
        self._handle.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def collect_abandoned(store: ImageStore) -> None:
    """Removes what sandboxes of processes that died left, of this user's, and raises what could not be removed.

    That is control groups, and directories for writes in the store. The first start of a process with a store does
    this by itself.
    """
    _native.collect_abandoned(store)


class Sandbox(_Running):
    """A running application in namespaces, a root file system and limits of its own.

    Leaving a ``with`` block, or dropping the last reference, kills everything inside and gives everything
    back; :meth:`detach` is the explicit way out.
    """

    def __init__(
        self,
        image: str | Image | os.PathLike[str],
        command: Sequence[str] | None = None,
        *,
        store: ImageStore | None = None,
        name: str | None = None,
        entrypoint: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | int | None = None,
        hostname: str | None = None,
        init: bool | None = None,
        read_only: bool | None = None,
        writable_memory: int | None = None,
        limits: Limits | None = None,
        memory: int | None = None,
        cpus: float | None = None,
        pids: int | None = None,
        cgroup: bool | None = None,
        cgroup_view: bool | None = None,
        network: Literal["none", "host", "outbound"] | PrivateNetwork | Sandbox | _Descriptor | None = None,
        user_namespace: Literal["auto", "host", "oneself", "subordinate"] | tuple[int, int] | None = None,
        time_offsets: tuple[int, int] | None = None,
        mounts: Iterable[Mount] | None = None,
        shm_size: int | None = None,
        ports: Mapping[int, int | tuple[str, int]] | None = None,
        gpus: int | str | Sequence[str] | GpuRequest | GpuLease | None = None,
        min_gpu_memory: int = 0,
        gpu_timeout: float | None = None,
        gpu_allocator: GpuAllocator | None = None,
        lease_gpus: bool = True,
        driver_root: _Path | None = None,
        add_capabilities: Iterable[str] | None = None,
        drop_capabilities: Iterable[str] | None = None,
        new_privileges: bool | None = None,
        unfiltered: bool = False,
        seccomp: Mapping[str, Any] | _Path | None = None,
        resource_limits: Mapping[str, int | tuple[int, int]] | None = None,
        sysctls: Mapping[str, str] | None = None,
        oom_score: int | None = None,
        umask: int | None = None,
        terminal: tuple[int, int] | None = None,
        stdin: _Stream = None,
        stdout: _Stream = None,
        stderr: _Stream = None,
    ) -> None:
        """Checks everything, then starts the sandbox, and returns when the application has been executed.

        :param image: a reference, an image of a store, or a :class:`~pathlib.Path`, a directory of the host as
            root. An image that is not in the store is pulled.
        :param command: what to run, instead of the image's command.
        :param writable_memory: keeps writes to the root in memory, at most so many bytes.
        :param memory: bytes; ``cpus`` in cores; ``pids`` processes and threads: over those of ``limits``.
        :param network: ``"none"``, loopback alone and published ports; ``"host"``, the host's; ``"outbound"``, a way out
            for ordinary users through the program ``pasta``; a :class:`PrivateNetwork`, in which the sandbox is known by
            its name; another sandbox or a descriptor of a network namespace, to be in that network too.
        :param ports: container port to host port, or to an address of the host and a port; 0 is any free one.
        :param gpus: how many, ``"all"``, indices as in ``"0,1"``, identifiers, a :class:`GpuRequest`,
            or a :class:`GpuLease`, which the sandbox then holds too.
        :param min_gpu_memory: bytes that must be free on each GPU; a :class:`GpuRequest` says so itself.
        :param gpu_timeout: seconds to wait for GPUs that somebody else has leased, ``math.inf`` for ever. None waits not
            at all: what cannot be had now raises, with who has it.
        :param gpu_allocator: of which GPUs are leased, if not that of the host.
        :param lease_gpus: False takes GPUs whoever has leased them, and keeps them from nobody.
        :param unfiltered: turns the system call filter off.
        :param seccomp: the system call filter: the ``seccomp`` object of a runtime bundle, or a JSON file of it.
        :param driver_root: where the GPU driver's user space is, if not in the host's own root.
        :param stdin: and ``stdout``, ``stderr``: None is the host's; ``PIPE``, ``DEVNULL``, a file, a descriptor.
        """
        options = _options(locals())
        self._handle = _native._Sandbox(image, options)
        super().__init__(self._handle)
        self._name = self._handle.name()

    @staticmethod
    def explain(image: str | Image | os.PathLike[str], command: Sequence[str] | None = None, **options: Any) -> str:
        """What a start with the same arguments would do, a line a step, without doing it."""
        return _native.explain(image, _options({"command": command, **options}))

    @property
    def name(self) -> str:
        """The name."""
        return self._name

    @property
    def addresses(self) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        """Its addresses in its private network: IPv4 first, then IPv6 if it has one. None in any other network."""
        return self._handle.addresses()

    @property
    def ports(self) -> list[Port]:
        """The published ports, with their counters at this moment."""
        return [
            Port(inside, address, outside, *counters, error)
            for inside, address, outside, counters, error in self._handle.ports()
        ]

    def publish(self, container_port: int, host_port: int = 0, *, address: str | None = None) -> tuple[str, int]:
        """Publishes a TCP port while the sandbox runs.

        :param host_port: 0 is any free one.
        :param address: of the host; 127.0.0.1 if None.
        :return: the address and the real port of the host, as :meth:`unpublish` takes them.
        """
        return self._handle.publish(*_port(container_port, host_port if address is None else (address, host_port)))

    def unpublish(self, address: str, host_port: int) -> None:
        """Closes a published port and its connections; then the host's port is free."""
        self._handle.unpublish(ipaddress.ip_address(address), host_port)

    def attach_gpus(
        self,
        gpus: int | str | Sequence[str] | GpuRequest | GpuLease,
        *,
        timeout: float | None = 0,
        cancel: Cancel | None = None,
        lease: bool = True,
    ) -> GpuGrant:
        """Gives the running sandbox GPUs: all that was asked for, or nothing.

        They are leased, of the same allocator as those of its start, until :meth:`detach_gpus` or its end.
        What the application executes from now on finds them, and so does :meth:`exec`, which also gets their variables.

        :param gpus: what :class:`Sandbox` takes. A :class:`GpuLease` is the sandbox's too until it is detached.
        :param timeout: seconds to wait for GPUs that somebody else has leased; None is for ever, and with 0 that
            raises at once, with the reason.
        :param lease: False takes GPUs whoever has leased them, and keeps them from nobody.
        """
        if isinstance(gpus, GpuLease):
            return GpuGrant(self._handle.attach_lease(gpus._handle))
        if not lease:
            return GpuGrant(self._handle.attach_gpus_unleased(_gpus(gpus, 0)))
        return GpuGrant(self._handle.attach_gpus(_gpus(gpus, 0), timeout, cancel))

    def detach_gpus(self, grant: GpuGrant, *, force: bool = False) -> None:
        """Takes away what a grant brought: one of :meth:`attach_gpus`, or of the start, as :attr:`granted` lists them.

        If its GPUs were leased for it, they are free then; a :class:`GpuLease` that was attached is the caller's alone.

        :param force: also if a process inside has a device open, which it keeps then. Otherwise that raises.
        """
        self._handle.detach_gpus(grant._handle, force)

    @property
    def granted(self) -> list[GpuGrant]:
        """What it has of GPUs: the grant of the start, if there was one, then those that were attached."""
        return [GpuGrant(handle) for handle in self._handle.granted()]

    @property
    def gpu_lease(self) -> GpuLease | None:
        """The lease on the GPUs of the start, None without one, and once they were detached.

        Each is a handle of its own, which holds the GPUs too.
        """
        handle = self._handle.gpu_lease()
        return None if handle is None else GpuLease(handle)

    @property
    def gpu_leases(self) -> list[GpuLease]:
        """The leases on its GPUs: that of the start, if there is one, then those of what was attached.

        Each is a handle of its own, which holds the GPUs too.
        """
        return [GpuLease(handle) for handle in self._handle.gpu_leases()]

    @property
    def gpus(self) -> list[str]:
        """The GPUs that are visible inside, by identifier: those of the start, then those that were attached."""
        return self._handle.gpus()

    @property
    def timeline(self) -> list[tuple[str, float]]:
        """The phases of the start and how many seconds each took."""
        return self._handle.timeline()

    @property
    def plan(self) -> str:
        """What the start did, a line a step."""
        return self._handle.explain()

    def dial(self, port: int, timeout: float | None = None) -> socket.socket:
        """Connects to a TCP port inside, published or not."""
        return socket.socket(fileno=self._handle.dial(port, timeout))

    def exec(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | int | None = None,
        terminal: tuple[int, int] | None = None,
        stdin: _Stream = None,
        stdout: _Stream = None,
        stderr: _Stream = None,
    ) -> Process:
        """Starts a further process inside, with the privileges, filter and limits of the sandbox."""
        options = _options(locals())
        del options["command"]
        return Process(self._handle.exec(_words("command", command), options))

    def pause(self) -> None:
        """Stops everything inside, until :meth:`resume`."""
        self._handle.pause()

    def resume(self) -> None:
        """Lets everything inside go on."""
        self._handle.resume()

    def stats(self) -> dict[str, Any]:
        """What the sandbox uses: memory, cpu, pids, io, hugetlb."""
        facts: dict[str, Any] = json.loads(self._handle.stats())
        return facts

    def update(self, limits: Limits) -> None:
        """Changes the limits; those that are None stay."""
        self._handle.update(limits._fields())

    def detach(self) -> None:
        """Lets the application live on when this object and this process are gone. Published ports close."""
        self._close_streams()
        self._handle.detach()

    def close(self) -> None:
        """Kills everything inside, gives everything back, and raises what went wrong with that."""
        self._close_streams()
        self._handle.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<gpucontainer.Sandbox {self.name} {self.status or 'running'}>"


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
    if "mounts" in given:
        given["mounts"] = [dataclasses.astuple(mount) for mount in given["mounts"]]
    network = given.get("network")
    if isinstance(network, PrivateNetwork):
        given["private_network"] = given.pop("network")._fields()
    elif isinstance(network, Sandbox):
        given["join_sandbox"] = given.pop("network")._handle
    elif network is not None and not isinstance(network, str):
        descriptor = given.pop("network")
        given["join_namespace"] = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    if "ports" in given:
        given["ports"] = [_port(*port) for port in given["ports"].items()]
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


def _port(
    container_port: int, host: int | tuple[str, int]
) -> tuple[int, ipaddress.IPv4Address | ipaddress.IPv6Address | None, int]:
    if isinstance(host, int):
        return container_port, None, host
    return container_port, ipaddress.ip_address(host[0]), host[1]
