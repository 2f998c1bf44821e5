//! The configuration of a sandbox: what the caller says, before anything is checked or changed.

use crate::cgroup::Limits;
use crate::error::Result;
use crate::gpu::{DriverRoot, GpuAllocator, GpuLease, GpuRequest, Wait};
use crate::image::{Image, ImageStore};
use crate::net::{HostService, NetworkNamespace, PortMapping, PrivateNetwork};
use crate::rootfs::Writable;
use crate::sandbox::Sandbox;
use crate::sandbox::mount::Mount;
use crate::sandbox::options::{ProcessOptions, process_setters};
use crate::sandbox::plan::Plan;
use crate::sandbox::privileges::{Capability, DEFAULT_CAPABILITIES, ResourceLimit};
use crate::sandbox::stdio::Stdio;
use crate::seccomp::Profile;
use std::path::PathBuf;

/// Where the root file system comes from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Reference(String),
    Image(Image),
    Directory(PathBuf),
}

/// The network of a sandbox.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Network {
    /// A namespace of its own with nothing but the loopback interface. Ports can be published.
    #[default]
    None,
    /// The host's network. Nothing is isolated, and no port needs publishing.
    Host,
    /// A private network, in which the sandbox is known by its name, and by its host name if one is chosen; without one
    /// the host name is the name. Needs privileges.
    ///
    /// Names of the outside are asked of the host's name servers. Where those are on the host's loopback, of the ones that
    /// `systemd-resolved` asks itself; where that does not run, nobody answers.
    ///
    /// The network's interfaces and addresses belong to the host's user namespace: in a user namespace of its own the
    /// sandbox cannot change them, whatever capabilities it has. Without one, `CAP_NET_ADMIN` and `CAP_NET_RAW` let it
    /// take the addresses of other members.
    Private(PrivateNetwork),
    /// A namespace of its own with a way out that the program `pasta` makes, as its user's own traffic. For ordinary
    /// users; `pasta` must be installed.
    ///
    /// The interface has the addresses of the host's own, so those cannot be reached from inside; neither can its
    /// loopback. Other addresses that the host can reach, the sandbox can.
    Outbound,
    /// The network of another sandbox ([`Sandbox::network_namespace`](crate::Sandbox::network_namespace)), or any other
    /// network namespace. What is there is left as it is, and it lives at least as long as the sandbox.
    ///
    /// Needs privileges over it: root's, or those of the user who made the user namespace that owns it. An ordinary user
    /// can be in a network only with its user namespace, which the two sandboxes then share: both have the ids of the
    /// first, and [`UserNamespace::Auto`] takes them.
    Join(NetworkNamespace),
}

impl Network {
    pub(crate) fn is_host(&self) -> bool {
        matches!(self, Self::Host)
    }

    /// Whether it is there before the sandbox, which starts in it.
    pub(crate) fn is_entered(&self) -> bool {
        matches!(self, Self::Private(_) | Self::Join(_))
    }
}

/// The user namespace of a sandbox.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum UserNamespace {
    /// None for a privileged caller; for an ordinary one [`UserNamespace::Oneself`].
    #[default]
    Auto,
    /// None: root inside is root outside, with few capabilities.
    Host,
    /// Root inside is the caller; no other id exists inside.
    Oneself,
    /// Root inside is the caller, other ids are the caller's of `/etc/subuid` and `/etc/subgid`.
    /// Needs the programs `newuidmap` and `newgidmap`. Writes go to memory, since the caller could not remove from
    /// disk what belongs to these ids.
    Subordinate,
    /// The ids from 0 to `count` inside are those from `first` on outside. Needs privileges.
    Shifted {
        /// The id outside that is root inside.
        first: u32,
        /// How many ids.
        count: u32,
    },
}

/// Describes a sandbox; [`SandboxBuilder::spawn`] checks everything and then starts it.
///
/// Made by [`Sandbox::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct SandboxBuilder {
    pub(crate) source: Source,
    pub(crate) store: Option<ImageStore>,
    pub(crate) name: Option<String>,
    pub(crate) command: Option<Vec<String>>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) process: ProcessOptions,
    pub(crate) hostname: Option<String>,
    pub(crate) init: bool,
    pub(crate) read_only: bool,
    pub(crate) writable: Option<Writable>,
    pub(crate) writable_bytes: Option<u64>,
    pub(crate) limits: Limits,
    pub(crate) cgroup: bool,
    pub(crate) cgroup_view: bool,
    pub(crate) network: Network,
    pub(crate) user_namespace: UserNamespace,
    pub(crate) time_offsets: Option<(i64, i64)>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) shm_bytes: u64,
    pub(crate) ports: Vec<PortMapping>,
    pub(crate) services: Vec<HostService>,
    pub(crate) gpus: Option<GpuRequest>,
    pub(crate) gpu_lease: Option<GpuLease>,
    pub(crate) gpus_unleased: bool,
    pub(crate) gpu_allocator: Option<GpuAllocator>,
    pub(crate) gpu_wait: Wait,
    pub(crate) driver_root: Option<DriverRoot>,
    pub(crate) capabilities: u64,
    pub(crate) seccomp: Option<Profile>,
    pub(crate) new_privileges: bool,
    pub(crate) injectable_ports: bool,
    pub(crate) resource_limits: Vec<(ResourceLimit, u64, u64)>,
    pub(crate) sysctls: Vec<(String, String)>,
    pub(crate) oom_score: Option<i32>,
    pub(crate) umask: u32,
    pub(crate) application_pid: Option<u32>,
}

impl SandboxBuilder {
    pub(crate) fn new(source: Source) -> Self {
        Self {
            source,
            store: None,
            name: None,
            command: None,
            entrypoint: None,
            process: ProcessOptions::default(),
            hostname: None,
            init: true,
            read_only: false,
            writable: None,
            writable_bytes: None,
            limits: Limits::new(),
            cgroup: true,
            cgroup_view: true,
            network: Network::None,
            user_namespace: UserNamespace::Auto,
            time_offsets: None,
            mounts: Vec::new(),
            shm_bytes: 64 << 20,
            ports: Vec::new(),
            services: Vec::new(),
            gpus: None,
            gpu_lease: None,
            gpus_unleased: false,
            gpu_allocator: None,
            gpu_wait: Wait::none(),
            driver_root: None,
            capabilities: DEFAULT_CAPABILITIES.iter().map(|capability| capability.bit()).sum(),
            seccomp: None,
            new_privileges: false,
            injectable_ports: false,
            resource_limits: Vec::new(),
            sysctls: Vec::new(),
            oom_score: None,
            umask: 0o022,
            application_pid: None,
        }
    }

    /// Uses this store for an image given by reference. By default the user's, [`ImageStore::open_default`].
    pub fn store(mut self, store: &ImageStore) -> Self {
        self.store = Some(store.clone());
        self
    }

    /// Names the sandbox: letters, digits, `.`, `_` and `-`, unique among the user's. By default `s-` and random digits.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Says what to run, instead of the image's `Cmd`. It is given to the image's entrypoint, if there is one.
    ///
    /// A first word without `/` is looked for in the `PATH` of the container's environment.
    #[doc(alias = "gpuc_config_set_command")]
    pub fn command<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.command = Some(command.into_iter().map(Into::into).collect());
        self
    }

    /// Replaces the image's entrypoint; an empty one removes it. The image's `Cmd` then no longer counts.
    pub fn entrypoint<S: Into<String>>(mut self, entrypoint: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = Some(entrypoint.into_iter().map(Into::into).collect());
        self
    }

    process_setters!();

    /// Sets the host name, at most 64 bytes. By default `gpucontainer`, the same in every instance.
    pub fn hostname(mut self, name: impl Into<String>) -> Self {
        self.hostname = Some(name.into());
        self
    }

    /// Whether process 1 is the library's own, which reaps orphans and hands on signals. Yes by default; otherwise
    /// the application is process 1, and the kernel keeps signals from it for which it has no handler.
    pub fn init(mut self, init: bool) -> Self {
        self.init = init;
        self
    }

    /// Makes the root file system read-only. Mounts have a say of their own.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Says where writes to the root go. By default [`Writable::Disk`] for an image, removed with the sandbox, and
    /// [`Writable::InPlace`] for a directory.
    pub fn writable(mut self, writable: Writable) -> Self {
        self.writable = Some(writable);
        self
    }

    /// Caps what [`Writable::Memory`] may hold. By default half of the host's memory, the kernel's own limit.
    pub fn writable_max(mut self, bytes: u64) -> Self {
        self.writable_bytes = Some(bytes);
        self
    }

    /// Sets all resource limits at once.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Caps memory at `bytes`; see [`Limits::memory_max`].
    #[doc(alias = "gpuc_config_set_memory_max")]
    pub fn memory_max(mut self, bytes: u64) -> Self {
        self.limits = self.limits.memory_max(bytes);
        self
    }

    /// Caps processor time at that of `cores`, for example 1.5; see [`Limits::cpus`].
    pub fn cpus(mut self, cores: f64) -> Self {
        self.limits = self.limits.cpus(cores);
        self
    }

    /// Caps the number of processes and threads; see [`Limits::pids_max`].
    pub fn pids_max(mut self, count: u64) -> Self {
        self.limits = self.limits.pids_max(count);
        self
    }

    /// Whether to make a control group where that is possible. Yes by default; without one there are no limits,
    /// statistics and pauses. With limits there always is one, or an error.
    pub fn cgroup(mut self, cgroup: bool) -> Self {
        self.cgroup = cgroup;
        self
    }

    /// Whether the application sees its own control group, read-only, below `/sys/fs/cgroup`, where language run times
    /// look for their limits. Yes by default. Without privileges on version 1 it is never shown.
    pub fn cgroup_view(mut self, shown: bool) -> Self {
        self.cgroup_view = shown;
        self
    }

    /// Chooses the network. [`Network::None`] by default.
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// Chooses the user namespace. [`UserNamespace::Auto`] by default.
    pub fn user_namespace(mut self, user_namespace: UserNamespace) -> Self {
        self.user_namespace = user_namespace;
        self
    }

    /// Makes a time namespace: the application sees the monotonic and the boot clock moved by these nanoseconds.
    pub fn time_offsets(mut self, monotonic: i64, boottime: i64) -> Self {
        self.time_offsets = Some((monotonic, boottime));
        self
    }

    /// Adds a mount.
    pub fn mount(mut self, mount: Mount) -> Self {
        self.mounts.push(mount);
        self
    }

    /// Sets the size of `/dev/shm`. 64 MiB by default. A sandbox with a GPU whose lease has a daemon of
    /// [`Mps`](crate::gpu::Mps) sees the `/dev/shm` of that daemon instead.
    pub fn shm_size(mut self, bytes: u64) -> Self {
        self.shm_bytes = bytes;
        self
    }

    /// Publishes a TCP port: connections to `host_port` of the host's loopback addresses reach `container_port` inside.
    ///
    /// With 0 the kernel chooses a free host port, known from [`Sandbox::ports`].
    pub fn publish(self, container_port: u16, host_port: u16) -> Self {
        self.publish_port(PortMapping::tcp(container_port, host_port))
    }

    /// Publishes a port in all detail.
    pub fn publish_port(mut self, mapping: PortMapping) -> Self {
        self.ports.push(mapping);
        self
    }

    /// Whether ports that are published later can be [injected](crate::net::PortMode::Inject), as those can be that are
    /// published with the start. False by default.
    ///
    /// A small filter then lets every `bind(2)` of a program inside wait for an answer of this process, which takes some
    /// 100 microseconds. A sandbox that starts with a port that may be injected has it anyhow.
    pub fn injectable_ports(mut self, injectable: bool) -> Self {
        self.injectable_ports = injectable;
        self
    }

    /// Makes a service of the host reachable inside, on a port of the loopback addresses there; it needs no network for
    /// that. None by default.
    ///
    /// It is there some 100 microseconds after the program was executed: one that connects with its first breath tries
    /// again.
    pub fn host_service(mut self, service: HostService) -> Self {
        self.services.push(service);
        self
    }

    /// Asks for GPUs. None by default, whatever the image asks for.
    ///
    /// They are leased when the sandbox starts, and until it is dropped or, detached, has ended, or until they are
    /// [taken away](crate::Sandbox::detach_gpus): nobody else who asks a [`GpuAllocator`] gets them, unless both requests are [shared](GpuRequest::sharing). That holds as well for
    /// requests for [all](GpuRequest::all) GPUs, for GPUs by name, and for what the
    /// [image says](GpuRequest::as_image_says): what somebody else has leased is not to be had then, and a start says
    /// so at once unless [`gpu_wait`](Self::gpu_wait) lets it wait. A process that uses a GPU without a lease keeps it from
    /// a request that counts, and from no other, unless
    /// [`foreign_processes`](GpuRequest::foreign_processes) says otherwise.
    ///
    /// [`gpus_unleased`](Self::gpus_unleased) is the way without a lease.
    pub fn gpus(mut self, request: GpuRequest) -> Self {
        self.gpus = Some(request);
        self.gpu_lease = None;
        self.gpus_unleased = false;
        self
    }

    /// Asks for GPUs, without a lease: for those that software shares which knows nothing of leases, or containers
    /// which trust each other to share as with other engines. Replaces [`gpus`](Self::gpus).
    ///
    /// They are chosen among all of the host, whoever has leased them, and another sandbox may be given the same. Of
    /// the request count which GPUs, the vendor, free memory and the parts of the driver; what only a lease looks at,
    /// such as model, placement and sharing, does not.
    pub fn gpus_unleased(mut self, request: GpuRequest) -> Self {
        self.gpus = Some(request);
        self.gpu_lease = None;
        self.gpus_unleased = true;
        self
    }

    /// The allocator of which [`gpus`](Self::gpus) are leased, and what is [attached](crate::Sandbox::attach_gpus). By
    /// default that of the host, [`GpuAllocator::open`].
    ///
    /// Unless [`driver_root`](Self::driver_root) says otherwise, the driver is where it is for the allocator.
    pub fn gpu_allocator(mut self, allocator: &GpuAllocator) -> Self {
        self.gpu_allocator = Some(allocator.clone());
        self
    }

    /// How long a start waits for [`gpus`](Self::gpus). Not at all by default: what cannot be had now is an error that
    /// says who has it.
    pub fn gpu_wait(mut self, wait: Wait) -> Self {
        self.gpu_wait = wait;
        self
    }

    /// Gives the container the GPUs of a lease, which follows it: if this process is killed, the lease ends when the
    /// container is dead, and that of a detached sandbox ends with the sandbox.
    ///
    /// This description and every sandbox made of it hold a clone of the lease. Replaces [`gpus`](Self::gpus).
    pub fn gpu_lease(mut self, lease: &GpuLease) -> Self {
        self.gpus = Some(lease.request());
        self.gpu_lease = Some(lease.clone());
        self.gpus_unleased = false;
        self
    }

    /// Says where the driver's user space is. By default as [`DriverRoot::from_environment`] says.
    pub fn driver_root(mut self, root: DriverRoot) -> Self {
        self.driver_root = Some(root);
        self
    }

    /// Grants a capability beyond the default ones.
    pub fn add_capability(mut self, capability: Capability) -> Self {
        self.capabilities |= capability.bit();
        self
    }

    /// Takes a capability away.
    pub fn drop_capability(mut self, capability: Capability) -> Self {
        self.capabilities &= !capability.bit();
        self
    }

    /// Takes all capabilities away, also the default ones.
    pub fn drop_all_capabilities(mut self) -> Self {
        self.capabilities = 0;
        self
    }

    /// Sets the system call filter. By default [`Profile::default_for`] the granted capabilities.
    pub fn seccomp(mut self, profile: Profile) -> Self {
        self.seccomp = Some(profile);
        self
    }

    /// Whether executing a set-user-id program or one with file capabilities may give privileges. No by default.
    pub fn allow_new_privileges(mut self, allow: bool) -> Self {
        self.new_privileges = allow;
        self
    }

    /// Limits a resource of the application's process; [`u64::MAX`] is no limit.
    pub fn resource_limit(mut self, resource: ResourceLimit, soft: u64, hard: u64) -> Self {
        self.resource_limits.push((resource, soft, hard));
        self
    }

    /// Sets a kernel parameter of the sandbox's own namespaces: `net.…`, `kernel.shm…`, `kernel.msg…`, `kernel.sem`
    /// or `fs.mqueue.…`.
    pub fn sysctl(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.sysctls.push((name.into(), value.into()));
        self
    }

    /// Adjusts how likely the application is to be killed when the host's memory is short, -1000 to 1000.
    pub fn oom_score(mut self, adjustment: i32) -> Self {
        self.oom_score = Some(adjustment);
        self
    }

    /// Sets the file mode creation mask. `0o022` by default.
    pub fn umask(mut self, mask: u32) -> Self {
        self.umask = mask;
        self
    }

    /// Chooses the process id that the application has inside, 2 to 4,194,303. By default 2, or 1 without
    /// [`init`](Self::init), which chooses none.
    ///
    /// For software that looks after processes by the numbers which they say of themselves: with that of the process which
    /// stands for the sandbox outside, both mean the same. The kernel must have `CONFIG_CHECKPOINT_RESTORE`, as those of
    /// distributions do, and `/proc/sys` be writable.
    pub fn application_pid(mut self, pid: u32) -> Self {
        self.application_pid = Some(pid);
        self
    }

    /// What a start would do, without doing it. An image that is not in the store is not pulled.
    ///
    /// # Errors
    /// Those of [`SandboxBuilder::spawn`] that can be known without starting.
    pub fn plan(&self) -> Result<Plan> {
        crate::sandbox::prepare::plan_only(self)
    }

    /// Checks everything, then starts the sandbox, and returns when the application has been executed.
    ///
    /// An image given by a reference that is not in the store is pulled first.
    ///
    /// # Errors
    /// A typed error for everything that can be wrong, from the reference to the command; nothing is left behind.
    pub fn spawn(self) -> Result<Sandbox> {
        Sandbox::start(&self)
    }
}
