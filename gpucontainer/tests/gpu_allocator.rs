//! Leases on the GPUs of machines that a stand-in for NVML describes: who gets what, in which order, and why not.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;

use driver::{FakeDriver, profile};
use gpucontainer::gpu::{
    DriverRoot, ForeignProcesses, GpuAllocator, GpuFault, GpuLease, GpuTicket, Inventory, Placement, Sharing, Vendor,
    Wait,
};
use gpucontainer::{Cancel, ErrorKind, GpuRequest, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;
const SOON: Duration = Duration::from_secs(20);

/// A machine and an account of its leases.
struct Host {
    driver: FakeDriver,
    table: tempfile::TempDir,
    allocator: GpuAllocator,
}

impl Host {
    fn new(name: &str) -> Self {
        let driver = FakeDriver::new(name);
        let table = tempfile::Builder::new().prefix("gpuc-table.").tempdir_in("/dev/shm").unwrap();
        let allocator = GpuAllocator::at(table.path().join("gpu")).unwrap().driver_root(DriverRoot::new(driver.path()));
        Self { driver, table, allocator: allocator.respect_outer(false) }
    }

    fn inventory(&self) -> Inventory {
        Inventory::discover_with(&DriverRoot::new(self.driver.path()))
    }

    fn now(&self, request: &GpuRequest) -> Result<GpuLease> {
        self.allocator.acquire(request, Wait::none())
    }

    fn indices(&self, lease: &GpuLease) -> Vec<u32> {
        let inventory = self.inventory();
        let index = |uuid: &String| inventory.gpus().iter().find(|gpu| gpu.uuid == *uuid).unwrap().index;
        lease.gpus().iter().map(index).collect()
    }

    fn refusal(&self, request: &GpuRequest) -> String {
        let error = self.now(request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GpuUnavailable, "{error}");
        error.to_string()
    }
}

fn one() -> GpuRequest {
    GpuRequest::count(1)
}

/// Whether the ticket's GPUs are there, without much waiting.
fn ready(ticket: &mut GpuTicket) -> Option<GpuLease> {
    ticket.wait(Some(Duration::from_millis(60))).unwrap()
}

#[test]
fn what_is_leased_is_nobody_else_s_until_it_is_given_back() {
    if !driver::available() {
        return;
    }
    let leaks = common::Leaks::watch();
    let host = Host::new("dgx-a100");
    let five = host.now(&GpuRequest::count(5)).unwrap();
    let two = host.now(&GpuRequest::count(2)).unwrap();
    assert!(five.gpus().iter().all(|gpu| !two.gpus().contains(gpu)));
    assert_eq!(two.request(), GpuRequest::uuids(two.gpus()).unwrap());
    assert!(!two.cpus().is_empty() && !two.numa_nodes().is_empty() && two.describe().contains("GPU "), "{two:?}");
    let why = host.refusal(&GpuRequest::count(2));
    let own = format!("1 of 8 free: 7 leased by process {} (", std::process::id());
    assert!(why.starts_with("2 GPUs asked for: ") && why.contains(&own), "{why}");
    let named = GpuRequest::uuids(&five.gpus()[..1]).unwrap();
    assert!(host.refusal(&named).contains("0 of 1 free: 1 leased by"));
    let clone = five.clone();
    drop(five);
    assert!(host.now(&GpuRequest::count(2)).is_err(), "a clone holds it");
    let same = clone.gpus().to_vec();
    drop(clone);
    assert_eq!(host.now(&GpuRequest::uuids(&same).unwrap()).unwrap().gpus(), same, "in the order asked for");
    two.release().unwrap();
    let all = host.now(&GpuRequest::all()).unwrap();
    assert_eq!(all.gpus().len(), 8);
    let held = all.into_fd().unwrap();
    assert!(host.now(&one()).is_err(), "a descriptor holds it");
    drop(held);
    drop(host.now(&one()).unwrap());
    assert_eq!(driver::slots(&host.allocator), [""; 0]);
    drop(host);
    leaks.check();
}

#[test]
fn what_can_never_be_had_fails_at_once_also_with_time_to_wait() {
    if !driver::available() {
        return;
    }
    let host = Host::new("dgx-a100");
    let start = Instant::now();
    let unavailable = [
        (GpuRequest::count(9), "8 of this host's 8 GPUs suit"),
        (one().model("*H100*"), "is no *H100*"),
        (one().min_compute_capability(9, 0), "has compute capability 8.0"),
        (one().min_total_memory(100 * GIB), "in all"),
        (one().min_free_memory(100 * GIB), "in all"),
        (one().sharing(Sharing::Fraction(100 * GIB)), "in all"),
        (one().vendor(Vendor::Amd), "this host has no AMD GPU"),
        (one().mig_profile("1g.10gb"), "0 of this host's 0 MIG devices suit"),
        (GpuRequest::uuids(["GPU-none"]).unwrap(), "none of this host's 8 GPUs"),
        (GpuRequest::indices([0, 8]).unwrap(), "this host has GPU 0, 1"),
        (GpuRequest::count(8).placement(Placement::SameNumaNode), "are attached to one NUMA node"),
    ];
    for (request, words) in unavailable {
        let error = host.allocator.acquire(&request, Wait::forever()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GpuUnavailable, "{request:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
    for request in [GpuRequest::none(), one().sharing(Sharing::Shared(0)), one().model("")] {
        let error = host.allocator.acquire(&request, Wait::forever()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{request:?}: {error}");
    }
    assert!(start.elapsed() < SOON);
    let none = Host::new("none");
    assert!(none.allocator.acquire(&one(), Wait::forever()).unwrap_err().to_string().contains("it finds no GPU"));
}

#[test]
fn gpus_are_shared_as_far_as_all_who_share_agree() {
    if !driver::available() {
        return;
    }
    let host = Host::new("t4");
    let shared = |number| one().sharing(Sharing::Shared(number));
    let first = host.now(&shared(3)).unwrap();
    let second = host.now(&shared(2)).unwrap();
    assert!(host.now(&shared(3)).is_err(), "the second agreed to two");
    drop(second);
    let second = host.now(&shared(3)).unwrap();
    let third = host.now(&shared(3)).unwrap();
    for request in [shared(3), shared(9), one(), one().sharing(Sharing::Fraction(GIB))] {
        assert!(host.now(&request).is_err(), "{request:?}");
    }
    drop((first, second, third));
    let fraction = |bytes| one().sharing(Sharing::Fraction(bytes));
    let most = host.now(&fraction(10 * GIB)).unwrap();
    let rest = host.now(&fraction(6 * GIB)).unwrap();
    assert!(host.now(&fraction(1)).is_err(), "16 GiB are promised");
    drop(most);
    drop(host.now(&fraction(10 * GIB)).unwrap());
    assert!(host.now(&one()).is_err() && host.now(&shared(2)).is_err());
    drop(rest);
    drop(host.now(&one()).unwrap());

    // Who shares goes where others share, and leaves whole GPUs to those who do not.
    let host = Host::new("dgx-a100");
    let first = host.now(&fraction(GIB)).unwrap();
    let second = host.now(&fraction(GIB)).unwrap();
    assert_eq!(first.gpus(), second.gpus());
    assert_eq!(host.now(&GpuRequest::count(7)).unwrap().gpus().len(), 7);
}

#[test]
fn pairs_are_kept_and_odd_requests_take_what_is_left_over() {
    if !driver::available() {
        return;
    }
    let host = Host::new("dgx-a100");
    let single = host.now(&one()).unwrap();
    let another = host.now(&one()).unwrap();
    let pair = |lease: &GpuLease| lease.gpus().len() == 2 && host.indices(lease)[0] / 2 == host.indices(lease)[1] / 2;
    let odd = [host.indices(&single)[0], host.indices(&another)[0]];
    assert_eq!(odd[0] / 2, odd[1] / 2, "the second took the other half of the broken pair");
    let pairs: Vec<GpuLease> = (0..3).map(|_| host.now(&GpuRequest::count(2)).unwrap()).collect();
    assert!(pairs.iter().all(pair), "{pairs:?}");
}

#[test]
fn foreign_processes_are_avoided_ignored_or_an_error() {
    if !driver::available() {
        return;
    }
    let host = Host::new("l40s-pair");
    let quiet = host.now(&one()).unwrap();
    assert_eq!(host.indices(&quiet), [1]);
    let why = host.refusal(&one());
    assert!(why.contains("0 of 2 free: 1 leased by") && why.contains("1 busy with foreign processes 4100, 4242, 977"));
    let stubborn = one().foreign_processes(ForeignProcesses::Fail);
    let error = host.allocator.acquire(&stubborn, Wait::forever()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
    drop(host.now(&one().foreign_processes(ForeignProcesses::Ignore)).unwrap());
    let error = host.allocator.acquire(&one(), Wait::at_most(Duration::from_millis(100))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("busy with foreign processes"), "{error}");

    let mut ticket = host.allocator.enqueue(&one()).unwrap();
    assert!(ready(&mut ticket).is_none());
    host.driver.change(|machine| {
        let gpu = machine["gpus"][0].as_object_mut().unwrap();
        gpu.remove("processes");
        gpu.remove("compute_processes");
        gpu.remove("graphics_processes");
    });
    let lease = ticket.wait(Some(SOON)).unwrap().expect("the processes are gone");
    assert_eq!(host.indices(&lease), [0]);
}

#[test]
fn who_waits_is_served_in_order_and_not_passed_for_ever() {
    if !driver::available() {
        return;
    }
    let host = Host::new("dgx-a100");
    let seven = host.now(&GpuRequest::count(7)).unwrap();
    let last = host.indices(&host.now(&one()).unwrap())[0];
    let mut large = host.allocator.enqueue(&GpuRequest::count(3)).unwrap();
    assert!(ready(&mut large).is_none());
    assert!(large.reason().contains("1 of 8 free: 7 leased by"), "{}", large.reason());
    let why = host.refusal(&one());
    assert!(why.contains("1 promised to, who waits, process"), "a free GPU is kept for the large request: {why}");
    let busy = (0..8).find(|index| *index != last).unwrap();
    let mut named = host.allocator.enqueue(&GpuRequest::indices([busy]).unwrap()).unwrap();
    let mut small: Vec<GpuTicket> = (0..3).map(|_| host.allocator.enqueue(&one()).unwrap()).collect();
    assert!(small.iter_mut().all(|ticket| ready(ticket).is_none()));
    assert_eq!(host.allocator.status().unwrap().waiting.len(), 5);
    drop(seven);
    assert!(small.iter_mut().all(|ticket| ready(ticket).is_some()), "there is enough for all of them");
    let large = ready(&mut large).expect("its GPUs were kept");
    assert_eq!(large.gpus().len(), 3);
    // It came after the large one, which may have taken its GPU.
    drop(large);
    assert_eq!(host.indices(&ready(&mut named).expect("its GPU was kept")), [busy]);
}

#[test]
fn who_polls_is_told_when_to_look() {
    if !driver::available() {
        return;
    }
    let host = Host::new("t4");
    let held = host.now(&one()).unwrap();
    let mut tickets: Vec<GpuTicket> = (0..3).map(|_| host.allocator.enqueue(&one()).unwrap()).collect();
    let told = |ticket: &mut GpuTicket, limit: Duration| {
        let mut wanted = [PollFd::new(ticket.poll_fd().unwrap(), PollFlags::POLLIN)];
        poll(&mut wanted, PollTimeout::try_from(limit).unwrap()).unwrap() > 0
    };
    // Nobody has looked yet: a timer says so, which a slow machine takes a moment for.
    assert!(tickets.iter_mut().all(|ticket| told(ticket, SOON)));
    assert!(tickets.iter_mut().all(|ticket| ready(ticket).is_none()));
    assert!(!told(&mut tickets[0], Duration::from_millis(50)), "nothing was freed");
    let mut given = Some(held);
    for mut ticket in tickets {
        drop(given.take());
        let number = ticket.poll_fd().unwrap().as_raw_fd();
        let start = Instant::now();
        while given.is_none() {
            assert!(start.elapsed() < SOON, "{}", ticket.reason());
            assert!(told(&mut ticket, SOON), "nobody tells");
            given = ready(&mut ticket);
        }
        // There is nothing more to look for, and it is the same descriptor.
        assert!(!told(&mut ticket, Duration::ZERO));
        assert_eq!(ticket.poll_fd().unwrap().as_raw_fd(), number);
        assert_eq!(ticket.wait(Some(Duration::ZERO)).unwrap_err().kind(), ErrorKind::Closed);
    }
}

#[test]
fn the_first_of_those_who_want_the_same_is_served_first_and_priority_goes_before() {
    if !driver::available() {
        return;
    }
    let host = Host::new("t4");
    let mut held = Some(host.now(&one()).unwrap());
    let order = std::sync::Mutex::new(Vec::new());
    let priorities = [0, 0, 1, 0, 5];
    std::thread::scope(|scope| {
        for (number, priority) in priorities.into_iter().enumerate() {
            let (allocator, order) = (&host.allocator, &order);
            scope.spawn(move || {
                let lease = allocator.acquire(&one().priority(priority), Wait::at_most(SOON)).unwrap();
                order.lock().unwrap().push(number);
                drop(lease);
            });
            until(|| host.allocator.status().unwrap().waiting.len() == number + 1);
        }
        drop(held.take());
    });
    assert_eq!(order.into_inner().unwrap(), [4, 2, 0, 1, 3]);
}

fn until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_wait_ends_in_time_or_when_it_is_cancelled() {
    if !driver::available() {
        return;
    }
    let leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let held = host.now(&one()).unwrap();
    let start = Instant::now();
    let error = host.allocator.acquire(&one(), Wait::at_most(Duration::from_millis(80))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("waited 80ms; 1 GPU asked for: 0 of 1 free"), "{error}");
    assert!((Duration::from_millis(80)..SOON).contains(&start.elapsed()));
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            until(|| host.allocator.status().unwrap().waiting.len() == 1);
            cancel.cancel();
        });
        let error = host.allocator.acquire(&one(), Wait::forever().cancel(&cancel)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
    });
    assert_eq!(driver::slots(&host.allocator).len(), 1, "no place in the queue is left");
    drop((held, host));
    leaks.check();
}

#[test]
fn slices_are_leased_and_their_gpu_is_not() {
    if !driver::available() {
        return;
    }
    let host = Host::new("h100-mig");
    let slice = host.now(&one().mig_profile("3G.40GB")).unwrap();
    assert!(slice.gpus()[0].starts_with("MIG-"));
    assert!(host.refusal(&one().mig_profile("3g.40gb")).contains("0 of 1 free: 1 leased by"));
    drop(host.now(&one().mig_profile("1g.10gb")).unwrap());
    assert!(host.refusal(&one().mig_profile("2g.20gb")).contains("foreign process 31337"));
    assert!(host.refusal(&GpuRequest::count(3).mig_profile("3g.40gb")).contains("1 of this host's 3 MIG devices suit"));
    let status = host.allocator.status().unwrap();
    let gpu = status.gpus[0].uuid.clone();
    let (lease, held) = status.leases_of(&gpu).next().unwrap();
    assert_eq!((lease.id.as_str(), &held.uuid), (slice.id(), &slice.gpus()[0]));
    // By the name that drivers before version 470 give it.
    let device = status.gpus[0].mig_devices.iter().find(|device| device.uuid == held.uuid).unwrap();
    let old = format!("MIG-{gpu}/{}/{}", device.gpu_instance, device.compute_instance);
    let request = GpuRequest::uuids([&old]).unwrap();
    assert!(host.refusal(&request).contains("0 of 1 free: 1 leased by"));
    let uuid = held.uuid.clone();
    drop(slice);
    assert_eq!(host.now(&request).unwrap().gpus(), [uuid]);
}

#[test]
fn a_gpu_that_is_kept_back_is_not_shown_as_free() {
    if !driver::available() {
        return;
    }
    let host = Host::new("dgx-a100");
    let uuid = host.inventory().gpus()[3].uuid.clone();
    assert!(host.allocator.quarantine().report(&uuid, GpuFault::Requested).unwrap());
    let table = host.allocator.status().unwrap().to_string();
    let kept: Vec<&str> = table.lines().filter(|line| line.contains("in quarantine: kept back on request")).collect();
    assert!(kept.len() == 1 && kept[0].starts_with("3 "), "{table}");
    assert_eq!(table.matches("  free\n").count(), 7, "{table}");
    // Nothing is wrong with it, which does not matter; another one has an error.
    assert_eq!(host.allocator.review().unwrap().len(), 1);
    host.driver.change(|state| state["gpus"][5]["health"] = json!({ "uncorrectable_errors": 1 }));
    let kept = host.allocator.review().unwrap();
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert!(host.refusal(&GpuRequest::count(7)).contains("6 of this host's 8 GPUs suit"));
}

#[test]
fn damage_to_a_slot_costs_its_description_and_not_the_lease() {
    if !driver::available() {
        return;
    }
    let host = Host::new("dgx-a100");
    let three = host.now(&GpuRequest::count(3)).unwrap();
    let half = host.now(&one().sharing(Sharing::Fraction(15 * GIB))).unwrap();
    let path = |lease: &GpuLease| host.allocator.path().join(format!("lease-{}", lease.id()));
    for damage in [&b""[..], b"{}", &[0xff; 70_000], b"0000000000000000\n{}\n"] {
        std::fs::write(path(&three), damage).unwrap();
        std::fs::write(path(&half), damage).unwrap();
        let status = host.allocator.status().unwrap();
        let known = |lease: &GpuLease| status.leases.iter().find(|known| known.id == lease.id()).unwrap().clone();
        assert_eq!((known(&three).pid, known(&three).gpus.len()), (None, 3));
        assert_eq!(known(&half).gpus[0].sharing, Sharing::Fraction(15 * GIB));
        assert!(host.refusal(&GpuRequest::uuids(three.gpus()).unwrap()).contains("0 of 3 free"));
        assert!(host.now(&GpuRequest::uuids(half.gpus()).unwrap().sharing(Sharing::Fraction(26 * GIB))).is_err());
        drop(host.now(&GpuRequest::uuids(half.gpus()).unwrap().sharing(Sharing::Fraction(20 * GIB))).unwrap());
    }
    drop((three, half));
    assert_eq!(driver::slots(&host.allocator), [""; 0]);
    drop(host.now(&GpuRequest::count(8)).unwrap());
}

#[test]
fn files_of_others_in_the_directory_are_no_leases() {
    if !driver::available() {
        return;
    }
    let host = Host::new("t4");
    let there = |name: &str| host.allocator.path().join(name);
    std::os::unix::fs::symlink("/dev/zero", there("lease-link")).unwrap();
    std::fs::create_dir(there("lease-directory")).unwrap();
    std::fs::write(there("lease-file"), "nobody locks it").unwrap();
    std::fs::write(there("unrelated"), "stays").unwrap();
    assert!(Command::new("mkfifo").arg(there("wait-fifo")).status().unwrap().success());
    let lease = host.now(&one()).unwrap();
    std::fs::hard_link(there(&format!("lease-{}", lease.id())), there("lease-second")).unwrap();
    assert_eq!(host.allocator.status().unwrap().leases.len(), 1, "two names of one lease are one");
    drop(lease);
    drop(host.now(&one()).unwrap());
    assert_eq!(std::fs::read_to_string(there("unrelated")).unwrap(), "stays");
}

#[test]
fn a_full_file_system_is_an_error_that_says_so() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = Host::new("t4");
    let full = host.table.path().join("full");
    std::fs::create_dir(&full).unwrap();
    let mount = |arguments: &[&str]| Command::new(arguments[0]).args(&arguments[1..]).arg(&full).status().unwrap();
    assert!(mount(&["mount", "-t", "tmpfs", "-o", "nr_inodes=2,size=8k", "tmpfs"]).success());
    let inside = GpuAllocator::at(&full).unwrap().driver_root(DriverRoot::new(host.driver.path()));
    let lease = inside.acquire(&one(), Wait::none()).unwrap();
    let error = inside.enqueue(&one()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    drop(lease);
    drop(inside.acquire(&one(), Wait::none()).unwrap());
    assert!(mount(&["umount"]).success());
}

#[test]
fn a_status_shows_who_holds_what_since_when_and_who_waits() {
    if !driver::available() {
        return;
    }
    let host = Host::new("l40s-pair");
    let lease = host.now(&one()).unwrap();
    let mut ticket = host.allocator.enqueue(&one()).unwrap();
    assert!(ready(&mut ticket).is_none());
    let status = host.allocator.status().unwrap();
    let [held] = status.leases.as_slice() else { panic!("{status:?}") };
    assert_eq!((held.pid, held.id.as_str()), (Some(std::process::id()), lease.id()));
    assert!(held.age.unwrap() < SOON && held.since.is_some() && !held.program.is_empty());
    let text = status.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("0  NVIDIA L40S  ") && lines[0].contains("busy with foreign process 977, 4100, 4242"));
    assert!(lines[1].contains(&format!("process {} (", std::process::id())) && lines[1].contains(" for 0 s"), "{text}");
    assert!(lines[2].starts_with("waiting: process ") && lines[2].contains(" for 1 GPU, 0 s"), "{text}");
    let stored = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<gpucontainer::gpu::GpuStatus>(&stored).unwrap(), status);
}

#[test]
fn an_inventory_of_the_caller_s_is_believed() {
    if !driver::available() {
        return;
    }
    let host = Host::new("l40s-pair");
    let mut quiet = profile("l40s-pair");
    for gpu in quiet["gpus"].as_array_mut().unwrap() {
        gpu.as_object_mut().unwrap().retain(|key, _| !key.contains("processes"));
    }
    let quiet = Inventory::discover_with(&DriverRoot::new(FakeDriver::with_profile(quiet).path()));
    let both = host.allocator.acquire_from(&quiet, &GpuRequest::count(2), Wait::none()).unwrap();
    assert_eq!(both.gpus().len(), 2);
}

#[test]
fn a_directory_that_others_could_empty_is_refused() {
    if !common::tier("root") {
        return;
    }
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let make = |name: &str, mode: u32, user: u32| {
        let path = directory.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        std::os::unix::fs::chown(&path, Some(user), Some(user)).unwrap();
        path
    };
    let theirs = make("theirs", 0o1777, 65534);
    let error = GpuAllocator::at(theirs).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    let own = make("own", 0o700, 0);
    GpuAllocator::at(&own).unwrap();
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&own).unwrap());
    assert_eq!(mode & 0o7777, 0o1777);
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&own, &link).unwrap();
    assert!(GpuAllocator::at(&link).is_err(), "a link may lead elsewhere later");
}

/// What an ordinary user's own file system root looks like does not matter here: only that the path is absolute.
#[test]
fn an_allocator_says_where_its_account_is() {
    let table = tempfile::tempdir_in("/dev/shm").unwrap();
    let allocator = GpuAllocator::at(table.path().join("deep/gpu")).unwrap();
    assert!(allocator.path().is_absolute() && allocator.path().ends_with(Path::new("deep/gpu")));
    assert_eq!(allocator.private(), None);
}
