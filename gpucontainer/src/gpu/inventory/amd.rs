//! What the kernel says of AMD's GPUs beyond what it says of every card: product names, users, errors.

use crate::gpu::driver::root::DriverRoot;
use crate::gpu::inventory::Gpu;

use std::collections::BTreeSet;
use std::path::Path;

/// Where libdrm keeps the names of products.
const NAMES: &str = "/usr/share/libdrm/amdgpu.ids";
/// The compute driver's account of itself.
const COMPUTE: &str = "/sys/class/kfd/kfd";

/// Adds to a card, whose directory is `device`, what is known of it.
pub(crate) fn complete(root: &DriverRoot, device: &Path, gpu: &mut Gpu) {
    if let Some(text) = root.text(device.join("ras/umc_err_count")) {
        gpu.health.uncorrectable_errors = uncorrectable(&text);
    }
    if let Some(compute) = compute_identifier(root, gpu.minor) {
        gpu.processes = processes(root, &compute);
    }
}

/// The name of the product, as its maker calls it; `None` if the list does not have it.
pub(crate) fn product(root: &DriverRoot, device: &Path) -> Option<String> {
    let number = |file: &str| {
        let text = root.text(device.join(file))?;
        u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
    };
    let (model, revision) = (number("device")?, number("revision")?);
    find_product(&root.text(NAMES)?, model, revision)
}

/// Lines are `74A1, 00, AMD Instinct MI300X`.
fn find_product(list: &str, model: u32, revision: u32) -> Option<String> {
    list.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut parts = line.splitn(3, ',').map(str::trim);
        let mut number = || u32::from_str_radix(parts.next()?, 16).ok();
        let matches = number()? == model && number()? == revision;
        let name = parts.next().filter(|name| matches && !name.is_empty())?;
        Some(name.to_owned())
    })
}

/// The compute driver's own number for the card with this render node.
fn compute_identifier(root: &DriverRoot, minor: u32) -> Option<String> {
    let nodes = Path::new(COMPUTE).join("topology/nodes");
    root.names(&nodes).into_iter().find_map(|name| {
        let node = nodes.join(name);
        let properties = root.text(node.join("properties"))?;
        let found = properties.lines().find_map(|line| line.strip_prefix("drm_render_minor "))?;
        let identifier = root.text(node.join("gpu_id"))?.trim().to_owned();
        // 0 is a processor.
        let number = identifier.parse::<u64>().ok().filter(|number| *number != 0);
        (number.is_some() && found.trim().parse() == Ok(minor)).then_some(identifier)
    })
}

/// The processes that hold memory of the card, ascending.
fn processes(root: &DriverRoot, identifier: &str) -> Vec<u32> {
    let all = Path::new(COMPUTE).join("proc");
    let mut found = BTreeSet::new();
    for name in root.names(&all) {
        let Ok(process) = name.parse::<u32>() else { continue };
        let held = root.text(all.join(&name).join(format!("vram_{identifier}")));
        if held.and_then(|text| text.trim().parse::<u64>().ok()).is_some_and(|bytes| bytes > 0) {
            found.insert(process);
        }
    }
    found.into_iter().collect()
}

/// The kernel's `ue: 2` among its lines.
fn uncorrectable(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("ue:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_have_names() {
        let list = "# comment\n1.0.0\n74A1,\t00,\tAMD Instinct MI300X\n74A1,\t01,\tAMD Instinct MI300X HF\nxyz,\n";
        assert_eq!(find_product(list, 0x74a1, 1).as_deref(), Some("AMD Instinct MI300X HF"));
        assert_eq!(find_product(list, 0x74a1, 0).as_deref(), Some("AMD Instinct MI300X"));
        assert_eq!(find_product(list, 0x74a2, 0), None);
    }

    #[test]
    fn users_and_errors_of_a_card_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for (node, identifier, minor) in [("0", "0", "0"), ("1", "51110", "128"), ("2", "60010", "129")] {
            let node = format!("sys/class/kfd/kfd/topology/nodes/{node}");
            write(&format!("{node}/gpu_id"), &format!("{identifier}\n"));
            write(&format!("{node}/properties"), &format!("simd_count 1\ndrm_render_minor {minor}\n"));
        }
        write("sys/class/kfd/kfd/proc/4242/vram_60010", "4096\n");
        write("sys/class/kfd/kfd/proc/77/vram_60010", "1\n");
        write("sys/class/kfd/kfd/proc/5/vram_60010", "0\n");
        write("sys/class/kfd/kfd/proc/6/vram_51110", "9\n");
        write("card/ras/umc_err_count", "ue: 2\nce: 7\n");
        let root = DriverRoot::new(directory.path());
        let mut gpu = Gpu { minor: 129, ..Gpu::default() };
        complete(&root, Path::new("/card"), &mut gpu);
        assert_eq!(gpu.processes, [77, 4242]);
        assert_eq!(gpu.health.uncorrectable_errors, Some(2));
        let mut idle = Gpu { minor: 130, ..Gpu::default() };
        complete(&root, Path::new("/other"), &mut idle);
        assert!(idle.processes.is_empty() && idle.health.uncorrectable_errors.is_none());
    }
}
