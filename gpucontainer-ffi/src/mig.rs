//! MIG devices by themselves, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::boundary::{c_string, call, given, path, release, strings, text};
use crate::error::Error;
use gpucontainer::gpu::{DriverRoot, MigModeChange};
use gpucontainer::{ErrorKind, Result};
use std::ffi::{CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

/// The MIG devices of the host, as this library makes and destroys them. Any number of threads may use it at once.
///
/// An allocator does not know of leases that are taken here, nor are its known here: on one host take them from one of
/// the two.
#[derive(Debug)]
pub struct MigDevices {
    devices: gpucontainer::gpu::MigDevices,
    directory: CString,
}

/// A MIG device that is the holder's, until this is freed.
#[derive(Debug)]
pub struct MigLease {
    lease: gpucontainer::gpu::MigLease,
    uuid: CString,
    gpu: CString,
}

/// What came of gpuc_mig_devices_set_mode.
#[allow(non_camel_case_types, reason = "the names are those of C, so that one search finds both")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub enum gpuc_mig_mode_change_t {
    /// The GPU was in that mode.
    GPUC_MIG_MODE_UNCHANGED = 0,
    /// The GPU is in that mode now.
    GPUC_MIG_MODE_CHANGED = 1,
    /// The GPU will be in that mode after its next reset, which nothing here does.
    GPUC_MIG_MODE_NEEDS_RESET = 2,
}

/// Where a driver's user space is: at a path, or where the environment says if that is NULL.
///
/// # Safety
/// `driver_root` is `NULL` or a string that ends with a zero byte.
pub(crate) unsafe fn root(driver_root: *const c_char) -> Result<DriverRoot> {
    if driver_root.is_null() {
        return Ok(DriverRoot::from_environment());
    }
    // SAFETY: the caller vouches for it.
    Ok(DriverRoot::new(unsafe { path(driver_root, "driver_root") }?))
}

/// Opens the MIG devices of the host, and destroys what dead owners left.
///
/// @param driver_root  where the GPU driver's user space is; NULL is where GPUCONTAINER_DRIVER_ROOT says, or the host's
/// @param directory    where leases are written down: on a tmpfs, writable for those only who may split GPUs; made if it
///                     is not there
/// @param error        may be NULL
/// @return the caller's, freed with gpuc_mig_devices_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_mig_devices_open(
    driver_root: *const c_char,
    directory: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<MigDevices>> {
    call(error, None, || {
        use std::os::unix::ffi::OsStrExt;
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let root = unsafe { root(driver_root) }?;
        // SAFETY: as above.
        let devices = gpucontainer::gpu::MigDevices::open(&root, unsafe { path(directory, "directory") }?)?;
        let directory = c_string(devices.directory().as_os_str().as_bytes());
        Ok(Some(Box::new(MigDevices { devices, directory })))
    })
}

/// Where leases are written down.
///
/// @param devices  may be NULL, which is an empty string
/// @return a string that lives as long as the object
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_mig_devices_directory(devices: Option<&MigDevices>) -> *const c_char {
    devices.map_or(c"", |devices| devices.directory.as_c_str()).as_ptr()
}

/// Takes a MIG device of a profile: an idle one that is there, or else one that is made, and destroyed with the lease.
///
/// @param profile  as in "1g.10gb"
/// @param among    identifiers of GPUs, and NULL after the last; NULL is any GPU
/// @param error    may be NULL; GPUC_ERROR_GPU_UNAVAILABLE says for each GPU why not
/// @return the caller's, freed with gpuc_mig_lease_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_mig_devices_acquire(
    devices: Option<&MigDevices>,
    profile: *const c_char,
    among: *const *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<MigLease>> {
    call(error, None, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let profile = unsafe { text(profile, "profile") }?;
        let among = match among.is_null() {
            true => Vec::new(),
            // SAFETY: the header asks for NULL or strings with NULL after the last.
            false => unsafe { strings(among, "among") }?,
        };
        let among: Vec<&str> = among.iter().map(String::as_str).collect();
        let lease = given(devices, "devices")?.devices.acquire(profile, &among)?;
        let (uuid, gpu) = (c_string(lease.uuid().as_bytes()), c_string(lease.gpu().as_bytes()));
        Ok(Some(Box::new(MigLease { lease, uuid, gpu })))
    })
}

/// Switches MIG mode of a GPU on or off. Nothing else in this library does.
///
/// @param gpu    its identifier
/// @param error  may be NULL; GPUC_ERROR_BUSY if a process or a MIG device is on the GPU
/// @return a gpuc_mig_mode_change_t, or -1 on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_mig_devices_set_mode(
    devices: Option<&MigDevices>,
    gpu: *const c_char,
    enabled: bool,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let gpu = unsafe { text(gpu, "gpu") }?;
        Ok(match given(devices, "devices")?.devices.set_mode(gpu, enabled)? {
            MigModeChange::Unchanged => gpuc_mig_mode_change_t::GPUC_MIG_MODE_UNCHANGED as c_int,
            MigModeChange::Changed => gpuc_mig_mode_change_t::GPUC_MIG_MODE_CHANGED as c_int,
            MigModeChange::NeedsReset => gpuc_mig_mode_change_t::GPUC_MIG_MODE_NEEDS_RESET as c_int,
            other => {
                return Err(gpucontainer::Error::new(ErrorKind::Unsupported, format!("{other:?} has no number yet")));
            }
        })
    })
}

/// Frees the object. Leases live on.
///
/// @param devices  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_mig_devices_free(devices: Option<Box<MigDevices>>) {
    release(devices);
}

/// The identifier of the device, by which a request can name it.
///
/// @param lease  may be NULL, which is an empty string
/// @return a string that lives as long as the object
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_mig_lease_uuid(lease: Option<&MigLease>) -> *const c_char {
    lease.map_or(c"", |lease| lease.uuid.as_c_str()).as_ptr()
}

/// The identifier of the GPU that the device is a part of.
///
/// @param lease  may be NULL, which is an empty string
/// @return a string that lives as long as the object
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_mig_lease_gpu(lease: Option<&MigLease>) -> *const c_char {
    lease.map_or(c"", |lease| lease.gpu.as_c_str()).as_ptr()
}

/// Whether the device was made for this lease, and is destroyed with it.
///
/// @param lease  may be NULL, which is false
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_mig_lease_is_created(lease: Option<&MigLease>) -> bool {
    lease.is_some_and(|lease| lease.lease.created())
}

/// The device as it was when it was taken, as one JSON object: uuid, index, gpu_instance, compute_instance, profile,
/// memory, processes.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_string_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_mig_lease_device_json(
    lease: Option<&MigLease>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        let json = serde_json::to_string(given(lease, "lease")?.lease.device());
        let wrong = |cause| gpucontainer::Error::new(ErrorKind::Corrupt, format!("a MIG device as JSON: {cause}"));
        Ok(c_string(json.map_err(wrong)?.as_bytes()).into_raw())
    })
}

/// The descriptor that holds the lease: whoever inherits it holds the lease too.
///
/// @param lease  may be NULL
/// @return the object's, which the caller does not close; -1 if there is none
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_mig_lease_fd(lease: Option<&MigLease>) -> c_int {
    lease.map_or(-1, |lease| lease.lease.as_fd().as_raw_fd())
}

/// Gives the device back; destroys it if it was made for this lease.
///
/// @param lease  freed, also on failure
/// @param error  may be NULL; GPUC_ERROR_BUSY if a process still uses it: the next who opens or acquires tries again
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_mig_lease_release(
    lease: Option<Box<MigLease>>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || given(lease, "lease")?.lease.release().map(|()| 0))
}

/// Leaves the lease to those who inherited its descriptor. The device is destroyed by the next who opens or acquires
/// after the last of them has ended.
///
/// @param lease  freed; may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_mig_lease_leave(lease: Option<Box<MigLease>>) {
    if let Some(lease) = lease {
        lease.lease.leave();
    }
}

/// Gives the device back without a word about errors.
///
/// @param lease  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_mig_lease_free(lease: Option<Box<MigLease>>) {
    release(lease);
}
