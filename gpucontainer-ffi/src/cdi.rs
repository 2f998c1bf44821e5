//! Specifications of the Container Device Interface, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::boundary::{c_string, call, given, path, strings};
use crate::error::Error;
use crate::gpu::GpuRequest;
use gpucontainer::gpu::cdi::{Catalogue, Spec};
use gpucontainer::gpu::{DriverRoot, ImageFacts, Inventory};
use std::ffi::c_char;
use std::mem::MaybeUninit;

/// The specification of what sandboxes with the GPUs of a request would be given, for other engines to read.
///
/// @param request      mostly for "all"
/// @param driver_root  where the GPU driver's user space is; NULL is where GPUCONTAINER_DRIVER_ROOT says, or the host's
/// @param error        may be NULL; GPUC_ERROR_GPU_UNAVAILABLE
/// @return JSON of CDI 1.1; the caller's, freed with gpuc_string_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_cdi_spec_json(
    request: Option<&GpuRequest>,
    driver_root: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        let request = given(request, "request")?.ready()?;
        let root = match driver_root.is_null() {
            true => DriverRoot::from_environment(),
            // SAFETY: the header asks for NULL or a string that ends with a zero byte.
            false => DriverRoot::new(unsafe { path(driver_root, "driver_root") }?),
        };
        let spec = Spec::of_host(&request, &Inventory::discover_with(&root), &root, &ImageFacts::default())?;
        Ok(c_string(spec.to_json()?.as_bytes()).into_raw())
    })
}

/// The devices that the specifications of this host describe, by the names that a request can have.
///
/// @param directories  strings, and NULL after the last; NULL is /etc/cdi and /var/run/cdi
/// @param error        may be NULL
/// @return a JSON object with lists: devices, and problems, what could not be read or is described twice; the caller's,
///         freed with gpuc_string_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_cdi_devices_json(
    directories: *const *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        let catalogue = match directories.is_null() {
            true => Catalogue::read(),
            // SAFETY: the header asks for NULL or strings with NULL after the last.
            false => Catalogue::read_from(&unsafe { strings(directories, "directories") }?),
        };
        let names: Vec<String> = catalogue.names().map(ToString::to_string).collect();
        let json = serde_json::json!({ "devices": names, "problems": catalogue.problems() });
        Ok(c_string(json.to_string().as_bytes()).into_raw())
    })
}
