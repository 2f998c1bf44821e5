//! The steps of a plan, in the order in which they are carried out.

use super::CgroupFacts;
use crate::error::{Context, Result};
use crate::gpu::GpuGrant;
use crate::image::ImageStore;
use crate::rootfs::{RootMount, Scratch};
use crate::sandbox::config::{Network, SandboxBuilder};
use crate::sandbox::defaults;
use crate::sandbox::granted::{granted_device, granted_file, granted_mount, host_path, tree_steps};
use crate::sandbox::mount::Kind;
use crate::sandbox::places::Places;
use crate::sandbox::plan::{Device, Overlay, Step};
use crate::sandbox::prepare::text;
use crate::sandbox::root::Root;
use crate::sys::calls::{Attributes, Travel};
use crate::sys::fs;
use std::path::Path;

pub(super) struct Planner<'a> {
    pub(super) builder: &'a SandboxBuilder,
    pub(super) name: &'a str,
    pub(super) steps: Vec<Step>,
    pub(super) sources: usize,
    pub(super) in_user_namespace: bool,
    /// Whether that is the one that owns the network.
    pub(super) shares_user_namespace: bool,
    /// Whether layers belong to ids that are others inside.
    pub(super) shifted: bool,
    /// User and group of the application.
    pub(super) application: (u32, u32),
}

impl Planner<'_> {
    pub(super) fn add(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Takes a host path before the root changes; the number by which a later step mounts it.
    pub(super) fn take(&mut self, path: &Path, recursive: bool) -> usize {
        let source = self.sources;
        self.sources += 1;
        self.add(Step::TakeSource { source, path: path.to_owned(), recursive });
        source
    }

    pub(super) fn before_fork(&mut self, cgroup: &CgroupFacts) {
        if cgroup.tasks > 0 {
            self.add(Step::JoinCgroups { count: cgroup.tasks });
        }
        let given = || "a network that was given".to_owned();
        if self.shares_user_namespace {
            self.add(Step::ShareNetwork { network: given() });
        } else if self.in_user_namespace {
            self.add(Step::AwaitIdMaps);
        }
        if self.in_user_namespace {
            self.add(Step::BecomeNamespaceRoot);
        }
        match &self.builder.network {
            Network::Private(network) => {
                let network = format!("private network {}", network.name());
                self.add(Step::InNetwork { network });
            }
            Network::Join(_) if !self.shares_user_namespace => self.add(Step::InNetwork { network: given() }),
            _ => {}
        }
        self.add(Step::NewCgroupNamespace);
        if let Some((monotonic, boottime)) = self.builder.time_offsets {
            self.add(Step::NewTimeNamespace { monotonic, boottime });
        }
        if let Some(pid) = self.builder.application_pid {
            self.add(Step::NextPid { pid });
        }
        self.add(Step::Fork);
        self.add(Step::NewSession);
        // With private mounts nothing that the container does reaches the host; a mount that wants to travel needs
        // its source to be shared, and is made a slave or a peer when it is mounted.
        let shared = self.builder.mounts.iter().any(|mount| mount.propagation.travel() != Travel::Private);
        self.add(Step::Travel { travel: if shared { Travel::Slave } else { Travel::Private } });
    }

    /// Returns what is made of `places`: nothing, where there are no layers.
    pub(super) fn root(&mut self, root: &Root, scratch: Option<&Scratch>, mut places: Places) -> Result<Places> {
        let mount = root.rootfs(self.builder).plan(scratch, self.in_user_namespace)?;
        match mount {
            RootMount::Bind { directory, .. } => {
                self.add(Step::RootDirectory { path: directory });
                Ok(Places::default())
            }
            RootMount::Overlay(overlay) => {
                let mount_at = root.scratch(self.builder)?;
                let features = crate::sys::fs::overlay::overlay_features();
                let (one_by_one, shifted) = (features.lowerdir_add, self.shifted);
                let list = std::mem::take(&mut places.list);
                let overlay = Overlay { mount: overlay, mount_at, one_by_one, places: list, shifted };
                self.add(Step::RootOverlay { overlay });
                Ok(places)
            }
        }
    }

    pub(super) fn file_systems(
        &mut self,
        cgroup: &CgroupFacts,
        grant: Option<&GpuGrant>,
        places: &Places,
    ) -> Result<()> {
        let builder = self.builder;
        let at = self.steps.len();
        let mut devices: Vec<Device> = defaults::DEVICES.iter().map(defaults::device).collect();
        let granted = grant.map(|grant| {
            grant.device_nodes.iter().map(|node| granted_device(node, self.application)).collect::<Result<Vec<_>>>()
        });
        devices.extend(granted.transpose()?.into_iter().flatten());
        if self.in_user_namespace {
            // Nobody may make device nodes in a user namespace, so the host's are shown.
            for device in &mut devices {
                let host = host_path(grant, &device.path)?;
                device.bound = Some(self.take(&host, false));
            }
        }
        // The network's owner alone may mount its /sys.
        let foreign = builder.network.is_host() || (builder.network.is_entered() && !self.shares_user_namespace);
        let sys_bound = (self.in_user_namespace && foreign).then(|| self.take(Path::new("/sys"), true));
        let mounts = self.mounts()?;
        let granted = grant.map(|grant| self.granted(grant, places)).transpose()?.unwrap_or_default();
        debug_assert!(self.steps.len() >= at);
        self.add(Step::Prepare { sys: sys_bound.is_none() });
        self.add(Step::Pivot);
        let terminal_group = (!self.in_user_namespace).then_some(5);
        self.add(Step::Dev { devices, shm_bytes: builder.shm_bytes, terminal_group });
        let mut sysctls = builder.sysctls.clone();
        if builder.network.is_entered() {
            // Those of the network were set where it was made.
            sysctls.retain(|(name, _)| !name.starts_with("net."));
        } else if !builder.network.is_host() {
            let name = "net.ipv4.ip_unprivileged_port_start";
            if !sysctls.iter().any(|(known, _)| known == name) {
                // The ports are the sandbox's own, so low ones need no privilege.
                sysctls.insert(0, (name.to_owned(), "0".to_owned()));
            }
        }
        let masked = defaults::masked("/proc", defaults::MASKED_PROC);
        let read_only = defaults::READ_ONLY_PROC.iter().map(|path| (*path).to_owned()).collect();
        for (name, value) in sysctls {
            self.add(Step::Sysctl { name, value });
        }
        self.add(Step::Proc { masked, read_only });
        self.add(Step::Sys { masked: defaults::masked("/sys", defaults::MASKED_SYS), bound: sys_bound });
        // Hierarchies of version 1 cannot be mounted in a user namespace.
        let controllers = if self.in_user_namespace { Vec::new() } else { cgroup.controllers.clone() };
        let version2 = cgroup.version2 && controllers.is_empty();
        if self.builder.cgroup_view && (version2 || !controllers.is_empty()) {
            self.add(Step::CgroupView { version2, controllers });
        }
        self.steps.extend(mounts);
        self.steps.extend(granted);
        Ok(())
    }

    /// The mounts that the caller wants: sources are taken now, the steps that mount them come later.
    fn mounts(&mut self) -> Result<Vec<Step>> {
        let mut later = Vec::new();
        // A mount over a directory must come before those below it.
        let mut mounts: Vec<_> = self.builder.mounts.iter().collect();
        mounts.sort_by_key(|mount| mount.target.trim_end_matches('/').matches('/').count());
        for mount in mounts {
            let attributes = Attributes {
                read_only: mount.read_only,
                no_suid: true,
                no_devices: true,
                no_execute: !mount.executable,
            };
            let target = mount.target.trim_end_matches('/').to_owned();
            match &mount.kind {
                Kind::Tmpfs { bytes, mode } => {
                    let size = bytes.map_or_else(String::new, |bytes| format!(",size={bytes}"));
                    later.push(Step::Tmpfs { target, attributes, options: format!("mode={mode:o}{size}") });
                }
                Kind::Bind(path) => {
                    let wanted = || format!("mount {:?} at {target:?}", path);
                    let directory = fs::metadata(path).with_context(wanted)?.is_dir();
                    later.push(self.bind(path, target.clone(), directory, attributes, mount));
                }
                Kind::Volume(name) => {
                    let store = match &self.builder.store {
                        Some(store) => store.clone(),
                        None => ImageStore::open_default()?,
                    };
                    let path = store.path().join("volumes").join(name);
                    fs::create_dir_all(&path).with_context(|| format!("make volume {name:?}"))?;
                    later.push(self.bind(&path, target, true, attributes, mount));
                }
            }
        }
        Ok(later)
    }

    fn bind(
        &mut self,
        path: &Path,
        target: String,
        directory: bool,
        attributes: Attributes,
        mount: &crate::sandbox::mount::Mount,
    ) -> Step {
        let source = self.take(path, mount.recursive);
        let travel = mount.propagation.travel();
        Step::Bind { source, target, directory, attributes, recursive: mount.recursive, travel }
    }

    fn granted(&mut self, grant: &GpuGrant, places: &Places) -> Result<Vec<Step>> {
        let mut later = Vec::new();
        for tree in &grant.trees {
            later.extend(tree_steps(tree)?);
        }
        for mount in &grant.mounts {
            let source = self.take(&mount.source, mount.recursive);
            later.push(granted_mount(mount, source)?);
        }
        for file in &grant.files {
            later.push(granted_file(file)?);
        }
        for link in grant.links.iter().filter(|link| !places.has_link(&link.link)) {
            later.push(Step::Link { target: text(&link.target)?, path: text(&link.link)? });
        }
        Ok(later)
    }
}
