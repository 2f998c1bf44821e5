//! Events: what the profile lists, one for each wait.

use crate::abi::{self, Handle, Return, SUCCESS, TIMEOUT, handle, place, put};
use crate::profile::Event;

use std::ffi::{c_uint, c_ulonglong, c_void};
use std::time::{Duration, Instant};

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct EventData {
    device: Handle,
    kind: c_ulonglong,
    data: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// A critical XID.
const XID: c_ulonglong = 8;
/// All sets are one: whoever waits gets the next event.
const THE_SET: usize = 1;
const WHOLE_GPU: c_uint = c_uint::MAX;

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetCreate(set: *mut *mut c_void) -> Return {
    abi::machine("nvmlEventSetCreate", |_| put(set, std::ptr::without_provenance_mut(THE_SET)))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetFree(_set: *mut c_void) -> Return {
    abi::machine("nvmlEventSetFree", |_| SUCCESS)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetSupportedEventTypes(device: Handle, kinds: *mut c_ulonglong) -> Return {
    abi::device("nvmlDeviceGetSupportedEventTypes", device, |_| put(kinds, XID))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceRegisterEvents(device: Handle, _kinds: c_ulonglong, _set: *mut c_void) -> Return {
    abi::device("nvmlDeviceRegisterEvents", device, |_| SUCCESS)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetWait_v2(_set: *mut c_void, data: *mut EventData, milliseconds: c_uint) -> Return {
    let end = Instant::now() + Duration::from_millis(milliseconds.into());
    loop {
        let mut next = None;
        let code = abi::next_event("nvmlEventSetWait_v2", &mut next);
        match next {
            _ if code != SUCCESS => return code,
            Some(Event { gpu, kind, data: number }) => {
                let device = handle(place(gpu), None);
                let (gpu_instance, compute_instance) = (WHOLE_GPU, WHOLE_GPU);
                return put(data, EventData { device, kind, data: number, gpu_instance, compute_instance });
            }
            None if Instant::now() >= end => return TIMEOUT,
            // An event may yet be written into the machine's description.
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}
