//! A thread for a few system calls that the caller's own must not make: those that change its network namespace or its
//! table of descriptors.
//!
//! It shares memory with the caller, who waits for its end, and has no thread-local state. Why not a child process: one
//! would live some microseconds longer than a host process that is killed, with every descriptor of it, and keep the ports
//! of the host taken. A process has not ended before all of its threads have, so whoever has waited for it finds all that
//! a thread held free.

#![allow(unsafe_code, reason = "a raw clone and the code of its thread")]

use super::signals::Everything;
use crate::error::{Error, Result};
use std::ffi::{c_int, c_long, c_void};

/// Which descriptors the thread has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Descriptors {
    /// The process's.
    Shared,
    /// Copies under the same numbers, in a table of its own.
    Copied,
}

/// What is run needs well below 1 KiB, in a debug build too.
const STACK_BYTES: usize = 16 << 10;
/// How often it is looked whether the thread has gone; it needs a few microseconds.
const LOOKS: u32 = 10_000;

/// Seen by whoever lists the threads in that time.
const NAME: &std::ffi::CStr = c"gpuc-brief";

#[repr(C)]
struct Errand {
    entry: extern "C" fn(*mut c_void),
    argument: *mut c_void,
    descriptors: Descriptors,
}

/// Runs `entry` in a thread to its end. It makes system calls only, by [`system_call`], and touches nothing but what
/// `argument` points to. All signals are blocked in it.
///
/// # Errors
/// That of `clone(2)`.
pub(super) fn run(entry: extern "C" fn(*mut c_void), argument: *mut c_void, descriptors: Descriptors) -> Result<()> {
    let mut stack = vec![0_u128; STACK_BYTES / 16];
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    let mut errand = Errand { entry, argument, descriptors };
    let mut flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FS | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    if descriptors == Descriptors::Shared {
        flags |= libc::CLONE_FILES;
    }
    let blocked = Everything::block();
    // SAFETY: `top` is the 16-byte aligned end of a stack that outlives the thread's use of memory, because CLONE_VFORK
    // keeps the caller here until that is over; what `errand` points to likewise. `entry` makes system calls only, so it
    // takes no lock and changes no thread-local of the thread whose registers it starts with.
    let thread =
        unsafe { clone(libc::SYS_clone, [flags.into(), top as c_long, 0, 0, 0], begin, (&raw mut errand).cast()) };
    drop(blocked);
    let Ok(thread @ 1..) = c_int::try_from(thread) else {
        return Err(Error::from_errno("clone(CLONE_THREAD | CLONE_VFORK)", errno(thread)));
    };
    await_end(thread);
    Ok(())
}

/// The thread's use of memory ends a little before the thread does, and a process of more threads than one may do less.
fn await_end(thread: c_int) {
    // SAFETY: without arguments.
    let process = unsafe { libc::getpid() };
    for _ in 0..LOOKS {
        if system_call(libc::SYS_tgkill, [process.into(), thread.into(), 0, 0, 0]) < 0 {
            return;
        }
        std::thread::yield_now();
    }
}

/// The thread: from here to the end nothing but system calls and plain arithmetic.
extern "C" fn begin(errand: *mut c_void) -> ! {
    // SAFETY: the caller passes an exclusive reference and stands still until this thread uses memory no more.
    let errand = unsafe { &*errand.cast::<Errand>() };
    system_call(libc::SYS_prctl, [libc::PR_SET_NAME.into(), NAME.as_ptr() as c_long, 0, 0, 0]);
    (errand.entry)(errand.argument);
    if errand.descriptors == Descriptors::Copied {
        // The caller may go on before the kernel would close them.
        system_call(libc::SYS_close_range, [0, c_long::from(u32::MAX), 0, 0, 0]);
    }
    loop {
        system_call(libc::SYS_exit, [0, 0, 0, 0, 0]);
    }
}

/// Closes all descriptors but those in `kept`, which is in ascending order. For a table of the thread's own.
///
/// # Safety
/// `kept` points to `count` numbers.
pub(super) unsafe fn close_others(kept: *const c_int, count: usize) -> c_long {
    let (mut from, mut at) = (0, 0);
    while at < count {
        // SAFETY: `at` is below `count`, which the caller answers for.
        let place = unsafe { kept.add(at) };
        // SAFETY: as above.
        let fd = c_long::from(unsafe { *place });
        if fd > from {
            let result = system_call(libc::SYS_close_range, [from, fd - 1, 0, 0, 0]);
            if result < 0 {
                return result;
            }
        }
        if fd >= from {
            from = fd + 1;
        }
        at += 1;
    }
    system_call(libc::SYS_close_range, [from, c_long::from(u32::MAX), 0, 0, 0])
}

/// The error number in a raw result.
pub(super) fn errno(result: c_long) -> c_int {
    c_int::try_from(result).unwrap_or(-libc::EINVAL).wrapping_neg()
}

/// Makes a thread or a process by `clone(2)` or `clone3(2)` with these arguments. It calls `entry(argument)` on its own
/// stack and never returns; the caller gets the result.
///
/// # Safety
/// The arguments name a stack that nobody else uses, and `entry` makes only raw system calls and does not return.
pub(super) unsafe fn clone(
    number: c_long,
    arguments: [c_long; 5],
    entry: extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> c_long {
    let [first, second, third, fourth, fifth] = arguments;
    let result: c_long;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: in the caller only what is declared changes; the thread leaves on its own stack and does not return.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") number => result,
            in("rdi") first, in("rsi") second, in("rdx") third, in("r10") fourth, in("r8") fifth,
            in("r12") argument, in("r13") entry,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "brk #1",
            "2:",
            in("x8") number,
            inlateout("x0") first => result,
            in("x1") second, in("x2") third, in("x3") fourth, in("x4") fifth,
            in("x20") argument, in("x21") entry,
        );
    }
    result
}

/// A system call that leaves `errno` alone, which the thread shares with the one that waits for it.
///
/// Always inlined: when the call is `clone` on the caller's own stack, the frame that it returns to must be one that
/// neither of the two processes leaves.
#[inline(always)]
pub(super) fn system_call(number: c_long, arguments: [c_long; 5]) -> c_long {
    let [first, second, third, fourth, fifth] = arguments;
    let result: c_long;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the calls made with it here and by what `run` is given touch only memory whose addresses are passed and which
    // outlives them.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of ten descriptors from a base on are open, and which of them are after closing all but two.
    #[repr(C)]
    struct Look {
        base: c_int,
        kept: [c_int; 2],
        result: c_long,
        before: [bool; 10],
        after: [bool; 10],
    }

    fn look(base: c_int) -> [bool; 10] {
        let mut seen = [false; 10];
        for (fd, seen) in (base..).zip(&mut seen) {
            *seen = system_call(libc::SYS_fcntl, [fd.into(), libc::F_GETFD.into(), 0, 0, 0]) >= 0;
        }
        seen
    }

    extern "C" fn close_and_look(argument: *mut c_void) {
        // SAFETY: the test passes an exclusive reference and waits.
        let it = unsafe { &mut *argument.cast::<Look>() };
        it.before = look(it.base);
        // SAFETY: the list has two numbers.
        it.result = unsafe { close_others(it.kept.as_ptr(), 2) };
        it.after = look(it.base);
    }

    #[test]
    fn copied_descriptors_are_closed_for_the_thread_alone() {
        let base = 500;
        // SAFETY: a copy of standard input, at numbers far above those of other tests.
        (base..base + 10).for_each(|fd| unsafe { assert_eq!(libc::dup2(0, fd), fd) });
        let kept = [base + 1, base + 7];
        let mut it = Look { base, kept, result: -1, before: [false; 10], after: [false; 10] };
        run(close_and_look, (&raw mut it).cast(), Descriptors::Copied).unwrap();
        assert_eq!((it.result, it.before), (0, [true; 10]));
        let kept: Vec<usize> = (0..10).filter(|&at| it.after[at]).collect();
        assert_eq!(kept, [1, 7]);
        assert_eq!(look(base), [true; 10]);
        // SAFETY: they were made above.
        (base..base + 10).for_each(|fd| unsafe { assert_eq!(libc::close(fd), 0) });
    }
}
