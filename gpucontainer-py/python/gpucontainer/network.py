"""Private networks: containers of one host that reach each other by address and by name, and the outside."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

from . import _native

_Fields: TypeAlias = tuple[str, tuple[int, int] | None, bool, bool, bool]


@dataclass(frozen=True)
class PrivateNetwork:
    """A network of containers of this host, which exists as long as somebody is in it. Needs privileges.

    Members cannot reach services of the host, nor members of other private networks, and nobody outside can begin a
    connection to a member: ports are published for that.
    """

    name: str
    """1 to 32 letters, digits, ``_`` and ``-``: one network for all processes of the user that name it."""
    ipv4: str | ipaddress.IPv4Network | None = None
    """Its addresses, as in ``"10.9.0.0/24"``. By default 1,022 addresses to which the host has no route."""
    ipv6: bool = True
    """Whether members have IPv6 addresses too, where the kernel has IPv6."""
    outbound: bool = True
    """Whether members reach what the host reaches, from the host's addresses. A host that forwards no packets is made to
    do so for the interfaces to which it has routes."""
    host_access: bool = False
    """Whether members reach services of the host, but for those on its loopback."""

    def join(self, name: str) -> NetworkMember:
        """Comes into the network with a new network namespace, without a sandbox."""
        return NetworkMember(self, name)

    def _fields(self) -> _Fields:
        ipv4 = None
        if self.ipv4 is not None:
            network = ipaddress.IPv4Network(self.ipv4, strict=False)
            ipv4 = (int(network.network_address), network.prefixlen)
        return (self.name, ipv4, self.ipv6, self.outbound, self.host_access)


class NetworkMember:
    """A network namespace in a private network; made by :meth:`PrivateNetwork.join`.

    Leaving a ``with`` block gives its addresses and its name back, and so does dropping the last reference.
    """

    def __init__(self, network: PrivateNetwork, name: str) -> None:
        self._handle = _native._NetworkMember(network._fields(), name)
        self._name = name
        self._addresses, self._gateways = self._handle.addresses()
        self._hosts_file = self._handle.hosts_file()

    @property
    def name(self) -> str:
        """What it is called in the network."""
        return self._name

    @property
    def addresses(self) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        """Its addresses: IPv4 first, then IPv6 if it has one."""
        return self._addresses

    @property
    def gateways(self) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        """The gateway's addresses: none in a network that leads nowhere."""
        return self._gateways

    @property
    def hosts_file(self) -> Path:
        """A file with the names and addresses of all members, in the format of ``/etc/hosts``, rewritten in place."""
        return self._hosts_file

    def fileno(self) -> int:
        """The network namespace, as ``setns`` takes it; the number is valid as long as this object."""
        return self._handle.fileno()

    def dial(self, port: int, timeout: float | None = None) -> socket.socket:
        """Connects to a TCP port on the loopback of the namespace."""
        return socket.socket(fileno=self._handle.dial(port, timeout))

    def leave(self) -> None:
        """Gives its addresses and its name back. A second time does nothing."""
        self._handle.leave()

    def __enter__(self) -> NetworkMember:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.leave()
        return False

    def __repr__(self) -> str:
        return f"<NetworkMember {self._name!r} {self._addresses[0]}>"
