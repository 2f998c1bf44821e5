//! Ports of the host, taken before anything is started.

use super::mapping::{PortMapping, PublishedPort, check};
use super::published::Published;
use super::inject::{Binds, may_inject};
use super::mode::PortMode;
use super::published::NO_LOCK;
use super::{holder, namespace::NetworkNamespace};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::hostport;
use crate::sys::socket::{self, number};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Takes ports of the host for containers.
#[derive(Clone, Debug, Default)]
pub struct PortMapper {}

impl PortMapper {
    /// A port mapper of this process.
    pub fn new() -> Self {
        Self {}
    }

    /// Takes the host's side of every mapping: binds and listens. All or none.
    ///
    /// From now on the ports belong to the reservation: other programs cannot have them, connections are taken into
    /// the kernel's queue and wait there until [`Reservation::relay`], and dropping the reservation frees the ports at
    /// once. An empty list is fine.
    ///
    /// # Errors
    /// Nothing stays taken after any of them.
    /// * [`InvalidArgument`](ErrorKind::InvalidArgument): container port 0, one host port wanted twice, or an
    ///   address that is not this host's
    /// * [`PortInUse`](ErrorKind::PortInUse): another program listens there; the text names it where `/proc` does
    /// * [`PermissionDenied`](ErrorKind::PermissionDenied): a port below `net.ipv4.ip_unprivileged_port_start`
    /// * [`Unsupported`](ErrorKind::Unsupported): IPv6 is switched off
    pub fn reserve(&self, mappings: &[PortMapping]) -> Result<Reservation> {
        check(mappings)?;
        let mut sockets = Vec::with_capacity(mappings.len());
        for mapping in mappings {
            let listener = socket::listen(mapping.host()).map_err(|error| explain(error, mapping))?;
            let host = socket::local_address(&listener)?;
            sockets.push(Held { port: PublishedPort::new(mapping, host), mapping: mapping.clone(), socket: listener, way: Way::Open });
        }
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
        let held = Held { port: PublishedPort::new(&mapping, host), mapping, socket, way: Way::Adopted };
        Ok(Reservation { sockets: vec![held] })
    }
}

/// Says in the words of ports why a socket could not be had.
fn explain(error: Error, mapping: &PortMapping) -> Error {
    let (address, port) = (mapping.host().ip(), mapping.host().port());
    let (kind, why) = match error.errno() {
        Some(number::EADDRINUSE) if port == 0 => (ErrorKind::PortInUse, format!("no free port is left on {address}")),
        Some(number::EADDRINUSE) => {
            let holder = holder::find(mapping.host());
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

/// A port that is taken.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) port: PublishedPort,
    pub(super) mapping: PortMapping,
    /// Bound and listening.
    pub(super) socket: OwnedFd,
    pub(super) way: Way,
}

/// What a socket that is taken is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// Whatever its mapping wants.
    Open,
    /// The container has it as well.
    Handed,
    /// Others have it as well, who did not ask for it to be changed.
    Adopted,
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

    /// Locks the sockets of [`PortMode::HandOver`](super::PortMode::HandOver), which a container is given. Their order is
    /// that of their names in `LISTEN_FDNAMES`.
    pub(crate) fn hand_over(&mut self) -> Result<Vec<BorrowedFd<'_>>> {
        let mut handed = Vec::new();
        for held in self.sockets.iter_mut().filter(|held| held.mapping.wanted_mode() == PortMode::HandOver) {
            let mapping = &held.mapping;
            if !may_inject(mapping) {
                let message = format!("publish {mapping}: hand over: {NO_LOCK}");
                return Err(Error::new(ErrorKind::PermissionDenied, message));
            }
            if !mapping.is_unlocked() {
                hostport::lock(&held.socket, held.port.host().port())?;
            }
            // A program that knows of it is told by `accept` whether to wait, as from every service manager.
            socket::set_blocking(&held.socket)?;
            held.way = Way::Handed;
            handed.push(held.socket.as_fd());
        }
        Ok(handed)
    }

    /// Hands the listening sockets out, for a program that takes connections itself. They are non-blocking and closed
    /// on exec.
    pub fn into_sockets(self) -> Vec<(PublishedPort, OwnedFd)> {
        self.sockets.into_iter().map(|held| (held.port, held.socket)).collect()
    }

    /// Passes every connection on to the container port in `namespace`: to 127.0.0.1 there, or else to `[::1]`.
    ///
    /// One thread named `gpuc-relay` serves all published ports of the process. It starts with the first of them, ends
    /// with the last, and takes no signals. A program in the container sees the connections come from its own
    /// loopback address. It need not be listening yet; until it does, clients see their connections reset.
    ///
    /// A connection takes two descriptors of this process, and two to four more while it moves much at once. When they
    /// run out, new clients wait in the kernel's queue.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the thread cannot be started. The ports are free again then.
    pub fn relay(self, namespace: NetworkNamespace) -> Result<Published> {
        Published::start(self.sockets, namespace, None)
    }

    /// The same, and ports that may be [injected](super::PortMode::Inject) are as soon as the container binds them: `binds`
    /// hears of that, or it is said why nobody does.
    pub(crate) fn publish(self, namespace: NetworkNamespace, binds: Result<&Binds, &str>) -> Result<Published> {
        Published::start(self.sockets, namespace, Some(binds))
    }
}
