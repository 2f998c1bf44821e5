//! A thread for a few system calls that the caller's own must not make: those that change its network namespace or its
//! table of descriptors.
//!
//! It shares memory with the caller, who waits for its end, and has no thread-local state. Why not a child process: one
//! would live some microseconds longer than a host process that is killed, with every descriptor of it, and keep the ports
//! of the host taken. A process has not ended before all of its threads have, so whoever has waited for it finds all that
//! a thread held free.

#![allow(unsafe_code, reason = "a raw clone and the code of its thread")]

mod table;

use self::table::Table;
use super::signals::Everything;
use crate::error::{Error, Result};
use std::ffi::{c_int, c_long, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

/// Which descriptors the thread has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Descriptors<'a> {
    /// The process's.
    Shared,
    /// Some alone, in a table of its own.
    Chosen(Chosen<'a>),
}

/// Descriptors that a thread has in a table of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chosen<'a> {
    /// Their numbers in the process.
    pub(super) of_process: &'a [c_int],
    /// The number that the first has for the thread; the others follow it. All are closed on exec.
    pub(super) first: c_int,
    /// Whether it also has what the process has as standard input, output and error. Where that is nothing, or nothing that
    /// outlives an exec, a copy of the one of this index is there, so that what is opened later has other numbers.
    pub(super) standard: Option<usize>,
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
    table: *mut Table,
}

/// Runs `entry` in a thread to its end. It makes system calls only, by [`system_call`], and touches nothing but what
/// `argument` points to. All signals are blocked in it.
///
/// # Errors
/// That of `clone(2)`, or of making its table of descriptors.
pub(super) fn run(
    entry: extern "C" fn(*mut c_void),
    argument: *mut c_void,
    descriptors: Descriptors<'_>,
) -> Result<()> {
    let mut errand = Errand { entry, argument, table: std::ptr::null_mut() };
    let Descriptors::Chosen(chosen) = descriptors else { return start(&mut errand, libc::CLONE_FILES) };
    let mut table = Table::of(chosen);
    errand.table = &raw mut table;
    if !COPIES.load(Ordering::Relaxed) {
        start(&mut errand, libc::CLONE_FILES)?;
        if !table.is_refused() {
            return table.into_result();
        }
        COPIES.fetch_or(table.is_refused_for_good(), Ordering::Relaxed);
        table.reset();
    }
    table.copied = true;
    start(&mut errand, 0)?;
    table.into_result()
}

/// Whether this host keeps a thread from fetching a descriptor of its own process, as a filter of system calls may.
static COPIES: AtomicBool = AtomicBool::new(false);

fn start(errand: &mut Errand, files: c_int) -> Result<()> {
    let mut stack = vec![0_u128; STACK_BYTES / 16];
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FS | libc::CLONE_SIGHAND | libc::CLONE_THREAD | files;
    let blocked = Everything::block();
    // SAFETY: `top` is the 16-byte aligned end of a stack that outlives the thread's use of memory, because CLONE_VFORK
    // keeps the caller here until that is over; what `errand` points to likewise. `entry` makes system calls only, so it
    // takes no lock and changes no thread-local of the thread whose registers it starts with.
    let thread = unsafe {
        clone(libc::SYS_clone, [flags.into(), top as c_long, 0, 0, 0], begin, std::ptr::from_mut(errand).cast())
    };
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
    // SAFETY: it is null or likewise.
    match unsafe { errand.table.as_mut() } {
        None => (errand.entry)(errand.argument),
        Some(table) => {
            table.lay();
            if table.errno == 0 {
                (errand.entry)(errand.argument);
            }
            // The caller may go on before the kernel would close them. If it was to have a table of its own and got none,
            // there is nothing of its own to close.
            if table.own {
                system_call(libc::SYS_close_range, [0, c_long::from(u32::MAX), 0, 0, 0]);
            }
        }
    }
    loop {
        system_call(libc::SYS_exit, [0, 0, 0, 0, 0]);
    }
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
    use std::os::fd::AsRawFd;

    const ASKED: usize = 20;

    /// Which of the first descriptors the thread has, each with its inode.
    #[repr(C)]
    struct Look {
        inodes: [u64; ASKED],
    }

    extern "C" fn look(argument: *mut c_void) {
        // SAFETY: the test passes an exclusive reference and waits.
        let it = unsafe { &mut *argument.cast::<Look>() };
        for (fd, inode) in (0..).zip(&mut it.inodes) {
            // SAFETY: a structure of numbers, which the kernel fills.
            let mut found: libc::stat = unsafe { std::mem::zeroed() };
            if system_call(libc::SYS_fstat, [fd, (&raw mut found) as c_long, 0, 0, 0]) == 0 {
                *inode = found.st_ino;
            }
        }
    }

    #[test]
    fn a_thread_has_what_is_chosen_and_nothing_else() {
        let files: Vec<_> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
        let inode =
            |fd: c_int| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(format!("/proc/self/fd/{fd}")).unwrap());
        let numbers: Vec<c_int> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        for copied in [false, true] {
            COPIES.store(copied, Ordering::Relaxed);
            for (first, standard) in [(3, Some(0)), (11, Some(1)), (0, None), (7, None)] {
                let mut it = Look { inodes: [0; ASKED] };
                // In reverse, so that one is where another is to be.
                let chosen: Vec<c_int> = numbers.iter().rev().copied().collect();
                let descriptors = Descriptors::Chosen(Chosen { of_process: &chosen, first, standard });
                run(look, (&raw mut it).cast(), descriptors).unwrap();
                let mut expected = [0; ASKED];
                if standard.is_some() {
                    (0..3).zip(&mut expected).for_each(|(fd, expected)| *expected = inode(fd));
                }
                for (at, fd) in chosen.iter().enumerate() {
                    expected[usize::try_from(first).unwrap() + at] = inode(*fd);
                }
                assert_eq!(it.inodes, expected, "{copied} {first} {standard:?}");
            }
        }
        COPIES.store(false, Ordering::Relaxed);
        assert_eq!(open(), before);
        let mut it = Look { inodes: [0; ASKED] };
        let descriptors =
            Descriptors::Chosen(Chosen { of_process: &[numbers[0], 999_999], first: 3, standard: Some(0) });
        let error = run(look, (&raw mut it).cast(), descriptors).unwrap_err();
        assert_eq!((error.errno(), it.inodes), (Some(libc::EBADF), [0; ASKED]));
        assert_eq!(open(), before);
    }
}
