//! How the machines that people have lie together, as a stand-in for NVML tells it, and in what condition they are.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;

use driver::{FakeDriver, one_gpu, profile};
use gpucontainer::gpu::{DriverRoot, GpuSet, Inventory, NvLinkEnd, PciPath, Placement, Topology};
use serde_json::json;

const GIB: u64 = 1 << 30;

fn discover(driver: &FakeDriver) -> Inventory {
    let inventory = Inventory::discover_with(&DriverRoot::new(driver.path()));
    assert_eq!((inventory.unavailable(), inventory.problems()), (None, &[][..]));
    inventory
}

fn all(topology: &Topology) -> GpuSet {
    (0..topology.gpus()).collect()
}

/// A request, the GPUs that are free, and those that it gets.
fn chosen(topology: &Topology, free: GpuSet, count: usize, placement: Placement) -> Vec<usize> {
    topology.choose(free, count, placement).map(|set| set.places().collect()).unwrap_or_default()
}

#[test]
fn every_machine_tells_how_its_gpus_are_linked() {
    if !driver::available() {
        return;
    }
    // The machine, its GPUs, the links and the way from the first to the second, the third and the last GPU.
    let table = [
        ("dgx-1", 8, [(1, PciPath::OneSwitch), (1, PciPath::HostBridge), (0, PciPath::System)]),
        ("dgx-a100", 8, [(12, PciPath::Switches), (12, PciPath::System), (12, PciPath::System)]),
        ("hgx-2", 16, [(6, PciPath::OneSwitch), (6, PciPath::Switches), (6, PciPath::System)]),
        ("hgx-h100", 8, [(18, PciPath::NumaNode), (18, PciPath::NumaNode), (18, PciPath::System)]),
        ("hgx-b200", 8, [(18, PciPath::NumaNode), (18, PciPath::NumaNode), (18, PciPath::System)]),
        ("l40s", 8, [(0, PciPath::OneSwitch), (0, PciPath::NumaNode), (0, PciPath::System)]),
    ];
    for (name, count, expected) in table {
        let inventory = discover(&FakeDriver::new(name));
        assert_eq!(inventory.gpus().len(), count, "{name}");
        assert_eq!(inventory.pairs().len(), count * (count - 1) / 2, "{name}");
        assert!(
            inventory.gpus().iter().all(|gpu| gpu.numa_node.map(|node| vec![node]) == Some(gpu.memory_nodes.clone()))
        );
        assert!(inventory.gpus().iter().any(|gpu| gpu.minor != gpu.index), "{name}");
        let topology = Topology::of(&inventory);
        for (other, (links, path)) in [1, 2, count - 1].into_iter().zip(expected) {
            assert_eq!((topology.nvlinks(0, other), topology.path(0, other)), (links, Some(path)), "{name} 0-{other}");
        }
        let text = serde_json::to_string(&inventory).unwrap();
        assert_eq!(serde_json::from_str::<Inventory>(&text).unwrap(), inventory, "{name}");
    }
}

#[test]
fn links_lead_to_gpus_and_to_switches() {
    if !driver::available() {
        return;
    }
    let mesh = discover(&FakeDriver::new("dgx-1"));
    let ends: Vec<&NvLinkEnd> = mesh.gpus()[0].nvlinks.iter().map(|link| &link.end).collect();
    let third = NvLinkEnd::Gpu("0000:0b:00.0".to_owned());
    assert_eq!(ends.iter().filter(|end| ***end == third).count(), 2);
    assert!(ends.iter().all(|end| matches!(end, NvLinkEnd::Gpu(_))), "{ends:?}");
    let switched = discover(&FakeDriver::new("hgx-h100"));
    assert!(switched.gpus()[0].nvlinks.iter().all(|link| matches!(link.end, NvLinkEnd::Switch(_))));
    assert_eq!(switched.gpus()[0].fabric.as_ref().map(|fabric| (fabric.cluster.len(), fabric.clique)), Some((32, 0)));
    let hidden = discover(&FakeDriver::new("hgx-b200"));
    assert_eq!(hidden.gpus()[0].nvlinks.len(), 18);
    assert!(hidden.gpus()[0].nvlinks.iter().all(|link| link.end == NvLinkEnd::Other), "addresses are not told");

    // A link that is down, and drivers before there was a call for the kind of the other end.
    let mut machine = profile("dgx-1");
    machine["gpus"][0]["nvlinks"][0] = json!("");
    machine["errors"] = json!({ "nvmlDeviceGetNvLinkRemoteDeviceType": 13 });
    let inventory = discover(&FakeDriver::with_profile(machine));
    assert_eq!(inventory.gpus()[0].nvlinks.first().map(|link| link.number), Some(1));
    assert_eq!(Topology::of(&inventory).nvlinks(0, 1), 0, "that link was the only one");
    assert_eq!(Topology::of(&inventory).nvlinks(0, 3), 2, "a GPU is known by its address");
}

#[test]
fn a_fabric_that_is_not_ready_links_nothing() {
    if !driver::available() {
        return;
    }
    let mut machine = profile("hgx-b200");
    machine["defaults"]["fabric"]["state"] = json!(2);
    let topology = Topology::of(&discover(&FakeDriver::with_profile(machine.clone())));
    assert_eq!(topology.nvlinks(0, 1), 0);
    assert_eq!(topology.choose(all(&topology), 2, Placement::NvlinkRequired), None);
    // Two partitions of one host.
    machine["defaults"]["fabric"]["state"] = json!(3);
    for gpu in &mut machine["gpus"].as_array_mut().unwrap()[4..] {
        gpu["fabric"] = json!({ "cluster": "0".repeat(32), "clique": 1, "state": 3 });
    }
    let topology = Topology::of(&discover(&FakeDriver::with_profile(machine)));
    assert_eq!((topology.nvlinks(0, 3), topology.nvlinks(3, 4), topology.nvlinks(4, 7)), (18, 0, 18));
    assert_eq!(topology.choose(all(&topology), 5, Placement::NvlinkRequired), None);
    // The driver's own word is final.
    let mut machine = profile("hgx-2");
    machine["topology"]["nvlink"] = json!(false);
    assert_eq!(Topology::of(&discover(&FakeDriver::with_profile(machine))).nvlinks(0, 1), 0);
}

#[test]
fn requests_of_every_size_are_placed_on_sixteen_gpus() {
    if !driver::available() {
        return;
    }
    let topology = Topology::of(&discover(&FakeDriver::new("hgx-2")));
    for placement in [Placement::Best, Placement::NvlinkRequired, Placement::KeepPairs, Placement::Spread] {
        for count in 1..=16 {
            assert_eq!(chosen(&topology, all(&topology), count, placement).len(), count, "{placement:?}");
        }
    }
    assert_eq!(chosen(&topology, all(&topology), 8, Placement::Best), (0..8).collect::<Vec<_>>(), "one board");
    assert_eq!(chosen(&topology, all(&topology), 9, Placement::SameNumaNode), [0; 0]);
    let taken: GpuSet = [0, 1, 2].into_iter().collect();
    assert_eq!(chosen(&topology, all(&topology).minus(taken), 1, Placement::Best), [3], "the half of a pair");
    assert_eq!(chosen(&topology, all(&topology), 2, Placement::Spread), [0, 8]);
    assert_eq!(topology.describe(taken), "6 NVLinks between each two, several PCIe switches");
}

#[test]
fn the_condition_of_a_gpu_is_told() {
    if !driver::available() {
        return;
    }
    let host = FakeDriver::new("dgx-a100");
    let health = discover(&host).gpus()[0].health.clone();
    assert_eq!((health.uncorrectable_errors, health.retired_pages), (Some(0), None), "{health:?}");
    assert_eq!(health.remapped_rows, Some(Default::default()));
    host.change(|machine| {
        machine["defaults"]["health"] = json!({
            "uncorrectable_errors": 2, "lifetime_uncorrectable_errors": 9,
            "remapped_rows": { "correctable": 1, "uncorrectable": 3, "pending": true, "failed": true }
        });
    });
    let health = discover(&host).gpus()[7].health.clone();
    let rows = health.remapped_rows.unwrap();
    assert_eq!((rows.correctable, rows.uncorrectable, rows.pending, rows.failed), (1, 3, true, true));
    assert_eq!((health.uncorrectable_errors, health.lifetime_uncorrectable_errors), (Some(2), Some(9)));
    let old = json!({ "health": { "retired_single": 3, "retired_double": 4, "retirement_pending": true } });
    let health = discover(&FakeDriver::with_profile(one_gpu(old))).gpus()[0].health.clone();
    assert_eq!((health.retired_pages, health.retirement_pending), (Some(7), Some(true)));
    assert_eq!(discover(&FakeDriver::new("t4")).gpus()[0].health, Default::default(), "a model that says nothing");

    let falling = json!({ "errors": { "nvmlDeviceGetRemappedRows": 15, "nvmlDeviceGetMemoryInfo_v2": 15 } });
    let host = FakeDriver::with_profile(one_gpu(falling));
    let inventory = Inventory::discover_with(&DriverRoot::new(host.path()));
    assert!(inventory.gpus()[0].health.lost);
    assert_eq!(inventory.problems().len(), 1, "said once: {inventory:?}");
}

#[test]
fn processes_come_and_go_while_the_host_looks() {
    if !driver::available() {
        return;
    }
    let host = FakeDriver::new("l40s");
    assert!(discover(&host).gpus()[0].processes.is_empty());
    host.change(|machine| {
        machine["gpus"][0]["compute_processes"] = json!([{ "pid": 11, "memory": 8 * GIB }]);
        machine["gpus"][0]["graphics_processes"] = json!([{ "pid": 12 }]);
        machine["gpus"][0]["mps_processes"] = json!([{ "pid": 14 }, { "pid": 13 }]);
        machine["gpus"][0]["memory"] = json!({ "total": 48 * GIB, "used": 8 * GIB });
    });
    let gpu = discover(&host).gpus()[0].clone();
    assert_eq!(gpu.processes, [11, 12, 13, 14]);
    assert_eq!(gpu.memory.unwrap().free, 40 * GIB);
    assert_eq!(gpu.brand.as_deref(), Some("nvidia"));
}
