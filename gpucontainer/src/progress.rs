//! Progress and cancellation of long work.

use crate::error::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One report of long work, given to the caller's callback.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// What is being worked on, for example a layer's digest.
    pub item: String,
    /// What is being done with it.
    pub phase: Phase,
    /// Bytes done so far.
    pub bytes: u64,
    /// Bytes in all, where known.
    pub total: Option<u64>,
}

impl Progress {
    /// Makes a report.
    pub fn new(item: impl Into<String>, phase: Phase, bytes: u64, total: Option<u64>) -> Self {
        Self { item: item.into(), phase, bytes, total }
    }
}

/// What is being done with an item.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Phase {
    /// Waiting for another process that works on the same item.
    Waiting,
    /// Downloaded, checked and unpacked, all in one stream.
    Pulling,
    /// Read from a local archive or directory, checked and unpacked.
    Importing,
    /// Written again from the store and compressed, before it is pushed. Bytes are those read; how many there will be is
    /// not known.
    Compressing,
    /// Sent to a registry.
    Pushing,
    /// Ready.
    Done,
    /// It was there already: in the store, or in the registry.
    Present,
}

/// A switch that ends long work early; clones share it.
///
/// The work ends at its next step with [`ErrorKind::Cancelled`], leaving nothing half-done.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A switch that is off.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the work that was given this switch. May be called from any thread, and from a signal handler.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was switched.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The error of a cancelled work, if it is one.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::new(ErrorKind::Cancelled, "cancelled by the caller")) } else { Ok(()) }
    }
}
