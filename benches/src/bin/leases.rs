//! What a lease costs, and how leases fare when many want them and their holders are killed.
//!
//! ```text
//! leases [--samples N] [--seconds N]
//! ```
//!
//! The machine is a stand-in for one with 8 GPUs: its management library answers from a file, so the rows that ask it
//! say what the allocator does and not how long a driver takes.

use gpucontainer::GpuRequest;
use gpucontainer::gpu::{DriverRoot, GpuAllocator, Inventory, Wait};
use gpucontainer_benches::{Result, machine};

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

const CONTENDERS: usize = 64;
const KILL_EVERY: Duration = Duration::from_millis(20);
/// How long a contender keeps its GPU, in milliseconds: so long and up to twice as long.
const HOLD: u64 = 50;

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("leases: {why}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<()> {
    let (mut samples, mut seconds) = (500_usize, 60_u64);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next();
        let number = || value.as_ref().and_then(|text| text.parse::<u64>().ok()).filter(|number| *number > 0);
        match (argument.as_str(), number()) {
            ("--samples", Some(number)) => samples = usize::try_from(number).unwrap_or(usize::MAX),
            ("--seconds", Some(number)) => seconds = number,
            ("--contend", _) => return contend(Path::new(&value.unwrap_or_default())),
            _ => return Err("usage: leases [--samples N] [--seconds N]".to_owned()),
        }
    }
    let directory = PathBuf::from(format!("/dev/shm/gpuc-leases-{}", std::process::id()));
    std::fs::create_dir(&directory).map_err(|e| format!("{directory:?}: {e}"))?;
    let result = measure(&directory, samples, Duration::from_secs(seconds));
    std::fs::remove_dir_all(&directory).map_err(|e| format!("{directory:?}: {e}"))?;
    result
}

fn measure(directory: &Path, samples: usize, length: Duration) -> Result<()> {
    let described = machine::describe();
    println!("{} on {} × {}, load {}", described.kernel, described.processors, described.processor, described.load);
    let host = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("tests").join("fake-host");
    let made = Command::new(&host).arg("dgx-a100").arg(directory.join("machine")).status();
    if !made.as_ref().is_ok_and(std::process::ExitStatus::success) {
        return Err(format!("{}: {made:?}", host.display()));
    }
    latency(directory, samples)?;
    storm(directory, length)
}

fn allocator(directory: &Path) -> Result<GpuAllocator> {
    let allocator = GpuAllocator::at(directory.join("leases")).map_err(|e| e.to_string())?;
    Ok(allocator.driver_root(DriverRoot::new(directory.join("machine"))).respect_outer(false))
}

/// Grants and releases while nobody else wants anything.
fn latency(directory: &Path, samples: usize) -> Result<()> {
    let words = |e: gpucontainer::Error| e.to_string();
    let allocator = allocator(directory)?;
    let root = DriverRoot::new(directory.join("machine"));
    let inventory = Inventory::discover_with(&root);
    println!("\nuncontended, {} GPUs, {samples} samples each, in turn", inventory.gpus().len());
    println!("  {:34} {:>9} {:>9} {:>9}", "", "minimum", "median", "p99");
    let mut rows: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    for _ in 0..samples {
        let start = Instant::now();
        std::hint::black_box(Inventory::discover_with(&root));
        rows.entry("inventory alone".to_owned()).or_default().push(start.elapsed());
        for count in [1, 2, 8] {
            for asked in [false, true] {
                let request = GpuRequest::count(count);
                let start = Instant::now();
                let lease = if asked {
                    allocator.acquire(&request, Wait::none())
                } else {
                    allocator.acquire_from(&inventory, &request, Wait::none())
                };
                let lease = lease.map_err(words)?;
                let granted = start.elapsed();
                let start = Instant::now();
                lease.release().map_err(words)?;
                let how = if asked { "inventory asked for" } else { "inventory at hand" };
                rows.entry(format!("grant of {count}, {how}")).or_default().push(granted);
                rows.entry(format!("release of {count}")).or_default().push(start.elapsed());
            }
        }
    }
    for (name, mut times) in rows {
        times.sort();
        let at = |per_mille: usize| times[(times.len() * per_mille / 1000).min(times.len() - 1)].as_secs_f64() * 1e3;
        println!("  {name:34} {:>6.3} ms {:>6.3} ms {:>6.3} ms", at(0), at(500), at(990));
    }
    Ok(())
}

/// What a contender says: when it got a GPU, and when it is about to give it back.
#[derive(Clone, Debug)]
struct Event {
    process: u32,
    /// The GPU; of the end of a lease too.
    gpu: String,
    granted: bool,
    nanoseconds: u128,
}

fn now() -> u128 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos()
}

/// One of those who want a GPU again and again, until it is killed or its input ends.
fn contend(directory: &Path) -> Result<()> {
    let words = |e: gpucontainer::Error| e.to_string();
    let allocator = allocator(directory)?;
    let own = std::process::id();
    let mut state = u64::from(own);
    loop {
        let lease = allocator.acquire(&GpuRequest::count(1), Wait::forever()).map_err(words)?;
        say(&format!("G {own} {} {}", lease.gpus()[0], now()))?;
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis(HOLD + (state >> 33) % HOLD));
        say(&format!("R {own} {} {}", lease.gpus()[0], now()))?;
        lease.release().map_err(words)?;
    }
}

/// A line in one write, which others on the same pipe cannot cut.
fn say(line: &str) -> Result<()> {
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).map_err(|e| e.to_string())
}

/// Many want few GPUs, and every few milliseconds one that has one is killed.
fn storm(directory: &Path, length: Duration) -> Result<()> {
    let (reader, writer) = std::io::pipe().map_err(|e| e.to_string())?;
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let spawn = || -> Result<Child> {
        let stdout = writer.try_clone().map_err(|e| e.to_string())?;
        let mut command = Command::new(&program);
        command.arg("--contend").arg(directory).stdin(Stdio::null()).stdout(stdout);
        command.spawn().map_err(|e| format!("{program:?}: {e}"))
    };
    let (sender, events) = mpsc::channel();
    let reading = std::thread::spawn(move || {
        for line in BufReader::new(reader).lines().map_while(std::io::Result::ok) {
            if parse(&line).is_none_or(|event| sender.send(event).is_err()) {
                return;
            }
        }
    });
    let mut children: BTreeMap<u32, Child> = BTreeMap::new();
    for _ in 0..CONTENDERS {
        let child = spawn()?;
        children.insert(child.id(), child);
    }
    let allocator = allocator(directory)?;
    let inventory = Inventory::discover_with(&DriverRoot::new(directory.join("machine")));
    let (mut all, mut holders, mut killed) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    let (mut snapshots, mut turn) = (0_usize, 0_usize);
    let start = Instant::now();
    while start.elapsed() < length {
        std::thread::sleep(KILL_EVERY);
        for event in events.try_iter() {
            note(&mut holders, &event);
            all.push(event);
        }
        let status = allocator.status_from(&inventory).map_err(|e| e.to_string())?;
        let held: Vec<&str> = status.leases.iter().flat_map(|lease| &lease.gpus).map(|gpu| gpu.uuid.as_str()).collect();
        if held.iter().collect::<BTreeSet<_>>().len() != held.len() {
            return Err(format!("a GPU is leased twice: {held:?}"));
        }
        snapshots += 1;
        turn += 1;
        let living: Vec<u32> = holders.values().copied().filter(|process| children.contains_key(process)).collect();
        let Some(victim) = living.get(turn % living.len().max(1)).and_then(|victim| children.remove(victim)) else {
            continue;
        };
        let victim_id = victim.id();
        killed.insert(victim_id, now());
        end(victim)?;
        let child = spawn()?;
        children.insert(child.id(), child);
    }
    let last = now();
    children.into_values().try_for_each(end)?;
    drop(writer);
    all.extend(events.iter());
    reading.join().map_err(|_| "the reader panicked".to_owned())?;
    report(&all, &killed, last, snapshots)?;

    // Whoever comes next gets everything, and nothing stays once somebody has looked.
    let whole = allocator.acquire(&GpuRequest::all(), Wait::at_most(Duration::from_secs(30)));
    whole.and_then(gpucontainer::gpu::GpuLease::release).map_err(|e| e.to_string())?;
    allocator.status().map_err(|e| e.to_string())?;
    let left = std::fs::read_dir(allocator.path()).map_err(|e| e.to_string())?.count();
    println!("  files left: {left}");
    if left == 0 { Ok(()) } else { Err(format!("{left} files are left in {:?}", allocator.path())) }
}

fn end(mut child: Child) -> Result<()> {
    child.kill().and_then(|()| child.wait()).map(|_| ()).map_err(|e| e.to_string())
}

fn parse(line: &str) -> Option<Event> {
    let mut words = line.split(' ');
    let granted = words.next()? == "G";
    let (process, gpu) = (words.next()?.parse().ok()?, words.next()?.to_owned());
    Some(Event { process, gpu, granted, nanoseconds: words.next()?.parse().ok()? })
}

fn note(holders: &mut BTreeMap<String, u32>, event: &Event) {
    if event.granted {
        holders.insert(event.gpu.clone(), event.process);
    } else if holders.get(&event.gpu) == Some(&event.process) {
        holders.remove(&event.gpu);
    }
}

/// Goes through what was said, by time: no GPU may be granted while another has it, and how soon one of somebody killed
/// is granted again.
fn report(all: &[Event], killed: &BTreeMap<u32, u128>, last: u128, snapshots: usize) -> Result<()> {
    // After the end all are killed.
    let mut all: Vec<&Event> = all.iter().filter(|event| event.nanoseconds < last).collect();
    all.sort_by_key(|event| event.nanoseconds);
    let mut holders: BTreeMap<String, u32> = BTreeMap::new();
    let mut again: Vec<u128> = Vec::new();
    for event in &all {
        if let (true, Some(before)) = (event.granted, holders.get(&event.gpu)) {
            match killed.get(before) {
                Some(end) if *end <= event.nanoseconds => again.push(event.nanoseconds - end),
                _ => return Err(format!("{} was granted to {} while {before} had it", event.gpu, event.process)),
            }
        }
        note(&mut holders, event);
    }
    let grants = all.iter().filter(|event| event.granted).count();
    println!("\n{CONTENDERS} processes for 8 GPUs, one that has a GPU killed every {KILL_EVERY:?}");
    println!("  {grants} grants, {} killed, {snapshots} snapshots, no GPU granted twice", killed.len());
    again.sort_unstable();
    let Some(most) = again.len().checked_sub(1) else { return Err("nobody was killed with a GPU".to_owned()) };
    let at = |per_mille: usize| again[(again.len() * per_mille / 1000).min(most)] as f64 / 1e6;
    println!(
        "  granted again after a kill ({} times): minimum {:.1} ms, median {:.1} ms, p99 {:.1} ms",
        again.len(),
        at(0),
        at(500),
        at(990)
    );
    Ok(())
}
