//! Which processes have devices open.

use crate::error::Result;
use crate::sys::{device, fs};
use std::path::{Path, PathBuf};

/// A process that has a device open.
#[derive(Debug)]
pub(crate) struct Holder {
    pid: u32,
    name: String,
    major: u32,
    minor: u32,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({}) has device {}:{} open", self.pid, self.name, self.major, self.minor)
    }
}

/// The processes in the pid namespace of the process `pid`; those of namespaces below it are not seen.
pub(crate) fn neighbours(pid: i32) -> Result<Vec<u32>> {
    let namespace = |process: &Path| fs::read_link(&process.join("ns/pid")).ok();
    let own = fs::read_link(Path::new(&format!("/proc/{pid}/ns/pid")))?;
    let all = fs::read_dir(Path::new("/proc"))?;
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse().ok();
    Ok(all.iter().filter(|path| namespace(path).is_some_and(|theirs| theirs == own)).filter_map(number).collect())
}

/// Those of `processes` that have one of the character devices with these numbers open, once each.
///
/// A process that ends meanwhile, or that the caller may not look into, has none.
pub(crate) fn holders(processes: &[u32], devices: &[(u32, u32)]) -> Vec<Holder> {
    let find = |pid: &u32| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let files = fs::read_dir(&process.join("fd")).unwrap_or_default();
        let opened = files.iter().filter_map(|file| device::node(file).ok().flatten());
        let numbers = opened.filter(|node| node.character).map(|node| (node.major, node.minor));
        let (major, minor) = numbers.into_iter().find(|numbers| devices.contains(numbers))?;
        let name = fs::read_to_string(&process.join("comm")).unwrap_or_default().trim().to_owned();
        Some(Holder { pid: *pid, name, major, minor })
    };
    processes.iter().filter_map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_a_device_open_is_found() {
        let own = std::process::id();
        let full = std::fs::File::open("/dev/full").unwrap();
        let found = holders(&[own], &[(1, 7)]);
        assert!(found[0].to_string().starts_with(&format!("process {own} (")), "{found:?}");
        assert!(found[0].to_string().ends_with("has device 1:7 open"));
        drop(full);
        assert!(holders(&[own, 0], &[(254, 9)]).is_empty());
        assert!(neighbours(i32::try_from(own).unwrap()).unwrap().contains(&own));
    }
}
