//! GPU instances, as NVIDIA's management library makes, describes and destroys them.

use crate::claim::Claim;
use crate::error::{Error, ErrorKind, Result};
use crate::gpu::allocator::mig::fit::{Kind, SplitGpu};
use crate::gpu::allocator::mig::journal::{self, Entry};
use crate::gpu::allocator::slots::table::Table;
use crate::gpu::inventory::{MigDevice, nvml as library};
use crate::sys::mig::{Failure, GpuInstance, Splitter};

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

/// No host has more GPUs; a larger number is a damaged library's.
const MAX_GPUS: u32 = 256;

/// What came of destroying what an entry stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Undone {
    Gone,
    /// A lease holds the device.
    Leased,
}

/// The GPUs of NVML whose UUID is asked for, by index. One that does not answer is left out.
pub(crate) fn gpus<'a>(nvml: &'a Nvml, among: &[&str]) -> Result<Vec<(String, Device<'a>)>> {
    let count = nvml.device_count().map_err(|e| failed("the driver", ("nvmlDeviceGetCount", e)))?;
    let devices = (0..count.min(MAX_GPUS)).filter_map(|index| nvml.device_by_index(index).ok());
    let named = devices.filter_map(|device| Some((device.uuid().ok()?, device)));
    Ok(named.filter(|(uuid, _)| among.is_empty() || among.contains(&uuid.as_str())).collect())
}

pub(crate) fn find<'a>(nvml: &'a Nvml, gpu: &str) -> Result<Device<'a>> {
    nvml.device_by_uuid(gpu).map_err(|e| failed(gpu, ("nvmlDeviceGetHandleByUUID", e)))
}

/// What a call on `subject` that failed means.
pub(crate) fn failed(subject: &str, (call, error): Failure) -> Error {
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

/// Whether the GPU is split now. One that does not say so just now may well be.
fn is_split(device: &Device<'_>) -> Result<bool, Failure> {
    match device.mig_mode() {
        Ok(mode) => Ok(mode.current != 0),
        Err(NvmlError::NotSupported) => Ok(false),
        Err(e) => Err(("nvmlDeviceGetMigMode", e)),
    }
}

/// What a GPU in MIG mode offers and has. What the entries of the journal stand for goes with its leases.
pub(crate) fn describe(
    nvml: &Nvml,
    (gpu, device): (&str, &Device<'_>),
    entries: &[Entry],
) -> Result<Option<SplitGpu>, Failure> {
    if !is_split(device)? {
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
        let (id, most) = (profile.id, profile.instances);
        let (name, slices, memory) = (profile.name, profile.slices, profile.memory);
        kinds.push(Kind { id, name, slices, instances, most, memory, spans });
    }
    let owned = |instance: &&GpuInstance| entries.iter().any(|entry| !entry.found && is_instance(entry, gpu, instance));
    let temporary = taken.iter().filter(owned).map(|instance| instance.span).collect();
    let taken = taken.iter().map(|instance| (instance.profile, instance.span)).collect();
    Ok(Some(SplitGpu { kinds, taken, temporary }))
}

/// Whether the entry stands for the instance.
fn is_instance(entry: &Entry, gpu: &str, instance: &GpuInstance) -> bool {
    let place = (instance.profile, instance.span) == (entry.profile, entry.span());
    entry.gpu == gpu && place && entry.gpu_instance.is_none_or(|id| id == instance.id)
}

pub(crate) fn why_not(gpu: &str, state: &SplitGpu, profile: &str) -> String {
    let name = |id: u32| state.kinds.iter().find(|kind| kind.id == id).map_or("?", |kind| kind.name.as_str());
    if state.kind(profile).is_none() {
        let names: Vec<&str> = state.kinds.iter().map(|kind| kind.name.as_str()).collect();
        let offer = if names.is_empty() { "no profile".to_owned() } else { format!("{} only", names.join(", ")) };
        return format!("{gpu} offers {offer}");
    }
    let taken: Vec<String> = state.taken.iter().map(|(id, span)| format!("{} at {}", name(*id), span.start)).collect();
    format!("{gpu} has no room beside {}", if taken.is_empty() { "nothing".to_owned() } else { taken.join(", ") })
}

/// Makes what `entry` says, writing down each step.
pub(crate) fn make(nvml: &Nvml, device: &Device<'_>, claim: &Claim, entry: &mut Entry) -> Result<MigDevice> {
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

/// Destroys what `entry` stands for, as far as it is there and still the same, and nobody has leased it.
pub(crate) fn undo(nvml: &Nvml, entry: &Entry) -> Result<Undone> {
    if entry.found {
        return Ok(Undone::Gone);
    }
    let device = find(nvml, &entry.gpu)?;
    let fail = |e| failed(&entry.gpu, e);
    if !is_split(&device).map_err(fail)? {
        // With the mode all instances are gone.
        return Ok(Undone::Gone);
    }
    let splitter = Splitter::new(nvml, &device);
    let instances = splitter.gpu_instances(&splitter.profiles().map_err(fail)?).map_err(fail)?;
    let same = |instance: &&GpuInstance| is_instance(entry, &entry.gpu, instance);
    let Some(instance) = instances.iter().find(same) else { return Ok(Undone::Gone) };
    let slices = library::mig_devices(nvml, &device);
    let mut inside = slices.iter().filter(|slice| slice.gpu_instance == instance.id);
    // After a reset of the GPU somebody else may have made another one at the same place.
    if entry.device.as_ref().is_some_and(|uuid| inside.clone().any(|slice| slice.uuid != *uuid)) {
        return Ok(Undone::Gone);
    }
    if let Some(leases) = &entry.leases {
        // Also the one that the driver may just fail to list.
        let listed = inside.clone().map(|slice| &slice.uuid);
        let devices = listed.chain(&entry.device).cloned().collect();
        if !Table::new(leases.clone()).held(&devices)?.is_empty() {
            return Ok(Undone::Leased);
        }
    }
    if let Some(used) = inside.find(|slice| !slice.processes.is_empty()) {
        let users = used.processes.iter().map(u32::to_string).collect::<Vec<String>>().join(", ");
        return Err(Error::new(ErrorKind::Busy, format!("{} is used by process {users}", used.uuid)));
    }
    let computes = splitter.compute_instances(instance.id).map_err(fail)?;
    // Whether a process uses it, nobody knows. Without a compute instance there is no device any more.
    let unlisted = |device: &&String| !computes.is_empty() && slices.iter().all(|slice| slice.uuid != **device);
    if let Some(device) = entry.device.as_ref().filter(unlisted) {
        return Err(Error::new(
            ErrorKind::GpuUnavailable,
            format!("{} does not list {device}, which is there", entry.gpu),
        ));
    }
    for compute in computes {
        splitter.destroy_compute_instance(instance.id, compute).map_err(fail)?;
    }
    splitter.destroy_gpu_instance(instance.id).map_err(fail)?;
    Ok(Undone::Gone)
}
