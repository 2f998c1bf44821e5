//! Layers: who makes one, and who uses it.

use super::work::corrupt;
use super::{Store, Work};
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::progress::Cancel;
use crate::sys::errno;
use crate::sys::fs;
use crate::sys::lock::{Lock, Mode};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One layer of an image, in the store, kept there as long as the handle or a copy of it lives.
///
/// A layer never changes once it is in the store: mount it, read it, but write nothing to it.
#[derive(Clone, Debug)]
pub struct LayerHandle {
    diff_id: Digest,
    path: PathBuf,
    used: Arc<Held>,
}

impl LayerHandle {
    /// The digest of the layer's uncompressed archive: what the layer is named by.
    pub fn diff_id(&self) -> Digest {
        self.diff_id
    }

    /// The directory that holds the layer's files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The lock that keeps the layer's image, the same for all its layers. A process that inherits a copy of
    /// this descriptor keeps the image as long as the copy is open, whatever becomes of the handle.
    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.used.lend()
    }
}

/// A lock of the store. When it is dropped it is freed at once, unless it was lent: then others may count on
/// their copies of its descriptor, and the last to close one frees it.
#[derive(Debug)]
pub(crate) struct Held {
    lock: Lock,
    lent: AtomicBool,
}

impl Held {
    pub(super) fn new(lock: Lock) -> Self {
        Self { lock, lent: AtomicBool::new(false) }
    }

    fn lend(&self) -> BorrowedFd<'_> {
        self.lent.store(true, Ordering::Relaxed);
        self.lock.as_fd()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.lent.load(Ordering::Relaxed) {
            if let Err(error) = self.lock.free() {
                // Then closing the descriptor frees it.
                tracing::debug!(%error, "lock not freed at once");
            }
        }
    }
}

/// The sole right to make a layer, until it is dropped.
#[derive(Debug)]
pub(crate) struct LayerTurn(Option<Lock>);

impl Store {
    fn layers(&self) -> PathBuf {
        self.root.join("layers/sha256")
    }

    pub(super) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(diff_id.hex())
    }

    /// Where the files of a layer are.
    pub(crate) fn layer_tree(&self, diff_id: &Digest) -> PathBuf {
        self.layer_path(diff_id).join("tree")
    }

    pub(super) fn layer_lock(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("locks").join(format!("{}.layer", diff_id.hex()))
    }

    pub(super) fn image_lock(&self, manifest: &Digest) -> PathBuf {
        self.root.join("locks").join(format!("{}.image", manifest.hex()))
    }

    /// Whether the layer is in the store, whole.
    pub(crate) fn has_layer(&self, diff_id: &Digest) -> bool {
        self.layer_path(diff_id).is_dir()
    }

    /// Waits until nobody else makes this layer. `None`: it is in the store (by now).
    /// The caller holds [`Store::adding`]; `waiting` is called if somebody else is at it.
    pub(crate) fn layer_turn(
        &self,
        diff_id: &Digest,
        cancel: &Cancel,
        waiting: &mut dyn FnMut(),
    ) -> Result<Option<LayerTurn>> {
        if self.has_layer(diff_id) {
            return Ok(None);
        }
        let lock = self.wait(&self.layer_lock(diff_id), Mode::Exclusive, cancel, waiting)?;
        let turn = LayerTurn(Some(lock));
        Ok(if self.has_layer(diff_id) { None } else { Some(turn) })
    }

    /// Publishes the layer whose `tree` was made in a directory of `work` called `staged`.
    /// The files are made durable first. A layer that is there already stays as it is.
    pub(crate) fn add_layer(&self, work: &Work, diff_id: &Digest, staged: &Path) -> Result<()> {
        if self.has_layer(diff_id) {
            return work.discard(staged);
        }
        fs::sync_filesystem(staged)?;
        match fs::rename(staged, &self.layer_path(diff_id)) {
            Ok(()) => fs::sync_dir(&self.layers()),
            // Another process built the same layer without taking a turn.
            Err(e) if matches!(e.errno(), Some(errno::ENOTEMPTY | errno::EEXIST)) => work.discard(staged),
            Err(e) => Err(e),
        }
    }

    /// Keeps the image of a manifest from being collected. The caller holds [`Store::adding`] until it has this,
    /// or the collector might come between.
    pub(crate) fn use_image(&self, manifest: &Digest) -> Result<Held> {
        // Only collectors take this lock alone, and none is at work while `adding` is held.
        Lock::wait(&self.image_lock(manifest), Mode::Shared).map(Held::new)
    }

    /// The handles of `diff_ids`, in their order.
    pub(crate) fn layer_handles(&self, diff_ids: &[Digest], used: &Arc<Held>) -> Result<Vec<LayerHandle>> {
        let mut handles = Vec::with_capacity(diff_ids.len());
        for diff_id in diff_ids {
            let path = self.layer_tree(diff_id);
            if !path.is_dir() {
                return Err(corrupt(&path, "a layer of a stored image is missing"));
            }
            handles.push(LayerHandle { diff_id: *diff_id, path, used: used.clone() });
        }
        Ok(handles)
    }
}

impl Drop for LayerTurn {
    fn drop(&mut self) {
        // Whoever waits for the file sees that it is gone and makes a new one.
        match self.0.take().map(Lock::remove) {
            Some(Err(e)) if e.kind() != ErrorKind::NotFound => {
                tracing::debug!(error = %e, "lock file left behind");
            }
            _ => {}
        }
    }
}
