//! Connections in the kernel's table, which go on while the rule that they were begun by does not.
//!
//! The kernel goes through its whole table for each question, which takes it milliseconds: it is asked once for all ports of
//! a container, and not at all for ports that nobody has connected to.

use super::super::netlink::conntrack::{Flow, read_flow};
use super::super::netlink::{Batch, carry_out};
use super::entry::Entry;
use crate::error::Result;
use crate::sys::errno;
use crate::sys::netlink::Netlink;
use std::collections::BTreeSet;

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

/// Ends those of the entries: from now on the host has no such connection, and says so to whoever sends something more.
pub(super) fn end(entries: &[&Entry], socket: &Netlink) -> Result<()> {
    for (_, flow) in of(entries, socket)? {
        let mut batch = Batch::new();
        batch.delete_connection(&flow);
        match carry_out(socket, &batch) {
            // It has ended by itself.
            Err(error) if error.errno() == Some(errno::ENOENT) => {}
            other => other?,
        }
    }
    Ok(())
}
