//! Tegra: what the lists of the board name, for the GPU in the processor.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::driver::elf::{self, Machine};
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::driver::{catalog, tegra};
use crate::gpu::grant::{FileMount, GpuGrant, MountKind, Symlink};
use crate::gpu::injection::devices::Devices;
use crate::gpu::injection::image_facts::ImageFacts;
use crate::gpu::inventory::Inventory;
use crate::gpu::request::{DriverCapability, GpuRequest, Vendor};
use crate::gpu::select::unavailable;

use std::path::{Path, PathBuf};

/// The variable by which an image says that it brings nothing of the board's system, and the word for it.
const EVERYTHING: (&str, &str) = ("NVIDIA_REQUIRE_JETPACK", "csv-mounts=all");

/// Adds to the grant what the lists name: devices, if `devices` says so, and files, if any part of the driver is wanted.
pub(crate) fn add(
    request: &GpuRequest,
    devices: bool,
    inventory: &Inventory,
    root: &DriverRoot,
    image: &ImageFacts,
    grant: &mut GpuGrant,
) -> Result<()> {
    let said = image.environment.iter().rev().find(|(name, _)| name == EVERYTHING.0);
    let listed = tegra::listed(root, said.is_some_and(|(_, value)| value == EVERYTHING.1))?;
    if devices {
        nodes(&listed.devices, inventory, root, grant)?;
    }
    if !request.wants_driver() {
        return Ok(());
    }
    for (target, source) in listed.directories {
        let (read_only, executable, recursive) = (true, true, false);
        grant.mounts.push(FileMount { source, target, kind: MountKind::Directory, read_only, executable, recursive });
    }
    let release = root.resolve(Path::new(tegra::RELEASE)).map(|source| (PathBuf::from(tegra::RELEASE), source));
    for (target, source) in listed.files.into_iter().chain(release.ok()) {
        if grant.mounts.iter().any(|known| known.target == target) {
            continue;
        }
        let (kind, read_only, executable, recursive) = (MountKind::File, true, true, false);
        grant.mounts.push(FileMount { source, target, kind, read_only, executable, recursive });
    }
    // What is mounted over or in would hide it.
    let free = |grant: &GpuGrant, link: &Path| {
        let taken = |mount: &FileMount| {
            mount.target == *link || mount.kind == MountKind::Directory && link.starts_with(&mount.target)
        };
        !grant.mounts.iter().any(taken) && !grant.links.iter().any(|known| known.link == *link)
    };
    for (link, target) in listed.links {
        if free(grant, &link) {
            grant.links.push(Symlink { link, target });
        }
    }
    for (link, target) in names(grant) {
        if free(grant, &link) {
            grant.links.push(Symlink { link, target });
        }
    }
    grant.links.sort();
    let cuda = |mount: &FileMount| {
        mount.target.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"libcuda.so."))
    };
    if request.wants(DriverCapability::Compute) && !grant.mounts.iter().any(cuda) {
        let why = "libcuda.so.* is in none of the board's lists of files for containers, or not there";
        return Err(Error::new(ErrorKind::GpuUnavailable, why));
    }
    Ok(())
}

/// The nodes that are listed but for those of GPUs in slots, which are granted each by itself.
fn nodes(listed: &[PathBuf], inventory: &Inventory, root: &DriverRoot, grant: &mut GpuGrant) -> Result<()> {
    let in_slots = inventory.gpus().iter().filter(|gpu| gpu.vendor == Vendor::Nvidia && !gpu.is_integrated());
    let others: Vec<PathBuf> = in_slots.map(|gpu| format!("/dev/nvidia{}", gpu.minor).into()).collect();
    let found = Devices::read(root);
    let mut any = false;
    for path in listed.iter().filter(|path| !others.contains(path)) {
        let node = found.existing(path)?;
        any = true;
        if !grant.device_nodes.iter().any(|known| known.path == node.path) {
            grant.device_nodes.push(node);
        }
    }
    if any { Ok(()) } else { Err(unavailable("none of the devices in the board's lists for containers is there")) }
}

/// The names by which programs ask for the libraries, as `ldconfig` would find them, and the directories of those.
fn names(grant: &mut GpuGrant) -> Vec<(PathBuf, PathBuf)> {
    let mut names = Vec::new();
    for mount in grant.mounts.iter().filter(|mount| mount.kind == MountKind::File) {
        let (Some(directory), Some(own)) = (mount.target.parent(), mount.target.file_name()) else { continue };
        let own = own.to_string_lossy();
        if !own.starts_with("lib") || !own.contains(".so") {
            continue;
        }
        let object = match crate::sys::fs::open(&mount.source).map(|file| elf::read(&file)) {
            Ok(Ok(object)) if object.machine == Machine::Native => object,
            _ => continue,
        };
        if !grant.library_directories.iter().any(|known| known == directory) {
            grant.library_directories.push(directory.to_owned());
        }
        if let Some(soname) = &object.soname {
            names.push((directory.join(soname), PathBuf::from(&*own)));
            let plain = catalog::LINKS.iter().filter(|(_, target)| target == soname && !target.starts_with(".."));
            names.extend(plain.map(|(link, target)| (directory.join(link), PathBuf::from(target))));
            // GLVND asks for the vendor's library under this name where there is no display.
            if soname == "libGLX_nvidia.so.0" {
                names.push((directory.join("libGLX_indirect.so.0"), PathBuf::from(&*own)));
            }
        }
    }
    names
}
