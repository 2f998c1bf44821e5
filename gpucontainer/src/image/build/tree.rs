//! The files of the new layer, by their paths in the container.

use super::base::{Attributes, Base, Shown};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::fs;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// More links than this on the way to one file are a loop, as for the kernel.
const LINKS_MAX: u32 = 40;

/// What the builder was told to do.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Copy { from: PathBuf, to: PathBuf, follow: bool },
    File { path: PathBuf, bytes: Arc<[u8]>, mode: u32 },
    Directory { path: PathBuf, mode: u32 },
    Link { target: PathBuf, path: PathBuf },
}

/// One entry of the new layer.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Directory(Attributes),
    /// Bytes given by the caller.
    Bytes {
        bytes: Arc<[u8]>,
        mode: u32,
    },
    /// A file of the host, and the size it had when it was found.
    Host {
        path: PathBuf,
        size: u64,
        mode: u32,
    },
    Link(PathBuf),
}

/// The entries of the new layer, sorted; directories come before what is in them.
#[derive(Debug, Default)]
pub(super) struct Tree(BTreeMap<PathBuf, Node>);

struct Maker<'a> {
    nodes: BTreeMap<PathBuf, Node>,
    base: &'a Base,
}

fn bad(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("{path:?}: {why}")).with_path(path)
}

impl Tree {
    /// Makes the steps, the later over the earlier. Nothing is read yet but names and sizes.
    pub(super) fn make(steps: &[Step], base: &Base) -> Result<Self> {
        let mut maker = Maker { nodes: BTreeMap::new(), base };
        for step in steps {
            match step {
                Step::Copy { from, to, follow } => maker.copy(from, to, *follow)?,
                Step::File { path, bytes, mode } => {
                    let place = maker.place(path, false)?;
                    maker.put(place, Node::Bytes { bytes: bytes.clone(), mode: check_mode(path, *mode)? })?;
                }
                Step::Directory { path, mode } => {
                    let place = maker.place(path, true)?;
                    maker.put(place, directory(check_mode(path, *mode)?))?;
                }
                Step::Link { target, path } => {
                    if target.as_os_str().is_empty() {
                        return Err(bad(path, "the target of the link is empty"));
                    }
                    let place = maker.place(path, false)?;
                    maker.put(place, Node::Link(target.clone()))?;
                }
            }
        }
        Ok(Self(maker.nodes))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entries with their absolute paths.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Path, &Node)> {
        self.0.iter().map(|(path, node)| (path.as_path(), node))
    }
}

fn directory(mode: u32) -> Node {
    Node::Directory(Attributes { mode, user: 0, group: 0 })
}

fn check_mode(path: &Path, mode: u32) -> Result<u32> {
    if mode > 0o7777 { Err(bad(path, format!("mode {mode:#o} is not permission bits"))) } else { Ok(mode) }
}

impl Maker<'_> {
    /// Where `path` really is, links on the way resolved; the last component too if `follow`.
    fn place(&self, path: &Path, follow: bool) -> Result<PathBuf> {
        if !path.is_absolute() {
            return Err(bad(path, "a path in the container must be absolute"));
        }
        if path.components().any(|component| component == Component::ParentDir) {
            return Err(bad(path, "a path in the container must not have `..` in it"));
        }
        let mut pending: Vec<PathBuf> = names(path).rev().map(PathBuf::from).collect();
        let mut place = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == Path::new("..") {
                place.pop();
                continue;
            }
            let next = place.join(&name);
            match self.look(&next)? {
                Some(Shown::Link(target)) if follow || !pending.is_empty() => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(bad(path, "too many links on the way"));
                    }
                    if target.is_absolute() {
                        place = PathBuf::from("/");
                    }
                    pending.extend(names(&target).rev().map(PathBuf::from));
                }
                Some(Shown::Other) if !pending.is_empty() => {
                    return Err(bad(path, format!("{next:?} is not a directory")));
                }
                _ => place = next,
            }
        }
        Ok(place)
    }

    /// What is at a path that goes through no link.
    fn look(&self, path: &Path) -> Result<Option<Shown>> {
        match self.nodes.get(path) {
            Some(Node::Directory(attributes)) => Ok(Some(Shown::Directory(*attributes))),
            Some(Node::Link(target)) => Ok(Some(Shown::Link(target.clone()))),
            Some(Node::Bytes { .. } | Node::Host { .. }) => Ok(Some(Shown::Other)),
            None => self.base.lookup(path),
        }
    }

    /// Puts a node at a resolved place, and the directories above it where they are not there yet.
    fn put(&mut self, place: PathBuf, node: Node) -> Result<()> {
        let is_directory = matches!(node, Node::Directory(_));
        if place == Path::new("/") && !is_directory {
            return Err(bad(&place, "only a directory can be there"));
        }
        let above: Vec<PathBuf> = place.ancestors().skip(1).map(Path::to_owned).collect();
        for directory_above in above.into_iter().rev() {
            if !matches!(self.nodes.get(&directory_above), Some(Node::Directory(_))) {
                // A directory of the base that appears in the new layer must look as it did.
                let attributes = match self.base.lookup(&directory_above)? {
                    Some(Shown::Directory(attributes)) => attributes,
                    _ => Attributes { mode: 0o755, user: 0, group: 0 },
                };
                self.nodes.insert(directory_above, Node::Directory(attributes));
            }
        }
        if !is_directory && matches!(self.look(&place)?, Some(Shown::Directory(_))) {
            return Err(bad(&place, "there is a directory already"));
        }
        self.nodes.insert(place, node);
        Ok(())
    }

    fn copy(&mut self, from: &Path, to: &Path, follow: bool) -> Result<()> {
        let metadata = fs::metadata(from)?;
        if metadata.is_dir() {
            let place = self.place(to, true)?;
            return self.copy_directory(from, &metadata, place, follow, &mut Vec::new());
        }
        let to = match from.file_name() {
            Some(name) if to.as_os_str().as_encoded_bytes().ends_with(b"/") => to.join(name),
            _ => to.to_owned(),
        };
        let place = self.place(&to, false)?;
        self.copy_entry(from, &metadata, place)
    }

    fn copy_directory(
        &mut self,
        from: &Path,
        metadata: &fs::Metadata,
        place: PathBuf,
        follow: bool,
        inside: &mut Vec<(u64, u64)>,
    ) -> Result<()> {
        let own = (metadata.dev(), metadata.ino());
        if inside.contains(&own) {
            return Err(bad(from, "a link leads back to a directory that it is in"));
        }
        inside.push(own);
        // A directory that the base has keeps its look unless this is a new one.
        if !matches!(self.look(&place)?, Some(Shown::Directory(_))) || place == Path::new("/") {
            self.put(place.clone(), directory(metadata.permissions().mode() & 0o7777))?;
        }
        for path in fs::read_dir(from)? {
            let Some(name) = path.file_name() else { continue };
            let below = place.join(name);
            let metadata = if follow { fs::metadata(&path)? } else { fs::symlink_metadata(&path)? };
            if metadata.is_dir() {
                // A directory goes through a link of the base that leads to one: `/lib` to `/usr/lib`.
                let below = self.place(&below, true)?;
                self.copy_directory(&path, &metadata, below, follow, inside)?;
            } else {
                self.copy_entry(&path, &metadata, below)?;
            }
        }
        inside.pop();
        Ok(())
    }

    fn copy_entry(&mut self, from: &Path, metadata: &fs::Metadata, place: PathBuf) -> Result<()> {
        let node = if metadata.is_file() {
            let mode = metadata.permissions().mode() & 0o7777;
            Node::Host { path: from.to_owned(), size: metadata.len(), mode }
        } else if metadata.is_symlink() {
            Node::Link(fs::read_link(from)?)
        } else {
            return Err(bad(from, "is neither a file, a directory nor a link"));
        };
        self.put(place, node)
    }
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = &OsStr> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        _ => None,
    })
}
