//! Sockets made inside a container's network namespace, a few at a time.

use crate::error::{Error, ErrorKind, Result};
use crate::net::namespace::NetworkNamespace;
use crate::sys::netns::{Family, SOCKETS_MAX, Transport};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Making sockets costs a child process, whatever their number; a busy port makes many at once.
#[derive(Debug)]
pub(super) struct Pool {
    family: Family,
    transport: Transport,
    ready: Vec<OwnedFd>,
    batch: usize,
    filled: Option<Instant>,
}

/// Each idle container may keep this many descriptors for its next connections.
const BATCH_MIN: usize = 4;
/// Emptied sooner than this, the next batch is twice as big; later, it is small again.
const BUSY: Duration = Duration::from_millis(100);
/// What is left over is closed after this time without a connection.
pub(super) const KEEP: Duration = Duration::from_secs(2);

impl Pool {
    pub(super) fn new(family: Family, transport: Transport) -> Self {
        Self { family, transport, ready: Vec::new(), batch: BATCH_MIN, filled: None }
    }

    /// A fresh socket inside the namespace.
    pub(super) fn take(&mut self, namespace: &NetworkNamespace) -> Result<OwnedFd> {
        if let Some(socket) = self.ready.pop() {
            return Ok(socket);
        }
        let now = Instant::now();
        let busy = self.filled.is_some_and(|before| now.duration_since(before) < BUSY);
        self.batch = if busy { (self.batch * 2).clamp(1, SOCKETS_MAX) } else { BATCH_MIN };
        self.filled = Some(now);
        let made = namespace.open_sockets(self.family, self.transport, self.batch);
        if made.is_err() {
            // Perhaps only so many could not be had.
            self.batch = 0;
        }
        let mut sockets = made?;
        let socket = sockets.pop().ok_or_else(|| Error::new(ErrorKind::SystemCall, "no socket was made"))?;
        self.ready = sockets;
        Ok(socket)
    }

    /// Puts a socket back that was not needed after all.
    pub(super) fn put_back(&mut self, socket: OwnedFd) {
        self.ready.push(socket);
    }

    /// Gives up all sockets but one, because descriptors have run out; whether that freed any.
    pub(super) fn shrink(&mut self) -> bool {
        let freed = self.ready.len() > 1;
        self.ready.truncate(1);
        self.batch = 0;
        freed
    }

    /// Closes what was not needed for a while; says when to come again.
    pub(super) fn trim(&mut self, now: Instant) -> Option<Instant> {
        let until = self.filled.filter(|_| !self.ready.is_empty())? + KEEP;
        if until > now {
            return Some(until);
        }
        self.ready = Vec::new();
        None
    }
}
