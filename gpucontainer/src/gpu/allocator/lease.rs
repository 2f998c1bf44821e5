//! A lease that is held.

use crate::error::Result;
use crate::gpu::allocator::choice::candidates::Host;
use crate::gpu::allocator::choice::wishes::Sharing;
use crate::gpu::allocator::mig::makers::Remains;
use crate::gpu::allocator::mps::{Membership, MpsGroup};
use crate::gpu::allocator::slots::record::{Held, LeaseRecord};
use crate::gpu::allocator::slots::table::Slot;
use crate::gpu::request::GpuRequest;
use crate::gpu::select::Choice;
use crate::sys::process::{duplicate, own_pid};

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

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
    /// Where MIG devices that were made for it are destroyed.
    remains: Remains,
    /// The process that took it; a fork of it must not end it.
    owner: u32,
    kept: AtomicBool,
    gpus: Vec<String>,
    /// Whether the next who looks can tell if their memory is back.
    measured: bool,
    sharing: Sharing,
    request: GpuRequest,
    cpus: Vec<u32>,
    numa_nodes: Vec<u32>,
    reason: String,
    daemon: OnceLock<Membership>,
}

impl GpuLease {
    pub(super) fn new(
        slot: Slot,
        record: &LeaseRecord,
        chosen: &[Choice<'_>],
        (request, host): (&GpuRequest, &Host<'_>),
        remains: Remains,
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
            remains,
            owner: own_pid(),
            kept: AtomicBool::new(false),
            request: request.leased(&gpus),
            gpus,
            measured: !record.free_before.is_empty(),
            sharing: request.wishes.sharing,
            cpus: cpus.into_iter().collect(),
            numa_nodes: nodes.into_iter().collect(),
            reason: format!("{}: {links}", words.join(", ")),
            daemon: OnceLock::new(),
        }))
    }

    /// The same lease, as a member of the group of a daemon.
    pub(super) fn with_daemon(self, membership: Membership) -> Self {
        // Nobody else has the lease yet, so that this is the first.
        let _ = self.0.daemon.set(membership);
        self
    }

    pub(super) fn slot(&self) -> &Slot {
        &self.0.slot
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
        self.0.request.clone().with_access(self.0.daemon.get().map(|daemon| daemon.access().clone()))
    }

    /// The daemon of NVIDIA's Multi-Process Service that the lease asked for with [`GpuRequest::mps`], as it is now;
    /// `None` if it asked for none, or everything of it is gone.
    ///
    /// # Errors
    /// Those of reading the directory of the slots.
    pub fn mps(&self) -> Result<Option<MpsGroup>> {
        self.0.daemon.get().map_or(Ok(None), Membership::group)
    }

    /// Gives the GPUs up now, whoever has copies of the descriptor, or clones. It waits for nothing: that the memory of a
    /// GPU may come back later is looked after when it is [leased](crate::gpu::GpuAllocator::memory_return) again. MIG
    /// devices that were made for the lease,
    /// and that no other lease shares, are destroyed; if it was the last lease of an MPS daemon, that has ended.
    ///
    /// Dropping the last clone does the same without a word about errors.
    ///
    /// # Errors
    /// A system call error; the lease then ends with its descriptors. [`ErrorKind::Busy`](crate::error::ErrorKind::Busy)
    /// if a process still uses a MIG device that was to be destroyed: the lease is over, and the next who asks the
    /// allocator for such devices, or for its [`status`](crate::gpu::GpuAllocator::status), tries again.
    /// [`ErrorKind::TimedOut`](crate::error::ErrorKind::TimedOut) if the GPUs are given up and an MPS daemon has not ended
    /// for five seconds.
    pub fn release(self) -> Result<()> {
        if self.0.owner != own_pid() {
            return Ok(());
        }
        // The drop has nothing left to do.
        self.keep();
        self.0.end()
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

impl Lease {
    fn end(&self) -> Result<()> {
        if self.measured { self.slot.leave() } else { self.slot.free() }?;
        // A daemon that does not end is no reason to keep devices.
        let left = self.daemon.get().map_or(Ok(()), Membership::leave);
        self.remains.destroy(&self.gpus).and(left)
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
        if let Err(error) = self.end() {
            tracing::warn!(%error, "not all of a GPU lease could be given up now");
        }
    }
}
