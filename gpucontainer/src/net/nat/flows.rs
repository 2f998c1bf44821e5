//! Connections in the kernel's table, which go on while the rule that they were begun by does not.
//!
//! The kernel goes through its whole table for each question, which takes it milliseconds: it is asked once for all ports of
//! a container, and not at all for ports that nobody has connected to.

use super::super::mapping::Protocol;
use super::super::netlink::conntrack::{Flow, read_flow};
use super::super::netlink::route::read_address;
use super::super::netlink::{Batch, carry_out};
use super::entry::Entry;
use super::protocol_number;
use crate::error::Result;
use crate::sys::errno;
use crate::sys::netlink::{self, Netlink};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Those of any of the entries, each with the place of its entry among them.
///
/// # Errors
/// The kernel does not say.
pub(super) fn of(entries: &[&Entry], socket: &Netlink) -> Result<Vec<(usize, Flow)>> {
    let mut flows = Vec::new();
    let servers: BTreeSet<_> = entries.iter().map(|entry| (entry.to, entry.protocol())).collect();
    for server in servers {
        let mut batch = Batch::new();
        batch.get_connections(server.0, server.1);
        let its = |entry: &Entry| (entry.to, entry.protocol()) == server;
        let asked = socket.dump(batch.bytes(), |kind, body| {
            let Some(flow) = read_flow(kind, body) else { return };
            let at = entries.iter().position(|entry| its(entry) && entry.is_for(flow.destination));
            flows.extend(at.map(|at| (at, flow)));
        });
        asked.map_err(|refusal| refusal.into_error(batch.what(1)))?;
    }
    Ok(flows)
}

/// Ends those of UDP that were begun to one of the entries and were led elsewhere: by the rules of a process that was killed,
/// whose client has gone on sending. They would be led there for as long as it does.
///
/// A connection of TCP has ended with what answered it, and its client does not begin the same one again.
pub(super) fn end_of_others(entries: &[&Entry], socket: &Netlink) -> Result<()> {
    let datagrams = protocol_number(Protocol::Udp);
    let mut own = None;
    for v4 in [true, false] {
        let ours: Vec<_> =
            entries.iter().filter(|entry| entry.protocol() == datagrams && entry.to.is_ipv4() == v4).collect();
        if ours.is_empty() {
            continue;
        }
        let mut batch = Batch::new();
        batch.get_all_connections(v4, datagrams);
        let mut flows = Vec::new();
        let asked = socket.dump(batch.bytes(), |kind, body| {
            let Some(flow) = read_flow(kind, body) else { return };
            let begun = ours.iter().find(|entry| entry.is_for(flow.destination));
            if begun.is_some_and(|entry| !entry.leads(flow.destination.1, flow.server)) {
                flows.push(flow);
            }
        });
        asked.map_err(|refusal| refusal.into_error(batch.what(1)))?;
        // On all addresses of the host are those of the host alone; others are forwarded, and somebody else's business.
        if ours.iter().any(|entry| entry.is_everywhere()) && !flows.is_empty() {
            let own = match &mut own {
                Some(own) => own,
                none => none.insert(own_addresses()?),
            };
            flows.retain(|flow| own.contains(&flow.destination.0));
        }
        flows.iter().try_for_each(|flow| delete(flow, socket))?;
    }
    Ok(())
}

/// The addresses of the host.
fn own_addresses() -> Result<BTreeSet<IpAddr>> {
    let socket = Netlink::open(netlink::Protocol::Route)?;
    let mut batch = Batch::new();
    batch.get_addresses();
    let mut own = BTreeSet::new();
    let asked = socket.dump(batch.bytes(), |kind, body| own.extend(read_address(kind, body).map(|one| one.address)));
    asked.map(|()| own).map_err(|refusal| refusal.into_error(batch.what(1)))
}

/// Ends those of the entries: from now on the host has no such connection, and says so to whoever sends something more.
pub(super) fn end(entries: &[&Entry], socket: &Netlink) -> Result<()> {
    of(entries, socket)?.iter().try_for_each(|(_, flow)| delete(flow, socket))
}

fn delete(flow: &Flow, socket: &Netlink) -> Result<()> {
    let mut batch = Batch::new();
    batch.delete_connection(flow);
    match carry_out(socket, &batch) {
        // It has ended by itself.
        Err(error) if error.errno() == Some(errno::ENOENT) => Ok(()),
        other => other,
    }
}
