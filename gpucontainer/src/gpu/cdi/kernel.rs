//! The kernel's account of NVIDIA's devices, for a container that got them by a specification.

use crate::gpu::driver::root::DriverRoot;
use crate::gpu::grant::{DeviceNode, FileTree, GpuGrant, TextFile};
use crate::gpu::injection::devices::parse_capabilities;
use crate::gpu::injection::procfs::{PROC, without_node_making};

use std::path::Path;

/// Shows of procfs what belongs to the GPUs whose nodes are granted, and keeps the driver's user space from making
/// nodes: more than NVIDIA's own hook does, which shows all of it.
pub(crate) fn hide_other_gpus(root: &DriverRoot, grant: &mut GpuGrant) {
    if grant.trees.iter().any(|tree| tree.path == Path::new(PROC)) {
        return;
    }
    let mut files = Vec::new();
    let mut add = |path: String| {
        let Some(contents) = root.text(Path::new(PROC).join(&path)) else { return };
        let contents = if path == "params" { without_node_making(&contents) } else { contents };
        files.push(TextFile { path: path.into(), contents, mode: 0o444 });
    };
    ["version", "params", "registry"].map(str::to_owned).into_iter().for_each(&mut add);
    for bus_id in root.names(&Path::new(PROC).join("gpus")) {
        let information = root.text(Path::new(PROC).join("gpus").join(&bus_id).join("information"));
        let minor = information.as_deref().and_then(minor_of);
        if minor.is_some_and(|minor| grant.device_nodes.iter().any(|node| is_gpu(node, minor))) {
            ["information", "power", "registry"]
                .map(|name| format!("gpus/{bus_id}/{name}"))
                .into_iter()
                .for_each(&mut add);
        }
    }
    let capabilities = root.text("/proc/driver/nvidia-caps/mig-minors").unwrap_or_default();
    for (name, minor) in parse_capabilities(&capabilities) {
        let granted = |node: &DeviceNode| node.path.ends_with(format!("nvidia-caps/nvidia-cap{minor}"));
        if let Some((gpu, rest)) = name.split_once('/').filter(|_| grant.device_nodes.iter().any(granted)) {
            add(format!("capabilities/{gpu}/mig/{rest}"));
        }
    }
    if !files.is_empty() {
        grant.trees.push(FileTree { path: PROC.into(), files });
    }
}

/// The minor number in a GPU's file of procfs.
fn minor_of(information: &str) -> Option<u32> {
    let line = information.lines().find_map(|line| line.strip_prefix("Device Minor:"))?;
    line.trim().parse().ok()
}

fn is_gpu(node: &DeviceNode, minor: u32) -> bool {
    node.minor == minor && node.path.to_str() == Some(&format!("/dev/nvidia{minor}"))
}
