//! The child that shares memory and descriptors with the caller and enters the network namespace alone.
//!
//! Its credentials stay the caller's, so nobody may trace it who may not trace the caller, and the kernel has no reason
//! to change the flags (dumpable) of the memory that both use.

#![allow(unsafe_code, reason = "clone, and descriptors made by the child")]

use super::super::signals::AllBlocked;
use super::{Call, Family, Fault, INHERIT_MARKS, SOCKETS_MAX, Transport};
use crate::error::{Error, Result};
use std::ffi::{c_char, c_int, c_long, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What the child is told and what it tells; it reads and writes nothing else.
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

/// The child needs well below 1 KiB, in a debug build too.
const STACK_BYTES: usize = 16 << 10;

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
    run_child(&mut request)?;
    let mut sockets = Vec::with_capacity(request.made);
    for &socket in request.sockets.iter().take(request.made) {
        // SAFETY: the child opened this descriptor in the table that it shares with us and nobody else was told of it.
        sockets.push(unsafe { OwnedFd::from_raw_fd(socket) });
    }
    if sockets.is_empty() {
        return Ok(Err(Fault { call: request.call, errno: request.errno }));
    }
    Ok(Ok(sockets))
}

/// Runs the child to its end.
fn run_child(request: &mut Request) -> Result<()> {
    let mut stack = vec![0_u128; STACK_BYTES / 16];
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES;
    let blocked = AllBlocked::enter()?;
    // SAFETY: `top` is the 16-byte aligned end of a stack that outlives the child, because CLONE_VFORK keeps this
    // thread here until the child has ended; `request` likewise. `child` makes system calls only, so it takes no lock
    // and changes no thread-local of the thread whose registers it starts with.
    let pid = unsafe { libc::clone(child, top, flags, std::ptr::from_mut(request).cast::<c_void>()) };
    if pid < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN);
        return Err(Error::from_errno("clone(CLONE_VM | CLONE_VFORK | CLONE_FILES)", errno));
    }
    let reaped = reap(pid);
    drop(blocked);
    reaped
}

/// Takes the exit status of a child that ends without a signal away, so that no zombie stays.
pub(in crate::sys) fn reap(pid: libc::pid_t) -> Result<()> {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let reaped = unsafe { libc::waitpid(pid, &raw mut status, libc::__WCLONE) };
        if reaped == pid {
            return Ok(());
        }
        match std::io::Error::last_os_error().raw_os_error() {
            Some(libc::EINTR) => {}
            // A loop of the host that waits for all kinds of children was faster. All that counts is in memory.
            Some(libc::ECHILD) | None => return Ok(()),
            Some(errno) => return Err(Error::from_errno(format!("waitpid({pid}, __WCLONE)"), errno)),
        }
    }
}

/// The child: from here to the end nothing but system calls and plain arithmetic.
extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: the parent passes an exclusive reference to a `Request` and stands still until this function has ended.
    let request = unsafe { &mut *argument.cast::<Request>() };
    let entered = system_call(libc::SYS_setns, [request.network.into(), libc::CLONE_NEWNET.into(), 0, 0, 0]);
    if entered < 0 {
        request.errno = errno(entered);
        return 0;
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
            return 0;
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
                return 0;
            }
        }
        request.made += 1;
    }
    0
}

/// The error number in a raw result.
pub(super) fn errno(result: c_long) -> c_int {
    c_int::try_from(result).unwrap_or(-libc::EINVAL).wrapping_neg()
}

/// A system call that leaves `errno` alone, which the child shares with the thread that waits for it.
///
/// Always inlined: when the call is `clone` on the caller's own stack, the frame that it returns to must be one that
/// neither of the two processes leaves.
#[inline(always)]
pub(in crate::sys) fn system_call(number: c_long, arguments: [c_long; 5]) -> c_long {
    let [first, second, third, fourth, fifth] = arguments;
    let result: c_long;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the calls made with it here and in `far` touch only memory whose addresses are passed and which outlives
    // them.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") first, in("rsi") second, in("rdx") third, in("r10") fourth, in("r8") fifth,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") first => result,
            in("x1") second, in("x2") third, in("x3") fourth, in("x4") fifth,
            options(nostack),
        );
    }
    result
}
