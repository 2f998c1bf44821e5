//! Starting the stub: one `clone3` that shares memory and blocks the calling thread until the stub runs.
//!
//! Nothing but system calls happens between the clone and the stub: no allocation, no lock, no signal handler. The
//! child's own memory is a stack made beforehand; every signal is blocked around it. Neither the size of the host nor
//! its threads and open files matter, and nothing that the child does can change the host: what would (uid changes,
//! dumpable flag, out-of-memory score) happens only in the stub, which has memory of its own.

#![allow(unsafe_code, reason = "a raw clone and the code of its child")]

use super::errno::failed;
use super::program::Finished;
use super::thread::{self, Chosen, Descriptors};
use crate::error::{Context, Error, Result};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;

static STUB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stub"));

/// What the thread and the child are told, and what they tell; it lives on the caller's stack.
#[repr(C)]
struct Launch {
    arguments: CloneArguments,
    /// The network namespace to start in, or -1.
    network: i32,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
    /// The first descriptor that the stub is to have, and the one after the last, which is its file.
    inherited: [i32; 2],
    /// 0, or 1 + the highest capability to keep through `execveat` in a new user namespace.
    capabilities: u64,
    /// The pidfd of the child, in the thread's table.
    pidfd: i32,
    /// A message with it, and the socket that it is sent to.
    message: Message,
    socket: i32,
    pid: i64,
    /// The call that failed, if any, and its error number.
    failed: Call,
    errno: i32,
}

#[derive(Clone, Copy, Debug)]
enum Call {
    EnterNetwork,
    Clone,
    Execute,
    Send,
}

/// `struct msghdr` with room for what it points to: one byte, and one descriptor (`SCM_RIGHTS`).
#[repr(C)]
struct Message {
    header: libc::msghdr,
    iov: libc::iovec,
    byte: u8,
    /// `struct cmsghdr`, and the descriptor.
    control: [u64; 3],
}

/// What kind of child to make.
#[derive(Debug, Default)]
pub(crate) struct CloneOptions<'fd> {
    /// `CLONE_NEW…` flags.
    pub(crate) namespaces: u64,
    /// A cgroup v2 directory to start in.
    pub(crate) cgroup: Option<BorrowedFd<'fd>>,
    /// A network namespace to start in, or a pidfd of a process in it. The caller must be privileged over it.
    pub(crate) network: Option<BorrowedFd<'fd>>,
}

/// A started stub.
#[derive(Debug)]
pub(crate) struct Started {
    /// Its pid as the caller sees it.
    pub(crate) pid: i32,
    /// Its pidfd, close-on-exec.
    pub(crate) pidfd: OwnedFd,
}

/// Runs `program` in a new process.
///
/// ```text
/// caller ─ clone ─► thread ─ clone3 ─► child: execveat(stub)
///    ◄── pidfd ──── with the few descriptors of the stub in a table of its own
/// ```
/// So it takes no longer where the caller has thousands of descriptors, and nothing of the child keeps those that it has
/// not to do with, should the caller be killed meanwhile.
///
/// # Errors
/// The error of `clone3`, or of executing the stub; in both cases no process is left.
pub(crate) fn start(program: &Finished<'_>, options: &CloneOptions<'_>) -> Result<Started> {
    let stub = stub_file()?;
    let (ours, theirs) = super::process::socket_pair()?;
    let lowest = program.lowest();
    let number = CString::new(lowest.to_string()).unwrap_or_default();
    let argv = [c"gpucontainer".as_ptr(), number.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null()];
    let mut of_process = program.inherited();
    let own = |of_process: &mut Vec<i32>, fd: BorrowedFd<'_>| {
        of_process.push(fd.as_raw_fd());
        lowest + i32::try_from(of_process.len()).unwrap_or(i32::MAX - lowest) - 1
    };
    let filler = of_process.len();
    let stub = own(&mut of_process, stub.as_fd());
    let socket = own(&mut of_process, theirs.as_fd());
    let network = options.network.map_or(-1, |network| own(&mut of_process, network));
    let cgroup = options.cgroup.map(|cgroup| own(&mut of_process, cgroup));

    let new_user = u64::from(libc::CLONE_NEWUSER.cast_unsigned());
    let mut flags = u64::from((libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD).cast_unsigned());
    flags |= options.namespaces | CLONE_CLEAR_SIGHAND;
    if cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    // Pages of its own, so that an overflow meets the allocator's guard or nothing of ours that is in use.
    let mut stack = vec![0_u128; STACK / 16];
    let arguments = CloneArguments {
        flags,
        pidfd: 0,
        child_tid: 0,
        parent_tid: 0,
        // The kernel replaces this with SIGCHLD at the stub's exec; 0 keeps even the short life before quiet.
        exit_signal: 0,
        stack: stack.as_mut_ptr() as u64,
        stack_size: STACK as u64,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| u64::from(fd.unsigned_abs())),
    };
    let mut launch = Launch {
        arguments,
        network,
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        inherited: [lowest, stub],
        capabilities: if options.namespaces & new_user == 0 { 0 } else { u64::from(last_capability()?) + 1 },
        pidfd: -1,
        // SAFETY: structures of numbers and of pointers, all of which may be zero.
        message: unsafe { std::mem::zeroed() },
        socket,
        pid: 0,
        failed: Call::EnterNetwork,
        errno: 0,
    };
    let chosen = Chosen { of_process: &of_process, first: lowest, standard: Some(filler) };
    let run = thread::run(run_thread, (&raw mut launch).cast(), Descriptors::Chosen(chosen));
    drop(stack);
    run.context("make a thread that starts a process")?;
    drop(theirs);
    let call = match launch.failed {
        _ if launch.errno == 0 => {
            let pid = i32::try_from(launch.pid).unwrap_or_default();
            let told = super::process::receive_descriptor(&ours);
            return match told.and_then(|told| told.ok_or_else(|| Error::from_errno("recvmsg(pidfd)", libc::EMFILE))) {
                Ok((_, pidfd)) => Ok(Started { pid, pidfd }),
                Err(error) => {
                    end_unnamed(pid);
                    Err(error)
                }
            };
        }
        Call::EnterNetwork => "setns(network namespace)".to_owned(),
        Call::Clone => format!("clone3({})", describe(options)),
        Call::Execute => "fcntl() or execveat(stub)".to_owned(),
        Call::Send => "sendmsg(pidfd)".to_owned(),
    };
    Err(Error::from_errno(call, launch.errno))
}

/// Ends and collects a child of which there is no descriptor, because none is left to be had.
fn end_unnamed(pid: i32) {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { return };
    // Its number is its own until it is collected, by nobody else unless the host collects what it did not start.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    let wait = || rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    while matches!(wait(), Err(rustix::io::Errno::INTR)) {}
}

/// The thread: system calls and nothing else.
extern "C" fn run_thread(argument: *mut libc::c_void) {
    // SAFETY: the caller passes an exclusive reference and stands still until this function has ended.
    let launch = unsafe { &mut *argument.cast::<Launch>() };
    if launch.network >= 0 {
        // Before a new user namespace takes the right to do so away.
        let new_network = u64::from(libc::CLONE_NEWNET.cast_unsigned());
        let entered = raw(libc::SYS_setns, [launch.network.unsigned_abs().into(), new_network, 0, 0, 0]);
        if entered < 0 {
            launch.errno = thread::errno(entered);
            return;
        }
    }
    launch.arguments.pidfd = (&raw mut launch.pidfd) as u64;
    let arguments = &raw const launch.arguments;
    // SAFETY: the child runs `run_child` alone, on a stack of its own, with memory that lives until the caller goes on; this
    // thread stands still until the child has executed or exited (`CLONE_VFORK`), and the caller until this thread has ended.
    launch.pid = unsafe { clone3(arguments, launch) };
    if launch.pid < 0 {
        (launch.failed, launch.errno) = (Call::Clone, thread::errno(launch.pid));
        return;
    }
    // SAFETY: the child has written it through shared memory, so it is read as volatile.
    let errno = unsafe { std::ptr::read_volatile(&raw const launch.errno) };
    let mut sent = 0;
    if errno == 0 {
        sent = send_pidfd(launch);
        if sent >= 0 {
            return;
        }
        raw(libc::SYS_pidfd_send_signal, [launch.pidfd.unsigned_abs().into(), 9, 0, 0, 0]);
    }
    // `P_PIDFD`; `__WALL`: also a child that has not executed yet, which ends without a signal to its parent.
    let any = (libc::WEXITED | libc::__WALL).cast_unsigned();
    let child = [3, launch.pidfd.unsigned_abs().into(), 0, any.into(), 0];
    while raw(libc::SYS_waitid, child) == -i64::from(libc::EINTR) {}
    if sent < 0 {
        (launch.failed, launch.errno) = (Call::Send, thread::errno(sent));
    }
}

/// Two numbers, one behind the other in memory.
fn words(first: i32, second: i32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn send_pidfd(launch: &mut Launch) -> i64 {
    let message = &raw mut launch.message;
    // SAFETY: a pointer into what the reference is of; nothing else points there.
    let message = unsafe { &mut *message };
    message.byte = b'P';
    message.iov = libc::iovec { iov_base: (&raw mut message.byte).cast(), iov_len: 1 };
    message.header.msg_iov = &raw mut message.iov;
    message.header.msg_iovlen = 1;
    // struct cmsghdr: length, SOL_SOCKET, SCM_RIGHTS; then the descriptor.
    message.control = [20, words(libc::SOL_SOCKET, libc::SCM_RIGHTS), words(launch.pidfd, 0)];
    let control = &raw mut message.control;
    message.header.msg_control = control.cast();
    message.header.msg_controllen = 24;
    let no_signal = libc::MSG_NOSIGNAL.cast_unsigned();
    let arguments = [launch.socket.unsigned_abs().into(), (&raw const message.header) as u64, no_signal.into(), 0, 0];
    raw(libc::SYS_sendmsg, arguments)
}

const STACK: usize = 16 * 1024;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args`, as of Linux 5.7.
#[repr(C, align(8))]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

fn describe(options: &CloneOptions<'_>) -> String {
    let names = [
        (libc::CLONE_NEWUSER, "user"),
        (libc::CLONE_NEWNS, "mount"),
        (libc::CLONE_NEWPID, "pid"),
        (libc::CLONE_NEWNET, "network"),
        (libc::CLONE_NEWIPC, "ipc"),
        (libc::CLONE_NEWUTS, "uts"),
    ];
    let of = |(flag, name): &(i32, &'static str)| {
        (options.namespaces & u64::from(flag.cast_unsigned()) != 0).then_some(*name)
    };
    let names: Vec<_> = names.iter().filter_map(of).collect();
    let cgroup = if options.cgroup.is_some() { ", into a cgroup" } else { "" };
    format!("new namespaces: {}{cgroup}", names.join(" "))
}

/// The stub in a file that can be executed and not be changed.
pub(super) fn stub_file() -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Since Linux 6.3 a memory file must say that it wants to be executable; before, the flag is unknown.
    let file = match rustix::fs::memfd_create("gpucontainer", flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create("gpucontainer", flags),
        other => other,
    };
    let file = match file {
        Ok(file) => file,
        // `vm.memfd_noexec=2` forbids it.
        Err(rustix::io::Errno::ACCESS) => return stub_file_on_disk(),
        Err(e) => return Err(failed("memfd_create(stub)", e)),
    };
    super::program::write_all(&file, STUB)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(|e| failed("fcntl(stub, F_ADD_SEALS)", e))?;
    Ok(file)
}

/// The stub in a file without a name, read-only, for hosts that forbid executable memory files.
fn stub_file_on_disk() -> Result<OwnedFd> {
    let candidates = [std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from), Some("/run".into()), Some("/tmp".into())];
    let mut last = Error::from_errno("open(stub, O_TMPFILE)", libc::EACCES);
    for directory in candidates.into_iter().flatten() {
        let made = rustix::fs::open(&directory, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RWXU);
        match made.map_err(|e| failed(format!("open({directory:?}, O_TMPFILE)"), e)) {
            Ok(file) => {
                super::program::write_all(&file, STUB)?;
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                // Executing needs that nobody has it open for writing: `file` is closed when this returns.
                return rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(|e| failed(format!("open({path})"), e));
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// The highest capability that the running kernel knows; read once.
pub(crate) fn last_capability() -> Result<u32> {
    static LAST: OnceLock<u32> = OnceLock::new();
    if let Some(last) = LAST.get() {
        return Ok(*last);
    }
    let path = std::path::Path::new("/proc/sys/kernel/cap_last_cap");
    let text = super::fs::read_to_string(path)?;
    let last = text.trim().parse().map_err(|_| Error::from_errno(format!("read {path:?}: {text:?}"), libc::EINVAL))?;
    Ok(*LAST.get_or_init(|| last))
}

/// Makes the child, which runs `run_child` on its own stack; the parent gets the result.
///
/// # Safety
/// `arguments` describes a stack that nobody else uses.
unsafe fn clone3(arguments: *const CloneArguments, launch: *mut Launch) -> i64 {
    let (at, size) = (arguments as libc::c_long, size_of::<CloneArguments>() as libc::c_long);
    // SAFETY: the caller answers for the stack; `run_child` makes system calls only and does not return.
    unsafe { thread::clone(libc::SYS_clone3, [at, size, 0, 0, 0], run_child, launch.cast()) }
}

/// A system call whose arguments are addresses and flags.
fn raw(number: libc::c_long, arguments: [u64; 5]) -> i64 {
    let [a, b, c, d, e] = arguments;
    let arguments = [a.cast_signed(), b.cast_signed(), c.cast_signed(), d.cast_signed(), e.cast_signed()];
    thread::system_call(number, arguments)
}

/// `struct __user_cap_header_struct` and `struct __user_cap_data_struct[2]`.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// The child: raw system calls and nothing else, with the parent's memory and no thread of the parent's running it.
extern "C" fn run_child(launch: *mut libc::c_void) -> ! {
    // SAFETY: the parent keeps it alive and does not touch it until this process has executed or exited.
    let launch = unsafe { &mut *launch.cast::<Launch>() };
    if launch.capabilities != 0 {
        // In a new user namespace without maps, executing a file would drop every capability: nobody is root yet.
        let header = [CAPABILITY_VERSION_3, 0];
        let all = [u32::MAX; 6];
        raw(libc::SYS_capset, [header.as_ptr() as u64, all.as_ptr() as u64, 0, 0, 0]);
        let mut capability = 0;
        while capability < launch.capabilities {
            raw(libc::SYS_prctl, [47, 2, capability, 0, 0]); // PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE
            capability += 1;
        }
    }
    let [mut fd, stub] = launch.inherited;
    let mut result = 0;
    while result >= 0 && fd < stub {
        result = raw(libc::SYS_fcntl, [fd.unsigned_abs().into(), 2, 0, 0, 0]); // F_SETFD, not close-on-exec
        fd += 1;
    }
    if result >= 0 {
        let arguments = [
            stub.unsigned_abs().into(),
            c"".as_ptr() as u64,
            launch.argv as u64,
            launch.envp as u64,
            0x1000, // AT_EMPTY_PATH
        ];
        result = raw(libc::SYS_execveat, arguments);
    }
    launch.failed = Call::Execute;
    // SAFETY: as above; volatile, because this process ends right after.
    unsafe { std::ptr::write_volatile(&raw mut launch.errno, thread::errno(result)) };
    loop {
        raw(libc::SYS_exit_group, [127, 0, 0, 0, 0]);
    }
}

/// Collects a child that has ended or is about to; somebody else in the process may have done so already.
pub(crate) fn wait(pidfd: &impl AsFd) -> Result<()> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    // `__WALL`: also a child that has not executed yet, which ends without a signal to its parent.
    let any = WaitIdOptions::EXITED | WaitIdOptions::from_bits_retain(libc::__WALL.cast_unsigned());
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), any) {
            Ok(_) | Err(rustix::io::Errno::CHILD) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(failed("waitid(P_PIDFD)", e)),
        }
    }
}

/// Collects a process that has ended, if it is a child of the caller: whoever adopts the orphans of others has to.
pub(crate) fn collect_if_ended(pidfd: &impl AsFd) -> Result<()> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(_) | Err(rustix::io::Errno::CHILD | rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(failed("waitid(P_PIDFD, WNOHANG)", e)),
    }
}
