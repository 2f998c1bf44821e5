//! MPS daemons whose leases, keepers and own processes are killed at any moment: nothing stays, and nothing goes too early.

#![allow(unsafe_code, reason = "a host that forks and executes nothing, which nothing wraps")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "what a forked child does takes a few calls")]
#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
mod fixture;
mod mps;

use common::until;
use fixture::{Fixture, role, say};
use gpucontainer::GpuRequest;
use gpucontainer::gpu::{DriverRoot, GpuLease, Sharing, Wait};
use mps::possible_in_containers;
use mps::{
    DRIVER, Host, SOON, TABLE, alive, allocator, half, image, kill, one, own_user, parent, possible, shared_memory,
};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
#[ignore = "the other process of a test"]
fn other_process() {
    let path = |name| PathBuf::from(std::env::var_os(name).unwrap());
    let allocator = allocator(&path(TABLE), &path(DRIVER));
    let acquire = |request: &GpuRequest| allocator.acquire(request, Wait::forever()).unwrap();
    let daemon = |lease: &GpuLease| lease.mps().unwrap().unwrap().pid;
    let sandbox = |lease: &GpuLease| {
        let builder = Fixture::of_parent().shell("sleep 300").driver_root(DriverRoot::new(path(DRIVER)));
        let nothing = || gpucontainer::sandbox::Stdio::Null;
        builder.gpu_lease(lease).stdout(nothing()).stderr(nothing()).spawn().unwrap()
    };
    match role().as_deref() {
        Some("hold") => {
            let lease = acquire(&one().mps(half()));
            say(&format!("daemon {}", daemon(&lease)));
            std::thread::sleep(SOON);
        }
        Some("share") => {
            let lease = acquire(&one().sharing(Sharing::Shared(4)).mps(half()));
            say(&format!("daemon {}", daemon(&lease)));
            std::thread::sleep(SOON);
        }
        Some("again and again") => loop {
            drop(acquire(&one().sharing(Sharing::Shared(4)).mps(half())));
            say("round 1");
        },
        Some("container") => {
            let lease = acquire(&one().mps(half()));
            let sandbox = sandbox(&lease);
            say(&format!("daemon {}", daemon(&lease)));
            say(&format!("container {}", sandbox.pid()));
            std::thread::sleep(SOON);
        }
        Some("detached") => {
            let lease = acquire(&one().mps(half()));
            let sandbox = sandbox(&lease);
            say(&format!("daemon {}", daemon(&lease)));
            say(&format!("container {}", sandbox.pid()));
            sandbox.detach().unwrap();
            drop(lease);
        }
        Some("fork") => {
            // Children of this program that execute nothing, one after the other while it gets a lease and gives it up.
            for _ in 0..5 {
                let children = std::thread::scope(|scope| {
                    let (stop, stopped) = std::sync::mpsc::channel::<()>();
                    let forking = scope.spawn(move || fork_until(&stopped));
                    let lease = acquire(&one().mps(half()));
                    drop(stop);
                    let children = forking.join().unwrap();
                    assert!(children.len() > 2, "{children:?}");
                    lease.release().unwrap();
                    children
                });
                // Whoever waits has a limit and would have failed: none of the children has ended.
                assert!(children.iter().all(|child| alive(*child)), "they live longer than the daemon");
                for child in children {
                    kill(child, "-KILL");
                    let child = i32::try_from(child).unwrap();
                    // SAFETY: nobody else collects this process's child, and no status is asked for.
                    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
                }
            }
            say("process 1");
        }
        Some("process 1") => {
            // Orphans are this process's to collect, whoever made them.
            for _ in 0..3 {
                let lease = acquire(&one().mps(half()));
                assert_eq!(children().len(), 1, "the keeper, as process 1 has it");
                lease.release().unwrap();
                assert_eq!(children(), [0; 0]);
            }
            say(&format!("process {}", std::process::id()));
        }
        other => panic!("no test is for {other:?}"),
    }
}

/// Makes children that have copies of all that is open here, until nobody can say any more that it should stop.
fn fork_until(stopped: &std::sync::mpsc::Receiver<()>) -> Vec<u32> {
    let parent = i32::try_from(std::process::id()).unwrap();
    let mut children = Vec::new();
    let begin = Instant::now();
    // At every moment of a start of some milliseconds, and not too many for a machine where it takes seconds.
    let pause = || (begin.elapsed() / 30).max(Duration::from_micros(300));
    while stopped.recv_timeout(pause()) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
        // SAFETY: the child waits for its end, and does nothing that other threads' locks could forbid.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: none of these touches memory. A test that fails leaves no child.
            unsafe {
                while libc::getppid() == parent {
                    libc::usleep(200_000);
                }
                libc::_exit(0);
            }
        }
        children.extend(u32::try_from(child));
    }
    children
}

/// The children of this process, dead ones too.
fn children() -> Vec<u32> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let of_task = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let lists: Vec<String> = tasks.flatten().map(of_task).collect();
    lists.iter().flat_map(|list| list.split_whitespace()).map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn a_keeper_is_nobody_s_child_and_collected_where_it_is() {
    if !driver::available() || !common::tier("root") || !common::tools("root", &["unshare"]) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let lease = host.allocator.acquire(&one().mps(half()), Wait::none()).unwrap();
    assert_ne!(parent(parent(lease.mps().unwrap().unwrap().pid)), std::process::id(), "not of who has the lease");
    lease.release().unwrap();
    let mut first = Command::new("unshare");
    first.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(std::env::current_exe().unwrap());
    first.args(["--exact", "other_process", "--ignored", "--nocapture"]);
    first.env("RUST_TEST_THREADS", "2").env("GPUC_TEST_ROLE", "process 1");
    assert_eq!(host.spawn(first).said("process"), 1);
    host.check_clean("after process 1");
}

#[test]
fn what_forks_and_executes_nothing_holds_no_daemon() {
    if !possible() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    host.start("fork").said("process");
    host.check_clean("after the last lease");
}

#[test]
fn a_descriptor_of_the_lease_holds_the_daemon() {
    if !possible() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let lease = host.acquire(&one().mps(half())).unwrap();
    let daemon = lease.mps().unwrap().unwrap().pid;
    let descriptor = lease.into_fd().unwrap();
    // Another program has a copy as its standard input.
    let copy = descriptor.try_clone().unwrap();
    let mut other = Command::new("sleep").arg("300").stdin(Stdio::from(copy)).spawn().unwrap();
    drop(descriptor);
    assert!(alive(daemon));
    other.kill().unwrap();
    other.wait().unwrap();
    until("the daemon is dead", SOON, || host.processes().is_empty());
    host.check_collected("after the last holder");
}

#[test]
fn the_daemon_ends_with_a_holder_that_is_killed() {
    if !possible() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let mut holder = host.start("hold");
    let daemon = holder.said("daemon");
    let [group] = &host.allocator.status().unwrap().mps[..] else { panic!("one group") };
    host.ask(group, &format!("start_server -uid {}\n", own_user()));
    until("a server runs", SOON, || host.daemons().len() == 2);
    holder.kill();
    until("the daemon, its server and its keeper are dead", SOON, || host.processes().is_empty());
    assert!(!alive(daemon));
    // Nobody was left who could remove files: the next who opens does.
    host.check_collected("after the first holder");
    let lease = host.acquire(&one().mps(half())).unwrap();
    drop(lease);
    host.check_clean("after the next lease");
    // The last of several holders, whoever it is.
    let (mut first, mut second) = (host.start("share"), host.start("share"));
    let daemon = first.said("daemon");
    assert_eq!(second.said("daemon"), daemon);
    first.kill();
    until("the dead lease is gone", SOON, || {
        let status = host.allocator.status().unwrap();
        status.leases.len() == 1
    });
    assert!(alive(daemon));
    second.kill();
    until("the daemon is dead", SOON, || host.processes().is_empty());
    host.check_collected("after the last holder");
}

#[test]
fn killed_at_any_moment_nothing_is_left() {
    if !possible() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    // From before the first file to somewhere in the life of a group, a little later each time.
    for round in 0..40 {
        let mut other = host.start("again and again");
        if round % 4 == 3 {
            other.said("round");
        }
        std::thread::sleep(Duration::from_micros(round * 1_700));
        other.kill();
        until("nothing runs any more", SOON, || host.processes().is_empty());
    }
    host.check_collected("after the last kill");
    drop(host.allocator.acquire(&one().mps(half()), Wait::at_most(SOON)).unwrap());
    host.check_clean("after the next lease");
}

#[test]
fn with_its_keeper_the_daemon_dies_and_without_its_daemon_the_keeper() {
    if !possible() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let request = one().sharing(Sharing::Shared(4)).mps(half());
    for of_keeper in [true, false] {
        let lease = host.acquire(&request).unwrap();
        let group = lease.mps().unwrap().unwrap();
        host.ask(&group, &format!("start_server -uid {}\n", own_user()));
        until("a server runs", SOON, || host.daemons().len() == 2);
        kill(if of_keeper { parent(group.pid) } else { group.pid }, "-KILL");
        until("all are dead", SOON, || host.processes().is_empty());
        let mut status = host.allocator.status().unwrap();
        until("the kernel has freed the locks of the dead", SOON, || {
            status = host.allocator.status().unwrap();
            !status.mps[0].running
        });
        assert!(status.leases[0].mps(&status).is_some(), "{status:?}");
        assert!(status.to_string().contains("MPS daemon dead"), "{status}");
        // The lease stays, and the next one has a daemon that lives.
        let next = host.acquire(&request).unwrap();
        let successor = next.mps().unwrap().unwrap();
        assert!(successor.running && successor.pid != group.pid);
        let revived = lease.mps().unwrap().unwrap();
        assert!(revived.pid == successor.pid && revived.leases.len() == 2, "of the first lease, too: {revived:?}");
        assert_eq!(revived.pipe_directory, group.pipe_directory);
        // It ends with the last of them, whichever that is.
        let (first, last) = if of_keeper { (lease, next) } else { (next, lease) };
        first.release().unwrap();
        assert!(alive(successor.pid));
        last.release().unwrap();
        host.check_clean("after both");
    }
}

#[test]
fn what_a_container_leaves_and_nobody_can_remove_keeps_no_daemon_from_starting() {
    if !possible() || !common::tier("root") || !common::tools("root", &["mount", "umount"]) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let request = one().sharing(Sharing::Shared(4)).mps(half());
    let first = host.acquire(&request).unwrap();
    let group = first.mps().unwrap().unwrap();
    // As a directory of another user's, which an ordinary caller cannot empty: root cannot empty this one.
    let places = [group.pipe_directory.join("held/deep"), shared_memory()[0].join("shm/held/deep")];
    for place in &places {
        std::fs::create_dir_all(place).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "gpuc-mps-held"]).arg(place).status().unwrap();
        assert!(mounted.success());
    }
    kill(parent(group.pid), "-KILL");
    until("the daemon is dead", SOON, || !host.allocator.status().unwrap().mps[0].running);
    let runs = |lease: &GpuLease| lease.mps().unwrap().unwrap().running;
    let second = host.acquire(&request);
    let second_daemon = second.as_ref().map(runs).map_err(ToString::to_string);
    first.release().unwrap();
    let left = second.map(GpuLease::release);
    let third = host.acquire(&request);
    let third_daemon = third.as_ref().map(runs).map_err(ToString::to_string);
    drop(third);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    for place in
        mounts.lines().filter(|line| line.contains(" - tmpfs gpuc-mps-held ")).filter_map(|line| line.split(' ').nth(4))
    {
        assert!(Command::new("umount").arg(place).status().unwrap().success(), "{place}");
    }
    assert!(matches!(second_daemon, Ok(true)), "beside a lease that has the directories: {second_daemon:?}");
    assert!(matches!(left, Ok(Err(_))), "it says what it leaves: {left:?}");
    assert!(matches!(third_daemon, Ok(true)), "with new directories: {third_daemon:?}");
    host.check_collected("when nothing keeps it any more");
    host.check_clean("at the end");
}

#[test]
fn a_daemon_lives_as_long_as_the_container_that_has_the_lease() {
    if !possible_in_containers() {
        return;
    }
    let (host, fixture) = (Host::new("t4"), image());
    for role in ["container", "detached"] {
        let mut other = host.spawn(fixture.apart(role));
        let (daemon, container) = (other.said("daemon"), other.said("container"));
        let [group] = &host.allocator.status().unwrap().mps[..] else { panic!("one group") };
        host.ask(group, "start_server -uid 0\n");
        until("a server runs", SOON, || host.daemons().len() == 2);
        if role == "detached" {
            other.child.wait().unwrap();
            assert!(alive(daemon) && alive(container), "they need nobody");
            kill(container, "-KILL");
        } else {
            other.kill();
        }
        until("the daemon and its server are dead", SOON, || host.processes().is_empty());
        assert!(!alive(container), "{role}: the daemon died before its container");
        host.check_collected(role);
    }
    gpucontainer::sandbox::collect_abandoned(&fixture.store).unwrap();
}
