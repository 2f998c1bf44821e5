//! Messages of the kernel's network configuration, written and read as bytes: no socket is opened here.
//!
//! ```text
//! batch      lengths, sequence numbers, nested attributes; what each message is about, for errors
//! route      interfaces, addresses and routes (rtnetlink)
//! policy     which packets look into which table of routes (rtnetlink)
//! nf_tables  tables, chains, rules and maps of the packet filter
//! conntrack  the connections that the packet filter knows
//! ```

mod batch;
pub(crate) mod conntrack;
pub(crate) mod nf_tables;
pub(crate) mod policy;
pub(crate) mod route;
#[cfg(test)]
mod tests;

pub(crate) use batch::Batch;

use crate::error::Result;
use crate::sys::netlink::Netlink;

/// Has the kernel do all that `batch` says.
///
/// # Errors
/// The first message that the kernel refused, in the words that it was written with.
pub(crate) fn carry_out(socket: &Netlink, batch: &Batch) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    socket.request(batch.bytes()).map_err(|refusal| {
        let what = batch.what(refusal.sequence).to_owned();
        refusal.into_error(what)
    })
}
