//! What pulls and imports have in common: platform, limits, progress, cancel.

use super::platform::Platform;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Cancel, Phase, Progress};
use std::fmt;
use std::io::{self, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A layer that unpacks to more is refused: four times the largest that is known to be in use.
pub(super) const LAYER_MAX: u64 = 64 << 30;

/// Layers at a time. More hide a registry's latency; the processor is busy with two.
pub(super) const CONCURRENCY: usize = 3;

pub(super) type Callback<'a> = Box<dyn FnMut(Progress) + Send + 'a>;

/// The common part of the options.
pub(super) struct Transfer<'a> {
    pub(super) platform: Platform,
    pub(super) progress: Option<Callback<'a>>,
    pub(super) cancel: Cancel,
    pub(super) concurrency: usize,
    pub(super) max_layer_bytes: u64,
}

impl Default for Transfer<'_> {
    fn default() -> Self {
        Self {
            platform: Platform::host(),
            progress: None,
            cancel: Cancel::new(),
            concurrency: CONCURRENCY,
            max_layer_bytes: LAYER_MAX,
        }
    }
}

/// The setters of the common part, for options that hold it as `transfer`.
macro_rules! transfer_setters {
    () => {
        /// Which platform, of an image that is there for several. Default: [`Platform::host`].
        #[must_use]
        pub fn platform(mut self, platform: Platform) -> Self {
            self.transfer.platform = platform;
            self
        }

        /// Calls `callback` with what is being done, from the threads that do it, one call at a time.
        #[must_use]
        pub fn progress(mut self, callback: impl FnMut(Progress) + Send + 'a) -> Self {
            self.transfer.progress = Some(Box::new(callback));
            self
        }

        /// Ends the transfer early when switched, also while it waits for a registry or for another process.
        #[must_use]
        pub fn cancel(mut self, cancel: Cancel) -> Self {
            self.transfer.cancel = cancel;
            self
        }

        /// How many layers at a time, at least 1. Default: 3. Each has a thread, and with a registry a connection,
        /// for as long as it takes.
        #[must_use]
        pub fn concurrency(mut self, layers: usize) -> Self {
            self.transfer.concurrency = layers;
            self
        }

        /// Refuses a layer that unpacks to more than `bytes`. Default: 64 GiB.
        #[must_use]
        pub fn max_layer_bytes(mut self, bytes: u64) -> Self {
            self.transfer.max_layer_bytes = bytes;
            self
        }
    };
}

pub(super) use transfer_setters;

impl Transfer<'_> {
    /// Finds what cannot be used before anything is changed.
    pub(super) fn check(&self) -> Result<()> {
        let bad = |why: &str| Err(Error::new(ErrorKind::InvalidArgument, why));
        if self.concurrency == 0 {
            return bad("concurrency must be at least 1");
        }
        if self.max_layer_bytes == 0 {
            return bad("max_layer_bytes must be at least 1");
        }
        self.cancel.check()
    }
}

impl fmt::Debug for Transfer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer")
            .field("platform", &self.platform)
            .field("progress", &self.progress.is_some())
            .field("cancel", &self.cancel)
            .field("concurrency", &self.concurrency)
            .field("max_layer_bytes", &self.max_layer_bytes)
            .finish()
    }
}

/// The caller's callback, for several threads.
pub(super) struct Reporter<'a>(Mutex<Option<Callback<'a>>>);

impl<'a> Reporter<'a> {
    pub(super) fn new(callback: Option<Callback<'a>>) -> Self {
        Self(Mutex::new(callback))
    }

    /// Tells the caller. One at a time, from the thread that did the work.
    pub(super) fn report(&self, progress: Progress) {
        // A callback that panicked in another thread ends the work there; here it is called no more.
        if let Ok(mut callback) = self.0.lock() {
            if let Some(callback) = callback.as_mut() {
                callback(progress);
            }
        }
    }
}

/// Where reports go: see [`Reporter::report`].
pub(super) type Report<'a> = dyn Fn(Progress) + Sync + 'a;

/// How often a stream reports, at most.
const INTERVAL: Duration = Duration::from_millis(100);

/// A stream that counts, reports, hears cancel, and refuses to be longer than promised.
pub(super) struct Metered<'a, R> {
    pub(super) inner: R,
    pub(super) item: &'a str,
    pub(super) phase: Phase,
    pub(super) bytes: u64,
    /// The promised length.
    pub(super) total: u64,
    pub(super) report: &'a Report<'a>,
    pub(super) reported: Instant,
    pub(super) cancel: &'a Cancel,
    /// Set when another layer of the same image failed.
    pub(super) abandoned: &'a AtomicBool,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.check()?;
        if self.abandoned.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Cancelled, "another layer failed").into());
        }
        let count = self.inner.read(buffer).map_err(|e| {
            // A cancel ends a blocked read with whatever error the connection gives.
            if let Err(cancelled) = self.cancel.check() {
                return cancelled.into();
            }
            let own = e.get_ref().is_some_and(|cause| cause.is::<Error>());
            // Decompressors take any other error for one of their own.
            if own || e.kind() == io::ErrorKind::Interrupted { e } else { Error::from_io("read", e).into() }
        })?;
        self.bytes += u64::try_from(count).unwrap_or(u64::MAX);
        if self.bytes > self.total {
            let why = format!("{}: longer than the {} bytes that were promised", self.item, self.total);
            return Err(Error::new(ErrorKind::DigestMismatch, why).into());
        }
        if self.reported.elapsed() >= INTERVAL || self.bytes == self.total && count > 0 {
            self.reported = Instant::now();
            (self.report)(Progress::new(self.item, self.phase, self.bytes, Some(self.total)));
        }
        Ok(count)
    }
}
