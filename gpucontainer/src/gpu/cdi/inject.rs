//! What specifications say, as a grant.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::cdi::catalogue::Catalogue;
use crate::gpu::cdi::hooks::{self, VendorHooks};
use crate::gpu::cdi::names::DeviceName;
use crate::gpu::cdi::spec::{self, ContainerEdits};
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::grant::{DeviceNode, FileMount, GpuGrant, MountKind, NodeAccess};
use crate::gpu::injection::profile::add_profile;
use crate::sys::{device, fs};

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

impl Catalogue {
    /// Works out what a container needs to use the devices `names`, in this order.
    ///
    /// What NVIDIA's hooks do is part of the grant, nothing of NVIDIA's is executed; they are told from others by
    /// the names of their programs. `vendor_hooks` says what becomes of all others. The `driver_root` is where the
    /// kernel's account of NVIDIA's devices is read.
    ///
    /// # Errors
    /// [`ErrorKind::GpuUnavailable`] if a device is not described, or the host lacks what its description names;
    /// [`ErrorKind::Unsupported`] for what is not carried out here: network interfaces, Intel's resource director,
    /// FIFOs, other mounts than bind mounts, and hooks that `vendor_hooks` does not allow.
    pub fn grant(&self, names: &[DeviceName], vendor_hooks: VendorHooks, driver_root: &DriverRoot) -> Result<GpuGrant> {
        let mut grant = GpuGrant::default();
        let mut hooks = Vec::new();
        let mut begun: Vec<&Path> = Vec::new();
        for (number, name) in names.iter().enumerate() {
            if names[..number].contains(name) {
                continue;
            }
            let (file, spec, device) = self.find(name)?;
            let wanted = || format!("grant {name} as {} describes it", file.display());
            if !begun.contains(&file) {
                begun.push(file);
                apply(&spec.container_edits, &mut grant).with_context(wanted)?;
                hooks.extend(&spec.container_edits.hooks);
            }
            apply(&device.container_edits, &mut grant).with_context(wanted)?;
            hooks.extend(&device.container_edits.hooks);
            grant.gpus.push(identifier(name));
        }
        // A mount over a directory must come before those below it.
        grant.mounts.sort_by_key(|mount| mount.target.components().count());
        hooks::apply(&hooks, vendor_hooks, driver_root, &mut grant)?;
        add_profile(&mut grant);
        Ok(grant)
    }
}

/// NVIDIA's identifier where the name is one, else the full name.
fn identifier(name: &DeviceName) -> String {
    let known = name.kind() == "nvidia.com/gpu" && (name.name().starts_with("GPU-") || name.name().starts_with("MIG-"));
    if known { name.name().to_owned() } else { name.to_string() }
}

fn unsupported(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, why)
}

fn apply(edits: &ContainerEdits, grant: &mut GpuGrant) -> Result<()> {
    if let Some(device) = edits.net_devices.first() {
        let name = &device.host_interface_name;
        return Err(unsupported(format!("network interface {name:?} would have to move into the container")));
    }
    if edits.intel_rdt.is_some() {
        return Err(unsupported("intelRdt: processes are not put into classes of Intel's resource director"));
    }
    for line in &edits.env {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        grant.environment.retain(|(known, _)| known != name);
        grant.environment.push((name.to_owned(), value.to_owned()));
    }
    for described in &edits.device_nodes {
        let node = device_node(described)?;
        grant.device_nodes.retain(|known| known.path != node.path);
        grant.device_nodes.push(node);
    }
    for described in &edits.mounts {
        let mount = mount(described).with_context(|| format!("mount {:?}", described.host_path))?;
        grant.mounts.retain(|known| known.target != mount.target);
        grant.mounts.push(mount);
    }
    for group in edits.additional_gids.iter().filter(|group| **group != 0) {
        if !grant.groups.contains(group) {
            grant.groups.push(*group);
        }
    }
    Ok(())
}

/// The node, with what its description leaves out taken from the host's.
fn device_node(described: &spec::DeviceNode) -> Result<DeviceNode> {
    let host_path = PathBuf::from(described.host_path.as_deref().unwrap_or(&described.path));
    let refuse = |why: &str| {
        let message = format!("device node {}: {why}", host_path.display());
        Err(Error::new(ErrorKind::GpuUnavailable, message).with_path(&host_path))
    };
    if described.kind.as_deref() == Some("p") {
        return Err(unsupported(format!("device node {:?}: it is to be a FIFO", described.path)));
    }
    let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
    let stated = number(described.major).map(|major| (major, number(described.minor).unwrap_or(0)));
    let kind = described.kind.as_deref().filter(|kind| !kind.is_empty()).map(|kind| kind == "b");
    let there = match device::node(&host_path) {
        Ok(Some(node)) => Some(node),
        Ok(None) => return refuse("it is no device node"),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    // A container must get the device that is described and no other, whatever somebody left in `/dev`.
    let (block, (major, minor)) = match (&there, stated) {
        (Some(node), Some(numbers)) if numbers != (node.major, node.minor) => {
            let (major, minor) = numbers;
            return refuse(&format!("it is device {}:{}, where {major}:{minor} is described", node.major, node.minor));
        }
        (Some(node), _) if kind.is_some_and(|block| block == node.character) => {
            return refuse("it is not the kind of device that is described");
        }
        (Some(node), _) => (!node.character, (node.major, node.minor)),
        (None, Some(numbers)) => (kind.unwrap_or(false), numbers),
        (None, None) => return refuse("the host does not have it, and its numbers are not described"),
    };
    let access = match described.permissions.as_deref() {
        None | Some("") => NodeAccess::default(),
        Some("none") => NodeAccess { read: false, write: false, make: false },
        Some(letters) => {
            NodeAccess { read: letters.contains('r'), write: letters.contains('w'), make: letters.contains('m') }
        }
    };
    let owned = described.uid.is_some() || described.gid.is_some();
    Ok(DeviceNode {
        path: PathBuf::from(&described.path),
        mode: described.file_mode.or(there.map(|node| node.mode)).unwrap_or(0o666) & 0o777,
        host_path: there.is_some().then_some(host_path),
        block,
        major,
        minor,
        owner: owned.then(|| (described.uid.unwrap_or(0), described.gid.unwrap_or(0))),
        access,
    })
}

fn mount(described: &spec::Mount) -> Result<FileMount> {
    if let Some(kind) = described.kind.as_deref().filter(|kind| !matches!(*kind, "" | "bind" | "none")) {
        return Err(unsupported(format!("a mount of type {kind:?}, which is no bind mount")));
    }
    let source =
        fs::canonicalize(Path::new(&described.host_path)).map_err(|e| e.with_kind(ErrorKind::GpuUnavailable))?;
    let facts = fs::metadata(&source)?;
    let kind = match facts.file_type() {
        kind if kind.is_dir() => MountKind::Directory,
        kind if kind.is_file() => MountKind::File,
        kind if kind.is_socket() => MountKind::Socket,
        _ => return Err(unsupported("it is no file, directory or socket")),
    };
    let target = PathBuf::from(&described.container_path);
    let (mut read_only, mut executable, mut recursive) = (false, true, false);
    for option in &described.options {
        match option.as_str() {
            "ro" => read_only = true,
            "rw" => read_only = false,
            "exec" => executable = true,
            "noexec" => executable = false,
            "rbind" => recursive = true,
            // Every mount of a grant is so, also one that is to be less restricted.
            "bind" | "nosuid" | "nodev" | "suid" | "dev" => {}
            // Mounts made later on the host stay there.
            "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" => {}
            "atime" | "noatime" | "diratime" | "nodiratime" | "relatime" | "norelatime" | "strictatime"
            | "nostrictatime" | "nosymfollow" | "sync" | "async" | "defaults" => {}
            other => return Err(unsupported(format!("mount option {other:?}"))),
        }
    }
    Ok(FileMount { source, target, kind, read_only, executable, recursive })
}
