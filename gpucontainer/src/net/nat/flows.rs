//! Connections in the kernel's table, which go on while the rule that they were begun by does not.

use super::super::netlink::conntrack::{Flow, read_flow};
use super::super::netlink::{Batch, carry_out};
use super::entry::Entry;
use crate::error::Result;
use crate::sys::errno;
use crate::sys::netlink::Netlink;

/// Those of an entry.
///
/// # Errors
/// The kernel does not say.
pub(super) fn of(entry: &Entry, socket: &Netlink) -> Result<Vec<Flow>> {
    let mut batch = Batch::new();
    batch.get_connections(entry.to, entry.protocol());
    let mut flows = Vec::new();
    let asked = socket.dump(batch.bytes(), |kind, body| {
        flows.extend(read_flow(kind, body).filter(|flow| entry.is_for(flow.destination)));
    });
    asked.map_err(|refusal| refusal.into_error(batch.what(1)))?;
    Ok(flows)
}

/// Ends those of an entry: from now on the host has no such connection, and says so to whoever sends something more.
pub(super) fn end(entry: &Entry, socket: &Netlink) -> Result<()> {
    for flow in of(entry, socket)? {
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
