//! The Python face of gpucontainer: conversions alone, no behaviour.

mod cdi;
mod describe;
mod error;
mod events;
mod gpu;
mod host;
mod image;
mod mapper;
mod mig;
mod network;
mod sandbox;
mod slot;
mod ticket;
mod work;
mod xid;

use pyo3::prelude::*;

/// The compiled half of the package `gpucontainer`.
#[pymodule(gil_used = false)]
mod _native {
    use super::*;

    #[pymodule_export]
    use super::cdi::{cdi_devices, cdi_spec};
    #[pymodule_export]
    use super::events::listen;
    #[pymodule_export]
    use super::gpu::{AllocatorHandle, GrantHandle, LeaseHandle, topology};
    #[pymodule_export]
    use super::host::probe;
    #[pymodule_export]
    use super::image::{Image, ImageBuilder, ImageStore};
    #[pymodule_export]
    use super::mapper::{ExposedHandle, NamespaceHandle, PublishedHandle, ReservationHandle};
    #[pymodule_export]
    use super::mig::{MigDevicesHandle, MigLeaseHandle};
    #[pymodule_export]
    use super::network::MemberHandle;
    #[pymodule_export]
    use super::sandbox::{ProcessHandle, SandboxHandle, activated, collect_abandoned, enter, explain};
    #[pymodule_export]
    use super::ticket::TicketHandle;
    #[pymodule_export]
    use super::work::{Cancel, Progress};
    #[pymodule_export]
    use super::xid::XidWatchHandle;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
