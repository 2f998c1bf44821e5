//! From a manifest to an image in the store: the same for registries, archives and layouts.
//!
//! Each layer passes through in one stream: bytes, SHA-256 of the compressed form, decompression,
//! SHA-256 of the plain form, unpacking. Nothing is kept but the unpacked layer, and that appears
//! in the store only after both digests were right.

use super::config::{self, Parsed};
use super::decompress::{BUFFER, Decompress};
use super::manifest::{Blob, CONFIG_MAX, Manifest};
use super::options::{Metered, Report};
use super::parallel;
use super::platform::Platform;
use crate::digest::{self, Digest, HashingReader};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::layer::{self, UnpackOptions};
use crate::progress::{Cancel, Phase, Progress};
use crate::store::{Store, Work, note_implied};
use crate::sys::fs;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// How much is read on after a malformed archive to learn whether its digest is wrong too.
const DRAIN_MAX: u64 = 64 << 20;

/// Where the blobs of an image come from.
pub(super) trait Source: Sync {
    /// Opens a blob for reading from its start. Errors of the reader are the library's own, passed through `io`.
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send + '_>>;

    /// Whether the digests of the layers are those of the bytes that [`Source::open`] gives. If not, they
    /// are those of the uncompressed form, and only that is checked.
    fn has_blob_digests(&self) -> bool {
        true
    }
}

/// One image on its way into the store. The caller holds the store's `adding` lock.
pub(super) struct Ingest<'a> {
    pub(super) store: &'a Store,
    pub(super) work: &'a Work,
    pub(super) source: &'a dyn Source,
    pub(super) report: &'a Report<'a>,
    pub(super) cancel: &'a Cancel,
    pub(super) platform: &'a Platform,
    pub(super) concurrency: usize,
    pub(super) max_layer_bytes: u64,
    /// What the reports call it.
    pub(super) phase: Phase,
}

impl Ingest<'_> {
    /// Brings the configuration and the layers of `manifest` into the store.
    pub(super) fn image(&self, manifest: &Manifest) -> Result<Parsed> {
        let bytes = match self.store.blob(&manifest.config.digest) {
            Ok(Some(bytes)) if bytes.len() as u64 == manifest.config.size => bytes,
            // A damaged blob is fetched again and replaced.
            _ => self.small_blob(&manifest.config, CONFIG_MAX).context("image configuration")?,
        };
        let parsed = config::parse(&bytes)?;
        self.check(manifest, &parsed)?;
        self.store.add_blob(self.work, &bytes)?;
        let mut seen = BTreeSet::new();
        let mut layers: Vec<(Digest, &Blob)> = parsed
            .diff_ids
            .iter()
            .copied()
            .zip(&manifest.layers)
            .filter(|(diff_id, _)| seen.insert(*diff_id))
            .collect();
        // The largest takes longest: it must not be the last to start.
        layers.sort_by_key(|(_, blob)| std::cmp::Reverse(blob.size));
        self.layers(&layers)?;
        Ok(parsed)
    }

    /// Reads a whole blob of at most `limit` bytes, checked.
    pub(super) fn small_blob(&self, blob: &Blob, limit: u64) -> Result<Vec<u8>> {
        self.cancel.check()?;
        if blob.size > limit {
            return Err(Error::new(
                ErrorKind::InvalidImage,
                format!("{} has {} bytes, the limit is {limit}", blob.digest, blob.size),
            ));
        }
        let mut bytes = Vec::new();
        let call = format!("read({})", blob.digest);
        self.source
            .open(blob)?
            .take(blob.size + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| self.cancel.check().err().unwrap_or_else(|| Error::from_io(call, e)))?;
        blob.digest.check(&blob.digest.to_string(), &bytes)?;
        if bytes.len() as u64 != blob.size {
            let why = format!("{} has {} bytes, {} were promised", blob.digest, bytes.len(), blob.size);
            return Err(Error::new(ErrorKind::InvalidImage, why));
        }
        Ok(bytes)
    }

    fn check(&self, manifest: &Manifest, parsed: &Parsed) -> Result<()> {
        let invalid = |why: String| Err(Error::new(ErrorKind::InvalidImage, why));
        let (layers, diff_ids) = (manifest.layers.len(), parsed.diff_ids.len());
        if layers != diff_ids {
            return invalid(format!("the manifest has {layers} layers, the configuration {diff_ids}"));
        }
        let (os, architecture) = (&parsed.config.os, &parsed.config.architecture);
        if os != self.platform.os() || architecture != self.platform.architecture() {
            return invalid(format!("the image is for {os}/{architecture}, not for {}", self.platform));
        }
        for (layer, diff_id) in manifest.layers.iter().zip(&parsed.diff_ids) {
            let kind = &layer.media_type;
            if (kind.contains("nondistributable") || kind.contains("foreign")) && !self.store.has_layer(diff_id) {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("layer {} is not distributable ({kind}): its registry does not hold it", layer.digest),
                ));
            }
        }
        Ok(())
    }

    /// Makes the layers that are not there yet, several at a time.
    fn layers(&self, layers: &[(Digest, &Blob)]) -> Result<()> {
        parallel::each(layers, self.concurrency, |(diff_id, blob), abandoned| {
            self.layer(diff_id, blob, abandoned).with_context(|| format!("layer {}", blob.digest))
        })
    }

    fn layer(&self, diff_id: &Digest, blob: &Blob, abandoned: &AtomicBool) -> Result<()> {
        let item = blob.digest.to_string();
        let report = |phase, bytes| (self.report)(Progress::new(&item, phase, bytes, Some(blob.size)));
        let Some(turn) = self.store.layer_turn(diff_id, self.cancel, &mut || report(Phase::Waiting, 0))? else {
            report(Phase::Present, blob.size);
            return Ok(());
        };
        let staged = self.work.fresh_directory()?;
        let made = self.stream(diff_id, blob, &item, &staged, abandoned);
        let made = made.and_then(|implied| note_implied(&staged, &implied));
        let made = made.and_then(|()| self.store.add_layer(self.work, diff_id, &staged));
        if made.is_err() {
            self.work.discard(&staged)?;
        }
        drop(turn);
        made.map(|()| report(Phase::Done, blob.size))
    }

    fn stream(
        &self,
        diff_id: &Digest,
        blob: &Blob,
        item: &str,
        staged: &Path,
        abandoned: &AtomicBool,
    ) -> Result<Vec<PathBuf>> {
        let mut compressed = HashingReader::new(Metered {
            inner: self.source.open(blob)?,
            item,
            phase: self.phase,
            bytes: 0,
            total: Some(blob.size),
            report: self.report,
            reported: Instant::now(),
            cancel: self.cancel,
            abandoned,
        });
        let unpacked = self.unpack(diff_id, &mut compressed, staged);
        match &unpacked {
            Err(e) if e.kind() != ErrorKind::InvalidLayer => return unpacked,
            // What is wrong inside may only be the sign that these are not the promised bytes: worth
            // some more reading, but not gigabytes of it.
            Err(_) if blob.size.saturating_sub(compressed.count()) > DRAIN_MAX => return unpacked,
            _ if self.source.has_blob_digests() => {
                let drained = drain(&mut compressed);
                if unpacked.is_ok() {
                    drained?;
                } else if drained.is_err() {
                    return unpacked;
                }
                if compressed.count() != blob.size {
                    let why = format!("{} bytes came, {} were promised", compressed.count(), blob.size);
                    return Err(Error::new(ErrorKind::DigestMismatch, why));
                }
                let found = compressed.digest();
                if found != blob.digest {
                    return Err(digest::mismatch("compressed form", &blob.digest, &found));
                }
            }
            _ => {}
        }
        unpacked
    }

    fn unpack(&self, diff_id: &Digest, compressed: &mut dyn Read, staged: &Path) -> Result<Vec<PathBuf>> {
        let tree = staged.join("tree");
        fs::create_dir(&tree)?;
        let decompressed = Decompress::new(compressed).map_err(|e| Error::from_io("read", e))?;
        let mut plain = HashingReader::new(Bounded { inner: decompressed, left: self.max_layer_bytes });
        let options =
            UnpackOptions::for_this_user().max_bytes(self.max_layer_bytes).cancel(self.cancel.clone()).record(staged);
        let unpacked = layer::unpack(&mut plain, &tree, &options)?;
        drain(&mut plain)?;
        let found = plain.digest();
        if found == *diff_id {
            Ok(unpacked.implied)
        } else {
            Err(digest::mismatch("uncompressed form", diff_id, &found))
        }
    }
}

/// Reads to the end: the digest is that of all bytes, also of those that an archive has after its end.
fn drain(reader: &mut dyn Read) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::from_io("read", e)),
        }
    }
}

/// A stream that is an error beyond its bound: an endless one must end somewhere.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        match self.left.checked_sub(u64::try_from(count).unwrap_or(u64::MAX)) {
            Some(left) => self.left = left,
            None => {
                return Err(Error::new(ErrorKind::InvalidLayer, "it unpacks to more than max_layer_bytes").into());
            }
        }
        Ok(count)
    }
}
