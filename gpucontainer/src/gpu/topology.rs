//! How near the GPUs of a host are to each other, as numbers that a placement can add up.

use crate::gpu::inventory::{Gpu, Inventory, NvLinkEnd, PciPath};

use std::collections::BTreeMap;
use std::fmt;

/// Some GPUs of an inventory: a set of places in [`Inventory::gpus`], of which the first 64 can be in it.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct GpuSet(u64);

impl GpuSet {
    /// The GPUs that fit into a set: no host has as many.
    pub const CAPACITY: usize = 64;

    /// A set without GPUs.
    pub const EMPTY: Self = Self(0);

    /// The set with `place` too; unchanged if the place is beyond [`CAPACITY`](Self::CAPACITY).
    #[must_use]
    pub fn with(self, place: usize) -> Self {
        if place < Self::CAPACITY { Self(self.0 | 1 << place) } else { self }
    }

    /// The set without `place`.
    #[must_use]
    pub fn without(self, place: usize) -> Self {
        if place < Self::CAPACITY { Self(self.0 & !(1 << place)) } else { self }
    }

    /// Whether `place` is in the set.
    pub fn contains(self, place: usize) -> bool {
        place < Self::CAPACITY && self.0 >> place & 1 == 1
    }

    /// How many there are.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// What is in both sets.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The places, ascending.
    pub fn places(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let place = (rest != 0).then(|| rest.trailing_zeros() as usize);
            rest &= rest.wrapping_sub(1);
            place
        })
    }
}

impl FromIterator<usize> for GpuSet {
    fn from_iter<I: IntoIterator<Item = usize>>(places: I) -> Self {
        places.into_iter().fold(Self::EMPTY, Self::with)
    }
}

/// How near the GPUs of an [`Inventory`] are to each other. `Display` shows it as a table.
#[derive(Clone, Debug)]
pub struct Topology {
    names: Vec<String>,
    links: Vec<Vec<u32>>,
    paths: Vec<Vec<Option<PciPath>>>,
    nodes: Vec<Option<u32>>,
    mates: Vec<Option<usize>>,
}

impl Topology {
    /// The topology of the GPUs of `inventory`, by their places in it.
    ///
    /// NVLinks between two GPUs are counted as far as both can use them: direct ones, those to the same
    /// switches, or those into one fabric. Links that the driver does not let the two use count nothing.
    pub fn of(inventory: &Inventory) -> Self {
        let gpus: Vec<&Gpu> = inventory.gpus().iter().take(GpuSet::CAPACITY).collect();
        let count = gpus.len();
        let mut paths = vec![vec![None; count]; count];
        let mut allowed = vec![vec![None; count]; count];
        for pair in inventory.pairs().iter().filter(|pair| pair.first.max(pair.second) < count) {
            for (one, other) in [(pair.first, pair.second), (pair.second, pair.first)] {
                paths[one][other] = pair.path;
                allowed[one][other] = pair.nvlink;
            }
        }
        let links = |one: usize, other: usize| match allowed[one][other] {
            _ if one == other => 0,
            Some(false) => 0,
            said => usable_links(gpus[one], gpus[other], said == Some(true)),
        };
        let links = (0..count).map(|one| (0..count).map(|other| links(one, other)).collect()).collect();
        let names = gpus.iter().map(|gpu| format!("GPU {}", gpu.index)).collect();
        let nodes = gpus.iter().map(|gpu| gpu.numa_node).collect();
        let mut topology = Self { names, links, paths, nodes, mates: vec![None; count] };
        topology.mates =
            (0..count).map(|one| topology.nearest(one).filter(|o| topology.nearest(*o) == Some(one))).collect();
        topology
    }

    /// How many GPUs it knows.
    pub fn gpus(&self) -> usize {
        self.names.len()
    }

    /// How many NVLinks the GPUs at two places have to each other, directly or through switches.
    pub fn nvlinks(&self, one: usize, other: usize) -> u32 {
        self.links.get(one).and_then(|row| row.get(other)).copied().unwrap_or(0)
    }

    /// The way between the GPUs at two places over PCI Express; `None` if unknown.
    pub fn path(&self, one: usize, other: usize) -> Option<PciPath> {
        self.paths.get(one).and_then(|row| row.get(other)).copied().flatten()
    }

    /// The NUMA node of the GPU at a place.
    pub fn numa_node(&self, place: usize) -> Option<u32> {
        self.nodes.get(place).copied().flatten()
    }

    /// The other half of a pair: the GPU that is nearer to this one than all others, if that is mutual.
    pub fn mate(&self, place: usize) -> Option<usize> {
        self.mates.get(place).copied().flatten()
    }

    /// How near two GPUs are: 100 for each NVLink, and 10 to 60 for the way over PCI Express.
    ///
    /// One NVLink is thus worth more than any difference on the bus, as it is in bandwidth.
    pub fn score(&self, one: usize, other: usize) -> u32 {
        let bus = match self.path(one, other) {
            _ if one == other => return 0,
            Some(PciPath::Board) => 60,
            Some(PciPath::OneSwitch) => 50,
            Some(PciPath::Switches) => 40,
            Some(PciPath::HostBridge) => 30,
            Some(PciPath::NumaNode) => 20,
            Some(PciPath::System) => 10,
            None if self.numa_node(one) == self.numa_node(other) => 20,
            None => 10,
        };
        100 * self.nvlinks(one, other) + bus
    }

    /// What connects the GPUs of `set`, in words: `4 NVLinks between each two, one PCIe switch`.
    pub fn describe(&self, set: GpuSet) -> String {
        let pairs =
            || set.places().flat_map(|one| set.places().filter(move |other| *other > one).map(move |o| (one, o)));
        let links = || pairs().map(|(one, other)| self.nvlinks(one, other));
        let (Some(fewest), Some(most)) = (links().min(), links().max()) else {
            return "alone".to_owned();
        };
        let number = |links: u32| if links == 1 { "1 NVLink".to_owned() } else { format!("{links} NVLinks") };
        let nvlink = match (fewest, most) {
            (0, 0) => String::new(),
            (0, most) => format!("up to {} between two, ", number(most)),
            (fewest, most) if fewest == most => format!("{} between each two, ", number(most)),
            (fewest, most) => format!("{fewest} to {} between each two, ", number(most)),
        };
        let farthest = pairs().map(|(one, other)| self.path(one, other)).max().flatten();
        let bus = farthest.map_or_else(|| "an unknown way over PCIe".to_owned(), |path| path.to_string());
        format!("{nvlink}{bus}")
    }

    /// The one GPU that is nearer than all others.
    fn nearest(&self, one: usize) -> Option<usize> {
        let others = || (0..self.gpus()).filter(|other| *other != one);
        let best = others().map(|other| self.score(one, other)).max()?;
        let mut nearest = others().filter(|other| self.score(one, *other) == best);
        nearest.next().filter(|_| nearest.next().is_none())
    }
}

/// The NVLinks over which two GPUs reach each other; `allowed` if the driver says that they do.
fn usable_links(one: &Gpu, other: &Gpu, allowed: bool) -> u32 {
    let direct = |from: &Gpu, to: &Gpu| {
        number(from.nvlinks.iter().filter(|link| link.end == NvLinkEnd::Gpu(to.pci_bus_id.clone())).count())
    };
    let direct = direct(one, other).min(direct(other, one));
    if direct > 0 {
        return direct;
    }
    let (mine, yours) = (switches(one), switches(other));
    let shared: u32 = mine.iter().map(|(switch, links)| links.min(yours.get(switch).unwrap_or(&0))).sum();
    if shared > 0 {
        return shared;
    }
    // Switches may be linked with each other, and a fabric may not show its switches.
    let joined = allowed || one.fabric.is_some() && one.fabric == other.fabric;
    if joined { outward(one).min(outward(other)) } else { 0 }
}

/// How many links lead to each switch.
fn switches(gpu: &Gpu) -> BTreeMap<&str, u32> {
    let mut switches = BTreeMap::new();
    for link in &gpu.nvlinks {
        if let NvLinkEnd::Switch(address) = &link.end {
            *switches.entry(address.as_str()).or_insert(0) += 1;
        }
    }
    switches
}

/// How many links do not lead to one certain GPU.
fn outward(gpu: &Gpu) -> u32 {
    number(gpu.nvlinks.iter().filter(|link| !matches!(link.end, NvLinkEnd::Gpu(_))).count())
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl fmt::Display for Topology {
    /// One row and one column for each GPU, as `nvidia-smi topo -m` prints it: `NV12` is twelve NVLinks.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:8}", "")?;
        for name in &self.names {
            write!(f, "{name:8}")?;
        }
        writeln!(f, "NUMA")?;
        for (one, name) in self.names.iter().enumerate() {
            write!(f, "{name:8}")?;
            for other in 0..self.gpus() {
                let cell = match (self.nvlinks(one, other), self.path(one, other)) {
                    _ if one == other => "X".to_owned(),
                    (0, path) => path.map_or("?", PciPath::abbreviation).to_owned(),
                    (links, _) => format!("NV{links}"),
                };
                write!(f, "{cell:8}")?;
            }
            writeln!(f, "{}", self.numa_node(one).map_or_else(|| "-".to_owned(), |node| node.to_string()))?;
        }
        Ok(())
    }
}
