//! Mounting for the mount namespace of the caller.

use super::overlay::{OverlayMount, RootMount, Setting, Writes, needs_other_path};
use super::{KeepAlive, Rootfs, Scratch, Writable, unusable};
use crate::error::{Context as _, Error, ErrorKind, Result};
use crate::sys::fs;
use crate::sys::fs::mount::{self, Context, ShortPath};
use crate::sys::fs::overlay::OverlayFeatures;
use crate::sys::fs::tree;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A mounted root file system; dropping it unmounts, as soon as nobody uses it any more.
#[derive(Debug)]
pub struct MountedRootfs {
    target: PathBuf,
    /// Tells our mount from another at the same place; `None` once it is gone.
    identity: Option<u64>,
    scratch: Option<Scratch>,
    _keep_alive: Vec<Arc<dyn KeepAlive>>,
}

impl MountedRootfs {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Unmounts, and removes what was written ([`Writable::Disk`]).
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if a file in it is open, or something else was mounted over it. It is then detached as by
    /// dropping it: no new user can come, and the kernel frees it when the last one goes.
    pub fn unmount(mut self) -> Result<()> {
        let wanted = || format!("unmount the root file system at {:?}", self.target);
        if let Some(identity) = self.identity {
            self.still_on_top(identity).with_context(wanted)?;
            mount::unmount(&self.target, false).with_context(wanted)?;
        }
        self.identity = None;
        match self.scratch.take() {
            Some(scratch) => scratch.remove(),
            None => Ok(()),
        }
    }

    fn still_on_top(&self, identity: u64) -> Result<()> {
        if mount::mount_id(&self.target)? == identity {
            return Ok(());
        }
        let text = format!("something else is mounted over {:?}", self.target);
        Err(Error::new(ErrorKind::Busy, text).with_path(&self.target))
    }
}

impl Drop for MountedRootfs {
    fn drop(&mut self) {
        let Some(identity) = self.identity.take() else { return };
        let result = self.still_on_top(identity).and_then(|()| mount::unmount(&self.target, true));
        if let Err(error) = result {
            tracing::debug!(%error, "root file system not unmounted");
            // Its writes are in use. Whoever comes after this process removes them.
            if let Some(scratch) = self.scratch.take() {
                scratch.leave();
            }
        }
    }
}

pub(super) fn mount(rootfs: &Rootfs, target: &Path, features: OverlayFeatures) -> Result<MountedRootfs> {
    let target = fs::canonicalize(target)?;
    let scratch = match rootfs.writable {
        Writable::Disk => {
            let root =
                rootfs.scratch.as_deref().ok_or_else(|| unusable("writes go to disk, but to which directory?"))?;
            Scratch::collect_abandoned(root)?;
            Some(Scratch::create(root, &fs::unique())?)
        }
        Writable::Memory | Writable::ReadOnly | Writable::InPlace => None,
    };
    match rootfs.plan(scratch.as_ref(), !tree::initial_user_namespace())? {
        RootMount::Bind { directory, read_only } => {
            let tree = mount::clone_tree(&directory, true)?;
            if read_only {
                mount::set_read_only(tree.as_fd(), true)?;
            }
            mount::attach(tree.as_fd(), &target)?;
        }
        RootMount::Overlay(overlay) => mount_overlay(&overlay, &target, features)?,
    }
    let mut mounted = MountedRootfs { target, identity: None, scratch, _keep_alive: rootfs.keep_alive.clone() };
    match mount::mount_id(&mounted.target) {
        Ok(identity) => mounted.identity = Some(identity),
        Err(error) => {
            mount::unmount(&mounted.target, true)?;
            return Err(error);
        }
    }
    Ok(mounted)
}

fn mount_overlay(overlay: &OverlayMount, target: &Path, features: OverlayFeatures) -> Result<()> {
    let Writes::Memory { bytes, mode, owner, group } = overlay.writes else {
        return if features.lowerdir_add {
            mount::attach(overlay_mount(overlay, None)?.as_fd(), target)
        } else {
            mount_in_one_page(overlay, None, target)
        };
    };
    let memory = memory(bytes, (mode, owner, group))?;
    // Overlayfs takes paths, and those into a mount that is attached to nothing are refused by older kernels. Once
    // the overlay is made it holds the memory by itself.
    mount::attach(memory.as_fd(), target)?;
    drop(memory);
    let (upper, work) = (target.join("upper"), target.join("work"));
    let places = Some((upper.as_path(), work.as_path()));
    if features.lowerdir_add {
        let made = overlay_mount(overlay, places);
        mount::unmount(target, true)?;
        return mount::attach(made?.as_fd(), target);
    }
    // Without descriptors it can only be mounted over the memory, so it is made elsewhere: inside the memory.
    let inner = target.join("root");
    let made = mount_in_one_page(overlay, places, &inner).and_then(|()| mount::clone_tree(&inner, false));
    mount::unmount(target, true)?;
    mount::attach(made?.as_fd(), target)
}

/// A tmpfs with the directories that an overlay needs, attached to nothing.
fn memory(bytes: Option<u64>, (mode, owner, group): (u32, u32, u32)) -> Result<OwnedFd> {
    let context = Context::open("tmpfs")?;
    context.set_text("mode", OsStr::new("0700"))?;
    if let Some(bytes) = bytes {
        context.set_text("size", OsStr::new(&bytes.to_string()))?;
    }
    context.create()?;
    let memory = context.mount(false)?;
    for name in ["upper", "work", "root"].map(OsStr::new) {
        tree::make_directory(memory.as_fd(), name)?;
    }
    let upper = tree::open_directory(memory.as_fd(), OsStr::new("upper"))?;
    tree::set_owner(upper.as_fd(), owner, group)?;
    tree::set_mode(upper.as_fd(), mode)?;
    Ok(memory)
}

/// The overlay, attached to nothing.
fn overlay_mount(overlay: &OverlayMount, memory: Option<(&Path, &Path)>) -> Result<OwnedFd> {
    let context = Context::open("overlay")?;
    let mut open = Vec::new();
    for setting in overlay.settings(memory)? {
        match setting {
            Setting::Flag(key) => context.set_flag(key)?,
            Setting::Text(key, value) if needs_other_path(&value) => {
                let short = ShortPath::of(Path::new(&value))?;
                context.set_text(key, short.path().as_os_str())?;
                open.push(short);
            }
            Setting::Text(key, value) => context.set_text(key, &value)?,
        }
    }
    context.create()?;
    context.mount(overlay.writes == Writes::Nowhere)
}

/// For kernels that take all layers as one text of at most a page: each layer is open, its path that of its descriptor.
fn mount_in_one_page(overlay: &OverlayMount, memory: Option<(&Path, &Path)>, target: &Path) -> Result<()> {
    let mut open = Vec::new();
    let options = overlay.options(memory, &mut |path| {
        let short = ShortPath::of(path)?;
        let path = short.path();
        open.push(short);
        Ok(path)
    })?;
    mount::mount("overlay", target, overlay.writes == Writes::Nowhere, &options)
}
