//! Specifications of the Container Device Interface, as Python sees them; the functions that people use are written in
//! Python, in `gpucontainer.cdi`.

use crate::describe::ours;
use crate::gpu::request;
use gpucontainer::gpu::cdi::{Catalogue, Spec};
use gpucontainer::gpu::{DriverRoot, ImageFacts, Inventory};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::path::PathBuf;

/// The specification of what a request would be given, as JSON.
#[pyfunction]
pub(crate) fn cdi_spec(py: Python<'_>, fields: &Bound<'_, PyDict>, driver_root: Option<PathBuf>) -> PyResult<String> {
    let request = request(fields)?;
    let root = driver_root.map_or_else(DriverRoot::from_environment, DriverRoot::new);
    let spec = || Spec::of_host(&request, &Inventory::discover_with(&root), &root, &ImageFacts::default())?.to_json();
    ours(py.detach(spec))
}

/// The names of the devices that specifications describe, and what is wrong with these.
#[pyfunction]
pub(crate) fn cdi_devices(py: Python<'_>, directories: Option<Vec<PathBuf>>) -> (Vec<String>, Vec<String>) {
    py.detach(|| {
        let catalogue = directories.map_or_else(Catalogue::read, |directories| Catalogue::read_from(&directories));
        (catalogue.names().map(ToString::to_string).collect(), catalogue.problems())
    })
}
