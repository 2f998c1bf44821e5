//! GPUs that the management library does not list: those of Windows where it does not start, and the one in a
//! processor, of which older systems have no such library.

use crate::gpu::driver::platform::Platform;
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::driver::{tegra, wsl};
use crate::gpu::inventory::{Gpu, GpuMemory, Inventory};
use crate::gpu::request::Vendor;

/// How the name of a GPU in a processor ends, as the driver itself has it.
pub(crate) const INTEGRATED: &str = "(nvgpu)";

/// Names of boards are shorter.
const MAX_NAME: usize = 64;

/// Processors, as their boards call them, and what their GPUs can do.
const PROCESSORS: &[(&str, (u32, u32))] = &[
    ("nvidia,tegra210", (5, 3)),
    ("nvidia,tegra186", (6, 2)),
    ("nvidia,tegra194", (7, 2)),
    ("nvidia,tegra234", (8, 7)),
];

/// Adds what has no entry yet and is there.
pub(crate) fn complete(root: &DriverRoot, inventory: &mut Inventory) {
    let found = match Platform::of(root) {
        Platform::Module => None,
        Platform::Wsl => (inventory.gpus.is_empty() && wsl::is_installed(root)).then(of_windows),
        Platform::Tegra => {
            let in_slots = inventory.gpus.iter().filter(|gpu| !gpu.is_integrated()).map(|gpu| gpu.minor);
            let in_slots: Vec<u32> = in_slots.collect();
            let minor = tegra::minors(root).into_iter().find(|minor| !in_slots.contains(minor));
            if let Some(gpu) = inventory.gpus.iter_mut().find(|gpu| gpu.is_integrated()) {
                gpu.minor = minor.unwrap_or(gpu.minor);
                gpu.compute_capability = gpu.compute_capability.or_else(|| compute_capability(root));
                gpu.memory = gpu.memory.or_else(|| memory(root));
            }
            // A library that lists others would list this one if it could be used beside them.
            inventory.gpus.is_empty().then(|| Gpu { minor: minor.unwrap_or_default(), ..in_processor(root) })
        }
    };
    let Some(gpu) = found else { return };
    inventory.gpus.push(gpu);
    if let Some(why) = inventory.unavailable.take() {
        tracing::debug!(why, "GPUs are known without the management library");
        inventory.problems.push(why);
    }
}

fn of_windows() -> Gpu {
    Gpu {
        vendor: Vendor::Nvidia,
        uuid: "GPU-dxg".to_owned(),
        name: "NVIDIA GPUs of Windows".to_owned(),
        ..Gpu::default()
    }
}

fn in_processor(root: &DriverRoot) -> Gpu {
    let board = text(root, "/proc/device-tree/model").into_iter().next().unwrap_or_else(|| "NVIDIA Tegra".to_owned());
    Gpu {
        vendor: Vendor::Nvidia,
        uuid: "GPU-nvgpu".to_owned(),
        name: format!("{board} {INTEGRATED}"),
        memory: memory(root),
        compute_capability: compute_capability(root),
        ..Gpu::default()
    }
}

/// What the board says of itself in a file: words that each end in a null byte.
fn text(root: &DriverRoot, path: &str) -> Vec<String> {
    let text = root.text(path).unwrap_or_default();
    let plain = |word: &&str| {
        !word.is_empty() && word.len() <= MAX_NAME && word.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
    };
    text.split('\0').map(str::trim).filter(plain).map(str::to_owned).collect()
}

fn compute_capability(root: &DriverRoot) -> Option<(u32, u32)> {
    let board = text(root, "/proc/device-tree/compatible");
    PROCESSORS.iter().find(|(name, _)| board.iter().any(|word| word == name)).map(|(_, version)| *version)
}

/// Such a GPU has the memory of the whole system.
fn memory(root: &DriverRoot) -> Option<GpuMemory> {
    let text = root.text("/proc/meminfo")?;
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let (total, free) = (bytes("MemTotal:")?, bytes("MemAvailable:")?);
    Some(GpuMemory { total, free: free.min(total) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boards_say_what_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("etc/nv_tegra_release", "# R35\n");
        write("etc/nvidia-container-runtime/host-files-for-container.d/devices.csv", "");
        let root = DriverRoot::new(directory.path());
        let mut inventory = Inventory::none("no NVIDIA driver is installed");
        complete(&root, &mut inventory);
        assert_eq!(inventory.gpus()[0].name, "NVIDIA Tegra (nvgpu)");
        assert_eq!((inventory.gpus()[0].memory, inventory.gpus()[0].compute_capability), (None, None));
        write("proc/device-tree/model", "NVIDIA Jetson AGX Orin\0");
        write("proc/device-tree/compatible", "nvidia,p3737\0nvidia,tegra234\0");
        write("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\n");
        let mut inventory = Inventory::none("no NVIDIA driver is installed");
        complete(&root, &mut inventory);
        let [gpu] = inventory.gpus() else { panic!("{inventory:?}") };
        assert_eq!((gpu.name.as_str(), gpu.compute_capability), ("NVIDIA Jetson AGX Orin (nvgpu)", Some((8, 7))));
        assert_eq!(gpu.memory, Some(GpuMemory { total: 1_024_000, free: 409_600 }));
        assert!(gpu.is_integrated() && inventory.unavailable().is_none());
        write("proc/device-tree/model", "a\nb\0\0");
        assert_eq!(in_processor(&root).name, "NVIDIA Tegra (nvgpu)", "a name is one line");
    }
}
