//! What NVML says of the condition of a GPU.

use super::Fault;
use crate::gpu::inventory::{GpuHealth, RemappedRows};
use crate::sys::nvml::facts;

use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

/// The facts, as far as the model has them. That the GPU is lost shows in any call, and is added by the caller.
pub(super) fn health(nvml: &Nvml, device: &Device<'_>, note: &mut impl FnMut(&str, Fault)) -> GpuHealth {
    let uncorrectable = |period| device.total_ecc_errors(MemoryError::Uncorrected, period);
    let rows = facts::remapped_rows(nvml, device).map(|rows| RemappedRows {
        correctable: rows.correctable,
        uncorrectable: rows.uncorrectable,
        pending: rows.pending,
        failed: rows.failed,
    });
    let retired = |cause| facts::retired_pages(nvml, device, cause);
    let retired = retired(facts::SINGLE_BIT_ERRORS).and_then(|single| Ok(single + retired(facts::DOUBLE_BIT_ERROR)?));
    GpuHealth {
        lost: false,
        uncorrectable_errors: known("nvmlDeviceGetTotalEccErrors", uncorrectable(EccCounter::Volatile), note),
        lifetime_uncorrectable_errors: known("nvmlDeviceGetTotalEccErrors", uncorrectable(EccCounter::Aggregate), note),
        retired_pages: known("nvmlDeviceGetRetiredPages", retired, note),
        retirement_pending: known("nvmlDeviceGetRetiredPagesPendingStatus", device.are_pages_pending_retired(), note),
        remapped_rows: known("nvmlDeviceGetRemappedRows", rows, note),
    }
}

fn known<T>(call: &str, answer: Result<T, NvmlError>, note: &mut impl FnMut(&str, Fault)) -> Option<T> {
    answer.map_err(|e| note(call, e.into())).ok()
}
