//! Seams: where a layer only implies a directory, what the layers below have there decides.
//!
//! Layers are unpacked one by one, so a directory that an archive implies and does not list (`tmp/x` without `tmp/`)
//! is made without knowing what it will lie on. Unpacked onto the layers below, it would have stayed what it was there:
//! a directory with its mode, owner and times, or a link to one (`bin -> usr/bin`), through which everything below it
//! would have gone. A seam is a tree that is stacked right above the layer and says so:
//!
//! ```text
//! below           layer          seam
//! tmp/  (1777)    tmp/x          tmp/  (1777)
//! bin -> usr/bin  bin/tool       bin -> usr/bin,  usr/bin/tool: another name of the layer's file
//! ```

use super::Stack;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::fs::tree;
use crate::sys::root::{Entry, Root};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Makes the seam of the layer at `layer` in the empty directory `seam`: `implied` are the directories that its archive
/// did not list, relative to its root, and `below` is what is under it. `false`, and nothing in it, if none is needed.
pub(crate) fn make(layer: &Path, implied: &[PathBuf], below: &Stack, seam: &Path) -> Result<bool> {
    let wanted: BTreeSet<&Path> = implied.iter().map(PathBuf::as_path).collect();
    let mut work =
        Seam { layer: Root::open(layer)?, seam: Root::open(seam)?, below, implied: wanted, made: BTreeMap::new() };
    let mut moved: Vec<&Path> = Vec::new();
    // In the order of a set a directory comes before what is in it.
    for path in work.implied.clone() {
        if moved.iter().any(|above| path.starts_with(above)) {
            continue;
        }
        match below.look(&Path::new("/").join(path))? {
            Some((_, Entry::Directory)) => work.directory(path)?,
            Some((root, Entry::Link(target))) => {
                if let Some(place) = below.directory(path)? {
                    work.link(path, root, &target, &place)?;
                    moved.push(path);
                }
            }
            _ => {}
        }
    }
    if work.made.is_empty() {
        return Ok(false);
    }
    work.describe_all()?;
    Ok(true)
}

/// A directory of the seam.
#[derive(Debug)]
struct Made {
    /// Which one of the layer it stands for; there may be none.
    of_layer: PathBuf,
    /// Whether the layer says what it is like. If not, the layers below know better.
    listed: bool,
}

struct Seam<'a> {
    layer: Root,
    seam: Root,
    below: &'a Stack,
    implied: BTreeSet<&'a Path>,
    made: BTreeMap<PathBuf, Made>,
}

impl Seam<'_> {
    /// A directory of the seam, made with those above it if it is not there.
    fn directory(&mut self, path: &Path) -> Result<()> {
        let mut here = PathBuf::new();
        for part in path.components() {
            let Component::Normal(name) = part else { return Err(no_path(path)) };
            let above = self.open(&self.seam, &here)?;
            here.push(name);
            if !self.made.contains_key(&here) {
                let made = Made { of_layer: here.clone(), listed: self.lists(&here)? };
                self.made.insert(here.clone(), made);
                tree::make_directory(above.as_fd(), name)?;
            }
        }
        Ok(())
    }

    /// What the layer has at `path` goes to `place`, to which the link at `path` in `below` leads with the words
    /// `target`.
    fn link(&mut self, path: &Path, below: &Root, target: &Path, place: &Path) -> Result<()> {
        let (above, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().ok_or_else(|| no_path(path))?);
        self.directory(above)?;
        let into = self.open(&self.seam, above)?;
        while !tree::make_link(target.as_os_str(), into.as_fd(), name)? {
            self.remove(into.as_fd(), name, path)?;
        }
        let like = tree::look_inside(below, if above.as_os_str().is_empty() { Path::new(".") } else { above })?;
        tree::copy_link_description(like.as_fd(), into.as_fd(), name)?;
        self.directory(place)?;
        self.fill(path, place)
    }

    /// Puts what the layer has in the directory `from` into the seam's directory `to`.
    fn fill(&mut self, from: &Path, to: &Path) -> Result<()> {
        let source = self.open(&self.layer, from)?;
        for (name, is_directory) in tree::entries(source.as_fd())? {
            let (from, to) = (from.join(&name), to.join(&name));
            if is_directory {
                self.directory(&to)?;
                let made = self.open(&self.seam, &to)?;
                let inner = tree::open_directory(source.as_fd(), &name)?;
                if self.layer.is_opaque(&from) {
                    opaque(inner.as_fd(), made.as_fd())?;
                }
                let listed = self.lists(&from)?;
                if let Some(made) = self.made.get_mut(&to).filter(|made| listed || !made.listed) {
                    *made = Made { of_layer: from.clone(), listed };
                }
                self.fill(&from, &to)?;
            } else {
                let above = self.open(&self.seam, to.parent().unwrap_or(Path::new("")))?;
                // Two links may lead here; as with archives, what comes later counts.
                while !tree::make_hard_link(source.as_fd(), &name, above.as_fd(), &name)? {
                    self.remove(above.as_fd(), &name, &to)?;
                }
            }
        }
        Ok(())
    }

    /// Makes room for something else at `path`.
    fn remove(&mut self, above: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<()> {
        self.made.retain(|made, _| !made.starts_with(path));
        tree::remove(above, name)
    }

    /// Gives the directories, innermost first, what working inside of them has changed, and what is theirs.
    fn describe_all(&self) -> Result<()> {
        for (path, made) in self.made.iter().rev() {
            let of_layer = || self.is_directory(&made.of_layer).map(|is| is.then_some((&self.layer, &*made.of_layer)));
            let of_below = || match self.below.look(&Path::new("/").join(path))? {
                Some((root, Entry::Directory)) => Ok::<_, Error>(Some((root, path.as_path()))),
                _ => Ok(None),
            };
            let like =
                if made.listed { of_layer()? } else { of_below()?.map_or_else(of_layer, |found| Ok(Some(found)))? };
            if let Some((root, like)) = like {
                let like = tree::look_inside(root, like)?;
                tree::copy_description(like.as_fd(), self.open(&self.seam, path)?.as_fd())?;
            }
        }
        // If this is the topmost tree, its root is the one that is seen.
        let root = tree::look_inside(&self.layer, Path::new("."))?;
        tree::copy_description(root.as_fd(), self.seam.as_fd())
    }

    /// Whether the layer has the directory, and its archive said what it is like.
    fn lists(&self, path: &Path) -> Result<bool> {
        Ok(!self.implied.contains(path) && self.is_directory(path)?)
    }

    fn is_directory(&self, path: &Path) -> Result<bool> {
        Ok(self.layer.look(&Path::new("/").join(path))? == Entry::Directory)
    }

    fn open(&self, root: &Root, path: &Path) -> Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        tree::open_inside(root, path)
    }
}

/// Copies what makes a directory hide those of its name in the layers below.
fn opaque(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    for name in ["trusted.overlay.opaque", "user.overlay.opaque"].map(OsStr::new) {
        if let Some(value) = tree::attribute(from, name)? {
            tree::set_attribute(to, name, &value)?;
        }
    }
    Ok(())
}

fn no_path(path: &Path) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{path:?} is not the path of a directory of a layer"))
}
