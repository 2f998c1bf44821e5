//! What stays when the application runs: it waits for its end and for that of its owner, hands on signals, reaps orphans.

use crate::format::{ANSWER, ANSWERED, CONTINUED, FORWARD, HOLD, LEAVE, LET_GO, PLACES, STOPPED, TELL};
use crate::{EINTR, address, arch, call, exit, header};

const SIGKILL: u64 = 9;
const SIGSTOP: u64 = 19;
const SIGCHLD: u64 = 17;
const WNOHANG: u64 = 1;
const WUNTRACED: u64 = 2;
const WCONTINUED: u64 = 8;
/// `__WALL`: children of every kind, whatever signal they end with.
const WALL: u64 = 0x4000_0000;

/// `struct pollfd`.
#[repr(C)]
struct Poll {
    fd: i32,
    events: i16,
    revents: i16,
}

const POLLIN: i16 = 1;

/// Waits for the application and for the end of its owner, hands on signals, reaps orphans.
///
/// The owner lives as long as its end of the control socket is open and its pidfd does not poll readable, or until it
/// says on the socket that it leaves the application to itself. It also gives descriptors to be held, which are closed
/// when it says so, and when this process ends.
pub(crate) fn supervise(application: u64, control: u64, owner: u64, how: u64, first: u64) -> ! {
    let mut held = [-1_i32; PLACES];
    held[0] = first as i32;
    // All signals were blocked before this program began, so none can be lost.
    let all = u64::MAX;
    let signals = call(arch::SIGNALFD4, [u64::MAX, address(&all), 8, 0x8_0800, 0, 0]);
    if signals < 0 {
        kill_and_exit(application);
    }
    let mut poll = [const { Poll { fd: -1, events: POLLIN, revents: 0 } }; FIRST_ANSWERED + ANSWERED];
    poll[0].fd = signals as i32;
    poll[1].fd = control as i32;
    poll[2].fd = owner as i32;
    loop {
        reap(application, control, how & TELL != 0);
        let ready = call(arch::PPOLL, [address(&poll[0]), poll.len() as u64, 0, 0, 8, 0]);
        if ready < 0 {
            if ready == -EINTR {
                continue;
            }
            kill_and_exit(application);
        }
        // SAFETY: the kernel filled these in; the compiler must not think them still zero.
        let came = unsafe { core::ptr::read_volatile(&raw const poll) };
        if came[0].revents != 0 {
            take_signals(signals.cast_unsigned(), application, how);
        }
        if came[1].revents != 0 {
            match hear(control, &mut held) {
                Heard::Nothing => kill_and_exit(application),
                Heard::Place => {}
                Heard::Answer(listener) => take(&mut poll, listener),
                // From now on nobody's end is the application's.
                Heard::Leave => {
                    poll[1].fd = -1;
                    poll[2].fd = -1;
                }
            }
        } else if came[2].revents != 0 && poll[2].fd >= 0 {
            kill_and_exit(application);
        }
        let mut at = FIRST_ANSWERED;
        while at < came.len() {
            if came[at].revents != 0 && !let_go_on(came[at].fd as u64, came[at].revents) {
                poll[at].fd = -1;
            }
            at += 1;
        }
    }
}

/// The first of the descriptors that hear of calls.
const FIRST_ANSWERED: usize = 3;

/// Gives a descriptor that hears of calls a place among those that are waited for, if one is left.
fn take(poll: &mut [Poll; FIRST_ANSWERED + ANSWERED], listener: i32) {
    let mut at = FIRST_ANSWERED;
    while at < poll.len() {
        if poll[at].fd < 0 {
            poll[at].fd = listener;
            return;
        }
        at += 1;
    }
    call(arch::CLOSE, [listener as u64, 0, 0, 0, 0, 0]);
}

/// Lets the call that waits go on; `false` when no more can come.
fn let_go_on(listener: u64, came: i16) -> bool {
    const RECEIVE: u64 = 0xC050_2100;
    const SEND: u64 = 0xC018_2101;
    const CONTINUE: u64 = 1;
    if came & POLLIN == 0 {
        call(arch::CLOSE, [listener, 0, 0, 0, 0, 0]);
        return false;
    }
    // `struct seccomp_notif`, whose first word names the call.
    let notification = [0_u64; 10];
    if call(arch::IOCTL, [listener, RECEIVE, address(&notification), 0, 0, 0]) >= 0 {
        // SAFETY: the kernel filled the array.
        let id = unsafe { core::ptr::read_volatile(notification.as_ptr()) };
        // `struct seccomp_notif_resp`: the call, the value, the error below and the flags above.
        let response = [id, 0, CONTINUE << 32];
        call(arch::IOCTL, [listener, SEND, address(&response), 0, 0, 0]);
    }
    true
}

/// What the owner said.
enum Heard {
    /// Its end of the socket is closed.
    Nothing,
    Leave,
    /// Something about a descriptor, which was done.
    Place,
    /// A descriptor that hears of calls.
    Answer(i32),
}

/// `SOL_SOCKET`, and above it `SCM_RIGHTS`, as a control message begins with them.
const DESCRIPTORS: u64 = 1 | 1 << 32;

/// Receives one message.
fn hear(control: u64, held: &mut [i32; PLACES]) -> Heard {
    let bytes = [0_u8; 16];
    let iov = [address(&bytes), 16];
    // `struct cmsghdr` (its length, what it is) and one number.
    let space = [0_u64; 3];
    // `struct msghdr`: no name, one piece, the space.
    let message = [0, 0, address(&iov), 1, address(&space), 24, 0];
    if call(arch::RECVMSG, [control, address(&message), 0, 0, 0, 0]) <= 0 {
        return Heard::Nothing;
    }
    // SAFETY: the kernel filled these in; the compiler must not think them still zero.
    let (bytes, space) =
        unsafe { (core::ptr::read_volatile(&raw const bytes), core::ptr::read_volatile(&raw const space)) };
    let came = if space[1] == DESCRIPTORS { space[2] as i32 } else { -1 };
    let place = bytes[1] as usize;
    match bytes[0] {
        HOLD | LET_GO if place < PLACES => {
            let before = core::mem::replace(&mut held[place], came);
            if before >= 0 {
                call(arch::CLOSE, [before as u64, 0, 0, 0, 0, 0]);
            }
            Heard::Place
        }
        LEAVE => Heard::Leave,
        ANSWER if came >= 0 => Heard::Answer(came),
        _ => Heard::Place,
    }
}

/// Where `ssi_pid` is in `struct signalfd_siginfo`, in numbers of 32 bits: 0 for who is outside of the pid namespace.
const SENDER: usize = 3;

/// A parent that is told everything hands signals from outside on by itself, those of a terminal for both of us too.
fn take_signals(signals: u64, application: u64, how: u64) {
    let info = [0_u32; 32];
    while call(arch::READ, [signals, address(&info), 128, 0, 0, 0]) == 128 {
        // SAFETY: the kernel filled the array.
        let info = unsafe { core::ptr::read_volatile(&raw const info) };
        let signal = u64::from(info[0]);
        let forward = how & FORWARD != 0 && (how & TELL == 0 || info[SENDER] != 0);
        if forward && signal != SIGCHLD && signal != SIGSTOP {
            call(arch::KILL, [application, signal, 0, 0, 0, 0]);
        }
    }
}

/// Collects every child that has ended; ends with the application. If the owner wants to be told, it hears when the
/// application is stopped and when it goes on.
fn reap(application: u64, control: u64, tell: bool) {
    let also = if tell { WUNTRACED | WCONTINUED } else { 0 };
    loop {
        let status = 0_u32;
        let pid = call(arch::WAIT4, [u64::MAX, address(&status), WNOHANG | WALL | also, 0, 0, 0]);
        if pid <= 0 {
            return;
        }
        if pid.cast_unsigned() == application {
            // SAFETY: the kernel filled the number.
            let status = unsafe { core::ptr::read_volatile(&raw const status) };
            match status {
                0xffff => say(control, CONTINUED),
                stopped if stopped & 0xff == 0x7f => say(control, STOPPED),
                _ => report(status),
            }
        }
    }
}

/// Tells the owner in one byte. One that lets many lie has no use for another.
fn say(control: u64, word: u8) {
    const DONT_WAIT_NO_SIGNAL: u64 = 0x4040;
    call(arch::SENDTO, [control, address(&word), 1, DONT_WAIT_NO_SIGNAL, 0, 0]);
}

fn report(status: u32) -> ! {
    // SAFETY: the header is mapped; the parent reads it after this process ended.
    unsafe {
        (*header()).status = status;
        core::ptr::write_volatile(&raw mut (*header()).ended, 1);
    }
    let signal = status & 0x7f;
    exit(u64::from(if signal == 0 { status >> 8 & 0xff } else { 128 + signal }))
}

/// The owner is gone: so is the application. As process 1 this ends everything in the namespace with it.
fn kill_and_exit(application: u64) -> ! {
    call(arch::KILL, [application, SIGKILL, 0, 0, 0, 0]);
    let status = 0_u32;
    loop {
        let pid = call(arch::WAIT4, [application, address(&status), WALL, 0, 0, 0]);
        if pid != -EINTR {
            break;
        }
    }
    // SAFETY: the kernel filled the number.
    report(unsafe { core::ptr::read_volatile(&raw const status) })
}
