//! Error numbers in words.

use crate::error::{Error, ErrorKind};
use nix::errno::Errno;

use std::fmt;

/// The kind that an error number alone implies.
pub(crate) fn kind(errno: i32) -> ErrorKind {
    match Errno::from_raw(errno) {
        Errno::EACCES | Errno::EPERM | Errno::EROFS => ErrorKind::PermissionDenied,
        Errno::ENOSPC | Errno::EDQUOT => ErrorKind::NoSpace,
        Errno::ENOENT => ErrorKind::NotFound,
        Errno::EEXIST => ErrorKind::AlreadyExists,
        Errno::EBUSY | Errno::ETXTBSY => ErrorKind::Busy,
        Errno::ENOSYS | Errno::EOPNOTSUPP => ErrorKind::Unsupported,
        Errno::ETIMEDOUT => ErrorKind::TimedOut,
        _ => ErrorKind::SystemCall,
    }
}

/// The call, the kernel's sentence and the number's name: `open("/x"): No such file or directory (ENOENT)`.
pub(crate) fn describe(call: &impl fmt::Display, errno: i32) -> String {
    let number = Errno::from_raw(errno);
    format!("{call}: {} ({number:?})", number.desc())
}

/// The error of a call made through `rustix`.
pub(crate) fn failed(call: impl fmt::Display, errno: rustix::io::Errno) -> Error {
    Error::from_errno(call, errno.raw_os_error())
}

/// The error of a call made through `nix`.
pub(crate) fn failed_nix(call: impl fmt::Display, errno: Errno) -> Error {
    Error::from_errno(call, errno as i32)
}

/// Not for this caller.
pub(crate) const EPERM: i32 = libc::EPERM;

/// Not for anybody who asks like that.
pub(crate) const EACCES: i32 = libc::EACCES;

/// No such family of addresses.
pub(crate) const EAFNOSUPPORT: i32 = libc::EAFNOSUPPORT;

/// The kernel was built without it.
pub(crate) const EOPNOTSUPP: i32 = libc::EOPNOTSUPP;

/// Something of that name exists already.
pub(crate) const EEXIST: i32 = libc::EEXIST;

/// The directory has entries.
pub(crate) const ENOTEMPTY: i32 = libc::ENOTEMPTY;

/// No such process.
pub(crate) const ESRCH: i32 = libc::ESRCH;

/// What it was a file of is gone.
pub(crate) const ENODEV: i32 = libc::ENODEV;

/// A signal came.
pub(crate) const EINTR: i32 = libc::EINTR;

/// An argument that the kernel does not take.
pub(crate) const EINVAL: i32 = libc::EINVAL;

/// More links than the kernel follows, or one where none may be.
pub(crate) const ELOOP: i32 = libc::ELOOP;

/// Nothing has that name.
pub(crate) const ENOENT: i32 = libc::ENOENT;

/// Something on the way is no directory.
pub(crate) const ENOTDIR: i32 = libc::ENOTDIR;
