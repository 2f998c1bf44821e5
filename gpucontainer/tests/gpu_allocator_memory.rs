//! Memory that comes back late: a GPU is leased again only when it is back, however the last lease ended.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod account;
mod common;
mod driver;
mod fixture;

use account::{Host, SOON, ready, sealed};
use driver::{FakeDriver, profile};
use gpucontainer::gpu::{DriverRoot, ForeignProcesses, GpuLease, GpuTicket, Inventory, Sharing, Wait};
use gpucontainer::{ErrorKind, GpuRequest};
use serde_json::{Value, json};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;
const MISSING: &str = "1 whose memory is not back from the last lease";

fn one() -> GpuRequest {
    GpuRequest::count(1)
}

impl Host {
    /// How much of the first GPU's memory is used.
    fn use_memory(&self, bytes: u64) {
        self.driver.change(|machine| {
            let total = machine["defaults"]["memory"].clone();
            let memory = &mut machine["gpus"][0]["memory"];
            if memory.is_null() {
                *memory = total;
            }
            memory["used"] = json!(bytes);
        });
    }

    fn refusal(&self, request: &GpuRequest) -> String {
        // Of one who knows how it is, who need not look again for a second.
        let inventory = Inventory::discover_with(&DriverRoot::new(self.driver.path()));
        let error = self.allocator.acquire_from(&inventory, request, Wait::none()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GpuUnavailable, "{error}");
        error.to_string()
    }

    fn lease(&self, request: &GpuRequest) -> GpuLease {
        self.allocator.acquire(request, Wait::none()).unwrap()
    }
}

/// What a lease ends by.
type End = fn(GpuLease);

#[test]
fn memory_that_does_not_come_back_is_waited_for_but_not_for_ever() {
    if !driver::available() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let ways: [(&str, End); 5] = [
        ("dropped", drop),
        ("released", |lease| lease.release().unwrap()),
        ("released before a clone", |lease| {
            let clone = lease.clone();
            lease.release().unwrap();
            drop(clone);
        }),
        ("released before a copy of its descriptor", |lease| {
            let copy = lease.as_fd().try_clone_to_owned().unwrap();
            lease.release().unwrap();
            drop(copy);
        }),
        ("closed", |lease| drop(lease.into_fd().unwrap())),
    ];
    for (way, end) in ways {
        let host = Host::new("t4");
        let uuid = host.driver.gpus()[0]["uuid"].as_str().unwrap().to_owned();
        let lease = host.now(1).unwrap();
        host.use_memory(8 * GIB);
        assert_eq!(host.allocator.status().unwrap().returning, [""; 0], "{way}: it is leased");
        end(lease);
        let why = host.refusal(&one());
        assert!(why.contains(MISSING), "{way}: {why}");
        let status = host.allocator.status().unwrap();
        assert_eq!((status.leases.len(), &status.returning[..]), (0, &[uuid][..]), "{way}");
        assert!(status.to_string().contains("memory not back from the last lease\n"), "{way}: {status}");
        let mut ticket = host.allocator.enqueue(&one()).unwrap();
        assert!(ready(&mut ticket).is_none(), "{way}");
        assert!(ticket.reason().contains(MISSING), "{way}: {}", ticket.reason());
        // What a driver keeps for itself is not missed.
        host.use_memory(40 << 20);
        drop(ticket.wait(Some(SOON)).unwrap().expect("the memory is back"));
        drop(ticket);
        assert_eq!(driver::slots(&host.allocator), [""; 0], "{way}");

        let lease = host.now(1).unwrap();
        host.use_memory(8 * GIB);
        end(lease);
        let patient = host.allocator.clone().memory_return(Duration::from_millis(500));
        assert!(host.refusal(&one()).contains(MISSING), "{way}");
        drop(patient.acquire(&one(), Wait::at_most(SOON)).unwrap());
        // That lease began with the memory as it was.
        drop(host.now(1).unwrap());
        assert_eq!(driver::slots(&host.allocator), [""; 0], "{way}");
    }
}

#[test]
fn the_lease_of_a_dead_owner_counts_from_when_its_memory_is_missed() {
    if !driver::available() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    // As after a crash: the slot stays, and nobody holds it. What is damaged behind its text is no time of a release.
    for rest in ["", "0000000000000000\n{\"since\":1}\n", "half a no"] {
        let lease = host.now(1).unwrap();
        host.crash(lease, "lease-0");
        let text = std::fs::read_to_string(host.there("lease-0")).unwrap();
        std::fs::write(host.there("lease-0"), text + rest).unwrap();
        host.use_memory(8 * GIB);
        assert!(host.refusal(&one()).contains(MISSING));
        assert!(host.names().contains(&"gone-0".to_owned()), "{:?}", host.names());
        let patient = host.allocator.clone().memory_return(Duration::from_millis(50));
        drop(patient.acquire(&one(), Wait::at_most(SOON)).unwrap());
        host.use_memory(0);
        assert_eq!(driver::slots(&host.allocator), [""; 0]);
    }
}

#[test]
fn a_note_is_good_for_its_time_and_no_longer_than_its_lease() {
    if !driver::available() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    // Given up long ago: who comes now need not wait, whoever may remove the note.
    let lease = host.now(1).unwrap();
    host.crash(lease, "lease-0");
    let text = std::fs::read_to_string(host.there("lease-0")).unwrap();
    std::fs::write(host.there("lease-0"), text + &sealed("{\"since\":1}")).unwrap();
    host.use_memory(8 * GIB);
    let lease = host.now(1).unwrap();
    assert_eq!(host.names(), [format!("lease-{}", lease.id())]);
    drop(lease);
    host.use_memory(0);
    // One who was killed between two removals, and what somebody made.
    std::fs::write(host.there("gone-1"), sealed("{\"since\":1}")).unwrap();
    std::fs::write(host.there("gone-2"), "").unwrap();
    std::fs::create_dir(host.there("gone-3")).unwrap();
    drop(host.now(1).unwrap());
    assert_eq!(driver::slots(&host.allocator), ["gone-3"]);
    std::fs::remove_dir(host.there("gone-3")).unwrap();
}

#[test]
fn who_waits_is_told_of_a_release_while_there_are_copies_of_the_descriptor() {
    if !driver::available() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let lease = host.now(1).unwrap();
    let copy = lease.as_fd().try_clone_to_owned().unwrap();
    let mut ticket = host.allocator.enqueue(&one()).unwrap();
    assert!(ready(&mut ticket).is_none());
    let start = Instant::now();
    lease.release().unwrap();
    drop(ticket.wait(None).unwrap().unwrap());
    assert!(start.elapsed() < SOON);
    drop((copy, ticket));
    assert_eq!(driver::slots(&host.allocator), [""; 0]);
}

#[test]
fn those_who_share_a_gpu_know_how_it_was_before_all_of_them() {
    if !driver::available() {
        return;
    }
    let _leaks = common::Leaks::watch();
    for sharing in [Sharing::Shared(3), Sharing::Fraction(2 * GIB)] {
        let host = Host::new("t4");
        let request = one().sharing(sharing);
        let first = host.lease(&request);
        host.use_memory(8 * GIB);
        let second = host.lease(&request);
        // Whose memory it is, nobody can tell while one of them is there.
        drop(first);
        let third = host.lease(&request);
        drop(second);
        assert_eq!(host.allocator.status().unwrap().returning, [""; 0]);
        drop(third);
        assert!(host.refusal(&request).contains(MISSING), "{sharing:?}");
        let mut ticket: GpuTicket = host.allocator.enqueue(&one()).unwrap();
        assert!(ready(&mut ticket).is_none());
        host.use_memory(0);
        drop(ticket.wait(Some(SOON)).unwrap().unwrap());
        drop(ticket);
        assert_eq!(driver::slots(&host.allocator), [""; 0]);
    }
}

/// Memory of a process that is seen, and does not matter, is its own.
#[test]
fn memory_of_processes_that_do_not_matter_is_not_waited_for() {
    if !driver::available() {
        return;
    }
    let _leaks = common::Leaks::watch();
    for (pid, request) in [(std::process::id(), one()), (4242, one().foreign_processes(ForeignProcesses::Ignore))] {
        let host = Host::new("t4");
        let lease = host.now(1).unwrap();
        host.use_memory(GIB);
        let process = json!([{ "pid": pid, "memory": GIB }]);
        host.driver.change(|machine| machine["gpus"][0]["compute_processes"] = process);
        drop(lease);
        drop(host.lease(&request));
        host.driver.change(|machine| machine["gpus"][0]["compute_processes"] = Value::Null);
    }
    let host = Host::new("t4");
    let lease = host.now(1).unwrap();
    host.use_memory(GIB);
    host.driver.change(|machine| machine["gpus"][0]["compute_processes"] = json!([{ "pid": 4242, "memory": GIB }]));
    drop(lease);
    assert!(host.refusal(&one()).contains("busy with foreign process 4242"));
    host.driver.change(|machine| machine["gpus"][0]["compute_processes"] = json!([]));
    // It ends, and its memory is still being freed.
    assert!(host.refusal(&one()).contains(MISSING));
    host.use_memory(0);
    drop(host.now(1).unwrap());
}

#[test]
fn memory_that_is_not_the_gpu_s_alone_is_not_waited_for() {
    if !driver::available() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let mut integrated = profile("t4");
    integrated["gpus"][0]["name"] = json!("Orin (nvgpu)");
    let windows = FakeDriver::new("t4");
    std::fs::remove_file(windows.path().join("proc/driver/nvidia/version")).unwrap();
    windows.write("dev/dxg", "");
    for driver in [FakeDriver::with_profile(integrated), windows] {
        let host = Host::of(driver);
        let lease = host.now(1).unwrap();
        host.use_memory(8 * GIB);
        drop(lease);
        assert_eq!(host.names(), [""; 0], "there is nothing to look after");
        drop(host.now(1).unwrap());
    }
}

#[test]
fn who_does_not_wait_bears_with_it_for_a_moment() {
    if !driver::available() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let lease = host.now(1).unwrap();
    host.use_memory(8 * GIB);
    drop(lease);
    let start = Instant::now();
    let error = host.now(1).unwrap_err();
    assert!(error.kind() == ErrorKind::GpuUnavailable && error.to_string().contains(MISSING), "{error}");
    assert!(start.elapsed() >= Duration::from_secs(1) && start.elapsed() < SOON, "{:?}", start.elapsed());
    let lease = std::thread::scope(|scope| {
        let asks = scope.spawn(|| host.now(1).unwrap());
        host.use_memory(0);
        asks.join().unwrap()
    });
    // What somebody holds is no matter of a moment.
    let refused_at_once = || {
        let start = Instant::now();
        assert!(host.now(1).unwrap_err().to_string().contains("leased by"));
        start.elapsed() < Duration::from_secs(1)
    };
    assert!((0..3).any(|_| refused_at_once()));
    drop(lease);
    assert_eq!(driver::slots(&host.allocator), [""; 0]);
}

/// The next waits for the memory of one GPU, and takes another that is free.
#[test]
fn another_gpu_is_taken_meanwhile() {
    if !driver::available() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::pair();
    let lease = host.now(1).unwrap();
    let first = host.driver.gpus()[0]["uuid"].as_str().unwrap().to_owned();
    assert_eq!(lease.gpus(), std::slice::from_ref(&first));
    host.use_memory(40 * GIB);
    lease.release().unwrap();
    let other = host.now(1).unwrap();
    assert_ne!(other.gpus(), std::slice::from_ref(&first));
    let why = host.refusal(&GpuRequest::count(2));
    assert!(why.contains("0 of 2 free") && why.contains(MISSING), "{why}");
    host.use_memory(0);
    assert_eq!(host.now(1).unwrap().gpus(), [first]);
}
