//! Telling the image's dynamic loader where the granted libraries are.
//!
//! What `ldconfig` would do in the image is done here: no program of the image is executed, and nothing in
//! it is changed; the result is shown over the image's own file.

use crate::gpu::driver::elf::{self, Machine};
use crate::gpu::driver::loader_cache::Entry;
use crate::gpu::grant::{GpuGrant, MountKind, OwnFile};
use crate::gpu::injection::compatibility::Compatibility;
use crate::gpu::injection::image_facts::{ImageFacts, musl_path_file, narrow_musl};

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Where musl searches if nobody says.
const MUSL_DEFAULT: &str = "/lib:/usr/local/lib:/usr/lib";

/// Adds the loader's settings to the grant, for the libraries that are in it, and for those of the image that are to
/// be used in place of the driver's.
pub(crate) fn tell(image: &ImageFacts, grant: &mut GpuGrant) {
    if grant.library_directories.is_empty() {
        return;
    }
    // A library without the driver's version in its name is of WSL or of a board, where others have no kernel to work on.
    let driver = grant.driver_version.as_deref().filter(|version| {
        let cuda = format!("libcuda.so.{version}");
        grant.mounts.iter().any(|mount| mount.target.file_name().is_some_and(|name| name == cuda.as_str()))
    });
    let compatibility = image.compatibility.as_ref().zip(driver).filter(|(own, driver)| own.serves(driver));
    let compatibility = compatibility.map(|(own, _)| own);
    if let Some(cached) = &image.loader_cache {
        let mut new: Vec<Entry> = compatibility.into_iter().flat_map(Compatibility::entries).collect();
        new.extend(granted(image, grant));
        let contents = cached.with(new);
        grant.files.push(OwnFile { path: "/etc/ld.so.cache".into(), contents, mode: 0o644 });
        if let Some(compatibility) = compatibility {
            tracing::debug!(version = compatibility.version(), "the image's compatibility libraries come first");
        }
    }
    if image.musl {
        let narrow = image.library_directory_32();
        let (thirty_two, native): (Vec<&PathBuf>, Vec<&PathBuf>) =
            grant.library_directories.iter().partition(|directory| narrow.as_ref() == Some(*directory));
        let native = musl_path(image.musl_path.as_deref(), &native, false);
        let thirty_two = musl_path(image.musl_path_32.as_deref(), &thirty_two, true);
        for (arch, contents) in [(std::env::consts::ARCH, native), (narrow_musl(), thirty_two)] {
            if let Some(contents) = contents {
                grant.files.push(OwnFile { path: musl_path_file(arch), contents: contents.into_bytes(), mode: 0o644 });
            }
        }
    }
}

/// The file that tells a loader of musl to search `directories` too, before others or after them; `None` if it does.
fn musl_path(own: Option<&str>, directories: &[&PathBuf], first: bool) -> Option<String> {
    let default = || MUSL_DEFAULT.split(':').collect::<Vec<&str>>();
    let listed: Vec<&str> = match own {
        Some(own) => own.split([':', '\n']).map(str::trim).filter(|part| !part.is_empty()).collect(),
        None => default(),
    };
    let wanted: Vec<&str> = directories.iter().filter_map(|directory| directory.to_str()).collect();
    if wanted.iter().all(|directory| listed.contains(directory)) {
        return None;
    }
    // With an empty file the loader searches nowhere, which is not what anybody can have meant.
    let before = if listed.is_empty() { default() } else { listed };
    let missing: Vec<&str> = wanted.into_iter().filter(|directory| !before.contains(directory)).collect();
    let lines = if first { [missing, before].concat() } else { [before, missing].concat() };
    Some(lines.into_iter().map(|line| format!("{line}\n")).collect())
}

/// The granted libraries, by the names that links give them and by their own.
fn granted(image: &ImageFacts, grant: &GpuGrant) -> Vec<Entry> {
    let narrow = image.library_directory_32();
    // Paths are texts here: by their parts they would be compared for longer than all the rest takes.
    let directories: Vec<&str> = grant.library_directories.iter().filter_map(|one| one.to_str()).collect();
    let entry = |path: &Path| {
        let (directory, name) = path.to_str()?.rsplit_once('/')?;
        if !name.starts_with("lib") || !name.contains(".so") || !directories.contains(&directory) {
            return None;
        }
        let thirty_two_bit = narrow.as_deref() == Some(Path::new(directory)) && is_narrow(path, grant);
        Some(Entry::new(name, path.to_str()?, thirty_two_bit))
    };
    let linked = grant.links.iter().filter_map(|link| Some(link.link.parent()?.join(&link.target).into_os_string()));
    let linked: HashSet<OsString> = linked.collect();
    // A library that has a link is asked for by the link.
    let files = grant.mounts.iter().filter(|mount| mount.kind == MountKind::File).map(|mount| &mount.target);
    let files = files.filter(|target| !linked.contains(target.as_os_str()));
    grant.links.iter().map(|link| &link.link).chain(files).filter_map(|path| entry(path)).collect()
}

/// Whether the granted library that `path` leads to is for 32-bit programs.
///
/// Where images keep those, other engines' specifications may have put native ones.
fn is_narrow(path: &Path, grant: &GpuGrant) -> bool {
    let mut path = path.to_owned();
    // From the name without a version over that with one to the file.
    for _ in 0..4 {
        if let Some(mount) = grant.mounts.iter().find(|mount| mount.target == path) {
            let object = crate::sys::fs::open(&mount.source).map(|file| elf::read(&file));
            return matches!(object, Ok(Ok(object)) if object.machine == Machine::Narrow);
        }
        let Some(link) = grant.links.iter().find(|link| link.link == path) else { return false };
        path = path.parent().unwrap_or(Path::new("/")).join(&link.target);
    }
    false
}
