//! Waiting until a program inside serves.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod fixture;

use common::Leaks;
use fixture::Fixture;
use gpucontainer::ErrorKind;
use gpucontainer::net::{PortMapping, PortMode};
use std::time::{Duration, Instant};

/// Far more than anything here takes.
const LONG: Option<Duration> = Some(Duration::from_secs(60));

fn may_run() -> bool {
    common::tier(if common::is_root() { "root" } else { "rootless" })
}

#[test]
fn a_server_is_waited_for() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let fixture = Fixture::new();
    for init in [true, false] {
        let script = "sleep 0.1; exec busybox nc -ll -p 8080 -e cat";
        let sandbox = fixture.shell(script).init(init).spawn().unwrap();
        sandbox.wait_ready(8080, LONG).unwrap();
        sandbox.dial(8080, LONG).unwrap();
        // A second time there is nothing to wait for.
        sandbox.wait_ready(8080, Some(Duration::ZERO)).unwrap();
        sandbox.close().unwrap();
    }
    drop(fixture);
    leaks.check();
}

#[test]
fn published_ports_are_waited_for_as_others_are() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let fixture = Fixture::new();
    for mode in [PortMode::Auto, PortMode::Relay, PortMode::Inject] {
        // Some kernels let only root lock a socket to its port.
        let mapping = PortMapping::tcp(8080, 0).mode(mode).unlocked(true);
        let spawned =
            fixture.shell("sleep 0.1; exec busybox nc -ll -p 8080 -e cat").injectable_ports(true).publish_port(mapping);
        let sandbox = match spawned.spawn() {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                common::skip("root", &error.to_string());
                continue;
            }
            other => other.unwrap(),
        };
        sandbox.wait_ready(8080, LONG).unwrap();
        sandbox.close().unwrap();
    }
    // Its clients wait in the socket of the host, whether or not the program looks there already.
    let mapping = PortMapping::tcp_range(8080, 0, 3).mode(PortMode::HandOver).unlocked(true);
    let sandbox = fixture.shell("exec sleep 1000").publish_port(mapping).spawn().unwrap();
    sandbox.wait_ready(8082, LONG).unwrap();
    assert_eq!(sandbox.wait_ready(8083, Some(Duration::ZERO)).unwrap_err().kind(), ErrorKind::TimedOut);
    sandbox.close().unwrap();
    drop(fixture);
    leaks.check();
}

#[test]
fn an_application_that_ends_is_not_waited_for() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let fixture = Fixture::new();
    for (script, words) in [("sleep 0.5; exit 3", "exit code 3"), ("kill -9 $$", "signal 9"), ("exit 0", "exit code 0")]
    {
        for init in [true, false] {
            // Process 1 of a namespace cannot kill itself.
            if !init && script.starts_with("kill") {
                continue;
            }
            let sandbox = fixture.shell(script).init(init).spawn().unwrap();
            let error = sandbox.wait_ready(8080, None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
            assert!(error.to_string().contains(words) && error.to_string().contains("port 8080"), "{error}");
            sandbox.close().unwrap();
        }
    }
    drop(fixture);
    leaks.check();
}

#[test]
fn a_wait_ends_with_its_time() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let fixture = Fixture::new();
    let sandbox = fixture.shell("exec sleep 1000").spawn().unwrap();
    let started = Instant::now();
    let error = sandbox.wait_ready(8080, Some(Duration::from_millis(200))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!(error.to_string().contains("8080") && error.to_string().contains("refused"), "{error}");
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert_eq!(sandbox.wait_ready(0, None).unwrap_err().kind(), ErrorKind::InvalidArgument);
    sandbox.close().unwrap();
    drop(fixture);
    leaks.check();
}
