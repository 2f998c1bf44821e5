//! Being told that files in a directory were closed or removed.

use super::errno::failed;
use crate::error::Result;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A watch on one directory or one file.
#[derive(Debug)]
pub(crate) struct Watch(OwnedFd);

impl Watch {
    /// Watches for files being removed, or closed by somebody who could write them: also by somebody who is killed.
    ///
    /// The kernel tells of a close just before it frees the locks of the file.
    ///
    /// # Errors
    /// A system call error if the user has too many watches.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|e| failed("inotify_init1", e).with_path(path))?;
        let events = WatchFlags::CLOSE_WRITE | WatchFlags::DELETE | WatchFlags::DELETE_SELF | WatchFlags::ATTRIB;
        inotify::add_watch(&fd, path, events)
            .map_err(|e| failed(format!("inotify_add_watch({path:?})"), e).with_path(path))?;
        Ok(Self(fd))
    }

    /// What was told since the last call: the names of files that were closed or removed; an empty name for the
    /// watched file itself.
    pub(crate) fn drain(&self) -> Vec<OsString> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut buffer);
        let mut names = Vec::new();
        // Ends with EAGAIN: nothing more was told.
        while let Ok(event) = reader.next() {
            // A file in a directory that is only now shown to others.
            if event.events().contains(ReadFlags::ATTRIB) && event.file_name().is_some() {
                continue;
            }
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
            names.push(name.unwrap_or_default());
        }
        names
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_of_a_writer_and_a_removal_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let watch = Watch::new(directory.path()).unwrap();
        let file = std::fs::File::create(directory.path().join("slot")).unwrap();
        assert!(watch.drain().is_empty());
        drop(std::fs::File::open(directory.path().join("slot")).unwrap());
        assert!(watch.drain().is_empty(), "a reader is nothing");
        drop(file);
        assert_eq!(watch.drain(), ["slot"]);
        std::fs::remove_file(directory.path().join("slot")).unwrap();
        assert_eq!(watch.drain(), ["slot"]);
    }
}
