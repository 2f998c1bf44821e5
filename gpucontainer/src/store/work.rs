//! Work directories: what is not finished yet, guarded by a lock that dies with its owner.

use super::Store;
use crate::claim::Claim;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A directory under `staging`, removed when it is dropped, or by the next opener if the process dies.
#[derive(Debug)]
pub(crate) struct Work {
    directory: PathBuf,
    /// `None` only once it was given up.
    claim: Option<Claim>,
    count: AtomicU64,
}

impl Work {
    /// Makes an empty work directory.
    pub(crate) fn begin(store: &Store) -> Result<Self> {
        let staging = store.staging();
        loop {
            let name = fs::unique();
            match Claim::take(&staging, &name, b"") {
                Ok(claim) => {
                    let directory = staging.join(&name);
                    let work = Self { directory, claim: Some(claim), count: AtomicU64::new(0) };
                    fs::create_dir(&work.directory)?;
                    return Ok(work);
                }
                // An opener looked at the claim in the instant between its making and its locking.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// A path inside that nothing else has.
    pub(crate) fn fresh_path(&self) -> PathBuf {
        self.directory.join(self.count.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Makes an empty directory inside.
    pub(crate) fn fresh_directory(&self) -> Result<PathBuf> {
        let path = self.fresh_path();
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// Makes `path` (of the store) appear with all of `bytes`, durable, or not at all.
    pub(crate) fn publish(&self, bytes: &[u8], path: &Path) -> Result<()> {
        let temporary = self.fresh_path();
        fs::write_durable(&temporary, bytes)?;
        fs::rename(&temporary, path)?;
        fs::sync_dir(path.parent().unwrap_or(Path::new("/")))
    }

    /// Removes something inside early, to give its space back.
    pub(crate) fn discard(&self, path: &Path) -> Result<()> {
        fs::remove_tree(path)
    }

    /// Removes the directory and says so if that fails; dropping does the same silently.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.clean()
    }

    fn clean(&mut self) -> Result<()> {
        let Some(claim) = self.claim.take() else { return Ok(()) };
        fs::remove_tree(&self.directory)?;
        claim.release()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = self.clean() {
            // Nobody to tell: the claim's lock is free now, so the next opener tries again.
            tracing::debug!(%error, "work directory left behind");
        }
    }
}

impl Store {
    /// Removes the work directories of dead owners.
    pub(super) fn remove_abandoned(&self) -> Result<()> {
        let staging = self.staging();
        for claim in Claim::abandoned(&staging)? {
            tracing::debug!(name = claim.name(), "removing the work of a dead process");
            fs::remove_tree(&staging.join(claim.name()))?;
            match claim.release() {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// What is in `staging` now: names without their claims. For tests and diagnosis.
    #[cfg(test)]
    pub(crate) fn staged(&self) -> Result<Vec<PathBuf>> {
        fs::read_dir(&self.staging())
    }
}

/// The error of a store whose own data is not what it wrote.
pub(super) fn corrupt(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{path:?}: {why}")).with_path(path)
}
