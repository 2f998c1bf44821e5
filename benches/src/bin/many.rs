//! Many sandboxes that run at the same time in one process: whether the last ones start as fast and need as little memory
//! as the first ones.
//!
//! Each is a busybox that sleeps and has two published ports. Memory is the resident memory of this process, and what all
//! of ours need (the sum of `Pss` of this process, the supervisors and the processes between them and the applications;
//! not the applications, which are busybox). What the kernel itself needs longer for a start when it has a thousand of
//! everything is what the plain C program shows that makes the same system calls, before the first and beside all of them.
//! At the end all are closed, and processes, descriptors, threads and mounts are compared with the beginning. Needs root
//! and busybox.
//!
//! ```text
//! many [COUNT]
//! ```

use gpucontainer::Sandbox;
use gpucontainer::net::PortMapping;
use gpucontainer::sandbox::Stdio;
use gpucontainer_benches::machine::{self, Machine};
use gpucontainer_benches::worker::Worker;
use gpucontainer_benches::{Result, floor, system};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const COUNT: usize = 1000;
/// How many starts at each end are compared, and how many sandboxes for memory; a fifth of all at most.
const STARTS: usize = 20;
const MEMORY: usize = 100;

fn main() -> ExitCode {
    let count = std::env::args().nth(1).map_or(Ok(COUNT), |text| text.parse());
    let result = match count {
        Ok(count) if count >= 5 => run(count),
        _ => Err("many [COUNT], at least 5".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("many: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(count: usize) -> Result<()> {
    let limit = system::raise_open_files()?;
    let described = machine::describe();
    println!("{} on {} × {}, load {}", described.kernel, described.processors, described.processor, described.load);
    println!("{count} sandboxes with two ports each; {limit} open files at most");
    let machine = Machine::prepare()?;
    all(count, &machine)
}

fn all(count: usize, machine: &Machine) -> Result<()> {
    let root = machine.root.as_path();
    let mut kernel = floor::worker(machine, floor::Kind::Init)?;
    // One that is thrown away: what is made once for all, and pages that are touched for the first time.
    start(root)?.close().map_err(|e| e.to_string())?;
    let before = Left::now()?;
    let (starts, memory) = (STARTS.min(count / 5), MEMORY.min(count / 5));
    // After so many there is a figure of memory.
    let points = [0, memory, count - memory, count];
    let (mut sandboxes, mut times, mut figures) = (Vec::with_capacity(count), Vec::with_capacity(count), Vec::new());
    let mut kernels = vec![system_calls(&mut kernel, starts)?];
    let result = (|| {
        for number in 0..=count {
            if points.contains(&number) {
                figures.push(Memory::now()?);
            }
            if number < count {
                let begin = Instant::now();
                sandboxes.push(start(root).map_err(|why| format!("sandbox {}: {why}", number + 1))?);
                times.push(begin.elapsed());
            }
        }
        kernels.push(system_calls(&mut kernel, starts)?);
        Ok::<(), String>(())
    })();
    if let (Ok(()), [none, first, nearly, last], [early, late]) = (&result, figures.as_slice(), kernels.as_slice()) {
        report(&times, starts, memory, [(none, first), (nearly, last)]);
        line(&format!("system calls alone, ms, median of {starts}"), median(early), median(late));
        phases(&sandboxes, starts);
    }
    let begin = Instant::now();
    let closed: Vec<String> =
        sandboxes.into_iter().filter_map(|one| one.close().err()).map(|e| e.to_string()).collect();
    println!("closed all in {:.2} s", begin.elapsed().as_secs_f64());
    result?;
    if let Some(why) = closed.first() {
        return Err(format!("{} were not closed; the first: {why}", closed.len()));
    }
    before.compare()
}

/// How long the system calls of a start, the end of its program and all that goes with it take, without this library.
fn system_calls(worker: &mut Worker, samples: usize) -> Result<Vec<Duration>> {
    (0..samples).map(|_| worker.ask("go").map(|sample| sample.wall)).collect()
}

/// In milliseconds.
fn median(times: &[Duration]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).map_or(0.0, Duration::as_secs_f64) * 1e3
}

fn line(what: &str, first: f64, last: f64) {
    println!("{what:42} {first:12.3} {last:12.3} {:8.2}", last / first);
}

fn start(root: &Path) -> Result<Sandbox> {
    let port = |number| PortMapping::tcp(number, 0).address(Ipv4Addr::LOCALHOST.into());
    Sandbox::from_directory(root)
        .command(["/bin/sleep", "100000"])
        .publish_port(port(80))
        .publish_port(port(443))
        .stdin(Stdio::Null)
        .stdout(Stdio::Null)
        .stderr(Stdio::Null)
        .spawn()
        .map_err(|error| error.to_string())
}

fn report(times: &[Duration], starts: usize, memory: usize, [first, last]: [(&Memory, &Memory); 2]) {
    println!("{:42} {:>12} {:>12} {:>8}", "", "first", "last", "ratio");
    let (early, late) = (times.get(..starts), times.get(times.len() - starts..));
    line(
        &format!("start, ms, median of {starts}"),
        median(early.unwrap_or_default()),
        median(late.unwrap_or_default()),
    );
    let each = |pick: fn(&Memory) -> u64, (from, to): (&Memory, &Memory)| {
        (pick(to) as f64 - pick(from) as f64) / memory as f64
    };
    let resident = |memory: &Memory| memory.resident;
    line(&format!("resident here, KiB each of {memory}"), each(resident, first), each(resident, last));
    let ours = |memory: &Memory| memory.ours;
    line(&format!("all of ours, KiB each of {memory}"), each(ours, first), each(ours, last));
    let end = last.1;
    println!("in the end {} KiB resident here, {} KiB of ours in {} processes", end.resident, end.ours, end.processes);
}

/// Where the time of the first and the last starts went.
fn phases(sandboxes: &[Sandbox], starts: usize) {
    let median_of = |of: &[Sandbox], name: &str| {
        let one = |sandbox: &Sandbox| sandbox.timeline().iter().find(|phase| phase.name == name).map(|it| it.duration);
        median(&of.iter().filter_map(one).collect::<Vec<_>>())
    };
    let (early, late) = (sandboxes.get(..starts), sandboxes.get(sandboxes.len() - starts..));
    let (early, late) = (early.unwrap_or_default(), late.unwrap_or_default());
    for phase in late.first().map(Sandbox::timeline).unwrap_or_default() {
        println!("  {:40} {:12.3} {:12.3}", phase.name, median_of(early, phase.name), median_of(late, phase.name));
    }
}

/// In kibibytes.
struct Memory {
    resident: u64,
    ours: u64,
    processes: usize,
}

impl Memory {
    fn now() -> Result<Self> {
        let own = std::process::id();
        let resident = field(&format!("/proc/{own}/status"), "VmRSS:")?;
        let family: Vec<u32> = family()?.into_iter().filter(|pid| *pid == own || !is_busybox(*pid)).collect();
        let ours = family.iter().map(|pid| field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")).sum::<Result<u64>>()?;
        Ok(Self { resident, ours, processes: family.len() })
    }
}

fn field(path: &str, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(|| format!("{path} has no {name}"))?;
    let number = line.split_whitespace().next().and_then(|word| word.parse().ok());
    number.ok_or_else(|| format!("{path}: {name}{line}"))
}

/// The program that the applications are.
fn is_busybox(pid: u32) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path.ends_with("bin/busybox"))
}

/// This process and all that descend from it.
fn family() -> Result<Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").map_err(|e| format!("/proc: {e}"))?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // One that has ended meanwhile is nobody's child.
        let text = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = text.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut all = vec![std::process::id()];
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        all.extend(children.remove(pid).unwrap_or_default());
        at += 1;
    }
    Ok(all)
}

/// What could be left.
struct Left(Vec<(&'static str, usize)>);

impl Left {
    fn now() -> Result<Self> {
        let entries = |path: &str| std::fs::read_dir(path).map(Iterator::count).map_err(|e| format!("{path}: {e}"));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("mountinfo: {e}"))?;
        Ok(Self(vec![
            ("processes", family()?.len()),
            ("threads", entries("/proc/self/task")?),
            ("descriptors", entries("/proc/self/fd")?),
            ("mounts", mounts.lines().count()),
        ]))
    }

    /// Says what is left; the kernel may still be about it for a moment.
    fn compare(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let now = Self::now()?;
            let pairs = self.0.iter().zip(&now.0).filter(|(before, now)| now.1 > before.1);
            let left: Vec<String> = pairs.map(|(before, now)| format!("{} {}", now.1 - before.1, now.0)).collect();
            if left.is_empty() {
                println!("nothing is left");
                return Ok(());
            }
            if begin.elapsed() > Duration::from_secs(5) {
                return Err(format!("left: {}", left.join(", ")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
