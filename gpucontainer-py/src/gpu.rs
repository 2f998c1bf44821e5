//! Requests for GPUs, as Python sees them. The class is written in Python, in `gpucontainer.gpu`.

use crate::describe::{ours, refuse};
use gpucontainer::gpu::{DriverCapability, GpuRequest};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Which GPUs: how many, words, or a list of names.
fn which(value: &Bound<'_, PyAny>) -> PyResult<GpuRequest> {
    if let Ok(count) = value.extract::<u32>() {
        return Ok(GpuRequest::count(count));
    }
    if let Ok(text) = value.extract::<String>() {
        return ours(text.parse());
    }
    let names: Vec<String> = value.extract()?;
    ours(GpuRequest::named(names))
}

/// The request that the fields of the class describe; those that are None were left out in Python.
pub(crate) fn request(fields: &Bound<'_, PyDict>) -> PyResult<GpuRequest> {
    let mut request = match fields.get_item("gpus")? {
        Some(value) => which(&value)?,
        None => GpuRequest::none(),
    };
    for (key, value) in fields {
        request = match key.extract::<String>()?.as_str() {
            "gpus" => request,
            "min_free_memory" => request.min_free_memory(value.extract()?),
            "capabilities" => {
                let names: Vec<String> = value.extract()?;
                if names.is_empty() {
                    request.capabilities([])
                } else {
                    request.capabilities(ours(DriverCapability::parse_list(&names.join(",")))?)
                }
            }
            "multi_process_service" => request.multi_process_service(value.extract()?),
            other => return refuse(format!("a request for GPUs has no {other:?}")),
        };
    }
    Ok(request)
}
