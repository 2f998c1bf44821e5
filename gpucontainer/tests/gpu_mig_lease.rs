//! Leases for which the allocator makes MIG devices, on machines that a stand-in for NVML describes, and holders that
//! are killed.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
mod mig;

use common::{Leaks, Ordinary, until};
use driver::{mig_profiles, profile, split_a100};
use gpucontainer::gpu::{DriverRoot, GpuFault, Inventory, MigDevices, Placement, Sharing, Wait};
use gpucontainer::{Cancel, ErrorKind, GpuRequest};
use mig::{Machine, Part, ROLE, ROOT, TABLE, allocator_of_parent};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

fn small(number: u32) -> GpuRequest {
    GpuRequest::count(number).mig_profile("1g.5gb")
}

fn uuid(gpu: usize) -> String {
    format!("GPU-a1000000-0000-4000-8000-00000000000{gpu}")
}

#[test]
#[ignore = "the other process of a test"]
fn other_process() {
    let allocator = allocator_of_parent();
    match std::env::var(ROLE).unwrap().as_str() {
        "two" => {
            allocator.acquire(&GpuRequest::count(2).mig_profile("2g.10gb"), Wait::none()).unwrap().release().unwrap()
        }
        "hold" => {
            let lease = allocator.acquire(&small(1), Wait::none()).unwrap();
            println!("\nholds {}", lease.gpus()[0]);
            loop {
                std::thread::park();
            }
        }
        // That was all.
        "open" => {}
        other => panic!("no test is for {other:?}"),
    }
}

/// Waits until the other process says what it holds.
fn held(child: &mut Child) -> String {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut said = lines.filter_map(|line| line.strip_prefix("holds ").map(str::to_owned));
    said.next().expect("the other process ended before it had a device")
}

#[test]
fn missing_devices_are_made_where_they_do_least_harm_and_go_with_their_lease() {
    if !driver::available() {
        return;
    }
    let leaks = Leaks::watch();
    let machine = Machine::new(split_a100(2));
    let one = machine.now(&small(1)).unwrap();
    assert_eq!(machine.instances(0), [(19, 6)]);
    assert_eq!(one.gpus(), machine.devices());
    let half = machine.now(&GpuRequest::count(1).mig_profile("3G.20GB")).unwrap();
    let whole = machine.now(&GpuRequest::count(1).mig_profile("7g.40gb")).unwrap();
    assert_eq!((machine.instances(0), machine.instances(1)), (vec![(19, 6), (9, 0)], vec![(0, 0)]));
    assert!(one.describe().contains("1g.5gb"), "{}", one.describe());
    assert!(!one.cpus().is_empty() || !one.numa_nodes().is_empty() || machine.driver.gpus()[0]["cpus"].is_null());
    let status = machine.allocator.status().unwrap();
    assert_eq!(status.leases.len(), 3);
    assert_eq!(status.leases_of(&uuid(0)).count(), 2);
    // Sharing a device that was made is as sharing any.
    drop(half.clone());
    assert_eq!(machine.instances(0).len(), 2, "a clone is not the last");
    half.release().unwrap();
    assert_eq!(machine.instances(0), [(19, 6)]);
    // Several at once, one of which may be there already.
    let four = machine.now(&small(4)).unwrap();
    assert_eq!((four.gpus().len(), machine.instances(0).len()), (4, 5));
    drop(whole);
    four.release().unwrap();
    drop(one);
    machine.is_as_before();
    drop(machine);
    leaks.check();
}

#[test]
fn idle_devices_that_are_there_come_first_and_stay() {
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
    let request = |number| GpuRequest::count(number).mig_profile("1g.10gb");
    let there = "MIG-b10c0000-0000-5000-8000-000000000003";
    let only = machine.now(&request(1).make_mig_devices(false)).unwrap();
    assert_eq!(only.gpus(), [there]);
    let refusal = machine.refusal(&request(1).make_mig_devices(false));
    assert!(refusal.contains("0 of 1 free: 1 leased by process"), "{refusal}");
    assert_eq!(machine.devices().len(), 3, "none was made");
    drop(only);
    let both = machine.now(&request(2)).unwrap();
    assert_eq!((both.gpus()[0].as_str(), machine.instances(0).len()), (there, 4));
    both.release().unwrap();
    assert_eq!(machine.instances(0), [(9, 4), (14, 0), (19, 2)]);
    // Three are more than could ever be, whatever leases end: what others made stays.
    let error = machine.allocator.acquire(&request(3), Wait::forever()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
    let text = error.to_string();
    assert!(text.contains("1 can be made: GPU 0 (NVIDIA H100 80GB HBM3) has room for 1; "), "{text}");
    assert!(text.contains("GPU 1 (NVIDIA H100 80GB HBM3) is not in MIG mode"), "{text}");
    assert_eq!(machine.written(), 0);
}

#[test]
fn a_refusal_says_for_each_gpu_why() {
    if !driver::available() {
        return;
    }
    let machine = Machine::new(split_a100(3));
    let wait = Wait::forever;
    let never = |request: &GpuRequest| {
        let error = machine.allocator.acquire(request, wait()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GpuUnavailable, "{error}");
        error.to_string()
    };
    let text = never(&GpuRequest::count(1).mig_profile("9g.90gb"));
    assert!(text.contains("GPU 0 (NVIDIA A100-SXM4-40GB) offers 1g.5gb, "), "{text}");
    assert!(text.contains("GPU 3 (NVIDIA A100-SXM4-40GB) is not in MIG mode"), "{text}");
    assert!(never(&small(1).min_total_memory(8 << 30)).contains("makes 1g.5gb with 4.7 GiB in all"));
    assert!(never(&small(1).model("*H100*")).contains("is no *H100*"));
    assert!(never(&small(22)).contains("21 can be made"), "{}", never(&small(22)));
    machine.allocator.quarantine().report(&uuid(0), GpuFault::Requested).unwrap();
    assert!(never(&small(15)).contains("GPU 0 (NVIDIA A100-SXM4-40GB) is in quarantine"));
    machine.allocator.quarantine().release(&uuid(0)).unwrap();
    // Named GPUs: one device on each.
    let named = |gpus: &[usize]| GpuRequest::uuids(gpus.iter().map(|gpu| uuid(*gpu))).unwrap().mig_profile("4g.20gb");
    let text = never(&named(&[1, 5]));
    assert!(text.contains("GPU 5 (NVIDIA A100-SXM4-40GB) is not in MIG mode"), "{text}");
    let text = machine.refusal(&named(&[1]).make_mig_devices(false));
    assert!(text.contains("GPU 1 (NVIDIA A100-SXM4-40GB) has no MIG device of 4g.20gb"), "{text}");
    let both = machine.now(&named(&[2, 1])).unwrap();
    assert_eq!((machine.instances(1), machine.instances(2)), (vec![(5, 0)], vec![(5, 0)]));
    let text = machine.refusal(&named(&[1]));
    assert!(
        text.contains("none can be made now: GPU 1 (NVIDIA A100-SXM4-40GB) has no room beside 4g.20gb at 0"),
        "{text}"
    );
    let order: Vec<String> = both.gpus().to_vec();
    let inventory = Inventory::discover_with(&DriverRoot::new(machine.driver.path()));
    let on = |gpu: usize| inventory.gpus()[gpu].mig_devices[0].uuid.clone();
    assert_eq!(order, [on(2), on(1)], "in the order asked for");
    drop(both);
    machine.is_as_before();
}

#[test]
fn placement_and_sharing_are_wishes_of_devices_that_are_made_too() {
    if !driver::available() {
        return;
    }
    let machine = Machine::new(split_a100(2));
    let apart = machine.now(&small(2).placement(Placement::Spread)).unwrap();
    assert_eq!((machine.instances(0).len(), machine.instances(1).len()), (1, 1));
    drop(apart);
    let together = machine.now(&small(7).placement(Placement::SameNumaNode)).unwrap();
    assert_eq!((machine.instances(0).len(), machine.instances(1).len()), (7, 0));
    drop(together);
    // The first of those who share makes it, the last of them destroys it.
    let shared = GpuRequest::count(1).mig_profile("2g.10gb").sharing(Sharing::Shared(2));
    let (one, other) = (machine.now(&shared).unwrap(), machine.now(&shared).unwrap());
    assert_eq!(one.gpus(), other.gpus());
    one.release().unwrap();
    assert_eq!(machine.devices(), other.gpus());
    other.release().unwrap();
    machine.is_as_before();
}

#[test]
fn a_maker_that_is_killed_at_any_step_is_rolled_back() {
    if !driver::available() {
        return;
    }
    // Two devices: each of both instances is made and destroyed.
    for number in 1..=8 {
        for after in ["", "+"] {
            let moment = format!("{number}{after}");
            let machine = Machine::new(split_a100(1));
            let status = machine.other("two").env("FAKE_NVML_KILL", &moment).status().unwrap();
            assert_eq!(status.signal(), Some(9), "at {moment}");
            drop(machine.allocator.status().unwrap());
            assert_eq!((machine.instances(0), machine.written()), (Vec::new(), 0), "at {moment}");
            let lease = machine.now(&GpuRequest::count(1).mig_profile("7g.40gb")).unwrap();
            lease.release().unwrap();
            machine.is_as_before();
        }
    }
    let machine = Machine::new(split_a100(1));
    assert!(machine.other("two").env("FAKE_NVML_KILL", "9").status().unwrap().success(), "there are eight changes");
    machine.is_as_before();
}

#[test]
fn what_a_living_lease_holds_stays_and_what_a_dead_one_held_goes() {
    if !driver::available() {
        return;
    }
    let machine = Machine::new(split_a100(1));
    let mut owner = machine.other("hold").spawn().unwrap();
    let theirs = held(&mut owner);
    // By whatever looks after the directory.
    drop(machine.allocator.status().unwrap());
    drop(MigDevices::open(&DriverRoot::new(machine.driver.path()), machine.journal()).unwrap());
    let ours = machine.now(&small(1)).unwrap();
    assert_eq!(machine.devices(), [theirs.clone(), ours.gpus()[0].clone()]);
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert_eq!(machine.devices().len(), 2, "nothing goes by itself");
    // An allocator of the driver that the environment names is opened.
    let opened = machine.other("open").env("GPUCONTAINER_DRIVER_ROOT", machine.driver.path()).status().unwrap();
    assert!(opened.success());
    assert_eq!(machine.devices(), ours.gpus(), "what the dead held is gone");
    // Whoever has the descriptor has the lease.
    let (uuids, descriptor) = (ours.gpus().to_vec(), ours.into_fd().unwrap());
    drop(machine.allocator.status().unwrap());
    assert_eq!(machine.devices(), uuids);
    drop(descriptor);
    // A program that another test is just starting has a copy until its `exec`.
    until("the lease is over", SOON, || machine.allocator.status().unwrap().leases.is_empty());
    drop(machine.now(&GpuRequest::count(1).mig_profile("7g.40gb")).unwrap());
    machine.is_as_before();
}

#[test]
fn a_device_that_the_driver_fails_to_list_is_not_destroyed() {
    if !driver::available() {
        return;
    }
    let machine = Machine::new(split_a100(1));
    let lease = machine.now(&small(1)).unwrap();
    let uuids = lease.gpus().to_vec();
    let listing = |errors: Value| machine.driver.change(|state| state["gpus"][0]["errors"] = errors);
    for call in ["nvmlDeviceGetMigDeviceHandleByIndex", "nvmlDeviceGetMaxMigDeviceCount"] {
        listing(json!({ call: 999 }));
        drop(MigDevices::open(&DriverRoot::new(machine.driver.path()), machine.journal()).unwrap());
        assert_eq!((machine.devices(), machine.written()), (uuids.clone(), 1), "leased, {call}");
    }
    drop(lease.into_fd().unwrap());
    // A program that another test is just starting has a copy until its `exec`.
    until("the lease is over", SOON, || machine.allocator.status().unwrap().leases.is_empty());
    drop(machine.allocator.status().unwrap());
    assert_eq!((machine.devices(), machine.written()), (uuids, 1), "of a lease that is over");
    listing(json!({}));
    drop(machine.allocator.status().unwrap());
    assert_eq!((machine.devices().len(), machine.written()), (0, 0));
    drop(machine.now(&small(1)).unwrap());
    machine.is_as_before();
}

#[test]
fn a_gpu_that_does_not_tell_its_mode_is_not_taken_for_one_without_devices() {
    if !driver::available() {
        return;
    }
    let machine = Machine::new(split_a100(1));
    let answer = |errors: Value| machine.driver.change(|state| state["gpus"][0]["errors"] = errors);
    let lease = machine.now(&small(1)).unwrap();
    answer(json!({ "nvmlDeviceGetMigMode": 999 }));
    let error = lease.release().unwrap_err();
    assert!(error.to_string().contains("nvmlDeviceGetMigMode"), "{error}");
    assert_eq!((machine.devices().len(), machine.written()), (1, 1), "still written down");
    answer(json!({}));
    drop(machine.allocator.status().unwrap());
    machine.is_as_before();
    // The same for those who take one by itself.
    let devices = MigDevices::open(&DriverRoot::new(machine.driver.path()), machine.journal()).unwrap();
    let lease = devices.acquire("1g.5gb", &[]).unwrap();
    answer(json!({ "nvmlDeviceGetMigMode": 999 }));
    assert!(lease.release().unwrap_err().to_string().contains("nvmlDeviceGetMigMode"));
    assert_eq!((machine.devices().len(), machine.written()), (1, 1), "still written down");
    answer(json!({}));
    drop(MigDevices::open(&DriverRoot::new(machine.driver.path()), machine.journal()).unwrap());
    machine.is_as_before();
}

#[test]
fn damage_to_a_slot_does_not_cost_its_devices() {
    if !driver::available() {
        return;
    }
    let machine = Machine::new(split_a100(1));
    let lease = machine.now(&small(1)).unwrap();
    let slot = machine.allocator.path().join(format!("lease-{}", lease.id()));
    std::fs::write(&slot, "rubbish").unwrap();
    drop(machine.allocator.status().unwrap());
    assert_eq!(machine.devices(), lease.gpus());
    let text = machine.refusal(&GpuRequest::uuids(lease.gpus()).unwrap());
    assert!(text.contains("leased by a process of user"), "{text}");
    drop(lease);
    machine.is_as_before();
}

#[test]
fn a_device_in_use_stays_is_offered_to_nobody_and_tried_again() {
    if !driver::available() {
        return;
    }
    let machine = Machine::new(split_a100(1));
    let processes = |list: Value| {
        machine.driver.change(|state| state["gpus"][0]["mig"]["devices"][0]["compute_processes"] = list);
    };
    let lease = machine.now(&small(1)).unwrap();
    let used = lease.gpus()[0].clone();
    processes(json!([{ "pid": 4242 }]));
    let error = lease.release().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("is used by process 4242"), "{error}");
    assert_eq!(machine.devices(), [used.as_str()]);
    // Not even to those who do not mind processes.
    let text = machine
        .refusal(&small(1).make_mig_devices(false).foreign_processes(gpucontainer::gpu::ForeignProcesses::Ignore));
    assert!(text.contains("was made for a lease that is over, and is used by process 4242"), "{text}");
    let other = machine.now(&small(1)).unwrap();
    assert_ne!(other.gpus(), [used.as_str()]);
    other.release().unwrap();
    // Who waits for its room looks until it is idle.
    let whole = GpuRequest::count(1).mig_profile("7g.40gb");
    std::thread::scope(|scope| {
        let next = scope.spawn(|| machine.allocator.acquire(&whole, Wait::at_most(SOON)).unwrap());
        driver::until_waiting(&machine.allocator, 1);
        processes(json!([]));
        next.join().unwrap().release().unwrap();
    });
    machine.is_as_before();
}

#[test]
fn who_waits_gets_its_device_when_room_is_there_and_is_not_passed() {
    if !driver::available() {
        return;
    }
    let machine = Machine::new(split_a100(1));
    let whole = GpuRequest::count(1).mig_profile("7g.40gb");
    let first = machine.now(&small(1)).unwrap();
    let second = machine.now(&small(1)).unwrap();
    let mut ticket = machine.allocator.enqueue(&whole).unwrap();
    assert!(ticket.wait(Some(Duration::ZERO)).unwrap().is_none());
    assert!(ticket.reason().contains("none can be made now: GPU 0"), "{}", ticket.reason());
    // There is room for it, but not before the other.
    let text = machine.refusal(&small(1));
    assert!(text.contains("is promised to process"), "{text}");
    first.release().unwrap();
    assert!(ticket.wait(Some(Duration::from_millis(50))).unwrap().is_none());
    let start = Instant::now();
    second.release().unwrap();
    let lease = ticket.wait(Some(SOON)).unwrap().unwrap();
    assert!(start.elapsed() < SOON && machine.instances(0) == [(0, 0)]);
    assert_eq!(ticket.wait(Some(Duration::ZERO)).unwrap_err().kind(), ErrorKind::Closed);
    let error = machine.allocator.acquire(&small(1), Wait::at_most(Duration::from_millis(50))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    drop((lease, ticket));
    machine.is_as_before();
}

#[test]
fn failures_half_way_leave_nothing() {
    if !driver::available() {
        return;
    }
    let failures = [
        ("nvmlDeviceCreateGpuInstanceWithPlacement", 999, ErrorKind::GpuUnavailable),
        ("nvmlGpuInstanceCreateComputeInstance", 23, ErrorKind::GpuUnavailable),
    ];
    for (call, code, kind) in failures {
        let mut split = split_a100(1);
        split["errors"] = json!({ call: code });
        let machine = Machine::new(split);
        let error = machine.now(&small(2)).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(call), "{error}");
        machine.is_as_before();
    }
    // Who may not make any gets what there is, and is told.
    let mut split = split_a100(1);
    split["errors"] = json!({ "nvmlDeviceCreateGpuInstanceWithPlacement": 4 });
    let machine = Machine::new(split);
    let text = machine.refusal(&small(1));
    assert!(text.contains("none can be made") && text.contains("permission"), "{text}");
    machine.is_as_before();
}

#[test]
fn who_may_not_make_any_gets_what_is_there_and_destroys_nothing() {
    if std::env::var_os(TABLE).is_some() {
        return ordinary();
    }
    if !driver::available() || !common::tier("root") || !common::tools("root", &["setpriv"]) {
        return;
    }
    let machine = Machine::new(profile("h100-mig"));
    for directory in [machine.driver.path(), machine.directory.path()] {
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
    }
    // One that root has made and shares.
    let shared = GpuRequest::count(1).mig_profile("1g.10gb+me").sharing(Sharing::Shared(3));
    let lease = machine.now(&shared).unwrap();
    let environment = [(ROOT, machine.driver.path().as_os_str()), (TABLE, machine.allocator.path().as_os_str())];
    Ordinary::nobody().run("who_may_not_make_any_gets_what_is_there_and_destroys_nothing", &environment);
    assert!(machine.devices().contains(&lease.gpus()[0]));
    lease.release().unwrap();
    assert_eq!((machine.devices().len(), machine.written()), (3, 0));
}

/// The part of an ordinary user.
fn ordinary() {
    let allocator = allocator_of_parent();
    let small = GpuRequest::count(1).mig_profile("1g.10gb");
    let there = allocator.acquire(&small, Wait::none()).unwrap();
    assert_eq!(there.gpus(), ["MIG-b10c0000-0000-5000-8000-000000000003"]);
    let error = allocator.acquire(&small, Wait::none()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable, "{error}");
    let text = error.to_string();
    assert!(text.contains("0 of 1 free: 1 leased by process"), "{text}");
    assert!(text.contains("user 65534 may not make MIG devices") && text.contains("is user 0's"), "{text}");
    let shared = GpuRequest::count(1).mig_profile("1g.10gb+me").sharing(Sharing::Shared(3));
    let (one, other) = (allocator.acquire(&shared, Wait::none()).unwrap(), allocator.acquire(&shared, Wait::none()));
    assert_eq!(other.unwrap().gpus(), one.gpus());
    one.release().unwrap();
    drop(allocator.status().unwrap());
}

#[test]
fn what_a_killed_maker_had_no_time_to_open_to_others_is_opened_by_the_next() {
    if !driver::available() {
        return;
    }
    let machine = Machine::new(split_a100(1));
    let modes = || {
        let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        (mode(machine.journal()), mode(machine.journal().join("lock")))
    };
    // As if a mask of 077 had made them.
    std::fs::create_dir(machine.journal()).unwrap();
    std::fs::write(machine.journal().join("lock"), "").unwrap();
    for (path, mode) in [(machine.journal(), 0o700), (machine.journal().join("lock"), 0o600)] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    drop(machine.now(&small(1)).unwrap());
    assert_eq!(modes(), (0o755, 0o644));
    machine.is_as_before();
}

#[test]
fn who_is_stuck_while_it_splits_gpus_delays_nobody_beyond_its_limits() {
    if !driver::available() || !common::tools("rootless", &["python3"]) {
        return;
    }
    let machine = Machine::new(split_a100(1));
    let mut ticket = machine.allocator.enqueue(&small(1)).unwrap();
    // Another kind of lock of the kernel's, that stands against ours.
    let program = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); \
                   print('holds it', flush=True); sys.stdin.read()";
    let mut command = Command::new("python3");
    command.args(["-c", program]).arg(machine.journal().join("lock"));
    let mut stuck = Part(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    held(&mut stuck.0);
    let start = Instant::now();
    let short = Duration::from_millis(50);
    let error = machine.now(&small(1)).unwrap_err();
    assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("gpu.mig/lock"), "{error}");
    let error = machine.allocator.acquire(&small(1), Wait::at_most(short)).unwrap_err();
    assert!(error.kind() == ErrorKind::TimedOut && error.to_string().contains("gpu.mig/lock"), "{error}");
    assert!(ticket.wait(Some(short)).unwrap().is_none() && ticket.reason().contains("gpu.mig/lock"));
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let wait = scope.spawn(|| machine.allocator.acquire(&small(1), Wait::forever().cancel(&cancel)).unwrap_err());
        cancel.cancel();
        assert_eq!(wait.join().unwrap().kind(), ErrorKind::Cancelled);
    });
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    drop(stuck);
    assert_eq!(ticket.wait(Some(SOON)).unwrap().unwrap().gpus(), machine.devices());
    machine.is_as_before();
}

#[test]
fn slots_that_cannot_be_written_cost_nothing_that_was_made() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let machine = Machine::new(split_a100(1));
    let mount = |arguments: &[&str]| {
        let mut command = Command::new(arguments[0]);
        assert!(command.args(&arguments[1..]).arg(machine.allocator.path()).status().unwrap().success());
    };
    mount(&["mount", "-t", "tmpfs", "-o", "size=4k,mode=1777", "full"]);
    std::fs::write(machine.allocator.path().join("ballast"), [0; 4096]).unwrap();
    let error = machine.now(&small(1)).unwrap_err();
    mount(&["umount"]);
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    machine.is_as_before();
}
