//! Sandboxes that lease the GPUs they ask for: nobody else has them meanwhile, and they are free however a start or a
//! sandbox ends.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
mod gpu_machine;

use gpu_machine::{Fixture, possible, run};
use gpucontainer::gpu::{ForeignProcesses, Wait};
use gpucontainer::sandbox::Mount;
use gpucontainer::{Cancel, ErrorKind, GpuRequest, Result, Sandbox};
use std::net::TcpListener;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

fn refusal(start: Result<Sandbox>) -> String {
    let error = start.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable, "{error}");
    error.to_string()
}

#[test]
fn a_gpu_of_a_sandbox_is_nobody_else_s_until_it_ends() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("l40s-pair");
    let (image, allocator) = (fixture.commit(fixture.debian()), fixture.allocator());
    let first = fixture.waiting(&image, "1").spawn().unwrap();
    let lease = first.gpu_lease().unwrap();
    assert_eq!((lease.gpus(), 1), (&first.gpus()[..], first.gpus().len()));
    let [held] = &allocator.status().unwrap().leases[..] else { panic!("one lease") };
    assert_eq!((held.id.as_str(), held.sandbox.as_deref()), (lease.id(), Some(first.name())));
    drop(lease);
    // Who counts gets the other, who names it or wants all is told who has it.
    let one = GpuRequest::count(1).foreign_processes(ForeignProcesses::Ignore);
    let second = fixture.waiting(&image, "0").gpus(one.clone()).spawn().unwrap();
    assert_ne!(first.gpus(), second.gpus());
    let holder = format!("leased by process {}", std::process::id());
    for gpus in ["1", "all", "0,1"] {
        let why = refusal(fixture.waiting(&image, gpus).spawn());
        assert!(why.contains(&holder), "{gpus}: {why}");
    }
    assert!(refusal(fixture.waiting(&image, "0").gpus(one).spawn()).contains("0 of 2 free"));
    // Without a lease nothing is looked at, and nothing taken.
    let beside = fixture.waiting(&image, "none").gpus_unleased("1".parse().unwrap()).spawn().unwrap();
    assert!(beside.gpus() == first.gpus() && beside.gpu_lease().is_none());
    beside.close().unwrap();
    assert_eq!(allocator.status().unwrap().leases.len(), 2);
    second.close().unwrap();
    // Its program's end does not free it, which the caller may still look at; its handle's does.
    drop(first.communicate(b"", Some(SOON)).unwrap());
    assert!(allocator.acquire(&"1".parse().unwrap(), Wait::none()).is_err());
    drop(first);
    assert_eq!(driver::slots(&allocator), [""; 0]);
    assert!(run(fixture.sandbox(&image, "all", "ls -d /dev/nvidia[0-9]*")).unwrap().contains("/dev/nvidia"));
    assert_eq!(driver::slots(&allocator), [""; 0]);
}

/// What a container used may be free only some time after everything inside is dead.
#[test]
fn the_next_waits_until_the_memory_of_a_sandbox_is_back() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let (image, allocator) = (fixture.commit(fixture.debian()), fixture.allocator());
    let use_memory = |bytes: u64| {
        fixture.driver.change(|machine| machine["gpus"][0]["memory"]["used"] = bytes.into());
    };
    type End = fn(Sandbox);
    let ends: [(&str, End); 3] = [
        ("dropped", drop),
        ("closed", |sandbox| sandbox.close().unwrap()),
        ("taken away", |sandbox| {
            let grant = sandbox.granted()[0].clone();
            sandbox.detach_gpus(&grant, false).unwrap();
        }),
    ];
    for (way, end) in ends {
        use_memory(0);
        let sandbox = fixture.waiting(&image, "0").spawn().unwrap();
        use_memory(8 << 30);
        end(sandbox);
        common::until("the lease ends", SOON, || allocator.status().unwrap().leases.is_empty());
        assert_eq!(allocator.status().unwrap().returning.len(), 1, "{way}");
        let why = refusal(fixture.waiting(&image, "0").spawn());
        assert!(why.contains("1 whose memory is not back from the last lease"), "{way}: {why}");
        let next = std::thread::scope(|scope| {
            let next = scope.spawn(|| fixture.waiting(&image, "0").gpu_wait(Wait::at_most(SOON)).spawn().unwrap());
            driver::until_waiting(&allocator, 1);
            use_memory(0);
            next.join().unwrap()
        });
        next.close().unwrap();
        assert_eq!(driver::slots(&allocator), [""; 0], "{way}");
    }
}

#[test]
fn the_last_variable_of_a_name_says_which_gpus_are_leased() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("l40s-pair");
    let image = fixture.commit(fixture.debian().env("NVIDIA_VISIBLE_DEVICES", "1"));
    let machine = fixture.driver.gpus();
    let uuid = |index: usize| machine[index]["uuid"].as_str().unwrap().to_owned();
    let asked = |value: Option<&str>| {
        let builder = fixture.waiting(&image, "none").gpus(GpuRequest::as_image_says());
        value.map_or(builder.clone(), |value| builder.env("NVIDIA_VISIBLE_DEVICES", value)).spawn()
    };
    let of_image = asked(None).unwrap();
    assert_eq!(of_image.gpu_lease().unwrap().gpus(), [uuid(1)]);
    let of_caller = asked(Some("0")).unwrap();
    assert_eq!(of_caller.gpu_lease().unwrap().gpus(), [uuid(0)]);
    assert!(refusal(asked(None)).contains("0 of 1 free"));
    for nothing in ["void", "none"] {
        let sandbox = asked(Some(nothing)).unwrap();
        assert!(sandbox.gpu_lease().is_none() && sandbox.gpus().is_empty(), "{nothing}");
        sandbox.close().unwrap();
    }
    of_image.close().unwrap();
    of_caller.close().unwrap();
    assert_eq!(driver::slots(&fixture.allocator()), [""; 0]);
}

#[test]
fn a_start_that_fails_gives_its_gpus_back_and_a_plan_takes_none() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let (image, allocator) = (fixture.commit(fixture.debian()), fixture.allocator());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let good = || fixture.sandbox(&image, "0", "true");
    // From the earliest to the latest moment at which a start can fail.
    let table = [
        ("a port that somebody has", good().publish(8000, port)),
        ("a user that the image does not know", good().user("nobody-here")),
        ("a directory that is not there", good().mount(Mount::bind("/no/such/directory", "/data"))),
        ("a program that is not there", good().command(["/no/such/program"])),
        ("a requirement that no GPU meets", good().env("NVIDIA_REQUIRE_CUDA", "cuda>=99.0")),
    ];
    for (what, builder) in table {
        let error = builder.spawn().unwrap_err();
        assert_eq!(driver::slots(&allocator), [""; 0], "{what}: {error}");
        drop(allocator.acquire(&GpuRequest::count(1), Wait::none()).unwrap());
    }
    assert!(format!("{:?}", good().plan().unwrap()).contains("nvidia"), "the plan shows what would be granted");
    assert_eq!(driver::slots(&allocator), [""; 0]);
    let lease = allocator.acquire(&GpuRequest::all(), Wait::none()).unwrap();
    assert_eq!(good().plan().unwrap_err().kind(), ErrorKind::GpuUnavailable);
    drop(lease);
}

#[test]
fn a_start_waits_for_its_turn_if_it_may() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let (image, allocator) = (fixture.commit(fixture.debian()), fixture.allocator());
    let first = fixture.waiting(&image, "0").spawn().unwrap();
    let late = fixture.waiting(&image, "0").gpu_wait(Wait::at_most(Duration::from_millis(50))).spawn().unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut, "{late}");
    let cancel = Cancel::new();
    let queued = |wait: Wait| {
        let builder = fixture.waiting(&image, "0").gpu_wait(wait);
        std::thread::spawn(move || builder.spawn())
    };
    let in_line = |number: usize| driver::until_waiting(&allocator, number);
    let given_up = queued(Wait::at_most(SOON).cancel(&cancel));
    in_line(1);
    cancel.cancel();
    assert_eq!(given_up.join().unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    in_line(0);
    let second = queued(Wait::at_most(SOON));
    in_line(1);
    let uuids = first.gpus();
    first.close().unwrap();
    let second = second.join().unwrap().unwrap();
    assert_eq!(second.gpus(), uuids);
    second.close().unwrap();
    assert_eq!(driver::slots(&allocator), [""; 0]);
}

/// A device of a specification that is one of the host's GPUs is that GPU, whatever it is called there.
#[test]
fn another_name_for_a_gpu_is_no_way_round_its_lease() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("l40s-pair");
    let (image, allocator) = (fixture.commit(fixture.debian()), fixture.allocator());
    let machine = fixture.driver.gpus();
    let node = format!("/dev/nvidia{}", machine[1]["minor"]);
    let host_node = fixture.driver.path().join(&node[1..]);
    let directory = fixture.directory.path().join("cdi");
    std::fs::create_dir(&directory).unwrap();
    let spec = format!(
        "cdiVersion: 0.7.0\nkind: example.com/accelerator\ndevices:\n- name: fast\n  containerEdits:\n    deviceNodes:\n    \
         - {{path: {node}, hostPath: {}}}\n- name: paper\n  containerEdits:\n    env: [PAPER=yes]\n",
        host_node.display()
    );
    std::fs::write(directory.join("example.yaml"), spec).unwrap();
    let device = |name: &str| {
        let request = GpuRequest::named([format!("example.com/accelerator={name}")]).unwrap();
        fixture.waiting(&image, "none").gpus(request.cdi_directories([&directory]))
    };
    let uuid = machine[1]["uuid"].as_str().unwrap();
    let named = device("fast").spawn().unwrap();
    assert_eq!(named.gpu_lease().unwrap().gpus(), [uuid]);
    let why = refusal(fixture.waiting(&image, "1").spawn());
    assert!(why.contains("leased by process"), "{why}");
    refusal(device("fast").spawn());
    // What is no GPU of the host is not the allocator's to lease.
    let both = [device("paper").spawn().unwrap(), device("paper").spawn().unwrap()];
    assert!(both.iter().all(|sandbox| sandbox.gpu_lease().is_none()));
    for sandbox in both {
        sandbox.close().unwrap();
    }
    named.close().unwrap();
    let plain = fixture.waiting(&image, "1").spawn().unwrap();
    refusal(device("fast").spawn());
    plain.close().unwrap();
    assert_eq!(driver::slots(&allocator), [""; 0]);
}
