//! A container's tree, by descriptor: no path of an image ever leads outside of it.

use super::errno::failed;
use crate::error::{Error, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A directory that acts as `/` for every path opened through it.
///
/// Links, also absolute ones and `..`, are resolved by the kernel inside the directory
/// (`RESOLVE_IN_ROOT`); magic links of procfs are refused.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    /// For error messages alone.
    path: PathBuf,
}

impl Root {
    /// Opens the directory `path` of the host.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self { fd: super::fs::open_dir(path)?, path: path.to_owned() })
    }

    /// The same for a directory in which things are only looked up, so that it need not be readable itself.
    pub(crate) fn enter(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| failed(format!("open({path:?}, O_PATH)"), e).with_path(path))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// The directory's path on the host, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens `path` inside, whatever links are on the way.
    ///
    /// # Errors
    /// The error of `openat2(2)`, its message naming both the root and the path.
    pub(crate) fn open_at(&self, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        self.resolve(path, flags, mode, ResolveFlags::empty())
    }

    fn resolve(&self, path: &Path, flags: OFlags, mode: Mode, how: ResolveFlags) -> Result<OwnedFd> {
        self.try_resolve(path, flags, mode, how).map_err(|e| self.not_resolved(path, e))
    }

    /// The same for callers to whom an error may be an answer, and who need no words for it then.
    fn try_resolve(
        &self,
        path: &Path,
        flags: OFlags,
        mode: Mode,
        how: ResolveFlags,
    ) -> std::result::Result<OwnedFd, rustix::io::Errno> {
        let resolve = how | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(&self.fd, path, flags | OFlags::CLOEXEC, mode, resolve) {
                // A rename on the host raced with `..`; the kernel asks to try again.
                Err(rustix::io::Errno::AGAIN) => {}
                result => return result,
            }
        }
    }

    fn not_resolved(&self, path: &Path, error: rustix::io::Errno) -> Error {
        failed(format!("openat2({:?}, {path:?})", self.path), error).with_path(path)
    }

    /// Opens a regular file inside for reading; anything else (a fifo, a device) is an error, never opened.
    pub(crate) fn open_file(&self, path: &Path) -> Result<File> {
        // Merely opening a device can do something, so it is looked at first.
        let place = self.open_at(path, OFlags::PATH, Mode::empty())?;
        let stat = rustix::fs::fstat(&place).map_err(|e| failed(format!("fstat({path:?})"), e).with_path(path))?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
            return Err(Error::from_errno(format!("open({path:?}) as a regular file"), libc::EINVAL).with_path(path));
        }
        super::fs::reopen(&place).map_err(|e| e.with_path(path))
    }

    /// Whether there is something at `path`, which is followed through links.
    pub(crate) fn exists_at(&self, path: &Path) -> bool {
        self.try_resolve(path, OFlags::PATH, Mode::empty(), ResolveFlags::empty()).is_ok()
    }

    /// The names in the directory `path`, sorted, and whether each may be a device; names that are not UTF-8 are left
    /// out.
    pub(crate) fn names_at(&self, path: &Path) -> Result<Vec<(String, bool)>> {
        let directory = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        let wrap = |e| failed(format!("getdents({path:?})"), e).with_path(path);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(directory).map_err(wrap)? {
            let entry = entry.map_err(wrap)?;
            let device =
                matches!(entry.file_type(), rustix::fs::FileType::CharacterDevice | rustix::fs::FileType::Unknown);
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push((name.to_owned(), device)),
            }
        }
        names.sort();
        Ok(names)
    }

    /// Reads a small file inside, at most `limit` bytes of it.
    pub(crate) fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>> {
        let file = self.open_file(path)?;
        let wrap = |e| Error::from_io(format!("read({path:?})"), e).with_path(path);
        let size = file.metadata().map_err(wrap)?.len().min(limit);
        // One more, so that the end is seen without a larger buffer.
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
        file.take(limit).read_to_end(&mut bytes).map_err(wrap)?;
        Ok(bytes)
    }

    /// What is at `path`; no link is followed, neither on the way nor at its end.
    pub(crate) fn look(&self, path: &Path) -> Result<Entry> {
        self.look_with(path, ResolveFlags::NO_SYMLINKS)
    }

    /// The same where the links on the way are followed, inside.
    pub(crate) fn look_at_end(&self, path: &Path) -> Result<Entry> {
        self.look_with(path, ResolveFlags::empty())
    }

    fn look_with(&self, path: &Path, flags: ResolveFlags) -> Result<Entry> {
        let fd = match self.try_resolve(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty(), flags) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => return Ok(Entry::Missing),
            Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => return Ok(Entry::Covered),
            Err(e) => return Err(self.not_resolved(path, e)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|e| failed(format!("fstat({path:?})"), e).with_path(path))?;
        Ok(match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
            rustix::fs::FileType::Directory => Entry::Directory,
            rustix::fs::FileType::RegularFile => Entry::File,
            rustix::fs::FileType::CharacterDevice if stat.st_rdev == 0 => Entry::Whiteout,
            rustix::fs::FileType::Symlink => {
                let target = rustix::fs::readlinkat(&fd, "", Vec::new())
                    .map_err(|e| failed(format!("readlink({path:?})"), e).with_path(path))?;
                Entry::Link(PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes())))
            }
            _ => Entry::Other,
        })
    }

    /// What `stat(2)` says of what `path` leads to, if it leads anywhere.
    pub(super) fn status(&self, path: &Path) -> Option<rustix::fs::Stat> {
        let place = self.try_resolve(path, OFlags::PATH, Mode::empty(), ResolveFlags::empty()).ok()?;
        rustix::fs::fstat(&place).ok()
    }

    /// What the directory at `path` is like; no link is followed.
    pub(crate) fn describe(&self, path: &Path) -> Result<Description> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let fd = self.resolve(path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| failed(format!("fstat({path:?})"), e).with_path(path))?;
        let mut names = vec![0_u8; 4096];
        let attributes = match rustix::fs::flistxattr(&fd, names.as_mut_slice()) {
            Ok(length) => names[..length].split(|byte| *byte == 0).any(|name| {
                // The stack's own, and the label that every file has where there are labels.
                !name.is_empty()
                    && ![&b"trusted.overlay."[..], b"user.overlay."].iter().any(|own| name.starts_with(own))
                    && name != b"security.selinux"
            }),
            Err(rustix::io::Errno::NOTSUP) => false,
            // More than fit.
            Err(rustix::io::Errno::RANGE) => true,
            Err(e) => return Err(failed(format!("flistxattr({path:?})"), e).with_path(path)),
        };
        Ok(Description { mode: stat.st_mode & 0o7777, owner: stat.st_uid, group: stat.st_gid, attributes })
    }

    /// Whether the directory at `path` hides those of the layers below (overlayfs `opaque`).
    pub(crate) fn is_opaque(&self, path: &Path) -> bool {
        let Ok(fd) = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) else {
            return false;
        };
        ["trusted.overlay.opaque", "user.overlay.opaque"].iter().any(|name| {
            let mut value = [0_u8; 1];
            rustix::fs::fgetxattr(&fd, *name, &mut value[..]) == Ok(1) && value == *b"y"
        })
    }
}

/// What a directory is like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Description {
    pub(crate) mode: u32,
    pub(crate) owner: u32,
    pub(crate) group: u32,
    /// Whether it has attributes such as access control lists.
    attributes: bool,
}

impl Description {
    /// Whether mode and owner tell all about it, and `mkdir(2)` can make one like it.
    pub(crate) fn is_plain(self) -> bool {
        !self.attributes && self.mode & !0o1777 == 0
    }
}

/// What a name stands for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Entry {
    Missing,
    /// A link or a file is where the path wants a directory.
    Covered,
    Directory,
    File,
    Link(PathBuf),
    /// overlayfs hides the name in the layers below.
    Whiteout,
    Other,
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("etc")).unwrap();
        std::fs::write(directory.path().join("etc/passwd"), "inside").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../../../etc/passwd", directory.path().join("dots")).unwrap();
        std::os::unix::fs::symlink("/proc/self/root/etc/passwd", directory.path().join("magic")).unwrap();
        std::os::unix::fs::symlink("/etc", directory.path().join("settings")).unwrap();
        let root = Root::open(directory.path()).unwrap();
        let through = Path::new("/settings/passwd");
        assert_eq!((root.look(through).unwrap(), root.look_at_end(through).unwrap()), (Entry::Covered, Entry::File));
        assert_eq!(root.look_at_end(Path::new("/settings/shadow")).unwrap(), Entry::Missing);
        assert!(matches!(root.look_at_end(Path::new("/absolute")).unwrap(), Entry::Link(_)));
        assert_eq!(root.read(Path::new("/absolute"), 100).unwrap(), b"inside");
        assert_eq!(root.read(Path::new("dots"), 100).unwrap(), b"inside");
        assert!(root.read(Path::new("magic"), 100).is_err());
    }
}
