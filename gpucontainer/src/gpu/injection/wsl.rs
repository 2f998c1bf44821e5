//! WSL: the files of the driver of Windows at their own places, and one device for all GPUs.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::driver::platform::WSL_DEVICE;
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::driver::{Driver, DriverFile, DriverLibrary, wsl};
use crate::gpu::grant::{FileMount, GpuGrant, MountKind, Symlink};
use crate::gpu::injection::devices::Devices;
use crate::gpu::injection::image_facts::ImageFacts;
use crate::gpu::injection::user_space::fits;
use crate::gpu::inventory::Inventory;
use crate::gpu::request::{DriverCapability, GpuRequest, Vendor};
use crate::gpu::select::{Choice, unavailable, wish};

use std::path::Path;

/// The place at which programs expect it.
const TOOL: &str = "/usr/bin/nvidia-smi";

/// Adds the one node, if GPUs are granted: to all of them, which is the only choice that there is.
///
/// # Errors
/// `GpuUnavailable` if some GPUs are chosen and others are not.
pub(crate) fn nodes(
    request: &GpuRequest,
    choices: &[Choice<'_>],
    inventory: &Inventory,
    root: &DriverRoot,
    grant: &mut GpuGrant,
) -> Result<()> {
    if choices.is_empty() {
        return Ok(());
    }
    let others: Vec<&str> = inventory
        .gpus()
        .iter()
        .filter(|gpu| gpu.vendor == Vendor::Nvidia)
        .filter(|gpu| !choices.iter().any(|choice| choice.uuid() == gpu.uuid))
        .map(|gpu| gpu.name.as_str())
        .collect();
    if !others.is_empty() {
        return Err(unavailable(format!(
            "{} asked for: under WSL one device, {WSL_DEVICE}, is all GPUs, and nothing keeps a container that has it \
             from the others ({}): only all of them can be granted",
            wish(request),
            others.join(", ")
        )));
    }
    grant.device_nodes.push(Devices::read(root).existing(Path::new(WSL_DEVICE))?);
    Ok(())
}

/// Adds what `request` wants of `driver`.
pub(crate) fn user_space(
    request: &GpuRequest,
    driver: &Driver,
    image: &ImageFacts,
    grant: &mut GpuGrant,
) -> Result<()> {
    let core = |file: &DriverFile| file.place.ends_with(wsl::CORE);
    let wanted = |file: &DriverFile| core(file) || request.wants(file.capability);
    let asked = driver.libraries.iter().filter(|library| wanted(&library.file));
    let libraries: Vec<&DriverLibrary> = asked.filter(|library| fits(library, image, grant)).collect();
    let essential =
        |why: &&String| ["libdxcore.so ", "libcuda.so.", "libnvidia-ml.so."].iter().any(|name| why.contains(name));
    if let Some(why) = grant.left_out.iter().find(essential) {
        return Err(Error::new(ErrorKind::GpuUnavailable, format!("the driver of Windows: {why}")));
    }
    for (name, capability) in wsl::REQUIRED.iter().filter(|(_, capability)| request.wants(*capability)) {
        if wsl::has(driver, name) {
            continue;
        }
        let why = format!("{name} is not in the driver store, or cannot be used");
        if *capability == DriverCapability::Compute && name.starts_with("libcuda.so.") {
            return Err(Error::new(ErrorKind::GpuUnavailable, format!("the driver of Windows: {why}")));
        }
        grant.left_out.push(why);
    }
    for library in &libraries {
        grant.mounts.push(mount(&library.file, true));
        let directory = library.file.place.parent().unwrap_or(Path::new("/")).to_owned();
        if !grant.library_directories.contains(&directory) {
            grant.library_directories.push(directory);
        }
    }
    // What everything else is found through, is found last.
    grant.library_directories.sort_by_key(|directory| directory == Path::new(wsl::LIBRARIES));
    links(&libraries, grant);
    let programs = driver.programs.iter().map(|file| (file, true));
    for (file, executable) in programs.chain(driver.data.iter().map(|file| (file, false))) {
        if request.wants(file.capability) {
            grant.mounts.push(mount(file, executable));
        }
    }
    let tool = grant.mounts.iter().find(|mount| mount.target.ends_with("nvidia-smi")).map(|mount| mount.target.clone());
    grant.links.extend(tool.map(|target| Symlink { link: TOOL.into(), target }));
    grant.links.sort();
    grant.links.dedup();
    Ok(())
}

fn mount(file: &DriverFile, executable: bool) -> FileMount {
    let (source, target) = (file.host_path.clone(), file.place.clone());
    FileMount { source, target, kind: MountKind::File, read_only: true, executable, recursive: false }
}

/// The names by which programs ask for the libraries, where no file has them. Of a library and the small one that loads
/// it, which both want to be found by one name, it is the latter's.
fn links(libraries: &[&DriverLibrary], grant: &mut GpuGrant) {
    let loads = |library: &&DriverLibrary| library.file.place.to_string_lossy().ends_with("_loader.so");
    let (loaders, others): (Vec<&DriverLibrary>, Vec<&DriverLibrary>) = libraries.iter().partition(|one| loads(one));
    for library in loaders.into_iter().chain(others) {
        let (Some(directory), Some(own)) = (library.file.place.parent(), library.file.place.file_name()) else {
            continue;
        };
        let mut put = |name: &str, target: &Path| {
            let link = directory.join(name);
            let taken = grant.mounts.iter().any(|mount| mount.target == link)
                || grant.links.iter().any(|known| known.link == link);
            if !taken {
                grant.links.push(Symlink { link, target: target.to_owned() });
            }
        };
        if let Some(soname) = &library.soname {
            put(soname, Path::new(own));
        }
        if library.soname.as_deref() == Some("libcuda.so.1") {
            put("libcuda.so", Path::new("libcuda.so.1"));
        }
    }
}
