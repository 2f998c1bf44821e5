//! Clocks that jump: the account of leases goes by none that can be set.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod account;
mod common;
mod driver;
mod fixture;

use account::{Host, SOON, allocator_of_parent, ready, sealed};
use common::until;
use fixture::{role, say};
use gpucontainer::gpu::Wait;
use gpucontainer::{ErrorKind, GpuRequest};
use serde_json::json;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

/// By how many seconds the clock of the other process is wrong: a file.
const CLOCK: &str = "GPUC_TEST_CLOCK";

#[test]
#[ignore = "the other process of a test"]
fn other_process() {
    match role().as_deref() {
        Some("hold") => {
            let lease = allocator_of_parent().acquire(&GpuRequest::count(1), Wait::forever()).unwrap();
            say(&format!("holds {}", lease.gpus()[0]));
            std::thread::sleep(SOON);
        }
        Some("clock") => wrong_clock(),
        other => panic!("no test is for {other:?}"),
    }
}

#[test]
fn a_note_of_a_time_to_come_holds_no_gpu_back() {
    if !driver::available() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let lease = host.now(1).unwrap();
    host.crash(lease, "lease-0");
    host.driver.change(|machine| machine["gpus"][0]["memory"]["used"] = json!(8_u64 << 30));
    assert!(host.now(1).unwrap_err().to_string().contains("memory is not back"));
    std::fs::write(host.there("gone-0"), sealed(&format!("{{\"since\":{}}}", u64::MAX))).unwrap();
    drop(host.now(1).unwrap());
    assert_eq!(driver::slots(&host.allocator), [""; 0]);
}

#[test]
fn a_time_namespace_changes_no_order() {
    if !driver::available() || !common::tier("root") || !common::tools("root", &["unshare"]) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let there = Command::new("unshare").args(["--time", "--boottime", "1", "--fork", "true"]).output().unwrap();
    if !there.status.success() {
        return common::skip("time", "no time namespaces");
    }
    let host = Host::new("t4");
    // The first believes that it is ten hours later, the second that it is now.
    let lease = host.now(1).unwrap();
    let below = ["unshare", "--time", "--boottime", "36000", "--fork", "--kill-child"];
    let mut first = host.start("hold", &below, &[]);
    until("the first waits", SOON, || host.allocator.status().unwrap().waiting.len() == 1);
    let mut second = host.start("hold", &[], &[]);
    until("the second waits", SOON, || host.allocator.status().unwrap().waiting.len() == 2);
    let status = host.allocator.status().unwrap();
    assert!(status.waiting.iter().all(|waiting| waiting.age < SOON), "{status:?}");
    drop(lease);
    first.said("holds");
    let status = host.allocator.status().unwrap();
    assert_eq!((status.leases.len(), status.waiting.len()), (1, 1), "{status:?}");
    assert!(status.leases[0].age.unwrap() < SOON, "{status:?}");
    drop(first);
    second.said("holds");
}

/// Moves the clock of a process away from the system's by as many seconds as a file says.
const SHIM: &str = r#"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    const char *path = getenv("GPUC_TEST_CLOCK");
    if (clock == CLOCK_REALTIME && path) {
        char text[32] = {0};
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            if (read(file, text, sizeof text - 1) > 0) now->tv_sec += atol(text);
            close(file);
        }
    }
    return result;
}
"#;

#[test]
fn a_clock_that_is_set_changes_neither_ages_nor_limits_nor_order() {
    if !driver::available() || !common::tools("toolchain", &["cc"]) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let (source, shim) = (host.table.path().join("shim.c"), host.table.path().join("shim.so"));
    std::fs::write(&source, SHIM).unwrap();
    let cc = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&shim, &source]).status().unwrap();
    assert!(cc.success());
    let clock = host.table.path().join("clock");
    std::fs::write(&clock, "0").unwrap();
    let mut other = host.start("clock", &[], &[(CLOCK, &clock), ("LD_PRELOAD", &shim)]);
    other.said("fine");
    assert!(other.child.wait().unwrap().success());
}

/// A process whose clock is set again and again.
fn wrong_clock() {
    const HOURS: i64 = 3600;
    let path = PathBuf::from(std::env::var_os(CLOCK).unwrap());
    let set = |seconds: i64| {
        // Whole or not at all, as another thread may look.
        let new = path.with_extension("new");
        std::fs::write(&new, seconds.to_string()).unwrap();
        std::fs::rename(new, &path).unwrap();
    };
    let before = SystemTime::now();
    set(7 * HOURS);
    assert!(before.elapsed().unwrap() > Duration::from_secs(6 * 3600), "the clock can be set");
    set(0);
    let allocator = allocator_of_parent();
    let one = GpuRequest::count(1);
    let lease = allocator.acquire(&one, Wait::none()).unwrap();
    let mut first = allocator.enqueue(&one).unwrap();
    for seconds in [9 * HOURS, -9 * HOURS, 400 * 24 * HOURS, 0] {
        set(seconds);
        let status = allocator.status().unwrap();
        assert!(status.leases[0].age.unwrap() < SOON && status.waiting[0].age < SOON, "{status:?}");
        let since = status.leases[0].since.unwrap();
        assert!(since <= SystemTime::now() && since.elapsed().unwrap() < SOON, "by the clock as it is set now");
        // A limit is as long as it is, whatever the clock does meanwhile.
        std::thread::scope(|scope| {
            let start = Instant::now();
            let waiter = scope.spawn(|| allocator.acquire(&one, Wait::at_most(Duration::from_millis(300))));
            while !waiter.is_finished() {
                for jump in [5 * HOURS, -5 * HOURS] {
                    set(seconds + jump);
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            assert_eq!(waiter.join().unwrap().unwrap_err().kind(), ErrorKind::TimedOut);
            let waited = start.elapsed();
            assert!(waited >= Duration::from_millis(300) && waited < SOON, "{waited:?}");
        });
    }
    // Who comes by an early clock stays behind who was there; the highest priority goes before both.
    set(-20 * HOURS);
    let mut second = allocator.enqueue(&one.clone().min_free_memory(1 << 30)).unwrap();
    let mut third = allocator.enqueue(&one.clone().min_free_memory(2 << 30).priority(i32::MAX)).unwrap();
    set(0);
    let waiting = allocator.status().unwrap().waiting;
    let wants: Vec<&str> = waiting.iter().map(|waiting| waiting.wants.as_str()).collect();
    assert_eq!(wants, ["1 GPU with 2.0 GiB free", "1 GPU", "1 GPU with 1.0 GiB free"]);
    drop(lease);
    assert!(ready(&mut second).is_none() && ready(&mut first).is_none());
    for ticket in [&mut third, &mut first, &mut second] {
        drop(ticket.wait(Some(SOON)).unwrap().unwrap());
    }
    say("fine");
}
