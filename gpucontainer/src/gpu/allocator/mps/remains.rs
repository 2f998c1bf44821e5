//! What is left in the directory of a group: removed, or got out of the way of the next daemon.

use crate::error::Result;
use crate::gpu::allocator::mps::keeper::SHARED_MEMORY;
use crate::sys::fs;

use std::path::{Path, PathBuf};

/// What a group's directory in `/dev/shm` is called, before its random part.
pub(super) const SHARED_PREFIX: &str = "gpucontainer-mps-";
/// How the names begin of what an earlier daemon of a group had, and nobody could remove.
const LEFT: &str = "left-";

/// Removes all that is in a group's directory. Goes on after an error, and returns the first.
pub(super) fn remove_contents(directory: &Path) -> Result<()> {
    contents(directory)?.iter().map(|path| remove(path)).fold(Ok(()), Result::and)
}

/// What is in a group's directory. Links are last, so that what they lead to is found again after an interruption.
pub(super) fn contents(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(directory)?;
    paths.sort_by_key(|path| fs::read_link(path).is_ok());
    Ok(paths)
}

/// Removes what is in a group's directory; with a link, the directory of shared memory that it leads to.
fn remove(path: &Path) -> Result<()> {
    let shared = fs::read_link(path).ok();
    if let Some(outer) = shared.as_deref().and_then(Path::parent) {
        let name = outer.file_name().and_then(|name| name.to_str());
        if outer.parent() == Some(Path::new(SHARED_MEMORY)) && name.is_some_and(|name| name.starts_with(SHARED_PREFIX))
        {
            fs::remove_tree(outer)?;
        }
    }
    fs::remove_tree(path)
}

/// Removes what is in a group's directory, or else gets it out of the way: a container with other ids than the caller
/// can make directories that the caller cannot empty. The next [`collect`](super::collect) tries again.
pub(super) fn clear(path: &Path) -> Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match remove(path) {
        Err(_) if name.starts_with(LEFT) => Ok(()),
        Err(error) => {
            tracing::warn!(%error, "what a container has left of an MPS daemon's stays for now");
            fs::rename(path, &path.with_file_name(format!("{LEFT}{}", fs::unique())))
        }
        Ok(()) => Ok(()),
    }
}
