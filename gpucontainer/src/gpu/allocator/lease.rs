//! A lease that is held.

use crate::error::Result;
use crate::gpu::allocator::candidates::Host;
use crate::gpu::allocator::record::{Held, LeaseRecord};
use crate::gpu::allocator::table::Slot;
use crate::gpu::allocator::wishes::Sharing;
use crate::gpu::request::GpuRequest;
use crate::gpu::select::Choice;
use crate::sys::process::{duplicate, own_pid};

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// GPUs that are the holder's, until it drops the last clone of this or dies.
///
/// The lease is a lock of the kernel's: it ends when the last copy of its descriptor is closed. A sandbox that is
/// started with [`gpu_lease`](crate::sandbox::SandboxBuilder::gpu_lease), or [given](crate::Sandbox::attach_lease) one
/// while it runs, has a copy in its supervisor, so that a lease whose owner was killed ends only when the container is
/// dead.
///
/// In a child of `fork` the value is a copy of the descriptor and no more: dropping it there ends nothing.
#[derive(Clone, Debug)]
pub struct GpuLease(Arc<Lease>);

#[derive(Debug)]
struct Lease {
    slot: Slot,
    /// The process that took it; a fork of it must not end it.
    owner: u32,
    kept: AtomicBool,
    gpus: Vec<String>,
    sharing: Sharing,
    request: GpuRequest,
    cpus: Vec<u32>,
    numa_nodes: Vec<u32>,
    reason: String,
}

impl GpuLease {
    pub(super) fn new(
        slot: Slot,
        record: &LeaseRecord,
        chosen: &[Choice<'_>],
        request: &GpuRequest,
        host: &Host<'_>,
    ) -> Self {
        let gpus: Vec<String> = record.held.iter().map(|held: &Held| held.device.clone()).collect();
        let cpus: BTreeSet<u32> = chosen.iter().flat_map(|choice| choice.gpu().cpu_affinity.iter().copied()).collect();
        let nodes: BTreeSet<u32> = chosen.iter().filter_map(|choice| choice.gpu().numa_node).collect();
        let place = |choice: &Choice<'_>| host.inventory.gpus().iter().position(|gpu| gpu.uuid == choice.gpu().uuid);
        let set = chosen.iter().filter_map(place).collect();
        let words: Vec<String> = chosen.iter().map(ToString::to_string).collect();
        let links = host.topology.describe(set);
        Self(Arc::new(Lease {
            slot,
            owner: own_pid(),
            kept: AtomicBool::new(false),
            request: request.leased(&gpus),
            gpus,
            sharing: request.wishes.sharing,
            cpus: cpus.into_iter().collect(),
            numa_nodes: nodes.into_iter().collect(),
            reason: format!("{}: {links}", words.join(", ")),
        }))
    }

    /// The identifiers of the GPUs and MIG devices, in the order in which a container counts them.
    pub fn gpus(&self) -> &[String] {
        &self.0.gpus
    }

    /// How others may share them.
    pub fn sharing(&self) -> Sharing {
        self.0.sharing
    }

    /// The CPUs near to the GPUs, ascending; empty if unknown.
    pub fn cpus(&self) -> &[u32] {
        &self.0.cpus
    }

    /// The NUMA nodes that the GPUs are attached to, ascending; empty if unknown, or if the host has one.
    pub fn numa_nodes(&self) -> &[u32] {
        &self.0.numa_nodes
    }

    /// What was chosen, and what connects it, in words.
    pub fn describe(&self) -> &str {
        &self.0.reason
    }

    /// The name of the lease, as [`GpuAllocator::status`](crate::gpu::GpuAllocator::status) shows it.
    pub fn id(&self) -> &str {
        &self.0.slot.id
    }

    /// A request for exactly these GPUs, with the parts of the driver that the lease's request wanted: for
    /// [`grant`](crate::gpu::grant()). Devices of CDI specifications stay as they were named.
    pub fn request(&self) -> GpuRequest {
        self.0.request.clone()
    }

    /// Gives the GPUs up now, whoever has copies of the descriptor, or clones.
    ///
    /// Dropping the last clone does the same without a word about errors.
    ///
    /// # Errors
    /// A system call error; the lease then ends with its descriptors.
    pub fn release(self) -> Result<()> {
        if self.0.owner != own_pid() {
            return Ok(());
        }
        // The drop has nothing left to do.
        self.keep();
        self.0.slot.free()
    }

    /// As [`release`](Self::release) if nobody else has a clone.
    pub(crate) fn release_last(self) -> Result<()> {
        if Arc::strong_count(&self.0) == 1 { self.release() } else { Ok(()) }
    }

    /// Turns the lease into a descriptor that holds it: it ends when the last copy of that is closed, in whatever
    /// process. The descriptor is closed by `exec` unless the caller says otherwise.
    ///
    /// # Errors
    /// A system call error; the lease then is as it was.
    pub fn into_fd(self) -> Result<OwnedFd> {
        let fd = duplicate(&self)?;
        self.keep();
        Ok(fd)
    }

    /// From now on the lease ends with the copies of its descriptor only.
    pub(crate) fn keep(&self) {
        self.0.kept.store(true, Ordering::Relaxed);
    }
}

impl AsFd for GpuLease {
    /// The descriptor whose copies hold the lease.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.slot.file.as_fd()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if *self.kept.get_mut() || self.owner != own_pid() {
            return;
        }
        if let Err(error) = self.slot.free() {
            tracing::warn!(%error, "a GPU lease could not be given up; it ends with its descriptor");
        }
    }
}
