//! Where the root file system of a sandbox comes from, and where what is written to it goes.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::{Image, ImageConfig, ImageStore};
use crate::layer::Stack;
use crate::rootfs::{Rootfs, Writable};
use crate::sandbox::config::{SandboxBuilder, Source, UserNamespace};
use crate::store::LayerHandle;
use crate::sys::fs;
use std::path::PathBuf;

/// The image, or the directory.
#[derive(Debug)]
pub(crate) enum Root {
    Image { image: Image, store: ImageStore, layers: Vec<LayerHandle> },
    Directory(PathBuf),
}

impl Root {
    /// Finds the image or the directory; an image that is not in the store is pulled if `pull` says so.
    pub(crate) fn find(builder: &SandboxBuilder, pull: bool) -> Result<Self> {
        let store = || match &builder.store {
            Some(store) => Ok(store.clone()),
            None => ImageStore::open_default(),
        };
        let (image, store) = match &builder.source {
            Source::Directory(path) => {
                let path = fs::canonicalize(path).context("find the root directory")?;
                if !fs::metadata(&path)?.is_dir() {
                    let message = format!("the root {path:?} is not a directory");
                    return Err(Error::new(ErrorKind::InvalidArgument, message).with_path(path));
                }
                return Ok(Self::Directory(path));
            }
            Source::Image(image) => (image.clone(), store()?),
            Source::Reference(reference) => {
                let store = store()?;
                let image = match store.get(reference)? {
                    Some(image) => image,
                    None if pull => fetch(&store, reference)?,
                    None => store.image(reference)?,
                };
                (image, store)
            }
        };
        let layers = image.layers()?;
        Ok(Self::Image { image, store, layers })
    }

    /// Where a sandbox with this root makes its directory for writes.
    pub(crate) fn scratch(&self, builder: &SandboxBuilder) -> Result<PathBuf> {
        Ok(match (self, &builder.store) {
            (Self::Image { store, .. }, _) | (Self::Directory(_), Some(store)) => store.scratch(),
            (Self::Directory(_), None) => ImageStore::open_default()?.scratch(),
        })
    }

    /// Where writes go.
    pub(crate) fn writable(&self, builder: &SandboxBuilder) -> Writable {
        match (self, builder.writable) {
            (_, Some(writable)) if !builder.read_only => writable,
            (Self::Directory(_), None) => Writable::InPlace,
            // Files of subordinate ids on disk could not be removed by the caller afterwards.
            (Self::Image { .. }, None)
                if !builder.read_only && builder.user_namespace == UserNamespace::Subordinate =>
            {
                Writable::Memory
            }
            (Self::Image { .. }, None) if !builder.read_only => Writable::Disk,
            _ => Writable::ReadOnly,
        }
    }

    /// What is to be mounted.
    pub(crate) fn rootfs(&self, builder: &SandboxBuilder) -> Rootfs {
        let rootfs = match self {
            // The bottom layer first, as images list them.
            Self::Image { image, .. } => Rootfs::new(image.trees()),
            Self::Directory(path) => Rootfs::directory(path),
        };
        let rootfs = match self.writable(builder) {
            // What is mounted needs places; they are made in memory before the root becomes read-only.
            Writable::ReadOnly => rootfs.writable(Writable::Memory),
            writable => rootfs.writable(writable),
        };
        match builder.writable_bytes {
            Some(bytes) => rootfs.memory_max(bytes),
            None => rootfs,
        }
    }

    /// What the image says of the process; nothing for a directory.
    pub(crate) fn config(&self) -> ImageConfig {
        match self {
            Self::Image { image, .. } => image.config().clone(),
            Self::Directory(_) => ImageConfig::default(),
        }
    }

    /// The same, to be read before it is mounted.
    pub(crate) fn tree(&self) -> Result<Stack> {
        match self {
            Self::Image { image, .. } => Stack::open(image.trees().iter().rev()),
            Self::Directory(path) => Stack::open([path]),
        }
    }
}

#[cfg(feature = "registry")]
fn fetch(store: &ImageStore, reference: &str) -> Result<Image> {
    store.pull(reference, crate::image::PullOptions::default())
}

#[cfg(not(feature = "registry"))]
fn fetch(store: &ImageStore, reference: &str) -> Result<Image> {
    store.image(reference)
}
