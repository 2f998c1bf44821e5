//! Errors, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library")]

use crate::boundary::c_string;
use gpucontainer::ErrorKind;
use std::ffi::{CString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal <- $kind:ident,)*) => {
        fn kind_of(kind: ErrorKind) -> gpuc_error_kind_t {
            match kind {
                $(ErrorKind::$kind => gpuc_error_kind_t::$name,)*
                _ => gpuc_error_kind_t::GPUC_ERROR_UNKNOWN,
            }
        }

        #[cfg(test)]
        const NAMES: &[(&str, &str, i32, i32)] =
            &[$((stringify!($kind), stringify!($name), $number, gpuc_error_kind_t::$name as i32),)*];
    };
}

kinds! {
    GPUC_ERROR_INVALID_ARGUMENT = 2 <- InvalidArgument,
    GPUC_ERROR_INVALID_REFERENCE = 3 <- InvalidReference,
    GPUC_ERROR_IMAGE_NOT_FOUND = 4 <- ImageNotFound,
    GPUC_ERROR_INVALID_IMAGE = 5 <- InvalidImage,
    GPUC_ERROR_INVALID_LAYER = 6 <- InvalidLayer,
    GPUC_ERROR_DIGEST_MISMATCH = 7 <- DigestMismatch,
    GPUC_ERROR_AUTHENTICATION = 8 <- Authentication,
    GPUC_ERROR_NETWORK = 9 <- Network,
    GPUC_ERROR_REGISTRY = 10 <- Registry,
    GPUC_ERROR_COMMAND_NOT_FOUND = 11 <- CommandNotFound,
    GPUC_ERROR_USER_NOT_FOUND = 12 <- UserNotFound,
    GPUC_ERROR_WORKING_DIRECTORY_NOT_FOUND = 13 <- WorkingDirectoryNotFound,
    GPUC_ERROR_NOT_FOUND = 14 <- NotFound,
    GPUC_ERROR_ALREADY_EXISTS = 15 <- AlreadyExists,
    GPUC_ERROR_LIMIT_NOT_APPLIED = 16 <- LimitNotApplied,
    GPUC_ERROR_PORT_IN_USE = 17 <- PortInUse,
    GPUC_ERROR_GPU_UNAVAILABLE = 18 <- GpuUnavailable,
    GPUC_ERROR_PERMISSION_DENIED = 19 <- PermissionDenied,
    GPUC_ERROR_NO_SPACE = 20 <- NoSpace,
    GPUC_ERROR_UNSUPPORTED = 21 <- Unsupported,
    GPUC_ERROR_BUSY = 22 <- Busy,
    GPUC_ERROR_CLOSED = 23 <- Closed,
    GPUC_ERROR_CANCELLED = 24 <- Cancelled,
    GPUC_ERROR_TIMED_OUT = 25 <- TimedOut,
    GPUC_ERROR_CORRUPT = 26 <- Corrupt,
    GPUC_ERROR_SYSTEM_CALL = 27 <- SystemCall,
}

/// What went wrong, in one word that a program can act on. Later versions add numbers and change none.
#[allow(non_camel_case_types, reason = "the names are those of C, so that one search finds both")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub enum gpuc_error_kind_t {
    /// A kind that this header does not know.
    GPUC_ERROR_UNKNOWN = 0,
    /// A bug of the library itself.
    GPUC_ERROR_INTERNAL = 1,
    /// A value given by the caller cannot be used; nothing was changed.
    GPUC_ERROR_INVALID_ARGUMENT = 2,
    /// An image reference that does not follow the grammar.
    GPUC_ERROR_INVALID_REFERENCE = 3,
    /// No such image, here or in its registry.
    GPUC_ERROR_IMAGE_NOT_FOUND = 4,
    /// An image's manifest, index or configuration is malformed or not for this platform.
    GPUC_ERROR_INVALID_IMAGE = 5,
    /// A layer whose archive is malformed, truncated, too large, or tries to leave its directory.
    GPUC_ERROR_INVALID_LAYER = 6,
    /// Bytes that do not have the digest or the size that was promised for them.
    GPUC_ERROR_DIGEST_MISMATCH = 7,
    /// The registry refused the credentials, or wants some.
    GPUC_ERROR_AUTHENTICATION = 8,
    /// The registry could not be reached, or the connection broke.
    GPUC_ERROR_NETWORK = 9,
    /// The registry answered something that its protocol does not allow.
    GPUC_ERROR_REGISTRY = 10,
    /// The command does not exist inside the container, or is no executable file there.
    GPUC_ERROR_COMMAND_NOT_FOUND = 11,
    /// The user or group does not exist inside the container.
    GPUC_ERROR_USER_NOT_FOUND = 12,
    /// The working directory does not exist inside the container, or leads outside of it.
    GPUC_ERROR_WORKING_DIRECTORY_NOT_FOUND = 13,
    /// Something else that was named does not exist.
    GPUC_ERROR_NOT_FOUND = 14,
    /// Something of that name exists already.
    GPUC_ERROR_ALREADY_EXISTS = 15,
    /// A resource limit could not be applied.
    GPUC_ERROR_LIMIT_NOT_APPLIED = 16,
    /// The host port is taken.
    GPUC_ERROR_PORT_IN_USE = 17,
    /// No GPU, or not the GPUs that were asked for; the message says why.
    GPUC_ERROR_GPU_UNAVAILABLE = 18,
    /// The process lacks a privilege.
    GPUC_ERROR_PERMISSION_DENIED = 19,
    /// The file system or a quota is full.
    GPUC_ERROR_NO_SPACE = 20,
    /// This host, its kernel or its configuration lacks something; the message names it.
    GPUC_ERROR_UNSUPPORTED = 21,
    /// The thing is in use.
    GPUC_ERROR_BUSY = 22,
    /// The thing has ended already, or was closed.
    GPUC_ERROR_CLOSED = 23,
    /// The caller cancelled the work.
    GPUC_ERROR_CANCELLED = 24,
    /// The time that the caller allowed has passed.
    GPUC_ERROR_TIMED_OUT = 25,
    /// Data of the library's own is damaged.
    GPUC_ERROR_CORRUPT = 26,
    /// A system call failed for a reason that no other kind names; see gpuc_error_errno.
    GPUC_ERROR_SYSTEM_CALL = 27,
}

/// Why a call failed.
#[derive(Debug)]
pub struct Error {
    kind: gpuc_error_kind_t,
    errno: c_int,
    message: CString,
    path: Option<CString>,
}

impl Error {
    /// A bug of the library, whatever kind the core has for it.
    pub(crate) fn internal(error: gpucontainer::Error) -> Self {
        Self { kind: gpuc_error_kind_t::GPUC_ERROR_INTERNAL, ..Self::from(error) }
    }
}

impl From<gpucontainer::Error> for Error {
    fn from(error: gpucontainer::Error) -> Self {
        Self {
            kind: kind_of(error.kind()),
            errno: error.errno().unwrap_or(0),
            message: c_string(error.to_string().as_bytes()),
            path: error.path().map(|path| c_string(path.as_os_str().as_bytes())),
        }
    }
}

/// What went wrong, to act on.
///
/// @param error  may be NULL, which is GPUC_ERROR_UNKNOWN
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_error_kind(error: Option<&Error>) -> gpuc_error_kind_t {
    error.map_or(gpuc_error_kind_t::GPUC_ERROR_UNKNOWN, |error| error.kind)
}

/// The number of the system call that failed, as errno(3) has it, or 0 if none did.
///
/// @param error  may be NULL, which is 0
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_error_errno(error: Option<&Error>) -> c_int {
    error.map_or(0, |error| error.errno)
}

/// What was wanted, which call failed, on what, and why: one line for people.
///
/// @param error  may be NULL, which is an empty string
/// @return a string that lives as long as the error
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_error_message(error: Option<&Error>) -> *const c_char {
    error.map_or(c"".as_ptr(), |error| error.message.as_ptr())
}

/// The file that the error is about. It need not be valid in any encoding.
///
/// @param error  may be NULL
/// @return a string that lives as long as the error, or NULL if it is about none
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_error_path(error: Option<&Error>) -> *const c_char {
    error.and_then(|error| error.path.as_ref()).map_or(std::ptr::null(), |path| path.as_ptr())
}

/// Frees an error.
///
/// @param error  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_error_free(error: Option<Box<Error>>) {
    drop(error);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kinds that the core has, read from its source: the enumeration is open, so the compiler cannot tell.
    #[test]
    fn every_kind_of_the_core_has_a_name_here() {
        let source = include_str!("../../gpucontainer/src/error.rs");
        let (_, rest) = source.split_once("pub enum ErrorKind {").unwrap();
        let (variants, _) = rest.split_once("\n}").unwrap();
        let core: Vec<&str> = variants
            .lines()
            .map(|line| line.trim().trim_end_matches(','))
            .filter(|line| !line.is_empty() && !line.starts_with("///"))
            .collect();
        let ours: Vec<&str> = NAMES.iter().map(|(kind, ..)| *kind).collect();
        assert_eq!(ours, core);
    }

    #[test]
    fn names_and_numbers_agree() {
        for (kind, name, number, actual) in NAMES {
            let mut expected = "GPUC_ERROR".to_owned();
            for character in kind.chars() {
                if character.is_uppercase() {
                    expected.push('_');
                }
                expected.push(character.to_ascii_uppercase());
            }
            assert_eq!((*name, *number), (expected.as_str(), *actual));
        }
    }

    #[test]
    fn an_error_keeps_everything() {
        let core = gpucontainer::Error::from_errno("open(\"/x\")", 2).with_path("/x");
        let error = Error::from(core);
        assert_eq!(error.kind, gpuc_error_kind_t::GPUC_ERROR_NOT_FOUND);
        assert_eq!(error.errno, 2);
        assert!(error.message.to_str().unwrap().contains("No such file"));
        assert_eq!(error.path.as_deref(), Some(c"/x"));
    }
}
