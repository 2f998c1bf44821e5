//! The driver's libraries, programs, settings and sockets, at the places where the image's programs look.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::driver::catalog;
use crate::gpu::driver::{Driver, DriverFile, DriverLibrary};
use crate::gpu::grant::{FileMount, GpuGrant, MountKind, Symlink};
use crate::gpu::injection::image_facts::ImageFacts;
use crate::gpu::request::{DriverCapability, GpuRequest};

use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Libraries without which the capability that they belong to is worth nothing.
const ESSENTIAL: &[&str] = &["libcuda.so.", "libnvidia-ml.so."];

/// Adds what `request` wants of `driver` to the grant.
pub(crate) fn user_space(
    request: &GpuRequest,
    driver: &Driver,
    image: &ImageFacts,
    grant: &mut GpuGrant,
) -> Result<()> {
    let native = image.library_directory();
    let narrow = image.library_directory_32();
    let thirty_two = request.wants(DriverCapability::Compat32);
    let asked = driver.libraries.iter().filter(|library| request.wants(library.file.capability));
    let asked: Vec<&DriverLibrary> = asked.filter(|library| !library.thirty_two_bit || thirty_two).collect();
    if narrow.is_none() && asked.iter().any(|library| library.thirty_two_bit) {
        grant.left_out.push("the 32-bit libraries need a 32-bit loader, and the image's musl has none".to_owned());
    }
    let asked = asked.into_iter().filter(|library| !library.thirty_two_bit || narrow.is_some());
    let wanted: Vec<&DriverLibrary> = asked.filter(|library| fits(library, image, grant)).collect();
    let compute = request.wants(DriverCapability::Compute);
    let has = |name: &str| {
        let mut native = wanted.iter().filter(|library| !library.thirty_two_bit);
        native.any(|library| library.file.place.to_string_lossy().starts_with(name))
    };
    if let Some(why) = grant.left_out.iter().find(|why| ESSENTIAL.iter().any(|name| why.starts_with(name))) {
        return Err(Error::new(ErrorKind::GpuUnavailable, format!("driver {}: {why}", driver.version)));
    }
    if compute && !has("libcuda.so.") {
        let why = format!("driver {}: libcuda.so.{} is missing or cannot be used", driver.version, driver.version);
        return Err(Error::new(ErrorKind::GpuUnavailable, why));
    }
    for library in &wanted {
        let directory = narrow.as_ref().filter(|_| library.thirty_two_bit).unwrap_or(&native);
        add_library(library, directory, grant);
    }
    for directory in grant.library_directories.clone() {
        // Paths are compared as texts here: by their parts it would take longer than all the rest.
        let mounts = grant.mounts.iter().map(|mount| mount.target.as_os_str());
        let linked: HashSet<_> = grant.links.iter().map(|known| known.link.as_os_str()).collect();
        let there: HashSet<_> = mounts.chain(linked.iter().copied()).collect();
        let producer = format!("libnvidia-vulkan-producer.so.{}", driver.version);
        let producer = ("libnvidia-vulkan-producer.so", producer.as_str());
        let links = catalog::LINKS.iter().copied().chain([producer]).filter_map(|(link, target)| {
            let link = directory.join(link);
            // Wherever the link itself is, it leads to a library of this directory.
            let leads_to = directory.join(Path::new(target).file_name().unwrap_or_default());
            let wanted = there.contains(leads_to.as_os_str()) && !linked.contains(link.as_os_str());
            wanted.then(|| Symlink { link, target: target.into() })
        });
        let links: Vec<Symlink> = links.collect();
        grant.links.extend(links);
    }
    let programs = driver.programs.iter().chain(&driver.modules).map(|file| (file, true));
    for module in driver.modules.iter().filter(|module| request.wants(module.capability)) {
        let name = module.place.file_name().unwrap_or_default().to_string_lossy();
        // The X server asks for its part of OpenGL by the name without a version.
        if let Some((plain, _)) = name.split_once(".so.") {
            let link = module.place.with_file_name(format!("{plain}.so"));
            grant.links.push(Symlink { link, target: PathBuf::from(&*name) });
        }
    }
    let files = programs.chain(driver.data.iter().map(|file| (file, false)));
    for (file, executable) in files.filter(|(file, _)| request.wants(file.capability)) {
        grant.mounts.push(mount(file, file.place.clone(), MountKind::File, true, executable));
    }
    for file in driver.sockets.iter().filter(|file| request.wants(file.capability)) {
        grant.mounts.push(mount(file, file.place.clone(), MountKind::Socket, false, false));
    }
    if let (true, true, Some(directory)) =
        (compute, request.wants_multi_process_service(), &driver.multi_process_service)
    {
        grant.mounts.push(FileMount {
            source: directory.clone(),
            target: "/tmp/nvidia-mps".into(),
            kind: MountKind::Directory,
            read_only: false,
            executable: false,
            recursive: false,
        });
    }
    grant.links.sort();
    grant.links.dedup();
    Ok(())
}

fn add_library(library: &DriverLibrary, directory: &Path, grant: &mut GpuGrant) {
    let target = directory.join(&library.file.place);
    let parent = target.parent().unwrap_or(directory).to_owned();
    let own = library.file.place.file_name().map(PathBuf::from).unwrap_or_default();
    if parent == directory && !grant.library_directories.contains(&parent) {
        grant.library_directories.push(parent.clone());
    }
    let mut link_to =
        |name: &str, target: &Path| grant.links.push(Symlink { link: parent.join(name), target: target.to_owned() });
    if let Some(soname) = &library.soname {
        link_to(soname, &own);
    }
    let soname = library.soname.as_ref().map_or(own.as_path(), Path::new);
    // A name without a version that is what programs ask for anyway is no second name.
    if let Some(plain) = library.plain_name.as_ref().filter(|plain| Path::new(plain) != soname) {
        link_to(plain, soname);
    }
    // GLVND asks for the vendor's library under this name where there is no display.
    if library.soname.as_deref() == Some("libGLX_nvidia.so.0") {
        link_to("libGLX_indirect.so.0", &own);
    }
    grant.mounts.push(mount(&library.file, target, MountKind::File, true, true));
}

/// A mount of a file of the driver.
fn mount(file: &DriverFile, target: PathBuf, kind: MountKind, read_only: bool, executable: bool) -> FileMount {
    FileMount { source: file.host_path.clone(), target, kind, read_only, executable, recursive: false }
}

/// Said once for all libraries: whether a layer between the two helps, only the image's owner knows.
const MADE_FOR_GLIBC: &str = "the driver's libraries are made for glibc, and the image has musl: its programs find them, and \
                              load them only as far as a layer such as gcompat goes";

/// Whether the image's C library is new enough for the library; if not, the grant says so.
pub(crate) fn fits(library: &DriverLibrary, image: &ImageFacts, grant: &mut GpuGrant) -> bool {
    if image.musl && library.needs.is_some() && !grant.left_out.iter().any(|why| why == MADE_FOR_GLIBC) {
        grant.left_out.push(MADE_FOR_GLIBC.to_owned());
    }
    let (Some(needed), Some(has)) = (library.needs, image.glibc) else { return true };
    if library.thirty_two_bit || needed <= has {
        return true;
    }
    let name = library.file.place.display();
    grant.left_out.push(format!("{name} needs glibc {needed} or newer, and the image has glibc {has}"));
    false
}
