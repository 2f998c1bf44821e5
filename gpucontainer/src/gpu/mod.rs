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

mod allocator;
pub mod cdi;
mod driver;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod grant;
mod injection;
mod inventory;
mod request;
mod select;
mod topology;

pub use allocator::{
    ForeignProcesses, GpuAllocator, GpuLease, GpuStatus, GpuTicket, HeldGpu, LeaseStatus, Mps, MpsGroup, Placement,
    Sharing, TicketStatus, Wait,
};
pub use allocator::{GpuFault, Quarantine, QuarantinedGpu, XidAction};
#[cfg(feature = "nvml")]
pub use allocator::{MigDevices, MigLease, MigModeChange, XidEvent, XidWatch};
pub use driver::root::DriverRoot;
pub use driver::{Driver, DriverFile, DriverLibrary};
pub use grant::{
    DeviceNode, FileMount, FileTree, GpuGrant, HookMoment, MountKind, NodeAccess, OwnFile, Symlink, TextFile,
    VendorHook,
};
pub use injection::image_facts::ImageFacts;
pub(crate) use injection::known_images::known_facts;
pub use injection::{grant, grant_from};
pub use inventory::{
    Fabric, Gpu, GpuHealth, GpuMemory, GpuPair, Inventory, MigDevice, NvLink, NvLinkEnd, PciPath, RemappedRows,
};
pub use request::{DriverCapability, DriverExtra, GpuName, GpuRequest, Vendor};
pub use topology::{GpuSet, Topology};
