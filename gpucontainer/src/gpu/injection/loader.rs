//! Telling the image's dynamic loader where the granted libraries are.
//!
//! What `ldconfig` would do in the image is done here: no program of the image is executed, and nothing in
//! it is changed; the result is shown over the image's own file.

use crate::gpu::driver::loader_cache::{self, Entry};
use crate::gpu::grant::{GpuGrant, MountKind, OwnFile};
use crate::gpu::injection::compatibility::Compatibility;
use crate::gpu::injection::image_facts::{ImageFacts, musl_path_file};

use std::collections::HashSet;
use std::path::Path;

/// Where musl searches if nobody says.
const MUSL_DEFAULT: &str = "/lib:/usr/local/lib:/usr/lib";

/// Adds the loader's settings to the grant, for the libraries that are in it, and for those of the image that are to
/// be used in place of the driver's.
pub(crate) fn tell(image: &ImageFacts, grant: &mut GpuGrant) {
    if grant.library_directories.is_empty() {
        return;
    }
    let cuda =
        |target: &Path| target.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"libcuda.so."));
    let has_cuda = grant.mounts.iter().any(|mount| cuda(&mount.target));
    let driver = grant.driver_version.as_deref().filter(|_| has_cuda);
    let compatibility = image.compatibility.as_ref().zip(driver).filter(|(own, driver)| own.serves(driver));
    let compatibility = compatibility.map(|(own, _)| own);
    if let Some(cached) = &image.loader_cache {
        let mut new: Vec<Entry> = compatibility.into_iter().flat_map(Compatibility::entries).collect();
        new.extend(granted(image, grant));
        let known: HashSet<(&str, &str)> = new.iter().map(Entry::key).collect();
        let own = cached.iter().filter(|entry| !known.contains(&entry.key()));
        let contents = loader_cache::write(new.iter().chain(own));
        grant.files.push(OwnFile { path: "/etc/ld.so.cache".into(), contents, mode: 0o644 });
        if let Some(compatibility) = compatibility {
            tracing::debug!(version = compatibility.version(), "the image's compatibility libraries come first");
        }
    }
    if let (true, Some(path)) = (image.musl, &image.musl_path) {
        let listed: Vec<&str> = path.split([':', '\n']).map(str::trim).filter(|part| !part.is_empty()).collect();
        let missing: Vec<String> = grant
            .library_directories
            .iter()
            .filter_map(|directory| directory.to_str())
            .filter(|directory| !listed.contains(directory))
            .map(str::to_owned)
            .collect();
        // An empty file means the default, as no file does.
        let before = if listed.is_empty() { MUSL_DEFAULT.split(':').collect() } else { listed };
        if !missing.is_empty() {
            let lines = before.into_iter().map(str::to_owned).chain(missing);
            let contents: String = lines.map(|line| line + "\n").collect();
            grant.files.push(OwnFile { path: musl_path_file(), contents: contents.into_bytes(), mode: 0o644 });
        }
    }
}

/// The granted libraries, by the names that links give them and by their own.
fn granted(image: &ImageFacts, grant: &GpuGrant) -> Vec<Entry> {
    let narrow = image.library_directory_32();
    let native = image.library_directory();
    let entry = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        let directory =
            path.parent().filter(|directory| grant.library_directories.iter().any(|one| one == directory))?;
        // Where one directory is for both there are no 32-bit libraries.
        let thirty_two_bit = directory == narrow && narrow != native;
        Some(Entry::new(name, path.to_str()?, thirty_two_bit))
    };
    let linked: HashSet<_> =
        grant.links.iter().filter_map(|link| Some(link.link.parent()?.join(&link.target))).collect();
    // A library that has a link is asked for by the link.
    let files = grant.mounts.iter().filter(|mount| mount.kind == MountKind::File).map(|mount| &mount.target);
    let files = files.filter(|target| !linked.contains(*target));
    grant.links.iter().map(|link| &link.link).chain(files).filter_map(|path| entry(path)).collect()
}
