//! Sockets that a container has, made to take no more clients.

use crate::sys::fs;
use crate::sys::peer::{Peer, stop_taking};
use std::path::{Path, PathBuf};

/// Makes the sockets of these inodes refuse clients, whichever processes have them. Those that nobody has are closed.
pub(in crate::net) fn revoke(inodes: &[u64]) {
    let wanted: Vec<PathBuf> = inodes.iter().map(|inode| PathBuf::from(format!("socket:[{inode}]"))).collect();
    if wanted.is_empty() {
        return;
    }
    for process in fs::read_dir(Path::new("/proc")).unwrap_or_default() {
        let Some(pid) = number(&process) else { continue };
        // Other users' processes, and those that have just ended, cannot be looked into.
        for descriptor in fs::read_dir(&process.join("fd")).unwrap_or_default() {
            let has_it = fs::read_link(&descriptor).is_ok_and(|to| wanted.contains(&to));
            let (true, Some(number)) = (has_it, number(&descriptor)) else { continue };
            let Ok(peer) = Peer::of_thread(pid) else { continue };
            // It may be another one by now.
            if let Ok(socket) = peer.descriptor(number) {
                if crate::sys::peer::inode(&socket).is_some_and(|inode| inodes.contains(&inode)) {
                    stop_taking(&socket);
                }
            }
        }
    }
}

fn number(path: &Path) -> Option<i32> {
    path.file_name()?.to_str()?.parse().ok()
}
