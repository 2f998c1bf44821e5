//! In place of `makers` where the driver's management library is not used: no MIG devices are made.

use crate::error::Result;
use crate::gpu::allocator::GpuAllocator;
use crate::gpu::allocator::lease::GpuLease;
use crate::gpu::allocator::mig::making::{Making, Plan};
use crate::gpu::allocator::patience::Patience;
use crate::gpu::allocator::slots::record::Owner;
use crate::gpu::inventory::Inventory;
use crate::gpu::request::GpuRequest;
use crate::gpu::select::Choice;
use crate::progress::Cancel;

use std::borrow::Cow;
use std::collections::BTreeMap;

/// A host as a request sees it.
#[derive(Debug)]
pub(in crate::gpu::allocator) struct Seen<'a> {
    pub(in crate::gpu::allocator) inventory: Cow<'a, Inventory>,
    pub(in crate::gpu::allocator) making: Making,
    pub(in crate::gpu::allocator) unready: BTreeMap<String, String>,
}

/// Nothing remains of a lease.
#[derive(Debug)]
pub(in crate::gpu::allocator) struct Remains;

impl Remains {
    pub(in crate::gpu::allocator) fn destroy(&self, _gpus: &[String]) -> Result<()> {
        Ok(())
    }
}

impl GpuAllocator {
    pub(in crate::gpu::allocator) fn look<'a>(
        &self,
        _request: &GpuRequest,
        inventory: Cow<'a, Inventory>,
        _patience: &Patience<'_>,
    ) -> Result<Seen<'a>> {
        let making = Making::No("this library was built without the feature nvml".to_owned());
        Ok(Seen { inventory, making, unready: BTreeMap::new() })
    }

    pub(in crate::gpu::allocator) fn make(
        &self,
        _request: &GpuRequest,
        _seen: &Seen<'_>,
        plan: &Plan,
        _owner: Owner,
        _cancel: &Cancel,
    ) -> Result<Result<GpuLease, String>> {
        match *plan {}
    }

    pub(in crate::gpu::allocator) fn remains(&self, _chosen: &[Choice<'_>]) -> Remains {
        Remains
    }

    pub(in crate::gpu::allocator) fn tidy_up(&self) {}
}
