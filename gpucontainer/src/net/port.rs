//! What became of a wish for a port.

use super::mapping::{PortMapping, Protocol, write_ports};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A port of a container and where on the host it is, or as many consecutive ones.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PublishedPort {
    container_port: u16,
    host: SocketAddr,
    also: Option<IpAddr>,
    count: u16,
    protocol: Protocol,
}

impl PublishedPort {
    /// `host` has the first port; `also` is a second address with the same ports.
    pub(super) fn new(mapping: &PortMapping, host: SocketAddr, also: Option<IpAddr>) -> Self {
        let (container_port, count, protocol) = (mapping.container_port(), mapping.count(), mapping.protocol());
        Self { container_port, host, also, count, protocol }
    }

    /// One port on one address out of those of a mapping, `offset` after the first.
    pub(super) fn single(mapping: &PortMapping, offset: u16, host: SocketAddr) -> Self {
        let container_port = mapping.container_port().saturating_add(offset);
        Self { container_port, host, also: None, count: 1, protocol: mapping.protocol() }
    }

    /// The same for a service of the host inside.
    pub(super) fn service(inside: u16, host: SocketAddr, protocol: Protocol) -> Self {
        Self { container_port: inside, host, also: None, count: 1, protocol }
    }

    /// The port inside the container, the first one of a range.
    pub fn container_port(&self) -> u16 {
        self.container_port
    }

    /// The address and the real port of the host, never 0; the first port of a range. Where it is on both loopback
    /// addresses, 127.0.0.1; where on all interfaces, `::`, or `0.0.0.0` on a host without IPv6.
    pub fn host(&self) -> SocketAddr {
        self.host
    }

    /// Every address of the host that it is on, with the first port: one or two. `[::]` stands for all interfaces.
    pub fn hosts(&self) -> Vec<SocketAddr> {
        let also = self.also.map(|address| SocketAddr::new(address, self.host.port()));
        [self.host].into_iter().chain(also).collect()
    }

    /// How many consecutive ports it is.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// The transport protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }
}

/// As people write it: `127.0.0.1:8080 -> 80/tcp`, or for a range `127.0.0.1:8000-8009 -> 80-89/tcp`.
impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_ports(f, self.host, self.container_port, self.count, self.protocol)
    }
}
