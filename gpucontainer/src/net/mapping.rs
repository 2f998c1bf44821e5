//! Which port of a container is to be seen where on the host.

use super::mode::PortMode;
use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Protocol {
    /// Streams. The default.
    #[default]
    Tcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
        })
    }
}

/// A wish: a port of the container on a port of the host.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PortMapping {
    container_port: u16,
    host: SocketAddr,
    protocol: Protocol,
    mode: PortMode,
    name: Option<String>,
    unlocked: bool,
}

impl PortMapping {
    /// Wants TCP port `container_port` of the container on port `host_port` of the host's address 127.0.0.1.
    ///
    /// `host_port` 0 takes any free one, known as soon as it is reserved. `container_port` is 1 to 65,535.
    pub fn tcp(container_port: u16, host_port: u16) -> Self {
        let host = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), host_port);
        Self { container_port, host, protocol: Protocol::Tcp, mode: PortMode::Auto, name: None, unlocked: false }
    }

    /// Uses another address of the host, IPv4 or IPv6. 127.0.0.1 by default: only programs on this host can connect.
    ///
    /// `0.0.0.0` is every IPv4 address of the host and `::` every IPv6 address, each without the other.
    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        self.host.set_ip(address);
        self
    }

    /// Chooses how clients reach the program. [`PortMode::Auto`] by default.
    #[must_use]
    pub fn mode(mut self, mode: PortMode) -> Self {
        self.mode = mode;
        self
    }

    /// Names the port in `LISTEN_FDNAMES`, for [`PortMode::HandOver`]. The protocol and the port by default, as in `tcp-80`.
    ///
    /// 1 to 255 printable ASCII characters without `:`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Trusts the container with sockets of the host that are not locked to the port. False by default.
    ///
    /// A socket that is handed over or injected is locked: nothing but clients of its port reaches it, so that it leads to
    /// no service on the host's loopback address. Newer kernels, 6.18.44 among them, let only root (`CAP_NET_ADMIN`) lock
    /// sockets; an ordinary user's ports are relayed there, unless this is set. With it a hostile program inside can connect to what this
    /// user's programs can, from that port.
    #[must_use]
    pub fn unlocked(mut self, unlocked: bool) -> Self {
        self.unlocked = unlocked;
        self
    }

    /// Whether a socket for it need not be locked.
    pub fn is_unlocked(&self) -> bool {
        self.unlocked
    }

    /// How clients are to reach the program.
    pub fn wanted_mode(&self) -> PortMode {
        self.mode
    }

    /// The name in `LISTEN_FDNAMES`.
    pub(crate) fn listen_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("{}-{}", self.protocol, self.container_port))
    }

    /// The port inside the container.
    pub fn container_port(&self) -> u16 {
        self.container_port
    }

    /// The address and port of the host; port 0 means any free one.
    pub fn host(&self) -> SocketAddr {
        self.host
    }

    /// The transport protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether both want the same port of the same address.
    fn collides(&self, other: &Self) -> bool {
        let same_port = self.host.port() == other.host.port() && self.host.port() != 0;
        same_port && self.protocol == other.protocol && overlap(self.host.ip(), other.host.ip())
    }
}

/// As people write it: `127.0.0.1:8080 -> 80/tcp`.
impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}/{}", self.host, self.container_port, self.protocol)
    }
}

/// Whether a socket on one address keeps another off the other.
pub(super) fn overlap(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv4() == other.is_ipv4() && (one == other || one.is_unspecified() || other.is_unspecified())
}

/// Refuses what can be seen to be wrong before any socket exists.
pub(super) fn check(mappings: &[PortMapping]) -> Result<()> {
    for (index, mapping) in mappings.iter().enumerate() {
        if mapping.container_port == 0 {
            let message = format!("publish {mapping}: a container's port is 1 to 65535, 0 names none");
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        if mapping.host.ip().is_multicast() {
            let message = format!("publish {mapping}: {} is a multicast address", mapping.host.ip());
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        if let Some(name) = mapping.name.as_deref().filter(|name| !is_name(name)) {
            let message = format!("publish {mapping}: name {name:?} is not 1 to 255 printable ASCII characters without ':'");
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        if let Some(earlier) = mappings.iter().take(index).find(|earlier| earlier.collides(mapping)) {
            let message = format!("publish {mapping}: port {} is wanted twice, also by {earlier}", mapping.host.port());
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
    }
    Ok(())
}

/// As `sd_listen_fds_with_names(3)` has them.
fn is_name(name: &str) -> bool {
    (1..=255).contains(&name.len()) && name.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b':')
}

/// A port of a container and where on the host it is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct PublishedPort {
    container_port: u16,
    host: SocketAddr,
    protocol: Protocol,
}

impl PublishedPort {
    pub(super) fn new(mapping: &PortMapping, host: SocketAddr) -> Self {
        Self { container_port: mapping.container_port, host, protocol: mapping.protocol }
    }

    /// The port inside the container.
    pub fn container_port(&self) -> u16 {
        self.container_port
    }

    /// The address and the real port of the host, never 0.
    pub fn host(&self) -> SocketAddr {
        self.host
    }

    /// The transport protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }
}

/// As people write it: `127.0.0.1:8080 -> 80/tcp`.
impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}/{}", self.host, self.container_port, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(address: &str, host_port: u16) -> PortMapping {
        PortMapping::tcp(80, host_port).address(address.parse().unwrap())
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let cases: [(&[PortMapping], Option<&str>); 11] = [
            (&[], None),
            (&[PortMapping::tcp(80, 0), PortMapping::tcp(80, 0)], None),
            (&[on("127.0.0.1", 80), on("127.0.0.2", 80)], None),
            (&[on("0.0.0.0", 80), on("::", 80)], None),
            (&[PortMapping::tcp(0, 80)], Some("0 names none")),
            (&[PortMapping::tcp(80, 90), PortMapping::tcp(81, 90)], Some("port 90 is wanted twice")),
            (&[on("0.0.0.0", 90), on("127.0.0.1", 90)], Some("port 90 is wanted twice")),
            (&[on("::1", 90), on("::", 90)], Some("port 90 is wanted twice")),
            (&[on("224.0.0.1", 90)], Some("multicast")),
            (&[PortMapping::tcp(80, 0).name("a:b")], Some("without ':'")),
            (&[PortMapping::tcp(80, 0).name("")], Some("1 to 255")),
        ];
        for (mappings, message) in cases {
            match (check(mappings), message) {
                (Ok(()), None) => {}
                (Err(error), Some(message)) => {
                    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
                    assert!(error.to_string().contains(message), "{error}");
                }
                (result, _) => panic!("{mappings:?}: {result:?}"),
            }
        }
    }
}
