//! Loading a system call filter, and the words of the kernel's filter machine.

#![allow(unsafe_code, reason = "seccomp(2) takes a pointer to the program")]

use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::mem::{offset_of, size_of};

pub(crate) const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
pub(crate) const LOG: u32 = libc::SECCOMP_RET_LOG;
pub(crate) const ERRNO: u32 = libc::SECCOMP_RET_ERRNO;
pub(crate) const TRAP: u32 = libc::SECCOMP_RET_TRAP;
pub(crate) const TRACE: u32 = libc::SECCOMP_RET_TRACE;
pub(crate) const NOTIFY: u32 = libc::SECCOMP_RET_USER_NOTIF;
pub(crate) const KILL_THREAD: u32 = libc::SECCOMP_RET_KILL_THREAD;
pub(crate) const KILL_PROCESS: u32 = libc::SECCOMP_RET_KILL_PROCESS;

// Flags of SECCOMP_SET_MODE_FILTER, from <linux/seccomp.h>.
pub(crate) const FLAG_LOG: u32 = 1 << 1;
pub(crate) const FLAG_SPEC_ALLOW: u32 = 1 << 2;
pub(crate) const FLAG_NEW_LISTENER: u32 = 1 << 3;
pub(crate) const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// The kernel refuses longer programs (`BPF_MAXINSNS`).
pub(crate) const MAX_INSTRUCTIONS: usize = 4096;
/// The kernel answers larger error numbers with this one (`MAX_ERRNO`).
pub(crate) const MAX_ERRNO: u16 = 4095;

// Instruction codes, from <linux/bpf_common.h>: class | size or operation | mode or source.
/// Load the word at offset `k` of the call's description.
pub(crate) const LOAD: u16 = 0x20;
/// Keep the bits of `k`.
pub(crate) const AND: u16 = 0x54;
/// Skip `k` instructions.
pub(crate) const JUMP: u16 = 0x05;
/// Compare with `k`: equal.
pub(crate) const JUMP_EQUAL: u16 = 0x15;
/// Compare with `k`: greater, unsigned.
pub(crate) const JUMP_GREATER: u16 = 0x25;
/// Compare with `k`: greater or equal, unsigned.
pub(crate) const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
/// Return `k`.
pub(crate) const RETURN: u16 = 0x06;

// Where the description of the call has what (`struct seccomp_data`).
/// The number of the call.
pub(crate) const NUMBER_OFFSET: u32 = 0;
/// The architecture.
pub(crate) const ARCHITECTURE_OFFSET: u32 = 4;
/// The first argument; the other five follow, 8 bytes each.
pub(crate) const ARGUMENTS_OFFSET: u32 = 16;

/// One instruction of the kernel's classic packet filter machine, laid out as the kernel reads it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[repr(C)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// How many instructions to skip if the comparison holds.
    pub jt: u8,
    /// How many instructions to skip if it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

impl Instruction {
    /// Its 8 bytes as one number.
    pub(crate) fn to_word(self) -> u64 {
        let (code, k) = (self.code.to_ne_bytes(), self.k.to_ne_bytes());
        u64::from_ne_bytes([code[0], code[1], self.jt, self.jf, k[0], k[1], k[2], k[3]])
    }
}

const _: () = assert!(size_of::<Instruction>() == size_of::<libc::sock_filter>());
const _: () = assert!(offset_of!(Instruction, k) == offset_of!(libc::sock_filter, k));

/// See [`Filter::apply_to_current_thread`](crate::seccomp::Filter::apply_to_current_thread).
pub(crate) fn apply_to_current_thread(program: &[Instruction], flags: u32) -> Result<()> {
    if flags & FLAG_NEW_LISTENER != 0 {
        return Err(Error::new(ErrorKind::Unsupported, "load filter: it needs a listener, and nobody would listen"));
    }
    let Ok(len) = u16::try_from(program.len()) else {
        return Err(Error::new(ErrorKind::InvalidArgument, "load filter: too many instructions"));
    };
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    // SAFETY: the call takes four numbers and no pointer.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(last_error("prctl(PR_SET_NO_NEW_PRIVS)"));
    }
    // SAFETY: `program` and the slice it points to live until the call returns; the kernel copies the
    // `len` instructions, laid out as it wants them by the assertions above, and writes to none.
    let loaded = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if loaded != 0 {
        return Err(last_error("seccomp(SECCOMP_SET_MODE_FILTER)"));
    }
    Ok(())
}

fn last_error(call: &str) -> Error {
    Error::from_io(call, std::io::Error::last_os_error())
}
