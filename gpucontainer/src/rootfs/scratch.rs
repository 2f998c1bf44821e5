//! Directories for the writes of one container: claimed while it lives, removed after it.

use super::unusable;
use crate::claim::Claim;
use crate::error::{Context, Result};
use crate::sys::fs;
use crate::sys::fs::tree;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// The directories `upper` and `work` of one container's overlay; dropping this removes them.
///
/// The descriptor is the claim's: in the hands of a process that outlives this one it keeps others from
/// removing the directories. Then this must be left with [`Scratch::leave`], not dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: PathBuf,
    claim: Claim,
    /// Nothing is left to be done.
    done: bool,
}

impl Scratch {
    /// Makes the directories of `id` in `root`, which is made if it is not there.
    ///
    /// # Errors
    /// `AlreadyExists` if a living owner has them; `InvalidArgument` if `id` is no name.
    pub(crate) fn create(root: &Path, id: &str) -> Result<Self> {
        let is_name = !id.is_empty() && id.len() <= 200 && !id.starts_with('.') && !id.contains(['/', '\0']);
        if !is_name {
            return Err(unusable(format!("{id:?} is no name for a scratch directory")));
        }
        let wanted = || format!("make a scratch directory {id} in {root:?}");
        let claim = Claim::take(root, id, b"overlay").with_context(wanted)?;
        let scratch = Self { directory: root.join(id), claim, done: false };
        scratch.fill(root, id).with_context(wanted)?;
        Ok(scratch)
    }

    fn fill(&self, root: &Path, id: &str) -> Result<()> {
        let open = fs::open_dir(root)?;
        // A dead owner's, of which we have the claim now.
        tree::remove(open.as_fd(), OsStr::new(id))?;
        tree::make_directory(open.as_fd(), OsStr::new(id))?;
        let own = tree::open_directory(open.as_fd(), OsStr::new(id))?;
        tree::set_mode(own.as_fd(), 0o700)?;
        for name in ["upper", "work"] {
            tree::make_directory(own.as_fd(), OsStr::new(name))?;
        }
        Ok(())
    }

    /// Where the container's writes are.
    pub(crate) fn upper(&self) -> PathBuf {
        self.directory.join("upper")
    }

    /// overlayfs's own directory.
    pub(crate) fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// Gives `upper`, which is the root that the container sees, the mode, owner and times of `directory`.
    pub(super) fn describe_like(&self, directory: &Path) -> Result<()> {
        let (from, to) = (fs::open_dir(directory)?, fs::open_dir(&self.upper())?);
        tree::copy_description(from.as_fd(), to.as_fd()).with_context(|| format!("describe {:?}", self.upper()))
    }

    /// Removes the directories with all that is in them, then the claim. Nothing may use them any more.
    pub(crate) fn remove(mut self) -> Result<()> {
        self.clean()
    }

    /// Leaves the directories to the processes that have copies of the claim's descriptor. When the last of them
    /// is gone, [`Scratch::collect_abandoned`] removes them.
    pub(crate) fn leave(mut self) {
        self.done = true;
    }

    /// Removes what owners that died left in `root`; returns how many there were.
    ///
    /// Goes on after an error and returns the first one. No directory `root` means that there is nothing.
    pub(crate) fn collect_abandoned(root: &Path) -> Result<usize> {
        let mut first = None;
        let abandoned = Claim::abandoned(root)?;
        let count = abandoned.len();
        for claim in abandoned {
            let directory = root.join(claim.name());
            tracing::debug!(?directory, "removing what a dead owner left");
            if let Err(error) = (Self { directory, claim, done: false }).remove() {
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(count), Err)
    }

    fn clean(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.done, true) {
            return Ok(());
        }
        // An error keeps the claim's file: free, so that the next comer tries again.
        fs::remove_tree(&self.directory)?;
        self.claim.release_in_place()
    }
}

impl AsFd for Scratch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.claim.as_fd()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = self.clean() {
            tracing::debug!(%error, "scratch directory not removed");
        }
    }
}
