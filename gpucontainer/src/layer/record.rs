//! How an archive was written, so that it can be written again byte for byte.
//!
//! A tree does not say it: another order of the members, another way to write a long name, and the digest is another.
//! So while an archive is unpacked, what of it is not in the tree is kept beside the tree:
//!
//! ```text
//! <layer>/
//!   tree/               the layer, unpacked
//!   archive             the line `gpucontainer layer archive 1`, then this in zstd, all numbers of 64 bits, little-endian:
//!                         B <length> <bytes>       bytes of the archive, as they were
//!                         F <length> <path> <count> <offset> <length> …
//!                                                  pieces of the file at `path` in the tree
//!                         E                        the end
//!   replaced/<number>   if any: the file of the `F` of this number, counted from 0, where `path` does not lead to it
//!                       any more, because a later member of the archive took its place
//! ```
//!
//! In the bytes is what no file has: headers, padding, the mark at the end and whatever comes after it, the contents of
//! members that are marks. So are the contents of files that their owner may not read, or not reach, if that is an
//! ordinary user.

use super::archive::Segment;
use crate::error::{Error, Result};
use crate::sys::fs::{self, tree};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub(super) const ARCHIVE: &str = "archive";
pub(super) const REPLACED: &str = "replaced";
pub(super) const FIRST_LINE: &[u8] = b"gpucontainer layer archive 1\n";

pub(super) const BYTES: u8 = b'B';
pub(super) const FILE: u8 = b'F';
pub(super) const END: u8 = b'E';

/// The kernel opens no longer path at once. What lies deeper is kept as bytes.
pub(super) const PATH_LIMIT: usize = 4000;

/// Headers and the padding between them become one piece.
const PENDING: usize = 64 << 10;

/// Headers are so much alike that more work makes the record hardly smaller.
const LEVEL: i32 = 1;

/// The record of an archive that is being unpacked.
pub(super) struct Record {
    path: PathBuf,
    encoder: zstd::Encoder<'static, File>,
    pending: Vec<u8>,
    /// How many pieces of files there are so far.
    files: u64,
    /// Which of them stand for files that are in the tree, by inode.
    live: HashMap<u64, u64>,
    replaced_path: PathBuf,
    replaced: Option<OwnedFd>,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record").field("path", &self.path).field("files", &self.files).finish_non_exhaustive()
    }
}

impl Record {
    /// Starts the record of the layer whose directory is `layer`.
    pub(super) fn create(layer: &Path) -> Result<Self> {
        let path = layer.join(ARCHIVE);
        let mut file = fs::create_new(&path)?;
        let encoder = file.write_all(FIRST_LINE).and_then(|()| {
            let mut encoder = zstd::Encoder::new(file, LEVEL)?;
            encoder.include_checksum(true)?;
            Ok(encoder)
        });
        let encoder = encoder.map_err(|e| unwritten(&path, e))?;
        let replaced_path = layer.join(REPLACED);
        let (pending, live) = (Vec::with_capacity(PENDING), HashMap::new());
        Ok(Self { path, encoder, pending, files: 0, live, replaced_path, replaced: None })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.encoder.write_all(bytes).map_err(|e| unwritten(&self.path, e))
    }

    fn number(&mut self, number: u64) -> Result<()> {
        self.write(&number.to_le_bytes())
    }

    /// Notes bytes of the archive.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= PENDING { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut pending = std::mem::take(&mut self.pending);
        self.write(&[BYTES])?;
        self.number(pending.len() as u64)?;
        self.write(&pending)?;
        pending.clear();
        self.pending = pending;
        Ok(())
    }

    /// Notes that the archive has these pieces of the file at `path` of the tree next.
    pub(super) fn file(&mut self, path: &Path, inode: u64, pieces: &[Segment]) -> Result<()> {
        let pieces = pieces.iter().filter(|piece| piece.length > 0);
        let count = pieces.clone().count();
        if count == 0 {
            return Ok(());
        }
        self.flush()?;
        let path = path.as_os_str().as_bytes();
        self.write(&[FILE])?;
        self.number(path.len() as u64)?;
        self.write(path)?;
        self.number(count as u64)?;
        for piece in pieces {
            self.number(piece.offset)?;
            self.number(piece.length)?;
        }
        self.live.insert(inode, self.files);
        self.files += 1;
        Ok(())
    }

    /// Keeps the file `name`, which is about to lose its place in the tree, if the record counts on it.
    pub(super) fn keep(&mut self, directory: BorrowedFd<'_>, name: &OsStr, inode: u64) -> Result<()> {
        let Some(number) = self.live.remove(&inode) else { return Ok(()) };
        let replaced = match self.replaced.take() {
            Some(replaced) => replaced,
            None => {
                fs::create_dir(&self.replaced_path)?;
                fs::open_dir(&self.replaced_path)?
            }
        };
        tree::make_hard_link(directory, name, replaced.as_fd(), OsStr::new(&number.to_string()))?;
        self.replaced = Some(replaced);
        Ok(())
    }

    /// Keeps all files below a directory that is about to go, or that nobody may enter from now on.
    pub(super) fn keep_all(&mut self, directory: BorrowedFd<'_>) -> Result<()> {
        for (name, is_directory) in tree::entries(directory)? {
            if is_directory {
                self.keep_all(tree::open_directory(directory, &name)?.as_fd())?;
            } else if let Some(status) = tree::status(directory, &name)? {
                self.keep(directory, &name, status.inode)?;
            }
        }
        Ok(())
    }

    /// Ends the record. The caller makes it durable with the tree.
    pub(super) fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.write(&[END])?;
        self.encoder.finish().map(drop).map_err(|e| unwritten(&self.path, e))
    }
}

fn unwritten(path: &Path, error: std::io::Error) -> Error {
    Error::from_io(format!("write({path:?})"), error).with_path(path)
}
