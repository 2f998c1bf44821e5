//! Hierarchies that a group enters only when they are needed, while its processes run.

use super::layout::Version;
use super::leaf::{self, Leaf};
use super::{Cgroup, abandoned};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::fs;
use std::sync::Arc;
use std::time::Instant;

impl Cgroup {
    /// The group in the hierarchy of `controller`, made now if it was not there; nobody is in it then.
    ///
    /// Processes started later enter it as well. [`Cgroup::move_into`] brings those that run.
    pub(super) fn make_late(&self, controller: &str) -> Result<Arc<Leaf>> {
        let unified = self.is_unified(controller);
        let mut leaves = self.locked();
        let at_hand = leaves.iter().find(|leaf| match leaf.version {
            Version::V1 => !unified && leaf.has(controller),
            Version::V2 => unified,
        });
        if let Some(leaf) = at_hand.cloned() {
            drop(leaves);
            if unified && !controller.is_empty() {
                self.give_late(&leaf, controller)?;
            }
            return Ok(leaf);
        }
        let place = self.places.iter().find(|place| match place.version {
            Version::V1 => !unified && place.controllers.iter().any(|name| name == controller),
            Version::V2 => unified,
        });
        let why = || {
            Error::new(ErrorKind::LimitNotApplied, format!("no hierarchy for {controller:?} that the caller may use"))
        };
        let mut place = place.cloned().ok_or_else(why)?;
        if unified && !controller.is_empty() && !place.controllers.iter().any(|name| name == controller) {
            place.controllers.push(controller.to_owned());
        }
        let leaf = Arc::new(Leaf::make(&place)?);
        leaves.push(leaf.clone());
        drop(leaves);
        inherit_cpuset(&leaf, &[])?;
        Ok(leaf)
    }

    /// Has the groups above a group of version 2 give it one more controller.
    fn give_late(&self, leaf: &Leaf, controller: &str) -> Result<()> {
        if super::layout::read_words(&leaf.path.join("cgroup.controllers")).iter().any(|name| name == controller) {
            return Ok(());
        }
        let place = self.places.iter().find(|place| place.path == leaf.path);
        let why =
            || Error::new(ErrorKind::LimitNotApplied, format!("group {:?} has no controller {controller}", leaf.path));
        let mut place = place.cloned().ok_or_else(why)?;
        place.controllers = vec![controller.to_owned()];
        leaf::give(&place)
    }

    /// Moves the processes of the group that are not in `leaf` yet into it.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] if new ones appear faster than they can be moved for 10 s.
    pub(super) fn move_into(&self, leaf: &Leaf) -> Result<()> {
        let deadline = Instant::now() + abandoned::PATIENCE;
        let mut moved = Vec::new();
        loop {
            // In this order, so that whoever is started in between is in both.
            let there = leaf.processes()?;
            let mut outside = self.processes()?;
            outside.retain(|process| *process != 0 && there.binary_search(process).is_err());
            if outside.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                let why = format!("processes {outside:?} cannot be moved into {:?}", leaf.path);
                return Err(Error::new(ErrorKind::TimedOut, why));
            }
            for process in outside {
                match leaf.write("cgroup.procs", &process.to_string()) {
                    Ok(()) => moved.push(process),
                    Err(e) if e.errno() == Some(crate::sys::errno::ESRCH) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        if moved.is_empty() { Ok(()) } else { self.expel_strangers(leaf, &moved) }
    }

    /// A process may have ended just before it was moved, and its number may have gone to one that is none of ours.
    fn expel_strangers(&self, leaf: &Leaf, moved: &[u32]) -> Result<()> {
        let mut there = leaf.processes()?;
        there.retain(|process| moved.contains(process));
        let mut ours = Vec::new();
        for other in self.locked().iter().filter(|other| other.path != leaf.path) {
            ours.extend(other.processes()?);
        }
        let above = leaf.path.parent().unwrap_or(&leaf.path).join("cgroup.procs");
        for stranger in there.into_iter().filter(|process| !ours.contains(process)) {
            tracing::warn!(stranger, "moved a foreign process by its recycled number; it goes back");
            match crate::sys::cgroup::write_value(&above, &stranger.to_string()) {
                Err(e) if e.errno() != Some(crate::sys::errno::ESRCH) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Gives a new group of version 1 the processors and memory nodes of the one above, but for the files in `but`.
///
/// They are empty at first, and nobody can enter until both have a value.
pub(super) fn inherit_cpuset(leaf: &Leaf, but: &[&str]) -> Result<()> {
    if leaf.version == Version::V2 || !leaf.has("cpuset") {
        return Ok(());
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !but.contains(&file) {
            let above = leaf.path.parent().unwrap_or(&leaf.path).join(file);
            let value = fs::read_to_string(&above)?;
            leaf.write(file, value.trim()).with_context(|| format!("inherit {file}"))?;
        }
    }
    Ok(())
}
