//! rtnetlink: interfaces, addresses, routes.

use super::Batch;
use crate::sys::netlink::attributes;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The index of the loopback interface, in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const VETH_INFO_PEER: u16 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;
/// Not to be used: it is someone else's too, is not known to be nobody else's, or is old.
const IFA_F_UNUSABLE: u32 = 0x08 | 0x20 | 0x40;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
/// In the question: which route, rather than what comes of it.
const RTM_F_FIB_MATCH: u32 = 0x2000;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The other end of a pair of virtual Ethernet interfaces.
#[derive(Debug)]
pub(crate) struct Peer<'a> {
    pub(crate) name: &'a str,
    /// The index that it gets; 0 leaves the choice to the kernel.
    pub(crate) index: u32,
    /// Its hardware address; a random one without.
    pub(crate) hardware: Option<[u8; 6]>,
    /// The network namespace in which it is made.
    pub(crate) namespace: BorrowedFd<'a>,
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Route {
    /// The network that it leads to, and how many bits of it count.
    pub(crate) destination: (IpAddr, u8),
    /// The interface.
    pub(crate) interface: u32,
    /// The router; `None` where the network is on the interface.
    pub(crate) gateway: Option<IpAddr>,
    /// The address that the host uses by itself.
    pub(crate) source: Option<IpAddr>,
    /// The lower the better; 0 is the kernel's default. Two routes to one destination differ in it.
    pub(crate) priority: u32,
}

impl Batch {
    /// A bridge with this index, up.
    pub(crate) fn new_bridge(&mut self, name: &str, index: u32) {
        let what = format!("RTM_NEWLINK(bridge {name})");
        self.message(what, (RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL), &link(index, IFF_UP), |batch| {
            batch.text(IFLA_IFNAME, name);
            batch.nest(IFLA_LINKINFO, |batch| {
                batch.text(IFLA_INFO_KIND, "bridge");
                // Without a querier, what watches multicast groups would lose neighbour discovery.
                batch.nest(IFLA_INFO_DATA, |batch| batch.attribute(IFLA_BR_MCAST_SNOOPING, &[0]));
            });
        });
    }

    /// A pair of virtual Ethernet interfaces: `name` with the index `index`, up and a port of the bridge `master`, in the
    /// socket's namespace, and the peer in its own. The peer cannot be up before the pair is made, and the kernel heeds
    /// its index only where the other one has one too.
    pub(crate) fn new_pair(&mut self, (name, index): (&str, u32), master: u32, peer: &Peer<'_>) {
        let what = format!("RTM_NEWLINK(veth {name} to {})", peer.name);
        self.message(what, (RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL), &link(index, IFF_UP), |batch| {
            batch.text(IFLA_IFNAME, name);
            batch.word(IFLA_MASTER, master);
            batch.nest(IFLA_LINKINFO, |batch| {
                batch.text(IFLA_INFO_KIND, "veth");
                batch.nest(IFLA_INFO_DATA, |batch| {
                    batch.nest(VETH_INFO_PEER, |batch| {
                        batch.structure(&link(peer.index, 0));
                        batch.text(IFLA_IFNAME, peer.name);
                        batch.word(IFLA_NET_NS_FD, peer.namespace.as_raw_fd().cast_unsigned());
                        if let Some(hardware) = peer.hardware {
                            batch.attribute(IFLA_ADDRESS, &hardware);
                        }
                    });
                });
            });
        });
    }

    /// Takes an interface away, and with it its peer. The kernel takes some 30 milliseconds.
    pub(crate) fn delete(&mut self, name: &str) {
        self.message(format!("RTM_DELLINK({name})"), (RTM_DELLINK, 0), &link(0, 0), |batch| {
            batch.text(IFLA_IFNAME, name);
        });
    }

    /// Switches an interface on.
    pub(crate) fn up(&mut self, index: u32) {
        self.message(format!("RTM_NEWLINK(interface {index} up)"), (RTM_NEWLINK, 0), &link(index, IFF_UP), |_| {});
    }

    /// Gives an interface an address; `prefix` bits of it are the network's. No route is made of that, and nobody is
    /// asked whether the address is free.
    pub(crate) fn new_address(&mut self, interface: u32, address: IpAddr, prefix: u8) {
        let (family, bytes) = octets(address);
        // struct ifaddrmsg: family, prefix length, flags, scope, index.
        let mut body = vec![family, prefix, 0, 0];
        body.extend(interface.to_ne_bytes());
        let what = format!("RTM_NEWADDR({address}/{prefix})");
        self.message(what, (RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL), &body, |batch| {
            batch.attribute(IFA_LOCAL, &bytes);
            batch.attribute(IFA_ADDRESS, &bytes);
            batch.word(IFA_FLAGS, IFA_F_NODAD | IFA_F_NOPREFIXROUTE);
        });
    }

    /// A route, in the place of one to the same destination with the same priority.
    pub(crate) fn new_route(&mut self, route: &Route) {
        let (address, prefix) = route.destination;
        let (family, bytes) = octets(address);
        let scope = if route.gateway.is_some() || family == AF_INET6 { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
        let body = routes(family, prefix, scope);
        let what = format!("RTM_NEWROUTE({address}/{prefix})");
        self.message(what, (RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE), &body, |batch| {
            if prefix > 0 {
                batch.attribute(RTA_DST, &bytes);
            }
            batch.word(RTA_OIF, route.interface);
            if let Some(gateway) = route.gateway {
                batch.attribute(RTA_GATEWAY, &octets(gateway).1);
            }
            if let Some(source) = route.source {
                batch.attribute(RTA_PREFSRC, &octets(source).1);
            }
            if route.priority != 0 {
                batch.word(RTA_PRIORITY, route.priority);
            }
        });
    }

    /// Asks for all routes of a family.
    pub(crate) fn get_routes(&mut self, ipv6: bool) {
        let family = if ipv6 { AF_INET6 } else { AF_INET };
        self.silent("RTM_GETROUTE", (RTM_GETROUTE, NLM_F_DUMP), &routes(family, 0, 0));
    }
}

impl Batch {
    /// Asks for all addresses.
    pub(crate) fn get_addresses(&mut self) {
        // struct ifaddrmsg of any family.
        self.silent("RTM_GETADDR", (RTM_GETADDR, NLM_F_DUMP), &[0; 8]);
    }

    /// Asks for the route that leads to an address.
    pub(crate) fn get_route(&mut self, to: IpAddr) {
        let (family, bytes) = octets(to);
        let prefix = if to.is_ipv4() { 32 } else { 128 };
        let mut body = [family, prefix, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        body[8..].copy_from_slice(&RTM_F_FIB_MATCH.to_ne_bytes());
        let what = format!("RTM_GETROUTE({to})");
        self.message(what, (RTM_GETROUTE, 0), &body, |batch| batch.attribute(RTA_DST, &bytes));
    }
}

/// An address that an interface has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Assigned {
    pub(crate) address: IpAddr,
    pub(crate) interface: u32,
}

/// The address in one message of the answer to [`Batch::get_addresses`]: one that can be used, of more than its link.
pub(crate) fn read_address(kind: u16, body: &[u8]) -> Option<Assigned> {
    let (&[_, _, flags, scope, a, b, c, d, ..], true) = (body, kind == RTM_NEWADDR) else { return None };
    let (mut flags, mut found) = (u32::from(flags), None);
    for (kind, value) in attributes(body.get(8..)?) {
        match kind {
            // The other end's address on a wire with two ends, unless the own one is given too.
            IFA_ADDRESS if found.is_none() => found = address(value),
            IFA_LOCAL => found = address(value),
            IFA_FLAGS => flags = value.try_into().ok().map(u32::from_ne_bytes)?,
            _ => {}
        }
    }
    let usable = scope == RT_SCOPE_UNIVERSE && flags & IFA_F_UNUSABLE == 0;
    found.filter(|_| usable).map(|address| Assigned { address, interface: u32::from_ne_bytes([a, b, c, d]) })
}

/// The route in one message of the answer to [`Batch::get_routes`]: an ordinary one of the main table with an interface.
pub(crate) fn read_route(kind: u16, body: &[u8]) -> Option<Route> {
    let (&[family, prefix, _, _, table, _, _, route_type, ..], true) = (body, kind == RTM_NEWROUTE) else {
        return None;
    };
    if table != RT_TABLE_MAIN || !matches!(route_type, RTN_UNICAST | RTN_LOCAL) {
        return None;
    }
    let unspecified: IpAddr =
        if family == AF_INET6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let mut route =
        Route { destination: (unspecified, prefix), interface: 0, gateway: None, source: None, priority: 0 };
    for (kind, value) in attributes(body.get(12..)?) {
        let number = value.try_into().ok().map(u32::from_ne_bytes);
        match kind {
            RTA_DST => route.destination.0 = address(value)?,
            RTA_OIF => route.interface = number?,
            RTA_GATEWAY => route.gateway = address(value),
            RTA_PREFSRC => route.source = address(value),
            RTA_PRIORITY => route.priority = number?,
            _ => {}
        }
    }
    (route.interface != 0).then_some(route)
}

/// `struct ifinfomsg`: family, type, index, flags, and which of the flags are meant.
fn link(index: u32, flags: u32) -> [u8; 16] {
    let mut body = [0; 16];
    for (at, word) in [(4, index), (8, flags), (12, flags)] {
        body[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    body
}

/// `struct rtmsg`: family, bits of destination and source, service, table, origin, scope, type, flags.
fn routes(family: u8, prefix: u8, scope: u8) -> [u8; 12] {
    [family, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0, 0, 0, 0]
}

fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from).ok();
    v4.or_else(|| <[u8; 16]>::try_from(bytes).map(IpAddr::from).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_read_as_it_was_written() {
        for text in [("10.88.0.0", 22, Some("10.88.0.1")), ("fd12::", 64, None), ("0.0.0.0", 0, Some("10.0.0.1"))] {
            let route = Route {
                destination: (text.0.parse().unwrap(), text.1),
                interface: 7,
                gateway: text.2.map(|gateway| gateway.parse().unwrap()),
                source: None,
                priority: 99,
            };
            let mut batch = Batch::new();
            batch.new_route(&route);
            assert_eq!(read_route(RTM_NEWROUTE, &batch.bytes()[16..]), Some(route));
            assert_eq!(read_route(RTM_NEWLINK, &batch.bytes()[16..]), None);
            for length in 16..28 {
                assert_eq!(read_route(RTM_NEWROUTE, &batch.bytes()[16..length]), None);
            }
        }
    }
}
