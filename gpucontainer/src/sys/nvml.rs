//! The calls of NVIDIA's management library that its safe wrapper lacks.
#![allow(unsafe_code, reason = "function pointers of a C library, taken from the wrapper that loaded it")]

pub(crate) mod facts;

use nvml_wrapper::error::{NvmlError, nvml_try};
use nvml_wrapper::{Device, Nvml};

/// The identifiers of the GPU instance and the compute instance behind the handle of a MIG device.
pub(crate) fn instances(nvml: &Nvml, mig: &Device<'_>) -> Result<(u32, u32), NvmlError> {
    let missing = |e: &dyn std::fmt::Display| NvmlError::FailedToLoadSymbol(e.to_string());
    let gpu_instance = nvml.lib().nvmlDeviceGetGpuInstanceId.as_ref().map_err(|e| missing(e))?;
    let compute_instance = nvml.lib().nvmlDeviceGetComputeInstanceId.as_ref().map_err(|e| missing(e))?;
    // SAFETY: the handle is used while `nvml`, which gave it out and which `mig` borrows, is alive.
    let handle = unsafe { mig.handle() };
    let (mut gpu, mut compute) = (0, 0);
    // SAFETY: the symbol has this type in every version of the library; both pointers are good for the call.
    nvml_try(unsafe { gpu_instance(handle, &mut gpu) })?;
    // SAFETY: as above.
    nvml_try(unsafe { compute_instance(handle, &mut compute) })?;
    Ok((gpu, compute))
}

/// Ends the use of the library and unloads it.
///
/// A library without the function that ends its use stays loaded: the wrapper would panic.
pub(crate) fn close(nvml: Nvml) -> Result<(), NvmlError> {
    if let Err(e) = &nvml.lib().nvmlShutdown {
        let error = NvmlError::FailedToLoadSymbol(e.to_string());
        std::mem::forget(nvml);
        return Err(error);
    }
    nvml.shutdown()
}
