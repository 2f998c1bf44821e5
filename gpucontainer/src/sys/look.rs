//! Whose a directory of a layer is, and who may use it.

use crate::error::Result;
use crate::sys::errno::failed;
use crate::sys::root::Root;
use rustix::fs::{Mode, OFlags};
use std::path::Path;

/// Permission bits, owner and group.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) user: u32,
    pub(crate) group: u32,
}

/// The attributes of what is at `path`, whose last part is not followed.
pub(crate) fn attributes(root: &Root, path: &Path) -> Result<Attributes> {
    let fd = root.open_at(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
    let stat =
        rustix::fs::fstat(&fd).map_err(|e| failed(format!("fstat({:?}, {path:?})", root.path()), e).with_path(path))?;
    Ok(Attributes { mode: stat.st_mode & 0o7777, user: stat.st_uid, group: stat.st_gid })
}
