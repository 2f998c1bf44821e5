//! A watch for XIDs, as Python sees it. The classes that people use are written in Python, in `gpucontainer.xid`.

use crate::describe::ours;
use crate::image::seconds;
use crate::mig::root;
use crate::slot::Slot;
use crate::work::{SIGNALS, in_turns};
use gpucontainer::gpu::{XidAction, XidEvent, XidWatch};
use pyo3::prelude::*;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// An XID: the GPU, the number, what has to be done, whether the GPU is kept from new leases for it, and the GPU
/// instance and compute instance if it is about a slice.
type Fields = (String, u64, &'static str, bool, Option<(u32, u32)>);

fn fields(event: XidEvent) -> Fields {
    let action = match event.action {
        XidAction::Ignore => "ignore",
        XidAction::RestartApplication => "restart-application",
        XidAction::ResetGpu => "reset-gpu",
        XidAction::RestartMachine => "restart-machine",
        // Somebody has to look at what has no name yet.
        _ => "inspect",
    };
    (event.gpu, event.xid, action, event.action.quarantines(), event.slice)
}

/// The handle of a watch.
#[pyclass(frozen, name = "_XidWatch", module = "gpucontainer._native")]
pub(crate) struct XidWatchHandle(Slot<Mutex<XidWatch>>);

#[pymethods]
impl XidWatchHandle {
    #[new]
    fn new(py: Python<'_>, gpus: Vec<String>, driver_root: Option<PathBuf>) -> PyResult<Self> {
        let watch = ours(py.detach(|| XidWatch::open(&root(driver_root), gpus)))?;
        Ok(Self(Slot::new(Mutex::new(watch), "watch for XIDs")))
    }

    /// The next XID, or None when the time has passed.
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Fields>> {
        let timeout = timeout.map(|timeout| seconds("timeout", timeout)).transpose()?;
        let event = in_turns(py, timeout, SIGNALS, |turn| {
            self.0.with(|watch| watch.lock().unwrap_or_else(PoisonError::into_inner).next(turn))
        })?;
        Ok(event.map(fields))
    }

    /// A descriptor that belongs to this.
    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        ours(py.detach(|| {
            let number = |watch: &Mutex<XidWatch>| {
                watch.lock().unwrap_or_else(PoisonError::into_inner).poll_fd().map(|fd| fd.as_raw_fd())
            };
            self.0.with(number)
        }))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.0.take()));
    }
}
