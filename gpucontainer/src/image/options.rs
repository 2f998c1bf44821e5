//! What pulls, imports and pushes have in common: platform, limits, progress, cancel, the way to a registry.

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

/// The setters of what brings images into the store, for options that hold the common part as `transfer`.
macro_rules! transfer_setters {
    () => {
        /// Which platform, of an image that is there for several. Default: [`Platform::host`].
        #[must_use]
        pub fn platform(mut self, platform: Platform) -> Self {
            self.transfer.platform = platform;
            self
        }

        /// Refuses a layer that unpacks to more than `bytes`. Default: 64 GiB.
        #[must_use]
        pub fn max_layer_bytes(mut self, bytes: u64) -> Self {
            self.transfer.max_layer_bytes = bytes;
            self
        }

        $crate::image::options::work_setters!();
    };
}

/// The setters of all long work on images.
macro_rules! work_setters {
    () => {
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
    };
}

/// The setters of how a registry is reached, for options that hold that as `access`.
#[cfg(feature = "registry")]
macro_rules! access_setters {
    () => {
        /// Who is asking. Default: what `docker login` or `podman login` left for the registry in
        /// `$REGISTRY_AUTH_FILE`, `$XDG_RUNTIME_DIR/containers/auth.json`, `~/.config/containers/auth.json` or
        /// `~/.docker/config.json` (the first that knows it), else nobody. Credential helpers, which are
        /// programs, are not run.
        #[must_use]
        pub fn credentials(mut self, credentials: Credentials) -> Self {
            self.access.credentials = Some(credentials);
            self
        }

        /// Whether the registry is asked without encryption. Default: only if it is on this machine
        /// (`localhost`, `127.0.0.0/8`, `[::1]`).
        #[must_use]
        pub fn plain_http(mut self, plain: bool) -> Self {
            self.access.plain_http = Some(plain);
            self
        }

        /// Trusts one more certificate authority, or a few: certificates in PEM form. The authorities that the
        /// host trusts are trusted in any case.
        #[must_use]
        pub fn certificate_authority(mut self, pem: impl Into<Vec<u8>>) -> Self {
            self.access.authorities.push(pem.into());
            self
        }

        /// Gives up on a peer that says nothing for so long; then the request is repeated a few times.
        /// At least one millisecond. Default: 30 seconds.
        #[must_use]
        pub fn timeout(mut self, silence: Duration) -> Self {
            self.access.timeout = Some(silence);
            self
        }
    };
}

#[cfg(feature = "registry")]
pub(super) use access_setters;
pub(super) use transfer_setters;
pub(super) use work_setters;

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
    /// The promised length, if one was.
    pub(super) total: Option<u64>,
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
        if let Some(total) = self.total.filter(|total| self.bytes > *total) {
            let why = format!("{}: longer than the {total} bytes that were promised", self.item);
            return Err(Error::new(ErrorKind::DigestMismatch, why).into());
        }
        if self.reported.elapsed() >= INTERVAL || self.total == Some(self.bytes) && count > 0 {
            self.reported = Instant::now();
            (self.report)(Progress::new(self.item, self.phase, self.bytes, self.total));
        }
        Ok(count)
    }
}
