//! Starting the stub: one `clone3` that shares memory and blocks the calling thread until the stub runs.
//!
//! Nothing but system calls happens between the clone and the stub: no allocation, no lock, no signal handler. The
//! child's own memory is a stack made beforehand; every signal is blocked around it. Neither the size of the host nor
//! its threads matter, and nothing that the child does can change the host: what would (uid changes, dumpable flag,
//! out-of-memory score) happens only in the stub, which has memory of its own.

#![allow(unsafe_code, reason = "a raw clone and the code of its child")]

use super::errno::failed;
use super::program::Finished;
use super::signals::Everything;
use super::thread::{self, Descriptors};
use crate::error::{Error, Result};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;

static STUB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stub"));

/// `execveat`, `close_range` and the like are called with these alone; they live on the parent's stack.
#[repr(C)]
struct Child {
    stub: i32,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
    inherited: *const i32,
    inherited_count: usize,
    /// 0, or 1 + the highest capability to keep through `execveat` in a new user namespace.
    capabilities: u64,
    /// The error number of a call that failed here; written before the child exits.
    errno: i32,
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
/// # Errors
/// The error of `clone3`, or of executing the stub; in both cases no process is left.
pub(crate) fn start(program: &Finished<'_>, options: &CloneOptions<'_>) -> Result<Started> {
    let stub = stub_file()?;
    let number = CString::new(program.file().as_raw_fd().to_string()).unwrap_or_default();
    let argv = [c"gpucontainer".as_ptr(), number.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null()];
    let inherited = program.inherited();
    let new_user = u64::from(libc::CLONE_NEWUSER.cast_unsigned());
    let mut child = Child {
        stub: stub.as_raw_fd(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        inherited: inherited.as_ptr(),
        inherited_count: inherited.len(),
        capabilities: if options.namespaces & new_user == 0 { 0 } else { u64::from(last_capability()?) + 1 },
        errno: 0,
    };

    let mut pidfd = -1_i32;
    let mut flags = u64::from((libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD).cast_unsigned());
    flags |= options.namespaces | CLONE_CLEAR_SIGHAND;
    if options.cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    // Pages of its own, so that an overflow meets the allocator's guard or nothing of ours that is in use.
    let mut stack = vec![0_u128; STACK / 16];
    let arguments = CloneArguments {
        flags,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        // The kernel replaces this with SIGCHLD at the stub's exec; 0 keeps even the short life before quiet.
        exit_signal: 0,
        stack: stack.as_mut_ptr() as u64,
        stack_size: STACK as u64,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: options.cgroup.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    let blocked = Everything::block();
    let pid = match options.network {
        // SAFETY: the child runs `run_child` alone, on a stack of its own, with memory that lives until this call
        // returns, which `CLONE_VFORK` delays until the child has executed or exited.
        None => Ok(unsafe { clone3(&arguments, &raw mut child) }),
        Some(network) => clone_within(network, arguments, &mut child),
    };
    drop(blocked);
    drop(stack);
    let pid = pid?;

    if pid < 0 {
        let errno = i32::try_from(-pid).unwrap_or(libc::EIO);
        return Err(Error::from_errno(format!("clone3({})", describe(options)), errno));
    }
    // SAFETY: the kernel stored a new descriptor here, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: `child` is written by the other process through shared memory, so it is read as volatile.
    let errno = unsafe { std::ptr::read_volatile(&raw const child.errno) };
    if errno != 0 {
        wait(&pidfd)?;
        return Err(Error::from_errno("execveat(stub)", errno));
    }
    Ok(Started { pid: i32::try_from(pid).unwrap_or_default(), pidfd })
}

/// What the thread is told, and what it tells.
#[repr(C)]
struct Within<'a> {
    network: i32,
    entered: i64,
    arguments: CloneArguments,
    child: &'a mut Child,
    pid: i64,
}

/// The same in another network namespace, which must be entered before a new user namespace takes the right to do so
/// away. A thread of the caller's enters it and makes the stub's process.
fn clone_within(network: BorrowedFd<'_>, arguments: CloneArguments, child: &mut Child) -> Result<i64> {
    let mut within = Within { network: network.as_raw_fd(), entered: 0, arguments, child, pid: 0 };
    thread::run(run_within, (&raw mut within).cast(), Descriptors::Shared)?;
    if within.entered < 0 {
        let errno = i32::try_from(-within.entered).unwrap_or(libc::EIO);
        return Err(Error::from_errno("setns(network namespace)", errno));
    }
    Ok(within.pid)
}

/// The thread: system calls and nothing else.
extern "C" fn run_within(argument: *mut libc::c_void) {
    // SAFETY: the caller passes an exclusive reference and stands still until this function has ended.
    let within = unsafe { &mut *argument.cast::<Within<'_>>() };
    let new_network = u64::from(libc::CLONE_NEWNET.cast_unsigned());
    within.entered = raw(libc::SYS_setns, [within.network.unsigned_abs().into(), new_network, 0, 0, 0]);
    if within.entered >= 0 {
        // SAFETY: as where the caller makes the child itself; this thread stands still as long as the child needs it.
        within.pid = unsafe { clone3(&within.arguments, &raw mut *within.child) };
    }
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
unsafe fn clone3(arguments: &CloneArguments, child: *mut Child) -> i64 {
    let (at, size) = (std::ptr::from_ref(arguments) as libc::c_long, size_of::<CloneArguments>() as libc::c_long);
    // SAFETY: the caller answers for the stack; `run_child` makes system calls only and does not return.
    unsafe { thread::clone(libc::SYS_clone3, [at, size, 0, 0, 0], run_child, child.cast()) }
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
extern "C" fn run_child(child: *mut libc::c_void) -> ! {
    // SAFETY: the parent keeps it alive and does not touch it until this process has executed or exited.
    let child = unsafe { &mut *child.cast::<Child>() };
    if child.capabilities != 0 {
        // In a new user namespace without maps, executing a file would drop every capability: nobody is root yet.
        let header = [CAPABILITY_VERSION_3, 0];
        let all = [u32::MAX; 6];
        raw(libc::SYS_capset, [header.as_ptr() as u64, all.as_ptr() as u64, 0, 0, 0]);
        let mut capability = 0;
        while capability < child.capabilities {
            raw(libc::SYS_prctl, [47, 2, capability, 0, 0]); // PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE
            capability += 1;
        }
    }
    let mut result = raw(libc::SYS_close_range, [3, u64::from(u32::MAX), 4, 0, 0]); // CLOSE_RANGE_CLOEXEC
    let mut at = 0;
    while result >= 0 && at < child.inherited_count {
        // SAFETY: `at` is below the length of the list.
        let place = unsafe { child.inherited.add(at) };
        // SAFETY: the parent's list stays until this process has executed or exited.
        let fd = unsafe { *place };
        result = raw(libc::SYS_fcntl, [fd.unsigned_abs().into(), 2, 0, 0, 0]); // F_SETFD, not close-on-exec
        at += 1;
    }
    if result >= 0 {
        let arguments = [
            child.stub.unsigned_abs().into(),
            c"".as_ptr() as u64,
            child.argv as u64,
            child.envp as u64,
            0x1000, // AT_EMPTY_PATH
        ];
        result = raw(libc::SYS_execveat, arguments);
    }
    let errno = i32::try_from(-result).unwrap_or(libc::EIO);
    // SAFETY: as above; volatile, because this process ends right after.
    unsafe { std::ptr::write_volatile(&raw mut child.errno, errno) };
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
