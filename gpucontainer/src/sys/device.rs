//! Device nodes of the host: their kind and number.

use crate::error::Result;
use crate::sys::errno::failed;

use rustix::fs::{FileType, Stat};
use std::path::Path;

/// The kind and number of a device node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Node {
    pub(crate) character: bool,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// The permission bits, as in `0o666`.
    pub(crate) mode: u32,
}

/// What device the node `path` stands for; links are followed. `None` if it is no device node.
pub(crate) fn node(path: &Path) -> Result<Option<Node>> {
    let stat = rustix::fs::stat(path).map_err(|e| failed(format!("stat({path:?})"), e).with_path(path))?;
    Ok(from_stat(&stat))
}

fn from_stat(stat: &Stat) -> Option<Node> {
    let character = match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => true,
        FileType::BlockDevice => false,
        _ => return None,
    };
    Some(Node {
        character,
        major: rustix::fs::major(stat.st_rdev),
        minor: rustix::fs::minor(stat.st_rdev),
        mode: stat.st_mode & 0o777,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_null_device_is_known_and_a_directory_is_none() {
        let null = node(Path::new("/dev/null")).unwrap().unwrap();
        assert!(null.character);
        assert_eq!((null.major, null.minor), (1, 3));
        assert_eq!(node(Path::new("/")).unwrap(), None);
        assert!(node(Path::new("/dev/no-such-device")).unwrap_err().path().is_some());
    }
}
