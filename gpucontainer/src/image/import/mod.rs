//! Images from files: OCI layouts, OCI archives, and what `docker save` writes.

mod archive;
mod layout;

use super::ingest::{Ingest, Source};
use super::manifest::Manifest;
use super::options::{Reporter, Transfer, transfer_setters};
use super::{Image, ImageStore, Platform, Reference};
use crate::digest::Digest;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::progress::{Cancel, Phase, Progress};
use crate::store::Work;
use crate::sys::fs;
use std::path::Path;

/// How to import an image.
#[derive(Debug, Default)]
pub struct ImportOptions<'a> {
    transfer: Transfer<'a>,
    reference: Option<String>,
    select: Option<String>,
}

impl<'a> ImportOptions<'a> {
    /// The defaults: the host's platform, the only image of the archive, under the names it has there.
    pub fn new() -> Self {
        Self::default()
    }

    /// What to call the image here, instead of what the archive calls it.
    #[must_use]
    pub fn reference(mut self, reference: impl Into<String>) -> Self {
        self.reference = Some(reference.into());
        self
    }

    /// Which image of the archive, if there are several: its name there, or its digest.
    #[must_use]
    pub fn select(mut self, name: impl Into<String>) -> Self {
        self.select = Some(name.into());
        self
    }

    transfer_setters!();
}

/// An image found in an archive: all that the store needs to take it in.
struct Found {
    source: Box<dyn Source>,
    /// What the store keeps as the manifest, and its digest.
    manifest_bytes: Vec<u8>,
    manifest: Manifest,
    /// What the archive calls it, where that is a reference.
    names: Vec<Reference>,
}

impl ImageStore {
    /// Imports an image from `path`: an OCI layout directory, or a tar archive of one, or what
    /// `docker save` writes (of any age). Archives may be compressed with gzip or zstd; such a one is
    /// first decompressed into the store's work directory.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if the archive has several images and none is selected, or the
    /// image has no name and none is given; [`ErrorKind::InvalidImage`] if it is none of the known forms
    /// or malformed; [`ErrorKind::ImageNotFound`] if it has no image of the selected name;
    /// [`ErrorKind::InvalidLayer`], [`ErrorKind::DigestMismatch`], [`ErrorKind::Cancelled`],
    /// [`ErrorKind::NoSpace`]. The store is as before then.
    pub fn import(&self, path: impl AsRef<Path>, options: ImportOptions<'_>) -> Result<Image> {
        let path = path.as_ref();
        self.import_from(path, options).with_context(|| format!("import image from {path:?}"))
    }

    fn import_from(&self, path: &Path, options: ImportOptions<'_>) -> Result<Image> {
        let ImportOptions { transfer, reference, select } = options;
        transfer.check()?;
        let reference: Option<Reference> = reference.map(|text| text.parse()).transpose()?;
        let directory = fs::metadata(path)?.is_dir();
        let adding = self.store.adding(&transfer.cancel)?;
        let work = Work::begin(&self.store)?;
        let select = select.as_deref();
        let found = if directory {
            layout::find(path, select, &transfer.platform)?
        } else {
            archive::find(path, &work, select, &transfer)?
        };
        let names = match reference {
            Some(reference) => vec![reference],
            None => found.names,
        };
        let Some((first, others)) = names.split_first() else {
            return Err(Error::new(ErrorKind::InvalidArgument, "the image has no name there: give a reference"));
        };
        let Transfer { platform, progress, cancel, concurrency, max_layer_bytes } = transfer;
        let reporter = Reporter::new(progress);
        let ingest = Ingest {
            store: &self.store,
            work: &work,
            source: &*found.source,
            report: &|progress| reporter.report(progress),
            cancel: &cancel,
            platform: &platform,
            concurrency,
            max_layer_bytes,
            phase: Phase::Importing,
        };
        ingest.image(&found.manifest)?;
        let manifest = self.store.add_blob(&work, &found.manifest_bytes)?;
        let id = found.manifest.config.digest;
        for name in others {
            self.name(&work, name, manifest, id, &platform)?;
        }
        let image = self.name(&work, first, manifest, id, &platform)?;
        work.finish()?;
        drop(adding);
        Ok(image)
    }
}

/// What an archive calls an image, if that is a whole reference and not just a tag.
fn whole_reference(name: &str) -> Option<Reference> {
    if name.contains([':', '/']) { name.parse().ok() } else { None }
}

/// Whether the caller's word selects this image.
fn is_selected(select: &str, names: &[String], digest: &Digest) -> bool {
    let wanted = select.parse::<Reference>().ok();
    digest.to_string() == select
        || names.iter().any(|name| name == select || wanted.is_some() && whole_reference(name) == wanted)
}
