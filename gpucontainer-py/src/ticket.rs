//! Places in the queue for GPUs, as Python sees them. The class that people use is `gpucontainer.GpuTicket`.

use crate::describe::ours;
use crate::gpu::{AllocatorHandle, LeaseHandle, request};
use crate::image::seconds;
use crate::slot::Slot;
use crate::work::{SIGNALS, in_turns};
use gpucontainer::gpu::GpuTicket;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

/// The handle of a place in the queue.
#[pyclass(frozen, name = "_GpuTicket", module = "gpucontainer._native")]
pub(crate) struct TicketHandle(Slot<Mutex<GpuTicket>>);

#[pymethods]
impl TicketHandle {
    #[new]
    fn new(py: Python<'_>, allocator: &AllocatorHandle, fields: &Bound<'_, PyDict>) -> PyResult<Self> {
        let request = request(fields)?;
        let ticket = ours(py.detach(|| allocator.0.enqueue(&request)))?;
        Ok(Self(Slot::new(Mutex::new(ticket), "place in the queue for GPUs")))
    }

    /// The lease, or None when the time has passed.
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<LeaseHandle>> {
        let timeout = timeout.map(|timeout| seconds("timeout", timeout)).transpose()?;
        let lease = in_turns(py, timeout, SIGNALS, |turn| {
            self.0.with(|ticket| ticket.lock().unwrap_or_else(PoisonError::into_inner).wait(Some(turn)))
        })?;
        Ok(lease.map(|lease| LeaseHandle::holding(&lease)))
    }

    /// A descriptor that belongs to this.
    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        ours(py.detach(|| {
            let number = |ticket: &Mutex<GpuTicket>| {
                ticket.lock().unwrap_or_else(PoisonError::into_inner).poll_fd().map(|fd| fd.as_raw_fd())
            };
            self.0.with(number)
        }))
    }

    fn reason(&self, py: Python<'_>) -> PyResult<String> {
        ours(py.detach(|| {
            let reason = |ticket: &Mutex<GpuTicket>| {
                Ok(ticket.lock().unwrap_or_else(PoisonError::into_inner).reason().to_owned())
            };
            self.0.with(reason)
        }))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.0.take()));
    }
}
