//! What a host can do, as Python sees it. The classes are written in Python, in `gpucontainer.host`.

use crate::error::raise;
use gpucontainer::{Error, ErrorKind, Host};
use pyo3::prelude::*;

/// Looks at the host: everything as JSON, and as a table for people.
#[pyfunction]
pub(crate) fn probe(py: Python<'_>) -> PyResult<(String, String)> {
    // A driver may take seconds to answer; other threads of Python go on.
    py.detach(|| {
        let host = Host::probe();
        let json = serde_json::to_string(&host)
            .map_err(|cause| Error::new(ErrorKind::Corrupt, format!("host as JSON: {cause}")))?;
        Ok((json, host.to_string()))
    })
    .map_err(|error| raise(&error))
}
