//! Events of the library, as C hears them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; a context is a pointer")]

use crate::boundary::{bad, c_string, call};
use crate::error::Error;
use gpucontainer::events::{self, Level};
use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;

/// How much an event matters.
#[allow(non_camel_case_types, reason = "the names are those of C, so that one search finds both")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub enum gpuc_log_level_t {
    /// Something does not work any more.
    GPUC_LOG_ERROR = 1,
    /// Something went wrong that no call could return.
    GPUC_LOG_WARN = 2,
    /// What a person who runs the program wants to know.
    GPUC_LOG_INFO = 3,
    /// What a person wants to know who looks for a fault.
    GPUC_LOG_DEBUG = 4,
    /// All.
    GPUC_LOG_TRACE = 5,
}

fn level(number: u32) -> gpucontainer::Result<Level> {
    match number {
        n if n == gpuc_log_level_t::GPUC_LOG_ERROR as u32 => Ok(Level::Error),
        n if n == gpuc_log_level_t::GPUC_LOG_WARN as u32 => Ok(Level::Warn),
        n if n == gpuc_log_level_t::GPUC_LOG_INFO as u32 => Ok(Level::Info),
        n if n == gpuc_log_level_t::GPUC_LOG_DEBUG as u32 => Ok(Level::Debug),
        n if n == gpuc_log_level_t::GPUC_LOG_TRACE as u32 => Ok(Level::Trace),
        other => Err(bad(format!("level {other} is no gpuc_log_level_t"))),
    }
}

fn number(level: Level) -> gpuc_log_level_t {
    match level {
        Level::Error => gpuc_log_level_t::GPUC_LOG_ERROR,
        Level::Warn => gpuc_log_level_t::GPUC_LOG_WARN,
        Level::Info => gpuc_log_level_t::GPUC_LOG_INFO,
        Level::Debug => gpuc_log_level_t::GPUC_LOG_DEBUG,
        _ => gpuc_log_level_t::GPUC_LOG_TRACE,
    }
}

/// An event: a line of text without an end of line, which lives as long as the call.
#[allow(non_camel_case_types, reason = "the name is that of C, so that one search finds both")]
pub type gpuc_log_t = Option<extern "C" fn(context: *mut c_void, level: gpuc_log_level_t, message: *const c_char)>;

struct Listener {
    function: extern "C" fn(*mut c_void, gpuc_log_level_t, *const c_char),
    context: *mut c_void,
}

// SAFETY: the header says that the function is called by any thread, with this pointer.
unsafe impl Send for Listener {}
// SAFETY: likewise.
unsafe impl Sync for Listener {}

impl Listener {
    fn hear(&self, level: Level, text: &str) {
        (self.function)(self.context, number(level), c_string(text.as_bytes()).as_ptr());
    }
}

/// Gives events of the library up to a level to a function, in the place of the one before; NULL is nobody. What calls
/// return they return as always: events are what happens beside that, as when something cannot be cleaned up.
///
/// The function is called by the thread to which an event happens, which may be one of the library's own, by several
/// threads at once, and should return soon. It may not call this function. When this function returns, the one before is
/// not being called any more. In a program in Rust that collects events of `tracing` itself there is nothing to hear.
///
/// @param level    of gpuc_log_level_t
/// @param log      may be NULL
/// @param context  handed to the function
/// @param error    may be NULL
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_set_log(
    level: u32,
    log: gpuc_log_t,
    context: *mut c_void,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        let Some(function) = log else { return events::silence().map(|()| 0) };
        let listener = Listener { function, context };
        events::listen(self::level(level)?, move |level, text| listener.hear(level, text)).map(|()| 0)
    })
}
