//! What strangers write and this room reads, each as a function of bytes: for the fuzzer, and for a test that gives
//! each of them its seeds and damaged ones. Nothing may panic, and what was read must stay what it is.
//!
//! Images, other users of the host, other engines and the driver write these bytes; the targets in `fuzz/` are named
//! as the functions here.

use crate::error::{Error, ErrorKind};
use crate::gpu::allocator::choice::decide::{Question, decide};
use crate::gpu::allocator::choice::{candidates, outer};
use crate::gpu::allocator::health::xid;
use crate::gpu::allocator::mig::making::Making;
use crate::gpu::allocator::slots::record::{self, GoneRecord, LeaseRecord, Owner, TicketRecord};
use crate::gpu::allocator::slots::table::{Live, Scan, Waiting};
use crate::gpu::cdi::hooks::{self, VendorHooks};
use crate::gpu::cdi::{DeviceName, Hook, Spec, version};
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::driver::{elf, loader_cache};
use crate::gpu::grant::GpuGrant;
use crate::gpu::injection::{compatibility, devices, procfs, require};
use crate::gpu::inventory::{Gpu, GpuMemory, Inventory, MigDevice};
use crate::gpu::request::{DriverCapability, GpuName, GpuRequest};

use std::collections::{BTreeMap, BTreeSet};
use std::path::Component;

/// What takes any bytes.
pub type Target = fn(&[u8]);

/// Every target, by its name.
pub const TARGETS: &[(&str, Target)] = &[
    ("cdi", cdi),
    ("elf_object", elf_object),
    ("image_environment", image_environment),
    ("kernel_files", kernel_files),
    ("lease_record", lease_record),
    ("loader_cache_file", loader_cache_file),
    #[cfg(feature = "nvml")]
    ("mig_journal", mig_journal),
    ("names", names),
    ("outer_environment", outer_environment),
    ("requirements", requirements),
];

fn text(data: &[u8]) -> String {
    String::from_utf8_lossy(data).into_owned()
}

/// Lines of `NAME=value`.
fn variables(data: &[u8]) -> Vec<(String, String)> {
    let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    text(data).split('\n').filter_map(pair).collect()
}

/// An error about what was written must be of a kind that says so.
fn check_kind<T>(read: Result<T, Error>, kinds: &[ErrorKind]) -> Option<T> {
    read.map_err(|error| assert!(kinds.contains(&error.kind()), "{error}")).ok()
}

/// A machine with whole GPUs and one that is split.
fn machine() -> Inventory {
    let memory = Some(GpuMemory { total: 40 << 30, free: 30 << 30 });
    let gpu = |index: u32| Gpu {
        uuid: format!("GPU-{index}"),
        index,
        minor: 7 - index,
        name: "NVIDIA A100".to_owned(),
        memory,
        compute_capability: Some((8, 0)),
        pci_bus_id: format!("0000:0{index}:00.0"),
        numa_node: Some(index / 2),
        processes: if index == 0 { vec![4242] } else { Vec::new() },
        ..Gpu::default()
    };
    let slice = |index: u32| MigDevice {
        uuid: format!("MIG-3-{index}"),
        index,
        gpu_instance: index + 1,
        compute_instance: 0,
        profile: "1g.5gb".to_owned(),
        memory,
        processes: Vec::new(),
    };
    let split = Gpu { mig_enabled: true, mig_devices: vec![slice(0), slice(1)], ..gpu(3) };
    Inventory { gpus: vec![gpu(0), gpu(1), gpu(2), split], ..Inventory::default() }
}

/// A specification of devices, in JSON and in YAML.
pub fn cdi(data: &[u8]) {
    let text = text(data);
    for read in [Spec::from_json(&text), Spec::from_yaml(&text)] {
        let Some(spec) = check_kind(read, &[ErrorKind::InvalidArgument]) else { continue };
        let written = spec.to_json().expect("what was read can be written");
        assert_eq!(Spec::from_json(&written).expect("what was written can be read"), spec);
        let (needed, stated) = (version::place(spec.minimum_version()), version::place(&spec.cdi_version));
        assert!(needed.is_some() && needed <= stated);
        for device in &spec.devices {
            let name = format!("{}={}", spec.kind, device.name);
            assert_eq!(name.parse::<DeviceName>().expect("both parts were checked").to_string(), name);
        }
        let edits = spec.devices.iter().map(|device| &device.container_edits).chain([&spec.container_edits]);
        let hooks: Vec<&Hook> = edits.flat_map(|edits| &edits.hooks).collect();
        for allowed in [VendorHooks::Refuse, VendorHooks::Skip, VendorHooks::Run] {
            let mut grant = GpuGrant::default();
            let root = DriverRoot::new("/nonexistent/driver/root");
            let applied = hooks::apply(&hooks, allowed, &root, &mut grant);
            check_kind(applied, &[ErrorKind::InvalidArgument, ErrorKind::Unsupported]);
            let inside = grant.links.iter().map(|link| &link.link).chain(&grant.library_directories);
            for path in inside {
                let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
                assert!(path.is_absolute() && path.components().all(plain), "{path:?}");
            }
            assert!(grant.hooks.is_empty() || allowed == VendorHooks::Run);
        }
    }
}

/// The variables by which an image says what it wants.
pub fn image_environment(data: &[u8]) {
    let environment = variables(data);
    let kinds = [ErrorKind::InvalidArgument, ErrorKind::PermissionDenied];
    for request in [GpuRequest::as_image_says(), GpuRequest::count(1)] {
        let resolved = check_kind(request.for_environment(&environment), &kinds);
        if let Some(resolved) = resolved {
            assert_eq!(resolved.for_environment(&[]).expect("nothing is left to say").which(), resolved.which());
        }
    }
}

/// What an image requires of driver and GPU.
pub fn requirements(data: &[u8]) {
    let environment = variables(data);
    let own = |text: &str| Some(text.to_owned());
    let t4 = require::Offer {
        gpu: "GPU 0".to_owned(),
        cuda: own("12.4"),
        driver: own("550.163.01"),
        arch: own("7.5"),
        brand: own("nvidia"),
    };
    let kinds = [ErrorKind::InvalidArgument, ErrorKind::GpuUnavailable];
    let alone = check_kind(require::check(&environment, std::slice::from_ref(&t4)), &kinds).is_some();
    let with_others = [require::Offer::default(), t4.clone(), t4];
    assert_eq!(check_kind(require::check(&environment, &with_others), &kinds).is_some(), alone);
}

/// What outer schedulers say, with what it leaves of a machine.
pub fn outer_environment(data: &[u8]) {
    let (inventory, environment) = (machine(), variables(data));
    let variable = |wanted: &str| environment.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
    let refused = outer::from_environment(&inventory, variable);
    for gpu in inventory.gpus() {
        let slices = gpu.mig_devices.iter();
        // Whoever has all of a GPU has its slices.
        assert!(refused.contains_key(&gpu.uuid) || slices.clone().all(|slice| !refused.contains_key(&slice.uuid)));
    }
}

/// Names of GPUs, of devices, of parts of the driver.
pub fn names(data: &[u8]) {
    let text = text(data);
    if let Some(name) = check_kind(text.parse::<GpuName>(), &[ErrorKind::InvalidArgument]) {
        let again: GpuName = name.to_string().parse().expect("what is printed can be read");
        assert_eq!(again, name);
    }
    if let Some(name) = check_kind(text.parse::<DeviceName>(), &[ErrorKind::InvalidArgument]) {
        assert_eq!(name.to_string(), text);
    }
    check_kind(text.parse::<GpuRequest>(), &[ErrorKind::InvalidArgument]);
    check_kind(DriverCapability::parse_list(&text), &[ErrorKind::InvalidArgument]);
}

/// A shared object, and the remark of one for forward compatibility.
pub fn elf_object(data: &[u8]) {
    if let Ok(object) = elf::read(data) {
        assert!(object.soname.is_none_or(|name| elf::is_file_name(&name)));
    }
    for name in [".note.cuda.fwd_compatibility", ".dynstr"] {
        if let Ok(Some(bytes)) = elf::section::find(data, name, 4096) {
            assert!(bytes.len() <= 4096);
            let _ = compatibility::parse_note(&bytes);
        }
    }
    let _ = compatibility::parse_note(data);
}

/// The cache of a loader.
pub fn loader_cache_file(data: &[u8]) {
    let entries = loader_cache::read(data);
    let written = loader_cache::write(&entries);
    let again = loader_cache::read(&written);
    assert_eq!(again.len(), entries.len());
    assert_eq!(loader_cache::write(&again), written);
    for directory in loader_cache::directories(data, |_| true) {
        assert!(directory.is_absolute());
    }
}

/// The text of a slot, which any user can write, and what becomes of those who come after.
pub fn lease_record(data: &[u8]) {
    // Whole, and as one whose sum is right.
    let forged = record::sealed(&text(data));
    for bytes in [data, &forged] {
        let (lease, _) = record::decode_lease(bytes);
        if let Some(lease) = &lease {
            assert_eq!(record::decode::<LeaseRecord>(&record::encode(lease)).as_ref(), Some(lease));
            lease.held.iter().for_each(|held| assert!(held.range().1 > 0));
        }
        let _: Option<GoneRecord> = record::decode(bytes);
        let ticket: Option<TicketRecord> = record::decode(bytes);
        let waiting = ticket.map(|record| Waiting { id: "1".to_owned(), user: 1000, record });
        let live = lease.map(|lease| Live {
            id: "2".to_owned(),
            user: 1000,
            held: lease.held,
            owner: Some(Owner { pid: 1, ..lease.owner }),
            free_before: lease.free_before,
        });
        if waiting.is_none() && live.is_none() {
            continue;
        }
        let inventory = machine();
        let host = candidates::Host::of(&inventory, BTreeMap::new(), Making::Unknown);
        let mut scan = Scan::default();
        scan.live.extend(live);
        scan.waiting.extend(waiting);
        let requests = [Some(GpuRequest::count(2)), scan.waiting.first().map(|waiting| waiting.record.request.clone())];
        for request in requests.iter().flatten() {
            let returning = BTreeSet::new();
            let question = Question { request, scan: &scan, ahead: &scan.waiting, returning: &returning };
            check_kind(decide(&question, &host), &[ErrorKind::InvalidArgument, ErrorKind::GpuUnavailable]);
        }
    }
}

/// The journal of MIG devices.
#[cfg(feature = "nvml")]
pub fn mig_journal(data: &[u8]) {
    use crate::gpu::allocator::mig::journal::Entry;
    if let Some(entry) = Entry::parse(data) {
        assert_eq!(Entry::parse(&entry.line().expect("numbers and texts")), Some(entry));
    }
}

/// What the kernel says of the driver and its devices.
pub fn kernel_files(data: &[u8]) {
    let text = text(data);
    let _ = devices::parse_capabilities(&text);
    let params = procfs::without_node_making(&text);
    assert!(!params.lines().any(|line| line.starts_with("ModifyDeviceFiles:") && line != "ModifyDeviceFiles: 0"));
    text.lines().for_each(|line| drop(xid::logged(line)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::PathBuf;

    /// The seeds of a target, in the order of their names; none where the source is not.
    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let directory: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../fuzz/seeds", target].iter().collect();
        let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
    }

    #[test]
    fn every_target_has_seeds_and_a_program() {
        let fuzz = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        if !fuzz.exists() {
            return crate::common::skip("source", "the source is not here");
        }
        let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        for (name, target) in TARGETS {
            let seeds = seeds(name);
            assert!(!seeds.is_empty(), "{name} has no seeds");
            seeds.iter().for_each(|seed| target(seed));
            let program = std::fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
            assert!(program.contains(&format!("fuzz::{name}(data)")), "{name}");
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_damage_to_a_seed_panics(
            number in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
            whole in any::<bool>(),
            more in prop::collection::vec(any::<u8>(), 0..24),
        ) {
            for (name, target) in TARGETS {
                let seeds = seeds(name);
                let mut bytes = if seeds.is_empty() { Vec::new() } else { number.get(&seeds).clone() };
                for (place, byte) in &changes {
                    let length = bytes.len();
                    if length > 0 {
                        bytes[place.index(length)] = *byte;
                    }
                }
                if !whole {
                    bytes.truncate(cut.index(bytes.len() + 1));
                }
                bytes.extend(&more);
                target(&bytes);
            }
        }
    }
}
