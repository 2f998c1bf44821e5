//! The rows: which work is compared, and who does it.

use crate::Result;
use crate::contender::{Contender, InProcess, Program};
use crate::floor;
use crate::machine::Machine;
use crate::measure::{Entry, Row};
use crate::ours::{self, Ours};
use crate::peers::{self, Engine, EngineRun, Held, Kind};
use crate::worker::{Asked, Worker};
use std::cell::RefCell;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

/// The size of the large host process.
const LARGE: u64 = 8 << 30;
/// How many containers a batch is, and from how many threads.
const BATCH: u32 = 200;
const THREADS: u32 = 8;

pub const KEYS: [&str; 6] = ["start", "overlay", "user", "host-size", "exec", "parallel"];

/// What must live as long as a row runs.
pub type Kept = Vec<Box<dyn std::any::Any>>;

/// Builds the row named `key`.
pub fn build(key: &str, machine: &Machine) -> Result<(Row, Kept)> {
    match key {
        "start" => Ok((start(machine), Vec::new())),
        "overlay" => Ok((overlay(machine), Vec::new())),
        "user" => Ok((user(machine), Vec::new())),
        "host-size" => host_size(machine),
        "exec" => exec(machine),
        "parallel" => Ok((parallel(machine), Vec::new())),
        other => Err(format!("no row {other}; there are {}", KEYS.join(", "))),
    }
}

fn boxed<C: Contender + 'static>(contender: Result<C>) -> Result<Box<dyn Contender>> {
    contender.map(|contender| Box::new(contender) as Box<dyn Contender>)
}

fn engines(machine: &Machine, kind: Kind) -> impl Iterator<Item = Entry> {
    Engine::ALL
        .into_iter()
        .map(move |engine| Entry::new(&format!("{} run", engine.name()), boxed(EngineRun::new(engine, machine, kind))))
}

fn ours(machine: &Machine, kind: Kind) -> Vec<Entry> {
    let name = "gpucontainer";
    match Ours::of(machine, kind) {
        Ok(ours) if kind == Kind::Plain => {
            vec![Entry::Ready(ours.clone().contender()), Entry::Ready(ours.without_init().contender())]
        }
        Ok(ours) => vec![Entry::Ready(ours.contender())],
        Err(why) => vec![Entry::Missing { name: name.to_owned(), why }],
    }
}

fn start(machine: &Machine) -> Row {
    let busybox = machine.root.join("bin/true").display().to_string();
    let mut entries = ours(machine, Kind::Plain);
    entries.push(Entry::new("floor (C)", floor::start(machine, floor::Kind::Plain)));
    entries.push(Entry::new("floor (C), with an init", floor::start(machine, floor::Kind::Init)));
    entries.push(Entry::new("bwrap", boxed(peers::bubblewrap(machine))));
    entries.extend(engines(machine, Kind::Plain));
    entries.push(Entry::Ready(Box::new(Program::new("no container at all", &[&busybox]))));
    let title = "start of /bin/true in a fully isolated container, to exited, reaped and given back".to_owned();
    Row { key: "start", title, batch: 1, entries }
}

fn overlay(machine: &Machine) -> Row {
    let mut entries = ours(machine, Kind::Overlay);
    entries.push(Entry::new("floor (C)", floor::start(machine, floor::Kind::Overlay)));
    entries.extend(engines(machine, Kind::Overlay));
    let title = "the same with a writable overlay as its root".to_owned();
    Row { key: "overlay", title, batch: 1, entries }
}

fn user(machine: &Machine) -> Row {
    let mut entries = ours(machine, Kind::User);
    entries.push(Entry::new("floor (C)", floor::start(machine, floor::Kind::User)));
    entries.extend(engines(machine, Kind::User));
    let title = "the same in a user namespace of its own".to_owned();
    Row { key: "user", title, batch: 1, entries }
}

fn host_size(machine: &Machine) -> Result<(Row, Kept)> {
    let available = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("MemAvailable"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .map_or(0, |kibibytes| kibibytes << 10);
    // Half of what is free at most: others live here too.
    let bytes = (LARGE).min(available / 2) & !0xfff_ffff;
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let worker = |bytes: u64| {
        let worker = Worker::start(Command::new(&own).args(["worker", &bytes.to_string()]))?;
        Ok::<_, String>(Rc::new(RefCell::new(worker)))
    };
    let size = format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let (small, large) = (worker(0)?, worker(bytes)?);
    let mut entries = Vec::new();
    let sandbox = format!("sandbox {}", machine.root.display());
    for (what, words) in
        [(&*sandbox, "gpucontainer"), ("spawn", "posix_spawn of true"), ("fork", "fork and exec of true")]
    {
        for (worker, host) in [(&small, "small host"), (&large, &*format!("{size} host"))] {
            entries.push(Entry::Ready(Box::new(Asked {
                name: format!("{words}, {host}"),
                version: String::new(),
                command: format!("peers worker {}: {what}", if host == "small host" { 0 } else { bytes }),
                what: what.to_owned(),
                worker: Rc::clone(worker),
            })));
        }
    }
    let title = format!("start from a small process, and from one with {size} of touched memory");
    Ok((Row { key: "host-size", title, batch: 1, entries }, Vec::new()))
}

fn exec(machine: &Machine) -> Result<(Row, Kept)> {
    let mut kept: Kept = Vec::new();
    let mut entries = vec![Entry::new("gpucontainer exec", ours::exec(machine))];
    let held = |engine: Engine| peers::installed(engine.name()).and_then(|()| engine.hold(machine));
    let with_crun = |held: &Held| {
        [
            Entry::new("floor (C)", floor::exec(machine, held.pid, &held.name)),
            Entry::new("nsenter", boxed(peers::nsenter(held))),
            Entry::Ready(Box::new(held.exec())),
        ]
    };
    match held(Engine::Crun) {
        Ok(held) => {
            entries.extend(with_crun(&held));
            kept.push(Box::new(held));
        }
        Err(why) => entries.push(Entry::Missing { name: "crun exec".to_owned(), why }),
    }
    match held(Engine::Runc) {
        Ok(held) => {
            entries.push(Entry::Ready(Box::new(held.exec())));
            kept.push(Box::new(held));
        }
        Err(why) => entries.push(Entry::Missing { name: "runc exec".to_owned(), why }),
    }
    let title = "a program more in a running container, to exited and reaped".to_owned();
    Ok((Row { key: "exec", title, batch: 1, entries }, kept))
}

/// Spreads a batch over threads, each with something of its own to do it with; the sum of what `work` returns.
fn spread<T: Send>(parts: &mut [T], work: impl Fn(&mut T) -> Result<Duration> + Sync) -> Result<Duration> {
    let each = BATCH / u32::try_from(parts.len()).unwrap_or(1);
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = parts
            .iter_mut()
            .map(|part| scope.spawn(move || (0..each).map(|_| work(part)).sum::<Result<Duration>>()))
            .collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| "a thread panicked".to_owned())?).sum()
    })
}

fn parallel(machine: &Machine) -> Row {
    let mut entries = Vec::new();
    for threads in [1, THREADS] {
        let mut sandboxes: Vec<Ours> = (0..threads).map(|_| Ours::plain(&machine.root)).collect();
        let work = move || spread(&mut sandboxes, |sandbox| sandbox.once().map(|()| Duration::ZERO));
        let name = format!("gpucontainer, {threads} at once");
        let command = format!("{threads} threads: Sandbox::from_directory(…)….spawn(), wait(), close()");
        let version = ours::VERSION.to_owned();
        entries.push(Entry::Ready(Box::new(InProcess { name, version, command, work })));
    }
    for threads in [1, THREADS] {
        let name = format!("floor (C), {threads} at once");
        let workers: Result<Vec<Worker>> = (0..threads).map(|_| floor::worker(machine, floor::Kind::Plain)).collect();
        let contender = workers.map(|mut workers| {
            let work = move || spread(&mut workers, |worker| Ok(worker.ask("go")?.cpu));
            let command = format!("{threads} × floor/floor.c start");
            Box::new(InProcess { name: name.clone(), version: String::new(), command, work }) as Box<dyn Contender>
        });
        entries.push(Entry::new(&name, contender));
    }
    for threads in [1, THREADS] {
        let name = format!("crun run, {threads} at once");
        let runs: Result<Vec<EngineRun>> = (0..threads)
            .map(|number| EngineRun::numbered(Engine::Crun, machine, Kind::Plain, threads * 100 + number))
            .collect();
        let contender = runs.map(|mut runs| {
            let work = move || spread(&mut runs, |run| run.once().map(|()| Duration::ZERO));
            let command = format!("{threads} × crun run");
            let version = crate::contender::version("crun");
            Box::new(InProcess { name: name.clone(), version, command, work }) as Box<dyn Contender>
        });
        entries.push(Entry::new(&name, contender));
    }
    let title = format!("{BATCH} containers, one after the other and from {THREADS} threads");
    Row { key: "parallel", title, batch: BATCH, entries }
}
