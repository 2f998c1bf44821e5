//! Which GPUs a request gets.
//!
//! The choice is deterministic and keeps no account: two containers started at the same time may be
//! given the same GPU. Whoever must not share takes a lease from the allocator first.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::inventory::{Gpu, GpuMemory, Inventory, MigDevice};
use crate::gpu::request::{GpuName, GpuRequest, Vendor, Which};

use std::fmt;

/// A whole GPU, or a slice of one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Choice<'a> {
    Whole(&'a Gpu),
    Slice(&'a Gpu, &'a MigDevice),
}

impl<'a> Choice<'a> {
    pub(crate) fn gpu(self) -> &'a Gpu {
        match self {
            Self::Whole(gpu) | Self::Slice(gpu, _) => gpu,
        }
    }

    pub(crate) fn uuid(self) -> &'a str {
        match self {
            Self::Whole(gpu) => &gpu.uuid,
            Self::Slice(_, slice) => &slice.uuid,
        }
    }

    pub(crate) fn memory(self) -> Option<GpuMemory> {
        match self {
            Self::Whole(gpu) => gpu.memory,
            Self::Slice(_, slice) => slice.memory,
        }
    }

    pub(crate) fn processes(self) -> &'a [u32] {
        match self {
            Self::Whole(gpu) => &gpu.processes,
            Self::Slice(_, slice) => &slice.processes,
        }
    }

    /// Whether both use the same hardware.
    fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Slice(gpu, one), Self::Slice(other_gpu, another)) => {
                gpu.uuid == other_gpu.uuid && one.uuid == another.uuid
            }
            _ => self.gpu().uuid == other.gpu().uuid,
        }
    }

    /// Why the GPU is too full, if it is.
    fn too_full(self, bytes: u64) -> Option<String> {
        if bytes == 0 {
            return None;
        }
        match self.memory() {
            Some(memory) if memory.free >= bytes => None,
            Some(memory) => Some(format!("{self} has {} free", gibibytes(memory.free))),
            None => Some(format!("{self} does not say how much memory is free")),
        }
    }
}

impl fmt::Display for Choice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(gpu) => write!(f, "GPU {} ({})", gpu.index, gpu.name),
            Self::Slice(gpu, slice) => write!(f, "GPU {}:{} ({})", gpu.index, slice.index, slice.profile),
        }
    }
}

pub(crate) fn gibibytes(bytes: u64) -> String {
    // Tenths are exact enough to read.
    let tenths = u128::from(bytes) * 10 / (1 << 30);
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

pub(crate) fn unavailable(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::GpuUnavailable, why)
}

/// The GPUs that `request` gets out of `inventory`, in the order in which the container counts them.
pub(crate) fn select<'a>(request: &GpuRequest, inventory: &'a Inventory) -> Result<Vec<Choice<'a>>> {
    if matches!(request.which(), Which::None | Which::DriverOnly | Which::AsImageSays) {
        return Ok(Vec::new());
    }
    let gpus = of_vendor(request, inventory)?;
    match request.which() {
        Which::Named(names) => named(names, request, &gpus),
        Which::Count(count) => counted(*count, request, &gpus),
        _ => all(request, &gpus),
    }
}

/// The GPUs of the vendor that is asked for, of which there must be one.
pub(crate) fn of_vendor<'a>(request: &GpuRequest, inventory: &'a Inventory) -> Result<Vec<&'a Gpu>> {
    let vendor = request.wanted_vendor();
    let gpus: Vec<&Gpu> = inventory.gpus().iter().filter(|gpu| gpu.vendor == vendor).collect();
    if gpus.is_empty() {
        let reason = inventory.unavailable().filter(|_| vendor == Vendor::Nvidia);
        let reason = reason.map_or_else(|| format!("this host has no {vendor} GPU"), str::to_owned);
        return Err(unavailable(format!("{} asked for: {reason}", wish(request))));
    }
    Ok(gpus)
}

/// The request in words.
pub(crate) fn wish(request: &GpuRequest) -> String {
    let profile = request.wishes.mig_profile.as_deref();
    let which = match request.which() {
        Which::Count(1) if profile.is_some() => format!("1 MIG device {}", profile.unwrap_or_default()),
        Which::Count(count) if profile.is_some() => format!("{count} MIG devices {}", profile.unwrap_or_default()),
        Which::None | Which::DriverOnly | Which::AsImageSays => "no GPU".to_owned(),
        Which::All => "every GPU".to_owned(),
        Which::Count(1) => "1 GPU".to_owned(),
        Which::Count(count) => format!("{count} GPUs"),
        Which::Named(names) => {
            let names: Vec<String> = names.iter().map(GpuName::to_string).collect();
            format!("GPU {}", names.join(", "))
        }
    };
    match request.wanted_memory() {
        0 => which,
        bytes => format!("{which} with {} free", gibibytes(bytes)),
    }
}

/// Whole GPUs first; a GPU that is split can be used only by its slices.
pub(crate) fn candidates<'a>(gpus: &[&'a Gpu]) -> Vec<Choice<'a>> {
    let whole = gpus.iter().filter(|gpu| !gpu.mig_enabled).map(|gpu| Choice::Whole(gpu));
    let slices = gpus.iter().flat_map(|gpu| gpu.mig_devices.iter().map(|slice| Choice::Slice(gpu, slice)));
    whole.chain(slices).collect()
}

fn all<'a>(request: &GpuRequest, gpus: &[&'a Gpu]) -> Result<Vec<Choice<'a>>> {
    let candidates = candidates(gpus);
    if candidates.is_empty() {
        return Err(unavailable("every GPU is in MIG mode, and none has a MIG device"));
    }
    let full: Vec<String> = candidates.iter().filter_map(|choice| choice.too_full(request.wanted_memory())).collect();
    if full.is_empty() {
        return Ok(candidates);
    }
    let fit = candidates.len() - full.len();
    Err(unavailable(format!("{} asked for: {fit} of {} fit: {}", wish(request), candidates.len(), full.join("; "))))
}

fn counted<'a>(count: u32, request: &GpuRequest, gpus: &[&'a Gpu]) -> Result<Vec<Choice<'a>>> {
    let mut candidates = candidates(gpus);
    if candidates.iter().any(|choice| matches!(choice, Choice::Whole(_))) {
        // CUDA does not use whole GPUs and slices together.
        candidates.retain(|choice| matches!(choice, Choice::Whole(_)));
    }
    let known = candidates.len();
    let mut reasons = Vec::new();
    candidates.retain(|choice| match choice.too_full(request.wanted_memory()) {
        Some(reason) => {
            reasons.push(reason);
            false
        }
        None => true,
    });
    // The sort is stable: among equals the lower index comes first.
    candidates.sort_by_key(|choice| !choice.processes().is_empty());
    let wanted = usize::try_from(count).unwrap_or(usize::MAX);
    if candidates.len() < wanted {
        let split = gpus.iter().filter(|gpu| gpu.mig_enabled && gpu.mig_devices.is_empty()).count();
        if split > 0 {
            reasons.push(format!("{split} in MIG mode without a MIG device"));
        }
        let why = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
        return Err(unavailable(format!("{} asked for: {} of {known} fit{why}", wish(request), candidates.len())));
    }
    candidates.truncate(wanted);
    Ok(candidates)
}

fn named<'a>(names: &[GpuName], request: &GpuRequest, gpus: &[&'a Gpu]) -> Result<Vec<Choice<'a>>> {
    let mut chosen: Vec<Choice<'a>> = Vec::new();
    for name in names {
        let choice = find(name, gpus)?;
        if let Some(reason) = choice.too_full(request.wanted_memory()) {
            return Err(unavailable(format!("{} asked for: {reason}", wish(request))));
        }
        // A GPU may have been named both by index and by identifier.
        if !chosen.iter().any(|before| before.overlaps(choice)) {
            chosen.push(choice);
        }
    }
    Ok(chosen)
}

pub(crate) fn find<'a>(name: &GpuName, gpus: &[&'a Gpu]) -> Result<Choice<'a>> {
    let by_index = |index: u32| {
        gpus.iter().copied().find(|gpu| gpu.index == index).ok_or_else(|| {
            let known: Vec<String> = gpus.iter().map(|gpu| gpu.index.to_string()).collect();
            unavailable(format!("GPU {name} asked for: this host has GPU {}", known.join(", ")))
        })
    };
    let whole = |gpu: &'a Gpu| {
        if !gpu.mig_enabled {
            return Ok(Choice::Whole(gpu));
        }
        let slices: Vec<String> =
            gpu.mig_devices.iter().map(|slice| format!("{}:{}", gpu.index, slice.index)).collect();
        let offer = match slices.as_slice() {
            [] => "has no MIG device yet".to_owned(),
            slices => format!("can be used only by its MIG devices {}", slices.join(", ")),
        };
        Err(unavailable(format!("GPU {name} asked for: it is in MIG mode and {offer}")))
    };
    match name {
        // Those are looked up in specifications, before a choice among the host's GPUs is made.
        GpuName::Cdi(name) => Err(unavailable(format!("{name} asked for: it is no name of an inventory's GPU"))),
        GpuName::Index(index) => whole(by_index(*index)?),
        GpuName::MigIndex(index, slice) => {
            let gpu = by_index(*index)?;
            let found = gpu.mig_devices.iter().find(|device| device.index == *slice);
            found.map(|device| Choice::Slice(gpu, device)).ok_or_else(|| {
                unavailable(format!("GPU {name} asked for: GPU {index} has {} MIG devices", gpu.mig_devices.len()))
            })
        }
        GpuName::Uuid(uuid) => {
            if let Some(gpu) = gpus.iter().copied().find(|gpu| gpu.uuid == *uuid) {
                return whole(gpu);
            }
            let slices = gpus.iter().copied().flat_map(|gpu| gpu.mig_devices.iter().map(move |slice| (gpu, slice)));
            let named = |gpu: &Gpu, slice: &MigDevice| slice.uuid == *uuid || old_name(gpu, slice) == *uuid;
            let mut found = slices.filter(|(gpu, slice)| named(gpu, slice));
            found.next().map(|(gpu, slice)| Choice::Slice(gpu, slice)).ok_or_else(|| {
                unavailable(format!(
                    "GPU {uuid} asked for: none of this host's {} GPUs has that identifier",
                    gpus.len()
                ))
            })
        }
    }
}

/// How drivers before version 470 named slices: `MIG-GPU-…/gpu instance/compute instance`.
pub(crate) fn old_name(gpu: &Gpu, slice: &MigDevice) -> String {
    format!("MIG-{}/{}/{}", gpu.uuid, slice.gpu_instance, slice.compute_instance)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn gpu(index: u32, free_gib: u64, processes: &[u32]) -> Gpu {
        Gpu {
            vendor: Vendor::Nvidia,
            uuid: format!("GPU-{index}"),
            index,
            minor: 7 - index,
            name: "NVIDIA A100".to_owned(),
            memory: Some(GpuMemory { total: 40 << 30, free: free_gib << 30 }),
            compute_capability: Some((8, 0)),
            pci_bus_id: format!("0000:0{index}:00.0"),
            numa_node: None,
            cpu_affinity: Vec::new(),
            mig_enabled: false,
            mig_devices: Vec::new(),
            processes: processes.to_vec(),
            ..Gpu::default()
        }
    }

    pub(crate) fn split(index: u32, slices: u32) -> Gpu {
        let slice = |number| MigDevice {
            uuid: format!("MIG-{index}-{number}"),
            index: number,
            gpu_instance: number + 1,
            compute_instance: 0,
            profile: "1g.5gb".to_owned(),
            memory: Some(GpuMemory { total: 5 << 30, free: 5 << 30 }),
            processes: Vec::new(),
        };
        Gpu { mig_enabled: true, mig_devices: (0..slices).map(slice).collect(), ..gpu(index, 40, &[]) }
    }

    fn host(gpus: Vec<Gpu>) -> Inventory {
        Inventory { gpus, ..Inventory::default() }
    }

    fn chosen(request: &GpuRequest, inventory: &Inventory) -> Result<Vec<String>, String> {
        let choices = select(request, inventory).map_err(|error| {
            assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
            error.to_string()
        })?;
        Ok(choices.iter().map(|choice| choice.uuid().to_owned()).collect())
    }

    #[test]
    fn free_gpus_come_before_used_ones() {
        let inventory = host(vec![gpu(0, 10, &[11]), gpu(1, 40, &[]), gpu(2, 30, &[12]), gpu(3, 40, &[])]);
        assert_eq!(chosen(&GpuRequest::count(1), &inventory).unwrap(), ["GPU-1"]);
        assert_eq!(chosen(&GpuRequest::count(3), &inventory).unwrap(), ["GPU-1", "GPU-3", "GPU-0"]);
        assert_eq!(chosen(&GpuRequest::count(3).min_free_memory(20 << 30), &inventory).unwrap()[2], "GPU-2");
        assert_eq!(chosen(&GpuRequest::all(), &inventory).unwrap().len(), 4);
        assert_eq!(chosen(&GpuRequest::none(), &inventory).unwrap().len(), 0);
    }

    #[test]
    fn refusals_say_how_many_fit_and_why_not_more() {
        let inventory = host(vec![gpu(0, 10, &[]), gpu(1, 40, &[]), gpu(2, 39, &[])]);
        let error = chosen(&GpuRequest::count(2).min_free_memory(40 << 30), &inventory).unwrap_err();
        let expected = "2 GPUs with 40.0 GiB free asked for: 1 of 3 fit: GPU 0 (NVIDIA A100) has 10.0 GiB free; \
                        GPU 2 (NVIDIA A100) has 39.0 GiB free";
        assert_eq!(error, expected);
        assert_eq!(chosen(&GpuRequest::count(9), &inventory).unwrap_err(), "9 GPUs asked for: 3 of 3 fit");
        let error = chosen(&GpuRequest::all().min_free_memory(20 << 30), &inventory).unwrap_err();
        assert!(error.starts_with("every GPU with 20.0 GiB free asked for: 2 of 3 fit"), "{error}");
        let none = Inventory::none("no NVIDIA driver is installed");
        let error = chosen(&GpuRequest::count(1), &none).unwrap_err();
        assert_eq!(error, "1 GPU asked for: no NVIDIA driver is installed");
        let error = chosen(&GpuRequest::count(1).vendor(Vendor::Amd), &inventory).unwrap_err();
        assert_eq!(error, "1 GPU asked for: this host has no AMD GPU");
    }

    #[test]
    fn names_find_their_gpu_or_say_what_there_is() {
        let inventory = host(vec![gpu(0, 40, &[]), gpu(1, 40, &[1]), split(2, 2)]);
        let ask = |text: &str| chosen(&text.parse().unwrap(), &inventory);
        assert_eq!(ask("1,0").unwrap(), ["GPU-1", "GPU-0"], "in the order asked for");
        assert_eq!(ask("0,GPU-0").unwrap(), ["GPU-0"]);
        assert_eq!(ask("2:1,MIG-2-0,2:1").unwrap(), ["MIG-2-1", "MIG-2-0"]);
        assert_eq!(ask("MIG-GPU-2/1/0").unwrap(), ["MIG-2-0"], "the name of old drivers");
        assert_eq!(ask("7").unwrap_err(), "GPU 7 asked for: this host has GPU 0, 1, 2");
        assert!(ask("2").unwrap_err().ends_with("it is in MIG mode and can be used only by its MIG devices 2:0, 2:1"));
        assert!(ask("2:9").unwrap_err().ends_with("GPU 2 has 2 MIG devices"));
        assert!(ask("GPU-9").unwrap_err().contains("none of this host's 3 GPUs"));
        assert_eq!(ask("all").unwrap(), ["GPU-0", "GPU-1", "MIG-2-0", "MIG-2-1"]);
    }

    #[test]
    fn slices_are_counted_only_where_there_is_nothing_else() {
        assert_eq!(chosen(&GpuRequest::count(1), &host(vec![split(0, 2), gpu(1, 40, &[])])).unwrap(), ["GPU-1"]);
        assert_eq!(chosen(&GpuRequest::count(2), &host(vec![split(0, 2)])).unwrap(), ["MIG-0-0", "MIG-0-1"]);
        let error = chosen(&GpuRequest::count(1), &host(vec![split(0, 0)])).unwrap_err();
        assert_eq!(error, "1 GPU asked for: 0 of 0 fit: 1 in MIG mode without a MIG device");
    }
}
