//! Programs for the kernel's own machine, as far as control groups need them.

#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper in the crates that are used")]

use crate::error::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// Numbers of `linux/bpf.h`; they are the same on every architecture.
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Groups below may have programs too, and all of them must allow.
const ALLOW_MULTI: u32 = 1 << 1;
const REPLACE: u32 = 1 << 2;

/// One instruction: operation, registers (destination in the low half), offset, immediate value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

/// The part of `union bpf_attr` that loads a program, up to the members that are used.
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The part of `union bpf_attr` that attaches a program.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
}

/// Loads a program that decides on the use of devices.
///
/// # Errors
/// With the words of the kernel's verifier where it refused the program.
pub(crate) fn load_device_program(instructions: &[Instruction]) -> Result<OwnedFd> {
    match load(instructions, &mut []) {
        Ok(program) => Ok(program),
        Err(errno) if errno == libc::EINVAL || errno == libc::EACCES => {
            // Only now with a log, which costs time and has to be large enough.
            let mut log = vec![0_u8; 64 << 10];
            match load(instructions, &mut log) {
                Ok(program) => Ok(program),
                Err(errno) => {
                    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
                    let words = String::from_utf8_lossy(&log[..end]).trim().replace('\n', " | ");
                    let error = Error::from_errno("bpf(BPF_PROG_LOAD, device program)", errno);
                    Err(if words.is_empty() {
                        error
                    } else {
                        error.context(format!("the kernel's verifier says {words:?}"))
                    })
                }
            }
        }
        Err(errno) => Err(Error::from_errno("bpf(BPF_PROG_LOAD, device program)", errno)),
    }
}

fn load(instructions: &[Instruction], log: &mut [u8]) -> Result<OwnedFd, i32> {
    const LICENSE: &[u8] = b"MIT\0";
    let mut name = [0_u8; 16];
    name[..12].copy_from_slice(b"gpuc_devices");
    let attributes = LoadAttributes {
        program_type: PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(instructions.len()).map_err(|_| libc::E2BIG)?,
        instructions: instructions.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: u32::try_from(log.len()).map_err(|_| libc::E2BIG)?,
        log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        kernel_version: 0,
        flags: 0,
        name,
    };
    // SAFETY: `attributes` is laid out as the kernel's union begins and lives through the call, as do the
    // instructions and the license, which the kernel only reads, and the log, which it writes within `log_size`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of::<LoadAttributes>()) };
    match i32::try_from(result) {
        Ok(descriptor) if descriptor >= 0 => {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
            Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
        }
        _ => Err(last_errno()),
    }
}

/// Attaches a program to the group whose directory is `group`, in place of `replaced` if there was one.
///
/// The group keeps it for as long as it exists.
pub(crate) fn attach_device_program(
    group: BorrowedFd<'_>,
    program: &OwnedFd,
    replaced: Option<&OwnedFd>,
) -> Result<()> {
    let number = |fd: BorrowedFd<'_>| fd.as_raw_fd().unsigned_abs();
    let attributes = AttachAttributes {
        target: number(group),
        program: number(program.as_fd()),
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: if replaced.is_some() { ALLOW_MULTI | REPLACE } else { ALLOW_MULTI },
        replaced: replaced.map_or(0, |old| number(old.as_fd())),
    };
    // SAFETY: `attributes` is laid out as the kernel's union begins, lives through the call and is only read;
    // the descriptors in it are borrowed for as long.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attributes, size_of::<AttachAttributes>()) };
    if result == 0 { Ok(()) } else { Err(Error::from_errno("bpf(BPF_PROG_ATTACH, device program)", last_errno())) }
}

/// Whether the caller may load such programs at all.
pub(crate) fn can_filter_devices() -> Result<()> {
    // `r0 = 1; exit`: allow all. Never attached.
    let allow = [
        Instruction { code: 0xb7, registers: 0, offset: 0, immediate: 1 },
        Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 },
    ];
    load_device_program(&allow).map(drop).map_err(|e| e.with_kind(ErrorKind::Unsupported))
}

fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
