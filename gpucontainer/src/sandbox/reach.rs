//! How a running sandbox and the host reach each other: ports, services of the host, addresses, connections.

use super::network::Joined;
use super::{Sandbox, publishing};
use crate::error::{Context, Result};
use crate::net::{
    HostService, NetworkNamespace, PortMapping, PortStatus, Protocol, PublishedPort, Reservation, ServiceStatus,
};
use crate::sys::process;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

impl Sandbox {
    /// The published ports.
    pub fn ports(&self) -> Vec<PublishedPort> {
        self.ports.list()
    }

    /// The published ports with their counters.
    pub fn port_status(&self) -> Vec<PortStatus> {
        self.ports.status()
    }

    /// Publishes more ports while it runs, all or none; the ports with their real numbers, in the order of `mappings`.
    ///
    /// # Errors
    /// Those of [`PortMapper::reserve`](crate::net::PortMapper::reserve);
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if its network is the host's; a network that is gone with the
    /// application.
    pub fn publish(&self, mappings: &[PortMapping]) -> Result<Vec<PublishedPort>> {
        let published = self.network_namespace().and_then(|network| self.ports.add(mappings, network));
        published.with_context(publishing(&self.name))
    }

    /// Publishes what was reserved before, such as sockets that were [adopted](crate::net::PortMapper::adopt).
    ///
    /// # Errors
    /// As for [`publish`](Self::publish), but for what reserving met.
    pub fn publish_reserved(&self, reservation: Reservation) -> Result<Vec<PublishedPort>> {
        let published = self.network_namespace().and_then(|network| self.ports.add_reserved(reservation, network));
        published.with_context(publishing(&self.name))
    }

    /// Closes what is published on an address and port of the host, TCP and UDP, with its connections: `host` is one of
    /// [`PublishedPort::hosts`], which are closed together, as all ports of a range are. When this returns, the host's
    /// ports are free, but for one of UDP whose socket the container has: that hears nothing any more, and its port is free
    /// when the container has closed it.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if no port of it is published there. Rules of the kernel that it does not
    /// take out, as where the process has given its privileges up since: the port is as before then.
    pub fn unpublish(&self, host: SocketAddr) -> Result<()> {
        self.ports.remove(host).with_context(|| format!("close a port of sandbox {}", self.name))
    }

    /// Makes services of the host reachable inside while it runs, all or none; the services with their real ports, in the
    /// order of `services`.
    ///
    /// # Errors
    /// Those of [`ExposedServices::new`](crate::net::ExposedServices::new);
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) if its network is the host's; a network that is gone with the
    /// application.
    pub fn expose_host(&self, services: &[HostService]) -> Result<Vec<HostService>> {
        let exposed = self.network_namespace().and_then(|network| self.services.add(services, &network));
        exposed.with_context(|| format!("expose services of the host to sandbox {}", self.name))
    }

    /// The services of the host that can be reached inside, with their counters.
    pub fn host_services(&self) -> Vec<ServiceStatus> {
        self.services.status()
    }

    /// Closes a service of the host inside and its connections; `port` is [`HostService::port`].
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if no service of the host is there.
    pub fn withdraw_host(&self, port: u16, protocol: Protocol) -> Result<()> {
        self.services.remove(port, protocol).with_context(|| format!("close a service of sandbox {}", self.name))
    }

    /// Its network namespace, for another sandbox to join ([`Network::Join`](super::Network::Join)) or to dial into.
    ///
    /// # Errors
    /// No descriptor is left (`EMFILE`).
    pub fn network_namespace(&self) -> Result<NetworkNamespace> {
        Ok(NetworkNamespace::of_process(process::duplicate(self.handle.application())?))
    }

    /// Its addresses in its private network: IPv4 first, then IPv6 if it has one. None in any other network.
    pub fn addresses(&self) -> &[IpAddr] {
        match &self.joined {
            Joined::Member(member) => member.addresses(),
            Joined::Nothing | Joined::Outbound(_) | Joined::Namespace(_) => &[],
        }
    }

    /// Connects to a TCP port inside, published or not.
    ///
    /// # Errors
    /// [`TimedOut`](crate::ErrorKind::TimedOut) after `timeout`; `ECONNREFUSED` if nobody listens there.
    pub fn dial(&self, port: u16, timeout: Option<Duration>) -> Result<TcpStream> {
        let dialled = self.network_namespace().and_then(|network| network.dial(port, timeout));
        dialled.with_context(|| format!("dial port {port} of sandbox {}", self.name))
    }
}
