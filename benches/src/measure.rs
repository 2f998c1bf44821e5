//! Running the contenders of a row in turn, and what becomes of their samples.

use crate::contender::{Contender, Sample};
use serde::Serialize;
use std::time::Duration;

/// One row of the report: the same work, done by several.
pub struct Row {
    /// Names the file and the choice on the command line.
    pub key: &'static str,
    pub title: String,
    /// How many things one run does; 1 unless the row is about many at once.
    pub batch: u32,
    pub entries: Vec<Entry>,
}

/// A contender, or why it cannot take part.
pub enum Entry {
    Ready(Box<dyn Contender>),
    Missing { name: String, why: String },
}

impl Entry {
    pub fn new(name: &str, contender: crate::Result<Box<dyn Contender>>) -> Self {
        match contender {
            Ok(contender) => Self::Ready(contender),
            Err(why) => Self::Missing { name: name.to_owned(), why },
        }
    }
}

/// How often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub warm_ups: usize,
    pub samples: usize,
}

/// The figures of one contender in one row. All times in nanoseconds, of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    pub name: String,
    pub version: String,
    pub command: String,
    pub failure: Option<String>,
    pub wall: Summary,
    pub cpu: Summary,
    pub wall_samples: Vec<u64>,
    pub cpu_samples: Vec<u64>,
}

/// Of many samples.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Summary {
    pub minimum: u64,
    pub median: u64,
    pub p99: u64,
}

impl Summary {
    pub fn of(samples: &[u64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let at = |hundredths: usize| {
            let rank = (sorted.len() * hundredths).div_ceil(100).max(1);
            sorted.get(rank - 1).copied().unwrap_or_default()
        };
        Self { minimum: at(0), median: at(50), p99: at(99) }
    }
}

/// The order of `count` contenders in a round. Over `2 * count` rounds each has every other one before it equally often
/// (a balanced Latin square), since the kernel clears up after a container while the next one runs.
fn order(round: usize, count: usize) -> impl Iterator<Item = usize> {
    // 0, 1, n - 1, 2, n - 2 …, from another place in each round, and backwards after all places.
    let backwards = round / count.max(1) % 2 == 1;
    (0..count).map(move |at| if backwards { count - 1 - at } else { at }).map(move |at| {
        let zigzag = if at % 2 == 1 { at.div_ceil(2) } else { (count - at / 2) % count };
        (zigzag + round) % count
    })
}

/// Runs `row`: every contender once, and again, first unmeasured. Who fails once is out.
pub fn run(row: &mut Row, effort: Effort) -> Vec<Figures> {
    let mut all: Vec<Figures> = row.entries.iter().map(start).collect();
    let count = all.len();
    for round in 0..effort.warm_ups + effort.samples {
        for at in order(round, count) {
            let (Some(entry), Some(figures)) = (row.entries.get_mut(at), all.get_mut(at)) else { continue };
            let (Entry::Ready(contender), None) = (entry, &figures.failure) else { continue };
            match contender.run() {
                Ok(Sample { wall, cpu }) if round >= effort.warm_ups => {
                    figures.wall_samples.push(nanoseconds(wall));
                    figures.cpu_samples.push(nanoseconds(cpu));
                }
                Ok(_) => {}
                Err(why) => figures.failure = Some(why),
            }
        }
    }
    for figures in &mut all {
        figures.wall = Summary::of(&figures.wall_samples);
        figures.cpu = Summary::of(&figures.cpu_samples);
    }
    all
}

fn start(entry: &Entry) -> Figures {
    let (name, version, command, failure) = match entry {
        Entry::Ready(contender) => (contender.name(), contender.version(), contender.command(), None),
        Entry::Missing { name, why } => (name.clone(), String::new(), String::new(), Some(why.clone())),
    };
    Figures {
        name,
        version,
        command,
        failure,
        wall: Summary::default(),
        cpu: Summary::default(),
        wall_samples: Vec::new(),
        cpu_samples: Vec::new(),
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_follows_everybody_equally_often() {
        for count in 1..9 {
            let mut pairs = std::collections::BTreeMap::new();
            for round in 0..2 * count {
                let order: Vec<usize> = order(round, count).collect();
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..count).collect::<Vec<_>>());
                for pair in order.windows(2) {
                    *pairs.entry((pair[0], pair[1])).or_insert(0) += 1;
                }
            }
            assert_eq!(pairs.len(), count * (count - 1));
            assert!(pairs.values().all(|times| *times == 2), "{count}: {pairs:?}");
        }
    }

    #[test]
    fn summaries_of_few_and_many() {
        let summary = Summary::of(&[5, 1, 3]);
        assert_eq!((summary.minimum, summary.median, summary.p99), (1, 3, 5));
        let many: Vec<u64> = (1..=200).rev().collect();
        let summary = Summary::of(&many);
        assert_eq!((summary.minimum, summary.median, summary.p99), (1, 100, 198));
        assert_eq!(Summary::of(&[]).median, 0);
    }
}
