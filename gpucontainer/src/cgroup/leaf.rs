//! One group in one hierarchy: the directory, what is written into it, how it goes away.

use super::layout::{Version, read_words};
use super::setting::Setting;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::{cgroup as files, fs};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where a group is to be made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) version: Version,
    pub(super) path: PathBuf,
    /// The controllers that the group will have.
    pub(super) controllers: Vec<String>,
    /// Groups above, topmost first, that must give `controllers` to those inside them; the last is the direct
    /// parent. Version 2 only.
    pub(super) givers: Vec<PathBuf>,
}

/// A group in one hierarchy that was made, or was found.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) version: Version,
    pub(super) controllers: Vec<String>,
    pub(super) path: PathBuf,
    /// What lets a process in: on version 1 the file `tasks`, on version 2 the directory.
    pub(super) entry: OwnedFd,
}

impl Leaf {
    /// Makes the group.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if there is one of that name with processes in it, or groups inside;
    /// an empty one, left by a crash, is replaced.
    pub(super) fn make(place: &Place) -> Result<Self> {
        match fs::create_dir(&place.path) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::NotFound && place.version == Version::V2 => {
                give(place)?;
                fs::create_dir(&place.path)?;
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                // Not killed: that something lives inside means that it is somebody's.
                fs::remove_dir(&place.path).map_err(|_| e)?;
                fs::create_dir(&place.path)?;
            }
            Err(e) => return Err(e),
        }
        let made = || {
            if place.version == Version::V2 && !place.controllers.is_empty() {
                // The usual case costs one read: all above have given before.
                let given = read_words(&place.path.join("cgroup.controllers"));
                if place.controllers.iter().any(|name| !given.contains(name)) {
                    give(place)?;
                }
            }
            Self::open(place.version, place.controllers.clone(), place.path.clone())
        };
        made().inspect_err(|_| {
            let removed = fs::remove_dir(&place.path);
            tracing::debug!(?removed, "undo {:?}", place.path);
        })
    }

    /// Takes hold of a group that is there.
    pub(super) fn open(version: Version, controllers: Vec<String>, path: PathBuf) -> Result<Self> {
        let entry = match version {
            Version::V1 => files::open_for_writing(&path.join("tasks"))?,
            Version::V2 => fs::open_dir(&path)?,
        };
        Ok(Self { version, controllers, path, entry })
    }

    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    pub(super) fn write(&self, file: &str, value: &str) -> Result<()> {
        files::write_value(&self.path.join(file), value)
    }

    pub(super) fn read(&self, file: &str) -> Result<String> {
        fs::read_to_string(&self.path.join(file))
    }

    /// Writes a setting; where the kernel lacks its file, the ones that do the same instead.
    ///
    /// # Errors
    /// [`ErrorKind::LimitNotApplied`], naming the file, the value and what the kernel said.
    pub(super) fn apply(&self, setting: &Setting) -> Result<()> {
        let mut result = self.write(&setting.file, &setting.value);
        for (file, value) in &setting.instead {
            match &result {
                Err(e) if e.kind() == ErrorKind::NotFound => result = self.write(file, value),
                _ => break,
            }
        }
        result
            .map_err(|e| e.with_kind(ErrorKind::LimitNotApplied))
            .with_context(|| format!("limit {} = {}", setting.file, setting.value))
    }

    /// The processes in the group and in those inside it; of a group that is gone, none.
    pub(super) fn processes(&self) -> Result<Vec<u32>> {
        processes(&self.path)
    }
}

/// The group at `path` and those inside it, each before its own insides.
pub(super) fn groups(path: &Path) -> Result<Vec<PathBuf>> {
    let mut all = vec![path.to_owned()];
    let mut next = 0;
    while next < all.len() {
        all.extend(files::subdirectories(&all[next])?);
        next += 1;
    }
    Ok(all)
}

/// The processes in the group at `path` and in those inside it.
///
/// One that this process cannot see, being in another pid namespace, is listed as 0 by the kernel.
pub(super) fn processes(path: &Path) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for group in groups(path)? {
        match fs::read_to_string(&group.join("cgroup.procs")) {
            Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
            // Gone since it was listed. What a killed group's file gives is ENODEV.
            Err(e) if e.kind() == ErrorKind::NotFound || e.errno() == Some(crate::sys::errno::ENODEV) => {}
            Err(e) => return Err(e),
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Makes the groups above a place and has each give the place's controllers to those inside it.
pub(super) fn give(place: &Place) -> Result<()> {
    for giver in &place.givers {
        match fs::create_dir(giver) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let control = giver.join("cgroup.subtree_control");
        let given = read_words(&control);
        // One write each: of several in one write, one that is refused takes the others with it.
        for controller in place.controllers.iter().filter(|name| !given.contains(name)) {
            files::write_value(&control, &format!("+{controller}"))
                .map_err(|e| e.with_kind(ErrorKind::LimitNotApplied))
                .with_context(|| format!("give controller {controller} to groups in {giver:?}"))?;
        }
    }
    Ok(())
}

/// Removes the group at `path` and those inside it, waiting until `deadline` for processes that are ending.
///
/// # Errors
/// [`ErrorKind::Busy`], with their numbers, if processes are left then.
pub(super) fn remove(path: &Path, deadline: Instant) -> Result<()> {
    loop {
        let error = match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == ErrorKind::Busy => e,
            Err(e) => return Err(e),
        };
        for inside in files::subdirectories(path)? {
            remove(&inside, deadline)?;
        }
        let inside = processes(path)?;
        if Instant::now() >= deadline {
            return Err(error.context(format!("remove group {path:?}, in which processes {inside:?} are")));
        }
        wait_for_some_end(&inside)?;
    }
}

/// Waits until one of the processes has ended; not for long, as none of them may be known to the kernel any more
/// while the group is not yet empty.
pub(super) fn wait_for_some_end(processes: &[u32]) -> Result<()> {
    let mut held = Vec::new();
    // Bounded, so that a large group does not use up the caller's descriptors.
    for &process in processes.iter().take(64) {
        held.extend(files::Process::open(process)?);
    }
    let longest = if held.is_empty() { Duration::from_millis(1) } else { Duration::from_millis(20) };
    files::wait_for_end(&held, longest)
}

/// Makes an error of all that went wrong while everything was tried.
pub(super) fn together(errors: Vec<Error>) -> Result<()> {
    let mut errors = errors.into_iter();
    let Some(first) = errors.next() else { return Ok(()) };
    let others: Vec<String> = errors.map(|error| error.to_string()).collect();
    if others.is_empty() { Err(first) } else { Err(first.context(format!("also: {}", others.join("; also: ")))) }
}
