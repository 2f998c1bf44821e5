//! What a grant has, as steps of a plan: at the start of a sandbox, and while it runs.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::{DeviceNode, FileMount, FileTree, GpuGrant, MountKind, OwnFile};
use crate::sandbox::plan::{Device, Step};
use crate::sandbox::prepare::text;
use crate::sys::calls::{Attributes, Travel};
use crate::sys::fs;
use std::path::{Path, PathBuf};

/// A file, directory or socket of the host, taken as `source` before.
pub(crate) fn granted_mount(mount: &FileMount, source: usize) -> Result<Step> {
    let directory = mount.kind == MountKind::Directory;
    let attributes =
        Attributes { read_only: mount.read_only, no_suid: true, no_devices: true, no_execute: !mount.executable };
    let (target, recursive, travel) = (text(&mount.target)?, mount.recursive, Travel::Private);
    Ok(Step::Bind { source, target, directory, attributes, recursive, travel })
}

/// A file of the container's own.
pub(crate) fn granted_file(file: &OwnFile) -> Result<Step> {
    Ok(Step::OwnFile { path: text(&file.path)?, contents: file.contents.clone(), mode: file.mode & 0o777 })
}

/// A directory replaced by files of a grant.
pub(crate) fn tree_steps(tree: &FileTree) -> Result<Vec<Step>> {
    // The container's kernel is the host's: what its procfs does not have cannot be covered.
    if tree.path.starts_with("/proc") && fs::metadata(&tree.path).is_err() {
        return Ok(Vec::new());
    }
    let target = text(&tree.path)?;
    let attributes = Attributes { no_suid: true, no_devices: true, no_execute: true, read_only: false };
    let mut steps = vec![Step::Tmpfs { target: target.clone(), attributes, options: "mode=0555,size=1m".to_owned() }];
    for file in &tree.files {
        let path = tree.path.join(file.path.strip_prefix("/").unwrap_or(&file.path));
        steps.push(Step::File { path: text(&path)?, text: file.contents.clone() });
    }
    steps.push(Step::ReadOnly { path: target });
    Ok(steps)
}

/// The node to make, which is the application's own unless the grant says whose.
pub(crate) fn granted_device(node: &DeviceNode, application: (u32, u32)) -> Result<Device> {
    let mode = node.mode & 0o777;
    let owner = node.owner.or(Some(application)).filter(|owner| *owner != (0, 0));
    Ok(Device {
        path: text(&node.path)?,
        major: node.major,
        minor: node.minor,
        mode,
        block: node.block,
        owner,
        bound: None,
    })
}

/// Where the host has the node that the container sees at `path`.
pub(crate) fn host_path(grant: Option<&GpuGrant>, path: &str) -> Result<PathBuf> {
    let granted = grant.and_then(|grant| grant.device_nodes.iter().find(|node| node.path == Path::new(path)));
    match granted {
        None => Ok(PathBuf::from(path)),
        Some(node) => node.host_path.clone().ok_or_else(|| {
            let message =
                format!("the host has no {path}; nvidia-modprobe, or anything that uses CUDA as root, makes it");
            Error::new(ErrorKind::GpuUnavailable, message).with_path(path)
        }),
    }
}
