//! MIG devices made, reused and destroyed on machines that a stand-in for NVML describes, and makers that are killed.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;

use common::Leaks;
use driver::{FakeDriver, mig_profiles, profile, split_a100};
use gpucontainer::ErrorKind;
use gpucontainer::gpu::{DriverRoot, GpuRequest, ImageFacts, Inventory, MigDevices, MigModeChange, grant};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What tells the other process its driver root and its directory of leases.
const ROOT: &str = "GPUC_TEST_DRIVER";
const DIRECTORY: &str = "GPUC_TEST_LEASES";
/// Whether it holds its device until it is killed.
const HOLD: &str = "GPUC_TEST_HOLD";

/// A split machine, and where leases on it are written down.
struct Machine {
    driver: FakeDriver,
    leases: tempfile::TempDir,
}

impl Machine {
    fn new(profile: Value) -> Self {
        Self { driver: FakeDriver::with_profile(profile), leases: tempfile::tempdir().unwrap() }
    }

    fn open(&self) -> MigDevices {
        MigDevices::open(&DriverRoot::new(self.driver.path()), self.leases.path()).unwrap()
    }

    /// Kind and start of each instance of a GPU, as the driver has them.
    fn instances(&self, gpu: usize) -> Vec<(u64, u64)> {
        let state = self.driver.state();
        let list = state["gpus"][gpu]["mig"]["gpu_instances"].as_array().cloned().unwrap_or_default();
        list.iter().map(|one| (one["profile"].as_u64().unwrap(), one["start"].as_u64().unwrap())).collect()
    }

    fn devices(&self, gpu: usize) -> usize {
        self.driver.state()["gpus"][gpu]["mig"]["devices"].as_array().map_or(0, Vec::len)
    }

    /// The leases that are written down.
    fn written(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.leases.path()).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "claim")).collect()
    }

    #[track_caller]
    fn is_as_before(&self) {
        assert_eq!((self.instances(0), self.devices(0)), (Vec::new(), 0));
        assert_eq!(self.written(), Vec::<PathBuf>::new());
    }

    /// This test program again, as another user of the machine.
    fn other(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "other_process", "--ignored", "--nocapture"]);
        command.env(ROOT, self.driver.path()).env(DIRECTORY, self.leases.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    }
}

#[test]
#[ignore = "the other process of a test"]
fn other_process() {
    let (root, directory) = (std::env::var_os(ROOT).unwrap(), std::env::var_os(DIRECTORY).unwrap());
    let devices = MigDevices::open(&DriverRoot::new(root), directory).unwrap();
    let lease = devices.acquire("2g.10gb", &[]).unwrap();
    println!("\nacquired {}", lease.uuid());
    if std::env::var_os(HOLD).is_some() {
        // Until the test kills this process.
        loop {
            std::thread::park();
        }
    }
    lease.release().unwrap();
}

/// Waits until the other process says what it acquired.
fn acquired(child: &mut Child) -> String {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut said = lines.filter_map(|line| line.strip_prefix("acquired ").map(str::to_owned));
    said.next().expect("the other process ended before it had a device")
}

#[test]
fn a_device_is_made_where_it_does_least_harm_and_destroyed_with_its_lease() {
    if !driver::available() {
        return;
    }
    let leaks = Leaks::watch();
    let machine = Machine::new(split_a100(2));
    let devices = machine.open();
    let small = devices.acquire("1g.5gb", &[]).unwrap();
    let half = devices.acquire("3g.20gb", &[]).unwrap();
    let whole = devices.acquire("7g.40gb", &[]).unwrap();
    assert!(small.created() && half.created() && whole.created());
    assert_eq!(machine.instances(0), [(19, 6), (9, 0)], "both on the GPU that is broken already");
    assert_eq!(machine.instances(1), [(0, 0)]);
    assert_eq!(small.gpu(), "GPU-a1000000-0000-4000-8000-000000000000");
    assert_eq!(small.device().profile, "1g.5gb");

    let inventory = Inventory::discover_with(&DriverRoot::new(machine.driver.path()));
    let listed: Vec<&str> = inventory.gpus()[0].mig_devices.iter().map(|device| device.uuid.as_str()).collect();
    assert_eq!(listed, [small.uuid(), half.uuid()]);

    let error = devices.acquire("4g.20gb", &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
    let text = error.to_string();
    assert!(text.contains("has no room beside 3g.20gb at 0, 1g.5gb at 6"), "{text}");
    assert!(text.contains("GPU-a1000000-0000-4000-8000-000000000002 is not in MIG mode"), "{text}");
    let error = devices.acquire("9g.5gb", &[small.gpu()]).unwrap_err();
    assert!(error.to_string().contains("offers 1g.5gb, 2g.10gb, 3g.20gb"), "{error}");
    assert!(devices.acquire("1g.5gb", &["GPU-none"]).unwrap_err().to_string().contains("there is no such GPU"));

    small.release().unwrap();
    drop(half);
    whole.release().unwrap();
    assert_eq!(machine.instances(1), []);
    machine.is_as_before();
    drop((machine, devices));
    leaks.check();
}

#[test]
fn a_device_that_was_made_can_be_granted() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let machine = Machine::new(split_a100(1));
    let lease = machine.open().acquire("1g.5gb", &[]).unwrap();
    let root = DriverRoot::new(machine.driver.path());
    let grant = grant(&GpuRequest::uuids([lease.uuid()]).unwrap(), &root, &ImageFacts::default()).unwrap();
    assert_eq!(grant.gpus, [lease.uuid()]);
    let capabilities = grant.device_nodes.iter().filter(|node| node.path.starts_with("/dev/nvidia-caps")).count();
    assert_eq!(capabilities, 2, "those of the GPU instance and of the compute instance: {:?}", grant.device_nodes);
    lease.release().unwrap();
}

#[test]
fn an_idle_device_is_taken_before_one_is_made_and_stays() {
    if !driver::available() {
        return;
    }
    let mut split = profile("h100-mig");
    split["gpus"][0]["mig"]["profiles"] = mig_profiles("h100-80gb");
    split["gpus"][0]["mig"]["gpu_instances"] = json!([
        { "id": 1, "profile": 9, "start": 4, "size": 4 },
        { "id": 3, "profile": 14, "start": 0, "size": 2 },
        { "id": 9, "profile": 19, "start": 2, "size": 1 }
    ]);
    let machine = Machine::new(split);
    let devices = machine.open();
    let first = devices.acquire("1g.10gb", &[]).unwrap();
    assert_eq!((first.uuid(), first.created()), ("MIG-b10c0000-0000-5000-8000-000000000003", false));
    // Leased by the same process or another: that makes no difference.
    let second = devices.acquire("1g.10gb", &[]).unwrap();
    assert!(second.created() && second.uuid() != first.uuid());
    let error = devices.acquire("2g.20gb", &[]).unwrap_err();
    assert!(error.to_string().contains("no room"), "the one there is has a process: {error}");
    second.release().unwrap();
    first.release().unwrap();
    assert_eq!(machine.instances(0), [(9, 4), (14, 0), (19, 2)]);
    assert_eq!(machine.devices(0), 3);
    assert!(machine.written().is_empty());
}

#[test]
fn a_maker_that_is_killed_at_any_step_is_rolled_back_by_the_next() {
    if !driver::available() {
        return;
    }
    // The stand-in counts changes: GPU instance made, compute instance made, and both destroyed.
    let moments = ["1", "1+", "2", "2+", "3", "3+", "4", "4+"];
    let mut left = Vec::new();
    for moment in moments {
        let machine = Machine::new(split_a100(1));
        let status = machine.other().env("FAKE_NVML_KILL", moment).status().unwrap();
        assert_eq!(status.signal(), Some(9), "at {moment}");
        left.push((machine.instances(0).len(), machine.devices(0)));
        assert_eq!(machine.written().len(), 1, "at {moment}");
        drop(machine.open());
        machine.is_as_before();
        // And whoever wants one just gets it.
        machine.open().acquire("7g.40gb", &[]).unwrap().release().unwrap();
    }
    assert_eq!(left, [(0, 0), (1, 0), (1, 0), (1, 1), (1, 1), (1, 0), (1, 0), (0, 0)]);
    let machine = Machine::new(split_a100(1));
    assert!(machine.other().env("FAKE_NVML_KILL", "5").status().unwrap().success(), "there are four changes");
    machine.is_as_before();
}

#[test]
fn a_rollback_that_is_killed_is_continued() {
    if !driver::available() {
        return;
    }
    // The first one leaves both instances; the second dies while it destroys them; a full cycle follows.
    for moment in ["3", "3+", "4", "4+"] {
        let machine = Machine::new(split_a100(1));
        for kill in ["2+", moment] {
            let status = machine.other().env("FAKE_NVML_KILL", kill).status().unwrap();
            assert_eq!(status.signal(), Some(9), "at {kill}");
        }
        assert!(machine.other().status().unwrap().success());
        machine.is_as_before();
    }
}

#[test]
fn the_living_keep_what_they_made() {
    if !driver::available() {
        return;
    }
    let machine = Machine::new(split_a100(1));
    let mut owner = machine.other().env(HOLD, "1").spawn().unwrap();
    let theirs = acquired(&mut owner);
    let devices = machine.open();
    let ours = devices.acquire("2g.10gb", &[]).unwrap();
    assert_ne!(ours.uuid(), theirs, "a leased device is not shared");
    assert_eq!(machine.instances(0).len(), 2);
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert_eq!(machine.instances(0).len(), 2, "nothing dies by itself");
    let again = machine.open();
    assert_eq!(machine.instances(0).len(), 1, "what the dead made is gone");
    // Whoever inherits the descriptor holds the lease.
    let inherited = ours.as_fd().try_clone_to_owned().unwrap();
    ours.leave();
    drop(machine.open());
    assert_eq!(machine.instances(0).len(), 1);
    drop(inherited);
    drop(again.acquire("7g.40gb", &[]).unwrap());
    machine.is_as_before();
}

#[test]
fn what_is_used_stays_and_is_tried_again() {
    if !driver::available() {
        return;
    }
    let machine = Machine::new(split_a100(1));
    let devices = machine.open();
    let lease = devices.acquire("1g.5gb", &[]).unwrap();
    let processes = |list: Value| {
        machine.driver.change(|state| state["gpus"][0]["mig"]["devices"][0]["compute_processes"] = list);
    };
    processes(json!([{ "pid": 4242 }]));
    let error = lease.release().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("is used by process 4242"), "{error}");
    drop(machine.open());
    assert_eq!((machine.instances(0).len(), machine.written().len()), (1, 1), "it cannot be destroyed yet");
    processes(json!([]));
    drop(machine.open());
    machine.is_as_before();
}

#[test]
fn what_others_made_at_the_place_of_a_dead_owner_stays() {
    if !driver::available() {
        return;
    }
    let machine = Machine::new(split_a100(1));
    machine.open().acquire("7g.40gb", &[]).unwrap().leave();
    // A reset of the GPU, after which an administrator makes the same again.
    machine.driver.change(|state| state["gpus"][0]["mig"]["devices"][0]["uuid"] = json!("MIG-other"));
    drop(machine.open());
    assert_eq!((machine.instances(0), machine.devices(0)), (vec![(0, 0)], 1));
    assert!(machine.written().is_empty());
}

#[test]
fn failures_of_the_driver_leave_nothing() {
    if !driver::available() {
        return;
    }
    let failures = [
        ("nvmlDeviceCreateGpuInstanceWithPlacement", 4, ErrorKind::PermissionDenied),
        ("nvmlGpuInstanceCreateComputeInstance", 23, ErrorKind::GpuUnavailable),
        ("nvmlDeviceGetGpuInstancePossiblePlacements_v2", 999, ErrorKind::GpuUnavailable),
        ("nvmlDeviceGetGpuInstanceProfileInfoV", 13, ErrorKind::GpuUnavailable),
    ];
    for (call, code, kind) in failures {
        let mut split = split_a100(1);
        split["errors"] = json!({ call: code });
        let machine = Machine::new(split);
        let error = machine.open().acquire("1g.5gb", &[]).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(call), "{error}");
        machine.is_as_before();
    }
    // What cannot be destroyed while the driver fails is destroyed later.
    let machine = Machine::new(split_a100(1));
    let lease = machine.open().acquire("1g.5gb", &[]).unwrap();
    machine.driver.change(|state| state["errors"] = json!({ "nvmlGpuInstanceDestroy": 999 }));
    assert!(lease.release().unwrap_err().to_string().contains("nvmlGpuInstanceDestroy"));
    machine.driver.change(|state| state["errors"] = json!({}));
    drop(machine.open());
    machine.is_as_before();
    let none = MigDevices::open(&DriverRoot::new("/no/such/directory"), machine.leases.path()).unwrap();
    assert_eq!(none.acquire("1g.5gb", &[]).unwrap_err().kind(), ErrorKind::GpuUnavailable);
}

#[test]
fn a_full_tmpfs_is_said_and_changes_nothing() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let leaks = Leaks::watch();
    let machine = Machine::new(split_a100(1));
    let mount = |arguments: &[&str]| {
        let status = Command::new(arguments[0]).args(&arguments[1..]).arg(machine.leases.path()).status().unwrap();
        assert!(status.success(), "{arguments:?}");
    };
    mount(&["mount", "-t", "tmpfs", "-o", "size=4k", "full"]);
    let devices = machine.open();
    std::fs::write(machine.leases.path().join("ballast"), [0; 4096]).unwrap();
    let error = devices.acquire("1g.5gb", &[]).unwrap_err();
    mount(&["umount"]);
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!(machine.instances(0), []);
    drop((machine, devices));
    leaks.check();
}

#[test]
fn the_mode_is_changed_only_when_asked() {
    if !driver::available() {
        return;
    }
    let mut machine_profile = split_a100(1);
    machine_profile["gpus"][2]["mig"] = json!({ "places": 7, "profiles": mig_profiles("h100-80gb") });
    machine_profile["gpus"][3]["compute_processes"] = json!([{ "pid": 7 }]);
    let machine = Machine::new(machine_profile);
    let devices = machine.open();
    let uuid = |gpu: usize| format!("GPU-a1000000-0000-4000-8000-00000000000{gpu}");
    let error = devices.acquire("1g.5gb", &[&uuid(1)]).unwrap_err();
    assert!(error.to_string().contains("is not in MIG mode"), "{error}");
    assert_eq!(devices.set_mode(&uuid(0), true).unwrap(), MigModeChange::Unchanged);
    assert_eq!(devices.set_mode(&uuid(1), true).unwrap(), MigModeChange::NeedsReset, "as on every A100");
    assert_eq!(devices.set_mode(&uuid(2), true).unwrap(), MigModeChange::Changed, "as on every H100");
    assert_eq!(devices.set_mode(&uuid(3), true).unwrap_err().kind(), ErrorKind::Busy);
    let lease = devices.acquire("1g.10gb", &[&uuid(2)]).unwrap();
    assert_eq!(devices.set_mode(&uuid(2), false).unwrap_err().kind(), ErrorKind::Busy, "a device is there");
    lease.release().unwrap();
    assert_eq!(devices.set_mode(&uuid(2), false).unwrap(), MigModeChange::Changed);
    assert_eq!(devices.set_mode("GPU-none", true).unwrap_err().kind(), ErrorKind::GpuUnavailable);
    let without = Machine::new(profile("t4"));
    let error = without.open().set_mode("GPU-7e4a0001-0000-4000-8000-000000000000", true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert_eq!(devices.directory(), Path::new(machine.leases.path()));
}
