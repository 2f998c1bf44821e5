//! MIG devices by themselves, as Python sees them. The classes that people use are written in Python, in
//! `gpucontainer.mig`.

use crate::describe::ours;
use crate::slot::Slot;
use gpucontainer::gpu::{DriverRoot, MigDevices, MigLease, MigModeChange};
use gpucontainer::{Error, ErrorKind};
use pyo3::prelude::*;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

/// Where a driver's user space is.
pub(crate) fn root(path: Option<PathBuf>) -> DriverRoot {
    path.map_or_else(DriverRoot::from_environment, DriverRoot::new)
}

/// The handle of the MIG devices of a host.
#[pyclass(frozen, name = "_MigDevices", module = "gpucontainer._native")]
pub(crate) struct MigDevicesHandle(MigDevices);

#[pymethods]
impl MigDevicesHandle {
    #[new]
    fn new(py: Python<'_>, directory: PathBuf, driver_root: Option<PathBuf>) -> PyResult<Self> {
        ours(py.detach(|| MigDevices::open(&root(driver_root), directory))).map(Self)
    }

    fn directory(&self) -> PathBuf {
        self.0.directory().to_owned()
    }

    fn acquire(&self, py: Python<'_>, profile: &str, among: Vec<String>) -> PyResult<MigLeaseHandle> {
        let among: Vec<&str> = among.iter().map(String::as_str).collect();
        let lease = ours(py.detach(|| self.0.acquire(profile, &among)))?;
        Ok(MigLeaseHandle(Slot::new(lease, "lease on a MIG device")))
    }

    fn set_mode(&self, py: Python<'_>, gpu: &str, enabled: bool) -> PyResult<&'static str> {
        Ok(match ours(py.detach(|| self.0.set_mode(gpu, enabled)))? {
            MigModeChange::Unchanged => "unchanged",
            MigModeChange::Changed => "changed",
            MigModeChange::NeedsReset => "needs-reset",
            _ => "unknown",
        })
    }
}

/// What a lease says of itself: the GPU, whether the device was made, and the device as JSON.
type MigFields = (String, bool, String);

/// The handle of a lease on a MIG device.
#[pyclass(frozen, name = "_MigLease", module = "gpucontainer._native")]
pub(crate) struct MigLeaseHandle(Slot<MigLease>);

#[pymethods]
impl MigLeaseHandle {
    fn fields(&self) -> PyResult<MigFields> {
        ours(self.0.with(|lease| {
            let wrong = |cause| Error::new(ErrorKind::Corrupt, format!("a MIG device as JSON: {cause}"));
            let device = serde_json::to_string(lease.device()).map_err(wrong)?;
            Ok((lease.gpu().to_owned(), lease.created(), device))
        }))
    }

    fn fileno(&self) -> PyResult<i32> {
        ours(self.0.with(|lease| Ok(lease.as_fd().as_raw_fd())))
    }

    /// Gives the device back; a second time does nothing.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        ours(py.detach(|| self.0.take().map_or(Ok(()), MigLease::release)))
    }

    fn leave(&self) {
        if let Some(lease) = self.0.take() {
            lease.leave();
        }
    }

    /// Gives the device back without a word about errors.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.0.take()));
    }
}
