//! Where a driver's user space and the kernel's account of its devices are looked for.

use crate::error::Result;
use crate::gpu::driver::trail::Recorder;
use crate::sys::root::Root;

use std::path::{Component, Path, PathBuf};

/// The variable that names another driver root than `/`.
const VARIABLE: &str = "GPUCONTAINER_DRIVER_ROOT";

/// A directory that holds a driver's user space as `/` does on an ordinary host.
///
/// `/` is right for a driver installed by a package or by NVIDIA's installer. Where the driver lives
/// in a container of its own, its root is mounted somewhere, often at `/run/nvidia/driver`. Tests
/// build a directory with a driver of their own. Links inside are resolved inside.
///
/// `/dev`, `/proc` and `/sys` are taken from the same directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DriverRoot {
    path: PathBuf,
    recorder: Recorder,
}

impl Default for DriverRoot {
    /// The host's own root directory.
    fn default() -> Self {
        Self::new("/")
    }
}

impl DriverRoot {
    /// The directory `path`; a relative one starts at the working directory of each use.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), recorder: Recorder::default() }
    }

    /// The directory that the variable `GPUCONTAINER_DRIVER_ROOT` names; `/` if it is not set, or empty.
    pub fn from_environment() -> Self {
        match std::env::var_os(VARIABLE) {
            Some(path) if !path.is_empty() => Self::new(path),
            _ => Self::default(),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is the host's own root directory.
    pub fn is_host(&self) -> bool {
        self.path == Path::new("/")
    }

    /// The path of the host of the absolute path `inside`, links unresolved.
    pub(crate) fn join(&self, inside: impl AsRef<Path>) -> PathBuf {
        let relative = inside.as_ref().components().filter(|part| matches!(part, Component::Normal(_)));
        self.path.join(relative.collect::<PathBuf>())
    }

    /// The same root, which remembers in `recorder` what is come by.
    pub(crate) fn recorded(&self, recorder: Recorder) -> Self {
        Self { path: self.path.clone(), recorder }
    }

    /// The path of the host, without links, that `inside` leads to when links are resolved inside.
    pub(crate) fn resolve(&self, inside: &Path) -> Result<PathBuf> {
        let path = crate::sys::fs::host_path(&Root::open(&self.path)?, inside);
        self.recorder.resolved(self, inside, path.as_deref().ok());
        path
    }

    /// The absolute path inside of a path of the host without links; `None` if it is outside.
    pub(crate) fn inside(&self, host_path: &Path) -> Option<PathBuf> {
        let root = self.resolve(Path::new("/")).ok()?;
        Some(Path::new("/").join(host_path.strip_prefix(root).ok()?))
    }

    /// Says that `inside` was looked for and is not there.
    pub(crate) fn passed(&self, inside: &Path) {
        self.recorder.resolved(self, inside, None);
    }

    /// The text of a small file, mostly one of the kernel; `None` if it cannot be read.
    pub(crate) fn text(&self, inside: impl AsRef<Path>) -> Option<String> {
        let path = self.join(inside.as_ref());
        let text = crate::sys::fs::read_small(&path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        self.recorder.read(inside.as_ref(), text.as_ref());
        text
    }

    /// The names in the directory `inside`, sorted; none if it cannot be read.
    pub(crate) fn names(&self, inside: &Path) -> Vec<String> {
        let Ok(directory) = self.resolve(inside) else { return Vec::new() };
        let paths = crate::sys::fs::read_dir(&directory).unwrap_or_default();
        paths.iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved_inside() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("usr/lib")).unwrap();
        std::fs::write(directory.path().join("usr/lib/real.so"), "").unwrap();
        std::os::unix::fs::symlink("/usr/lib/real.so", directory.path().join("usr/lib/link.so")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("usr/lib/outside.so")).unwrap();
        let root = DriverRoot::new(directory.path());
        let real = std::fs::canonicalize(directory.path()).unwrap().join("usr/lib/real.so");
        assert_eq!(root.resolve(Path::new("/usr/lib/link.so")).unwrap(), real);
        assert!(root.resolve(Path::new("/usr/lib/outside.so")).is_err());
        assert_eq!(root.names(Path::new("/usr/lib")), ["link.so", "outside.so", "real.so"]);
        assert_eq!(root.inside(&real).as_deref(), Some(Path::new("/usr/lib/real.so")));
        assert_eq!(root.inside(Path::new("/etc/passwd")), None);
        assert_eq!(root.join("/a/../b"), directory.path().join("a/b"));
        assert!(DriverRoot::default().is_host() && !root.is_host());
    }
}
