//! Services of the host that programs in a network namespace can reach.

use super::mapping::Protocol;
use super::mode::{PortMode, SourceAddress};
use super::namespace::NetworkNamespace;
use super::port::PublishedPort;
use super::relay::{Counters, Link, Offer, Partner, Relay};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::datagram;
use crate::sys::netns::{Family, Transport};
use crate::sys::socket::{self, number};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// After how long without a datagram either way a program of UDP is forgotten by default.
const UDP_IDLE: Duration = Duration::from_secs(90);
/// So often a port inside is looked for that is free on both loopback addresses.
const ATTEMPTS: usize = 16;

/// A wish: a service that the host can reach, on a port of the container's own loopback addresses, or of another one of
/// its addresses.
///
/// The container needs no network for that: it reaches this one service and nothing else.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct HostService {
    port: u16,
    host: SocketAddr,
    protocol: Protocol,
    address: Option<IpAddr>,
    idle_timeout: Option<Duration>,
}

impl HostService {
    /// Wants the TCP service on `host` to be found inside on `port` of 127.0.0.1 and, where there is IPv6, `::1`.
    ///
    /// `port` 0 takes any free one. `host` is an address and port as a program of the host would connect to it.
    pub fn tcp(port: u16, host: SocketAddr) -> Self {
        Self { port, host, protocol: Protocol::Tcp, address: None, idle_timeout: None }
    }

    /// The same for UDP.
    pub fn udp(port: u16, host: SocketAddr) -> Self {
        Self { port, host, protocol: Protocol::Udp, address: None, idle_timeout: Some(UDP_IDLE) }
    }

    /// Has it found inside on this address and no other: one of the container's, or `0.0.0.0` or `::` for all of its family.
    ///
    /// On an address that others can reach, such as that in a private network, they reach the service too.
    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// Ends what nothing has passed through for so long: a connection is reset, a program of UDP forgotten. Longer than
    /// 0.
    ///
    /// No time for TCP by default, 90 seconds for UDP.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }

    /// The port inside.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address inside; `None` is the loopback addresses.
    pub fn inside(&self) -> Option<IpAddr> {
        self.address
    }

    /// The address and port of the service.
    pub fn host(&self) -> SocketAddr {
        self.host
    }

    /// The transport protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    fn check(&self) -> Result<()> {
        let wrong = |why: &str| Err(Error::new(ErrorKind::InvalidArgument, format!("expose {self}: {why}")));
        if self.host.port() == 0 {
            return wrong("a service's port is 1 to 65535, 0 names none");
        }
        if self.host.ip().is_unspecified() || self.host.ip().is_multicast() {
            return wrong("that is not the address of one service");
        }
        if self.address.is_some_and(|address| address.is_multicast()) {
            return wrong("a multicast address is nobody's own");
        }
        if self.idle_timeout.is_some_and(|timeout| timeout.is_zero()) {
            return wrong("an idle timeout of 0 ends everything at once");
        }
        Ok(())
    }
}

/// As people write it: `5432/tcp inside -> 127.0.0.1:5432`.
impl fmt::Display for HostService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{}", SocketAddr::new(address, self.port))?,
            None => write!(f, "{}", self.port)?,
        }
        write!(f, "/{} inside -> {}", self.protocol, self.host)
    }
}

/// Services of the host in one network namespace. Dropping it closes them and every connection through them, before drop
/// returns.
///
/// In a process forked from the one that exposed them, it does nothing.
#[derive(Debug)]
pub struct ExposedServices {
    services: Vec<(HostService, Arc<Counters>)>,
    link: Option<Link>,
}

impl ExposedServices {
    /// Makes services of the host reachable inside, all or none. The thread `gpuc-relay` passes everything on, as it does
    /// for [published ports](super::Reservation::relay).
    ///
    /// A client inside is the host's own process to the service: it comes from an address of the host.
    ///
    /// # Errors
    /// * [`InvalidArgument`](ErrorKind::InvalidArgument): a service without a port or address of its own; an
    ///   [address](HostService::address) inside that the container does not have
    /// * [`PortInUse`](ErrorKind::PortInUse): a program inside has the port
    /// * the namespace cannot be entered, or the thread cannot be started
    pub fn new(services: &[HostService], namespace: NetworkNamespace) -> Result<Self> {
        services.iter().try_for_each(HostService::check)?;
        let (mut exposed, mut offers) = (Vec::with_capacity(services.len()), Vec::new());
        for service in services {
            let counters = Arc::new(Counters::new(PortMode::Relay, "asked for".to_owned()));
            let sockets = listen_inside(service, &namespace)?;
            let port = sockets.first().map_or(service.port, |(address, _)| address.port());
            let service = HostService { port, ..*service };
            offers.extend(sockets.into_iter().map(|(_, socket)| Offer {
                unlocked: false,
                port: PublishedPort::service(service.port, service.host, service.protocol),
                socket,
                counters: Arc::clone(&counters),
                listens: true,
                inject: None,
                to: Partner::Host(service.host),
                idle: service.idle_timeout,
                source: SourceAddress::Loopback,
            }));
            exposed.push((service, counters));
        }
        let link = match offers.is_empty() {
            true => None,
            false => Some(Relay::of_this_process()?.publish(offers, namespace, None)?),
        };
        Ok(Self { services: exposed, link })
    }

    /// The services with their real ports inside, in the order in which they were asked for.
    pub fn services(&self) -> Vec<HostService> {
        self.services.iter().map(|(service, _)| *service).collect()
    }

    /// What went through each service so far, in the order of [`ExposedServices::services`].
    pub fn status(&self) -> Vec<ServiceStatus> {
        let status = |(service, counters): &(HostService, Arc<Counters>)| {
            let counts = counters.status(PublishedPort::service(service.port, service.host, service.protocol));
            ServiceStatus {
                service: *service,
                accepted: counts.accepted,
                open: counts.open,
                refused: counts.refused,
                bytes_in: counts.bytes_in,
                bytes_out: counts.bytes_out,
                last_error: counts.last_error,
            }
        };
        self.services.iter().map(status).collect()
    }

    /// Closes the services and every connection through them, like dropping.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for ExposedServices {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            link.close();
        }
    }
}

/// What went through one service of the host.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServiceStatus {
    /// The service.
    pub service: HostService,
    /// Connections taken from programs inside; for UDP, programs that were not known or were forgotten.
    pub accepted: u64,
    /// Connections that exist now; for UDP, programs that are known.
    pub open: u64,
    /// Connections reset because nothing on the host took them; for UDP, datagrams.
    pub refused: u64,
    /// Bytes that went to the host.
    pub bytes_in: u64,
    /// Bytes that came from the host.
    pub bytes_out: u64,
    /// Why the last connection that was reset was, or why none can be taken at the moment.
    pub last_error: Option<String>,
}

/// Binds inside, by default on 127.0.0.1 and where there is IPv6 on `::1`.
///
/// A socket belongs to the network namespace that it was made in, so it can be bound from here; and who is privileged over
/// the namespace may bind ports below 1024 there.
fn listen_inside(service: &HostService, namespace: &NetworkNamespace) -> Result<Vec<(SocketAddr, OwnedFd)>> {
    let mut attempts = if service.port == 0 { ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        match listen_once(service, namespace) {
            Ok(sockets) => return Ok(sockets),
            Err(error) if error.errno() == Some(number::EADDRINUSE) && attempts > 0 => {}
            Err(error) if error.errno() == Some(number::EADDRINUSE) => {
                let error = error.with_kind(ErrorKind::PortInUse);
                return Err(error.context(format!("expose {service}: the port is taken inside")));
            }
            Err(error) if error.errno() == Some(number::EADDRNOTAVAIL) => {
                let error = error.with_kind(ErrorKind::InvalidArgument);
                return Err(error.context(format!("expose {service}: that is no address of the container")));
            }
            Err(error) => return Err(error.context(format!("expose {service}"))),
        }
    }
}

fn listen_once(service: &HostService, namespace: &NetworkNamespace) -> Result<Vec<(SocketAddr, OwnedFd)>> {
    let (transport, stream) = match service.protocol {
        Protocol::Tcp => (Transport::Stream, true),
        Protocol::Udp => (Transport::Datagram, false),
    };
    let open = |ip: IpAddr, port| {
        let family = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
        let socket = namespace.open_sockets(family, transport, 1)?.pop();
        let socket = socket.ok_or_else(|| socket::error("socket()", number::EMFILE))?;
        if stream {
            socket::set_no_delay(&socket);
        }
        socket::bind(&socket, SocketAddr::new(ip, port))?;
        let address = socket::local_address(&socket)?;
        if stream {
            socket::start_listening(&socket).map_err(|errno| socket::error(format!("listen({address})"), errno))?;
        } else if ip.is_unspecified() {
            datagram::tell_destination(&socket, ip.is_ipv6())?;
        }
        Ok::<_, Error>((address, socket))
    };
    if let Some(address) = service.address {
        return Ok(vec![open(address, service.port)?]);
    }
    let v4 = open(Ipv4Addr::LOCALHOST.into(), service.port)?;
    match open(Ipv6Addr::LOCALHOST.into(), v4.0.port()) {
        Ok(v6) => Ok(vec![v4, v6]),
        Err(error) if matches!(error.errno(), Some(number::EAFNOSUPPORT | number::EADDRNOTAVAIL)) => Ok(vec![v4]),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_service_is_refused() {
        let good = HostService::tcp(80, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(good.to_string(), "80/tcp inside -> 127.0.0.1:8080");
        assert!(good.check().is_ok());
        let cases = [
            (HostService::tcp(80, "127.0.0.1:0".parse().unwrap()), "0 names none"),
            (HostService::udp(80, "0.0.0.0:53".parse().unwrap()), "not the address of one service"),
            (HostService::udp(80, "[ff02::1]:53".parse().unwrap()), "not the address of one service"),
            (good.address("224.0.0.1".parse().unwrap()), "224.0.0.1:80/tcp inside -> 127.0.0.1:8080: a multicast"),
            (good.idle_timeout(Duration::ZERO), "idle timeout of 0"),
        ];
        for (service, message) in cases {
            let error = service.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().contains(message), "{error}");
        }
    }
}
