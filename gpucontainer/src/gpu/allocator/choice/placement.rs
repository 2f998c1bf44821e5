//! Which of the free GPUs are the best for a request, and leave the best for the next one.
//!
//! After what the placement wishes, the same counts for all: no pair is broken that need not be, so that odd
//! requests are served from what is left over, and what stays free is as near to each other as can be.
//!
//! Each set of the wanted size has a worth of three numbers, compared one after the other; the search
//! finds the set of the highest worth, and among equals the one with the lowest places. It walks all
//! sets in that order and leaves out those branches whose bound is no better than what it has. With
//! 16 free GPUs there are at most 12,870 sets, so the answer is exact.

use crate::gpu::allocator::Placement;
use crate::gpu::topology::{GpuSet, Topology};

/// The work that a search may do, in sets and parts of sets looked at, larger ones counting more: some tenths of a
/// second at most.
///
/// 16 free GPUs have 65,536 sets, which count 3 on average, so they never reach it. Beyond it the best set so far
/// is taken.
const MAX_STEPS: usize = 500_000;

/// Fewer sets than this are walked faster than bounded.
const WORTH_A_BOUND: u64 = 500;

impl Topology {
    /// The `count` GPUs of `free` that serve a request best; `None` if there are none as demanded.
    ///
    /// Exact up to 16 free GPUs, in some milliseconds at most, and the same for the same arguments.
    pub fn choose(&self, free: GpuSet, count: usize, placement: Placement) -> Option<GpuSet> {
        let free: GpuSet = free.places().filter(|place| *place < self.gpus()).collect();
        if count == 0 {
            return Some(GpuSet::EMPTY);
        }
        let mut search = Search::new(self, free, count, placement);
        for group in groups(self, free, placement) {
            if group.len() < count {
                continue;
            }
            search.candidates = group.places().collect();
            search.grow(State::default(), 0);
            if search.best.is_none() {
                // Only a demand for links can refuse every set that the search had time for.
                search.take(self.connected(group, group.places().next()?).take(count).collect());
            }
        }
        search.best.map(|(_, set)| set)
    }

    /// The GPUs of `set` that NVLinks connect with `start`, itself first, the next ones before the farther.
    fn connected(&self, set: GpuSet, start: usize) -> impl Iterator<Item = usize> {
        let mut found = vec![start];
        let mut next = 0;
        while let Some(from) = found.get(next).copied() {
            let new = set.places().filter(|place| self.nvlinks(from, *place) > 0 && !found.contains(place));
            let new: Vec<usize> = new.collect();
            found.extend(new);
            next += 1;
        }
        found.into_iter()
    }
}

/// Parts of `free` of which only one may serve the request.
fn groups(topology: &Topology, free: GpuSet, placement: Placement) -> Vec<GpuSet> {
    let mut groups = Vec::new();
    let mut rest = free;
    while let Some(first) = rest.places().next() {
        let group: GpuSet = match placement {
            Placement::NvlinkRequired => topology.connected(free, first).collect(),
            Placement::SameNumaNode => {
                rest.places().filter(|place| topology.numa_node(*place) == topology.numa_node(first)).collect()
            }
            Placement::Best | Placement::KeepPairs | Placement::Spread => free,
        };
        rest = rest.minus(group);
        groups.push(group);
    }
    groups
}

/// What a set is worth, the most important number first.
type Worth = [i64; 3];

/// A set that is not complete yet, and the sums over it.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    set: GpuSet,
    /// The scores between its members.
    inside: i64,
    /// The scores between each member and every free GPU.
    ties: i64,
}

struct Search<'a> {
    topology: &'a Topology,
    free: GpuSet,
    count: usize,
    placement: Placement,
    candidates: Vec<usize>,
    scores: Vec<Vec<i64>>,
    /// For each place, the sum of its scores with the free GPUs.
    ties: Vec<i64>,
    /// The scores between all free GPUs.
    total: i64,
    steps: usize,
    best: Option<(Worth, GpuSet)>,
}

impl<'a> Search<'a> {
    fn new(topology: &'a Topology, free: GpuSet, count: usize, placement: Placement) -> Self {
        let places = 0..topology.gpus();
        let row = |one: usize| places.clone().map(|other| i64::from(topology.score(one, other))).collect();
        let scores: Vec<Vec<i64>> = places.clone().map(row).collect();
        let ties: Vec<i64> = scores.iter().map(|row| free.places().map(|place| row[place]).sum()).collect();
        let total = free.places().map(|place| ties[place]).sum::<i64>() / 2;
        Self { topology, free, count, placement, candidates: Vec::new(), scores, ties, total, steps: 0, best: None }
    }

    /// Tries all sets that consist of `state` and candidates from the place `from` of their list on.
    fn grow(&mut self, state: State, from: usize) {
        let missing = self.count - state.set.len();
        if missing == 0 {
            self.take(state.set);
            return;
        }
        let rest = self.candidates.len() - from;
        self.steps += 1 + state.set.len() / 4;
        if rest < missing || self.steps > MAX_STEPS {
            return;
        }
        if sets(rest, missing) > WORTH_A_BOUND {
            // A bound costs as much as so many sets.
            self.steps += rest * rest;
            if self.hopeless(state, from) {
                return;
            }
        }
        for next in from..=self.candidates.len() - missing {
            let place = self.candidates[next];
            let inside = state.inside + state.set.places().map(|member| self.scores[place][member]).sum::<i64>();
            let ties = state.ties + self.ties[place];
            self.grow(State { set: state.set.with(place), inside, ties }, next + 1);
        }
    }

    /// Keeps the set if it is worth more than the best one so far, and nothing forbids it.
    fn take(&mut self, set: GpuSet) {
        let places = || set.places();
        let inside: i64 = places()
            .map(|one| places().take_while(|other| *other < one).map(|other| self.scores[one][other]).sum::<i64>())
            .sum();
        let ties: i64 = places().map(|place| self.ties[place]).sum();
        let worth = self.worth(inside, self.broken(set, GpuSet::EMPTY), self.total - ties + inside);
        if self.best.is_some_and(|(best, _)| best >= worth) || set.len() < self.count {
            return;
        }
        let linked = |first| self.topology.connected(set, first).count() == self.count;
        if self.placement == Placement::NvlinkRequired && !set.places().next().is_some_and(linked) {
            return;
        }
        self.best = Some((worth, set));
    }

    /// What is worth most: near members, whole pairs, near GPUs among those that stay free.
    fn worth(&self, inside: i64, broken: i64, remaining: i64) -> Worth {
        match self.placement {
            Placement::KeepPairs => [-broken, inside, remaining],
            Placement::Spread => [-inside, -broken, remaining],
            Placement::Best | Placement::NvlinkRequired | Placement::SameNumaNode => [inside, -broken, remaining],
        }
    }

    /// How many pairs of free GPUs `set` has one half of, not counting those whose other half is `open` yet.
    fn broken(&self, set: GpuSet, open: GpuSet) -> i64 {
        let lost = self.free.minus(set).minus(open);
        let broken = set.places().filter(|place| self.topology.mate(*place).is_some_and(|mate| lost.contains(mate)));
        broken.map(|_| 1).sum()
    }

    /// Whether no set beyond `state` can be worth more than the best one so far.
    fn hopeless(&self, state: State, from: usize) -> bool {
        let Some((best, _)) = self.best else { return false };
        let rest = &self.candidates[from..];
        let missing = self.count - state.set.len();
        // Twice what each candidate adds at most, or at least, so that halves stay whole numbers.
        let extreme = |highest: bool| -> i64 {
            let gain = |place: &usize| {
                let row = &self.scores[*place];
                let mut others: Vec<i64> =
                    rest.iter().filter(|other| *other != place).map(|other| row[*other]).collect();
                2 * state.set.places().map(|member| row[member]).sum::<i64>() + first(&mut others, missing - 1, highest)
            };
            let mut gains: Vec<i64> = rest.iter().map(gain).collect();
            first(&mut gains, missing, highest)
        };
        let most = state.inside + extreme(true) / 2;
        let inside = match self.placement {
            Placement::Spread => state.inside + extreme(false) / 2,
            _ => most,
        };
        let mut ties: Vec<i64> = rest.iter().map(|place| self.ties[*place]).collect();
        let remaining = self.total - state.ties - first(&mut ties, missing, false) + most;
        let open: GpuSet = rest.iter().copied().collect();
        self.worth(inside, self.broken(state.set, open), remaining) <= best
    }
}

/// The sum of the highest or the lowest `count` of `numbers`.
fn first(numbers: &mut [i64], count: usize, highest: bool) -> i64 {
    numbers.sort_unstable();
    let start = if highest { numbers.len().saturating_sub(count) } else { 0 };
    numbers.iter().skip(start).take(count).sum()
}

/// How many sets of `count` out of `of` there are, or some number above [`WORTH_A_BOUND`].
fn sets(of: usize, count: usize) -> u64 {
    let mut sets: u64 = 1;
    for step in 0..count.min(of - count) {
        sets = sets * (of - step) as u64 / (step as u64 + 1);
        if sets > WORTH_A_BOUND {
            break;
        }
    }
    sets
}

#[cfg(test)]
mod tests;
