//! MIG devices for those who ask: one that is there and idle, or else one that is made, and destroyed in the end.
//!
//! Everything that changes a GPU is written down before it is done; see [`journal`].

use crate::claim::Claim;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::allocator::mig::fit;
use crate::gpu::allocator::mig::instances::{Undone, describe, failed, find, gpus, make, undo, why_not};
use crate::gpu::allocator::mig::journal::{self, Entry};
use crate::gpu::allocator::patience::Patience;
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::inventory::{MigDevice, nvml as library};
use crate::progress::Cancel;
use crate::sys::fs;
use crate::sys::lock::{Lock, Mode};
use crate::sys::mig::Splitter;
use crate::sys::nvml::close;
use crate::sys::process::own_pid;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long somebody may split GPUs, of which each step can take a second, before it is taken for stuck.
const PATIENCE: Duration = Duration::from_secs(120);

/// The MIG devices of a host, as this library makes and destroys them.
///
/// Any number of processes may use the same directory. What a process made that died, at whatever moment, is destroyed
/// by the next one that opens or acquires; what the living hold is left alone, and so is what this library did not make.
/// Making and destroying takes root, or the right to the driver's capability `mig/config`.
///
/// A [`GpuAllocator`](crate::gpu::GpuAllocator) makes MIG devices for its own leases, and keeps an account of its own: it
/// does not know of leases that are taken here, nor are its known here. On one host take them from one of the two.
#[derive(Clone, Debug)]
pub struct MigDevices {
    root: DriverRoot,
    directory: PathBuf,
}

/// A MIG device that belongs to its holder until this is released or dropped.
///
/// If the holder dies, the device stays until the next process that opens the same [`MigDevices`] destroys it.
/// A process that inherits the descriptor ([`AsFd`]) holds the lease as well.
#[derive(Debug)]
pub struct MigLease {
    devices: MigDevices,
    gpu: String,
    device: MigDevice,
    created: bool,
    claim: Claim,
    /// Whether it still has to be given back.
    held: bool,
}

/// What came of [`MigDevices::set_mode`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum MigModeChange {
    /// The GPU was in that mode.
    Unchanged,
    /// The GPU is in that mode now.
    Changed,
    /// The GPU will be in that mode after its next reset, which nothing here does.
    NeedsReset,
}

impl MigDevices {
    /// The MIG devices of the GPUs whose driver is in `root`. `directory`, made if it is not there, must be on a tmpfs,
    /// and writable for those only who may split GPUs.
    ///
    /// Destroys what dead owners left. What cannot be destroyed now, as a process uses it, is tried again later.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] or [`ErrorKind::NoSpace`] for the directory,
    /// [`ErrorKind::GpuUnavailable`] if there is something to destroy and the driver cannot be asked.
    pub fn open(root: &DriverRoot, directory: impl Into<PathBuf>) -> Result<Self> {
        let devices = Self { root: root.clone(), directory: directory.into() };
        fs::create_dir_all(&devices.directory)?;
        let _lock = devices.lock(&Patience::of(&Cancel::new()))?;
        if fs::read_dir(&devices.directory)?.len() > 1 {
            devices.with_library(|nvml| devices.tidy(nvml)).context("destroy what dead owners left")?;
        }
        Ok(devices)
    }

    /// A device of the profile, as in `1g.10gb`, on one of the GPUs `among`, by UUID; empty means on any.
    ///
    /// An idle device that is there comes first, on the GPU with the lowest index. Else one is made, where the most
    /// large instances are still possible afterwards, then the most of the next size; equal places go to the first GPU.
    ///
    /// # Errors
    /// [`ErrorKind::GpuUnavailable`] with the state of each GPU: not in MIG mode, which is never changed unasked;
    /// no such profile; no room. [`ErrorKind::PermissionDenied`] if making one is not allowed. Nothing stays then.
    pub fn acquire(&self, profile: &str, among: &[&str]) -> Result<MigLease> {
        let wanted = || format!("acquire a MIG device {profile:?}");
        let lock = self.lock(&Patience::of(&Cancel::new())).with_context(wanted)?;
        let lease = self.with_library(|nvml| {
            self.tidy(nvml)?;
            self.reuse(nvml, profile, among)?.map_or_else(|| self.create(nvml, profile, among), Ok)
        });
        drop(lock);
        lease.with_context(wanted)
    }

    /// Switches MIG mode of a GPU on or off. Nothing else in this library does.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if a process or a MIG device is on the GPU, [`ErrorKind::Unsupported`] if it has no such
    /// mode, [`ErrorKind::PermissionDenied`] for all but root.
    pub fn set_mode(&self, gpu: &str, enabled: bool) -> Result<MigModeChange> {
        let word = if enabled { "on" } else { "off" };
        let _lock = self.lock(&Patience::of(&Cancel::new()))?;
        let change = |nvml: &Nvml| {
            let device = find(nvml, gpu)?;
            let mode = device.mig_mode().map_err(|e| failed(gpu, ("nvmlDeviceGetMigMode", e)))?;
            let wanted = u32::from(enabled);
            if (mode.current, mode.pending) == (wanted, wanted) {
                return Ok(MigModeChange::Unchanged);
            }
            match Splitter::new(nvml, &device).set_mode(enabled).map_err(|e| failed(gpu, e))? {
                Ok(()) => Ok(MigModeChange::Changed),
                Err(NvmlError::ResetRequired) => Ok(MigModeChange::NeedsReset),
                Err(e) => Err(failed(gpu, ("nvmlDeviceSetMigMode", e))),
            }
        };
        self.with_library(change).with_context(|| format!("switch MIG mode of {gpu} {word}"))
    }

    /// Those of the directory, which is there already; nothing is tidied up.
    pub(in crate::gpu::allocator) fn of(root: &DriverRoot, directory: PathBuf) -> Self {
        Self { root: root.clone(), directory }
    }

    /// Keeps everybody else from splitting GPUs, and from choosing MIG devices.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if somebody does not let go of it in time, such as a process that was stopped just then.
    pub(in crate::gpu::allocator) fn lock(&self, patience: &Patience<'_>) -> Result<Gate> {
        let path = self.directory.join("lock");
        let gate = Gate::wait(&path, patience, || Lock::try_take(&path, Mode::Exclusive))?;
        // For those who choose MIG devices and may not make any, whatever the mask of who made it, and also if that one
        // came no further.
        journal::set_own_mode(&path, 0o644)?;
        Ok(gate)
    }

    /// Keeps others from splitting GPUs while MIG devices are chosen; `None` if nobody ever has split any here.
    pub(in crate::gpu::allocator) fn share(&self, patience: &Patience<'_>) -> Result<Option<Gate>> {
        let path = self.directory.join("lock");
        match Gate::wait(&path, patience, || Lock::try_share(&path)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            gate => gate.map(Some),
        }
    }

    pub(in crate::gpu::allocator) fn with_library<T>(&self, work: impl FnOnce(&Nvml) -> Result<T>) -> Result<T> {
        let nvml = library::open(&self.root).map_err(|reason| Error::new(ErrorKind::GpuUnavailable, reason))?;
        let result = work(&nvml);
        if let Err(e) = close(nvml) {
            tracing::warn!(error = %e, "nvmlShutdown");
        }
        result
    }

    /// Destroys what dead owners left, under the lock; what could not be destroyed, and why.
    pub(in crate::gpu::allocator) fn tidy(&self, nvml: &Nvml) -> Result<Vec<(Entry, Error)>> {
        let mut left = Vec::new();
        for claim in Claim::abandoned(&self.directory)? {
            // An owner that died before it had written down what it would do has not done it.
            let Some(entry) = Entry::parse(&claim.note()?) else {
                claim.release()?;
                continue;
            };
            match undo(nvml, &entry) {
                Ok(Undone::Gone) => claim.release()?,
                Ok(Undone::Leased) => claim.leave()?,
                // The claim stays, free, for the next comer.
                Err(error) => {
                    tracing::warn!(%error, "a MIG device of a dead owner stays for now");
                    claim.leave()?;
                    left.push((entry, error));
                }
            }
        }
        Ok(left)
    }

    /// Destroys what dead owners left, if there is anything; what could not be destroyed, and why. Without `patience`
    /// somebody who just splits GPUs is not waited for: such a one does the same.
    pub(in crate::gpu::allocator) fn tidy_up(&self, patience: bool) -> Result<Vec<(Entry, Error)>> {
        if !journal::is_untidy(&self.directory)? {
            return Ok(Vec::new());
        }
        let _lock = match patience {
            true => self.lock(&Patience::of(&Cancel::new()))?,
            false => match Lock::try_take(&self.directory.join("lock"), Mode::Exclusive)? {
                Some(lock) => Gate::new(lock),
                None => return Ok(Vec::new()),
            },
        };
        self.with_library(|nvml| self.tidy(nvml)).context("destroy MIG devices of leases that are over")
    }

    /// An idle device that is there already.
    fn reuse(&self, nvml: &Nvml, profile: &str, among: &[&str]) -> Result<Option<MigLease>> {
        let leased = journal::entries(&self.directory)?;
        for (gpu, device) in gpus(nvml, among)? {
            for slice in library::mig_devices(nvml, &device) {
                let taken = |entry: &Entry| {
                    let same = entry.gpu_instance == Some(slice.gpu_instance);
                    entry.gpu == gpu && (same || entry.device.as_ref() == Some(&slice.uuid))
                };
                if slice.profile != profile || !slice.processes.is_empty() || leased.iter().any(taken) {
                    continue;
                }
                let entry = Entry {
                    gpu: gpu.clone(),
                    profile: 0,
                    start: 0,
                    size: 0,
                    gpu_instance: None,
                    device: Some(slice.uuid.clone()),
                    found: true,
                    leases: None,
                };
                let claim = journal::begin(&self.directory, &entry)?;
                let devices = self.clone();
                return Ok(Some(MigLease { devices, gpu, device: slice, created: false, claim, held: true }));
            }
        }
        Ok(None)
    }

    fn create(&self, nvml: &Nvml, profile: &str, among: &[&str]) -> Result<MigLease> {
        let (mut split, mut places, mut reasons) = (Vec::new(), Vec::new(), Vec::new());
        for (gpu, device) in gpus(nvml, among)? {
            match describe(nvml, (&gpu, &device), &[]) {
                Ok(Some(state)) => {
                    reasons.push(why_not(&gpu, &state, profile));
                    split.push(state);
                    places.push((gpu, device));
                }
                Ok(None) => reasons.push(format!("{gpu} is not in MIG mode")),
                Err(e) => reasons.push(failed(&gpu, e).to_string()),
            }
        }
        let Some(fit) = fit::best(&split, profile) else {
            let reasons = if reasons.is_empty() { "there is no such GPU".to_owned() } else { reasons.join("; ") };
            return Err(Error::new(ErrorKind::GpuUnavailable, reasons));
        };
        let (gpu, device) = &places[fit.gpu];
        let mut entry = Entry {
            gpu: gpu.clone(),
            profile: fit.kind,
            start: fit.span.start,
            size: fit.span.size,
            gpu_instance: None,
            device: None,
            found: false,
            leases: None,
        };
        let claim = journal::begin(&self.directory, &entry)?;
        match make(nvml, device, &claim, &mut entry) {
            Ok(slice) => {
                let devices = self.clone();
                Ok(MigLease { devices, gpu: gpu.clone(), device: slice, created: true, claim, held: true })
            }
            Err(error) => {
                // The error to report is the first. A claim that stays is the next comer's to try again.
                if undo(nvml, &entry).is_ok() {
                    let _ = claim.release();
                }
                Err(error)
            }
        }
    }

    /// Where the leases are written down.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// A held lock on the GPUs that are split.
#[derive(Debug)]
pub(in crate::gpu::allocator) struct Gate {
    lock: Lock,
    owner: u32,
}

impl Gate {
    fn new(lock: Lock) -> Self {
        Self { lock, owner: own_pid() }
    }

    fn wait(path: &Path, patience: &Patience<'_>, take: impl Fn() -> Result<Option<Lock>>) -> Result<Self> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(50);
        loop {
            if let Some(lock) = take()? {
                return Ok(Self::new(lock));
            }
            patience.check()?;
            let waited = start.elapsed();
            if waited > PATIENCE || patience.is_over() {
                let who = if waited > PATIENCE { "a stopped process?" } else { "who makes or destroys MIG devices" };
                let why = format!("somebody has held {} for {waited:.0?}: {who}", path.display());
                return Err(Error::new(ErrorKind::Busy, why).with_path(path));
            }
            // There is no call that waits for such a lock with a limit.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // The lock belongs to all copies of the descriptor: a forked child must not end that of its parent, nor keep it.
        if self.owner == own_pid() {
            // Closing it does the same where nobody else has it.
            let _ = self.lock.free();
        }
    }
}

impl MigLease {
    /// The device, as it was when it was acquired.
    pub fn device(&self) -> &MigDevice {
        &self.device
    }

    /// The UUID of the device, `MIG-…`, by which a [`GpuRequest`](crate::gpu::GpuRequest) can name it.
    pub fn uuid(&self) -> &str {
        &self.device.uuid
    }

    /// The UUID of the GPU that it is a part of.
    pub fn gpu(&self) -> &str {
        &self.gpu
    }

    /// Whether the device was made for this lease, and is destroyed with it.
    pub fn created(&self) -> bool {
        self.created
    }

    /// Gives the device back; destroys it if it was made for this lease. Dropping does the same, and keeps quiet about
    /// errors.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if a process still uses the device. It stays then, and the next process that opens or
    /// acquires tries again.
    pub fn release(mut self) -> Result<()> {
        self.give_back()
    }

    /// Leaves the lease to those who inherited its descriptor: this process no longer holds it, and the device is
    /// destroyed by the next comer after the last of them has ended.
    pub fn leave(mut self) {
        self.held = false;
    }

    fn give_back(&mut self) -> Result<()> {
        // Not a second time when dropped after a failure: the claim is free then, and the next comer's.
        if !std::mem::take(&mut self.held) {
            return Ok(());
        }
        let wanted = || format!("give back {}", self.device.uuid);
        let _lock = self.devices.lock(&Patience::of(&Cancel::new())).with_context(wanted)?;
        if let Some(entry) = Entry::parse(&self.claim.note()?).filter(|_| self.created) {
            self.devices.with_library(|nvml| undo(nvml, &entry)).with_context(wanted)?;
        }
        self.claim.release_in_place().with_context(wanted)
    }
}

impl AsFd for MigLease {
    /// The descriptor that holds the lease.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.claim.as_fd()
    }
}

impl Drop for MigLease {
    fn drop(&mut self) {
        if let Err(error) = self.give_back() {
            tracing::warn!(%error, "a MIG device stays for now");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_for_who_splits_gpus_has_limits() {
        let directory = tempfile::tempdir().unwrap();
        let devices = MigDevices::of(&DriverRoot::new(directory.path()), directory.path().to_owned());
        let (cancel, limit) = (Cancel::new(), Duration::from_millis(30));
        let held = devices.lock(&Patience::of(&cancel)).unwrap();
        let start = Instant::now();
        let within = || Patience { until: Instant::now().checked_add(limit), ..Patience::of(&cancel) };
        for error in [devices.lock(&within()).unwrap_err(), devices.share(&within()).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Busy);
            assert!(error.to_string().contains("who makes or destroys MIG devices"), "{error}");
        }
        let gone = || Err(Error::new(ErrorKind::Closed, "the sandbox is gone"));
        let alone = Patience { alive: Some(&gone), ..Patience::of(&cancel) };
        assert_eq!(devices.lock(&alone).unwrap_err().kind(), ErrorKind::Closed);
        cancel.cancel();
        assert_eq!(devices.share(&Patience::of(&cancel)).unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(start.elapsed() < PATIENCE);
        drop(held);
        // Who comes too late for a wait still gets what is free.
        let late = Patience { until: Some(start), ..Patience::of(&cancel) };
        drop(devices.lock(&late).unwrap());
    }
}
