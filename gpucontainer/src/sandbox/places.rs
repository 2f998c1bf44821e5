//! The places of what a grant brings, made in memory as one more layer on top of the image's.
//!
//! Each file of a driver is mounted over an empty one, and there are links to it. To make those on the disk that a
//! sandbox writes to, and to remove them when it ends, takes longer than everything else about the driver; in memory
//! it takes next to nothing, and nothing of it is among what the container wrote.
//!
//! A directory of the layer is what the container sees at that path, so it is like the image's own one. Where the image
//! has something itself, the layer has nothing: a mount over that can be taken away again. That, and what the layer cannot
//! have (below another mount, or in a directory that cannot be copied faithfully), is left to the later steps.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::{GpuGrant, MountKind};
use crate::layer::Stack;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// The more layers, the closer to what kernels take, and the longer each look; so many are far from both.
const MOST_LAYERS: usize = 100;

/// Something that a layer of places has, by a path relative to its root.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Place {
    Directory { path: String, mode: u32, owner: Option<(u32, u32)> },
    File { path: String },
    Link { path: String, target: String },
}

/// The layer, directories before what is in them.
#[derive(Debug, Default)]
pub(crate) struct Places {
    pub(crate) list: Vec<Place>,
    /// The links of the grant that are among them, by the names that the grant has for them.
    links: HashSet<String>,
    /// The files, alike.
    files: HashSet<String>,
}

/// Mounts of every sandbox, which hide what a layer has there.
const OWN_MOUNTS: [&str; 3] = ["/dev", "/proc", "/sys"];

impl Places {
    /// The places of `grant` on top of the layers of `tree`, but for those at or below `covered`.
    ///
    /// `owners` says as whom somebody who owns a directory on disk is known inside; `None` for a stranger.
    pub(crate) fn of(
        grant: &GpuGrant,
        tree: &Stack,
        covered: &[&str],
        owners: &dyn Fn(u32, u32) -> Option<(u32, u32)>,
    ) -> Result<Self> {
        let mut places = Self::default();
        if tree.layers() > MOST_LAYERS {
            return Ok(places);
        }
        let mut work = Work {
            tree,
            owners,
            directories: HashMap::new(),
            names: HashMap::new(),
            made: HashSet::new(),
            list: Vec::new(),
        };
        let directories = grant.mounts.iter().filter(|mount| mount.kind == MountKind::Directory);
        let directories = directories.map(|mount| &mount.target).chain(grant.trees.iter().map(|tree| &tree.path));
        for path in OWN_MOUNTS.iter().chain(covered).copied().chain(directories.filter_map(|path| path.to_str())) {
            work.cover(path)?;
        }
        let files = grant.mounts.iter().filter(|mount| mount.kind != MountKind::Directory).map(|mount| &mount.target);
        for target in files.chain(grant.files.iter().map(|file| &file.path)) {
            if let Some(path) = work.place(target)? {
                work.list.push(Place::File { path });
                places.files.extend(target.to_str().map(str::to_owned));
            }
        }
        for link in &grant.links {
            let (Some(name), Some(target)) = (link.link.to_str(), link.target.to_str()) else { continue };
            match work.place(&link.link)? {
                Some(path) => {
                    work.list.push(Place::Link { path, target: target.to_owned() });
                    places.links.insert(name.to_owned());
                }
                // If it is one of the same name, the last counts, as elsewhere.
                None => drop(places.links.remove(name)),
            }
        }
        places.list = work.list;
        Ok(places)
    }

    /// The files of the grant that are there: the image has nothing in their places.
    pub(crate) fn into_files(self) -> HashSet<String> {
        self.files
    }

    /// Whether the link that the grant names so is there.
    pub(crate) fn has_link(&self, link: &Path) -> bool {
        link.to_str().is_some_and(|link| self.links.contains(link))
    }
}

/// Paths are texts here, which are compared faster than by their parts: a driver has hundreds.
struct Work<'a> {
    tree: &'a Stack,
    owners: &'a dyn Fn(u32, u32) -> Option<(u32, u32)>,
    /// What the directories that were asked for, absolute and without a slash at the end, are in the layer; `None` for
    /// those that it cannot have.
    directories: HashMap<String, Option<String>>,
    /// What is in the image's directories, by their paths in the layer; nothing for those that it has not.
    names: HashMap<String, HashSet<String>>,
    /// What the layer has, relative to its root.
    made: HashSet<String>,
    list: Vec<Place>,
}

impl Work<'_> {
    /// Keeps the layer out of what a mount of the caller's will cover, by whatever name.
    fn cover(&mut self, path: &str) -> Result<()> {
        self.directories.insert(path.trim_end_matches('/').to_owned(), None);
        if let Some(directory) = self.resolved(path)? {
            self.directories.insert(directory, None);
        }
        Ok(())
    }

    /// The directory of the image to which `path` leads, without links.
    fn resolved(&self, path: &str) -> Result<Option<String>> {
        let directory = self.tree.directory(Path::new(path))?;
        Ok(directory.and_then(|directory| match directory.to_str()? {
            "" => Some(String::new()),
            directory => Some(format!("/{directory}")),
        }))
    }

    /// Where in the layer that is which the container sees at `path`; `None` if that has to be made later.
    fn place(&mut self, path: &Path) -> Result<Option<String>> {
        let Some((above, name)) = path.to_str().and_then(|path| path.rsplit_once('/')) else { return Ok(None) };
        let Some(above) = self.directory(above)? else { return Ok(None) };
        if self.names.get(&above).is_some_and(|names| names.contains(name)) {
            return Ok(None);
        }
        let place = join(&above, name);
        // One thing in another's place is for the later steps to judge.
        let free = !self.directories.contains_key(&format!("/{place}")) && self.made.insert(place.clone());
        Ok(Some(place).filter(|_| free))
    }

    /// The directory of the layer for that which the container sees at `path`, made if it is not there.
    fn directory(&mut self, path: &str) -> Result<Option<String>> {
        if let Some(known) = self.directories.get(path) {
            return Ok(known.clone());
        }
        let Some((above, name)) = path.rsplit_once('/') else {
            let names = self.tree.names(Path::new("/"))?;
            self.names.insert(String::new(), names.into_iter().collect());
            return Ok(Some(String::new()));
        };
        let place = match self.resolved(path)? {
            // A link led there, or a link above.
            Some(place) if place != path => self.directory(&place)?,
            there => match self.directory(above)? {
                Some(above) => self.make(join(&above, name), there.is_some())?,
                None => None,
            },
        };
        self.directories.insert(path.to_owned(), place.clone());
        Ok(place)
    }

    fn make(&mut self, path: String, there: bool) -> Result<Option<String>> {
        let whole = format!("/{path}");
        let made = if there {
            // The container may look where this process may not.
            let known = |error: Error| (error.kind() == ErrorKind::PermissionDenied).then_some(()).ok_or(error);
            let image = match self.tree.describe(whole.as_ref()) {
                Ok(image) => image.filter(|image| image.is_plain()),
                Err(error) => known(error).map(|()| None)?,
            };
            let owner = image.and_then(|image| (self.owners)(image.owner, image.group));
            let (Some(image), Some(owner)) = (image, owner) else { return Ok(None) };
            match self.tree.names(whole.as_ref()) {
                Ok(names) => drop(self.names.insert(path.clone(), names.into_iter().collect())),
                Err(error) => return known(error).map(|()| None),
            }
            Place::Directory { path: path.clone(), mode: image.mode, owner: Some(owner).filter(|o| *o != (0, 0)) }
        } else if self.tree.look(whole.as_ref())?.is_some() {
            // A file, or a link that leads nowhere.
            return Ok(None);
        } else {
            Place::Directory { path: path.clone(), mode: 0o755, owner: None }
        };
        if !self.made.insert(path.clone()) {
            return Ok(None);
        }
        self.list.push(made);
        Ok(Some(path))
    }
}

fn join(above: &str, name: &str) -> String {
    if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{FileMount, Symlink};
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn grant(mounts: &[&str], links: &[&str]) -> GpuGrant {
        let mount = |target: &&str| FileMount {
            source: "/dev/null".into(),
            target: target.into(),
            kind: MountKind::File,
            read_only: true,
            executable: true,
            recursive: false,
        };
        let link = |link: &&str| Symlink { link: link.into(), target: "file".into() };
        GpuGrant {
            mounts: mounts.iter().map(mount).collect(),
            links: links.iter().map(link).collect(),
            ..GpuGrant::default()
        }
    }

    fn list(places: &Places) -> Vec<String> {
        let words = |place: &Place| match place {
            Place::Directory { path, mode, owner: None } => format!("{path}/ {mode:o}"),
            Place::Directory { path, mode, owner: Some((user, group)) } => format!("{path}/ {mode:o} {user}:{group}"),
            Place::File { path } => path.clone(),
            Place::Link { path, target } => format!("{path} -> {target}"),
        };
        places.list.iter().map(words).collect()
    }

    #[test]
    fn directories_are_like_the_image_and_links_are_followed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir_all(root.join("usr/lib")).unwrap();
        std::fs::set_permissions(root.join("usr/lib"), PermissionsExt::from_mode(0o1750)).unwrap();
        symlink("usr/lib", root.join("lib64")).unwrap();
        let tree = Stack::open([root]).unwrap();
        let grant = grant(&["/lib64/a.so", "/usr/bin/tool", "/usr/lib/a.so"], &["/lib64/sub/b.so"]);
        let own = |_, _| Some((7, 8));
        let places = Places::of(&grant, &tree, &[], &own).unwrap();
        let expected = [
            "usr/ 755 7:8",
            "usr/lib/ 1750 7:8",
            "usr/lib/a.so",
            "usr/bin/ 755",
            "usr/bin/tool",
            "usr/lib/sub/ 755",
            "usr/lib/sub/b.so -> file",
        ];
        assert_eq!(list(&places), expected);
        assert!(places.has_link(Path::new("/lib64/sub/b.so")));
        let many = Stack::open(vec![root; MOST_LAYERS + 1]).unwrap();
        assert!(list(&Places::of(&grant, &many, &[], &own).unwrap()).is_empty());
    }

    #[test]
    fn what_cannot_be_made_faithfully_is_left_to_later_steps() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for path in ["usr/lib", "special", "mounted", "strange"] {
            std::fs::create_dir_all(root.join(path)).unwrap();
        }
        std::fs::set_permissions(root.join("special"), PermissionsExt::from_mode(0o2755)).unwrap();
        std::fs::set_permissions(root.join("strange"), PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();
        symlink("circle", root.join("circle")).unwrap();
        symlink("mounted", root.join("other")).unwrap();
        let tree = Stack::open([root]).unwrap();
        let paths = ["/special/a", "/file/a", "/dangling/a", "/circle/a", "/mounted/a", "/other/a", "/mounted/b/c"];
        let grant = grant(&paths, &["/mounted/link", "/mounted"]);
        let places = Places::of(&grant, &tree, &["/other"], &|_, _| Some((0, 0))).unwrap();
        assert!(list(&places).is_empty(), "{:?}", list(&places));
        assert!(!places.has_link(Path::new("/mounted/link")));
        let stranger = Places::of(&self::grant(&["/strange/a"], &[]), &tree, &[], &|_, _| None).unwrap();
        assert!(list(&stranger).is_empty());
    }
}
