//! From the configuration to the plan: everything is checked here, before anything is started.

mod ids;
mod own_files;
mod planner;
mod process;

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::{GpuGrant, HookMoment};
use crate::net::{NO_LOCK, NO_LOCK_FOR_UDP, PortMapping, PortMode, may_have};
use crate::rootfs::{Scratch, Writable};
use crate::sandbox::check::check;
use crate::sandbox::config::{Network, SandboxBuilder};
use crate::sandbox::gpus::Gpus;
use crate::sandbox::identity::{IdMaps, Identity, resolve};
use crate::sandbox::places::Places;
use crate::sandbox::plan::{Namespace, Plan, Step};
use crate::sandbox::privileges::Capability;
use crate::sandbox::root::Root;
use crate::store::LayerHandle;
use crate::sys::fs;
use ids::Ids;
use planner::Planner;
use std::collections::HashSet;
use std::path::Path;

pub(crate) use process::{application, candidates};

/// What a start uses, after all checks and before any namespace is made.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) plan: Plan,
    pub(crate) id_maps: Option<IdMaps>,
    pub(crate) layers: Vec<LayerHandle>,
    pub(crate) grant: Option<GpuGrant>,
    /// The files of the grant in whose places the image has nothing.
    pub(crate) vacant: HashSet<String>,
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
    let Ids { maps, shared } = Ids::of(builder)?;
    let tree = root.tree()?;
    let config = root.config();
    let grant = gpus.map(|gpus| gpus.grant(&root, &tree)).transpose()?;
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
    let env = process::environment(builder, &config, &identity, grant.as_ref());
    let argv = process::command(builder, &config)?;
    let working_dir = builder
        .process
        .working_dir
        .clone()
        .unwrap_or_else(|| if config.working_dir.is_empty() { "/".to_owned() } else { config.working_dir.clone() });
    let filter = process::filter(builder)?;
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
        let kind = match why {
            NO_LOCK | NO_LOCK_FOR_UDP => ErrorKind::PermissionDenied,
            _ => ErrorKind::InvalidArgument,
        };
        return Err(Error::new(kind, format!("publish {mapping}: inject: {why}")));
    }
    let mut planner = Planner {
        builder,
        name,
        steps: Vec::new(),
        sources: 0,
        in_user_namespace: maps.is_some(),
        shares_user_namespace: shared,
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
        namespaces: made(builder, shared, &context.namespaces),
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
        let wished: Vec<_> = builder.ports.iter().filter(|port| port.is_for_injection()).map(may_have).collect();
        let first = wished.first().copied();
        first.ok_or("it was started without a port to inject, and injectable_ports was not asked for")?.or_else(
            // One that can be is enough.
            |why| if wished.iter().any(Result::is_ok) { Ok(()) } else { Err(why) },
        )?;
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
fn made(builder: &SandboxBuilder, shares_user: bool, all: &[Namespace]) -> Vec<Namespace> {
    let there = |kind: &Namespace| match kind {
        Namespace::Network => builder.network.is_entered(),
        Namespace::User => shares_user,
        _ => false,
    };
    all.iter().filter(|kind| !there(kind)).copied().collect()
}

pub(crate) fn text(path: &Path) -> Result<String> {
    let invalid = || Error::new(ErrorKind::InvalidArgument, format!("path {path:?} is not UTF-8")).with_path(path);
    path.to_str().map(str::to_owned).ok_or_else(invalid)
}
