//! Leases of what is attached to a running sandbox: nobody else has it meanwhile, the supervisor holds it as well, and it
//! is free when it is detached and however the sandbox ends.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
mod gpu_machine;

use gpu_machine::{Fixture, possible};
use gpucontainer::gpu::{GpuAllocator, GpuLease, Wait};
use gpucontainer::{Cancel, ErrorKind, GpuRequest, Sandbox};
use std::path::Path;
use std::time::{Duration, SystemTime};

const SOON: Duration = Duration::from_secs(60);

/// A name that no other run of the tests uses meanwhile.
fn name(word: &str) -> String {
    format!("{word}-{}", std::process::id())
}

fn one(index: u32) -> GpuRequest {
    GpuRequest::indices([index]).unwrap()
}

/// Who holds what: the sandboxes, and the numbers of their GPUs.
fn holders(allocator: &GpuAllocator) -> Vec<(Option<String>, usize)> {
    allocator.status().unwrap().leases.into_iter().map(|lease| (lease.sandbox, lease.gpus.len())).collect()
}

/// How many descriptors the supervisor of a sandbox has. Once it listens to signals, it has closed those of the start.
fn descriptors(sandbox: &Sandbox) -> usize {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", sandbox.pid())).unwrap();
    let supervisor = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().to_owned();
    let mut number = 0;
    common::until("the supervisor listens", SOON, || {
        let entries = std::fs::read_dir(format!("/proc/{supervisor}/fd")).unwrap();
        let files: Vec<_> = entries.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok()).collect();
        number = files.len();
        files.iter().any(|file| file.to_string_lossy().contains("signalfd"))
    });
    number
}

/// Waits until the supervisor has done as it was told.
fn until_held(sandbox: &Sandbox, number: usize) {
    common::until("the supervisor has as many descriptors", SOON, || descriptors(sandbox) == number);
}

/// Leaves only copies of the descriptor, and closes that of this process.
fn forget(lease: GpuLease) {
    drop(lease.into_fd().unwrap());
}

#[test]
fn what_is_attached_is_nobody_else_s_until_it_is_detached() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("dgx-a100");
    let (image, allocator) = (fixture.commit(fixture.debian()), fixture.allocator());
    let own = fixture.waiting(&image, "7").name(name("own")).spawn().unwrap();
    let other = fixture.waiting(&image, "void").name(name("other")).spawn().unwrap();
    let few = descriptors(&own);
    let before = SystemTime::now();
    let first = own.attach_gpus(&one(0), Wait::none()).unwrap();
    let second = own.attach_gpus(&GpuRequest::count(2), Wait::none()).unwrap();
    assert_eq!(own.gpus(), [own.gpu_lease().unwrap().gpus(), &first.gpus, &second.gpus].concat());
    let leased: Vec<Vec<String>> = own.gpu_leases().iter().map(|lease| lease.gpus().to_vec()).collect();
    assert_eq!(leased, [own.granted()[0].gpus.clone(), first.gpus.clone(), second.gpus.clone()]);
    until_held(&own, few + 2);

    let status = allocator.status().unwrap();
    let named = |word: &str| Some(name(word));
    assert_eq!(holders(&allocator), [(named("own"), 1), (named("own"), 1), (named("own"), 2)]);
    assert!(status.leases[1..].iter().all(|lease| lease.since.unwrap() >= before - Duration::from_secs(1)));
    assert!(status.to_string().contains(&format!("sandbox {} of process ", own.name())), "{status}");
    // Others are told who has it: those who start, those who attach, and those who lease.
    let request = GpuRequest::uuids(&first.gpus).unwrap();
    let refused = [
        fixture.waiting(&image, "0").spawn().map(drop),
        other.attach_gpus(&one(0), Wait::none()).map(drop),
        allocator.acquire(&request, Wait::none()).map(drop),
        other.attach_gpus(&GpuRequest::count(5), Wait::none()).map(drop),
    ];
    for error in refused.map(Result::unwrap_err) {
        assert_eq!(error.kind(), ErrorKind::GpuUnavailable, "{error}");
        assert!(error.to_string().contains(&format!("leased by process {}", std::process::id())), "{error}");
    }
    assert!(other.gpus().is_empty() && other.gpu_leases().is_empty());
    // What it has is no use to it a second time, however long it waited.
    let error = own.attach_gpus(&one(0), Wait::forever()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    let error = own.attach_gpus(&GpuRequest::count(5), Wait::forever()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable, "{error}");
    assert!(error.to_string().contains(&format!("sandbox {} has it already", own.name())), "{error}");
    // Who does not lease does not ask, and keeps nobody from anything.
    let beside = other.attach_gpus_unleased(&one(0)).unwrap();
    assert!(beside.gpus == first.gpus && other.gpu_leases().is_empty());
    other.detach_gpus(&beside, false).unwrap();
    assert_eq!(allocator.status().unwrap().leases.len(), 3);

    own.detach_gpus(&first, false).unwrap();
    let moved = other.attach_gpus(&one(0), Wait::none()).unwrap();
    assert_eq!(moved.gpus, first.gpus);
    assert_eq!(holders(&allocator), [(named("own"), 1), (named("own"), 2), (named("other"), 1)]);
    // What it started with goes the same way.
    let at_start = own.granted()[0].clone();
    own.detach_gpus(&at_start, false).unwrap();
    assert!(own.gpu_lease().is_none());
    assert_eq!(own.gpu_leases().len(), 1);
    drop(allocator.acquire(&one(7), Wait::none()).unwrap());
    until_held(&own, few);
    own.close().unwrap();
    assert_eq!(holders(&allocator), [(named("other"), 1)]);
    drop(other);
    assert_eq!(driver::slots(&allocator), [""; 0]);
}

#[test]
fn an_attachment_that_fails_leaves_no_lease() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let (image, allocator) = (fixture.commit(fixture.debian()), fixture.allocator());
    let sandbox = fixture.waiting(&image, "void").spawn().unwrap();
    let first_name = sandbox.name().to_owned();
    let few = descriptors(&sandbox);
    // Found after the lease was handed on: the container has something of its own in the place of a node.
    let minor = fixture.driver.gpus()[0]["minor"].to_string();
    let root = format!("/proc/{}/root/dev/nvidia{minor}", sandbox.pid());
    std::fs::write(&root, "mine").unwrap();
    // And before: nothing of it fits.
    let lease = allocator.acquire(&one(0), Wait::none()).unwrap();
    for error in [sandbox.attach_lease(&lease).unwrap_err(), {
        drop(lease);
        sandbox.attach_gpus(&one(0), Wait::none()).unwrap_err()
    }] {
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    }
    until_held(&sandbox, few);
    assert_eq!(driver::slots(&allocator), [""; 0]);
    std::fs::remove_file(&root).unwrap();
    // The device rules cannot be made: somebody has a group where the sandbox's would be.
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", sandbox.pid())).unwrap();
    let own = groups.lines().find_map(|line| line.split_once(":pids:/")).map(|(_, own)| own);
    let devices = Path::new("/sys/fs/cgroup/devices");
    if let (Some(own), true) = (own, devices.is_dir()) {
        let other = devices.join(own);
        // It was made for the attachments before, and is the sandbox's.
        let sandbox = fixture.waiting(&image, "void").spawn().unwrap();
        let group = other.file_name().unwrap().to_str().unwrap();
        let place = other.with_file_name(group.replace(&first_name, sandbox.name()));
        std::fs::create_dir_all(place.join("inner")).unwrap();
        let error = sandbox.attach_gpus(&one(0), Wait::none()).unwrap_err();
        assert!(error.to_string().contains("set device rules"), "{error}");
        assert!(sandbox.gpus().is_empty() && driver::slots(&allocator).is_empty());
        std::fs::remove_dir(place.join("inner")).unwrap();
        std::fs::remove_dir(&place).unwrap();
        let grant = sandbox.attach_gpus(&one(0), Wait::none()).unwrap();
        sandbox.detach_gpus(&grant, false).unwrap();
        sandbox.close().unwrap();
    }
    sandbox.attach_gpus(&one(0), Wait::none()).unwrap();
    sandbox.close().unwrap();
    assert_eq!(driver::slots(&allocator), [""; 0]);
}

#[test]
fn an_attachment_waits_for_its_turn_if_it_may() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let (image, allocator) = (fixture.commit(fixture.debian()), fixture.allocator());
    let first = fixture.waiting(&image, "0").spawn().unwrap();
    let second = fixture.waiting(&image, "void").name(name("second")).spawn().unwrap();
    let late = second.attach_gpus(&one(0), Wait::at_most(Duration::from_millis(50))).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut, "{late}");
    let in_line = |number: usize| driver::until_waiting(&allocator, number);
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let given_up = scope.spawn(|| second.attach_gpus(&one(0), Wait::forever().cancel(&cancel)));
        in_line(1);
        let [waits] = &allocator.status().unwrap().waiting[..] else { panic!("one waits") };
        assert_eq!(waits.sandbox.as_deref(), Some(second.name()));
        assert!(second.gpus().is_empty(), "the sandbox can be used meanwhile");
        cancel.cancel();
        assert_eq!(given_up.join().unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
        let served = scope.spawn(|| second.attach_gpus(&one(0), Wait::at_most(SOON)));
        in_line(1);
        let at_start = first.granted()[0].clone();
        first.detach_gpus(&at_start, false).unwrap();
        assert_eq!(served.join().unwrap().unwrap().gpus, at_start.gpus);
        // Who waits for a sandbox that ends waits no more.
        let in_vain = scope.spawn(|| first.attach_gpus(&one(0), Wait::forever()));
        in_line(1);
        first.kill(9).unwrap();
        assert_eq!(in_vain.join().unwrap().unwrap_err().kind(), ErrorKind::Closed);
        in_line(0);
    });
    second.close().unwrap();
    assert_eq!(driver::slots(&allocator), [""; 0]);
}

#[test]
fn a_lease_of_the_caller_s_is_the_sandbox_s_as_long_as_it_is_attached() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("l40s-pair");
    let (image, allocator) = (fixture.commit(fixture.debian()), fixture.allocator());
    let leases = || allocator.status().unwrap().leases.len();
    let own = |index| {
        allocator
            .acquire(&one(index).foreign_processes(gpucontainer::gpu::ForeignProcesses::Ignore), Wait::none())
            .unwrap()
    };
    let (at_start, later) = (own(0), own(1));
    let sandbox = fixture.waiting(&image, "void").gpu_lease(&at_start).spawn().unwrap();
    let grant = sandbox.attach_lease(&later).unwrap();
    assert_eq!(grant.gpus, later.gpus());
    assert_eq!(sandbox.gpus(), [at_start.gpus(), later.gpus()].concat());
    assert_eq!(sandbox.attach_lease(&later).unwrap_err().kind(), ErrorKind::AlreadyExists);
    let few = descriptors(&sandbox);
    // Detached, both are the caller's alone, in the supervisor too: they end with the caller's descriptors.
    sandbox.detach_gpus(&grant, false).unwrap();
    sandbox.detach_gpus(&sandbox.granted()[0], false).unwrap();
    assert_eq!((leases(), sandbox.gpus().len()), (2, 0));
    until_held(&sandbox, few - 2);
    forget(at_start);
    assert_eq!(leases(), 1);
    // The caller may give its handle up before.
    let grant = sandbox.attach_lease(&later).unwrap();
    drop(later);
    assert_eq!(leases(), 1);
    sandbox.detach_gpus(&grant, false).unwrap();
    assert_eq!(leases(), 0);
    // A paused supervisor reads nothing; what it was given is on its way, and goes again.
    let later = own(1);
    let few = descriptors(&sandbox);
    sandbox.pause().unwrap();
    let grant = sandbox.attach_lease(&later).unwrap();
    assert_eq!(descriptors(&sandbox), few);
    sandbox.detach_gpus(&grant, false).unwrap();
    let grant = sandbox.attach_lease(&later).unwrap();
    sandbox.resume().unwrap();
    until_held(&sandbox, few + 1);
    sandbox.detach_gpus(&grant, false).unwrap();
    until_held(&sandbox, few);
    sandbox.close().unwrap();
    assert_eq!(leases(), 1);
    drop(later);
    assert_eq!(leases(), 0);
}
