//! What changes with every change of a file or of a directory's entries.

use super::root::Root;
use rustix::fs::{AtFlags, CWD, Stat};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;

/// Device, inode and times of a file: equal for one that is still the same, as far as its file system's clock tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    /// That of what a path of the host leads to, if it leads anywhere.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        Self::at(CWD, path.as_os_str())
    }

    /// That of what `name` in an open directory leads to.
    pub(crate) fn at(directory: impl AsFd, name: &OsStr) -> Option<Self> {
        rustix::fs::statat(directory, name, AtFlags::empty()).ok().map(Self::from)
    }

    /// That of what a path inside of a root leads to.
    pub(crate) fn inside(root: &Root, path: &Path) -> Option<Self> {
        root.status(path).map(Self::from)
    }

    /// When it last changed, in seconds and nanoseconds since 1970.
    pub(crate) fn newest(self) -> (i64, i64) {
        self.modified.max(self.changed)
    }
}

impl From<Stat> for Identity {
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast, reason = "these numbers are wider on some machines")]
    fn from(stat: Stat) -> Self {
        Self {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        }
    }
}
