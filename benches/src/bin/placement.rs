//! How long it takes to choose GPUs on machines of 16, for every size of a request.
//!
//! ```text
//! placement [--repeats N]
//! ```
//!
//! There is nobody to run against: NVIDIA's go-gpuallocator, which Kubernetes uses, does the same work in
//! seconds for 16 GPUs by its own account, <https://github.com/NVIDIA/go-gpuallocator>, and knows no switches.

use gpucontainer::gpu::{GpuSet, Inventory, Placement, Topology};
use gpucontainer_benches::{Result, machine};

use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const GPUS: usize = 16;
const PLACEMENTS: [Placement; 5] =
    [Placement::Best, Placement::NvlinkRequired, Placement::SameNumaNode, Placement::KeepPairs, Placement::Spread];

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("placement: {why}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let mut repeats = 5_usize;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next().and_then(|number| number.parse().ok())) {
            ("--repeats", Some(number)) => repeats = number,
            _ => return Err("usage: placement [--repeats N]".to_owned()),
        }
    }
    let machine = machine::describe();
    println!("{} on {} × {}, load {}", machine.kernel, machine.processors, machine.processor, machine.load);
    println!("{:34} {:>9} {:>9} {:>9}   worst request", "16 GPUs", "minimum", "median", "maximum");
    for (name, inventory) in machines()? {
        let topology = Topology::of(&inventory);
        let mut times: Vec<(Duration, String)> = Vec::new();
        for placement in PLACEMENTS {
            for count in 1..=GPUS {
                for taken in taken(&topology) {
                    let free: GpuSet = (0..GPUS).collect::<GpuSet>().minus(taken);
                    for _ in 0..repeats {
                        let start = Instant::now();
                        let chosen =
                            std::hint::black_box(topology.choose(std::hint::black_box(free), count, placement));
                        let words = || format!("{count} of {} {placement:?}", free.len());
                        times.push((start.elapsed(), words()));
                        if chosen.is_some_and(|set| set.len() != count) {
                            return Err(format!("{name}: {}: a set of another size", words()));
                        }
                    }
                }
            }
        }
        times.sort();
        let milliseconds = |time: &(Duration, String)| format!("{:.3} ms", time.0.as_secs_f64() * 1e3);
        let (Some(first), Some(last)) = (times.first(), times.last()) else { continue };
        let middle = &times[times.len() / 2];
        let [first, middle, worst] = [first, middle, last].map(milliseconds);
        println!("{name:34} {first:>9} {middle:>9} {worst:>9}   {}", last.1);
    }
    Ok(())
}

/// What others hold already: nothing, the first GPU, every fifth.
fn taken(topology: &Topology) -> [GpuSet; 3] {
    let every = |step: usize| (0..topology.gpus()).step_by(step).collect();
    [GpuSet::EMPTY, GpuSet::EMPTY.with(0), every(5)]
}

fn machines() -> Result<Vec<(&'static str, Inventory)>> {
    let switches = |place: usize| {
        let board = if place < 8 { 'a' } else { 'b' };
        (0..6).map(|switch| json!({ "number": switch, "end": { "switch": format!("{board}{switch}") } })).collect()
    };
    let tree = |one: usize, other: usize| match one ^ other {
        1 => "one-switch",
        2 | 3 => "switches",
        4..8 => "numa-node",
        _ => "system",
    };
    // A fixed sequence without order: nothing to prune by.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut ways = [["system"; GPUS]; GPUS];
    for way in ways.iter_mut().flatten() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *way = ["board", "one-switch", "switches", "host-bridge", "numa-node", "system"][(state % 6) as usize];
    }
    Ok(vec![
        ("switched, two boards (HGX-2)", inventory(&switches, &tree)?),
        ("no links, a tree of switches", inventory(&|_| Vec::new(), &tree)?),
        ("no links, all alike", inventory(&|_| Vec::new(), &|_, _| "system")?),
        ("no links, ways without any order", inventory(&|_| Vec::new(), &|one, other| ways[one][other])?),
    ])
}

fn inventory(links: &dyn Fn(usize) -> Vec<Value>, way: &dyn Fn(usize, usize) -> &'static str) -> Result<Inventory> {
    let gpu = |place: usize| json!({ "index": place, "uuid": format!("GPU-{place}"), "numa_node": place / 8, "nvlinks": links(place) });
    let mut pairs = Vec::new();
    for first in 0..GPUS {
        for second in first + 1..GPUS {
            pairs.push(json!({ "first": first, "second": second, "path": way(first, second), "nvlink": null }));
        }
    }
    let text = json!({ "gpus": (0..GPUS).map(gpu).collect::<Vec<_>>(), "pairs": pairs }).to_string();
    serde_json::from_str(&text).map_err(|e| format!("the machine: {e}"))
}
