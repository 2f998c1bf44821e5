//! Looking at a layer as overlayfs does: directories, links, and the marks that hide what is below.

use crate::error::Result;
use crate::sys::errno::failed;
use crate::sys::root::Root;
use rustix::fs::{FileType, Mode, OFlags};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// What something inside is, without following it.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) kind: Kind,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) user: u32,
    pub(crate) group: u32,
}

/// The kinds of things that stacking directories makes a difference between.
#[derive(Debug)]
pub(crate) enum Kind {
    Directory {
        /// It covers the directories below it instead of adding to them.
        opaque: bool,
    },
    Link(PathBuf),
    /// It says that what is below is not there.
    Whiteout,
    Other,
}

/// Looks at what is at `path`, as overlayfs would if the root were one of its layers.
pub(crate) fn look(root: &Root, path: &Path) -> Result<Look> {
    let wrap = |call: &str, e| failed(format!("{call}({:?}, {path:?})", root.path()), e).with_path(path);
    let fd = root.open_at(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| wrap("fstat", e))?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let open = root.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
            Kind::Directory { opaque: has_mark(&open, "opaque") }
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&fd, "", Vec::new()).map_err(|e| wrap("readlinkat", e))?;
            Kind::Link(PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes())))
        }
        FileType::CharacterDevice if stat.st_rdev == 0 => Kind::Whiteout,
        // Overlayfs takes an empty file with this mark for a whiteout, too.
        FileType::RegularFile if stat.st_size == 0 => match root.open_file(path) {
            Ok(file) if has_mark(&file, "whiteout") => Kind::Whiteout,
            _ => Kind::Other,
        },
        _ => Kind::Other,
    };
    Ok(Look { kind, mode: stat.st_mode & 0o7777, user: stat.st_uid, group: stat.st_gid })
}

/// Whether a file has an attribute of overlayfs, in either of the two name spaces it uses.
fn has_mark(fd: &impl AsFd, name: &str) -> bool {
    ["trusted", "user"].iter().any(|space| {
        let mut value = [0_u8; 8];
        rustix::fs::fgetxattr(fd, format!("{space}.overlay.{name}"), &mut value[..])
            .is_ok_and(|count| name == "whiteout" || value[..count.min(value.len())].starts_with(b"y"))
    })
}
