//! MPS daemons of leases: one for each group, with the limits that were asked for, as long as its leases live.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
mod fixture;
mod mps;

use common::until;
use driver::{FakeDriver, split_a100};
use gpucontainer::gpu::{DriverCapability, DriverRoot, ForeignProcesses, ImageFacts, Mps};
use gpucontainer::gpu::{Sharing, Vendor, Wait, grant};
use gpucontainer::sandbox::{SandboxBuilder, Stdio as Io};
use gpucontainer::{ErrorKind, GpuRequest};
use mps::{Host, SOON, alive, half, image, one, own_user, possible, possible_in_containers, shared_memory};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn a_lease_has_a_daemon_of_its_own_that_ends_with_it() {
    if !possible() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("dgx-1");
    // As somebody leaves it who is killed while he makes it.
    let groups = host.allocator.path().join(format!("mps-{}", own_user()));
    std::fs::create_dir(&groups).unwrap();
    std::fs::set_permissions(&groups, PermissionsExt::from_mode(0o755)).unwrap();
    let start = Instant::now();
    let lease = host.acquire(&GpuRequest::count(2).mps(half())).unwrap();
    eprintln!("with its daemon: {:?}", start.elapsed());
    let group = lease.mps().unwrap().unwrap();
    assert!(group.running && group.id == lease.id() && group.leases == [lease.id()], "{group:?}");
    assert_eq!((group.active_threads, group.device_memory), (Some(50), Some(3 << 30)));
    assert_eq!(group.gpus, lease.gpus());
    assert_eq!(std::fs::read_to_string(format!("/proc/{}/comm", group.pid)).unwrap(), "nvidia-cuda-mps\n");
    // It knows the limits, and nothing of this process's environment.
    let answers = host.ask(&group, "get_default_active_thread_percentage\nget_default_device_pinned_mem_limit 1\n");
    assert_eq!(answers, "50.0 3072M");
    let environment = std::fs::read(format!("/proc/{}/environ", group.pid)).unwrap();
    let environment: BTreeMap<String, String> = environment
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).unwrap().split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let names: Vec<&str> = environment.keys().map(String::as_str).collect();
    let expected = [
        "CUDA_DEVICE_ORDER",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
        "CUDA_MPS_LOG_DIRECTORY",
        "CUDA_MPS_PIPE_DIRECTORY",
        "CUDA_VISIBLE_DEVICES",
        "LD_LIBRARY_PATH",
        "PATH",
    ];
    assert_eq!(names, expected);
    assert_eq!(environment["CUDA_VISIBLE_DEVICES"], lease.gpus().join(","));
    let library = group.pipe_directory.with_file_name("lib").join("libcuda.so.1");
    assert!(library.canonicalize().unwrap().starts_with(host.driver.path().canonicalize().unwrap()));
    // No other user of the host gets to its pipes, or its shared memory.
    for place in [group.pipe_directory.ancestors().nth(2).unwrap().to_owned(), shared_memory()[0].clone()] {
        assert_eq!(place.metadata().unwrap().permissions().mode() & 0o777, 0o700, "{place:?}");
    }
    // The status tells of it.
    let status = host.allocator.status().unwrap();
    assert_eq!(status.leases[0].mps(&status).map(|group| (&group.id, group.pid)), Some((&group.id, group.pid)));
    assert!(status.to_string().contains(&format!("MPS daemon {}", group.pid)), "{status}");
    // It has no more than it needs to serve other users, whose it can be for root alone.
    let proc_status = std::fs::read_to_string(format!("/proc/{}/status", group.pid)).unwrap();
    let capabilities = |name: &str| {
        let value = proc_status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(value.trim(), 16).unwrap()
    };
    let serve = if common::is_root() { 0b1110_0000 } else { 0 };
    for name in ["CapEff:", "CapPrm:", "CapBnd:"] {
        assert_eq!(capabilities(name), serve, "{name}");
    }
    assert_eq!(capabilities("CapInh:") | capabilities("CapAmb:"), 0);
    // Servers are the daemon's, and die with it whatever they do about signals.
    host.ask(&group, &format!("start_server -uid {}\n", own_user()));
    until("a server runs", SOON, || host.daemons().len() == 2);
    let start = Instant::now();
    lease.release().unwrap();
    eprintln!("released with its daemon: {:?}", start.elapsed());
    host.check_clean("after the release");
}

/// Whatever its clients make among the pipes, and whenever.
#[test]
fn a_daemon_writes_nothing_to_the_host() {
    if !possible() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let (host, outside) = (Host::new("t4"), tempfile::tempdir().unwrap());
    let lease = host.acquire(&one().mps(half())).unwrap();
    let group = lease.mps().unwrap().unwrap();
    let make = |path: &Path| host.ask(&group, &format!("make {}\n", path.display()));
    let victim = outside.path().join("victim");
    assert_eq!(make(&victim), "Read-only file system");
    std::os::unix::fs::symlink(&victim, group.pipe_directory.join("planted")).unwrap();
    let planted = make(Path::new("/proc/fs/pipe/planted"));
    // Where the kernel protects links in directories of all users, it is the first to refuse.
    assert!(["Read-only file system", "Permission denied"].contains(&planted.as_str()), "{planted}");
    assert!(!victim.exists());
    assert_eq!(make(Path::new("/proc/fs/pipe/own")), "made");
    assert!(group.pipe_directory.join("own").exists());
    lease.release().unwrap();
    host.check_clean("after the release");
}

#[test]
fn leases_that_want_the_same_of_the_same_gpus_have_one_daemon() {
    if !possible() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let shared = one().sharing(Sharing::Shared(8));
    let first = host.acquire(&shared.clone().mps(half())).unwrap();
    let second = host.acquire(&shared.clone().mps(half())).unwrap();
    let other = host.acquire(&shared.clone().mps(Mps::new())).unwrap();
    let plain = host.acquire(&shared).unwrap();
    assert!(plain.mps().unwrap().is_none());
    let group = second.mps().unwrap().unwrap();
    assert_eq!(first.mps().unwrap().unwrap().pid, group.pid);
    let mut members = [first.id().to_owned(), second.id().to_owned()];
    members.sort();
    assert_eq!(group.leases, members);
    let others = other.mps().unwrap().unwrap();
    assert!(others.pid != group.pid && others.active_threads.is_none() && others.device_memory.is_none());
    let status = host.allocator.status().unwrap();
    assert_eq!((status.mps.len(), status.leases.len()), (2, 4));
    assert_eq!(host.daemons().len(), 2);
    // In any order; who goes first is not who came first.
    first.release().unwrap();
    assert!(alive(group.pid));
    assert_eq!(second.mps().unwrap().unwrap().leases, [second.id()]);
    let third = host.acquire(&shared.clone().mps(half())).unwrap();
    assert_eq!(third.mps().unwrap().unwrap().pid, group.pid, "it joins who is there");
    drop(second);
    assert!(alive(group.pid));
    drop(third);
    assert!(!alive(group.pid) && alive(others.pid));
    // The next of the kind is a new one.
    let fourth = host.acquire(&shared.mps(half())).unwrap();
    assert_ne!(fourth.mps().unwrap().unwrap().pid, group.pid);
    drop((fourth, other, plain));
    host.check_clean("after the last lease");
}

#[test]
fn many_who_come_and_go_at_once_never_have_two_daemons_or_none() {
    if !possible() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let request = one().sharing(Sharing::Shared(64)).mps(half());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..8 {
                    let lease = host.allocator.acquire(&request, Wait::at_most(SOON)).unwrap();
                    let group = lease.mps().unwrap().unwrap();
                    assert!(group.running && alive(group.pid), "{group:?}");
                    assert!(group.leases.contains(&lease.id().to_owned()));
                    lease.release().unwrap();
                }
            });
        }
    });
    host.check_clean("after all of them");
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    if !possible() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let refused = |request: &GpuRequest, kind: ErrorKind, words: &str| {
        let error = host.acquire(request).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(words), "{words}: {error:?}");
        host.check_clean(words);
    };
    refused(&one().mps(half().active_threads(101)), ErrorKind::InvalidArgument, "101 % of the threads");
    refused(&one().mps(half().device_memory(0)), ErrorKind::InvalidArgument, "0 bytes of memory");
    refused(&one().vendor(Vendor::Amd).mps(half()), ErrorKind::InvalidArgument, "no AMD GPU has");
    refused(&one().multi_process_service(true).mps(half()), ErrorKind::InvalidArgument, "that of the host");
    host.driver.multi_process_service_mode("die");
    refused(&one().mps(half()), ErrorKind::GpuUnavailable, "Failed to start : the stand-in was told to (die)");
    host.driver.multi_process_service_mode("old");
    refused(&one().mps(half()), ErrorKind::Unsupported, "Unknown command \"set_default_device_pinned_mem_limit");
    drop(host.acquire(&one().mps(Mps::new().active_threads(5))).unwrap());
    host.driver.multi_process_service_mode("deaf");
    refused(&one().mps(half()), ErrorKind::Unsupported, "100 % of the threads instead of 50 %");
    host.driver.multi_process_service_mode("hang");
    let impatient = host.allocator.clone().mps_start(Duration::from_millis(300));
    let error = impatient.acquire(&one().mps(half()), Wait::none()).unwrap_err();
    assert!(error.kind() == ErrorKind::TimedOut && error.to_string().contains("did not answer"), "{error:?}");
    assert!(error.to_string().contains("Starting control daemon"), "what it said: {error}");
    host.check_clean("hang");
    std::fs::remove_file(host.driver.path().join("usr/sbin/nvidia-cuda-mps-server")).unwrap();
    refused(&one().mps(half()), ErrorKind::GpuUnavailable, "has no nvidia-cuda-mps-server");
    // A place of the caller's that is another's, or leads elsewhere.
    let place = host.allocator.path().join(format!("mps-{}", own_user()));
    std::os::unix::fs::symlink("/tmp", &place).unwrap();
    host.driver.multi_process_service();
    host.driver.multi_process_service_mode("");
    let error = host.acquire(&one().mps(half())).unwrap_err();
    assert!(
        error.kind() == ErrorKind::PermissionDenied && error.to_string().contains("no directory of user"),
        "{error:?}"
    );
    std::fs::remove_file(&place).unwrap();
    host.check_clean("a link");
    // Without a lease there is nobody whose daemon it could be.
    let error = grant(&one().mps(half()), &DriverRoot::new(host.driver.path()), &ImageFacts::default()).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidArgument && error.to_string().contains("there is no lease"), "{error}");
}

#[test]
fn a_mig_device_that_was_made_goes_at_once_if_its_daemon_does_not_start() {
    if !possible() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::with(FakeDriver::with_profile(split_a100(1)));
    host.driver.multi_process_service_mode("die");
    let request = one().mig_profile("1g.5gb").mps(half());
    let mut ticket = host.allocator.enqueue(&request).unwrap();
    let start = Instant::now();
    let errors = [host.acquire(&request).unwrap_err(), ticket.wait(Some(SOON)).unwrap_err()];
    for error in errors {
        assert!(error.kind() == ErrorKind::GpuUnavailable && error.to_string().contains("told to (die)"), "{error:?}");
    }
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    drop(ticket);
    let instances = || host.driver.state()["gpus"][0]["mig"]["gpu_instances"].as_array().cloned().unwrap_or_default();
    assert_eq!(instances(), [serde_json::Value::Null; 0]);
    host.check_clean("no daemon");
    host.driver.multi_process_service_mode("");
    // What keeps a daemon away is not taken for what keeps a device from being made.
    let place = host.allocator.path().join(format!("mps-{}", own_user()));
    std::os::unix::fs::symlink("/tmp", &place).unwrap();
    assert_eq!(host.acquire(&request).unwrap_err().kind(), ErrorKind::PermissionDenied);
    std::fs::remove_file(&place).unwrap();
    let lease = host.acquire(&request).unwrap();
    assert_eq!((lease.mps().unwrap().unwrap().gpus, instances().len()), (lease.gpus().to_vec(), 1));
    lease.release().unwrap();
    assert_eq!(instances(), [serde_json::Value::Null; 0]);
}

#[test]
fn mig_devices_have_a_daemon_one_by_one() {
    if !possible() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("h100-mig");
    let status = host.allocator.status().unwrap();
    let names: Vec<&String> = status.gpus[0].mig_devices.iter().map(|slice| &slice.uuid).take(2).collect();
    let request = GpuRequest::uuids(names).unwrap().foreign_processes(ForeignProcesses::Ignore);
    let error = host.acquire(&request.mps(Mps::new())).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidArgument && error.to_string().contains("several MIG devices"), "{error}");
    let lease = host.acquire(&one().mig_profile("1g.10gb").mps(Mps::new().active_threads(50))).unwrap();
    assert!(lease.gpus()[0].starts_with("MIG-") && lease.mps().unwrap().unwrap().gpus == lease.gpus());
    drop(lease);
    host.check_clean("after the lease");
}

#[test]
fn a_client_of_another_user_namespace_is_the_user_that_it_is_outside() {
    if !possible() || !common::tools("root", &["unshare"]) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("t4");
    let lease = host.acquire(&one().mps(half())).unwrap();
    let client = driver::compile_program("mps", include_str!("driver/mps.c"));
    let mut apart = Command::new("unshare");
    apart.args(["--user", "--map-root-user", "--pid", "--fork", "--"]).arg(client).arg("-c").stdin(Stdio::null());
    apart.env("CUDA_MPS_PIPE_DIRECTORY", lease.mps().unwrap().unwrap().pipe_directory);
    let output = apart.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("served as user {}\n", own_user()), "{output:?}");
    until("the server runs", SOON, || host.daemons().len() == 2);
    lease.release().unwrap();
    host.check_clean("after the lease");
}

#[test]
fn processes_of_a_container_are_clients_of_its_daemon() {
    if !possible_in_containers() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let (host, fixture) = (Host::new("t4"), image());
    let script = "env | /bin/busybox grep MPS | /bin/busybox sort; [ -S /tmp/nvidia-mps/control ] && echo socket; \
                  /bin/client -c </dev/null; while [ -z \"$(ls /dev/shm)\" ]; do :; done; ls /dev/shm";
    let builder = |request: GpuRequest| -> SandboxBuilder {
        fixture
            .shell(script)
            .driver_root(DriverRoot::new(host.driver.path()))
            .gpu_allocator(&host.allocator)
            .gpus(request)
    };
    let (code, output, errors) = fixture::run(builder(one().mps(half())));
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let expected = [
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=50",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=3072M",
        "CUDA_MPS_PIPE_DIRECTORY=/tmp/nvidia-mps",
        "socket",
        "served as user 0",
        "cuda.shm.0.",
    ];
    let lines: Vec<&str> = output.lines().collect();
    assert!(lines.len() == 6 && lines.iter().zip(expected).all(|(line, begin)| line.starts_with(begin)), "{output}");
    host.check_clean("after the container");
    // An ordinary user of the container is one of the host, for whom the server is.
    let as_user = builder(one().mps(Mps::new())).user("web").command(["/bin/client", "-c"]);
    let (_, output, errors) = fixture::run(as_user);
    assert!(output.contains("served as user 33"), "{output}{errors}");
    host.check_clean("after the second container");
    // Nothing that the daemon executes is where a container can write, and hidden files there are nothing to it.
    let hostile = "[ -z \"$(/bin/busybox ls -A /dev/shm)\" ] && echo empty; /bin/busybox mkdir -p /dev/shm/.nvidia-mps/bin; \
                   /bin/busybox ln -s /bin/busybox /dev/shm/.nvidia-mps/bin/nvidia-cuda-mps-server; exec /bin/client -c";
    let (_, output, errors) = fixture::run(builder(one().mps(half())).command(["/bin/sh", "-c", hostile]));
    assert_eq!(output, "empty\nserved as user 0\n", "{errors}");
    host.check_clean("after the hostile container");
    // One that runs already becomes a client with its GPU.
    let lease = host.acquire(&one().mps(half())).unwrap();
    let running = fixture.shell("exec sleep 300").driver_root(DriverRoot::new(host.driver.path())).spawn().unwrap();
    let grant = running.attach_lease(&lease).unwrap();
    let script = "[ $CUDA_MPS_ACTIVE_THREAD_PERCENTAGE = 50 ] && exec /bin/client -c";
    let process = running.exec(["/bin/sh", "-c", script]).stdin(Io::Null).stdout(Io::Piped).stderr(Io::Piped);
    let output = process.spawn().unwrap().communicate(b"", Some(SOON)).unwrap();
    assert_eq!(output.stdout, b"served as user 0\n", "{output:?}");
    running.detach_gpus(&grant, true).unwrap();
    running.close().unwrap();
    lease.release().unwrap();
    host.check_clean("after the attached GPU");
    // Without the part of the driver that it is for, the service is left out, and the grant says so.
    let without = one().mps(half()).capabilities([DriverCapability::Utility]);
    let sandbox = builder(without).command(["/bin/sleep", "300"]).spawn().unwrap();
    assert!(sandbox.granted()[0].left_out[0].starts_with("MPS: "), "{:?}", sandbox.granted());
    sandbox.close().unwrap();
    host.check_clean("after the third container");
}

#[test]
fn what_a_container_makes_of_the_shared_memory_is_not_what_its_daemon_executes() {
    if !possible_in_containers() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let (host, fixture) = (Host::new("t4"), image());
    let place = tempfile::tempdir().unwrap();
    // A program of the host, which the container knows the path of and would have executed there.
    let (evil, proof) = (place.path().join("evil"), place.path().join("proof"));
    std::fs::write(&evil, format!("#!/bin/sh\ntouch {}\n", proof.display())).unwrap();
    std::fs::set_permissions(&evil, PermissionsExt::from_mode(0o755)).unwrap();
    let lease = host.acquire(&one().mps(Mps::new())).unwrap();
    let group = lease.mps().unwrap().unwrap();
    // What the daemon has mounted below that directory has names which are made anew.
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", group.pid)).unwrap();
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(4)?.strip_prefix("/dev/shm/"));
    let names: BTreeSet<&str> = below.chain(["bin"]).collect();
    let list: Vec<&str> = names.iter().copied().collect();
    let script = format!(
        "cd /dev/shm; /bin/busybox rm -rf ./* ./.[!.]*; \
         for name in {}; do for part in . bin lib pipe log; do /bin/busybox mkdir -p $name/$part; done; \
         for program in control server; do /bin/busybox ln -s {} $name/bin/nvidia-cuda-mps-$program; done; done; \
         /bin/client -c </dev/null",
        list.join(" "),
        evil.display()
    );
    let builder = fixture.shell(&script).driver_root(DriverRoot::new(host.driver.path())).gpu_lease(&lease);
    let (code, output, errors) = fixture::run(builder);
    assert_eq!((code, output.as_str(), errors.as_str()), (Some(0), "served as user 0\n", ""));
    until("the driver's own server runs", SOON, || host.daemons().len() == 2 || proof.exists());
    assert!(!proof.exists(), "the container's program was executed as the host's root");
    assert_eq!(list, ["bin"], "nothing of the daemon's is mounted below what containers can write");
    // It goes on in its own place, and so do those who look after it.
    assert_eq!(host.ask(&group, "get_default_active_thread_percentage\n"), "100.0");
    lease.release().unwrap();
    host.check_clean("after the lease");
}
