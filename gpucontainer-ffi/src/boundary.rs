//! What every exported function goes through: no panic crosses into C, every failure becomes an error object.
#![allow(unsafe_code, reason = "C strings are read through pointers")]

use crate::error::Error;
use gpucontainer::{ErrorKind, Result};
use std::any::Any;
use std::ffi::{CStr, CString, OsStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Where a C caller wants the error: nowhere, or in a variable that may not be initialised yet.
pub(crate) type ErrorSlot<'a> = Option<&'a mut MaybeUninit<Option<Box<Error>>>>;

/// Runs `body`; a panic becomes an error.
pub(crate) fn catch<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // A handle whose call panicked may be in any state that safe code can make; freeing it stays sound.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(bug(&panic)))
}

/// Runs `body`. Its failure, or panic, goes to `slot`, and the caller gets `failure`.
/// On success the slot is set to `NULL`.
pub(crate) fn call<T>(slot: ErrorSlot<'_>, failure: T, body: impl FnOnce() -> Result<T>) -> T {
    let (value, error) = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => (value, None),
        Ok(Err(error)) => (failure, Some(Error::from(error))),
        Err(panic) => (failure, Some(Error::internal(bug(&panic)))),
    };
    if let Some(slot) = slot {
        slot.write(error.map(Box::new));
    }
    value
}

/// Frees a handle; a panic while it gives things back must not reach C, and there is nobody to tell.
pub(crate) fn release<T>(handle: T) {
    drop(catch_unwind(AssertUnwindSafe(move || drop(handle))));
}

/// The thing behind a pointer, or an error that says which argument was `NULL`.
pub(crate) fn given<T>(argument: Option<T>, name: &str) -> Result<T> {
    argument.ok_or_else(|| gpucontainer::Error::new(ErrorKind::InvalidArgument, format!("{name} is NULL")))
}

/// The error of a value that cannot be used.
pub(crate) fn bad(message: String) -> gpucontainer::Error {
    gpucontainer::Error::new(ErrorKind::InvalidArgument, message)
}

/// The text of a C string.
///
/// # Safety
/// `string` is `NULL`, or points to bytes that end with a zero byte and do not change during `'a`.
pub(crate) unsafe fn text<'a>(string: *const c_char, name: &str) -> Result<&'a str> {
    given((!string.is_null()).then_some(()), name)?;
    // SAFETY: it is not NULL, and the caller vouches for the rest.
    let bytes = unsafe { CStr::from_ptr(string) };
    bytes
        .to_str()
        .map_err(|_| gpucontainer::Error::new(ErrorKind::InvalidArgument, format!("{name} is not UTF-8: {bytes:?}")))
}

/// The path of a C string, in whatever encoding.
///
/// # Safety
/// As for [`text`].
pub(crate) unsafe fn path<'a>(string: *const c_char, name: &str) -> Result<&'a Path> {
    given((!string.is_null()).then_some(()), name)?;
    // SAFETY: it is not NULL, and the caller vouches for the rest.
    let bytes = unsafe { CStr::from_ptr(string) };
    Ok(Path::new(OsStr::from_bytes(bytes.to_bytes())))
}

/// The bytes of a caller's buffer.
///
/// # Safety
/// `length` is 0, or `buffer` is `NULL` or points to that many bytes that do not change during `'a`.
pub(crate) unsafe fn bytes<'a>(buffer: *const c_void, length: usize, name: &str) -> Result<&'a [u8]> {
    // SAFETY: bytes need no alignment, and the caller vouches for the rest.
    unsafe { slice(buffer.cast(), length, name) }
}

/// The elements of a C array, which may be `NULL` if there are none.
///
/// # Safety
/// As for [`std::slice::from_raw_parts`], but for `NULL`.
pub(crate) unsafe fn slice<'a, T>(start: *const T, count: usize, name: &str) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    given((!start.is_null()).then_some(()), name)?;
    // SAFETY: it is not NULL, and the caller vouches for the rest.
    Ok(unsafe { std::slice::from_raw_parts(start, count) })
}

/// The texts of an array of C strings that ends with `NULL`.
///
/// # Safety
/// `array` is `NULL`, or points to pointers, the last of them `NULL`, of which each is as [`text`] wants it.
pub(crate) unsafe fn strings(array: *const *const c_char, name: &str) -> Result<Vec<String>> {
    given((!array.is_null()).then_some(()), name)?;
    let mut texts = Vec::new();
    loop {
        // SAFETY: every pointer before this one was not NULL, so this one is still in the array.
        let place = unsafe { array.add(texts.len()) };
        // SAFETY: it is in the array.
        let string = unsafe { place.read() };
        if string.is_null() {
            return Ok(texts);
        }
        // SAFETY: the caller vouches for each string.
        texts.push(unsafe { text(string, name) }?.to_owned());
    }
}

/// The bytes up to the first zero byte, which C could not see beyond.
pub(crate) fn c_string(bytes: &[u8]) -> CString {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    CString::new(&bytes[..end]).unwrap_or_default()
}

/// The first thing that a setter could not use; it is kept for the call that uses the object.
#[derive(Debug, Default)]
pub(crate) struct Fault(Option<(ErrorKind, String)>);

impl Fault {
    /// The value; if there is none, its error is kept.
    pub(crate) fn keep<T>(&mut self, value: Result<T>) -> Option<T> {
        match value {
            Ok(value) => Some(value),
            Err(error) => {
                self.0.get_or_insert_with(|| (error.kind(), error.to_string()));
                None
            }
        }
    }

    /// The error that was kept.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.0 {
            None => Ok(()),
            Some((kind, words)) => Err(gpucontainer::Error::new(*kind, words)),
        }
    }
}

fn bug(panic: &Box<dyn Any + Send>) -> gpucontainer::Error {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let words = format!("the library failed inside; this is a bug of gpucontainer: {}", text.unwrap_or("no words"));
    gpucontainer::Error::new(ErrorKind::SystemCall, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error() {
        let mut slot = MaybeUninit::new(None);
        let value = call(Some(&mut slot), -1, || panic!("on purpose"));
        assert_eq!(value, -1);
        // It was initialised above, and `call` only replaced it.
        let slot = std::mem::replace(&mut slot, MaybeUninit::new(None));
        // SAFETY: initialised by the `new` above.
        let error = unsafe { slot.assume_init() };
        assert!(format!("{error:?}").contains("on purpose"));
    }

    #[test]
    fn no_slot_is_fine() {
        assert_eq!(call(None, -1, || given(None::<i32>, "sandbox")), -1);
        assert_eq!(call(None, -1, || Ok(7)), 7);
    }
}
