//! A thousand starts leave the process as it was: its memory, descriptors, threads and children.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod fixture;

use common::Leaks;
use fixture::Fixture;
use std::time::Duration;

const STARTS: usize = 1000;
/// What the first starts allocate once.
const WARM_UP: usize = 100;
/// Kibibytes by which the process may grow in half of the starts: a byte a start would be one, a page two thousand.
const GROWTH: u64 = 512;

#[derive(Debug)]
struct Size {
    private: u64,
    descriptors: usize,
    threads: usize,
}

fn size() -> Size {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
    let count = |path: &str| std::fs::read_dir(path).unwrap().count();
    Size {
        private: line.trim().trim_end_matches(" kB").parse().unwrap(),
        descriptors: count("/proc/self/fd"),
        threads: count("/proc/self/task"),
    }
}

#[test]
fn a_thousand_starts_leave_nothing_in_the_process() {
    if !common::tools("leaks", &["busybox"]) || (!common::is_root() && !common::tier("rootless")) {
        return;
    }
    let fixture = Fixture::new();
    let start = |number: usize| {
        // All that a start makes: streams, a port, and every so often a further process.
        let sandbox = fixture.shell("cat").stdin(gpucontainer::sandbox::Stdio::Piped).publish(80, 0).spawn().unwrap();
        if number.is_multiple_of(10) {
            let process = sandbox.exec(["/bin/busybox", "true"]).spawn().unwrap();
            assert!(process.wait().unwrap().success());
        }
        let output = sandbox.communicate(b"x", Some(Duration::from_secs(60))).unwrap();
        assert_eq!(output.stdout, b"x");
    };
    (0..WARM_UP).for_each(start);
    let leaks = Leaks::watch();
    (0..STARTS / 2).for_each(start);
    let half = size();
    (0..STARTS / 2).for_each(start);
    let whole = size();
    assert_eq!(whole.descriptors, half.descriptors, "{half:?} {whole:?}");
    assert_eq!(whole.threads, half.threads, "{half:?} {whole:?}");
    assert!(whole.private <= half.private + GROWTH, "KiB: {half:?} {whole:?}");
    leaks.check();
}
