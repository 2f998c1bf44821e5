//! What the functions share: codes, handles, the loaded machine, and writing through C pointers.

use crate::profile::{Event, Gpu, Machine, Slice};
use crate::state::{self, Stamp};

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
pub(crate) const GPU_IS_LOST: Return = 15;
pub(crate) const RESET_REQUIRED: Return = 16;
pub(crate) const IN_USE: Return = 19;
pub(crate) const INSUFFICIENT_RESOURCES: Return = 23;
pub(crate) const VERSION_MISMATCH: Return = 25;
pub(crate) const UNKNOWN: Return = 999;

/// A device of NVML: a number in the shape of a pointer, never followed.
pub(crate) type Handle = *mut c_void;

/// What this process knows of the machine.
#[derive(Debug)]
struct Known {
    machine: Machine,
    stamp: Stamp,
    /// How often the library was initialised.
    users: u32,
    /// How many of the machine's events this process was told.
    events: usize,
}

/// The machine, while somebody has initialised the library.
static MACHINE: Mutex<Option<Known>> = Mutex::new(None);

/// Counts one more user of the library; the first one loads the machine.
pub(crate) fn start(call: &str) -> Return {
    let mut state = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = state.as_mut() {
        known.users += 1;
        return SUCCESS;
    }
    match state::load() {
        Ok((machine, stamp)) => match machine.errors.get(call) {
            Some(code) => *code,
            None => {
                *state = Some(Known { machine, stamp, users: 1, events: 0 });
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
        Some(known) => {
            let code = known.machine.errors.get("nvmlShutdown").copied().unwrap_or(SUCCESS);
            known.users -= 1;
            if known.users == 0 {
                *state = None;
            }
            code
        }
    }
}

/// Answers a call about the machine as it is now.
pub(crate) fn machine(call: &str, answer: impl FnOnce(&Machine) -> Return) -> Return {
    with_known(call, |known| answer(&known.machine))
}

/// Takes the next event that this process was not told yet.
pub(crate) fn next_event(call: &str, next: &mut Option<Event>) -> Return {
    with_known(call, |known| {
        *next = known.machine.events.get(known.events).copied();
        known.events += usize::from(next.is_some());
        SUCCESS
    })
}

fn with_known(call: &str, answer: impl FnOnce(&mut Known) -> Return) -> Return {
    let mut state = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(known) = state.as_mut() else { return UNINITIALIZED };
    // Another process may have changed the machine. A file that is bad now is left for the next start to report.
    if state::stamp() != Some(known.stamp) {
        if let Ok((machine, stamp)) = state::load() {
            (known.machine, known.stamp) = (machine, stamp);
        }
    }
    match known.machine.errors.get(call) {
        Some(code) => *code,
        None => answer(known),
    }
}

/// Changes the machine for all processes, if `change` succeeds.
pub(crate) fn change(call: &str, change: impl FnOnce(&mut Machine) -> Return) -> Return {
    with_known(call, |known| {
        let Ok(_lock) = state::lock() else { return UNKNOWN };
        let Ok((mut machine, _)) = state::load() else { return UNKNOWN };
        machine.changes += 1;
        let moment = state::fault_point(machine.changes);
        let code = change(&mut machine);
        if code == SUCCESS {
            let Ok(stamp) = state::store(&machine) else { return UNKNOWN };
            (known.machine, known.stamp) = (machine, stamp);
        }
        moment.after();
        code
    })
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
            None if target.gpu.lost => GPU_IS_LOST,
            None => answer(target),
        },
    })
}

/// The low byte is 0 for a whole GPU, else the slice's place plus one.
pub(crate) fn handle(gpu: usize, slice: Option<u32>) -> Handle {
    let number = ((gpu + 1) << 8) | slice.map_or(0, |slice| place(slice) + 1);
    std::ptr::without_provenance_mut(number)
}

/// What the handle stands for, if it is one of ours.
pub(crate) fn target(machine: &Machine, handle: Handle) -> Option<Target<'_>> {
    let number = handle.addr();
    let index = (number >> 8).checked_sub(1)?;
    let gpu = machine.gpus.get(index)?;
    let slice = match number & 0xff {
        0 => None,
        slice => Some(gpu.mig.as_ref()?.devices.iter().find(|device| place(device.place) == slice - 1)?),
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
