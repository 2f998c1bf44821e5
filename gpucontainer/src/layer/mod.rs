//! One layer: its archive, and the tree that it becomes.
//!
//! A layer is unpacked once, into a directory that overlayfs can use as a lower layer as it is:
//!
//! ```text
//! <directory>/          mode, owner and times of the archive's `./` entry
//!   etc/hostname        files, links, nodes as in the archive
//!   etc/motd            `.wh.motd`: a character device 0:0, hides the name in the layers below
//!   opt/                `opt/.wh..wh..opq`: attribute `user.overlay.opaque` (and, as root, `trusted.overlay.opaque`)
//!                       is `y`, so the tree serves mounts with and without `userxattr`
//! ```
//!
//! Root keeps owners, device nodes and capabilities; for an ordinary user everything belongs to that user.

mod archive;
mod input;
mod pax;
mod record;
// Pushing alone writes archives again.
#[cfg(any(test, feature = "registry"))]
mod rewrite;
pub(crate) mod seam;
mod stack;
mod unpack;

#[cfg(test)]
pub(crate) mod tests;

#[cfg(any(test, feature = "registry"))]
pub(crate) use rewrite::LayerArchive;
pub(crate) use stack::Stack;

use crate::error::Result;
use crate::progress::Cancel;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What a layer is on disk. Layer images that are mounted will join directories here.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub(crate) enum LayerTree {
    /// A directory as overlayfs wants it.
    Directory(PathBuf),
}

impl LayerTree {
    /// The directory that overlayfs is given.
    pub(crate) fn directory(&self) -> &Path {
        match self {
            Self::Directory(path) => path,
        }
    }
}

/// How an archive is unpacked.
#[derive(Clone, Debug)]
pub(crate) struct UnpackOptions {
    keep_owners: bool,
    max_bytes: u64,
    cancel: Cancel,
    record: Option<PathBuf>,
}

impl UnpackOptions {
    /// What this process has the rights for: root (with its capabilities, outside of a user namespace) keeps
    /// owners, makes device nodes and sets capabilities; for anybody else everything belongs to that user,
    /// capabilities and the nodes below `dev` are left out, and a device node elsewhere is an error.
    pub(crate) fn for_this_user() -> Self {
        Self {
            keep_owners: crate::sys::fs::tree::privileged(),
            max_bytes: u64::MAX,
            cancel: Cancel::new(),
            record: None,
        }
    }

    /// Refuses an archive of more than `bytes` bytes (headers and padding count, holes do not). No limit by default.
    pub(crate) fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Lets the caller end the work early.
    pub(crate) fn cancel(mut self, cancel: Cancel) -> Self {
        self.cancel = cancel;
        self
    }

    /// Keeps how the archive was written in files of the directory `layer`, so that it can be written again: see
    /// [`Store::layer_archive`](crate::store::Store). `layer` exists, and the tree is made in its `tree`.
    pub(crate) fn record(mut self, layer: &Path) -> Self {
        self.record = Some(layer.to_owned());
        self
    }

    /// Whether owners are kept. Trees unpacked with and without are different and cannot stand for each other.
    #[cfg(test)]
    pub(crate) fn keeps_owners(&self) -> bool {
        self.keep_owners
    }
}

/// What an archive became.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub(crate) struct Unpacked {
    /// The tree.
    pub(crate) tree: LayerTree,
    /// Bytes of the archive, all that the reader gave.
    pub(crate) archive_bytes: u64,
    /// Members of the archive.
    pub(crate) entries: u64,
    /// Directories that no member describes, relative to the tree: only their being on the way to others made them.
    pub(crate) implied: Vec<PathBuf>,
}

/// Unpacks an uncompressed tar `archive` into `directory`, which exists and is empty, and reads the archive to its end.
///
/// Nothing outside of `directory` is read or written, whatever the archive says. After an error the directory holds
/// a part of the tree; remove it with [`crate::sys::fs::remove_tree`], which copes with any. Nothing is synced: the
/// caller makes the tree durable.
///
/// # Errors
/// [`ErrorKind::InvalidLayer`](crate::error::ErrorKind::InvalidLayer), naming the entry, if the archive is malformed,
/// truncated, too large or hostile; `NoSpace`; `Cancelled`; errors of the reader as they are.
pub(crate) fn unpack(archive: &mut dyn Read, directory: &Path, options: &UnpackOptions) -> Result<Unpacked> {
    let record = options.record.as_deref().map(record::Record::create).transpose()?;
    let input = input::Input::new(archive, options.max_bytes, options.cancel.clone(), record);
    let found = unpack::run(archive::Archive::new(input), directory, options)?;
    let unpack::Found { archive_bytes, entries, implied } = found;
    Ok(Unpacked { tree: LayerTree::Directory(directory.to_owned()), archive_bytes, entries, implied })
}
