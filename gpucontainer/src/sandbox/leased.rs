//! Leases of a running sandbox: what comes to it is nobody else's until it goes, or the sandbox ends.
//!
//! ```text
//!            acquire                 hand                         detach, close: unlocked, whoever has copies
//! allocator ─────────► GpuLease ──┬────────► supervisor
//!                                 │           holds a copy of the descriptor, as of the lease of the start:
//!                                 └─ Held     if this process dies, the lease ends when the container is dead
//! ```

use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::{GpuGrant, GpuLease, GpuRequest, ImageFacts, Inventory, Wait};
use crate::layer::Stack;
use crate::sandbox::Sandbox;
use crate::sandbox::attach::Attachments;
use crate::sandbox::process::Handle;
use crate::sys::program::format::PLACES;
use std::os::fd::AsFd;

/// A lease that the supervisor holds as well.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) lease: GpuLease,
    /// Where the supervisor holds it.
    place: u8,
}

impl Held {
    /// What the supervisor has from the start.
    pub(crate) fn of_start(lease: GpuLease) -> Self {
        Self { lease, place: 0 }
    }

    /// Hands the lease to the supervisor.
    pub(crate) fn hand(others: &Attachments, lease: &GpuLease, supervisor: &Handle) -> Result<Self> {
        let taken: Vec<u8> = others.leases().map(|held| held.place).collect();
        let places = u8::try_from(PLACES).unwrap_or(u8::MAX);
        let place = (0..places)
            .find(|place| !taken.contains(place))
            .ok_or_else(|| Error::new(ErrorKind::NoSpace, format!("a sandbox holds {PLACES} leases at most")))?;
        supervisor.hold(place, lease.as_fd())?;
        Ok(Self { lease: lease.clone(), place })
    }

    /// Gives up the sandbox's part: if nobody else has the lease, its GPUs are free.
    pub(crate) fn release(self, supervisor: &Handle) -> Result<()> {
        let told = supervisor.let_go(self.place);
        // In any case: this is what others see at once.
        let released = self.lease.release_last();
        told.and(released)
    }
}

impl Attachments {
    /// From now on the leases are the supervisor's alone.
    pub(crate) fn keep_leases(&mut self) {
        self.take_leases().iter().for_each(|held| held.lease.keep());
    }

    /// Gives up all leases once everything inside is dead; what failed.
    pub(crate) fn release_leases(&mut self) -> Vec<Error> {
        self.take_leases().into_iter().filter_map(|held| held.lease.release_last().err()).collect()
    }
}

impl Sandbox {
    /// Gives the running sandbox the GPUs that `request` asks for: nodes, files of the driver, and the right to use
    /// the devices. What the application executes from now on finds them, as does a process of [`Sandbox::exec`],
    /// which also gets the variables and groups of the grant.
    ///
    /// All of it is there when this returns, or nothing is. The GPUs are leased as those of a start are, of the same
    /// [allocator](crate::sandbox::SandboxBuilder::gpu_allocator), until they are [detached](Self::detach_gpus) or the
    /// sandbox is dropped or, left to itself, has ended. GPUs that it has already do not count. What somebody else has is
    /// waited for as `wait` says; other threads may use the sandbox meanwhile, and its end ends the wait.
    ///
    /// # Errors
    /// Those of [`GpuAllocator::acquire`](crate::gpu::GpuAllocator::acquire) and
    /// [`attach_grant`](Self::attach_grant).
    pub fn attach_gpus(&self, request: &GpuRequest, wait: Wait) -> Result<GpuGrant> {
        self.attach_leased(request, &wait).with_context(|| format!("attach GPUs to sandbox {}", self.name()))
    }

    /// Gives the running sandbox the GPUs of a lease of the caller's, as [`attach_gpus`](Self::attach_gpus) does. The
    /// sandbox has a clone of it until they are detached, and its supervisor a copy of the descriptor: the lease follows
    /// the container if this process dies.
    ///
    /// # Errors
    /// Those of [`gpu::grant`](crate::gpu::grant()) and [`attach_grant`](Self::attach_grant).
    pub fn attach_lease(&self, lease: &GpuLease) -> Result<GpuGrant> {
        let wanted = || format!("attach GPUs to sandbox {}", self.name());
        self.attach_granted(&lease.request(), Some(lease)).with_context(wanted)
    }

    /// As [`attach_gpus`](Self::attach_gpus) without a lease, for GPUs that are shared by software which knows nothing of
    /// leases, or by containers of one owner: another sandbox may be given the same, and whoever has leased them is not
    /// asked.
    ///
    /// # Errors
    /// Those of [`gpu::grant`](crate::gpu::grant()) and [`attach_grant`](Self::attach_grant).
    pub fn attach_gpus_unleased(&self, request: &GpuRequest) -> Result<GpuGrant> {
        self.attach_granted(request, None).with_context(|| format!("attach GPUs to sandbox {}", self.name()))
    }

    /// The lease on the GPUs of the start, a clone that holds them too; `None` without GPUs, for those that were
    /// [not leased](crate::sandbox::SandboxBuilder::gpus_unleased), and once they were detached.
    pub fn gpu_lease(&self) -> Option<GpuLease> {
        self.attachments().of_the_start().map(|held| held.lease.clone())
    }

    /// The leases on its GPUs, clones that hold them too: that of the start, if there is one, then those of what was
    /// attached, in the order in which it came.
    pub fn gpu_leases(&self) -> Vec<GpuLease> {
        self.attachments().leases().map(|held| held.lease.clone()).collect()
    }

    /// What the container's root and variables say about GPUs.
    fn facts(&self) -> Result<ImageFacts> {
        let tree = Stack::open(&[self.inner_root()?.path().to_owned()])?;
        Ok(ImageFacts::read(&tree, self.context.env.clone()))
    }

    fn attach_granted(&self, request: &GpuRequest, lease: Option<&GpuLease>) -> Result<GpuGrant> {
        let grant = crate::gpu::grant(request, &self.gpu_source.driver_root(), &self.facts()?)?;
        self.attach(&grant, lease)?;
        Ok(grant)
    }

    fn attach_leased(&self, request: &GpuRequest, wait: &Wait) -> Result<GpuGrant> {
        let facts = self.facts()?;
        let driver = self.gpu_source.driver_root();
        let inventory = Inventory::discover_with(&driver);
        let request = request.for_environment(&facts.environment)?;
        let Some(wanted) = request.for_sandbox(&inventory, &driver).context("lease GPUs")? else {
            return self.attach_granted(&request, None);
        };
        let own = self.gpus();
        if let Some(gpu) = wanted.names_one_of(&inventory, &own)? {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("GPU {gpu} is attached already")));
        }
        let allocator = self.gpu_source.allocator()?.for_sandbox(self.name(), own);
        // Nothing of the sandbox is locked meanwhile.
        let lease = allocator.acquire_while(&inventory, &wanted, wait, Some(&|| self.inner_root().map(drop)))?;
        self.attach_granted(&lease.request(), Some(&lease))
    }
}
