//! Calls of `bind(2)` in a container that wait for an answer from outside, and the answers.

#![allow(unsafe_code, reason = "ioctls that no crate has")]

use super::errno::failed;
use super::seccomp::{
    ALLOW, ARCHITECTURE_OFFSET, ARGUMENTS_OFFSET, Instruction, JUMP_EQUAL, JUMP_GREATER_OR_EQUAL, LOAD, NOTIFY,
    NUMBER_OFFSET, RETURN,
};
use crate::error::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

/// The shortest address of IPv4; those of IPv6 are longer.
const ADDRESS_MIN: u32 = 16;

/// The filter that lets every call through but `bind(2)` with an address that may be one of the internet's, which waits
/// for the filter's listener. A word an instruction, as programs of the stub have them.
pub(crate) fn bind_filter() -> Vec<u64> {
    let step = |code, k, jt, jf| Instruction { code, jt, jf, k };
    let bind = u32::try_from(libc::SYS_bind).unwrap_or(u32::MAX);
    let length = ARGUMENTS_OFFSET + 2 * 8 + if cfg!(target_endian = "big") { 4 } else { 0 };
    let program = [
        step(LOAD, ARCHITECTURE_OFFSET, 0, 0),
        step(JUMP_EQUAL, ARCHITECTURE, 0, 5),
        step(LOAD, NUMBER_OFFSET, 0, 0),
        step(JUMP_EQUAL, bind, 0, 3),
        step(LOAD, length, 0, 0),
        step(JUMP_GREATER_OR_EQUAL, ADDRESS_MIN, 0, 1),
        step(RETURN, NOTIFY, 0, 0),
        step(RETURN, ALLOW, 0, 0),
    ];
    program.iter().map(|instruction| instruction.to_word()).collect()
}

/// `struct seccomp_notif`.
#[repr(C)]
#[derive(Default)]
struct Notification {
    id: u64,
    thread: u32,
    flags: u32,
    number: i32,
    architecture: u32,
    instruction: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// `struct seccomp_notif_addfd`.
#[repr(C)]
struct Replacement {
    id: u64,
    flags: u32,
    source: u32,
    number: u32,
    number_flags: u32,
}

// _IOWR('!', 0, 80), _IOWR('!', 1, 24), _IOW('!', 2, 8), _IOW('!', 3, 24)
const RECEIVE: u32 = 0xC050_2100;
const SEND: u32 = 0xC018_2101;
const IS_VALID: u32 = 0x4008_2102;
const ADD_DESCRIPTOR: u32 = 0x4018_2103;
const _: () = assert!(size_of::<Notification>() == 80 && size_of::<Response>() == 24 && size_of::<Replacement>() == 24);

/// The call goes on as if there were no filter.
const CONTINUE: u32 = 1;
/// The descriptor takes the place of that number.
const IN_PLACE: u32 = 1;

/// A call of `bind(2)` that waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bind {
    id: u64,
    /// Its thread, as the caller numbers it; 0 if it is in a pid namespace that the caller cannot see into.
    pub(crate) thread: i32,
    /// The descriptor of the socket.
    pub(crate) descriptor: i32,
    /// Where in its memory the address is, and how many bytes.
    pub(crate) address: u64,
    pub(crate) length: u32,
}

fn control<T>(listener: BorrowedFd<'_>, request: u32, argument: &mut T) -> Result<i32, i32> {
    // SAFETY: the kernel reads and writes the bytes of `argument`, whose size is in the number of the request.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), request as libc::Ioctl, std::ptr::from_mut(argument)) };
    if result >= 0 { Ok(result) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)) }
}

/// What there is to do for a listener.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Next {
    /// A call waits.
    Bind(Bind),
    /// None does now.
    Nothing,
    /// No process is left that could make one.
    Over,
}

/// The next call that waits, without waiting for one.
pub(crate) fn next(listener: impl AsFd) -> Result<Next> {
    let listener = listener.as_fd();
    loop {
        let mut polled = [PollFd::new(&listener, PollFlags::IN)];
        match poll(&mut polled, Some(&Timespec::default())) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(failed("poll(seccomp listener)", e)),
        }
        let come = polled[0].revents();
        if !come.contains(PollFlags::IN) {
            let over = come.intersects(PollFlags::HUP | PollFlags::ERR);
            return Ok(if over { Next::Over } else { Next::Nothing });
        }
        // The kernel counts a call that was given up meanwhile, and does not wait for another one in its place.
        let mut notification = Notification::default();
        match control(listener, RECEIVE, &mut notification) {
            Ok(_) => return Ok(Next::Bind(Bind::of(&notification))),
            Err(libc::ENOENT | libc::EINTR) => {}
            Err(errno) => return Err(super::socket::error("ioctl(SECCOMP_IOCTL_NOTIF_RECV)", errno)),
        }
    }
}

impl Bind {
    fn of(notification: &Notification) -> Self {
        let [descriptor, address, length, ..] = notification.arguments;
        // The kernel takes the lower half of a register for an `int`.
        let half = |register: u64| u32::try_from(register & u64::from(u32::MAX)).unwrap_or_default();
        Self {
            id: notification.id,
            thread: notification.thread.cast_signed(),
            descriptor: half(descriptor).cast_signed(),
            address,
            length: half(length),
        }
    }

    /// Whether it still waits: what was read about its process before was then about the right one.
    pub(crate) fn waits(&self, listener: impl AsFd) -> bool {
        let mut id = self.id;
        control(listener.as_fd(), IS_VALID, &mut id).is_ok()
    }

    /// Puts a copy of `socket` in the place of the descriptor that is to be bound.
    pub(crate) fn replace(&self, listener: impl AsFd, socket: impl AsFd, close_on_exec: bool) -> Result<(), i32> {
        let mut replacement = Replacement {
            id: self.id,
            flags: IN_PLACE,
            source: socket.as_fd().as_raw_fd().cast_unsigned(),
            number: self.descriptor.cast_unsigned(),
            number_flags: if close_on_exec { libc::O_CLOEXEC.cast_unsigned() } else { 0 },
        };
        control(listener.as_fd(), ADD_DESCRIPTOR, &mut replacement).map(|_| ())
    }

    /// Answers: 0 is success, else an error number. Who does not wait any more needs no answer.
    pub(crate) fn answer(self, listener: impl AsFd, errno: i32) {
        self.send(listener.as_fd(), errno, 0);
    }

    /// Lets the kernel do what was called for.
    pub(crate) fn go_on(self, listener: impl AsFd) {
        self.send(listener.as_fd(), 0, CONTINUE);
    }

    fn send(self, listener: BorrowedFd<'_>, errno: i32, flags: u32) {
        let mut response = Response { id: self.id, value: 0, error: -errno, flags };
        if let Err(errno) = control(listener, SEND, &mut response) {
            // ENOENT: it was killed, or a signal has interrupted it.
            tracing::trace!(errno, "a call of bind(2) did not wait for its answer");
        }
    }
}
