//! From the members of an archive to a tree of files.

use super::UnpackOptions;
use super::archive::{Archive, Member, Segment, What};
use super::record::{PATH_LIMIT, Record};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::fs::tree::{self, Kind, Moment};
use crate::sys::root::Root;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Directories below each other. Paths of real images have a dozen; each level costs a descriptor to walk.
const DEPTH_LIMIT: u32 = 256;

/// Whole pieces of this size that are zeros stay holes: zeros compress a thousandfold, and must not fill a disk.
const HOLE: usize = 64 << 10;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidLayer, text)
}

/// What was in an archive.
pub(super) struct Found {
    pub(super) archive_bytes: u64,
    pub(super) entries: u64,
    pub(super) implied: Vec<PathBuf>,
}

/// Unpacks all members.
pub(super) fn run(mut archive: Archive<'_>, directory: &Path, options: &UnpackOptions) -> Result<Found> {
    let mut tree = Tree::open(directory, options)?;
    let mut entries = 0;
    while let Some(member) = archive.next()? {
        options.cancel.check()?;
        entries += 1;
        tree.add(&member, &mut archive).map_err(|error| blame(error, &member.name))?;
    }
    let mut implied = Vec::new();
    tree.finish(tree.root.as_fd(), Path::new(""), &mut implied, archive.record())?;
    let archive_bytes = archive.consumed();
    archive.finish()?;
    Ok(Found { archive_bytes, entries, implied })
}

/// Names the entry; where the kernel refused what the entry says, the layer is to blame, not the host.
fn blame(error: Error, name: &[u8]) -> Error {
    let error = match error.errno() {
        Some(errno) if tree::blames_the_entry(errno) => error.with_kind(ErrorKind::InvalidLayer),
        _ => error,
    };
    let path = PathBuf::from(OsStr::from_bytes(name));
    error.context(format!("layer entry {path:?}")).with_path(path)
}

/// What is kept of a directory until everything is in it.
#[derive(Clone, Debug)]
struct Described {
    /// From the layer's root, through no link.
    path: PathBuf,
    depth: u32,
    has_directories: bool,
    /// Whether a member says what it is like, or it is new because what was there is hidden.
    listed: bool,
    mode: u32,
    modified: Moment,
}

impl Described {
    /// A directory that the archive implies but does not list: the same on every host.
    fn implied(path: PathBuf, depth: u32) -> Self {
        Self { path, depth, has_directories: false, listed: false, mode: 0o755, modified: Moment::default() }
    }
}

/// A directory that entries are put in.
#[derive(Debug)]
struct Parent {
    path: PathBuf,
    fd: OwnedFd,
    inode: u64,
}

#[derive(Debug)]
struct Tree<'a> {
    root: Root,
    root_inode: u64,
    options: &'a UnpackOptions,
    /// By inode: all are on one file system, and a path may lead through links that change later.
    directories: HashMap<u64, Described>,
    /// Most entries are put where the last one was.
    last: Option<Parent>,
}

impl<'a> Tree<'a> {
    fn open(directory: &Path, options: &'a UnpackOptions) -> Result<Self> {
        let root = Root::open(directory)?;
        if !tree::entries(root.as_fd())?.is_empty() {
            let text = format!("unpack into {directory:?}: the directory is not empty");
            return Err(Error::new(ErrorKind::InvalidArgument, text).with_path(directory));
        }
        let root_inode = tree::status_of(root.as_fd())?.inode;
        let directories = HashMap::from([(root_inode, Described::implied(PathBuf::new(), 0))]);
        if options.keep_owners {
            tree::set_owner(root.as_fd(), 0, 0)?;
        }
        Ok(Self { root, root_inode, options, directories, last: None })
    }

    fn add(&mut self, member: &Member, archive: &mut Archive<'_>) -> Result<()> {
        let names = components(&member.name)?;
        let Some((name, above)) = names.split_last() else {
            return match member.what {
                What::Directory if !member.name.is_empty() => self.describe_root(member),
                _ => Err(invalid("the entry has no name")),
            };
        };
        if above.iter().any(|name| name.as_bytes().starts_with(WHITEOUT)) {
            // What union file systems of old kept for themselves; no image means it as a file.
            return if above.iter().any(|name| name.as_bytes().starts_with(b".wh..wh.")) {
                Ok(())
            } else {
                Err(invalid("the path leads through a whiteout"))
            };
        }
        let parent = self.parent(above)?;
        let result = match name.as_bytes().strip_prefix(WHITEOUT) {
            Some(hidden) => self.hide(&parent, name, hidden),
            None => self.place(&parent, name, member, archive),
        };
        // `place` forgets the parent where its path may lead elsewhere from now on.
        if result? {
            self.last = Some(parent);
        }
        Ok(())
    }

    /// The directory at `above`, made where it is missing.
    fn parent(&mut self, above: &[&OsStr]) -> Result<Parent> {
        let path: PathBuf = if above.is_empty() { PathBuf::from(".") } else { above.iter().collect() };
        if let Some(parent) = self.last.take() {
            if parent.path == path {
                return Ok(parent);
            }
        }
        match tree::open_inside(&self.root, &path) {
            Ok(fd) => self.opened(path, fd),
            Err(error) if above.is_empty() || !may_be_missing(&error) => Err(error),
            Err(_) => self.make_above(above),
        }
    }

    fn opened(&self, path: PathBuf, fd: OwnedFd) -> Result<Parent> {
        let inode = tree::status_of(fd.as_fd())?.inode;
        Ok(Parent { path, fd, inode })
    }

    fn make_above(&mut self, above: &[&OsStr]) -> Result<Parent> {
        let mut here = self.opened(PathBuf::from("."), tree::open_inside(&self.root, Path::new("."))?)?;
        for (index, name) in above.iter().enumerate() {
            let path: PathBuf = above[..=index].iter().collect();
            here = match tree::open_inside(&self.root, &path) {
                Ok(fd) => self.opened(path, fd)?,
                Err(error) if !may_be_missing(&error) => return Err(error),
                Err(error) => {
                    let hidden = match tree::status(here.fd.as_fd(), name)?.map(|status| status.kind) {
                        None => false,
                        Some(Kind::WHITEOUT) => true,
                        Some(Kind::Link) => {
                            return Err(invalid(format!("the link {path:?} leads to no directory inside the layer")));
                        }
                        Some(_) => return Err(error),
                    };
                    if hidden {
                        tree::remove(here.fd.as_fd(), name)?;
                    }
                    let fd = self.make_directory(&here, name, hidden)?;
                    self.opened(path, fd)?
                }
            };
        }
        Ok(here)
    }

    /// Makes a directory as if the archive only implied it.
    fn make_directory(&mut self, parent: &Parent, name: &OsStr, opaque: bool) -> Result<OwnedFd> {
        let above = self.directories.get_mut(&parent.inode).ok_or_else(|| invalid("the tree changed meanwhile"))?;
        let (path, depth) = (above.path.join(name), above.depth + 1);
        if depth > DEPTH_LIMIT {
            return Err(invalid(format!("more than {DEPTH_LIMIT} directories below each other")));
        }
        above.has_directories = true;
        if !tree::make_directory(parent.fd.as_fd(), name)? {
            return Err(invalid("the tree changed meanwhile"));
        }
        let fd = tree::open_directory(parent.fd.as_fd(), name)?;
        let described = Described { listed: opaque, ..Described::implied(path, depth) };
        self.directories.insert(tree::status_of(fd.as_fd())?.inode, described);
        if self.options.keep_owners {
            tree::set_owner(fd.as_fd(), 0, 0)?;
        }
        if opaque {
            self.make_opaque(fd.as_fd())?;
        }
        Ok(fd)
    }

    fn make_opaque(&self, directory: BorrowedFd<'_>) -> Result<()> {
        let user = tree::set_attribute(directory, OsStr::new("user.overlay.opaque"), b"y");
        if !self.options.keep_owners {
            return user;
        }
        tree::set_attribute(directory, OsStr::new("trusted.overlay.opaque"), b"y")?;
        // Older kernels have no `user.*` on tmpfs; nobody mounts root's trees with `userxattr` there.
        user.or_else(|error| if error.kind() == ErrorKind::Unsupported { Ok(()) } else { Err(error) })
    }

    /// A whiteout: `hidden` is gone from the layers below, but not from this one, wherever in the archive it stands.
    fn hide(&mut self, parent: &Parent, name: &OsStr, hidden: &[u8]) -> Result<bool> {
        if name.as_bytes() == OPAQUE {
            self.make_opaque(parent.fd.as_fd())?;
            return Ok(true);
        }
        if hidden.starts_with(WHITEOUT) {
            // Other notes of old union file systems.
            return Ok(true);
        }
        let hidden = match hidden {
            b"" | b"." | b".." => return Err(invalid("a whiteout of no name in the directory")),
            other => OsStr::from_bytes(other),
        };
        if !tree::make_node(Kind::WHITEOUT, parent.fd.as_fd(), hidden)? {
            let present = tree::status(parent.fd.as_fd(), hidden)?;
            if present.is_some_and(|present| present.kind == Kind::Directory) {
                self.make_opaque(tree::open_directory(parent.fd.as_fd(), hidden)?.as_fd())?;
            }
        }
        Ok(true)
    }

    /// Puts a member in its place, instead of what is there. Returns whether the path of `parent` is still its own.
    fn place(&mut self, parent: &Parent, name: &OsStr, member: &Member, archive: &mut Archive<'_>) -> Result<bool> {
        let directory = parent.fd.as_fd();
        let mut keeps = true;
        match &member.what {
            What::Directory => keeps = self.place_directory(parent, name, member, archive)?,
            What::File { size, segments } => {
                let file = loop {
                    match tree::make_file(directory, name)? {
                        Some(file) => break file,
                        None => keeps &= clear(directory, name, archive)?,
                    }
                };
                let whole = [Segment { offset: 0, length: *size }];
                let pieces = segments.as_deref().unwrap_or(&whole);
                let later = self.found_later(parent, name, member);
                let written = write(archive, &file, pieces, later.is_some())?;
                if let (Some(path), Some(record)) = (later, archive.record()) {
                    record.file(&path, tree::status_of(file.as_fd())?.inode, pieces)?;
                }
                if written < *size {
                    // The end is a hole.
                    tree::set_length(&file, *size)?;
                }
                self.describe(file.as_fd(), member)?;
                tree::set_mode(file.as_fd(), member.mode)?;
                tree::set_times(file.as_fd(), member.modified)?;
            }
            What::Link { target } => {
                let text = match tree::name(target) {
                    Some(text) if !text.is_empty() => text,
                    _ => return Err(invalid("a link to an empty name, or one with a NUL in it")),
                };
                while !tree::make_link(text, directory, name)? {
                    keeps &= clear(directory, name, archive)?;
                }
                self.describe_at(directory, name, member)?;
            }
            What::HardLink { target } => keeps = self.place_hard_link(parent, name, target, archive)?,
            What::Node(kind @ (Kind::Character { .. } | Kind::Block { .. }))
                if *kind != Kind::WHITEOUT && !self.options.keep_owners =>
            {
                // Every sandbox has a /dev of its own over the image's, where real images have nodes.
                if !parent.path.starts_with("dev") {
                    return Err(invalid(format!("a device node ({kind:?}), which only root may make")));
                }
            }
            What::Node(Kind::WHITEOUT) => {
                // A whiteout in the form that overlayfs itself uses.
                let wanted = [WHITEOUT, name.as_bytes()].concat();
                return self.hide(parent, OsStr::from_bytes(&wanted), name.as_bytes());
            }
            What::Node(kind) => {
                while !tree::make_node(*kind, directory, name)? {
                    keeps &= clear(directory, name, archive)?;
                }
                if self.options.keep_owners {
                    tree::set_owner_at(directory, name, member.owner, member.group)?;
                }
                tree::set_mode_at(directory, name, member.mode)?;
                tree::set_times_at(directory, name, member.modified)?;
            }
        }
        Ok(keeps)
    }

    /// Where the record of the archive finds the contents of a file later. `None`: nowhere, it must have them itself.
    fn found_later(&self, parent: &Parent, name: &OsStr, member: &Member) -> Option<PathBuf> {
        self.options.record.as_ref()?;
        let above = self.directories.get(&parent.inode)?;
        // Root reads everything; anybody else, and their own namespace's root, only what its mode lets them.
        let readable = self.options.keep_owners || (member.mode & 0o400 != 0 && above.mode & 0o100 != 0);
        let path = above.path.join(name);
        (readable && path.as_os_str().len() <= PATH_LIMIT).then_some(path)
    }

    fn place_directory(
        &mut self,
        parent: &Parent,
        name: &OsStr,
        member: &Member,
        archive: &mut Archive<'_>,
    ) -> Result<bool> {
        let directory = parent.fd.as_fd();
        let mut keeps = true;
        let fd = match tree::status(directory, name)?.map(|status| status.kind) {
            Some(Kind::Directory) => tree::open_directory(directory, name)?,
            present => {
                if present.is_some() {
                    keeps = clear(directory, name, archive)?;
                }
                self.make_directory(parent, name, present == Some(Kind::WHITEOUT))?
            }
        };
        let inode = tree::status_of(fd.as_fd())?.inode;
        self.describe_directory(fd.as_fd(), inode, member)?;
        Ok(keeps)
    }

    fn place_hard_link(
        &mut self,
        parent: &Parent,
        name: &OsStr,
        target: &[u8],
        archive: &mut Archive<'_>,
    ) -> Result<bool> {
        let shown = String::from_utf8_lossy(target).into_owned();
        let names = components(target).map_err(|error| error.context(format!("hard link to {shown:?}")))?;
        let missing = || invalid(format!("a hard link to {shown:?}, which is no file of the layer so far"));
        let (source, above) = names.split_last().ok_or_else(missing)?;
        let path: PathBuf = if above.is_empty() { PathBuf::from(".") } else { above.iter().collect() };
        let from = tree::open_inside(&self.root, &path).map_err(|error| missing().with_cause(error))?;
        let wanted = match tree::status(from.as_fd(), source)? {
            None => return Err(missing()),
            Some(status) if matches!(status.kind, Kind::Directory | Kind::WHITEOUT) => return Err(missing()),
            Some(status) => status,
        };
        let mut keeps = true;
        while !tree::make_hard_link(from.as_fd(), source, parent.fd.as_fd(), name)? {
            let present = tree::status(parent.fd.as_fd(), name)?;
            if present.is_some_and(|present| present.inode == wanted.inode && present.device == wanted.device) {
                break;
            }
            keeps &= clear(parent.fd.as_fd(), name, archive)?;
        }
        Ok(keeps)
    }

    fn describe_root(&mut self, member: &Member) -> Result<()> {
        let root = self.root.as_fd().try_clone_to_owned().map_err(|e| Error::from_io("dup", e))?;
        self.describe_directory(root.as_fd(), self.root_inode, member)
    }

    fn describe_directory(&mut self, fd: BorrowedFd<'_>, inode: u64, member: &Member) -> Result<()> {
        self.describe(fd, member)?;
        let described = self.directories.get_mut(&inode).ok_or_else(|| invalid("the tree changed meanwhile"))?;
        described.listed = true;
        described.mode = member.mode;
        described.modified = member.modified;
        Ok(())
    }

    /// Owner and attributes, in this order: a change of owner takes capabilities away.
    fn describe(&self, fd: BorrowedFd<'_>, member: &Member) -> Result<()> {
        if self.options.keep_owners {
            tree::set_owner(fd, member.owner, member.group)?;
        }
        for (name, value) in &member.attributes {
            let attribute = tree::name(name).ok_or_else(|| invalid("an attribute with a NUL in its name"))?;
            if self.takes(name) {
                tree::set_attribute(fd, attribute, value)?;
            } else {
                tracing::debug!(entry = %String::from_utf8_lossy(&member.name), ?attribute, "attribute left out");
            }
        }
        Ok(())
    }

    fn describe_at(&self, directory: BorrowedFd<'_>, name: &OsStr, member: &Member) -> Result<()> {
        if self.options.keep_owners {
            tree::set_owner_at(directory, name, member.owner, member.group)?;
        }
        tree::set_times_at(directory, name, member.modified)
    }

    /// Attributes that are the image's to set. Those of overlayfs are ours: they redirect and hide.
    fn takes(&self, name: &[u8]) -> bool {
        if name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.overlay.") {
            return false;
        }
        name.starts_with(b"user.")
            || (self.options.keep_owners && (name.starts_with(b"trusted.") || name == b"security.capability"))
    }

    /// Gives every directory, innermost first, the mode and the times that work inside it would have changed.
    /// Those that no member described are added to `implied`.
    fn finish(
        &self,
        directory: BorrowedFd<'_>,
        path: &Path,
        implied: &mut Vec<PathBuf>,
        mut record: Option<&mut Record>,
    ) -> Result<()> {
        let inode = tree::status_of(directory)?.inode;
        let unknown = Described::implied(PathBuf::new(), 0);
        let described = self.directories.get(&inode).unwrap_or(&unknown);
        if let Some(record) = record.as_deref_mut().filter(|_| !self.options.keep_owners && described.mode & 0o100 == 0)
        {
            record.keep_all(directory)?;
        }
        if described.has_directories {
            for (name, is_directory) in tree::entries(directory)? {
                if is_directory {
                    let inner = tree::open_directory(directory, &name)?;
                    self.finish(inner.as_fd(), &path.join(&name), implied, record.as_deref_mut())
                        .map_err(|error| error.context(format!("{name:?}")))?;
                }
            }
        }
        if !described.listed && described.depth > 0 {
            implied.push(path.to_owned());
        }
        tree::set_mode(directory, described.mode)?;
        tree::set_times(directory, described.modified)
    }
}

/// Removes what stands where something else is to be. Returns whether paths still lead where they did.
fn clear(directory: BorrowedFd<'_>, name: &OsStr, archive: &mut Archive<'_>) -> Result<bool> {
    let status = tree::status(directory, name)?;
    let leads = status.is_some_and(|status| matches!(status.kind, Kind::Directory | Kind::Link));
    match (archive.record(), status) {
        (Some(record), Some(status)) if status.kind == Kind::File => record.keep(directory, name, status.inode)?,
        (Some(record), Some(status)) if status.kind == Kind::Directory => {
            record.keep_all(tree::open_directory(directory, name)?.as_fd())?;
        }
        _ => {}
    }
    tree::remove(directory, name)?;
    Ok(!leads)
}

/// Nothing there, or something that is no directory, maybe a whiteout.
fn may_be_missing(error: &Error) -> bool {
    error.errno().is_some_and(tree::blames_the_entry)
}

/// The names of a path from the layer's root; a leading `/` and `.` mean nothing, `..` is refused.
fn components(path: &[u8]) -> Result<Vec<&OsStr>> {
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(invalid("the path has `..` in it")),
            _ => names.push(tree::name(name).ok_or_else(|| invalid("the path has a NUL in it"))?),
        }
    }
    Ok(names)
}

/// Writes the contents of the current member where they belong. Returns where the last byte is that was written.
///
/// `kept`: the record of the archive finds them there, and need not have them.
fn write(archive: &mut Archive<'_>, file: &File, segments: &[Segment], kept: bool) -> Result<u64> {
    let mut written = 0;
    for segment in segments {
        let mut offset = segment.offset;
        let mut left = segment.length;
        while left > 0 {
            let bytes = archive.peek(left)?;
            written = written.max(write_but_holes(file, bytes, offset)?);
            let count = bytes.len();
            if kept {
                archive.consume_kept(count);
            } else {
                archive.consume(count)?;
            }
            offset += count as u64;
            left -= count as u64;
        }
    }
    Ok(written)
}

/// Returns the offset after the last byte that was written, 0 if all were zeros.
fn write_but_holes(file: &File, bytes: &[u8], offset: u64) -> Result<u64> {
    let mut written = 0;
    let mut flush = |piece: std::ops::Range<usize>| -> Result<()> {
        if !piece.is_empty() {
            written = offset + piece.end as u64;
            tree::write_all_at(file, &bytes[piece.clone()], offset + piece.start as u64)?;
        }
        Ok(())
    };
    let mut pending = 0..0;
    for start in (0..bytes.len()).step_by(HOLE) {
        let end = (start + HOLE).min(bytes.len());
        if end - start == HOLE && is_zero(&bytes[start..end]) {
            flush(pending)?;
            pending = end..end;
        } else {
            pending.end = end;
        }
    }
    flush(pending)?;
    Ok(written)
}

fn is_zero(bytes: &[u8]) -> bool {
    // The first bytes settle it for real data; the rest is compared a cache line at a time.
    bytes.chunks(64).all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
}
