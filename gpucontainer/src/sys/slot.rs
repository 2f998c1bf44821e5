//! Small files that many users see in one directory, each of which stands for something as long as its owner
//! holds write locks on ranges of it.
//!
//! The ranges are the truth, because nobody but the owner of the file (and root) can take a write lock on it, and
//! the kernel frees them when the last copy of the descriptor is closed. What is written in the file describes.

use super::errno::{failed, failed_nix};
use crate::error::{Error, ErrorKind, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// No description is longer; what is, was not written by this library.
const LONGEST: u64 = 64 * 1024;

/// A stretch of a file: where it begins, and how long it is.
pub(crate) type Range = (u64, u64);

/// A file that was found, with what tells it from others.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) file: File,
    pub(crate) user: u32,
    /// Device and inode: two names of one file are one slot.
    pub(crate) identity: (u64, u64),
}

fn range(kind: libc::c_int, (start, length): Range) -> libc::flock {
    libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: i64::try_from(start).unwrap_or(i64::MAX),
        l_len: i64::try_from(length).unwrap_or(i64::MAX),
        l_pid: 0,
    }
}

/// Makes the file `path`, holds the ranges, writes `text`, and only then lets others read it: before, a reader
/// could stand in the way of the locks.
pub(crate) fn create(path: &Path, ranges: &[Range], text: &[u8]) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| failed(format!("open({path:?}, O_CREAT)"), e).with_path(path))?;
    let file = File::from(fd);
    let filled = fill(&file, path, ranges, text);
    if filled.is_err() {
        // The error to report is the first.
        let _ = super::fs::remove_file(path);
    }
    filled.map(|()| file)
}

fn fill(file: &File, path: &Path, ranges: &[Range], text: &[u8]) -> Result<()> {
    for wanted in ranges {
        fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_WRLCK, *wanted)))
            .map_err(|e| failed_nix(format!("fcntl({path:?}, F_OFD_SETLK)"), e).with_path(path))?;
    }
    write(file, path, text)?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(0o644))
        .map_err(|e| failed(format!("fchmod({path:?}, 0644)"), e).with_path(path))
}

/// Writes the description.
pub(crate) fn write(file: &File, path: &Path, text: &[u8]) -> Result<()> {
    file.write_all_at(text, 0).map_err(|e| Error::from_io(format!("write({path:?})"), e).with_path(path))
}

/// Adds to the description.
pub(crate) fn append(file: &File, path: &Path, text: &[u8]) -> Result<()> {
    let length = file.metadata().map_err(|e| Error::from_io(format!("fstat({path:?})"), e).with_path(path))?.len();
    file.write_all_at(text, length).map_err(|e| Error::from_io(format!("write({path:?})"), e).with_path(path))
}

/// Tells those who watch the directory of a close, whoever still has copies of the owner's descriptor.
pub(crate) fn announce(path: &Path) -> Result<()> {
    use rustix::io::Errno;
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        // It was removed, of which they are told, too.
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(failed(format!("open({path:?}, O_WRONLY)"), e).with_path(path)),
    }
}

/// Opens what others made: `None` if it is gone, is no file (a link, a FIFO, a device), or may not be read.
pub(crate) fn open(path: &Path) -> Result<Option<Found>> {
    use rustix::io::Errno;
    // Merely opening a device can do something, so it is looked at first.
    match rustix::fs::lstat(path) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {}
        Ok(_) | Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(failed(format!("lstat({path:?})"), e).with_path(path)),
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::LOOP | Errno::ACCESS) => return Ok(None),
        // Its owner keeps others from opening it (`F_SETLEASE`), and must not keep them from the other files.
        Err(Errno::AGAIN) => return Ok(None),
        // It became a socket or a device meanwhile.
        Err(Errno::NXIO | Errno::NODEV) => return Ok(None),
        Err(e) => return Err(failed(format!("open({path:?})"), e).with_path(path)),
    };
    let stat = rustix::fs::fstat(&fd).map_err(|e| failed(format!("fstat({path:?})"), e).with_path(path))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    Ok(Some(Found { file: File::from(fd), user: stat.st_uid, identity: (stat.st_dev, stat.st_ino) }))
}

/// What is written in the file.
pub(crate) fn read(file: &File, path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(LONGEST)
        .read_to_end(&mut text)
        .map_err(|e| Error::from_io(format!("read({path:?})"), e).with_path(path))?;
    Ok(text)
}

/// A range inside `within` on which somebody else holds a write lock, if there is one.
pub(crate) fn held(file: &File, path: &Path, within: Range) -> Result<Option<Range>> {
    // A read lock collides with write locks only: those are the owner's.
    let mut answer = range(libc::F_RDLCK, within);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut answer))
        .map_err(|e| failed_nix(format!("fcntl({path:?}, F_OFD_GETLK)"), e).with_path(path))?;
    if libc::c_int::from(answer.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    Ok(u64::try_from(answer.l_start).ok().zip(u64::try_from(answer.l_len).ok()))
}

/// Frees all ranges at once, for all copies of the descriptor.
pub(crate) fn free(file: &File, path: &Path) -> Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, (0, 0))))
        .map(drop)
        .map_err(|e| failed_nix(format!("fcntl({path:?}, F_UNLCK)"), e).with_path(path))
}

/// A held lock of [`try_lock_directory`].
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    directory: OwnedFd,
    owner: rustix::process::Pid,
}

impl DirectoryLock {
    /// Whether the directory still has that path: between opening and locking, somebody may have removed it.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        let held = rustix::fs::fstat(&self.directory);
        let named = rustix::fs::lstat(path);
        matches!((held, named), (Ok(held), Ok(named)) if (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino))
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // The lock belongs to all copies of the descriptor; a forked child must not end that of its parent.
        if rustix::process::getpid() == self.owner {
            // Closing it does the same where nobody else has it.
            let _ = rustix::fs::flock(&self.directory, FlockOperation::Unlock);
        }
    }
}

/// Locks a directory against all who lock it so; `None` if somebody has it.
///
/// The lock needs no right to write, and ends with the value, whatever child of a fork still has its descriptor.
pub(crate) fn try_lock_directory(path: &Path) -> Result<Option<DirectoryLock>> {
    let directory = super::fs::open_dir(path)?;
    loop {
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(DirectoryLock { directory, owner: rustix::process::getpid() })),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(e) => return Err(failed(format!("flock({path:?}, LOCK_EX)"), e).with_path(path)),
        }
    }
}

/// Makes a directory in which everybody may make files, and remove only their own; one that is there stays.
///
/// # Errors
/// [`ErrorKind::PermissionDenied`] if somebody other than root or the caller made what is there, or it is no
/// directory: such an owner could rename the files of others.
pub(crate) fn make_shared_directory(path: &Path) -> Result<()> {
    let made = match super::fs::create_dir(path) {
        Ok(()) => true,
        Err(e) if e.kind() == ErrorKind::AlreadyExists => false,
        Err(e) => return Err(e),
    };
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| failed(format!("open({path:?}, O_DIRECTORY | O_NOFOLLOW)"), e).with_path(path))?;
    let stat = rustix::fs::fstat(&directory).map_err(|e| failed(format!("fstat({path:?})"), e).with_path(path))?;
    let own = rustix::process::geteuid().as_raw();
    if stat.st_uid != 0 && stat.st_uid != own {
        let why = format!("{path:?} belongs to user {}, who could take away the leases of others", stat.st_uid);
        return Err(Error::new(ErrorKind::PermissionDenied, why).with_path(path));
    }
    // Whoever was first may have died before this.
    if made || (stat.st_uid == own && stat.st_mode & 0o7777 != 0o1777) {
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o1777))
            .map_err(|e| failed(format!("fchmod({path:?}, 1777)"), e).with_path(path))?;
    } else if stat.st_mode & 0o1000 == 0 && stat.st_mode & 0o022 != 0 {
        let why = format!("{path:?} may be written by others and is not sticky: they could take away leases");
        return Err(Error::new(ErrorKind::PermissionDenied, why).with_path(path));
    }
    Ok(())
}

/// Whether the error says that the name is taken, or a reader stood in the way of a lock.
pub(crate) fn try_again(error: &Error) -> bool {
    matches!(error.errno(), Some(number) if number == Errno::EEXIST as i32 || number == Errno::EAGAIN as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_seen_by_readers_and_end_with_the_last_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slot");
        let file = create(&path, &[(0, 1), (1 << 40, 7)], b"text").unwrap();
        assert!(try_again(&create(&path, &[], b"").unwrap_err()));
        let found = open(&path).unwrap().unwrap();
        assert_eq!(read(&found.file, &path).unwrap(), b"text");
        assert_eq!(held(&found.file, &path, (0, 1)).unwrap(), Some((0, 1)));
        assert_eq!(held(&found.file, &path, (1 << 39, 1 << 40)).unwrap(), Some((1 << 40, 7)));
        assert_eq!(held(&found.file, &path, (1, 100)).unwrap(), None);
        let copy = file.try_clone().unwrap();
        drop(file);
        assert!(held(&found.file, &path, (0, 1)).unwrap().is_some(), "a copy keeps it");
        free(&copy, &path).unwrap();
        assert!(held(&found.file, &path, (0, 0)).unwrap().is_none());
    }

    #[test]
    fn what_is_no_file_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        for path in [link, directory.path().join("gone"), directory.path().to_owned()] {
            assert!(open(&path).unwrap().is_none(), "{path:?}");
        }
    }

    #[test]
    fn a_directory_is_locked_by_one() {
        let directory = tempfile::tempdir().unwrap();
        let held = try_lock_directory(directory.path()).unwrap().unwrap();
        assert!(try_lock_directory(directory.path()).unwrap().is_none());
        drop(held);
        assert!(try_lock_directory(directory.path()).unwrap().is_some());
    }
}
