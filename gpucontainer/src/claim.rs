//! Claims: what the kernel cannot free is named so that the next comer sees that its owner is dead.
//!
//! A claim is a small file in a directory, locked as long as its owner lives. The lock's descriptor
//! may be handed to the process that the resource belongs to; the claim then follows that process.
//!
//! ```text
//! <directory>/
//!   <name>.claim     locked: in use.  Free: the owner died, whoever takes the lock cleans up
//! ```

use crate::error::{Error, ErrorKind, Result};
use crate::sys::lock::{Lock, Mode};
use crate::sys::{errno, fs};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

const SUFFIX: &str = ".claim";

/// A held claim, or that of a dead owner which the holder now cleans up.
#[derive(Debug)]
pub(crate) struct Claim {
    lock: Lock,
    name: String,
}

impl Claim {
    /// Claims `name` in `directory` (made if it is not there) and writes down `note` for whoever has to clean up.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if somebody living holds it.
    pub(crate) fn take(directory: &Path, name: &str, note: &[u8]) -> Result<Self> {
        let path = directory.join(format!("{name}{SUFFIX}"));
        let lock = match Lock::try_take(&path, Mode::Exclusive) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(directory)?;
                Lock::try_take(&path, Mode::Exclusive)?
            }
            other => other?,
        };
        let Some(lock) = lock else {
            return Err(Error::from_errno(format!("claim {path:?}"), errno::EEXIST).with_path(path));
        };
        let claim = Self { lock, name: name.to_owned() };
        // A claim is noted before its resource is made, so one without a note stands for nothing.
        let length = claim.lock.file().metadata().map_err(|e| Error::from_io(format!("fstat({path:?})"), e))?.len();
        let fresh = length == 0;
        let written = if fresh { claim.append(note) } else { claim.write(note) };
        match written {
            Ok(()) => Ok(claim),
            Err(error) => {
                if fresh {
                    // The error to report is the first.
                    let _ = claim.release();
                }
                Err(error)
            }
        }
    }

    /// Replaces the note.
    pub(crate) fn write(&self, note: &[u8]) -> Result<()> {
        let path = self.lock.path();
        let mut file = self.lock.file();
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(note))
            .map_err(|e| Error::from_io(format!("write({path:?})"), e).with_path(path))
    }

    /// Adds to the end of the note, of which nothing is lost if the writer dies.
    pub(crate) fn append(&self, more: &[u8]) -> Result<()> {
        let path = self.lock.path();
        let mut file = self.lock.file();
        file.seek(SeekFrom::End(0))
            .and_then(|_| file.write_all(more))
            .map_err(|e| Error::from_io(format!("write({path:?})"), e).with_path(path))
    }

    /// The notes of all claims in `directory`, whoever holds them.
    #[cfg(feature = "nvml")]
    pub(crate) fn notes(directory: &Path) -> Result<Vec<Vec<u8>>> {
        let entries = fs::read_dir(directory)?.into_iter();
        entries.filter(|path| path.to_str().is_some_and(|p| p.ends_with(SUFFIX))).map(|path| fs::read(&path)).collect()
    }

    /// The note as it stands.
    pub(crate) fn note(&self) -> Result<Vec<u8>> {
        let path = self.lock.path();
        let mut file = self.lock.file();
        let mut note = Vec::new();
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.read_to_end(&mut note))
            .map_err(|e| Error::from_io(format!("read({path:?})"), e).with_path(path))?;
        Ok(note)
    }

    /// Where the claim is.
    pub(crate) fn directory(&self) -> &Path {
        self.lock.path().parent().unwrap_or_else(|| Path::new("/"))
    }

    /// What is claimed.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Gives the claim up: its resource is gone.
    pub(crate) fn release(self) -> Result<()> {
        self.lock.remove()
    }

    /// Leaves the claim behind, at once, whoever has copies of its descriptor: it tells the next comer of its resource.
    #[cfg(feature = "nvml")]
    pub(crate) fn leave(self) -> Result<()> {
        self.lock.free()
    }

    /// The same for a holder that cannot give the claim away, such as a `Drop`: the claim ends with its descriptors.
    pub(crate) fn release_in_place(&self) -> Result<()> {
        fs::remove_file(self.lock.path())
    }

    /// The claims in `directory` whose owners are dead, each now held by the caller, who cleans up
    /// and then calls [`Claim::release`]. No directory means no claims.
    pub(crate) fn abandoned(directory: &Path) -> Result<Vec<Self>> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut found = Vec::new();
        for path in entries {
            let Some(name) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(SUFFIX)) else {
                continue;
            };
            if let Some(lock) = Lock::try_take(&path, Mode::Exclusive)? {
                found.push(Self { lock, name: name.to_owned() });
            }
        }
        Ok(found)
    }
}

impl AsFd for Claim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_seen_as_abandoned_only_after_its_last_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let claim = Claim::take(directory.path(), "s1", b"cgroup /gpuc/s1").unwrap();
        assert!(Claim::take(directory.path(), "s1", b"").is_err());
        let inherited = claim.as_fd().try_clone_to_owned().unwrap();
        drop(claim);
        assert!(Claim::abandoned(directory.path()).unwrap().is_empty());
        drop(inherited);
        // A child of a test beside this one has the descriptor too, until it executes its program.
        let mut dead = Vec::new();
        crate::common::until("the last descriptor is closed", std::time::Duration::from_secs(60), || {
            dead = Claim::abandoned(directory.path()).unwrap();
            !dead.is_empty()
        });
        let dead = dead.pop().unwrap();
        assert_eq!((dead.name(), dead.note().unwrap().as_slice()), ("s1", &b"cgroup /gpuc/s1"[..]));
        dead.release().unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
