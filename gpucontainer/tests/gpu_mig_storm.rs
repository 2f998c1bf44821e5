//! A storm of processes that lease MIG devices which are made for them, and are killed at any moment.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
mod mig;

use common::{Leaks, ended, until};
use driver::split_a100;
use gpucontainer::GpuRequest;
use gpucontainer::gpu::{GpuAllocator, Wait};
use mig::{Machine, Part, allocator_of_parent};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// So many processes want MIG devices, one of them is killed so often, and so many in all.
const PROCESSES: usize = 12;
const PERIOD: Duration = Duration::from_millis(40);
const KILLS: usize = 60;
const STORM: Duration = Duration::from_secs(180);

/// What one process of the storm wants in one of its turns.
fn wanted(turn: u32) -> GpuRequest {
    let (profile, number) = match turn % 7 {
        0..3 => ("1g.5gb", 1),
        3 => ("1g.5gb", 3),
        4 => ("2g.10gb", 1),
        5 => ("3g.20gb", 2),
        _ => ("7g.40gb", 1),
    };
    GpuRequest::count(number).mig_profile(profile)
}

/// One process of the storm: leases devices and writes itself down as their holder, for a moment, again and again.
fn storm_of_one(allocator: &GpuAllocator) {
    let holders = allocator.path().with_file_name("holders");
    let own = std::process::id();
    for turn in own.. {
        let lease = allocator.acquire(&wanted(turn), Wait::forever()).unwrap();
        let marks: Vec<PathBuf> = lease.gpus().iter().map(|uuid| holders.join(uuid)).collect();
        for mark in &marks {
            let before = std::fs::read_to_string(mark).ok().and_then(|text| text.parse::<u32>().ok());
            if let Some(before) = before.filter(|before| *before != own && !ended(*before)) {
                std::fs::write(holders.join(format!("violation-{own}")), format!("{mark:?} of {before}")).unwrap();
            }
            std::fs::write(mark, own.to_string()).unwrap();
        }
        std::fs::write(holders.join(format!("turn-{own}")), turn.to_string()).unwrap();
        std::thread::sleep(Duration::from_millis((turn % 5).into()));
        for mark in &marks {
            if std::fs::read_to_string(mark).ok() != Some(own.to_string()) {
                std::fs::write(holders.join(format!("violation-{own}")), format!("{mark:?} was replaced")).unwrap();
            }
            let _ = std::fs::remove_file(mark);
        }
        drop(lease);
    }
}

#[test]
#[ignore = "the other process of a test"]
fn other_process() {
    storm_of_one(&allocator_of_parent());
}

/// No two instances of one GPU lie at the same place: the hardware would not allow it, nor does the stand-in.
#[track_caller]
fn no_overlap(state: &Value) {
    for gpu in state["gpus"].as_array().unwrap() {
        let mut taken: BTreeMap<u64, u64> = BTreeMap::new();
        for one in gpu["mig"]["gpu_instances"].as_array().into_iter().flatten() {
            let (start, size) = (one["start"].as_u64().unwrap(), one["size"].as_u64().unwrap());
            for place in start..start + size {
                assert_eq!(taken.insert(place, start), None, "{gpu}");
            }
        }
    }
}

#[test]
fn a_storm_of_killed_holders_and_makers_overcommits_nothing_and_leaves_nothing() {
    if !driver::available() {
        return;
    }
    let leaks = Leaks::watch();
    let mut split = split_a100(2);
    for gpu in 0..2 {
        // So that who chose a device that was destroyed meanwhile would be taken for the holder of the next.
        split["gpus"][gpu]["mig"]["same_uuids"] = json!(true);
    }
    let machine = Machine::new(split);
    let holders = machine.directory.path().join("holders");
    std::fs::create_dir(&holders).unwrap();
    let start = Instant::now();
    let part = || Part(machine.other("storm").stdout(Stdio::null()).spawn().unwrap());
    let mut parts: Vec<Part> = (0..PROCESSES).map(|_| part()).collect();
    let marks = |prefix: &str| {
        let names = std::fs::read_dir(&holders).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(prefix)).collect::<Vec<String>>()
    };
    until("some take part", STORM, || marks("turn-").len() >= 3);
    for kill in 0..KILLS {
        assert!(start.elapsed() < STORM, "only {kill} were killed");
        // Whatever it does just then: makes, holds, destroys, waits.
        let victim = kill * 5 % PROCESSES;
        parts[victim].0.kill().unwrap();
        parts[victim] = part();
        no_overlap(&machine.driver.state());
        std::thread::sleep(PERIOD);
    }
    drop(parts);
    let violations: Vec<String> =
        marks("violation-").iter().map(|name| std::fs::read_to_string(holders.join(name)).unwrap()).collect();
    assert_eq!(violations, [""; 0]);
    eprintln!("{} processes had devices, {KILLS} were killed, in {:?}", marks("turn-").len(), start.elapsed());
    // The next that comes finds all of it free.
    let all = machine.now(&GpuRequest::count(2).mig_profile("7g.40gb")).unwrap();
    assert_eq!(machine.devices(), all.gpus());
    drop(all);
    machine.is_as_before();
    drop(machine);
    leaks.check();
}
