"""Sandboxes: a program of an image, isolated, with limits and GPUs."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

from . import _native
from .checks import words as _words
from .image import pull_if_absent
from .limits import UNLIMITED, IoLimit, Limits, Mount
from .options import _Descriptor, _gpus, _options, _Path, known
from .ports import HostService, Port, PortMapping, ServiceStatus, _exposed, _published, activated
from .process import ExitStatus, Output, Process, Text, _Running
from .progress import is_watched
from .streams import DEVNULL, PIPE, STDOUT, Coding, Joined, _Stream
from .tables import Ports, Timeline, sandbox

if TYPE_CHECKING:
    import ipaddress

    from typing_extensions import Unpack

    from ._native import Cancel, Image, ImageStore
    from .gpu import GpuAllocator, GpuGrant, GpuLease, GpuRequest
    from .mapper import NetworkNamespace, Reservation
    from .network import PrivateNetwork
    from .options import ExecOptions, SandboxOptions

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "UNLIMITED",
    "ExitStatus",
    "HostService",
    "IoLimit",
    "Limits",
    "Mount",
    "Output",
    "Port",
    "PortMapping",
    "Process",
    "Sandbox",
    "ServiceStatus",
    "activated",
    "collect_abandoned",
]


class Sandbox(_Running[Text], Generic[Text]):
    """A running application in namespaces, a root file system and limits of its own.

    Leaving a ``with`` block, or dropping the last reference, kills everything inside and gives everything
    back; :meth:`detach` is the explicit way out. What ``subprocess.Popen`` has it has by the same names. With ``text=True``
    or an encoding it is a ``Sandbox[str]``, else a ``Sandbox[bytes]``, after what its streams carry.
    """

    @overload
    def __init__(
        self: Sandbox[str],
        image: str | Image | os.PathLike[str],
        command: Sequence[str] | None = None,
        *,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[SandboxOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: Sandbox[str],
        image: str | Image | os.PathLike[str],
        command: Sequence[str] | None = None,
        *,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        **options: Unpack[SandboxOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: Sandbox[bytes],
        image: str | Image | os.PathLike[str],
        command: Sequence[str] | None = None,
        *,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[SandboxOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: Sandbox[Any],
        image: str | Image | os.PathLike[str],
        command: Sequence[str] | None = None,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[SandboxOptions],
    ) -> None: ...

    def __init__(
        self,
        image: str | Image | os.PathLike[str],
        command: Sequence[str] | None = None,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
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
        injectable_ports: bool | None = None,
        network: Literal["none", "host", "outbound"] | PrivateNetwork | Sandbox[Any] | _Descriptor | None = None,
        user_namespace: Literal["auto", "host", "oneself", "subordinate"] | tuple[int, int] | None = None,
        time_offsets: tuple[int, int] | None = None,
        mounts: Iterable[Mount] | None = None,
        shm_size: int | None = None,
        ports: Mapping[int, int | tuple[str, int]] | Iterable[PortMapping] | None = None,
        host_services: Iterable[HostService] | None = None,
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
        application_pid: int | None = None,
        terminal: tuple[int, int] | None = None,
        stdin: _Stream = None,
        stdout: _Stream = None,
        stderr: _Stream = None,
        pass_fds: Mapping[int, int] | Iterable[int] | None = None,
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
        :param ports: container port to host port, or to an address of the host and a port; 0 is any free one. Or
            what is wanted in all detail.
        :param host_services: services of the host that can be reached inside.
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
        :param application_pid: the process id inside, 2 by default; with that of a process outside, both mean the same.
        :param pass_fds: descriptors that the application finds open, under the same numbers, or number inside to descriptor;
            the numbers inside are 3 to 511. Nothing else is inherited.
        :param stdin: and ``stdout``, ``stderr``: None is the host's; ``PIPE``, ``DEVNULL``, a file, a descriptor; for
            ``stderr`` also ``STDOUT``, where standard output goes.
        :param text: piped streams are of text, with the line ends of Python, as also with ``encoding`` or ``errors``.
        """
        given = dict(locals())
        coding = Coding(text, encoding, errors)
        with Joined(given) as pipe:
            options = _options(given)
            if isinstance(image, str) and is_watched():
                # Where its progress is seen; elsewhere the start does it.
                pull_if_absent(image, store)
            self._handle = _native._Sandbox(image, options)
            super().__init__(self._handle, command, coding, pipe.take())
        self._name = self._handle.name()

    @staticmethod
    def explain(
        image: str | Image | os.PathLike[str], command: Sequence[str] | None = None, **options: Unpack[SandboxOptions]
    ) -> str:
        """What a start with the same arguments would do, a line a step, without doing it."""
        known(options)
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
    def ports(self) -> Ports:
        """The published ports, with their counters at this moment; a table in a notebook."""
        return Ports(_published(self._handle.ports()))

    def publish(
        self, container_port: int | PortMapping, host_port: int = 0, *, address: str | None = None
    ) -> tuple[str, int]:
        """Publishes a port while the sandbox runs.

        :param container_port: a port of TCP, or all that is wanted.
        :param host_port: 0 is any free one.
        :param address: an address of the host; 127.0.0.1 and, where the host has IPv6, ::1 by default.
        :return: the address and the real port of the host, as :meth:`unpublish` takes them.
        """
        mapping = container_port
        if not isinstance(mapping, PortMapping):
            mapping = PortMapping(mapping, host_port, address=address)
        return self._handle.publish(mapping._fields())

    def publish_socket(self, listener: socket.socket, container_port: int) -> tuple[str, int]:
        """Leads the clients of a listening TCP socket, such as one of :func:`activated`, to a port inside.

        The socket stays the caller's.

        :return: its address and port, as :meth:`unpublish` takes them.
        """
        return self._handle.publish_socket(listener.fileno(), container_port)

    def publish_reserved(self, reservation: Reservation) -> tuple[str, int]:
        """Publishes what was reserved before, which is used up then.

        :return: the address and port of the first of all, as :meth:`unpublish` takes them.
        """
        return self._handle.publish_reserved(reservation._handle)

    @property
    def network_namespace(self) -> NetworkNamespace:
        """Its network, for ports and services that are not the sandbox's own."""
        from .mapper import NetworkNamespace

        return NetworkNamespace(self._handle.network_namespace())

    def unpublish(self, address: str, host_port: int) -> None:
        """Closes what is published there, TCP and UDP, with its connections; then the host's port is free."""
        import ipaddress

        self._handle.unpublish(ipaddress.ip_address(address), host_port)

    def expose_host(self, service: HostService) -> int:
        """Makes a service of the host reachable inside while the sandbox runs.

        :return: the port inside.
        """
        return self._handle.expose_host(service._fields())

    @property
    def host_services(self) -> list[ServiceStatus]:
        """The services of the host that can be reached inside, with their counters at this moment."""
        return _exposed(self._handle.host_services())

    def withdraw_host(self, port: int, protocol: Literal["tcp", "udp"] = "tcp") -> None:
        """Closes a service of the host inside and its connections."""
        self._handle.withdraw_host(port, protocol)

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
        from .gpu import GpuGrant, GpuLease

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
        from .gpu import GpuGrant

        return [GpuGrant(handle) for handle in self._handle.granted()]

    @property
    def gpu_lease(self) -> GpuLease | None:
        """The lease on the GPUs of the start, None without one, and once they were detached.

        Each is a handle of its own, which holds the GPUs too.
        """
        from .gpu import GpuLease

        handle = self._handle.gpu_lease()
        return None if handle is None else GpuLease(handle)

    @property
    def gpu_leases(self) -> list[GpuLease]:
        """The leases on its GPUs: that of the start, if there is one, then those of what was attached.

        Each is a handle of its own, which holds the GPUs too.
        """
        from .gpu import GpuLease

        return [GpuLease(handle) for handle in self._handle.gpu_leases()]

    @property
    def gpus(self) -> list[str]:
        """The GPUs that are visible inside, by identifier: those of the start, then those that were attached."""
        return self._handle.gpus()

    @property
    def timeline(self) -> Timeline:
        """The phases of the start and how many seconds each took; bars in a notebook."""
        return Timeline(self._handle.timeline())

    @property
    def plan(self) -> str:
        """What the start did, a line a step."""
        return self._handle.explain()

    def dial(self, port: int, timeout: float | None = None) -> socket.socket:
        """Connects to a TCP port inside, published or not."""
        return socket.socket(fileno=self._handle.dial(port, timeout))

    def wait_ready(self, port: int, timeout: float | None = None) -> None:
        """Waits until something accepts connections at a TCP port inside, published or not.

        It connects there and closes that at once. A port that is handed over takes clients before the program looks for
        them: nothing is waited for there.

        :param timeout: seconds, after which :class:`~errors.TimedOutError` is raised; None is as long as the application
            runs. As soon as that has ended :class:`~errors.ClosedError` is raised, with how.
        """
        self._handle.wait_ready(port, timeout)

    @overload
    def exec(
        self,
        command: Sequence[str],
        *,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[ExecOptions],
    ) -> Process[str]: ...
    @overload
    def exec(
        self,
        command: Sequence[str],
        *,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        **options: Unpack[ExecOptions],
    ) -> Process[str]: ...
    @overload
    def exec(
        self,
        command: Sequence[str],
        *,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[ExecOptions],
    ) -> Process[bytes]: ...
    @overload
    def exec(
        self,
        command: Sequence[str],
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[ExecOptions],
    ) -> Process[Any]: ...
    def exec(
        self,
        command: Sequence[str],
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | int | None = None,
        terminal: tuple[int, int] | None = None,
        stdin: _Stream = None,
        stdout: _Stream = None,
        stderr: _Stream = None,
        pass_fds: Mapping[int, int] | Iterable[int] | None = None,
    ) -> Process[Any]:
        """Starts a further process inside, with the privileges, filter and limits of the sandbox.

        The streams and ``text`` are as for the sandbox itself.
        """
        given = dict(locals())
        coding = Coding(text, encoding, errors)
        with Joined(given) as pipe:
            options = _options(given)
            del options["command"]
            process = self._handle.exec(_words("command", command), options)
            return Process(process, command, coding, pipe.take())

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
        """Lets the application live on when this object and this process are gone. Published ports close.

        Its supervisor stays a child of this process: one that lives on has a zombie of it in the end, until it collects
        its children, as with ``os.waitpid(-1, os.WNOHANG)``.
        """
        self._close_streams()
        self._handle.detach()

    def close(self) -> None:
        """Kills everything inside, gives everything back, and raises what went wrong with that."""
        self._close_streams()
        self._handle.close()

    def _repr_html_(self) -> str:
        return sandbox(self)

    def __repr__(self) -> str:
        state = "running" if self.status is None else repr(self.status)
        return f"<gpucontainer.Sandbox {self.name} {state}>"


def collect_abandoned(store: ImageStore) -> None:
    """Removes what sandboxes of processes that died left, of this user's, and raises what could not be removed.

    That is control groups, and directories for writes in the store. The first start of a process with a store does
    this by itself.
    """
    _native.collect_abandoned(store)
