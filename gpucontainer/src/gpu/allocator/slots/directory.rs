//! Where the slots of a host are.
//!
//! ```text
//! /run/gpucontainer/gpu/                      all users; root makes it
//! /dev/shm/gpucontainer-gpu/                  the same where /run is on a disk
//! $XDG_RUNTIME_DIR/gpucontainer/gpu/          one user, as long as root has not made the first
//! /dev/shm/gpucontainer-<uid>/gpu/            the same without such a directory
//! ```
//!
//! In the shared directory everybody makes files and removes only their own, as in `/tmp`.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::cgroup::{effective_user, is_in_memory, make_private_directory};
use crate::sys::{fs, slot};

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A directory of slots, and why it is not the one of all users if it is not.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    pub(crate) private: Option<String>,
}

impl Directory {
    /// The directory of this host for the calling user.
    pub(crate) fn of_host() -> Result<Self> {
        let (parent, shared) = if is_in_memory(Path::new("/run")) {
            (Some(Path::new("/run/gpucontainer")), Path::new("/run/gpucontainer/gpu"))
        } else {
            (None, Path::new("/dev/shm/gpucontainer-gpu"))
        };
        let why = match make(parent, shared) {
            Ok(()) => return Ok(Self { path: shared.to_owned(), private: None }),
            // Root that may not use it stands before a trap, or a mistake that root can mend.
            Err(e) if fs::is_root_user() && fs::metadata(shared).is_ok() => return Err(e),
            Err(e) => e,
        };
        let path = private()?;
        fs::create_dir_all(&path)?;
        let why = format!("leases are seen by user {} only: {why}", effective_user());
        tracing::debug!(?path, why, "GPU slots of one user");
        Ok(Self { path, private: Some(why) })
    }

    /// A directory that the caller names; made, for all users, if it is not there.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent)?;
        }
        slot::make_shared_directory(path).with_context(|| format!("use {} for GPU leases", path.display()))?;
        Ok(Self { path: fs::canonicalize(path)?, private: None })
    }
}

/// Uses or makes the directory for all users, which only root can make.
fn make(parent: Option<&Path>, shared: &Path) -> Result<()> {
    let usable = fs::symlink_metadata(shared).is_ok();
    if !usable && !fs::is_root_user() {
        return Err(Error::new(ErrorKind::NotFound, format!("root has not made {} yet", shared.display())));
    }
    if let Some(parent) = parent.filter(|_| !usable) {
        fs::create_dir_all(parent)?;
        // A narrow mask of the process that happens to be first must not keep users out.
        let mode = fs::metadata(parent)?.mode() & 0o7777;
        fs::set_mode(parent, mode | 0o111)?;
    }
    slot::make_shared_directory(shared)?;
    if fs::writable(shared) {
        return Ok(());
    }
    let why = format!("user {} may not write to {}", effective_user(), shared.display());
    Err(Error::new(ErrorKind::PermissionDenied, why).with_path(shared))
}

/// The directory of the calling user alone.
fn private() -> Result<PathBuf> {
    let user = effective_user();
    if let Some(runtime) = fs::path_from_environment("XDG_RUNTIME_DIR") {
        // The variable may be that of another user (sudo, su).
        if runtime.is_absolute() && fs::metadata(&runtime).is_ok_and(|found| found.is_dir() && found.uid() == user) {
            return Ok(runtime.join("gpucontainer/gpu"));
        }
    }
    let own = PathBuf::from(format!("/dev/shm/gpucontainer-{user}"));
    make_private_directory(&own)?;
    Ok(own.join("gpu"))
}
