//! Files of control groups, and the processes inside them.

use super::errno::failed;
use crate::error::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// The size of a page of memory: what the kernel rounds limits of memory down to.
pub(crate) fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// The effective user id of the caller.
pub(crate) fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether there is no such file.
pub(crate) fn is_absent(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXISTS) == Err(Errno::NOENT)
}

/// The text of a file that the kernel makes up when it is read: in few large reads, as it says no size beforehand.
pub(crate) fn read_at_once(path: &Path) -> Result<String> {
    let wrap = |call: &str, e| failed(format!("{call}({path:?})"), e).with_path(path);
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|e| wrap("open", e))?;
    let mut bytes = vec![0_u8; 16 << 10];
    let mut length = 0;
    loop {
        match rustix::io::read(&file, &mut bytes[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(Errno::INTR) => {}
            Err(e) => return Err(wrap("read", e)),
        }
        if length == bytes.len() {
            bytes.resize(length * 2, 0);
        }
    }
    bytes.truncate(length);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Opens an existing file for writing; nothing is created or truncated, so a control file that the
/// kernel does not have is `ENOENT` and not the `EPERM` of an attempt to make it.
pub(crate) fn open_for_writing(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| failed(format!("open({path:?}, O_WRONLY)"), e).with_path(path))
}

/// Writes `value` into a control file with one `write(2)`: the kernel takes each write as one command.
pub(crate) fn write_value(path: &Path, value: &str) -> Result<()> {
    write_open(&open_for_writing(path)?, path, value)
}

/// Writes a value into a control file that is open; `path` is for messages.
pub(crate) fn write_open(file: &OwnedFd, path: &Path, value: &str) -> Result<()> {
    loop {
        match rustix::io::write(file, value.as_bytes()) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(failed(format!("write({path:?}, {value:?})"), e).with_path(path)),
        }
    }
}

/// Whether a directory is there and its files are in memory alone, so that they cost no disk and end with the machine.
pub(crate) fn is_in_memory(path: &Path) -> bool {
    const TMPFS: u64 = 0x0102_1994;
    rustix::fs::statfs(path).is_ok_and(|found| u64::try_from(found.f_type) == Ok(TMPFS))
}

/// Makes a directory that is the caller's alone, or checks that the one there is: no link, owned by the caller,
/// closed to all others.
pub(crate) fn make_private_directory(path: &Path) -> Result<()> {
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(failed(format!("mkdir({path:?})"), e).with_path(path)),
    }
    let found = rustix::fs::lstat(path).map_err(|e| failed(format!("lstat({path:?})"), e).with_path(path))?;
    let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
    if is_directory && found.st_uid == effective_user() && found.st_mode & 0o077 == 0 {
        return Ok(());
    }
    let why = format!("{path:?} is not a directory of the calling user alone");
    Err(Error::new(ErrorKind::PermissionDenied, why).with_path(path))
}

/// Waits until the kernel says that an open control file has changed, or `timeout` has passed.
///
/// A change since the file was last read through this descriptor counts.
pub(crate) fn wait_for_change(file: impl AsFd, timeout: Duration) -> Result<()> {
    poll(&mut [PollFd::new(&file, PollFlags::PRI)], timeout)
}

fn poll(files: &mut [PollFd<'_>], timeout: Duration) -> Result<()> {
    let timeout = Timespec::try_from(timeout).map_err(|_| Error::from_errno("poll", libc::EINVAL))?;
    match rustix::event::poll(files, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(failed("poll", e)),
    }
}

/// The directories inside a directory, by name. A directory that is gone has none.
pub(crate) fn subdirectories(path: &Path) -> Result<Vec<std::path::PathBuf>> {
    let wrap = |call: &str, e| failed(format!("{call}({path:?})"), e).with_path(path);
    let directory = match rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(e) => return Err(wrap("open", e)),
    };
    let mut found = Vec::new();
    // The kernel counts the groups in a group as links of it, and most have none.
    if rustix::fs::fstat(&directory).is_ok_and(|metadata| metadata.st_nlink == 2) {
        return Ok(found);
    }
    for entry in rustix::fs::Dir::new(directory).map_err(|e| wrap("opendir", e))? {
        match entry {
            Ok(entry) if entry.file_type() == FileType::Directory => {
                let name = entry.file_name().to_bytes();
                if name != b"." && name != b".." {
                    found.push(path.join(std::ffi::OsStr::new(&*String::from_utf8_lossy(name))));
                }
            }
            Ok(_) => {}
            // The group was removed while it was being read.
            Err(Errno::NOENT | Errno::NODEV) => break,
            Err(e) => return Err(wrap("getdents", e)),
        }
    }
    found.sort();
    Ok(found)
}

/// A process held by descriptor, so that a signal cannot reach another one that got its number.
#[derive(Debug)]
pub(crate) struct Process(OwnedFd);

impl Process {
    /// Takes hold of the process `pid`; `None` if it has ended and been waited for.
    pub(crate) fn open(pid: u32) -> Result<Option<Self>> {
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        match rustix::process::pidfd_open(number, PidfdFlags::empty()) {
            Ok(fd) => Ok(Some(Self(fd))),
            Err(Errno::SRCH) => Ok(None),
            // The number is that of a thread whose process is being torn down.
            Err(Errno::INVAL | Errno::NOENT) => Ok(None),
            Err(e) => Err(failed(format!("pidfd_open({pid})"), e)),
        }
    }

    /// Kills it; that it is dead already is no error.
    pub(crate) fn kill(&self) -> Result<()> {
        match rustix::process::pidfd_send_signal(&self.0, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(failed("pidfd_send_signal(SIGKILL)", e)),
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of `processes` has ended, or `timeout` has passed.
pub(crate) fn wait_for_end(processes: &[Process], timeout: Duration) -> Result<()> {
    let mut files: Vec<_> = processes.iter().map(|process| PollFd::new(process, PollFlags::IN)).collect();
    poll(&mut files, timeout)
}
