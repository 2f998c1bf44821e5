//! Waiting for GPUs, in the order of the queue.
//!
//! Who waits has a slot, as a lease has. Of those who want the same, only the first looks at the leases; each of the
//! others sleeps until the one before it is gone, so that a free GPU wakes one process and not all. Nobody has to
//! tell anybody anything: the kernel says when the file of a slot is closed, also by a process that was killed.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::allocator::GpuAllocator;
use crate::gpu::allocator::choice::candidates::{Candidates, Host, is_faulty};
use crate::gpu::allocator::choice::decide::{Decision, Question, decide};
use crate::gpu::allocator::lease::GpuLease;
use crate::gpu::allocator::mig::makers::Seen;
use crate::gpu::allocator::mig::making::Making;
use crate::gpu::allocator::mps::{self, Joining, Programs};
use crate::gpu::allocator::patience::Patience;
use crate::gpu::allocator::slots::record::{LeaseRecord, TicketRecord};
use crate::gpu::allocator::slots::table::{Slot, Table, Waiting, is_interrupted, nanoseconds};
use crate::gpu::inventory::Inventory;
use crate::gpu::request::GpuRequest;
use crate::gpu::select::{Choice, unavailable, wish};
use crate::progress::Cancel;
use crate::sys::epoll::{Alarm, Epoll};
use crate::sys::errno;
use crate::sys::process::{await_readable, own_pid, since_boot};
use crate::sys::watch::Watch;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What one step of priority is worth in waiting.
const STEP: Duration = Duration::from_secs(10);

/// How soon and how seldom to look again at what nobody tells of.
pub(super) const SOON: Duration = Duration::from_millis(5);
const SELDOM: Duration = Duration::from_millis(500);

/// How seldom one looks who sleeps until another is gone.
const FOLLOWER: Duration = Duration::from_secs(2);

/// How long the kernel may take from telling of a close to freeing the locks.
const SETTLE: Duration = Duration::from_millis(20);

/// Why a request was not served.
#[derive(Debug)]
pub(super) struct Later {
    pub(super) why: String,
    unannounced: bool,
    /// Whether nothing but memory that is not back stands in the way.
    pub(super) returning: bool,
    /// Those before this, by the identifiers of their slots.
    ahead: BTreeSet<String>,
    /// The slot of the nearest one before this who wants the same.
    behind: Option<PathBuf>,
}

/// What came of a try.
#[derive(Debug)]
pub(super) enum Attempt {
    Leased(GpuLease),
    Queued { slot: Slot, order: i128, later: Later },
    Later(Later),
}

/// A place in the queue for GPUs. Dropping it gives the place up.
#[derive(Debug)]
pub struct GpuTicket {
    allocator: GpuAllocator,
    request: GpuRequest,
    inventory: Option<Inventory>,
    slot: Option<Slot>,
    order: i128,
    owner: u32,
    watch: Option<Watch>,
    /// If one before this wants the same, only its slot is watched.
    behind: Option<PathBuf>,
    ahead: BTreeSet<String>,
    /// When to look again although nobody tells of anything.
    again: Option<Instant>,
    pause: Duration,
    due: bool,
    why: String,
    bell: Option<Bell>,
}

/// What tells somebody who polls when to look again.
#[derive(Debug)]
struct Bell {
    /// Reports the ticket's watch and the alarm.
    epoll: Epoll,
    alarm: Alarm,
}

impl Bell {
    fn new() -> Result<Self> {
        let (epoll, alarm) = (Epoll::new()?, Alarm::new()?);
        epoll.add_level(&alarm, 0)?;
        Ok(Self { epoll, alarm })
    }

    /// Rings when the watch tells of something, and in this time.
    fn set(&self, watch: Option<&Watch>, time: Option<Duration>) -> Result<()> {
        match watch.map(|watch| self.epoll.add_level(watch, 1)) {
            Some(Err(e)) if e.errno() != Some(errno::EEXIST) => Err(e),
            // One that was given up is reported no more since it is closed.
            _ => self.alarm.set(time),
        }
    }
}

impl GpuAllocator {
    /// Tries to serve a request, for which [`with_daemon`](Self::with_daemon) comes after it; `place` is the slot and the order of one that waits already. With `queue`, one that
    /// cannot be served takes a place, before anybody else can.
    ///
    /// Who comes after somebody who wants the same is served only if the try is `thorough`: the other is awake, takes
    /// what it can, and wakes this one. So the work is not done once for each of those who wait.
    pub(super) fn attempt(
        &self,
        request: &GpuRequest,
        seen: &Seen<'_>,
        place: Option<(&str, i128)>,
        (queue, thorough): (bool, bool),
        cancel: &Cancel,
    ) -> Result<Attempt> {
        let host = self.host(seen, seen.making.clone())?;
        self.attempt_on(request, (seen, host), place, (queue, thorough), cancel)
    }

    fn host<'a>(&self, seen: &'a Seen<'_>, making: Making) -> Result<Host<'a>> {
        let host = Host::of(&seen.inventory, self.refused(&seen.inventory)?, making);
        Ok(Host { unready: seen.unready.clone(), ..host })
    }

    fn attempt_on(
        &self,
        request: &GpuRequest,
        (seen, host): (&Seen<'_>, Host<'_>),
        place: Option<(&str, i128)>,
        (queue, thorough): (bool, bool),
        cancel: &Cancel,
    ) -> Result<Attempt> {
        let inventory = host.inventory;
        // An error that no lease can change comes before anything is locked.
        Candidates::of(request, &host)?;
        if Programs::wanted(request, self.root())?.is_some() {
            mps::collect(self.path());
        }
        let owner = self.owner();
        let mut locked = self.table.lock(cancel)?;
        let scan = self.table.scan(inventory)?;
        let (own, order) = place.unwrap_or_else(|| ("", order(request.wishes.priority)));
        let before =
            |waiting: &&Waiting| waiting.id != own && (waiting.record.order, waiting.id.as_str()) <= (order, own);
        let newer = |waiting: &&Waiting| waiting.id != own && waiting.record.order <= order;
        let ahead: Vec<Waiting> = match place {
            Some(_) => scan.waiting.iter().filter(before).cloned().collect(),
            None => scan.waiting.iter().filter(newer).cloned().collect(),
        };
        let (returning, overdue) = self.returning(&scan, inventory);
        locked.collect(&scan, &overdue)?;

        let allowed = allowed(&host);
        let makes = host.making.makes();
        let same = |waiting: &&Waiting| waiting.record.wants_as((request, allowed.as_deref(), makes));
        let behind = ahead.iter().rev().find(same).map(|waiting| self.table.ticket_path(&waiting.id));
        let ids = ahead.iter().map(|waiting| waiting.id.clone()).collect();
        let later = if behind.is_some() && !thorough {
            let why = format!("{} asked for, as by {} who wait", wish(request), ahead.iter().filter(same).count());
            Later { why, unannounced: false, returning: false, ahead: ids, behind }
        } else {
            let question = Question { request, scan: &scan, ahead: &ahead, returning: &returning };
            match decide(&question, &host)? {
                Decision::Grant(chosen) => {
                    if let Some(mps) = &request.wishes.mps {
                        mps.check_devices(&chosen)?;
                    }
                    let record = self.record(&chosen, request, owner, &scan);
                    let slot = locked.lease(&record)?;
                    drop(locked);
                    return Ok(Attempt::Leased(self.leased(slot, &record, &chosen, (request, &host))));
                }
                Decision::Make(plan) => {
                    // Others than those who want MIG devices are not kept waiting while some are made.
                    drop(locked);
                    match self.make(request, seen, &plan, owner.clone(), cancel) {
                        Ok(Ok(lease)) => return Ok(Attempt::Leased(lease)),
                        // What may not be made may still be leased, once somebody else gives it back.
                        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                            let host = self.host(seen, Making::No(error.to_string()))?;
                            return self.attempt_on(request, (seen, host), place, (queue, thorough), cancel);
                        }
                        Err(error) => return Err(error),
                        Ok(Err(why)) => {
                            locked = self.table.lock(cancel)?;
                            Later { why, unannounced: true, returning: false, ahead: ids, behind }
                        }
                    }
                }
                Decision::Later { why, unannounced, returning } => {
                    // Nobody tells who waits of the end of a quarantine.
                    let unannounced = unannounced || host.refused.values().any(|why| is_faulty(why));
                    Later { why, unannounced, returning, ahead: ids, behind }
                }
            }
        };
        if !queue {
            return Ok(Attempt::Later(later));
        }
        let slot = locked.ticket(&TicketRecord { owner, request: request.clone(), allowed, order, makes })?;
        Ok(Attempt::Queued { slot, order, later })
    }

    /// The lease with its daemon, if it wants one; without that it is given up.
    ///
    /// The caller holds nothing that keeps others from GPUs: a daemon takes long to start, and to give up a lease on a
    /// MIG device that was made for it is to take the lock on those that are made.
    pub(super) fn with_daemon(&self, lease: GpuLease, request: &GpuRequest, cancel: &Cancel) -> Result<GpuLease> {
        let programs = Programs::wanted(request, self.root())?;
        let (Some(mps), Some(programs)) = (&request.wishes.mps, &programs) else { return Ok(lease) };
        let owner = self.owner();
        let joining = |slot| Joining {
            table: self.path(),
            slot,
            gpus: lease.gpus(),
            sharing: lease.sharing(),
            mps,
            programs,
            root: self.root(),
            pid_namespace: &owner.pid_namespace,
            limit: self.mps_start,
            cancel,
        };
        let membership = mps::join(&joining(lease.slot()))?;
        Ok(lease.with_daemon(membership))
    }

    /// The devices that a request would get now, for which nothing is locked or changed.
    pub(super) fn foreseen(&self, request: &GpuRequest, inventory: &Inventory) -> Result<Vec<String>> {
        let making = Making::No("MIG devices are made by a lease, not by a look ahead".to_owned());
        let host = Host::of(inventory, self.refused(inventory)?, making);
        let scan = self.table.scan(inventory)?;
        let order = order(request.wishes.priority);
        let ahead: Vec<Waiting> = scan.waiting.iter().filter(|other| other.record.order <= order).cloned().collect();
        let (returning, _) = self.returning(&scan, inventory);
        match decide(&Question { request, scan: &scan, ahead: &ahead, returning: &returning }, &host)? {
            Decision::Grant(chosen) => Ok(chosen.iter().map(|choice| choice.uuid().to_owned()).collect()),
            Decision::Make(_) => Err(unavailable("MIG devices that are missing would be made first")),
            Decision::Later { why, .. } => Err(unavailable(why)),
        }
    }

    /// The lease of a slot that was just made.
    pub(super) fn leased(
        &self,
        slot: Slot,
        record: &LeaseRecord,
        chosen: &[Choice<'_>],
        (request, host): (&GpuRequest, &Host<'_>),
    ) -> GpuLease {
        GpuLease::new(slot, record, chosen, (request, host), self.remains(chosen))
    }
}

/// The place in the queue of a request that comes now.
///
/// Since all grow older at the same pace, an early arrival and a high priority can be one number that never changes.
fn order(priority: i32) -> i128 {
    i128::from(nanoseconds(since_boot())) - i128::from(priority) * i128::from(nanoseconds(STEP))
}

/// The devices that an outer scheduler left; `None` if it left all. Those that are kept from everybody may come back
/// while one waits.
fn allowed(host: &Host<'_>) -> Option<Vec<String>> {
    let slices = |gpu: &crate::gpu::Gpu| gpu.mig_devices.iter().map(|slice| slice.uuid.clone()).collect::<Vec<_>>();
    let devices = host.inventory.gpus().iter().flat_map(|gpu| [vec![gpu.uuid.clone()], slices(gpu)].concat());
    let kept = |device: &String| host.refused.get(device).is_some_and(|why| !is_faulty(why));
    host.refused.keys().any(kept).then(|| devices.filter(|device| !kept(device)).collect())
}

impl GpuTicket {
    pub(super) fn new(
        allocator: &GpuAllocator,
        request: &GpuRequest,
        seen: &Seen<'_>,
        given: Option<Inventory>,
    ) -> Result<Self> {
        let host = allocator.host(seen, seen.making.clone())?;
        Candidates::of(request, &host)?;
        Programs::wanted(request, allocator.root())?;
        let locked = allocator.table.lock(&Cancel::new())?;
        let order = order(request.wishes.priority);
        let (owner, allowed, makes) = (allocator.owner(), allowed(&host), host.making.makes());
        let record = TicketRecord { owner, request: request.clone(), allowed, order, makes };
        let slot = locked.ticket(&record)?;
        drop(locked);
        Ok(Self::of_slot(allocator, request, slot, order, given))
    }

    pub(super) fn of_slot(
        allocator: &GpuAllocator,
        request: &GpuRequest,
        slot: Slot,
        order: i128,
        inventory: Option<Inventory>,
    ) -> Self {
        Self {
            allocator: allocator.clone(),
            request: request.clone(),
            inventory,
            slot: Some(slot),
            order,
            owner: own_pid(),
            watch: None,
            behind: None,
            ahead: BTreeSet::new(),
            again: None,
            pause: SOON,
            due: true,
            why: String::new(),
            bell: None,
        }
    }

    /// A descriptor that can be read, in the words of `poll(2)`, when it is time for another [`wait`](Self::wait) with a
    /// timeout of zero: something was freed that matters, or so much time has passed that one should look. It may be so
    /// without need. It is the same for the life of the ticket, and nothing is to be read from it.
    ///
    /// # Errors
    /// No descriptor is left (`EMFILE`).
    pub fn poll_fd(&mut self) -> Result<BorrowedFd<'_>> {
        let bell = match self.bell.take() {
            Some(bell) => bell,
            None => {
                let bell = Bell::new()?;
                bell.set(self.watch.as_ref(), self.next_look())?;
                bell
            }
        };
        Ok(self.bell.insert(bell).epoll.as_fd())
    }

    /// In what time the next wait begins with a try, if nobody tells of anything; `None` is never.
    fn next_look(&self) -> Option<Duration> {
        match (self.slot.is_some(), self.due) {
            (true, true) => Some(Duration::ZERO),
            (true, false) => self.again.map(|again| again.saturating_duration_since(Instant::now())),
            (false, _) => None,
        }
    }

    /// Why the GPUs were not to be had when it was last tried.
    pub fn reason(&self) -> &str {
        &self.why
    }

    /// Waits until the GPUs are there, at most for `timeout` (`None`: as long as it takes); `None` when that passed.
    ///
    /// # Errors
    /// Those of [`GpuAllocator::acquire`]: what has become impossible, such as by a GPU that is lost, is an error.
    /// `EINTR` is passed on, so that an interpreter can look after its signals; the place in the queue is kept.
    /// [`ErrorKind::Closed`] once the lease was given.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Option<GpuLease>> {
        let cancel = Cancel::new();
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.wait_with(deadline, &Patience { until: deadline, ..Patience::of(&cancel) })
    }

    /// As [`wait`](Self::wait); also a try that is begun before `deadline` ends with the patience.
    pub(super) fn wait_with(&mut self, deadline: Option<Instant>, patience: &Patience<'_>) -> Result<Option<GpuLease>> {
        let waited = self.wait_until(deadline, patience);
        if self.slot.is_none() {
            self.watch = None;
        }
        let set = self.bell.as_ref().map_or(Ok(()), |bell| bell.set(self.watch.as_ref(), self.next_look()));
        // A lease that was got is not lost for a bell.
        if matches!(waited, Ok(None)) { set.and(waited) } else { waited }
    }

    fn wait_until(&mut self, deadline: Option<Instant>, patience: &Patience<'_>) -> Result<Option<GpuLease>> {
        // Also where nothing calls for another look.
        self.due |= self.slot.is_none();
        loop {
            if std::mem::take(&mut self.due) {
                match self.attempt(patience) {
                    Ok(None) => {}
                    // Nobody tells when what failed would succeed: the next wait begins with a try.
                    Err(e) => {
                        self.due = true;
                        return Err(e);
                    }
                    leased => return leased,
                }
            }
            let now = Instant::now();
            let wake = [deadline, self.again].into_iter().flatten().min();
            let left = wake.map(|wake| wake.saturating_duration_since(now));
            let told = match &self.watch {
                Some(watch) => match await_readable(watch, left) {
                    Err(e) if is_interrupted(&e) => return Err(e),
                    told => told?,
                },
                // Without a watch there always is a time to look again.
                None => {
                    std::thread::sleep(left.unwrap_or(SOON));
                    false
                }
            };
            if told {
                self.due = self.settle()?;
            }
            let now = Instant::now();
            if self.again.is_some_and(|again| again <= now) {
                self.due = true;
            }
            if !self.due && deadline.is_some_and(|deadline| deadline <= now) {
                return Ok(None);
            }
        }
    }

    fn attempt(&mut self, patience: &Patience<'_>) -> Result<Option<GpuLease>> {
        let Some(slot) = &self.slot else {
            return Err(Error::new(ErrorKind::Closed, "the GPUs of this place in the queue were leased already"));
        };
        // Watched before it is looked at, so that nothing is missed in between.
        // A timer that woke one who follows another means that the other may be asleep.
        let thorough = self.behind.is_none() || self.again.is_some_and(|again| again <= Instant::now());
        if self.watch.is_none() || self.behind.is_some() {
            self.behind = None;
            self.watch = watch(&self.allocator.table)?;
        }
        let seen = self.allocator.discover(self.inventory.as_ref());
        let seen = match self.allocator.look(&self.request, seen, patience) {
            Err(error) if error.kind() == ErrorKind::Busy && patience.is_over() => {
                // Nobody tells when others have made what they make.
                self.again = Instant::now().checked_add(SOON);
                self.why = error.to_string();
                return Ok(None);
            }
            seen => seen?,
        };
        let place = Some((slot.id.as_str(), self.order));
        let attempt = self.allocator.attempt(&self.request, &seen, place, (false, thorough), patience.cancel)?;
        drop(seen);
        let later = match attempt {
            Attempt::Leased(lease) => {
                let lease = self.allocator.with_daemon(lease, &self.request, patience.cancel)?;
                self.leave();
                return Ok(Some(lease));
            }
            Attempt::Queued { later, .. } | Attempt::Later(later) => later,
        };
        self.sleep_after(later)?;
        Ok(None)
    }

    /// Prepares to be woken by what can change an answer.
    pub(super) fn sleep_after(&mut self, later: Later) -> Result<()> {
        self.again = None;
        if let Some(path) = later.behind {
            // Gone already, or too many watches: then the directory's, if there is one, only wakes more often.
            if let Ok(watch) = Watch::new(&path) {
                self.watch = Some(watch);
            }
            self.due = !Slot::is_alive(&path)?;
            self.behind = Some(path);
        }
        if self.behind.is_some() && self.watch.is_some() {
            // The one before may have enough without knowing it, if its owner does not wait just now.
            self.again = Instant::now().checked_add(FOLLOWER);
        } else if later.unannounced || self.watch.is_none() {
            self.again = Instant::now().checked_add(self.pause);
            self.pause = (self.pause * 2).min(SELDOM);
        } else {
            self.pause = SOON;
        }
        self.ahead = later.ahead;
        self.why = later.why;
        Ok(())
    }

    /// Whether what was told of matters; waits until the kernel has done it.
    fn settle(&mut self) -> Result<bool> {
        let Some(watch) = &self.watch else { return Ok(true) };
        let mut matters = false;
        let told: BTreeSet<_> = watch.drain().into_iter().collect();
        for name in told {
            let path = match (&self.behind, name.to_str()) {
                (Some(path), Some("")) => path.clone(),
                // The directory itself is gone, or so much was told at once that some of it was lost.
                (None, Some("")) => {
                    matters = true;
                    continue;
                }
                (_, Some(name)) if Table::frees(name, &self.ahead) => self.allocator.path().join(name),
                _ => continue,
            };
            let start = Instant::now();
            // The locks go microseconds after the close is told. If they stay, it was another descriptor's.
            let mut alive = Slot::is_alive(&path)?;
            while alive && start.elapsed() < SETTLE {
                std::thread::sleep(Duration::from_micros(100));
                alive = Slot::is_alive(&path)?;
            }
            matters |= !alive;
        }
        Ok(matters)
    }

    /// Gives up the place.
    fn leave(&mut self) {
        let Some(slot) = self.slot.take().filter(|_| self.owner == own_pid()) else { return };
        if let Err(error) = slot.free() {
            tracing::warn!(%error, "a place in the queue for GPUs could not be given up; it ends with its descriptor");
        }
    }
}

impl Drop for GpuTicket {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A watch on the slots; `None` where the user has as many watches as are allowed.
fn watch(table: &Table) -> Result<Option<Watch>> {
    match Watch::new(table.path()) {
        Ok(watch) => Ok(Some(watch)),
        Err(e) if e.kind() == ErrorKind::NotFound => Err(e),
        Err(error) => {
            tracing::debug!(%error, "waiting for GPUs by looking again and again");
            Ok(None)
        }
    }
}
