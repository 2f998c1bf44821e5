//! Hosts that are killed at any moment: what the kernel frees, and what the next process collects.

#![allow(unsafe_code, reason = "processes are killed by number, of which nothing else has a handle")]
#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod fixture;

use common::until;
use fixture::{Fixture, role, say};
use gpucontainer::sandbox::{Stdio, collect_abandoned};
use gpucontainer::{ErrorKind, Sandbox};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

/// How long a container may live on after its host, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the other process publishes and how it marks its containers.
const PORT: &str = "GPUC_TEST_PORT";
const SCORE: &str = "GPUC_TEST_SCORE";
const SHARED: &str = "GPUC_TEST_SHARED";

#[test]
#[ignore = "the other process of a test"]
fn other_process() {
    // Whatever this process starts inherits it, and so can be told from everything else on the machine.
    std::fs::write("/proc/self/oom_score_adj", std::env::var(SCORE).unwrap()).unwrap();
    match role().as_deref() {
        Some("busy") => busy(),
        Some("starting") => starting(),
        Some("paused") => paused(),
        Some("detached") => detached(),
        other => panic!("no test is for {other:?}"),
    }
}

/// Listens itself, and starts one sandbox after the other.
fn starting() {
    let fixture = Fixture::of_parent();
    let port = std::env::var(PORT).unwrap().parse::<u16>().unwrap();
    let _listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    say("listening");
    loop {
        fixture.shell("true").spawn().unwrap();
    }
}

/// What a start makes may outlive the host by a moment, and must not keep what it has nothing to do with.
#[test]
fn a_host_that_is_killed_while_it_starts_frees_its_ports_at_once() {
    let fixture = Fixture::new();
    let shared = tempfile::tempdir().unwrap();
    for kill in 0..60 {
        let port = unused_port();
        let mut host = Host::start(&fixture, "starting", port, shared.path());
        host.said("listening");
        // Anywhere in the few milliseconds of a start.
        std::thread::sleep(Duration::from_micros(137 * (kill % 40)));
        host.kill();
        TcpListener::bind(("127.0.0.1", port))
            .unwrap_or_else(|error| panic!("kill {kill}: {error}: {:?}", host.alive()));
        host.vanishes();
    }
    collect_abandoned(&fixture.store).unwrap();
    nothing_in_store(&fixture);
}

/// A host process that can be told from all others, with everything that it started.
struct Host {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    score: String,
}

impl Host {
    fn start(fixture: &Fixture, role: &str, port: u16, shared: &Path) -> Self {
        let score = unused_score();
        let mut child = fixture
            .apart(role)
            .env(SCORE, &score)
            .env(PORT, port.to_string())
            .env(SHARED, shared)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, score }
    }

    /// Waits for a line of the other process, after what the harness prints.
    fn said(&mut self, word: &str) {
        let found = self.lines.by_ref().map(Result::unwrap).any(|line| line == word);
        assert!(found, "the other process ended before it said {word:?}");
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The processes that this one started and that still live.
    fn alive(&self) -> Vec<String> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let score = std::fs::read_to_string(entry.path().join("oom_score_adj")).unwrap_or_default();
            if score.trim() == self.score {
                let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
                // One that has ended holds nothing any more, whenever process 1 of this machine collects it.
                let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
                if !matches!(state, None | Some("Z" | "X")) {
                    all.push(stat);
                }
            }
        }
        all
    }

    fn vanishes(&self) {
        let start = std::time::Instant::now();
        while let Some(process) = self.alive().first() {
            assert!(start.elapsed() < PATIENCE, "still alive: {process}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Host {
    /// A test that failed leaves no host behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unused_score() -> String {
    let used: BTreeSet<String> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|entry| std::fs::read_to_string(entry.path().join("oom_score_adj")).unwrap_or_default())
        .map(|score| score.trim().to_owned())
        .collect();
    let start = std::process::id() % 400;
    (0..400).map(|at| (301 + (start + at) % 400).to_string()).find(|score| !used.contains(score)).unwrap()
}

/// A port that nobody uses now.
fn unused_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What is in a directory of the store that holds work under way.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn nothing_in_store(fixture: &Fixture) {
    for name in ["scratch", "staging"] {
        let left = names(&fixture.store.path().join(name));
        assert!(left.is_empty(), "{name}: {left:?}");
    }
}

/// The control groups of sandboxes whose names begin so.
fn control_groups(prefix: &str) -> Vec<String> {
    fn visit(directory: &Path, prefix: &str, depth: u32, all: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                if entry.file_name().to_string_lossy().contains(prefix) {
                    all.push(path.display().to_string());
                }
                if depth > 0 {
                    visit(&path, prefix, depth - 1, all);
                }
            }
        }
    }
    let mut all = Vec::new();
    visit(Path::new("/sys/fs/cgroup"), prefix, 5, &mut all);
    all
}

#[test]
fn killed_hosts_leave_nothing_that_cannot_be_collected() {
    if !common::tier("root") {
        return;
    }
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let shared = tempfile::tempdir().unwrap();
    let place = fixture.store.path().display().to_string();
    let (mut found_groups, mut found_writes) = (0, 0);
    for round in 0..40_u64 {
        let port = unused_port();
        let mut host = Host::start(&fixture, "busy", port, shared.path());
        host.said("starting");
        // From the first calls of a start to running containers and the start of others.
        std::thread::sleep(Duration::from_micros(round * 750));
        host.kill();
        host.vanishes();
        until("the published port is free", PATIENCE, || TcpListener::bind(("127.0.0.1", port)).is_ok());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&place) && !mounts.contains(" nsfs "), "{mounts}");
        let prefix = format!("crash-{port}-");
        found_groups += usize::from(!control_groups(&prefix).is_empty());
        found_writes += usize::from(!names(&fixture.store.path().join("scratch")).is_empty());
        collect_abandoned(&fixture.store).unwrap();
        assert_eq!(control_groups(&prefix), Vec::<String>::new(), "round {round}");
        nothing_in_store(&fixture);
        let claims = names("/run/gpucontainer/cgroups".as_ref());
        assert!(!claims.iter().any(|name| name.starts_with(&prefix)), "{claims:?}");
    }
    // Otherwise no host was killed at a moment that matters.
    eprintln!("{found_groups} with control groups, {found_writes} with directories for writes");
    assert!(found_groups > 10 && found_writes > 10, "{found_groups}, {found_writes}");
    drop((fixture, shared));
    leaks.check();
}

/// Starts sandboxes with all that a host can hold, until it is killed.
fn busy() {
    let fixture = Fixture::of_parent();
    let port: u16 = std::env::var(PORT).unwrap().parse().unwrap();
    let name = |number: i32| format!("crash-{port}-{number}");
    let builder = |number| {
        let script = "echo x > /written; /bin/sleep 1000 & exec /bin/sleep 1000";
        let builder = fixture.shell(script).name(name(number)).stdout(Stdio::Null).stderr(Stdio::Null);
        builder.memory_max(64 << 20).pids_max(32)
    };
    say("starting");
    let mut sandboxes: Vec<Sandbox> = vec![builder(0).publish(80, port).spawn().unwrap()];
    let mut processes = Vec::new();
    for number in 1..100 {
        let sandbox = &sandboxes[0];
        let process = sandbox.exec(["/bin/sleep", "1000"]).stdin(Stdio::Null).stdout(Stdio::Null).stderr(Stdio::Null);
        processes.push(process.spawn().unwrap());
        processes.truncate(3);
        sandboxes.push(builder(number).spawn().unwrap());
        if sandboxes.len() > 3 {
            sandboxes.pop().unwrap().close().unwrap();
        }
    }
    loop {
        std::thread::park();
    }
}

#[test]
fn a_paused_container_of_a_killed_host_is_collected() {
    if !common::tier("root") {
        return;
    }
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let shared = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let port = unused_port();
        let mut host = Host::start(&fixture, "paused", port, shared.path());
        host.said("paused");
        host.kill();
        let prefix = format!("crash-{port}-");
        assert!(!control_groups(&prefix).is_empty());
        // What is frozen cannot end by itself; whoever collects thaws it.
        until("collected", PATIENCE, || {
            collect_abandoned(&fixture.store).unwrap();
            control_groups(&prefix).is_empty() && names(&fixture.store.path().join("scratch")).is_empty()
        });
        host.vanishes();
        until("the published port is free", PATIENCE, || TcpListener::bind(("127.0.0.1", port)).is_ok());
        nothing_in_store(&fixture);
    }
    drop((fixture, shared));
    leaks.check();
}

fn paused() {
    let fixture = Fixture::of_parent();
    let port: u16 = std::env::var(PORT).unwrap().parse().unwrap();
    let builder = fixture.shell("echo x > /written; exec /bin/sleep 1000").name(format!("crash-{port}-paused"));
    let sandbox = builder.memory_max(64 << 20).publish(80, port).spawn().unwrap();
    sandbox.pause().unwrap();
    say("paused");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_detached_container_lives_on_and_ends_by_itself() {
    if !common::tier("root") {
        return;
    }
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let shared = tempfile::tempdir().unwrap();
    let port = unused_port();
    let mut host = Host::start(&fixture, "detached", port, shared.path());
    host.said("detached");
    assert!(host.child.wait().unwrap().success());
    let prefix = format!("crash-{port}-");
    // It answers, and nobody takes its things away.
    let answer = shared.path().join("answer");
    for round in 0..3 {
        assert!(host.alive().len() >= 2, "{:?}", host.alive());
        collect_abandoned(&fixture.store).unwrap();
        assert!(!control_groups(&prefix).is_empty());
        assert!(!names(&fixture.store.path().join("scratch")).is_empty());
        std::fs::write(shared.path().join("question"), round.to_string()).unwrap();
        until("it answers", PATIENCE, || {
            std::fs::read_to_string(&answer).is_ok_and(|text| text == format!("{round}: kept\n"))
        });
        std::fs::remove_file(&answer).unwrap();
    }
    // A detached container's published ports are closed.
    assert!(TcpListener::bind(("127.0.0.1", port)).is_ok());
    // Its name stays taken.
    let taken = fixture.builder().command(["/bin/true"]).name(format!("{prefix}detached")).spawn().unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists, "{taken}");
    std::fs::write(shared.path().join("question"), "end").unwrap();
    host.vanishes();
    collect_abandoned(&fixture.store).unwrap();
    assert_eq!(control_groups(&prefix), Vec::<String>::new());
    nothing_in_store(&fixture);
    drop((fixture, shared, host));
    leaks.check();
}

fn detached() {
    let fixture = Fixture::of_parent();
    let port: u16 = std::env::var(PORT).unwrap().parse().unwrap();
    let script = "echo kept > /written
        while true; do
            if read -r question < /shared/question; [ \"$question\" ]; then
                [ \"$question\" = end ] && exit 0
                rm /shared/question; echo \"$question: $(cat /written)\" > /shared/new; mv /shared/new /shared/answer
            fi
            usleep 5000
            question=
        done"
        .replace("rm /", "/bin/busybox rm /")
        .replace("mv /", "/bin/busybox mv /")
        .replace("usleep", "/bin/busybox usleep");
    let sandbox = fixture
        .shell(&script)
        .name(format!("crash-{port}-detached"))
        .stdout(Stdio::Null)
        .stderr(Stdio::Null)
        .mount(gpucontainer::sandbox::Mount::bind(std::env::var(SHARED).unwrap(), "/shared"))
        .publish(80, port)
        .pids_max(32)
        .spawn()
        .unwrap();
    sandbox.detach().unwrap();
    say("detached");
}

#[test]
fn a_killed_supervisor_takes_all_with_it() {
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let script = "/bin/sleep 1000 & echo ready; exec /bin/sleep 1000";
    for _ in 0..5 {
        let sandbox = fixture.shell(script).publish(80, 0).spawn().unwrap();
        let mut ready = [0; 6];
        let mut output = std::fs::File::from(sandbox.take_stdout().unwrap());
        std::io::Read::read_exact(&mut output, &mut ready).unwrap();
        let process = sandbox.exec(["/bin/sleep", "1000"]).stdin(Stdio::Null).stdout(Stdio::Null).stderr(Stdio::Null);
        let process = process.spawn().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", sandbox.pid())).unwrap();
        let supervisor: i32 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert_ne!(u32::try_from(supervisor).unwrap(), std::process::id());
        // SAFETY: kills the supervisor, which is a child of this process that was not collected yet.
        assert_eq!(unsafe { libc::kill(supervisor, libc::SIGKILL) }, 0);
        let status = sandbox.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (None, Some(9)));
        assert_eq!(process.wait().unwrap().signal(), Some(9));
        // The last of the container has closed what it had open.
        assert_eq!(std::io::Read::read(&mut output, &mut ready).unwrap(), 0);
        assert_eq!(sandbox.exec(["/bin/true"]).spawn().unwrap_err().kind(), ErrorKind::Closed);
        drop(process);
        sandbox.close().unwrap();
    }
    nothing_in_store(&fixture);
    drop(fixture);
    leaks.check();
}
