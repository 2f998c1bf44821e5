//! The Container Device Interface: descriptions of devices of any vendor, in files.
//!
//! ```text
//! /etc/cdi, /var/run/cdi ─► Catalogue ─► grant of vendor.com/class=name ─► GpuGrant
//! Inventory, driver      ─► Spec::of_host ─► file for other engines
//! ```
//!
//! What a request gets that names such devices is said by these files alone. Where they are leased, the host's inventory
//! says which GPUs they are.
//!
//! # References
//! <https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>

mod catalogue;
mod check;
pub(in crate::gpu) mod hooks;
mod inject;
mod kernel;
mod names;
mod of_host;
mod request;
mod spec;
pub(in crate::gpu) mod version;
mod yaml;

pub use catalogue::Catalogue;
pub use hooks::VendorHooks;
pub use names::DeviceName;
pub(crate) use request::Reading;
pub use spec::{ContainerEdits, Device, DeviceNode, Hook, IntelRdt, Mount, NetDevice, Spec};
