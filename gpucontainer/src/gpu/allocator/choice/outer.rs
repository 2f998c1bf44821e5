//! What an outer scheduler left us: a batch system, Kubernetes, or a user who set variables.
//!
//! | where | what it limits |
//! |---|---|
//! | `CUDA_VISIBLE_DEVICES` | indices, or identifiers and their beginnings; nothing after an unknown one |
//! | `NVIDIA_VISIBLE_DEVICES` | indices, identifiers and CDI names; `all` and `void` limit nothing, `none` everything |
//! | `/var/run/nvidia-container-devices/` | a name for each GPU, or below `cdi/` its CDI name, in containers of Kubernetes |
//! | `SLURM_STEP_GPUS`, else `SLURM_JOB_GPUS` | numbers of device nodes; only without the first |
//! | device cgroup, permissions | nodes that may not be opened |
//!
//! All of it is about NVIDIA's GPUs.

use crate::gpu::driver::root::DriverRoot;
use crate::gpu::inventory::{Gpu, Inventory, MigDevice};
use crate::gpu::request::Vendor;
use crate::gpu::select::old_name;
use crate::sys::fs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where the device plug-in of Kubernetes mounts a file for each GPU.
const PLUGIN_DEVICES: &str = "var/run/nvidia-container-devices";

/// Why devices of an inventory may not be used, by the identifier of the GPU or MIG device.
pub(crate) type Refused = BTreeMap<String, String>;

/// The devices that the environment, the device plug-in and the kernel keep from this process.
pub(crate) fn refused(inventory: &Inventory, root: &DriverRoot) -> Refused {
    let mut refused = from_environment(inventory, |name| std::env::var(name).ok());
    if let Some(names) = plugin_names(root) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        if !names.iter().any(|name| is_all(name)) {
            limit(inventory, &named(inventory, &names), PLUGIN_DEVICES, &mut refused);
        }
    }
    for gpu in nvidia(inventory) {
        let node: PathBuf = root.path().join(format!("dev/nvidia{}", gpu.minor));
        // Asked without opening: that would wake the device. The device cgroup answers this call too.
        if fs::metadata(&node).is_ok() && !fs::usable(&node) {
            let why = format!("this process may not open {} (device cgroup or permissions)", node.display());
            refuse(gpu, &why, &mut refused);
        }
    }
    refused
}

/// The names of devices in the directory of the device plug-in; `None` if it says nothing about GPUs.
fn plugin_names(root: &DriverRoot) -> Option<Vec<String>> {
    let directory = root.path().join(PLUGIN_DEVICES);
    let names = |path: &Path| -> Vec<String> {
        let entries = fs::read_dir(path).unwrap_or_default();
        entries.iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect()
    };
    // Channels between hosts are no GPUs.
    let (nested, mut found): (Vec<String>, Vec<String>) =
        names(&directory).into_iter().filter(|name| name != "imex").partition(|name| name == "cdi");
    // The name of a MIG device that old drivers give has parts, as a path has.
    for name in found.clone().into_iter().filter(|name| name.starts_with("MIG-GPU-")) {
        for instance in names(&directory.join(&name)) {
            let computes = names(&directory.join(&name).join(&instance));
            found.extend(computes.iter().map(|compute| format!("{name}/{instance}/{compute}")));
        }
    }
    for cdi in nested.iter().map(|name| directory.join(name)) {
        for vendor in names(&cdi) {
            for class in names(&cdi.join(&vendor)) {
                let devices = names(&cdi.join(&vendor).join(&class));
                found.extend(devices.iter().map(|device| format!("{vendor}/{class}={device}")));
            }
        }
    }
    (!found.is_empty()).then_some(found)
}

fn nvidia(inventory: &Inventory) -> impl Iterator<Item = &Gpu> {
    inventory.gpus().iter().filter(|gpu| gpu.vendor == Vendor::Nvidia)
}

fn refuse(gpu: &Gpu, why: &str, refused: &mut Refused) {
    let slices = gpu.mig_devices.iter().map(|slice| &slice.uuid);
    for device in std::iter::once(&gpu.uuid).chain(slices) {
        refused.entry(device.clone()).or_insert_with(|| why.to_owned());
    }
}

/// Refuses all devices but those `allowed`. A MIG device of an allowed GPU is allowed, and the GPU of an allowed
/// MIG device is not.
fn limit(inventory: &Inventory, allowed: &[String], source: &str, refused: &mut Refused) {
    let why = format!("{source} does not name it");
    for gpu in nvidia(inventory).filter(|gpu| !allowed.contains(&gpu.uuid)) {
        let slices = gpu.mig_devices.iter().map(|slice| &slice.uuid).filter(|slice| !allowed.contains(slice));
        for device in std::iter::once(&gpu.uuid).chain(slices) {
            refused.entry(device.clone()).or_insert_with(|| why.clone());
        }
    }
}

pub(in crate::gpu) fn from_environment(inventory: &Inventory, variable: impl Fn(&str) -> Option<String>) -> Refused {
    let mut refused = Refused::new();
    let cuda = variable("CUDA_VISIBLE_DEVICES");
    if let Some(list) = &cuda {
        limit(inventory, &cuda_devices(inventory, list), "CUDA_VISIBLE_DEVICES", &mut refused);
    } else {
        // With the variable set, it says the same in the numbers that are left after the device cgroup.
        let slurm = ["SLURM_STEP_GPUS", "SLURM_JOB_GPUS"];
        if let Some((name, list)) = slurm.into_iter().find_map(|name| Some((name, variable(name)?))) {
            let minors = numbers(&list);
            let allowed: Vec<String> =
                nvidia(inventory).filter(|gpu| minors.contains(&gpu.minor)).map(|gpu| gpu.uuid.clone()).collect();
            limit(inventory, &allowed, name, &mut refused);
        }
    }
    if let Some(list) = variable("NVIDIA_VISIBLE_DEVICES") {
        let names: Vec<&str> = list.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        let allowed = named(inventory, &names);
        // In a container it may speak of the host's indices, of which only the chosen ones are left.
        let elsewhere = allowed.len() < names.len() && names.iter().all(|name| name.parse::<u32>().is_ok());
        let unlimited = names.is_empty() || names.contains(&"void") || names.iter().any(|name| is_all(name));
        if !unlimited && !elsewhere {
            limit(inventory, &allowed, "NVIDIA_VISIBLE_DEVICES", &mut refused);
        }
    }
    refused
}

/// NVIDIA's devices by the names of CDI specifications.
const CDI_KIND: &str = "nvidia.com/gpu=";

/// Whether the name is that of all GPUs.
fn is_all(name: &str) -> bool {
    name.strip_prefix(CDI_KIND).unwrap_or(name) == "all"
}

/// The identifiers of the devices called `names`: indices, MIG indices or identifiers, also in CDI names.
fn named(inventory: &Inventory, names: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for name in names {
        let name = name.strip_prefix(CDI_KIND).unwrap_or(name);
        for gpu in nvidia(inventory) {
            let is = |slice: &&MigDevice| {
                slice.uuid == name || old_name(gpu, slice) == name || format!("{}:{}", gpu.index, slice.index) == name
            };
            found.extend(gpu.mig_devices.iter().filter(is).map(|slice| slice.uuid.clone()));
            if gpu.uuid == name || gpu.index.to_string() == name {
                found.push(gpu.uuid.clone());
            }
        }
    }
    found
}

/// What CUDA makes of its variable: the first element that names nothing, or names anew, ends the list.
fn cuda_devices(inventory: &Inventory, list: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for name in list.split(',').map(str::trim) {
        let device = match name.parse::<u32>() {
            Ok(index) => nvidia(inventory).find(|gpu| gpu.index == index).map(|gpu| gpu.uuid.clone()),
            Err(_) => beginning(inventory, name),
        };
        match device {
            Some(device) if !found.contains(&device) => found.push(device),
            _ => break,
        }
    }
    found
}

/// The one device whose identifier begins so.
fn beginning(inventory: &Inventory, name: &str) -> Option<String> {
    if !name.starts_with("GPU-") && !name.starts_with("MIG-") {
        return None;
    }
    let slices = || nvidia(inventory).flat_map(|gpu| gpu.mig_devices.iter().map(move |slice| (gpu, slice)));
    if let Some((_, slice)) = slices().find(|(gpu, slice)| old_name(gpu, slice) == name) {
        return Some(slice.uuid.clone());
    }
    let slices = slices().map(|(_, slice)| &slice.uuid);
    let mut devices = nvidia(inventory).map(|gpu| &gpu.uuid).chain(slices).filter(|uuid| uuid.starts_with(name));
    let first = devices.next()?;
    devices.next().is_none().then(|| first.clone())
}

/// Numbers as batch systems write them: `0,2-4`.
fn numbers(list: &str) -> Vec<u32> {
    let mut numbers = Vec::new();
    for part in list.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            numbers.extend((first..=last).take(256));
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::select::tests::{gpu, split};
    use proptest::prelude::*;

    fn left(variables: &[(&str, &str)]) -> Vec<String> {
        let inventory = Inventory {
            gpus: vec![gpu(0, 40, &[]), gpu(1, 40, &[]), gpu(2, 40, &[]), split(3, 2)],
            ..Inventory::default()
        };
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let refused = from_environment(&inventory, find);
        let slices = inventory.gpus().iter().flat_map(|gpu| &gpu.mig_devices).map(|slice| &slice.uuid);
        let all = inventory.gpus().iter().map(|gpu| &gpu.uuid).chain(slices);
        all.filter(|uuid| !refused.contains_key(*uuid)).cloned().collect()
    }

    type Case = (&'static [(&'static str, &'static str)], &'static [&'static str]);

    #[test]
    fn the_words_of_other_schedulers_are_understood() {
        let all = &["GPU-0", "GPU-1", "GPU-2", "GPU-3", "MIG-3-0", "MIG-3-1"];
        let table: [Case; 31] = [
            (&[], all),
            (&[("CUDA_VISIBLE_DEVICES", "")], &[]),
            (&[("CUDA_VISIBLE_DEVICES", "-1")], &[]),
            (&[("CUDA_VISIBLE_DEVICES", "1,0")], &["GPU-0", "GPU-1"]),
            (&[("CUDA_VISIBLE_DEVICES", "1,9,0")], &["GPU-1"]),
            (&[("CUDA_VISIBLE_DEVICES", "GPU-2,MIG-3-1")], &["GPU-2", "MIG-3-1"]),
            (&[("CUDA_VISIBLE_DEVICES", "GPU-")], &[]),
            (&[("NVIDIA_VISIBLE_DEVICES", "all")], all),
            (&[("NVIDIA_VISIBLE_DEVICES", "void")], all),
            (&[("NVIDIA_VISIBLE_DEVICES", "none")], &[]),
            (&[("NVIDIA_VISIBLE_DEVICES", "2,3:0")], &["GPU-2", "MIG-3-0"]),
            (&[("NVIDIA_VISIBLE_DEVICES", "GPU-3")], &["GPU-3", "MIG-3-0", "MIG-3-1"]),
            (&[("NVIDIA_VISIBLE_DEVICES", "6,7")], all),
            // The fixture's minor numbers are 7, 6, 5, 4.
            (&[("SLURM_JOB_GPUS", "6-7"), ("SLURM_STEP_GPUS", "6")], &["GPU-1"]),
            (&[("SLURM_JOB_GPUS", "5-6,99")], &["GPU-1", "GPU-2"]),
            (&[("SLURM_JOB_GPUS", "7"), ("CUDA_VISIBLE_DEVICES", "2")], &["GPU-2"]),
            (&[("CUDA_VISIBLE_DEVICES", "0,1"), ("NVIDIA_VISIBLE_DEVICES", "GPU-1,GPU-2")], &["GPU-1"]),
            // CUDA takes what comes before a word that it does not know, or one that comes again.
            (&[("CUDA_VISIBLE_DEVICES", "NoDevFiles")], &[]),
            (&[("CUDA_VISIBLE_DEVICES", "0,0,1")], &["GPU-0"]),
            (&[("CUDA_VISIBLE_DEVICES", " 2 , 1 ")], &["GPU-1", "GPU-2"]),
            (&[("CUDA_VISIBLE_DEVICES", "99999999999999999999")], &[]),
            (&[("CUDA_VISIBLE_DEVICES", "MIG-GPU-3/2/0")], &["MIG-3-1"]),
            (&[("NVIDIA_VISIBLE_DEVICES", "MIG-GPU-3/1/0")], &["MIG-3-0"]),
            (&[("NVIDIA_VISIBLE_DEVICES", "nvidia.com/gpu=GPU-1,nvidia.com/gpu=3:1")], &["GPU-1", "MIG-3-1"]),
            (&[("NVIDIA_VISIBLE_DEVICES", "nvidia.com/gpu=all")], all),
            (&[("NVIDIA_VISIBLE_DEVICES", "none,GPU-1")], &["GPU-1"]),
            (&[("NVIDIA_VISIBLE_DEVICES", ",,")], all),
            (&[("NVIDIA_VISIBLE_DEVICES", "GPU-elsewhere")], &[]),
            (&[("SLURM_JOB_GPUS", "")], &[]),
            (&[("SLURM_JOB_GPUS", "7-5,x,-,4-")], &[]),
            (&[("SLURM_JOB_GPUS", "0-4294967295")], all),
        ];
        for (variables, expected) in table {
            assert_eq!(left(variables), expected, "{variables:?}");
        }
    }

    #[test]
    fn the_device_plug_in_names_gpus_in_two_ways() {
        let directory = tempfile::tempdir().unwrap();
        let root = DriverRoot::new(directory.path());
        let plugin = directory.path().join(PLUGIN_DEVICES);
        let inventory = Inventory { gpus: vec![gpu(0, 40, &[]), gpu(1, 40, &[]), split(2, 2)], ..Inventory::default() };
        let left = || {
            let refused = refused(&inventory, &root);
            let gpus = inventory.gpus().iter().filter(|gpu| !gpu.mig_enabled).map(|gpu| gpu.index);
            gpus.filter(|index| !refused.contains_key(&format!("GPU-{index}"))).collect::<Vec<_>>()
        };
        let name = |path: &str| std::fs::create_dir_all(plugin.join(path)).unwrap();
        assert_eq!(left(), [0, 1]);
        name("imex/0");
        assert_eq!(left(), [0, 1], "channels are no GPUs");
        name("cdi/nvidia.com/gpu/GPU-1");
        assert_eq!(left(), [1]);
        name("0");
        assert_eq!(left(), [0, 1]);
        std::fs::remove_dir(plugin.join("0")).unwrap();
        name("cdi/nvidia.com/gpu/all");
        assert_eq!(left(), [0, 1]);
        std::fs::remove_dir_all(&plugin).unwrap();
        name("MIG-GPU-2/2/0");
        assert_eq!(left(), [0; 0]);
        let refused = refused(&inventory, &root);
        let slices = inventory.gpus()[2].mig_devices.iter().map(|slice| &slice.uuid);
        assert_eq!(slices.filter(|slice| !refused.contains_key(*slice)).collect::<Vec<_>>(), ["MIG-2-1"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// All words are read; those without a number or an identifier in them leave CUDA nothing.
        #[test]
        fn any_words_limit_or_say_nothing(words in "[-A-Z0-9,:/=. a-z]{0,40}", number in 0_usize..4) {
            let name = ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS"][number];
            let left = left(&[(name, words.as_str())]);
            if number == 0 && !words.contains(|sign: char| sign.is_ascii_digit() || sign == '-') {
                prop_assert!(left.is_empty(), "{:?} for {:?}", left, words);
            }
        }
    }
}
