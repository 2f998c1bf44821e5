//! From layers to a root file system that can be mounted.
//!
//! A [`Rootfs`] is a plain description: which layers, in which order, and where writes go. Nothing happens until it
//! is mounted: by a sandbox, inside the container's own mount namespace, so that the kernel frees it with the
//! container; or by [`Rootfs::mount`], for whoever wants the tree alone.
//!
//! # How it is put together
//!
//! ```text
//!            what the container sees
//!                      │ overlayfs
//!   ┌──────────────────┴───────────────────┐
//!   │ upper: all writes                    │  Disk: <scratch>/<id>/upper   Memory: a tmpfs   ReadOnly: none
//!   ├──────────────────────────────────────┤
//!   │ layer n     (the image's last one)   │
//!   │ …                                    │  never written to, shared by all containers
//!   │ layer 1     (the image's first one)  │
//!   └──────────────────────────────────────┘
//! ```
//!
//! # Where writes go on disk
//!
//! ```text
//! <scratch>/
//!   <id>.claim      locked by whoever owns the directory beside it; free once that process has died
//!   <id>/           mode 0700: nobody else reaches set-user-id programs of the container
//!     upper/        what the container wrote: files, and whiteouts of what it removed
//!     work/         overlayfs's own
//! ```
//!
//! The claim is made before the directory and removed after it. What a killed process left behind is removed
//! by the next one that uses the same scratch directory.
//!
//! # Choices that are the same on every host
//!
//! Kernels are built with different defaults; `redirect_dir=nofollow`, `metacopy=off` and `index=off` are always
//! stated. So a directory of a layer cannot be renamed in place (`rename(2)` says `EXDEV`, and programs copy), no
//! attribute of an image can lead overlayfs to another directory, and what was written can be read without the layers.

mod mounted;
mod overlay;
mod scratch;

#[cfg(test)]
mod tests;

pub use mounted::MountedRootfs;
pub(crate) use overlay::{OverlayMount, RootMount, Setting, Writes, needs_other_path};
pub(crate) use scratch::Scratch;

use crate::error::{Error, ErrorKind, Result};
use crate::layer::LayerTree;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Something that must not go away while a root file system is in use, such as a lock on an image of a store.
///
/// Everything that can be sent, shared and printed is one; what counts is when it is dropped.
pub trait KeepAlive: Debug + Send + Sync {}

impl<T: Debug + Send + Sync> KeepAlive for T {}

/// Where writes to a root file system go.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Writable {
    /// To a directory of this container's own on disk, removed with the container. The default for layers.
    ///
    /// `fsync` and `sync` return at once: what is removed anyway need not survive a power failure.
    Disk,
    /// To memory, up to the limit given by [`Rootfs::memory_max`]. It counts as the container's memory.
    Memory,
    /// Nowhere: writing fails with `EROFS`.
    ReadOnly,
    /// Into the directory itself. The default for [`Rootfs::directory`], and impossible for layers.
    InPlace,
}

/// A root file system that is not mounted yet.
///
/// ```no_run
/// use gpucontainer::rootfs::{Rootfs, Writable};
///
/// # fn main() -> gpucontainer::Result<()> {
/// let root = Rootfs::new(["/layers/base", "/layers/python"]).writable(Writable::ReadOnly);
/// let mounted = root.mount("/mnt".as_ref())?;
/// // … use /mnt …
/// mounted.unmount()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Rootfs {
    source: Source,
    writable: Writable,
    memory_max: Option<u64>,
    volatile: bool,
    scratch: Option<PathBuf>,
    keep_alive: Vec<Arc<dyn KeepAlive>>,
}

#[derive(Clone, Debug)]
enum Source {
    /// The bottom one first.
    Layers(Vec<LayerTree>),
    Directory(PathBuf),
}

impl Rootfs {
    /// Describes a tree made of the directories of layers, the bottom one first, as images list them.
    ///
    /// The directories are as overlayfs wants them: a removed name is a character device 0:0, a directory that hides
    /// those below it has the attribute `trusted.overlay.opaque` or `user.overlay.opaque` with the value `y`.
    /// They are looked at when the tree is mounted.
    pub fn new<P: Into<PathBuf>>(layers: impl IntoIterator<Item = P>) -> Self {
        Self::of_layers(layers.into_iter().map(|path| LayerTree::Directory(path.into())))
    }

    /// The same for layers of whatever form.
    pub(crate) fn of_layers(layers: impl IntoIterator<Item = LayerTree>) -> Self {
        Self::of(Source::Layers(layers.into_iter().collect()), Writable::Disk)
    }

    /// Describes a tree that is one directory of the host. Writes go into it, unless [`Rootfs::writable`] says
    /// something else.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self::of(Source::Directory(path.into()), Writable::InPlace)
    }

    fn of(source: Source, writable: Writable) -> Self {
        Self { source, writable, memory_max: None, volatile: true, scratch: None, keep_alive: Vec::new() }
    }

    /// Says where writes go.
    #[must_use]
    pub fn writable(mut self, writable: Writable) -> Self {
        self.writable = writable;
        self
    }

    /// Caps what [`Writable::Memory`] may hold at `bytes`. By default half of the host's memory, the kernel's own limit.
    #[must_use]
    pub fn memory_max(mut self, bytes: u64) -> Self {
        self.memory_max = Some(bytes);
        self
    }

    /// Whether `fsync` inside may return before the data is on disk; only for [`Writable::Disk`]. Yes by default.
    #[must_use]
    pub fn volatile(mut self, volatile: bool) -> Self {
        self.volatile = volatile;
        self
    }

    /// Says in which directory [`Writable::Disk`] makes a directory for the writes. It is made if it is not there,
    /// and may not itself be on overlayfs. Needed for [`Rootfs::mount`]; a sandbox has its own.
    #[must_use]
    pub fn scratch_in(mut self, directory: impl Into<PathBuf>) -> Self {
        self.scratch = Some(directory.into());
        self
    }

    /// Keeps `what` as long as this description, its copies and whatever was mounted from it.
    #[must_use]
    pub fn keep_alive(mut self, what: impl KeepAlive + 'static) -> Self {
        self.keep_alive.push(Arc::new(what));
        self
    }

    /// Where writes go.
    pub fn writes_to(&self) -> Writable {
        self.writable
    }

    /// Mounts the tree at `target`, an existing directory, for the whole mount namespace of the caller.
    ///
    /// Works as root, and as the root of a user namespace that has a mount namespace of its own.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] without the right to mount; [`ErrorKind::NotFound`] if a layer or `target` does
    /// not exist; [`ErrorKind::Unsupported`] for more layers than the kernel takes (500; before Linux 6.5 about 200);
    /// [`ErrorKind::InvalidArgument`] for [`Writable::Disk`] without [`Rootfs::scratch_in`]. Nothing stays mounted
    /// and nothing is left on disk.
    pub fn mount(&self, target: &Path) -> Result<MountedRootfs> {
        mounted::mount(self, target, crate::sys::fs::overlay::overlay_features())
            .map_err(|error| error.context(format!("mount a root file system at {target:?}")))
    }

    /// What is to be mounted, as plain data; looks at the directories but changes nothing except the
    /// description of the empty `upper` directory of `scratch`, which becomes that of the top layer.
    ///
    /// `userxattr` says that the mount is made by the root of a user namespace.
    pub(crate) fn plan(&self, scratch: Option<&Scratch>, userxattr: bool) -> Result<RootMount> {
        overlay::plan(self, scratch, userxattr)
    }
}

fn unusable(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}
