//! Claims on groups, and the groups of owners that died.
//!
//! ```text
//! /run/gpucontainer/cgroups/                    root
//! $XDG_RUNTIME_DIR/gpucontainer/cgroups/        others
//! /dev/shm/gpucontainer-<uid>/cgroups/          root where /run is on a disk, others without such a directory
//! /tmp/gpucontainer-<uid>/cgroups/              where that is missing too
//!   <name>.claim        one path of a group a line, written before the groups are made
//!   <name>+held.claim   locked by who holds the group still, and by nobody inside: who is held still cannot end when
//!                       its owner does, nor give up what it has of the first claim
//! ```

use super::layout::{Layout, Version};
use super::leaf::Place;
use super::{kill, leaf};
use crate::claim::Claim;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::{cgroup as files, fs};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long what was killed may take to end.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The directory of claims of the calling user.
///
/// # Errors
/// [`ErrorKind::PermissionDenied`] if somebody else made the one that would serve.
pub(super) fn directory() -> Result<PathBuf> {
    let user = files::effective_user();
    // A file on a disk, small as it is, costs more than all else that starting a container takes.
    if user == 0 && files::is_in_memory(Path::new("/run")) && fs::writable(Path::new("/run")) {
        return Ok(PathBuf::from("/run/gpucontainer/cgroups"));
    }
    if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|_| user != 0) {
        // What the login made belongs to the user alone. The variable may be that of another user (sudo, su).
        if runtime.is_absolute() && fs::metadata(&runtime).is_ok_and(|found| found.is_dir() && found.uid() == user) {
            return Ok(runtime.join("gpucontainer/cgroups"));
        }
    }
    let memory = Path::new("/dev/shm");
    let open_to_all = if files::is_in_memory(memory) && fs::writable(memory) { "/dev/shm" } else { "/tmp" };
    let own = PathBuf::from(format!("{open_to_all}/gpucontainer-{user}"));
    files::make_private_directory(&own)?;
    Ok(own.join("cgroups"))
}

/// The text that says which groups are claimed.
pub(super) fn note<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<u8> {
    let mut note = Vec::new();
    for path in paths {
        note.extend_from_slice(path.as_os_str().as_bytes());
        note.push(b'\n');
    }
    note
}

/// Where the group `name` is, as its claim says.
///
/// # Errors
/// [`ErrorKind::NotFound`] if nobody claims it.
pub(super) fn claimed(directory: &Path, name: &str, layout: &Layout) -> Result<Vec<Place>> {
    // Read without the lock, which its owner holds.
    let note = fs::read(&directory.join(format!("{name}.claim")))?;
    let mut places = Vec::new();
    for path in paths(&note)? {
        let around = layout.hierarchies.iter().filter(|found| path.starts_with(&found.mount));
        let Some(hierarchy) = around.max_by_key(|found| found.mount.as_os_str().len()) else { continue };
        let parent = path.parent().unwrap_or(&path).to_owned();
        places.push(match hierarchy.version {
            Version::V1 => {
                Place { version: Version::V1, path, controllers: hierarchy.controllers.clone(), givers: Vec::new() }
            }
            Version::V2 => {
                let above = parent.parent().filter(|_| parent.ends_with(super::PREFIX)).map(Path::to_owned);
                let controllers = super::layout::read_words(&path.join("cgroup.controllers"));
                Place { version: Version::V2, path, controllers, givers: above.into_iter().chain([parent]).collect() }
            }
        });
    }
    Ok(places)
}

/// Kills and removes what the claims in `directory` name whose owners are dead; gives back the names.
///
/// One that cannot be removed does not keep the others from it; it stays claimed for the next try.
pub(super) fn collect(directory: &Path) -> Result<Vec<String>> {
    let (mut removed, mut errors) = (Vec::new(), Vec::new());
    let is_held = |claim: &Claim| claim.name().ends_with(HELD);
    let (held, mut others): (Vec<_>, Vec<_>) = Claim::abandoned(directory)?.into_iter().partition(is_held);
    if !held.is_empty() {
        for claim in held {
            let name = claim.name().to_owned();
            errors.extend(end_held(claim).err().map(|e| e.context(format!("end abandoned group {name}"))));
        }
        // Those that have just ended are abandoned only now.
        others.extend(Claim::abandoned(directory)?.into_iter().filter(|claim| !is_held(claim)));
    }
    for claim in others {
        let name = claim.name().to_owned();
        match collect_one(claim) {
            Ok(()) => removed.push(name),
            Err(error) => errors.push(error.context(format!("remove abandoned group {name}"))),
        }
    }
    leaf::together(errors)?;
    Ok(removed)
}

/// Kills what a dead owner holds still. Its groups are removed by the claim on them.
fn end_held(claim: Claim) -> Result<()> {
    kill::everything(&paths(&claim.note()?)?, Instant::now() + PATIENCE)?;
    claim.release()
}

fn collect_one(claim: Claim) -> Result<()> {
    let paths = paths(&claim.note()?)?;
    let deadline = Instant::now() + PATIENCE;
    kill::everything(&paths, deadline)?;
    for path in &paths {
        leaf::remove(path, deadline)?;
    }
    claim.release()
}

/// The groups that a note names.
fn paths(note: &[u8]) -> Result<Vec<PathBuf>> {
    // Without its end a note was being written when its owner died, before any group was made.
    if !note.ends_with(b"\n") {
        return Ok(Vec::new());
    }
    let lines = note.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| checked(Path::new(OsStr::from_bytes(line)))).collect()
}

/// A path of a note, if it can be one of ours: the note may be damaged, and what it names will be killed.
fn checked(path: &Path) -> Result<PathBuf> {
    let named = path.components().any(|part| part.as_os_str().as_bytes().starts_with(super::PREFIX.as_bytes()));
    let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    if !path.is_absolute() || !named || !plain {
        return Err(Error::new(ErrorKind::Corrupt, format!("a claim names {path:?}, which is no group of ours")));
    }
    if let Ok(found) = fs::metadata(&path.join("cgroup.procs")) {
        if !found.is_file() {
            return Err(Error::new(ErrorKind::Corrupt, format!("a claim names {path:?}, which is no group")));
        }
    }
    Ok(path.to_owned())
}

/// Takes the claim on the group `name`.
pub(super) fn take(directory: &Path, name: &str, note: &[u8]) -> Result<Claim> {
    Claim::take(directory, name, note).with_context(|| format!("claim group {name}"))
}

/// Ends the name of a claim on holding a group still; no name of a group has a `+`.
const HELD: &str = "+held";

/// Claims that the caller holds the group `name` still, by its freezer.
pub(super) fn take_held(directory: &Path, name: &str, freezer: &Path) -> Result<Claim> {
    let claim = Claim::take(directory, &format!("{name}{HELD}"), &note(std::iter::once(freezer)));
    claim.with_context(|| format!("claim that group {name} is held still"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_groups_of_ours_are_believed() {
        for good in ["/sys/fs/cgroup/memory/gpucontainer-a", "/sys/fs/cgroup/gpucontainer/a"] {
            checked(Path::new(good)).unwrap();
        }
        for bad in ["/sys/fs/cgroup/memory", "gpucontainer/a", "/sys/fs/cgroup/gpucontainer/../system.slice", "/"] {
            assert_eq!(checked(Path::new(bad)).unwrap_err().kind(), ErrorKind::Corrupt, "{bad}");
        }
    }

    #[test]
    fn a_note_that_was_cut_short_names_nothing() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a.claim"), "/sys/fs/cgroup/memory").unwrap();
        std::fs::write(directory.path().join("b.claim"), "").unwrap();
        assert_eq!(collect(directory.path()).unwrap(), ["a", "b"]);
        std::fs::write(directory.path().join("c.claim"), "/sys/fs/cgroup/memory\n").unwrap();
        assert_eq!(collect(directory.path()).unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(directory.path().join("c.claim").exists());
    }
}
