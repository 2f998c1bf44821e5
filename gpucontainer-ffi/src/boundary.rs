//! What every exported function goes through: no panic crosses into C, every failure becomes an error object.
#![allow(unsafe_code, reason = "C strings are read through pointers")]

use crate::error::{Error, gpuc_error_kind_t};
use gpucontainer::{ErrorKind, Result};
use std::any::Any;
use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Where a C caller wants the error: nowhere, or in a variable that may not be initialised yet.
pub(crate) type ErrorSlot<'a> = Option<&'a mut MaybeUninit<Option<Box<Error>>>>;

/// Runs `body`. Its failure, or panic, goes to `slot`, and the caller gets `failure`.
/// On success the slot is set to `NULL`.
pub(crate) fn call<T>(slot: ErrorSlot<'_>, failure: T, body: impl FnOnce() -> Result<T>) -> T {
    // A handle whose call panicked may be in any state that safe code can make; freeing it stays sound.
    let (value, error) = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => (value, None),
        Ok(Err(error)) => (failure, Some(Error::from(error))),
        Err(panic) => (failure, Some(Error::new(gpuc_error_kind_t::GPUC_ERROR_INTERNAL, &words(&panic)))),
    };
    if let Some(slot) = slot {
        slot.write(error.map(Box::new));
    }
    value
}

/// The thing behind a pointer, or an error that says which argument was `NULL`.
pub(crate) fn given<T>(argument: Option<T>, name: &str) -> Result<T> {
    argument.ok_or_else(|| gpucontainer::Error::new(ErrorKind::InvalidArgument, format!("{name} is NULL")))
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

fn words(panic: &Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the library failed inside; this is a bug of gpucontainer: {}", text.unwrap_or("no words"))
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
