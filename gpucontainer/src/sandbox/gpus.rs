//! The GPUs of a start: chosen, leased, and then granted.

use crate::error::{Context, Result};
use crate::gpu::{DriverRoot, GpuAllocator, GpuGrant, GpuLease, GpuRequest, ImageFacts, Inventory, known_facts};
use crate::layer::Stack;
use crate::sandbox::config::SandboxBuilder;
use crate::sandbox::root::Root;

/// Where the GPUs of a sandbox come from.
#[derive(Clone, Debug)]
pub(crate) struct GpuSource {
    allocator: Option<GpuAllocator>,
    driver_root: Option<DriverRoot>,
}

impl GpuSource {
    pub(crate) fn of(builder: &SandboxBuilder) -> Self {
        Self { allocator: builder.gpu_allocator.clone(), driver_root: builder.driver_root.clone() }
    }

    pub(crate) fn driver_root(&self) -> DriverRoot {
        let of_allocator = || self.allocator.as_ref().map(|allocator| allocator.root().clone());
        self.driver_root.clone().or_else(of_allocator).unwrap_or_else(DriverRoot::from_environment)
    }

    /// The caller's allocator, or that of the host.
    pub(crate) fn allocator(&self) -> Result<GpuAllocator> {
        match &self.allocator {
            Some(allocator) => Ok(allocator.clone()),
            None => Ok(GpuAllocator::open()?.driver_root(self.driver_root())),
        }
    }
}

/// Which GPUs a sandbox gets.
#[derive(Debug)]
pub(crate) struct Gpus {
    /// For exactly these GPUs, once they are leased.
    request: GpuRequest,
    inventory: Inventory,
    driver_root: DriverRoot,
    /// The variables of the image, and the caller's over them.
    environment: Vec<(String, String)>,
    lease: Option<GpuLease>,
}

impl Gpus {
    /// The GPUs of a sandbox that is to start; `None` if it gets none.
    ///
    /// # Errors
    /// Those of [`GpuAllocator::acquire`].
    pub(crate) fn lease(builder: &SandboxBuilder, name: &str, root: &Root) -> Result<Option<Self>> {
        let Some(mut gpus) = Self::wanted(builder, root)? else { return Ok(None) };
        if let Some(lease) = &builder.gpu_lease {
            gpus.lease = Some(lease.clone());
        } else if let Some(wanted) = gpus.to_lease(builder)? {
            let allocator = GpuSource::of(builder).allocator()?.for_sandbox(name, Vec::new());
            let lease = allocator.acquire_while(&gpus.inventory, &wanted, &builder.gpu_wait, None)?;
            gpus.request = lease.request();
            gpus.catch_up(&lease);
            gpus.lease = Some(lease);
        }
        Ok(Some(gpus))
    }

    /// The same, with the GPUs that would be leased now.
    pub(crate) fn foresee(builder: &SandboxBuilder, root: &Root) -> Result<Option<Self>> {
        let Some(mut gpus) = Self::wanted(builder, root)? else { return Ok(None) };
        if let Some(wanted) = gpus.to_lease(builder)? {
            gpus.request = GpuSource::of(builder).allocator()?.foresee(&gpus.inventory, &wanted)?;
        }
        Ok(Some(gpus))
    }

    fn wanted(builder: &SandboxBuilder, root: &Root) -> Result<Option<Self>> {
        let Some(request) = builder.gpus.as_ref().filter(|request| !request.is_none()) else { return Ok(None) };
        let config = root.config();
        let of_image = config.env.iter().filter_map(|line| line.split_once('='));
        let of_image = of_image.map(|(name, value)| (name.to_owned(), value.to_owned()));
        // The caller's come last, and the last of a name counts.
        let variables = of_image.filter(|(name, _)| builder.process.env.iter().all(|(own, _)| own != name));
        let environment: Vec<_> = variables.chain(builder.process.env.iter().cloned()).collect();
        let request = request.for_environment(&environment)?;
        if request.is_none() {
            return Ok(None);
        }
        let driver_root = GpuSource::of(builder).driver_root();
        // Devices of specifications need none to be granted, which takes time.
        let needed = !builder.gpus_unleased || request.needs_inventory();
        let inventory = if needed { Inventory::discover_with(&driver_root) } else { Inventory::default() };
        Ok(Some(Self { request, inventory, driver_root, environment, lease: None }))
    }

    /// Looks again if the lease has what the inventory does not: MIG devices that were made for it, or instead of others
    /// that were there before.
    fn catch_up(&mut self, lease: &GpuLease) {
        let whole = |uuid: &String| self.inventory.gpus().iter().any(|gpu| gpu.uuid == *uuid);
        if !lease.gpus().iter().all(whole) {
            self.inventory = Inventory::discover_with(&self.driver_root);
        }
    }

    /// What has to be leased, if anything.
    fn to_lease(&self, builder: &SandboxBuilder) -> Result<Option<GpuRequest>> {
        if builder.gpus_unleased || builder.gpu_lease.is_some() {
            return Ok(None);
        }
        self.request.for_sandbox(&self.inventory, &self.driver_root).context("lease GPUs")
    }

    /// What a container with `root`, whose files are in `tree`, needs to use them.
    pub(crate) fn grant(&self, root: &Root, tree: &Stack) -> Result<GpuGrant> {
        let facts = match root {
            Root::Image { image, .. } => known_facts(image.trees(), tree, self.environment.clone()),
            Root::Directory(_) => ImageFacts::read(tree, self.environment.clone()),
        };
        crate::gpu::grant_from(&self.request, &self.inventory, &self.driver_root, &facts).context("grant GPUs")
    }

    pub(crate) fn into_lease(self) -> Option<GpuLease> {
        self.lease
    }
}
