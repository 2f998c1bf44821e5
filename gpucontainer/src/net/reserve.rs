//! Ports of the host, taken before anything is started.

use super::inject::{Binds, may_have};
use super::mapping::{Place, PortMapping, Protocol, check};
use super::mode::PortMode;
use super::port::PublishedPort;
use super::published::Published;
use super::{holder, namespace::NetworkNamespace, nat};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::datagram;
use crate::sys::hostport;
use crate::sys::socket::{self, Span, number};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// So often a free port is looked for before none is left.
const ATTEMPTS: usize = 64;
/// Where several ports in a row are looked for: below those that the kernel gives to whoever connects, of which some are
/// always in use here and there.
const RANGES: Range<u16> = 10_000..32_768;
/// From so many sockets on it is looked beforehand whether there are descriptors for them.
const MANY: u64 = 16;

/// Takes ports of the host for containers.
#[derive(Clone, Debug, Default)]
pub struct PortMapper {}

impl PortMapper {
    /// A port mapper of this process.
    pub fn new() -> Self {
        Self {}
    }

    /// Takes the host's side of every mapping: binds, and for TCP listens. All or none.
    ///
    /// From now on the ports belong to the reservation: other programs cannot have them, connections and datagrams are
    /// taken into the kernel's queue and wait there until [`Reservation::relay`], and dropping the reservation frees the
    /// ports at once. An empty list is fine.
    ///
    /// # Errors
    /// Nothing stays taken after any of them.
    /// * [`InvalidArgument`](ErrorKind::InvalidArgument): container port 0, a range that is empty or too long, one host
    ///   port wanted twice, or an address that is not this host's
    /// * [`PortInUse`](ErrorKind::PortInUse): another program has the port; the text names it where `/proc` does
    /// * [`PermissionDenied`](ErrorKind::PermissionDenied): a port below `net.ipv4.ip_unprivileged_port_start`, or
    ///   [`PortMode::Nat`] without `CAP_NET_ADMIN`
    /// * [`Unsupported`](ErrorKind::Unsupported): IPv6 is switched off and an address of it is asked for
    /// * [`SystemCall`](ErrorKind::SystemCall) with `EMFILE`: the limit of descriptors is too low for so many ports
    pub fn reserve(&self, mappings: &[PortMapping]) -> Result<Reservation> {
        check(mappings)?;
        if let Some(mapping) = mappings.iter().find(|mapping| mapping.wanted_mode() == PortMode::Nat) {
            nat::check_privilege().map_err(|error| error.context(format!("publish {mapping}")))?;
        }
        check_descriptors(mappings)?;
        let sockets = mappings.iter().map(take).collect::<Result<_>>()?;
        Ok(Reservation { sockets })
    }
}

impl PortMapper {
    /// Takes a socket that listens already, of this process's own or one that it [was started with](super::activated), as
    /// the host's side of a port: `container_port` of whatever it is then [relayed](Reservation::relay) to.
    ///
    /// As others may have the socket too it is never injected.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for container port 0, and for what is no listening TCP socket.
    pub fn adopt(&self, container_port: u16, socket: OwnedFd) -> Result<Reservation> {
        let wanted = || format!("adopt a socket for port {container_port}");
        if !socket::is_tcp_listener(&socket) {
            return Err(Error::new(ErrorKind::InvalidArgument, "it is no TCP socket that listens").context(wanted()));
        }
        let host = socket::local_address(&socket).map_err(|error| error.context(wanted()))?;
        let mapping = PortMapping::tcp(container_port, host.port()).address(host.ip());
        check(std::slice::from_ref(&mapping))?;
        socket::set_nonblocking(&socket)?;
        let sockets = vec![HostSocket { port: PublishedPort::single(&mapping, 0, host), socket }];
        let held = Held { port: PublishedPort::new(&mapping, host, None), mapping, sockets, way: Way::Adopted };
        Ok(Reservation { sockets: vec![held] })
    }
}

/// Refuses at once what would end at the limit of descriptors.
fn check_descriptors(mappings: &[PortMapping]) -> Result<()> {
    let of =
        |mapping: &PortMapping| u64::from(mapping.count()) * if mapping.place() == Place::Loopback { 2 } else { 1 };
    let wanted: u64 = mappings.iter().map(of).sum();
    if wanted < MANY {
        return Ok(());
    }
    let (limit, open) = socket::descriptors();
    if open + wanted > limit {
        let why = format!("{wanted} sockets are needed, and of {limit} descriptors (RLIMIT_NOFILE) {open} are in use");
        let names: Vec<_> = mappings.iter().map(ToString::to_string).collect();
        let error = socket::error("socket()", number::EMFILE).context(why);
        return Err(error.context(format!("publish {}", names.join(", "))));
    }
    Ok(())
}

/// Why a port could not be had, and of which address.
type Refusal = (SocketAddr, Error);

/// Takes what one mapping wants.
fn take(mapping: &PortMapping) -> Result<Held> {
    let fixed = mapping.host().port();
    let mut next = None;
    for _ in 0..ATTEMPTS {
        let first = match next.take() {
            Some(first) => Ok(first),
            None if fixed == 0 => some_free_port(mapping),
            None => Ok(fixed),
        };
        match first.and_then(|first| take_from(mapping, first)) {
            Ok(held) => return Ok(held),
            // Somebody has one of those; others may be free.
            Err((taken, error)) if fixed == 0 && error.errno() == Some(number::EADDRINUSE) => {
                next = beyond(mapping, taken.port());
            }
            Err((address, error)) => return Err(explain(error, mapping, address)),
        }
    }
    let error = socket::error(format!("bind({})", mapping.host()), number::EADDRINUSE);
    Err(explain(error, mapping, mapping.host()))
}

/// The first of as many ports as are wanted: one is free where one is wanted, and several are likely to be.
fn some_free_port(mapping: &PortMapping) -> Result<u16, Refusal> {
    let mut port = 0;
    on_main_address(mapping, 0, |address| {
        let probe = open(mapping, address).map_err(|error| (address, error))?;
        port = socket::local_address(&probe).map_err(|error| (address, error))?.port();
        Ok(())
    })?;
    let count = mapping.count();
    let room = (RANGES.end - RANGES.start).checked_sub(count);
    Ok(match room {
        // Any place in there, by the number that the kernel happened to choose.
        Some(room) if count > 1 => RANGES.start + port % (room + 1),
        _ => port.min(u16::MAX - (count - 1)),
    })
}

/// Where to look for several ports when `taken` is somebody's; `None` for anywhere.
fn beyond(mapping: &PortMapping, taken: u16) -> Option<u16> {
    let first = taken.checked_add(1).filter(|_| mapping.count() > 1)?;
    let end = if RANGES.contains(&first) { u32::from(RANGES.end) } else { 1 << 16 };
    (u32::from(first) + u32::from(mapping.count()) <= end).then_some(first)
}

/// Does something on the main address of a mapping, which it returns: on a host without IPv6 all interfaces are those of
/// IPv4.
fn on_main_address(
    mapping: &PortMapping,
    port: u16,
    mut act: impl FnMut(SocketAddr) -> Result<(), Refusal>,
) -> Result<SocketAddr, Refusal> {
    let main = SocketAddr::new(mapping.host().ip(), port);
    match act(main) {
        Err((_, error)) if mapping.place() == Place::All && is_without_v6(&error) => {
            let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
            act(v4).map(|()| v4)
        }
        done => done.map(|()| main),
    }
}

/// Takes the ports from `first` on, on every address.
fn take_from(mapping: &PortMapping, first: u16) -> Result<Held, Refusal> {
    let mut sockets = Vec::with_capacity(usize::from(mapping.count()));
    let main = on_main_address(mapping, first, |address| take_on(mapping, address, &mut sockets))?;
    let mut also = None;
    if mapping.place() == Place::Loopback {
        let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), first);
        match take_on(mapping, v6, &mut sockets) {
            Ok(()) => also = Some(v6.ip()),
            // The host does without.
            Err((_, error)) if is_without_v6(&error) => {}
            Err(refusal) => return Err(refusal),
        }
    }
    Ok(Held { port: PublishedPort::new(mapping, main, also), mapping: mapping.clone(), sockets, way: Way::Open })
}

/// Takes the ports from that of `first` on, on its address.
fn take_on(mapping: &PortMapping, first: SocketAddr, sockets: &mut Vec<HostSocket>) -> Result<(), Refusal> {
    for offset in 0..mapping.count() {
        let address = SocketAddr::new(first.ip(), first.port().saturating_add(offset));
        let socket = open(mapping, address).map_err(|error| (address, error))?;
        sockets.push(HostSocket { port: PublishedPort::single(mapping, offset, address), socket });
    }
    Ok(())
}

/// Makes one socket of the host.
fn open(mapping: &PortMapping, address: SocketAddr) -> Result<OwnedFd> {
    let span = if mapping.place() == Place::All { Span::BothFamilies } else { Span::OneFamily };
    match mapping.protocol() {
        Protocol::Tcp => socket::listen(address, span),
        Protocol::Udp => {
            let socket = socket::bind_datagrams(address, span)?;
            if address.ip().is_unspecified() {
                datagram::tell_destination(&socket, address.is_ipv6())?;
            }
            Ok(socket)
        }
    }
}

/// Whether the host, or its loopback device, has no IPv6.
fn is_without_v6(error: &Error) -> bool {
    matches!(error.errno(), Some(number::EAFNOSUPPORT | number::EADDRNOTAVAIL))
}

/// Says in the words of ports why a socket could not be had.
fn explain(error: Error, mapping: &PortMapping, at: SocketAddr) -> Error {
    let (address, port) = (at.ip(), at.port());
    let (kind, why) = match error.errno() {
        Some(number::EADDRINUSE) if port == 0 => {
            let what = if mapping.count() == 1 {
                "no free port is".to_owned()
            } else {
                format!("no {} free ports in a row are", mapping.count())
            };
            (ErrorKind::PortInUse, format!("{what} left on {address}"))
        }
        Some(number::EADDRINUSE) => {
            let holder = holder::find(mapping.protocol(), at);
            let by = holder.map_or_else(|| "another program".to_owned(), |holder| holder.to_string());
            (ErrorKind::PortInUse, format!("port {port} of {address} is taken by {by}"))
        }
        Some(number::EACCES) => {
            let why =
                format!("port {port} is privileged; net.ipv4.ip_unprivileged_port_start says from where on none is");
            (ErrorKind::PermissionDenied, why)
        }
        // A link-local address without its device, or none of ours.
        Some(number::EADDRNOTAVAIL | number::EINVAL) => {
            (ErrorKind::InvalidArgument, format!("{address} is no address of this host"))
        }
        Some(number::EAFNOSUPPORT) => (ErrorKind::Unsupported, "IPv6 is switched off on this host".to_owned()),
        _ => return error.context(format!("publish {mapping}")),
    };
    error.with_kind(kind).context(why).context(format!("publish {mapping}"))
}

/// Ports of the host that are taken and not yet joined to a container.
#[derive(Debug)]
pub struct Reservation {
    sockets: Vec<Held>,
}

/// A port that is taken, or as many as the mapping wants.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) port: PublishedPort,
    pub(super) mapping: PortMapping,
    pub(super) sockets: Vec<HostSocket>,
    pub(super) way: Way,
}

/// What sockets that are taken are for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// Whatever their mapping wants.
    Open,
    /// The container has them as well.
    Handed,
    /// Others have them as well, who did not ask for them to be changed.
    Adopted,
}

/// A socket of the host: one port on one address.
#[derive(Debug)]
pub(super) struct HostSocket {
    pub(super) port: PublishedPort,
    /// Bound, and listening if it is TCP.
    pub(super) socket: OwnedFd,
}

impl Reservation {
    /// The ports with their real numbers, in the order in which they were asked for.
    pub fn ports(&self) -> Vec<PublishedPort> {
        self.sockets.iter().map(|held| held.port).collect()
    }

    /// The same as one reservation a port, in their order, so that each port can be closed for itself.
    pub fn each(self) -> Vec<Self> {
        self.sockets.into_iter().map(|one| Self { sockets: vec![one] }).collect()
    }

    /// Locks the sockets of [`PortMode::HandOver`], which a container is given; with their names
    /// in `LISTEN_FDNAMES`, one name for all sockets of a port.
    pub(crate) fn hand_over(&mut self) -> Result<Vec<(String, BorrowedFd<'_>)>> {
        let mut handed = Vec::new();
        for held in self.sockets.iter_mut().filter(|held| held.mapping.wanted_mode() == PortMode::HandOver) {
            let mapping = &held.mapping;
            if let Err(why) = may_have(mapping) {
                return Err(Error::new(ErrorKind::PermissionDenied, format!("publish {mapping}: hand over: {why}")));
            }
            for one in &held.sockets {
                if !mapping.is_unlocked() {
                    hostport::lock(&one.socket, one.port.host().port())?;
                }
                // `accept` waits, as on sockets from every service manager.
                socket::set_blocking(&one.socket)?;
                handed.push((mapping.listen_name(), one.socket.as_fd()));
            }
            held.way = Way::Handed;
        }
        Ok(handed)
    }

    /// Hands the sockets out, for a program that takes clients itself: one for each port on each address, which its
    /// [`PublishedPort`] then says. They are non-blocking and closed on exec; those of TCP listen.
    pub fn into_sockets(self) -> Vec<(PublishedPort, OwnedFd)> {
        self.sockets.into_iter().flat_map(|held| held.sockets).map(|one| (one.port, one.socket)).collect()
    }

    /// Passes everything on to the container port in `namespace`: to 127.0.0.1 there, or else to `[::1]`.
    ///
    /// One thread named `gpuc-relay` serves all published ports of the process. It starts with the first of them, ends
    /// with the last, and takes no signals. A program in the container sees the connections come from its own
    /// loopback address. It need not be listening yet; until it does, clients see their connections reset.
    ///
    /// A connection takes two descriptors of this process, and two to four more while it moves much at once. When they
    /// run out, new clients wait in the kernel's queue. A client of UDP takes one until it has been idle for
    /// [its time](PortMapping::idle_timeout); a port has at most 1,024 of them, of which the longest idle one gives way
    /// to the next.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the thread cannot be started. The ports are free again then.
    pub fn relay(self, namespace: NetworkNamespace) -> Result<Published> {
        Published::start(self.sockets, namespace, None)
    }

    /// Has the kernel lead clients to the container in `namespace` by [`PortMode::Nat`], whatever the mappings want. All of
    /// them are one change of the kernel's rules, and so is a range.
    ///
    /// # Errors
    /// Nothing is changed after any of them, and the ports are free again.
    /// * [`PermissionDenied`](ErrorKind::PermissionDenied): the caller has no `CAP_NET_ADMIN`
    /// * [`Unsupported`](ErrorKind::Unsupported): the container has no address but loopback, the host has no route to it,
    ///   or forwards no packets from there; [`SourceAddress::Keep`](super::SourceAddress::Keep) is wanted and the container
    ///   has no default route; or the kernel has no tables that belong to a socket (before Linux 5.12)
    /// * [`InvalidArgument`](ErrorKind::InvalidArgument): it is the host's own network, or the PROXY protocol is wanted
    /// * the namespace cannot be entered
    pub fn translate(self, namespace: NetworkNamespace) -> Result<Published> {
        Published::translate(self.sockets, namespace)
    }

    /// The same as [`Reservation::relay`], and ports that may be [injected](super::PortMode::Inject) are as soon as the container binds them: `binds`
    /// hears of that, or it is said why nobody does.
    pub(crate) fn publish(self, namespace: NetworkNamespace, binds: Result<&Binds, &str>) -> Result<Published> {
        Published::start(self.sockets, namespace, Some(binds))
    }
}
