//! Garbage collection: what no reference and no living user leads to is removed.

use super::seam::chain_ids;
use super::work::corrupt;
use super::{Held, Store, Work};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::progress::Cancel;
use crate::sys::fs;
use crate::sys::lock::{Lock, Mode};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::Path;

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Collected {
    /// Layers removed.
    pub layers: u64,
    /// Manifests and configurations removed.
    pub blobs: u64,
}

impl Store {
    /// Removes what nothing leads to. Waits for pulls and imports that are under way, so that what
    /// they added but do not refer to yet stays.
    pub(crate) fn collect(&self, cancel: &Cancel) -> Result<Collected> {
        let _alone = Held::new(self.wait(&self.root.join("gc.lock"), Mode::Exclusive, cancel, &mut || {})?);
        let mut manifests = BTreeSet::new();
        let mut blobs = BTreeSet::new();
        let (mut layers, mut chains) = (BTreeSet::new(), BTreeSet::new());
        for record in self.references()? {
            manifests.insert(record.manifest_digest()?);
        }
        for path in fs::read_dir(&self.root.join("locks"))? {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            match Lock::try_take(&path, Mode::Exclusive)? {
                None => manifests.extend(name.strip_suffix(".image").and_then(Digest::from_hex)),
                Some(lock) => lock.remove()?,
            }
        }
        for manifest in manifests {
            let config = self.config_of(&manifest)?;
            let diff_ids = self.diff_ids_of(&config)?;
            chains.extend(chain_ids(&diff_ids));
            layers.extend(diff_ids);
            blobs.extend([manifest, config]);
        }

        let work = Work::begin(self)?;
        let mut collected = Collected::default();
        for path in fs::read_dir(&self.root.join("layers/sha256"))? {
            if digest_of(&path).is_some_and(|digest| !layers.contains(&digest)) {
                cancel.check()?;
                // It vanishes at once and whole; what is slow happens in the work directory.
                let doomed = work.fresh_path();
                fs::rename(&path, &doomed)?;
                work.discard(&doomed)?;
                collected.layers += 1;
            }
        }
        for path in fs::read_dir(&self.root.join("blobs/sha256"))? {
            if digest_of(&path).is_some_and(|digest| !blobs.contains(&digest)) {
                fs::remove_file(&path)?;
                collected.blobs += 1;
            }
        }
        self.collect_seams(&chains, &work)?;
        work.finish()?;
        Ok(collected)
    }

    /// The configuration that a stored manifest names.
    fn config_of(&self, manifest: &Digest) -> Result<Digest> {
        #[derive(Deserialize)]
        struct Manifest {
            config: Descriptor,
        }
        #[derive(Deserialize)]
        struct Descriptor {
            digest: String,
        }
        let parsed: Manifest = self.parse(manifest)?;
        parsed.config.digest.parse().map_err(|e: Error| corrupt(&self.blob_path(manifest), e))
    }

    /// The layers that a stored configuration names.
    fn diff_ids_of(&self, config: &Digest) -> Result<Vec<Digest>> {
        #[derive(Deserialize)]
        struct Config {
            rootfs: RootFs,
        }
        #[derive(Deserialize)]
        struct RootFs {
            diff_ids: Option<Vec<String>>,
        }
        let parsed: Config = self.parse(config)?;
        let diff_ids = parsed.rootfs.diff_ids.unwrap_or_default();
        diff_ids.iter().map(|text| text.parse().map_err(|e: Error| corrupt(&self.blob_path(config), e))).collect()
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, digest: &Digest) -> Result<T> {
        let path = self.blob_path(digest);
        let bytes = self.blob(digest)?.ok_or_else(|| corrupt(&path, "a blob of a stored image is missing"))?;
        serde_json::from_slice(&bytes).map_err(|e| corrupt(&path, e))
    }
}

/// The digest that a file of the store is named by; a foreign file is left alone.
fn digest_of(path: &Path) -> Option<Digest> {
    path.file_name().and_then(|name| name.to_str()).and_then(Digest::from_hex)
}
