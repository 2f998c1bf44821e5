//! OCI layouts: `oci-layout`, `index.json` and `blobs/`, in a directory or in an archive.

use super::super::ingest::Source;
use super::super::manifest::{self, Blob, Document, Entry, MANIFEST_MAX};
use super::super::platform::Platform;
use super::{Found, is_selected, whole_reference};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::root::Root;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Indexes may nest; nobody nests them deeper.
const DEPTH_MAX: u32 = 4;

/// The files of a layout.
pub(super) trait Files: Source {
    /// Reads a small file whole, at most `limit` bytes; `None` if there is none.
    fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>>;
}

/// A layout in a directory.
struct Directory(Root);

impl Source for Directory {
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send + '_>> {
        match self.0.open_file(&blob_path(blob)) {
            Ok(file) => Ok(Box::new(file)),
            Err(e) if e.kind() == ErrorKind::NotFound => Err(e.with_kind(ErrorKind::InvalidImage)),
            Err(e) => Err(e),
        }
    }
}

impl Files for Directory {
    fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
        match self.0.read(path, limit) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

pub(super) fn blob_path(blob: &Blob) -> PathBuf {
    Path::new("blobs/sha256").join(blob.digest.hex())
}

/// Finds the image in a directory.
pub(super) fn find(path: &Path, select: Option<&str>, platform: &Platform) -> Result<Found> {
    let files = Directory(Root::open(path)?);
    match find_in(&files, select, platform)? {
        Some(chosen) => Ok(chosen.with(Box::new(files))),
        None => Err(Error::new(ErrorKind::InvalidImage, "no OCI layout: it has no index.json")),
    }
}

/// An image of a layout.
pub(super) struct Chosen {
    manifest_bytes: Vec<u8>,
    manifest: manifest::Manifest,
    names: Vec<String>,
}

impl Chosen {
    pub(super) fn with(self, source: Box<dyn Source>) -> Found {
        let names: BTreeSet<_> = self.names.iter().filter_map(|name| whole_reference(name)).collect();
        Found {
            source,
            manifest_bytes: self.manifest_bytes,
            manifest: self.manifest,
            names: names.into_iter().collect(),
        }
    }
}

/// Finds the image in a layout; `None` if it is no layout.
pub(super) fn find_in(files: &dyn Files, select: Option<&str>, platform: &Platform) -> Result<Option<Chosen>> {
    let Some(bytes) = files.read(Path::new("index.json"), MANIFEST_MAX)? else { return Ok(None) };
    let Document::Index(entries) = manifest::parse(&bytes).context("index.json")? else {
        return Err(Error::new(ErrorKind::InvalidImage, "index.json is no index"));
    };
    let chosen = choose(&entries, select, platform)?;
    let mut names: Vec<String> = Vec::new();
    for entry in entries.iter().filter(|entry| entry.blob.digest == chosen.blob.digest) {
        names.extend(entry.names.iter().cloned());
    }
    let mut blob = chosen.blob.clone();
    for _ in 0..DEPTH_MAX {
        let bytes = small(files, &blob)?;
        match manifest::parse(&bytes).with_context(|| blob.digest.to_string())? {
            Document::Manifest(manifest) => return Ok(Some(Chosen { manifest_bytes: bytes, manifest, names })),
            Document::Index(entries) => blob = manifest::choose(&entries, platform)?.blob.clone(),
        }
    }
    Err(Error::new(ErrorKind::InvalidImage, format!("{}: indexes nested too deeply", chosen.blob.digest)))
}

fn choose<'a>(entries: &'a [Entry], select: Option<&str>, platform: &Platform) -> Result<&'a Entry> {
    let mut candidates: Vec<&Entry> = entries.iter().collect();
    if let Some(select) = select {
        candidates.retain(|entry| is_selected(select, &entry.names, &entry.blob.digest));
        if candidates.is_empty() {
            let all: Vec<&str> = entries.iter().flat_map(|entry| &entry.names).map(String::as_str).collect();
            let why = format!("it has no image {select:?}, only: {}", all.join(", "));
            return Err(Error::new(ErrorKind::ImageNotFound, why));
        }
    }
    if candidates.is_empty() {
        return Err(Error::new(ErrorKind::InvalidImage, "index.json names no image"));
    }
    let chosen = manifest::choose(candidates.iter().copied(), platform)?;
    // Entries for other platforms are alternatives, others are other images.
    let rivals = candidates.iter().filter(|entry| {
        entry.blob.digest != chosen.blob.digest && (entry.platform == chosen.platform || entry.names != chosen.names)
    });
    let others: Vec<String> = rivals.map(|entry| name_of(entry)).collect();
    if others.is_empty() {
        return Ok(chosen);
    }
    let why = format!("it has several images, select one: {}, {}", name_of(chosen), others.join(", "));
    Err(Error::new(ErrorKind::InvalidArgument, why))
}

fn name_of(entry: &Entry) -> String {
    entry.names.first().cloned().unwrap_or_else(|| entry.blob.digest.to_string())
}

fn small(files: &dyn Files, blob: &Blob) -> Result<Vec<u8>> {
    if blob.size > MANIFEST_MAX {
        let why = format!("manifest {} has {} bytes, the limit is {MANIFEST_MAX}", blob.digest, blob.size);
        return Err(Error::new(ErrorKind::InvalidImage, why));
    }
    let bytes = files
        .read(&blob_path(blob), blob.size + 1)?
        .ok_or_else(|| Error::new(ErrorKind::InvalidImage, format!("manifest {} is missing", blob.digest)))?;
    blob.digest.check("manifest", &bytes)?;
    Ok(bytes)
}
