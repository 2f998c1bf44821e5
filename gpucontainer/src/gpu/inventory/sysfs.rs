//! What the kernel says of GPUs: the place of NVIDIA's, and those of AMD and Intel.

use crate::gpu::driver::root::DriverRoot;
use crate::gpu::inventory::{Gpu, GpuMemory, amd};
use crate::gpu::request::Vendor;

use std::path::{Path, PathBuf};

/// Adds what the kernel knows of an NVIDIA GPU.
pub(crate) fn complete(root: &DriverRoot, gpu: &mut Gpu) {
    let device = Path::new("/sys/bus/pci/devices").join(&gpu.pci_bus_id);
    gpu.numa_node = numa_node(root, &device);
    gpu.render_nodes = render_nodes(root, &device);
    if gpu.cpu_affinity.is_empty() {
        gpu.cpu_affinity = cpu_list(root, &device);
    }
}

/// The GPUs of AMD and Intel that have a render node, by bus address.
pub(crate) fn other_vendors(root: &DriverRoot) -> Vec<Gpu> {
    let mut found: Vec<(String, Gpu)> = Vec::new();
    for name in root.names(Path::new("/sys/class/drm")) {
        let Some(minor) = name.strip_prefix("renderD").and_then(|digits| digits.parse().ok()) else { continue };
        let device = Path::new("/sys/class/drm").join(&name).join("device");
        let number = |file: &str| root.text(device.join(file)).and_then(|text| text.trim().parse::<u64>().ok());
        let vendor = match root.text(device.join("vendor")).as_deref().map(str::trim) {
            Some("0x1002") => Vendor::Amd,
            Some("0x8086") => Vendor::Intel,
            _ => continue,
        };
        let Some(pci_bus_id) = bus_id(root, &device) else { continue };
        let memory = number("mem_info_vram_total")
            .map(|total| GpuMemory { total, free: total.saturating_sub(number("mem_info_vram_used").unwrap_or(0)) });
        let unique = root.text(device.join("unique_id")).map(|text| text.trim().to_owned());
        let unique = unique.filter(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let prefix = if vendor == Vendor::Amd { "AMD" } else { "INTEL" };
        let model = root.text(device.join("device")).map(|text| text.trim().to_owned()).unwrap_or_default();
        let mut gpu = Gpu {
            vendor,
            uuid: format!("{prefix}-{}", unique.as_deref().unwrap_or(&pci_bus_id)),
            index: 0,
            minor,
            name: root
                .text(device.join("product_name"))
                .map(|text| text.trim().to_owned())
                .filter(|n| !n.is_empty())
                .or_else(|| amd::product(root, &device).filter(|_| vendor == Vendor::Amd))
                .unwrap_or_else(|| format!("{vendor} GPU {model}")),
            memory,
            compute_capability: None,
            numa_node: numa_node(root, &device),
            cpu_affinity: cpu_list(root, &device),
            mig_enabled: false,
            mig_devices: Vec::new(),
            processes: Vec::new(),
            memory_nodes: numa_node(root, &device).into_iter().collect(),
            render_nodes: vec![Path::new("/dev/dri").join(&name)],
            pci_bus_id: pci_bus_id.clone(),
            ..Gpu::default()
        };
        if vendor == Vendor::Amd {
            amd::complete(root, &device, &mut gpu);
        }
        found.push((pci_bus_id, gpu));
    }
    found.sort_by(|a, b| (a.1.vendor, &a.0).cmp(&(b.1.vendor, &b.0)));
    let (mut vendor, mut next) = (Vendor::Nvidia, 0);
    for (_, gpu) in &mut found {
        next = if gpu.vendor == vendor { next + 1 } else { 0 };
        vendor = gpu.vendor;
        gpu.index = next;
    }
    found.into_iter().map(|(_, gpu)| gpu).collect()
}

/// The bus address, from the device's own list of properties: the name behind the link may be missing in a copy.
fn bus_id(root: &DriverRoot, device: &Path) -> Option<String> {
    let properties = root.text(device.join("uevent"))?;
    let address = properties.lines().find_map(|line| line.strip_prefix("PCI_SLOT_NAME="))?;
    let plain = !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.');
    plain.then(|| address.to_owned())
}

/// The kernel says -1 for a host without nodes.
fn numa_node(root: &DriverRoot, device: &Path) -> Option<u32> {
    root.text(device.join("numa_node"))?.trim().parse().ok()
}

fn cpu_list(root: &DriverRoot, device: &Path) -> Vec<u32> {
    root.text(device.join("local_cpulist")).map(|text| parse_cpu_list(text.trim())).unwrap_or_default()
}

/// The kernel's `0-3,8`; what is malformed is left out.
fn parse_cpu_list(text: &str) -> Vec<u32> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            // Linux supports at most 8,192 CPUs.
            cpus.extend(first..=last.min(8191));
        }
    }
    cpus
}

/// `/dev/dri/card0`, `/dev/dri/renderD128` of a device.
fn render_nodes(root: &DriverRoot, device: &Path) -> Vec<PathBuf> {
    let names = root.names(&device.join("drm")).into_iter();
    names
        .filter(|name| name.starts_with("card") || name.starts_with("renderD"))
        .map(|name| Path::new("/dev/dri").join(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(parse_cpu_list("0-3,8"), [0, 1, 2, 3, 8]);
        assert_eq!(parse_cpu_list("5"), [5]);
        assert!(parse_cpu_list("").is_empty());
        assert!(parse_cpu_list("3-1,x,-").is_empty());
        assert_eq!(parse_cpu_list("8190-4294967295"), [8190, 8191]);
    }

    #[test]
    fn cards_of_other_vendors_are_found() {
        let directory = tempfile::tempdir().unwrap();
        for (node, vendor, address) in [
            ("renderD129", "0x1002", "0000:c3:00.0"),
            ("renderD128", "0x8086", "0000:00:02.0"),
            ("renderD130", "0x10de", "0000:01:00.0"),
        ] {
            let device = directory.path().join("sys/class/drm").join(node).join("device");
            std::fs::create_dir_all(&device).unwrap();
            std::fs::write(device.join("vendor"), format!("{vendor}\n")).unwrap();
            std::fs::write(device.join("device"), "0x74a1\n").unwrap();
            std::fs::write(device.join("numa_node"), "-1\n").unwrap();
            std::fs::write(device.join("uevent"), format!("DRIVER=x\nPCI_SLOT_NAME={address}\n")).unwrap();
            if vendor == "0x1002" {
                std::fs::write(device.join("mem_info_vram_total"), "1000\n").unwrap();
                std::fs::write(device.join("mem_info_vram_used"), "400\n").unwrap();
                std::fs::write(device.join("unique_id"), "a1b2c3\n").unwrap();
                std::fs::write(device.join("revision"), "0x00\n").unwrap();
            }
        }
        std::fs::create_dir_all(directory.path().join("usr/share/libdrm")).unwrap();
        let names = directory.path().join("usr/share/libdrm/amdgpu.ids");
        std::fs::write(names, "74A1,\t00,\tAMD Instinct MI300X\n").unwrap();
        let gpus = other_vendors(&DriverRoot::new(directory.path()));
        let seen: Vec<_> = gpus.iter().map(|gpu| (gpu.vendor, gpu.uuid.as_str(), gpu.index, gpu.minor)).collect();
        assert_eq!(
            seen,
            [(Vendor::Amd, "AMD-a1b2c3", 0, 129), (Vendor::Intel, "INTEL-0000:00:02.0", 0, 128)],
            "NVIDIA's own cards come from its driver"
        );
        assert_eq!((gpus[0].name.as_str(), gpus[1].name.as_str()), ("AMD Instinct MI300X", "Intel GPU 0x74a1"));
        assert_eq!(gpus[0].memory, Some(GpuMemory { total: 1000, free: 600 }));
        assert_eq!(gpus[0].numa_node, None);
    }
}
