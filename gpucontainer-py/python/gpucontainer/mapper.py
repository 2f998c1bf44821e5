"""Ports and services without sandboxes: for containers that somebody else started."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from typing import IO, Any, TypeAlias

from . import _native
from .closing import Closing
from .ports import HostService, Port, PortMapping, ServiceStatus, _exposed, _port, _published

_Descriptor: TypeAlias = int | IO[Any]


def _number(descriptor: _Descriptor) -> int:
    return descriptor if isinstance(descriptor, int) else descriptor.fileno()


class NetworkNamespace:
    """A network namespace to connect into, and to lead ports and services into.

    The calling process must be privileged over it. Nothing of it is checked before the first use.
    """

    def __init__(self, handle: _native._NetworkNamespace) -> None:
        self._handle = handle

    @staticmethod
    def of_process(pidfd: _Descriptor) -> NetworkNamespace:
        """That in which a process lives, by a descriptor of :func:`os.pidfd_open`; as long as the process lives."""
        return NetworkNamespace(_native._NetworkNamespace.of_process(_number(pidfd)))

    @staticmethod
    def from_fds(network: _Descriptor, user: _Descriptor | None = None) -> NetworkNamespace:
        """By a descriptor of ``/proc/PID/ns/net``, or of a file that it is mounted on.

        :param user: of ``/proc/PID/ns/user``, which callers without privilege need.
        """
        owner = None if user is None else _number(user)
        return NetworkNamespace(_native._NetworkNamespace.from_fds(_number(network), owner))

    def dial(self, port: int, timeout: float | None = None) -> socket.socket:
        """Connects to a TCP port on the loopback of the namespace."""
        return socket.socket(fileno=self._handle.dial(port, timeout))

    def expose_host(self, services: Iterable[HostService]) -> ExposedServices:
        """Makes services of the host reachable inside, all or none."""
        return ExposedServices(self._handle.expose_host([service._fields() for service in services]))


class ExposedServices(Closing):
    """Services of the host in one network namespace; leaving a ``with`` block closes them and their connections."""

    def __init__(self, handle: _native._ExposedServices) -> None:
        self._handle = handle

    @property
    def services(self) -> list[ServiceStatus]:
        """The services with their real ports inside and their counters at this moment."""
        return _exposed(self._handle.services())

    def close(self) -> None:
        """Closes the services and every connection through them. A second time does nothing."""
        self._handle.close()


class PortMapper:
    """Takes ports of the host for containers."""

    def reserve(self, ports: Mapping[int, int | tuple[str, int]] | Iterable[PortMapping]) -> Reservation:
        """Takes the host's side of every port: binds, and for TCP listens. All or none.

        From then on other programs cannot have the ports, and clients wait until they are relayed.

        :param ports: what :class:`Sandbox` takes.
        """
        if isinstance(ports, Mapping):
            ports = [_port(inside, host) for inside, host in ports.items()]
        return Reservation(_native._Reservation.reserve([port._fields() for port in ports]))

    def adopt(self, container_port: int, listener: socket.socket) -> Reservation:
        """Takes a TCP socket that listens already, which stays the caller's."""
        return Reservation(_native._Reservation.adopt(container_port, listener.fileno()))


class Reservation(Closing):
    """Ports of the host that are taken; leaving a ``with`` block frees them, unless they were led somewhere."""

    def __init__(self, handle: _native._Reservation) -> None:
        self._handle = handle

    @property
    def ports(self) -> list[PortMapping]:
        """The ports with their real numbers, in the order in which they were asked for."""
        return [
            PortMapping(inside, outside, "udp" if protocol == "udp" else "tcp", count, address)
            for inside, address, outside, protocol, count, _ in self._handle.ports()
        ]

    def relay(self, network: NetworkNamespace) -> Published:
        """Passes everything on to the container ports in a namespace, by one thread for all ports of the process.

        A program there need not listen yet; until it does, clients see their connections reset.
        """
        return Published(self._handle.relay(network._handle))

    def translate(self, network: NetworkNamespace) -> Published:
        """Has the kernel rewrite addresses where it can, and relays the rest. Needs privileges."""
        return Published(self._handle.translate(network._handle))

    def into_sockets(self) -> list[socket.socket]:
        """The sockets, for a program that takes clients itself: one for each port on each address, non-blocking."""
        return [socket.socket(fileno=number) for number in self._handle.sockets()]

    def close(self) -> None:
        """Frees the ports. A second time, and after they were led somewhere, it does nothing."""
        self._handle.close()


class Published(Closing):
    """Ports of the host that lead into a container; leaving a ``with`` block closes them and their connections."""

    def __init__(self, handle: _native._Published) -> None:
        self._handle = handle

    @property
    def ports(self) -> list[Port]:
        """The ports, with their counters at this moment."""
        return _published(self._handle.ports())

    def close(self) -> None:
        """Closes the ports and every connection through them. A second time does nothing."""
        self._handle.close()
