//! Errors of `cgroups-rs` in our words.

use crate::error::{Error, ErrorKind};
use std::error::Error as _;

/// The error of a call of `cgroups-rs` that was meant to do `what`.
///
/// The number of the failed system call, where there is one, is taken out of its chain.
pub(super) fn error(what: &str, error: cgroups_rs::error::Error) -> Error {
    let words = error.kind().to_string();
    match error.source().and_then(|cause| cause.downcast_ref::<std::io::Error>()).and_then(std::io::Error::raw_os_error)
    {
        Some(errno) => Error::from_errno(words, errno).context(what),
        None => Error::new(ErrorKind::Unsupported, error.to_string()).context(what),
    }
}
