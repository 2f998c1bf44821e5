//! Control groups against the real kernel, whichever version it has.

#![allow(clippy::unwrap_used, reason = "helpers of tests are outside of a test function")]

mod common;

use common::Leaks;
use gpucontainer::ErrorKind;
use gpucontainer::cgroup::{Cgroup, IoLimit, Limits};
use std::path::PathBuf;
use std::process::Command;

/// A name that no other test and no other run uses.
fn name(test: &str) -> String {
    format!("test-{test}-{}", std::process::id())
}

/// The value of the control file `new` of version 2 or `old` of version 1, whichever the group has.
fn value(group: &Cgroup, new: &str, old: &str) -> String {
    let files = group.paths().into_iter().flat_map(|path| [path.join(new), path.join(old)]);
    let file = files.into_iter().find(|file| file.exists());
    let file = file.unwrap_or_else(|| panic!("neither {new} nor {old} in {:?}", group.paths()));
    std::fs::read_to_string(file).unwrap().trim().to_owned()
}

/// Every group of ours with this name, in any hierarchy.
fn left(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(std::fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path()));
    for root in roots {
        found.extend([root.join(format!("gpucontainer-{name}")), root.join("gpucontainer").join(name)]);
    }
    found.retain(|path| path.exists());
    let claim = PathBuf::from(format!("/run/gpucontainer/cgroups/{name}.claim"));
    if claim.exists() {
        found.push(claim);
    }
    found
}

/// A command that enters the group before it is executed, as a launcher's child would.
fn inside(group: &Cgroup, program: &str, arguments: &[&str]) -> Command {
    // A shell is single-threaded: it writes `0` for itself and then becomes the program. On version 2
    // entering this way costs a grace period, which only the launcher needs to avoid.
    let mut script = String::new();
    for path in group.paths() {
        let tasks = path.join("tasks");
        let file = if tasks.exists() { tasks } else { path.join("cgroup.procs") };
        script.push_str(&format!("echo 0 > '{}' || exit 99; ", file.display()));
    }
    script.push_str("exec \"$@\"");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &script, "sh", program]).args(arguments);
    command
}

#[test]
fn each_limit_arrives_in_the_kernel() {
    if !common::tier("root") {
        return;
    }
    let leaks = Leaks::watch();
    let name = name("limits");
    let limits = Limits::new().memory_max((64 << 20) + 5).cpus(0.25).cpu_weight(200).pids_max(33).cpuset_cpus("0");
    let mut group = Cgroup::create(&name, &limits).unwrap();
    assert_eq!(value(&group, "memory.max", "memory.limit_in_bytes"), (64 << 20).to_string());
    assert!(["25000 100000", "25000"].contains(&&*value(&group, "cpu.max", "cpu.cfs_quota_us")));
    assert!(["200", "2048"].contains(&&*value(&group, "cpu.weight", "cpu.shares")));
    assert_eq!(value(&group, "pids.max", "pids.max"), "33");
    assert_eq!(value(&group, "cpuset.cpus", "cpuset.cpus"), "0");
    assert!(!value(&group, "cpuset.mems.effective", "cpuset.mems").is_empty());
    let status = inside(&group, "true", &[]).status().unwrap();
    assert!(status.success(), "{status}");
    group.remove().unwrap();
    group.remove().unwrap();
    assert_eq!(left(&name), Vec::<PathBuf>::new());
    leaks.check();
}

#[test]
fn an_impossible_limit_leaves_nothing() {
    if !common::tier("root") {
        return;
    }
    let leaks = Leaks::watch();
    let name = name("impossible");
    let table = [
        (Limits::new().memory_max(0), ErrorKind::InvalidArgument, "memory_max = 0"),
        (Limits::new().pids_max(5).cpuset_cpus("999"), ErrorKind::LimitNotApplied, "cpuset.cpus = 999"),
        (Limits::new().memory_max(1 << 30).cpuset_mems("77"), ErrorKind::LimitNotApplied, "cpuset.mems = 77"),
        // No block device has these numbers.
        (Limits::new().io(IoLimit::new(4095, 1).read_bytes(1 << 20)), ErrorKind::LimitNotApplied, "4095:1"),
        (Limits::new().hugetlb(8 << 40, 0), ErrorKind::LimitNotApplied, "hugetlb.8192GB"),
        (Limits::new().raw("memory.no_such_file", "1"), ErrorKind::LimitNotApplied, "memory.no_such_file = 1"),
        (Limits::new().raw("nonsense.max", "1"), ErrorKind::LimitNotApplied, "no controller nonsense"),
    ];
    for (limits, kind, words) in table {
        let error = Cgroup::create(&name, &limits).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error} does not name {words}");
        assert_eq!(left(&name), Vec::<PathBuf>::new(), "after {error}");
    }
    for name in ["", "../x", ".hidden", "a/b", "a b"] {
        let error = Cgroup::create(name, &Limits::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    leaks.check();
}

#[test]
fn a_living_group_keeps_its_name() {
    if !common::tier("root") {
        return;
    }
    let leaks = Leaks::watch();
    let name = name("twice");
    let group = Cgroup::create(&name, &Limits::new()).unwrap();
    assert_eq!(Cgroup::create(&name, &Limits::new()).unwrap_err().kind(), ErrorKind::AlreadyExists);
    let other = Cgroup::open(&name).unwrap();
    assert_eq!(other.paths(), group.paths());
    drop(other);
    assert!(group.paths()[0].exists(), "an opened group stays its maker's");
    drop(group);
    assert_eq!(Cgroup::open(&name).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(left(&name), Vec::<PathBuf>::new());
    leaks.check();
}

#[test]
fn dropping_a_group_kills_what_is_inside() {
    if !common::tier("root") {
        return;
    }
    let leaks = Leaks::watch();
    let name = name("drop");
    let mut group = Cgroup::create(&name, &Limits::new().pids_max(10)).unwrap();
    let mut child = inside(&group, "sleep", &["1000"]).spawn().unwrap();
    while !group.processes().unwrap().contains(&child.id()) {
        std::thread::yield_now();
    }
    let error = group.remove().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains(&child.id().to_string()), "{error}");
    drop(group);
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    assert_eq!(left(&name), Vec::<PathBuf>::new());
    leaks.check();
}

#[test]
#[ignore = "a measurement, to be run by hand"]
fn making_and_removing_is_quick() {
    let limits = Limits::new().memory_max(64 << 20).cpus(0.5).pids_max(50);
    let mut times: Vec<_> = (0..500)
        .map(|round| {
            let start = std::time::Instant::now();
            drop(Cgroup::create(&format!("speed-{round}"), &limits).unwrap());
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("min {:?} median {:?} p99 {:?}", times[0], times[250], times[495]);
}
