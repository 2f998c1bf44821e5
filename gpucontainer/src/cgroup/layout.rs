//! Where the control groups of this host are: mounts, versions, controllers, and our own place in them.

use crate::error::Result;
use crate::sys::fs::mount;
use crate::sys::{cgroup as files, fs};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// What was found last. The list of all mounts is long on a busy host, and changes for these few hardly ever.
static SEEN: Mutex<Option<Seen>> = Mutex::new(None);

/// A layout, and what it was read from: as long as all of it is the same, so is the layout.
struct Seen {
    groups: String,
    /// The number that the kernel gave the mount of each hierarchy.
    mounts: Vec<u64>,
    layout: Layout,
}

/// The version of a hierarchy of control groups.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
pub enum Version {
    /// One hierarchy for one or a few controllers.
    V1,
    /// One hierarchy for all controllers.
    V2,
}

/// The hierarchies of a host as the calling process sees them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Layout {
    pub(crate) hierarchies: Vec<Hierarchy>,
}

/// One mounted hierarchy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Hierarchy {
    pub(crate) version: Version,
    /// Names as version 2 has them (`io` and not `blkio`). What a version 2 hierarchy offers at its mount.
    pub(crate) controllers: Vec<String>,
    pub(crate) mount: PathBuf,
    /// The caller's own group below `mount`; `None` if it cannot be reached through this mount.
    pub(crate) own: Option<PathBuf>,
}

impl Layout {
    /// Looks at the calling process's own view of the host.
    pub(crate) fn detect() -> Result<Self> {
        let groups = files::read_at_once(Path::new("/proc/self/cgroup"))?;
        let mut layout = match Self::seen(&groups) {
            Some(layout) => layout,
            None => Self::look(groups)?,
        };
        for hierarchy in &mut layout.hierarchies {
            if hierarchy.version == Version::V2 {
                hierarchy.controllers = words(&fs::read_to_string(&hierarchy.mount.join("cgroup.controllers"))?);
            }
        }
        Ok(layout)
    }

    fn seen(groups: &str) -> Option<Self> {
        // Whoever finds it locked, as a forked child may for ever, looks anew.
        let seen = SEEN.try_lock().ok()?;
        let seen = seen.as_ref().filter(|seen| seen.groups == groups)?;
        (seen.layout.mount_ids()? == seen.mounts).then(|| seen.layout.clone())
    }

    fn look(groups: String) -> Result<Self> {
        let layout = Self::parse(&files::read_at_once(Path::new("/proc/self/mountinfo"))?, &groups);
        // What is mounted nowhere yet may be mounted later.
        let whole = layout.hierarchies.len() == groups.lines().filter(|line| !line.contains(":name=")).count();
        if let (true, Some(mounts), Ok(mut seen)) = (whole, layout.mount_ids(), SEEN.try_lock()) {
            *seen = Some(Seen { groups, mounts, layout: layout.clone() });
        }
        Ok(layout)
    }

    fn mount_ids(&self) -> Option<Vec<u64>> {
        self.hierarchies.iter().map(|hierarchy| mount::mount_id(&hierarchy.mount).ok()).collect()
    }

    /// Reads the texts of `mountinfo` and `cgroup` of a process; controllers of version 2 are not in them.
    pub(crate) fn parse(mountinfo: &str, cgroup: &str) -> Self {
        let mut hierarchies = Vec::new();
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
        for line in cgroup.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(names), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
            let version = if names.is_empty() { Version::V2 } else { Version::V1 };
            // A hierarchy without controllers that is not version 2 only names groups (name=systemd).
            let controllers: Vec<&str> = names.split(',').filter(|name| !name.is_empty()).collect();
            if controllers.iter().any(|name| name.starts_with("name=")) {
                continue;
            }
            let fits = |mount: &&Mount| match version {
                Version::V2 => mount.version == Version::V2,
                Version::V1 => {
                    mount.version == Version::V1
                        && controllers.iter().all(|name| mount.options.iter().any(|option| option == name))
                }
            };
            // The mount that shows the whole hierarchy is the most useful one where there are several.
            let Some(mount) = mounts.iter().filter(fits).min_by_key(|mount| mount.root.len()) else { continue };
            hierarchies.push(Hierarchy {
                version,
                controllers: controllers.into_iter().map(|name| modern(name).to_owned()).collect(),
                mount: PathBuf::from(&mount.point),
                own: own(mount, path),
            });
        }
        Self { hierarchies }
    }

    /// The hierarchy that has `controller`.
    pub(crate) fn find(&self, controller: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.has(controller))
    }

    /// The version 2 hierarchy.
    pub(crate) fn unified(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.version == Version::V2)
    }
}

impl Hierarchy {
    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// The directory under which groups of ours with `controllers` can be made, or why there is none.
    ///
    /// Whoever may write at the top of the hierarchy (root) works there. Anybody else works in the
    /// deepest group above its own process that was delegated to it; on version 2 that group must also
    /// hold no processes itself or give its children the controllers already, as the kernel wants it.
    pub(crate) fn parent(&self, controllers: &[&str]) -> Result<PathBuf, String> {
        if let Err(top) = self.serves(&self.mount, controllers) {
            let Some(own) = &self.own else {
                return Err(format!("{top}, and the caller's own group is not visible there"));
            };
            let mut reasons = vec![top];
            for directory in own.ancestors().take_while(|directory| *directory != self.mount) {
                match self.serves(directory, controllers) {
                    Ok(()) => return Ok(directory.to_owned()),
                    Err(reason) => reasons.push(reason),
                }
            }
            return Err(reasons.join("; "));
        }
        Ok(self.mount.clone())
    }

    /// Whether groups with `controllers` can be made in `directory`.
    fn serves(&self, directory: &Path, controllers: &[&str]) -> Result<(), String> {
        if !fs::writable(directory) {
            return Err(format!("{directory:?} is not writable"));
        }
        if self.version == Version::V1 {
            return Ok(());
        }
        // Moving a process needs this file of the nearest group above both its old and its new place.
        if !fs::writable(&directory.join("cgroup.procs")) {
            return Err(format!("{directory:?}/cgroup.procs is not writable"));
        }
        if controllers.is_empty() {
            return Ok(());
        }
        let given = read_words(&directory.join("cgroup.subtree_control"));
        if controllers.iter().all(|name| given.iter().any(|given| given == name)) {
            return Ok(());
        }
        let offered = read_words(&directory.join("cgroup.controllers"));
        if let Some(missing) = controllers.iter().find(|name| !offered.iter().any(|offered| offered == *name)) {
            return Err(format!("{directory:?} has no controller {missing}"));
        }
        if !fs::writable(&directory.join("cgroup.subtree_control")) {
            return Err(format!("{directory:?}/cgroup.subtree_control is not writable"));
        }
        // The real root of the hierarchy, the only group without this file, may hold processes as well.
        let is_root = files::is_absent(&directory.join("cgroup.type"));
        if !is_root && !read_words(&directory.join("cgroup.procs")).is_empty() {
            return Err(format!(
                "{directory:?} holds processes itself, so the kernel lets it give no controllers to groups inside \
                 it; start the program in a group below a delegated one (systemd: Delegate= with DelegateSubgroup=)"
            ));
        }
        Ok(())
    }
}

/// The name of a controller in version 2.
pub(crate) fn modern(name: &str) -> &str {
    if name == "blkio" { "io" } else { name }
}

/// The words of a small file; a file that cannot be read has none.
pub(crate) fn read_words(path: &Path) -> Vec<String> {
    fs::read_to_string(path).map(|text| words(&text)).unwrap_or_default()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

struct Mount {
    version: Version,
    /// The group that is mounted, as the mounting process's root of groups has it.
    root: String,
    point: String,
    options: Vec<String>,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let version = match after.next()? {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => return None,
        };
        let options = after.nth(1)?.split(',').map(str::to_owned).collect();
        let mut before = before.split(' ').skip(3);
        Some(Self { version, root: unescape(before.next()?), point: unescape(before.next()?), options })
    }
}

/// The caller's group `path` as it is reached through `mount`.
fn own(mount: &Mount, path: &str) -> Option<PathBuf> {
    let below = Path::new(path).strip_prefix(&mount.root).ok()?;
    // `/..`: the group lies outside of what this process's cgroup namespace shows.
    if below.components().any(|part| part == std::path::Component::ParentDir) {
        return None;
    }
    // Not joined when empty, which would leave a slash at the end.
    if below.as_os_str().is_empty() {
        Some(PathBuf::from(&mount.point))
    } else {
        Some(Path::new(&mount.point).join(below))
    }
}

/// Undoes the octal escapes of `mountinfo`: `\040` is a space.
fn unescape(field: &str) -> String {
    let bytes = field.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'\\')
            .then(|| field.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn a_hybrid_host_is_read() {
        let groups = "9:name=systemd:/x\n7:blkio:/\n4:memory:/jobs/1\n1:cpu,cpuacct:/\n0::/user.slice\n";
        let layout = Layout::parse(HYBRID, groups);
        let memory = layout.find("memory").unwrap();
        assert_eq!((memory.version, memory.mount.to_str()), (Version::V1, Some("/sys/fs/cgroup/memory")));
        assert_eq!(memory.own.as_deref(), Some(Path::new("/sys/fs/cgroup/memory/jobs/1")));
        assert_eq!(layout.find("cpuacct"), layout.find("cpu"));
        assert_eq!(layout.find("io").unwrap().mount, Path::new("/sys/fs/cgroup/blkio"));
        assert_eq!(layout.find("blkio"), None);
        let unified = layout.unified().unwrap();
        assert_eq!(unified.own.as_deref(), Some(Path::new("/sys/fs/cgroup/uni fied/user.slice")));
        assert_eq!(layout.hierarchies.len(), 4, "a named hierarchy has no controllers");
    }

    #[test]
    fn the_own_group_is_found_through_every_kind_of_mount() {
        // mount root, group of the process, expected
        let table = [
            ("/", "/", Some("/sys/fs/cgroup")),
            ("/", "/a/b", Some("/sys/fs/cgroup/a/b")),
            ("/docker/1", "/docker/1", Some("/sys/fs/cgroup")),
            ("/docker/1", "/docker/1/in", Some("/sys/fs/cgroup/in")),
            ("/docker/1", "/docker/12", None),
            ("/", "/../other", None),
        ];
        for (root, path, expected) in table {
            let line = format!("41 31 0:38 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw");
            let layout = Layout::parse(&line, &format!("0::{path}\n"));
            assert_eq!(layout.unified().unwrap().own.as_deref(), expected.map(Path::new), "{root} {path}");
        }
    }

    #[test]
    fn nothing_mounted_is_an_empty_layout() {
        assert_eq!(Layout::parse("", "0::/\n").hierarchies, []);
        assert_eq!(Layout::parse(HYBRID, "").hierarchies, []);
        assert_eq!(Layout::parse("nonsense - cgroup", "a:b\n").hierarchies, []);
    }

    #[test]
    fn escapes_are_undone() {
        for (field, plain) in
            [("/a\\040b", "/a b"), ("/a\\134b", "/a\\b"), ("/a\\0", "/a\\0"), ("\\", "\\"), ("/é\\011", "/é\t")]
        {
            assert_eq!(unescape(field), plain);
        }
    }
}
