//! Tegra, NVIDIA's processor with a GPU in it: no version, no management library that must be there, and lists of what
//! containers need.

pub(crate) mod list;
mod pattern;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::driver::root::DriverRoot;
use crate::sys::fs;

use list::{Kind, Line};
use std::path::{Component, Path, PathBuf};

/// The directory of the lists.
const LISTS: &str = "/etc/nvidia-container-runtime/host-files-for-container.d";
/// The lists that every container gets; others are for images that bring less, and say so.
const BASE: &[&str] = &["devices.csv", "drivers.csv", "l4t.csv"];
/// The file of the board's system, by which programs know it.
pub(crate) const RELEASE: &str = "/etc/nv_tegra_release";

/// More paths than any board's lists have.
const MAX_PATHS: usize = 16_384;
/// Links that lead to links: more are none that end.
const MAX_LINKS: usize = 16;

/// Whether `root` is the system of such a processor, with lists.
pub(crate) fn is_tegra(root: &DriverRoot) -> bool {
    let family = || root.text("/sys/devices/soc0/family");
    let named = || family().is_some_and(|family| family.trim().to_ascii_lowercase().starts_with("tegra"));
    root.resolve(Path::new(LISTS)).is_ok() && (root.resolve(Path::new(RELEASE)).is_ok() || named())
}

/// What lists name and the host has.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// Device nodes, by their places.
    pub(crate) devices: Vec<PathBuf>,
    /// Directories: the place in a container, and the path of the host without links.
    pub(crate) directories: Vec<(PathBuf, PathBuf)>,
    /// Files, in the same way.
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
    /// Links: the place, and what they say.
    pub(crate) links: Vec<(PathBuf, PathBuf)>,
}

/// Reads the lists of `root`: all of them, or those that every container gets. What the host does not have is left
/// out: lists are for all boards.
///
/// # Errors
/// [`ErrorKind::GpuUnavailable`] for a list that cannot be read, or a line that is malformed; the text names both.
pub(crate) fn listed(root: &DriverRoot, all: bool) -> Result<Listed> {
    let mut listed = Listed::default();
    let names = root.names(Path::new(LISTS)).into_iter().filter(|name| name.ends_with(".csv"));
    for name in names.filter(|name| all || BASE.contains(&name.as_str())) {
        for line in read(root, &Path::new(LISTS).join(name))? {
            for place in expand(root, &line) {
                add(root, line.kind, place, &mut listed);
            }
        }
    }
    listed.devices.sort();
    listed.devices.dedup();
    Ok(listed)
}

fn read(root: &DriverRoot, path: &Path) -> Result<Vec<Line>> {
    let text = root.resolve(path).and_then(|path| {
        let bytes = if fs::metadata(&path)?.is_file() { fs::read_small(&path)? } else { Vec::new() };
        String::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::GpuUnavailable, "it is no text"))
    });
    let text = text
        .map_err(|error| error.with_kind(ErrorKind::GpuUnavailable))
        .with_context(|| format!("read {}", path.display()))?;
    list::parse(&text).map_err(|(number, why)| {
        let why = format!("{}, line {number}: {why}", path.display());
        Error::new(ErrorKind::GpuUnavailable, why).with_path(path)
    })
}

/// The paths that a line means; the one that it says, if it has no pattern.
fn expand(root: &DriverRoot, line: &Line) -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::from("/")];
    for part in &line.parts {
        if let Some(name) = part.literal() {
            paths.iter_mut().for_each(|path| path.push(&name));
            continue;
        }
        let matching = |directory: &PathBuf| {
            let names = root.names(directory).into_iter().filter(|name| part.matches(name));
            names.map(|name| directory.join(name)).collect::<Vec<_>>()
        };
        paths = paths.iter().flat_map(matching).take(MAX_PATHS).collect();
    }
    paths
}

fn add(root: &DriverRoot, kind: Kind, place: PathBuf, listed: &mut Listed) {
    let Ok(host_path) = root.resolve(&place) else {
        tracing::debug!(path = %place.display(), "listed for containers, and not there");
        return;
    };
    let Ok(facts) = fs::metadata(&host_path) else { return };
    match kind {
        // A pattern for nodes may match a directory of others.
        Kind::Device if !facts.is_dir() => listed.devices.push(place),
        Kind::Directory if facts.is_dir() => put(&mut listed.directories, place, host_path),
        Kind::Library | Kind::Link => {
            let end = follow(root, place, &host_path, &mut listed.links);
            if facts.is_file() {
                put(&mut listed.files, end, host_path);
            }
        }
        other => tracing::debug!(path = %place.display(), kind = ?other, "listed as what it is not"),
    }
}

fn put(all: &mut Vec<(PathBuf, PathBuf)>, place: PathBuf, what: PathBuf) {
    if all.iter().all(|(known, _)| *known != place) {
        all.push((place, what));
    }
}

/// Adds the links that lead from `place` to `end` on the host, and returns the place where the last of them leads to.
fn follow(root: &DriverRoot, mut place: PathBuf, end: &Path, links: &mut Vec<(PathBuf, PathBuf)>) -> PathBuf {
    for _ in 0..MAX_LINKS {
        let (Some(parent), Some(name)) = (place.parent(), place.file_name()) else { break };
        let Ok(directory) = root.resolve(parent) else { break };
        let Ok(says) = fs::read_link(&directory.join(name)) else { break };
        let next = without_dots(&parent.join(&says));
        // Where directories on the way are links themselves, dots may lead elsewhere than they seem to.
        let next = match root.resolve(&next) {
            Ok(path) if path == end => next,
            _ => match root.inside(end) {
                Some(inside) => {
                    put(links, place, inside.clone());
                    return inside;
                }
                None => break,
            },
        };
        put(links, place, says);
        place = next;
    }
    place
}

fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            _ => {}
        }
    }
    plain
}

/// The numbers in the nodes of GPUs that the lists name and the host has, as in `/dev/nvidia2`.
pub(crate) fn minors(root: &DriverRoot) -> Vec<u32> {
    let listed = listed(root, false).unwrap_or_default();
    let minor = |device: &PathBuf| device.to_str()?.strip_prefix("/dev/nvidia")?.parse().ok();
    listed.devices.iter().filter_map(minor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn lists_become_files_and_links() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        for path in ["usr/lib/tegra", "usr/share/x", &LISTS[1..], "real"] {
            std::fs::create_dir_all(at(path)).unwrap();
        }
        for path in ["usr/lib/tegra/libcuda.so.1.1", "usr/lib/tegra/libb.so", "real/libc.so.1"] {
            std::fs::write(at(path), "").unwrap();
        }
        symlink("libcuda.so.1.1", at("usr/lib/tegra/libcuda.so.1")).unwrap();
        symlink("tegra/libcuda.so.1", at("usr/lib/libcuda.so")).unwrap();
        symlink("/real", at("usr/lib/aside")).unwrap();
        symlink("../usr/lib/tegra/libb.so", at("real/libd.so")).unwrap();
        symlink("/etc/passwd", at("usr/lib/tegra/out.so")).unwrap();
        symlink("loop.so", at("usr/lib/tegra/loop.so")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(at(&LISTS[1..]).join(name), text).unwrap();
        write("l4t.csv", "sym, /usr/lib/libcuda.so\nlib, /usr/lib/tegra/*.so\nlib, /usr/lib/aside/lib*\n");
        write("drivers.csv", "dir, /usr/share/x\ndir, /usr/lib/tegra/libb.so\nlib, /not/there\n");
        write("more.csv", "malformed");
        write("README", "malformed");
        let root = DriverRoot::new(directory.path());
        let found = listed(&root, false).unwrap();
        let text = |pairs: &[(PathBuf, PathBuf)]| -> Vec<String> {
            let strip = |path: &Path| root.inside(path).unwrap_or(path.to_owned()).display().to_string();
            pairs.iter().map(|(place, what)| format!("{} {}", place.display(), strip(what))).collect()
        };
        assert_eq!(
            text(&found.files),
            [
                "/usr/lib/tegra/libcuda.so.1.1 /usr/lib/tegra/libcuda.so.1.1",
                "/usr/lib/tegra/libb.so /usr/lib/tegra/libb.so",
                "/usr/lib/aside/libc.so.1 /real/libc.so.1",
            ]
        );
        assert_eq!(
            text(&found.links),
            [
                "/usr/lib/libcuda.so tegra/libcuda.so.1",
                "/usr/lib/tegra/libcuda.so.1 libcuda.so.1.1",
                "/usr/lib/aside/libd.so /usr/lib/tegra/libb.so",
            ]
        );
        assert_eq!(text(&found.directories), ["/usr/share/x /usr/share/x"]);
        let error = listed(&root, true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
        assert!(error.to_string().contains("more.csv, line 1: \"malformed\": it is not KIND, PATH"), "{error}");
        std::fs::write(at(&LISTS[1..]).join("l4t.csv"), b"\xff\n").unwrap();
        assert!(listed(&root, false).unwrap_err().to_string().contains("l4t.csv: it is no text"));
    }
}
