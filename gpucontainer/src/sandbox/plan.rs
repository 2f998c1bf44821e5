//! The plan of a start: what will be done, in order, as plain data.
//!
//! A plan is made from a configuration after everything that can be checked was checked. It can be printed
//! ([`Plan::explain`]), serialised and compared; `compile.rs` turns it into the stub's program, and the same step
//! numbers lead from a failed call back to these words.

use crate::gpu::VendorHook;
use crate::rootfs::{OverlayMount, Writes};
use crate::sandbox::places::Place;
use crate::sys::calls::{Attributes, Travel};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;

/// What a start will do, in order.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Plan {
    /// The sandbox's name.
    pub(crate) name: String,
    /// Namespaces made with the first process.
    pub(crate) namespaces: Vec<Namespace>,
    /// Whether the supervisor is process 1 and reaps; else the application is process 1.
    pub(crate) init: bool,
    /// The steps.
    pub(crate) steps: Vec<Step>,
}

/// A kind of namespace.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Namespace {
    /// The view of the cgroup hierarchy.
    Cgroup,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Mount points.
    Mount,
    /// Network devices, addresses, ports.
    Network,
    /// Process ids.
    Pid,
    /// Boot and monotonic clocks.
    Time,
    /// User and group ids, and capabilities.
    User,
    /// Host and domain name.
    Uts,
}

/// One step of a start.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub(crate) enum Step {
    /// The supervisor enters the control groups of version 1 through their open `tasks` files.
    JoinCgroups { count: usize },
    /// Waits until the parent has written the id maps of the user namespace.
    AwaitIdMaps,
    /// Becomes id 0 of the new user namespace.
    BecomeNamespaceRoot,
    /// Enters the namespaces of a running sandbox.
    EnterNamespaces { namespaces: Vec<Namespace> },
    /// Makes a mount namespace for the process that attaches, which an ordinary user needs to take files of the host.
    NewMountNamespace,
    /// Makes a namespace whose root is where the process is now.
    NewCgroupNamespace,
    /// Makes a time namespace, with offsets in nanoseconds.
    NewTimeNamespace { monotonic: i64, boottime: i64 },
    /// Waits until the network leads out.
    AwaitNetwork,
    /// Says that the start happens in a network that is there already; nothing is to be done for it.
    InNetwork { network: String },
    /// Enters a network together with the user namespace that owns it, and goes on in a new process with the namespaces
    /// of the plan.
    ShareNetwork { network: String },
    /// Chooses the process id that the next process of the namespace gets.
    NextPid { pid: u32 },
    /// Makes the application's process; the other one supervises.
    Fork,
    /// Starts a session of its own.
    NewSession,
    /// Says how mounts of the host travel into the container.
    Travel { travel: Travel },
    /// Takes a host path for a later mount.
    TakeSource { source: usize, path: PathBuf, recursive: bool },
    /// Stacks layers; the first is on top.
    RootOverlay { overlay: Overlay },
    /// Takes a directory of the host.
    RootDirectory { path: PathBuf },
    /// Makes the process file system, and unless the host's is shown the system file system. Only while the host's are
    /// in sight does the kernel allow that in a user namespace; they are mounted later.
    Prepare { sys: bool },
    /// Makes it the root, and lets go of the host's.
    Pivot,
    /// Sets a kernel parameter of the container's own namespaces.
    Sysctl { name: String, value: String },
    /// Mounts the process file system.
    Proc { masked: Vec<Masked>, read_only: Vec<String> },
    /// Mounts a file system of devices; `bound` devices are sources taken before.
    Dev { devices: Vec<Device>, shm_bytes: u64, terminal_group: Option<u32> },
    /// Mounts the system file system, read-only.
    Sys { masked: Vec<Masked>, bound: Option<usize> },
    /// Mounts the control groups that the container is in, read-only.
    CgroupView { version2: bool, controllers: Vec<String> },
    /// Mounts a taken source.
    Bind { source: usize, target: String, directory: bool, attributes: Attributes, recursive: bool, travel: Travel },
    /// Mounts a new file system in memory.
    Tmpfs { target: String, attributes: Attributes, options: String },
    /// Makes a device node in a container that runs.
    Node { device: Device },
    /// Takes away what is mounted there, if anything is.
    Unmount { path: String },
    /// Removes a node, a link or an empty file, if it can be.
    Discard { path: String },
    /// Makes a link.
    Link { target: String, path: String },
    /// Writes a small file to a file system in memory that was mounted before.
    File { path: String, text: String },
    /// Shows a small file of the container's own over what the image has there.
    OwnFile {
        path: String,
        #[serde(skip)]
        contents: Vec<u8>,
        mode: u32,
    },
    /// Mounts a file of the host, read-only, as one of the sandbox's own.
    OwnMount { source: usize, path: String },
    /// Waits while programs of vendors prepare the container from outside.
    AwaitHooks { hooks: Vec<VendorHook> },
    /// Sets the host name.
    Hostname { name: String },
    /// Brings the loopback interface up.
    LoopbackUp,
    /// Makes a mount read-only.
    ReadOnly { path: String },
    /// Limits a resource of the process; the number is that of `RLIMIT_…`.
    ResourceLimit { name: &'static str, resource: u32, soft: u64, hard: u64 },
    /// Adjusts how likely the process is to be killed when memory is short.
    OomScore { adjustment: i32 },
    /// Opens a terminal and makes it standard input, output and error.
    Terminal { rows: u16, columns: u16 },
    /// Connects standard input, output and error.
    Stdio,
    /// Changes to the user.
    User { user: u32, group: u32, groups: Option<Vec<u32>> },
    /// Leaves only these capabilities, as a bit mask.
    Capabilities { mask: u64 },
    /// Takes all other capabilities out of the bounding set; `last` is the highest that the kernel knows.
    BoundingSet { mask: u64, last: u32 },
    /// Enters the working directory.
    WorkingDirectory { path: String },
    /// Sets the file mode creation mask.
    Umask { mask: u32 },
    /// Gives up gaining privileges by executing a file.
    NoNewPrivileges,
    /// Lets binds of ports wait for an answer from outside.
    WatchBinds,
    /// Loads the system call filter.
    Seccomp {
        #[serde(skip)]
        instructions: Vec<u64>,
        length: usize,
    },
    /// Puts the listening sockets of ports where the application looks for them.
    HandOver { names: Vec<String> },
    /// Puts what the caller passes where the application looks for it.
    Pass { numbers: Vec<i32> },
    /// Executes the application: the first of the candidates that is there.
    Execute { candidates: Vec<String>, argv: Vec<String>, envp: Vec<String> },
}

/// Layers and where writes go.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Overlay {
    pub(crate) mount: OverlayMount,
    /// An existing directory of the host that may be covered in the container's own mount namespace.
    pub(crate) mount_at: PathBuf,
    /// Whether the kernel takes layers one by one.
    pub(crate) one_by_one: bool,
    /// What is made in memory on top of the layers.
    pub(crate) places: Vec<Place>,
    /// Whether the layers come as mounts whose owners are shifted into the user namespace.
    pub(crate) shifted: bool,
}

/// A path that is hidden.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Masked {
    /// From the file system's own root.
    pub(crate) path: String,
    pub(crate) directory: bool,
}

/// A device.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Device {
    /// Absolute, in the container.
    pub(crate) path: String,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) block: bool,
    /// Who it belongs to; root if `None`.
    pub(crate) owner: Option<(u32, u32)>,
    /// The source to bind instead of making a node, where making nodes is not allowed.
    pub(crate) bound: Option<usize>,
}

impl Plan {
    /// The plan in words, a line a step.
    pub fn explain(&self) -> String {
        self.to_string()
    }

    /// What step number `step` was to do.
    pub(crate) fn step_words(&self, step: usize) -> String {
        self.steps.get(step).map_or_else(|| "start".to_owned(), ToString::to_string)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.namespaces.iter().map(ToString::to_string).collect();
        writeln!(f, "sandbox {}: new namespaces: {}", self.name, names.join(", "))?;
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(f, "{:3}. {step}", number + 1)?;
        }
        Ok(())
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cgroup => "cgroup",
            Self::Ipc => "ipc",
            Self::Mount => "mount",
            Self::Network => "network",
            Self::Pid => "pid",
            Self::Time => "time",
            Self::User => "user",
            Self::Uts => "uts",
        })
    }
}

impl Step {
    /// Whether the application waits there for other programs.
    pub(crate) fn is_gate(&self) -> bool {
        matches!(self, Self::AwaitHooks { .. } | Self::AwaitNetwork)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JoinCgroups { count } => write!(f, "join {count} control groups"),
            Self::AwaitIdMaps => write!(f, "wait for the id maps"),
            Self::BecomeNamespaceRoot => write!(f, "become root of the user namespace"),
            Self::EnterNamespaces { namespaces } => {
                let names: Vec<_> = namespaces.iter().map(ToString::to_string).collect();
                write!(f, "enter namespaces {}", names.join(", "))
            }
            Self::NewMountNamespace => write!(f, "make a mount namespace"),
            Self::Node { device } => write!(f, "make device {:?}", device.path),
            Self::Unmount { path } => write!(f, "unmount {path:?}"),
            Self::Discard { path } => write!(f, "remove {path:?}"),
            Self::NewCgroupNamespace => write!(f, "make a cgroup namespace"),
            Self::NewTimeNamespace { monotonic, boottime } => {
                write!(f, "make a time namespace, monotonic {monotonic:+} ns, boot {boottime:+} ns")
            }
            Self::AwaitNetwork => write!(f, "wait for a way out"),
            Self::InNetwork { network } => write!(f, "start in {network}"),
            Self::ShareNetwork { network } => write!(f, "enter {network} and its user namespace"),
            Self::NextPid { pid } => write!(f, "choose process id {pid}"),
            Self::Fork => write!(f, "make the application's process"),
            Self::NewSession => write!(f, "start a session"),
            Self::Travel { travel } => write!(f, "make the host's mounts {travel:?}"),
            Self::TakeSource { path, .. } => write!(f, "take {path:?} of the host"),
            Self::RootOverlay { overlay } => {
                let writes = match &overlay.mount.writes {
                    Writes::Disk { upper, .. } => format!("writes to {upper:?}"),
                    Writes::Memory { .. } => "writes to memory".to_owned(),
                    Writes::Nowhere => "no writes".to_owned(),
                };
                write!(f, "mount root: overlay of {} layers", overlay.mount.lower.len())?;
                if !overlay.places.is_empty() {
                    write!(f, " and {} places of granted files", overlay.places.len())?;
                }
                write!(f, ", {writes}")
            }
            Self::RootDirectory { path } => write!(f, "mount root: directory {path:?}"),
            Self::Prepare { sys: false } => write!(f, "make /proc"),
            Self::Prepare { sys: true } => write!(f, "make /proc and /sys"),
            Self::Pivot => write!(f, "enter the root"),
            Self::Sysctl { name, value } => write!(f, "set kernel parameter {name} to {value:?}"),
            Self::Proc { masked, read_only } => {
                write!(f, "mount /proc, {} masked, {} read-only paths", masked.len(), read_only.len())
            }
            Self::Dev { devices, .. } => write!(f, "mount /dev with {} devices, pts, shm, mqueue", devices.len()),
            Self::Sys { masked, .. } => write!(f, "mount /sys read-only, {} masked paths", masked.len()),
            Self::CgroupView { .. } => write!(f, "mount /sys/fs/cgroup read-only"),
            Self::Bind { target, attributes, .. } => {
                write!(f, "mount {target:?} from the host")?;
                for word in attributes.words() {
                    write!(f, " {word}")?;
                }
                Ok(())
            }
            Self::Tmpfs { target, options, .. } => write!(f, "mount {target:?} in memory, {options}"),
            Self::Link { target, path } => write!(f, "link {path:?} to {target:?}"),
            Self::File { path, .. } => write!(f, "write {path:?}"),
            Self::OwnFile { path, .. } | Self::OwnMount { path, .. } => {
                write!(f, "mount the sandbox's own {path:?}")
            }
            Self::AwaitHooks { hooks } => {
                write!(f, "wait for")?;
                hooks.iter().try_for_each(|hook| write!(f, " {:?}", hook.path))
            }
            Self::Hostname { name } => write!(f, "set host name {name:?}"),
            Self::LoopbackUp => write!(f, "bring the loopback interface up"),
            Self::ReadOnly { path } => write!(f, "make {path:?} read-only"),
            Self::ResourceLimit { name, soft, hard, .. } => write!(f, "limit {name} to {soft}, {hard}"),
            Self::OomScore { adjustment } => write!(f, "adjust the out-of-memory score by {adjustment}"),
            Self::Terminal { rows, columns } => write!(f, "open a terminal of {columns} x {rows}"),
            Self::Stdio => write!(f, "connect standard input, output and error"),
            Self::User { user, group, .. } => write!(f, "become user {user}, group {group}"),
            Self::Capabilities { mask } => write!(f, "keep {} capabilities", mask.count_ones()),
            Self::BoundingSet { mask, .. } => write!(f, "bound capabilities to {}", mask.count_ones()),
            Self::WorkingDirectory { path } => write!(f, "enter working directory {path:?}"),
            Self::Umask { mask } => write!(f, "set umask {mask:03o}"),
            Self::NoNewPrivileges => write!(f, "give up new privileges"),
            Self::WatchBinds => write!(f, "let binds of ports wait for an answer"),
            Self::Seccomp { length, .. } => write!(f, "load the system call filter of {length} instructions"),
            Self::HandOver { names } => write!(f, "hand over the sockets of {}", names.join(", ")),
            Self::Pass { numbers } => {
                write!(f, "pass the descriptors")?;
                numbers.iter().try_for_each(|number| write!(f, " {number}"))
            }
            Self::Execute { argv, .. } => write!(f, "execute {:?}", argv.first().map_or("", String::as_str)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_reads_like_a_list() {
        let steps = vec![Step::Fork, Step::Hostname { name: "h".into() }];
        let plan = Plan { name: "s1".into(), namespaces: vec![Namespace::Mount, Namespace::Pid], init: true, steps };
        let expected =
            "sandbox s1: new namespaces: mount, pid\n  1. make the application's process\n  2. set host name \"h\"\n";
        assert_eq!(plan.explain(), expected);
        assert_eq!(plan.step_words(1), "set host name \"h\"");
    }
}
