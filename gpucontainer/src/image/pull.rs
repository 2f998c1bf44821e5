//! Pulling an image from its registry.

use super::ingest::Ingest;
use super::manifest::{self, Document};
use super::options::{Reporter, Transfer, access_setters, transfer_setters};
use super::registry::{Access, Client, Credentials};
use super::{Image, ImageStore, Platform, Reference};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::progress::{Cancel, Phase, Progress};
use crate::store::Work;
use std::time::Duration;

/// Indexes may nest; nobody nests them deeper.
const DEPTH_MAX: u32 = 4;

/// How to pull an image.
#[derive(Debug, Default)]
pub struct PullOptions<'a> {
    transfer: Transfer<'a>,
    access: Access,
}

impl<'a> PullOptions<'a> {
    /// The defaults: the host's platform, the credentials of the user's files, HTTPS.
    pub fn new() -> Self {
        Self::default()
    }

    access_setters!();
    transfer_setters!();
}

impl ImageStore {
    /// Pulls an image from its registry, and names it here as it is named there. Layers that are here
    /// already are not fetched again; several processes that pull the same share the work. A reference by
    /// digest that is here already is not asked for at all.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidReference`], [`ErrorKind::ImageNotFound`], [`ErrorKind::Authentication`],
    /// [`ErrorKind::Network`] if the registry cannot be reached or breaks off again and again,
    /// [`ErrorKind::Registry`] if it does not follow its protocol, [`ErrorKind::InvalidImage`] also if
    /// there is none for the platform, [`ErrorKind::InvalidLayer`], [`ErrorKind::DigestMismatch`],
    /// [`ErrorKind::Unsupported`] for layers that registries do not hold, [`ErrorKind::NoSpace`],
    /// [`ErrorKind::Cancelled`]. The store has what it had before then, and maybe some layers more,
    /// which the next pull uses and [`ImageStore::collect_garbage`] removes.
    pub fn pull(&self, reference: &str, options: PullOptions<'_>) -> Result<Image> {
        let reference: Reference = reference.parse()?;
        self.pull_parsed(&reference, options).with_context(|| format!("pull image {reference}"))
    }

    fn pull_parsed(&self, reference: &Reference, options: PullOptions<'_>) -> Result<Image> {
        let PullOptions { transfer, access } = options;
        transfer.check()?;
        access.check()?;
        let Transfer { platform, progress, cancel, concurrency, max_layer_bytes } = transfer;
        let adding = self.store.adding(&cancel)?;
        if let Some(image) = self.pinned(reference, &platform)? {
            return Ok(image);
        }
        let client = Client::new(reference, &access, &cancel)?;
        let work = Work::begin(&self.store)?;
        let reporter = Reporter::new(progress);
        let ingest = Ingest {
            store: &self.store,
            work: &work,
            source: &client,
            report: &|progress| reporter.report(progress),
            cancel: &cancel,
            platform: &platform,
            concurrency,
            max_layer_bytes,
            phase: Phase::Pulling,
        };
        let (bytes, id) = client.watched(|| {
            let (bytes, manifest) = fetch(&client, reference, &platform)?;
            ingest.image(&manifest)?;
            Ok::<_, Error>((bytes, manifest.config.digest))
        })?;
        let manifest = self.store.add_blob(&work, &bytes)?;
        let image = self.name(&work, reference, manifest, id, &platform)?;
        work.finish()?;
        drop(adding);
        Ok(image)
    }

    /// What a reference by digest stands for, if it is here: the registry could only say the same.
    fn pinned(&self, reference: &Reference, platform: &Platform) -> Result<Option<Image>> {
        if reference.digest().is_none() {
            return Ok(None);
        }
        let here = self.store.reference(&reference.to_string())?;
        let here = here.filter(|record| record.platform == platform.to_string());
        here.map(|record| self.load(&record)).transpose()
    }
}

/// Gets the platform's manifest, through as many indexes as there are.
fn fetch(client: &Client<'_>, reference: &Reference, platform: &Platform) -> Result<(Vec<u8>, manifest::Manifest)> {
    let digest = reference.digest();
    let name = match digest {
        Some(digest) => digest.to_string(),
        None => reference.tag().unwrap_or("latest").to_owned(),
    };
    let (mut bytes, found) = client.manifest(&name)?;
    if let Some(wanted) = digest.filter(|wanted| *wanted != found) {
        return Err(crate::digest::mismatch("manifest", &wanted, &found));
    }
    for _ in 0..DEPTH_MAX {
        match manifest::parse(&bytes)? {
            Document::Manifest(manifest) => return Ok((bytes, manifest)),
            Document::Index(entries) => {
                let blob = &manifest::choose(&entries, platform)?.blob;
                let (next, found) = client.manifest(&blob.digest.to_string())?;
                if found != blob.digest {
                    return Err(crate::digest::mismatch("manifest", &blob.digest, &found));
                }
                bytes = next;
            }
        }
    }
    Err(Error::new(ErrorKind::InvalidImage, "indexes nested too deeply"))
}
