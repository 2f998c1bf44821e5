//! GPUs that are kept from new leases because something is wrong with them, with the reason and the time.
//!
//! ```text
//! <directory>/           on tmpfs, writable for its owner alone
//!   lock                 held while a file is changed
//!   GPU-….json           why the GPU is kept back, and up to where the kernel's log was read
//! ```

use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::allocator::health::xid::{XidAction, logged};
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::inventory::{Gpu, Inventory};
use crate::sys::cgroup::effective_user;
use crate::sys::fs;
use crate::sys::lock::{Lock, Mode};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// What is wrong with a GPU.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GpuFault {
    /// The driver reported the XID of this number, and its action is none that an application could take.
    Xid(u64),
    /// It has fallen off the bus.
    Lost,
    /// Its memory had errors that could not be corrected, since the driver was loaded or the GPU reset.
    UncorrectableErrors,
    /// Rows or pages of its memory wait for a reset to be replaced.
    ReplacementPending,
    /// A row of its memory could not be replaced.
    ReplacementFailed,
    /// Somebody wants it so.
    Requested,
    /// What was written down of it is damaged.
    Unknown,
}

impl fmt::Display for GpuFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xid(number) => write!(f, "XID {number}: {}", XidAction::of(*number)),
            Self::Lost => f.write_str("lost: it has fallen off the bus"),
            Self::UncorrectableErrors => f.write_str("its memory had errors that could not be corrected"),
            Self::ReplacementPending => f.write_str("damaged memory waits for a reset to be replaced"),
            Self::ReplacementFailed => f.write_str("damaged memory could not be replaced"),
            Self::Requested => f.write_str("kept back on request"),
            Self::Unknown => f.write_str("kept back for a reason that can no longer be read"),
        }
    }
}

impl GpuFault {
    /// What the GPU's own account of its condition says against it.
    pub fn of(gpu: &Gpu) -> Vec<Self> {
        let health = &gpu.health;
        let rows = health.remapped_rows.unwrap_or_default();
        let table = [
            (health.lost, Self::Lost),
            (health.uncorrectable_errors.is_some_and(|number| number > 0), Self::UncorrectableErrors),
            (rows.pending || health.retirement_pending == Some(true), Self::ReplacementPending),
            (rows.failed, Self::ReplacementFailed),
        ];
        table.into_iter().filter(|(found, _)| *found).map(|(_, fault)| fault).collect()
    }

    /// Whether the GPU's account shows that the fault is gone, as it is after a reset.
    fn is_gone(self, gpu: &Gpu) -> bool {
        if gpu.health.lost {
            return false;
        }
        match self {
            Self::Lost | Self::Xid(79) => true,
            // A reset sets the counter to 0; a model without one says nothing.
            Self::Xid(48 | 95 | 140) => gpu.health.uncorrectable_errors == Some(0),
            Self::Xid(64) => gpu.health.remapped_rows.is_some_and(|rows| !rows.failed && !rows.pending),
            Self::Xid(_) | Self::Requested | Self::Unknown => false,
            fact => !Self::of(gpu).contains(&fact),
        }
    }
}

/// Why a GPU is kept from new leases, and since when.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct QuarantinedGpu {
    /// Its UUID.
    pub gpu: String,
    /// What is wrong, the first seen first; never empty.
    pub faults: Vec<GpuFault>,
    /// When the first was seen.
    pub since: SystemTime,
}

impl fmt::Display for QuarantinedGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        write!(f, "{} in quarantine since second {seconds} of Unix time: {}", self.gpu, self.reason())
    }
}

impl QuarantinedGpu {
    /// What is wrong, in words.
    pub fn reason(&self) -> String {
        self.faults.iter().map(ToString::to_string).collect::<Vec<String>>().join("; ")
    }
}

/// The GPUs of a host that get no new leases.
///
/// Nothing here watches by itself: a caller gives it what it sees, by [`review`](Self::review),
/// [`read_kernel_log`](Self::read_kernel_log) or an XID of an `XidWatch` by [`report`](Self::report).
#[derive(Clone, Debug)]
pub struct Quarantine {
    directory: PathBuf,
}

/// What is written down of a GPU.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Record {
    faults: Vec<GpuFault>,
    /// Seconds and nanoseconds of Unix time.
    since: (u64, u32),
    /// The newest XID of the kernel's log that was taken in, in microseconds of the log's clock.
    log: u64,
}

impl Quarantine {
    /// The quarantine that is written down in `directory`, which need not be there yet. It must be on a tmpfs, as
    /// a new start of the machine ends every quarantine, and writable for trusted users alone.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The GPUs in quarantine, by UUID. Only that of root and of the calling user counts.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`]. A damaged file is none: its GPU is kept back.
    pub fn list(&self) -> Result<Vec<QuarantinedGpu>> {
        let owner = match fs::symlink_metadata(&self.directory) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            metadata => metadata?.uid(),
        };
        if owner != 0 && owner != effective_user() {
            tracing::warn!(directory = ?self.directory, owner, "the quarantine of another user does not count");
            return Ok(Vec::new());
        }
        let paths = fs::read_dir(&self.directory)?;
        let mut found = BTreeMap::new();
        for gpu in paths.iter().filter_map(|path| path.file_name()?.to_str()?.strip_suffix(".json")) {
            let record = self.read(gpu)?;
            let (seconds, nanoseconds) = record.since;
            if !record.faults.is_empty() {
                let since = Duration::new(seconds, nanoseconds.min(999_999_999));
                // A time that no clock can show is damage.
                let since = SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH);
                found.insert(gpu.to_owned(), QuarantinedGpu { gpu: gpu.to_owned(), faults: record.faults, since });
            }
        }
        Ok(found.into_values().collect())
    }

    /// Keeps a GPU back, by UUID; whether the fault is new. An XID that concerns the application only changes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for what is no UUID; [`ErrorKind::PermissionDenied`], [`ErrorKind::NoSpace`].
    pub fn report(&self, gpu: &str, fault: GpuFault) -> Result<bool> {
        if matches!(fault, GpuFault::Xid(number) if !XidAction::of(number).quarantines()) {
            return Ok(false);
        }
        self.change(gpu, |record| record.add(fault, SystemTime::now()))
            .with_context(|| format!("put {gpu} into quarantine"))
    }

    /// Lets a GPU be leased again, whatever the reason was; whether it was kept back. The same XIDs in the kernel's
    /// log do not count again.
    ///
    /// # Errors
    /// Those of [`report`](Self::report).
    pub fn release(&self, gpu: &str) -> Result<bool> {
        let release = |record: &mut Record| !std::mem::take(&mut record.faults).is_empty();
        self.change(gpu, release).with_context(|| format!("release {gpu} from quarantine"))
    }

    /// Takes in what the GPUs say of themselves: new faults count, and those that a reset has mended count no more.
    /// Returns who is in quarantine then.
    ///
    /// XIDs whose end no GPU tells stay until [`release`](Self::release), and so does what is not in the inventory.
    ///
    /// # Errors
    /// Those of [`report`](Self::report).
    pub fn review(&self, inventory: &Inventory) -> Result<Vec<QuarantinedGpu>> {
        let known = self.list()?;
        for gpu in inventory.gpus() {
            let faults = GpuFault::of(gpu);
            let before =
                known.iter().find(|one| one.gpu == gpu.uuid).map(|one| one.faults.as_slice()).unwrap_or_default();
            let new = faults.iter().any(|fault| !before.contains(fault));
            if new || before.iter().any(|fault| fault.is_gone(gpu)) {
                self.change(&gpu.uuid, |record| {
                    record.faults.retain(|fault| !fault.is_gone(gpu));
                    for fault in &faults {
                        record.add(*fault, SystemTime::now());
                    }
                    true
                })
                .context("review the health of GPUs")?;
            }
        }
        self.list()
    }

    /// Takes in the XIDs that the kernel's log still has from before anybody watched, each once; how many count.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] where ordinary users may not read `/dev/kmsg`, and those of
    /// [`report`](Self::report).
    pub fn read_kernel_log(&self, root: &DriverRoot, inventory: &Inventory) -> Result<usize> {
        let mut counted = 0;
        let records = fs::read_kernel_log(&root.join("/dev/kmsg")).context("read XIDs of the kernel's log")?;
        let xids: Vec<_> = records.iter().filter_map(|record| logged(record)).collect();
        for gpu in inventory.gpus() {
            let ours = |address: &str| gpu.pci_bus_id.strip_prefix(address).is_some_and(|rest| rest.starts_with('.'));
            let own: Vec<_> = xids.iter().filter(|xid| ours(&xid.address)).collect();
            let Some(newest) = own.iter().map(|xid| xid.microseconds).max() else { continue };
            self.change(&gpu.uuid, |record| {
                let until = record.log;
                for xid in own.iter().filter(|xid| xid.microseconds > until) {
                    let fault = GpuFault::Xid(xid.number);
                    // One that a reset has mended since is history.
                    if XidAction::of(xid.number).quarantines() && !fault.is_gone(gpu) {
                        counted += usize::from(record.add(fault, SystemTime::now()));
                    }
                }
                record.log = record.log.max(newest);
                true
            })?;
        }
        Ok(counted)
    }

    fn path(&self, gpu: &str) -> PathBuf {
        self.directory.join(format!("{gpu}.json"))
    }

    fn read(&self, gpu: &str) -> Result<Record> {
        let path = self.path(gpu);
        let bytes = match fs::read_small(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Record::default()),
            bytes => bytes?,
        };
        Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(%error, ?path, "a damaged quarantine keeps its GPU back");
            let written = fs::metadata(&path).and_then(|m| m.modified().map_err(|e| Error::from_io("modified", e)));
            let mut record = Record::default();
            record.add(GpuFault::Unknown, written.unwrap_or_else(|_| SystemTime::now()));
            record
        }))
    }

    fn change(&self, gpu: &str, change: impl FnOnce(&mut Record) -> bool) -> Result<bool> {
        // It becomes the name of a file.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b':' | b'.');
        if gpu.is_empty() || gpu.len() > 128 || gpu.starts_with('.') || !gpu.bytes().all(plain) {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("{gpu:?} is no UUID of a GPU")));
        }
        if fs::symlink_metadata(&self.directory).is_err() {
            fs::create_dir_all(&self.directory)?;
            fs::set_mode(&self.directory, 0o755)?;
        }
        if fs::symlink_metadata(&self.directory)?.uid() != effective_user() {
            let why = format!("the quarantine {:?} belongs to another user", self.directory);
            return Err(Error::new(ErrorKind::PermissionDenied, why).with_path(&self.directory));
        }
        let _lock = Lock::wait(&self.directory.join("lock"), Mode::Exclusive)?;
        let mut record = self.read(gpu)?;
        let changed = change(&mut record);
        let new = self.directory.join(format!("{gpu}.new"));
        let text = serde_json::to_vec(&record).map_err(|e| Error::from_io("serialise a quarantine", e.into()))?;
        fs::write(&new, &text)?;
        fs::rename(&new, &self.path(gpu))?;
        Ok(changed)
    }

    /// Where the quarantine is written down.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Record {
    fn add(&mut self, fault: GpuFault, seen: SystemTime) -> bool {
        if self.faults.contains(&fault) {
            return false;
        }
        if self.faults.is_empty() {
            let since = seen.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.since = (since.as_secs(), since.subsec_nanos());
        }
        self.faults.push(fault);
        true
    }
}
