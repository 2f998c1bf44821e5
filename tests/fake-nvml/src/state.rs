//! The machine that all processes share: its description is a file, read again when it changed.
//!
//! A call that changes the machine writes the file anew. So does a test: by a rename, and not while
//! something else changes the machine.

use crate::profile::{self, Machine};

use std::ffi::c_int;
use std::fs::{File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::OnceLock;

unsafe extern "C" {
    fn flock(descriptor: c_int, operation: c_int) -> c_int;
    fn kill(process: c_int, signal: c_int) -> c_int;
}

/// Exclusive; freed with the descriptor.
const LOCK_EX: c_int = 2;
const SIGKILL: c_int = 9;

/// What tells one state of the file from the next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stamp {
    inode: u64,
    seconds: i64,
    nanoseconds: i64,
    bytes: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            seconds: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
            bytes: metadata.len(),
        }
    }
}

/// Reads the machine's description, or says what is wrong with it.
pub(crate) fn load() -> Result<(Machine, Stamp), String> {
    let path = path().ok_or("neither fake-nvml.json beside the library nor FAKE_NVML_PROFILE")?;
    let error = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let file = File::open(path).map_err(|e| error(&e))?;
    // The file is only ever replaced: what was opened stays one state.
    let stamp = Stamp::of(&file.metadata().map_err(|e| error(&e))?);
    let text = std::io::read_to_string(&file).map_err(|e| error(&e))?;
    Ok((profile::parse(&text).map_err(|e| error(&e))?, stamp))
}

/// The state of the file now.
pub(crate) fn stamp() -> Option<Stamp> {
    path().and_then(|path| path.metadata().ok()).map(|metadata| Stamp::of(&metadata))
}

/// Writes the description anew.
pub(crate) fn store(machine: &Machine) -> Result<Stamp, std::io::Error> {
    let path = path().ok_or(std::io::ErrorKind::NotFound)?;
    let new = path.with_extension("new");
    std::fs::write(&new, serde_json::to_string(machine)?)?;
    let stamp = Stamp::of(&new.metadata()?);
    std::fs::rename(&new, path)?;
    Ok(stamp)
}

/// Keeps other processes from changing the machine while the file is open.
pub(crate) fn lock() -> Result<File, std::io::Error> {
    let path = path().ok_or(std::io::ErrorKind::NotFound)?;
    let file = File::options().create(true).truncate(false).write(true).open(path.with_extension("lock"))?;
    // SAFETY: the descriptor is open; the call takes no memory.
    if unsafe { flock(file.as_raw_fd(), LOCK_EX) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(file)
}

/// Whether this change of the machine is the one that kills the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FaultPoint {
    after: bool,
}

/// Looks at the number of a change of the machine, from 1. `FAKE_NVML_KILL=3` kills the process before
/// the third change, `FAKE_NVML_KILL=3+` right after it.
pub(crate) fn fault_point(number: u64) -> FaultPoint {
    let wanted = std::env::var("FAKE_NVML_KILL").unwrap_or_default();
    if wanted == number.to_string() {
        end();
    }
    FaultPoint { after: wanted == format!("{number}+") }
}

impl FaultPoint {
    /// The change is done.
    pub(crate) fn after(self) {
        if self.after {
            end();
        }
    }
}

fn end() {
    let own = c_int::try_from(std::process::id()).unwrap_or(0);
    // SAFETY: the call takes no memory; it does not return.
    unsafe { kill(own, SIGKILL) };
}

fn path() -> Option<&'static PathBuf> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = PATH.get_or_init(|| {
        let beside = own_file().map(|library| library.with_file_name("fake-nvml.json")).filter(|path| path.is_file());
        beside.or_else(|| std::env::var_os("FAKE_NVML_PROFILE").map(PathBuf::from))
    });
    found.as_ref()
}

/// The file that this code was loaded from: the one mapped where this function is.
fn own_file() -> Option<PathBuf> {
    let here = own_file as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (first, last) = line.split(' ').next()?.split_once('-')?;
        let range = usize::from_str_radix(first, 16).ok()?..usize::from_str_radix(last, 16).ok()?;
        let path = line.find('/').map(|start| PathBuf::from(&line[start..]))?;
        range.contains(&here).then_some(path)
    })
}
