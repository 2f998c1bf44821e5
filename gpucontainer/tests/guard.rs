//! The guard that other tests rely on sees what it must see.

mod common;

use common::Leaks;
use std::process::{Command, Stdio};
use std::time::Duration;

fn complaint(leave: impl FnOnce() + std::panic::UnwindSafe) -> String {
    let panic = std::panic::catch_unwind(|| {
        let leaks = Leaks::watch_for(Duration::from_millis(200));
        leave();
        leaks.check();
    });
    panic.map_or_else(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default(), |()| String::new())
}

#[test]
fn a_clean_test_passes() {
    let leaks = Leaks::watch();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), "text").unwrap();
    drop(directory);
    assert!(Command::new("true").status().unwrap().success());
    leaks.check();
}

#[test]
fn an_open_file_is_seen() {
    let mut kept = None;
    let kept = std::panic::AssertUnwindSafe(&mut kept);
    let words = complaint(move || {
        let kept = kept;
        *kept.0 = Some(std::fs::File::open("/proc/self/status").unwrap());
    });
    assert!(words.contains("/status"), "{words:?}");
}

#[test]
fn a_process_that_was_not_waited_for_is_seen() {
    let mut kept = None;
    let slot = std::panic::AssertUnwindSafe(&mut kept);
    let words = complaint(move || {
        let slot = slot;
        *slot.0 = Some(Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap());
    });
    let mut child = kept.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(words.contains("child ") && words.contains("sleep"), "{words:?}");
}

#[test]
fn a_directory_with_our_name_is_seen() {
    let path = std::env::temp_dir().join(format!("gpuc-guard-{}", std::process::id()));
    let words = complaint(|| std::fs::create_dir(&path).unwrap());
    std::fs::remove_dir(&path).unwrap();
    assert!(words.contains("gpuc-guard"), "{words:?}");
}
