//! Sandboxes: from a configuration to a running application.
//!
//! ```text
//! config ─► prepare ─► plan ─► compile ─► launch ─► process
//! (said)    (checked)  (data)  (program)  (clone)   (handle)
//! ```

mod attach;
mod check;
mod compile;
mod config;
mod confine;
mod defaults;
mod enter;
mod exec;
mod gpus;
mod granted;
mod holders;
mod hooks;
mod identity;
mod launch;
mod leased;
mod mount;
mod network;
mod options;
mod places;
mod plan;
mod ports;
mod prepare;
mod privileges;
mod process;
mod reach;
mod ready;
mod root;
mod services;
mod shift;
mod stdio;

pub use config::{Network, SandboxBuilder, UserNamespace};
pub use exec::ExecBuilder;
pub use mount::{Mount, Propagation};
pub use plan::{Namespace, Plan};
pub use privileges::{Capability, ResourceLimit};
pub use process::{ExitStatus, Output, Process};
pub use stdio::Stdio;

use crate::cgroup::{Cgroup, Limits, Stats};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::{GpuGrant, HookMoment, VendorHook};
use crate::image::{Image, ImageStore};
use crate::net::Reservation;
use crate::rootfs::{Scratch, Writable};
use crate::sandbox::attach::Attachments;
use crate::sandbox::check::check;
use crate::sandbox::config::Source;
use crate::sandbox::confine::{cgroup, cgroup_facts, restrict_devices};
use crate::sandbox::gpus::{GpuSource, Gpus};
use crate::sandbox::launch::{Inputs, launch};
use crate::sandbox::network::Joined;
use crate::sandbox::ports::Ports;
use crate::sandbox::prepare::{ExecContext, prepare};
use crate::sandbox::process::{Handle, process_methods};
use crate::sandbox::root::Root;
use crate::sandbox::services::Services;
use crate::sandbox::shift::Shifted;
use crate::store::LayerHandle;
use crate::sys::fs;
use crate::sys::program::now;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A running application in namespaces, a root file system and limits of its own.
///
/// Dropping it kills everything inside and gives everything back; [`Sandbox::detach`] is the explicit way out. All
/// methods may be called from any thread. In a child that was forked from the host process, dropping does nothing.
///
/// ```no_run
/// use gpucontainer::Sandbox;
///
/// # fn main() -> gpucontainer::Result<()> {
/// let sandbox = Sandbox::builder("docker.io/library/python:3.13")
///     .command(["python3", "-m", "http.server", "8000"])
///     .publish(8000, 0)
///     .memory_max(1 << 30)
///     .spawn()?;
/// println!("serving on {}", sandbox.ports()[0].host());
/// println!("{}", sandbox.wait()?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Sandbox {
    name: String,
    handle: Handle,
    ports: Ports,
    services: Services,
    cgroup: Option<Cgroup>,
    scratch: Option<Scratch>,
    joined: Joined,
    /// Keeps the layers from being collected.
    _layers: Vec<LayerHandle>,
    attachments: Mutex<Attachments>,
    gpu_source: GpuSource,
    context: ExecContext,
    plan: Plan,
    timeline: Vec<Phase>,
}

/// One phase of a start.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Phase {
    /// What was done.
    pub name: &'static str,
    /// How long it took.
    pub duration: Duration,
}

impl Sandbox {
    /// Describes a sandbox of an image, by its reference.
    pub fn builder(reference: impl Into<String>) -> SandboxBuilder {
        SandboxBuilder::new(Source::Reference(reference.into()))
    }

    /// Describes a sandbox of an image of a store.
    pub fn from_image(image: &Image) -> SandboxBuilder {
        SandboxBuilder::new(Source::Image(image.clone()))
    }

    /// Describes a sandbox whose root is a directory of the host. What is written goes into it.
    pub fn from_directory(path: impl Into<PathBuf>) -> SandboxBuilder {
        SandboxBuilder::new(Source::Directory(path.into()))
    }

    fn start(builder: &SandboxBuilder) -> Result<Self> {
        Self::start_with(builder, || Ok(()), false)
    }

    /// As [`start`](Self::start); `ready` is called when nothing but the launch is left. `entered` is for a caller to whom
    /// the application's end is all that counts, also if it came at once, and who wants to hear when it is stopped.
    fn start_with(builder: &SandboxBuilder, ready: impl FnOnce() -> Result<()>, entered: bool) -> Result<Self> {
        let mut moments = vec![("", now())];
        check(builder)?;
        let name = builder.name.clone().unwrap_or_else(|| format!("s-{}", &fs::unique()[..12]));
        let wanted = || format!("start sandbox {name}");
        let root = Root::find(builder, true).with_context(wanted)?;
        collect_once(&root, builder).with_context(wanted)?;
        moments.push(("image", now()));
        // Before anything is made that would wait with it.
        let gpus = Gpus::lease(builder, &name, &root).with_context(wanted)?;
        if gpus.is_some() {
            moments.push(("gpus", now()));
        }
        let mut reserved = Ports::reserve(builder).with_context(wanted)?;
        let scratch = match root.writable(builder) {
            Writable::Disk => Some(Scratch::create(&root.scratch(builder)?, &name).with_context(wanted)?),
            _ => None,
        };
        moments.push(("scratch", now()));
        let cgroup = cgroup(builder, &name).with_context(wanted)?;
        let facts = cgroup_facts(cgroup.as_ref());
        moments.push(("cgroup", now()));

        let handed =
            reserved.iter_mut().map(Reservation::hand_over).collect::<Result<Vec<_>>>().with_context(wanted)?;
        let (names, handed): (Vec<_>, Vec<_>) = handed.into_iter().flatten().unzip();
        let joined = Joined::join(builder, &name).with_context(wanted)?;
        moments.push(("network", now()));
        let prepared =
            prepare(builder, &name, root, scratch.as_ref(), &facts, gpus.as_ref(), names).with_context(wanted)?;
        let rules = restrict_devices(builder, cgroup.as_ref(), &prepared).with_context(wanted)?;
        let lease = gpus.and_then(Gpus::into_lease);
        let late = |hook: &&VendorHook| hook.moment == HookMoment::Poststart;
        let hooks = prepared.grant.iter().flat_map(|grant| &grant.hooks);
        let late_hooks: Vec<VendorHook> = hooks.filter(late).cloned().collect();
        let bound = prepared.id_maps.is_some();
        let attachments = Attachments::of_start((prepared.grant, &prepared.vacant), rules, bound, lease.clone())?;
        // Device rules may have added a hierarchy.
        let entry = cgroup.as_ref().map(Cgroup::entry);
        let cgroup_tasks: Vec<_> = entry.iter().flat_map(crate::cgroup::Entry::tasks).collect();
        moments.push(("prepare", now()));
        let streams = builder.process.streams()?;
        let mut claims = Vec::new();
        claims.extend(scratch.as_ref().map(AsFd::as_fd));
        claims.extend(cgroup.as_ref().and_then(Cgroup::claim_fd));
        claims.extend(joined.holders());
        // The layers of an image share one lock.
        claims.extend(prepared.layers.first().map(LayerHandle::lock));
        let shifted = match &prepared.id_maps {
            Some(maps) => Shifted::take(&prepared.plan, maps).with_context(wanted)?,
            None => Shifted::default(),
        };
        let sys = joined.sys(&prepared.plan).with_context(wanted)?;
        let shared = joined.shared(&prepared.plan);
        let inputs = Inputs {
            shifted: Some(&shifted),
            cgroup: entry.as_ref().and_then(crate::cgroup::Entry::directory),
            cgroup_tasks,
            stdio: streams.as_ref().map(|streams| streams.inside()),
            claims,
            lease: lease.as_ref().map(AsFd::as_fd),
            handed,
            passed: builder.process.passed(),
            tell_stops: entered,
            target: None,
            network: joined.entrance().filter(|_| shared.is_empty()),
            shared,
            outbound: joined.outbound(),
            sources: sys.iter().map(|(source, mount)| (*source, mount.as_fd())).collect(),
            id_maps: prepared.id_maps.as_ref(),
        };
        ready().with_context(wanted)?;
        let mut running = launch(&prepared.plan, &inputs)?;
        let binds = running.binds.take();
        drop(lease);
        drop(sys);
        let told = joined.held_by(&running);
        moments.extend(running.moments.iter().copied());
        let host = streams.map_or([None, None, None], |streams| streams.host);
        let handle = Handle::new(running, host)?;
        let mut sandbox = Self {
            name,
            handle,
            ports: Ports::of(builder),
            services: Services::of(builder),
            cgroup,
            scratch,
            joined,
            _layers: prepared.layers,
            attachments: Mutex::new(attachments),
            gpu_source: GpuSource::of(builder),
            context: prepared.context,
            plan: prepared.plan,
            timeline: Vec::new(),
        };
        told.with_context(|| format!("start sandbox {}", sandbox.name))?;
        match (sandbox.context.watch_binds, &binds) {
            (Ok(()), Some(_)) => sandbox.ports.prepare_to_hear().with_context(publishing(&sandbox.name))?,
            (Ok(()), None) => sandbox.ports.deaf("the kernel gives no listener, as when another filter has one"),
            (Err(why), _) => sandbox.ports.deaf(why),
        }
        if !reserved.is_empty() {
            let published = sandbox.network_namespace().and_then(|network| sandbox.ports.publish(reserved, network));
            // To one that has ended already nobody can be led. Its namespaces are gone a little earlier than it is.
            if published.is_ok() || !entered || sandbox.wait_timeout(Duration::from_secs(1))?.is_none() {
                published.with_context(publishing(&sandbox.name))?;
            }
            moments.push(("ports", now()));
        }
        // Binds wait until the ports that they may be for are known.
        binds.map_or(Ok(()), |listener| sandbox.ports.hear(listener)).with_context(publishing(&sandbox.name))?;
        if !builder.services.is_empty() {
            sandbox.expose_host(&builder.services)?;
            moments.push(("services", now()));
        }
        for hook in &late_hooks {
            // As the OCI runtime specification has it: the application runs, whatever such a program says.
            if let Err(error) = hooks::run(hook, &sandbox.name, sandbox.pid(), "running") {
                tracing::warn!(%error, sandbox = sandbox.name, "a vendor's program failed");
            }
        }
        sandbox.timeline = phases(&moments);
        Ok(sandbox)
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    process_methods!();

    /// What the start did.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The phases of the start, in order; their sum is the time that the start took.
    pub fn timeline(&self) -> &[Phase] {
        &self.timeline
    }

    /// The GPUs that are visible inside, by UUID: those of the start, then those that were attached.
    pub fn gpus(&self) -> Vec<String> {
        self.attachments().gpus()
    }

    /// What it has of GPUs, as [`Sandbox::detach_gpus`] takes it: the grant of the start, if there was one, and then
    /// those that were attached.
    pub fn granted(&self) -> Vec<GpuGrant> {
        self.attachments().grants().cloned().collect()
    }

    /// What it has of GPUs; only one thread at a time changes it.
    fn attachments(&self) -> MutexGuard<'_, Attachments> {
        // Whole after every single change.
        self.attachments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it has ended; the wait status, as `wait4(2)` gives it.
    fn wait_raw(&self) -> Option<i32> {
        loop {
            match self.handle.wait(None) {
                Ok(Some(status)) => return Some(status),
                Ok(None) => {}
                Err(error) if error.errno() == Some(crate::sys::errno::EINTR) => {}
                Err(_) => return None,
            }
        }
    }

    fn status(&self, raw: i32) -> Result<ExitStatus> {
        self.with_cgroup(ExitStatus::new(raw, false))
    }

    /// Adds what the control group knows of the end.
    fn with_cgroup(&self, status: ExitStatus) -> Result<ExitStatus> {
        match &self.cgroup {
            Some(cgroup) => Ok(status.at_memory_limit(cgroup.oom_kills()? > 0)),
            None => Ok(status),
        }
    }

    /// Writes `input` to the application's standard input and closes it, collects what it writes to piped
    /// streams, and waits.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] after `timeout`; the application still runs then.
    pub fn communicate(&self, input: &[u8], timeout: Option<Duration>) -> Result<Output> {
        let late = || Error::new(ErrorKind::TimedOut, format!("sandbox {} did not end in time", self.name));
        let output = self.handle.communicate(input, timeout)?.ok_or_else(late)?;
        Ok(Output { status: self.with_cgroup(output.status)?, ..output })
    }

    /// Describes a further process inside.
    pub fn exec<S: Into<String>>(&self, command: impl IntoIterator<Item = S>) -> ExecBuilder<'_> {
        ExecBuilder::new(self, command.into_iter().map(Into::into).collect())
    }

    /// Stops everything inside, until [`Sandbox::resume`].
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without a control group.
    pub fn pause(&self) -> Result<()> {
        self.group("pause")?.freeze()
    }

    /// Lets everything inside go on.
    ///
    /// # Errors
    /// As [`Sandbox::pause`].
    pub fn resume(&self) -> Result<()> {
        self.group("resume")?.thaw()
    }

    /// What the sandbox uses.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without a control group.
    pub fn stats(&self) -> Result<Stats> {
        self.group("count the use of")?.stats()
    }

    /// Changes the resource limits; those that are not named stay.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without a control group, [`ErrorKind::LimitNotApplied`] otherwise.
    pub fn update(&self, limits: &Limits) -> Result<()> {
        self.group("limit")?.update(limits)
    }

    fn group(&self, verb: &str) -> Result<&Cgroup> {
        self.cgroup.as_ref().ok_or_else(|| {
            let message = format!("cannot {verb} sandbox {}: it has no control group on this host", self.name);
            Error::new(ErrorKind::Unsupported, message)
        })
    }

    /// Lets the application live on when this handle and this process are gone.
    ///
    /// Published ports and services of the host close, since this process served them; a program inside that has a socket
    /// of the host goes on to take clients from it until it closes it. What is left when the application ends is removed by
    /// the next store that is opened, and by the next sandbox of the user.
    ///
    /// The sandbox's supervisor stays a child of this process: one that lives on is told of its end by `SIGCHLD`, and has a
    /// zombie of it until it collects its children, as with `waitpid(-1, …)`, or ends itself.
    ///
    /// # Errors
    /// Those of telling the supervisor; then nothing has changed.
    pub fn detach(mut self) -> Result<()> {
        self.handle.leave(self.ports.take_listeners())?;
        if let Some(cgroup) = self.cgroup.take() {
            cgroup.leave();
        }
        if let Some(scratch) = self.scratch.take() {
            scratch.leave();
        }
        self.joined.forget();
        self.attachments().keep_leases();
        Ok(())
    }

    /// Kills everything inside, gives everything back, and says what went wrong with that.
    ///
    /// # Errors
    /// All that failed, joined; each thing is tried.
    pub fn close(mut self) -> Result<()> {
        self.give_back()
    }

    fn give_back(&mut self) -> Result<()> {
        if self.handle.is_left() || !self.handle.is_owner() {
            return Ok(());
        }
        let mut failures = Vec::new();
        self.ports.close();
        self.services.close();
        if let Some(cgroup) = &self.cgroup {
            // A paused application cannot die before it goes on.
            if cgroup.is_frozen().unwrap_or(false) {
                failures.extend(cgroup.thaw().err());
            }
        }
        failures.extend(self.handle.end().err());
        if let Some(mut cgroup) = self.cgroup.take() {
            failures.extend(cgroup.remove().err());
        }
        if let Some(scratch) = self.scratch.take() {
            failures.extend(scratch.remove().err());
        }
        failures.extend(std::mem::replace(&mut self.joined, Joined::Nothing).leave().err());
        failures.extend(self.attachments().release_leases());
        let mut failures = failures.into_iter();
        let Some(first) = failures.next() else { return Ok(()) };
        let others: String = failures.map(|failure| format!("; also: {failure}")).collect();
        Err(first.context(format!("clean up sandbox {}{others}", self.name)))
    }
}

impl AsFd for Sandbox {
    /// Readable once the application has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if !self.handle.is_owner() {
            // A forked child of the host: nothing here is its to give back, and the relay's thread is not in it.
            std::mem::forget((self.cgroup.take(), self.scratch.take()));
            self.joined.forget();
            self.ports.forget();
            self.services.forget();
            return;
        }
        if let Err(error) = self.give_back() {
            tracing::warn!(%error, "a sandbox left something behind");
        }
    }
}

/// Removes what sandboxes of dead owners left, of this user's: control groups, and directories for writes in the
/// store. The first start of a process with a store does this by itself.
///
/// # Errors
/// What could not be removed, after everything was tried.
pub fn collect_abandoned(store: &ImageStore) -> Result<()> {
    collect(&store.scratch())
}

fn collect(scratch: &Path) -> Result<()> {
    let groups = Cgroup::collect_abandoned().map(|_| ());
    Scratch::collect_abandoned(scratch)?;
    groups
}

/// What has been collected by this process: who dies later is for later processes.
static COLLECTED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn collect_once(root: &Root, builder: &SandboxBuilder) -> Result<()> {
    let first = |path: PathBuf| COLLECTED.lock().unwrap_or_else(PoisonError::into_inner).insert(path);
    if matches!(root, Root::Directory(_)) {
        // It has nothing to do with a store, but its control groups are like all others.
        return if first(PathBuf::new()) { Cgroup::collect_abandoned().map(|_| ()) } else { Ok(()) };
    }
    let scratch = root.scratch(builder)?;
    if first(scratch.clone()) { collect(&scratch) } else { Ok(()) }
}

fn publishing(name: &str) -> impl Fn() -> String + use<'_> {
    move || format!("publish ports of sandbox {name}")
}

/// Whether `name` can be that of a sandbox or a volume.
pub(crate) fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(good) && !name.starts_with('.')
}

fn phases(moments: &[(&'static str, Duration)]) -> Vec<Phase> {
    let pairs = moments.windows(2);
    pairs.map(|pair| Phase { name: pair[1].0, duration: pair[1].1.saturating_sub(pair[0].1) }).collect()
}
