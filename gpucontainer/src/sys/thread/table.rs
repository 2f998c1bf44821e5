//! A thread's own table of descriptors, with a few of the process's.
//!
//! The table of a host process may be huge, and copying it takes as long as thousands of system calls. So the thread parts
//! with it without a copy, and fetches the few from the process, whose thread it is, one by one. Where that is not allowed it
//! begins with a copy.

#![allow(unsafe_code, reason = "lists of the caller's")]

use super::{Chosen, errno, system_call};
use crate::error::{Error, Result};
use std::ffi::{c_int, c_long};

const CLOSE_RANGE_UNSHARE: c_long = 2;
const PIDFD_THREAD: c_long = libc::O_EXCL as c_long;

/// What the thread makes its table of, and what became of it.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Table {
    chosen: *const c_int,
    /// As many, where copies are while they are put into order.
    aside: *mut c_long,
    count: usize,
    first: c_int,
    standard: Option<usize>,
    /// The number of the thread whose table it is made from.
    thread: c_long,
    /// Whether the thread begins with a copy of the process's.
    pub(super) copied: bool,
    /// Whether it has one of its own.
    pub(super) own: bool,
    /// The call that failed.
    call: Call,
    pub(super) errno: c_int,
    /// What the pointers point to.
    _lists: (Vec<c_int>, Vec<c_long>),
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Unshare,
    Fetch,
    Duplicate,
}

impl Table {
    pub(super) fn of(chosen: Chosen<'_>) -> Self {
        let mut lists = (chosen.of_process.to_vec(), vec![-1; chosen.of_process.len()]);
        Self {
            chosen: lists.0.as_ptr(),
            aside: lists.1.as_mut_ptr(),
            count: lists.0.len(),
            first: chosen.first,
            standard: chosen.standard,
            thread: system_call(libc::SYS_gettid, [0; 5]),
            copied: false,
            own: false,
            call: Call::Unshare,
            errno: 0,
            _lists: lists,
        }
    }

    pub(super) fn reset(&mut self) {
        (self.own, self.call, self.errno) = (false, Call::Unshare, 0);
    }

    /// Whether the process's descriptors are not to be had one by one: a kernel or a filter without the calls, or a first
    /// thread that has ended before the process, or has another table.
    pub(super) fn is_refused(&self) -> bool {
        let errors = [libc::ENOSYS, libc::EPERM, libc::EACCES, libc::ESRCH, libc::EBADF];
        matches!(self.call, Call::Fetch) && errors.contains(&self.errno)
    }

    /// Whether that is so for every thread of the process.
    pub(super) fn is_refused_for_good(&self) -> bool {
        self.is_refused() && matches!(self.errno, libc::ENOSYS | libc::EPERM | libc::EACCES)
    }

    pub(super) fn into_result(self) -> Result<()> {
        let call = match self.call {
            Call::Unshare => "close_range(CLOSE_RANGE_UNSHARE)",
            Call::Fetch => "pidfd_getfd()",
            Call::Duplicate => "dup3()",
        };
        if self.errno == 0 { Ok(()) } else { Err(Error::from_errno(call, self.errno)) }
    }

    /// Makes the table: system calls and plain arithmetic alone.
    pub(super) fn lay(&mut self) {
        let laid = if self.copied { self.sort_copies() } else { self.fetch() };
        let result = match self.standard {
            Some(filler) if laid >= 0 => self.fill(filler),
            _ => laid,
        };
        self.errno = if result < 0 { errno(result) } else { 0 };
    }

    fn number(&self, at: usize) -> c_long {
        // A table has far fewer.
        c_long::from(self.first) + at as c_long
    }

    fn chosen(&self, at: usize) -> c_long {
        // SAFETY: `at` is below the length of the list, which lives as long as this.
        let place = unsafe { self.chosen.add(at) };
        // SAFETY: as above.
        c_long::from(unsafe { *place })
    }

    fn aside(&mut self, at: usize) -> &mut c_long {
        // SAFETY: as for `chosen`.
        let place = unsafe { self.aside.add(at) };
        // SAFETY: nothing else points there.
        unsafe { &mut *place }
    }

    fn fetch(&mut self) -> c_long {
        let from = if self.standard.is_some() { 3 } else { 0 };
        let parted = system_call(libc::SYS_close_range, [from, c_long::from(u32::MAX), CLOSE_RANGE_UNSHARE, 0, 0]);
        if parted < 0 {
            return parted;
        }
        (self.own, self.call) = (true, Call::Fetch);
        // The caller's thread, which stands still; before Linux 6.9 only the first one of a process can be named.
        let mut opened = system_call(libc::SYS_pidfd_open, [self.thread, PIDFD_THREAD, 0, 0, 0]);
        if opened == -c_long::from(libc::EINVAL) {
            let process = system_call(libc::SYS_getpid, [0; 5]);
            if process != self.thread && !share_table(process, self.thread) {
                return -c_long::from(libc::ESRCH);
            }
            opened = system_call(libc::SYS_pidfd_open, [process, 0, 0, 0, 0]);
        }
        if opened < 0 {
            return opened;
        }
        // Out of the way.
        let process = move_above(opened, self.number(self.count));
        if process < 0 {
            return process;
        }
        let mut at = 0;
        while at < self.count {
            self.call = Call::Fetch;
            let fetched = system_call(libc::SYS_pidfd_getfd, [process, self.chosen(at), 0, 0, 0]);
            if fetched < 0 {
                return fetched;
            }
            self.call = Call::Duplicate;
            let number = self.number(at);
            let placed = if fetched == number { number } else { place(fetched, number) };
            if placed < 0 {
                return placed;
            }
            at += 1;
        }
        system_call(libc::SYS_close, [process, 0, 0, 0, 0])
    }

    /// Puts something where a standard descriptor is missing, or ends with the next exec: it is something else of a process
    /// that has closed its own. What is put there stays, as those do.
    fn fill(&mut self, filler: usize) -> c_long {
        self.call = Call::Duplicate;
        let mut number = 0;
        while number < 3 {
            let flags = system_call(libc::SYS_fcntl, [number, libc::F_GETFD.into(), 0, 0, 0]);
            if flags < 0 || flags & c_long::from(libc::FD_CLOEXEC) != 0 {
                let filled = system_call(libc::SYS_dup3, [self.number(filler), number, 0, 0, 0]);
                if filled < 0 {
                    return filled;
                }
            }
            number += 1;
        }
        0
    }

    fn sort_copies(&mut self) -> c_long {
        (self.own, self.call) = (true, Call::Duplicate);
        // Above all places, so that none is in the way of another; then everything else goes, and they come back.
        let above = self.number(self.count);
        let mut at = 0;
        while at < self.count {
            let copy = system_call(libc::SYS_fcntl, [self.chosen(at), libc::F_DUPFD_CLOEXEC.into(), above, 0, 0]);
            if copy < 0 {
                return copy;
            }
            *self.aside(at) = copy;
            at += 1;
        }
        let mut result = 0;
        let from = if self.standard.is_some() { 3 } else { 0 };
        if above > from {
            result = system_call(libc::SYS_close_range, [from, above - 1, 0, 0, 0]);
        }
        at = 0;
        while result >= 0 && at < self.count {
            let copy = *self.aside(at);
            result = system_call(libc::SYS_dup3, [copy, self.number(at), libc::O_CLOEXEC.into(), 0, 0]);
            at += 1;
        }
        if result < 0 {
            return result;
        }
        system_call(libc::SYS_close_range, [above, c_long::from(u32::MAX), 0, 0, 0])
    }
}

/// Whether the first thread of a process lives and has the same table as another one, as far as the kernel tells.
fn share_table(first: c_long, other: c_long) -> bool {
    const KCMP_FILES: c_long = 2;
    let compared = system_call(libc::SYS_kcmp, [first, other, KCMP_FILES, 0, 0]);
    // A kernel or a filter without the call: threads with tables of their own are rare.
    compared == 0 || compared == -c_long::from(libc::ENOSYS) || compared == -c_long::from(libc::EPERM)
}

fn move_above(fd: c_long, lowest: c_long) -> c_long {
    let moved = system_call(libc::SYS_fcntl, [fd, libc::F_DUPFD_CLOEXEC.into(), lowest, 0, 0]);
    system_call(libc::SYS_close, [fd, 0, 0, 0, 0]);
    moved
}

fn place(fd: c_long, number: c_long) -> c_long {
    let placed = system_call(libc::SYS_dup3, [fd, number, libc::O_CLOEXEC.into(), 0, 0]);
    system_call(libc::SYS_close, [fd, 0, 0, 0, 0]);
    placed
}
