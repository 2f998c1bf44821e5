//! Which kind of system a driver root is: not every NVIDIA GPU has a kernel module and a library with a version.

use crate::gpu::driver::root::DriverRoot;
use crate::gpu::driver::{kernel_version, tegra};

use std::path::Path;

/// The one device of WSL, behind which Windows has all GPUs.
pub(crate) const WSL_DEVICE: &str = "/dev/dxg";

/// How a host has its NVIDIA GPUs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Platform {
    /// Behind a kernel module and a user space of the same version.
    Module,
    /// In Windows, whose driver's files are mounted below `/usr/lib/wsl`.
    Wsl,
    /// One in the processor, and lists of what it needs. There may be others, in slots, behind a module.
    Tegra,
}

impl Platform {
    /// Finds what the driver root `root` is.
    pub(crate) fn of(root: &DriverRoot) -> Self {
        let there = |path: &str| root.resolve(Path::new(path)).is_ok();
        if there(WSL_DEVICE) && kernel_version(root).is_none() {
            return Self::Wsl;
        }
        if tegra::is_tegra(root) { Self::Tegra } else { Self::Module }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_host_is_told_apart() {
        let module = ("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  x\n");
        let lists = ("etc/nvidia-container-runtime/host-files-for-container.d/l4t.csv", "");
        let family = ("sys/devices/soc0/family", "Tegra\n");
        type Files<'a> = &'a [(&'a str, &'a str)];
        let table: [(Files<'_>, Platform); 8] = [
            (&[], Platform::Module),
            (&[module], Platform::Module),
            (&[("dev/dxg", "")], Platform::Wsl),
            (&[("dev/dxg", ""), module], Platform::Module),
            (&[family, lists], Platform::Tegra),
            (&[("etc/nv_tegra_release", "# R36"), lists, module], Platform::Tegra),
            (&[family], Platform::Module),
            (&[("sys/devices/soc0/family", "Snapdragon\n"), lists], Platform::Module),
        ];
        for (files, expected) in table {
            let directory = tempfile::tempdir().unwrap();
            for (path, contents) in files {
                let path = directory.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, contents).unwrap();
            }
            assert_eq!(Platform::of(&DriverRoot::new(directory.path())), expected, "{files:?}");
        }
    }
}
