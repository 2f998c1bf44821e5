//! Sockets made inside another network namespace.
//!
//! A socket belongs for life to the network namespace of the thread that made it, so a process can
//! hold sockets of many namespaces. The host process has threads, and neither of the two simple ways
//! is open to it: a thread of a threaded process may not enter a user namespace, and one that left its
//! network namespace and could not come back would be lost. So a child does it: it shares the memory and
//! the descriptors of the process, runs on a stack of its own, enters, makes as many sockets as are
//! wanted, and ends. The calling thread stands still meanwhile, and the child makes system calls and
//! nothing else. The cost does not depend on the size of the host process.
//!
//! What the host process could notice, and why it does not:
//! * signals: all are blocked while the child runs, in both; the child ends without sending one
//!   (exit signal 0), and only a wait for clone children (`__WCLONE`, `__WALL`) can see it;
//! * the dumpable flag: the kernel clears it for the shared memory when credentials grow. Entering a
//!   user namespace does not count as growing when that namespace, or one above it, was made by the
//!   caller's own user. So the network namespace alone is entered first, which always suffices for a
//!   caller that is privileged over it, and the user namespace only when that was refused; the kernel
//!   then lets no one in whose dumpable flag would suffer.

#![allow(unsafe_code, reason = "clone, system calls without libc, descriptors made by the child")]

use super::signals::AllBlocked;
use crate::error::{Error, ErrorKind, Result};
use std::ffi::{c_int, c_long, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The most sockets that one call makes.
pub(crate) const SOCKETS_MAX: usize = 64;

/// How a network namespace is named.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    /// That of a process, by a descriptor of `pidfd_open(2)`.
    Process(BorrowedFd<'a>),
    /// By descriptors of `/proc/PID/ns/net` and of the user namespace that owns it.
    Namespaces { network: BorrowedFd<'a>, user: Option<BorrowedFd<'a>> },
}

/// Which kind of address the sockets are for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What the child did last, for the error text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
enum Stage {
    Started,
    EnterProcess,
    EnterNetwork,
    EnterUser,
    Socket,
    Done,
}

/// What the child is told and what it tells; it reads and writes nothing else.
#[repr(C)]
struct Request {
    process: c_int,
    network: c_int,
    user: c_int,
    family: c_int,
    wanted: usize,
    made: usize,
    stage: Stage,
    errno: c_int,
    sockets: [c_int; SOCKETS_MAX],
}

/// The child needs well below 1 KiB, in a debug build too.
const STACK_BYTES: usize = 16 << 10;

#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct StackUnit([u8; 16]);

/// Makes 1 to [`SOCKETS_MAX`] TCP sockets in a network namespace: non-blocking, closed on exec.
///
/// # Errors
/// The call that failed: a namespace that is gone (`ESRCH`) or not the caller's ([`PermissionDenied`](ErrorKind::PermissionDenied)),
/// an address family that is switched off (`EAFNOSUPPORT`), no descriptor left (`EMFILE`) when not even one socket
/// could be made, or a host that lets its processes make no children.
pub(crate) fn open_sockets(target: Target<'_>, family: Family, count: usize) -> Result<Vec<OwnedFd>> {
    let raw = |fd: BorrowedFd<'_>| fd.as_fd().as_raw_fd();
    let (process, network, user) = match target {
        Target::Process(pidfd) => (raw(pidfd), -1, -1),
        Target::Namespaces { network, user } => (-1, raw(network), user.map_or(-1, raw)),
    };
    let mut request = Request {
        process,
        network,
        user,
        family: match family {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        },
        wanted: count.clamp(1, SOCKETS_MAX),
        made: 0,
        stage: Stage::Started,
        errno: 0,
        sockets: [-1; SOCKETS_MAX],
    };
    run_child(&mut request)?;
    let mut sockets = Vec::with_capacity(request.made);
    for &socket in request.sockets.iter().take(request.made) {
        // SAFETY: the child opened this descriptor in the table that it shares with us and nobody else was told of it.
        sockets.push(unsafe { OwnedFd::from_raw_fd(socket) });
    }
    match request.stage {
        Stage::Done => Ok(sockets),
        // Fewer than wanted is enough to go on; the next call says so when there is none at all.
        Stage::Socket if !sockets.is_empty() => Ok(sockets),
        stage => Err(explain(target, family, stage, request.errno)),
    }
}

fn explain(target: Target<'_>, family: Family, stage: Stage, errno: i32) -> Error {
    let call = match (stage, target) {
        (Stage::Socket | Stage::Done, _) => format!("socket(AF_INET{})", if family == Family::V4 { "" } else { "6" }),
        (Stage::EnterProcess, _) => "setns(pidfd, CLONE_NEWUSER | CLONE_NEWNET)".to_owned(),
        (Stage::EnterUser, _) => "setns(user namespace)".to_owned(),
        (Stage::EnterNetwork, Target::Process(_)) => "setns(pidfd, CLONE_NEWNET)".to_owned(),
        (Stage::EnterNetwork, Target::Namespaces { .. }) => "setns(network namespace)".to_owned(),
        (Stage::Started, _) => {
            return Error::new(ErrorKind::SystemCall, "the child that makes sockets was killed before it had begun");
        }
    };
    if errno == 0 {
        return Error::new(ErrorKind::SystemCall, format!("{call}: the child that makes sockets was killed"));
    }
    let error = Error::from_errno(call, errno);
    if stage == Stage::Socket { error } else { error.context("enter the container's network namespace") }
}

/// Runs the child to its end.
fn run_child(request: &mut Request) -> Result<()> {
    let mut stack = vec![StackUnit([0; 16]); STACK_BYTES / size_of::<StackUnit>()];
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES;
    let blocked = AllBlocked::enter()?;
    // SAFETY: `top` is the 16-byte aligned end of a stack that outlives the child, because CLONE_VFORK keeps this
    // thread here until the child has ended; `request` likewise. `child` makes system calls only, so it takes no lock
    // and touches no thread-local of the thread whose registers it starts with.
    let pid = unsafe { libc::clone(child, top, flags, std::ptr::from_mut(request).cast::<c_void>()) };
    if pid < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN);
        return Err(Error::from_errno("clone(CLONE_VM | CLONE_VFORK | CLONE_FILES)", errno)
            .context("make a child that enters the container's network namespace"));
    }
    reap(pid)?;
    drop(blocked);
    Ok(())
}

/// Takes the exit status of the child away, so that no zombie stays.
fn reap(pid: libc::pid_t) -> Result<()> {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let reaped = unsafe { libc::waitpid(pid, &raw mut status, libc::__WCLONE) };
        if reaped == pid {
            return Ok(());
        }
        match std::io::Error::last_os_error().raw_os_error() {
            Some(libc::EINTR) => {}
            // A loop of the host that waits for all kinds of children was faster. All that counts is in the request.
            Some(libc::ECHILD) | None => return Ok(()),
            Some(errno) => return Err(Error::from_errno(format!("waitpid({pid}, __WCLONE)"), errno)),
        }
    }
}

/// The child: from here to the end nothing but system calls and plain arithmetic.
extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: the parent passes an exclusive reference to a `Request` and stands still until this function has ended.
    let request = unsafe { &mut *argument.cast::<Request>() };
    let errno = enter(request);
    if errno != 0 {
        request.errno = errno;
        return 0;
    }
    request.stage = Stage::Socket;
    let kind = c_long::from(libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
    while request.made < request.wanted {
        let socket = system_call(libc::SYS_socket, c_long::from(request.family), kind, 0);
        match (c_int::try_from(socket), request.sockets.get_mut(request.made)) {
            (Ok(socket), Some(slot)) if socket >= 0 => *slot = socket,
            (Ok(negative), _) => {
                request.errno = negative.wrapping_neg();
                return 0;
            }
            (Err(_), _) => return 0,
        }
        request.made += 1;
    }
    request.stage = Stage::Done;
    0
}

/// Enters the namespaces; 0 or an error number.
fn enter(request: &mut Request) -> c_int {
    request.stage = Stage::EnterNetwork;
    let by = if request.process >= 0 { request.process } else { request.network };
    let errno = set_namespace(by, libc::CLONE_NEWNET);
    if errno != libc::EPERM {
        return errno;
    }
    if request.process >= 0 {
        request.stage = Stage::EnterProcess;
        return set_namespace(request.process, libc::CLONE_NEWUSER | libc::CLONE_NEWNET);
    }
    if request.user < 0 {
        return errno;
    }
    request.stage = Stage::EnterUser;
    let errno = set_namespace(request.user, libc::CLONE_NEWUSER);
    if errno != 0 {
        return errno;
    }
    request.stage = Stage::EnterNetwork;
    set_namespace(request.network, libc::CLONE_NEWNET)
}

fn set_namespace(fd: c_int, kinds: c_int) -> c_int {
    let result = system_call(libc::SYS_setns, c_long::from(fd), c_long::from(kinds), 0);
    c_int::try_from(result).unwrap_or(-libc::EINVAL).wrapping_neg()
}

/// A system call that leaves `errno` alone, which the child shares with the thread that waits for it.
fn system_call(number: c_long, first: c_long, second: c_long, third: c_long) -> c_long {
    let result: c_long;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: only `setns` and `socket` come here, which take plain numbers and touch no memory of ours.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: only `setns` and `socket` come here, which take plain numbers and touch no memory of ours.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") first => result,
            in("x1") second,
            in("x2") third,
            options(nostack),
        );
    }
    result
}
