//! GPUs that come to a running sandbox, and go from it.
//!
//! ```text
//! device rules ─► stub: take files of the host ─► enter the container's mounts ─► nodes, files, links
//!                                                 one step fails: what was done is undone, rules too
//! ```

use crate::cgroup::{Cgroup, DeviceRule};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::{DeviceNode, FileMount, FileTree, GpuGrant, GpuLease, OwnFile, Symlink};
use crate::sandbox::granted::{granted_device, granted_file, granted_mount, tree_steps};
use crate::sandbox::holders::{holders, neighbours};
use crate::sandbox::launch::{Broken, perform};
use crate::sandbox::leased::Held;
use crate::sandbox::plan::{Namespace, Plan, Step};
use crate::sandbox::prepare::text;

use crate::sandbox::Sandbox;
use crate::sandbox::confine::device_rules;
use crate::sys::process;
use crate::sys::root::{Entry, Root};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

/// What a sandbox has of GPUs now.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    list: Vec<Attached>,
    /// The device rules of the control group, if any were made.
    rules: Option<Vec<DeviceRule>>,
    /// How many times a tree is mounted over another at the same place.
    trees: BTreeMap<PathBuf, usize>,
    /// Leases without an attachment that are to end with the sandbox.
    late: Vec<Held>,
}

/// A grant, and how to take it away again.
#[derive(Debug)]
struct Attached {
    grant: GpuGrant,
    /// Whether the sandbox was started with it.
    at_start: bool,
    undo: Vec<Undo>,
    /// What keeps its GPUs from others, if they were leased.
    lease: Option<Held>,
}

/// How to take away one thing.
#[derive(Clone, Debug)]
struct Undo {
    /// It is there when this step was done.
    after: usize,
    place: PathBuf,
    steps: Vec<Step>,
}

impl Attachments {
    /// Of a sandbox that was started with `grant`, on GPUs of `lease`. In the places `vacant` its image has nothing.
    pub(crate) fn of_start(
        (grant, vacant): (Option<GpuGrant>, &HashSet<String>),
        rules: Option<Vec<DeviceRule>>,
        bound: bool,
        lease: Option<GpuLease>,
    ) -> Result<Self> {
        let mut attachments = Self { rules, ..Self::default() };
        let lease = lease.map(Held::of_start);
        let Some(grant) = grant else {
            attachments.late.extend(lease);
            return Ok(attachments);
        };
        let mut undo = Vec::new();
        for node in &grant.device_nodes {
            undo.push(Undo { after: 0, place: node.path.clone(), steps: node_undo(&node.path, bound)? });
        }
        let files = grant.files.iter().map(|file| &file.path);
        let covered = grant.mounts.iter().map(|mount| &mount.target).chain(files);
        for place in covered {
            let path = text(place)?;
            let discard = vacant.contains(&path).then(|| Step::Discard { path: path.clone() });
            let steps = [Step::Unmount { path }].into_iter().chain(discard).collect();
            undo.push(Undo { after: 0, place: place.clone(), steps });
        }
        for link in &grant.links {
            let steps = vec![Step::Discard { path: text(&link.link)? }];
            undo.push(Undo { after: 0, place: link.link.clone(), steps });
        }
        for tree in &grant.trees {
            attachments.trees.insert(tree.path.clone(), 1);
        }
        attachments.list.push(Attached { grant, at_start: true, undo, lease });
        Ok(attachments)
    }

    pub(crate) fn grants(&self) -> impl Iterator<Item = &GpuGrant> {
        self.list.iter().map(|attached| &attached.grant)
    }

    /// The GPUs, by identifier, in the order in which they came.
    pub(crate) fn gpus(&self) -> Vec<String> {
        self.grants().flat_map(|grant| grant.gpus.iter().cloned()).collect()
    }

    /// The leases: that of the start, if there is one, then those of what was attached.
    pub(crate) fn leases(&self) -> impl Iterator<Item = &Held> {
        self.list.iter().filter_map(|attached| attached.lease.as_ref()).chain(&self.late)
    }

    /// The lease on the GPUs of the start.
    pub(crate) fn of_the_start(&self) -> Option<&Held> {
        self.list.iter().find(|attached| attached.at_start).and_then(|attached| attached.lease.as_ref())
    }

    /// Forgets all leases.
    pub(crate) fn take_leases(&mut self) -> Vec<Held> {
        let held = self.list.iter_mut().filter_map(|attached| attached.lease.take());
        held.chain(std::mem::take(&mut self.late)).collect()
    }

    /// The variables and groups of processes that start now, over those of the sandbox's start.
    pub(crate) fn for_processes(&self) -> (Vec<(String, String)>, Vec<u32>) {
        let grants = || self.list.iter().filter(|attached| !attached.at_start).map(|attached| &attached.grant);
        let environment = grants().flat_map(|grant| grant.environment.iter().cloned()).collect();
        (environment, grants().flat_map(|grant| grant.groups.iter().copied()).collect())
    }

    /// What the last of the grants has put there.
    fn item(&self, place: &Path) -> Option<Item<'_>> {
        self.list.iter().rev().find_map(|attached| Item::at(&attached.grant, place))
    }

    /// Whether the sandbox has the item already.
    fn has(&self, place: &Path, item: Item<'_>) -> Result<bool> {
        match self.item(place) {
            None => Ok(false),
            Some(known) if known == item => Ok(true),
            Some(_) => {
                let message = format!("the GPUs of the sandbox have brought something else to {}", place.display());
                Err(Error::new(ErrorKind::AlreadyExists, message).with_path(place))
            }
        }
    }

    /// Who comes after the grant number `place` and has something where it has, in its place or the same.
    fn heir(&self, place: usize, path: &Path) -> Option<usize> {
        let later = self.list.iter().enumerate().skip(place + 1);
        later.into_iter().find(|(_, other)| Item::at(&other.grant, path).is_some()).map(|(number, _)| number)
    }
}

/// What a grant puts somewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Item<'a> {
    Node(&'a DeviceNode),
    Mount(&'a FileMount),
    File(&'a OwnFile),
    Link(&'a Symlink),
}

impl<'a> Item<'a> {
    fn at(grant: &'a GpuGrant, place: &Path) -> Option<Self> {
        let node = grant.device_nodes.iter().find(|node| node.path == place).map(Self::Node);
        let mount = || grant.mounts.iter().find(|mount| mount.target == place).map(Self::Mount);
        let file = || grant.files.iter().find(|file| file.path == place).map(Self::File);
        let link = || grant.links.iter().find(|link| link.link == place).map(Self::Link);
        node.or_else(mount).or_else(file).or_else(link)
    }
}

fn node_undo(path: &Path, bound: bool) -> Result<Vec<Step>> {
    let path = text(path)?;
    let unmount = bound.then(|| Step::Unmount { path: path.clone() });
    Ok(unmount.into_iter().chain([Step::Discard { path }]).collect())
}

/// Takes away what covers `place`, and the empty file below it if there was none before.
fn cover_undo(root: &Root, place: &Path) -> Result<Vec<Step>> {
    let path = text(place)?;
    let missing = matches!(root.look_at_end(place)?, Entry::Missing);
    let discard = missing.then(|| Step::Discard { path: path.clone() });
    Ok([Step::Unmount { path }].into_iter().chain(discard).collect())
}

/// The files of all trees at `path`, a later grant's over an earlier one's.
fn merged<'a>(path: &Path, grants: impl Iterator<Item = &'a GpuGrant>) -> Option<FileTree> {
    let mut all: Option<FileTree> = None;
    for tree in grants.flat_map(|grant| &grant.trees).filter(|tree| tree.path == path) {
        let Some(known) = &mut all else {
            all = Some(tree.clone());
            continue;
        };
        for file in &tree.files {
            known.files.retain(|other| other.path != file.path);
            known.files.push(file.clone());
        }
    }
    all
}

impl Sandbox {
    /// Gives the running sandbox what `grant` has, all of it or nothing.
    ///
    /// What the sandbox has already, as the nodes that all GPUs share, is left as it is. A link of the image in the
    /// place of one of the grant's is replaced until the grant is taken away. Needs a root that can be written to for
    /// the files of the driver; device nodes need none. Nothing is leased.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] if the sandbox has ended, [`ErrorKind::AlreadyExists`] if a GPU of the grant is attached
    /// or the container has something in a node's place, or another grant something else in a file's,
    /// [`ErrorKind::Unsupported`] if the grant has programs of
    /// vendors to be run.
    pub fn attach_grant(&self, grant: &GpuGrant) -> Result<()> {
        self.attach(grant, None).with_context(|| format!("attach GPUs to sandbox {}", self.name()))
    }

    /// As [`attach_grant`](Self::attach_grant); the lease lives as long as the attachment, in the supervisor too.
    pub(crate) fn attach(&self, grant: &GpuGrant, lease: Option<&GpuLease>) -> Result<()> {
        let mut state = self.attachments();
        if let Some(gpu) = grant.gpus.iter().find(|gpu| state.gpus().contains(gpu)) {
            return Err(Error::new(ErrorKind::AlreadyExists, format!("GPU {gpu} is attached already")));
        }
        if let Some(hook) = grant.hooks.first() {
            let message = format!("{} can be run for a start alone", hook.path.display());
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let (steps, undo) = self.steps(&state, grant)?;
        // Before anybody inside can use them.
        let lease = lease.map(|lease| Held::hand(&state, lease, &self.handle)).transpose()?;
        if let Err(error) = self.bring(&mut state, grant, steps, &undo) {
            let back = lease.map_or(Ok(()), |held| held.release(&self.handle));
            return Err(with_others(error, [back]));
        }
        for tree in &grant.trees {
            *state.trees.entry(tree.path.clone()).or_default() += 1;
        }
        state.list.push(Attached { grant: grant.clone(), at_start: false, undo, lease });
        Ok(())
    }

    /// Lets what is granted through, and does the steps.
    fn bring(&self, state: &mut Attachments, grant: &GpuGrant, steps: Vec<Step>, undo: &[Undo]) -> Result<()> {
        let before = state.rules.clone();
        let grants: Vec<GpuGrant> = state.grants().cloned().chain([grant.clone()]).collect();
        self.set_rules(state, &grants)?;
        if let Err(broken) = perform(&self.plan_of(steps), self.handle.application()) {
            let back = self.take_back(undo, broken.step);
            let rules = self.restore_rules(state, before);
            return Err(with_others(broken.error, [back, rules]));
        }
        Ok(())
    }

    /// Takes away what `grant` brought: one that [`attach_gpus`](Self::attach_gpus) gave, was attached, or that the
    /// sandbox was started with. What other grants have as well stays. If its GPUs were leased for it, they are free when
    /// this returns; a lease of the caller's own is the caller's alone again.
    ///
    /// Nobody inside can open the devices from the first moment on. A process that has one open keeps it: that is an
    /// error, and nothing changes, unless `force` is set. Without a control group, or in a user namespace, rules do not
    /// keep a process from a node that it got hold of before. Empty directories are left,
    /// and for a grant of the start there may be empty files, too.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the grant is not attached, [`ErrorKind::Busy`] with the processes that have a device
    /// open, [`ErrorKind::Closed`] if the sandbox has ended.
    pub fn detach_gpus(&self, grant: &GpuGrant, force: bool) -> Result<()> {
        self.take_away(grant, force).with_context(|| format!("detach GPUs from sandbox {}", self.name()))
    }

    fn take_away(&self, grant: &GpuGrant, force: bool) -> Result<()> {
        let mut state = self.attachments();
        let place = state.list.iter().position(|attached| attached.grant == *grant);
        let Some(place) = place else {
            let message = format!("no such grant of GPUs is attached; the sandbox has {:?}", state.gpus());
            return Err(Error::new(ErrorKind::NotFound, message));
        };
        let root = self.inner_root()?;
        let others = state.list.iter().enumerate().filter(|(other, _)| *other != place);
        let remaining: Vec<GpuGrant> = others.map(|(_, attached)| attached.grant.clone()).collect();
        let stays = |path: &Path| remaining.iter().flat_map(|grant| &grant.device_nodes).any(|node| node.path == path);
        let gone: Vec<_> = grant.device_nodes.iter().filter(|node| !stays(&node.path)).collect();
        let before = state.rules.clone();
        let numbers: Vec<_> = gone.iter().filter(|node| !node.block).map(|node| (node.major, node.minor)).collect();
        let steps = self.removal(&state, place, &remaining)?;
        // First of all, so that nobody opens a device between the look and the end.
        self.set_rules(&mut state, &remaining)?;
        if !force {
            if let Err(error) = self.nobody_has(&numbers) {
                return Err(with_others(error, [self.restore_rules(&mut state, before)]));
            }
        }
        if let Err(broken) = perform(&self.plan_of(steps), self.handle.application()) {
            return Err(with_others(broken.error, [self.restore_rules(&mut state, before)]));
        }
        let lease = self.forget(&mut state, place);
        // Steps of removal go on when one fails; what counts is whether the nodes are gone.
        let left =
            gone.iter().find(|node| !matches!(root.look_at_end(&node.path), Ok(Entry::Missing | Entry::Covered)));
        let left = left.map_or(Ok(()), |node| {
            let message = format!("the container keeps something at {}", node.path.display());
            Err(Error::new(ErrorKind::Busy, message))
        });
        // Where no rules kept it from that, somebody may have opened a node since it was looked at.
        let opened = if force || self.ruled().is_some() { Ok(()) } else { self.nobody_has(&numbers) };
        if let Err(error) = left.and(opened) {
            // Nobody else is to have a GPU that may still be used here.
            state.late.extend(lease);
            return Err(error);
        }
        lease.map_or(Ok(()), |held| held.release(&self.handle))
    }

    /// An error with the processes of the sandbox that have one of the devices open, if there are any.
    fn nobody_has(&self, numbers: &[(u32, u32)]) -> Result<()> {
        let processes = match &self.cgroup {
            Some(cgroup) => cgroup.processes(),
            None => neighbours(self.pid()),
        };
        let busy: Vec<String> = holders(&processes?, numbers).iter().map(ToString::to_string).collect();
        if busy.is_empty() { Ok(()) } else { Err(Error::new(ErrorKind::Busy, busy.join("; "))) }
    }

    /// The container's root as it is now, by a descriptor's path.
    pub(crate) fn inner_root(&self) -> Result<Root> {
        let root = Root::open(Path::new(&format!("/proc/{}/root", self.pid())));
        // The number was the application's all the time if it has not ended by now. One that is just ending has no root
        // any more, before its supervisor has said anything.
        match (self.poll()?, root) {
            (None, Err(error)) if error.kind() != ErrorKind::NotFound => Err(error),
            (None, Ok(root)) => Ok(root),
            _ => Err(Error::new(ErrorKind::Closed, format!("sandbox {} has ended", self.name()))),
        }
    }

    fn plan_of(&self, steps: Vec<Step>) -> Plan {
        Plan { name: self.name().to_owned(), namespaces: Vec::new(), init: true, steps }
    }

    /// The steps into the container; `take` are done on the way, with the host in sight.
    fn enter(&self, take: Vec<Step>) -> Vec<Step> {
        let in_user_namespace = self.context.namespaces.contains(&Namespace::User);
        let mount = Step::EnterNamespaces { namespaces: vec![Namespace::Mount] };
        let user = Step::EnterNamespaces { namespaces: vec![Namespace::User] };
        let mut steps = Vec::new();
        match (in_user_namespace, process::is_privileged()) {
            (false, _) => {
                steps.extend(take);
                steps.push(mount);
            }
            (true, true) => {
                steps.extend(take);
                let both = vec![Namespace::User, Namespace::Mount];
                steps.extend([Step::EnterNamespaces { namespaces: both }, Step::BecomeNamespaceRoot]);
            }
            // An ordinary user may copy mounts only in a namespace of mounts of its own.
            (true, false) => {
                steps.extend([user, Step::BecomeNamespaceRoot, Step::NewMountNamespace]);
                steps.extend(take);
                steps.push(mount);
            }
        }
        steps.push(Step::Umask { mask: 0 });
        steps
    }

    /// What is to be done for `grant`, and how to undo it.
    fn steps(&self, state: &Attachments, grant: &GpuGrant) -> Result<(Vec<Step>, Vec<Undo>)> {
        let root = self.inner_root()?;
        let in_user_namespace = self.context.namespaces.contains(&Namespace::User);
        let mut take = Vec::new();
        // The steps for one thing, its place, and what takes it away.
        let mut work: Vec<(Vec<Step>, &Path, Vec<Step>)> = Vec::new();
        let mut source = |path: &Path, recursive| {
            take.push(Step::TakeSource { source: take.len(), path: path.to_owned(), recursive });
            take.len() - 1
        };
        let application = (self.context.identity.user, self.context.identity.group);
        for node in &grant.device_nodes {
            if state.has(&node.path, Item::Node(node))? {
                continue;
            }
            if !matches!(root.look_at_end(&node.path)?, Entry::Missing) {
                let message = format!("the container has something at {}", node.path.display());
                return Err(Error::new(ErrorKind::AlreadyExists, message).with_path(&node.path));
            }
            let mut device = granted_device(node, application)?;
            if in_user_namespace {
                let missing = || {
                    let message = format!("the host has no {}, and an ordinary user cannot make it", device.path);
                    Error::new(ErrorKind::GpuUnavailable, message).with_path(&node.path)
                };
                device.bound = Some(source(node.host_path.as_deref().ok_or_else(missing)?, false));
            }
            let undo = node_undo(&node.path, in_user_namespace)?;
            work.push((vec![Step::Node { device }], &node.path, undo));
        }
        for tree in &grant.trees {
            let all = merged(&tree.path, state.grants().chain([grant]));
            let undo = vec![Step::Unmount { path: text(&tree.path)? }];
            work.push((tree_steps(&all.unwrap_or_else(|| tree.clone()))?, &tree.path, undo));
        }
        for mount in &grant.mounts {
            if state.has(&mount.target, Item::Mount(mount))? {
                continue;
            }
            let number = source(&mount.source, mount.recursive);
            let undo = cover_undo(&root, &mount.target)?;
            let bind = granted_mount(mount, number)?;
            work.push((vec![bind], &mount.target, undo));
        }
        for file in &grant.files {
            let (mut more, undo) = match state.item(&file.path) {
                // One text takes the place of the other: the kernel mounts nothing over a file that has no name.
                Some(Item::File(before)) if before != file => {
                    let away = Step::Unmount { path: text(&file.path)? };
                    (vec![away.clone()], vec![away, granted_file(before)?])
                }
                _ if state.has(&file.path, Item::File(file))? => continue,
                _ => (Vec::new(), cover_undo(&root, &file.path)?),
            };
            more.push(granted_file(file)?);
            work.push((more, &file.path, undo));
        }
        for link in &grant.links {
            if state.has(&link.link, Item::Link(link))? {
                continue;
            }
            let path = text(&link.link)?;
            let undo = match root.look_at_end(&link.link)? {
                Entry::Link(before) => vec![Step::Link { target: text(&before)?, path: path.clone() }],
                // It could not be brought back.
                Entry::File | Entry::Directory => {
                    let why = format!("{path} is there already, and no link");
                    return Err(Error::new(ErrorKind::AlreadyExists, why).with_path(&link.link));
                }
                _ => vec![Step::Discard { path: path.clone() }],
            };
            work.push((vec![Step::Link { target: text(&link.target)?, path }], &link.link, undo));
        }
        let mut steps = self.enter(take);
        let mut undo = Vec::new();
        for (more, place, back) in work {
            // A mount that fails may have made its place.
            let half_done = matches!(more.first(), Some(Step::Bind { .. } | Step::Tmpfs { .. } | Step::OwnFile { .. }));
            let after = if half_done { steps.len().saturating_sub(1) } else { steps.len() };
            steps.extend(more);
            undo.push(Undo { after, place: place.to_owned(), steps: back });
        }
        Ok((steps, undo))
    }

    /// Undoes what was done before the step `failed`.
    fn take_back(&self, undo: &[Undo], failed: Option<usize>) -> Result<()> {
        let done = undo.iter().rev().filter(|undo| failed.is_none_or(|failed| undo.after < failed));
        let back: Vec<Step> = done.flat_map(|undo| undo.steps.iter().cloned()).collect();
        if back.is_empty() {
            return Ok(());
        }
        let steps = self.enter(Vec::new()).into_iter().chain(back).collect();
        perform(&self.plan_of(steps), self.handle.application())
            .map_err(|Broken { error, .. }| error.context("undo what was done"))
    }

    /// The steps that take the grant number `place` away.
    fn removal(&self, state: &Attachments, place: usize, remaining: &[GpuGrant]) -> Result<Vec<Step>> {
        let attached = &state.list[place];
        let mut steps = self.enter(Vec::new());
        let trees: BTreeSet<&Path> = attached.grant.trees.iter().map(|tree| tree.path.as_path()).collect();
        for undo in attached.undo.iter().rev() {
            if !trees.contains(undo.place.as_path()) && state.heir(place, &undo.place).is_none() {
                steps.extend(undo.steps.iter().cloned());
            }
        }
        for path in trees {
            for _ in 0..state.trees.get(path).copied().unwrap_or(0) {
                steps.push(Step::Unmount { path: text(path)? });
            }
            if let Some(tree) = merged(path, remaining.iter()) {
                steps.extend(tree_steps(&tree)?);
            }
        }
        Ok(steps)
    }

    /// Forgets the grant number `place`, which was taken away; what others share is theirs to undo from now on. Its lease,
    /// if it had one.
    fn forget(&self, state: &mut Attachments, place: usize) -> Option<Held> {
        let inherited: Vec<(usize, Undo)> = std::mem::take(&mut state.list[place].undo)
            .into_iter()
            .filter_map(|undo| Some((state.heir(place, &undo.place)?, undo)))
            .collect();
        // What was done earlier is undone later.
        for (heir, undo) in inherited.into_iter().rev() {
            state.list[heir].undo.insert(0, undo);
        }
        let attached = state.list.remove(place);
        for tree in &attached.grant.trees {
            let others = state.grants().any(|grant| grant.trees.iter().any(|other| other.path == tree.path));
            state.trees.insert(tree.path.clone(), usize::from(others));
        }
        attached.lease
    }

    /// Lets through the devices of `grants` and no others, where rules are what keeps devices away.
    fn set_rules(&self, state: &mut Attachments, grants: &[GpuGrant]) -> Result<()> {
        let Some(cgroup) = self.ruled() else { return Ok(()) };
        let rules = device_rules(grants.iter());
        cgroup.allow_devices(&rules)?;
        state.rules = Some(rules);
        Ok(())
    }

    /// Sets the rules back to those of before.
    fn restore_rules(&self, state: &mut Attachments, before: Option<Vec<DeviceRule>>) -> Result<()> {
        let (Some(cgroup), Some(_)) = (self.ruled(), &state.rules) else { return Ok(()) };
        // A group without rules gets the usual ones, which let through all that its processes have.
        let rules = before.unwrap_or_else(|| device_rules(std::iter::empty()));
        cgroup.allow_devices(&rules).context("set the device rules back")?;
        state.rules = Some(rules);
        Ok(())
    }

    /// The control group, where rules keep devices away: a user namespace does that by itself.
    fn ruled(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref().filter(|_| !self.context.namespaces.contains(&Namespace::User))
    }
}

/// The error with what failed while its consequences were undone.
fn with_others<const N: usize>(error: Error, others: [Result<()>; N]) -> Error {
    let others: String = others.into_iter().filter_map(Result::err).map(|other| format!("; also: {other}")).collect();
    if others.is_empty() { error } else { error.context(format!("not all could be set back{others}")) }
}
