//! Which library this is.
#![allow(unsafe_code, reason = "an exported name could clash with that of another library")]

use std::ffi::{CStr, c_char};

/// The version as a C string.
const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => panic!("the version has no zero byte inside"),
};

/// The version of the library that is running, as in `"0.1.0"`.
///
/// The macros `GPUC_VERSION_MAJOR`, `GPUC_VERSION_MINOR` and `GPUC_VERSION_PATCH` are those of the
/// header that a program was compiled with.
///
/// @return a string that lives as long as the process; never free it.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_version() -> *const c_char {
    VERSION.as_ptr()
}
