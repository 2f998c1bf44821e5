//! What a host can do, as C sees it.
#![allow(unsafe_code, reason = "exported names could clash with those of another library")]

use crate::boundary::{c_string, call, given, text};
use crate::error::Error;
use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;

/// What this host can do for the user who asked; a snapshot. Any number of threads may use it at once.
#[derive(Debug)]
pub struct Host {
    pub(crate) host: gpucontainer::Host,
    text: CString,
    json: CString,
}

/// Looks at everything that matters to a container. Changes nothing.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_host_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_host_probe(error: Option<&mut MaybeUninit<Option<Box<Error>>>>) -> Option<Box<Host>> {
    call(error, None, || {
        let host = gpucontainer::Host::probe();
        let json = serde_json::to_string(&host).map_err(|cause| {
            gpucontainer::Error::new(gpucontainer::ErrorKind::Corrupt, format!("host as JSON: {cause}"))
        })?;
        Ok(Some(Box::new(Host { text: c_string(host.to_string().as_bytes()), json: c_string(json.as_bytes()), host })))
    })
}

/// Whether the host has a capability, as in "user-namespaces". The names are those that gpuc_host_text shows.
///
/// @param host  may be NULL, which has none
/// @param name  may be NULL, which no host has
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_host_has(host: Option<&Host>, name: *const c_char) -> bool {
    call(None, false, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let name = unsafe { text(name, "name") }?;
        Ok(given(host, "host")?.host.has(name))
    })
}

/// How many GPUs the host has, split ones counted once.
///
/// @param host  may be NULL, which has none
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_host_gpu_count(host: Option<&Host>) -> usize {
    call(None, 0, || Ok(given(host, "host")?.host.gpus().gpus().len()))
}

/// A table for people: one line for each capability and each GPU.
///
/// @param host  may be NULL, which is an empty string
/// @return a string that lives as long as the object
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_host_text(host: Option<&Host>) -> *const c_char {
    host.map_or(c"", |host| host.text.as_c_str()).as_ptr()
}

/// Everything as one JSON object.
///
/// @param host  may be NULL, which is an empty string
/// @return a string that lives as long as the object
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_host_json(host: Option<&Host>) -> *const c_char {
    host.map_or(c"", |host| host.json.as_c_str()).as_ptr()
}

/// Frees what gpuc_host_probe returned.
///
/// @param host  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_host_free(host: Option<Box<Host>>) {
    drop(host);
}
