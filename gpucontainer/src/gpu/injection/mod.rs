//! From a request to a grant: choose the GPUs, find the driver, list what the container needs.

pub(crate) mod devices;
pub(crate) mod image_facts;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::driver::catalog;
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::driver::{Driver, DriverFile, DriverLibrary};
use crate::gpu::grant::{FileMount, FileTree, GpuGrant, MountKind, Symlink, TextFile};
use crate::gpu::injection::devices::{Devices, parse_capabilities};
use crate::gpu::injection::image_facts::ImageFacts;
use crate::gpu::inventory::Inventory;
use crate::gpu::request::{DriverCapability, GpuRequest, Vendor, Which};
use crate::gpu::select::{Choice, select};

use std::path::{Path, PathBuf};

/// The directory in which the driver tells its user space about itself and about every GPU.
pub(crate) const PROC: &str = "/proc/driver/nvidia";

/// Works out what a container of an image needs to use the GPUs that `request` asks for.
///
/// Nothing is changed and nothing stays open. Without a lease, two containers may be given the same GPU.
///
/// # Errors
/// [`ErrorKind::GpuUnavailable`] if the host cannot fulfil the request; the text says why.
pub fn grant(request: &GpuRequest, driver_root: &DriverRoot, image: &ImageFacts) -> Result<GpuGrant> {
    if request.is_none() {
        return Ok(GpuGrant::default());
    }
    let (_, of_inventory) = request.split();
    // Devices of specifications need none, which takes time.
    let inventory = of_inventory.map(|_| Inventory::discover_with(driver_root)).unwrap_or_default();
    grant_from(request, &inventory, driver_root, image)
}

/// As [`grant`], with an inventory that was made before.
///
/// # Errors
/// [`ErrorKind::GpuUnavailable`] if the inventory's GPUs cannot fulfil the request, or the driver that
/// serves them is not in `driver_root`.
pub fn grant_from(
    request: &GpuRequest,
    inventory: &Inventory,
    driver_root: &DriverRoot,
    image: &ImageFacts,
) -> Result<GpuGrant> {
    let (described, of_inventory) = request.split();
    let mut grant = match of_inventory {
        Some(request) => grant_of_inventory(&request, inventory, driver_root, image)?,
        None => GpuGrant::default(),
    };
    if !described.is_empty() {
        grant.add(request.grant_described(&described, driver_root)?);
    }
    Ok(grant)
}

fn grant_of_inventory(
    request: &GpuRequest,
    inventory: &Inventory,
    driver_root: &DriverRoot,
    image: &ImageFacts,
) -> Result<GpuGrant> {
    let choices = select(request, inventory)?;
    let gpus = choices.iter().map(|choice| choice.uuid().to_owned()).collect();
    let mut grant = GpuGrant { gpus, ..GpuGrant::default() };
    if request.is_none() {
        return Ok(grant);
    }
    if request.wanted_vendor() != Vendor::Nvidia {
        render_nodes(&choices, driver_root, &mut grant)?;
        return Ok(grant);
    }
    let driver = if request.wants_driver() {
        Some(Driver::discover(driver_root).context("find the NVIDIA driver")?)
    } else {
        None
    };
    nodes(request, &choices, driver_root, &mut grant)?;
    proc_files(&choices, driver_root, &mut grant);
    if let Some(driver) = driver {
        user_space(request, &driver, image, &mut grant)?;
        grant.driver_version = Some(driver.version);
    } else {
        grant.driver_version = inventory.driver_version().map(str::to_owned);
    }
    grant.environment = vec![
        // Engines' own hooks, should one run as well, must not add other GPUs.
        ("NVIDIA_VISIBLE_DEVICES".to_owned(), "void".to_owned()),
        // CUDA's own order, fastest first, would not be that of the grant.
        ("CUDA_DEVICE_ORDER".to_owned(), "PCI_BUS_ID".to_owned()),
    ];
    Ok(grant)
}

/// AMD and Intel: the nodes that draw and compute; images bring their own user space.
fn render_nodes(choices: &[Choice<'_>], root: &DriverRoot, grant: &mut GpuGrant) -> Result<()> {
    let devices = Devices::read(root);
    if choices.iter().any(|choice| choice.gpu().vendor == Vendor::Amd) {
        // The one node through which all AMD GPUs compute; the render nodes decide on which.
        grant.device_nodes.extend(devices.existing(Path::new("/dev/kfd")).ok());
    }
    for choice in choices {
        for path in &choice.gpu().render_nodes {
            grant.device_nodes.push(devices.existing(path)?);
        }
    }
    Ok(())
}

fn nodes(request: &GpuRequest, choices: &[Choice<'_>], root: &DriverRoot, grant: &mut GpuGrant) -> Result<()> {
    let devices = Devices::read(root);
    let nodes = &mut grant.device_nodes;
    if *request.which() == Which::DriverOnly {
        return Ok(());
    }
    nodes.push(devices.control()?);
    if request.wants(DriverCapability::Compute) {
        nodes.extend(devices.unified_memory()?);
    }
    if request.wants(DriverCapability::Display) {
        nodes.extend(devices.mode_setting());
    }
    let capabilities = root.text("/proc/driver/nvidia-caps/mig-minors").map(|text| parse_capabilities(&text));
    for choice in choices {
        let gpu = choice.gpu();
        let node = devices.gpu(gpu.minor)?;
        if !nodes.contains(&node) {
            nodes.push(node);
        }
        if let Choice::Slice(gpu, slice) = choice {
            for name in capability_names(gpu.minor, slice.gpu_instance, slice.compute_instance) {
                let known = capabilities.iter().flatten().find(|(known, _)| *known == name);
                let (_, minor) = known.ok_or_else(|| {
                    let why =
                        format!("MIG device {}: the kernel module does not list its capability {name}", slice.uuid);
                    Error::new(ErrorKind::GpuUnavailable, why)
                })?;
                let node = devices.capability(*minor)?;
                if !nodes.contains(&node) {
                    nodes.push(node);
                }
            }
        }
        if request.wants(DriverCapability::Graphics) && matches!(choice, Choice::Whole(_)) {
            for path in &gpu.render_nodes {
                nodes.push(devices.existing(path)?);
            }
        }
    }
    Ok(())
}

/// The capabilities that a slice needs, as the kernel module names them.
fn capability_names(minor: u32, gpu_instance: u32, compute_instance: u32) -> [String; 2] {
    [format!("gpu{minor}/gi{gpu_instance}/access"), format!("gpu{minor}/gi{gpu_instance}/ci{compute_instance}/access")]
}

/// The driver's directory of procfs, with nothing of GPUs that are not granted.
fn proc_files(choices: &[Choice<'_>], root: &DriverRoot, grant: &mut GpuGrant) {
    let mut files = Vec::new();
    let mut add = |path: String| {
        let Some(contents) = root.text(Path::new(PROC).join(&path)) else { return };
        if files.iter().all(|file: &TextFile| file.path != Path::new(&path)) {
            files.push(TextFile { path: path.into(), contents, mode: 0o444 });
        }
    };
    add("version".to_owned());
    add("params".to_owned());
    add("registry".to_owned());
    for choice in choices {
        let gpu = choice.gpu();
        for name in ["information", "registry"] {
            add(format!("gpus/{}/{name}", gpu.pci_bus_id));
        }
        if let Choice::Slice(gpu, slice) = choice {
            let instance = format!("capabilities/gpu{}/mig/gi{}", gpu.minor, slice.gpu_instance);
            add(format!("{instance}/access"));
            add(format!("{instance}/ci{}/access", slice.compute_instance));
        }
    }
    if files.is_empty() {
        return;
    }
    for file in files.iter_mut().filter(|file| file.path == Path::new("params")) {
        file.contents = without_node_making(&file.contents);
    }
    grant.trees.push(FileTree { path: PROC.into(), files });
}

/// Keeps the driver's user space from making device nodes, also of GPUs that were not granted.
pub(crate) fn without_node_making(params: &str) -> String {
    let line = |line: &str| match line.split_once(':') {
        Some(("ModifyDeviceFiles", _)) => "ModifyDeviceFiles: 0\n".to_owned(),
        _ => format!("{line}\n"),
    };
    params.lines().map(line).collect()
}

fn user_space(request: &GpuRequest, driver: &Driver, image: &ImageFacts, grant: &mut GpuGrant) -> Result<()> {
    let native = image.library_directory();
    let narrow = image.library_directory_32();
    let wanted: Vec<&DriverLibrary> = driver
        .libraries
        .iter()
        .filter(|library| request.wants(library.file.capability))
        .filter(|library| !library.thirty_two_bit || request.wants(DriverCapability::Compat32))
        // One directory cannot hold both.
        .filter(|library| !library.thirty_two_bit || native != narrow)
        .collect();
    let compute = request.wants(DriverCapability::Compute);
    let has = |name: &str| wanted.iter().any(|library| library.file.place.to_string_lossy().starts_with(name));
    if compute && !has("libcuda.so.") {
        let why = format!("driver {}: libcuda.so.{} is missing or cannot be used", driver.version, driver.version);
        return Err(Error::new(ErrorKind::GpuUnavailable, why));
    }
    for library in &wanted {
        let directory = if library.thirty_two_bit { &narrow } else { &native };
        add_library(library, directory, grant);
    }
    for (link, target) in catalog::LINKS {
        for directory in grant.library_directories.clone() {
            if grant.links.iter().any(|known| known.link == directory.join(target)) {
                grant.links.push(Symlink { link: directory.join(link), target: target.into() });
            }
        }
    }
    let files = driver.programs.iter().map(|file| (file, true)).chain(driver.data.iter().map(|file| (file, false)));
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
    let mut link = |name: &str| grant.links.push(Symlink { link: parent.join(name), target: own.clone() });
    if let Some(soname) = &library.soname {
        link(soname);
    }
    // GLVND asks for the vendor's library under this name where there is no display.
    if library.soname.as_deref() == Some("libGLX_nvidia.so.0") {
        link("libGLX_indirect.so.0");
    }
    grant.mounts.push(mount(&library.file, target, MountKind::File, true, true));
}

fn mount(file: &DriverFile, target: PathBuf, kind: MountKind, read_only: bool, executable: bool) -> FileMount {
    FileMount { source: file.host_path.clone(), target, kind, read_only, executable, recursive: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_is_told_to_make_no_nodes() {
        let params = "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\nDeviceFileUID: 0\n";
        let expected = "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 0\nDeviceFileUID: 0\n";
        assert_eq!(without_node_making(params), expected);
        assert_eq!(capability_names(3, 1, 0)[1], "gpu3/gi1/ci0/access");
    }
}
