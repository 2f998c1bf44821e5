//! What a look at a driver depended on, so that the next start knows whether another look would find the same.
//!
//! To look at a driver takes longer than to make the rest of a sandbox, and it changes once in months. So a look is
//! remembered in the process, with the identity of every directory and file that it came by and every text that it
//! read; it counts only as long as all of them are the same.

use crate::error::Result;
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::driver::{DATA_VARIABLE, Driver, PIPES_VARIABLE};
use crate::sys::fs;
use crate::sys::identity::Identity;
use crate::sys::root::Root;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The looks of this process: more driver roots than one are rare.
static LOOKS: Mutex<Vec<Look>> = Mutex::new(Vec::new());
const MOST_LOOKS: usize = 4;

/// The variables on which a look depends.
const VARIABLES: [&str; 2] = [PIPES_VARIABLE, DATA_VARIABLE];

/// As many links as the kernel follows.
const LINKS: usize = 40;

/// Kernels give times by their tick: what was changed within so long may change once more and show the same time.
const TICK: Duration = Duration::from_millis(50);

/// A driver, and what to compare.
struct Look {
    root: PathBuf,
    variables: [Option<OsString>; 2],
    trail: Arc<Trail>,
    driver: Arc<Driver>,
}

/// What was come by on the way.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Trail {
    /// Places of the host without links.
    places: BTreeMap<PathBuf, Option<Identity>>,
    /// Directories, as paths inside that may lead through links.
    directories: BTreeMap<PathBuf, Option<Identity>>,
    texts: BTreeMap<PathBuf, Option<String>>,
}

/// A trail that is being made; a root without one leaves none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorder(Option<Arc<Mutex<Trail>>>);

// It is no part of what a root is.
impl PartialEq for Recorder {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl Eq for Recorder {}

impl Recorder {
    fn new() -> Self {
        Self(Some(Arc::default()))
    }

    fn trail(&self) -> Option<MutexGuard<'_, Trail>> {
        self.0.as_ref().map(|trail| trail.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// `inside` was resolved, to `found` or to nothing.
    pub(crate) fn resolved(&self, root: &DriverRoot, inside: &Path, found: Option<&Path>) {
        let Some(mut trail) = self.trail() else { return };
        // This look is not part of the trail.
        let root = root.recorded(Self::default());
        let Ok(opened) = Root::open(root.path()) else { return };
        let mut place = inside.to_owned();
        // Each link on the way may be made to lead elsewhere, also where nothing was found in the end.
        for _ in 0..LINKS {
            let Some((directory, name)) = place.parent().zip(place.file_name()) else { break };
            if !trail.directories.contains_key(directory) {
                trail.directories.insert(directory.to_owned(), Identity::inside(&opened, directory));
            }
            let Ok(there) = root.resolve(directory) else { break };
            let Ok(target) = fs::read_link(&there.join(name)) else { break };
            // The directory without links, as the target's own dots mean it.
            let below = there.strip_prefix(root.path()).unwrap_or(&there);
            place = joined(&Path::new("/").join(below), &target);
        }
        if let Some(found) = found {
            let above = found.parent().unwrap_or(found);
            for place in [above, found] {
                if !trail.places.contains_key(place) {
                    trail.places.insert(place.to_owned(), Identity::of(place));
                }
            }
        }
    }

    /// The text of `inside` was read.
    pub(crate) fn read(&self, inside: &Path, text: Option<&String>) {
        if let Some(mut trail) = self.trail() {
            trail.texts.insert(inside.to_owned(), text.cloned());
        }
    }
}

/// Where a link in `directory` leads.
fn joined(directory: &Path, target: &Path) -> PathBuf {
    let mut place = directory.to_owned();
    for part in target.components() {
        match part {
            Component::RootDir => place = PathBuf::from("/"),
            Component::ParentDir => drop(place.pop()),
            Component::Normal(name) => place.push(name),
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
    place
}

impl Trail {
    /// Whether somebody who looks now would come by the same.
    fn holds(&self, root: &DriverRoot) -> bool {
        let Ok(opened) = Root::open(root.path()) else { return false };
        self.texts.iter().all(|(path, text)| root.text(path) == *text)
            && self.directories_hold(&opened)
            && self.places_hold()
    }

    fn directories_hold(&self, root: &Root) -> bool {
        // What is in a directory comes after it, and is not there if that is not.
        let mut missing: Option<&Path> = None;
        self.directories.iter().all(|(path, known)| {
            let there = match missing {
                Some(above) if path.starts_with(above) => None,
                _ => Identity::inside(root, path),
            };
            if there.is_none() && missing.is_none_or(|above| !path.starts_with(above)) {
                missing = Some(path);
            }
            there == *known
        })
    }

    fn places_hold(&self) -> bool {
        // Most are next to each other in one directory, which is walked to once.
        let mut opened: Option<(&Path, Root)> = None;
        self.places.iter().all(|(path, known)| {
            let Some((above, name)) = path.parent().zip(path.file_name()) else { return Identity::of(path) == *known };
            if opened.as_ref().is_none_or(|(open, _)| *open != above) {
                opened = Root::open(above).ok().map(|root| (above, root));
            }
            opened.as_ref().and_then(|(_, directory)| Identity::at(directory, name)) == *known
        })
    }

    /// Whether everything on it was old when the look began.
    fn is_settled(&self, began: SystemTime) -> bool {
        let Some(before) = began.checked_sub(TICK).and_then(|before| before.duration_since(UNIX_EPOCH).ok()) else {
            return false;
        };
        let limit = (i64::try_from(before.as_secs()).unwrap_or(i64::MAX), i64::from(before.subsec_nanos()));
        self.places.values().chain(self.directories.values()).flatten().all(|identity| identity.newest() < limit)
    }
}

/// The driver in `root`, by a look of now or one that would be the same now.
pub(crate) fn known(root: &DriverRoot) -> Result<Arc<Driver>> {
    let variables = VARIABLES.map(std::env::var_os);
    let same = |look: &&Look| look.root == root.path() && look.variables == variables;
    let looks = || LOOKS.lock().unwrap_or_else(PoisonError::into_inner);
    let found = looks().iter().find(same).map(|look| (look.trail.clone(), look.driver.clone()));
    if let Some((trail, driver)) = found {
        if trail.holds(root) {
            return Ok(driver);
        }
    }
    let began = SystemTime::now();
    let recorder = Recorder::new();
    let driver = Arc::new(Driver::look(&root.recorded(recorder.clone()))?);
    let trail = Arc::new(recorder.trail().map(|trail| trail.clone()).unwrap_or_default());
    let mut looks = looks();
    looks.retain(|look| !same(&look));
    // A relative root is another directory as soon as the working directory is.
    if trail.is_settled(began) && root.path().is_absolute() {
        looks.truncate(MOST_LOOKS - 1);
        looks.insert(0, Look { root: root.path().to_owned(), variables, trail, driver: driver.clone() });
    }
    Ok(driver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    struct Host {
        directory: tempfile::TempDir,
        root: DriverRoot,
    }

    impl Host {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let host = Self { root: DriverRoot::new(directory.path().join("root")), directory };
            host.write("usr/lib64/libcuda.so.550.163.01");
            host.write("usr/bin/nvidia-smi");
            host.mode(0o755);
            for program in ["opt/old", "opt/new", "usr/share/vulkan/icd.d/intel_icd.json"] {
                host.write(program);
                std::fs::set_permissions(host.path(program), PermissionsExt::from_mode(0o755)).unwrap();
            }
            std::fs::create_dir(host.path("alternatives")).unwrap();
            symlink("../../alternatives/tool", host.path("usr/bin/nvidia-debugdump")).unwrap();
            symlink("/opt/old", host.path("alternatives/tool")).unwrap();
            symlink("/opt/late", host.path("usr/bin/nvidia-persistenced")).unwrap();
            host
        }

        fn path(&self, inside: &str) -> PathBuf {
            self.root.path().join(inside)
        }

        fn write(&self, inside: &str) {
            std::fs::create_dir_all(self.path(inside).parent().unwrap()).unwrap();
            std::fs::write(self.path(inside), "").unwrap();
        }

        fn mode(&self, mode: u32) {
            std::fs::set_permissions(self.path("usr/bin/nvidia-smi"), PermissionsExt::from_mode(mode)).unwrap();
        }

        /// A look that is remembered, which takes until the clock of the file system has gone on.
        fn settled(&self) -> Arc<Driver> {
            let probe = self.directory.path().join("probe");
            let time = || {
                std::fs::write(&probe, "").unwrap();
                std::fs::metadata(&probe).unwrap().modified().unwrap()
            };
            let start = time();
            while time().duration_since(start).unwrap() < TICK * 2 {}
            known(&self.root).unwrap()
        }
    }

    #[test]
    fn a_look_is_made_once() {
        let host = Host::new();
        let first = known(&host.root).unwrap();
        assert!(!Arc::ptr_eq(&first, &known(&host.root).unwrap()), "what is new may change within the same tick");
        let settled = host.settled();
        assert!(Arc::ptr_eq(&settled, &known(&host.root).unwrap()));
        let other = Host::new();
        assert!(!Arc::ptr_eq(&settled, &known(&other.root).unwrap()));
    }

    #[test]
    fn every_change_is_seen_at_once() {
        type Change = fn(&Host);
        let changes: [(&str, Change); 9] = [
            ("a program that is none any more", |host| host.mode(0o644)),
            ("a program that is gone", |host| std::fs::remove_file(host.path("usr/bin/nvidia-smi")).unwrap()),
            ("a setting in a directory that was not there", |host| host.write("etc/OpenCL/vendors/nvidia.icd")),
            ("a setting in a directory that was there", |host| host.write("usr/share/vulkan/icd.d/nvidia_icd.json")),
            ("a link on the way that leads to another program", |host| {
                std::fs::remove_file(host.path("alternatives/tool")).unwrap();
                symlink("/opt/new", host.path("alternatives/tool")).unwrap();
            }),
            ("what a link leads to that led nowhere", |host| {
                host.write("opt/late");
                std::fs::set_permissions(host.path("opt/late"), PermissionsExt::from_mode(0o755)).unwrap();
            }),
            ("another version", |host| {
                std::fs::remove_file(host.path("usr/lib64/libcuda.so.550.163.01")).unwrap();
                host.write("usr/lib64/libcuda.so.570.86.15");
            }),
            ("a directory that is a link now", |host| {
                host.write("opt/libcuda.so.535.54");
                std::fs::remove_dir_all(host.path("usr/lib64")).unwrap();
                symlink("/opt", host.path("usr/lib64")).unwrap();
            }),
            ("a kernel module of another version", |host| {
                host.write("usr/lib64/libcuda.so.570.86.15");
                host.write("proc/driver/nvidia/version");
                std::fs::write(host.path("proc/driver/nvidia/version"), "NVRM version: 570.86.15\n").unwrap();
            }),
        ];
        for (what, change) in changes {
            let host = Host::new();
            let before = host.settled();
            change(&host);
            let after = known(&host.root).unwrap();
            assert_ne!(before, after, "{what}");
            assert_eq!(*after, Driver::look(&host.root).unwrap(), "{what}");
        }
    }
}
