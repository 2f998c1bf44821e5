//! The search against the plain walk over all sets, and the machines that people have.

use super::*;
use crate::gpu::inventory::{Gpu, GpuPair, Inventory, NvLink, NvLinkEnd, PciPath};

use proptest::prelude::*;

fn bus(place: usize) -> String {
    format!("0000:{place:02x}:00.0")
}

/// A machine whose NUMA nodes, ways over the bus and ends of links are given by functions of places.
fn machine(
    count: usize,
    node: impl Fn(usize) -> Option<u32>,
    path: impl Fn(usize, usize) -> PciPath,
    ends: impl Fn(usize) -> Vec<NvLinkEnd>,
) -> Inventory {
    let links = |place| {
        let numbered = ends(place).into_iter().zip(0..);
        numbered.map(|(end, number)| NvLink { number, end }).collect()
    };
    let gpu = |place: usize| Gpu {
        index: u32::try_from(place).unwrap(),
        pci_bus_id: bus(place),
        numa_node: node(place),
        nvlinks: links(place),
        ..Gpu::default()
    };
    let pairs = (0..count).flat_map(|first| (first + 1..count).map(move |second| (first, second)));
    let pair = |(first, second)| GpuPair { first, second, path: Some(path(first, second)), nvlink: None };
    Inventory { gpus: (0..count).map(gpu).collect(), pairs: pairs.map(pair).collect(), ..Inventory::default() }
}

/// Pairs on one switch, quads on one processor.
fn quads(one: usize, other: usize) -> PciPath {
    match (one / 2 == other / 2, one / 4 == other / 4) {
        (true, _) => PciPath::OneSwitch,
        (_, true) => PciPath::HostBridge,
        _ => PciPath::System,
    }
}

fn numa(place: usize) -> Option<u32> {
    u32::try_from(place / 4).ok()
}

fn to_switches(names: &'static str, each: usize) -> impl Fn(usize) -> Vec<NvLinkEnd> {
    move |_| names.chars().flat_map(|name| (0..each).map(move |_| NvLinkEnd::Switch(name.to_string()))).collect()
}

fn pcie_only() -> Topology {
    Topology::of(&machine(8, numa, quads, |_| Vec::new()))
}

fn dgx_a100() -> Topology {
    let node = |place: usize| [3, 3, 1, 1, 7, 7, 5, 5].get(place).copied();
    let path = |one, other| if one / 2 == other / 2 { PciPath::Switches } else { PciPath::System };
    Topology::of(&machine(8, node, path, to_switches("abcdef", 2)))
}

const CUBE_MESH: [[usize; 8]; 8] = [
    [0, 1, 1, 2, 2, 0, 0, 0],
    [1, 0, 2, 1, 0, 2, 0, 0],
    [1, 2, 0, 2, 0, 0, 1, 0],
    [2, 1, 2, 0, 0, 0, 0, 1],
    [2, 0, 0, 0, 0, 1, 1, 2],
    [0, 2, 0, 0, 1, 0, 2, 1],
    [0, 0, 1, 0, 1, 2, 0, 2],
    [0, 0, 0, 1, 2, 1, 2, 0],
];

fn dgx_1() -> Topology {
    let ends = |place: usize| {
        let row = CUBE_MESH[place].iter().enumerate();
        row.flat_map(|(other, links)| vec![NvLinkEnd::Gpu(bus(other)); *links]).collect()
    };
    Topology::of(&machine(8, numa, quads, ends))
}

/// Two boards of eight; the switches of the boards are linked, which the driver tells only as a fact.
fn hgx_2() -> Topology {
    let ends = |place| to_switches(if place < 8 { "abcdef" } else { "ghijkl" }, 1)(place);
    let mut inventory = machine(16, |place| u32::try_from(place / 8).ok(), quads, ends);
    for pair in &mut inventory.pairs {
        pair.nvlink = Some(true);
    }
    Topology::of(&inventory)
}

fn l40s_pairs() -> Topology {
    let path = |one, other| if one / 2 == other / 2 { PciPath::NumaNode } else { PciPath::System };
    Topology::of(&machine(4, |place| u32::try_from(place / 2).ok(), path, |_| Vec::new()))
}

fn chosen(topology: &Topology, free: &[usize], count: usize, placement: Placement) -> Option<Vec<usize>> {
    let set = topology.choose(free.iter().copied().collect(), count, placement)?;
    Some(set.places().collect())
}

/// All requests of a list, one after the other, each of what the former left.
fn in_turn(topology: &Topology, counts: &[usize], placement: Placement) -> Vec<Vec<usize>> {
    let mut free: GpuSet = (0..topology.gpus()).collect();
    let next = |count: &usize| {
        let set = topology.choose(free, *count, placement).unwrap();
        assert!(set.len() == *count && set.minus(free).is_empty());
        free = free.minus(set);
        set.places().collect()
    };
    counts.iter().map(next).collect()
}

const ALL: [Placement; 5] =
    [Placement::Best, Placement::NvlinkRequired, Placement::SameNumaNode, Placement::KeepPairs, Placement::Spread];

/// Everything that the search does cleverly, done plainly.
fn by_force(topology: &Topology, free: GpuSet, count: usize, placement: Placement) -> Option<GpuSet> {
    let places: Vec<usize> = free.places().collect();
    let sum = |set: &[usize]| -> i64 {
        let pairs = set.iter().flat_map(|one| set.iter().filter(move |other| *other > one).map(move |o| (*one, *o)));
        pairs.map(|(one, other)| i64::from(topology.score(one, other))).sum()
    };
    let mut best: Option<(Worth, Vec<usize>)> = None;
    for mask in (0_u32..1 << places.len()).filter(|mask| mask.count_ones() as usize == count) {
        let (mut set, mut rest) = (Vec::new(), Vec::new());
        for (number, place) in places.iter().enumerate() {
            if mask >> number & 1 == 1 { set.push(*place) } else { rest.push(*place) }
        }
        let mut reached = set.iter().copied().take(1).collect::<Vec<_>>();
        for _ in &set {
            reached = set
                .iter()
                .copied()
                .filter(|place| reached.contains(place) || reached.iter().any(|r| topology.nvlinks(*r, *place) > 0))
                .collect();
        }
        let allowed = match placement {
            Placement::NvlinkRequired => reached.len() == set.len(),
            Placement::SameNumaNode => set.windows(2).all(|w| topology.numa_node(w[0]) == topology.numa_node(w[1])),
            _ => true,
        };
        if !allowed {
            continue;
        }
        let halves = set.iter().filter(|place| topology.mate(**place).is_some_and(|mate| rest.contains(&mate)));
        let (inside, broken, remaining) = (sum(&set), i64::try_from(halves.count()).unwrap(), sum(&rest));
        let worth = match placement {
            Placement::KeepPairs => [-broken, inside, remaining],
            Placement::Spread => [-inside, -broken, remaining],
            _ => [inside, -broken, remaining],
        };
        let better = |(old, places): &(Worth, Vec<usize>)| worth > *old || (worth == *old && set < *places);
        if best.as_ref().is_none_or(better) {
            best = Some((worth, set));
        }
    }
    best.map(|(_, set)| set.into_iter().collect())
}

#[test]
fn known_machines_agree_with_brute_force_for_every_set_of_free_gpus() {
    for topology in [pcie_only(), dgx_a100(), dgx_1(), l40s_pairs()] {
        for mask in 0_usize..1 << topology.gpus() {
            let free: GpuSet = (0..topology.gpus()).filter(|place| mask >> place & 1 == 1).collect();
            for count in 1..=topology.gpus() {
                for placement in ALL {
                    let found = topology.choose(free, count, placement);
                    assert_eq!(found, by_force(&topology, free, count, placement), "{count} of {free:?} {placement:?}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn random_machines_agree_with_brute_force(
        scores in prop::collection::vec((0_u32..4, 0_u32..60), 100),
        free in 0_usize..1 << 10,
        count in 1_usize..10,
        of_placement in 0_usize..5,
    ) {
        let path = |one: usize, other: usize| match scores[one.min(other) * 10 + one.max(other)].1 {
            0..10 => PciPath::OneSwitch,
            10..20 => PciPath::Switches,
            20..30 => PciPath::HostBridge,
            30..40 => PciPath::NumaNode,
            _ => PciPath::System,
        };
        let ends = |one: usize| {
            let links = |other: usize| match scores[one.min(other) * 10 + one.max(other)].0 {
                3 if one != other => vec![NvLinkEnd::Gpu(bus(other)); 2],
                _ => Vec::new(),
            };
            (0..10).flat_map(links).collect()
        };
        let topology = Topology::of(&machine(10, |place| u32::try_from(place / 5).ok(), path, ends));
        let free: GpuSet = (0..10).filter(|place| free >> place & 1 == 1).collect();
        let placement = ALL[of_placement];
        prop_assert_eq!(topology.choose(free, count, placement), by_force(&topology, free, count, placement));
    }
}

#[test]
fn pairs_serve_pairs_and_what_is_left_over_serves_single_requests() {
    let a100 = dgx_a100();
    assert_eq!(a100.nvlinks(0, 7), 12);
    let expected = [vec![0, 1], vec![2], vec![4, 5], vec![3], vec![6, 7]];
    assert_eq!(in_turn(&a100, &[2, 1, 2, 1, 2], Placement::Best), expected);
    assert_eq!(chosen(&a100, &[0, 1, 2, 3, 4, 5, 7], 3, Placement::Best), Some(vec![0, 1, 7]));
    assert_eq!(chosen(&a100, &[0, 1, 2, 4], 1, Placement::Best), Some(vec![2]));
    let box_of_eight = pcie_only();
    assert_eq!(
        in_turn(&box_of_eight, &[1, 4, 1, 2], Placement::Best),
        [vec![0], vec![4, 5, 6, 7], vec![1], vec![2, 3]]
    );
    assert_eq!(chosen(&box_of_eight, &[0, 1, 2, 3, 4, 5, 6], 3, Placement::Best), Some(vec![4, 5, 6]));
    assert_eq!(in_turn(&l40s_pairs(), &[1, 2, 1], Placement::Best), [vec![0], vec![2, 3], vec![1]]);
}

#[test]
fn whole_pairs_count_more_than_nearness_if_asked_for() {
    let topology = pcie_only();
    let free = [0, 1, 2, 3, 6];
    assert_eq!(chosen(&topology, &free, 3, Placement::Best), Some(vec![0, 1, 2]), "all of one processor");
    assert_eq!(chosen(&topology, &free, 3, Placement::KeepPairs), Some(vec![0, 1, 6]), "the single one is used");
    assert_eq!(chosen(&topology, &[0, 1], 1, Placement::KeepPairs), Some(vec![0]), "there is nothing else");
}

#[test]
fn the_mesh_is_used_by_its_links() {
    let topology = dgx_1();
    let fours = in_turn(&topology, &[4, 4], Placement::Best);
    assert_eq!(fours, [vec![0, 1, 2, 3], vec![4, 5, 6, 7]]);
    let twos = in_turn(&topology, &[2, 2, 2, 2], Placement::Best);
    assert!(twos.iter().all(|pair| topology.nvlinks(pair[0], pair[1]) == 2), "{twos:?}");
    assert_eq!(chosen(&topology, &[0, 5], 2, Placement::NvlinkRequired), None);
    assert_eq!(chosen(&topology, &[0, 5, 7], 2, Placement::NvlinkRequired), Some(vec![5, 7]));
    assert_eq!(chosen(&topology, &[0, 1, 5], 3, Placement::NvlinkRequired), Some(vec![0, 1, 5]), "through one another");
    assert_eq!(topology.describe([0, 3].into_iter().collect()), "2 NVLinks between each two, one host bridge");
}

#[test]
fn switches_connect_those_that_reach_the_same() {
    let topology = hgx_2();
    assert_eq!((topology.nvlinks(0, 7), topology.nvlinks(0, 8)), (6, 6));
    assert_eq!(chosen(&topology, &(0..16).collect::<Vec<_>>(), 16, Placement::NvlinkRequired).unwrap().len(), 16);
    let ends = |place: usize| to_switches(if place < 2 { "ab" } else { "cd" }, 3)(place);
    let mut inventory = machine(4, |_| None, |_, _| PciPath::System, ends);
    let apart = Topology::of(&inventory);
    assert_eq!((apart.nvlinks(0, 1), apart.nvlinks(0, 2)), (6, 0), "other switches are another network");
    assert_eq!(chosen(&apart, &[0, 2, 3], 2, Placement::NvlinkRequired), Some(vec![2, 3]));
    for gpu in &mut inventory.gpus {
        gpu.fabric = Some(crate::gpu::Fabric { cluster: "0".repeat(32), clique: 0 });
    }
    assert_eq!(Topology::of(&inventory).nvlinks(0, 2), 6, "one fabric");
    for pair in &mut inventory.pairs {
        pair.nvlink = Some(false);
    }
    assert_eq!(Topology::of(&inventory).nvlinks(0, 1), 0, "the driver refuses it");
}

#[test]
fn demands_are_refused_and_spreading_uses_every_processor() {
    let topology = pcie_only();
    assert_eq!(chosen(&topology, &[0, 1, 2, 4, 5], 4, Placement::SameNumaNode), None);
    assert_eq!(chosen(&topology, &[0, 1, 4, 5, 6], 3, Placement::SameNumaNode), Some(vec![4, 5, 6]));
    assert_eq!(chosen(&topology, &[0, 1], 2, Placement::NvlinkRequired), None);
    assert_eq!(chosen(&topology, &[3], 1, Placement::NvlinkRequired), Some(vec![3]));
    assert_eq!(chosen(&topology, &(0..8).collect::<Vec<_>>(), 2, Placement::Spread), Some(vec![0, 4]));
    assert_eq!(chosen(&topology, &(0..8).collect::<Vec<_>>(), 4, Placement::Spread), Some(vec![0, 2, 4, 6]));
    assert_eq!(chosen(&topology, &[], 1, Placement::Best), None);
    assert_eq!(chosen(&topology, &[1], 0, Placement::Best), Some(vec![]));
    assert_eq!(chosen(&topology, &[8, 63, 64], 1, Placement::Best), None, "places without a GPU");
}

#[test]
fn a_machine_of_sixty_four_is_answered_too() {
    let topology = Topology::of(&machine(64, numa, quads, |_| Vec::new()));
    let free: Vec<usize> = (0..64).collect();
    assert_eq!(chosen(&topology, &free, 4, Placement::Best), Some(vec![0, 1, 2, 3]));
    let ends = |_| vec![NvLinkEnd::Switch("a".to_owned())];
    let linked = Topology::of(&machine(64, numa, quads, ends));
    for (count, placement) in [(32, Placement::Best), (5, Placement::Spread), (8, Placement::NvlinkRequired)] {
        assert_eq!(chosen(&linked, &free, count, placement).unwrap().len(), count);
    }
}

#[test]
fn the_table_reads_as_people_know_it() {
    let text = dgx_1().to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0].split_whitespace().next_back(), Some("NUMA"));
    let row: Vec<&str> = lines[1].split_whitespace().collect();
    assert_eq!(row, ["GPU", "0", "X", "NV1", "NV1", "NV2", "NV2", "SYS", "SYS", "SYS", "0"]);
}
