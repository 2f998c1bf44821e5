//! MIG devices for those who ask: one that is there and idle, or else one that is made, and destroyed in the end.
//!
//! Everything that changes a GPU is written down before it is done; see [`journal`].

use crate::claim::Claim;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::allocator::fit::{self, Kind, SplitGpu};
use crate::gpu::allocator::journal::{self, Entry};
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::inventory::{MigDevice, nvml as library};
use crate::sys::fs;
use crate::sys::lock::{Lock, Mode};
use crate::sys::mig::{Failure, GpuInstance, Splitter};
use crate::sys::nvml::close;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// No host has more GPUs; a larger number is a damaged library's.
const MAX_GPUS: u32 = 256;

/// The MIG devices of a host, as this library makes and destroys them.
///
/// Any number of processes may use the same directory. What a process made that died, at whatever moment, is destroyed
/// by the next one that opens or acquires; what the living hold is left alone, and so is what this library did not make.
/// Making and destroying takes root, or the right to the driver's capability `mig/config`.
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
        let _lock = devices.lock()?;
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
        let lock = self.lock().with_context(wanted)?;
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
        let _lock = self.lock()?;
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

    fn lock(&self) -> Result<Lock> {
        Lock::wait(&self.directory.join("lock"), Mode::Exclusive)
    }

    fn with_library<T>(&self, work: impl FnOnce(&Nvml) -> Result<T>) -> Result<T> {
        let nvml = library::open(&self.root).map_err(|reason| Error::new(ErrorKind::GpuUnavailable, reason))?;
        let result = work(&nvml);
        if let Err(e) = close(nvml) {
            tracing::warn!(error = %e, "nvmlShutdown");
        }
        result
    }

    /// Destroys what dead owners left, under the lock.
    fn tidy(&self, nvml: &Nvml) -> Result<()> {
        for claim in Claim::abandoned(&self.directory)? {
            let undone = match Entry::parse(&claim.note()?) {
                Some(entry) => undo(nvml, &entry),
                // Its owner died before it had written down what it would do, and so before doing it.
                None => Ok(()),
            };
            match undone {
                Ok(()) => claim.release()?,
                // The claim stays, free, for the next comer.
                Err(error) => tracing::warn!(%error, "a MIG device of a dead owner stays for now"),
            }
        }
        Ok(())
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
            match describe(nvml, &device) {
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

/// The GPUs of NVML whose UUID is asked for, by index. One that does not answer is left out.
fn gpus<'a>(nvml: &'a Nvml, among: &[&str]) -> Result<Vec<(String, Device<'a>)>> {
    let count = nvml.device_count().map_err(|e| failed("the driver", ("nvmlDeviceGetCount", e)))?;
    let devices = (0..count.min(MAX_GPUS)).filter_map(|index| nvml.device_by_index(index).ok());
    let named = devices.filter_map(|device| Some((device.uuid().ok()?, device)));
    Ok(named.filter(|(uuid, _)| among.is_empty() || among.contains(&uuid.as_str())).collect())
}

fn find<'a>(nvml: &'a Nvml, gpu: &str) -> Result<Device<'a>> {
    nvml.device_by_uuid(gpu).map_err(|e| failed(gpu, ("nvmlDeviceGetHandleByUUID", e)))
}

/// What a call on `subject` that failed means.
fn failed(subject: &str, (call, error): Failure) -> Error {
    let kind = match &error {
        NvmlError::NoPermission => ErrorKind::PermissionDenied,
        NvmlError::InUse => ErrorKind::Busy,
        NvmlError::NotSupported | NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_) => {
            ErrorKind::Unsupported
        }
        _ => ErrorKind::GpuUnavailable,
    };
    Error::new(kind, format!("{call}({subject}): {error}")).with_cause(error)
}

/// Whether the GPU is split now.
fn is_split(device: &Device<'_>) -> bool {
    device.mig_mode().is_ok_and(|mode| mode.current == 1)
}

/// What a GPU in MIG mode offers and has.
fn describe(nvml: &Nvml, device: &Device<'_>) -> Result<Option<SplitGpu>, Failure> {
    if !is_split(device) {
        return Ok(None);
    }
    let splitter = Splitter::new(nvml, device);
    let profiles = splitter.profiles()?;
    let taken: Vec<GpuInstance> = splitter.gpu_instances(&profiles)?;
    let mut kinds = Vec::new();
    for profile in profiles {
        let made = taken.iter().filter(|instance| instance.profile == profile.id).count();
        // The driver knows limits of its own, such as engines that only one instance can have.
        let left = splitter.remaining(profile.id)?;
        let instances = profile.instances.min(left.saturating_add(u32::try_from(made).unwrap_or(u32::MAX)));
        let spans = splitter.placements(profile.id)?;
        kinds.push(Kind { id: profile.id, name: profile.name, slices: profile.slices, instances, spans });
    }
    let taken = taken.into_iter().map(|instance| (instance.profile, instance.span)).collect();
    Ok(Some(SplitGpu { kinds, taken }))
}

fn why_not(gpu: &str, state: &SplitGpu, profile: &str) -> String {
    let name = |id: u32| state.kinds.iter().find(|kind| kind.id == id).map_or("?", |kind| kind.name.as_str());
    if !state.kinds.iter().any(|kind| kind.name == profile) {
        let names: Vec<&str> = state.kinds.iter().map(|kind| kind.name.as_str()).collect();
        return format!("{gpu} offers {} only", names.join(", "));
    }
    let taken: Vec<String> = state.taken.iter().map(|(id, span)| format!("{} at {}", name(*id), span.start)).collect();
    format!("{gpu} has no room beside {}", if taken.is_empty() { "nothing".to_owned() } else { taken.join(", ") })
}

/// Makes what `entry` says, writing down each step.
fn make(nvml: &Nvml, device: &Device<'_>, claim: &Claim, entry: &mut Entry) -> Result<MigDevice> {
    let splitter = Splitter::new(nvml, device);
    let gpu = entry.gpu.clone();
    let instance = splitter.create_gpu_instance(entry.profile, entry.span()).map_err(|e| failed(&gpu, e))?;
    entry.gpu_instance = Some(instance);
    journal::proceed(claim, entry)?;
    splitter.create_compute_instance(instance).map_err(|e| failed(&gpu, e))?;
    let slice = library::mig_devices(nvml, device).into_iter().find(|slice| slice.gpu_instance == instance);
    let missing = || Error::new(ErrorKind::GpuUnavailable, format!("{gpu} does not list the MIG device just made"));
    let slice = slice.ok_or_else(missing)?;
    entry.device = Some(slice.uuid.clone());
    journal::proceed(claim, entry)?;
    Ok(slice)
}

/// Destroys what `entry` stands for, as far as it is there and still the same.
fn undo(nvml: &Nvml, entry: &Entry) -> Result<()> {
    if entry.found {
        return Ok(());
    }
    let device = find(nvml, &entry.gpu)?;
    if !is_split(&device) {
        // With the mode all instances are gone.
        return Ok(());
    }
    let splitter = Splitter::new(nvml, &device);
    let fail = |e| failed(&entry.gpu, e);
    let instances = splitter.gpu_instances(&splitter.profiles().map_err(fail)?).map_err(fail)?;
    let same = |instance: &&GpuInstance| {
        let place = (instance.profile, instance.span) == (entry.profile, entry.span());
        place && entry.gpu_instance.is_none_or(|id| id == instance.id)
    };
    let Some(instance) = instances.iter().find(same) else { return Ok(()) };
    let slices = library::mig_devices(nvml, &device);
    let mut inside = slices.iter().filter(|slice| slice.gpu_instance == instance.id);
    // After a reset of the GPU somebody else may have made another one at the same place.
    if entry.device.as_ref().is_some_and(|uuid| inside.clone().any(|slice| slice.uuid != *uuid)) {
        return Ok(());
    }
    if let Some(used) = inside.find(|slice| !slice.processes.is_empty()) {
        let users = used.processes.iter().map(u32::to_string).collect::<Vec<String>>().join(", ");
        return Err(Error::new(ErrorKind::Busy, format!("{} is used by process {users}", used.uuid)));
    }
    for compute in splitter.compute_instances(instance.id).map_err(fail)? {
        splitter.destroy_compute_instance(instance.id, compute).map_err(fail)?;
    }
    splitter.destroy_gpu_instance(instance.id).map_err(fail)
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
        let _lock = self.devices.lock().with_context(wanted)?;
        if self.created {
            let entry = Entry::parse(&self.claim.note()?);
            let undone = |nvml: &Nvml| entry.as_ref().map_or(Ok(()), |entry| undo(nvml, entry));
            self.devices.with_library(undone).with_context(wanted)?;
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
