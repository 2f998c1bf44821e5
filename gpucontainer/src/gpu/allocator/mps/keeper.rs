//! The process that keeps a daemon, and ends it with the last lease of its group.
//!
//! ```text
//! the caller ──► forerunner   ends at once, so that the keeper is nobody's child; makes the namespaces
//!                   └─► keeper          process 1 of a PID namespace: whatever happens to it, all below die with it
//!                         ├─► waiter    blocks on the locks of the members, one after the other; ends after the last
//!                         └─► nvidia-cuda-mps-control -f
//!                               └─► nvidia-cuda-mps-server, one for the user whose clients are served
//! ```
//!
//! All of them are the stub (`stub/main.rs`) until they execute something, so that they have nothing of the caller's
//! but the descriptors that they are given. Of these the caller has copies, and so has whoever it forks meanwhile and for
//! as long as that lives: nothing here waits for one to be closed, and no lock on one tells who lives.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::calls::{At, Attributes, Travel, namespace};
use crate::sys::launch::{CloneOptions, last_capability, start as clone, wait};
use crate::sys::program::{Argument, Program, Report};
use crate::sys::{fs, process};

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SIGCHLD: u64 = 17;
const CLONE_PIDFD: u64 = 0x1000;
const KILL: u64 = 1 << 5; // CAP_KILL
/// What a daemon of root's has to do that root without capabilities could not: make servers for other users
/// (`CAP_SETGID`, `CAP_SETUID`), and end them.
const SERVE: u64 = KILL | 1 << 6 | 1 << 7;
/// A mount of nothing but data.
const PLAIN: Attributes = Attributes { read_only: false, no_suid: true, no_devices: true, no_execute: true };

/// Where the shared memory of POSIX is, for daemon and clients alike.
pub(super) const SHARED_MEMORY: &str = "/dev/shm";

/// Where the daemon sees the directory of its group: the host's may be below `/dev/shm`, or longer than the path of a
/// socket can be.
///
/// What is mounted on a directory goes when somebody removes that directory, also where it is not seen that something is
/// mounted there. So this is one that nobody can remove, in the keeper's own procfs, and needed by nothing of the driver.
pub(super) const GROUP: &str = "/proc/fs";

/// A program of the driver, ready to be executed.
#[derive(Debug)]
pub(super) struct Executable {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<String>,
    /// All of it: nothing of the caller's environment is handed on.
    pub(super) environment: Vec<String>,
    pub(super) working_directory: String,
}

/// A running keeper, and its daemon, as the caller counts processes.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) keeper: OwnedFd,
    pub(super) keeper_pid: u32,
    pub(super) daemon_pid: u32,
}

/// What a keeper holds and gives to its daemon.
#[derive(Debug)]
pub(super) struct Belongings<'a> {
    /// The directory of the group, and its path.
    pub(super) group: (&'a OwnedFd, &'a Path),
    /// The file `group` in there, on which the caller has locks that say that it starts a daemon.
    pub(super) born: &'a File,
    /// What the daemon says.
    pub(super) log: &'a File,
    /// What the daemon and its clients see at `/dev/shm`.
    pub(super) shared_memory: &'a Path,
}

/// What of that file a process of the group has locked as long as it lives.
pub(super) const LIVES: (u64, u64) = (0, 1);

/// What the steps of the program are called in errors.
const STEPS: &[&str] = &[
    "prepare the keeper of an MPS daemon",
    "make namespaces for an MPS daemon",
    "mount /proc for an MPS daemon",
    "mount /dev/shm for an MPS daemon",
    "wait for the end of the leases of an MPS daemon",
    "execute the MPS daemon",
];

/// Starts a daemon with its keeper, who lives until the last member of the group is gone.
///
/// # Errors
/// [`ErrorKind::TimedOut`] if the daemon is not executed before `deadline`. In no case of error something is left.
pub(super) fn start(daemon: &Executable, belongings: &Belongings<'_>, deadline: Instant) -> Result<Kept> {
    // Who may not make the namespaces may have them in one of users that has nobody but the caller.
    let alone = !process::is_privileged();
    let (control, far_control) = process::socket_pair()?;
    let null = fs::open(Path::new("/dev/null"))?;
    let mut program = Program::new();
    let descriptors = Descriptors {
        control: program.descriptor(far_control.as_fd()),
        group: program.descriptor(belongings.group.0.as_fd()),
        born: program.descriptor(belongings.born.as_fd()),
        streams: [
            program.descriptor(null.as_fd()),
            program.descriptor(belongings.log.as_fd()),
            program.descriptor(belongings.log.as_fd()),
        ],
    };
    compile(&mut program, &descriptors, daemon, belongings, alone)?;
    let program = program.finish()?;
    let options = CloneOptions { namespaces: if alone { namespace::USER } else { 0 }, ..CloneOptions::default() };
    let forerunner = clone(&program, &options)?;
    let report = program.into_report();
    drop(far_control);
    // It waits there, and is a process of its user's from then on.
    process::receive_word(&control)?;
    let mapped = if alone { map_oneself(forerunner.pid) } else { Ok(()) };
    // Without this it waits for ever, if nobody closes the socket.
    let told = mapped.and_then(|()| process::tell(&control, b"G"));
    if told.is_err() {
        process::send_signal(&forerunner.pidfd, 9)?;
    }
    wait(&forerunner.pidfd)?;
    told?;
    // What the forerunner has sent was so before it ended. The keeper does not wait for it, and may have been faster.
    let mut sent = Sent::default();
    while sent.keeper.is_none() && process::await_either(&control, &forerunner.pidfd, deadline)?[0] {
        if !sent.receive(&control)? {
            break;
        }
    }
    let Some(keeper) = sent.keeper.take() else { return Err(failure(&report)?) };
    match finish(&control, &keeper, sent, &report, deadline) {
        Ok((keeper_pid, daemon_pid)) => Ok(Kept { keeper, keeper_pid, daemon_pid }),
        Err(error) => {
            end(&keeper)?;
            Err(error)
        }
    }
}

/// Who was told of, in whatever order.
#[derive(Default)]
struct Sent {
    keeper: Option<OwnedFd>,
    daemon: Option<OwnedFd>,
}

impl Sent {
    const KEEPER: u8 = b'K';
    const DAEMON: u8 = b'P';

    /// Takes a message; `false` if nobody is left who could send one.
    fn receive(&mut self, control: &OwnedFd) -> Result<bool> {
        let received = process::receive_descriptor(control)?;
        let more = received.is_some();
        match received {
            Some((Self::KEEPER, process)) => self.keeper = Some(process),
            Some((_, process)) => self.daemon = Some(process),
            None => {}
        }
        Ok(more)
    }
}

/// Waits until the daemon was executed, of which the keeper tells; the numbers of both.
fn finish(
    control: &OwnedFd,
    keeper: &OwnedFd,
    mut sent: Sent,
    report: &Report,
    deadline: Instant,
) -> Result<(u32, u32)> {
    if sent.daemon.is_none() {
        match process::await_either(control, keeper, deadline)? {
            [true, _] => _ = sent.receive(control)?,
            [false, true] => {}
            [false, false] => return Err(Error::new(ErrorKind::TimedOut, "the MPS daemon was not executed in time")),
        }
    }
    let pid = |process: &OwnedFd| -> Result<u32> {
        Ok(process::pid_of(process)?.and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default())
    };
    match (report.failure()?, sent.daemon) {
        (None, Some(daemon)) => Ok((pid(keeper)?, pid(&daemon)?)),
        _ => Err(failure(report)?),
    }
}

fn failure(report: &Report) -> Result<Error> {
    let Some(failure) = report.failure()? else {
        return Ok(Error::new(ErrorKind::SystemCall, "the keeper of the MPS daemon was killed"));
    };
    let words = STEPS.get(failure.step).copied().unwrap_or("start an MPS daemon");
    Ok(Error::from_errno(words, failure.errno))
}

/// Kills a keeper and all that it keeps, and waits until they are gone.
pub(super) fn end(keeper: &OwnedFd) -> Result<()> {
    process::send_signal(keeper, 9)?;
    process::await_readable(keeper, Some(Duration::from_secs(10)))?;
    crate::sys::launch::collect_if_ended(keeper)
}

/// The caller is itself in the new user namespace of the process `pid`, and nobody else exists there.
fn map_oneself(pid: i32) -> Result<()> {
    let (user, group) = process::own_ids();
    let write = |file: &str, text: String| fs::write(Path::new(&format!("/proc/{pid}/{file}")), text.as_bytes());
    let mapped = write("setgroups", "deny".to_owned())
        .and_then(|()| write("uid_map", format!("{user} {user} 1\n")))
        .and_then(|()| write("gid_map", format!("{group} {group} 1\n")));
    mapped.context("map the caller's ids for an MPS daemon")
}

struct Descriptors {
    control: Argument,
    group: Argument,
    born: Argument,
    streams: [Argument; 3],
}

/// Everything that the forerunner and those after it do.
fn compile(
    program: &mut Program<'_>,
    descriptors: &Descriptors,
    daemon: &Executable,
    belongings: &Belongings<'_>,
    alone: bool,
) -> Result<()> {
    let Descriptors { control, group, born, streams } = *descriptors;
    program.write(control, b"R");
    program.await_byte(control);
    // A signal that the caller ignores would stay ignored: without SIGCHLD no child would ever be heard of.
    program.default_signals();
    program.chdir("/")?;
    program.set_name("gpuc-mps")?;
    program.set_step(1);
    let keeper = program.register()?;
    let (message, slot) = program.descriptor_message(Sent::KEEPER);
    let flags = SIGCHLD | CLONE_PIDFD | namespace::PID | namespace::MOUNT;
    let forerunner = program.fork(flags, slot, keeper, false);

    // The keeper. A terminal's signals are not for it, nor for what it keeps.
    program.setsid();
    // An open file of its own, so that no copy of the caller's says that somebody lives. Until now that one did.
    let alive = program.open_read_write_in(At::Open(group), "group")?;
    program.lock(alive, LIVES);
    program.close(born);
    // What the host unmounts goes here as well, and nothing of this goes there.
    program.set_travel_of_all(Travel::Slave)?;
    program.set_step(2);
    // The driver looks for its own process there.
    program.mount("proc", "/proc", PLAIN, "")?;
    program.set_step(3);
    // Both are taken before one hides the other.
    let (shared, directory) = (belongings.shared_memory, belongings.group.1);
    let shared = program.clone_tree(At::Cwd, shared.as_os_str().as_bytes(), false)?;
    let directory = program.clone_tree(At::Cwd, directory.as_os_str().as_bytes(), false)?;
    // A client that makes a link among the pipes cannot have the daemon, which is root's, write where the link leads.
    program.set_attributes_below("/", Attributes { read_only: true, ..Attributes::default() })?;
    for (tree, target) in [(shared, SHARED_MEMORY), (directory, GROUP)] {
        program.set_attributes(tree, PLAIN, Some(Travel::Private), false)?;
        program.move_mount(tree, At::Cwd, target)?;
        program.close(tree);
    }

    program.set_step(4);
    let waiter = program.register()?;
    let kept = program.fork(SIGCHLD, 0, waiter, false);
    program.close(control);
    for number in 0..3 {
        program.close_if_open(number);
    }
    program.set_capabilities(0);
    program.outlive(group);
    let done = program.jump();

    program.land(kept);
    let waiter = program.open_process(waiter)?;
    program.set_step(5);
    let child = program.register()?;
    let (daemon_message, slot) = program.descriptor_message(Sent::DAEMON);
    let supervised = program.fork(SIGCHLD | CLONE_PIDFD, slot, child, true);
    // What root executes has the bounding set, whatever it had before.
    program.limit_bounding_set(if alone { 0 } else { SERVE }, last_capability()?);
    program.set_capabilities(0);
    program.unblock_signals();
    program.umask(0o022);
    program.chdir(&daemon.working_directory)?;
    program.close_on_exec_all();
    for (number, from) in (0..).zip(streams) {
        program.duplicate(from, number);
    }
    // So the group is alive as long as one of its servers is.
    program.hand_down(alive.into());
    let path = daemon.path.to_string_lossy().into_owned();
    program.execute(&[path], &daemon.arguments, &daemon.environment)?;

    program.land(supervised);
    program.send(control, &daemon_message);
    for end in [control, streams[0], streams[1]] {
        program.close(end);
    }
    for number in 0..3 {
        program.close_if_open(number);
    }
    program.no_new_privileges();
    program.not_dumpable();
    program.set_capabilities(KILL);
    // Without a socket it does as it does for everybody's owner, which here is the waiter.
    program.supervise(child, (-1_i32).into(), waiter.into(), None, (true, false));

    program.land(forerunner);
    program.set_step(0);
    program.send(control, &message);
    program.land(done);
    Ok(())
}
