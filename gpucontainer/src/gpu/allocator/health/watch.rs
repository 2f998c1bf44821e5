//! A watch for XIDs, which its caller drives.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::allocator::health::listener::Listener;
use crate::gpu::allocator::health::xid::XidAction;
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::inventory::nvml;
use crate::sys::events::Events;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Watches GPUs for XIDs from the moment on when it was opened. It has no thread, and nothing is seen but in
/// [`next`](Self::next), unless a [descriptor](Self::poll_fd) is asked for.
///
/// The driver's management library stays loaded as long as this lives; it must not be used after a `fork`.
#[derive(Debug)]
pub struct XidWatch {
    // First, so that its thread has ended when nobody else needs the events.
    listener: Option<Listener>,
    events: Arc<Mutex<Events>>,
}

/// An XID that the driver reported.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct XidEvent {
    /// The UUID of the GPU, also where the event is about a slice of it.
    pub gpu: String,
    /// The number of the XID.
    pub xid: u64,
    /// What has to be done.
    pub action: XidAction,
    /// GPU instance and compute instance, if it is about a slice.
    pub slice: Option<(u32, u32)>,
}

impl XidWatch {
    /// Watches the GPUs with these UUIDs, whose driver is in `root`.
    ///
    /// # Errors
    /// [`ErrorKind::GpuUnavailable`] if the driver, or one of the GPUs, cannot be asked. GPUs without such events, as
    /// under WSL, are never heard of.
    pub fn open<S: AsRef<str>>(root: &DriverRoot, gpus: impl IntoIterator<Item = S>) -> Result<Self> {
        let gpus: Vec<String> = gpus.into_iter().map(|gpu| gpu.as_ref().to_owned()).collect();
        let wanted = || format!("watch {} for XIDs", gpus.join(", "));
        let unavailable = |reason: String| Error::new(ErrorKind::GpuUnavailable, reason);
        let library = nvml::open(root).map_err(unavailable).with_context(wanted)?;
        let events = Events::open(library, &gpus);
        let events =
            events.map_err(|(call, e)| unavailable(format!("{call}: {e}")).with_cause(e)).with_context(wanted)?;
        Ok(Self { listener: None, events: Arc::new(Mutex::new(events)) })
    }

    /// A descriptor that can be read, in the words of `poll(2)`, as long as [`next`](Self::next) has something to say at
    /// once: an XID, or that the driver has failed. Nothing is to be read from it, and it is the same for the life of the
    /// watch.
    ///
    /// The driver has none to give: when this is first called, the thread `gpuc-xid` starts to wait there, with all signals
    /// blocked. It ends when this is dropped, which takes up to a quarter of a second.
    ///
    /// # Errors
    /// No descriptor is left (`EMFILE`), or no thread can be made (`EAGAIN`).
    pub fn poll_fd(&mut self) -> Result<BorrowedFd<'_>> {
        let listener = match self.listener.take() {
            Some(listener) => listener,
            None => Listener::start(Arc::clone(&self.events)).context("wait for XIDs in a thread")?,
        };
        let listener: &Listener = self.listener.insert(listener);
        Ok(listener.as_fd())
    }

    /// Waits for the next XID; `None` when `timeout` has passed, of which 0 only looks. At most 49 days.
    ///
    /// # Errors
    /// [`ErrorKind::GpuUnavailable`] if the driver fails, as it does when a GPU is lost.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<XidEvent>> {
        let failed = |(call, e)| Error::new(ErrorKind::GpuUnavailable, format!("{call}: {e}")).with_cause(e);
        let next = match &self.listener {
            Some(listener) => listener.next(timeout)?.transpose(),
            None => self.events.lock().unwrap_or_else(PoisonError::into_inner).next(timeout),
        };
        let next = next.map_err(failed).context("wait for an XID")?;
        let event = |xid: crate::sys::events::Xid| {
            let action = XidAction::of(xid.number);
            XidEvent { gpu: xid.gpu, xid: xid.number, action, slice: xid.slice }
        };
        Ok(next.map(event))
    }
}
