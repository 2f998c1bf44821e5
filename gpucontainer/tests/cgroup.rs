//! Control groups against the real kernel, whichever version it has.

#![allow(clippy::unwrap_used, reason = "helpers of tests are outside of a test function")]

mod common;

use common::Leaks;
use gpucontainer::ErrorKind;
use gpucontainer::cgroup::{Cgroup, DeviceKind, DeviceRule, IoLimit, Limits, Mode, Options, Version};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
    // Wherever of these the claims of root are.
    let places = ["/run/gpucontainer", "/dev/shm/gpucontainer-0"].map(PathBuf::from);
    found.extend(
        places.map(|place| place.join(format!("cgroups/{name}.claim"))).into_iter().filter(|file| file.exists()),
    );
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

/// Asks until there is an answer, which every test here expects within 20 s even on a very slow machine.
fn wait_for<T>(mut question: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(answer) = question() {
            return answer;
        }
        assert!(Instant::now() < deadline, "nothing happened in 20 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a process has entered the group in every hierarchy.
fn wait_until_inside(group: &Cgroup, process: u32) {
    let number = process.to_string();
    for path in group.paths() {
        let file = path.join("cgroup.procs");
        wait_for(|| std::fs::read_to_string(&file).unwrap().lines().any(|line| line == number).then_some(()));
    }
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
    wait_until_inside(&group, child.id());
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
fn a_memory_hog_is_killed_and_it_is_said_why() {
    if !common::tier("root") {
        return;
    }
    let leaks = Leaks::watch();
    let limits = Limits::new().memory_max(32 << 20).memory_swap_max(0);
    let group = Cgroup::create(&name("hog"), &limits).unwrap();
    assert_eq!(group.oom_kills().unwrap(), 0);
    // A variable of the shell that doubles until it does not fit.
    let script = "x=0123456789abcdef; while :; do x=$x$x; done";
    let status = inside(&group, "/bin/sh", &["-c", script]).status().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
    assert_eq!(group.oom_kills().unwrap(), 1);
    let memory = group.stats().unwrap().memory.unwrap();
    assert_eq!((memory.limit, memory.oom_kills), (Some(32 << 20), 1));
    assert!(memory.peak.is_none_or(|peak| peak > 16 << 20), "{memory:?}");
    // Newer kernels do not count it on version 1 where swap has a limit too.
    let counted = Cgroup::support().unwrap().controller("memory") == Ok(Version::V2);
    assert!(memory.limit_hits > 0 || !counted, "{memory:?}");
    drop(group);
    leaks.check();
}

#[test]
fn a_fork_loop_stops_at_its_limit() {
    if !common::tier("root") {
        return;
    }
    let leaks = Leaks::watch();
    let group = Cgroup::create(&name("forks"), &Limits::new().pids_max(5)).unwrap();
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 >/dev/null 2>&1 & done; exit 0";
    let output = inside(&group, "/bin/sh", &["-c", script]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("fork"), "{output:?}");
    let pids = group.stats().unwrap().pids.unwrap();
    assert_eq!(pids.limit, Some(5));
    assert!(pids.limit_hits > 0 && (1..=5).contains(&pids.current), "{pids:?}");
    group.kill().unwrap();
    assert!(group.processes().unwrap().is_empty());
    assert_eq!(value(&group, "pids.max", "pids.max"), "5", "killing changes no limit");
    drop(group);
    leaks.check();
}

#[test]
fn a_processor_quota_throttles() {
    if !common::tier("root") {
        return;
    }
    let leaks = Leaks::watch();
    let options = Options::new().accounting(true);
    let group = Cgroup::create_with(&name("quota"), &Limits::new().cpus(0.05), &options).unwrap();
    let mut child = inside(&group, "/bin/sh", &["-c", "while :; do :; done"]).spawn().unwrap();
    // The time is counted when a processor may run again, later than the period.
    let counted = || group.stats().unwrap().cpu.filter(|cpu| cpu.throttled_periods > 1 && !cpu.throttled.is_zero());
    let throttled = wait_for(counted);
    assert!(throttled.periods >= throttled.throttled_periods, "{throttled:?}");
    assert!(throttled.usage.unwrap() > Duration::ZERO, "{throttled:?}");
    group.kill().unwrap();
    child.wait().unwrap();
    drop(group);
    leaks.check();
}

#[test]
fn a_frozen_group_stands_still_until_it_is_thawed() {
    if !common::tier("root") {
        return;
    }
    let leaks = Leaks::watch();
    let directory = tempfile::tempdir().unwrap();
    let counter = directory.path().join("counter");
    let group = Cgroup::create(&name("freeze"), &Limits::new()).unwrap();
    let script = format!("i=0; while :; do i=$((i+1)); echo $i > {}; done", counter.display());
    let mut child = inside(&group, "/bin/sh", &["-c", &script]).spawn().unwrap();
    let count = || std::fs::read_to_string(&counter).ok()?.trim().parse::<u64>().ok();
    wait_for(count);
    assert!(!group.is_frozen().unwrap());
    group.freeze().unwrap();
    group.freeze().unwrap();
    assert!(group.is_frozen().unwrap());
    // Standing still means: the kernel gives it no time at all, however long that is looked at.
    let time = || std::fs::read_to_string(format!("/proc/{}/schedstat", child.id())).unwrap();
    // The kernel says frozen when the process is on its way to sleep, so the first look may be too early.
    let before = wait_for(|| {
        let one = time();
        std::thread::sleep(Duration::from_millis(5));
        (time() == one).then_some(one)
    });
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(time(), before);
    let at = count();
    group.thaw().unwrap();
    group.thaw().unwrap();
    assert!(!group.is_frozen().unwrap());
    wait_for(|| count().filter(|now| Some(*now) > at));
    // What is frozen can be killed all the same.
    group.freeze().unwrap();
    group.kill().unwrap();
    child.wait().unwrap();
    drop(group);
    leaks.check();
}

#[test]
fn limits_of_a_running_group_change_and_a_failed_change_is_taken_back() {
    if !common::tier("root") {
        return;
    }
    let leaks = Leaks::watch();
    let group = Cgroup::create(&name("update"), &Limits::new().memory_max(64 << 20).pids_max(20)).unwrap();
    let mut child = inside(&group, "sleep", &["1000"]).spawn().unwrap();
    wait_until_inside(&group, child.id());
    // One that grows, one that shrinks, two that need a hierarchy or a controller that was not needed so far.
    let limits = Limits::new().memory_max(128 << 20).memory_swap_max(1 << 20).pids_max(10).cpus(0.5).cpuset_cpus("0");
    group.update(&limits).unwrap();
    group.update(&Limits::new().memory_max(64 << 20).memory_swap_max(0)).unwrap();
    assert_eq!(value(&group, "memory.max", "memory.limit_in_bytes"), (64 << 20).to_string());
    assert_eq!(value(&group, "pids.max", "pids.max"), "10");
    assert!(["50000 100000", "50000"].contains(&&*value(&group, "cpu.max", "cpu.cfs_quota_us")));
    assert_eq!(value(&group, "cpuset.cpus", "cpuset.cpus"), "0");
    for path in group.paths() {
        let inside = std::fs::read_to_string(path.join("cgroup.procs")).unwrap();
        assert_eq!(inside.trim(), child.id().to_string(), "in {path:?}");
    }
    let error = group.update(&Limits::new().pids_max(7).raw("pids.no_such_file", "1")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitNotApplied, "{error}");
    assert_eq!(value(&group, "pids.max", "pids.max"), "10");
    let error = group.update(&Limits::new().pids_max(0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    group.kill().unwrap();
    child.wait().unwrap();
    drop(group);
    leaks.check();
}

#[test]
fn only_allowed_devices_open() {
    if !common::tier("root") {
        return;
    }
    if let Some(why) = Cgroup::support().unwrap().no_devices {
        common::skip("root", &why);
        return;
    }
    let leaks = Leaks::watch();
    let directory = tempfile::tempdir().unwrap();
    // `full` under another name, and a number of the NVIDIA driver's.
    let (full, gpu) = (directory.path().join("full"), directory.path().join("gpu"));
    for (node, major, minor) in [(&full, "1", "7"), (&gpu, "195", "254")] {
        assert!(Command::new("mknod").arg(node).args(["c", major, minor]).status().unwrap().success());
    }
    let group = Cgroup::create(&name("devices"), &Limits::new()).unwrap();
    group.allow_devices(&DeviceRule::defaults()).unwrap();
    let opens = |node: &Path| {
        let script = format!("exec 3< {}", node.display());
        let output = inside(&group, "/bin/sh", &["-c", &script]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(opens(&full), (true, String::new()));
    let (opened, why) = opens(&gpu);
    // Without the rule nothing could be said about it: whether there is such a device comes later.
    assert!(!opened && why.contains("not permitted"), "{why}");
    let mut rules = DeviceRule::defaults();
    rules.push(DeviceRule::driver(DeviceKind::Character, 195));
    group.allow_devices(&rules).unwrap();
    let (_, why) = opens(&gpu);
    assert!(!why.contains("not permitted"), "{why}");
    group.allow_devices(&[]).unwrap();
    // Not even what the shell needs for its own redirections.
    let (opened, why) = opens(&full);
    assert!(!opened && why.contains("not permitted"), "{why}");
    let wrong = DeviceRule::device(DeviceKind::Character, 5000, 0);
    assert_eq!(group.allow_devices(&[wrong]).unwrap_err().kind(), ErrorKind::InvalidArgument);
    drop(group);
    leaks.check();
}

#[test]
fn what_a_dead_owner_left_is_collected() {
    if !common::tier("root") {
        return;
    }
    let leaks = Leaks::watch();
    let name = name("abandoned");
    // This test binary again, as the owner: see below.
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner_that_is_killed", "--ignored", "--nocapture"])
        .env("GPUC_TEST_OWNER", &name)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(owner.stdout.take().unwrap());
    while !line.contains("inside") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the owner ended early");
    }
    let group = Cgroup::open(&name).unwrap();
    let inside = group.processes().unwrap();
    assert_eq!(inside.len(), 1);
    assert!(!Cgroup::collect_abandoned().unwrap().contains(&name), "its owner lives");
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert_eq!(group.processes().unwrap(), inside, "nothing has died by itself");
    assert!(Cgroup::collect_abandoned().unwrap().contains(&name));
    assert_eq!(left(&name), Vec::<PathBuf>::new());
    assert_eq!(group.stats().unwrap_err().kind(), ErrorKind::NotFound);
    drop((group, output));
    leaks.check();
}

#[test]
#[ignore = "the other process of what_a_dead_owner_left_is_collected"]
fn owner_that_is_killed() {
    let Ok(name) = std::env::var("GPUC_TEST_OWNER") else { return };
    let group = Cgroup::create(&name, &Limits::new().pids_max(5)).unwrap();
    let mut child = inside(&group, "sleep", &["1000"]).stdout(Stdio::null()).spawn().unwrap();
    wait_until_inside(&group, child.id());
    println!("inside");
    // Until the test kills this process.
    child.wait().unwrap();
}

#[test]
fn without_root_a_delegated_subtree_serves_or_it_is_said_why_not() {
    if !common::tier("rootless") {
        return;
    }
    let support = Cgroup::support().unwrap();
    let limits = Limits::new().memory_max(64 << 20).pids_max(20);
    let group = Cgroup::create(&name("delegated"), &limits);
    match (support.controller("memory"), support.controller("pids")) {
        (Ok(_), Ok(_)) => {
            let group = group.unwrap();
            assert_eq!(value(&group, "memory.max", "memory.limit_in_bytes"), (64 << 20).to_string());
            assert!(inside(&group, "true", &[]).status().unwrap().success());
            let mut child = inside(&group, "sleep", &["1000"]).spawn().unwrap();
            wait_until_inside(&group, child.id());
            group.freeze().unwrap();
            group.kill().unwrap();
            child.wait().unwrap();
            let paths = group.paths();
            drop(group);
            assert!(paths.iter().all(|path| !path.exists()), "{paths:?}");
        }
        (memory, pids) => {
            let error = group.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LimitNotApplied, "{error}");
            let why = memory.and(pids).unwrap_err();
            assert!(error.to_string().contains("limit ") && !why.is_empty(), "{error}; {why}");
        }
    }
}

#[test]
fn support_says_what_can_be_limited() {
    let support = Cgroup::support().unwrap();
    if common::is_root() && support.usable() {
        for controller in ["memory", "cpu", "pids", "cpuset"] {
            support.controller(controller).unwrap();
        }
    }
    assert!(support.controller("nonsense").unwrap_err().contains("nonsense"));
    assert_eq!(support.hierarchies.is_empty(), support.mode() == Mode::Missing);
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
