//! Mounting, by descriptor where the kernel lets us: a mount exists before it is seen anywhere.
#![allow(unsafe_code, reason = "mount_setattr(2) has no safe wrapper")]

use crate::error::{Error, Result};
use crate::sys::errno::failed;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The longest text that `fsconfig(2)` takes for one setting.
pub(crate) const SETTING_LIMIT: usize = 255;

/// The longest options of `mount(2)`: one page with the NUL at its end.
pub(crate) const OPTIONS_LIMIT: usize = 4095;

/// A file system that is being configured; see `fsopen(2)`.
#[derive(Debug)]
pub(crate) struct Context {
    fd: OwnedFd,
    kind: &'static str,
}

impl Context {
    /// Begins to make a file system of `kind`.
    pub(crate) fn open(kind: &'static str) -> Result<Self> {
        match rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(fd) => Ok(Self { fd, kind }),
            Err(e) => Err(failed(format!("fsopen({kind:?})"), e)),
        }
    }

    /// Goes on with one that was begun elsewhere.
    pub(crate) fn adopt(fd: OwnedFd, kind: &'static str) -> Self {
        Self { fd, kind }
    }

    /// Switches a setting on.
    pub(crate) fn set_flag(&self, key: &str) -> Result<()> {
        self.check(rustix::mount::fsconfig_set_flag(&self.fd, key), || format!("fsconfig({:?}, {key})", self.kind))
    }

    /// Gives a setting its text, of at most [`SETTING_LIMIT`] bytes.
    pub(crate) fn set_text(&self, key: &str, value: &OsStr) -> Result<()> {
        let result = rustix::mount::fsconfig_set_string(&self.fd, key, value);
        self.check(result, || format!("fsconfig({:?}, {key}={value:?})", self.kind))
    }

    /// Makes the file system.
    pub(crate) fn create(&self) -> Result<()> {
        self.check(rustix::mount::fsconfig_create(&self.fd), || format!("fsconfig({:?}, CREATE)", self.kind))
    }

    /// A mount of the file system that is attached to nothing yet, and gone when its last descriptor is closed.
    pub(crate) fn mount(&self, read_only: bool) -> Result<OwnedFd> {
        let attributes = if read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
        let result = rustix::mount::fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes);
        result.map_err(|e| self.failed(&format!("fsmount({:?})", self.kind), e))
    }

    /// The same, read-only and with nothing in it that can be executed or is a device.
    pub(crate) fn mount_bare(&self) -> Result<OwnedFd> {
        let nothing = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let attributes = nothing | MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let result = rustix::mount::fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes);
        result.map_err(|e| self.failed(&format!("fsmount({:?})", self.kind), e))
    }

    fn check(&self, result: rustix::io::Result<()>, call: impl FnOnce() -> String) -> Result<()> {
        result.map_err(|e| self.failed(&call(), e))
    }

    /// The error with what the kernel itself says about it.
    fn failed(&self, call: &str, errno: Errno) -> Error {
        let log = self.log();
        if log.is_empty() { failed(call, errno) } else { failed(format!("{call} (kernel: {})", log.join("; ")), errno) }
    }

    /// The lines that the file system wrote for whoever configures it, without their level.
    fn log(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut line = [0_u8; 1024];
        while let Ok(length @ 1..) = rustix::io::read(&self.fd, &mut line) {
            let text = String::from_utf8_lossy(&line[..length]);
            let text = text.split_once(' ').map_or(&*text, |(_level, text)| text).trim_end();
            lines.push(text.to_owned());
            if lines.len() == 16 {
                break;
            }
        }
        lines
    }
}

/// Attaches a mount to the directory `target`, which must not be a link.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: &Path) -> Result<()> {
    rustix::mount::move_mount(mount, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| failed(format!("move_mount({target:?})"), e).with_path(target))
}

/// A copy of the mount at `path` (with those below it, if `recursive`), attached to nothing yet.
pub(crate) fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let below = if recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | below;
    rustix::mount::open_tree(CWD, path, flags).map_err(|e| failed(format!("open_tree({path:?})"), e).with_path(path))
}

/// Makes a mount (and those below it, if `recursive`) read-only.
pub(crate) fn set_read_only(mount: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string that ends, the structure lives through the call, its size is its own.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(Error::from_io("mount_setattr(RDONLY)", std::io::Error::last_os_error())) }
}

/// A copy of the mount of a directory that shows owners as the map of a user namespace moves them (Linux 5.12;
/// as a layer of overlayfs 5.19).
pub(crate) fn clone_shifted(path: &Path, user_namespace: BorrowedFd<'_>) -> Result<OwnedFd> {
    let tree = clone_tree(path, false)?;
    let attributes = libc::mount_attr {
        // A layer is for reading, whoever gets hold of this copy.
        attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(user_namespace.as_raw_fd().unsigned_abs()),
    };
    // SAFETY: the path is an empty string with its NUL, and the structure has the size that is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        return Ok(tree);
    }
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Err(Error::from_errno(format!("mount_setattr({path:?}, MOUNT_ATTR_IDMAP)"), errno).with_path(path))
}

/// `mount(2)` of a new file system with `options`, at most [`OPTIONS_LIMIT`] bytes of them.
pub(crate) fn mount(kind: &str, target: &Path, read_only: bool, options: &CStr) -> Result<()> {
    let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    rustix::mount::mount(kind, target, kind, flags, options)
        .map_err(|e| failed(format!("mount({kind:?}, {target:?}, {options:?})"), e).with_path(target))
}

/// Takes the mount at `target` away; one in use is an error, or with `detach` vanishes when its last user is gone.
pub(crate) fn unmount(target: &Path, detach: bool) -> Result<()> {
    let flags = UnmountFlags::NOFOLLOW | if detach { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    rustix::mount::unmount(target, flags).map_err(|e| failed(format!("umount2({target:?})"), e).with_path(target))
}

/// Which mount `path` is on; a number that no other mount has while this one exists.
pub(crate) fn mount_id(path: &Path) -> Result<u64> {
    rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::MNT_ID)
        .map(|known| known.stx_mnt_id)
        .map_err(|e| failed(format!("statx({path:?})"), e).with_path(path))
}

/// A directory under a path short enough for the limits of mount options: valid while this lives, in this process.
#[derive(Debug)]
pub(crate) struct ShortPath {
    fd: OwnedFd,
}

impl ShortPath {
    /// Opens the directory at `path`.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| failed(format!("open({path:?}, O_PATH)"), e).with_path(path))?;
        Ok(Self { fd })
    }

    /// The other path; needs a mounted `/proc`.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_fd().as_raw_fd()))
    }
}
