//! Pushing an image to a registry.
//!
//! ```text
//! each layer     there already? ─► in another repository of the registry? ─► written again, compressed, sent
//! configuration  there already? ─► sent as it is, so the image stays the same one
//! manifest       as it is, but for layers that had to be compressed
//! ```

use super::manifest::{self, Blob, DOCKER_MANIFEST, Document, Manifest, OCI_LAYER, OCI_MANIFEST};
use super::options::{Metered, Report, Reporter, Transfer, access_setters, work_setters};
use super::parallel;
use super::registry::{Access, Client, Credentials, Mounted, Session};
use super::{Image, ImageStore, Reference};
use crate::digest::{Digest, HashingReader};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::layer::LayerArchive;
use crate::progress::{Cancel, Phase, Progress};
use crate::store::Work;
use crate::sys::fs;
use flate2::Compression;
use flate2::read::GzEncoder;
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// How to push an image.
#[derive(Debug, Default)]
pub struct PushOptions<'a> {
    transfer: Transfer<'a>,
    access: Access,
}

impl<'a> PushOptions<'a> {
    /// The defaults: the credentials of the user's files, HTTPS.
    pub fn new() -> Self {
        Self::default()
    }

    access_setters!();
    work_setters!();
}

impl ImageStore {
    /// Pushes an image to the registry, repository and tag of `reference`. Returns the digest of the manifest there.
    ///
    /// Layers that the repository has are not sent, nor those that the registry has in the repository that the image came
    /// from. Others are written again from the store, byte for byte, and compressed with gzip, so the manifest may get
    /// another digest than [`Image::manifest_digest`]; [`Image::id`] stays. What of a push breaks off is resumed. While it
    /// goes on, the store needs room for the compressed layers that are under way.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidReference`] (also for one with a digest), [`ErrorKind::InvalidArgument`] for an image of another
    /// store, [`ErrorKind::Authentication`] if the registry does not let this user write there, [`ErrorKind::Network`],
    /// [`ErrorKind::Registry`] if the registry refuses the image or does not follow its protocol,
    /// [`ErrorKind::Unsupported`] for layers that a version of this library stored that kept less of them,
    /// [`ErrorKind::Corrupt`] if a layer was changed in the store, [`ErrorKind::NoSpace`], [`ErrorKind::Cancelled`].
    /// Without its manifest, which comes last, the registry shows nothing of what was sent before.
    pub fn push(&self, image: &Image, reference: &str, options: PushOptions<'_>) -> Result<Digest> {
        let reference: Reference = reference.parse()?;
        let result = self.push_parsed(image, &reference, options);
        result.with_context(|| format!("push image {} to {reference}", image.reference()))
    }

    fn push_parsed(&self, image: &Image, reference: &Reference, options: PushOptions<'_>) -> Result<Digest> {
        let PushOptions { transfer, access } = options;
        transfer.check()?;
        access.check()?;
        if reference.digest().is_some() {
            let why = "an image is pushed to a tag: its digest is known when it is there";
            return Err(Error::new(ErrorKind::InvalidReference, why));
        }
        if image.inner.store.root() != self.path() {
            return Err(Error::new(ErrorKind::InvalidArgument, "the image is one of another store"));
        }
        let bytes = image.raw_manifest()?;
        let Document::Manifest(manifest) = manifest::parse(&bytes)? else {
            return Err(Error::new(ErrorKind::Corrupt, "the manifest of a stored image is an index"));
        };
        let Transfer { progress, cancel, concurrency, .. } = transfer;
        let reporter = Reporter::new(progress);
        // Where the registry may have the layers too.
        let came_from = image.reference();
        let from = (came_from.registry() == reference.registry() && came_from.repository() != reference.repository())
            .then(|| came_from.repository());
        let client = Client::for_push(reference, from, &access, &cancel)?;
        let work = Work::begin(&self.store)?;
        let push = Push { image, client: &client, from, work: &work, report: &|p| reporter.report(p), cancel: &cancel };
        let digest =
            client.watched(|| push.all(&manifest, &bytes, concurrency, reference.tag().unwrap_or("latest")))?;
        work.finish()?;
        Ok(digest)
    }
}

/// One image on its way to a registry.
struct Push<'a> {
    image: &'a Image,
    client: &'a Client<'a>,
    from: Option<&'a str>,
    work: &'a Work,
    report: &'a Report<'a>,
    cancel: &'a Cancel,
}

impl Push<'_> {
    fn all(&self, manifest: &Manifest, bytes: &[u8], concurrency: usize, tag: &str) -> Result<Digest> {
        // Before anything is sent: what is missing is missed now.
        self.image.layers()?;
        let mut layers: Vec<(Digest, &Blob)> = Vec::new();
        for (diff_id, blob) in self.image.inner.diff_ids.iter().zip(&manifest.layers) {
            if !layers.iter().any(|(_, known)| known.digest == blob.digest) {
                layers.push((*diff_id, blob));
            }
        }
        layers.sort_by_key(|(_, blob)| std::cmp::Reverse(blob.size));
        let sent = Mutex::new(BTreeMap::new());
        parallel::each(&layers, concurrency, |(diff_id, blob), abandoned| {
            let there = self.layer(diff_id, blob, abandoned).with_context(|| format!("layer {diff_id}"))?;
            sent.lock().unwrap_or_else(PoisonError::into_inner).insert(blob.digest, there);
            Ok(())
        })?;
        self.configuration(&manifest.config)?;
        let sent = sent.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (media_type, bytes) = with_layers(bytes, manifest, &sent)?;
        self.cancel.check()?;
        self.client.put_manifest(tag, &media_type, &bytes)
    }

    /// Sees to it that the registry has a layer; returns as what.
    fn layer(&self, diff_id: &Digest, blob: &Blob, abandoned: &AtomicBool) -> Result<Blob> {
        let item = blob.digest.to_string();
        let say = |phase, blob: &Blob| (self.report)(Progress::new(&item, phase, blob.size, Some(blob.size)));
        let elsewhere = ["nondistributable", "foreign"].iter().any(|word| blob.media_type.contains(word));
        if elsewhere || self.client.has(&blob.digest)? {
            say(Phase::Present, blob);
            return Ok(blob.clone());
        }
        let mut session = None;
        if let Some(from) = self.from {
            match self.client.mount(&blob.digest, from)? {
                Mounted::There => {
                    say(Phase::Present, blob);
                    return Ok(blob.clone());
                }
                Mounted::Not(begun) => session = begun,
            }
        }
        let (packed, file) = self.pack(diff_id, blob, &item, abandoned)?;
        if self.client.has(&packed.digest)? {
            say(Phase::Present, &packed);
        } else {
            self.send(&packed, &item, session, &file, abandoned)?;
            say(Phase::Done, &packed);
        }
        // Room for the next one.
        self.work.discard(&file)?;
        Ok(packed)
    }

    /// Writes a layer's archive again, compressed, to a file.
    fn pack(&self, diff_id: &Digest, blob: &Blob, item: &str, abandoned: &AtomicBool) -> Result<(Blob, PathBuf)> {
        let path = self.work.fresh_path();
        let archive = self.image.inner.store.layer_archive(diff_id)?;
        let mut plain = HashingReader::new(Metered {
            inner: archive,
            item,
            phase: Phase::Compressing,
            bytes: 0,
            total: None,
            report: self.report,
            reported: Instant::now(),
            cancel: self.cancel,
            abandoned,
        });
        let mut packed = HashingReader::new(GzEncoder::new(&mut plain, Compression::default()));
        let copied = io::copy(&mut packed, &mut fs::create_new(&path)?);
        copied.map_err(|e| Error::from_io(format!("write({path:?})"), e))?;
        let (digest, size) = (packed.digest(), packed.count());
        drop(packed);
        LayerArchive::check(diff_id, &plain.digest())?;
        let docker = blob.media_type.starts_with("application/vnd.docker.");
        let media_type = if docker { DOCKER_LAYER.to_owned() } else { format!("{OCI_LAYER}+gzip") };
        Ok((Blob { media_type, digest, size }, path))
    }

    fn send(
        &self,
        blob: &Blob,
        item: &str,
        session: Option<Session>,
        path: &Path,
        abandoned: &AtomicBool,
    ) -> Result<()> {
        let open = |offset| {
            let mut file = fs::open(path)?;
            file.seek(SeekFrom::Start(offset)).map_err(|e| Error::from_io(format!("lseek({path:?})"), e))?;
            let metered = Metered {
                inner: file,
                item,
                phase: Phase::Pushing,
                bytes: offset,
                total: Some(blob.size),
                report: self.report,
                reported: Instant::now(),
                cancel: self.cancel,
                abandoned,
            };
            Ok(Box::new(metered) as Box<dyn Read + '_>)
        };
        self.client.upload(blob, session, &open)
    }

    fn configuration(&self, blob: &Blob) -> Result<()> {
        if self.client.has(&blob.digest)? {
            return Ok(());
        }
        let bytes = self.image.raw_config()?;
        if bytes.len() as u64 != blob.size {
            let why = format!("the manifest says that {} has {} bytes, it has {}", blob.digest, blob.size, bytes.len());
            return Err(Error::new(ErrorKind::Corrupt, why).context("image configuration"));
        }
        let open = |offset: u64| {
            let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
            Ok(Box::new(rest) as Box<dyn Read + '_>)
        };
        self.client.upload(blob, None, &open).context("image configuration")
    }
}

/// The manifest with the layers as the registry has them, and its media type. What it says besides stays.
fn with_layers(bytes: &[u8], manifest: &Manifest, sent: &BTreeMap<Digest, Blob>) -> Result<(String, Vec<u8>)> {
    let corrupt = |e: serde_json::Error| Error::new(ErrorKind::Corrupt, format!("manifest of a stored image: {e}"));
    let mut value: serde_json::Value = serde_json::from_slice(bytes).map_err(corrupt)?;
    let docker = manifest.config.media_type.starts_with("application/vnd.docker.");
    let usual = if docker { DOCKER_MANIFEST } else { OCI_MANIFEST };
    let media_type = value.get("mediaType").and_then(serde_json::Value::as_str).unwrap_or(usual).to_owned();
    let mut changed = false;
    for (index, blob) in manifest.layers.iter().enumerate() {
        let Some(there) = sent.get(&blob.digest).filter(|there| *there != blob) else { continue };
        let layer = &mut value["layers"][index];
        layer["mediaType"] = there.media_type.as_str().into();
        layer["digest"] = there.digest.to_string().into();
        layer["size"] = there.size.into();
        // These are about the bytes that were compressed before: such as where a file begins in them.
        for about in ["annotations", "data", "urls"] {
            layer.as_object_mut().map(|layer| layer.remove(about));
        }
        changed = true;
    }
    let bytes = if changed { serde_json::to_vec(&value).map_err(corrupt)? } else { bytes.to_owned() };
    Ok((media_type, bytes))
}
