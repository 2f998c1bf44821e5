//! Images: references, manifests, configuration, registries, archives, building.
//!
//! ```no_run
//! # #[cfg(feature = "registry")]
//! use gpucontainer::image::{ImageStore, PullOptions};
//!
//! # #[cfg(not(feature = "registry"))] fn main() {}
//! # #[cfg(feature = "registry")]
//! # fn main() -> gpucontainer::Result<()> {
//! let store = ImageStore::open_default()?;
//! let image = store.pull("debian:12-slim", PullOptions::new().progress(|p| println!("{p:?}")))?;
//! println!("{} starts {:?}", image.reference(), image.config().command);
//! for layer in image.layers()? {
//!     println!("{}", layer.path().display());
//! }
//! # Ok(())
//! # }
//! ```

mod build;
mod config;
mod decompress;
mod import;
mod ingest;
mod manifest;
mod options;
mod parallel;
mod platform;
#[cfg(feature = "registry")]
mod pull;
#[cfg(feature = "registry")]
mod push;
mod reference;
#[cfg(feature = "registry")]
mod registry;

pub use crate::store::{Collected, LayerHandle};
pub use build::ImageBuilder;
pub use config::ImageConfig;
pub use import::ImportOptions;
pub use platform::Platform;
#[cfg(feature = "registry")]
pub use pull::PullOptions;
#[cfg(feature = "registry")]
pub use push::PushOptions;
pub use reference::Reference;
#[cfg(feature = "registry")]
pub use registry::Credentials;

use crate::digest::Digest;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::layer::{Stack, seam};
use crate::progress::Cancel;
use crate::store::{Held, Record, Store, Work, chain_ids};
use crate::sys::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A directory with images, which any number of processes and threads may use at the same time.
///
/// Clones are the same store. Everything is on disk, nothing is cached; a process may be killed at
/// any instant without harm to the store.
#[derive(Clone, Debug)]
pub struct ImageStore {
    store: Arc<Store>,
}

/// An image in a store. While it or a clone of it lives, garbage collection leaves it alone.
#[derive(Clone, Debug)]
pub struct Image {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    reference: Reference,
    manifest: Digest,
    id: Digest,
    config: ImageConfig,
    diff_ids: Vec<Digest>,
    used: Arc<Held>,
}

impl ImageStore {
    /// Opens the store at `path`, made if there is none. What processes that died left unfinished in it
    /// is removed.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if it was made by a later version of the library, or the errors of
    /// making directories there.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self { store: Arc::new(Store::open(path.as_ref())?) })
    }

    /// Opens the store at [`ImageStore::default_path`].
    ///
    /// # Errors
    /// Those of [`ImageStore::default_path`] and [`ImageStore::open`].
    pub fn open_default() -> Result<Self> {
        Self::open(Self::default_path()?)
    }

    /// Where the user's images are: `$GPUCONTAINER_STORE` if that is set, else for root
    /// `/var/lib/gpucontainer`, for others `$XDG_DATA_HOME/gpucontainer` or `~/.local/share/gpucontainer`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the environment names none of these.
    pub fn default_path() -> Result<PathBuf> {
        Store::default_path()
    }

    /// The store's directory.
    pub fn path(&self) -> &Path {
        self.store.root()
    }

    /// Where root file systems of this store keep their writable tops.
    #[allow(dead_code, reason = "for the sandbox")]
    pub(crate) fn scratch(&self) -> PathBuf {
        self.store.scratch()
    }

    /// The image that `reference` stands for here, if there is one. No registry is asked.
    ///
    /// A reference by digest also finds an image that was pulled by tag.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidReference`]; [`ErrorKind::Corrupt`] if the store is damaged.
    pub fn get(&self, reference: &str) -> Result<Option<Image>> {
        let reference: Reference = reference.parse()?;
        let adding = self.store.adding(&Cancel::new())?;
        let found = self.find(&reference)?;
        let image = found.map(|record| self.load(&record)).transpose();
        drop(adding);
        image.with_context(|| format!("image {reference}"))
    }

    /// The image that `reference` stands for here.
    ///
    /// # Errors
    /// As [`ImageStore::get`], and [`ErrorKind::ImageNotFound`] if there is none.
    pub fn image(&self, reference: &str) -> Result<Image> {
        self.get(reference)?.ok_or_else(|| {
            let path = self.path();
            Error::new(ErrorKind::ImageNotFound, format!("image {reference:?} is not in the store {path:?}"))
        })
    }

    /// All images, one for each reference, in the order of their references.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if the store is damaged.
    pub fn list(&self) -> Result<Vec<Image>> {
        let adding = self.store.adding(&Cancel::new())?;
        let mut images = Vec::new();
        for record in self.store.references()? {
            images.push(self.load(&record).with_context(|| format!("image {}", record.reference))?);
        }
        drop(adding);
        images.sort_by(|a, b| a.reference().cmp(b.reference()));
        Ok(images)
    }

    /// Forgets a reference. The image's data goes with the next [`ImageStore::collect_garbage`], unless
    /// another reference, a living [`Image`] or a running container has it too.
    ///
    /// # Errors
    /// [`ErrorKind::ImageNotFound`] if there is no such reference; [`ErrorKind::InvalidReference`].
    pub fn remove(&self, reference: &str) -> Result<()> {
        let reference: Reference = reference.parse()?;
        if self.store.remove_reference(&reference.to_string())? {
            return Ok(());
        }
        Err(Error::new(ErrorKind::ImageNotFound, format!("remove image {reference}: there is no such reference")))
    }

    /// Gives `image` one more name, or moves the name to it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidReference`], also for a reference with a digest that is not the image's;
    /// [`ErrorKind::InvalidArgument`] if the image is from another store.
    pub fn tag(&self, image: &Image, reference: &str) -> Result<Image> {
        let reference: Reference = reference.parse()?;
        if image.inner.store.root() != self.path() {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("tag {reference}: image of another store")));
        }
        let adding = self.store.adding(&Cancel::new())?;
        let work = Work::begin(&self.store)?;
        let platform = Platform::new(&image.config().os, &image.config().architecture, None);
        let tagged = self.name(&work, &reference, image.manifest_digest(), image.id(), &platform);
        drop((work, adding));
        tagged
    }

    /// Removes layers, manifests and configurations that nothing leads to: no reference, no living
    /// [`Image`] or [`LayerHandle`] in any process. Waits for pulls, imports and builds under way.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if the store is damaged: then nothing is removed.
    pub fn collect_garbage(&self) -> Result<Collected> {
        self.collect_garbage_cancellable(&Cancel::new())
    }

    /// As [`ImageStore::collect_garbage`], ended early by `cancel`.
    ///
    /// # Errors
    /// The same, and [`ErrorKind::Cancelled`].
    pub fn collect_garbage_cancellable(&self, cancel: &Cancel) -> Result<Collected> {
        self.store.collect(cancel).with_context(|| format!("collect garbage of {:?}", self.path()))
    }

    /// The record that a reference stands for, also by digest.
    fn find(&self, reference: &Reference) -> Result<Option<Record>> {
        if let Some(record) = self.store.reference(&reference.to_string())? {
            return Ok(Some(record));
        }
        let Some(digest) = reference.digest() else { return Ok(None) };
        let digest = digest.to_string();
        let same_place = |record: &Record| {
            record.reference.parse::<Reference>().is_ok_and(|other| {
                other.registry() == reference.registry() && other.repository() == reference.repository()
            })
        };
        let mut records = self.store.references()?;
        records.retain(|record| record.manifest == digest && same_place(record));
        Ok(records.pop())
    }

    /// Names an image whose blobs and layers are all there; the caller holds `adding`.
    fn name(
        &self,
        work: &Work,
        reference: &Reference,
        manifest: Digest,
        id: Digest,
        platform: &Platform,
    ) -> Result<Image> {
        let record = Record {
            reference: reference.to_string(),
            manifest: manifest.to_string(),
            config: id.to_string(),
            platform: platform.to_string(),
        };
        self.make_seams(work, &id)?;
        self.store.set_reference(work, &record)?;
        self.load(&record)
    }

    /// Makes what must lie between the layers of a configuration, all of which are in the store.
    fn make_seams(&self, work: &Work, config: &Digest) -> Result<()> {
        let bytes = self.store.blob(config)?.unwrap_or_default();
        let config::Parsed { diff_ids, .. } = config::parse(&bytes)?;
        for (at, chain) in chain_ids(&diff_ids).iter().enumerate().skip(1) {
            let (below, layer) = (diff_ids.get(..at).unwrap_or_default(), diff_ids[at]);
            let implied = self.store.implied(&layer)?;
            if implied.is_empty() || self.store.has_seam(chain) {
                continue;
            }
            let wanted = || format!("join layer {layer} to those below it");
            // With the seams of those below, which were made before.
            let below = Stack::open(self.store.trees(below).iter().rev())?;
            let staged = work.fresh_directory()?;
            let tree = staged.join("tree");
            fs::create_dir(&tree)?;
            if seam::make(&self.store.layer_tree(&layer), &implied, &below, &tree).with_context(wanted)? {
                self.store.add_seam(work, chain, &staged).with_context(wanted)?;
            }
        }
        Ok(())
    }

    /// Makes an image of its record; the caller holds `adding`.
    fn load(&self, record: &Record) -> Result<Image> {
        let reference: Reference = record.reference.parse().map_err(|e: Error| e.with_kind(ErrorKind::Corrupt))?;
        let (manifest, id) = (record.manifest_digest()?, record.config_digest()?);
        let used = Arc::new(self.store.use_image(&manifest)?);
        let bytes = self.store.blob(&id)?.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("configuration {id} of a stored image is missing"))
        })?;
        let config::Parsed { config, diff_ids } = config::parse(&bytes).map_err(|e| e.with_kind(ErrorKind::Corrupt))?;
        let store = self.store.clone();
        Ok(Image { inner: Arc::new(Inner { store, reference, manifest, id, config, diff_ids, used }) })
    }
}

impl Image {
    /// The digest of the image's configuration: the same for the same content, wherever it came from.
    pub fn id(&self) -> Digest {
        self.inner.id
    }

    /// The digest of the manifest of the image's platform.
    pub fn manifest_digest(&self) -> Digest {
        self.inner.manifest
    }

    /// The name under which the image was asked for.
    pub fn reference(&self) -> &Reference {
        &self.inner.reference
    }

    /// What the image says about how to run it.
    pub fn config(&self) -> &ImageConfig {
        &self.inner.config
    }

    /// The layers, bottom first. A layer that the image has twice is there twice.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if one of them is missing.
    pub fn layers(&self) -> Result<Vec<LayerHandle>> {
        let inner = &self.inner;
        inner
            .store
            .layer_handles(&inner.diff_ids, &inner.used)
            .with_context(|| format!("layers of image {}", inner.reference))
    }

    /// What is stacked for a root file system, bottom first: the layers, and the seams between them.
    pub(crate) fn trees(&self) -> Vec<PathBuf> {
        self.inner.store.trees(&self.inner.diff_ids)
    }

    /// The image's configuration as it is stored, JSON.
    fn raw_config(&self) -> Result<Vec<u8>> {
        self.blob(&self.inner.id)
    }

    /// The image's manifest as it is stored, JSON.
    fn raw_manifest(&self) -> Result<Vec<u8>> {
        self.blob(&self.inner.manifest)
    }

    fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.inner
            .store
            .blob(digest)?
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("{digest} of a stored image is missing")))
    }
}
