//! Requests that name devices of specifications: which GPUs of the host those are.
//!
//! A specification may call a GPU what it likes. What tells is which nodes it gives: those of a GPU of the inventory,
//! or, of a split GPU, those of a MIG device's capabilities. A device without any is no GPU, and needs no lease.

use crate::error::Result;
use crate::gpu::allocator::choice::wishes::ForeignProcesses;
use crate::gpu::cdi::{Device, Spec};
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::injection::capability_names;
use crate::gpu::injection::devices::parse_capabilities;
use crate::gpu::inventory::{Gpu, Inventory, MigDevice};
use crate::gpu::request::{GpuName, GpuRequest, Vendor, Which};
use crate::gpu::select;

use std::collections::BTreeMap;
use std::path::Path;

impl GpuRequest {
    /// The request with what its devices of specifications stand for.
    ///
    /// # Errors
    /// Those of [`Catalogue::find`](crate::gpu::cdi::Catalogue::find).
    pub(in crate::gpu::allocator) fn resolved(&self, inventory: &Inventory, root: &DriverRoot) -> Result<Self> {
        let mut resolved = self.clone();
        resolved.wishes.described = BTreeMap::new();
        let (names, _) = self.split();
        if names.is_empty() {
            return Ok(resolved);
        }
        let catalogue = self.catalogue();
        let capabilities = parse_capabilities(&root.text("/proc/driver/nvidia-caps/mig-minors").unwrap_or_default());
        for name in names {
            let (_, spec, device) = catalogue.find(&name)?;
            let gpus = inventory.gpus().iter().flat_map(|gpu| of_gpu(gpu, spec, device, &capabilities)).collect();
            resolved.wishes.described.insert(name.to_string(), gpus);
        }
        Ok(resolved)
    }

    /// What a sandbox leases that asks for this: nothing if no GPU is in it.
    ///
    /// Who names GPUs, or wants all, has chosen them whoever else uses them without a lease, unless the request says
    /// otherwise; the screen of a workstation is not to keep its only GPU from a container.
    ///
    /// # Errors
    /// [`ErrorKind::GpuUnavailable`](crate::error::ErrorKind::GpuUnavailable) if the host has no GPU of that vendor, or
    /// a device of specifications is not described.
    pub(crate) fn for_sandbox(&self, inventory: &Inventory, root: &DriverRoot) -> Result<Option<Self>> {
        if matches!(self.which(), Which::None | Which::DriverOnly | Which::AsImageSays) {
            return Ok(None);
        }
        let (_, of_inventory) = self.split();
        let mut request = self.resolved(inventory, root)?;
        if of_inventory.is_some() {
            select::of_vendor(self, inventory)?;
        } else if request.wishes.described.values().all(Vec::is_empty) {
            return Ok(None);
        }
        if !matches!(self.which(), Which::Count(_)) {
            request.wishes.foreign.get_or_insert(ForeignProcesses::Ignore);
        }
        Ok(Some(request))
    }
}

impl GpuRequest {
    /// The first of `gpus` that the request names, by whatever name.
    ///
    /// # Errors
    /// [`ErrorKind::GpuUnavailable`](crate::error::ErrorKind::GpuUnavailable) if the host has no GPU of a name.
    pub(crate) fn names_one_of(&self, inventory: &Inventory, gpus: &[String]) -> Result<Option<String>> {
        let Which::Named(names) = self.which() else { return Ok(None) };
        for name in names {
            let named: Vec<String> = match name {
                GpuName::Cdi(name) => self.wishes.described.get(&name.to_string()).cloned().unwrap_or_default(),
                name => vec![select::find(name, &select::of_vendor(self, inventory)?)?.uuid().to_owned()],
            };
            if let Some(one) = named.into_iter().find(|one| gpus.contains(one)) {
                return Ok(Some(one));
            }
        }
        Ok(None)
    }
}

/// The GPU, or those of its MIG devices, that the device gives access to.
fn of_gpu(gpu: &Gpu, spec: &Spec, device: &Device, capabilities: &[(String, u32)]) -> Vec<String> {
    let nodes = || spec.container_edits.device_nodes.iter().chain(&device.container_edits.device_nodes);
    let gives = |path: &Path| {
        nodes().any(|node| Path::new(&node.path) == path || node.host_path.as_deref().map(Path::new) == Some(path))
    };
    let own = match gpu.vendor {
        Vendor::Nvidia => gives(Path::new(&format!("/dev/nvidia{}", gpu.minor))),
        _ => gpu.render_nodes.iter().any(|node| gives(node)),
    };
    if !own {
        return Vec::new();
    }
    if !gpu.mig_enabled {
        return vec![gpu.uuid.clone()];
    }
    let given = |slice: &&MigDevice| {
        capability_names(gpu.minor, slice.gpu_instance, slice.compute_instance).iter().all(|name| {
            let known = capabilities.iter().find(|(known, _)| known == name);
            known.is_some_and(|(_, minor)| gives(Path::new(&format!("/dev/nvidia-caps/nvidia-cap{minor}"))))
        })
    };
    gpu.mig_devices.iter().filter(given).map(|slice| slice.uuid.clone()).collect()
}
