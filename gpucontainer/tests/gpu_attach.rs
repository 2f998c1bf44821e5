//! GPUs that come to a running sandbox and go again, on a machine of a driver root with our stand-in for NVML.
//!
//! Opening a node whose major has no driver fails with "No such device or address" where the device filter lets it
//! through, and with "Operation not permitted" where it does not.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
mod gpu_machine;

use driver::{FakeDriver, MAJORS, VERSION, library_directory};
use gpucontainer::gpu::{DriverCapability, DriverRoot, GpuAllocator, GpuGrant, Wait};
use gpucontainer::image::ImageStore;
use gpucontainer::sandbox::{SandboxBuilder, Stdio, UserNamespace};
use gpucontainer::{ErrorKind, GpuRequest, Sandbox};
use std::path::Path;
use std::time::Duration;

/// A machine with GPUs, and a store with a small image.
struct Fixture {
    directory: tempfile::TempDir,
    driver: FakeDriver,
}

impl Fixture {
    fn new(driver: FakeDriver) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), driver }
    }

    fn store(&self) -> ImageStore {
        ImageStore::open(self.directory.path().join("store")).unwrap()
    }

    /// The allocator of this machine, whose leases are nobody else's.
    fn allocator(&self) -> GpuAllocator {
        let allocator = GpuAllocator::at(self.directory.path().join("leases")).unwrap();
        allocator.driver_root(DriverRoot::new(self.driver.path())).respect_outer(false)
    }

    /// A sandbox that waits for its standard input to end.
    fn sandbox(&self) -> SandboxBuilder {
        let busybox = common::which("busybox").unwrap();
        let store = self.store();
        let mut builder = store.build().copy_following_links(busybox, "/bin/busybox").directory("/tmp", 0o1777);
        for name in ["sh", "ls", "cat", "stat", "readlink", "mknod", "find", "echo", "sleep"] {
            builder = builder.symlink("busybox", format!("/bin/{name}"));
        }
        let builder = builder.file("/etc/debian_version", "13.0\n", 0o644);
        // The loader's cache of this host, if it has one, which that of a grant covers.
        let cache = Path::new("/etc/ld.so.cache");
        let builder = if cache.exists() { builder.copy(cache, cache) } else { builder };
        // As an image for development has it: its own library in the place of the driver's.
        let image =
            builder.symlink("stub.so", format!("/{}/libcuda.so.1", library_directory())).commit("gpu:1").unwrap();
        Sandbox::from_image(&image)
            .store(&store)
            .driver_root(DriverRoot::new(self.driver.path()))
            .gpu_allocator(&self.allocator())
            .command(["sh", "-c", "while read -r line; do :; done"])
            .stdin(Stdio::Piped)
            .stdout(Stdio::Null)
            .stderr(Stdio::Null)
    }
}

/// What a shell inside says to both streams.
fn ask(sandbox: &Sandbox, script: &str) -> String {
    let process = sandbox.exec(["sh", "-c", script]).stdin(Stdio::Null).stdout(Stdio::Piped).stderr(Stdio::Piped);
    let output = process.spawn().unwrap().communicate(b"", Some(Duration::from_secs(60))).unwrap();
    [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat()
}

/// Everything that a grant could change inside: nodes, files, links, mounts.
fn inside(sandbox: &Sandbox) -> String {
    let files = "find / -xdev \\( -type f -o -type l \\); find /dev -type c; cat /proc/self/mountinfo | while read -r a b \
                 c root place rest; do echo mount $root $place; done";
    // Texts of the sandbox's own are in files whose names are random, and gone.
    let nameless = |line: &str| line.split_once("//deleted ").map(|(_, place)| format!("mount own {place}"));
    let mut lines: Vec<String> =
        ask(sandbox, files).lines().map(|line| nameless(line).unwrap_or_else(|| line.to_owned())).collect();
    lines.sort();
    lines.join("\n")
}

fn one(index: u32) -> GpuRequest {
    GpuRequest::indices([index]).unwrap()
}

fn possible(tier: &str) -> bool {
    driver::available() && common::tier(tier) && common::tools(tier, &["busybox"])
}

#[test]
fn gpus_come_and_go() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new(FakeDriver::new("dgx-a100"));
    let machine = fixture.driver.gpus();
    let sandbox = fixture.sandbox().spawn().unwrap();
    let empty = inside(&sandbox);
    assert!(!empty.contains("nvidia") && sandbox.gpus().is_empty());

    let first = sandbox.attach_gpus(&one(0), Wait::none()).unwrap();
    assert_eq!(sandbox.gpus(), [machine[0]["uuid"].as_str().unwrap()]);
    assert_eq!(ask(&sandbox, "cd /dev; ls -d -1 nvidia*"), "nvidia-uvm\nnvidia-uvm-tools\nnvidia2\nnvidiactl\n");
    let libraries = library_directory();
    let seen =
        ask(&sandbox, &format!("cd /{libraries}; readlink libcuda.so.1; cat libcuda.so.1 >/dev/null && echo readable"));
    assert_eq!(seen, format!("libcuda.so.{VERSION}\nreadable\n"));
    assert_eq!(
        ask(&sandbox, "nvidia-smi; echo $NVIDIA_VISIBLE_DEVICES"),
        format!("stand-in for nvidia-smi {VERSION}\nvoid\n")
    );
    assert!(ask(&sandbox, "cat /dev/nvidia2").contains("No such device or address"), "the filter lets it through");
    let other = format!("mknod /dev/own c {} 3; cat /dev/own", MAJORS.0);
    assert!(!ask(&sandbox, &other).contains("No such device"), "no other GPU can be opened");
    let with_one = inside(&sandbox);

    let second = sandbox.attach_gpus(&one(7), Wait::none()).unwrap();
    assert_eq!(sandbox.gpus().len(), 2);
    let minor = &machine[7]["minor"];
    assert!(ask(&sandbox, &format!("cat /dev/nvidia{minor}")).contains("No such device or address"));
    assert!(ask(&sandbox, "cat /dev/nvidia2").contains("No such device or address"), "the first one stays");
    let error = sandbox.attach_gpus(&one(7), Wait::none()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");

    // What both have stays with the one that is left, whichever goes first.
    sandbox.detach_gpus(&second, false).unwrap();
    assert_eq!(inside(&sandbox), with_one);
    let second = sandbox.attach_gpus(&one(7), Wait::none()).unwrap();
    sandbox.detach_gpus(&first, false).unwrap();
    assert_eq!(
        ask(&sandbox, "cd /dev; ls -d -1 nvidia*"),
        format!("nvidia-uvm\nnvidia-uvm-tools\nnvidia{minor}\nnvidiactl\n")
    );
    assert!(ask(&sandbox, "nvidia-smi").contains("stand-in"));
    let error = sandbox.detach_gpus(&first, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    sandbox.detach_gpus(&second, false).unwrap();
    assert_eq!(inside(&sandbox), empty, "all is as it was, the image's own link too");
    assert!(sandbox.gpus().is_empty() && ask(&sandbox, "echo $NVIDIA_VISIBLE_DEVICES") == "\n");
    sandbox.close().unwrap();
}

#[test]
fn each_grant_brings_its_own_parts_of_the_driver() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    // With a loader that has a cache, which is the container's own then.
    let fixture = gpu_machine::Fixture::new("l40s-pair");
    let image = fixture.commit(fixture.debian().symlink("busybox", "/bin/find").symlink("busybox", "/bin/grep"));
    let sandbox = fixture.waiting(&image, "void");
    let sandbox = sandbox.spawn().unwrap();
    let empty = inside(&sandbox);
    let with = |index: u32, part: DriverCapability| {
        sandbox.attach_gpus(&one(index).capabilities([part]), Wait::none()).unwrap()
    };
    // Whether the loader finds the library for management, and that for computing.
    let found = || {
        let count = |name: &str| ask(&sandbox, &format!("grep -c {name} /etc/ld.so.cache || true")) == "1\n";
        (count("libnvidia-ml.so.1"), count("libcuda.so.1"))
    };
    // Where it could be thought that files of ours are made.
    ask(&sandbox, "echo mine >/dev/.own");
    let first = with(0, DriverCapability::Utility);
    assert_eq!(ask(&sandbox, "cat /dev/.own; rm /dev/.own"), "mine\n");
    assert_eq!(found(), (true, false));
    let with_first = inside(&sandbox);
    let second = with(1, DriverCapability::Compute);
    assert_eq!(found(), (true, true));
    sandbox.detach_gpus(&second, false).unwrap();
    assert_eq!((found(), inside(&sandbox)), ((true, false), with_first));
    let second = with(1, DriverCapability::Compute);
    sandbox.detach_gpus(&first, false).unwrap();
    assert!(found().1, "what took another one's place stays");
    // Something else in the place of what is there: all is left as it is.
    let before = inside(&sandbox);
    let mut other = second.clone();
    other.gpus.clear();
    other.device_nodes.clear();
    other.mounts[0].source = "/etc/passwd".into();
    let error = sandbox.attach_grant(&other).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    assert!(error.to_string().contains(&other.mounts[0].target.display().to_string()), "{error}");
    assert_eq!(inside(&sandbox), before);
    sandbox.detach_gpus(&second, false).unwrap();
    assert_eq!(inside(&sandbox), empty);
    sandbox.close().unwrap();
}

#[test]
fn a_gpu_of_the_start_can_go_and_another_come() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new(FakeDriver::new("l40s-pair"));
    let machine = fixture.driver.gpus();
    let sandbox = fixture.sandbox().gpus(one(0)).spawn().unwrap();
    let own = machine[0]["minor"].to_string();
    if let Ok(cache) = std::fs::metadata("/etc/ld.so.cache") {
        assert_ne!(ask(&sandbox, "stat -c %s /etc/ld.so.cache"), format!("{}\n", cache.len()), "the grant's is shown");
    }
    let at_start = sandbox.granted();
    assert_eq!(at_start.len(), 1);
    let other = sandbox.attach_gpus(&one(1), Wait::none()).unwrap();
    sandbox.detach_gpus(&at_start[0], false).unwrap();
    let minor = machine[1]["minor"].to_string();
    assert!(ask(&sandbox, &format!("cat /dev/nvidia{minor}")).contains("No such device or address"));
    let said = ask(&sandbox, &format!("ls /dev/nvidia{own}"));
    assert!(said.contains("No such file"), "{said}");
    assert!(ask(&sandbox, "nvidia-smi").contains("stand-in"), "the driver stays with the other");
    sandbox.detach_gpus(&other, false).unwrap();
    if let Ok(cache) = std::fs::metadata("/etc/ld.so.cache") {
        assert_eq!(ask(&sandbox, "stat -c %s /etc/ld.so.cache"), format!("{}\n", cache.len()), "the image's own again");
    }
    let left = "cat $(find / -xdev -type f -name '*nvidia*'); find /dev | while read -r a; do case $a in *nvidia*) echo $a;; esac; done";
    assert_eq!(ask(&sandbox, left), "");
    sandbox.close().unwrap();
}

#[test]
fn whoever_has_a_gpu_open_is_named() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    // The nodes with the minors 3, 5 and 7 can be opened.
    let fixture = Fixture::new(FakeDriver::with_majors(driver::profile("dgx-a100"), (1, 241, 242)));
    let machine = fixture.driver.gpus();
    let index = machine.iter().position(|gpu| gpu["minor"] == 7).unwrap();
    let sandbox = fixture.sandbox().spawn().unwrap();
    let before = inside(&sandbox);
    let grant = sandbox.attach_gpus(&one(u32::try_from(index).unwrap()), Wait::none()).unwrap();
    let holder = sandbox.exec(["sh", "-c", "exec 9</dev/nvidia7; echo ready; read -r line"]);
    let holder = holder.stdin(Stdio::Piped).stdout(Stdio::Piped).stderr(Stdio::Null).spawn().unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(&mut std::fs::File::from(holder.take_stdout().unwrap()), &mut ready).unwrap();
    let error = sandbox.detach_gpus(&grant, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    assert!(error.to_string().contains(&format!("process {} (sh) has device 1:7 open", holder.pid())), "{error}");
    assert_eq!(ask(&sandbox, "ls /dev/nvidia7"), "/dev/nvidia7\n", "nothing has changed");
    sandbox.detach_gpus(&grant, true).unwrap();
    assert_eq!(inside(&sandbox), before);
    drop(holder);
    sandbox.close().unwrap();
}

#[test]
fn all_of_it_or_nothing() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new(FakeDriver::new("t4"));
    let sandbox = fixture.sandbox().spawn().unwrap();
    // A directory where a library is to be a file: found after the nodes and other files were made.
    let place = format!("/{}/libnvidia-ptxjitcompiler.so.{VERSION}", library_directory());
    ask(&sandbox, &format!("busybox mkdir -p {place}"));
    let before = inside(&sandbox);
    let error = sandbox.attach_gpus(&one(0), Wait::none()).unwrap_err();
    assert!(error.to_string().contains("libnvidia-ptxjitcompiler"), "{error}");
    assert_eq!(inside(&sandbox), before);
    assert!(sandbox.gpus().is_empty());
    ask(&sandbox, &format!("busybox rmdir {place}"));
    // Something of the application's own in the place of a node is not touched.
    let minor = fixture.driver.gpus()[0]["minor"].to_string();
    ask(&sandbox, &format!("echo mine >/dev/nvidia{minor}"));
    let error = sandbox.attach_gpus(&one(0), Wait::none()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    assert_eq!(ask(&sandbox, &format!("cat /dev/nvidia{minor}; busybox rm /dev/nvidia{minor}")), "mine\n");
    let grant = sandbox.attach_gpus(&one(0), Wait::none()).unwrap();
    sandbox.detach_gpus(&grant, false).unwrap();
    assert!(sandbox.attach_gpus(&one(9), Wait::none()).unwrap_err().to_string().contains("this host has GPU 0"));
    drop(sandbox.take_stdin());
    sandbox.wait().unwrap();
    assert_eq!(sandbox.attach_grant(&grant).unwrap_err().kind(), ErrorKind::Closed);
    sandbox.close().unwrap();
}

#[test]
fn user_namespaces_are_shown_the_nodes_of_the_host() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new(FakeDriver::new("l40s-pair"));
    let minor = fixture.driver.gpus()[1]["minor"].to_string();
    for users in [UserNamespace::Oneself, UserNamespace::Shifted { first: 200_000, count: 65_536 }] {
        let sandbox = fixture.sandbox().user_namespace(users).spawn().unwrap();
        let before = inside(&sandbox);
        let grant = sandbox.attach_gpus(&one(1), Wait::none()).unwrap();
        assert!(ask(&sandbox, &format!("cat /dev/nvidia{minor}")).contains("No such device or address"), "{users:?}");
        assert!(ask(&sandbox, "nvidia-smi").contains("stand-in"));
        sandbox.detach_gpus(&grant, false).unwrap();
        assert_eq!(inside(&sandbox), before, "{users:?}");
        sandbox.close().unwrap();
    }
}

#[test]
fn an_ordinary_user_attaches_what_it_may_use() {
    if !possible("rootless") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new(FakeDriver::new("t4"));
    let sandbox = fixture.sandbox().spawn().unwrap();
    let before = inside(&sandbox);
    // No ordinary user can make nodes for the stand-in, so the driver and a device that everybody has.
    let mut grant: GpuGrant = sandbox.attach_gpus(&"none".parse().unwrap(), Wait::none()).unwrap();
    assert!(ask(&sandbox, "nvidia-smi").contains("stand-in"));
    sandbox.detach_gpus(&grant, false).unwrap();
    assert_eq!(inside(&sandbox), before);
    let node =
        serde_json::json!({ "path": "/dev/card", "host_path": "/dev/full", "major": 1, "minor": 7, "mode": 438 });
    grant.device_nodes.push(serde_json::from_value(node).unwrap());
    sandbox.attach_grant(&grant).unwrap();
    assert!(ask(&sandbox, "echo x >/dev/card").contains("No space left"));
    sandbox.detach_gpus(&grant, false).unwrap();
    assert_eq!(inside(&sandbox), before);
    assert!(!Path::new("/dev/card").exists());
    sandbox.close().unwrap();
}
