//! Which GPUs this host has, and how they are used at this moment.

mod amd;
mod bus;
mod health;
mod links;
#[cfg(feature = "nvml")]
pub(in crate::gpu) mod nvml;
mod platform;
mod sysfs;

pub use health::{GpuHealth, RemappedRows};
pub use links::{Fabric, GpuPair, NvLink, NvLinkEnd, PciPath};

use crate::gpu::driver::root::DriverRoot;
use crate::gpu::request::Vendor;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The memory of a GPU or a MIG device, in bytes, at the moment of the inventory.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GpuMemory {
    /// All of it.
    pub total: u64,
    /// What can still be allocated.
    pub free: u64,
}

/// A slice of a GPU in MIG mode, as it exists now.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MigDevice {
    /// `MIG-…`, stable while the slice exists.
    pub uuid: String,
    /// The number of the slice among those of its GPU, as in `0:1`.
    pub index: u32,
    /// The identifier of the GPU instance.
    pub gpu_instance: u32,
    /// The identifier of the compute instance within the GPU instance.
    pub compute_instance: u32,
    /// The profile, as in `1g.10gb`; empty if the driver does not say.
    pub profile: String,
    /// Its memory, if the driver says.
    pub memory: Option<GpuMemory>,
    /// The processes of the host that use it.
    pub processes: Vec<u32>,
}

/// One GPU of this host.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Gpu {
    /// Who made it.
    pub vendor: Vendor,
    /// `GPU-…` for NVIDIA; for others the vendor's name and the card's own number or its bus address.
    pub uuid: String,
    /// Its place among the GPUs of its vendor, by bus address, from 0. May change at a reboot.
    pub index: u32,
    /// The number in its device node, `/dev/nvidiaN` or `/dev/dri/renderDN`: not the same as the index. Under WSL, where
    /// there is one node for all, it is the index.
    pub minor: u32,
    /// The name of the product.
    pub name: String,
    /// Its memory, if the driver says.
    pub memory: Option<GpuMemory>,
    /// The CUDA compute capability, as in `(9, 0)`; NVIDIA only.
    pub compute_capability: Option<(u32, u32)>,
    /// The bus address as the kernel writes it: `0000:07:00.0`; empty for the GPU in a processor of NVIDIA's.
    pub pci_bus_id: String,
    /// The NUMA node that it is attached to; `None` on a host with one node.
    pub numa_node: Option<u32>,
    /// The CPUs near to it, ascending; empty if unknown.
    pub cpu_affinity: Vec<u32>,
    /// Whether it is split, that is, in MIG mode.
    pub mig_enabled: bool,
    /// Its slices; empty if it is not split, or nobody has made any.
    pub mig_devices: Vec<MigDevice>,
    /// The processes of the host that use it, ascending, those of its slices too.
    pub processes: Vec<u32>,
    /// Further device nodes of it, below `/dev/dri`, for drawing.
    pub render_nodes: Vec<PathBuf>,
    /// Its NVLinks that are up, by number.
    pub nvlinks: Vec<NvLink>,
    /// The NVLink fabric that it has joined, if any.
    pub fabric: Option<Fabric>,
    /// The NUMA nodes whose memory is near to it, ascending; empty if unknown.
    pub memory_nodes: Vec<u32>,
    /// The brand as requirements of images name it: `tesla`, `geforce`, `nvidiartx`, …; NVIDIA only.
    pub brand: Option<String>,
    /// What it says of its own condition.
    pub health: GpuHealth,
}

impl Gpu {
    /// Whether it is in a processor of NVIDIA's (Tegra), as its driver says by its name.
    pub(crate) fn is_integrated(&self) -> bool {
        self.vendor == Vendor::Nvidia && self.name.ends_with(platform::INTEGRATED)
    }
}

/// What this host has in GPUs, and why not if it has none.
///
/// A snapshot: nothing is kept open, and a second call may find something else.
///
/// ```
/// let inventory = gpucontainer::gpu::Inventory::discover();
/// match inventory.unavailable() {
///     Some(reason) => println!("no NVIDIA GPU: {reason}"),
///     None => inventory.gpus().iter().for_each(|gpu| println!("{}: {}", gpu.index, gpu.name)),
/// }
/// ```
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Inventory {
    pub(crate) driver_version: Option<String>,
    pub(crate) cuda_version: Option<(u32, u32)>,
    pub(crate) gpus: Vec<Gpu>,
    pub(crate) pairs: Vec<GpuPair>,
    pub(crate) unavailable: Option<String>,
    pub(crate) problems: Vec<String>,
}

impl Inventory {
    /// Looks for GPUs, in the driver root that the environment names; see [`DriverRoot::from_environment`].
    ///
    /// Takes as long as the driver's management library takes to start: some milliseconds with
    /// persistence mode on, up to seconds for each GPU without. The library is loaded for the
    /// call and unloaded after it.
    ///
    /// The GPU in a processor of NVIDIA's (Tegra) is listed without that library, too: as `GPU-nvgpu`, with the memory
    /// of the whole system as its own. GPUs of Windows, which WSL shows, are listed as one, `GPU-dxg`, if the library does
    /// not start there.
    pub fn discover() -> Self {
        Self::discover_with(&DriverRoot::from_environment())
    }

    /// Looks for GPUs whose driver is in `root`.
    pub fn discover_with(root: &DriverRoot) -> Self {
        let mut inventory = Self::nvidia(root);
        platform::complete(root, &mut inventory);
        for gpu in &mut inventory.gpus {
            sysfs::complete(root, gpu);
        }
        inventory.gpus.extend(sysfs::other_vendors(root));
        bus::complete(root, &inventory.gpus, &mut inventory.pairs);
        tracing::debug!(
            gpus = inventory.gpus.len(),
            unavailable = inventory.unavailable.as_deref(),
            problems = ?inventory.problems,
            "GPU inventory"
        );
        inventory
    }

    #[cfg(feature = "nvml")]
    fn nvidia(root: &DriverRoot) -> Self {
        nvml::inventory(root)
    }

    #[cfg(not(feature = "nvml"))]
    fn nvidia(_root: &DriverRoot) -> Self {
        Self::none("this library was built without the feature nvml")
    }

    pub(crate) fn none(reason: impl Into<String>) -> Self {
        Self { unavailable: Some(reason.into()), ..Self::default() }
    }

    /// The GPUs: NVIDIA's by index, then those of other vendors.
    pub fn gpus(&self) -> &[Gpu] {
        &self.gpus
    }

    /// What lies between each two GPUs, as far as anybody says. [`Topology`](crate::gpu::Topology) sums it up.
    pub fn pairs(&self) -> &[GpuPair] {
        &self.pairs
    }

    /// Why no NVIDIA GPU can be used: no driver, no kernel module, no GPU. `None` if one can.
    pub fn unavailable(&self) -> Option<&str> {
        self.unavailable.as_deref()
    }

    /// What went wrong with single GPUs, each of which is left out or lacks what could not be read.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The version of the NVIDIA driver, as in `550.163.01`.
    pub fn driver_version(&self) -> Option<&str> {
        self.driver_version.as_deref()
    }

    /// The newest CUDA version that the NVIDIA driver supports, as in `(12, 4)`.
    pub fn cuda_version(&self) -> Option<(u32, u32)> {
        self.cuda_version
    }
}
