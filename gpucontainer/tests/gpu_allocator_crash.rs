//! Leases across processes, users, PID namespaces and containers, whose holders are killed at any moment.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod account;
mod common;
mod driver;
mod fixture;

use account::{DRIVER, Host, Other, SOON, TABLE, allocator_of_parent};
use common::{Ordinary, ended, until};
use fixture::{Fixture, role, say};
use gpucontainer::gpu::{DriverRoot, GpuAllocator, Inventory, Wait};
use gpucontainer::sandbox::{SandboxBuilder, Stdio};
use gpucontainer::{ErrorKind, GpuRequest};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The storm: so many processes want these GPUs, one that holds some is killed so often, and so many in all. A slow
/// machine takes longer for that, and gives up only where nothing moves.
const PROCESSES: usize = 64;
const PERIOD: Duration = Duration::from_millis(20);
const KILLS: usize = 40;
const STORM: Duration = Duration::from_secs(180);

fn one() -> GpuRequest {
    GpuRequest::count(1)
}

#[test]
#[ignore = "the other process of a test"]
fn other_process() {
    let acquire = |request: &GpuRequest| allocator_of_parent().acquire(request, Wait::forever()).unwrap();
    match role().as_deref() {
        Some("hold") => {
            let lease = acquire(&one());
            say(&format!("holds {}", lease.gpus()[0]));
            std::thread::sleep(SOON);
        }
        Some("storm") => storm_of_one(),
        Some("container") => {
            let lease = acquire(&one());
            let sandbox = sleeping(|builder| builder.gpu_lease(&lease));
            say(&format!("holds {}", sandbox.pid()));
            std::thread::sleep(SOON);
        }
        Some("leasing") => {
            let sandbox = sleeping(|builder| builder.gpus(one()).gpu_allocator(&allocator_of_parent()));
            say(&format!("holds {}", sandbox.pid()));
            std::thread::sleep(SOON);
        }
        Some("detached") => {
            let lease = acquire(&one());
            let sandbox = sleeping(|builder| builder.gpu_lease(&lease));
            say(&format!("holds {}", sandbox.pid()));
            sandbox.detach().unwrap();
            drop(lease);
            say("gone");
        }
        Some("leasing and detached") => {
            let sandbox = sleeping(|builder| builder.gpus(one()).gpu_allocator(&allocator_of_parent()));
            say(&format!("holds {}", sandbox.pid()));
            sandbox.detach().unwrap();
            say("gone");
        }
        Some(role @ ("attaching" | "attaching and detached" | "attaching its own and detached" | "given back")) => {
            let sandbox = sleeping(|builder| builder.gpu_allocator(&allocator_of_parent()));
            let grant = if role.contains("own") {
                // Its clone ends with this process, and the container still has it.
                sandbox.attach_lease(&acquire(&one())).unwrap()
            } else {
                sandbox.attach_gpus(&one(), Wait::none()).unwrap()
            };
            if role == "given back" {
                let lease = &sandbox.gpu_leases()[0];
                sandbox.detach_gpus(&grant, false).unwrap();
                // As if it was killed: nothing is unlocked, copies of the descriptor are closed.
                lease.clone().into_fd().unwrap();
            }
            say(&format!("holds {}", sandbox.pid()));
            if role == "attaching" {
                std::thread::sleep(SOON);
            }
            sandbox.detach().unwrap();
            say("gone");
        }
        Some("attaching again and again") => {
            let sandbox = sleeping(|builder| builder.gpu_allocator(&allocator_of_parent()));
            say(&format!("holds {}", sandbox.pid()));
            for turn in 0.. {
                let grant = sandbox.attach_gpus(&one(), Wait::forever()).unwrap();
                sandbox.detach_gpus(&grant, false).unwrap();
                say(&format!("turn {turn}"));
            }
        }
        other => panic!("no test is for {other:?}"),
    }
}

#[test]
fn a_killed_holder_s_gpu_goes_to_the_next_who_waits_and_a_killed_waiter_is_passed() {
    if !driver::available() {
        return;
    }
    let leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let mut holder = host.start("hold", &[], &[]);
    holder.said("holds");
    let mut waiter = host.start("hold", &[], &[]);
    until("the first waits", SOON, || host.allocator.status().unwrap().waiting.len() == 1);
    std::thread::scope(|scope| {
        let next = scope.spawn(|| host.allocator.acquire(&one(), Wait::at_most(SOON)).unwrap());
        until("the second waits", SOON, || host.allocator.status().unwrap().waiting.len() == 2);
        waiter.kill();
        until("the killed one waits no more", SOON, || host.allocator.status().unwrap().waiting.len() == 1);
        holder.kill();
        drop(next.join().unwrap());
    });
    assert_eq!(driver::slots(&host.allocator), [""; 0], "what the dead left is collected");
    drop((holder, waiter, host));
    leaks.check();
}

#[test]
fn leases_hold_across_pid_namespaces() {
    if !driver::available() || !common::tier("root") || !common::tools("root", &["unshare"]) {
        return;
    }
    let host = Host::new("t4");
    let mut inside = host.start("hold", &["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"], &[]);
    inside.said("holds");
    let error = host.allocator.acquire(&one(), Wait::none()).unwrap_err();
    assert!(error.to_string().contains("0 of 1 free: 1 leased by process 1 ("), "{error}");
    let [lease] = &host.allocator.status().unwrap().leases[..] else { panic!("one lease") };
    let own = std::fs::read_link("/proc/self/ns/pid").unwrap();
    assert_ne!(Path::new(&lease.pid_namespace), own);
    inside.kill();
    drop(host.allocator.acquire(&one(), Wait::at_most(SOON)).unwrap());
}

/// The part of an ordinary user, which runs this test once more.
const INVENTORY: &str = "GPUC_TEST_INVENTORY";

#[test]
fn users_share_one_account_and_cannot_touch_each_other_s_leases() {
    if let Some(inventory) = std::env::var_os(INVENTORY) {
        return ordinary(Path::new(&inventory));
    }
    if !driver::available() || !common::tier("root") || !common::tools("root", &["setpriv"]) {
        return;
    }
    let host = Host::new("dgx-a100");
    let root = DriverRoot::new(host.driver.path());
    let inventory = host.table.path().join("inventory.json");
    std::fs::write(&inventory, serde_json::to_string(&Inventory::discover_with(&root)).unwrap()).unwrap();
    let lease = host.allocator.acquire(&GpuRequest::count(6), Wait::none()).unwrap();
    let environment = [(INVENTORY, inventory.as_os_str()), (TABLE, host.allocator.path().as_os_str())];
    let test = "users_share_one_account_and_cannot_touch_each_other_s_leases";
    Ordinary::nobody().run(test, &environment);
    assert_eq!(host.allocator.status().unwrap().leases.len(), 1, "the dead leases of the other user count no more");
    drop(host.allocator.acquire(&GpuRequest::count(2), Wait::none()).unwrap());
    drop(lease);
}

/// An ordinary user, who first behaves and then does not.
fn ordinary(inventory: &Path) {
    let inventory: Inventory = serde_json::from_slice(&std::fs::read(inventory).unwrap()).unwrap();
    let table = PathBuf::from(std::env::var_os(TABLE).unwrap());
    let allocator = GpuAllocator::at(&table).unwrap().respect_outer(false);
    let acquire = |count| allocator.acquire_from(&inventory, &GpuRequest::count(count), Wait::none());
    let two = acquire(2).unwrap();
    let error = acquire(1).unwrap_err();
    assert!(error.to_string().contains("0 of 8 free: 8 leased by process "), "{error}");
    assert!(error.to_string().contains("user 0): 6") && error.to_string().contains("user 65534): 2"), "{error}");
    let slot = |user| {
        let status = allocator.status_from(&inventory).unwrap();
        let lease = status.leases.iter().find(|lease| lease.user == user).unwrap();
        table.join(format!("lease-{}", lease.id))
    };
    let theirs = slot(0);
    assert!(std::fs::remove_file(&theirs).is_err() && std::fs::rename(&theirs, table.join("x")).is_err());
    assert!(File::options().write(true).open(&theirs).is_err());
    assert!(std::fs::remove_dir(&table).is_err());
    // A link of that name, and reading without end, change nothing either.
    std::os::unix::fs::symlink(&theirs, table.join("lease-link")).unwrap();
    let _reader = File::open(&theirs).unwrap();
    assert_eq!(allocator.status_from(&inventory).unwrap().leases.len(), 2);
    let held = two.into_fd().unwrap();
    assert!(acquire(1).is_err());
    // As after a crash, the slot stays: root may remove it, others only pass it.
    drop(held);
    assert_eq!(acquire(2).unwrap().gpus().len(), 2);
}

fn sleeping(with_gpus: impl Fn(SandboxBuilder) -> SandboxBuilder) -> gpucontainer::Sandbox {
    let root = DriverRoot::new(PathBuf::from(std::env::var_os(DRIVER).unwrap()));
    let builder = with_gpus(Fixture::of_parent().shell("sleep 300").driver_root(root));
    builder.stdout(Stdio::Null).stderr(Stdio::Null).spawn().unwrap()
}

#[test]
fn a_lease_follows_its_container() {
    if !driver::available() || !common::tier("root") || !common::tools("root", &["busybox"]) {
        return;
    }
    let fixture = Fixture::new();
    let host = Host::new("t4");
    let roles = ["container", "leasing", "attaching", "detached", "leasing and detached", "attaching and detached"];
    for role in roles.into_iter().chain(["attaching its own and detached", "given back"]) {
        let mut other = host.spawn(fixture.apart(role));
        let pid = other.said("holds");
        if role == "given back" {
            other.said("gone");
            other.child.wait().unwrap();
            drop(host.allocator.acquire(&one(), Wait::at_most(SOON)).unwrap());
            assert!(!ended(pid.parse().unwrap()), "the container lives on without its GPU");
            assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
            continue;
        }
        if role.ends_with("detached") {
            other.said("gone");
            other.child.wait().unwrap();
            let error = host.allocator.acquire(&one(), Wait::at_most(Duration::from_millis(100))).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut, "the container has it still: {error}");
            assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        } else {
            assert!(host.allocator.acquire(&one(), Wait::none()).is_err());
            other.kill();
        }
        drop(host.allocator.acquire(&one(), Wait::at_most(SOON)).unwrap());
        assert!(ended(pid.parse().unwrap()), "{role}: the GPU was free before its container was dead");
    }
    gpucontainer::sandbox::collect_abandoned(&fixture.store).unwrap();
}

/// Turns of attaching and detaching in which a process is killed, each time a little later.
const TURNS: u32 = 24;

#[test]
fn whoever_is_killed_while_it_attaches_leaves_nothing() {
    if !driver::available() || !common::tier("root") || !common::tools("root", &["busybox"]) {
        return;
    }
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let host = Host::new("t4");
    // How long a turn takes here, of which each kill meets another part.
    let mut turn = Duration::ZERO;
    for number in 0..TURNS {
        let mut other = host.spawn(fixture.apart("attaching again and again"));
        let pid = other.said("holds");
        other.said("turn 1");
        if number == 0 {
            let start = Instant::now();
            other.said("turn 4");
            turn = start.elapsed() / 3;
        }
        std::thread::sleep(turn * number / TURNS);
        other.kill();
        drop(host.allocator.acquire(&one(), Wait::at_most(SOON)).unwrap());
        until("the container is dead", SOON, || ended(pid.parse().unwrap()));
        assert_eq!(driver::slots(&host.allocator), [""; 0], "no slot is left");
    }
    gpucontainer::sandbox::collect_abandoned(&fixture.store).unwrap();
    drop((fixture, host));
    leaks.check();
}

fn clock() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}

/// One process of the storm: leases GPUs and writes itself down as their holder, for a moment, again and again.
fn storm_of_one() {
    let allocator = allocator_of_parent();
    let inventory = Inventory::discover_with(&DriverRoot::new(std::env::var_os(DRIVER).unwrap()));
    let table = allocator.path().parent().unwrap().to_owned();
    let holders = File::options().read(true).write(true).open(table.join("holders")).unwrap();
    let mut log = File::options().append(true).open(table.join("log")).unwrap();
    let own = std::process::id();
    let place = |gpu: &String| inventory.gpus().iter().position(|known| known.uuid == *gpu).unwrap();
    let at = |place: usize| u64::try_from(place * 4).unwrap();
    for turn in own.. {
        let lease = allocator.acquire_from(&inventory, &GpuRequest::count(1 + turn % 3 / 2), Wait::forever()).unwrap();
        let now = clock();
        let places: Vec<usize> = lease.gpus().iter().map(place).collect();
        for place in &places {
            let mut before = [0; 4];
            holders.read_exact_at(&mut before, at(*place)).unwrap();
            let before = u32::from_ne_bytes(before);
            if before != 0 && before != own && !ended(before) {
                writeln!(log, "V {now} {place} {own} of {before}").unwrap();
            }
            holders.write_all_at(&own.to_ne_bytes(), at(*place)).unwrap();
            log.write_all(format!("G {now} {place} {own}\n").as_bytes()).unwrap();
        }
        std::thread::sleep(Duration::from_millis((turn % 7).into()));
        for place in &places {
            let mut after = [0; 4];
            holders.read_exact_at(&mut after, at(*place)).unwrap();
            if after != own.to_ne_bytes() {
                writeln!(log, "V {now} {place} {own} was replaced").unwrap();
            }
            holders.write_all_at(&[0; 4], at(*place)).unwrap();
            log.write_all(format!("R {} {place} {own}\n", clock()).as_bytes()).unwrap();
        }
        drop(lease);
    }
}

#[test]
fn no_gpu_is_given_twice_in_a_storm_of_processes_that_are_killed() {
    if !driver::available() {
        return;
    }
    let leaks = common::Leaks::watch();
    let host = Host::new("dgx-a100");
    std::fs::write(host.table.path().join("holders"), [0; 32]).unwrap();
    let log = host.table.path().join("log");
    std::fs::write(&log, "").unwrap();
    let mut others: Vec<Other> = (0..PROCESSES).map(|_| host.start("storm", &[], &[])).collect();
    let grants =
        |log: &Path| std::fs::read_to_string(log).unwrap().lines().filter(|line| line.starts_with('G')).count();
    until("all take part", STORM, || grants(&log) > PROCESSES);
    let start = Instant::now();
    let mut kills: Vec<(u128, u32)> = Vec::new();
    let mut next = 0;
    while kills.len() < KILLS {
        assert!(start.elapsed() < STORM, "only {} who held a GPU could be killed", kills.len());
        // Somebody who holds a GPU; that may have changed when the signal arrives.
        let holders = std::fs::read(host.table.path().join("holders")).unwrap();
        let pids: Vec<u32> = holders.chunks_exact(4).map(|pid| u32::from_ne_bytes(pid.try_into().unwrap())).collect();
        next = (next + 3) % 8;
        let mut in_turn = pids.iter().cycle().skip(next).take(8).filter(|pid| **pid != 0);
        if let Some(other) = in_turn.find_map(|pid| others.iter().position(|other| other.child.id() == *pid)) {
            let other = &mut others[other];
            kills.push((clock(), other.child.id()));
            other.kill();
            *other = host.start("storm", &[], &[]);
        }
        std::thread::sleep(PERIOD);
    }
    drop(others);
    let text = std::fs::read_to_string(&log).unwrap();
    let violations: Vec<&str> = text.lines().filter(|line| line.starts_with('V')).collect();
    assert_eq!(violations, [""; 0]);
    let latencies = latencies(&text, &kills);
    assert!(!latencies.is_empty(), "what the killed held was never granted again");
    let median = latencies[latencies.len() / 2];
    eprintln!(
        "{} grants, {} kills; granted again {median:?} after a kill at the median, {:?} at most",
        grants(&log),
        kills.len(),
        latencies.last().unwrap()
    );
    drop(host.allocator.acquire(&GpuRequest::count(8), Wait::at_most(SOON)).unwrap());
    assert_eq!(driver::slots(&host.allocator), [""; 0], "nothing is left");
    drop(host);
    leaks.check();
}

/// How long after each kill the GPUs of the killed were granted again, ascending.
fn latencies(log: &str, kills: &[(u128, u32)]) -> Vec<Duration> {
    let events: Vec<(char, u128, usize, u32)> = log
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            Some((line.chars().next()?, words[1].parse().ok()?, words[2].parse().ok()?, words[3].parse().ok()?))
        })
        .collect();
    let mut latencies = Vec::new();
    for (killed_at, killed) in kills {
        let mut held: BTreeMap<usize, bool> = BTreeMap::new();
        for (kind, _, place, _) in events.iter().filter(|(.., pid)| pid == killed) {
            held.insert(*place, *kind == 'G');
        }
        for (place, _) in held.into_iter().filter(|(_, held)| *held) {
            let again = events
                .iter()
                .find(|(kind, at, other, pid)| *kind == 'G' && at > killed_at && *other == place && pid != killed);
            let after = again.map(|(_, at, ..)| u64::try_from(at - killed_at).unwrap());
            latencies.extend(after.map(Duration::from_nanos));
        }
    }
    latencies.sort();
    latencies
}
