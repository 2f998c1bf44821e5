//! GPUs: what is there, and what a container needs to use it.
//!
//! ```text
//! Inventory  what the host has ───┐
//! GpuRequest what is asked for ───┼─► grant() ─► GpuGrant, plain data: nodes, mounts, links, variables
//! Driver     its files on the host┤
//! ImageFacts where they go ───────┘
//! ```
//!
//! No hook and no helper program of NVIDIA's is involved, and nothing of the image is executed.

mod assemble;
mod catalog;
mod devices;
mod driver;
mod driver_root;
mod elf;
mod grant;
mod image_facts;
mod inventory;
mod loader_cache;
#[cfg(feature = "nvml")]
mod nvml;
mod request;
mod select;
mod sysfs;

pub use assemble::{grant, grant_from};
pub use driver::{Driver, DriverFile, DriverLibrary};
pub use driver_root::DriverRoot;
pub use grant::{DeviceNode, FileMount, FileTree, GpuGrant, MountKind, Symlink, TextFile};
pub use image_facts::ImageFacts;
pub use inventory::{Gpu, GpuMemory, Inventory, MigDevice};
pub use request::{DriverCapability, GpuName, GpuRequest, Vendor};
