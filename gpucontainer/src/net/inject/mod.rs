//! Binds of a container's ports answered with sockets of the host.
//!
//! ```text
//! container: socket() ── S          bind(S) waits ──► gpuc-relay
//!                                                      binds S inside, makes B beside the reservation A of the host,
//! container: listen(), accept() on B ◄── in S's place ─┘ keeps S, and leads clients inside from S to the host's address
//! ```
//! A filter of system calls lets `bind(2)` wait for an answer. If the port is published, the answer is 0, and under the
//! number of the socket the program finds one of the host's, which is bound and listens there: from then on its clients
//! are the kernel's and its own business, at the speed of the host. Everything else is bound as it would have been.
//!
//! What the container gets is [locked](crate::sys::hostport) to the port. It holds no socket of the host that is not
//! bound, and those that it can get unbound, connections that it disconnects, are refused when they are bound anew.

mod examine;
mod revoke;

pub(super) use examine::{Wanted, Wish, examine};
pub(super) use revoke::revoke;

use super::mapping::{PortMapping, Protocol};
use super::relay::Relay;
use crate::error::Result;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The instructions of the filter whose listener [`Binds::add`] takes, a word each.
pub(crate) fn bind_filter() -> Vec<u64> {
    crate::sys::notify::bind_filter()
}

/// Why a port of an ordinary user may have to be relayed.
pub(crate) const NO_LOCK: &str = "this kernel lets only CAP_NET_ADMIN lock a socket to its port, without which the \
    container could reach services of the host by it, and unlocked(true) does not say that it may";

/// Why a port of UDP is relayed.
pub(crate) const NO_LOCK_FOR_UDP: &str = "a socket of UDP in the container's hands could send to whatever the host can, \
    and unlocked(true) does not say that it may";

/// Whether a container may be given a socket of the host for this port, or why not.
pub(crate) fn may_have(mapping: &PortMapping) -> Result<(), &'static str> {
    match mapping.protocol() {
        _ if mapping.is_unlocked() => Ok(()),
        // What it sends is the kernel's to say, and no filter of a socket's.
        Protocol::Udp => Err(NO_LOCK_FOR_UDP),
        Protocol::Tcp if crate::sys::hostport::can_lock() => Ok(()),
        Protocol::Tcp => Err(NO_LOCK),
    }
}

/// Hears of the binds of one container's processes, until dropped; then their binds fail with `ENOSYS`.
#[derive(Debug)]
pub(crate) struct Binds {
    watch: u64,
    relay: Arc<Relay>,
}

impl Binds {
    /// Hears of nothing yet.
    pub(crate) fn new() -> Result<Self> {
        let relay = Relay::of_this_process()?;
        Ok(Self { watch: relay.number(), relay })
    }

    /// Answers the processes whose filter this listener belongs to.
    pub(crate) fn add(&self, listener: OwnedFd) -> Result<()> {
        self.relay.watch(self.watch, listener)
    }

    /// Answers nobody any more. What waits, waits for whoever the listeners are given to.
    pub(crate) fn into_listeners(self) -> Vec<OwnedFd> {
        self.relay.unwatch(self.watch)
    }

    pub(super) fn id(&self) -> u64 {
        self.watch
    }
}

impl Drop for Binds {
    fn drop(&mut self) {
        drop(self.relay.unwatch(self.watch));
    }
}
