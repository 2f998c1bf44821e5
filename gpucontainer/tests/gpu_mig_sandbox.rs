//! Sandboxes for which MIG devices are made, and whose starters are killed.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
mod fixture;

use common::{Leaks, until};
use driver::{FakeDriver, split_a100};
use fixture::{Fixture, role, say};
use gpucontainer::gpu::{DriverRoot, GpuAllocator, Wait};
use gpucontainer::sandbox::{SandboxBuilder, Stdio};
use gpucontainer::{ErrorKind, GpuRequest, Sandbox};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

const TABLE: &str = "GPUC_TEST_TABLE";
const DRIVER: &str = "GPUC_TEST_DRIVER";
const SOON: Duration = Duration::from_secs(60);

fn half() -> GpuRequest {
    GpuRequest::count(1).mig_profile("3g.20gb")
}

/// A machine with one GPU in MIG mode, an account of its own, and an image.
struct Host {
    driver: FakeDriver,
    table: tempfile::TempDir,
    allocator: GpuAllocator,
    fixture: Fixture,
}

impl Host {
    fn new() -> Self {
        let driver = FakeDriver::with_profile(split_a100(1));
        let table = tempfile::Builder::new().prefix("gpuc-table.").tempdir_in("/dev/shm").unwrap();
        let allocator = GpuAllocator::at(table.path().join("gpu")).unwrap();
        let allocator = allocator.driver_root(DriverRoot::new(driver.path())).respect_outer(false);
        Self { driver, table, allocator, fixture: Fixture::new() }
    }

    /// A sandbox that waits for its standard input to end.
    fn sandbox(&self) -> SandboxBuilder {
        let builder = self.fixture.shell("while read -r line; do :; done").stdin(Stdio::Piped).stdout(Stdio::Null);
        builder.stderr(Stdio::Null).driver_root(DriverRoot::new(self.driver.path())).gpu_allocator(&self.allocator)
    }

    /// The MIG devices of the split GPU, as the driver has them.
    fn devices(&self) -> Vec<String> {
        let state = self.driver.state();
        let devices = state["gpus"][0]["mig"]["devices"].as_array().cloned().unwrap_or_default();
        devices.iter().map(|device| device["uuid"].as_str().unwrap().to_owned()).collect()
    }

    #[track_caller]
    fn is_as_before(&self) {
        assert_eq!(self.devices(), [""; 0]);
        assert_eq!(self.driver.state()["gpus"][0]["mig"]["gpu_instances"].as_array().unwrap().len(), 0);
        let left = std::fs::read_dir(self.table.path().join("gpu.mig")).unwrap();
        assert_eq!(left.map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>(), ["lock"]);
        assert_eq!(driver::slots(&self.allocator), [""; 0]);
    }

    fn start(&self, role: &str) -> (Child, String) {
        let mut command = self.fixture.apart(role);
        command.env(TABLE, self.allocator.path()).env(DRIVER, self.driver.path());
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let pid = lines.filter_map(|line| line.strip_prefix("runs ").map(str::to_owned)).next();
        (child, pid.expect("the other process ended before it had a sandbox"))
    }
}

/// What a shell inside says.
fn ask(sandbox: &Sandbox, script: &str) -> String {
    let process = sandbox.exec(["/bin/sh", "-c", script]).stdin(Stdio::Null).stdout(Stdio::Piped).stderr(Stdio::Piped);
    let output = process.spawn().unwrap().communicate(b"", Some(SOON)).unwrap();
    [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat()
}

fn possible() -> bool {
    driver::available() && common::tier("root") && common::tools("root", &["busybox"])
}

#[test]
#[ignore = "the other process of a test"]
fn other_process() {
    let path = |name| PathBuf::from(std::env::var_os(name).unwrap());
    let root = DriverRoot::new(path(DRIVER));
    let allocator = GpuAllocator::at(path(TABLE)).unwrap().driver_root(root.clone()).respect_outer(false);
    let builder = Fixture::of_parent().shell("sleep 300").driver_root(root).stdout(Stdio::Null).stderr(Stdio::Null);
    let sandbox = builder.gpus(half()).gpu_allocator(&allocator).spawn().unwrap();
    if role().as_deref() == Some("detached") {
        let pid = sandbox.pid();
        sandbox.detach().unwrap();
        say(&format!("runs {pid}"));
        return;
    }
    say(&format!("runs {}", sandbox.pid()));
    std::thread::sleep(SOON);
}

#[test]
fn a_sandbox_gets_devices_that_are_made_for_it_and_go_with_it() {
    if !possible() {
        return;
    }
    let leaks = Leaks::watch();
    let host = Host::new();
    // What is not there yet cannot be shown, and nothing is made for a look.
    let error = host.sandbox().gpus(half()).plan().unwrap_err();
    assert!(error.to_string().contains("MIG devices are made by a lease"), "{error}");
    let first = host.sandbox().gpus(half()).spawn().unwrap();
    assert_eq!((first.gpus(), first.gpu_lease().unwrap().gpus().to_vec()), (host.devices(), host.devices()));
    let nodes = |sandbox: &Sandbox| ask(sandbox, "ls /dev/nvidia-caps");
    assert_eq!(nodes(&first).lines().count(), 2, "those of its instances: {}", nodes(&first));
    let second = host.sandbox().gpus(half()).spawn().unwrap();
    assert_eq!(host.devices().len(), 2);
    assert_ne!(nodes(&first), nodes(&second));
    let full = host.sandbox().gpus(half()).spawn().unwrap_err();
    assert!(full.to_string().contains("has no room beside 3g.20gb at 0, 3g.20gb at 4"), "{full}");
    // One waits, and finds its device although it was made long after it had looked at the host.
    std::thread::scope(|scope| {
        let third = scope.spawn(|| host.sandbox().gpus(half()).gpu_wait(Wait::at_most(SOON)).spawn().unwrap());
        until("it waits", SOON, || host.allocator.status().unwrap().waiting.len() == 1);
        let freed = nodes(&first);
        first.close().unwrap();
        let third = third.join().unwrap();
        assert_eq!(nodes(&third), freed, "it is at the same place");
        third.close().unwrap();
    });
    drop(second);
    host.is_as_before();
    let error = host.sandbox().gpus(half()).command(["/no/such/program"]).spawn().unwrap_err();
    assert_ne!(error.kind(), ErrorKind::GpuUnavailable, "{error}");
    host.is_as_before();
    drop(host);
    leaks.check();
}

#[test]
fn what_was_made_can_be_attached() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let sandbox = host.sandbox().spawn().unwrap();
    let lease = host.allocator.acquire(&half(), Wait::none()).unwrap();
    let grant = sandbox.attach_lease(&lease).unwrap();
    assert_eq!(sandbox.gpus(), lease.gpus());
    assert_eq!(ask(&sandbox, "ls /dev/nvidia-caps").lines().count(), 2);
    sandbox.detach_gpus(&grant, false).unwrap();
    lease.release().unwrap();
    sandbox.close().unwrap();
    host.is_as_before();
}

#[test]
fn devices_live_as_long_as_the_sandbox_whatever_happens_to_its_starter() {
    if !possible() {
        return;
    }
    let host = Host::new();
    let (mut starter, pid) = host.start("killed");
    drop(host.allocator.status().unwrap());
    assert_eq!(host.devices().len(), 1);
    starter.kill().unwrap();
    starter.wait().unwrap();
    // The lease ends with the supervisor, which ends as soon as it sees that.
    let gone = || host.allocator.status().unwrap().leases.is_empty() && host.devices().is_empty();
    until("the device of the dead is gone", SOON, gone);
    assert!(!PathBuf::from(format!("/proc/{pid}/root")).join("bin").exists());
    // The slot of the dead is collected by the next lease.
    drop(host.allocator.acquire(&half(), Wait::none()).unwrap());
    host.is_as_before();

    let (mut starter, pid) = host.start("detached");
    starter.wait().unwrap();
    drop(host.allocator.status().unwrap());
    assert_eq!(host.devices().len(), 1, "the container has it still");
    let other = host.allocator.acquire(&half(), Wait::none()).unwrap();
    assert_eq!(host.devices().len(), 2);
    other.release().unwrap();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    until("the device is gone with the container", SOON, gone);
    drop(host.allocator.acquire(&half(), Wait::none()).unwrap());
    host.is_as_before();
    gpucontainer::sandbox::collect_abandoned(&host.fixture.store).unwrap();
}
