//! A process that becomes a sandbox. Each of them is this program once more, with what to do in its environment; it must
//! have one thread, which the usual harness has not, so there is a small one at the end.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]
#![allow(unsafe_code, reason = "signals are given their default action")]
#![allow(clippy::print_stdout, reason = "it is its own harness")]

mod common;

use gpucontainer::Sandbox;
use gpucontainer::sandbox::Stdio;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bin = directory.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        std::fs::copy(common::which("busybox").unwrap(), bin.join("busybox")).unwrap();
        for name in ["sh", "sleep", "cat", "kill", "true", "readlink", "ls"] {
            std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
        }
        Self(directory)
    }

    /// The command of a process that becomes a sandbox with `script`, in the way that `how` says.
    fn command(&self, how: &str, script: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env("GPUC_ENTER", how).env("GPUC_ENTER_ROOT", self.0.path()).env("GPUC_ENTER_SCRIPT", script);
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
        command
    }

    fn run(&self, how: &str, script: &str) -> (ExitStatus, String) {
        let output = self.command(how, script).output().unwrap();
        (output.status, String::from_utf8(output.stdout).unwrap())
    }

    /// One that has said "ready".
    fn ready(&self, how: &str, script: &str) -> Running {
        let mut child = self.command(how, script).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut running = Running::watched(child, lines);
        running.await_line("ready");
        running
    }
}

struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    /// Dropped in time.
    _watch: std::sync::mpsc::Sender<()>,
}

impl Running {
    /// One that is killed when a test does not come to its end.
    fn watched(child: Child, lines: BufReader<std::process::ChildStdout>) -> Self {
        let (watch, ended) = std::sync::mpsc::channel::<()>();
        let pid = Pid::from_raw(child.id().cast_signed());
        std::thread::spawn(move || {
            if ended.recv_timeout(2 * LONG) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                kill(pid, Signal::SIGKILL).unwrap();
            }
        });
        Self { child, lines, _watch: watch }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn await_line(&mut self, wanted: &str) {
        let mut line = String::new();
        while line.trim_end() != wanted {
            line.clear();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "ended before it said {wanted}");
        }
    }

    fn rest(mut self) -> (ExitStatus, String) {
        let mut text = String::new();
        self.lines.read_to_string(&mut text).unwrap();
        (self.child.wait().unwrap(), text)
    }
}

/// The descendants of a process that have not ended.
fn descendants(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children: Vec<u32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    children.iter().flat_map(|pid| [vec![*pid], descendants(*pid)].concat()).collect()
}

fn state(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').and_then(|(_, rest)| rest.trim().chars().next()).unwrap_or('X')
}

/// What the tests start.
fn become_a_sandbox(how: &str) {
    // Whoever runs the tests in the background has them ignore some, which then nobody would be told of.
    let own =
        |signal: &Signal| how != "ignoring" && ![Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGPIPE].contains(signal);
    for signal in Signal::iterator().filter(own) {
        // SAFETY: no handler of this program is replaced by one that does anything.
        unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) }.unwrap();
    }
    let variable = |name: &str| std::env::var(name).unwrap();
    let builder = Sandbox::from_directory(variable("GPUC_ENTER_ROOT"));
    let builder = builder.command(["sh", "-c", &variable("GPUC_ENTER_SCRIPT")]);
    let builder = match how {
        "published" => builder.publish(80, 0),
        "no-cgroup" => builder.cgroup(false),
        "first" => builder.init(false),
        "passed" => builder.pass_fd(7, std::io::stdout().try_clone_to_owned()),
        "nowhere" => builder.working_dir("/nowhere"),
        "piped" => builder.stdout(Stdio::Piped),
        "terminal" => builder.terminal(24, 80),
        "compiled" => builder.command(["/bin/receive"]),
        "undumpable" => {
            nix::sys::prctl::set_dumpable(false).unwrap();
            builder
        }
        _ => builder,
    };
    if how == "threads" {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || ended.recv().unwrap());
        let error = builder.enter().unwrap_err();
        end.send(()).unwrap();
        other.join().unwrap();
        println!("refused {:?}: {error}", error.kind());
        return;
    }
    let before = own_state();
    let error = builder.enter().unwrap_err();
    println!("refused {:?}: {error}", error.kind());
    assert_eq!(own_state(), before);
}

trait TryCloneToOwned {
    fn try_clone_to_owned(&self) -> std::os::fd::OwnedFd;
}

impl<T: std::os::fd::AsFd> TryCloneToOwned for T {
    fn try_clone_to_owned(&self) -> std::os::fd::OwnedFd {
        self.as_fd().try_clone_to_owned().unwrap()
    }
}

/// Masks, descriptors, threads and children of this process.
fn own_state() -> BTreeSet<String> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let masks = status.lines().filter(|line| line.starts_with("Sig") || line.starts_with("Threads")).map(str::to_owned);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        std::fs::read_link(&path).ok().map(|target| format!("{} {}", path.display(), target.display()))
    });
    let listing = |line: &String| !line.contains("/proc/");
    let children = descendants(std::process::id()).into_iter().map(|pid| format!("child {pid}"));
    masks.chain(open.filter(|line| listing(&line.split(' ').nth(1).unwrap().to_owned()))).chain(children).collect()
}

fn supported() -> bool {
    common::tools("rust", &["busybox"]) && (common::is_root() || common::tier("rootless"))
}

fn every_exit_code_is_the_callers() {
    if !supported() {
        return;
    }
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    for code in 0..=255 {
        let how = ["", "no-cgroup", "first", "published"][code % 4];
        let (status, text) = fixture.run(how, &format!("exit {code}"));
        assert_eq!(status.code(), i32::try_from(code).ok(), "{how} {text}");
    }
    drop(fixture);
    leaks.check();
}

fn who_is_killed_is_killed_by_the_same_signal_without_a_core() {
    if !supported() {
        return;
    }
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let here = tempfile::tempdir().unwrap();
    // The shell ignores SIGQUIT.
    for signal in [1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 24, 25, 26, 27, 29, 30, 31, 34, 64] {
        let mut command = fixture.command("", &format!("kill -{signal} $$"));
        let status = command.current_dir(here.path()).output().unwrap().status;
        assert_eq!((status.signal(), status.core_dumped()), (Some(signal), false), "{status}");
    }
    assert_eq!(std::fs::read_dir(&here).unwrap().count(), 0);
    drop(fixture);
    leaks.check();
}

fn the_application_has_what_the_caller_had() {
    if !supported() {
        return;
    }
    let fixture = Fixture::new();
    let mut child = fixture.command("passed", "cat; echo error >&2; echo seven >&7");
    let mut child = child.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"input\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().ends_with("input\nseven\n"));
    assert_eq!(output.stderr, b"error\n");
    // Who reads hears the end of the application's stream, however long that lives on.
    let running = fixture.ready("", "echo ready; exec >/dev/null 2>&1; sleep 1000");
    let pid = running.pid();
    let reader = std::thread::spawn(move || running.rest());
    // The stream ends while the application still runs; only then is it asked to end.
    common::until("the stream has ended", LONG, || !open_elsewhere(pid));
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(reader.join().unwrap().0.signal(), Some(15));
}

/// Whether any process below `pid`, or itself, has a pipe as standard output.
fn open_elsewhere(pid: Pid) -> bool {
    let pid = pid.as_raw().unsigned_abs();
    [vec![pid], descendants(pid)].concat().iter().any(|pid| {
        std::fs::read_link(format!("/proc/{pid}/fd/1")).is_ok_and(|target| target.to_string_lossy().contains("pipe:"))
    })
}

fn every_signal_that_can_be_caught_is_handed_on_once() {
    if !supported() {
        return;
    }
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let signals = ["HUP", "INT", "QUIT", "USR1", "USR2", "PIPE", "ALRM", "TERM", "WINCH", "URG", "TSTP", "TTIN", "PWR"];
    let traps: String = signals.iter().map(|name| format!("trap 'echo {name}' {name}; ")).collect();
    let script = format!("{traps} trap 'echo last; exit 9' SYS; echo ready; while :; do sleep 0.01; done");
    for how in ["", "first"] {
        let mut running = fixture.ready(how, &script);
        for name in signals {
            kill(running.pid(), format!("SIG{name}").parse::<Signal>().unwrap()).unwrap();
            running.await_line(name);
        }
        kill(running.pid(), Signal::SIGSYS).unwrap();
        let (status, text) = running.rest();
        assert_eq!((status.code(), text.as_str()), (Some(9), "last\n"));
    }
    drop(fixture);
    leaks.check();
}

/// Receives a signal that is queued and prints what came with it.
const RECEIVER: &str = "
#include <signal.h>
#include <stdio.h>
int main(void) {
    sigset_t set; siginfo_t info;
    sigemptyset(&set); sigaddset(&set, SIGRTMIN + 1); sigprocmask(SIG_BLOCK, &set, 0);
    puts(\"ready\"); fflush(stdout);
    for (int count = 0; count < 3; count++) {
        sigwaitinfo(&set, &info);
        printf(\"%d %d\\n\", info.si_code == SI_QUEUE, info.si_value.sival_int);
    }
    return 0;
}
";

fn what_is_queued_with_a_signal_comes_too() {
    if !supported() || !common::tools("rust", &["cc", "python3"]) {
        return;
    }
    let fixture = Fixture::new();
    let source = fixture.0.path().join("receive.c");
    std::fs::write(&source, RECEIVER).unwrap();
    let receiver = fixture.0.path().join("bin/receive");
    assert!(Command::new("cc").arg("-static").arg("-o").arg(&receiver).arg(&source).status().unwrap().success());
    let running = fixture.ready("compiled", "");
    // Three of them, which a signal of this kind is counted as.
    let script = "import ctypes, signal, sys\nfor value in 7, 8, 9: \
        assert ctypes.CDLL(None).sigqueue(int(sys.argv[1]), signal.SIGRTMIN + 1, ctypes.c_void_p(value)) == 0";
    let sent = Command::new("python3").args(["-c", script, &running.pid().to_string()]).status().unwrap();
    assert!(sent.success());
    let (status, text) = running.rest();
    assert_eq!((status.code(), text.as_str()), (Some(0), "1 7\n1 8\n1 9\n"));
}

/// As one that has changed its user: what is about such a process in `/proc` belongs to root, and of its children at first.
fn a_process_that_may_not_be_dumped_can_become_one() {
    if !supported() {
        return;
    }
    let fixture = Fixture::new();
    for _ in 0..20 {
        let output = fixture.command("undumpable", "exit 8").output().unwrap();
        assert_eq!(output.status.code(), Some(8), "{output:?}");
    }
}

fn what_the_caller_ignores_stays_ignored() {
    if !supported() {
        return;
    }
    let fixture = Fixture::new();
    let mut shell = Command::new("sh");
    let command = fixture.command(
        "ignoring",
        "trap 'echo hup' HUP; trap 'echo usr1; exit 3' USR1; echo ready; while :; do sleep 0.01; done",
    );
    shell.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().map(|(name, value)| (name, value.unwrap())));
    let mut child = shell.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    let mut running = Running::watched(child, lines);
    running.await_line("ready");
    kill(running.pid(), Signal::SIGHUP).unwrap();
    kill(running.pid(), Signal::SIGUSR1).unwrap();
    let (status, text) = running.rest();
    assert_eq!((status.code(), text.as_str()), (Some(3), "usr1\n"));
}

fn both_are_stopped_and_go_on_together() {
    if !supported() {
        return;
    }
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    // Asked from outside, with a child of the application's; and by itself.
    for script in ["sleep 1000 & echo ready; wait", "echo ready; kill -STOP $$; echo goes on; sleep 1000"] {
        let mut running = fixture.ready("", script);
        let pid = running.pid();
        let asked = !script.contains("STOP");
        for _ in 0..3 {
            if asked {
                kill(pid, Signal::SIGTSTP).unwrap();
            }
            let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
            assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP));
            // Below is the supervisor, which stops for nobody.
            let below = &descendants(pid.as_raw().unsigned_abs())[1..];
            assert_eq!(below.len(), if asked { 2 } else { 1 });
            common::until("all are stopped", LONG, || below.iter().all(|pid| state(*pid) == 'T'));
            kill(pid, Signal::SIGCONT).unwrap();
            common::until("all go on", LONG, || below.iter().all(|pid| state(*pid) != 'T'));
            if !asked {
                running.await_line("goes on");
                break;
            }
        }
        kill(pid, Signal::SIGTERM).unwrap();
        assert_eq!(running.rest().0.signal(), Some(15), "{script}");
    }
    drop(fixture);
    leaks.check();
}

fn the_keys_of_a_terminal_reach_the_application_once() {
    if !common::is_root() && !common::tier("rootless") || !common::tools("rust", &["busybox", "script"]) {
        return;
    }
    let fixture = Fixture::new();
    let out = fixture.0.path().join("out");
    // An application that counts for a second after the first; its child dies of the same key.
    let script = "trap 'echo int >>/out' INT; trap 'echo child >>/out' TERM; sleep 1000 & echo ready >>/out; wait; \
        while [ ! -e /end ]; do sleep 0.01; done; exit 7";
    let mut command = fixture.command("", script);
    let words: Vec<String> = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &format!("exec {}", words.join(" ")), "/dev/null"]);
    terminal.envs(command.get_envs().map(|(name, value)| (name, value.unwrap())));
    command.env_clear();
    let mut terminal =
        terminal.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let read = || std::fs::read_to_string(&out).unwrap_or_default();
    common::until("it is ready", LONG, || read().contains("ready"));
    let keys = terminal.stdin.as_mut().unwrap();
    std::io::Write::write_all(keys, b"\x03").unwrap();
    common::until("the key has come", LONG, || read().contains("int"));
    // Everything that was sent before this one has been handled.
    std::fs::write(fixture.0.path().join("end"), "").unwrap();
    assert_eq!(terminal.wait().unwrap().code(), Some(7));
    assert_eq!(read(), "ready\nint\n");
}

fn with_the_caller_everything_inside_is_killed() {
    if !supported() {
        return;
    }
    let fixture = Fixture::new();
    let running = fixture.ready("", "sleep 1000 & sleep 1000 & echo ready; wait");
    let pid = running.pid();
    let below = descendants(pid.as_raw().unsigned_abs());
    assert_eq!(below.len(), 4);
    kill(pid, Signal::SIGKILL).unwrap();
    assert_eq!(running.rest().0.signal(), Some(9));
    common::until("all are gone", LONG, || below.iter().all(|pid| common::ended(*pid)));
    // What it left is removed by the next.
    assert!(fixture.run("", "true").0.success());
}

fn a_start_that_fails_returns_and_changes_nothing() {
    if !supported() {
        return;
    }
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let table = [
        ("threads", "refused Unsupported: turn the calling process into a sandbox: it has 2 threads"),
        ("nowhere", "refused WorkingDirectoryNotFound"),
        ("piped", "refused InvalidArgument: turn the calling process into a sandbox: standard output is piped"),
        ("terminal", "refused InvalidArgument: turn the calling process into a sandbox: a terminal"),
    ];
    for (how, expected) in table {
        let (status, text) = fixture.run(how, "exit 77");
        assert!(status.success(), "{how}: {text}");
        assert!(text.contains(expected), "{how}: {text}");
    }
    drop(fixture);
    leaks.check();
}

fn a_process_group_leader_and_one_below_another_are_alike() {
    if !supported() {
        return;
    }
    let fixture = Fixture::new();
    let mut command = fixture.command("no-cgroup", "readlink /proc/self/ns/pid; exit 4");
    let output = command.process_group(0).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(!Path::new("/nowhere").exists());
}

fn main() {
    if let Ok(how) = std::env::var("GPUC_ENTER") {
        return become_a_sandbox(&how);
    }
    let tests: &[(&str, fn())] = &[
        ("every_exit_code_is_the_callers", every_exit_code_is_the_callers),
        (
            "who_is_killed_is_killed_by_the_same_signal_without_a_core",
            who_is_killed_is_killed_by_the_same_signal_without_a_core,
        ),
        ("the_application_has_what_the_caller_had", the_application_has_what_the_caller_had),
        ("every_signal_that_can_be_caught_is_handed_on_once", every_signal_that_can_be_caught_is_handed_on_once),
        ("what_is_queued_with_a_signal_comes_too", what_is_queued_with_a_signal_comes_too),
        ("a_process_that_may_not_be_dumped_can_become_one", a_process_that_may_not_be_dumped_can_become_one),
        ("what_the_caller_ignores_stays_ignored", what_the_caller_ignores_stays_ignored),
        ("both_are_stopped_and_go_on_together", both_are_stopped_and_go_on_together),
        ("the_keys_of_a_terminal_reach_the_application_once", the_keys_of_a_terminal_reach_the_application_once),
        ("with_the_caller_everything_inside_is_killed", with_the_caller_everything_inside_is_killed),
        ("a_start_that_fails_returns_and_changes_nothing", a_start_that_fails_returns_and_changes_nothing),
        (
            "a_process_group_leader_and_one_below_another_are_alike",
            a_process_group_leader_and_one_below_another_are_alike,
        ),
    ];
    let (mut only, mut skipped) = (Vec::new(), Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--skip" => skipped.extend(arguments.next()),
            option if option.starts_with('-') => {}
            _ => only.push(argument),
        }
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests {
        let named = |words: &[String]| words.iter().any(|word| name.contains(word.as_str()));
        if (only.is_empty() || named(&only)) && !named(&skipped) {
            let ended = std::thread::Builder::new().name((*name).to_owned()).spawn(*test).unwrap().join();
            println!("test {name} ... {}", if ended.is_ok() { "ok" } else { "FAILED" });
            passed += i32::from(ended.is_ok());
            failed += i32::from(ended.is_err());
        }
    }
    let outcome = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {outcome}. {passed} passed; {failed} failed");
    std::process::exit(if failed == 0 { 0 } else { 101 });
}
