//! What the functions share: codes, handles, the loaded machine, and writing through C pointers.

use crate::profile::{Gpu, Machine, Slice};

use std::ffi::{c_char, c_void};
use std::sync::{Mutex, PoisonError};

/// A return code of NVML.
pub(crate) type Return = u32;

pub(crate) const SUCCESS: Return = 0;
pub(crate) const UNINITIALIZED: Return = 1;
pub(crate) const INVALID_ARGUMENT: Return = 2;
pub(crate) const NOT_SUPPORTED: Return = 3;
pub(crate) const NOT_FOUND: Return = 6;
pub(crate) const INSUFFICIENT_SIZE: Return = 7;
pub(crate) const TIMEOUT: Return = 10;
pub(crate) const VERSION_MISMATCH: Return = 25;
pub(crate) const UNKNOWN: Return = 999;

/// A device of NVML: a number in the shape of a pointer, never followed.
pub(crate) type Handle = *mut c_void;

/// The machine, while somebody has initialised the library, and how often.
static MACHINE: Mutex<Option<(Machine, u32)>> = Mutex::new(None);

/// Counts one more user of the library; the first one loads the profile.
pub(crate) fn start(call: &str) -> Return {
    let mut state = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, users)) = state.as_mut() {
        *users += 1;
        return SUCCESS;
    }
    match crate::profile::load() {
        Ok(machine) => match machine.errors.get(call) {
            Some(code) => *code,
            None => {
                *state = Some((machine, 1));
                SUCCESS
            }
        },
        // A test that gave a bad profile sees this code in its reason.
        Err(_) => UNKNOWN,
    }
}

/// Counts one user less; the last one lets the machine go.
pub(crate) fn stop() -> Return {
    let mut state = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    match state.as_mut() {
        None => UNINITIALIZED,
        Some((machine, users)) => {
            let code = machine.errors.get("nvmlShutdown").copied().unwrap_or(SUCCESS);
            *users -= 1;
            if *users == 0 {
                *state = None;
            }
            code
        }
    }
}

/// Answers a call about the machine.
pub(crate) fn machine(call: &str, answer: impl FnOnce(&mut Machine) -> Return) -> Return {
    let mut state = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((machine, _)) = state.as_mut() else { return UNINITIALIZED };
    match machine.errors.get(call) {
        Some(code) => *code,
        None => answer(machine),
    }
}

/// What a handle stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) index: usize,
    pub(crate) gpu: &'a Gpu,
    pub(crate) slice: Option<&'a Slice>,
}

/// Answers a call about a GPU or a slice of one.
pub(crate) fn device(call: &str, handle: Handle, answer: impl FnOnce(Target<'_>) -> Return) -> Return {
    machine(call, |machine| match target(machine, handle) {
        None => INVALID_ARGUMENT,
        Some(target) => match target.gpu.errors.get(call) {
            Some(code) => *code,
            None => answer(target),
        },
    })
}

/// The low byte is 0 for a whole GPU, else the slice's number in the profile plus one.
pub(crate) fn handle(gpu: usize, slice: Option<usize>) -> Handle {
    let number = ((gpu + 1) << 8) | slice.map_or(0, |slice| slice + 1);
    std::ptr::without_provenance_mut(number)
}

/// What the handle stands for, if it is one of ours.
pub(crate) fn target(machine: &Machine, handle: Handle) -> Option<Target<'_>> {
    let number = handle.addr();
    let index = (number >> 8).checked_sub(1)?;
    let gpu = machine.gpus.get(index)?;
    let slice = match number & 0xff {
        0 => None,
        slice => Some(gpu.mig.as_ref()?.devices.get(slice - 1)?),
    };
    Some(Target { machine, index, gpu, slice })
}

/// Writes an answer where the caller wants it.
pub(crate) fn put<T>(pointer: *mut T, value: T) -> Return {
    if pointer.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: the caller of the C function gave a pointer to memory of this type, as its contract demands.
    unsafe { pointer.write(value) };
    SUCCESS
}

/// Reads what the caller gave.
pub(crate) fn get<T: Copy>(pointer: *const T) -> Option<T> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: as in `put`, and the contract demands that the memory was filled in.
    Some(unsafe { pointer.read() })
}

/// Writes a list where the caller has room for it.
pub(crate) fn put_list<T: Copy>(pointer: *mut T, room: usize, values: &[T]) -> Return {
    if pointer.is_null() {
        return INVALID_ARGUMENT;
    }
    if values.len() > room {
        return INSUFFICIENT_SIZE;
    }
    // SAFETY: the caller gave room for `room` values, which is not less than what is copied.
    unsafe { pointer.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    SUCCESS
}

/// Writes a text with its final null byte.
pub(crate) fn put_text(pointer: *mut c_char, room: u32, text: &[u8]) -> Return {
    let mut bytes = text.to_vec();
    bytes.push(0);
    put_list(pointer.cast::<u8>(), usize::try_from(room).unwrap_or(0), &bytes)
}

/// The text that the caller gave.
pub(crate) fn get_text(pointer: *const c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: the contract demands a text that ends with a null byte.
    let text = unsafe { std::ffi::CStr::from_ptr(pointer) };
    Some(text.to_string_lossy().into_owned())
}

/// A number of a list that is known to be short.
pub(crate) fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// An index that a caller gave.
pub(crate) fn place(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}
