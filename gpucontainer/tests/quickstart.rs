//! The example that a newcomer runs first, as it is run: another program, by root or an ordinary user.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;

use driver::FakeDriver;
use gpucontainer::{Host, ImageStore};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The example, where Cargo put it, or beside this program if that was copied to another place.
fn quickstart() -> Option<Command> {
    let test = std::env::current_exe().unwrap();
    let beside = test.with_file_name("quickstart");
    let built = test.parent().unwrap().with_file_name("examples").join("quickstart");
    let program = [beside, built].into_iter().find(|path| path.is_file());
    if program.is_none() {
        common::skip("quickstart", "the example quickstart was not built");
    }
    program.map(Command::new)
}

/// Whether a sandbox can be started and the example's image built here.
fn possible() -> bool {
    let tier = if common::is_root() { "root" } else { "rootless" };
    common::tier(tier) && common::tools("quickstart", &["ldd"])
}

/// Runs it with a directory for its temporary files, which it must leave empty.
fn run(command: &mut Command) -> (String, String) {
    let temporary = tempfile::tempdir().unwrap();
    let output = command.env("TMPDIR", temporary.path()).stdin(Stdio::null()).output().unwrap();
    let left: Vec<PathBuf> = temporary.path().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{:?}\n{out}{err}", output.status);
    assert!(left.is_empty(), "{left:?}");
    (out, err)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What must be in the output of a demonstration: all pages, and a timeline that makes sense.
fn check(out: &str) {
    for number in 1..=3 {
        let page = format!("instance {number}, process ");
        let line = out.lines().find(|line| line.contains(&page)).unwrap_or_else(|| panic!("{out}"));
        assert!(line.starts_with("http://127.0.0.1:"), "{line}");
    }
    let row = |name: &str| -> Vec<f64> {
        let line = out.lines().find(|line| line.trim_start().starts_with(name));
        let words = line.unwrap_or_else(|| panic!("no {name} in {out}")).trim_start().strip_prefix(name).unwrap();
        words.split_whitespace().map(|word| word.parse().unwrap()).collect()
    };
    for name in ["prepare", "ports", "all of start", "page", "clean-up"] {
        assert_eq!(row(name).len(), 3, "{name} of {out}");
    }
    for (sum, part) in row("all of start").into_iter().zip(row("prepare")) {
        assert!(sum > part, "{out}");
    }
    assert!(out.ends_with("Nothing is left behind.\n"), "{out}");
}

#[test]
fn several_instances_serve_a_page_each() {
    let Some(mut command) = quickstart().filter(|_| possible()) else { return };
    let _leaks = common::Leaks::watch();
    let (out, err) = run(&mut command);
    check(&out);
    assert_eq!(err, "");
    assert!(out.contains(if common::is_root() { ", as root\n" } else { ", as an ordinary user\n" }), "{out}");
    // With limits where they are possible, and the reason where not.
    let limits = out.lines().find(|line| line.starts_with("limits ")).unwrap();
    let host = Host::probe();
    let detail = &host.capability("cgroup-limits").unwrap().detail;
    for (controller, words) in [("memory", "256 MiB of memory"), ("cpu", "1.5 processors"), ("pids", "64 processes")] {
        let there = host.has("cgroup-limits") && detail.split("; not ").next().unwrap().contains(controller);
        assert_eq!(limits.contains(words), there, "{limits} ({detail})");
        let named = limits.split_once("none of ").is_some_and(|(_, rest)| rest.contains(controller));
        assert_eq!(named, !there, "{limits}");
    }
    if let Some(reason) = host.gpus().unavailable() {
        assert!(out.contains(&format!("none: {reason}\n")), "{out}");
    }
}

#[test]
fn a_machine_without_python_serves_pages_too() {
    let Some(mut command) = quickstart().filter(|_| possible()) else { return };
    let _leaks = common::Leaks::watch();
    let tools = tempfile::tempdir().unwrap();
    symlink(common::which("ldd").unwrap(), tools.path().join("ldd")).unwrap();
    let program = Path::new(command.get_program()).display().to_string();
    let (out, _) = run(command.env("PATH", tools.path()));
    check(&out);
    assert!(out.contains(&format!("and {program}")), "{out}");
}

#[test]
fn each_instance_gets_a_gpu_while_there_are_some() {
    if !driver::available() || !common::tier("root") || !possible() {
        return;
    }
    let Some(mut command) = quickstart() else { return };
    let _leaks = common::Leaks::watch();
    let host = FakeDriver::new("l40s-pair");
    let (out, _) = run(command.env("GPUCONTAINER_DRIVER_ROOT", host.path()));
    check(&out);
    let gpus = |number: usize| {
        let page = format!("instance {number}, process ");
        out.lines().find(|line| line.contains(&page)).unwrap().split_once("GPUs: ").unwrap().1.to_owned()
    };
    let nodes: Vec<String> = host.gpus().iter().map(|gpu| format!("/dev/nvidia{}", gpu["minor"])).collect();
    assert_eq!([gpus(1), gpus(2), gpus(3)], [nodes[0].clone(), nodes[1].clone(), "none".to_owned()]);
}

#[test]
fn an_image_is_run_and_its_exit_code_handed_on() {
    let Some(program) = quickstart().filter(|_| possible()) else { return };
    if !common::tools("quickstart", &["busybox"]) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let directory = tempfile::tempdir().unwrap();
    let store = ImageStore::open(directory.path().join("store")).unwrap();
    store
        .build()
        .copy(common::which("busybox").unwrap(), "/bin/sh")
        .command(["sh", "-c", "read -r line; echo \"image got $line\"; exit 7"])
        .commit("local/quick:1")
        .unwrap();
    let run = |arguments: &[&str]| -> Output {
        let input = directory.path().join("input");
        std::fs::write(&input, "a line\n").unwrap();
        let mut command = Command::new(program.get_program());
        command.args(arguments).env("GPUCONTAINER_STORE", store.path());
        command.stdin(std::fs::File::open(input).unwrap()).output().unwrap()
    };
    let output = run(&["local/quick:1"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(7), "image got a line\n".to_owned()));
    let output = run(&["local/quick:1", "sh", "-c", "echo \"$0\"; kill -9 $$", "word"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(128 + 9), "word\n".to_owned()));
    let output = run(&["local/quick:1", "no-such-program"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no-such-program"), "{}", text(&output.stderr));
    // Nobody listens on port 1: pulling is tried, and fails with the address.
    let output = run(&["127.0.0.1:1/nobody/nothing:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("127.0.0.1:1"), "{}", text(&output.stderr));
}
