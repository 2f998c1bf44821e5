//! GPUs that report faults: what keeps them from new leases, and the ways back.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;

use common::Leaks;
use driver::{FakeDriver, profile};
use gpucontainer::ErrorKind;
use gpucontainer::gpu::{
    DriverRoot, GpuAllocator, GpuFault, GpuRequest, Inventory, Quarantine, QuarantinedGpu, Wait, XidAction, XidWatch,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};
use std::time::{Duration, Instant, SystemTime};

const FIRST: &str = "GPU-a1000000-0000-4000-8000-000000000000";
const SECOND: &str = "GPU-a1000000-0000-4000-8000-000000000001";

fn inventory(driver: &FakeDriver) -> Inventory {
    Inventory::discover_with(&DriverRoot::new(driver.path()))
}

fn faults(list: &[QuarantinedGpu]) -> Vec<(&str, &[GpuFault])> {
    list.iter().map(|one| (one.gpu.as_str(), one.faults.as_slice())).collect()
}

/// Changes the first GPU of the machine.
fn first(driver: &FakeDriver, field: &str, value: Value) {
    driver.change(|state| state["gpus"][0][field] = value);
}

#[test]
fn what_a_gpu_says_of_itself_counts_until_it_is_mended() {
    if !driver::available() {
        return;
    }
    let leaks = Leaks::watch();
    let machine = FakeDriver::new("dgx-a100");
    let directory = tempfile::tempdir().unwrap();
    let quarantine = Quarantine::at(directory.path().join("quarantine"));
    assert_eq!(quarantine.list().unwrap(), [], "the directory is not there yet");
    assert_eq!(quarantine.review(&inventory(&machine)).unwrap(), [], "all are healthy");
    let table = [
        (json!({ "uncorrectable_errors": 2 }), GpuFault::UncorrectableErrors),
        (json!({ "remapped_rows": { "pending": true } }), GpuFault::ReplacementPending),
        (json!({ "remapped_rows": { "failed": true } }), GpuFault::ReplacementFailed),
        (json!({ "retirement_pending": true }), GpuFault::ReplacementPending),
    ];
    for (health, fault) in table {
        let before = SystemTime::now();
        first(&machine, "health", health);
        let list = quarantine.review(&inventory(&machine)).unwrap();
        assert_eq!(faults(&list), [(FIRST, &[fault][..])]);
        assert!(list[0].since >= before && list[0].since <= SystemTime::now());
        // Another process sees the same, and time goes on from the first moment.
        assert_eq!(quarantine.review(&inventory(&machine)).unwrap(), list);
        assert_eq!(Quarantine::at(quarantine.directory()).list().unwrap(), list);
        first(&machine, "health", json!({}));
        assert_eq!(quarantine.review(&inventory(&machine)).unwrap(), [], "after a reset");
    }
    drop((machine, directory, quarantine));
    leaks.check();
}

#[test]
fn a_lost_gpu_stays_away_until_it_answers() {
    if !driver::available() {
        return;
    }
    let machine = FakeDriver::new("dgx-a100");
    let directory = tempfile::tempdir().unwrap();
    let quarantine = Quarantine::at(directory.path());
    // The driver that lost it still knows its name; then not even that.
    first(&machine, "errors", json!({ "nvmlDeviceGetCudaComputeCapability": 15 }));
    assert_eq!(faults(&quarantine.review(&inventory(&machine)).unwrap()), [(FIRST, &[GpuFault::Lost][..])]);
    first(&machine, "lost", json!(true));
    assert_eq!(faults(&quarantine.review(&inventory(&machine)).unwrap()), [(FIRST, &[GpuFault::Lost][..])]);
    machine.change(|state| {
        state["gpus"][0]["lost"] = json!(false);
        state["gpus"][0]["errors"] = json!({});
    });
    assert_eq!(quarantine.review(&inventory(&machine)).unwrap(), []);
}

#[test]
fn a_lost_gpu_is_not_leased_though_nobody_noticed_it_before() {
    if !driver::available() {
        return;
    }
    let machine = FakeDriver::new("dgx-a100");
    let directory = tempfile::tempdir().unwrap();
    let allocator = GpuAllocator::at(directory.path().join("gpu")).unwrap();
    let allocator = allocator.driver_root(DriverRoot::new(machine.path())).respect_outer(false);
    first(&machine, "errors", json!({ "nvmlDeviceGetCudaComputeCapability": 15 }));
    let lease = allocator.acquire(&GpuRequest::count(7), Wait::none()).unwrap();
    assert!(!lease.gpus().iter().any(|gpu| gpu == FIRST), "{:?}", lease.gpus());
    let error = allocator.acquire(&GpuRequest::indices([0]).unwrap(), Wait::forever()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable, "at once: it does not come back by waiting");
    assert!(error.to_string().contains("is lost: it has fallen off the bus"), "{error}");
}

#[test]
fn reported_faults_stay_until_they_are_released() {
    if !driver::available() {
        return;
    }
    let machine = FakeDriver::new("dgx-a100");
    let directory = tempfile::tempdir().unwrap();
    let quarantine = Quarantine::at(directory.path());
    assert!(!quarantine.report(FIRST, GpuFault::Xid(31)).unwrap(), "an application's own fault");
    assert!(quarantine.report(FIRST, GpuFault::Xid(119)).unwrap());
    assert!(!quarantine.report(FIRST, GpuFault::Xid(119)).unwrap(), "known");
    assert!(quarantine.report(SECOND, GpuFault::Requested).unwrap());
    assert!(quarantine.report(FIRST, GpuFault::Xid(48)).unwrap());
    first(&machine, "health", json!({ "uncorrectable_errors": 1 }));
    let list = quarantine.review(&inventory(&machine)).unwrap();
    let all = [GpuFault::Xid(119), GpuFault::Xid(48), GpuFault::UncorrectableErrors];
    assert_eq!(faults(&list), [(FIRST, &all[..]), (SECOND, &[GpuFault::Requested][..])]);
    let words = list[0].to_string();
    assert!(words.starts_with(FIRST) && words.contains("XID 119: the GPU has to be reset"), "{words}");
    // A reset sets the counter back, and says nothing of firmware that stopped.
    first(&machine, "health", json!({ "uncorrectable_errors": 0 }));
    let list = quarantine.review(&inventory(&machine)).unwrap();
    assert_eq!(faults(&list)[0], (FIRST, &[GpuFault::Xid(119)][..]));
    assert!(quarantine.release(FIRST).unwrap());
    assert!(!quarantine.release(FIRST).unwrap());
    assert_eq!(faults(&quarantine.list().unwrap()), [(SECOND, &[GpuFault::Requested][..])]);
    for hostile in ["", "../x", "GPU/1", ".hidden", "GPU\0"] {
        let error = quarantine.report(hostile, GpuFault::Requested).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{hostile:?}");
    }
}

#[test]
fn a_damaged_file_keeps_its_gpu_back_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let quarantine = Quarantine::at(directory.path());
    quarantine.report(FIRST, GpuFault::Xid(79)).unwrap();
    let path = directory.path().join(format!("{FIRST}.json"));
    let whole = std::fs::read(&path).unwrap();
    for damaged in [&whole[..whole.len() / 2], b"", b"[]", b"{\"faults\":[\"new\"]}"] {
        std::fs::write(&path, damaged).unwrap();
        assert_eq!(faults(&quarantine.list().unwrap()), [(FIRST, &[GpuFault::Unknown][..])]);
    }
    // Readable, and a time that no clock can show.
    std::fs::write(&path, format!("{{\"faults\":[\"lost\"],\"since\":[{},{}],\"log\":0}}", u64::MAX, u32::MAX))
        .unwrap();
    assert_eq!(faults(&quarantine.list().unwrap()), [(FIRST, &[GpuFault::Lost][..])]);
    assert!(quarantine.release(FIRST).unwrap());
    assert_eq!(quarantine.list().unwrap(), []);
}

#[test]
fn the_kernel_s_log_counts_once() {
    if !driver::available() {
        return;
    }
    let machine = FakeDriver::new("dgx-a100");
    let directory = tempfile::tempdir().unwrap();
    let quarantine = Quarantine::at(directory.path());
    let root = DriverRoot::new(machine.path());
    let log = |lines: &[(u64, &str)]| {
        let lines = lines.iter().map(|(time, words)| format!("4,1,{time},-;NVRM: Xid (PCI:{words}\n"));
        machine.write("dev/kmsg", lines.collect::<String>());
    };
    log(&[
        (10, "0000:0F:00): 31, pid=7, name=python, MMU fault"),
        (11, "0000:0F:00): 119, pid=7, Timeout waiting for RPC from GSP"),
        (12, "0000:0F:00): 119, pid=7, Timeout waiting for RPC from GSP"),
        (13, "0000:FF:00): 79, of another machine"),
        (14, "0000:47:00): 79, GPU has fallen off the bus, and was reset since"),
    ]);
    assert_eq!(quarantine.read_kernel_log(&root, &inventory(&machine)).unwrap(), 1);
    assert_eq!(faults(&quarantine.list().unwrap()), [(SECOND, &[GpuFault::Xid(119)][..])]);
    assert_eq!(quarantine.read_kernel_log(&root, &inventory(&machine)).unwrap(), 0);
    quarantine.release(SECOND).unwrap();
    assert_eq!(quarantine.read_kernel_log(&root, &inventory(&machine)).unwrap(), 0, "that was dealt with");
    assert_eq!(quarantine.list().unwrap(), []);
    log(&[(12, "0000:0F:00): 119, again"), (15, "0000:0F:00): 64, Row Remapper")]);
    first(&machine, "health", json!({}));
    machine.change(|state| state["gpus"][1]["health"] = json!({ "remapped_rows": { "failed": true } }));
    assert_eq!(quarantine.read_kernel_log(&root, &inventory(&machine)).unwrap(), 1, "a new one counts");
    std::fs::remove_file(machine.path().join("dev/kmsg")).unwrap();
    let error = quarantine.read_kernel_log(&root, &inventory(&machine)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_descriptor_tells_of_xids() {
    if !driver::available() {
        return;
    }
    let leaks = Leaks::watch();
    let machine = FakeDriver::with_profile(profile("dgx-a100"));
    let root = DriverRoot::new(machine.path());
    let mut watch = XidWatch::open(&root, [FIRST, SECOND]).unwrap();
    let poll = |watch: &mut XidWatch, milliseconds: i64| {
        let mut polled = [PollFd::from_borrowed_fd(watch.poll_fd().unwrap(), PollFlags::IN)];
        let timeout = Timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 };
        rustix::event::poll(&mut polled, Some(&timeout)).unwrap() == 1
    };
    assert!(!poll(&mut watch, 0));
    assert_eq!(watch.next(Duration::ZERO).unwrap(), None);
    let events: Vec<Value> = (0..300).map(|data| json!({ "gpu": 1, "kind": 8, "data": data })).collect();
    machine.change(|state| state["events"] = json!(events));
    // More than are kept here.
    for number in 0..300 {
        assert!(number > 0 || poll(&mut watch, 900));
        assert_eq!(watch.next(Duration::from_secs(20)).unwrap().unwrap().xid, number);
    }
    assert!(!poll(&mut watch, 300));
    machine.change(|state| state["errors"] = json!({ "nvmlEventSetWait_v2": 15 }));
    // As often as it is asked, and not by itself.
    for _ in 0..3 {
        assert!(poll(&mut watch, 900));
        assert_eq!(watch.next(Duration::from_secs(20)).unwrap_err().kind(), ErrorKind::GpuUnavailable);
    }
    machine.change(|state| state["errors"] = json!({}));
    let ended = Instant::now();
    drop(watch);
    assert!(ended.elapsed() < Duration::from_secs(5), "{:?}", ended.elapsed());
    drop(machine);
    leaks.check();
}

#[test]
fn a_watch_tells_of_xids_as_they_come() {
    if !driver::available() {
        return;
    }
    let leaks = Leaks::watch();
    let machine = FakeDriver::with_profile(profile("dgx-a100"));
    let root = DriverRoot::new(machine.path());
    let mut watch = XidWatch::open(&root, [FIRST, SECOND]).unwrap();
    assert_eq!(watch.next(Duration::ZERO).unwrap(), None);
    let report = |events: Value| machine.change(|state| state["events"] = events);
    let (application, single_bit, reset) = (
        json!({ "gpu": 1, "kind": 8, "data": 31 }),
        json!({ "gpu": 0, "kind": 1, "data": 0 }),
        json!({ "gpu": 0, "kind": 8, "data": 119 }),
    );
    std::thread::scope(|scope| {
        scope.spawn(|| report(json!([application, single_bit])));
        let event = watch.next(Duration::from_secs(20)).unwrap().unwrap();
        assert_eq!((event.gpu.as_str(), event.xid, event.slice), (SECOND, 31, None));
        assert_eq!(event.action, XidAction::RestartApplication);
    });
    assert_eq!(watch.next(Duration::ZERO).unwrap(), None, "other events are no XIDs");
    report(json!([application, single_bit, reset]));
    let event = watch.next(Duration::from_secs(20)).unwrap().unwrap();
    assert_eq!((event.gpu.as_str(), event.xid, event.action), (FIRST, 119, XidAction::ResetGpu));
    let directory = tempfile::tempdir().unwrap();
    let quarantine = Quarantine::at(directory.path());
    assert!(quarantine.report(&event.gpu, GpuFault::Xid(event.xid)).unwrap());
    assert_eq!(watch.next(Duration::from_millis(1)).unwrap(), None);
    machine.change(|state| state["errors"] = json!({ "nvmlEventSetWait_v2": 15 }));
    assert_eq!(watch.next(Duration::ZERO).unwrap_err().kind(), ErrorKind::GpuUnavailable);
    drop(watch);
    assert!(XidWatch::open(&root, ["GPU-none"]).unwrap_err().to_string().contains("watch GPU-none for XIDs"));
    machine.change(|state| state["errors"] = json!({ "nvmlEventSetCreate": 999 }));
    assert!(XidWatch::open(&root, [FIRST]).unwrap_err().to_string().contains("nvmlEventSetCreate"));
    drop((machine, directory, quarantine));
    leaks.check();
}

#[test]
fn an_allocator_gives_out_no_gpu_in_quarantine() {
    if !driver::available() {
        return;
    }
    let machine = FakeDriver::new("dgx-a100");
    let directory = tempfile::tempdir().unwrap();
    let allocator = GpuAllocator::at(directory.path().join("gpu")).unwrap();
    let allocator = allocator.driver_root(DriverRoot::new(machine.path())).respect_outer(false);
    let quarantine = allocator.quarantine();
    quarantine.report(FIRST, GpuFault::Xid(119)).unwrap();
    let lease = allocator.acquire(&GpuRequest::count(7), Wait::none()).unwrap();
    assert!(!lease.gpus().iter().any(|gpu| gpu == FIRST), "{:?}", lease.gpus());
    lease.release().unwrap();
    let error = allocator.acquire(&GpuRequest::count(8), Wait::forever()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable, "at once: it does not come back by waiting");
    assert!(error.to_string().contains("is in quarantine: XID 119: the GPU has to be reset"), "{error}");
    let status = allocator.status().unwrap();
    assert_eq!(faults(&status.quarantined), [(FIRST, &[GpuFault::Xid(119)][..])]);
    quarantine.release(FIRST).unwrap();
    assert_eq!(allocator.acquire(&GpuRequest::count(8), Wait::none()).unwrap().gpus().len(), 8);
}
