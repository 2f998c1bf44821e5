//! MPS daemons of leases: one for each group, as long as its leases live, however those and its keeper end.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;

use common::{Ordinary, until};
use driver::FakeDriver;
use gpucontainer::gpu::{DriverRoot, GpuAllocator, GpuLease, Mps, MpsGroup, Sharing, Vendor, Wait};
use gpucontainer::{ErrorKind, GpuRequest, Result};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

fn one() -> GpuRequest {
    GpuRequest::count(1)
}

fn half() -> Mps {
    Mps::new().active_threads(50).device_memory(3 << 30)
}

/// A machine whose driver has MPS, and an account of its own.
struct Host {
    driver: FakeDriver,
    table: tempfile::TempDir,
    allocator: GpuAllocator,
}

impl Host {
    fn new(machine: &str) -> Self {
        Self::with(FakeDriver::new(machine))
    }

    fn with(driver: FakeDriver) -> Self {
        driver.multi_process_service();
        let table = tempfile::Builder::new().prefix("gpuc-mps.").tempdir_in("/dev/shm").unwrap();
        std::fs::set_permissions(table.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let allocator = GpuAllocator::at(table.path().join("gpu")).unwrap();
        let allocator = allocator.driver_root(DriverRoot::new(driver.path())).respect_outer(false);
        Self { driver, table, allocator }
    }

    fn acquire(&self, request: &GpuRequest) -> Result<GpuLease> {
        self.allocator.acquire(request, Wait::none())
    }

    /// What the daemon of the group answers.
    fn ask(&self, group: &MpsGroup, commands: &str) -> String {
        let mut command = Command::new(self.driver.path().join("usr/bin/nvidia-cuda-mps-control"));
        command.env_clear().env("CUDA_MPS_PIPE_DIRECTORY", &group.pipe_directory);
        let mut interface = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        interface.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
        let output = interface.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().replace('\n', " ")
    }

    /// The daemons and servers of this account, by identifier, and for root their keepers: all that have something of
    /// a group open.
    fn processes(&self) -> BTreeMap<u32, String> {
        let mut found = BTreeMap::new();
        let groups = self.allocator.path().join(format!("mps-{}", own_user()));
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let files = std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
            let mut leads = files.filter_map(|file| std::fs::read_link(file.path()).ok());
            if pid != std::process::id() && leads.any(|path| path.starts_with(&groups)) {
                let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                found.insert(pid, name.trim().to_owned());
            }
        }
        found
    }

    /// Of these, the daemons and servers.
    fn daemons(&self) -> Vec<u32> {
        let processes = self.processes().into_iter();
        processes.filter(|(_, name)| name == "nvidia-cuda-mps").map(|(pid, _)| pid).collect()
    }

    /// Nothing of any daemon is there, and no lease.
    fn is_clean(&self) -> bool {
        std::fs::read_dir(self.allocator.path()).unwrap().next().is_none()
            && self.processes().is_empty()
            && shared_memory().is_empty()
    }

    #[track_caller]
    fn check_clean(&self, what: &str) {
        let files: Vec<_> = std::fs::read_dir(self.allocator.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        let rest = (files, self.processes(), shared_memory());
        assert!(rest.0.is_empty() && rest.1.is_empty() && rest.2.is_empty(), "{what}: left {rest:?}");
    }
}

fn own_user() -> u32 {
    std::fs::metadata("/proc/self").unwrap().uid()
}

/// The directories of groups in `/dev/shm` that belong to this user.
fn shared_memory() -> Vec<String> {
    let own = own_user();
    let names = std::fs::read_dir("/dev/shm").unwrap().flatten();
    names
        .filter(|entry| entry.metadata().is_ok_and(|data| data.uid() == own))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("gpucontainer-mps-"))
        .collect()
}

fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
}

/// The process that keeps a daemon: its parent.
fn keeper(daemon: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{daemon}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn kill(pid: u32, signal: &str) {
    assert!(Command::new("kill").arg(signal).arg(pid.to_string()).status().unwrap().success());
}

#[test]
fn a_lease_has_a_daemon_of_its_own_that_ends_with_it() {
    if !possible() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("dgx-1");
    let start = Instant::now();
    let lease = host.acquire(&GpuRequest::count(2).mps(half())).unwrap();
    eprintln!("with its daemon: {:?}", start.elapsed());
    let group = lease.mps().unwrap().unwrap();
    assert!(group.running && group.id == lease.id() && group.leases == [lease.id()], "{group:?}");
    assert_eq!((group.active_threads, group.device_memory), (Some(50), Some(3 << 30)));
    assert_eq!(group.gpus, lease.gpus());
    assert_eq!(std::fs::read_to_string(format!("/proc/{}/comm", group.pid)).unwrap(), "nvidia-cuda-mps\n");
    // It knows the limits, and nothing of this process's environment.
    let answers = host.ask(&group, "get_default_active_thread_percentage\nget_default_device_pinned_mem_limit 1\n");
    assert_eq!(answers, "50.0 3072M");
    let environment = std::fs::read(format!("/proc/{}/environ", group.pid)).unwrap();
    let environment: BTreeMap<String, String> = environment
        .split(|byte| *byte == 0)
        .filter_map(|entry| Some(std::str::from_utf8(entry).unwrap().split_once('=')?))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let names: Vec<&str> = environment.keys().map(String::as_str).collect();
    let expected = [
        "CUDA_DEVICE_ORDER",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
        "CUDA_MPS_LOG_DIRECTORY",
        "CUDA_MPS_PIPE_DIRECTORY",
        "CUDA_VISIBLE_DEVICES",
        "LD_LIBRARY_PATH",
        "PATH",
    ];
    assert_eq!(names, expected);
    assert_eq!(environment["CUDA_VISIBLE_DEVICES"], lease.gpus().join(","));
    let library = group.pipe_directory.with_file_name("lib").join("libcuda.so.1");
    assert!(library.canonicalize().unwrap().starts_with(host.driver.path().canonicalize().unwrap()));
    // The status tells of it.
    let status = host.allocator.status().unwrap();
    assert_eq!(status.leases[0].mps(&status).map(|group| (&group.id, group.pid)), Some((&group.id, group.pid)));
    assert!(status.to_string().contains(&format!("MPS daemon {}", group.pid)), "{status}");
    // Servers are the daemon's, and die with it whatever they do about signals.
    host.ask(&group, &format!("start_server -uid {}\n", own_user()));
    until("a server runs", SOON, || host.daemons().len() == 2);
    let start = Instant::now();
    lease.release().unwrap();
    eprintln!("released with its daemon: {:?}", start.elapsed());
    host.check_clean("after the release");
}

fn possible() -> bool {
    driver::available() && common::tier(if common::is_root() { "root" } else { "rootless" })
}
