//! Reading an image before anything of it runs: its loader's cache, its C library.
//!
//! Whatever is in the image is input like any other: sizes and numbers are bounded, and what cannot be
//! read counts as not being there.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::driver::elf::{self, Machine};
use crate::gpu::driver::loader_cache::{self, Entry, LoaderCache};
use crate::gpu::injection::image_facts::{ImageFacts, triplet};
use crate::layer::Stack;
use crate::sys::fs::File;
use crate::sys::root::Root;

use std::io::Read;
use std::path::{Path, PathBuf};

/// The largest cache that is read; ten thousand libraries make one megabyte.
const MAX_CACHE: u64 = 16 << 20;
/// The longest file of settings that is read.
const MAX_TEXT: u64 = 64 << 10;
/// Libraries and directories that are looked at where an image has no cache.
const MAX_LIBRARIES: usize = 4096;
const MAX_DIRECTORIES: usize = 64;

/// The loader of 32-bit programs with glibc.
const NARROW_LOADER: &str =
    if cfg!(target_arch = "aarch64") { "/lib/ld-linux-armhf.so.3" } else { "/lib/ld-linux.so.2" };

/// The files of an image, by absolute paths of the container; links lead nowhere but inside.
pub(crate) trait ImageFiles {
    /// Whether there is something at `path`.
    fn exists(&self, path: &Path) -> bool;

    /// Opens a regular file; `None` for everything else, which is not even opened.
    fn open(&self, path: &Path) -> Option<File>;

    /// The names in a directory, sorted.
    fn names(&self, path: &Path) -> Vec<String>;
}

impl ImageFiles for Root {
    fn exists(&self, path: &Path) -> bool {
        self.exists_at(path)
    }

    fn open(&self, path: &Path) -> Option<File> {
        self.open_file(path).ok()
    }

    fn names(&self, path: &Path) -> Vec<String> {
        self.names_at(path).unwrap_or_default().into_iter().map(|(name, _)| name).collect()
    }
}

impl ImageFiles for Stack {
    fn exists(&self, path: &Path) -> bool {
        known(self, Self::exists(self, path)).unwrap_or(false)
    }

    fn open(&self, path: &Path) -> Option<File> {
        known(self, self.open_file(path)).flatten()
    }

    fn names(&self, path: &Path) -> Vec<String> {
        known(self, Self::names(self, path)).unwrap_or_default()
    }
}

/// What was learnt, if anything; that it was not is noted.
fn known<T>(files: &Stack, learnt: Result<T>) -> Option<T> {
    // Links in a circle are a fact of the image.
    let is_fact = |error: &Error| error.kind() == ErrorKind::InvalidImage;
    learnt
        .inspect_err(|error| {
            if !is_fact(error) {
                files.note_fault()
            }
        })
        .ok()
}

fn read(files: &dyn ImageFiles, path: &Path, limit: u64) -> Option<Vec<u8>> {
    let file = files.open(path)?;
    let size = file.metadata().ok()?.len().min(limit);
    // One more, so that the end is seen without a larger buffer.
    let mut bytes = Vec::with_capacity(usize::try_from(size).ok()? + 1);
    file.take(limit).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// A small text.
pub(crate) fn text(files: &dyn ImageFiles, path: &Path) -> Option<String> {
    read(files, path, MAX_TEXT).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Finds what the loader of glibc knows, and which version it is.
pub(crate) fn loader(files: &dyn ImageFiles, facts: &mut ImageFacts) {
    let entries = read(files, Path::new("/etc/ld.so.cache"), MAX_CACHE).map(|bytes| loader_cache::read(&bytes));
    let cached = entries.filter(|entries| !entries.is_empty());
    let c_library = |path: &Path| {
        let object = elf::read(&files.open(path)?).ok()?;
        (object.machine == Machine::Native).then_some(object.defines).flatten()
    };
    let listed = cached.iter().flatten().filter(|entry| entry.name == "libc.so.6").map(|entry| entry.path.clone());
    let usual = system_directories().into_iter().map(|directory| format!("{directory}/libc.so.6"));
    facts.glibc = listed.chain(usual).find_map(|path| c_library(Path::new(&path)));
    facts.loader_cache = match (cached, facts.glibc) {
        (Some(entries), _) => Some(LoaderCache::new(entries)),
        (None, Some(_)) => Some(LoaderCache::new(search(files))),
        (None, None) if files.exists(Path::new(NARROW_LOADER)) => Some(LoaderCache::new(search(files))),
        // Programs that bring their C library within them have no use for a cache.
        (None, None) => None,
    };
}

/// The directories that the loader searches without being told.
fn system_directories() -> [String; 6] {
    let plain = ["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(str::to_owned);
    let [a, b, c, d] = plain;
    [format!("/lib/{}", triplet()), format!("/usr/lib/{}", triplet()), a, b, c, d]
}

/// What `ldconfig` would find in an image that it was never run in.
fn search(files: &dyn ImageFiles) -> Vec<Entry> {
    let mut directories: Vec<String> = Vec::new();
    configured(files, Path::new("/etc/ld.so.conf"), 0, &mut directories);
    directories.extend(system_directories());
    let mut entries: Vec<Entry> = Vec::new();
    let mut looked_at = 0;
    for directory in directories.iter().take(MAX_DIRECTORIES) {
        for name in files.names(Path::new(directory)) {
            let library = name.starts_with("lib") || name.starts_with("ld-");
            if !library || !(name.ends_with(".so") || name.contains(".so.")) || !elf::is_file_name(&name) {
                continue;
            }
            looked_at += 1;
            if looked_at > MAX_LIBRARIES {
                return entries;
            }
            let path = format!("{directory}/{name}");
            let Some(Ok(object)) = files.open(Path::new(&path)).map(|file| elf::read(&file)) else { continue };
            let narrow = match object.machine {
                Machine::Native => false,
                Machine::Narrow => true,
                Machine::Foreign => continue,
            };
            let wanted = object.soname.unwrap_or_else(|| name.clone());
            let entry = |wanted: &str| Entry::new(wanted, path.clone(), narrow);
            // The file itself, and the name without a version that compilers use.
            for wanted in [wanted.as_str(), name.as_str()] {
                if (wanted == name || !name.ends_with(".so")) && !entries.contains(&entry(wanted)) {
                    entries.push(entry(wanted));
                }
            }
        }
    }
    entries
}

/// The directories that a configuration of the loader lists; it may include others.
fn configured(files: &dyn ImageFiles, path: &Path, depth: u32, directories: &mut Vec<String>) {
    let Some(text) = text(files, path).filter(|_| depth < 4) else { return };
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        if directories.len() >= MAX_DIRECTORIES {
            return;
        }
        if let Some(patterns) = line.strip_prefix("include").filter(|rest| rest.starts_with([' ', '\t'])) {
            for pattern in patterns.split_whitespace() {
                for file in matching(files, path, pattern) {
                    configured(files, &file, depth + 1, directories);
                }
            }
        } else if line.starts_with('/') {
            let directory = line.split(['=', ' ', '\t']).next().unwrap_or_default().trim_end_matches('/');
            directories.push(directory.to_owned());
        }
    }
}

/// The files that a pattern with at most one `*`, in its last part, means.
fn matching(files: &dyn ImageFiles, from: &Path, pattern: &str) -> Vec<PathBuf> {
    let pattern = from.parent().unwrap_or(Path::new("/")).join(pattern);
    let (Some(directory), Some(name)) = (pattern.parent(), pattern.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let Some((before, after)) = name.split_once('*') else { return vec![pattern] };
    let fits = |name: &String| {
        name.len() >= before.len() + after.len()
            && name.starts_with(before)
            && name.ends_with(after)
            && !name.starts_with('.')
    };
    files.names(directory).into_iter().filter(fits).take(MAX_DIRECTORIES).map(|name| directory.join(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_s_configuration_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let etc = directory.path().join("etc/ld.so.conf.d");
        std::fs::create_dir_all(&etc).unwrap();
        let main = "# own\ninclude ld.so.conf.d/*.conf\ninclude /etc/ld.so.conf\n/opt/own/ # first\nhwcap 1 nosegneg\nrelative\n";
        std::fs::write(directory.path().join("etc/ld.so.conf"), main).unwrap();
        std::fs::write(etc.join("b.conf"), "/b\n").unwrap();
        std::fs::write(etc.join("a.conf"), "/a=libc6\n").unwrap();
        std::fs::write(etc.join("a.conf.bak"), "/never\n").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", etc.join("c.conf")).unwrap();
        let root = Root::open(directory.path()).unwrap();
        let mut directories = Vec::new();
        configured(&root, Path::new("/etc/ld.so.conf"), 0, &mut directories);
        assert_eq!(directories[..2], ["/a", "/b"]);
        assert!(
            directories.contains(&"/opt/own".to_owned()) && directories.len() <= MAX_DIRECTORIES,
            "{directories:?}"
        );
        assert!(directories.iter().all(|directory| ["/a", "/b", "/opt/own"].contains(&directory.as_str())));
    }

    #[test]
    fn libraries_are_found_where_there_is_no_cache() {
        let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
        let Some(libc) =
            maps.lines().find_map(|line| line.split_whitespace().find(|word| word.ends_with("/libc.so.6")))
        else {
            eprintln!("SKIP libraries_are_found_where_there_is_no_cache: the C library is not glibc");
            return;
        };
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("usr/lib").join(triplet());
        std::fs::create_dir_all(&place).unwrap();
        std::fs::copy(libc, place.join("libc-of-the-test.so")).unwrap();
        std::fs::copy(libc, place.join("libc.so.6")).unwrap();
        std::fs::write(place.join("libbroken.so.1"), "\x7fELF, but no more").unwrap();
        assert!(std::process::Command::new("mkfifo").arg(place.join("libpipe.so.1")).status().unwrap().success());
        let facts = ImageFacts::of_directory(directory.path(), Vec::new()).unwrap();
        assert!(facts.glibc.is_some());
        let entries = facts.loader_cache.unwrap().entries().to_vec();
        let expected = format!("/usr/lib/{}/libc.so.6", triplet());
        assert!(entries.iter().any(|entry| entry.name == "libc.so.6" && entry.path == expected), "{entries:?}");
        assert!(entries.iter().all(|entry| !entry.path.contains("broken") && !entry.path.contains("pipe")));
    }
}
