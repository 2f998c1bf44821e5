//! How processes end and what they wrote, as C sees it.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use gpucontainer::Result;
use gpucontainer::sandbox::{ExitStatus, Output};
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::time::Duration;

/// How a process ended.
#[allow(non_camel_case_types, reason = "the name is that of C, so that one search finds both")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct gpuc_exit_status_t {
    /// The exit code, or -1 if a signal killed it.
    pub code: c_int,
    /// The signal that killed it, or 0.
    pub signal: c_int,
    /// Whether something in the sandbox was killed because it was at its memory limit.
    pub oom_killed: bool,
}

impl From<ExitStatus> for gpuc_exit_status_t {
    fn from(status: ExitStatus) -> Self {
        Self {
            code: status.code().unwrap_or(-1),
            signal: status.signal().unwrap_or(0),
            oom_killed: status.oom_killed(),
        }
    }
}

pub(crate) type StatusSlot<'a> = Option<&'a mut MaybeUninit<gpuc_exit_status_t>>;

/// Negative is for ever.
pub(crate) fn time(milliseconds: i64) -> Option<Duration> {
    u64::try_from(milliseconds).ok().map(Duration::from_millis)
}

/// Waits, going on after signals.
pub(crate) fn wait(
    milliseconds: i64,
    slot: StatusSlot<'_>,
    wait: impl Fn(Duration) -> Result<Option<ExitStatus>>,
) -> Result<c_int> {
    let Some(ended) = wait(time(milliseconds).unwrap_or(Duration::MAX))? else { return Ok(0) };
    if let Some(slot) = slot {
        slot.write(ended.into());
    }
    Ok(1)
}

pub(crate) fn hand_over(stream: Option<OwnedFd>) -> c_int {
    stream.map_or(-1, IntoRawFd::into_raw_fd)
}

/// What a process wrote, and how it ended.
#[derive(Debug)]
pub struct Collected(pub(crate) Output);

/// How the process ended.
///
/// @param output  may be NULL, which is code -1
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_output_status(output: Option<&Collected>) -> gpuc_exit_status_t {
    let nothing = gpuc_exit_status_t { code: -1, signal: 0, oom_killed: false };
    output.map_or(nothing, |output| output.0.status.into())
}

/// What came from standard output (1) or error (2).
///
/// @param output  may be NULL, which is nothing
/// @param length  set to how many bytes; may be NULL
/// @return bytes that live as long as the object; there is no zero byte at their end
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_output_bytes(
    output: Option<&Collected>,
    stream: c_int,
    length: Option<&mut MaybeUninit<usize>>,
) -> *const c_void {
    let bytes: &[u8] = match (output, stream) {
        (Some(output), 1) => &output.0.stdout,
        (Some(output), 2) => &output.0.stderr,
        _ => &[],
    };
    if let Some(length) = length {
        length.write(bytes.len());
    }
    bytes.as_ptr().cast()
}

/// Frees what gpuc_sandbox_communicate or gpuc_process_communicate returned.
///
/// @param output  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_output_free(output: Option<Box<Collected>>) {
    drop(output);
}
