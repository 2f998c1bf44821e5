//! The process that executes the stub, which enters the user namespace too.
//!
//! ```text
//! caller ─ clone ─► thread ─ clone ─► child ─ clone ─► stub: untraceable, setns, socket …, sendmsg, exit
//!                                     exits                                caller ◄── descriptors ──┘
//! ```
//! The thread has a table of descriptors of its own, with nothing but what the stub is for: the stub lives on for a
//! moment when the host process is killed, and must not keep its ports taken. A program that was executed ends with
//! SIGCHLD whatever its clone said, which would be one more signal for the host each time. So there is a child between,
//! which ends at once without one and leaves the stub to whoever collects orphans.

#![allow(unsafe_code, reason = "the code of a thread and of processes that share its memory")]

use super::super::errno::failed;
use super::super::launch::stub_file;
use super::super::process::socket_pair;
use super::super::program::{Argument, Finished, OnError, Program};
use super::super::thread::{self, Chosen, Descriptors, errno, system_call};
use super::{Call, Family, Fault, INHERIT_MARKS, SOCKETS_MAX, Target, Transport};
use crate::error::{Error, Result};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use std::ffi::{CString, c_int, c_long, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What the numbers of the program's steps mean.
const CALLS: [Call; 5] = [Call::EnterProcess, Call::EnterUser, Call::EnterNetwork, Call::InheritMarks, Call::Socket];

pub(super) fn open_sockets(
    target: Target<'_>,
    family: Family,
    transport: Transport,
    count: usize,
) -> Result<Result<Vec<OwnedFd>, Fault>> {
    let (ours, theirs) = socket_pair()?;
    let program = write_program(target, (family, transport), count, theirs.as_fd())?.finish()?;
    let orphan = run_child(&program)?;
    let report = program.into_report();
    // Else the end of the stub would not be the end of the conversation.
    drop(theirs);
    let received = receive(&ours);
    collect(orphan)?;
    match received? {
        Some(sockets) => Ok(Ok(sockets)),
        None => Ok(Err(match report.failure()? {
            Some(failure) => {
                let call = CALLS.get(failure.step).copied().unwrap_or(Call::EnterNetwork);
                Fault { call, errno: failure.errno }
            }
            None => Fault { call: Call::EnterNetwork, errno: 0 },
        })),
    }
}

fn write_program<'fd>(
    target: Target<'fd>,
    (family, transport): (Family, Transport),
    count: usize,
    socket: BorrowedFd<'fd>,
) -> Result<Program<'fd>> {
    let step = |call| CALLS.iter().position(|other| *other == call).unwrap_or_default();
    let flags = |flags: c_int| u64::from(flags.unsigned_abs());
    let mut program = Program::new();
    // Before it enters: who is root inside could trace it otherwise, and act on the host as its user.
    program.not_dumpable();
    match target {
        Target::Process(pidfd) => {
            program.set_step(step(Call::EnterProcess));
            let pidfd = program.descriptor(pidfd);
            program.setns(pidfd, flags(libc::CLONE_NEWUSER | libc::CLONE_NEWNET));
        }
        Target::Namespaces { network, user } => {
            if let Some(user) = user {
                program.set_step(step(Call::EnterUser));
                let user = program.descriptor(user);
                program.setns(user, flags(libc::CLONE_NEWUSER));
            }
            program.set_step(step(Call::EnterNetwork));
            let network = program.descriptor(network);
            program.setns(network, flags(libc::CLONE_NEWNET));
        }
    }

    if transport == Transport::Routing {
        program.set_step(step(Call::InheritMarks));
        let (path, one) = (program.bytes(INHERIT_MARKS.to_bytes_with_nul()), program.bytes(b"1"));
        let file = program.register()?;
        let arguments = [libc::AT_FDCWD.into(), path.into(), (libc::O_WRONLY | libc::O_CLOEXEC).into()];
        program.call_into(file, libc::SYS_openat, OnError::Fail, &arguments);
        program.call(libc::SYS_write, OnError::Fail, &[file.into(), one.into(), 1_u64.into()]);
    }

    program.set_step(step(Call::Socket));
    // struct cmsghdr: length, SOL_SOCKET, SCM_RIGHTS; then the descriptors.
    let control_bytes = 16 + 4 * count;
    let kind = (u64::from(libc::SCM_RIGHTS.unsigned_abs()) << 32) | u64::from(libc::SOL_SOCKET.unsigned_abs());
    let kind = if cfg!(target_endian = "little") { kind } else { kind.rotate_left(32) };
    let mut control = vec![control_bytes as u64, kind];
    control.resize(control_bytes.div_ceil(8), 0);
    let control = program.words(&control);
    let word = program.bytes(&[0]);
    let iov = program.words(&[word, 1]);
    // struct msghdr: name, its length, iov, count, control, its length, flags.
    let message = program.words(&[0, 0, iov, 1, control, control_bytes as u64, 0]);
    let made = program.register()?;
    let numbers = transport.numbers(family);
    for number in 0..count as u64 {
        let arguments = [numbers.0.into(), numbers.1.into(), 0_u64.into()];
        program.call_into(made, libc::SYS_socket, OnError::Fail, &arguments);
        program.store(control + 16 + 4 * number, made);
    }
    let socket: Argument = program.descriptor(socket);
    program.call(libc::SYS_sendmsg, OnError::Fail, &[socket, message.into(), libc::MSG_NOSIGNAL.into()]);
    Ok(program)
}

/// The descriptors; `None` when the stub ended without a word.
fn receive(socket: &OwnedFd) -> Result<Option<Vec<OwnedFd>>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = loop {
        let mut data = [std::io::IoSliceMut::new(&mut byte)];
        match rustix::net::recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => break 0,
            other => break other.map_err(|e| failed("recvmsg(sockets)", e))?.bytes,
        }
    };
    if received == 0 {
        return Ok(None);
    }
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors);
        }
    }
    Ok(Some(sockets))
}

/// What the thread and the processes are told and what they tell.
#[repr(C)]
struct Request {
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
    /// The first descriptor that the stub is to have, and the one after the last, which is its file.
    inherited: [c_int; 2],
    /// The pid of the child between.
    child: c_int,
    /// The stub's pid.
    orphan: c_int,
    /// Of the call that failed.
    errno: c_int,
}

/// Starts the stub as an orphan; its pid.
fn run_child(program: &Finished<'_>) -> Result<c_int> {
    let stub = stub_file()?;
    let number = CString::new(program.lowest().to_string()).unwrap_or_default();
    let argv = [c"gpucontainer".as_ptr(), number.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null()];
    let mut of_process = program.inherited();
    let first = program.lowest();
    let end = first + c_int::try_from(of_process.len()).unwrap_or_default();
    of_process.push(stub.as_raw_fd());
    let mut request =
        Request { argv: argv.as_ptr(), envp: envp.as_ptr(), inherited: [first, end], child: 0, orphan: 0, errno: 0 };
    let chosen = Chosen { of_process: &of_process, first, standard: None };
    thread::run(begin, (&raw mut request).cast(), Descriptors::Chosen(chosen))?;
    if request.child > 0 {
        reap(request.child)?;
    }
    match request {
        Request { errno: 0, orphan, .. } => Ok(orphan),
        Request { errno, orphan: 0, .. } => Err(Error::from_errno("clone(CLONE_VM | CLONE_VFORK)", errno)),
        Request { errno, orphan, .. } => {
            collect(orphan)?;
            Err(Error::from_errno("execveat(stub)", errno))
        }
    }
}

/// Takes the exit status of a child that ends without a signal away, so that no zombie stays.
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
            // A loop of the host that waits for all kinds of children was faster. All that counts is in memory.
            Some(libc::ECHILD) | None => return Ok(()),
            Some(errno) => return Err(Error::from_errno(format!("waitpid({pid}, __WCLONE)"), errno)),
        }
    }
}

/// Shares memory, and makes the caller stand still until the child has executed or ended.
const FLAGS: [c_long; 5] = [libc::CLONE_VM as c_long | libc::CLONE_VFORK as c_long, 0, 0, 0, 0];

/// The thread, and in a frame that only the child leaves the child: system calls and nothing else.
extern "C" fn begin(argument: *mut c_void) {
    // SAFETY: the caller passes an exclusive reference and stands still until this thread has ended; of thread, child and
    // stub's process two stand still as long as the third runs.
    let request = unsafe { &mut *argument.cast::<Request>() };
    let pid = system_call(libc::SYS_clone, FLAGS);
    if pid == 0 {
        leave_orphan(request);
    }
    if pid < 0 {
        request.errno = errno(pid);
    } else {
        request.child = c_int::try_from(pid).unwrap_or_default();
    }
}

/// The child.
#[inline(never)]
fn leave_orphan(request: &mut Request) -> ! {
    let pid = system_call(libc::SYS_clone, FLAGS);
    if pid == 0 {
        execute(request);
    }
    if pid < 0 {
        request.errno = errno(pid);
    } else {
        request.orphan = c_int::try_from(pid).unwrap_or_default();
    }
    exit(0)
}

fn exit(status: c_long) -> ! {
    loop {
        system_call(libc::SYS_exit_group, [status, 0, 0, 0, 0]);
    }
}

/// The process that becomes the stub's.
#[inline(never)]
fn execute(request: &mut Request) -> ! {
    let [mut fd, stub] = request.inherited;
    let mut result = 0;
    while result >= 0 && fd < stub {
        // Not closed on exec.
        result = system_call(libc::SYS_fcntl, [fd.into(), libc::F_SETFD.into(), 0, 0, 0]);
        fd += 1;
    }
    if result >= 0 {
        let empty = c"".as_ptr() as c_long;
        let arguments =
            [stub.into(), empty, request.argv as c_long, request.envp as c_long, libc::AT_EMPTY_PATH.into()];
        result = system_call(libc::SYS_execveat, arguments);
    }
    request.errno = errno(result);
    exit(127)
}

/// Takes the orphan's exit status away where orphans come to this process: as process 1, or when it asked for them.
fn collect(orphan: c_int) -> Result<()> {
    let adopts = rustix::process::getpid().is_init() || is_subreaper();
    let Some(pid) = rustix::process::Pid::from_raw(orphan).filter(|_| adopts) else { return Ok(()) };
    loop {
        match rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()) {
            // Whoever else waits in this process may have been faster.
            Ok(_) | Err(rustix::io::Errno::CHILD) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(failed(format!("waitpid({orphan})"), e)),
        }
    }
}

fn is_subreaper() -> bool {
    let mut answer: c_int = 0;
    // SAFETY: the address is of an `int`, as the call wants it.
    let result = unsafe { libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut answer) };
    result == 0 && answer != 0
}
