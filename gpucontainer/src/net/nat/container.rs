//! Where a container is to be reached from the host.

use super::super::namespace::NetworkNamespace;
use super::super::netlink::Batch;
use super::super::netlink::nf_tables::set::{field, octets};
use super::super::netlink::route::{Assigned, LOOPBACK, read_address, read_route};
use super::table;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::netlink::{Netlink, Protocol, interface_name};
use crate::sys::{fs, netns};
use std::net::IpAddr;
use std::path::PathBuf;

/// How the host reaches a container by one family.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Way {
    pub(super) address: IpAddr,
    /// The host's interface towards it.
    device: u32,
    /// Whether the container has a default route, by which it answers whoever it is asked by.
    pub(super) leads_out: bool,
}

/// The way to a container by each family, or why there is none.
#[derive(Debug)]
pub(super) struct Container {
    v4: Result<Way, String>,
    v6: Result<Way, String>,
}

impl Container {
    /// Looks for the container's addresses, and how the host gets there.
    pub(super) fn find(namespace: &NetworkNamespace) -> Result<Self> {
        let inside = netns::netlink(namespace.entrance(), Protocol::Route)?;
        let host = Netlink::open(Protocol::Route)?;
        if inside.namespace_cookie()? == host.namespace_cookie()? {
            let message = "nat: the container's network is the host's own";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let mut batch = Batch::new();
        batch.get_addresses();
        let mut addresses = Vec::new();
        let asked = inside.dump(batch.bytes(), |kind, body| addresses.extend(read_address(kind, body)));
        asked.map_err(|refusal| refusal.into_error(batch.what(1)))?;
        let find = |v4: bool| way(&addresses, v4, &inside, &host);
        Ok(Self { v4: find(true), v6: find(false) })
    }

    /// The way by a family, or why there is none.
    pub(super) fn way(&self, v4: bool) -> Result<&Way, &String> {
        if v4 { self.v4.as_ref() } else { self.v6.as_ref() }
    }
}

fn way(addresses: &[Assigned], v4: bool, inside: &Netlink, host: &Netlink) -> Result<Way, String> {
    let family = if v4 { "IPv4" } else { "IPv6" };
    let own = addresses.iter().find(|own| own.address.is_ipv4() == v4 && own.interface != LOOPBACK);
    let address = own.ok_or_else(|| format!("the container has no {family} address but loopback"))?.address;
    let mut batch = Batch::new();
    batch.get_route(address);
    let mut route = None;
    let asked = host.query(batch.bytes(), |kind, body| route = read_route(kind, body));
    // By its default route alone it would ask the world for an address that is known here.
    let route = route.filter(|route| asked.is_ok() && route.destination.1 > 0);
    let route = route.ok_or_else(|| format!("the host has no route to the container's address {address}"))?;
    let device = interface_name(route.interface).unwrap_or_else(|| route.interface.to_string());
    if !forwards(v4, &device) {
        let setting =
            if v4 { format!("net.ipv4.conf.{device}.forwarding") } else { "net.ipv6.conf.all.forwarding".into() };
        return Err(format!("the host forwards no packets of {family} from {device} ({setting} is 0)"));
    }
    let mut batch = Batch::new();
    batch.get_routes(!v4);
    let mut leads_out = false;
    let asked = inside.dump(batch.bytes(), |kind, body| {
        leads_out |= read_route(kind, body).is_some_and(|route| route.destination.1 == 0);
    });
    asked.map_err(|refusal| refusal.into_error(batch.what(1)).to_string())?;
    Ok(Way { address, device: route.interface, leads_out })
}

/// Whether the host passes on what comes from an interface.
fn forwards(v4: bool, device: &str) -> bool {
    let on = |family: &str, device: &str, name: &str| {
        let path = PathBuf::from(format!("/proc/sys/net/{family}/conf/{device}/{name}"));
        fs::read_to_string(&path).is_ok_and(|text| text.trim() != "0")
    };
    if v4 {
        return on("ipv4", device, "forwarding");
    }
    on("ipv6", "all", "forwarding") || on("ipv6", device, "force_forwarding")
}

impl Way {
    /// The elements that are there as long as anything of the container is published: its address, which clients of its
    /// own wire cannot be answered through the host, and whether any can.
    pub(super) fn elements(&self) -> Vec<(&'static str, Vec<u8>)> {
        let names = table::names(self.address.is_ipv4());
        let address = octets(self.address);
        let mut same_wire = Vec::new();
        field(&mut same_wire, &address);
        field(&mut same_wire, &self.device.to_ne_bytes());
        let mut elements = vec![(names.containers, address.clone()), (names.same_wire, same_wire)];
        if !self.leads_out {
            elements.push((names.no_way_back, address));
        }
        elements
    }
}
