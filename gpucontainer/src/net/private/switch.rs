//! The bridge of a network, in a network namespace that nobody is in, and its one wire to the host.
//!
//! ```text
//! host                              namespace of the switch         namespace of a member
//!   gpuc… ──────────────────────────── uplink ─┐
//!   gateway's addresses, route                 ├ br0
//!   table of rules                     port… ──┘ ───────────────────── eth0
//! ```
//! Two sockets keep it: one that belongs to the namespace, and one that the rules belong to. Nobody takes an interface
//! away again, which takes the kernel tens of milliseconds. When the last copy of a socket is closed, all of it goes.

use super::PrivateNetwork;
use super::rules::Rules;
use super::subnet::{self, Subnet};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::net::netlink::route::{Peer, Route, read_route};
use crate::net::netlink::{Batch, carry_out};
use crate::sys::netlink::{Netlink, Protocol, interface_name};
use crate::sys::{fs, netns};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// The index of the bridge in its namespace.
pub(super) const BRIDGE: u32 = 2;
/// The index of the wire to the host, where it is.
const UPLINK: u32 = 3;
const IPV6_BITS: u8 = 64;

/// What keeps a network.
#[derive(Debug)]
pub(super) struct Switch {
    /// Belongs to the namespace of the bridge.
    pub(super) route: Netlink,
    /// Owns the rules, where the network has a wire to the host.
    pub(super) rules: Option<Netlink>,
}

/// A network as it is written down for those who come later.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Description {
    pub(super) ipv4: Subnet,
    pub(super) ipv6: Option<Ipv6Addr>,
    pub(super) outbound: bool,
    pub(super) host_access: bool,
    /// Whether what goes out by IPv6 gets anywhere.
    pub(super) outbound6: bool,
    pub(super) cookies: (u64, Option<u64>),
}

impl Description {
    /// The gateway's addresses, if there is one.
    pub(super) fn gateways(&self) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let uplink = self.outbound || self.host_access;
        let six = self.ipv6.map(|network| subnet::address6(network, 1));
        (uplink.then(|| self.ipv4.address(1)), six.filter(|_| uplink && (self.outbound6 || !self.outbound)))
    }

    /// Reads what `Display` writes.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let value =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')));
        let is = |name: &str| value(name) == Some("true");
        Some(Self {
            ipv4: Subnet::parse(value("ipv4")?)?,
            ipv6: value("ipv6").map(str::parse).transpose().ok()?,
            outbound: is("outbound"),
            host_access: is("host_access"),
            outbound6: is("outbound6"),
            cookies: (value("switch")?.parse().ok()?, value("rules").map(str::parse).transpose().ok()?),
        })
    }
}

impl std::fmt::Display for Description {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { ipv4, ipv6, outbound, host_access, outbound6, cookies: (switch, rules) } = self;
        writeln!(f, "ipv4 {ipv4}")?;
        ipv6.iter().try_for_each(|network| writeln!(f, "ipv6 {network}"))?;
        writeln!(f, "outbound {outbound}\nhost_access {host_access}\noutbound6 {outbound6}\nswitch {switch}")?;
        rules.iter().try_for_each(|cookie| writeln!(f, "rules {cookie}"))
    }
}

/// Makes the network that `wanted` describes.
pub(super) fn make(wanted: &PrivateNetwork) -> Result<(Switch, Description)> {
    let host = Netlink::open(Protocol::Route)?;
    let (routes4, routes6) = (routes(&host, false)?, routes(&host, true)?);
    let priority = priority(&wanted.name);
    let ipv4 = choose(wanted, &routes4, priority)?;
    let ipv6 = ipv6(wanted)?;
    // Nobody is in it, so it needs no addresses, not even those that IPv6 makes by itself.
    let off = ("net.ipv6.conf.default.disable_ipv6".to_owned(), "1".to_owned());
    let made = netns::new_network(&[off])?;
    let mut batch = Batch::new();
    batch.new_bridge("br0", BRIDGE);
    carry_out(&made.route, &batch)?;
    let mut description = Description {
        ipv4,
        ipv6,
        outbound: wanted.outbound,
        host_access: wanted.host_access,
        outbound6: false,
        cookies: (made.route.cookie()?, None),
    };
    if !(wanted.outbound || wanted.host_access) {
        return Ok((Switch { route: made.route, rules: None }, description));
    }

    let unique = fs::unique();
    let name = format!("gpuc{}", &unique[..8]);
    let namespace = host.namespace()?;
    let index = port_index();
    let peer =
        Peer { name: &name, index, hardware: Some(subnet::hardware(ipv4.address(1))), namespace: namespace.as_fd() };
    let mut batch = Batch::new();
    batch.new_pair(("uplink", UPLINK), BRIDGE, &peer);
    carry_out(&made.route, &batch)?;
    prepare_uplink(&name)?;
    if wanted.outbound {
        let interfaces = |routes: &[Route]| routes.iter().map(|route| route.interface).collect::<BTreeSet<_>>();
        forward4(&name, &interfaces(&routes4))?;
        let leads_out = routes6.iter().any(|route| route.destination.1 == 0);
        description.outbound6 = ipv6.is_some() && leads_out && forward6(&name, &interfaces(&routes6))?;
    }
    let table = format!("gpuc-{}-{}", wanted.name, &unique[..8]);
    let (outbound, host_access) = (wanted.outbound, wanted.host_access);
    let rules = Rules { table: &table, uplink: index, ipv4, ipv6, outbound, host_access }.enforce()?;
    description.cookies.1 = Some(rules.cookie()?);

    let mut batch = Batch::new();
    batch.up(index);
    let mut ends: Vec<(IpAddr, IpAddr, u8)> = vec![(ipv4.network().into(), ipv4.address(1).into(), ipv4.prefix())];
    ends.extend(ipv6.map(|network| (network.into(), subnet::address6(network, 1).into(), IPV6_BITS)));
    for (network, gateway, prefix) in ends {
        batch.new_address(index, gateway, prefix);
        // One of the same network, whose kernel side may not have gone yet, is replaced.
        let source = gateway.is_ipv4().then_some(gateway);
        batch.new_route(&Route { destination: (network, prefix), interface: index, gateway: None, source, priority });
    }
    carry_out(&host, &batch).context("give the gateway its addresses")?;
    Ok((Switch { route: made.route, rules: Some(rules) }, description))
}

/// An index for an interface that the kernel has not chosen, so that the one of its peer is heeded: nobody else is going
/// to have it.
pub(super) fn port_index() -> u32 {
    let random = u32::from_str_radix(&fs::unique()[..8], 16).unwrap_or_default();
    (1 << 20) | (random >> 3)
}

/// How the routes to a network are told from others: the number that stands for its name.
fn priority(name: &str) -> u32 {
    (1 << 30) | (subnet::hash(name) >> 2)
}

fn routes(host: &Netlink, ipv6: bool) -> Result<Vec<Route>> {
    let mut batch = Batch::new();
    batch.get_routes(ipv6);
    let mut found = Vec::new();
    match host.dump(batch.bytes(), |kind, body| found.extend(read_route(kind, body))) {
        Ok(()) => Ok(found),
        // A kernel without IPv6 has no routes of it.
        Err(_) if ipv6 => Ok(Vec::new()),
        Err(refusal) => Err(refusal.into_error(batch.what(1))),
    }
}

/// The addresses: the ones wanted, or the first that the host has no route to.
fn choose(wanted: &PrivateNetwork, routes: &[Route], priority: u32) -> Result<Subnet> {
    let taken: Vec<Subnet> = routes
        .iter()
        .filter(|route| route.priority != priority)
        .filter_map(|route| subnet::of_route(route.destination))
        .collect();
    let free = |subnet: &Subnet| !taken.iter().any(|other| other.overlaps(*subnet));
    match wanted.ipv4 {
        Some(subnet) if free(&subnet) => Ok(subnet),
        Some(subnet) => {
            let message = format!("the host has a route to addresses of {subnet}");
            Err(Error::new(ErrorKind::AlreadyExists, message))
        }
        None => subnet::candidates(&wanted.name).find(free).ok_or_else(|| {
            let message = "the host has routes to all addresses that a private network would take; choose some";
            Error::new(ErrorKind::AlreadyExists, message)
        }),
    }
}

/// The IPv6 network, where the kernel has IPv6 and it is wanted.
fn ipv6(wanted: &PrivateNetwork) -> Result<Option<Ipv6Addr>> {
    let switched_off = match fs::read_to_string(Path::new("/proc/sys/net/ipv6/conf/default/disable_ipv6")) {
        Ok(text) => text.trim() != "0",
        Err(e) if e.kind() == ErrorKind::NotFound => true,
        Err(e) => return Err(e),
    };
    if switched_off || !wanted.ipv6 {
        return Ok(None);
    }
    let machine = fs::read_to_string(Path::new("/etc/machine-id")).unwrap_or_default();
    Ok(Some(subnet::unique_local(&wanted.name, machine.trim())))
}

fn setting(family: &str, interface: &str, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/{family}/conf/{interface}/{name}"))
}

/// Writes a setting, and says whether the kernel has it.
fn set(path: &Path, value: &str) -> Result<bool> {
    match fs::write(path, value.as_bytes()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn is_on(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
}

/// Before it is up: members shall not tell the host where to send what.
fn prepare_uplink(name: &str) -> Result<()> {
    for (family, setting_name) in [("ipv6", "accept_ra"), ("ipv6", "accept_redirects"), ("ipv4", "accept_redirects")] {
        set(&setting(family, name, setting_name), "0")?;
    }
    set(&setting("ipv6", name, "accept_dad"), "0").map(drop)
}

/// Lets packets pass between the network and the host's interfaces, where the host does not do so anyway.
///
/// The kernel asks the interface by which a packet comes, so that of the answers must be let through too.
fn forward4(uplink: &str, interfaces: &BTreeSet<u32>) -> Result<()> {
    set(&setting("ipv4", uplink, "forwarding"), "1")?;
    if is_on(Path::new("/proc/sys/net/ipv4/ip_forward")) {
        return Ok(());
    }
    interfaces.iter().filter_map(|index| interface_name(*index)).try_for_each(|name| {
        let path = setting("ipv4", &name, "forwarding");
        if is_on(&path) { Ok(()) } else { set(&path, "1").map(drop) }
    })
}

/// The same for IPv6; whether it can be done. Before Linux 6.17 only all interfaces together can forward, which would
/// have the host forget what it learnt from its own router: that is not done here.
fn forward6(uplink: &str, interfaces: &BTreeSet<u32>) -> Result<bool> {
    if is_on(&setting("ipv6", "all", "forwarding")) {
        return Ok(true);
    }
    let names: Vec<String> = interfaces.iter().filter_map(|index| interface_name(*index)).collect();
    for name in names.iter().map(String::as_str).chain([uplink]) {
        if !set(&setting("ipv6", name, "force_forwarding"), "1")? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_read_as_it_was_written() {
        for (ipv6, rules) in [(None, None), (Some("fd00:1::".parse().unwrap()), Some(9))] {
            let description = Description {
                ipv4: Subnet::parse("10.88.0.0/22").unwrap(),
                ipv6,
                outbound: rules.is_some(),
                host_access: false,
                outbound6: true,
                cookies: (77, rules),
            };
            assert_eq!(Description::parse(&description.to_string()), Some(description));
        }
        assert_eq!(Description::parse("ipv4 10.88.0.0/22\n"), None);
        assert_eq!(Description::parse(""), None);
    }
}
