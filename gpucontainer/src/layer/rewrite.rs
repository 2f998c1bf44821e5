//! An archive written again, from a layer's tree and the record of how the archive was written.

use super::archive::SEGMENT_LIMIT;
use super::record::{ARCHIVE, BYTES, END, FILE, FIRST_LINE, PATH_LIMIT, REPLACED};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;
use crate::sys::errno;
use crate::sys::fs::{self, Slice};
use crate::sys::root::Root;
use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Store {
    /// The uncompressed archive of a stored layer, byte for byte as it was. The caller keeps the layer from being
    /// collected.
    ///
    /// The bytes are not checked: who reads them compares their digest with `diff_id`, see [`LayerArchive::check`].
    ///
    /// # Errors
    /// `Unsupported` if the layer was made by a version that kept no record of the archive; `Corrupt`, here and in
    /// reading, if the record or the tree is not as it was written.
    pub(crate) fn layer_archive(&self, diff_id: &Digest) -> Result<LayerArchive> {
        let tree = self.layer_tree(diff_id);
        let layer = tree.parent().unwrap_or(&tree);
        LayerArchive::open(layer).map_err(|e| e.context(format!("archive of layer {diff_id}")))
    }
}

/// The bytes of an archive. Errors of the reader are the library's own, passed through `io`.
pub(crate) struct LayerArchive {
    layer: PathBuf,
    tree: Root,
    /// The layer's directory, where what is beside its tree is looked up.
    kept: Root,
    /// The numbers of the files that are no longer where they were.
    replaced: BTreeSet<u64>,
    record: zstd::Decoder<'static, BufReader<fs::File>>,
    /// The number of the next file.
    number: u64,
    now: Now,
}

/// Where the next bytes come from.
enum Now {
    Between,
    Bytes { left: u64 },
    File { path: PathBuf, file: Arc<fs::File>, pieces: VecDeque<(u64, u64)>, current: Slice },
    End,
}

impl std::fmt::Debug for LayerArchive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerArchive").field("layer", &self.layer).finish_non_exhaustive()
    }
}

impl LayerArchive {
    /// Opens what is kept of the archive in the directory of a layer.
    pub(super) fn open(layer: &Path) -> Result<Self> {
        let path = layer.join(ARCHIVE);
        let mut file = match fs::open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound && layer.is_dir() => {
                let why = "the layer was stored by a version of this library that did not keep how its archive was \
                           written, so it cannot be written again; remove the image, collect garbage and pull the \
                           image again, or pull it into another store";
                return Err(Error::new(ErrorKind::Unsupported, why).with_path(layer));
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(Error::new(ErrorKind::Corrupt, "a layer of a stored image is missing").with_path(layer));
            }
            opened => opened?,
        };
        let mut first = [0; FIRST_LINE.len()];
        match file.read_exact(&mut first) {
            Ok(()) if first == FIRST_LINE => {}
            Ok(()) if first.starts_with(b"gpucontainer layer archive ") => {
                let why = format!("{path:?} is of another version of this library");
                return Err(Error::new(ErrorKind::Unsupported, why).with_path(path));
            }
            Ok(()) => return Err(damaged(&path, "it does not begin as it was written")),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(damaged(&path, "it is too short")),
            Err(e) => return Err(Error::from_io(format!("read({path:?})"), e).with_path(path)),
        }
        let record = zstd::Decoder::new(file).map_err(|e| Error::from_io(format!("read({path:?})"), e))?;
        let mut replaced = BTreeSet::new();
        if layer.join(REPLACED).is_dir() {
            for path in fs::read_dir(&layer.join(REPLACED))? {
                let number = path.file_name().and_then(OsStr::to_str).and_then(|name| name.parse().ok());
                replaced.insert(number.ok_or_else(|| damaged(&path, "it is no number"))?);
            }
        }
        // An image may say that its owner does not read it.
        let (tree, kept) = (Root::enter(&layer.join("tree"))?, Root::enter(layer)?);
        Ok(Self { layer: layer.to_owned(), tree, kept, replaced, record, number: 0, now: Now::Between })
    }

    /// Compares the digest of all bytes read with what it must be.
    ///
    /// # Errors
    /// `Corrupt`, naming the layer, if they are not the archive that the layer was made from.
    pub(crate) fn check(diff_id: &Digest, found: &Digest) -> Result<()> {
        if found == diff_id {
            return Ok(());
        }
        let why = format!(
            "layer {diff_id} of the store was changed after it was stored: its archive, written again, is {found}"
        );
        Err(Error::new(ErrorKind::Corrupt, why))
    }

    fn damaged(&self, why: impl std::fmt::Display) -> Error {
        damaged(&self.layer.join(ARCHIVE), why)
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.record.read_exact(buffer).map_err(|e| self.unread(e))
    }

    fn unread(&self, error: io::Error) -> Error {
        let path = self.layer.join(ARCHIVE);
        match error.raw_os_error() {
            Some(_) => Error::from_io(format!("read({path:?})"), error).with_path(path),
            None => damaged(&path, error),
        }
    }

    fn number(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// What comes next in the record.
    fn step(&mut self) -> Result<Now> {
        let mut tag = [0];
        self.exact(&mut tag)?;
        match tag[0] {
            BYTES => Ok(Now::Bytes { left: self.number()? }),
            FILE => self.file(),
            END => Ok(Now::End),
            other => Err(self.damaged(format!("it has a piece of kind {other}"))),
        }
    }

    fn file(&mut self) -> Result<Now> {
        let length = usize::try_from(self.number()?).ok().filter(|length| *length <= PATH_LIMIT);
        let mut path = vec![0; length.ok_or_else(|| self.damaged("a path in it is too long"))?];
        self.exact(&mut path)?;
        let path = PathBuf::from(OsStr::from_bytes(&path));
        let mut pieces = VecDeque::new();
        let count = self.number()?;
        if count > SEGMENT_LIMIT as u64 {
            return Err(self.damaged("a file in it has too many pieces"));
        }
        for _ in 0..count {
            pieces.push_back((self.number()?, self.number()?));
        }
        let (offset, length) = pieces.pop_front().ok_or_else(|| self.damaged("a file in it has no pieces"))?;
        let (path, file) = if self.replaced.contains(&self.number) {
            let path = Path::new(REPLACED).join(self.number.to_string());
            (self.layer.join(&path), self.kept.open_file(&path))
        } else {
            (self.layer.join("tree").join(&path), self.tree.open_file(&path))
        };
        self.number += 1;
        let file = file.map_err(|e| match e.errno() {
            // What was a file when it was stored is another thing, or gone.
            Some(errno::ENOENT | errno::ENOTDIR | errno::EINVAL | errno::ELOOP) => e.with_kind(ErrorKind::Corrupt),
            _ => e,
        })?;
        let file = Arc::new(file);
        let current = Slice::new(file.clone(), offset, length);
        Ok(Now::File { path, file, pieces, current })
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match &mut self.now {
                Now::Between => {}
                Now::End => return Ok(0),
                Now::Bytes { left: 0 } => {}
                Now::Bytes { left } => {
                    let wanted = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    return match self.record.read(&mut buffer[..wanted]) {
                        Ok(0) => Err(self.damaged("it ends too early")),
                        Ok(count) => {
                            *left -= count as u64;
                            Ok(count)
                        }
                        Err(e) => Err(self.unread(e)),
                    };
                }
                Now::File { pieces, current, file, .. } if current.len() == 0 => {
                    if let Some((offset, length)) = pieces.pop_front() {
                        *current = Slice::new(file.clone(), offset, length);
                        continue;
                    }
                }
                Now::File { current, path, .. } => match current.read(buffer) {
                    Ok(0) => return Err(damaged(path, "the file is shorter than it was")),
                    Ok(count) => return Ok(count),
                    Err(e) => return Err(Error::from_io(format!("read({path:?})"), e).with_path(path.clone())),
                },
            }
            self.now = self.step()?;
        }
    }
}

impl Read for LayerArchive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.read_some(buffer).map_err(Into::into)
    }
}

fn damaged(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{path:?} is damaged: {why}")).with_path(path)
}
