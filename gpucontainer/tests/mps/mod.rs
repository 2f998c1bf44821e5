//! A machine whose driver has the Multi-Process Service, and what of its daemons there is.
//!
//! A test program that uses it has `mod common;`, `mod driver;`, `mod fixture;` and `mod mps;`.

#![allow(dead_code, reason = "every test binary uses a part of this")]
#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

use crate::common::{self, until};
use crate::driver::{self, FakeDriver};
use crate::fixture::Fixture;
use gpucontainer::gpu::{DriverRoot, GpuAllocator, GpuLease, Mps, MpsGroup, Wait};
use gpucontainer::{GpuRequest, Result};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where the other process finds its allocator's directory, and the host's driver.
pub(crate) const TABLE: &str = "GPUC_TEST_TABLE";

pub(crate) const DRIVER: &str = "GPUC_TEST_DRIVER";

pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn one() -> GpuRequest {
    GpuRequest::count(1)
}

pub(crate) fn half() -> Mps {
    Mps::new().active_threads(50).device_memory(3 << 30)
}

/// A machine whose driver has MPS, and an account of its own.
pub(crate) struct Host {
    pub(crate) driver: FakeDriver,
    _table: tempfile::TempDir,
    pub(crate) allocator: GpuAllocator,
    _alone: MutexGuard<'static, ()>,
}

/// One host at a time in a process: their directories in `/dev/shm` look alike.
static ALONE: Mutex<()> = Mutex::new(());

impl Host {
    pub(crate) fn new(machine: &str) -> Self {
        Self::with(FakeDriver::new(machine))
    }

    pub(crate) fn with(driver: FakeDriver) -> Self {
        driver.multi_process_service();
        let table = tempfile::Builder::new().prefix("gpuc-mps.").tempdir_in("/dev/shm").unwrap();
        std::fs::set_permissions(table.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let allocator = allocator(&table.path().join("gpu"), driver.path());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { driver, _table: table, allocator, _alone: alone }
    }

    /// This test program again, which will do as its role says.
    pub(crate) fn spawn(&self, mut command: Command) -> Other {
        command.env(TABLE, self.allocator.path()).env(DRIVER, self.driver.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Other { child, lines }
    }

    pub(crate) fn start(&self, role: &str) -> Other {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "other_process", "--ignored", "--nocapture"]);
        self.spawn({
            command.env("RUST_TEST_THREADS", "2").env("GPUC_TEST_ROLE", role);
            command
        })
    }

    pub(crate) fn acquire(&self, request: &GpuRequest) -> Result<GpuLease> {
        self.allocator.acquire(request, Wait::none())
    }

    /// What the daemon of the group answers.
    pub(crate) fn ask(&self, group: &MpsGroup, commands: &str) -> String {
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
    pub(crate) fn processes(&self) -> BTreeMap<u32, String> {
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
    pub(crate) fn daemons(&self) -> Vec<u32> {
        let processes = self.processes().into_iter();
        processes.filter(|(_, name)| name == "nvidia-cuda-mps").map(|(pid, _)| pid).collect()
    }

    /// Nothing of any daemon is left once somebody has opened the allocator; dead leases may be.
    #[track_caller]
    pub(crate) fn check_collected(&self, what: &str) {
        let groups = self.allocator.path().join(format!("mps-{}", own_user()));
        // The kernel frees locks a moment after it has closed the files of a process that was killed.
        until(what, SOON, || {
            drop(allocator(self.allocator.path(), self.driver.path()));
            !groups.exists() && shared_memory().is_empty()
        });
    }

    #[track_caller]
    pub(crate) fn check_clean(&self, what: &str) {
        let rest = (driver::slots(&self.allocator), self.processes(), shared_memory());
        assert!(rest.0.is_empty() && rest.1.is_empty() && rest.2.is_empty(), "{what}: left {rest:?}");
    }
}

pub(crate) fn own_user() -> u32 {
    std::fs::metadata("/proc/self").unwrap().uid()
}

pub(crate) fn allocator(table: &Path, driver: &Path) -> GpuAllocator {
    GpuAllocator::at(table).unwrap().driver_root(DriverRoot::new(driver)).respect_outer(false)
}

/// Another process, killed when dropped.
pub(crate) struct Other {
    pub(crate) child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Other {
    /// The number after the word.
    pub(crate) fn said(&mut self, word: &str) -> u32 {
        let mut lines = self.lines.by_ref().map(std::result::Result::unwrap);
        let found = lines.find_map(|line| line.strip_prefix(word).map(|rest| rest.trim().parse().unwrap()));
        found.unwrap_or_else(|| panic!("the other process ended before it said {word:?}"))
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The directories of groups in `/dev/shm` that belong to this user.
pub(crate) fn shared_memory() -> Vec<PathBuf> {
    let own = own_user();
    let names = std::fs::read_dir("/dev/shm").unwrap().flatten();
    names
        .filter(|entry| entry.metadata().is_ok_and(|data| data.uid() == own))
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("gpucontainer-mps-"))
        .map(|entry| entry.path())
        .collect()
}

pub(crate) fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
}

/// The parent of a process, who is the keeper of a daemon.
pub(crate) fn parent(process: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap()
}

pub(crate) fn kill(pid: u32, signal: &str) {
    assert!(Command::new("kill").arg(signal).arg(pid.to_string()).status().unwrap().success());
}

pub(crate) fn possible() -> bool {
    driver::available() && common::tier(if common::is_root() { "root" } else { "rootless" })
}

/// The image of a sandbox, with a program that asks for a server as one of CUDA does.
pub(crate) fn image() -> Fixture {
    let client = driver::compile_program("mps", include_str!("../driver/mps.c"));
    Fixture::with(|builder| builder.copy(client, "/bin/client").symlink("busybox", "/bin/env"))
}

pub(crate) fn possible_in_containers() -> bool {
    driver::available() && common::tier("root") && common::tools("root", &["busybox"])
}
