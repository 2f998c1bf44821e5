//! The addresses of a network: which ones it takes, and whose is which.

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// So many addresses as a bridge has ports: a /22 has 1,022, of which one is the gateway's.
const PREFIX: u8 = 22;
/// Where networks lie that nobody chose an address for, and how many /22 there are.
const RANGES: [(Ipv4Addr, u32); 2] = [(Ipv4Addr::new(10, 88, 0, 0), 512), (Ipv4Addr::new(172, 28, 0, 0), 256)];

/// An IPv4 network.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Subnet {
    network: u32,
    prefix: u8,
}

impl Subnet {
    /// The network that `address` is in.
    pub(super) fn new(address: Ipv4Addr, prefix: u8) -> Self {
        Self { network: u32::from(address) & mask(prefix), prefix }
    }

    /// Reads what `Display` writes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
        Some(Self::new(address.parse().ok()?, prefix))
    }

    /// Whether it can be a network's: room for a gateway and a member, and addresses that are used so.
    pub(super) fn check(self) -> Result<()> {
        let first = Ipv4Addr::from(self.network);
        let wrong = first.is_loopback() || first.is_multicast() || first.is_link_local() || first.is_broadcast();
        if self.prefix < 8 || self.prefix > 29 || wrong || first.octets()[0] == 0 {
            let message =
                format!("{self} cannot be a private network: a prefix of 8 to 29 bits of ordinary addresses can");
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        Ok(())
    }

    pub(super) fn prefix(self) -> u8 {
        self.prefix
    }

    /// The network's own address.
    pub(super) fn network(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network)
    }

    /// The address with this number: 1 is the gateway, members follow.
    pub(super) fn address(self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.network | number)
    }

    /// The numbers of members.
    pub(super) fn members(self) -> std::ops::Range<u32> {
        // The last address is the one for all.
        2..(!mask(self.prefix)).min(0x10_0000)
    }

    /// Whether some address is in both.
    pub(super) fn overlaps(self, other: Self) -> bool {
        let mask = mask(self.prefix.min(other.prefix));
        self.network & mask == other.network & mask
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(u32::from(32_u8.saturating_sub(prefix))).unwrap_or(0)
}

/// Networks for a network of this name, the best first: always the same ones, so that it mostly gets what it had before.
pub(super) fn candidates(name: &str) -> impl Iterator<Item = Subnet> {
    let hash = hash(name);
    RANGES.into_iter().flat_map(move |(first, count)| {
        (0..count).map(move |step| {
            let number = (hash % count + step) % count;
            Subnet::new(Ipv4Addr::from(u32::from(first) + (number << (32 - PREFIX))), PREFIX)
        })
    })
}

/// A number that stands for the name.
pub(super) fn hash(name: &str) -> u32 {
    u32::from_str_radix(&Digest::of(name.as_bytes()).hex()[..8], 16).unwrap_or_default()
}

/// The unique local network (RFC 4193) of a network of this name on the machine with this identifier: 64 bits of it count.
pub(super) fn unique_local(name: &str, machine: &str) -> Ipv6Addr {
    let hex = Digest::of(format!("gpucontainer network {machine} {name}").as_bytes()).hex();
    let bits = u128::from_str_radix(&hex[..14], 16).unwrap_or_default();
    Ipv6Addr::from((0xFD_u128 << 120) | (bits << 64))
}

/// The address with this number in an IPv6 network.
pub(super) fn address6(network: Ipv6Addr, number: u32) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(network) | u128::from(number))
}

/// A hardware address that goes with an address, so that what neighbours remember stays right when the next member gets
/// it.
pub(super) fn hardware(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x67, a, b, c, d]
}

/// The destination of a route as a network, if it is an IPv4 one that is not everything.
pub(super) fn of_route((address, prefix): (IpAddr, u8)) -> Option<Subnet> {
    match address {
        IpAddr::V4(address) if prefix > 0 => Some(Subnet::new(address, prefix)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_know_their_addresses() {
        let subnet = Subnet::parse("10.88.5.7/22").unwrap();
        assert_eq!(subnet.to_string(), "10.88.4.0/22");
        assert_eq!(subnet.address(1), Ipv4Addr::new(10, 88, 4, 1));
        assert_eq!(subnet.members(), 2..1023);
        assert_eq!(Subnet::parse("192.168.7.0/29").unwrap().members(), 2..7);
        for wrong in ["10.88.0.0", "10.88.0.0/33", "10.88.0/22", "x/22", ""] {
            assert_eq!(Subnet::parse(wrong), None, "{wrong}");
        }
        for wrong in ["127.0.0.0/16", "10.0.0.0/30", "0.0.0.0/8", "224.0.0.0/22", "169.254.0.0/16", "8.0.0.0/5"] {
            assert_eq!(
                Subnet::parse(wrong).unwrap().check().unwrap_err().kind(),
                ErrorKind::InvalidArgument,
                "{wrong}"
            );
        }
        subnet.check().unwrap();
    }

    #[test]
    fn overlap_is_found_both_ways() {
        let of = |text| Subnet::parse(text).unwrap();
        for (one, other, expected) in [
            ("10.88.0.0/22", "10.88.3.0/24", true),
            ("10.88.0.0/22", "10.88.4.0/22", false),
            ("10.0.0.0/8", "10.88.4.0/22", true),
            ("10.88.4.9/32", "10.88.4.0/22", true),
        ] {
            assert_eq!(
                (of(one).overlaps(of(other)), of(other).overlaps(of(one))),
                (expected, expected),
                "{one} {other}"
            );
        }
    }

    #[test]
    fn a_name_has_its_networks() {
        let all: Vec<_> = candidates("default").collect();
        assert_eq!(all.len(), 768);
        assert_eq!(all, candidates("default").collect::<Vec<_>>());
        assert_ne!(all[0], candidates("other").next().unwrap());
        assert!(all.iter().all(|subnet| subnet.check().is_ok()));
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), 768);
        let six = unique_local("default", "m");
        assert_eq!(six.octets()[0], 0xFD);
        assert_eq!(&six.octets()[8..], [0; 8]);
        assert_ne!(six, unique_local("default", "n"));
        assert_eq!(address6(six, 2).octets()[15], 2);
    }
}
