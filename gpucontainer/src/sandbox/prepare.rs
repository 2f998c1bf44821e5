//! From the configuration to the plan: everything is checked here, before anything is started.

mod own_files;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::{GpuGrant, HookMoment};
use crate::image::{ImageConfig, ImageStore};
use crate::net::{NO_LOCK, PortMapping, PortMode, may_inject};
use crate::rootfs::{RootMount, Scratch, Writable};
use crate::sandbox::config::{Capability, Network, SandboxBuilder, UserNamespace};
use crate::sandbox::defaults;
use crate::sandbox::gpus::Gpus;
use crate::sandbox::granted::{granted_device, granted_file, granted_mount, host_path, tree_steps};
use crate::sandbox::identity::{IdMaps, Identity, resolve};
use crate::sandbox::mount::Kind;
use crate::sandbox::places::Places;
use crate::sandbox::plan::{Device, Namespace, Overlay, Plan, Step};
use crate::sandbox::root::Root;
use crate::store::LayerHandle;
use crate::sys::calls::{Attributes, Travel};
use crate::sys::{fs, process};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a start uses, after all checks and before any namespace is made.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) plan: Plan,
    pub(crate) id_maps: Option<IdMaps>,
    pub(crate) layers: Vec<LayerHandle>,
    pub(crate) grant: Option<GpuGrant>,
    /// The files of the grant in whose places the image has nothing.
    pub(crate) vacant: HashSet<PathBuf>,
    /// What `exec` starts from.
    pub(crate) context: ExecContext,
}

/// What a further process in the same sandbox has in common with the first.
#[derive(Clone, Debug)]
pub(crate) struct ExecContext {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_dir: String,
    pub(crate) identity: Identity,
    pub(crate) passwd: String,
    pub(crate) group: String,
    pub(crate) capabilities: u64,
    pub(crate) new_privileges: bool,
    pub(crate) filter: Vec<u64>,
    pub(crate) set_groups: bool,
    pub(crate) namespaces: Vec<Namespace>,
    /// Whether binds of its processes wait for an answer, or why not.
    pub(crate) watch_binds: Result<(), &'static str>,
}

/// The cgroup that the sandbox will be in, as far as the plan cares.
#[derive(Debug, Default)]
pub(crate) struct CgroupFacts {
    /// Hierarchies of version 1 that are entered by the supervisor.
    pub(crate) tasks: usize,
    /// The names of the mounts of version 1.
    pub(crate) controllers: Vec<String>,
    pub(crate) version2: bool,
}

/// What a start would do, as far as it can be known without doing it.
pub(crate) fn plan_only(builder: &SandboxBuilder) -> Result<Plan> {
    check(builder)?;
    let root = Root::find(builder, false)?;
    let gpus = Gpus::foresee(builder, &root)?;
    let name = builder.name.clone().unwrap_or_else(|| format!("s-{}", &fs::unique()[..12]));
    let handed = builder.ports.iter().filter(|port| port.wanted_mode() == PortMode::HandOver);
    let handed = handed.map(PortMapping::listen_name).collect();
    // Made for a moment, so that the plan says what a start would use.
    let scratch = match root.writable(builder) {
        Writable::Disk => Some(Scratch::create(&root.scratch(builder)?, &name)?),
        _ => None,
    };
    let prepared = prepare(builder, &name, root, scratch.as_ref(), &CgroupFacts::default(), gpus.as_ref(), handed);
    scratch.map_or(Ok(()), Scratch::remove)?;
    Ok(prepared?.plan)
}

/// Checks the values that need nothing but themselves.
pub(crate) fn check(builder: &SandboxBuilder) -> Result<()> {
    let bad = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
    builder.mounts.iter().try_for_each(crate::sandbox::mount::Mount::check)?;
    builder.limits.check()?;
    if let Some(name) = &builder.name {
        if !crate::sandbox::is_name(name) {
            return bad(format!("sandbox name {name:?} is not 1 to 64 letters, digits, '.', '_' and '-'"));
        }
    }
    for (name, value) in &builder.process.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return bad(format!("environment variable {name:?} cannot be set"));
        }
    }
    if let Some(path) = &builder.process.working_dir {
        if !path.starts_with('/') {
            return bad(format!("working directory {path:?} is not an absolute path"));
        }
    }
    if let Some(hostname) = &builder.hostname {
        if hostname.is_empty() || hostname.len() > 64 || hostname.contains(['\0', '\n', ' ']) {
            return bad(format!("host name {hostname:?} is not 1 to 64 bytes without spaces"));
        }
    }
    if builder.oom_score.is_some_and(|score| !(-1000..=1000).contains(&score)) {
        return bad("the out-of-memory score adjustment is not within -1000 to 1000".to_owned());
    }
    for (name, _) in &builder.sysctls {
        defaults::check_sysctl(name, matches!(builder.network, Network::Host | Network::Join(_)))?;
    }
    if let Network::Private(network) = &builder.network {
        network.check(&crate::sandbox::network::names(builder, builder.name.as_deref()))?;
    }
    if builder.user_namespace == UserNamespace::Subordinate && builder.writable == Some(Writable::Disk) {
        return bad(
            "writes of subordinate ids to disk could not be removed afterwards; let them go to memory".to_owned()
        );
    }
    if builder.network.is_host() && !builder.ports.is_empty() {
        return bad(
            "ports are published from a network of the sandbox's own; with the host's there is nothing to publish"
                .to_owned(),
        );
    }
    let translated = builder.ports.iter().find(|port| port.wanted_mode() == PortMode::Nat);
    if let (Some(mapping), Network::None | Network::Outbound) = (translated, &builder.network) {
        return bad(format!("publish {mapping}: nat: without a private network the host has no route to the sandbox"));
    }
    if builder.network.is_host() && !builder.services.is_empty() {
        return bad("every service of the host is there with the host's network; there is nothing to expose".to_owned());
    }
    for (limit, soft, hard) in &builder.resource_limits {
        if soft > hard {
            return bad(format!("the soft limit {soft} of {} is above the hard limit {hard}", limit.kernel().0));
        }
    }
    Ok(())
}

fn id_maps(wanted: UserNamespace) -> Result<Option<IdMaps>> {
    let privileged = process::is_privileged();
    match wanted {
        UserNamespace::Auto if privileged => Ok(None),
        UserNamespace::Auto | UserNamespace::Oneself => Ok(Some(IdMaps::oneself())),
        UserNamespace::Host if privileged => Ok(None),
        UserNamespace::Shifted { first, count } if privileged => {
            if count == 0 || first.checked_add(count).is_none() {
                let message = format!("{count} ids from {first} on are no range of ids");
                return Err(Error::new(ErrorKind::InvalidArgument, message));
            }
            Ok(Some(IdMaps::shifted(first, count)))
        }
        UserNamespace::Subordinate => Ok(Some(IdMaps::subordinate()?)),
        UserNamespace::Host | UserNamespace::Shifted { .. } => {
            let message = format!("user namespace {wanted:?} needs CAP_SYS_ADMIN, which this process lacks");
            Err(Error::new(ErrorKind::PermissionDenied, message))
        }
    }
}

/// Makes the plan. `scratch` is where writes go, if they go to disk.
pub(crate) fn prepare(
    builder: &SandboxBuilder,
    name: &str,
    root: Root,
    scratch: Option<&Scratch>,
    cgroup: &CgroupFacts,
    gpus: Option<&Gpus>,
    handed: Vec<String>,
) -> Result<Prepared> {
    let maps = id_maps(builder.user_namespace)?;
    let tree = root.tree()?;
    let config = root.config();
    let grant = gpus.map(|gpus| gpus.grant(&tree)).transpose()?;
    let passwd = tree.read_to_string("/etc/passwd")?.unwrap_or_default();
    let group = tree.read_to_string("/etc/group")?.unwrap_or_default();
    let mut identity = resolve(builder.process.user.as_deref().unwrap_or(&config.user), &passwd, &group)?;
    if let Some(maps) = &maps {
        if !maps.has(identity.user, identity.group) {
            let message = format!(
                "user {}, group {} do not exist in the user namespace; ordinary users have one id inside unless they \
                 choose UserNamespace::Subordinate",
                identity.user, identity.group
            );
            return Err(Error::new(ErrorKind::UserNotFound, message));
        }
    }
    // An ordinary user cannot change its groups, and has its own ones inside.
    identity.groups.extend(grant.iter().flat_map(|grant| &grant.groups));
    let env = environment(builder, &config, &identity, grant.as_ref());
    let argv = command(builder, &config)?;
    let working_dir = builder
        .process
        .working_dir
        .clone()
        .unwrap_or_else(|| if config.working_dir.is_empty() { "/".to_owned() } else { config.working_dir.clone() });
    let filter = filter(builder)?;
    let context = ExecContext {
        env: env.clone(),
        working_dir: working_dir.clone(),
        identity: identity.clone(),
        passwd,
        group,
        capabilities: builder.capabilities,
        new_privileges: builder.new_privileges,
        filter,
        set_groups: maps.as_ref().is_none_or(IdMaps::allows_groups),
        namespaces: namespaces(builder, maps.is_some()),
        watch_binds: watch_binds(builder, maps.is_some()),
    };
    if let Some(mapping) = builder.ports.iter().find(|port| port.wanted_mode() == PortMode::HandOver) {
        if let Err(why) = may_have_sockets(builder, maps.is_some()) {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("publish {mapping}: hand over: {why}")));
        }
    }
    let injected = builder.ports.iter().find(|port| port.wanted_mode() == PortMode::Inject);
    if let (Some(mapping), Err(why)) = (injected, context.watch_binds) {
        let kind = if why == NO_LOCK { ErrorKind::PermissionDenied } else { ErrorKind::InvalidArgument };
        return Err(Error::new(kind, format!("publish {mapping}: inject: {why}")));
    }
    let mut planner = Planner {
        builder,
        name,
        steps: Vec::new(),
        sources: 0,
        in_user_namespace: maps.is_some(),
        shifted: maps.as_ref().is_some_and(IdMaps::is_shifted),
        application: (identity.user, identity.group),
    };
    planner.before_fork(cgroup);
    let places = grant.as_ref().map(|grant| {
        let owners = |user, group| maps.as_ref().map_or(Some((user, group)), |maps| maps.of_layer(user, group));
        let covered: Vec<&str> = builder.mounts.iter().map(|mount| mount.target.as_str()).collect();
        Places::of(grant, &tree, &covered, &owners)
    });
    let places = places.transpose()?.unwrap_or_default();
    let places = planner.root(&root, scratch, places)?;
    let hosts = match (&builder.network, &root) {
        (Network::Private(network), Root::Image { .. }) => Some(planner.take(&network.hosts_file()?, false)),
        _ => None,
    };
    planner.file_systems(cgroup, grant.as_ref(), &places)?;
    let hooks = grant.iter().flat_map(|grant| &grant.hooks).filter(|hook| hook.moment == HookMoment::CreateRuntime);
    let hooks: Vec<_> = hooks.cloned().collect();
    if matches!(builder.network, Network::Outbound) {
        planner.add(Step::AwaitNetwork);
    }
    if !hooks.is_empty() {
        planner.add(Step::AwaitHooks { hooks });
    }
    planner.own_files(&root, hosts)?;
    planner.process(&context, argv, handed)?;
    let plan = Plan {
        name: name.to_owned(),
        namespaces: made(builder, &context.namespaces),
        init: builder.init,
        steps: planner.steps,
    };
    let layers = match root {
        Root::Image { layers, .. } => layers,
        Root::Directory(_) => Vec::new(),
    };
    Ok(Prepared { plan, id_maps: maps, layers, grant, vacant: places.into_files(), context })
}

/// Whether binds of the sandbox's processes are to wait for an answer, or why not.
fn watch_binds(builder: &SandboxBuilder, user: bool) -> Result<(), &'static str> {
    if builder.network.is_host() {
        return Err("its network is the host's");
    }
    if !builder.injectable_ports {
        let mut wished = builder.ports.iter().filter(|port| port.is_for_injection()).peekable();
        if wished.peek().is_none() {
            return Err("it was started without a port to inject, and injectable_ports was not asked for");
        }
        if !wished.any(may_inject) {
            return Err(NO_LOCK);
        }
    }
    may_have_sockets(builder, user)
}

/// Whether the sandbox may have sockets of the host, or why not.
fn may_have_sockets(builder: &SandboxBuilder, user: bool) -> Result<(), &'static str> {
    if !user && builder.capabilities & Capability::NetAdmin.bit() != 0 {
        return Err("with CAP_NET_ADMIN and no user namespace a socket of the host would give power over its network");
    }
    Ok(())
}

fn namespaces(builder: &SandboxBuilder, user: bool) -> Vec<Namespace> {
    let mut list = vec![Namespace::Mount, Namespace::Pid, Namespace::Ipc, Namespace::Uts, Namespace::Cgroup];
    if !builder.network.is_host() {
        list.push(Namespace::Network);
    }
    if builder.time_offsets.is_some() {
        list.push(Namespace::Time);
    }
    if user {
        list.insert(0, Namespace::User);
    }
    list
}

/// Those that the start makes.
fn made(builder: &SandboxBuilder, all: &[Namespace]) -> Vec<Namespace> {
    let there = |kind: &Namespace| *kind == Namespace::Network && builder.network.is_entered();
    all.iter().filter(|kind| !there(kind)).copied().collect()
}

/// The image's environment, then what every container has, then the grant's, then the caller's.
fn environment(
    builder: &SandboxBuilder,
    config: &ImageConfig,
    identity: &Identity,
    grant: Option<&GpuGrant>,
) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str, replace: bool| match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) if replace => value.clone_into(old),
        Some(_) => {}
        None => env.push((name.to_owned(), value.to_owned())),
    };
    for line in &config.env {
        if let Some((name, value)) = line.split_once('=') {
            set(name, value, true);
        }
    }
    set("PATH", defaults::PATH, false);
    set("HOME", &identity.home, false);
    if builder.process.terminal.is_some() {
        set("TERM", "xterm", false);
    }
    for (name, value) in grant.iter().flat_map(|grant| &grant.environment) {
        set(name, value, true);
    }
    for (name, value) in &builder.process.env {
        set(name, value, true);
    }
    env
}

/// Entrypoint and command by the rules of image configurations.
fn command(builder: &SandboxBuilder, config: &ImageConfig) -> Result<Vec<String>> {
    let entrypoint = builder.entrypoint.as_ref().unwrap_or(&config.entrypoint);
    let command = match (&builder.command, &builder.entrypoint) {
        (Some(command), _) => command.as_slice(),
        // The image's arguments are meant for the image's own entrypoint.
        (None, Some(_)) => &[],
        (None, None) => &config.command,
    };
    let argv: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    match argv.first() {
        Some(first) if !first.is_empty() => Ok(argv),
        _ => Err(Error::new(ErrorKind::CommandNotFound, "no command was given, and the image names none")),
    }
}

/// The places where the command is looked for.
pub(crate) fn candidates(argv: &[String], env: &[(String, String)]) -> Vec<String> {
    let command = argv.first().map_or("", String::as_str);
    if command.contains('/') {
        return vec![command.to_owned()];
    }
    let path = env.iter().find(|(name, _)| name == "PATH").map_or(defaults::PATH, |(_, value)| value);
    path.split(':')
        .filter(|directory| !directory.is_empty())
        .map(|directory| format!("{directory}/{command}"))
        .collect()
}

fn filter(builder: &SandboxBuilder) -> Result<Vec<u64>> {
    let filter = match &builder.seccomp {
        Some(profile) => Arc::new(profile.compile()?),
        None => crate::seccomp::default_filter(builder.capabilities)?,
    };
    if filter.needs_listener() {
        return Err(Error::new(ErrorKind::InvalidArgument, "a sandbox's filter cannot ask a listener"));
    }
    if filter.allows_everything() {
        return Ok(Vec::new());
    }
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        u64::from_ne_bytes(word)
    };
    Ok(filter.to_bytes().chunks_exact(8).map(word).collect())
}

struct Planner<'a> {
    builder: &'a SandboxBuilder,
    name: &'a str,
    steps: Vec<Step>,
    sources: usize,
    in_user_namespace: bool,
    /// Whether layers belong to ids that are others inside.
    shifted: bool,
    /// User and group of the application.
    application: (u32, u32),
}

impl Planner<'_> {
    fn add(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Takes a host path before the root changes; the number by which a later step mounts it.
    fn take(&mut self, path: &Path, recursive: bool) -> usize {
        let source = self.sources;
        self.sources += 1;
        self.add(Step::TakeSource { source, path: path.to_owned(), recursive });
        source
    }

    fn before_fork(&mut self, cgroup: &CgroupFacts) {
        if cgroup.tasks > 0 {
            self.add(Step::JoinCgroups { count: cgroup.tasks });
        }
        if self.in_user_namespace {
            self.add(Step::AwaitIdMaps);
            self.add(Step::BecomeNamespaceRoot);
        }
        match &self.builder.network {
            Network::Private(network) => {
                let network = format!("private network {}", network.name());
                self.add(Step::InNetwork { network });
            }
            Network::Join(_) => self.add(Step::InNetwork { network: "a network that was given".to_owned() }),
            _ => {}
        }
        self.add(Step::NewCgroupNamespace);
        if let Some((monotonic, boottime)) = self.builder.time_offsets {
            self.add(Step::NewTimeNamespace { monotonic, boottime });
        }
        self.add(Step::Fork);
        self.add(Step::NewSession);
        // With private mounts nothing that the container does reaches the host; a mount that wants to travel needs
        // its source to be shared, and is made a slave or a peer when it is mounted.
        let shared = self.builder.mounts.iter().any(|mount| mount.propagation.travel() != Travel::Private);
        self.add(Step::Travel { travel: if shared { Travel::Slave } else { Travel::Private } });
    }

    /// Returns what is made of `places`: nothing, where there are no layers.
    fn root(&mut self, root: &Root, scratch: Option<&Scratch>, places: Places) -> Result<Places> {
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
                let list = places.list.clone();
                let overlay = Overlay { mount: overlay, mount_at, one_by_one, places: list, shifted };
                self.add(Step::RootOverlay { overlay });
                Ok(places)
            }
        }
    }

    fn file_systems(&mut self, cgroup: &CgroupFacts, grant: Option<&GpuGrant>, places: &Places) -> Result<()> {
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
        let foreign = builder.network.is_host() || builder.network.is_entered();
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

    fn process(&mut self, context: &ExecContext, argv: Vec<String>, names: Vec<String>) -> Result<()> {
        let builder = self.builder;
        for (resource, soft, hard) in &builder.resource_limits {
            let (name, resource) = resource.kernel();
            self.add(Step::ResourceLimit { name, resource, soft: *soft, hard: *hard });
        }
        if let Some(adjustment) = builder.oom_score {
            self.add(Step::OomScore { adjustment });
        }
        match builder.process.terminal {
            Some((rows, columns)) => self.add(Step::Terminal { rows, columns }),
            None => self.add(Step::Stdio),
        }
        let set_groups = context.set_groups;
        self.steps.extend(application(context, &context.identity, &context.working_dir, set_groups, builder.umask)?);
        let candidates = candidates(&argv, &context.env);
        let mut envp: Vec<String> = context.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !names.is_empty() {
            // The supervisor is process 1, if it is inside at all.
            let pid = if builder.init { 2 } else { 1 };
            envp.retain(|line| !line.starts_with("LISTEN_"));
            envp.extend([format!("LISTEN_PID={pid}"), format!("LISTEN_FDS={}", names.len())]);
            envp.push(format!("LISTEN_FDNAMES={}", names.join(":")));
            self.add(Step::HandOver { names });
        }
        self.add(Step::Execute { candidates, argv, envp });
        Ok(())
    }
}

/// The steps that make a process an ordinary one of the container, from privileges to working directory.
pub(crate) fn application(
    context: &ExecContext,
    identity: &Identity,
    working_dir: &str,
    set_groups: bool,
    umask: u32,
) -> Result<Vec<Step>> {
    let mut steps = vec![Step::Umask { mask: umask }];
    let last = crate::sys::launch::last_capability()?;
    steps.push(Step::BoundingSet { mask: context.capabilities, last });
    let groups = set_groups.then(|| identity.groups.clone());
    steps.push(Step::User { user: identity.user, group: identity.group, groups });
    // As the kernel has it for a program started by another user: its capabilities are gone.
    steps.push(Step::Capabilities { mask: if identity.user == 0 { context.capabilities } else { 0 } });
    steps.push(Step::WorkingDirectory { path: working_dir.to_owned() });
    if !context.new_privileges {
        steps.push(Step::NoNewPrivileges);
    }
    if context.watch_binds.is_ok() {
        // Before the filter that may forbid what this takes.
        steps.push(Step::WatchBinds);
    }
    if !context.filter.is_empty() {
        steps.push(Step::Seccomp { instructions: context.filter.clone(), length: context.filter.len() });
    }
    Ok(steps)
}

pub(crate) fn text(path: &Path) -> Result<String> {
    let invalid = || Error::new(ErrorKind::InvalidArgument, format!("path {path:?} is not UTF-8")).with_path(path);
    path.to_str().map(str::to_owned).ok_or_else(invalid)
}
