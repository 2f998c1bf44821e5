//! The stub: what runs between the clone and the application, and stays as its supervisor.
//!
//! A freestanding program of about four kilobytes. It maps the program that it was given (see `format.rs`), walks
//! its ops, and makes system calls, nothing else: it allocates nothing, locks nothing, and shares no memory with the
//! process that started it but the program itself. Built by the crate's build script with the same compiler.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "a program without a library beneath it consists of system calls")]

mod format;
mod members;
mod supervisor;

use format::{
    BASE, DENIED, Header, NO_REGISTER, ON_ERROR_ABSENT, ON_ERROR_EXISTS, ON_ERROR_FAIL, ON_ERROR_GO_ON, ON_ERROR_LOG,
    ON_ERROR_SEARCH, OP_CALL, OP_DEFAULT_SIGNALS, OP_EXPECT, OP_FAIL, OP_FORK, OP_IF_NEGATIVE, OP_OUTLIVE, OP_STORE,
    OP_SUPERVISE, Op, REGISTERS,
};
use supervisor::supervise;

#[cfg(target_arch = "x86_64")]
mod arch {
    core::arch::global_asm!(
        ".globl _start",
        "_start:",
        "xor ebp, ebp",
        "mov rdi, rsp",
        "and rsp, -16",
        "call {enter}",
        "ud2",
        enter = sym super::enter,
    );

    pub const CLONE: u64 = 56;
    pub const CLOSE: u64 = 3;
    pub const EXIT_GROUP: u64 = 231;
    pub const FCNTL: u64 = 72;
    pub const FSTAT: u64 = 5;
    pub const GETDENTS64: u64 = 217;
    pub const IOCTL: u64 = 16;
    pub const KILL: u64 = 62;
    pub const MMAP: u64 = 9;
    pub const OPENAT: u64 = 257;
    /// `O_DIRECTORY`.
    pub const O_DIRECTORY: u64 = 0x1_0000;
    /// `O_NOFOLLOW`.
    pub const O_NOFOLLOW: u64 = 0x2_0000;
    pub const PPOLL: u64 = 271;
    pub const READ: u64 = 0;
    pub const RECVMSG: u64 = 47;
    pub const RT_SIGACTION: u64 = 13;
    pub const SENDTO: u64 = 44;
    pub const SIGNALFD4: u64 = 289;
    pub const UNLINKAT: u64 = 263;
    pub const WAIT4: u64 = 61;
    /// Where `st_size` is in `struct stat`.
    pub const ST_SIZE: usize = 48;

    /// Makes a system call.
    ///
    /// # Safety
    /// The call with these arguments must not harm this process's memory.
    pub unsafe fn call(number: u64, a: &[u64; 6]) -> i64 {
        let result: i64;
        // SAFETY: the instruction clobbers what is declared, and the caller vouches for the call itself.
        unsafe {
            core::arch::asm!(
                "syscall",
                inlateout("rax") number => result,
                in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
                lateout("rcx") _, lateout("r11") _,
                options(nostack),
            );
        }
        result
    }

    /// Makes a child that shares this process's memory, which waits until the child has executed or ended. The child
    /// calls `entry(argument)` on the stack that ends at `stack`.
    ///
    /// # Safety
    /// Nobody else uses the stack, `entry` does not return, and `pidfd` is the address of a number.
    pub unsafe fn clone_sharing(
        flags: u64,
        stack: u64,
        pidfd: u64,
        entry: extern "C" fn(*const super::Fork) -> !,
        argument: *const super::Fork,
    ) -> i64 {
        let result: i64;
        // SAFETY: in the parent only what is declared changes; the child leaves on its own stack and does not return.
        unsafe {
            core::arch::asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "xor ebp, ebp",
                "mov rdi, r12",
                "call r13",
                "ud2",
                "2:",
                inlateout("rax") CLONE => result,
                in("rdi") flags, in("rsi") stack, in("rdx") pidfd, in("r10") 0_u64, in("r8") 0_u64,
                in("r12") argument, in("r13") entry,
                lateout("rcx") _, lateout("r11") _,
            );
        }
        result
    }

    /// The order of the arguments of `clone(2)`: flags, stack, parent's tid, child's tid, tls.
    pub fn clone_arguments(flags: u64, pidfd: u64) -> [u64; 6] {
        [flags, 0, pidfd, 0, 0, 0]
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    core::arch::global_asm!(
        ".globl _start",
        "_start:",
        "mov x29, xzr",
        "mov x30, xzr",
        "mov x0, sp",
        "bl {enter}",
        "brk #1",
        enter = sym super::enter,
    );

    pub const CLONE: u64 = 220;
    pub const CLOSE: u64 = 57;
    pub const EXIT_GROUP: u64 = 94;
    pub const FCNTL: u64 = 25;
    pub const FSTAT: u64 = 80;
    pub const GETDENTS64: u64 = 61;
    pub const IOCTL: u64 = 29;
    pub const KILL: u64 = 129;
    pub const MMAP: u64 = 222;
    pub const OPENAT: u64 = 56;
    /// `O_DIRECTORY`.
    pub const O_DIRECTORY: u64 = 0x4000;
    /// `O_NOFOLLOW`.
    pub const O_NOFOLLOW: u64 = 0x8000;
    pub const PPOLL: u64 = 73;
    pub const READ: u64 = 63;
    pub const RECVMSG: u64 = 212;
    pub const RT_SIGACTION: u64 = 134;
    pub const SENDTO: u64 = 206;
    pub const SIGNALFD4: u64 = 74;
    pub const UNLINKAT: u64 = 35;
    pub const WAIT4: u64 = 260;
    /// Where `st_size` is in `struct stat`.
    pub const ST_SIZE: usize = 48;

    /// Makes a system call.
    ///
    /// # Safety
    /// The call with these arguments must not harm this process's memory.
    pub unsafe fn call(number: u64, a: &[u64; 6]) -> i64 {
        let result: i64;
        // SAFETY: the instruction clobbers what is declared, and the caller vouches for the call itself.
        unsafe {
            core::arch::asm!(
                "svc 0",
                in("x8") number,
                inlateout("x0") a[0] => result,
                in("x1") a[1], in("x2") a[2], in("x3") a[3], in("x4") a[4], in("x5") a[5],
                options(nostack),
            );
        }
        result
    }

    /// Makes a child that shares this process's memory, which waits until the child has executed or ended. The child
    /// calls `entry(argument)` on the stack that ends at `stack`.
    ///
    /// # Safety
    /// Nobody else uses the stack, `entry` does not return, and `pidfd` is the address of a number.
    pub unsafe fn clone_sharing(
        flags: u64,
        stack: u64,
        pidfd: u64,
        entry: extern "C" fn(*const super::Fork) -> !,
        argument: *const super::Fork,
    ) -> i64 {
        let result: i64;
        // SAFETY: in the parent only what is declared changes; the child leaves on its own stack and does not return.
        unsafe {
            core::arch::asm!(
                "svc 0",
                "cbnz x0, 2f",
                "mov x29, xzr",
                "mov x0, x20",
                "blr x21",
                "brk #1",
                "2:",
                in("x8") CLONE,
                inlateout("x0") flags => result,
                in("x1") stack, in("x2") pidfd, in("x3") 0_u64, in("x4") 0_u64,
                in("x20") argument, in("x21") entry,
            );
        }
        result
    }

    /// The order of the arguments of `clone(2)`: flags, stack, parent's tid, tls, child's tid.
    pub fn clone_arguments(flags: u64, pidfd: u64) -> [u64; 6] {
        [flags, 0, pidfd, 0, 0, 0]
    }
}

const EINTR: i64 = 4;
const ENOENT: i64 = 2;
const EACCES: i64 = 13;
const EEXIST: i64 = 17;
const ENOTDIR: i64 = 20;
const CLONE_VM: u64 = 0x100;
const CLONE_VFORK: u64 = 0x4000;
const SIGNALS: u64 = 64;

fn call(number: u64, arguments: [u64; 6]) -> i64 {
    // SAFETY: the calls made here by name touch only memory that is passed to them and outlives them; those of a
    // program touch only the program's own memory, which whoever compiled the program upholds.
    unsafe { arch::call(number, &arguments) }
}

fn exit(code: u64) -> ! {
    loop {
        call(arch::EXIT_GROUP, [code, 0, 0, 0, 0, 0]);
    }
}

/// The header, which the parent reads through the memory file at any time.
fn header() -> *mut Header {
    BASE as *mut Header
}

fn address<T>(value: &T) -> u64 {
    core::ptr::from_ref(value) as u64
}

/// The kernel gives `argc` at the stack's top, then `argv`: `argv[1]` is the program's descriptor in decimal digits.
extern "C" fn enter(stack: *const u64) -> ! {
    // SAFETY: the kernel puts argc, then argc pointers to strings, at the stack pointer of a new program; the
    // library always gives two strings.
    let digits = unsafe { *stack.add(2) } as *const u8;
    let mut descriptor = 0_u64;
    let mut at = 0;
    loop {
        // SAFETY: the string ends with a NUL, at which the loop stops.
        let byte = unsafe { *digits.add(at) };
        if byte == 0 {
            break;
        }
        descriptor = descriptor * 10 + u64::from(byte - b'0');
        at += 1;
    }
    let stat = [0_u64; 32];
    if call(arch::FSTAT, [descriptor, address(&stat), 0, 0, 0, 0]) < 0 {
        exit(125);
    }
    // SAFETY: the kernel filled the array, and the compiler must not think it still zero.
    let size = unsafe { core::ptr::read_volatile(stat.as_ptr().add(arch::ST_SIZE / 8)) };
    // PROT_READ | PROT_WRITE; MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE.
    let mapped = call(arch::MMAP, [BASE, size, 3, 0x10_8001, descriptor, 0]);
    if mapped.cast_unsigned() != BASE {
        exit(125);
    }
    call(arch::CLOSE, [descriptor, 0, 0, 0, 0, 0]);
    walk(0, [0; REGISTERS])
}

/// How far the program has come where it forks.
struct Fork {
    next: u32,
    registers: [i64; REGISTERS],
}

/// The stack of a child that shares memory: it walks the rest of the program on it.
const CHILD_STACK: usize = 8192;

/// What such a child does.
extern "C" fn go_on(fork: *const Fork) -> ! {
    // SAFETY: the parent, whose it is, waits until this process has executed or ended.
    let fork = unsafe { &*fork };
    walk(fork.next, fork.registers)
}

/// Forks without a copy of the memory; the parent goes on when the child has executed or ended. Apart, so that the
/// child's own walk does not begin with such a stack.
#[inline(never)]
fn fork_sharing(flags: u64, pidfd: u64, fork: &Fork) -> i64 {
    let stack = core::mem::MaybeUninit::<[u128; CHILD_STACK / 16]>::uninit();
    let end = stack.as_ptr() as u64 + CHILD_STACK as u64;
    // SAFETY: the stack is this frame's, which waits; the compiler of the program gives an address within it.
    unsafe { arch::clone_sharing(flags | CLONE_VM | CLONE_VFORK, end, pidfd, go_on, fork) }
}

fn walk(start: u32, mut registers: [i64; REGISTERS]) -> ! {
    // SAFETY: the header was mapped before and is written only by this process and its one child.
    let (ops_at, count) = unsafe { ((*header()).ops_at, (*header()).ops) };
    let ops = (BASE + u64::from(ops_at)) as *const Op;
    let mut at = start;
    while at < count {
        // SAFETY: `at` is below the number of ops, all of which are in the mapping.
        let op = unsafe { &*ops.add(at as usize) };
        let mut a = op.arguments;
        let mut n = 0;
        while n < 6 {
            if op.registers & (1 << n) != 0 {
                a[n] = registers[(a[n] & 0xff) as usize].cast_unsigned();
            }
            n += 1;
        }
        let mut next = at + 1;
        let result = match op.code {
            OP_CALL => call(u64::from(op.number), a),
            OP_FORK => {
                let pid = if a[3] == 0 {
                    call(arch::CLONE, arch::clone_arguments(a[0], a[1]))
                } else {
                    // The child's own result is 0, as if it had come back here.
                    let mut fork = Fork { next, registers };
                    if op.out != NO_REGISTER {
                        fork.registers[op.out as usize] = 0;
                    }
                    fork_sharing(a[0], a[1], &fork)
                };
                if pid > 0 {
                    next = a[2] as u32;
                }
                pid
            }
            OP_SUPERVISE => supervise(a[0], a[1], a[2], a[3], a[4]),
            OP_OUTLIVE => members::outlive(a[0]),
            OP_STORE => {
                // SAFETY: the compiler of the program gives an aligned address within it.
                unsafe { core::ptr::write_volatile(a[0] as *mut u32, a[1] as u32) };
                0
            }
            OP_EXPECT => {
                // SAFETY: the compiler of the program gives an address within it.
                let byte = unsafe { core::ptr::read_volatile(a[0] as *const u8) };
                if u64::from(byte) == a[1] { 0 } else { -a[2].cast_signed() }
            }
            OP_FAIL if registers[DENIED as usize] != 0 => -EACCES,
            OP_FAIL => -a[0].cast_signed(),
            OP_DEFAULT_SIGNALS => {
                let action = [0_u64; 4];
                let mut signal = 1;
                while signal <= SIGNALS {
                    // Fails for SIGKILL and SIGSTOP alone, whose actions nobody can change.
                    call(arch::RT_SIGACTION, [signal, address(&action), 0, 8, 0, 0]);
                    signal += 1;
                }
                0
            }
            OP_IF_NEGATIVE => {
                if a[0].cast_signed() < 0 {
                    next = a[1] as u32;
                }
                0
            }
            _ => -22,
        };
        if op.out != NO_REGISTER {
            registers[op.out as usize] = result;
        }
        if result < 0 {
            match op.on_error {
                ON_ERROR_GO_ON => {}
                ON_ERROR_EXISTS if result == -EEXIST => {}
                ON_ERROR_ABSENT if result == -ENOENT => {}
                ON_ERROR_SEARCH if result == -ENOENT || result == -ENOTDIR => {}
                ON_ERROR_SEARCH if result == -EACCES => registers[DENIED as usize] = 1,
                ON_ERROR_LOG => {
                    // SAFETY: the header is mapped; only its address is taken.
                    let log = unsafe { &raw mut (*header()).log } as u64;
                    call(arch::READ, [a[0], log, format::LOG as u64, 0, 0, 0]);
                    fail(at, result)
                }
                ON_ERROR_FAIL => fail(at, result),
                _ => fail(at, result),
            }
        }
        at = next;
    }
    exit(0)
}

fn fail(op: u32, result: i64) -> ! {
    // SAFETY: the header is mapped; at most one process of a program fails first, and the parent reads after it ended.
    unsafe {
        (*header()).errno = result.unsigned_abs() as u32;
        core::ptr::write_volatile(&raw mut (*header()).failed, op + 1);
    }
    exit(127)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(125)
}

/// The compiler calls this for arrays; there is no library here to have it.
///
/// # Safety
/// `to` is valid for `count` bytes: the compiler's own calls see to it.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    let mut at = 0;
    while at < count {
        // SAFETY: within `count` bytes. Volatile, or the compiler would see a memset and call this function.
        unsafe { core::ptr::write_volatile(to.add(at), byte as u8) };
        at += 1;
    }
    to
}

/// See [`memset`].
///
/// # Safety
/// `from` and `to` are valid for `count` bytes and do not overlap: the compiler's own calls see to it.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    let mut at = 0;
    while at < count {
        // SAFETY: within `count` bytes of each.
        unsafe { core::ptr::write_volatile(to.add(at), *from.add(at)) };
        at += 1;
    }
    to
}
