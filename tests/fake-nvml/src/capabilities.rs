//! What the kernel shows of instances: files below `/proc/driver/nvidia/capabilities`, and device nodes.
//!
//! Only for a machine whose description names a driver root. Nodes are made if this is root.

use crate::profile::Machine;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The minor of a capability: the kernel gives each that could ever be a number of its own.
fn minor(gpu: u32, instance: u32, compute: Option<u32>) -> u32 {
    3 + gpu * 134 + instance * 9 + compute.map_or(0, |compute| compute + 1)
}

fn place(machine: &Machine, gpu: usize, instance: u32, compute: Option<u32>) -> Option<(&Path, PathBuf, u32)> {
    let (root, gpu) = (machine.root.as_deref()?, machine.gpus.get(gpu)?.minor);
    let mut directory = root.join(format!("proc/driver/nvidia/capabilities/gpu{gpu}/mig/gi{instance}"));
    if let Some(compute) = compute {
        directory.push(format!("ci{compute}"));
    }
    Some((root, directory, minor(gpu, instance, compute)))
}

/// Shows a new instance. What cannot be written the test will miss.
pub(crate) fn made(machine: &Machine, gpu: usize, instance: u32, compute: Option<u32>) {
    let Some((root, directory, minor)) = place(machine, gpu, instance, compute) else { return };
    let text = format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
    let _ = std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(directory.join("access"), text));
    list(root, machine.gpus[gpu].minor, instance, compute, minor);
    let devices = std::fs::read_to_string(root.join("proc/devices")).unwrap_or_default();
    let major = devices.lines().find_map(|line| line.trim().strip_suffix(" nvidia-caps"));
    let node = root.join(format!("dev/nvidia-caps/nvidia-cap{minor}"));
    if let (Some(major), false) = (major, node.exists()) {
        let _ = std::fs::create_dir_all(node.with_file_name(""));
        let mut mknod = Command::new("mknod");
        mknod.args(["-m", "666"]).arg(node).args(["c", major, &minor.to_string()]);
        let _ = mknod.stderr(Stdio::null()).status();
    }
}

/// Adds a capability to the list of all, where the kernel has them from the start.
fn list(root: &Path, gpu: u32, instance: u32, compute: Option<u32>, minor: u32) {
    let path = root.join("proc/driver/nvidia-caps/mig-minors");
    let compute = compute.map_or(String::new(), |compute| format!("ci{compute}/"));
    let line = format!("gpu{gpu}/gi{instance}/{compute}access {minor}\n");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    if !text.contains(&line) {
        let _ = std::fs::write(path, text + &line);
    }
}

/// Takes a destroyed instance out of the view; its node stays, as on a real host.
pub(crate) fn destroyed(machine: &Machine, gpu: usize, instance: u32, compute: Option<u32>) {
    if let Some((_, directory, _)) = place(machine, gpu, instance, compute) {
        let _ = std::fs::remove_dir_all(directory);
    }
}
