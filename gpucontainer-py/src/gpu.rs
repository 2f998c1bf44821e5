//! Requests for GPUs and leases on them, as Python sees them. The classes that people use are written in Python, in
//! `gpucontainer.gpu`.

use crate::describe::{ours, refuse};
use crate::image::seconds;
use crate::slot::Slot;
use crate::work::{Callback, Cancel};
use gpucontainer::gpu::cdi::VendorHooks;
use gpucontainer::gpu::{
    DriverCapability, DriverRoot, ForeignProcesses, GpuAllocator, GpuFault, GpuGrant, GpuLease, GpuRequest, Mps,
    Placement, QuarantinedGpu, Sharing, Topology, Vendor, Wait,
};
use gpucontainer::{Error, ErrorKind, Host, Result};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

/// Which GPUs: how many, words, or a list of names.
fn which(value: &Bound<'_, PyAny>) -> PyResult<GpuRequest> {
    if let Ok(count) = value.extract::<u32>() {
        return Ok(GpuRequest::count(count));
    }
    if let Ok(text) = value.extract::<String>() {
        return if text == "image" { Ok(GpuRequest::as_image_says()) } else { ours(text.parse()) };
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
            "vendor" => request.vendor(match value.extract::<String>()?.as_str() {
                "nvidia" => Vendor::Nvidia,
                "amd" => Vendor::Amd,
                "intel" => Vendor::Intel,
                other => return refuse(format!("no vendor is called {other:?}")),
            }),
            "min_total_memory" => request.min_total_memory(value.extract()?),
            "min_compute_capability" => {
                let (major, minor) = value.extract()?;
                request.min_compute_capability(major, minor)
            }
            "model" => request.model(value.extract::<String>()?),
            "mig_profile" => request.mig_profile(value.extract::<String>()?),
            "make_mig_devices" => request.make_mig_devices(value.extract()?),
            "shared" => request.sharing(Sharing::Shared(value.extract()?)),
            "fraction" => request.sharing(Sharing::Fraction(value.extract()?)),
            "placement" => request.placement(match value.extract::<String>()?.as_str() {
                "best" => Placement::Best,
                "nvlink-required" => Placement::NvlinkRequired,
                "same-numa-node" => Placement::SameNumaNode,
                "keep-pairs" => Placement::KeepPairs,
                "spread" => Placement::Spread,
                other => return refuse(format!("no placement is called {other:?}")),
            }),
            "foreign_processes" => request.foreign_processes(match value.extract::<String>()?.as_str() {
                "avoid" => ForeignProcesses::Avoid,
                "ignore" => ForeignProcesses::Ignore,
                "fail" => ForeignProcesses::Fail,
                other => return refuse(format!("no policy for foreign processes is called {other:?}")),
            }),
            "extras" => {
                let names: Vec<String> = value.extract()?;
                request.extras(ours(names.iter().map(|name| name.parse()).collect::<Result<Vec<_>>>())?)
            }
            "imex_channels" => request.imex_channels(value.extract::<Vec<u32>>()?),
            "cdi_directories" => request.cdi_directories(value.extract::<Vec<PathBuf>>()?),
            "vendor_hooks" => request.vendor_hooks(match value.extract::<String>()?.as_str() {
                "refuse" => VendorHooks::Refuse,
                "skip" => VendorHooks::Skip,
                "run" => VendorHooks::Run,
                other => return refuse(format!("no policy for hooks is called {other:?}")),
            }),
            "priority" => request.priority(value.extract()?),
            "multi_process_service" => request.multi_process_service(value.extract()?),
            "mps" => {
                let (threads, memory) = value.extract::<(Option<u32>, Option<u64>)>()?;
                let mps = threads.map_or_else(Mps::new, |percent| Mps::new().active_threads(percent));
                request.mps(memory.map_or(mps.clone(), |bytes| mps.device_memory(bytes)))
            }
            other => return refuse(format!("a request for GPUs has no {other:?}")),
        };
    }
    Ok(request)
}

/// How long to wait for GPUs, in seconds; `None` is for ever.
pub(crate) fn until(timeout: Option<f64>) -> PyResult<Wait> {
    timeout.map_or_else(|| Ok(Wait::forever()), |timeout| Ok(Wait::at_most(seconds("timeout", timeout)?)))
}

/// A GPU in quarantine: which, why, and since which second of Unix time.
type Quarantined = (String, String, f64);

fn quarantined(one: &QuarantinedGpu) -> Quarantined {
    (one.gpu.clone(), one.reason(), one.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())
}

/// The handle of an allocator, which holds nothing open.
#[pyclass(frozen, name = "_GpuAllocator", module = "gpucontainer._native")]
pub(crate) struct AllocatorHandle(pub(crate) GpuAllocator);

#[pymethods]
impl AllocatorHandle {
    #[new]
    fn new(
        path: Option<PathBuf>,
        driver_root: Option<PathBuf>,
        memory_return: Option<f64>,
        mps_start: Option<f64>,
        respect_outer: bool,
    ) -> PyResult<Self> {
        let mut allocator = ours(path.map_or_else(GpuAllocator::open, GpuAllocator::at))?.respect_outer(respect_outer);
        if let Some(root) = driver_root {
            allocator = allocator.driver_root(DriverRoot::new(root));
        }
        if let Some(limit) = memory_return {
            allocator = allocator.memory_return(seconds("memory_return", limit)?);
        }
        if let Some(limit) = mps_start {
            allocator = allocator.mps_start(seconds("mps_start", limit)?);
        }
        Ok(Self(allocator))
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    /// Waits on a thread of its own, so that signals are seen.
    fn acquire(
        &self,
        py: Python<'_>,
        fields: &Bound<'_, PyDict>,
        timeout: Option<f64>,
        cancel: Option<&Cancel>,
    ) -> PyResult<LeaseHandle> {
        let request = request(fields)?;
        let callback = Callback::new(None, cancel);
        let wait = until(timeout)?.cancel(&callback.cancel());
        let lease = callback.run(py, || self.0.acquire(&request, wait))?;
        Ok(LeaseHandle::holding(&lease))
    }

    /// The GPUs in quarantine, once their health was looked after.
    fn review(&self, py: Python<'_>) -> PyResult<Vec<Quarantined>> {
        ours(py.detach(|| Ok(self.0.review()?.iter().map(quarantined).collect())))
    }

    /// As JSON, and as a table for people; then the GPUs in quarantine.
    fn status(&self, py: Python<'_>) -> PyResult<(String, String, Vec<Quarantined>)> {
        ours(py.detach(|| {
            let status = self.0.status()?;
            let wrong = |cause| Error::new(ErrorKind::Corrupt, format!("leases as JSON: {cause}"));
            let kept = status.quarantined.iter().map(quarantined).collect();
            Ok((serde_json::to_string(&status).map_err(wrong)?, status.to_string(), kept))
        }))
    }

    fn quarantine(&self, py: Python<'_>, gpu: &str) -> PyResult<bool> {
        ours(py.detach(|| self.0.quarantine().report(gpu, GpuFault::Requested)))
    }

    fn report_xid(&self, py: Python<'_>, gpu: &str, xid: u64) -> PyResult<bool> {
        ours(py.detach(|| self.0.quarantine().report(gpu, GpuFault::Xid(xid))))
    }

    fn readmit(&self, py: Python<'_>, gpu: &str) -> PyResult<bool> {
        ours(py.detach(|| self.0.quarantine().release(gpu)))
    }
}

/// What a lease says of itself: id, GPUs, CPUs, NUMA nodes, description.
type LeaseFields = (String, Vec<String>, Vec<u32>, Vec<u32>, String);

/// The handle of a lease.
#[pyclass(frozen, name = "_GpuLease", module = "gpucontainer._native")]
pub(crate) struct LeaseHandle(Slot<GpuLease>);

impl LeaseHandle {
    /// A clone of somebody's.
    pub(crate) fn holding(lease: &GpuLease) -> Self {
        Self(Slot::new(lease.clone(), "GPU lease"))
    }

    /// A clone, for a sandbox.
    pub(crate) fn lease(&self) -> PyResult<GpuLease> {
        ours(self.0.with(|lease| Ok(lease.clone())))
    }
}

#[pymethods]
impl LeaseHandle {
    fn fields(&self) -> PyResult<LeaseFields> {
        ours(self.0.with(|lease| {
            let (cpus, nodes) = (lease.cpus().to_vec(), lease.numa_nodes().to_vec());
            Ok((lease.id().to_owned(), lease.gpus().to_vec(), cpus, nodes, lease.describe().to_owned()))
        }))
    }

    /// The MPS daemon as JSON.
    fn mps(&self) -> PyResult<Option<String>> {
        let wrong = |cause| Error::new(ErrorKind::Corrupt, format!("MPS daemon as JSON: {cause}"));
        ours(self.0.with(|lease| lease.mps()?.map(|group| serde_json::to_string(&group).map_err(wrong)).transpose()))
    }

    /// Gives the GPUs up; a second time does nothing.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        ours(py.detach(|| self.0.take().map_or(Ok(()), GpuLease::release)))
    }

    /// Gives up this handle; whoever else holds the lease keeps it.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.0.take()));
    }

    /// The descriptor that holds the lease from now on.
    fn descriptor(&self) -> PyResult<i32> {
        let lease = self.0.take().ok_or_else(|| Error::new(ErrorKind::Closed, "the GPU lease was closed"));
        ours(lease.and_then(|lease| Ok(lease.into_fd()?.into_raw_fd())))
    }
}

/// What a sandbox was granted.
#[pyclass(frozen, name = "_GpuGrant", module = "gpucontainer._native")]
pub(crate) struct GrantHandle(pub(crate) GpuGrant);

#[pymethods]
impl GrantHandle {
    fn json(&self) -> PyResult<String> {
        let wrong = |cause| Error::new(ErrorKind::Corrupt, format!("grant as JSON: {cause}"));
        ours(serde_json::to_string(&self.0).map_err(wrong))
    }

    fn same(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// How near the host's GPUs are to each other, as a table for people.
#[pyfunction]
pub(crate) fn topology(py: Python<'_>) -> String {
    py.detach(|| Topology::of(Host::probe().gpus()).to_string())
}
