//! The way between two GPUs over the bus, by where the kernel has them in its tree of devices.

use crate::gpu::driver::root::DriverRoot;
use crate::gpu::inventory::{Gpu, GpuPair, PciPath};

use std::path::Path;

/// Bridges that are part of a graphics card: at most an upstream and a downstream port.
const BRIDGES_ON_A_CARD: usize = 2;

/// Adds what nobody has said yet of the ways between GPUs of one vendor.
pub(crate) fn complete(root: &DriverRoot, gpus: &[Gpu], pairs: &mut Vec<GpuPair>) {
    let known =
        |pairs: &[GpuPair], first, second| pairs.iter().position(|pair| (pair.first, pair.second) == (first, second));
    let mut places: Option<Vec<Option<Vec<String>>>> = None;
    for (first, one) in gpus.iter().enumerate() {
        for (second, other) in gpus.iter().enumerate().skip(first + 1).filter(|(_, other)| other.vendor == one.vendor) {
            let found = known(pairs, first, second);
            if found.is_some_and(|found| pairs[found].path.is_some()) {
                continue;
            }
            // Most often the driver has said it all, and nobody has to look.
            let places = places.get_or_insert_with(|| gpus.iter().map(|gpu| place(root, gpu)).collect());
            let same_node = one.numa_node == other.numa_node;
            let path = match (&places[first], &places[second]) {
                (Some(one), Some(other)) => Some(between(one, other, same_node)),
                _ => None,
            };
            match found {
                Some(found) => pairs[found].path = path,
                None => pairs.push(GpuPair { first, second, path, nvlink: None }),
            }
        }
    }
    pairs.sort_by_key(|pair| (pair.first, pair.second));
}

/// The bridges above a card, from the root bus down, as in `pci0000:00`, `0000:00:01.1`.
fn place(root: &DriverRoot, gpu: &Gpu) -> Option<Vec<String>> {
    let device = Path::new("/sys/bus/pci/devices").join(&gpu.pci_bus_id);
    let real = root.resolve(&device).ok()?;
    let parts = real.components().filter_map(|part| part.as_os_str().to_str());
    let mut place: Vec<String> = parts.skip_while(|part| !part.starts_with("pci")).map(str::to_owned).collect();
    // The root bus and the card itself, or it is no such tree.
    if place.len() < 2 || place.pop()? != gpu.pci_bus_id {
        return None;
    }
    let vendor = |address: &str| root.text(Path::new("/sys/bus/pci/devices").join(address).join("vendor"));
    let own = vendor(&gpu.pci_bus_id);
    for _ in 0..BRIDGES_ON_A_CARD {
        // A port of the root bus belongs to the processor, whoever made it.
        match place.last() {
            Some(bridge) if place.len() > 2 && own.is_some() && vendor(bridge) == own => place.pop(),
            _ => break,
        };
    }
    Some(place)
}

fn between(one: &[String], other: &[String], same_node: bool) -> PciPath {
    let common = one.iter().zip(other).take_while(|(one, other)| one == other).count();
    match common {
        0 if same_node => PciPath::NumaNode,
        0 => PciPath::System,
        1 => PciPath::HostBridge,
        // Below the port that both share, each has the port of its slot, or further switches.
        common if one.len().max(other.len()) <= common + 1 => PciPath::OneSwitch,
        _ => PciPath::Switches,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_found_in_the_tree_of_devices() {
        let directory = tempfile::tempdir().unwrap();
        let root = DriverRoot::new(directory.path());
        // The cards, their NUMA nodes and their places; two cards bring bridges of their own.
        let cards = [
            (0, "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0"),
            (0, "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:04:00.0"),
            (0, "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:02.0/0000:05:00.0/0000:06:00.0/0000:07:00.0"),
            (0, "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:03.0/0000:08:00.0/0000:09:00.0/0000:0a:00.0"),
            (0, "pci0000:00/0000:00:02.0/0000:10:00.0"),
            (0, "pci0000:20/0000:20:01.0/0000:21:00.0"),
            (1, "pci0000:40/0000:40:01.0/0000:41:00.0"),
        ];
        let devices = directory.path().join("sys/bus/pci/devices");
        std::fs::create_dir_all(&devices).unwrap();
        for (number, (_, place)) in cards.iter().enumerate() {
            let mut inside = std::path::PathBuf::from("sys/devices");
            let parts: Vec<&str> = place.split('/').collect();
            for (depth, part) in parts.iter().enumerate() {
                inside.push(part);
                std::fs::create_dir_all(directory.path().join(&inside)).unwrap();
                // The third card has its bridges on board; the fourth is behind one more switch of somebody else.
                let own = depth + 1 == parts.len() || (number == 2 && depth > 3);
                let vendor = directory.path().join(&inside).join("vendor");
                if depth > 0 && !vendor.exists() {
                    std::fs::write(vendor, if own { "0x1002\n" } else { "0x1000\n" }).unwrap();
                    let target = Path::new("../../..").join(inside.strip_prefix("sys").unwrap());
                    std::os::unix::fs::symlink(target, devices.join(part)).unwrap();
                }
            }
        }
        let card = |(node, place): &(u32, &str)| Gpu {
            numa_node: Some(*node),
            pci_bus_id: place.rsplit('/').next().unwrap().to_owned(),
            ..Gpu::default()
        };
        let gpus: Vec<Gpu> = cards.iter().map(card).collect();
        let mut pairs = vec![GpuPair { first: 0, second: 5, path: Some(PciPath::Board), nvlink: Some(true) }];
        complete(&root, &gpus, &mut pairs);
        assert_eq!(pairs.len(), 21);
        let way = |first, second| pairs.iter().find(|p| (p.first, p.second) == (first, second)).unwrap().path.unwrap();
        assert_eq!(way(0, 1), PciPath::OneSwitch);
        assert_eq!(way(0, 2), PciPath::OneSwitch, "bridges on the card are no switch");
        assert_eq!(way(0, 3), PciPath::Switches);
        assert_eq!(way(0, 4), PciPath::HostBridge);
        assert_eq!(way(0, 5), PciPath::Board, "what the driver said stands");
        assert_eq!(way(4, 5), PciPath::NumaNode);
        assert_eq!(way(4, 6), PciPath::System);
        let mut none = Vec::new();
        complete(&DriverRoot::new("/no/such/directory"), &gpus[..2], &mut none);
        assert_eq!(none[0].path, None);
    }
}
