"""Ports of sandboxes on the host, and services of the host in sandboxes."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterable
from typing import Literal

from . import _native


@dataclasses.dataclass(frozen=True)
class PortMapping:
    """A port of the container that is wanted on the host, or as many consecutive ones."""

    container_port: int
    #: 0 is any free one.
    host_port: int = 0
    protocol: Literal["tcp", "udp"] = "tcp"
    #: How many, from both ports on; they are one port with one status.
    count: int = 1
    #: An address of the host; 127.0.0.1 and, where the host has IPv6, ::1 by default.
    address: str | None = None
    #: On every address of the host.
    all_interfaces: bool = False
    #: How clients reach the program. With "nat" the kernel rewrites addresses, for root and containers in a network that
    #: the host has a route to, such as a private one: clients on loopback addresses are relayed, and rules of the host's
    #: for its own services do not apply.
    mode: Literal["auto", "hand over", "inject", "relay", "nat"] = "auto"
    #: How the program learns who its clients are, when they are relayed.
    source: Literal["loopback", "keep", "proxy-v2"] = "loopback"
    #: Ends what is relayed when nothing has passed for so many seconds; no time for TCP by default, 90 for UDP.
    idle_timeout: float | None = None
    #: The name in ``LISTEN_FDNAMES``.
    name: str | None = None
    #: Trusts the container with sockets of the host that are not locked to the port, which an ordinary user cannot lock
    #: on newer kernels.
    unlocked: bool = False

    def _fields(self) -> _native._MappingFields:
        import ipaddress

        return (
            self.protocol,
            self.container_port,
            self.host_port,
            self.count,
            None if self.address is None else ipaddress.ip_address(self.address),
            self.all_interfaces,
            self.mode,
            self.source,
            self.idle_timeout,
            self.name,
            self.unlocked,
        )


@dataclasses.dataclass(frozen=True)
class HostService:
    """A service of the host that programs inside can reach, on a port of their own loopback addresses."""

    #: The port inside; 0 is any free one.
    port: int
    #: The address and the port of the service.
    host: str
    host_port: int
    protocol: Literal["tcp", "udp"] = "tcp"
    #: Ends what nothing has passed through for so many seconds; no time for TCP by default, 90 for UDP.
    idle_timeout: float | None = None
    #: The address inside, one of the container's, or "0.0.0.0" or "::" for all of its family; 127.0.0.1 and, where there is
    #: IPv6, ::1 by default. On one that others can reach, such as that in a private network, they reach the service too.
    address: str | None = None

    def _fields(self) -> _native._ServiceFields:
        import ipaddress

        inside = None if self.address is None else ipaddress.ip_address(self.address)
        return self.protocol, inside, self.port, ipaddress.ip_address(self.host), self.host_port, self.idle_timeout


@dataclasses.dataclass(frozen=True)
class ServiceStatus:
    """A service of the host and what went through it."""

    #: The port inside.
    port: int
    #: The address and the port of the service.
    host: str
    host_port: int
    #: Connections taken from programs inside so far, those that exist now, and those that nothing on the host took.
    accepted: int
    open: int
    refused: int
    #: Bytes that went to the host and came from it.
    bytes_in: int
    bytes_out: int
    #: Why the last connection that was reset was.
    last_error: str | None
    protocol: str
    #: The address inside; None is the loopback addresses.
    address: str | None


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
    #: Bytes that went in and came out; those of "nat" with their headers.
    bytes_in: int
    bytes_out: int
    #: Why the last connection that was reset was.
    last_error: str | None
    protocol: str
    #: How many consecutive ports, from both ports on.
    count: int
    #: Every address of the host that it is on.
    hosts: list[str]
    #: How its clients are served now, and why so.
    mode: str
    why: str


def _published(all_fields: Iterable[_native._PortFields]) -> list[Port]:
    return [
        Port(inside, address, outside, *counters, error, protocol, count, hosts, mode, why)
        for inside, address, outside, counters, (error, protocol, count, hosts, mode, why) in all_fields
    ]


def _exposed(all_fields: Iterable[_native._ServiceStatusFields]) -> list[ServiceStatus]:
    return [
        ServiceStatus(port, host, host_port, *counters, error, protocol, address)
        for port, host, host_port, counters, (error, protocol, address) in all_fields
    ]


def activated() -> list[tuple[str, socket.socket]]:
    """The sockets that this process was started with, and their names, as ``sd_listen_fds(3)`` has them.

    The environment and the descriptors themselves stay as they are.
    """
    return [(name, socket.socket(fileno=number)) for name, number in _native.activated()]


def _port(container_port: int, host: int | tuple[str, int]) -> PortMapping:
    if isinstance(host, int):
        return PortMapping(container_port, host)
    return PortMapping(container_port, host[1], address=host[0])
