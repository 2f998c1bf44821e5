//! Finding the partner of a client: a server behind one of the container's two loopback addresses.

use super::pool::Pool;
use crate::error::{Error, Result};
use crate::net::namespace::{NetworkNamespace, is_not_there};
use crate::net::port::PublishedPort;
use crate::sys::netns::{Family, Transport};
use crate::sys::socket;
use crate::sys::transparent;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Instant;

/// Sockets for the ports of one container.
#[derive(Debug)]
pub(super) struct Inside {
    namespace: NetworkNamespace,
    v4: Pool,
    v6: Pool,
    datagrams_v4: Pool,
    datagrams_v6: Pool,
}

impl Inside {
    pub(super) fn new(namespace: NetworkNamespace) -> Self {
        Self {
            namespace,
            v4: Pool::new(Family::V4, Transport::Stream),
            v6: Pool::new(Family::V6, Transport::Stream),
            datagrams_v4: Pool::new(Family::V4, Transport::Datagram),
            datagrams_v6: Pool::new(Family::V6, Transport::Datagram),
        }
    }

    /// A fresh socket inside, for datagrams.
    pub(super) fn datagram_socket(&mut self, family: Family) -> Result<OwnedFd> {
        match family {
            Family::V4 => self.datagrams_v4.take(&self.namespace),
            Family::V6 => self.datagrams_v6.take(&self.namespace),
        }
    }

    /// A fresh socket inside.
    pub(super) fn socket(&mut self, family: Family) -> Result<OwnedFd> {
        match family {
            Family::V4 => self.v4.take(&self.namespace),
            Family::V6 => self.v6.take(&self.namespace),
        }
    }

    /// Takes a socket back that was not needed after all.
    pub(super) fn put_back(&mut self, family: Family, socket: OwnedFd) {
        match family {
            Family::V4 => self.v4.put_back(socket),
            Family::V6 => self.v6.put_back(socket),
        }
    }

    /// A fresh socket inside that speaks from the client's own address, and its family.
    pub(super) fn socket_of(&mut self, client: &OwnedFd) -> Result<(OwnedFd, Family)> {
        let address = socket::peer_address(client)?;
        // A socket of both families calls its clients of IPv4 `::ffff:A.B.C.D`.
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let family = family_of(address);
        let socket = self.socket(family)?;
        let failed = |call: &str, errno| socket::error(format!("{call} to speak for {address}"), errno);
        transparent::speak_for_others(&socket, address.is_ipv6()).map_err(|errno| failed("setsockopt()", errno))?;
        let own = socket::bind_any(&socket, address);
        // Its port may be in use inside; its address is what counts.
        let bound = own.or_else(|_| socket::bind_any(&socket, SocketAddr::new(address.ip(), 0)));
        bound.map_err(|errno| failed("bind()", errno))?;
        Ok((socket, family))
    }

    /// Gives up spare sockets, because descriptors have run out; whether that freed any.
    pub(super) fn shrink(&mut self) -> bool {
        let freed = self.pools().map(Pool::shrink);
        freed.contains(&true)
    }

    /// Closes the sockets that nobody needed for a while; says when to come again.
    pub(super) fn trim(&mut self, now: Instant) -> Option<Instant> {
        self.pools().into_iter().filter_map(|pool| pool.trim(now)).min()
    }

    fn pools(&mut self) -> [&mut Pool; 4] {
        [&mut self.v4, &mut self.v6, &mut self.datagrams_v4, &mut self.datagrams_v6]
    }

    /// Begins or goes on to connect; `None` is on its way, else the connection is there and so much of `words` is said.
    /// There may be some only at the beginning. When nobody is at the first address, `server` is exchanged for a socket on
    /// its way to the other one.
    pub(super) fn connect(
        &mut self,
        attempt: &mut Attempt,
        server: &mut OwnedFd,
        words: &[u8],
    ) -> Result<Option<usize>> {
        loop {
            let result = if words.is_empty() {
                socket::connect(&*server, attempt.address()).map(|done| done.then_some(0))
            } else {
                socket::connect_saying(&*server, attempt.address(), words)
            };
            match result {
                Ok(said) => return Ok(said),
                Err(errno) if attempt.has_other() && is_not_there(Some(errno)) => {
                    let Ok(another) = self.socket(other(attempt.family)) else { return Err(attempt.failed(errno)) };
                    *server = another;
                    attempt.family = other(attempt.family);
                    attempt.before = Some(errno);
                }
                Err(errno) => return Err(attempt.failed(errno)),
            }
        }
    }
}

/// How far the search for a partner has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    port: PublishedPort,
    pub(super) family: Family,
    /// The error number of the other address, when it was tried before this one.
    before: Option<i32>,
    /// The one address there is, on the host.
    on_host: Option<SocketAddr>,
    /// Another family would show the server another client.
    one_family: bool,
}

impl Attempt {
    /// Begins with the loopback address of `family`.
    pub(super) fn new(port: PublishedPort, family: Family) -> Self {
        Self { port, family, before: None, on_host: None, one_family: false }
    }

    /// Leads to the loopback address of `family` alone.
    pub(super) fn only(port: PublishedPort, family: Family) -> Self {
        Self { one_family: true, ..Self::new(port, family) }
    }

    /// Leads to the host's side of the port.
    pub(super) fn on_host(port: PublishedPort, address: SocketAddr) -> Self {
        Self { on_host: Some(address), ..Self::new(port, family_of(address)) }
    }

    fn address(&self) -> SocketAddr {
        if let Some(address) = self.on_host {
            return address;
        }
        let loopback = match self.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        SocketAddr::new(loopback, self.port.container_port())
    }

    /// Whether another address is left to try.
    fn has_other(&self) -> bool {
        self.before.is_none() && self.on_host.is_none() && !self.one_family
    }

    /// When nobody is at either address, the first answer is the one to report.
    fn failed(mut self, mut errno: i32) -> Error {
        if let Some(before) = self.before.filter(|_| is_not_there(Some(errno))) {
            (self.family, errno) = (other(self.family), before);
        }
        let place = if self.on_host.is_some() { "on the host" } else { "in the container" };
        socket::error(format!("connect({}) {place}", self.address()), errno)
    }
}

/// The other family.
pub(super) fn other(family: Family) -> Family {
    match family {
        Family::V4 => Family::V6,
        Family::V6 => Family::V4,
    }
}

/// Which kind of socket connects to an address.
pub(super) fn family_of(address: SocketAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}
