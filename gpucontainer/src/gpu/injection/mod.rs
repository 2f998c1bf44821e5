//! From a request to a grant: choose the GPUs, find the driver, list what the container needs.

pub(in crate::gpu) mod compatibility;
pub(crate) mod devices;
mod extras;
pub(crate) mod image_facts;
pub(crate) mod image_files;
pub(crate) mod known_images;
mod loader;
mod mps;
pub(crate) mod procfs;
pub(crate) mod profile;
pub(in crate::gpu) mod require;
mod tegra;
mod user_space;
mod wsl;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::driver::platform::Platform;
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::driver::trail::known;
use crate::gpu::grant::{GpuGrant, Symlink};
use crate::gpu::injection::devices::{CAPABILITIES, Devices, parse_capabilities};
use crate::gpu::injection::image_facts::ImageFacts;
use crate::gpu::injection::require::Offer;
use crate::gpu::inventory::Inventory;
use crate::gpu::request::environment::rights_left_out;
use crate::gpu::request::{DriverCapability, GpuRequest, Vendor, Which};
use crate::gpu::select::{Choice, select};

use std::path::Path;

/// Works out what a container of an image needs to use the GPUs that `request` asks for.
///
/// Nothing is changed and nothing stays open. Without a lease, two containers may be given the same GPU.
///
/// # Hosts without a kernel module of NVIDIA's
///
/// Under WSL one device, `/dev/dxg`, is all GPUs of Windows at once: a request that comes to all of them is granted, and
/// one for a part is refused. The files of the driver store are at their own places below `/usr/lib/wsl`; nothing of
/// procfs is hidden, and there are no MIG devices.
///
/// On boards with a GPU in the processor (Tegra) the container gets what the lists in
/// `/etc/nvidia-container-runtime/host-files-for-container.d` name: `devices.csv`, `drivers.csv` and `l4t.csv`, and all
/// others if the image has `NVIDIA_REQUIRE_JETPACK=csv-mounts=all`. What they name and the board lacks is left out; a
/// malformed line is an error with the file and the line. [`DriverCapability`] makes no difference between files there,
/// but for an empty list, with which the devices come alone. GPUs in slots of such a board are granted as everywhere.
///
/// # Errors
/// [`ErrorKind::GpuUnavailable`] if the host cannot fulfil the request, or does not have what the image requires
/// (`NVIDIA_REQUIRE_*`); the text says why.
pub fn grant(request: &GpuRequest, driver_root: &DriverRoot, image: &ImageFacts) -> Result<GpuGrant> {
    let request = &request.for_environment(&image.environment)?;
    if request.is_none() {
        return Ok(GpuGrant::default());
    }
    // Devices of specifications need none, which takes time.
    let needed = request.needs_inventory();
    let inventory = if needed { Inventory::discover_with(driver_root) } else { Inventory::default() };
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
    let request = &request.for_environment(&image.environment)?;
    let (described, of_inventory) = request.split();
    let mut grant = match of_inventory {
        Some(request) => grant_of_inventory(&request, inventory, driver_root, image)?,
        None => GpuGrant::default(),
    };
    if !described.is_empty() {
        grant.add(request.grant_described(&described, driver_root)?);
    }
    if !request.is_none() {
        grant.left_out.extend(rights_left_out(request, &image.environment));
    }
    mps::clients(request, &mut grant)?;
    loader::tell(image, &mut grant);
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
    match Platform::of(driver_root) {
        Platform::Module => of_module(request, &choices, inventory, driver_root, image, &mut grant)?,
        Platform::Wsl => of_wsl(request, &choices, inventory, driver_root, image, &mut grant)?,
        Platform::Tegra => of_tegra(request, &choices, inventory, driver_root, image, &mut grant)?,
    }
    profile::add_profile(&mut grant);
    grant.environment = vec![
        // Engines' own hooks, should one run as well, must not add other GPUs.
        ("NVIDIA_VISIBLE_DEVICES".to_owned(), "void".to_owned()),
        // CUDA's own order, fastest first, would not be that of the grant.
        ("CUDA_DEVICE_ORDER".to_owned(), "PCI_BUS_ID".to_owned()),
    ];
    Ok(grant)
}

/// GPUs behind a kernel module, each with a node of its own, and a user space with a version.
fn of_module(
    request: &GpuRequest,
    choices: &[Choice<'_>],
    inventory: &Inventory,
    root: &DriverRoot,
    image: &ImageFacts,
    grant: &mut GpuGrant,
) -> Result<()> {
    let driver = match request.wants_driver() {
        true => Some(known(root).context("find the NVIDIA driver")?),
        false => None,
    };
    let version = driver.as_ref().map(|driver| driver.version.clone());
    grant.driver_version = version.or_else(|| inventory.driver_version().map(str::to_owned));
    requirements(choices, inventory, image, grant)?;
    nodes(request, choices, root, grant)?;
    extras::extras(&request.extras, root, grant)?;
    procfs::proc_files(request, choices, root, grant);
    match driver {
        Some(driver) => user_space::user_space(request, &driver, image, grant),
        None => Ok(()),
    }
}

/// GPUs of Windows: there is no module, hence neither its directory of procfs nor parts of GPUs.
fn of_wsl(
    request: &GpuRequest,
    choices: &[Choice<'_>],
    inventory: &Inventory,
    root: &DriverRoot,
    image: &ImageFacts,
    grant: &mut GpuGrant,
) -> Result<()> {
    grant.driver_version = inventory.driver_version().map(str::to_owned);
    requirements(choices, inventory, image, grant)?;
    wsl::nodes(request, choices, inventory, root, grant)?;
    extras::extras(&request.extras, root, grant)?;
    if request.wants_driver() {
        let driver = known(root).context("find the NVIDIA driver")?;
        wsl::user_space(request, &driver, image, grant)?;
    }
    Ok(())
}

/// The GPU in the processor by lists; others in slots as everywhere.
fn of_tegra(
    request: &GpuRequest,
    choices: &[Choice<'_>],
    inventory: &Inventory,
    root: &DriverRoot,
    image: &ImageFacts,
    grant: &mut GpuGrant,
) -> Result<()> {
    let (integrated, others): (Vec<Choice<'_>>, Vec<Choice<'_>>) =
        choices.iter().partition(|choice| choice.gpu().is_integrated());
    if !others.is_empty() {
        of_module(request, &others, inventory, root, image, grant)?;
        if integrated.is_empty() {
            return Ok(());
        }
    } else {
        grant.driver_version = inventory.driver_version().map(str::to_owned);
        extras::extras(&request.extras, root, grant)?;
    }
    requirements(&integrated, inventory, image, grant)?;
    // The tree of both kinds is one.
    grant.trees.clear();
    procfs::proc_files(request, choices, root, grant);
    tegra::add(request, !integrated.is_empty(), inventory, root, image, grant)
}

/// Compares what the image requires with what is granted.
fn requirements(choices: &[Choice<'_>], inventory: &Inventory, image: &ImageFacts, grant: &GpuGrant) -> Result<()> {
    let offers = offers(choices, inventory, grant.driver_version.as_deref());
    require::check(&image.environment, &offers).context("compare the host with what the image requires")
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

/// What each granted GPU has, for the image's requirements; the driver alone, if there is none.
fn offers(choices: &[Choice<'_>], inventory: &Inventory, driver: Option<&str>) -> Vec<Offer> {
    let version = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    let host =
        Offer { cuda: inventory.cuda_version().map(version), driver: driver.map(str::to_owned), ..Offer::default() };
    let offer = |choice: &Choice<'_>| Offer {
        gpu: choice.to_string(),
        arch: choice.gpu().compute_capability.map(version),
        brand: choice.gpu().brand.clone(),
        ..host.clone()
    };
    if choices.is_empty() { vec![host] } else { choices.iter().map(offer).collect() }
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
    let capabilities = root.text(CAPABILITIES).map(|text| parse_capabilities(&text));
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
        // Of slices, only those that say so can draw.
        let draws = match choice {
            Choice::Whole(_) => true,
            Choice::Slice(_, slice) => slice.profile.contains("gfx"),
        };
        if request.wants(DriverCapability::Graphics) && draws {
            for path in &gpu.render_nodes {
                let node = devices.existing(path)?;
                if nodes.contains(&node) {
                    continue;
                }
                nodes.push(node);
                grant.links.extend(by_path(path, &gpu.pci_bus_id));
            }
        }
    }
    Ok(())
}

/// The capabilities that a slice needs, as the kernel module names them.
pub(crate) fn capability_names(minor: u32, gpu_instance: u32, compute_instance: u32) -> [String; 2] {
    [format!("gpu{minor}/gi{gpu_instance}/access"), format!("gpu{minor}/gi{gpu_instance}/ci{compute_instance}/access")]
}

/// The link by which programs find the node of a card by its bus address.
fn by_path(node: &Path, bus_id: &str) -> Option<Symlink> {
    let name = node.file_name()?.to_str()?;
    let kind = if name.starts_with("card") { "card" } else { "render" };
    let link = format!("/dev/dri/by-path/pci-{bus_id}-{kind}").into();
    Some(Symlink { link, target: Path::new("..").join(name) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_and_cards_have_names() {
        assert_eq!(capability_names(3, 1, 0)[1], "gpu3/gi1/ci0/access");
        let link = by_path(Path::new("/dev/dri/renderD128"), "0000:3b:00.0").unwrap();
        assert_eq!(link.link, Path::new("/dev/dri/by-path/pci-0000:3b:00.0-render"));
        assert_eq!(link.target, Path::new("../renderD128"));
    }
}
