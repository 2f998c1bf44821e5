//! The example that shares a machine's GPUs among several instances, as it is run: another program.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;

use driver::FakeDriver;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The example, where Cargo put it, or beside this program if that was copied to another place.
fn example() -> Option<Command> {
    let test = std::env::current_exe().unwrap();
    let beside = test.with_file_name("gpu_share");
    let built = test.parent().unwrap().with_file_name("examples").join("gpu_share");
    let program = [beside, built].into_iter().find(|path| path.is_file());
    if program.is_none() {
        common::skip("gpu_share", "the example gpu_share was not built");
    }
    program.map(Command::new)
}

/// Runs it on that machine; it must leave nothing in the directory for temporary files.
fn run(machine: &FakeDriver) -> Option<String> {
    let mut command = example()?;
    let temporary = tempfile::tempdir().unwrap();
    command.env("TMPDIR", temporary.path()).env("GPUCONTAINER_DRIVER_ROOT", machine.path()).stdin(Stdio::null());
    let output = command.output().unwrap();
    let left: Vec<PathBuf> = temporary.path().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{:?}\n{out}{}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!((left, output.stderr.as_slice()), (Vec::new(), &b""[..]));
    Some(out)
}

/// The two lines below the one of an instance: its identifiers, and what it saw.
fn instance(out: &str, number: usize) -> [&str; 3] {
    let mut lines = out.lines().skip_while(|line| !line.starts_with(&format!("instance {number}: ")));
    [(); 3].map(|()| lines.next().unwrap_or_else(|| panic!("{out}")))
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn four_instances_get_the_best_pairs_of_a_dgx() {
    if !driver::available() || !common::tier("root") || !common::tools("gpu_share", &["ldd"]) {
        return;
    }
    let _leaks = common::Leaks::watch();
    // On the first two of the GPUs, which have one NVLink, two instances would leave a worse pair for others.
    let machine = FakeDriver::new("dgx-1");
    let Some(out) = run(&machine) else { return };
    let gpus = machine.gpus();
    let mut all = BTreeSet::new();
    for number in 1..=4 {
        let [reason, identifiers, seen] = instance(&out, number);
        assert!(reason.contains("2 NVLinks"), "no pair of this machine has more: {reason}");
        let identifiers: Vec<&str> = words(identifiers).into_iter().filter(|word| word.starts_with("GPU-")).collect();
        let node = |uuid: &&str| {
            let gpu = gpus.iter().find(|gpu| uuid.trim_end_matches(',') == gpu["uuid"]).unwrap();
            format!("nvidia{}", gpu["minor"])
        };
        let own: BTreeSet<String> = identifiers.iter().map(node).collect();
        let sees = words(seen.strip_prefix("  sees ").unwrap()).into_iter().map(str::to_owned).collect();
        assert_eq!(own, sees, "{seen}");
        assert_eq!(own.len(), 2, "{identifiers:?}");
        all.extend(own);
    }
    assert_eq!(all.len(), 8, "nobody shares");
    let table = out.lines().filter(|line| line.contains("Tesla V100") && line.contains("process ")).count();
    assert_eq!(table, 8, "who holds each GPU: {out}");
    assert!(out.ends_with("0 leases are left.\n"), "{out}");
}

#[test]
fn who_comes_too_late_is_told_why() {
    if !driver::available() || !common::tier("root") || !common::tools("gpu_share", &["ldd"]) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let mut profile = driver::profile("dgx-a100");
    profile["gpus"].as_array_mut().unwrap().truncate(3);
    let Some(out) = run(&FakeDriver::with_profile(profile)) else { return };
    assert!(out.contains("\ninstance 1: "), "{out}");
    let second = out.lines().find(|line| line.starts_with("instance 2: ")).unwrap();
    assert!(second.contains("1 of 3 free: 2 leased by process"), "{second}");
    assert!(out.ends_with("0 leases are left.\n"), "{out}");
}

#[test]
fn a_machine_without_gpus_is_no_failure() {
    if !driver::available() {
        return;
    }
    let Some(out) = run(&FakeDriver::new("none")) else { return };
    assert!(out.starts_with("There are no GPUs to share here: "), "{out}");
}
