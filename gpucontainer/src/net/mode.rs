//! How a port of a container comes to be on the host.

use std::fmt;

/// How clients of a published port reach the program in the container.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum PortMode {
    /// Whatever costs least: relayed until the program binds the port and [injected](Self::Inject) from then on, where
    /// that is possible. [`PortStatus::why`](super::PortStatus::why) says what it came to. Never [`Nat`](Self::Nat). The
    /// default.
    #[default]
    Auto,
    /// The program finds the host's listening socket among its descriptors, as `LISTEN_FDS` says, and takes clients
    /// from it at the speed of the host. For programs that know socket activation. One of UDP only for a container that is
    /// [trusted](super::PortMapping::unlocked) with it.
    HandOver,
    /// The program's `bind(2)` is answered with a socket of the host, which then takes clients at the speed of the host.
    /// The program need not know. What it can notice: asked for its address, the socket names the host's; a signal whose
    /// handler does not restart calls may end a `bind` with `EINTR`; clients may connect from the bind on; and copies of
    /// the socket that were made before, by `dup` or a fork, stay as they were. Sockets in epoll instances of the process
    /// are exchanged there.
    ///
    /// A socket of IPv4 is for an IPv4 address of the host alone; other addresses of a port of TCP are relayed. For UDP,
    /// which [`Auto`](Self::Auto) relays, the container must be [trusted](super::PortMapping::unlocked) with it: what it
    /// sends is not restrained. Until the program binds it such a port is closed, and what its socket does not suit of the
    /// port's addresses stays so; on [all interfaces](super::PortMapping::all_interfaces) it is silent instead, and only one
    /// socket of IPv6 at a time can have it. A port that is taken away is free again when the program has closed the socket.
    Inject,
    /// One thread of this process passes everything on.
    Relay,
    /// The kernel rewrites addresses on their way, by nf_tables: nobody's processor time but the kernel's, and for clients
    /// from elsewhere their own addresses, for TCP and UDP, however many ports. Only root (`CAP_NET_ADMIN`) can have it so.
    ///
    /// The container needs an address that the host has a route to, such as in a
    /// [private network](super::PrivateNetwork), and the program must listen on that address. What the kernel cannot lead
    /// there is relayed to the same address: clients on loopback addresses, and those of a family that the container has no
    /// address of. Clients on the host itself and the container's neighbours on its wire come from the host's address, and
    /// so do all where the container has no default route, unless [`SourceAddress::Keep`] forbids that.
    ///
    /// Rules for the host's own services (the hook `input`, which ufw fills) do not apply to what the kernel leads on, but
    /// those for forwarded packets do. For these two reasons it is never chosen by [`Auto`](Self::Auto).
    ///
    /// The rules are in a table of this process's own, which nobody else's `nft flush ruleset` removes and which vanishes
    /// with the process. When a port is closed its connections end. When the process is killed, those that
    /// exist end if nothing else on the host rewrites addresses, and may else go on as long as the container answers them.
    Nat,
}

impl fmt::Display for PortMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::HandOver => "hand over",
            Self::Inject => "inject",
            Self::Relay => "relay",
            Self::Nat => "nat",
        })
    }
}

/// How a program learns who its clients are, when they are relayed; to a program that has a socket of the host they are
/// what they are, and so they are behind [`PortMode::Nat`] where they can be.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum SourceAddress {
    /// Not at all: all clients come from the container's own loopback address. The default, and works with every program.
    #[default]
    Loopback,
    /// They come from their own addresses, and from their own ports where those are free inside. For TCP; nothing else that
    /// the container does is routed otherwise for it. A client is led to the loopback address of its own family alone, so
    /// that none is taken for a local one. In the network namespace a rule, a table of routes and the setting
    /// `net.ipv4.tcp_fwmark_accept` stay as long as it lives.
    Keep,
    /// Each connection begins with a header of the PROXY protocol, version 2, which the program must expect (nginx:
    /// `listen 80 proxy_protocol`). For TCP. Such a port is always relayed.
    ProxyV2,
}
