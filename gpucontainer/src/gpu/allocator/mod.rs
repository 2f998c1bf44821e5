//! Leases on GPUs, among any number of processes and users of a host, without a daemon.
//!
//! ```text
//! GpuRequest ──► choice   what the host has that suits, leases, those who wait before us ──► which, or why not now
//!                  │
//!   GpuLease ◄── slots    one a lease, live as long as its owner holds locks on it
//!                  │
//!  GpuTicket ◄─────┘      a slot too: a place in the queue that ends with its owner
//! ```
//!
//! Where a request for MIG devices finds too few, `mig` makes others, written down in a journal beside the slots. A device that was made lives as long as a lease holds it; the last holder
//! destroys it, or, if that one was killed, the next who comes.
//!
//! A slot is a small file whose owner holds locks on ranges of it. The kernel frees them when the last copy of the
//! descriptor is closed, however its holder ends; and they are the truth about what is held (`record`), so that
//! damage to a slot's text costs nothing but the description.

pub(in crate::gpu) mod choice;
pub(in crate::gpu) mod health;
mod lease;
pub(in crate::gpu) mod mig;
mod mps;
mod patience;
mod queue;
pub(in crate::gpu) mod slots;
mod status;

pub(crate) use choice::wishes::Wishes;
pub use choice::wishes::{ForeignProcesses, Placement, Sharing};
pub use health::quarantine::{GpuFault, Quarantine, QuarantinedGpu};
#[cfg(feature = "nvml")]
pub use health::watch::{XidEvent, XidWatch};
pub use health::xid::XidAction;
pub use lease::GpuLease;
#[cfg(feature = "nvml")]
pub use mig::devices::{MigDevices, MigLease, MigModeChange};
pub(in crate::gpu) use mps::Access;
pub use mps::{Mps, MpsGroup};
pub use queue::GpuTicket;
pub use status::{GpuStatus, HeldGpu, LeaseStatus, TicketStatus};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::inventory::Inventory;
use crate::gpu::request::GpuRequest;
use crate::gpu::select::wish;
use crate::progress::Cancel;
use choice::{candidates, outer};
use patience::Patience;
use queue::{Attempt, SOON};
use slots::directory::Directory;
use slots::record::Owner;
use slots::table::Table;

use std::path::Path;
use std::time::{Duration, Instant};

/// How long a GPU is held back whose memory does not return after its lease.
const MEMORY_RETURN: Duration = Duration::from_secs(10);

/// How long an MPS daemon may take to answer.
const MPS_START: Duration = Duration::from_secs(10);

/// How long one who does not wait bears with somebody who just makes or destroys MIG devices, and with memory that is not
/// back yet.
const MOMENT: Duration = Duration::from_secs(1);

/// How often a wait looks whether it was cancelled.
const CANCEL_PERIOD: Duration = Duration::from_millis(50);

/// Gives out GPUs of this host, so that nobody else who asks an allocator gets the same.
///
/// All allocators of a host that use the same directory share one account, whichever process, thread, user or PID
/// namespace they are in. An allocator holds nothing open and needs no daemon.
///
/// Users trust each other as far as they must to share GPUs at all: nobody can change or end the lease of another,
/// and anybody can hold as many GPUs, or as early a place in the queue, as it claims, or keep all others from new
/// leases as long as it holds the lock on the account.
///
/// ```no_run
/// use gpucontainer::GpuRequest;
/// use gpucontainer::gpu::{GpuAllocator, Wait};
/// use std::time::Duration;
///
/// let allocator = GpuAllocator::open()?;
/// let lease = allocator.acquire(&GpuRequest::count(2), Wait::at_most(Duration::from_secs(60)))?;
/// println!("{} on CPUs {:?}", lease.gpus().join(", "), lease.cpus());
/// # Ok::<(), gpucontainer::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GpuAllocator {
    table: Table,
    directory: Directory,
    root: DriverRoot,
    memory_return: Duration,
    mps_start: Duration,
    outer: bool,
    sandbox: Option<ForSandbox>,
}

/// A sandbox that leases by itself.
#[derive(Clone, Debug)]
struct ForSandbox {
    name: String,
    /// What it has already, which is no use to it a second time.
    gpus: Vec<String>,
}

/// What somebody who leases knows of the host.
#[derive(Clone, Copy, Debug)]
enum Known<'a> {
    Nothing,
    /// How it is now.
    Now(&'a Inventory),
    /// How it is, whatever is looked at again.
    Believed(&'a Inventory),
}

/// How long to wait for GPUs.
#[derive(Clone, Debug)]
#[must_use]
pub struct Wait {
    limit: Option<Duration>,
    cancel: Option<Cancel>,
}

impl Wait {
    /// Whether what cannot be had now is an error.
    pub(crate) fn is_none(&self) -> bool {
        self.limit == Some(Duration::ZERO)
    }

    /// Not at all: what cannot be had now is an error that says why.
    pub fn none() -> Self {
        Self::at_most(Duration::ZERO)
    }

    /// Until there are enough, or it is cancelled.
    pub fn forever() -> Self {
        Self { limit: None, cancel: None }
    }

    /// So long.
    pub fn at_most(limit: Duration) -> Self {
        Self { limit: Some(limit), cancel: None }
    }

    /// Ends the wait when `cancel` is switched, within some 50 milliseconds.
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = Some(cancel.clone());
        self
    }
}

impl GpuAllocator {
    /// The allocator of this host.
    ///
    /// Its slots are in `/run/gpucontainer/gpu` (`/dev/shm/gpucontainer-gpu` where `/run` is on a disk), which root
    /// makes for all users when it first opens an allocator. Until then an ordinary user has an account of its own;
    /// [`private`](Self::private) says so. MIG devices of leases that are over are destroyed, if the caller may.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] if somebody made that directory who could take away the leases of others.
    pub fn open() -> Result<Self> {
        let allocator = Self::with(Directory::of_host().context("open the GPU allocator")?);
        allocator.tidy_up();
        Ok(allocator)
    }

    /// An allocator with an account of its own in the directory `path`, which is made, for all users, if it is not
    /// there. It should be on a tmpfs.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn at(path: impl AsRef<Path>) -> Result<Self> {
        let allocator = Self::with(Directory::at(path.as_ref()).context("open the GPU allocator")?);
        allocator.tidy_up();
        Ok(allocator)
    }

    /// The request for the GPUs that [`acquire`](Self::acquire) would lease now, without leasing them.
    ///
    /// # Errors
    /// As those of [`acquire`](Self::acquire) without a wait.
    pub(crate) fn foresee(&self, inventory: &Inventory, request: &GpuRequest) -> Result<GpuRequest> {
        let devices = candidates::check(request).and_then(|()| {
            let request = request.resolved(inventory, &self.root)?;
            Ok(request.leased(&self.foreseen(&request, inventory)?))
        });
        devices.with_context(|| format!("lease {}", wish(request)))
    }

    fn with(directory: Directory) -> Self {
        let table = Table::new(directory.path.clone());
        let root = DriverRoot::from_environment();
        mps::collect(table.path());
        Self { table, directory, root, memory_return: MEMORY_RETURN, mps_start: MPS_START, outer: true, sandbox: None }
    }

    /// Says where the driver's user space is. By default as [`DriverRoot::from_environment`] says.
    #[must_use]
    pub fn driver_root(mut self, root: DriverRoot) -> Self {
        self.root = root;
        self
    }

    /// How long a GPU is held back while its memory is not back from its last lease, however that ended: what a container
    /// used may take the driver a moment to free after its processes are gone. Ten seconds by default; from when the
    /// lease was given up, or, where it ended with its descriptors, from when somebody first missed the memory. After that
    /// it counts as any other GPU of which memory is used.
    ///
    /// The memory is back when as much is free as before the lease, but for 64 MiB. Whose it is can be told only of a GPU
    /// that nobody has a lease on and no process uses: while others share it, or processes use it that do not matter to
    /// a request, nothing is waited for. A request that does not wait still bears with it for a second. The same goes for what has no memory of its own, such as a GPU in a processor,
    /// for GPUs of WSL, which Windows uses too, and for MIG devices that go with their lease.
    #[must_use]
    pub fn memory_return(mut self, limit: Duration) -> Self {
        self.memory_return = limit;
        self
    }

    /// How long the daemon of a lease that asks for [`mps`](GpuRequest::mps) may take until it answers; ten seconds by
    /// default. The wait for GPUs is not part of it, nor is it part of that wait, whose switch ends it however.
    #[must_use]
    pub fn mps_start(mut self, limit: Duration) -> Self {
        self.mps_start = limit;
        self
    }

    /// Whether GPUs are left out that an outer scheduler keeps from this process, by `CUDA_VISIBLE_DEVICES`,
    /// `NVIDIA_VISIBLE_DEVICES`, `SLURM_STEP_GPUS`, `SLURM_JOB_GPUS`, the device plug-in of Kubernetes or the device
    /// cgroup. They are by default.
    #[must_use]
    pub fn respect_outer(mut self, respected: bool) -> Self {
        self.outer = respected;
        self
    }

    /// The same for the sandbox `name`, which has `gpus` already.
    pub(crate) fn for_sandbox(mut self, name: &str, gpus: Vec<String>) -> Self {
        self.sandbox = Some(ForSandbox { name: name.to_owned(), gpus });
        self
    }

    fn owner(&self) -> Owner {
        Owner { sandbox: self.sandbox.as_ref().map(|sandbox| sandbox.name.clone()), ..Owner::own() }
    }

    /// Where the driver's user space is.
    pub(crate) fn root(&self) -> &DriverRoot {
        &self.root
    }

    /// The directory of the slots.
    pub fn path(&self) -> &Path {
        self.table.path()
    }

    /// Why the account is of this user alone, if it is.
    pub fn private(&self) -> Option<&str> {
        self.directory.private.as_deref()
    }

    /// The GPUs that this allocator keeps from new leases because something is wrong with them, and why. It is beside
    /// the directory of the slots, and root's where that is for all users.
    pub fn quarantine(&self) -> Quarantine {
        let mut name = self.path().file_name().unwrap_or_default().to_owned();
        name.push(".quarantine");
        Quarantine::at(self.path().with_file_name(name))
    }

    /// Looks after the health of the GPUs, and says who is in quarantine then: those that are faulty by their own
    /// account, or by the XIDs of the kernel's log as far as the caller may read it, get no new leases from now on;
    /// those that a reset has mended do again. Leases that are held stay.
    ///
    /// # Errors
    /// Those of [`Quarantine::review`].
    pub fn review(&self) -> Result<Vec<QuarantinedGpu>> {
        self.tidy_up();
        let inventory = Inventory::discover_with(&self.root);
        let quarantine = self.quarantine();
        match quarantine.read_kernel_log(&self.root, &inventory) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                tracing::debug!(%error, "the health of GPUs without the kernel's log");
            }
            counted => drop(counted?),
        }
        quarantine.review(&inventory)
    }

    /// Devices that may not be used, and why.
    fn refused(&self, inventory: &Inventory) -> Result<outer::Refused> {
        let mut refused = if self.outer { outer::refused(inventory, &self.root) } else { outer::Refused::new() };
        let mut refuse = |uuid: &str, why: &str| {
            let gpu = inventory.gpus().iter().find(|gpu| gpu.uuid == uuid);
            let slices = gpu.map(|gpu| gpu.mig_devices.as_slice()).unwrap_or_default();
            refused.extend(slices.iter().map(|slice| (slice.uuid.clone(), why.to_owned())));
            refused.insert(uuid.to_owned(), why.to_owned());
        };
        // Nobody need have noticed it before.
        for gpu in inventory.gpus().iter().filter(|gpu| gpu.health.lost) {
            refuse(&gpu.uuid, &GpuFault::Lost.to_string());
        }
        for one in self.quarantine().list()? {
            refuse(&one.gpu, &format!("in quarantine: {}", one.reason()));
        }
        if let Some(sandbox) = &self.sandbox {
            let why = format!("sandbox {} has it already", sandbox.name);
            refused.extend(sandbox.gpus.iter().map(|gpu| (gpu.clone(), why.clone())));
        }
        Ok(refused)
    }

    /// Leases GPUs, having looked what the host has and how it is used.
    ///
    /// Of devices of CDI specifications (`vendor.com/class=name`) those are leased that give access to GPUs of the host;
    /// others are somebody else's to account for, and only part of [`GpuLease::request`].
    ///
    /// MIG devices of a [profile](GpuRequest::mig_profile) that are missing are made where the caller may, on GPUs in MIG
    /// mode, where they leave the most room for large ones. They are destroyed after their last lease: by its holder, or,
    /// where that one was killed or has handed the lease on, by the next who opens an allocator, asks for such devices or
    /// for the [`status`](Self::status), and may. What a process still uses then stays until it does not.
    ///
    /// Requests are served in the order in which they came, those of a higher
    /// [`priority`](GpuRequest::priority) earlier. One that cannot be served yet keeps what is free of the GPUs that
    /// it could use, so that smaller ones do not pass it for ever; others pass. The wait takes no processor time
    /// unless a foreign process, memory in use or a GPU in quarantine stands in the way, of whose end nobody is told.
    ///
    /// # Errors
    /// At once: [`ErrorKind::InvalidArgument`] for a request that contradicts itself or asks for no GPU,
    /// [`ErrorKind::GpuUnavailable`] for more than the host has, and, without a wait, for what is not free;
    /// [`ErrorKind::NoSpace`] if the directory of the slots is full, [`ErrorKind::Busy`] if somebody does not let go of
    /// the account for ten seconds, or, without a wait, is making or destroying MIG devices that the request is about for
    /// longer than a second. Without a wait it also takes a second to fail if nothing but
    /// [memory that is not back](Self::memory_return) stands in the way. After a wait: [`ErrorKind::TimedOut`],
    /// [`ErrorKind::Cancelled`]. A system call error with `EINTR` if a signal came; [`enqueue`](Self::enqueue) keeps
    /// the place in the queue in such a case.
    pub fn acquire(&self, request: &GpuRequest, wait: Wait) -> Result<GpuLease> {
        self.lease(request, Known::Nothing, &wait, None)
    }

    /// As [`acquire`](Self::acquire), with an inventory that the caller has: it is believed in what it says about
    /// memory and processes, too. Saves the start of the driver's management library, except where MIG devices come and
    /// go, of which it may know some that are no more.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub fn acquire_from(&self, inventory: &Inventory, request: &GpuRequest, wait: Wait) -> Result<GpuLease> {
        self.lease(request, Known::Believed(inventory), &wait, None)
    }

    /// As [`acquire`](Self::acquire), with an inventory of this moment. A wait ends with the error of `alive`, within some
    /// 50 milliseconds.
    pub(crate) fn acquire_while(
        &self,
        inventory: &Inventory,
        request: &GpuRequest,
        wait: &Wait,
        alive: Option<&dyn Fn() -> Result<()>>,
    ) -> Result<GpuLease> {
        let known = if wait.is_none() { Known::Now(inventory) } else { Known::Nothing };
        self.lease(request, known, wait, alive)
    }

    /// Takes a place in the queue; [`GpuTicket::wait`] then waits for the GPUs, as often and as long as wanted.
    ///
    /// # Errors
    /// Those of [`acquire`](Self::acquire) that come at once, but for GPUs that are not free.
    pub fn enqueue(&self, request: &GpuRequest) -> Result<GpuTicket> {
        let inventory = self.discover(None);
        let place = request.resolved(&inventory, &self.root);
        place
            .and_then(|request| {
                let seen = self.look(&request, inventory, &Patience::of(&Cancel::new()))?;
                GpuTicket::new(self, &request, &seen, None)
            })
            .with_context(|| format!("wait for {}", wish(request)))
    }

    /// Who holds what since when, and who waits. What is left of leases that are over is removed before, if the caller
    /// may, as are MIG devices that were made for them.
    ///
    /// # Errors
    /// Those of reading the directory of the slots.
    pub fn status(&self) -> Result<GpuStatus> {
        self.tidy_up();
        let inventory = Inventory::discover_with(&self.root);
        if let Err(error) = self.collect(&inventory) {
            tracing::debug!(%error, "what is left of GPU leases stays for now");
        }
        self.status_from(&inventory)
    }

    /// As [`status`](Self::status), with an inventory that the caller has.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub fn status_from(&self, inventory: &Inventory) -> Result<GpuStatus> {
        let scan = self.table.scan(inventory).context("read the GPU leases")?;
        let quarantined = self.quarantine().list().context("read the quarantine of GPUs")?;
        let mps = mps::groups(self.path()).context("read the groups of MPS")?;
        let returning = self.returning(&scan, inventory).0.into_iter().collect();
        Ok(GpuStatus { quarantined, mps, returning, ..GpuStatus::of(&scan, inventory, &self.directory) })
    }

    fn lease(
        &self,
        request: &GpuRequest,
        known: Known<'_>,
        wait: &Wait,
        alive: Option<&dyn Fn() -> Result<()>>,
    ) -> Result<GpuLease> {
        let (first, believed) = match known {
            Known::Nothing => (None, None),
            Known::Now(inventory) => (Some(inventory), None),
            Known::Believed(inventory) => (Some(inventory), Some(inventory)),
        };
        let wanted = || format!("lease {}", wish(request));
        // Checked before the driver is asked, which may take long.
        candidates::check(request).with_context(wanted)?;
        let start = Instant::now();
        let mut seen = self.discover(first);
        let request = &request.resolved(&seen, &self.root).with_context(wanted)?;
        let queue = !wait.is_none();
        let cancel = wait.cancel.clone().unwrap_or_default();
        // Who does not wait still bears with somebody who just makes MIG devices.
        let until = if queue {
            wait.limit.and_then(|limit| start.checked_add(limit))
        } else {
            Instant::now().checked_add(MOMENT)
        };
        let patience = Patience { cancel: &cancel, alive, until };
        let (slot, order, later) = loop {
            let looked = match self.look(request, seen, &patience) {
                Err(error) if queue && error.kind() == ErrorKind::Busy && patience.is_over() => {
                    return Err(timed_out(wait, &error.to_string())).with_context(wanted);
                }
                looked => looked.with_context(wanted)?,
            };
            let attempt = self.attempt(request, &looked, None, (queue, !queue), &cancel).with_context(wanted)?;
            drop(looked);
            match attempt {
                Attempt::Leased(lease) => return self.with_daemon(lease, request, &cancel).with_context(wanted),
                Attempt::Queued { slot, order, later } => break (slot, order, later),
                Attempt::Later(later) if later.returning && believed.is_none() && !patience.is_over() => {
                    patience.check().with_context(wanted)?;
                    std::thread::sleep(SOON);
                    seen = self.discover(None);
                }
                Attempt::Later(later) => return Err(Error::new(ErrorKind::GpuUnavailable, later.why)),
            }
        };
        let mut ticket = GpuTicket::of_slot(self, request, slot, order, believed.cloned());
        ticket.sleep_after(later).with_context(wanted)?;
        loop {
            let left = wait.limit.map(|limit| limit.saturating_sub(start.elapsed()));
            let looks = wait.cancel.is_some() || alive.is_some();
            let turn = [left, looks.then_some(CANCEL_PERIOD)].into_iter().flatten().min();
            let deadline = turn.and_then(|turn| Instant::now().checked_add(turn));
            if let Some(lease) = ticket.wait_with(deadline, &patience).with_context(wanted)? {
                return Ok(lease);
            }
            patience.check().with_context(wanted)?;
            if left == Some(Duration::ZERO) {
                return Err(timed_out(wait, ticket.reason()));
            }
        }
    }

    /// The inventory that the caller gave, or that of this moment.
    fn discover<'a>(&self, given: Option<&'a Inventory>) -> std::borrow::Cow<'a, Inventory> {
        match given {
            Some(inventory) => std::borrow::Cow::Borrowed(inventory),
            None => std::borrow::Cow::Owned(Inventory::discover_with(&self.root)),
        }
    }
}

/// The error of a wait that took too long.
fn timed_out(wait: &Wait, why: &str) -> Error {
    Error::new(ErrorKind::TimedOut, format!("waited {:?}; {why}", wait.limit.unwrap_or_default()))
}
