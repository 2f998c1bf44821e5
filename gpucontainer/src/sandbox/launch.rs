//! From a plan to a running application: the channels, the clone, the id maps, the answer.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::net::outbound::Outbound;
use crate::sandbox::compile::{BINDS, Descriptors, END, WENT_ON, clone_flags, compile};
use crate::sandbox::hooks;
use crate::sandbox::identity::IdMaps;
use crate::sandbox::plan::{Namespace, Plan, Step};
use crate::sandbox::shift::Shifted;
use crate::sys::launch::{CloneOptions, Started, start, wait};
use crate::sys::program::{Failure, Report, now};
use crate::sys::{errno, process};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// What a launch needs besides the plan.
#[derive(Debug, Default)]
pub(crate) struct Inputs<'a> {
    /// A cgroup v2 directory to start in.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// `tasks` files of control groups of version 1.
    pub(crate) cgroup_tasks: Vec<BorrowedFd<'a>>,
    /// Standard input, output and error, unless a terminal is made.
    pub(crate) stdio: Option<[BorrowedFd<'a>; 3]>,
    /// Held by the supervisor as long as it lives.
    pub(crate) claims: Vec<BorrowedFd<'a>>,
    /// Held by the supervisor at the first of its places, see [`Handle::let_go`](super::process::Handle::let_go).
    pub(crate) lease: Option<BorrowedFd<'a>>,
    /// What was taken for a shifted user namespace.
    pub(crate) shifted: Option<&'a Shifted>,
    /// Sockets that the application finds from number 3 on.
    pub(crate) handed: Vec<BorrowedFd<'a>>,
    /// What the application finds under these numbers.
    pub(crate) passed: Vec<(i32, BorrowedFd<'a>)>,
    /// Whether the control socket tells when the application is stopped and goes on.
    pub(crate) tell_stops: bool,
    /// The process whose namespaces are entered.
    pub(crate) target: Option<BorrowedFd<'a>>,
    /// The network namespace to start in, or a pidfd of a process in it.
    pub(crate) network: Option<BorrowedFd<'a>>,
    /// The network to share and the user namespace that owns it, as `setns(2)` takes them one after the other.
    pub(crate) shared: Vec<(BorrowedFd<'a>, u64)>,
    /// Sources that were taken already, by their numbers.
    pub(crate) sources: Vec<(usize, BorrowedFd<'a>)>,
    /// What gives the network a way out.
    pub(crate) outbound: Option<&'a Outbound>,
    /// The maps of a new user namespace.
    pub(crate) id_maps: Option<&'a IdMaps>,
}

impl Inputs<'_> {
    /// Has other programs do for the application what it waits for at `gate`.
    fn pass(&self, plan: &Plan, step: &Step, gate: &OwnedFd, (supervisor, application): (i32, i32)) -> Result<()> {
        match step {
            Step::AwaitHooks { hooks } => {
                hooks.iter().try_for_each(|hook| hooks::run(hook, &plan.name, application, "creating"))?;
            }
            _ => self.outbound.map_or(Ok(()), |outbound| outbound.start(supervisor))?,
        }
        process::tell(gate, b"G")
    }
}

/// A started application with its supervisor.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) supervisor: OwnedFd,
    pub(crate) application: OwnedFd,
    pub(crate) control: OwnedFd,
    pub(crate) terminal: Option<OwnedFd>,
    /// Hears of binds, if the plan wants that and the kernel allows it.
    pub(crate) binds: Option<OwnedFd>,
    pub(crate) report: Report,
    /// The numbers of the claims, here and in the supervisor.
    pub(crate) claims: Vec<(i32, i32)>,
    /// What was reached when, from the call on.
    pub(crate) moments: Vec<(&'static str, Duration)>,
}

/// Starts what the plan says and waits until the application runs.
pub(crate) fn launch(plan: &Plan, inputs: &Inputs<'_>) -> Result<Running> {
    let mut moments = vec![("launch", now())];
    let (control, stub_control) = process::socket_pair()?;
    let (started, stub_started) = process::pipe()?;
    let owner = process::own_pidfd()?;
    let waits = plan.steps.iter().any(Step::is_gate);
    let (gate, stub_gate) =
        if waits { process::socket_pair().map(|(gate, stub)| (Some(gate), Some(stub)))? } else { (None, None) };
    let shifted = inputs.shifted.iter().flat_map(|taken| &taken.sources).map(|(at, fd)| (*at, fd.as_fd()));
    let sources = inputs.sources.iter().copied().chain(shifted);
    let descriptors = Descriptors {
        cgroup_tasks: inputs.cgroup_tasks.clone(),
        stdio: inputs.stdio,
        control: stub_control.as_fd(),
        started: stub_started.as_fd(),
        owner: owner.as_fd(),
        claims: inputs.claims.clone(),
        lease: inputs.lease,
        layers: inputs.shifted.map(|taken| taken.layers.iter().map(AsFd::as_fd).collect()).unwrap_or_default(),
        writes: inputs.shifted.and_then(|taken| taken.writes.as_ref()).map(AsFd::as_fd),
        sources: sources.collect(),
        gate: stub_gate.as_ref().map(AsFd::as_fd),
        handed: inputs.handed.clone(),
        passed: inputs.passed.clone(),
        target: inputs.target,
        shared: inputs.shared.clone(),
        tell_stops: inputs.tell_stops,
    };
    let mut program = compile(plan, &descriptors)?;
    let claims = inputs.claims.iter().map(|claim| (claim.as_raw_fd(), program.number(*claim))).collect();
    tracing::debug!(sandbox = plan.name, operations = program.len(), "program compiled");
    let program = program.finish()?;
    moments.push(("compiled", now()));
    // Who enters a network first makes the namespaces in there.
    let namespaces = if inputs.shared.is_empty() { clone_flags(plan) } else { 0 };
    let options = CloneOptions { namespaces, cgroup: inputs.cgroup, network: inputs.network };
    let mut child = start(&program, &options)?;
    let report = program.into_report();
    drop((stub_control, stub_started, stub_gate));
    if !inputs.shared.is_empty() {
        child = who_went_on(plan, &child, &control, &report)?;
    }
    moments.push(("cloned", now()));
    let collected = Collect(&child.pidfd);

    if let Some(maps) = inputs.id_maps.filter(|_| plan.namespaces.contains(&Namespace::User)) {
        // It waits there. Where this process may not be dumped, as after a change of its user, the files of the new one in
        // procfs are its user's from the stub on, and not before.
        process::receive_word(&control)?;
        maps.write(child.pid).with_context(|| format!("map the ids of process {}", child.pid))?;
        process::tell(&control, b"G")?;
    }
    let (mut application, mut terminal, mut binds) = (None, None, None);
    if let Some(gate) = &gate {
        for step in plan.steps.iter().filter(|step| step.is_gate()) {
            // It is readable when the application waits there, and also when it is gone.
            process::await_readable(gate, None)?;
            if let Some(failure) = report.failure()? {
                return Err(explain(plan, &failure));
            }
            if application.is_none() {
                let Some((b'P', pidfd)) = process::receive_descriptor(&control)? else {
                    return Err(died(plan, &report));
                };
                application = Some(pidfd);
            }
            let pid = application.as_ref().map(process::pid_of).transpose()?.flatten().unwrap_or(0);
            // So that the next word is of the next gate.
            process::receive_word(gate)?;
            inputs.pass(plan, step, gate, (child.pid, pid))?;
        }
        moments.push(("hooks", now()));
    }
    process::await_end(&started)?;
    // A report of a failure is in memory before the pipe ends.
    if let Some(failure) = report.failure()? {
        return Err(explain(plan, &failure));
    }
    let wants_terminal = plan.steps.iter().any(|step| matches!(step, Step::Terminal { .. }));
    let wants_binds = plan.steps.iter().any(|step| matches!(step, Step::WatchBinds));
    loop {
        let owed = application.is_none() || (wants_terminal && terminal.is_none());
        // What the application's process sends it has sent before it became the application.
        let more = wants_binds && binds.is_none() && process::await_readable(&control, Some(Duration::ZERO))?;
        if !owed && !more {
            break;
        }
        match process::receive_descriptor(&control)? {
            Some((b'P', fd)) => application = Some(fd),
            Some((b'T', fd)) => terminal = Some(fd),
            Some((BINDS, fd)) => binds = Some(fd),
            Some(_) => {}
            None => break,
        }
    }
    let Some(application) = application else {
        return Err(died(plan, &report));
    };
    moments.extend(report.stamps()?);
    moments.push(("started", now()));
    moments.sort_by_key(|(_, at)| *at);
    std::mem::forget(collected);
    Ok(Running { supervisor: child.pidfd, application, control, terminal, binds, report, claims, moments })
}

/// The process that went on in the network that `first` has entered.
fn who_went_on(plan: &Plan, first: &Started, control: &OwnedFd, report: &Report) -> Result<Started> {
    let told = process::receive_descriptor(control);
    // It has nothing more to do.
    wait(&first.pidfd)?;
    let Some((WENT_ON, pidfd)) = told? else { return Err(died(plan, report)) };
    let collected = Collect(&pidfd);
    let Some(pid) = process::pid_of(&pidfd)? else { return Err(died(plan, report)) };
    process::tell(control, b"G")?;
    std::mem::forget(collected);
    Ok(Started { pid, pidfd })
}

/// Why a plan without an application was not carried out to its end.
#[derive(Debug)]
pub(crate) struct Broken {
    /// The step that failed; those before it were done. `None` if it is not known how far it came.
    pub(crate) step: Option<usize>,
    pub(crate) error: Error,
}

impl From<Error> for Broken {
    /// Of an error before the first step.
    fn from(error: Error) -> Self {
        Self { step: Some(0), error }
    }
}

/// Carries out a plan that executes nothing, for the sandbox of the process `target`, and waits for its end.
pub(crate) fn perform(plan: &Plan, target: BorrowedFd<'_>) -> Result<(), Broken> {
    let (_control, stub_control) = process::socket_pair()?;
    let (_started, stub_started) = process::pipe()?;
    let owner = process::own_pidfd()?;
    let descriptors = Descriptors {
        cgroup_tasks: Vec::new(),
        stdio: None,
        control: stub_control.as_fd(),
        started: stub_started.as_fd(),
        owner: owner.as_fd(),
        claims: Vec::new(),
        lease: None,
        layers: Vec::new(),
        writes: None,
        sources: Vec::new(),
        gate: None,
        handed: Vec::new(),
        passed: Vec::new(),
        target: Some(target),
        shared: Vec::new(),
        tell_stops: false,
    };
    let program = compile(plan, &descriptors)?.finish()?;
    let child = start(&program, &CloneOptions::default())?;
    let report = program.into_report();
    wait(&child.pidfd)?;
    if let Some(failure) = report.failure()? {
        return Err(Broken { step: Some(failure.step), error: step_error(plan, &failure) });
    }
    if report.stamps()?.iter().any(|(name, _)| *name == END) {
        return Ok(());
    }
    Err(Broken { step: None, error: Error::new(ErrorKind::SystemCall, "the process that does it was killed") })
}

/// Ends and collects the stub when a start fails half-way.
struct Collect<'a>(&'a OwnedFd);

impl Drop for Collect<'_> {
    fn drop(&mut self) {
        let ended = process::send_signal(self.0, 9).and_then(|()| wait(self.0));
        if let Err(error) = ended {
            tracing::warn!(%error, "a failed start could not be collected");
        }
    }
}

fn died(plan: &Plan, report: &Report) -> Error {
    match report.failure() {
        Ok(Some(failure)) => explain(plan, &failure),
        _ => Error::new(ErrorKind::SystemCall, format!("start {}: the supervisor was killed", plan.name)),
    }
}

/// The error of a start that failed.
fn explain(plan: &Plan, failure: &Failure) -> Error {
    step_error(plan, failure).context(format!("start {}", plan.name))
}

/// The error of a failed step, in the plan's words.
fn step_error(plan: &Plan, failure: &Failure) -> Error {
    let words = plan.step_words(failure.step);
    let words = if failure.log.is_empty() { words } else { format!("{words} ({})", failure.log) };
    let error = Error::from_errno(words, failure.errno);
    let step = plan.steps.get(failure.step);
    match step {
        Some(Step::Execute { argv, .. }) => {
            let command = argv.first().cloned().unwrap_or_default();
            error.with_kind(ErrorKind::CommandNotFound).with_path(command)
        }
        Some(Step::WorkingDirectory { path }) => error.with_kind(ErrorKind::WorkingDirectoryNotFound).with_path(path),
        Some(Step::TakeSource { path, .. } | Step::RootDirectory { path }) => error.with_path(path),
        Some(Step::Bind { target, .. } | Step::Tmpfs { target, .. }) => error.with_path(target),
        Some(Step::Sysctl { name, .. }) if failure.errno == errno::EINVAL => error
            .with_kind(ErrorKind::InvalidArgument)
            .context(format!("the kernel does not take the value for {name}")),
        Some(Step::Dev { .. } | Step::Proc { .. } | Step::Sys { .. })
            if matches!(failure.errno, errno::EINVAL | errno::ENOTDIR | errno::ENOENT | errno::ELOOP) =>
        {
            error
                .with_kind(ErrorKind::InvalidImage)
                .context("a file system belongs where the image has a link or a file")
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::plan::Masked;
    use std::io::Read;

    #[test]
    fn a_hand_made_plan_runs() {
        if !process::is_privileged() {
            eprintln!("SKIP a_hand_made_plan_runs: needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("bin")).unwrap();
        std::fs::copy("/bin/busybox", root.join("bin/sh")).unwrap();
        let plan = Plan {
            name: "t".into(),
            namespaces: vec![
                Namespace::Mount,
                Namespace::Pid,
                Namespace::Uts,
                Namespace::Ipc,
                Namespace::Network,
                Namespace::Cgroup,
            ],
            init: true,
            steps: vec![
                Step::NewCgroupNamespace,
                Step::Fork,
                Step::NewSession,
                Step::Travel { travel: crate::sys::calls::Travel::Private },
                Step::RootDirectory { path: root.clone() },
                Step::Prepare { sys: true },
                Step::Pivot,
                Step::Dev { devices: vec![], shm_bytes: 1 << 20, terminal_group: None },
                Step::Proc { masked: vec![], read_only: vec!["sys".into(), "nothing".into()] },
                Step::Sys { masked: vec![Masked { path: "firmware".into(), directory: true }], bound: None },
                Step::Hostname { name: "inside".into() },
                Step::LoopbackUp,
                Step::Stdio,
                Step::WorkingDirectory { path: "/bin".into() },
                Step::NoNewPrivileges,
                Step::Execute {
                    candidates: vec!["/nowhere/sh".into(), "/bin/sh".into()],
                    argv: vec![
                        "sh".into(),
                        "-c".into(),
                        "hostname; pwd; echo $A $$; ls -a / /proc/1/ >/dev/null; exit 7".into(),
                    ],
                    envp: vec!["A=b".into()],
                },
            ],
        };
        let (reader, writer) = process::pipe().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let stdio = [null.as_fd(), writer.as_fd(), writer.as_fd()];
        let running = launch(&plan, &Inputs { stdio: Some(stdio), ..Inputs::default() }).unwrap();
        drop(writer);
        let mut text = String::new();
        std::fs::File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside\n/bin\nb 2\n");
        wait(&running.supervisor).unwrap();
        assert_eq!(running.report.status().unwrap(), Some(7 << 8));
        eprintln!("{:?}", running.moments);
    }
}
