//! What a process needs that stands for another one: the signals that arrive for it, and an end like the other's.

#![allow(unsafe_code, reason = "signals that libc keeps for itself, descriptors by number, and the end of the process")]

use super::errno::failed;
use crate::error::{Error, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::{AddressFamily, sockopt};
use std::ffi::{c_int, c_long};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

pub(crate) const SIGSTOP: i32 = libc::SIGSTOP;
pub(crate) const SIGCONT: i32 = libc::SIGCONT;
/// What stops a process that does not catch it, unless nobody could let it go on.
pub(crate) const STOPPING: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// A signal that came for the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived {
    pub(crate) signal: i32,
    code: i32,
    /// Sender and its user, as `siginfo_t` has them.
    sender: u64,
    /// What was sent with it.
    value: u64,
}

impl Arrived {
    /// Whether the kernel made it for the process group, as the keys of a terminal do.
    pub(crate) fn is_from_terminal(self) -> bool {
        self.code == libc::SI_KERNEL
    }

    /// Whether it is about this process alone: an end of one of its children, a timer of its own, or what it wrote to
    /// nobody.
    pub(crate) fn is_own(self) -> bool {
        let written =
            self.signal == libc::SIGPIPE && self.sender & u64::from(u32::MAX) == u64::from(std::process::id());
        written || (self.signal == libc::SIGCHLD && self.code > 0) || self.code == libc::SI_TIMER
    }
}

/// Takes the signals of a process with one thread; dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Signals {
    arrivals: OwnedFd,
    before: u64,
    /// Those that the process ignores, as a mask.
    ignored: u64,
    /// The mask is the thread's own, so the guard must not leave it.
    _thread: std::marker::PhantomData<*const ()>,
}

const ALL: u64 = u64::MAX;

fn bit(signal: c_int) -> u64 {
    1 << (signal - 1)
}

fn set_mask(mask: u64) -> u64 {
    let mut before = 0_u64;
    // SAFETY: both addresses are of 8 bytes, which is the size that is given.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, &raw mut before, 8) };
    before
}

impl Signals {
    /// From now on signals wait, but for `SIGCHLD`: other programs, which inherit this, may not run without it.
    pub(crate) fn take() -> Result<Self> {
        let (all, flags) = (ALL, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        // SAFETY: the address is of 8 bytes, which is the size that is given.
        let fd = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const all, 8, flags) };
        let Ok(fd @ 0..) = c_int::try_from(fd) else {
            return Err(Error::from_errno("signalfd4", last_error()));
        };
        // SAFETY: the kernel has just made it, and nobody else knows the number.
        let arrivals = unsafe { OwnedFd::from_raw_fd(fd) };
        // Run times of languages ignore that one for what they write themselves.
        let ignored = (1..=64).filter(|signal| *signal != libc::SIGPIPE && is_ignored(*signal)).map(bit).sum();
        let before = set_mask(ALL & !bit(libc::SIGCHLD));
        Ok(Self { arrivals, before, ignored, _thread: std::marker::PhantomData })
    }

    /// From now on that one waits too.
    pub(crate) fn take_all(&self) {
        set_mask(ALL);
    }

    /// The next one that came, but for those that the process ignored when they were taken: to them nothing happens, as
    /// it would not after `execve(2)`.
    pub(crate) fn next(&self) -> Result<Option<Arrived>> {
        loop {
            let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
            match rustix::io::read(&self.arrivals, &mut info[..]) {
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(e) => return Err(failed("read(signalfd)", e)),
            }
            // SAFETY: the kernel fills the structure, which is of plain numbers.
            let info: libc::signalfd_siginfo = unsafe { std::mem::transmute(info) };
            let signal = info.ssi_signo.cast_signed();
            if (1..=64).contains(&signal) && self.ignored & bit(signal) == 0 {
                let sender = u64::from(info.ssi_pid) | u64::from(info.ssi_uid) << 32;
                return Ok(Some(Arrived { signal, code: info.ssi_code, sender, value: info.ssi_ptr }));
            }
        }
    }

    /// Whether `SIGCONT` has come and was not taken yet.
    fn has_to_go_on() -> bool {
        let mut pending = 0_u64;
        // SAFETY: the address is of 8 bytes, which is the size that is given.
        unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut pending, 8) };
        pending & bit(SIGCONT) != 0
    }

    /// Stops this process until somebody lets it go on, unless somebody has already.
    pub(crate) fn stop(&self) {
        if !Self::has_to_go_on() {
            let sent = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
            debug_assert_eq!(sent, Ok(()), "a process may stop itself");
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        set_mask(self.before);
    }
}

fn is_ignored(signal: c_int) -> bool {
    // SAFETY: all zeroes are a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the action is only asked for.
    let known = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    known == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Waits until a signal came, or one of two descriptors is readable or at its end: whether each is.
pub(crate) fn await_any(signals: &Signals, first: impl AsFd, second: Option<impl AsFd>) -> Result<[bool; 3]> {
    let mut polled = vec![PollFd::new(&signals.arrivals, PollFlags::IN), PollFd::new(&first, PollFlags::IN)];
    polled.extend(second.iter().map(|second| PollFd::new(second, PollFlags::IN)));
    loop {
        match poll(&mut polled, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(e) => return Err(failed("poll", e)),
        }
    }
    Ok([0, 1, 2].map(|at| polled.get(at).is_some_and(|polled| !polled.revents().is_empty())))
}

/// `PIDFD_SIGNAL_PROCESS_GROUP` of Linux 6.9.
const PROCESS_GROUP: u64 = 4;

/// Sends what came for this process to another one, with what was sent with it. One that has ended is no error.
pub(crate) fn hand_on(pidfd: impl AsFd, arrived: Arrived) -> Result<()> {
    // `siginfo_t`: only who sends it by `sigqueue` may say what is in there.
    let mut info = [0_u64; 16];
    info[0] = u64::from(arrived.signal.unsigned_abs());
    info[1] = u64::from(libc::SI_QUEUE.cast_unsigned());
    (info[2], info[3]) = (arrived.sender, arrived.value);
    let info = if arrived.code == libc::SI_QUEUE { info.as_ptr() } else { std::ptr::null() };
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the kernel reads the structure, if there is one, which has its size and alignment.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, arrived.signal, info, 0) };
    outcome(sent, arrived.signal)
}

/// Sends a signal to the process group that a process leads; `pid` is its number. One that has ended is no error.
pub(crate) fn signal_group(pidfd: impl AsFd, pid: i32, signal: i32) -> Result<()> {
    let (fd, none) = (pidfd.as_fd().as_raw_fd(), std::ptr::null::<u64>());
    // SAFETY: numbers, and a structure that is not there.
    let mut sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, none, PROCESS_GROUP) };
    if sent < 0 && last_error() == libc::EINVAL && pid > 1 {
        // SAFETY: numbers alone. The number is the leader's as long as it was not collected, and after that until the
        // kernel has given away all others.
        sent = unsafe { libc::kill(-pid, signal) }.into();
    }
    outcome(sent, signal)
}

fn last_error() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn outcome(sent: c_long, signal: i32) -> Result<()> {
    let error = last_error();
    if sent >= 0 || error == libc::ESRCH {
        return Ok(());
    }
    Err(Error::from_errno(format!("pidfd_send_signal({signal})"), error))
}

/// How many threads the calling process has.
pub(crate) fn thread_count() -> Result<usize> {
    super::fs::read_dir(Path::new("/proc/self/task")).map(|threads| threads.len())
}

/// What the process has open at whose other end somebody may wait.
#[derive(Debug)]
pub(crate) struct Channels(Vec<c_int>);

impl Channels {
    /// Pipes, terminals and sockets that are open now, but for standard input, output and error, and for sockets by which
    /// this library speaks to the kernel.
    pub(crate) fn open_now() -> Result<Self> {
        let mut found = Vec::new();
        for path in super::fs::read_dir(Path::new("/proc/self/fd"))? {
            let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            let Some(number @ 3..) = number else { continue };
            // SAFETY: it is open, or was until now; then the calls fail.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
            let Ok(stat) = rustix::fs::fstat(fd) else { continue };
            let channel = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Fifo => true,
                FileType::CharacterDevice => rustix::termios::isatty(fd),
                FileType::Socket => sockopt::socket_domain(fd) != Ok(AddressFamily::NETLINK),
                _ => false,
            };
            if channel {
                found.push(number);
            }
        }
        Ok(Self(found))
    }

    /// Adds another one.
    pub(crate) fn add(&mut self, fd: impl AsFd) {
        self.0.push(fd.as_fd().as_raw_fd());
    }

    /// Lets them, and standard input, output and error, lead nowhere: whoever is at another end hears from then
    /// on of the application alone. For a process that never returns to what uses them.
    pub(crate) fn close(self) {
        let Ok(null) = super::fs::open_read_write(Path::new("/dev/null")) else { return };
        for number in self.0.into_iter().chain(0..3) {
            // SAFETY: whoever opened it does not use it any more in this process, and may still close it.
            unsafe { libc::dup2(null.as_raw_fd(), number) };
        }
    }
}

/// Ends the process as another one has ended whose wait status is `status`: with the same exit code, or by the same
/// signal and without a core dump. Nothing that was registered for the end of the process is run.
pub(crate) fn end_as(status: i32) -> ! {
    let signal = status & 0x7f;
    if signal == 0 {
        // SAFETY: the process ends here.
        unsafe { libc::_exit(status >> 8 & 0xff) }
    }
    use rustix::process::{DumpableBehavior, Resource, Rlimit, getpid, kill_process};
    // What fails of this leaves a core dump, or the code at the end.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    // SAFETY: the default action is no function.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    set_mask(ALL & !bit(signal));
    // SAFETY: the number is that of a signal, which killed a process.
    let _ = kill_process(getpid(), unsafe { rustix::process::Signal::from_raw_unchecked(signal) });
    // Process 1 of a namespace is not killed by its own signals.
    // SAFETY: the process ends here.
    unsafe { libc::_exit(128 + signal) }
}
