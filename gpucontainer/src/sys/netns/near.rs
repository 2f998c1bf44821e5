//! The thread that enters the network namespace alone and makes sockets in the process's own table.
//!
//! Its credentials stay the caller's, so nobody may trace it who may not trace the caller, and the kernel has no reason
//! to change the flags (dumpable) of the memory that both use.

#![allow(unsafe_code, reason = "the code of a thread, and descriptors made by it")]

use super::super::thread::{self, Descriptors, errno, system_call};
use super::{Call, Family, Fault, INHERIT_MARKS, SOCKETS_MAX, Transport};
use crate::error::Result;
use std::ffi::{c_char, c_int, c_long, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What the thread is told and what it tells; it reads and writes nothing else.
#[repr(C)]
struct Request {
    network: c_int,
    family: c_int,
    kind: c_int,
    /// A setting to switch on first, or null.
    setting: *const c_char,
    wanted: usize,
    made: usize,
    call: Call,
    errno: c_int,
    sockets: [c_int; SOCKETS_MAX],
}

pub(super) fn open_sockets(
    network: BorrowedFd<'_>,
    family: Family,
    transport: Transport,
    count: usize,
) -> Result<Result<Vec<OwnedFd>, Fault>> {
    let mut request = Request {
        network: network.as_raw_fd(),
        family: transport.numbers(family).0,
        kind: transport.numbers(family).1,
        setting: if transport == Transport::Routing { INHERIT_MARKS.as_ptr() } else { std::ptr::null() },
        wanted: count,
        made: 0,
        call: Call::EnterNetwork,
        errno: 0,
        sockets: [-1; SOCKETS_MAX],
    };
    thread::run(make, std::ptr::from_mut(&mut request).cast(), Descriptors::Shared)?;
    let mut sockets = Vec::with_capacity(request.made);
    for &socket in request.sockets.iter().take(request.made) {
        // SAFETY: the thread opened this descriptor in the table that it shares with us and nobody else was told of it.
        sockets.push(unsafe { OwnedFd::from_raw_fd(socket) });
    }
    if sockets.is_empty() {
        return Ok(Err(Fault { call: request.call, errno: request.errno }));
    }
    Ok(Ok(sockets))
}

/// The thread: nothing but system calls and plain arithmetic.
extern "C" fn make(argument: *mut c_void) {
    // SAFETY: the caller passes an exclusive reference to a `Request` and stands still until this function has ended.
    let request = unsafe { &mut *argument.cast::<Request>() };
    let entered = system_call(libc::SYS_setns, [request.network.into(), libc::CLONE_NEWNET.into(), 0, 0, 0]);
    if entered < 0 {
        request.errno = errno(entered);
        return;
    }
    if !request.setting.is_null() {
        request.call = Call::InheritMarks;
        let flags = c_long::from(libc::O_WRONLY | libc::O_CLOEXEC);
        let file = system_call(libc::SYS_openat, [libc::AT_FDCWD.into(), request.setting as c_long, flags, 0, 0]);
        let mut result = file;
        if file >= 0 {
            result = system_call(libc::SYS_write, [file, c"1".as_ptr() as c_long, 1, 0, 0]);
            system_call(libc::SYS_close, [file, 0, 0, 0, 0]);
        }
        if result < 0 {
            request.errno = errno(result);
            return;
        }
    }
    request.call = Call::Socket;
    let kind = c_long::from(request.kind);
    while request.made < request.wanted {
        let socket = system_call(libc::SYS_socket, [request.family.into(), kind, 0, 0, 0]);
        match (c_int::try_from(socket), request.sockets.get_mut(request.made)) {
            (Ok(socket), Some(slot)) if socket >= 0 => *slot = socket,
            _ => {
                request.errno = errno(socket);
                return;
            }
        }
        request.made += 1;
    }
}
