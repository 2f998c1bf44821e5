//! Descriptors that this process was started with.

#![allow(unsafe_code, reason = "descriptors by number")]

use super::errno::failed;
use crate::error::Result;
use std::os::fd::{BorrowedFd, OwnedFd};

pub(crate) use super::process::own_pid;

/// Another descriptor of what is open under `number`, which is closed on exec from now on, as is the other.
pub(crate) fn duplicate_inherited(number: i32) -> Result<OwnedFd> {
    // SAFETY: the number is 3 or higher, and whether it is open is for the calls to find; it is not kept.
    let inherited = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(inherited, rustix::io::FdFlags::CLOEXEC)
        .map_err(|e| failed(format!("fcntl({number}, F_SETFD)"), e))?;
    rustix::io::fcntl_dupfd_cloexec(inherited, 3).map_err(|e| failed(format!("fcntl({number}, F_DUPFD_CLOEXEC)"), e))
}
