//! The inventory of NVIDIA's GPUs, through the driver's management library.
//!
//! The library is loaded, asked and unloaded within one call: a handle held longer would keep the
//! kernel module busy, and would not survive a `fork`.

mod health;
mod links;

use crate::gpu::driver::elf::{self, Machine};
use crate::gpu::driver::platform::Platform;
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::driver::{self, LIBRARY_DIRECTORIES, wsl};
use crate::gpu::inventory::{Gpu, GpuMemory, Inventory, MigDevice};
use crate::gpu::request::Vendor;
use crate::sys::nvml::{close, facts, instances};

use nvml_wrapper::enum_wrappers::device::Brand;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;

/// What programs load; links lead to the file of the driver's version.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// No host has more; a larger number is a damaged library's.
const MAX_GPUS: u32 = 256;
/// From here on nodes of the same major are other things than GPUs: mode setting, control. A grant must not reach them.
const FIRST_OTHER_MINOR: u32 = 254;
/// The hardware splits a GPU into at most 7; the rest is room for what comes.
const MAX_SLICES: u32 = 64;
/// More processes than this on one GPU are nonsense, and would only cost memory to list.
const MAX_PROCESSES: u32 = 65_536;
/// 8,192 CPUs, the most that Linux can be built for, in words of 64 bits.
const CPU_WORDS: usize = 128;
/// 1,024 NUMA nodes, the most that Linux can be built for, in words of 64 bits.
const NODE_WORDS: usize = 16;
/// The nodes that the GPU is attached to, rather than all of its socket.
const NODE_SCOPE: u32 = 0;

/// Lists the GPUs of the driver in `root`, or says why there are none.
pub(crate) fn inventory(root: &DriverRoot) -> Inventory {
    let nvml = match open(root) {
        Ok(nvml) => nvml,
        Err(reason) => return Inventory::none(reason),
    };
    let mut inventory = read(&nvml, Platform::of(root));
    if let Err(e) = close(nvml) {
        inventory.problems.push(format!("nvmlShutdown: {e}"));
    }
    inventory
}

/// Every place where the library may be, best first.
fn candidates(root: &DriverRoot) -> Vec<PathBuf> {
    // In WSL the files of distributions are of no use.
    let windows = (Platform::of(root) == Platform::Wsl).then(|| PathBuf::from(wsl::LIBRARIES));
    let usual = LIBRARY_DIRECTORIES.iter().map(PathBuf::from).chain(driver::cached_directories(root));
    let directories = windows.into_iter().chain(usual);
    let mut found: Vec<PathBuf> = Vec::new();
    for directory in directories {
        if let Ok(path) = root.resolve(&directory.join(LIBRARY)) {
            if !found.contains(&path) {
                found.push(path);
            }
        }
    }
    found
}

/// Loads the library and starts it, or says why it cannot be used.
pub(in crate::gpu) fn open(root: &DriverRoot) -> Result<Nvml, String> {
    let load = |path: &OsStr| Nvml::builder().lib_path(path).init();
    let mut failures = Vec::new();
    for path in candidates(root) {
        let object = crate::sys::fs::open(&path).map(|file| elf::read(&file));
        match object {
            Ok(Ok(object)) if object.machine == Machine::Native => {}
            Ok(Ok(_)) => {
                failures.push(format!("{} cannot be used: it is for another machine", path.display()));
                continue;
            }
            // The dynamic loader trusts what it maps: a file that was cut would kill this process.
            Ok(Err(why)) => {
                failures.push(format!("{} cannot be used: {why}", path.display()));
                continue;
            }
            Err(error) => {
                failures.push(error.to_string());
                continue;
            }
        }
        match load(path.as_os_str()) {
            Ok(nvml) => return Ok(nvml),
            // Another copy of the library would find the same kernel.
            Err(e) if !matches!(e, NvmlError::LibloadingError(_) | NvmlError::FailedToLoadSymbol(_)) => {
                return Err(explain(root, &e));
            }
            Err(e) => failures.push(format!("{} cannot be used: {}", path.display(), chain(&e))),
        }
    }
    if root.is_host() && failures.is_empty() {
        // The loader of this process may know a place that we do not.
        match load(OsStr::new(LIBRARY)) {
            Ok(nvml) => return Ok(nvml),
            Err(NvmlError::LibloadingError(_)) => {}
            Err(e) => return Err(explain(root, &e)),
        }
    }
    if !failures.is_empty() {
        return Err(failures.join("; "));
    }
    let module = match root.text("/proc/driver/nvidia/version") {
        Some(_) => "the kernel module nvidia is loaded, but its user space is missing",
        None => "no NVIDIA driver is installed",
    };
    Err(format!("{module}: {LIBRARY} is not in {}", root.path().display()))
}

/// An error of the library's start in words that say what to do.
fn explain(root: &DriverRoot, error: &NvmlError) -> String {
    let kernel = driver::kernel_version(root);
    match error {
        NvmlError::DriverNotLoaded => {
            "the NVIDIA driver is installed, but its kernel module nvidia is not loaded (nvmlInit: driver not loaded)"
                .to_owned()
        }
        NvmlError::LibRmVersionMismatch => format!(
            "the NVIDIA driver's libraries and its kernel module{} are of different versions: \
             the driver was updated, and the module not yet reloaded (nvmlInit: version mismatch)",
            kernel.map(|version| format!(" ({version})")).unwrap_or_default()
        ),
        NvmlError::NoPermission => "the NVIDIA driver refuses this user access (nvmlInit: no permission)".to_owned(),
        other => format!("the NVIDIA driver does not start: nvmlInit: {}", chain(other)),
    }
}

/// The error with its causes; the loader's own words are among them.
fn chain(error: &NvmlError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

fn read(nvml: &Nvml, platform: Platform) -> Inventory {
    let mut inventory = Inventory {
        driver_version: nvml.sys_driver_version().ok().filter(|version| driver::is_version(version)),
        cuda_version: nvml.sys_cuda_driver_version().ok().and_then(cuda_version),
        ..Inventory::default()
    };
    let count = match nvml.device_count() {
        Ok(count @ 0..=MAX_GPUS) => count,
        Ok(count) => {
            inventory.unavailable = Some(format!("the NVIDIA driver claims to have {count} GPUs"));
            return inventory;
        }
        Err(e) => {
            inventory.unavailable = Some(format!("the NVIDIA driver does not count its GPUs: nvmlDeviceGetCount: {e}"));
            return inventory;
        }
    };
    for index in 0..count {
        match gpu(nvml, index, platform, &mut inventory.problems) {
            Ok(gpu) => inventory.gpus.push(gpu),
            Err((call, e)) => inventory.problems.push(format!("GPU {index}: {call}: {e}")),
        }
    }
    duplicates(&mut inventory);
    links::name_ends(&mut inventory.gpus);
    let handles = inventory.gpus.iter().filter_map(|gpu| Some((gpu, nvml.device_by_index(gpu.index).ok()?)));
    let handles: Vec<_> = handles.collect();
    // A GPU that was lost meanwhile would shift the places of the others.
    if handles.len() == inventory.gpus.len() {
        inventory.pairs = links::pairs(nvml, &handles, &mut inventory.problems);
    }
    if inventory.gpus.is_empty() {
        inventory.unavailable = Some(match inventory.problems.first() {
            Some(problem) => format!("the NVIDIA driver is there, but none of {count} GPUs can be used: {problem}"),
            None => "the NVIDIA driver is there, but it finds no GPU".to_owned(),
        });
    }
    inventory
}

/// Two GPUs of one identifier or one device node would let a grant of one give the other.
fn duplicates(inventory: &mut Inventory) {
    let (mut uuids, mut minors) = (BTreeSet::new(), BTreeSet::new());
    let problems = &mut inventory.problems;
    inventory.gpus.retain(|gpu| {
        // The GPU in a processor is granted by a list, whatever its number is.
        let unique = uuids.insert(gpu.uuid.clone()) && (gpu.is_integrated() || minors.insert(gpu.minor));
        if !unique {
            problems.push(format!("GPU {}: its identifier or its device node is another GPU's", gpu.index));
        }
        unique
    });
}

/// NVML's `12040` is CUDA 12.4.
fn cuda_version(version: i32) -> Option<(u32, u32)> {
    let version = u32::try_from(version).ok().filter(|version| *version > 0)?;
    Some((version / 1000, version % 1000 / 10))
}

/// Why an answer cannot be used.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Nvml(#[from] NvmlError),
    #[error("{0:?} is no {1}")]
    Malformed(String, &'static str),
}

/// An identifier goes into error texts, environment variables and file names: it must be plain.
fn uuid(device: &Device<'_>) -> Result<String, Fault> {
    let uuid = device.uuid()?;
    match uuid.parse() {
        Ok(crate::gpu::request::GpuName::Uuid(_)) => Ok(uuid),
        _ => Err(Fault::Malformed(uuid, "identifier")),
    }
}

fn gpu(nvml: &Nvml, index: u32, platform: Platform, problems: &mut Vec<String>) -> Result<Gpu, (&'static str, Fault)> {
    // Without these four there is nothing to grant; without a module, two of them mean nothing.
    let none = |e: &NvmlError| platform != Platform::Module && matches!(e, NvmlError::NotSupported);
    let device = nvml.device_by_index(index).map_err(|e| ("nvmlDeviceGetHandleByIndex", e.into()))?;
    let uuid = uuid(&device).map_err(|e| ("nvmlDeviceGetUUID", e))?;
    let minor = device.minor_number().or_else(|e| if none(&e) { Ok(index) } else { Err(e) });
    let minor = minor.map_err(|e| ("nvmlDeviceGetMinorNumber", e.into()))?;
    if minor >= FIRST_OTHER_MINOR {
        let fault = Fault::Malformed(minor.to_string(), "minor number of a GPU");
        return Err(("nvmlDeviceGetMinorNumber", fault));
    }
    let pci_bus_id = match device.pci_info() {
        Ok(info) => kernel_bus_id(&info.bus_id)
            .ok_or_else(|| ("nvmlDeviceGetPciInfo", Fault::Malformed(info.bus_id.clone(), "bus address")))?,
        Err(e) if none(&e) => String::new(),
        Err(e) => return Err(("nvmlDeviceGetPciInfo", e.into())),
    };

    let mut lost = false;
    let mut note = |call: &str, fault: Fault| match fault {
        // One line says it.
        Fault::Nvml(NvmlError::GpuLost) if std::mem::replace(&mut lost, true) => {}
        // What a model does not have is no problem of this one.
        Fault::Nvml(NvmlError::NotSupported | NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_)) => {}
        e => problems.push(format!("GPU {index}: {call}: {e}")),
    };
    let name = device.name().unwrap_or_else(|e| {
        note("nvmlDeviceGetName", e.into());
        "NVIDIA GPU".to_owned()
    });
    let memory = memory(&device).unwrap_or_else(|e| {
        note("nvmlDeviceGetMemoryInfo", e.into());
        None
    });
    let compute_capability = match device.cuda_compute_capability() {
        Ok(version) => u32::try_from(version.major).ok().zip(u32::try_from(version.minor).ok()),
        Err(e) => {
            note("nvmlDeviceGetCudaComputeCapability", e.into());
            None
        }
    };
    let cpu_affinity = device.cpu_affinity(CPU_WORDS).map(|words| bits(&words)).unwrap_or_else(|e| {
        note("nvmlDeviceGetCpuAffinity", e.into());
        Vec::new()
    });
    let mig_enabled = match device.mig_mode() {
        Ok(mode) => mode.current == 1,
        Err(e) => {
            note("nvmlDeviceGetMigMode", e.into());
            false
        }
    };
    let memory_nodes = device.memory_affinity(NODE_WORDS, NODE_SCOPE).map(|words| bits(&words)).unwrap_or_else(|e| {
        note("nvmlDeviceGetMemoryAffinity", e.into());
        Vec::new()
    });
    let brand = match device.brand() {
        Ok(brand) => brand_name(brand),
        // A brand newer than this library.
        Err(NvmlError::UnexpectedVariant(_)) => None,
        Err(e) => {
            note("nvmlDeviceGetBrand", e.into());
            None
        }
    };
    let nvlinks = links::nvlinks(nvml, &device, &mut note);
    let fabric = links::fabric(nvml, &device, &mut note);
    let mut health = health::health(nvml, &device, &mut note);
    let mig_devices = if mig_enabled { slices(nvml, &device, &mut note) } else { Vec::new() };
    let mut processes = processes(nvml, &device, &mut note);
    health.lost = lost;
    for slice in &mig_devices {
        processes.extend(&slice.processes);
    }
    Ok(Gpu {
        vendor: Vendor::Nvidia,
        uuid,
        index,
        minor,
        name,
        memory,
        compute_capability,
        pci_bus_id,
        numa_node: None,
        cpu_affinity,
        mig_enabled,
        mig_devices,
        processes: processes.into_iter().collect(),
        brand: brand.map(str::to_owned),
        memory_nodes,
        nvlinks,
        fabric,
        health,
        render_nodes: Vec::new(),
    })
}

fn memory(device: &Device<'_>) -> Result<Option<GpuMemory>, NvmlError> {
    let memory = device.memory_info()?;
    Ok(Some(GpuMemory { total: memory.total, free: memory.free.min(memory.total) }))
}

/// The MIG devices that exist now, as far as they can be read.
pub(in crate::gpu) fn mig_devices(nvml: &Nvml, device: &Device<'_>) -> Vec<MigDevice> {
    slices(nvml, device, &mut |_, _| {})
}

/// The MIG devices that exist now. A place without one is no problem: NVML counts places.
fn slices(nvml: &Nvml, device: &Device<'_>, note: &mut impl FnMut(&str, Fault)) -> Vec<MigDevice> {
    let places = match device.mig_device_count() {
        Ok(places) => places.min(MAX_SLICES),
        Err(e) => {
            note("nvmlDeviceGetMaxMigDeviceCount", e.into());
            0
        }
    };
    let mut slices = Vec::new();
    for index in 0..places {
        let mig = match device.mig_device_by_index(index) {
            Ok(mig) => mig,
            Err(NvmlError::NotFound | NvmlError::InvalidArg) => continue,
            Err(e) => {
                note("nvmlDeviceGetMigDeviceHandleByIndex", e.into());
                continue;
            }
        };
        match slice(nvml, &mig, index, note) {
            Ok(slice) => slices.push(slice),
            Err((call, e)) => note(&format!("MIG device {index}: {call}"), e),
        }
    }
    slices
}

fn slice(
    nvml: &Nvml,
    mig: &Device<'_>,
    index: u32,
    note: &mut impl FnMut(&str, Fault),
) -> Result<MigDevice, (&'static str, Fault)> {
    let uuid = uuid(mig).map_err(|e| ("nvmlDeviceGetUUID", e))?;
    let (gpu_instance, compute_instance) =
        instances(nvml, mig).map_err(|e| ("nvmlDeviceGetGpuInstanceId", e.into()))?;
    let name = mig.name().unwrap_or_default();
    Ok(MigDevice {
        uuid,
        index,
        gpu_instance,
        compute_instance,
        profile: name.rsplit_once(" MIG ").map(|(_, profile)| profile.to_owned()).unwrap_or_default(),
        memory: memory(mig).unwrap_or_default(),
        processes: processes(nvml, mig, note).into_iter().collect(),
    })
}

fn processes(nvml: &Nvml, device: &Device<'_>, note: &mut impl FnMut(&str, Fault)) -> BTreeSet<u32> {
    let mut pids = BTreeSet::new();
    let mut collect = |call, count: Result<u32, NvmlError>, list: &dyn Fn() -> Result<Vec<u32>, NvmlError>| {
        let listed = match count {
            Ok(0) => return,
            Ok(count) if count > MAX_PROCESSES => Err(NvmlError::InsufficientSize(None)),
            Ok(_) => list(),
            Err(e) => Err(e),
        };
        match listed {
            Ok(list) => pids.extend(list),
            Err(e) => note(call, e.into()),
        }
    };
    let pids_of = |list: Vec<nvml_wrapper::struct_wrappers::device::ProcessInfo>| list.iter().map(|p| p.pid).collect();
    collect("nvmlDeviceGetComputeRunningProcesses", device.running_compute_processes_count(), &|| {
        device.running_compute_processes().map(pids_of)
    });
    collect("nvmlDeviceGetGraphicsRunningProcesses", device.running_graphics_processes_count(), &|| {
        device.running_graphics_processes().map(pids_of)
    });
    match facts::mps_processes(nvml, device, MAX_PROCESSES) {
        Ok(list) => pids.extend(list),
        Err(e) => note("nvmlDeviceGetMPSComputeRunningProcesses", e.into()),
    }
    pids
}

/// The name that `NVIDIA_REQUIRE_…` variables use for a brand.
fn brand_name(brand: Brand) -> Option<&'static str> {
    Some(match brand {
        Brand::Quadro => "quadro",
        Brand::Tesla => "tesla",
        Brand::NVS => "nvs",
        Brand::GRID => "grid",
        Brand::GeForce => "geforce",
        Brand::Titan => "titan",
        Brand::QuadroRTX => "quadrortx",
        Brand::NvidiaRTX => "nvidiartx",
        Brand::Nvidia => "nvidia",
        Brand::GeForceRTX => "geforcertx",
        Brand::TitanRTX => "titanrtx",
        // Virtual GPUs, which were all called GRID before.
        Brand::VApps | Brand::VPC | Brand::VCS | Brand::VWS | Brand::CloudGaming | Brand::VGaming => "grid",
        Brand::Unknown => return None,
    })
}

/// `00000000:07:00.0` as the kernel writes it, `0000:07:00.0`: NVML gives the domain eight digits.
pub(crate) fn kernel_bus_id(bus_id: &str) -> Option<String> {
    let mut parts = bus_id.split(':');
    let (domain, bus, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let (device, function) = rest.split_once('.')?;
    let number = |digits: &str| u32::from_str_radix(digits, 16).ok();
    let [domain, bus, device, function] = [number(domain)?, number(bus)?, number(device)?, number(function)?];
    let valid = parts.next().is_none() && bus <= 0xff && device <= 0x1f && function <= 7;
    valid.then(|| format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"))
}

/// The numbers of the bits that are set.
fn bits<W: Copy + Into<u64>>(words: &[W]) -> Vec<u32> {
    let mut numbers = Vec::new();
    let mut first = 0;
    for word in words {
        let word: u64 = (*word).into();
        numbers.extend((0..64).filter(|bit| word >> bit & 1 == 1).map(|bit| first + bit));
        first += 64;
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bus_addresses_become_the_kernel_s() {
        let table = [
            ("00000000:07:00.0", Some("0000:07:00.0")),
            ("0000:C1:00.0", Some("0000:c1:00.0")),
            ("00010000:0F:1F.7", Some("10000:0f:1f.7")),
            ("07:00.0", None),
            ("0000:07:00", None),
            ("0000:100:00.0", None),
            ("0000:07:20.0", None),
            ("0000:07:00.8", None),
            ("0000:07:00.0:1", None),
            ("../../../etc", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(kernel_bus_id(text).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn masks_become_lists() {
        assert_eq!(bits(&[0b1011_u64, 1]), [0, 1, 3, 64]);
        assert_eq!(cuda_version(12_040), Some((12, 4)));
        assert_eq!(cuda_version(-1), None);
    }
}
