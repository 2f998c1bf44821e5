//! A watch for XIDs, as C sees it.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::allocator::GpuAllocator;
use crate::boundary::{c_string, call, given, release, strings};
use crate::error::Error;
use crate::mig::root;
use crate::output::time;
use gpucontainer::gpu::{GpuFault, XidAction};
use std::ffi::{CStr, CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Watches GPUs for XIDs, the driver's error reports. It has no thread, and nothing is seen but in gpuc_xid_watch_next,
/// unless gpuc_xid_watch_fd was called.
///
/// The driver's management library stays loaded as long as this lives; it must not be used after a fork.
#[derive(Debug)]
pub struct XidWatch(gpucontainer::gpu::XidWatch);

/// An XID that the driver reported.
#[derive(Debug)]
pub struct XidEvent {
    event: gpucontainer::gpu::XidEvent,
    gpu: CString,
}

/// Watches GPUs from now on.
///
/// @param driver_root  where the GPU driver's user space is; NULL is where GPUCONTAINER_DRIVER_ROOT says, or the host's
/// @param gpus         identifiers, and NULL after the last
/// @param error        may be NULL; GPUC_ERROR_GPU_UNAVAILABLE if the driver or a GPU cannot be asked
/// @return the caller's, freed with gpuc_xid_watch_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_xid_watch_open(
    driver_root: *const c_char,
    gpus: *const *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<XidWatch>> {
    call(error, None, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let root = unsafe { root(driver_root) }?;
        // SAFETY: the header asks for NULL or strings with NULL after the last.
        let gpus = unsafe { strings(gpus, "gpus") }?;
        Ok(Some(Box::new(XidWatch(gpucontainer::gpu::XidWatch::open(&root, gpus)?))))
    })
}

/// A descriptor that can be read, in the words of poll(), as long as gpuc_xid_watch_next has something to say at once: an
/// XID, or that the driver has failed. Nothing is to be read from it.
///
/// The driver has none to give: when this is first called, a thread starts to wait there, with all signals blocked. It ends
/// with the watch, which takes up to a quarter of a second to free then.
///
/// @param error  may be NULL
/// @return the same for the life of the watch, which it belongs to; -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_xid_watch_fd(
    watch: Option<&mut XidWatch>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || Ok(given(watch, "watch")?.0.poll_fd()?.as_raw_fd()))
}

/// Waits for the next XID.
///
/// @param milliseconds  negative is for ever, 0 only looks
/// @param event         set to the caller's, freed with gpuc_xid_event_free, if 1 is returned
/// @param error         may be NULL; GPUC_ERROR_GPU_UNAVAILABLE if the driver fails, as when a GPU is lost
/// @return 1 with the event, 0 when the time has passed, -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_xid_watch_next(
    watch: Option<&mut XidWatch>,
    milliseconds: i64,
    event: Option<&mut MaybeUninit<Option<Box<XidEvent>>>>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        let slot = given(event, "event")?;
        slot.write(None);
        let watch = given(watch, "watch")?;
        let found = watch.0.next(time(milliseconds).unwrap_or(Duration::MAX))?;
        let Some(event) = found else { return Ok(0) };
        let gpu = c_string(event.gpu.as_bytes());
        slot.write(Some(Box::new(XidEvent { event, gpu })));
        Ok(1)
    })
}

/// Ends the watch.
///
/// @param watch  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_xid_watch_free(watch: Option<Box<XidWatch>>) {
    release(watch);
}

/// The identifier of the GPU, also where the event is about a slice of it.
///
/// @param event  may be NULL, which is an empty string
/// @return a string that lives as long as the object
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_xid_event_gpu(event: Option<&XidEvent>) -> *const c_char {
    event.map_or(c"", |event| event.gpu.as_c_str()).as_ptr()
}

/// The number of the XID.
///
/// @param event  may be NULL, which is 0
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_xid_event_number(event: Option<&XidEvent>) -> u64 {
    event.map_or(0, |event| event.event.xid)
}

fn name(action: XidAction) -> &'static CStr {
    match action {
        XidAction::Ignore => c"ignore",
        XidAction::RestartApplication => c"restart-application",
        XidAction::ResetGpu => c"reset-gpu",
        XidAction::RestartMachine => c"restart-machine",
        // Somebody has to look at what has no name yet.
        _ => c"inspect",
    }
}

/// What has to be done: "ignore", "restart-application", "reset-gpu", "restart-machine" or "inspect".
///
/// @param event  may be NULL, which is an empty string
/// @return a string that is there for ever
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_xid_event_action(event: Option<&XidEvent>) -> *const c_char {
    event.map_or(c"", |event| name(event.event.action)).as_ptr()
}

/// Whether a GPU is kept from new leases for such an XID.
///
/// @param event  may be NULL, which is false
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_xid_event_quarantines(event: Option<&XidEvent>) -> bool {
    event.is_some_and(|event| event.event.action.quarantines())
}

/// Whether the event is about a slice of the GPU, and which.
///
/// @param event             may be NULL, which is false
/// @param gpu_instance      set if it is; may be NULL
/// @param compute_instance  set if it is; may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_xid_event_slice(
    event: Option<&XidEvent>,
    gpu_instance: Option<&mut MaybeUninit<u32>>,
    compute_instance: Option<&mut MaybeUninit<u32>>,
) -> bool {
    let Some((gpu, compute)) = event.and_then(|event| event.event.slice) else { return false };
    for (slot, number) in [(gpu_instance, gpu), (compute_instance, compute)] {
        if let Some(slot) = slot {
            slot.write(number);
        }
    }
    true
}

/// Frees an event.
///
/// @param event  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_xid_event_free(event: Option<Box<XidEvent>>) {
    drop(event);
}

/// Keeps the GPU of an event from new leases, until gpuc_gpu_allocator_readmit or a reset that mends it. An XID that
/// concerns the application only changes nothing.
///
/// @param error  may be NULL; GPUC_ERROR_PERMISSION_DENIED
/// @return 1, or 0 if nothing is new, or -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_allocator_report_xid(
    allocator: Option<&GpuAllocator>,
    event: Option<&XidEvent>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        let event = &given(event, "event")?.event;
        let quarantine = given(allocator, "allocator")?.allocator().quarantine();
        quarantine.report(&event.gpu, GpuFault::Xid(event.xid)).map(c_int::from)
    })
}
