//! What the standard streams of a process are, as C sees them.
#![allow(unsafe_code, reason = "a descriptor from C is a number")]

use crate::boundary::bad;
use gpucontainer::Result;
use gpucontainer::sandbox::Stdio;
use std::ffi::c_int;
use std::os::fd::{BorrowedFd, OwnedFd};

const EBADF: i32 = 9;

/// What one of standard input, output and error is.
#[allow(non_camel_case_types, reason = "the names are those of C, so that one search finds both")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub enum gpuc_stdio_t {
    /// That of the host process.
    GPUC_STDIO_INHERIT = 0,
    /// The null device.
    GPUC_STDIO_NULL = 1,
    /// A pipe to the host process.
    GPUC_STDIO_PIPED = 2,
}

fn stdio(number: u32) -> Result<Stdio> {
    match number {
        n if n == gpuc_stdio_t::GPUC_STDIO_INHERIT as u32 => Ok(Stdio::Inherit),
        n if n == gpuc_stdio_t::GPUC_STDIO_NULL as u32 => Ok(Stdio::Null),
        n if n == gpuc_stdio_t::GPUC_STDIO_PIPED as u32 => Ok(Stdio::Piped),
        other => Err(bad(format!("{other} is no gpuc_stdio_t"))),
    }
}

/// A duplicate of the caller's descriptor.
///
/// # Safety
/// `fd` is negative, or an open descriptor that stays open during the call.
pub(crate) unsafe fn file(fd: c_int) -> Result<Stdio> {
    // SAFETY: the caller vouches for it.
    unsafe { duplicate(fd) }.map(Stdio::from)
}

/// The same, whatever it is of.
///
/// # Safety
/// As for [`file()`].
pub(crate) unsafe fn duplicate(fd: c_int) -> Result<OwnedFd> {
    if fd < 0 {
        return Err(bad(format!("fd {fd} is no descriptor")));
    }
    // SAFETY: the caller vouches for it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let own = borrowed.try_clone_to_owned();
    own.map_err(|e| match e.raw_os_error() {
        Some(EBADF) => bad(format!("fd {fd} is not open")),
        _ => gpucontainer::Error::from_io(format!("dup({fd})"), e),
    })
}

/// The three streams, which a sandbox and a further process in it have alike.
#[derive(Clone, Debug, Default)]
pub(crate) struct Streams(pub(crate) [Stdio; 3]);

impl Streams {
    pub(crate) fn set(&mut self, number: c_int, kind: u32) -> Result<()> {
        *self.slot(number)? = stdio(kind)?;
        Ok(())
    }

    /// # Safety
    /// As for [`file()`].
    pub(crate) unsafe fn set_file(&mut self, number: c_int, fd: c_int) -> Result<()> {
        // SAFETY: the caller vouches for it.
        *self.slot(number)? = unsafe { file(fd) }?;
        Ok(())
    }

    fn slot(&mut self, number: c_int) -> Result<&mut Stdio> {
        let slot = usize::try_from(number).ok().and_then(|number| self.0.get_mut(number));
        slot.ok_or_else(|| bad(format!("stream {number} is none of 0, 1 and 2")))
    }
}
