//! Control groups, version 1, 2 and both at once: limits, statistics, events, devices.
//!
//! ```no_run
//! use gpucontainer::cgroup::{Cgroup, Limits};
//!
//! let limits = Limits::new().memory_max(64 << 20).cpus(0.5).pids_max(50);
//! let mut group = Cgroup::create("job-1", &limits)?;
//! let entry = group.entry();
//! // … a process is started with `entry` …
//! println!("{:?}", group.stats()?);
//! group.kill()?;
//! group.remove()?;
//! # Ok::<(), gpucontainer::Error>(())
//! ```
//!
//! # Where groups are made
//!
//! Root makes them at the top of each hierarchy that it sees, anybody else in the deepest group above
//! its own process that was delegated to it:
//!
//! ```text
//! version 1    <hierarchy>/gpucontainer-<name>     in memory and pids, and where a limit needs it
//! version 2    <parent>/gpucontainer/<name>        the group in between gives the controllers and stays:
//!                                                  what it gives, no service manager above takes away
//!              <parent>/gpucontainer-<name>        if no controllers are needed
//! ```
//!
//! # How processes get in
//!
//! Never by writing a process number into `cgroup.procs`: that waits for a grace period of the kernel,
//! 10 ms on an idle machine. [`Entry`] says the two ways that cost microseconds.
//!
//! # What is done by `cgroups-rs`, and what is not
//!
//! [`Cgroup::update`] changes limits of running groups through its controllers, and [`Cgroup::stats`]
//! reads numbers of processes, huge pages and processor time of version 1 through them. By hand is done
//! what it has not (entering, `cgroup.kill`, freezing to the end, delegation, the device program of
//! version 2), what has to be quick (making a group), and where it would report an unreadable file as 0
//! or panic on a group that is gone (memory and I/O statistics). Its methods that apply many limits at
//! once drop errors, so only those that set one are used, and every value is read back.

mod abandoned;
mod cpulist;
mod devices;
mod foreign;
mod freeze;
mod kill;
mod late;
mod layout;
mod leaf;
mod limits;
mod lines;
mod setting;
mod stats;
mod support;
mod update;

pub use devices::{DeviceKind, DeviceRule};
pub use layout::Version;
pub use limits::{IoLimit, Limits};
pub use stats::{CpuStats, HugetlbStats, IoStats, MemoryStats, PidsStats, Stats};
pub use support::{HierarchySupport, Mode, Support};

use crate::claim::Claim;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::fs;
use cpulist::CpuList;
use layout::{Hierarchy, Layout};
use leaf::{Leaf, Place};
use setting::Setting;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What every group's directory is called or lies in.
const PREFIX: &str = "gpucontainer";

/// How long [`Cgroup::remove`] waits for processes that are ending.
const ENDING: Duration = Duration::from_secs(2);

/// A group of processes that are limited, counted, frozen and killed together.
///
/// Dropping it kills what is inside and removes it, unless it was [opened](Cgroup::open).
#[derive(Debug)]
pub struct Cgroup {
    name: String,
    /// Where the group is or, in hierarchies that were not needed so far, would be.
    places: Vec<Place>,
    leaves: Mutex<Vec<Arc<Leaf>>>,
    layout: Layout,
    /// Held by whoever made the group.
    claim: Option<Claim>,
    /// Says that this process holds the group still. Nobody inside has a copy: when this process dies, whoever
    /// collects ends what could not end by itself.
    held: Mutex<Option<Claim>>,
    /// The program on version 2 that decides on devices, to be replaced by the next one.
    devices: Mutex<Option<OwnedFd>>,
}

/// What a group is made for, besides its limits.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Options {
    accounting: bool,
}

impl Options {
    /// Memory and processes are counted; nothing else without a limit that needs it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts processor time also where that takes a hierarchy of its own (`cpuacct` of version 1 apart from `cpu`).
    /// By default it is counted where it costs nothing.
    #[must_use]
    pub fn accounting(mut self, yes: bool) -> Self {
        self.accounting = yes;
        self
    }

    /// Controllers that are wanted but that a group can do without.
    fn extras(&self) -> &'static [&'static str] {
        if self.accounting { &["memory", "pids", "cpuacct"] } else { &["memory", "pids"] }
    }
}

/// How a process gets into a group while it is being started.
///
/// All of it must be used: `clone3(2)` gets [`Entry::directory`], then the child writes `0` to each of [`Entry::tasks`].
#[derive(Clone, Debug)]
pub struct Entry(Vec<Arc<Leaf>>);

impl Entry {
    /// The directory for `CLONE_INTO_CGROUP`, if the group is in a version 2 hierarchy.
    pub fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.0.iter().find(|leaf| leaf.version == Version::V2).map(|leaf| leaf.entry.as_fd())
    }

    /// The files `tasks` of the group in version 1 hierarchies, open for writing.
    ///
    /// The child must have one thread, and writes `0` to each: that moves the writing thread alone.
    pub fn tasks(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().filter(|leaf| leaf.version == Version::V1).map(|leaf| leaf.entry.as_fd())
    }
}

impl Cgroup {
    /// Makes a group with limits; the caller owns it.
    ///
    /// `name` is made of letters, digits, `.`, `_` and `-`, and is unique among living groups of the user.
    ///
    /// # Errors
    /// Nothing is left behind by any of them.
    /// - [`ErrorKind::InvalidArgument`]: the name or a value cannot be used.
    /// - [`ErrorKind::LimitNotApplied`]: this host, the caller's rights or the kernel do not allow a limit.
    /// - [`ErrorKind::AlreadyExists`]: a living group has the name.
    /// - [`ErrorKind::Unsupported`]: the caller may not make groups at all; the text says where that was tried.
    ///   Without limits a sandbox can do without a group.
    pub fn create(name: &str, limits: &Limits) -> Result<Self> {
        Self::create_with(name, limits, &Options::new())
    }

    /// Makes a group as [`Cgroup::create`] does, with options.
    ///
    /// # Errors
    /// Those of [`Cgroup::create`].
    pub fn create_with(name: &str, limits: &Limits, options: &Options) -> Result<Self> {
        limits.check()?;
        Self::create_in(&Layout::detect()?, &abandoned::directory()?, name, limits, options)
    }

    /// Makes a group in the hierarchies of `layout`, claimed in the directory `claims`.
    fn create_in(layout: &Layout, claims: &Path, name: &str, limits: &Limits, options: &Options) -> Result<Self> {
        let wanted = || format!("make control group {name:?}");
        check_name(name)?;
        limits.check()?;
        let settings = setting::settings(limits, layout).with_context(wanted)?;
        let plan = Plan::make(layout, name, &settings, options).with_context(wanted)?;
        let note = abandoned::note(plan.places.iter().map(|place| place.path.as_path()));
        let claim = abandoned::take(claims, name, &note).with_context(wanted)?;
        let mut group = Self {
            name: name.to_owned(),
            places: plan.places,
            leaves: Mutex::default(),
            layout: layout.clone(),
            claim: Some(claim),
            held: Mutex::default(),
            devices: Mutex::default(),
        };
        for at in plan.now {
            let made = Leaf::make(&group.places[at]).with_context(wanted);
            match made {
                Ok(leaf) => group.locked().push(Arc::new(leaf)),
                // A group that was there is not ours to remove, but the claim on it stays for a collection.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    let made = std::mem::take(&mut *group.locked());
                    let claim = group.claim.take();
                    for leaf in made {
                        leaf::remove(&leaf.path, Instant::now())?;
                    }
                    drop(claim);
                    return Err(e);
                }
                Err(e) => return Err(group.undone(e)),
            }
        }
        match group.apply(&settings).with_context(wanted) {
            Ok(()) => Ok(group),
            Err(e) => Err(group.undone(e)),
        }
    }

    /// Takes hold of a group that somebody made, to look at it and to steer it. It stays theirs.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none of that name among the groups of the user.
    pub fn open(name: &str) -> Result<Self> {
        Self::open_in(&Layout::detect()?, &abandoned::directory()?, name)
    }

    fn open_in(layout: &Layout, claims: &Path, name: &str) -> Result<Self> {
        check_name(name)?;
        let wanted = || format!("open control group {name:?}");
        let places = abandoned::claimed(claims, name, layout).with_context(wanted)?;
        let mut leaves = Vec::new();
        for place in &places {
            match Leaf::open(place.version, place.controllers.clone(), place.path.clone()) {
                Ok(leaf) => leaves.push(Arc::new(leaf)),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e.context(wanted())),
            }
        }
        if leaves.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "there is no group of this name any more").context(wanted()));
        }
        let layout = layout.clone();
        Ok(Self {
            name: name.to_owned(),
            places,
            leaves: Mutex::new(leaves),
            layout,
            claim: None,
            held: Mutex::default(),
            devices: Mutex::default(),
        })
    }

    /// The name it was made with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directories of the group, one in each hierarchy that it is in.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.locked().iter().map(|leaf| leaf.path.clone()).collect()
    }

    /// How a process gets in at its start.
    pub fn entry(&self) -> Entry {
        Entry(self.locked().clone())
    }

    /// The descriptor that marks the group as in use; a process that inherits it keeps the mark after the
    /// caller's death. `None` for a group that was [opened](Cgroup::open).
    pub fn claim_fd(&self) -> Option<BorrowedFd<'_>> {
        self.claim.as_ref().map(AsFd::as_fd)
    }

    /// The numbers of the processes inside, also in groups made inside it.
    ///
    /// One that the caller cannot see, being in another pid namespace, is 0.
    ///
    /// # Errors
    /// Those of reading `cgroup.procs`.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let mut all = Vec::new();
        for leaf in self.locked().iter() {
            all.extend(leaf.processes()?);
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Kills everything inside and waits until it has ended; frozen processes too. An empty group is no error.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] if something has not ended 10 s later (it hangs inside a system call).
    pub fn kill(&self) -> Result<()> {
        kill::everything(&self.paths(), Instant::now() + abandoned::PATIENCE)
            .with_context(|| format!("kill control group {:?}", self.name))
    }

    /// Removes the group and those made inside it, waiting at most 2 s for processes that are ending.
    /// Whether it was removed already is no error.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`], with their numbers, if processes live inside; then the group stays.
    pub fn remove(&mut self) -> Result<()> {
        let wanted = || format!("remove control group {:?}", self.name);
        let deadline = Instant::now() + ENDING;
        let mut leaves = self.locked();
        let (mut left, mut errors) = (Vec::new(), Vec::new());
        for leaf in leaves.drain(..).rev() {
            if let Err(e) = leaf::remove(&leaf.path, deadline) {
                errors.push(e);
                left.insert(0, leaf);
            }
        }
        *leaves = left;
        drop(leaves);
        leaf::together(errors).with_context(wanted)?;
        self.let_go().with_context(wanted)?;
        match self.claim.take() {
            Some(claim) => claim.release().with_context(|| format!("remove control group {:?}", self.name)),
            None => Ok(()),
        }
    }

    /// Leaves the group to whoever holds a copy of [`Cgroup::claim_fd`]; when none is left,
    /// [`Cgroup::collect_abandoned`] removes it.
    pub fn leave(mut self) {
        if let Err(error) = self.let_go() {
            tracing::debug!(%error, "a group that is left stays claimed as held still");
        }
        self.locked().clear();
        self.claim = None;
    }

    /// Kills and removes the groups of the user whose makers died, and says their names.
    ///
    /// # Errors
    /// All that went wrong with any of them, after all have been tried.
    pub fn collect_abandoned() -> Result<Vec<String>> {
        abandoned::collect(&abandoned::directory()?)
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Arc<Leaf>>> {
        // A list of handles is whole after every step on it.
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group in the hierarchy that has `controller`; an empty name is that of version 2 itself.
    fn leaf(&self, controller: &str) -> Option<Arc<Leaf>> {
        let unified = self.is_unified(controller);
        let leaves = self.locked();
        let found = leaves.iter().find(|leaf| match leaf.version {
            Version::V1 => !unified && leaf.has(controller),
            Version::V2 => unified,
        });
        found.cloned()
    }

    fn is_unified(&self, controller: &str) -> bool {
        controller.is_empty() || self.layout.find(controller).is_some_and(|found| found.version == Version::V2)
    }

    /// Writes the settings of a new group.
    fn apply(&self, settings: &[Setting]) -> Result<()> {
        if let Some(leaf) = self.leaf("cpuset") {
            let given: Vec<&str> = settings.iter().map(|setting| setting.file.as_str()).collect();
            late::inherit_cpuset(&leaf, &given)?;
        }
        for setting in settings {
            let leaf = self.leaf(&setting.controller).ok_or_else(|| setting.not_applied("no hierarchy for it"))?;
            leaf.apply(setting)?;
            check_effective(&leaf, setting)?;
        }
        Ok(())
    }

    /// Takes everything back after `error`, to which it adds what that went wrong with.
    fn undone(mut self, error: Error) -> Error {
        match self.remove() {
            Ok(()) => error,
            Err(second) => error.context(format!("(and then: {second})")),
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.claim.is_none() {
            return;
        }
        let paths = self.paths();
        // An empty group goes away at the first attempt, which is the usual case: looking inside costs more.
        let quick = paths.iter().rev().all(|path| fs::remove_dir(path).is_ok());
        let result = if quick {
            self.locked().clear();
            self.remove()
        } else {
            self.kill().and_then(|()| self.remove())
        };
        if let Err(error) = result {
            // A later collection tries again: the claim's file is still there.
            tracing::warn!(%error, name = self.name, "control group left behind");
        }
    }
}

/// Version 2 takes processors that do not exist and then uses others: asked for is not had.
fn check_effective(leaf: &Leaf, setting: &Setting) -> Result<()> {
    if setting.controller != "cpuset" || leaf.version == Version::V1 {
        return Ok(());
    }
    let had = leaf.read(&format!("{}.effective", setting.file))?;
    let asked = CpuList::parse(&setting.value).map_err(|why| setting.not_applied(&why))?;
    let had = CpuList::parse(&had).unwrap_or_default();
    match asked.first_beyond(&had) {
        Some(missing) => Err(setting.not_applied(&format!("{missing} does not exist or is not given to this group"))),
        None => Ok(()),
    }
}

fn check_name(name: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    // Names of files end at 255 bytes; ours gets a prefix and a suffix.
    if !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.bytes().all(allowed) {
        return Ok(());
    }
    let why = "not made of 1 to 200 letters, digits, '.', '_' and '-', or begins with '.'";
    Err(Error::new(ErrorKind::InvalidArgument, format!("name of control group {name:?}: {why}")))
}

/// Where a new group goes.
#[derive(Debug)]
struct Plan {
    places: Vec<Place>,
    /// The indices of the places where it is made at once.
    now: Vec<usize>,
}

impl Plan {
    fn make(layout: &Layout, name: &str, settings: &[Setting], options: &Options) -> Result<Self> {
        let mut plan = Self { places: Vec::new(), now: Vec::new() };
        let mut reasons = Vec::new();
        // Version 1 first: whether version 2 is needed follows from it.
        let (old, new): (Vec<_>, Vec<_>) =
            layout.hierarchies.iter().partition(|hierarchy| hierarchy.version == Version::V1);
        // Those that are needed at once come first: where they are made at the top, the others can be, if they ever are.
        let at_once = |hierarchy: &&Hierarchy| {
            let needed = settings.iter().any(|setting| hierarchy.has(&setting.controller));
            needed || options.extras().iter().any(|name| hierarchy.has(name))
        };
        let (first, later): (Vec<_>, Vec<_>) = old.into_iter().partition(at_once);
        let mut at_top = false;
        for hierarchy in first.into_iter().chain(later) {
            let needed = settings.iter().find(|setting| hierarchy.has(&setting.controller));
            let now = at_once(&hierarchy);
            let parent = if at_top && !now { Ok(hierarchy.mount.clone()) } else { hierarchy.parent(&[]) };
            if now {
                at_top = parent.as_ref() == Ok(&hierarchy.mount);
            }
            let parent = match (parent, needed) {
                (Ok(parent), _) => parent,
                (Err(why), Some(setting)) => return Err(setting.not_applied(&why)),
                (Err(why), None) => {
                    reasons.push(why);
                    continue;
                }
            };
            if now {
                plan.now.push(plan.places.len());
            }
            plan.places.push(Place {
                version: Version::V1,
                path: parent.join(format!("{PREFIX}-{name}")),
                controllers: hierarchy.controllers.clone(),
                givers: Vec::new(),
            });
        }
        for hierarchy in new {
            let needed = settings.iter().find(|s| s.controller.is_empty() || hierarchy.has(&s.controller));
            let mut must: Vec<&str> = settings.iter().map(|setting| setting.controller.as_str()).collect();
            must.retain(|name| hierarchy.has(name));
            must.sort_unstable();
            must.dedup();
            let mut all = must.clone();
            all.extend(options.extras().iter().filter(|name| hierarchy.has(name) && !must.contains(name)));
            // A delegated group may lack what is only wanted.
            let found = hierarchy.parent(&all).map(|parent| (parent, all));
            let found = found.or_else(|why| hierarchy.parent(&must).map(|parent| (parent, must)).map_err(|_| why));
            let (parent, controllers) = match (found, needed) {
                (Ok(found), _) => found,
                (Err(why), Some(setting)) => return Err(setting.not_applied(&why)),
                (Err(why), None) => {
                    reasons.push(why);
                    continue;
                }
            };
            if needed.is_some() || plan.now.is_empty() {
                plan.now.push(plan.places.len());
            }
            plan.places.push(Place::unified(&parent, name, controllers.into_iter().map(str::to_owned).collect()));
        }
        if plan.now.is_empty() {
            let why = if reasons.is_empty() { "no hierarchy is mounted".to_owned() } else { reasons.join("; ") };
            return Err(Error::new(ErrorKind::Unsupported, format!("no place for a control group: {why}")));
        }
        Ok(plan)
    }
}

impl Place {
    /// The place of a group in a version 2 hierarchy, below `parent`.
    fn unified(parent: &Path, name: &str, controllers: Vec<String>) -> Self {
        let (path, givers) = if controllers.is_empty() {
            (parent.join(format!("{PREFIX}-{name}")), vec![parent.to_owned()])
        } else {
            let between = parent.join(PREFIX);
            (between.join(name), vec![parent.to_owned(), between])
        };
        Self { version: Version::V2, path, controllers, givers }
    }
}

#[cfg(test)]
mod tests;
