//! Files of the host, by path: `std::fs` whose errors name the call and the file.
//!
//! Paths of a container's tree are never opened here; see [`super::root`].

#[path = "look.rs"]
pub(crate) mod look;
#[path = "mount.rs"]
pub(crate) mod mount;
#[path = "overlay.rs"]
pub(crate) mod overlay;
#[path = "tree.rs"]
pub(crate) mod tree;

use super::errno::failed;
use crate::error::{Error, Result};
use rustix::fs::{AtFlags, Mode, OFlags};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use std::fs::{File, Metadata};

macro_rules! on_path {
    ($(#[$doc:meta])* $name:ident($call:path) -> $output:ty) => {
        $(#[$doc])*
        pub(crate) fn $name(path: &Path) -> Result<$output> {
            $call(path).map_err(|e| Error::from_io(format!(concat!(stringify!($name), "({:?})"), path), e).with_path(path))
        }
    };
}

on_path! {
    /// The bytes of a file.
    read(std::fs::read) -> Vec<u8>
}
on_path! {
    /// The text of a file.
    read_to_string(std::fs::read_to_string) -> String
}
on_path! {
    /// Makes a directory and those above it.
    create_dir_all(std::fs::create_dir_all) -> ()
}
on_path! {
    /// Makes one directory.
    create_dir(std::fs::create_dir) -> ()
}
on_path! {
    /// Removes a file or a link.
    remove_file(std::fs::remove_file) -> ()
}
on_path! {
    /// Removes an empty directory.
    remove_dir(std::fs::remove_dir) -> ()
}
on_path! {
    /// What is known of a file; links are followed.
    metadata(std::fs::metadata) -> std::fs::Metadata
}
on_path! {
    /// What is known of a file or a link itself.
    symlink_metadata(std::fs::symlink_metadata) -> std::fs::Metadata
}
on_path! {
    /// Opens a file for reading.
    open(File::open) -> File
}
on_path! {
    /// Where a link leads.
    read_link(std::fs::read_link) -> PathBuf
}
on_path! {
    /// The path without links and dots.
    canonicalize(std::fs::canonicalize) -> PathBuf
}

/// The bytes of a file that is small if all is well, mostly one of the kernel: at most 1 MiB of it.
pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open(path)?.take(1 << 20).read_to_end(&mut bytes);
    read.map_err(|e| Error::from_io(format!("read({path:?})"), e).with_path(path))?;
    Ok(bytes)
}

/// The paths in a directory, in the order of their names.
pub(crate) fn read_dir(path: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::from_io(format!("read_dir({path:?})"), e).with_path(path);
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        entries.push(entry.map_err(failed)?.path());
    }
    entries.sort();
    Ok(entries)
}

/// Writes a file whole, made or truncated. Not atomic: a reader may see a part.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|e| Error::from_io(format!("write({path:?})"), e).with_path(path))
}

/// Writes a new file whole and makes its bytes durable; its name is made durable by [`sync_dir`].
pub(crate) fn write_durable(path: &Path, bytes: &[u8]) -> Result<()> {
    let wrap = |call: &str, e| Error::from_io(format!("{call}({path:?})"), e).with_path(path);
    let mut file = File::options().write(true).create_new(true).open(path).map_err(|e| wrap("create", e))?;
    file.write_all(bytes).map_err(|e| wrap("write", e))?;
    file.sync_all().map_err(|e| wrap("fsync", e))
}

/// Makes a new file, open for reading and writing.
pub(crate) fn create_new(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|e| Error::from_io(format!("create({path:?})"), e).with_path(path))
}

/// A stretch of a file, read on its own: others may read the same file at the same time.
#[derive(Debug)]
pub(crate) struct Slice {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Slice {
    /// The `length` bytes from `offset`.
    pub(crate) fn new(file: Arc<File>, offset: u64, length: u64) -> Self {
        Self { file, offset, left: length }
    }

    /// Bytes not read yet.
    pub(crate) fn len(&self) -> u64 {
        self.left
    }
}

impl std::io::Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        let moved = u64::try_from(count).unwrap_or(u64::MAX);
        self.offset += moved;
        self.left -= moved;
        Ok(count)
    }
}

/// Sets the permission bits of a file; links are followed.
pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|e| Error::from_io(format!("chmod({path:?}, {mode:#o})"), e).with_path(path))
}

/// Renames within one file system.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|e| Error::from_io(format!("rename({from:?}, {to:?})"), e).with_path(to))
}

/// A second name of a file, in the same file system.
pub(crate) fn hard_link(from: &Path, to: &Path) -> Result<()> {
    std::fs::hard_link(from, to).map_err(|e| Error::from_io(format!("link({from:?}, {to:?})"), e).with_path(to))
}

/// A link that says `says`.
pub(crate) fn symlink(says: &Path, link: &Path) -> Result<()> {
    std::os::unix::fs::symlink(says, link)
        .map_err(|e| Error::from_io(format!("symlink({says:?}, {link:?})"), e).with_path(link))
}

/// The path of the host, without links, of what `path` leads to inside `root`.
pub(crate) fn host_path(root: &super::root::Root, path: &Path) -> Result<PathBuf> {
    let fd = root.open_at(path, OFlags::PATH, Mode::empty())?;
    read_link(Path::new(&format!("/proc/self/fd/{}", fd.as_raw_fd())))
}

/// Opens for reading what `place`, opened as a path alone, stands for.
pub(crate) fn reopen(place: &OwnedFd) -> Result<File> {
    open(Path::new(&format!("/proc/self/fd/{}", place.as_raw_fd())))
}

/// Opens a directory as a place to start paths from.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| failed(format!("open({path:?}, O_DIRECTORY)"), e).with_path(path))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    rustix::fs::fsync(open_dir(path)?).map_err(|e| failed(format!("fsync({path:?})"), e).with_path(path))
}

/// The records that a kernel's log such as `/dev/kmsg` holds now, oldest first; an ordinary file's lines.
pub(crate) fn read_kernel_log(path: &Path) -> Result<Vec<String>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| failed(format!("open({path:?}, O_NONBLOCK)"), e).with_path(path))?;
    let mut text = String::new();
    // No record is longer than this, and each read gives one.
    let mut buffer = [0_u8; 8192];
    loop {
        match rustix::io::read(&file, &mut buffer[..]) {
            Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
            Ok(length) => text.push_str(&String::from_utf8_lossy(&buffer[..length])),
            // A record was overwritten before it was read: the next one comes.
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::INTR) => {}
            Err(e) => return Err(failed(format!("read({path:?})"), e).with_path(path)),
        }
    }
    Ok(text.lines().map(str::to_owned).collect())
}

/// Makes everything written to the file system of `path` durable.
pub(crate) fn sync_filesystem(path: &Path) -> Result<()> {
    rustix::fs::syncfs(open_dir(path)?).map_err(|e| failed(format!("syncfs({path:?})"), e).with_path(path))
}

/// Whether the caller may write to `path`, by its effective ids.
pub(crate) fn writable(path: &Path) -> bool {
    rustix::fs::accessat(rustix::fs::CWD, path, rustix::fs::Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}

/// Whether the caller may read and write `path`, by its effective ids; for a device node, whether its device cgroup
/// lets it, too.
pub(crate) fn usable(path: &Path) -> bool {
    let access = rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK;
    rustix::fs::accessat(rustix::fs::CWD, path, access, AtFlags::EACCESS).is_ok()
}

/// The value of an environment variable that is a path; unset and empty are `None`.
pub(crate) fn path_from_environment(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Whether the effective user is 0.
pub(crate) fn is_root_user() -> bool {
    rustix::process::geteuid().is_root()
}

/// A name that no other call on this host gets: 128 random bits in hexadecimal.
pub(crate) fn unique() -> String {
    let mut bytes = [0_u8; 16];
    // The kernel's pool is initialised long before any user program runs, so this cannot come short.
    let filled = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    debug_assert_eq!(filled, Ok(16));
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Removes a directory and all below it, however deep, also where its owner had shut itself out; nothing there is fine.
///
/// Links are removed, not followed. Goes on after an error, and returns the first.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = match open_dir(parent) {
        Err(e) if e.kind() == crate::error::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    tree::remove(std::os::fd::AsFd::as_fd(&directory), path.file_name().unwrap_or_default())
        .map_err(|e| e.context(format!("remove {path:?}")).with_path(path))
}

/// Opens a file for reading and writing.
pub(crate) fn open_read_write(path: &Path) -> Result<OwnedFd> {
    let file = File::options().read(true).write(true).open(path);
    file.map(OwnedFd::from).map_err(|e| Error::from_io(format!("open({path:?}, O_RDWR)"), e).with_path(path))
}

/// Gives a file to a user and a group.
pub(crate) fn change_owner(path: &Path, user: u32, group: u32) -> Result<()> {
    std::os::unix::fs::chown(path, Some(user), Some(group))
        .map_err(|e| Error::from_io(format!("chown({path:?}, {user}, {group})"), e).with_path(path))
}
