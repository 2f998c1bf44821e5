//! Layers seen as one before they are mounted, as overlayfs would show them.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::fs::File;
use crate::sys::root::{Description, Entry, Root};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

/// As many links as the kernel follows.
const LINKS: usize = 40;

/// More than the directories that a start asks for, and little memory.
const MOST_SEEN: usize = 4096;

/// Layers, the top one first; a plain directory is a tree of one.
///
/// A look is made once: the layers of a store do not change, and what is in a directory of the caller's is asked for
/// within one start, for which it is as it was at the first look.
#[derive(Debug)]
pub(crate) struct Stack {
    layers: Vec<Root>,
    seen: RefCell<Seen>,
    /// Whether something could not be looked at.
    faulty: Cell<bool>,
}

/// What was found at paths that are absolute and go through no link. Files are not among it: many are asked for, each
/// once, while the same few directories lead to all of them.
#[derive(Debug, Default)]
struct Seen {
    entries: HashMap<PathBuf, Option<(usize, Entry)>>,
    /// Whether a directory of a layer is opaque.
    opaque: HashMap<(usize, PathBuf), bool>,
}

impl Stack {
    /// Opens the directories of the layers, the top one first.
    pub(crate) fn open(layers: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<Self> {
        let layers = layers.into_iter().map(|path| Root::open(path.as_ref())).collect::<Result<_>>()?;
        Ok(Self { layers, seen: RefCell::default(), faulty: Cell::new(false) })
    }

    /// Notes that something of it could not be looked at, which says nothing of what is there.
    pub(crate) fn note_fault(&self) {
        self.faulty.set(true);
    }

    /// Whether that was noted.
    pub(crate) fn is_faulty(&self) -> bool {
        self.faulty.get()
    }

    /// How many layers there are.
    pub(crate) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The text of a small file (at most 4 MiB), or `None` if it is not there.
    pub(crate) fn read_to_string(&self, path: &str) -> Result<Option<String>> {
        match self.find(Path::new(path))? {
            Some((layer, path, Entry::File)) => {
                let bytes = layer.read(&path, 4 << 20)?;
                Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
            }
            _ => Ok(None),
        }
    }

    /// Whether there is something at `path`.
    pub(crate) fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        Ok(self.find(path.as_ref())?.is_some())
    }

    /// The directory to which `path` leads, relative to the root and without links; `None` if there is none.
    pub(crate) fn directory(&self, path: &Path) -> Result<Option<PathBuf>> {
        match self.find(path) {
            Ok(Some((_, path, Entry::Directory))) => Ok(path.strip_prefix("/").map(Path::to_owned).ok()),
            Ok(_) => Ok(None),
            // Links in a circle.
            Err(e) if e.kind() == ErrorKind::InvalidImage => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What the directory at `path`, which goes through no link, is like; `None` if there is none.
    pub(crate) fn describe(&self, path: &Path) -> Result<Option<Description>> {
        match self.look(path)? {
            Some((layer, Entry::Directory)) => layer.describe(path).map(Some),
            _ => Ok(None),
        }
    }

    /// Opens the regular file at `path`; `None` if there is none.
    pub(crate) fn open_file(&self, path: &Path) -> Result<Option<File>> {
        match self.find(path)? {
            Some((layer, path, Entry::File)) => layer.open_file(&path).map(Some),
            _ => Ok(None),
        }
    }

    /// The names in the directory at `path`, sorted; none if there is no such directory.
    pub(crate) fn names(&self, path: &Path) -> Result<Vec<String>> {
        let Some((_, path, Entry::Directory)) = self.find(path)? else { return Ok(Vec::new()) };
        let (mut names, mut hidden) = (BTreeSet::new(), BTreeSet::new());
        for (number, layer) in self.layers.iter().enumerate() {
            match layer.look(&path)? {
                Entry::Directory => {
                    for (name, device) in layer.names_at(&path)? {
                        if device && layer.look(&path.join(&name))? == Entry::Whiteout {
                            hidden.insert(name);
                        } else if !hidden.contains(&name) {
                            names.insert(name);
                        }
                    }
                }
                Entry::Missing => {}
                _ => break,
            }
            if self.hides(number, path.ancestors()) {
                break;
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Follows `path` through links; the layer, the path without links in it, and what is there.
    fn find(&self, path: &Path) -> Result<Option<(&Root, PathBuf, Entry)>> {
        let mut left: Vec<_> = path.components().rev().map(|part| part.as_os_str().to_owned()).collect();
        let mut at = PathBuf::from("/");
        let mut found = None;
        let mut links = 0;
        while let Some(part) = left.pop() {
            match Path::new(&part).components().next() {
                Some(Component::RootDir) => at = PathBuf::from("/"),
                Some(Component::ParentDir) => {
                    at.pop();
                }
                Some(Component::Normal(name)) => {
                    let next = at.join(name);
                    match self.look(&next)? {
                        None => return Ok(None),
                        Some((_, Entry::Link(target))) => {
                            links += 1;
                            if links > LINKS {
                                let message = format!("{path:?} leads through more than {LINKS} links in the image");
                                return Err(Error::new(ErrorKind::InvalidImage, message).with_path(path));
                            }
                            left.extend(target.components().rev().map(|part| part.as_os_str().to_owned()));
                        }
                        Some((layer, entry)) => {
                            at.clone_from(&next);
                            found = Some((layer, next, entry));
                        }
                    }
                }
                _ => {}
            }
        }
        // After `..` the last thing found is not where the path ended.
        match found {
            Some((layer, place, entry)) if place == at => Ok(Some((layer, place, entry))),
            _ => Ok(self.look(&at)?.map(|(layer, entry)| (layer, at, entry))),
        }
    }

    /// What is at a path that is absolute and goes through no link, and the layer that shows it.
    pub(crate) fn look(&self, path: &Path) -> Result<Option<(&Root, Entry)>> {
        if let Some(seen) = self.seen.borrow().entries.get(path) {
            return Ok(seen.as_ref().map(|(number, entry)| (&self.layers[*number], entry.clone())));
        }
        let found = self.look_now(path)?;
        let mut seen = self.seen.borrow_mut();
        if seen.entries.len() < MOST_SEEN && !matches!(found, Some((_, Entry::File))) {
            seen.entries.insert(path.to_owned(), found.clone());
        }
        Ok(found.map(|(number, entry)| (&self.layers[number], entry)))
    }

    fn look_now(&self, path: &Path) -> Result<Option<(usize, Entry)>> {
        for (number, layer) in self.layers.iter().enumerate() {
            match layer.look(path)? {
                Entry::Missing => {}
                Entry::Whiteout | Entry::Covered => return Ok(None),
                entry => return Ok(Some((number, entry))),
            }
            // The path is not in this layer, but one of the directories that lead there may hide those below.
            if self.hides(number, path.ancestors().skip(1)) {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Whether one of these directories of a layer hides what those below it have.
    fn hides<'a>(&self, number: usize, mut directories: impl Iterator<Item = &'a Path>) -> bool {
        // There is nothing below the last one.
        number + 1 < self.layers.len() && directories.any(|directory| self.is_opaque(number, directory))
    }

    fn is_opaque(&self, number: usize, directory: &Path) -> bool {
        let key = (number, directory.to_owned());
        let mut seen = self.seen.borrow_mut();
        if let Some(opaque) = seen.opaque.get(&key) {
            return *opaque;
        }
        let opaque = self.layers[number].is_opaque(directory);
        if seen.opaque.len() < MOST_SEEN {
            seen.opaque.insert(key, opaque);
        }
        opaque
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs::tree;
    use std::os::fd::AsFd;

    #[test]
    fn the_top_layer_wins_and_links_cross_layers() {
        let directory = tempfile::tempdir().unwrap();
        let layer = |name: &str| directory.path().join(name);
        for name in ["top/etc", "bottom/etc", "bottom/usr/lib", "bottom/gone"] {
            std::fs::create_dir_all(layer(name)).unwrap();
        }
        std::fs::write(layer("bottom/etc/passwd"), "bottom").unwrap();
        std::fs::write(layer("bottom/etc/group"), "group").unwrap();
        std::fs::write(layer("top/etc/passwd"), "top").unwrap();
        std::fs::write(layer("bottom/usr/lib/os-release"), "os").unwrap();
        std::os::unix::fs::symlink("../usr/lib/os-release", layer("top/etc/os-release")).unwrap();
        std::os::unix::fs::symlink("/etc/loop", layer("top/etc/loop")).unwrap();
        std::fs::write(layer("top/gone"), "a file hides the directory").unwrap();
        std::fs::write(layer("bottom/gone/inside"), "").unwrap();
        let stack = Stack::open([layer("top"), layer("bottom")]).unwrap();
        let read = |path| stack.read_to_string(path).unwrap();
        assert_eq!(read("/etc/passwd").as_deref(), Some("top"));
        assert_eq!(read("/etc/group").as_deref(), Some("group"));
        assert_eq!(read("/etc/os-release").as_deref(), Some("os"));
        assert_eq!(read("/etc/shadow"), None);
        assert_eq!(read("/gone/inside"), None);
        assert_eq!(read("/etc/../../etc/passwd").as_deref(), Some("top"));
        assert!(stack.exists("/usr/lib/..").unwrap());
        assert_eq!(stack.names(Path::new("/etc/.")).unwrap(), ["group", "loop", "os-release", "passwd"]);
        assert!(stack.names(Path::new("/gone")).unwrap().is_empty(), "a file hides the directory");
        assert_eq!(stack.read_to_string("/etc/loop").unwrap_err().kind(), ErrorKind::InvalidImage);
    }

    #[test]
    fn what_an_overlay_does_not_merge_is_not_seen() {
        let directory = tempfile::tempdir().unwrap();
        let layer = |name: &str| directory.path().join(name);
        for name in ["top/lib", "top/opaque/inside", "bottom/usr/lib", "bottom/opaque/inside"] {
            std::fs::create_dir_all(layer(name)).unwrap();
        }
        std::fs::write(layer("bottom/usr/lib/library"), "").unwrap();
        std::fs::write(layer("bottom/opaque/inside/file"), "").unwrap();
        std::os::unix::fs::symlink("usr/lib", layer("bottom/lib")).unwrap();
        let opaque = std::fs::File::open(layer("top/opaque")).unwrap();
        tree::set_attribute(opaque.as_fd(), std::ffi::OsStr::new("user.overlay.opaque"), b"y").unwrap();
        let stack = Stack::open([layer("top"), layer("bottom")]).unwrap();
        assert!(stack.exists("/usr/lib/library").unwrap());
        // The directory on top replaces the link below; it does not join what the link leads to.
        assert!(!stack.exists("/lib/library").unwrap());
        // What is further up may be what hides.
        assert!(!stack.exists("/opaque/inside/file").unwrap());
        let bottom = Stack::open([layer("bottom")]).unwrap();
        assert!(bottom.exists("/lib/library").unwrap());
        assert!(bottom.look(Path::new("/lib/library")).unwrap().is_none());
    }
}
