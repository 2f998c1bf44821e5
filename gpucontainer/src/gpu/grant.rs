//! What a container needs to use its GPUs, as plain data.
//!
//! A grant makes nothing and opens nothing: whoever builds the container carries it out. All paths
//! of the container are absolute and have no `..`, but may lead over links of the image, so they
//! must be resolved inside its tree.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A device node that the container gets, and that its device filter must let through.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DeviceNode {
    /// Where the node goes in the container.
    pub path: PathBuf,
    /// The node of the host that can be bound there; `None` if the host has the device but no node for
    /// it (yet), so that only a process that may make nodes can give it.
    pub host_path: Option<PathBuf>,
    /// Whether it is a block device; character devices are the rule.
    #[serde(default)]
    pub block: bool,
    /// The major number.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
    /// Permission bits for a node made anew, as in `0o666`.
    pub mode: u32,
    /// User and group of a node made anew, as the container counts them; root's if `None`.
    #[serde(default)]
    pub owner: Option<(u32, u32)>,
    /// What the device filter lets the container do with it.
    #[serde(default)]
    pub access: NodeAccess,
}

impl DeviceNode {
    /// A character device that the container may use in every way.
    pub(crate) fn character(path: PathBuf, host_path: Option<PathBuf>, (major, minor): (u32, u32), mode: u32) -> Self {
        Self { path, host_path, block: false, major, minor, mode, owner: None, access: NodeAccess::default() }
    }
}

/// What a container may do with a device: everything by default.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[non_exhaustive]
pub struct NodeAccess {
    /// Open it for reading.
    pub read: bool,
    /// Open it for writing.
    pub write: bool,
    /// Make a node of it, which needs a capability as well.
    pub make: bool,
}

impl Default for NodeAccess {
    fn default() -> Self {
        Self { read: true, write: true, make: true }
    }
}

/// What is mounted from the host.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum MountKind {
    /// A regular file.
    File,
    /// A directory with all that is in it.
    Directory,
    /// A socket of a service of the host.
    Socket,
}

/// A file, directory or socket of the host that the container sees.
///
/// Every one is to be mounted `nosuid`, `nodev` and private.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FileMount {
    /// What to mount: a path of the host without links.
    pub source: PathBuf,
    /// Where it goes in the container.
    pub target: PathBuf,
    /// What it is, and hence what to make at the target before mounting over it.
    pub kind: MountKind,
    /// Whether the container may only read it.
    pub read_only: bool,
    /// Whether the container may execute it or map it executable; `noexec` if not.
    pub executable: bool,
    /// Whether mounts below a directory come with it.
    #[serde(default)]
    pub recursive: bool,
}

/// A symbolic link that the container gets; one that the image has there is replaced.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[non_exhaustive]
pub struct Symlink {
    /// Where the link goes in the container.
    pub link: PathBuf,
    /// What it says.
    pub target: PathBuf,
}

/// A file whose contents are known beforehand.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TextFile {
    /// Its path below the directory that it is in; the directories between are made with mode `0o555`.
    pub path: PathBuf,
    /// What is in it.
    pub contents: String,
    /// Its permission bits, as in `0o444`.
    pub mode: u32,
}

/// A directory of the container that is replaced as a whole: a tmpfs with these files and no others,
/// read-only once they are there.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FileTree {
    /// The directory; if the container does not have it, there is nothing to hide and nothing to do.
    pub path: PathBuf,
    /// The files.
    pub files: Vec<TextFile>,
}

/// A small file of the container's own, shown over what its image has at that place: nothing of the image is changed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OwnFile {
    /// Where it goes in the container.
    pub path: PathBuf,
    /// What is in it.
    pub contents: Vec<u8>,
    /// Its permission bits, as in `0o644`.
    pub mode: u32,
}

/// When a vendor's program is executed, by the names of the OCI runtime specification.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum HookMoment {
    /// `prestart`, `createRuntime` and `createContainer`: everything is mounted, the application not executed yet.
    CreateRuntime,
    /// The application runs.
    Poststart,
}

/// A program of the host, by a vendor of devices, that prepares containers for them.
///
/// It runs outside of the container with the rights of the process that starts the sandbox.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct VendorHook {
    /// When it is executed.
    pub moment: HookMoment,
    /// The program, by an absolute path of the host.
    pub path: PathBuf,
    /// Its arguments, its own name first.
    pub args: Vec<String>,
    /// All of its environment: nothing else is handed on.
    pub env: Vec<(String, String)>,
    /// It is killed after so many seconds, and the start fails; `None` waits for ever.
    pub timeout_seconds: Option<u32>,
}

/// Everything that a container needs for the GPUs that it was granted, and nothing of any other GPU.
///
/// Empty by default, which grants nothing.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GpuGrant {
    /// The identifiers of the granted GPUs and MIG devices, in the order of the container's indices.
    pub gpus: Vec<String>,
    /// The device nodes to make, and to allow `rw` and `mknod` in the device filter.
    pub device_nodes: Vec<DeviceNode>,
    /// What of the host to mount.
    pub mounts: Vec<FileMount>,
    /// The links to make, after the mounts.
    pub links: Vec<Symlink>,
    /// Directories to replace.
    pub trees: Vec<FileTree>,
    /// Files to show over those of the image: the loader's cache with the granted libraries in it, and settings.
    #[serde(default)]
    pub files: Vec<OwnFile>,
    /// The directories of the container in which the granted libraries are, best first.
    ///
    /// The dynamic loader of the image searches them by default; its cache among [`files`](Self::files) names the
    /// libraries as well, for those programs that ask it.
    pub library_directories: Vec<PathBuf>,
    /// Variables to set, over those of the image and under those of the caller.
    pub environment: Vec<(String, String)>,
    /// Further groups of the application, as the container counts them.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// Programs of the host to execute while the container is made; only those that the caller asked to be run.
    #[serde(default)]
    pub hooks: Vec<VendorHook>,
    /// The version of the driver whose files are granted.
    pub driver_version: Option<String>,
    /// What was asked for and left out because the image cannot use it, or may be of no use to it, and why: a sentence
    /// each.
    #[serde(default)]
    pub left_out: Vec<String>,
}

impl GpuGrant {
    /// Whether nothing is granted.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Grants what `other` grants as well; where both have something at the same place, `other` counts.
    pub(crate) fn add(&mut self, other: Self) {
        /// Appends, in place of what has the same key.
        fn put<T, K: PartialEq>(all: &mut Vec<T>, more: Vec<T>, key: impl Fn(&T) -> &K) {
            all.retain(|known| !more.iter().any(|new| key(new) == key(known)));
            all.extend(more);
        }
        put(&mut self.gpus, other.gpus, |gpu| gpu);
        put(&mut self.device_nodes, other.device_nodes, |node| &node.path);
        put(&mut self.mounts, other.mounts, |mount| &mount.target);
        put(&mut self.links, other.links, |link| &link.link);
        put(&mut self.trees, other.trees, |tree| &tree.path);
        put(&mut self.files, other.files, |file| &file.path);
        put(&mut self.left_out, other.left_out, |why| why);
        put(&mut self.library_directories, other.library_directories, |directory| directory);
        put(&mut self.environment, other.environment, |(name, _)| name);
        put(&mut self.groups, other.groups, |group| group);
        put(&mut self.hooks, other.hooks, |hook| hook);
        self.driver_version = other.driver_version.or(self.driver_version.take());
        self.mounts.sort_by_key(|mount| mount.target.components().count());
    }
}
