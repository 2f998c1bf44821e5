//! The specification of what we would inject, for other engines.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::cdi::spec::{ContainerEdits, Device, DeviceNode, Hook, Mount, Spec};
use crate::gpu::cdi::version;
use crate::gpu::driver::platform::Platform;
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::grant::{self, FileMount, GpuGrant, NodeAccess};
use crate::gpu::injection::grant_from;
use crate::gpu::injection::image_facts::ImageFacts;
use crate::gpu::inventory::Inventory;
use crate::gpu::request::{GpuName, GpuRequest, Vendor};
use crate::gpu::select::{Choice, select};

use std::path::Path;

/// Where other engines find NVIDIA's program for hooks.
const HOOK: &str = "/usr/bin/nvidia-cdi-hook";

/// What a device is called, and what it needs.
type Named = (Vec<String>, ContainerEdits);

impl Spec {
    /// Describes the GPUs that `request` asks for, mostly [`GpuRequest::all`], as grants for them would be.
    ///
    /// The kind is `nvidia.com/gpu`, `amd.com/gpu` or `intel.com/gpu`. Each GPU has its index and its identifier as
    /// names, a MIG device `0:1` and its identifier; `all` is all of them, and under WSL nothing else is. Links and the loader's cache are hooks of
    /// NVIDIA's container toolkit, which other engines need for them; reading the specification here needs nothing.
    /// The places of libraries are those for an image with the facts `image`.
    ///
    /// # Errors
    /// As for [`grant_from`]; [`ErrorKind::InvalidArgument`] if the request is for no GPU or
    /// for devices of specifications.
    pub fn of_host(
        request: &GpuRequest,
        inventory: &Inventory,
        driver_root: &DriverRoot,
        image: &ImageFacts,
    ) -> Result<Self> {
        let choices = select(request, inventory)?;
        if choices.is_empty() {
            return Err(Error::new(ErrorKind::InvalidArgument, "a specification of no GPU was asked for"));
        }
        let alone = |choice: &Choice<'_>| {
            let one = request.clone().only(vec![GpuName::Uuid(choice.uuid().to_owned())]);
            grant_from(&one, inventory, driver_root, image).map(|grant| (names(*choice), edits(&grant)))
        };
        // Under WSL they cannot be told apart.
        let together = Platform::of(driver_root) == Platform::Wsl && request.wanted_vendor() == Vendor::Nvidia;
        let mut devices: Vec<Named> = match together {
            true => vec![(Vec::new(), edits(&grant_from(request, inventory, driver_root, image)?))],
            false => choices.iter().map(alone).collect::<Result<_>>()?,
        };
        let common = common(&devices);
        for (_, edits) in &mut devices {
            remove(edits, &common);
        }
        let mut all = ContainerEdits::default();
        devices.iter().for_each(|(_, edits)| add(&mut all, edits));
        devices.push((vec!["all".to_owned()], all));
        let vendor = match request.wanted_vendor() {
            Vendor::Nvidia => "nvidia.com/gpu",
            Vendor::Amd => "amd.com/gpu",
            Vendor::Intel => "intel.com/gpu",
        };
        let named = devices.into_iter().flat_map(|(names, edits)| {
            names.into_iter().map(move |name| Device { name, container_edits: edits.clone(), ..Device::default() })
        });
        let mut spec =
            Self { kind: vendor.to_owned(), devices: named.collect(), container_edits: common, ..Self::default() };
        version::minimum(&spec).clone_into(&mut spec.cdi_version);
        Ok(spec)
    }
}

fn names(choice: Choice<'_>) -> Vec<String> {
    let number = match choice {
        Choice::Whole(gpu) => gpu.index.to_string(),
        Choice::Slice(gpu, slice) => format!("{}:{}", gpu.index, slice.index),
    };
    // What an old driver or another vendor calls its GPUs may be no name of a specification.
    let identifier = Some(choice.uuid().to_owned()).filter(|name| super::names::check_device(name).is_ok());
    [number].into_iter().chain(identifier).collect()
}

/// A grant as a specification says it.
fn edits(grant: &GpuGrant) -> ContainerEdits {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut hooks = Vec::new();
    let links = grant
        .links
        .iter()
        .flat_map(|link| ["--link".to_owned(), format!("{}::{}", link.target.display(), link.link.display())]);
    hooks.extend(hook("create-symlinks", links));
    let other_cuda = |mount: &FileMount, version: &str| {
        let name = mount.target.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix("libcuda.so.").is_some_and(|own| own != version)
    };
    // Under WSL and on boards CUDA's library has no version, and those of images are of no use there.
    let versioned = |version: &&String| !grant.mounts.iter().any(|mount| other_cuda(mount, version));
    if let Some(version) = grant.driver_version.iter().filter(|_| !grant.mounts.is_empty()).find(versioned) {
        hooks.extend(hook("enable-cuda-compat", [format!("--host-driver-version={version}")]));
    }
    let folders = grant.library_directories.iter().flat_map(|folder| ["--folder".to_owned(), text(folder)]);
    hooks.extend(hook("update-ldcache", folders));
    if !grant.trees.is_empty() {
        let name = "disable-device-node-modification".to_owned();
        hooks.push(nvidia_hook(vec!["nvidia-cdi-hook".to_owned(), name]));
    }
    ContainerEdits {
        env: grant.environment.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        device_nodes: grant.device_nodes.iter().map(device_node).collect(),
        mounts: grant.mounts.iter().map(mount).collect(),
        hooks,
        additional_gids: grant.groups.clone(),
        ..ContainerEdits::default()
    }
}

fn nvidia_hook(args: Vec<String>) -> Hook {
    let env = vec!["NVIDIA_CTK_DEBUG=false".to_owned()];
    Hook { hook_name: "createContainer".to_owned(), path: HOOK.to_owned(), args, env, timeout: None }
}

/// A hook of NVIDIA's, if it has anything to do.
fn hook(name: &str, options: impl IntoIterator<Item = String>) -> Option<Hook> {
    let options: Vec<String> = options.into_iter().collect();
    let own = ["nvidia-cdi-hook", name].map(str::to_owned);
    (!options.is_empty()).then(|| nvidia_hook(own.into_iter().chain(options).collect()))
}

fn device_node(node: &grant::DeviceNode) -> DeviceNode {
    let NodeAccess { read, write, make } = node.access;
    let letters: String =
        [(read, 'r'), (write, 'w'), (make, 'm')].iter().filter(|(has, _)| *has).map(|(_, letter)| letter).collect();
    let permissions = match letters.as_str() {
        "rwm" => None,
        "" => Some("none".to_owned()),
        _ => Some(letters),
    };
    let host_path = node.host_path.as_ref().filter(|host_path| **host_path != node.path);
    DeviceNode {
        path: node.path.to_string_lossy().into_owned(),
        host_path: host_path.map(|path| path.to_string_lossy().into_owned()),
        kind: Some(if node.block { "b" } else { "c" }.to_owned()),
        major: Some(node.major.into()),
        minor: Some(node.minor.into()),
        file_mode: Some(node.mode),
        permissions,
        uid: node.owner.map(|(user, _)| user),
        gid: node.owner.map(|(_, group)| group),
    }
}

fn mount(mount: &FileMount) -> Mount {
    let words = [
        (mount.read_only, "ro"),
        (true, "nosuid"),
        (true, "nodev"),
        (!mount.executable, "noexec"),
        (true, if mount.recursive { "rbind" } else { "bind" }),
        (true, "rprivate"),
    ];
    Mount {
        host_path: mount.source.to_string_lossy().into_owned(),
        container_path: mount.target.to_string_lossy().into_owned(),
        options: words.iter().filter(|(has, _)| *has).map(|(_, word)| (*word).to_owned()).collect(),
        kind: None,
    }
}

/// What all devices need.
fn common(devices: &[Named]) -> ContainerEdits {
    let Some(((_, first), others)) = devices.split_first() else { return ContainerEdits::default() };
    let mut common = first.clone();
    for (_, edits) in others {
        common.env.retain(|one| edits.env.contains(one));
        common.device_nodes.retain(|one| edits.device_nodes.contains(one));
        common.mounts.retain(|one| edits.mounts.contains(one));
        common.hooks.retain(|one| edits.hooks.contains(one));
        common.additional_gids.retain(|one| edits.additional_gids.contains(one));
    }
    // A device without anything of its own would be none: each keeps its nodes, also the only one of a host.
    if devices.len() == 1 {
        common.device_nodes.clear();
    }
    common
}

fn remove(edits: &mut ContainerEdits, common: &ContainerEdits) {
    edits.env.retain(|one| !common.env.contains(one));
    edits.device_nodes.retain(|one| !common.device_nodes.contains(one));
    edits.mounts.retain(|one| !common.mounts.contains(one));
    edits.hooks.retain(|one| !common.hooks.contains(one));
    edits.additional_gids.retain(|one| !common.additional_gids.contains(one));
}

fn add(all: &mut ContainerEdits, edits: &ContainerEdits) {
    fn extend<T: Clone + PartialEq>(all: &mut Vec<T>, more: &[T]) {
        for one in more {
            if !all.contains(one) {
                all.push(one.clone());
            }
        }
    }
    extend(&mut all.env, &edits.env);
    extend(&mut all.device_nodes, &edits.device_nodes);
    extend(&mut all.mounts, &edits.mounts);
    extend(&mut all.hooks, &edits.hooks);
    extend(&mut all.additional_gids, &edits.additional_gids);
}
