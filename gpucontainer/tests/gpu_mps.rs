//! MPS daemons of leases: one for each group, as long as its leases live, however those and its keeper end.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
mod fixture;

use common::until;
use driver::FakeDriver;
use fixture::{Fixture, role, say};
use gpucontainer::gpu::{
    DriverCapability, DriverRoot, ForeignProcesses, GpuAllocator, GpuLease, ImageFacts, Mps, MpsGroup,
};
use gpucontainer::gpu::{Sharing, Vendor, Wait, grant};
use gpucontainer::sandbox::SandboxBuilder;
use gpucontainer::{ErrorKind, GpuRequest, Result};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the other process finds its allocator's directory, and the host's driver.
const TABLE: &str = "GPUC_TEST_TABLE";
const DRIVER: &str = "GPUC_TEST_DRIVER";

const SOON: Duration = Duration::from_secs(20);

fn one() -> GpuRequest {
    GpuRequest::count(1)
}

fn half() -> Mps {
    Mps::new().active_threads(50).device_memory(3 << 30)
}

/// A machine whose driver has MPS, and an account of its own.
struct Host {
    driver: FakeDriver,
    _table: tempfile::TempDir,
    allocator: GpuAllocator,
}

impl Host {
    fn new(machine: &str) -> Self {
        Self::with(FakeDriver::new(machine))
    }

    fn with(driver: FakeDriver) -> Self {
        driver.multi_process_service();
        let table = tempfile::Builder::new().prefix("gpuc-mps.").tempdir_in("/dev/shm").unwrap();
        std::fs::set_permissions(table.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let allocator = allocator(&table.path().join("gpu"), driver.path());
        Self { driver, _table: table, allocator }
    }

    /// This test program again, which will do as its role says.
    fn spawn(&self, mut command: Command) -> Other {
        command.env(TABLE, self.allocator.path()).env(DRIVER, self.driver.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Other { child, lines }
    }

    fn start(&self, role: &str) -> Other {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "other_process", "--ignored", "--nocapture"]);
        self.spawn({
            command.env("RUST_TEST_THREADS", "2").env("GPUC_TEST_ROLE", role);
            command
        })
    }

    fn acquire(&self, request: &GpuRequest) -> Result<GpuLease> {
        self.allocator.acquire(request, Wait::none())
    }

    /// What the daemon of the group answers.
    fn ask(&self, group: &MpsGroup, commands: &str) -> String {
        let mut command = Command::new(self.driver.path().join("usr/bin/nvidia-cuda-mps-control"));
        command.env_clear().env("CUDA_MPS_PIPE_DIRECTORY", &group.pipe_directory);
        let mut interface = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        interface.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
        let output = interface.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().replace('\n', " ")
    }

    /// The daemons and servers of this account, by identifier, and for root their keepers: all that have something of
    /// a group open.
    fn processes(&self) -> BTreeMap<u32, String> {
        let mut found = BTreeMap::new();
        let groups = self.allocator.path().join(format!("mps-{}", own_user()));
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let files = std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
            let mut leads = files.filter_map(|file| std::fs::read_link(file.path()).ok());
            if pid != std::process::id() && leads.any(|path| path.starts_with(&groups)) {
                let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                found.insert(pid, name.trim().to_owned());
            }
        }
        found
    }

    /// Of these, the daemons and servers.
    fn daemons(&self) -> Vec<u32> {
        let processes = self.processes().into_iter();
        processes.filter(|(_, name)| name == "nvidia-cuda-mps").map(|(pid, _)| pid).collect()
    }

    /// Nothing of any daemon is left once somebody has opened the allocator; dead leases may be.
    #[track_caller]
    fn check_collected(&self, what: &str) {
        let groups = self.allocator.path().join(format!("mps-{}", own_user()));
        // The kernel frees locks a moment after it has closed the files of a process that was killed.
        until(what, SOON, || {
            drop(allocator(self.allocator.path(), self.driver.path()));
            !groups.exists() && shared_memory().is_empty()
        });
    }

    #[track_caller]
    fn check_clean(&self, what: &str) {
        let files: Vec<_> =
            std::fs::read_dir(self.allocator.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        let rest = (files, self.processes(), shared_memory());
        assert!(rest.0.is_empty() && rest.1.is_empty() && rest.2.is_empty(), "{what}: left {rest:?}");
    }
}

fn own_user() -> u32 {
    std::fs::metadata("/proc/self").unwrap().uid()
}

fn allocator(table: &Path, driver: &Path) -> GpuAllocator {
    GpuAllocator::at(table).unwrap().driver_root(DriverRoot::new(driver)).respect_outer(false)
}

/// Another process, killed when dropped.
struct Other {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Other {
    /// The number after the word.
    fn said(&mut self, word: &str) -> u32 {
        let mut lines = self.lines.by_ref().map(std::result::Result::unwrap);
        let found = lines.find_map(|line| line.strip_prefix(word).map(|rest| rest.trim().parse().unwrap()));
        found.unwrap_or_else(|| panic!("the other process ended before it said {word:?}"))
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

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
        other => panic!("no test is for {other:?}"),
    }
}

/// The directories of groups in `/dev/shm` that belong to this user.
fn shared_memory() -> Vec<String> {
    let own = own_user();
    let names = std::fs::read_dir("/dev/shm").unwrap().flatten();
    names
        .filter(|entry| entry.metadata().is_ok_and(|data| data.uid() == own))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("gpucontainer-mps-"))
        .collect()
}

fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
}

/// The process that keeps a daemon: its parent.
fn keeper(daemon: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{daemon}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn kill(pid: u32, signal: &str) {
    assert!(Command::new("kill").arg(signal).arg(pid.to_string()).status().unwrap().success());
}

#[test]
fn a_lease_has_a_daemon_of_its_own_that_ends_with_it() {
    if !possible() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = Host::new("dgx-1");
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
    // The status tells of it.
    let status = host.allocator.status().unwrap();
    assert_eq!(status.leases[0].mps(&status).map(|group| (&group.id, group.pid)), Some((&group.id, group.pid)));
    assert!(status.to_string().contains(&format!("MPS daemon {}", group.pid)), "{status}");
    // Servers are the daemon's, and die with it whatever they do about signals.
    host.ask(&group, &format!("start_server -uid {}\n", own_user()));
    until("a server runs", SOON, || host.daemons().len() == 2);
    let start = Instant::now();
    lease.release().unwrap();
    eprintln!("released with its daemon: {:?}", start.elapsed());
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
    // Without a lease there is nobody whose daemon it could be.
    let error = grant(&one().mps(half()), &DriverRoot::new(host.driver.path()), &ImageFacts::default()).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidArgument && error.to_string().contains("there is no lease"), "{error}");
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
        kill(if of_keeper { keeper(group.pid) } else { group.pid }, "-KILL");
        until("all are dead", SOON, || host.processes().is_empty());
        let status = host.allocator.status().unwrap();
        assert!(!status.mps[0].running && status.leases[0].mps(&status).is_some(), "{status:?}");
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

/// The image of a sandbox, with a program that asks for a server as one of CUDA does.
fn image() -> Fixture {
    let client = driver::compile_program("mps", include_str!("driver/mps.c"));
    Fixture::with(|builder| builder.copy(client, "/bin/client").symlink("busybox", "/bin/env"))
}

fn possible_in_containers() -> bool {
    driver::available() && common::tier("root") && common::tools("root", &["busybox"])
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
    let (_, output, errors) = fixture::run(builder(one().mps(Mps::new())).user("web"));
    assert!(output.contains("served as user 33"), "{output}{errors}");
    host.check_clean("after the second container");
    // Without the part of the driver that it is for, the service is left out, and the grant says so.
    let without = one().mps(half()).capabilities([DriverCapability::Utility]);
    let sandbox = builder(without).command(["/bin/sleep", "300"]).spawn().unwrap();
    assert!(sandbox.granted()[0].left_out[0].starts_with("MPS: "), "{:?}", sandbox.granted());
    sandbox.close().unwrap();
    host.check_clean("after the third container");
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

fn possible() -> bool {
    driver::available() && common::tier(if common::is_root() { "root" } else { "rootless" })
}
