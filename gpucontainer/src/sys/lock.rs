//! Locks on files that the kernel frees when their holder dies.
//!
//! Open-file-description locks: they belong to the open file, not to the process, so threads of one
//! process exclude each other, and a lock lives on in whatever process inherited the descriptor.

use super::errno::failed_nix;
use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How a lock is held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Mode {
    /// Together with other shared holders.
    Shared,
    /// Alone.
    Exclusive,
}

/// A lock on a whole file, freed when the last copy of its descriptor is closed.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

fn request(kind: libc::c_int) -> libc::flock {
    // `l_pid` must be 0 for these locks; start 0 and length 0 mean the whole file.
    libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn open(path: &Path) -> Result<File> {
    // One mode fits both kinds of lock: an exclusive one needs a writable descriptor.
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|e| Error::from_io(format!("open({path:?})"), e).with_path(path))
}

impl Lock {
    /// Takes the lock on `path` (made if it is not there), waiting for it as long as it takes.
    pub(crate) fn wait(path: &Path, mode: Mode) -> Result<Self> {
        loop {
            let file = open(path)?;
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&request(kind(mode)))) {
                Ok(_) if still_there(&file, path)? => return Ok(Self { file, path: path.to_owned() }),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(failed_nix(format!("fcntl({path:?}, F_OFD_SETLKW)"), e).with_path(path)),
            }
        }
    }

    /// Takes the lock on `path` (made if it is not there) if nobody stands against it, else `None`.
    pub(crate) fn try_take(path: &Path, mode: Mode) -> Result<Option<Self>> {
        loop {
            let file = open(path)?;
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&request(kind(mode)))) {
                Ok(_) if still_there(&file, path)? => return Ok(Some(Self { file, path: path.to_owned() })),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::EACCES) => return Ok(None),
                Err(e) => return Err(failed_nix(format!("fcntl({path:?}, F_OFD_SETLK)"), e).with_path(path)),
            }
        }
    }

    /// Takes the lock on `path`, which must be there, together with other shared holders, and without the right to write
    /// to it; `None` if somebody holds it alone.
    #[cfg(feature = "nvml")]
    pub(crate) fn try_share(path: &Path) -> Result<Option<Self>> {
        loop {
            let file = super::fs::open(path)?;
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&request(kind(Mode::Shared)))) {
                Ok(_) if still_there(&file, path)? => return Ok(Some(Self { file, path: path.to_owned() })),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::EACCES) => return Ok(None),
                Err(e) => return Err(failed_nix(format!("fcntl({path:?}, F_OFD_SETLK)"), e).with_path(path)),
            }
        }
    }

    /// The locked file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The locked file, open for reading and writing.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Removes the locked file. Whoever waits for it makes a new one.
    pub(crate) fn remove(self) -> Result<()> {
        super::fs::remove_file(&self.path)
    }

    /// Frees the lock now, for all copies of its descriptor. Dropping does not: a program that another thread
    /// is just starting has a copy until its `exec`, and the lock would seem to be held a moment longer.
    pub(crate) fn free(&self) -> Result<()> {
        fcntl(&self.file, FcntlArg::F_OFD_SETLK(&request(libc::F_UNLCK)))
            .map(drop)
            .map_err(|e| failed_nix(format!("fcntl({:?}, F_UNLCK)", self.path), e).with_path(&self.path))
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn kind(mode: Mode) -> libc::c_int {
    match mode {
        Mode::Shared => libc::F_RDLCK,
        Mode::Exclusive => libc::F_WRLCK,
    }
}

/// Between opening and locking, the last holder may have removed the file: such a lock excludes nobody.
fn still_there(file: &File, path: &Path) -> Result<bool> {
    let held = file.metadata().map_err(|e| Error::from_io(format!("fstat({path:?})"), e).with_path(path))?;
    match super::fs::metadata(path) {
        Ok(named) => Ok(named.ino() == held.ino() && named.dev() == held.dev()),
        Err(e) if e.kind() == crate::error::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusive_excludes_even_in_one_process_and_ends_with_the_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = Lock::wait(&path, Mode::Exclusive).unwrap();
        assert!(Lock::try_take(&path, Mode::Shared).unwrap().is_none());
        let copy = held.as_fd().try_clone_to_owned().unwrap();
        drop(held);
        assert!(Lock::try_take(&path, Mode::Exclusive).unwrap().is_none(), "a copy keeps it");
        drop(copy);
        let released = Lock::wait(&path, Mode::Exclusive).unwrap();
        let _copy = released.as_fd().try_clone_to_owned().unwrap();
        released.free().unwrap();
        let shared = Lock::try_take(&path, Mode::Shared).unwrap().unwrap();
        assert!(Lock::try_take(&path, Mode::Shared).unwrap().is_some());
        shared.remove().unwrap();
        assert!(!path.exists());
    }

    #[cfg(feature = "nvml")]
    #[test]
    fn shared_holders_need_no_right_to_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        assert_eq!(Lock::try_share(&path).unwrap_err().kind(), crate::error::ErrorKind::NotFound);
        let alone = Lock::try_take(&path, Mode::Exclusive).unwrap().unwrap();
        assert!(Lock::try_share(&path).unwrap().is_none());
        alone.free().unwrap();
        let _one = Lock::try_share(&path).unwrap().unwrap();
        let _other = Lock::try_share(&path).unwrap().unwrap();
        assert!(Lock::try_take(&path, Mode::Exclusive).unwrap().is_none());
    }
}
