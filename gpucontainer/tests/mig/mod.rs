//! A machine in MIG mode whose allocator makes devices for leases, and other processes that lease there.
//!
//! A test program that uses it has `mod common;`, `mod driver;` and `mod mig;`, and a test called `other_process`.

#![allow(dead_code, reason = "every test binary uses a part of this")]
#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

use crate::driver::{self, FakeDriver};
use gpucontainer::gpu::{DriverRoot, GpuAllocator, GpuLease, Wait};
use gpucontainer::{ErrorKind, GpuRequest};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What tells the other process its driver root, the slots, and what to do.
pub(crate) const ROOT: &str = "GPUC_TEST_DRIVER";
pub(crate) const TABLE: &str = "GPUC_TEST_TABLE";
pub(crate) const ROLE: &str = "GPUC_TEST_ROLE";

/// A split machine, and an allocator of its own.
pub(crate) struct Machine {
    pub(crate) driver: FakeDriver,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) allocator: GpuAllocator,
}

impl Machine {
    pub(crate) fn new(profile: Value) -> Self {
        let driver = FakeDriver::with_profile(profile);
        let directory = tempfile::Builder::new().prefix("gpuc-table.").tempdir_in("/dev/shm").unwrap();
        let allocator = allocator(&directory.path().join("gpu"), driver.path());
        Self { driver, directory, allocator }
    }

    pub(crate) fn now(&self, request: &GpuRequest) -> gpucontainer::Result<GpuLease> {
        self.allocator.acquire(request, Wait::none())
    }

    #[track_caller]
    pub(crate) fn refusal(&self, request: &GpuRequest) -> String {
        let error = self.now(request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GpuUnavailable, "{error}");
        error.to_string()
    }

    /// Kind and start of each instance of a GPU, as the driver has them.
    pub(crate) fn instances(&self, gpu: usize) -> Vec<(u64, u64)> {
        let state = self.driver.state();
        let list = state["gpus"][gpu]["mig"]["gpu_instances"].as_array().cloned().unwrap_or_default();
        list.iter().map(|one| (one["profile"].as_u64().unwrap(), one["start"].as_u64().unwrap())).collect()
    }

    /// The MIG devices of all GPUs.
    pub(crate) fn devices(&self) -> Vec<String> {
        let state = self.driver.state();
        let of = |gpu: &Value| gpu["mig"]["devices"].as_array().cloned().unwrap_or_default();
        let all = state["gpus"].as_array().unwrap().iter().flat_map(of);
        all.map(|device| device["uuid"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.directory.path().join("gpu.mig")
    }

    pub(crate) fn written(&self) -> usize {
        let Ok(files) = std::fs::read_dir(self.journal()) else { return 0 };
        files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|e| e == "claim")).count()
    }

    #[track_caller]
    pub(crate) fn is_as_before(&self) {
        assert_eq!((0..2).flat_map(|gpu| self.instances(gpu)).collect::<Vec<_>>(), []);
        assert_eq!(self.devices(), [""; 0]);
        assert_eq!(self.written(), 0);
        assert_eq!(driver::slots(&self.allocator), [""; 0]);
    }

    /// This test program again, as another user of the machine.
    pub(crate) fn other(&self, role: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "other_process", "--ignored", "--nocapture"]);
        command.env(ROOT, self.driver.path()).env(TABLE, self.allocator.path()).env(ROLE, role);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    }
}

pub(crate) fn allocator(table: &Path, driver: &Path) -> GpuAllocator {
    GpuAllocator::at(table).unwrap().driver_root(DriverRoot::new(driver)).respect_outer(false)
}

/// In the other process: the allocator of the test that started it.
pub(crate) fn allocator_of_parent() -> GpuAllocator {
    let path = |name| PathBuf::from(std::env::var_os(name).unwrap());
    allocator(&path(TABLE), &path(ROOT))
}

/// Kills and waits for a process when the test ends, however it does.
pub(crate) struct Part(pub(crate) Child);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
