//! Ending everything in a group.

use super::leaf;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::{cgroup as files, fs};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How many processes are held by descriptor at once.
const AT_ONCE: usize = 64;

/// Kills every process in the groups at `paths` and inside them, and waits until none is left.
///
/// On version 2 the kernel does it in one step (`cgroup.kill`, since 5.14). Elsewhere the number of
/// processes is first capped at none, so that nothing new can start while the old ones are killed one by one.
///
/// # Errors
/// [`ErrorKind::TimedOut`] if some are left at `deadline`.
pub(super) fn everything(paths: &[PathBuf], deadline: Instant) -> Result<()> {
    let mut capped = Vec::new();
    for path in paths {
        if write_if_there(path, "cgroup.kill", "1")? {
            continue;
        }
        if let Ok(cap) = fs::read_to_string(&path.join("pids.max")) {
            if write_if_there(path, "pids.max", "0")? {
                capped.push((path, cap));
            }
        }
    }
    let result = one_by_one(paths, deadline);
    for (path, cap) in capped {
        write_if_there(path, "pids.max", cap.trim())?;
    }
    result
}

fn one_by_one(paths: &[PathBuf], deadline: Instant) -> Result<()> {
    loop {
        let inside = processes(paths)?;
        if inside.is_empty() {
            return Ok(());
        }
        let mut held = Vec::new();
        for &process in inside.iter().take(AT_ONCE) {
            held.extend(files::Process::open(process)?.map(|handle| (process, handle)));
        }
        // Only now is it sure that a descriptor is not of another process that got the number meanwhile.
        let still_inside = processes(paths)?;
        held.retain(|(process, _)| still_inside.binary_search(process).is_ok());
        for (_, handle) in &held {
            handle.kill()?;
        }
        for path in paths {
            // What is frozen dies only when it is let go.
            write_if_there(path, "freezer.state", "THAWED")?;
        }
        if Instant::now() >= deadline {
            let why = format!("processes {inside:?} in {paths:?} do not end although they were killed");
            return Err(Error::new(ErrorKind::TimedOut, why));
        }
        leaf::wait_for_some_end(&still_inside)?;
    }
}

fn processes(paths: &[PathBuf]) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for path in paths {
        all.extend(leaf::processes(path)?);
    }
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// Writes into a control file; `false` if the group or this file of it is not there.
fn write_if_there(path: &Path, file: &str, value: &str) -> Result<bool> {
    match files::write_value(&path.join(file), value) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound || e.errno() == Some(crate::sys::errno::ENODEV) => Ok(false),
        Err(e) => Err(e),
    }
}
