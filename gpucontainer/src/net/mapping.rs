//! Which port of a container is to be seen where on the host.

use super::mode::{PortMode, SourceAddress};
use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// The transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Protocol {
    /// Streams. The default.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Which addresses of the host.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Place {
    /// 127.0.0.1, and `::1` where there is IPv6.
    Loopback,
    One(IpAddr),
    /// Every address of both families.
    All,
}

impl Place {
    /// Whether a socket on one keeps another off the other.
    fn overlaps(self, other: Self) -> bool {
        let first = |place| match place {
            Self::Loopback => [Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), Some(IpAddr::V6(Ipv6Addr::LOCALHOST))],
            Self::One(address) => [Some(address), None],
            Self::All => [Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED))],
        };
        let others = first(other);
        first(self).into_iter().flatten().any(|one| others.into_iter().flatten().any(|other| overlap(one, other)))
    }
}

/// A wish: a port of the container on a port of the host, or as many consecutive ones on as many.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PortMapping {
    container_port: u16,
    host_port: u16,
    count: u16,
    place: Place,
    protocol: Protocol,
    mode: PortMode,
    source: SourceAddress,
    idle_timeout: Option<Duration>,
    name: Option<String>,
    unlocked: bool,
}

impl PortMapping {
    /// Wants TCP port `container_port` of the container on port `host_port` of the host's own loopback addresses:
    /// 127.0.0.1 and, where the host has IPv6, `::1`.
    ///
    /// `host_port` 0 takes any one that is free on both, known as soon as it is reserved. `container_port` is 1 to
    /// 65,535.
    pub fn tcp(container_port: u16, host_port: u16) -> Self {
        Self::tcp_range(container_port, host_port, 1)
    }

    /// The same for UDP.
    pub fn udp(container_port: u16, host_port: u16) -> Self {
        Self::udp_range(container_port, host_port, 1)
    }

    /// Wants `count` consecutive TCP ports of the container from `container_first` on, on as many of the host from
    /// `host_first` on: one object with one status, however many they are. `count` is 1 to 65,535.
    ///
    /// `host_first` 0 takes any free consecutive ones. Each port takes a descriptor of this process for each address of
    /// the host, two by default.
    pub fn tcp_range(container_first: u16, host_first: u16, count: u16) -> Self {
        Self {
            container_port: container_first,
            host_port: host_first,
            count,
            place: Place::Loopback,
            protocol: Protocol::Tcp,
            mode: PortMode::Auto,
            source: SourceAddress::Loopback,
            idle_timeout: None,
            name: None,
            unlocked: false,
        }
    }

    /// The same for UDP.
    pub fn udp_range(container_first: u16, host_first: u16, count: u16) -> Self {
        Self { protocol: Protocol::Udp, ..Self::tcp_range(container_first, host_first, count) }
    }

    /// Uses one other address of the host, IPv4 or IPv6. Only programs on this host can connect to the default.
    ///
    /// `0.0.0.0` is every IPv4 address of the host and `::` every IPv6 address, each without the other.
    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        self.place = Place::One(address);
        self
    }

    /// Uses every address of the host, IPv4 and IPv6: whoever reaches the host can connect, as far as its firewall lets
    /// them.
    #[must_use]
    pub fn all_interfaces(mut self) -> Self {
        self.place = Place::All;
        self
    }

    /// Chooses how clients reach the program. [`PortMode::Auto`] by default.
    #[must_use]
    pub fn mode(mut self, mode: PortMode) -> Self {
        self.mode = mode;
        self
    }

    /// Chooses how the program learns who its clients are. [`SourceAddress::Loopback`] by default.
    #[must_use]
    pub fn source(mut self, source: SourceAddress) -> Self {
        self.source = source;
        self
    }

    /// Ends what is relayed when nothing has passed for so long: a connection is reset, a client of UDP forgotten. Longer
    /// than 0.
    ///
    /// No time for TCP by default, [90 seconds](Self::UDP_IDLE) for UDP.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }

    /// After how long without a datagram either way a client of UDP is forgotten by default.
    pub const UDP_IDLE: Duration = Duration::from_secs(90);

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
    /// sockets; an ordinary user's ports are relayed there, unless this is set. With it a hostile program inside can
    /// connect to what this user's programs can, from that port. A socket of UDP cannot be locked by anybody: ports of UDP
    /// are handed over and injected with this alone.
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

    /// Whether its wishes leave room for a socket of the host in the container's hands.
    pub(crate) fn is_for_injection(&self) -> bool {
        match self.mode {
            PortMode::Inject => true,
            PortMode::Auto => self.protocol == Protocol::Tcp && self.source != SourceAddress::ProxyV2,
            _ => false,
        }
    }

    /// How the program is to learn who its clients are.
    pub fn wanted_source(&self) -> SourceAddress {
        self.source
    }

    /// How long what is relayed may be idle.
    pub(super) fn idle(&self) -> Option<Duration> {
        self.idle_timeout.or_else(|| (self.protocol == Protocol::Udp).then_some(Self::UDP_IDLE))
    }

    /// The name in `LISTEN_FDNAMES`.
    pub(crate) fn listen_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("{}-{}", self.protocol, self.container_port))
    }

    /// The port inside the container, the first one of a range.
    pub fn container_port(&self) -> u16 {
        self.container_port
    }

    /// How many consecutive ports.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// The address and port of the host, the first of a range; port 0 means any free one. The default place is 127.0.0.1
    /// here, and all interfaces are `::`.
    pub fn host(&self) -> SocketAddr {
        let address = match self.place {
            Place::Loopback => Ipv4Addr::LOCALHOST.into(),
            Place::One(address) => address,
            Place::All => Ipv6Addr::UNSPECIFIED.into(),
        };
        SocketAddr::new(address, self.host_port)
    }

    /// Which addresses of the host.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// The transport protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The first port that both want of the same address.
    fn collision(&self, other: &Self) -> Option<u16> {
        let apart = self.host_port == 0 || other.host_port == 0 || self.protocol != other.protocol;
        if apart || !self.place.overlaps(other.place) {
            return None;
        }
        let first = self.host_port.max(other.host_port);
        let end = |mapping: &Self| u32::from(mapping.host_port) + u32::from(mapping.count);
        (u32::from(first) < end(self).min(end(other))).then_some(first)
    }

    /// What is wrong with it by itself.
    fn fault(&self) -> Option<(ErrorKind, String)> {
        let fault = |why: &str| Some((ErrorKind::InvalidArgument, why.to_owned()));
        let too_far = |first: u16| u32::from(first) + u32::from(self.count) > 1 << 16;
        if self.container_port == 0 {
            return fault("a container's port is 1 to 65535, 0 names none");
        }
        if self.count == 0 {
            return fault("a range of 0 ports is none");
        }
        for (whose, first) in [("the container", self.container_port), ("the host", self.host_port)] {
            if too_far(first) {
                return fault(&format!("{} ports from {first} of {whose} on go beyond 65535", self.count));
            }
        }
        if self.host().ip().is_multicast() {
            return fault(&format!("{} is a multicast address", self.host().ip()));
        }
        if self.idle_timeout.is_some_and(|timeout| timeout.is_zero()) {
            return fault("an idle timeout of 0 ends everything at once");
        }
        if let Some(name) = self.name.as_deref().filter(|name| !is_name(name)) {
            return fault(&format!("name {name:?} is not 1 to 255 printable ASCII characters without ':'"));
        }
        let udp = self.protocol == Protocol::Udp;
        if self.source == SourceAddress::ProxyV2 && (udp || !matches!(self.mode, PortMode::Auto | PortMode::Relay)) {
            return fault("the PROXY protocol is for TCP that is relayed");
        }
        match (self.mode, self.source) {
            (mode, SourceAddress::Keep) if udp && mode != PortMode::Nat => {
                Some((ErrorKind::Unsupported, "clients' own addresses can be kept for TCP".to_owned()))
            }
            _ => None,
        }
    }
}

/// As people write it: `127.0.0.1:8080 -> 80/tcp`, or for a range `127.0.0.1:8000-8009 -> 80-89/tcp`.
impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_ports(f, self.host(), self.container_port, self.count, self.protocol)
    }
}

/// The words for ports of the host and what they lead to.
pub(super) fn write_ports(
    f: &mut fmt::Formatter<'_>,
    host: SocketAddr,
    container_port: u16,
    count: u16,
    protocol: Protocol,
) -> fmt::Result {
    let last = |first: u16| u32::from(first) + u32::from(count) - 1;
    match (count, host.port()) {
        (0 | 1, _) => write!(f, "{host} -> {container_port}/{protocol}"),
        (_, 0) => write!(f, "{host} -> {container_port}-{}/{protocol}", last(container_port)),
        (_, port) => write!(f, "{host}-{} -> {container_port}-{}/{protocol}", last(port), last(container_port)),
    }
}

/// Whether a socket on one address keeps another off the other.
pub(super) fn overlap(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv4() == other.is_ipv4() && (one == other || one.is_unspecified() || other.is_unspecified())
}

/// Refuses what can be seen to be wrong before any socket exists.
pub(super) fn check(mappings: &[PortMapping]) -> Result<()> {
    for (index, mapping) in mappings.iter().enumerate() {
        if let Some((kind, why)) = mapping.fault() {
            return Err(Error::new(kind, format!("publish {mapping}: {why}")));
        }
        let earlier = mappings.iter().take(index);
        let twice = earlier.filter_map(|earlier| Some((mapping.collision(earlier)?, earlier))).next();
        if let Some((port, earlier)) = twice {
            let message = format!("publish {mapping}: port {port} is wanted twice, also by {earlier}");
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
    }
    Ok(())
}

/// As `sd_listen_fds_with_names(3)` has them.
fn is_name(name: &str) -> bool {
    (1..=255).contains(&name.len()) && name.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(address: &str, host_port: u16) -> PortMapping {
        PortMapping::tcp(80, host_port).address(address.parse().unwrap())
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let range = PortMapping::tcp_range;
        let proxy = |mapping: PortMapping| mapping.source(SourceAddress::ProxyV2);
        let cases: Vec<(Vec<PortMapping>, Option<&str>)> = vec![
            (vec![], None),
            (vec![PortMapping::tcp(80, 0), PortMapping::tcp(80, 0)], None),
            (vec![on("127.0.0.1", 80), on("127.0.0.2", 80)], None),
            (vec![on("0.0.0.0", 80), on("::", 80)], None),
            (vec![PortMapping::tcp(80, 80), PortMapping::udp(80, 80)], None),
            (vec![range(1, 100, 10), range(11, 110, 10)], None),
            (vec![range(1, 1, 65535)], None),
            (vec![proxy(PortMapping::tcp(80, 0))], None),
            (vec![PortMapping::tcp(0, 80)], Some("0 names none")),
            (vec![PortMapping::tcp(80, 90), PortMapping::tcp(81, 90)], Some("port 90 is wanted twice")),
            (vec![PortMapping::udp(80, 90), PortMapping::udp(81, 90)], Some("port 90 is wanted twice")),
            (vec![on("0.0.0.0", 90), on("127.0.0.1", 90)], Some("port 90 is wanted twice")),
            (vec![on("::1", 90), on("::", 90)], Some("port 90 is wanted twice")),
            (vec![PortMapping::tcp(80, 90), on("::1", 90)], Some("port 90 is wanted twice")),
            (vec![on("192.0.2.1", 90), PortMapping::tcp(80, 90).all_interfaces()], Some("port 90 is wanted twice")),
            (vec![range(1, 100, 10), range(11, 109, 10)], Some("port 109 is wanted twice")),
            (vec![range(1, 100, 10), PortMapping::tcp(11, 105)], Some("port 105 is wanted twice")),
            (vec![range(1, 100, 0)], Some("range of 0 ports")),
            (vec![range(1, 65000, 1000)], Some("of the host on go beyond")),
            (vec![range(65535, 0, 2)], Some("of the container on go beyond")),
            (vec![on("224.0.0.1", 90)], Some("multicast")),
            (vec![PortMapping::tcp(80, 0).name("a:b")], Some("without ':'")),
            (vec![PortMapping::tcp(80, 0).name("")], Some("1 to 255")),
            (vec![PortMapping::tcp(80, 0).idle_timeout(Duration::ZERO)], Some("idle timeout of 0")),
            (vec![proxy(PortMapping::udp(80, 0))], Some("for TCP that is relayed")),
            (vec![proxy(PortMapping::tcp(80, 0)).mode(PortMode::Inject)], Some("for TCP that is relayed")),
        ];
        for (mappings, message) in cases {
            match (check(&mappings), message) {
                (Ok(()), None) => {}
                (Err(error), Some(message)) => {
                    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
                    assert!(error.to_string().contains(message), "{error}");
                }
                (result, _) => panic!("{mappings:?}: {result:?}"),
            }
        }
        let kept = PortMapping::udp(1, 2).source(SourceAddress::Keep);
        assert_eq!(check(std::slice::from_ref(&kept)).unwrap_err().kind(), ErrorKind::Unsupported);
        check(&[kept.mode(PortMode::Nat)]).unwrap();
    }

    #[test]
    fn mappings_read_as_people_write_them() {
        assert_eq!(PortMapping::udp(53, 5353).to_string(), "127.0.0.1:5353 -> 53/udp");
        assert_eq!(PortMapping::tcp_range(80, 8000, 10).to_string(), "127.0.0.1:8000-8009 -> 80-89/tcp");
        assert_eq!(PortMapping::tcp_range(80, 0, 10).all_interfaces().to_string(), "[::]:0 -> 80-89/tcp");
    }
}
