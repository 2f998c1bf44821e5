//! A machine whose account of leases is attacked or has accidents, and other processes that lease there.
//!
//! A test program that uses it has `mod account;`, `mod common;`, `mod driver;` and `mod fixture;`, and a test called
//! `other_process`.

#![allow(dead_code, reason = "every test binary uses a part of this")]
#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

use crate::driver::{self, FakeDriver};
use gpucontainer::gpu::{DriverRoot, GpuAllocator, GpuLease, GpuTicket, Wait};
use gpucontainer::{GpuRequest, Result};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) const SOON: Duration = Duration::from_secs(30);
/// Where the other process finds its allocator's directory, and the host's driver.
pub(crate) const TABLE: &str = "GPUC_TEST_TABLE";
pub(crate) const DRIVER: &str = "GPUC_TEST_DRIVER";

/// A machine, and an account that every user may use.
pub(crate) struct Host {
    pub(crate) driver: FakeDriver,
    pub(crate) table: tempfile::TempDir,
    pub(crate) allocator: GpuAllocator,
}

impl Host {
    pub(crate) fn new(name: &str) -> Self {
        Self::of(FakeDriver::new(name))
    }

    pub(crate) fn of(driver: FakeDriver) -> Self {
        let table = tempfile::Builder::new().prefix("gpuc-table.").tempdir_in("/dev/shm").unwrap();
        std::fs::set_permissions(table.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let allocator = allocator(&table.path().join("gpu"), driver.path());
        Self { driver, table, allocator }
    }

    /// A machine with two GPUs that nobody uses.
    pub(crate) fn pair() -> Self {
        let mut profile = driver::profile("l40s-pair");
        for gpu in profile["gpus"].as_array_mut().unwrap() {
            gpu.as_object_mut().unwrap().retain(|key, _| !key.contains("processes"));
        }
        Self::of(FakeDriver::with_profile(profile))
    }

    pub(crate) fn now(&self, count: u32) -> Result<GpuLease> {
        self.allocator.acquire(&GpuRequest::count(count), Wait::none())
    }

    pub(crate) fn there(&self, name: &str) -> PathBuf {
        self.allocator.path().join(name)
    }

    pub(crate) fn slot(&self, lease: &GpuLease) -> PathBuf {
        self.there(&format!("lease-{}", lease.id()))
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.allocator.path()).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Leaves the slot of a lease as a crash does: the file stays, and nobody holds it.
    pub(crate) fn crash(&self, lease: GpuLease, name: &str) {
        let slot = self.slot(&lease);
        let text = std::fs::read(&slot).unwrap();
        drop(lease);
        std::fs::remove_file(slot).unwrap();
        std::fs::write(self.there(name), text).unwrap();
    }

    /// This test program again, which will do as `role` says, below another program if one is given.
    pub(crate) fn start(&self, role: &str, below: &[&str], environment: &[(&str, &Path)]) -> Other {
        let program = std::env::current_exe().unwrap();
        let mut words = below.iter().map(|word| std::ffi::OsString::from(*word)).chain([program.into_os_string()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(["--exact", "other_process", "--ignored", "--nocapture"]);
        command.env("RUST_TEST_THREADS", "2").env("GPUC_TEST_ROLE", role).envs(environment.iter().copied());
        self.spawn(command)
    }

    /// Another program, told of the machine and the account.
    pub(crate) fn spawn(&self, mut command: Command) -> Other {
        command.env(TABLE, self.allocator.path()).env(DRIVER, self.driver.path());
        Other::start(command)
    }
}

pub(crate) fn allocator(table: &Path, driver: &Path) -> GpuAllocator {
    GpuAllocator::at(table).unwrap().driver_root(DriverRoot::new(driver)).respect_outer(false)
}

/// In the other process: the allocator of the test that started it.
pub(crate) fn allocator_of_parent() -> GpuAllocator {
    let path = |name| PathBuf::from(std::env::var_os(name).unwrap());
    allocator(&path(TABLE), &path(DRIVER))
}

/// The text of a slot: its check sum is anybody's to compute.
pub(crate) fn sealed(body: &str) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    format!("{:016x}\n{body}\n", body.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

/// Another process, killed when dropped.
pub(crate) struct Other {
    pub(crate) child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Other {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The rest of the line that begins with the word.
    pub(crate) fn said(&mut self, word: &str) -> String {
        let mut lines = self.lines.by_ref().map(Result::unwrap);
        let found = lines.find_map(|line| line.strip_prefix(word).map(|rest| rest.trim().to_owned()));
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

/// Whether the ticket's GPUs are there, without much waiting.
pub(crate) fn ready(ticket: &mut GpuTicket) -> Option<GpuLease> {
    ticket.wait(Some(Duration::from_millis(60))).unwrap()
}
