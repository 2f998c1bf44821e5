//! Layers for a shifted user namespace: mounts that show every owner moved into the namespace's range.

use crate::error::{Context, Result};
use crate::rootfs::Writes;
use crate::sandbox::identity::IdMaps;
use crate::sandbox::plan::{Plan, Step};
use crate::sys::calls::namespace;
use crate::sys::fs::mount;
use crate::sys::launch::{CloneOptions, start, wait};
use crate::sys::program::Program;
use crate::sys::{fs, process};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What the parent takes for a process that may not walk the host's paths: root of a shifted namespace is nobody
/// outside.
#[derive(Debug, Default)]
pub(crate) struct Shifted {
    /// The layers, the top one first.
    pub(crate) layers: Vec<OwnedFd>,
    /// The directory that has the upper and the work directory, if writes go to disk.
    pub(crate) writes: Option<OwnedFd>,
    /// The sources of mounts, by their numbers.
    pub(crate) sources: Vec<(usize, OwnedFd)>,
}

impl Shifted {
    /// Takes what `plan` needs.
    pub(crate) fn take(plan: &Plan, maps: &IdMaps) -> Result<Self> {
        let mut taken = Self::default();
        if !maps.is_shifted() {
            return Ok(taken);
        }
        for step in &plan.steps {
            match step {
                Step::RootOverlay { overlay } => {
                    taken.layers = shifted(&overlay.mount.lower, maps)?;
                    if let Writes::Disk { upper, work, .. } = &overlay.mount.writes {
                        let directory = upper.parent().unwrap_or(upper);
                        give(&[directory, upper, work], maps)?;
                        taken.writes = Some(mount::clone_tree(directory, false)?);
                    }
                }
                Step::TakeSource { source, path, recursive } => {
                    taken.sources.push((*source, mount::clone_tree(path, *recursive)?));
                }
                _ => {}
            }
        }
        Ok(taken)
    }
}

/// A mount of each layer with the owners that `maps` gives; nothing is copied or changed on disk.
///
/// The kernel takes a map from a user namespace, and only its map matters, not which namespace it is. So a process
/// that does nothing lives for a moment in one that is made like the sandbox's own.
fn shifted(layers: &[PathBuf], maps: &IdMaps) -> Result<Vec<OwnedFd>> {
    let (control, stub_control) = process::socket_pair()?;
    let mut program = Program::new();
    let end = program.descriptor(stub_control.as_fd());
    program.await_byte(end);
    let program = program.finish()?;
    let child = start(&program, &CloneOptions { namespaces: namespace::USER, ..CloneOptions::default() })?;
    drop(stub_control);
    let mounts: Result<Vec<OwnedFd>> = (|| {
        maps.write(child.pid)?;
        let holder = fs::open(Path::new(&format!("/proc/{}/ns/user", child.pid)))?;
        layers.iter().map(|layer| mount::clone_shifted(layer, holder.as_fd())).collect()
    })();
    drop(control);
    wait(&child.pidfd)?;
    mounts.context("shift the owners of the layers")
}

/// Gives the directories for writes to root of the namespace.
fn give(paths: &[&Path], maps: &IdMaps) -> Result<()> {
    let root = |ranges: &[crate::sandbox::identity::IdRange]| {
        ranges.iter().find(|range| range.inside == 0).map_or(0, |range| range.outside)
    };
    paths.iter().try_for_each(|path| fs::change_owner(path, root(&maps.users), root(&maps.groups)))
}
