//! Images in tar archives: OCI layouts, and what `docker save` has written over the years.

use super::super::decompress::{BUFFER, Decompress};
use super::super::ingest::Source;
use super::super::manifest::{Blob, CONFIG_MAX, MANIFEST_MAX, Manifest, OCI_CONFIG, OCI_LAYER};
use super::super::options::Transfer;
use super::layout::{self, Files};
use super::{Found, is_selected, whole_reference};
use crate::digest::Digest;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::store::Work;
use crate::sys::fs::{self, File, Slice};
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Most entries of an archive: an image has some hundreds, and each costs memory.
const ENTRIES_MAX: usize = 100_000;

/// An archive whose entries can be read in any order.
struct Archive {
    file: Arc<File>,
    entries: HashMap<PathBuf, Entry>,
}

enum Entry {
    File {
        offset: u64,
        size: u64,
    },
    /// Old `docker save` writes a layer that two images share once, and links to it.
    Link(PathBuf),
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidImage, why)
}

/// Finds the image in the archive at `path`.
pub(super) fn find(path: &Path, work: &Work, select: Option<&str>, transfer: &Transfer<'_>) -> Result<Found> {
    let archive = Archive::open(path, work, transfer)?;
    if let Some(chosen) = layout::find_in(&archive, select, &transfer.platform)? {
        return Ok(chosen.with(Box::new(archive)));
    }
    let bytes = archive.read(Path::new("manifest.json"), MANIFEST_MAX)?;
    let bytes = bytes.ok_or_else(|| invalid("no image archive: it has neither index.json nor manifest.json"))?;
    saved(archive, &bytes, select)
}

impl Archive {
    fn open(path: &Path, work: &Work, transfer: &Transfer<'_>) -> Result<Self> {
        let read = |e| Error::from_io(format!("read({path:?})"), e).with_path(path);
        let mut start = [0; 512];
        let mut file = fs::open(path)?;
        let count = file.read(&mut start).map_err(read)?;
        file.seek(SeekFrom::Start(0)).map_err(read)?;
        // A plain archive has the magic in its first header; whatever else it is, decompressing will tell.
        if count < 512 || &start[257..262] != b"ustar" {
            file = decompressed(file, path, work, transfer)?;
        }
        let entries = index(&file).with_context(|| format!("archive {path:?}"))?;
        Ok(Self { file: Arc::new(file), entries })
    }

    /// The bytes of a file, links followed.
    fn slice(&self, path: &Path) -> Option<Slice> {
        let mut path = path.to_owned();
        // More links than this are a loop.
        for _ in 0..8 {
            match self.entries.get(&path)? {
                Entry::File { offset, size } => return Some(Slice::new(self.file.clone(), *offset, *size)),
                Entry::Link(target) => path.clone_from(target),
            }
        }
        None
    }
}

/// Decompresses into the work directory: entries of a compressed archive cannot be reached out of order.
fn decompressed(file: File, path: &Path, work: &Work, transfer: &Transfer<'_>) -> Result<File> {
    let read = |e| Error::from_io(format!("read({path:?})"), e).with_path(path);
    let mut plain = Decompress::new(file).map_err(read)?;
    let temporary = work.fresh_path();
    let mut out = fs::create_new(&temporary)?;
    // Only the descriptor is needed from here on.
    fs::remove_file(&temporary)?;
    let mut buffer = vec![0; BUFFER];
    let mut total = 0_u64;
    loop {
        transfer.cancel.check()?;
        let count = match plain.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) => {
                let error = read(e);
                let damaged = error.kind() == ErrorKind::InvalidLayer;
                return Err(if damaged { error.with_kind(ErrorKind::InvalidImage) } else { error });
            }
        };
        total += u64::try_from(count).unwrap_or(u64::MAX);
        if total > transfer.max_layer_bytes {
            return Err(invalid("it decompresses to more than max_layer_bytes"));
        }
        let wrote = out.write_all(&buffer[..count]);
        wrote.map_err(|e| Error::from_io(format!("write({temporary:?})"), e).with_path(&temporary))?;
    }
    Ok(out)
}

fn index(file: &File) -> Result<HashMap<PathBuf, Entry>> {
    let malformed = |e: std::io::Error| invalid(e.to_string()).with_cause(e);
    let mut entries = HashMap::new();
    let mut tar = tar::Archive::new(file);
    (&*file).seek(SeekFrom::Start(0)).map_err(malformed)?;
    for entry in tar.entries_with_seek().map_err(malformed)? {
        let entry = entry.map_err(malformed)?;
        if entries.len() == ENTRIES_MAX {
            return Err(invalid(format!("more than {ENTRIES_MAX} entries")));
        }
        let path = normal(&entry.path().map_err(malformed)?);
        let kind = entry.header().entry_type();
        if kind.is_file() {
            entries.insert(path, Entry::File { offset: entry.raw_file_position(), size: entry.size() });
        } else if kind.is_symlink() || kind.is_hard_link() {
            let target = entry.link_name().map_err(malformed)?.unwrap_or_default().into_owned();
            let beside = path.parent().unwrap_or(Path::new(""));
            let target = if kind.is_symlink() { normal(&beside.join(target)) } else { normal(&target) };
            entries.insert(path, Entry::Link(target));
        }
    }
    Ok(entries)
}

/// The path without `.`, `..` and a leading slash: just a key, it is used on nothing else.
fn normal(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => result.push(name),
            Component::ParentDir => {
                result.pop();
            }
            _ => {}
        }
    }
    result
}

impl Source for Archive {
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send + '_>> {
        let missing = || invalid(format!("{} is missing from the archive", blob.digest));
        Ok(Box::new(self.slice(&layout::blob_path(blob)).ok_or_else(missing)?))
    }
}

impl Files for Archive {
    fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(slice) = self.slice(path) else { return Ok(None) };
        if slice.len() > limit {
            return Err(invalid(format!("{path:?} has {} bytes, the limit is {limit}", slice.len())));
        }
        let mut bytes = Vec::new();
        let mut slice = slice;
        slice.read_to_end(&mut bytes).map_err(|e| Error::from_io(format!("read({path:?})"), e))?;
        Ok(Some(bytes))
    }
}

/// What `docker save` wrote before it wrote OCI layouts: layers by path, known by the digests of their
/// uncompressed forms in the configuration alone.
struct Saved {
    archive: Archive,
    config: Blob,
    config_path: PathBuf,
    layers: HashMap<Digest, PathBuf>,
}

impl Source for Saved {
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send + '_>> {
        let path = if *blob == self.config { Some(&self.config_path) } else { self.layers.get(&blob.digest) };
        let missing = || invalid(format!("{} is missing from the archive", blob.digest));
        Ok(Box::new(path.and_then(|path| self.archive.slice(path)).ok_or_else(missing)?))
    }

    fn has_blob_digests(&self) -> bool {
        false
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl SavedImage {
    fn names(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
}

fn saved(archive: Archive, bytes: &[u8], select: Option<&str>) -> Result<Found> {
    let mut images: Vec<SavedImage> =
        serde_json::from_slice(bytes).map_err(|e| invalid(format!("manifest.json: {e}")).with_cause(e))?;
    let all: Vec<String> = images.iter().flat_map(|image| image.names().iter().cloned()).collect();
    if let Some(select) = select {
        // Old archives name the configuration by its digest.
        images.retain(|image| {
            let stem = normal(Path::new(&image.config)).file_stem().map(|s| s.to_string_lossy().into_owned());
            let digest = stem.and_then(|hex| Digest::from_hex(&hex)).unwrap_or_else(|| Digest::of(b""));
            is_selected(select, image.names(), &digest)
        });
        if images.is_empty() {
            let why = format!("it has no image {select:?}, only: {}", all.join(", "));
            return Err(Error::new(ErrorKind::ImageNotFound, why));
        }
    }
    let image = match (images.pop(), images.is_empty()) {
        (Some(image), true) => image,
        (Some(_), false) => {
            let why = format!("it has several images, select one: {}", all.join(", "));
            return Err(Error::new(ErrorKind::InvalidArgument, why));
        }
        (None, _) => return Err(invalid("manifest.json names no image")),
    };
    let config_path = normal(Path::new(&image.config));
    let config = archive
        .read(&config_path, CONFIG_MAX)?
        .ok_or_else(|| invalid(format!("configuration {config_path:?} is missing from the archive")))?;
    let parsed = super::super::config::parse(&config)?;
    let paths = image.layers.as_deref().unwrap_or_default();
    if paths.len() != parsed.diff_ids.len() {
        let (have, want) = (paths.len(), parsed.diff_ids.len());
        return Err(invalid(format!("manifest.json has {have} layers, the configuration {want}")));
    }
    let mut layers = HashMap::new();
    let mut blobs = Vec::new();
    for (path, diff_id) in paths.iter().zip(&parsed.diff_ids) {
        let path = normal(Path::new(path));
        let slice =
            archive.slice(&path).ok_or_else(|| invalid(format!("layer {path:?} is missing from the archive")))?;
        blobs.push(Blob { media_type: OCI_LAYER.to_owned(), digest: *diff_id, size: slice.len() });
        layers.insert(*diff_id, path);
    }
    let size = u64::try_from(config.len()).unwrap_or(u64::MAX);
    let config = Blob { media_type: OCI_CONFIG.to_owned(), digest: Digest::of(&config), size };
    let manifest = Manifest { config: config.clone(), layers: blobs };
    Ok(Found {
        manifest_bytes: manifest.to_json(),
        names: image.names().iter().filter_map(|name| whole_reference(name)).collect(),
        source: Box::new(Saved { archive, config, config_path, layers }),
        manifest,
    })
}
