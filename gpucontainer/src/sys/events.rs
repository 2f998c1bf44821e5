//! Events of NVIDIA's management library, waited for with the library held open.
#![allow(unsafe_code, reason = "function pointers of a C library, taken from the wrapper that loaded it")]

use super::nvml::close;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use std::ffi::{c_uint, c_ulonglong, c_void};
use std::time::{Duration, Instant};

/// The type of an event that is a critical XID.
const XID: c_ulonglong = 8;

#[repr(C)]
struct EventData {
    device: *mut c_void,
    kind: c_ulonglong,
    data: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// The set of events of some GPUs.
#[derive(Debug)]
pub(crate) struct Events {
    /// `None` only while it is dropped.
    nvml: Option<Nvml>,
    set: *mut c_void,
    /// Which GPU a handle stands for: one that is lost can no longer be asked.
    gpus: Vec<(*mut c_void, String)>,
}

// SAFETY: the library allows its sets and handles in any thread, one at a time; every use takes `&mut self`.
unsafe impl Send for Events {}
// SAFETY: as above: a shared reference gives access to nothing of the library.
unsafe impl Sync for Events {}

/// A critical XID.
#[derive(Clone, Debug)]
pub(crate) struct Xid {
    pub(crate) gpu: String,
    pub(crate) number: u64,
    /// GPU instance and compute instance, if it is about a slice.
    pub(crate) slice: Option<(u32, u32)>,
}

/// A call that failed, and how.
pub(crate) type Failure = (&'static str, NvmlError);

impl Events {
    /// Registers for the XIDs of the GPUs, by UUID. One without such events is left out.
    pub(crate) fn open(nvml: Nvml, uuids: &[String]) -> Result<Self, Failure> {
        let mut set = std::ptr::null_mut();
        let create = nvml_sym(nvml.lib().nvmlEventSetCreate.as_ref());
        // SAFETY: the symbol has this type in every version of the library; the pointer is to a live local.
        let created = create.and_then(|create| nvml_try(unsafe { create(&mut set) }));
        let mut events = Self { nvml: Some(nvml), set: set.cast(), gpus: Vec::new() };
        created.map_err(|e| ("nvmlEventSetCreate", e))?;
        for uuid in uuids {
            match events.register(uuid) {
                Ok(handle) => events.gpus.push((handle, uuid.clone())),
                Err(NvmlError::NotSupported) => {}
                Err(e) => return Err(("nvmlDeviceRegisterEvents", e)),
            }
        }
        Ok(events)
    }

    fn library(&self) -> Result<&Nvml, NvmlError> {
        self.nvml.as_ref().ok_or(NvmlError::Uninitialized)
    }

    fn register(&self, uuid: &str) -> Result<*mut c_void, NvmlError> {
        let nvml = self.library()?;
        let device = nvml.device_by_uuid(uuid)?;
        let register = nvml_sym(nvml.lib().nvmlDeviceRegisterEvents.as_ref())?;
        // SAFETY: the handle is used while the library, which `self` owns, is open.
        let handle = unsafe { device.handle() };
        // SAFETY: the symbol has this type in every version of the library; handle and set are the library's own.
        nvml_try(unsafe { register(handle, XID, self.set.cast()) })?;
        Ok(handle.cast())
    }

    /// The next XID; `None` when `timeout` has passed.
    pub(crate) fn next(&mut self, timeout: Duration) -> Result<Option<Xid>, Failure> {
        let fail = |e| ("nvmlEventSetWait_v2", e);
        let start = Instant::now();
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            let milliseconds = c_uint::try_from(left.as_millis()).unwrap_or(c_uint::MAX);
            let mut data =
                EventData { device: std::ptr::null_mut(), kind: 0, data: 0, gpu_instance: 0, compute_instance: 0 };
            let wait = nvml_sym(self.library().map_err(fail)?.lib().nvmlEventSetWait_v2.as_ref()).map_err(fail)?;
            // SAFETY: as above; the pointer is to a live local of the structure that the call fills in.
            match nvml_try(unsafe { wait(self.set.cast(), (&raw mut data).cast(), milliseconds) }) {
                Ok(()) => {}
                // The library also says so when a signal arrived.
                Err(NvmlError::Timeout) if start.elapsed() >= timeout => return Ok(None),
                Err(NvmlError::Timeout) => continue,
                Err(e) => return Err(fail(e)),
            }
            let gpu = self.gpus.iter().find(|(handle, _)| *handle == data.device).map(|(_, uuid)| uuid.clone());
            if let (Some(gpu), XID) = (gpu, data.kind) {
                let whole = data.gpu_instance == c_uint::MAX;
                let slice = (!whole).then_some((data.gpu_instance, data.compute_instance));
                return Ok(Some(Xid { gpu, number: data.data, slice }));
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let Some(nvml) = self.nvml.take() else { return };
        if let (Ok(free), false) = (nvml_sym(nvml.lib().nvmlEventSetFree.as_ref()), self.set.is_null()) {
            // SAFETY: the set is the library's own, and nobody uses it after this.
            let _ = nvml_try(unsafe { free(self.set.cast()) });
        }
        if let Err(error) = close(nvml) {
            tracing::warn!(%error, "nvmlShutdown");
        }
    }
}
