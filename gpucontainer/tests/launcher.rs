//! Launching from hosts that make it hard: threads, little order, odd descriptors and signals.

#![allow(unsafe_code, reason = "hosts are put into states that nothing wraps: forked, without descriptors")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "one state of a host takes a few calls to make")]
#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod fixture;

use fixture::{Fixture, finish, role, run, status_lines};
use gpucontainer::ErrorKind;
use gpucontainer::sandbox::{SandboxBuilder, Stdio};
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Enough for a loaded machine without optimisation; a deadlock takes longer.
const WATCHDOG: Duration = Duration::from_secs(180);

#[test]
#[ignore = "the other process of a test"]
fn other_process() {
    // The harness's own thread blocks everything for the moment in which it starts this one.
    common::until("the harness has started the test", Duration::from_secs(30), || {
        status_lines("self", &["SigBlk"]) == ["SigBlk:\t0000000000000000"]
    });
    match role().as_deref() {
        Some("storm") => storm(),
        Some("idle") => idle(),
        Some("borrowed-places") => borrowed_places(),
        Some("closed") => without_streams(),
        Some("crowded") => crowded(),
        Some("ignored-children") => ignored_children(),
        Some("stolen-children") => stolen_children(),
        Some("forked") => forked(),
        Some("signals") => signals(),
        other => panic!("no test is for {other:?}"),
    }
}

/// Runs a role in a process of its own, which fails as a test does.
fn apart(role: &str) {
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    finish(fixture.apart(role), WATCHDOG);
    drop(fixture);
    leaks.check();
}

fn limited(builder: SandboxBuilder) -> SandboxBuilder {
    if common::is_root() { builder.memory_max(64 << 20).pids_max(32) } else { builder }
}

/// What a launch could change of its host by mistake.
fn host_state() -> Vec<String> {
    let names = [
        "Umask",
        "Uid",
        "Gid",
        "Groups",
        "SigBlk",
        "SigIgn",
        "SigCgt",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "THP_enabled",
    ];
    let mut state = status_lines("self", &names);
    state.extend(status_lines("thread-self", &["SigBlk", "Seccomp", "CapEff"]));
    state.push(format!("cwd {:?}", std::env::current_dir()));
    state.push(format!("oom_score_adj {:?}", std::fs::read_to_string("/proc/self/oom_score_adj")));
    for (name, option) in [
        ("dumpable", libc::PR_GET_DUMPABLE),
        ("thp", libc::PR_GET_THP_DISABLE),
        ("subreaper", libc::PR_GET_CHILD_SUBREAPER),
        ("keepcaps", libc::PR_GET_KEEPCAPS),
    ] {
        let mut value = 0_i32;
        // SAFETY: these options take nothing, or a place for one number, which lives as long as the call.
        let result = unsafe {
            if option == libc::PR_GET_CHILD_SUBREAPER {
                libc::prctl(option, &raw mut value)
            } else {
                libc::prctl(option, 0, 0, 0, 0)
            }
        };
        state.push(format!("{name} {result} {value}"));
    }
    for kind in ["mnt", "pid", "net", "user", "cgroup", "ipc", "uts", "time", "pid_for_children", "time_for_children"] {
        state.push(format!("{kind} {:?}", std::fs::read_link(format!("/proc/self/ns/{kind}"))));
    }
    state
}

#[test]
fn a_thousand_launches_beside_allocating_threads() {
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let mut command = fixture.apart("storm");
    // One arena, so that a lock taken at the wrong moment is the lock that everybody needs.
    command.env("MALLOC_ARENA_MAX", "1");
    finish(command, Duration::from_secs(600));
    let scratch = std::fs::read_dir(fixture.store.path().join("scratch"));
    assert_eq!(scratch.map_or(0, Iterator::count), 0);
    drop(fixture);
    leaks.check();
}

fn storm() {
    const LAUNCHES: usize = 1000;
    let fixture = Fixture::of_parent();
    let leaks = common::Leaks::watch();
    let before = host_state();
    let (done, launched) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Allocates nothing, and so ends also when all others wait for a lock that nobody holds any more.
            let (mut last, mut since) = (0, Instant::now());
            while !done.load(Ordering::Relaxed) {
                let now = launched.load(Ordering::Relaxed);
                if now != last {
                    (last, since) = (now, Instant::now());
                }
                if since.elapsed() > WATCHDOG / 3 {
                    std::process::abort();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        for _ in 0..4 {
            scope.spawn(|| {
                let mut kept = Vec::new();
                for size in (1..4000_usize).cycle() {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    kept.push(vec![1_u8; size * 7]);
                    if kept.len() > 20 {
                        kept.clear();
                    }
                }
            });
        }
        let launch = || {
            let of_thread = status_lines("thread-self", &["SigBlk"]);
            while launched.fetch_add(1, Ordering::Relaxed) < LAUNCHES {
                let builder = limited(fixture.builder().command(["/bin/true"]).stdout(Stdio::Null));
                let sandbox = builder.spawn().unwrap();
                assert!(sandbox.wait().unwrap().success());
                sandbox.close().unwrap();
            }
            assert_eq!(status_lines("thread-self", &["SigBlk"]), of_thread);
        };
        let launchers: Vec<_> = (0..4).map(|_| scope.spawn(launch)).collect();
        let ends: Vec<_> = launchers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        for end in ends {
            end.unwrap();
        }
    });
    assert_eq!(host_state(), before);
    leaks.check();
}

#[test]
fn nothing_waits_for_a_control_group_after_idleness() {
    if !common::tier("root") || !common::tools("root", &["strace"]) {
        return;
    }
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    // Moving a process by its number waits for a grace period of the kernel: 4 ms at least on an idle machine. Being
    // traced and being one of many takes time too, so the best of some runs counts.
    let mut best = Duration::MAX;
    for _ in 0..6 {
        let traces = tempfile::tempdir().unwrap();
        let mut strace = Command::new("strace");
        strace.args(["-ff", "-T", "-y", "-s", "16", "-e", "trace=write,openat"]);
        strace.arg("-o").arg(traces.path().join("trace"));
        finish(fixture.apart_below(strace, "idle"), Duration::from_secs(60));
        let writes = control_group_writes(traces.path());
        let joined = |(line, _): &&(String, Duration)| line.contains("/tasks>");
        let version1 = std::path::Path::new("/sys/fs/cgroup/memory/tasks").exists();
        assert!(!version1 || writes.iter().any(|write| joined(&write)), "{writes:?}");
        assert!(writes.len() > 2, "{writes:?}");
        let slowest = writes.iter().max_by_key(|(_, time)| *time).unwrap();
        eprintln!("{slowest:?} of {}", writes.len());
        best = best.min(slowest.1);
        if best < Duration::from_millis(1) {
            break;
        }
    }
    assert!(best < Duration::from_millis(1), "{best:?}");
    drop(fixture);
    leaks.check();
}

/// The writes to files of control groups, with the time that each took.
fn control_group_writes(traces: &std::path::Path) -> Vec<(String, Duration)> {
    let files = std::fs::read_dir(traces).unwrap().map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
    let mut writes = Vec::new();
    for text in files {
        for line in text.lines().filter(|line| line.starts_with("write(") && line.contains("</sys/fs/cgroup/")) {
            let seconds = line.rsplit_once('<').and_then(|(_, time)| time.trim_end_matches('>').parse().ok());
            writes.push((line.to_owned(), Duration::from_secs_f64(seconds.unwrap())));
        }
    }
    writes
}

fn idle() {
    let fixture = Fixture::of_parent();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(run(limited(fixture.builder().command(["/bin/true"]))).0, Some(0));
}

#[test]
fn links_to_processes_lead_to_nothing_of_the_host() {
    apart("borrowed-places");
}

/// With open directories of the host that a careless launcher would hand on.
fn borrowed_places() {
    const SECRET: &str = "words of the host";
    let fixture = Fixture::of_parent();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), SECRET).unwrap();
    // SAFETY: opens a directory under numbers that nobody uses, not closed on exec.
    let opened: Vec<OwnedFd> = unsafe {
        let directory = libc::open(c"/".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY);
        (0..60).map(|_| OwnedFd::from_raw_fd(libc::dup(directory))).collect()
    };
    assert!(opened.iter().any(|fd| fd.as_raw_fd() >= 40) && opened.iter().any(|fd| fd.as_raw_fd() < 10));
    let image = (3..=40).fold(fixture.store.build().base(&fixture.image), |builder, number| {
        builder.symlink(format!("/proc/self/fd/{number}"), format!("/places/{number}"))
    });
    let scripts = ["/proc/self/exe", "/proc/1/exe", "/proc/self/fd/3", "/proc/self/fd/4", "/proc/thread-self/exe"];
    let image = scripts.iter().enumerate().fold(image, |builder, (number, interpreter)| {
        builder.file(format!("/script{number}"), format!("#!{interpreter}\n"), 0o755)
    });
    let image = image
        .symlink("/proc/1/cwd", "/places/cwd")
        .symlink("/proc/1/root", "/places/root")
        .symlink("/proc/self/exe", "/places/exe")
        .commit("places:1")
        .unwrap();
    let of_image = || gpucontainer::Sandbox::from_image(&image).store(&fixture.store).stdin(Stdio::Null);
    let builder = || of_image().stdout(Stdio::Piped).stderr(Stdio::Piped);

    // `..` leads out of a directory that is not below the root, up to the host's root.
    let climb = format!("ls -a . ../../../../..; cat ../../../../../../..{}/secret", outside.path().display());
    let own: BTreeSet<String> = {
        let (_, out, _) = run(builder().command(["/bin/busybox", "ls", "-a", "/"]));
        out.lines().map(str::to_owned).collect()
    };
    assert!(own.contains("places") && own.contains("script0"), "{own:?}");
    let numbers = (3..=40).map(|number| number.to_string());
    let names: Vec<String> = numbers.chain(["cwd", "root"].map(str::to_owned)).collect();
    let running = builder().command(["/bin/sleep", "1000"]).spawn().unwrap();
    for name in &names {
        let direct = match name.as_str() {
            "cwd" | "root" => format!("/proc/1/{name}"),
            number => format!("/proc/self/fd/{number}"),
        };
        for place in [direct, format!("/places/{name}")] {
            let command = ["/bin/busybox", "sh", "-c", &climb];
            match builder().command(command).working_dir(&place).spawn() {
                Err(error) => assert_eq!(error.kind(), ErrorKind::WorkingDirectoryNotFound, "{place}: {error}"),
                Ok(sandbox) => {
                    let output = sandbox.communicate(b"", Some(Duration::from_secs(20))).unwrap();
                    let text = String::from_utf8_lossy(&output.stdout).into_owned();
                    assert!(!text.contains(SECRET), "{place}: {text}");
                    let climbed = text.split_once("../../../../..:\n").map_or("", |(_, list)| list);
                    assert!(climbed.lines().all(|line| own.contains(line)), "{place}: {text}");
                    sandbox.close().unwrap();
                }
            }
            let process = running.exec(command).working_dir(&place).stdin(Stdio::Null).stdout(Stdio::Piped);
            match process.stderr(Stdio::Null).spawn() {
                Err(error) => assert_eq!(error.kind(), ErrorKind::WorkingDirectoryNotFound, "{place}: {error}"),
                Ok(process) => {
                    let output = process.communicate(b"", Some(Duration::from_secs(20))).unwrap();
                    let text = String::from_utf8_lossy(&output.stdout).into_owned();
                    assert!(!text.contains(SECRET), "exec in {place}: {text}");
                    let climbed = text.split_once("../../../../..:\n").map_or("", |(_, list)| list);
                    assert!(climbed.lines().all(|line| own.contains(line)), "exec in {place}: {text}");
                }
            }
        }
    }

    // Programs whose interpreter is whatever runs just now: the host's binary would print what its tests are.
    let mut entrypoints: Vec<String> = (0..scripts.len()).map(|number| format!("/script{number}")).collect();
    entrypoints.extend(["/places/exe", "/proc/self/exe", "/proc/1/exe"].map(str::to_owned));
    for entrypoint in &entrypoints {
        match builder().command([entrypoint.as_str(), "--list"]).spawn() {
            Err(error) => assert_eq!(error.kind(), ErrorKind::CommandNotFound, "{entrypoint}: {error}"),
            Ok(sandbox) => {
                let output = sandbox.communicate(b"", Some(Duration::from_secs(20))).unwrap();
                assert!(!output.status.success(), "{entrypoint}: {output:?}");
                assert_eq!((output.stdout.len(), output.stderr.len()), (0, 0), "{entrypoint}: {output:?}");
                sandbox.close().unwrap();
            }
        }
        let process = running.exec([entrypoint.as_str(), "--list"]).stdin(Stdio::Null).stdout(Stdio::Piped);
        if let Ok(process) = process.stderr(Stdio::Piped).spawn() {
            let output = process.communicate(b"", Some(Duration::from_secs(20))).unwrap();
            assert_eq!((output.stdout.len(), output.stderr.len()), (0, 0), "exec {entrypoint}: {output:?}");
        }
    }
    running.close().unwrap();
}

#[test]
fn a_host_without_streams_launches() {
    apart("closed");
}

fn without_streams() {
    let fixture = Fixture::of_parent();
    // SAFETY: the three are put aside, closed for a while, and put back; no other thread writes meanwhile.
    let kept = [0, 1, 2].map(|number| unsafe {
        let kept = libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 100);
        libc::close(number);
        kept
    });
    let launch = || -> Result<_, String> {
        let text = |error: gpucontainer::Error| error.to_string();
        let script = "ls /proc/self/fd; cat /proc/self/fdinfo/0; cat; echo words >&2; exit 5";
        let sandbox = fixture.shell(script).spawn().map_err(text)?;
        let output = sandbox.communicate(b"", Some(Duration::from_secs(30))).map_err(text)?;
        let process = sandbox_with_exec(&fixture).map_err(text)?;
        sandbox.close().map_err(text)?;
        // Those of the host, which has none.
        let inherit = fixture.shell("cat; echo x; echo y >&2; exit 6");
        let inherit =
            inherit.stdin(Stdio::Inherit).stdout(Stdio::Inherit).stderr(Stdio::Inherit).spawn().map_err(text)?;
        let inherited = inherit.wait().map_err(text)?;
        inherit.close().map_err(text)?;
        let terminals = on_terminals(&fixture).map_err(text)?;
        Ok((output, process, inherited, terminals))
    };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(launch));
    for (number, kept) in (0..).zip(kept) {
        // SAFETY: puts back what was there before.
        unsafe {
            libc::dup2(kept, number);
            libc::close(kept);
        }
    }
    let (output, process, inherited, terminals) = result.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("0\n1\n2\n3\npos:"), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "words\n");
    assert_eq!((process.0.code(), process.1.as_str()), (Some(4), "0\n1\n2\n3\n"));
    assert_eq!(inherited.code(), Some(6));
    for (status, text) in terminals {
        assert_eq!((status.code(), text.as_str()), (Some(7), "0  1  2  3\r\n/dev/pts/0\r\n"));
    }
}

/// An application and a further program, each on a terminal of its own; what they print there.
fn on_terminals(fixture: &Fixture) -> gpucontainer::Result<[(gpucontainer::ExitStatus, String); 2]> {
    let text = |terminal: std::os::fd::OwnedFd| {
        let mut bytes = Vec::new();
        // It ends with an error when nobody has the other side any more.
        let _ = std::io::Read::read_to_end(&mut std::fs::File::from(terminal), &mut bytes);
        String::from_utf8(bytes).unwrap()
    };
    let script = "ls /proc/self/fd; tty; exit 7";
    let sandbox = fixture.shell(script).terminal(24, 80).spawn()?;
    let first = text(sandbox.take_terminal().unwrap());
    let first = (sandbox.wait()?, first);
    sandbox.close()?;
    let sandbox = fixture.builder().command(["/bin/sleep", "1000"]).spawn()?;
    let process = sandbox.exec(["/bin/busybox", "sh", "-c", script]).terminal(24, 80).spawn()?;
    let second = text(process.take_terminal().unwrap());
    let second = (process.wait()?, second);
    drop(process);
    sandbox.close()?;
    Ok([first, second])
}

fn sandbox_with_exec(fixture: &Fixture) -> gpucontainer::Result<(gpucontainer::ExitStatus, String)> {
    let sandbox = fixture.builder().command(["/bin/sleep", "1000"]).spawn()?;
    let process = sandbox.exec(["/bin/busybox", "sh", "-c", "ls /proc/self/fd; exit 4"]);
    let process = process.stdin(Stdio::Null).stdout(Stdio::Piped).stderr(Stdio::Piped).spawn()?;
    let output = process.communicate(b"", Some(Duration::from_secs(30)))?;
    drop(process);
    sandbox.close()?;
    Ok((output.status, String::from_utf8_lossy(&output.stdout).into_owned()))
}

#[test]
fn descriptors_of_the_host_stay_with_the_host() {
    apart("crowded");
}

fn crowded() {
    const COUNT: usize = 5000;
    let fixture = Fixture::of_parent();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives as long as the calls.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max.min(8192);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    assert!(limit.rlim_cur > 6000, "the hard limit is {}", limit.rlim_max);
    let outside = tempfile::NamedTempFile::new().unwrap();
    // SAFETY: every number is new and owned by this list alone.
    let opened: Vec<OwnedFd> =
        (0..COUNT).map(|_| unsafe { OwnedFd::from_raw_fd(libc::dup(outside.as_file().as_raw_fd())) }).collect();
    assert!(opened.iter().all(|fd| fd.as_raw_fd() > 2));
    let (code, out, err) = run(fixture.builder().command(["/bin/ls", "/proc/self/fd"]));
    assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "0\n1\n2\n3\n", ""));
    let (status, listed) = sandbox_with_exec(&fixture).unwrap();
    assert_eq!((status.code(), listed.as_str()), (Some(4), "0\n1\n2\n3\n"));
    // Those who supervise keep none either: the host's files would stay open as long as the container.
    let sandbox = fixture.builder().command(["/bin/sleep", "1000"]).spawn().unwrap();
    let process = sandbox.exec(["/bin/sleep", "1000"]).stdin(Stdio::Null).stdout(Stdio::Null).stderr(Stdio::Null);
    let process = process.spawn().unwrap();
    for pid in [sandbox.pid(), process.pid()] {
        let supervisor = parent(pid);
        // Closed to all but root: a supervisor cannot be looked into.
        let Ok(links) = std::fs::read_dir(format!("/proc/{supervisor}/fd")) else {
            assert!(!common::is_root());
            continue;
        };
        let links: Vec<_> = links.map(|link| std::fs::read_link(link.unwrap().path()).unwrap_or_default()).collect();
        assert!(links.len() < 16 && !links.iter().any(|link| link == outside.path()), "{links:?}");
    }
    drop(process);
    sandbox.close().unwrap();
    drop(opened);
}

fn parent(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Sandboxes and further processes end as they should.
fn check_statuses(fixture: &Fixture, rounds: i32) {
    for code in 0..rounds {
        let script = if code % 5 == 4 { "kill -9 $$".to_owned() } else { format!("exit {code}") };
        let wanted = if code % 5 == 4 { (None, Some(9)) } else { (Some(code), None) };
        let sandbox = fixture.shell(&script).stdout(Stdio::Null).stderr(Stdio::Null).spawn().unwrap();
        let status = sandbox.wait().unwrap();
        assert_eq!((status.code(), status.signal()), wanted);
        sandbox.close().unwrap();
    }
    let (status, _) = sandbox_with_exec(fixture).unwrap();
    assert_eq!(status.code(), Some(4));
}

#[test]
fn a_host_that_ignores_its_children_knows_how_they_ended() {
    apart("ignored-children");
}

fn ignored_children() {
    // SAFETY: no handler is installed, and the process ends with this test.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    check_statuses(&Fixture::of_parent(), 20);
}

#[test]
fn a_host_that_collects_every_child_knows_how_they_ended() {
    apart("stolen-children");
}

fn stolen_children() {
    let fixture = Fixture::of_parent();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // SAFETY: without a place for the status nothing is written.
                unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG) };
                std::thread::yield_now();
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check_statuses(&fixture, 50)));
        done.store(true, Ordering::Relaxed);
        result.unwrap();
    });
}

#[test]
fn a_forked_child_of_the_host_has_no_say() {
    apart("forked");
}

fn forked() {
    let fixture = Fixture::of_parent();
    let sandbox = limited(fixture.builder().command(["/bin/sleep", "1000"])).spawn().unwrap();
    let exec = |command: &[&str]| {
        let process = sandbox.exec(command.iter().copied()).stdin(Stdio::Null).stdout(Stdio::Null).stderr(Stdio::Null);
        process.spawn().unwrap()
    };
    let process = exec(&["/bin/sleep", "1000"]);
    // Read by the child in place of the owners' values, which stay with the parent.
    // SAFETY: the copies are the child's alone, whose memory is its own; the parent never drops these.
    let (copy, process_copy) = unsafe { (std::ptr::read(&raw const sandbox), std::ptr::read(&raw const process)) };
    let copies = std::mem::ManuallyDrop::new((copy, process_copy));
    // SAFETY: the child drops its copies, which makes system calls and frees memory, and exits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(std::mem::ManuallyDrop::into_inner(copies));
        // SAFETY: ends the child without running what the parent registered for its own end.
        unsafe { libc::_exit(0) };
    }
    let mut status = -1;
    // SAFETY: `status` lives as long as the call.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    // What the child closed were its own descriptors; what it must not have done is send or remove anything.
    assert_eq!(sandbox.wait_timeout(Duration::from_millis(50)).unwrap(), None);
    assert_eq!(process.wait_timeout(Duration::ZERO).unwrap(), None);
    assert!(exec(&["/bin/true"]).wait().unwrap().success());
    if common::is_root() {
        assert!(sandbox.stats().unwrap().pids.unwrap().current >= 2);
    }
    process.kill(9).unwrap();
    assert_eq!(process.wait().unwrap().signal(), Some(9));
    drop(process);
    sandbox.kill(15).unwrap();
    assert_eq!(sandbox.wait().unwrap().signal(), Some(15));
    sandbox.close().unwrap();
}

#[test]
fn signals_of_the_host_are_not_handed_on() {
    apart("signals");
}

fn signals() {
    let fixture = Fixture::of_parent();
    extern "C" fn handle(_: libc::c_int) {}
    // SAFETY: the handler does nothing; the mask is that of this thread, which ends with the test.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        for signal in [libc::SIGPIPE, libc::SIGINT, libc::SIGHUP, libc::SIGTTOU, libc::SIGTSTP, 34, 64] {
            libc::signal(signal, libc::SIG_IGN);
        }
        libc::signal(libc::SIGUSR1, handle as *const () as libc::sighandler_t);
    }
    let before = host_state();
    let clean = |text: &str| {
        for name in ["SigBlk", "SigIgn", "SigCgt"] {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            assert!(line.ends_with("\t0000000000000000"), "{line}");
        }
    };
    let (_, text, _) = run(fixture.builder().command(["/bin/cat", "/proc/self/status"]));
    clean(&text);
    let sandbox = fixture.builder().command(["/bin/sleep", "1000"]).spawn().unwrap();
    let process = sandbox.exec(["/bin/cat", "/proc/self/status"]).stdin(Stdio::Null).stdout(Stdio::Piped);
    let output = process.spawn().unwrap().communicate(b"", Some(Duration::from_secs(30))).unwrap();
    clean(&String::from_utf8_lossy(&output.stdout));
    sandbox.close().unwrap();
    // A writer whose reader is gone ends by the signal, not with an error.
    let script = "(/bin/busybox yes; echo $? >&2) | /bin/busybox head -n 1";
    let (_, out, err) = run(fixture.shell(script));
    assert_eq!((out.as_str(), err.trim()), ("y\n", "141"));
    assert_eq!(host_state(), before);
}
