//! MIG devices that the allocator makes for leases, and destroys after the last one.
//!
//! ```text
//! <slots>.mig/lock       alone: GPUs are split or put together; shared: MIG devices are chosen
//! <slots>.mig/*.claim    what was made, see `journal`
//! ```
//!
//! The lock is always taken before the table's, which is not held while a device is made: that takes long. Since nobody
//! destroys a device while another chooses one, what was chosen is still there when its lease is written down; and what
//! a lease holds, nobody destroys.

use crate::claim::Claim;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::allocator::GpuAllocator;
use crate::gpu::allocator::choice::candidates::Host;
use crate::gpu::allocator::choice::decide::contested;
use crate::gpu::allocator::lease::GpuLease;
use crate::gpu::allocator::mig::devices::{Gate, MigDevices};
use crate::gpu::allocator::mig::instances::{Undone, describe, failed, find, gpus, make, undo};
use crate::gpu::allocator::mig::journal::{self, Entry};
use crate::gpu::allocator::mig::making::{Making, Place, Plan, Splits};
use crate::gpu::allocator::patience::Patience;
use crate::gpu::allocator::slots::record::Owner;
use crate::gpu::inventory::Inventory;
use crate::gpu::request::{GpuName, GpuRequest, Vendor, Which};
use crate::gpu::select::{Choice, find as find_device, unavailable};
use crate::progress::Cancel;
use crate::sys::cgroup::effective_user;
use crate::sys::fs;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// `NVML_ERROR_INSUFFICIENT_RESOURCES`, which the wrapper has no name for: the place was taken meanwhile.
const NO_RESOURCES: u32 = 23;

/// A host as a request sees it, and nobody changes its MIG devices meanwhile.
#[derive(Debug)]
pub(in crate::gpu::allocator) struct Seen<'a> {
    pub(in crate::gpu::allocator) inventory: Cow<'a, Inventory>,
    pub(in crate::gpu::allocator) making: Making,
    /// MIG devices that nobody has leased and that still are not free, and why.
    pub(in crate::gpu::allocator) unready: BTreeMap<String, String>,
    _gate: Option<Gate>,
}

/// Where MIG devices of a lease are destroyed after it.
#[derive(Debug)]
pub(in crate::gpu::allocator) struct Remains(Option<MigDevices>);

impl Remains {
    /// Destroys those of the devices `gpus` that were made for leases, and whatever else dead owners left.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if one of them is in use. Who may not destroy any leaves them to somebody who may.
    pub(in crate::gpu::allocator) fn destroy(&self, gpus: &[String]) -> Result<()> {
        let Some(devices) = &self.0 else { return Ok(()) };
        let left = match devices.tidy_up(true) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => return Ok(()),
            left => left?,
        };
        let own = |entry: &Entry| entry.device.as_ref().is_some_and(|device| gpus.contains(device));
        left.into_iter().find(|(entry, _)| own(entry)).map_or(Ok(()), |(_, error)| Err(error))
    }
}

impl GpuAllocator {
    /// Looks at the host again if MIG devices can be chosen, or have to be made, for the request, and keeps everybody
    /// else from making or destroying any.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if somebody does just that, and for longer than there is patience.
    pub(in crate::gpu::allocator) fn look<'a>(
        &self,
        request: &GpuRequest,
        inventory: Cow<'a, Inventory>,
        patience: &Patience<'_>,
    ) -> Result<Seen<'a>> {
        let split = inventory.gpus().iter().any(|gpu| gpu.mig_enabled);
        let makes = request.makes().is_some() && request.wanted_vendor() == Vendor::Nvidia;
        if !split {
            // Nothing is made where no GPU is in MIG mode; the reasons say so.
            let making = Making::Yes(Splits::default());
            return Ok(Seen { inventory, making, unready: BTreeMap::new(), _gate: None });
        }
        let mut making = Making::Unknown;
        if makes {
            match self.makers() {
                Ok(devices) => return self.look_at(&devices, patience),
                Err(why) => making = Making::No(why),
            }
        }
        self.tidy_up();
        let (Some(directory), true) = (self.directory_of_makers(), takes_slices(request, &inventory)) else {
            return Ok(Seen { inventory, making, unready: BTreeMap::new(), _gate: None });
        };
        let gate = MigDevices::of(&self.root, directory.clone()).share(patience).context("choose MIG devices")?;
        if gate.is_none() {
            return Ok(Seen { inventory, making, unready: BTreeMap::new(), _gate: None });
        }
        // What the caller knows may have been destroyed meanwhile.
        let inventory = Inventory::discover_with(&self.root);
        let unready = unready(&inventory, &journal::entries(&directory)?);
        Ok(Seen { inventory: Cow::Owned(inventory), making, unready, _gate: gate })
    }

    fn look_at<'a>(&self, devices: &MigDevices, patience: &Patience<'_>) -> Result<Seen<'a>> {
        let gate = devices.lock(patience).context("split GPUs")?;
        let look = |nvml: &Nvml| {
            devices.tidy(nvml)?;
            let entries = journal::entries(devices.directory())?;
            let mut split = BTreeMap::new();
            for (uuid, device) in gpus(nvml, &[])? {
                match describe(nvml, (&uuid, &device), &entries) {
                    Ok(None) => {}
                    Ok(Some(state)) => drop(split.insert(uuid, Ok(state))),
                    Err(e) => {
                        let why = failed(&uuid, e).to_string();
                        split.insert(uuid, Err(why));
                    }
                }
            }
            // With the library started already it costs little.
            Ok((Inventory::discover_with(&self.root), Splits { gpus: split, entries, leftovers: false }))
        };
        let (inventory, mut splits) = devices.with_library(look).context("split GPUs")?;
        splits.leftovers =
            splits.entries.iter().any(|entry| entry.leases.is_none()) || journal::is_untidy(devices.directory())?;
        let unready = unready(&inventory, &splits.entries);
        Ok(Seen { inventory: Cow::Owned(inventory), making: Making::Yes(splits), unready, _gate: Some(gate) })
    }

    /// Makes what the plan lacks, and leases all of it, while `_seen` keeps everybody else from doing so. If that fails,
    /// nothing is left of it; where somebody was quicker who does not ask us, that is said instead of a lease.
    pub(in crate::gpu::allocator) fn make(
        &self,
        request: &GpuRequest,
        _seen: &Seen<'_>,
        plan: &Plan,
        owner: Owner,
        cancel: &Cancel,
    ) -> Result<Result<GpuLease, String>> {
        let devices = self.makers().map_err(|why| Error::new(ErrorKind::PermissionDenied, why))?;
        let work = |nvml: &Nvml| {
            let mut made: Vec<(Claim, Entry)> = Vec::new();
            let lease = self.make_all(nvml, (request, plan), (&devices, &mut made), owner, cancel);
            for (claim, entry) in made {
                // The error to report is the first. A claim that stays is the next comer's to try again.
                let _ = match lease.is_err() && matches!(undo(nvml, &entry), Ok(Undone::Gone)) {
                    true => claim.release(),
                    false => claim.leave(),
                };
            }
            lease
        };
        match devices.with_library(work) {
            Err(error) if is_beaten(&error) => Ok(Err(error.to_string())),
            lease => lease.map(Ok).context("make MIG devices"),
        }
    }

    fn make_all(
        &self,
        nvml: &Nvml,
        (request, plan): (&GpuRequest, &Plan),
        (devices, made): (&MigDevices, &mut Vec<(Claim, Entry)>),
        owner: Owner,
        cancel: &Cancel,
    ) -> Result<GpuLease> {
        for Place { gpu, kind, span } in &plan.places {
            cancel.check()?;
            let entry = Entry {
                gpu: gpu.clone(),
                profile: *kind,
                start: span.start,
                size: span.size,
                gpu_instance: None,
                device: None,
                found: false,
                leases: Some(self.path().to_owned()),
            };
            let device = find(nvml, gpu)?;
            made.push((journal::begin(devices.directory(), &entry)?, entry));
            if let Some((claim, entry)) = made.last_mut() {
                make(nvml, &device, claim, entry)?;
            }
        }
        let inventory = Inventory::discover_with(&self.root);
        let known: Vec<_> = inventory.gpus().iter().collect();
        let mut new = made.iter().filter_map(|(_, entry)| entry.device.clone());
        let mut chosen: Vec<Choice<'_>> = Vec::new();
        for device in &plan.devices {
            let uuid = device.clone().or_else(|| new.next());
            let uuid = uuid.ok_or_else(|| unavailable("fewer MIG devices were made than planned"))?;
            chosen.push(find_device(&GpuName::Uuid(uuid), &known)?);
        }
        let host = Host::of(&inventory, BTreeMap::new(), Making::Unknown);
        let locked = self.table.lock(cancel)?;
        let scan = self.table.scan(&inventory)?;
        if let Some(holder) = contested(&chosen, request, &scan) {
            return Err(Error::new(ErrorKind::Busy, format!("{holder} was quicker")));
        }
        let record = self.record(&chosen, request, owner, &scan);
        let slot = locked.lease(&record)?;
        drop(locked);
        Ok(self.leased(slot, &record, &chosen, (request, &host)))
    }

    /// Where MIG devices of a lease on these are destroyed, if there are any.
    pub(in crate::gpu::allocator) fn remains(&self, chosen: &[Choice<'_>]) -> Remains {
        let slices = chosen.iter().any(|choice| matches!(choice, Choice::Slice(..)));
        let directory = slices.then(|| self.directory_of_makers()).flatten();
        Remains(directory.map(|directory| MigDevices::of(&self.root, directory)))
    }

    /// Destroys MIG devices of leases that are over, as far as the caller may and nobody is just doing it.
    pub(in crate::gpu::allocator) fn tidy_up(&self) {
        let Some(directory) = self.directory_of_makers() else { return };
        match MigDevices::of(&self.root, directory).tidy_up(false) {
            Err(error) => tracing::debug!(%error, "MIG devices of leases that are over stay for now"),
            Ok(left) => tracing::trace!(left = left.len(), "MIG devices of leases that are over"),
        }
    }

    fn path_of_makers(&self) -> PathBuf {
        let mut name = self.path().file_name().unwrap_or_default().to_owned();
        name.push(".mig");
        self.path().with_file_name(name)
    }

    /// Where what is made is written down; `None` if nothing is, or by somebody who is not to be trusted.
    fn directory_of_makers(&self) -> Option<PathBuf> {
        let path = self.path_of_makers();
        let found = fs::symlink_metadata(&path).ok()?;
        (found.is_dir() && (found.uid() == 0 || found.uid() == effective_user())).then_some(path)
    }

    /// The MIG devices as the caller can make them, or why it cannot.
    fn makers(&self) -> Result<MigDevices, String> {
        let path = self.path_of_makers();
        if fs::symlink_metadata(&path).is_err() {
            // Somebody else may be first.
            match fs::create_dir(&path) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e.to_string()),
                _ => {}
            }
        }
        let owner = fs::symlink_metadata(&path).map_err(|e| e.to_string())?.uid();
        let user = effective_user();
        if owner != user || self.directory_of_makers().is_none() {
            return Err(format!("user {user} may not make MIG devices: {} is user {owner}'s", path.display()));
        }
        // For all who choose MIG devices, whatever the mask of who made it, and also if that one came no further.
        journal::set_own_mode(&path, 0o755).map_err(|e| e.to_string())?;
        Ok(MigDevices::of(&self.root, path))
    }
}

/// Whether somebody else took a device or a place between a look and the deed.
fn is_beaten(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<NvmlError>());
    error.kind() == ErrorKind::Busy || matches!(cause, Some(NvmlError::UnexpectedVariant(NO_RESOURCES)))
}

/// Whether the request may be served by MIG devices.
fn takes_slices(request: &GpuRequest, inventory: &Inventory) -> bool {
    if request.wanted_vendor() != Vendor::Nvidia && !matches!(request.which(), Which::Named(_)) {
        return false;
    }
    let whole = inventory.gpus().iter().any(|gpu| gpu.vendor == Vendor::Nvidia && !gpu.mig_enabled);
    let slice = |name: &GpuName| match name {
        GpuName::Uuid(uuid) => !uuid.starts_with("GPU-"),
        GpuName::Index(_) => false,
        GpuName::MigIndex(..) | GpuName::Cdi(_) => true,
    };
    request.wishes.mig_profile.is_some()
        || match request.which() {
            Which::Count(_) => !whole,
            Which::Named(names) => names.iter().any(slice),
            _ => true,
        }
}

/// The MIG devices of the journal that are not for everybody, though no lease of this account may hold them, and why.
fn unready(inventory: &Inventory, entries: &[Entry]) -> BTreeMap<String, String> {
    let mut unready = BTreeMap::new();
    for gpu in inventory.gpus() {
        for slice in &gpu.mig_devices {
            let why = match entries.iter().find(|entry| entry.concerns(&gpu.uuid, slice)) {
                None => continue,
                Some(Entry { leases: None, .. }) => "is leased by itself".to_owned(),
                Some(Entry { device: None, .. }) => "was not wholly made".to_owned(),
                Some(_) if slice.processes.is_empty() => continue,
                Some(_) => {
                    let pids: Vec<String> = slice.processes.iter().map(u32::to_string).collect();
                    format!("was made for a lease that is over, and is used by process {}", pids.join(", "))
                }
            };
            unready.insert(slice.uuid.clone(), why);
        }
    }
    unready
}
