//! From the plan to the stub's program: the one table that says how each step becomes system calls.

mod file_systems;
mod overlay;
mod own_file;

use crate::error::{Error, ErrorKind, Result};
use crate::net::bind_filter;
use crate::sandbox::plan::{Namespace, Plan, Step};
use crate::sys::calls::{At, Attributes, Message, Travel, namespace};
use crate::sys::program::{Argument, Jump, Program, Register};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// The descriptors that a start uses; they outlive the program.
#[derive(Debug)]
pub(crate) struct Descriptors<'fd> {
    /// Open `tasks` files of control groups of version 1.
    pub(crate) cgroup_tasks: Vec<BorrowedFd<'fd>>,
    /// Standard input, output, error; `None` where a terminal takes their place.
    pub(crate) stdio: Option<[BorrowedFd<'fd>; 3]>,
    /// The stub's end of the control socket.
    pub(crate) control: BorrowedFd<'fd>,
    /// Written to by nobody, closed by the application's `execve`.
    pub(crate) started: BorrowedFd<'fd>,
    /// The pidfd of the process that starts the sandbox.
    pub(crate) owner: BorrowedFd<'fd>,
    /// Kept open by the supervisor as long as it lives.
    pub(crate) claims: Vec<BorrowedFd<'fd>>,
    /// The same, until the supervisor is told to let go of it.
    pub(crate) lease: Option<BorrowedFd<'fd>>,
    /// The layers, the top one first, as mounts with shifted owners.
    pub(crate) layers: Vec<BorrowedFd<'fd>>,
    /// With shifted layers: the directory of upper and work directory, if writes go to disk.
    pub(crate) writes: Option<BorrowedFd<'fd>>,
    /// Sources that the parent has taken.
    pub(crate) sources: Vec<(usize, BorrowedFd<'fd>)>,
    /// The stub's end of the socket by which it waits for hooks.
    pub(crate) gate: Option<BorrowedFd<'fd>>,
    /// Sockets that are handed over.
    pub(crate) handed: Vec<BorrowedFd<'fd>>,
    /// What is passed, with the numbers that they go to.
    pub(crate) passed: Vec<(i32, BorrowedFd<'fd>)>,
    /// The pidfd of a process whose namespaces are entered.
    pub(crate) target: Option<BorrowedFd<'fd>>,
    /// Whether the parent wants to hear by the control socket when the application is stopped and goes on.
    pub(crate) tell_stops: bool,
    /// The network that is shared and the user namespace that owns it, as `setns(2)` takes them one after the other.
    pub(crate) shared: Vec<(BorrowedFd<'fd>, u64)>,
}

impl<'fd> Descriptors<'fd> {
    fn all(&self) -> impl Iterator<Item = BorrowedFd<'fd>> {
        let lists = [&self.cgroup_tasks, &self.claims, &self.layers, &self.handed].into_iter().flatten();
        let pairs = self.sources.iter().map(|(_, source)| source).chain(self.shared.iter().map(|(shared, _)| shared));
        let single = [&self.control, &self.started, &self.owner].into_iter();
        let perhaps = self.stdio.iter().flatten().chain(&self.writes).chain(&self.lease).chain(&self.gate);
        let pairs = pairs.chain(self.passed.iter().map(|(_, fd)| fd));
        lists.chain(pairs).chain(single).chain(perhaps).chain(&self.target).copied()
    }
}

const KILL: u64 = 1 << 5; // CAP_KILL
const SIGCHLD: u64 = 17;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_PARENT: u64 = 0x8000;
const EVERYTHING_NO: Attributes = Attributes { read_only: false, no_suid: true, no_devices: true, no_execute: true };

/// The stamp of a program that has come to its end, which only one without an application does.
pub(crate) const END: &str = "end";

/// The first number of sockets that are handed over (`SD_LISTEN_FDS_START`).
const FIRST_HANDED: i32 = 3;

/// The tag of the message with the process that went on in a shared network.
pub(crate) const WENT_ON: u8 = b'S';

/// The tag of the message with the listener for binds.
pub(crate) const BINDS: u8 = b'N';

struct Compiler<'fd, 'plan> {
    program: Program<'fd>,
    descriptors: &'plan Descriptors<'fd>,
    plan: &'plan Plan,
    sources: BTreeMap<usize, Argument>,
    root: Option<Register>,
    /// Made, not mounted yet.
    proc: Option<Register>,
    sys: Option<Register>,
    /// What is known to be there, so that it is made once: directories, and places of files.
    made: BTreeSet<String>,
    /// The fork's other branch: where it leads from, the application's pid, what to tell the parent.
    supervisor: Option<(Jump, Register, Message)>,
    /// The same of the process that only enters a shared network.
    entered: Option<(Jump, Message)>,
}

/// Compiles `plan`; everything that can fail or allocate happens here.
pub(crate) fn compile<'fd>(plan: &Plan, descriptors: &Descriptors<'fd>) -> Result<Program<'fd>> {
    // Nothing that is still needed may be where sockets and what is passed go.
    let handed = i32::try_from(descriptors.handed.len()).unwrap_or(i32::MAX - FIRST_HANDED);
    let above = |lowest: i32, number: i32| lowest.max(number.saturating_add(1));
    let passed = descriptors.passed.iter().map(|(number, _)| *number);
    let mut program = Program::inheriting_from(passed.fold(FIRST_HANDED + handed, above));
    // All now, so that it is known which numbers they leave.
    for descriptor in descriptors.all() {
        program.descriptor(descriptor);
    }
    let mut compiler = Compiler {
        program,
        descriptors,
        plan,
        sources: BTreeMap::new(),
        root: None,
        proc: None,
        sys: None,
        made: BTreeSet::new(),
        supervisor: None,
        entered: None,
    };
    compiler.program.stamp("stub");
    for (number, step) in plan.steps.iter().enumerate() {
        compiler.program.set_step(number);
        compiler.step(step).map_err(|e| e.context(step.to_string()))?;
    }
    compiler.supervise()?;
    compiler.tell_who_went_on()?;
    Ok(compiler.program)
}

impl Compiler<'_, '_> {
    fn step(&mut self, step: &Step) -> Result<()> {
        let program = &mut self.program;
        match step {
            Step::JoinCgroups { .. } => {
                for tasks in &self.descriptors.cgroup_tasks {
                    let tasks = program.descriptor(*tasks);
                    // "0" is the writing thread itself, which is the whole process: no waiting for a grace period.
                    program.write(tasks, b"0");
                }
                Ok(())
            }
            Step::AwaitIdMaps => {
                let control = program.descriptor(self.descriptors.control);
                program.write(control, b"R");
                program.await_byte(control);
                Ok(())
            }
            Step::BecomeNamespaceRoot => {
                program.keep_capabilities();
                program.become_user(0, 0, None);
                Ok(())
            }
            Step::EnterNamespaces { namespaces } => {
                let Some(target) = self.descriptors.target else {
                    return Err(Error::new(ErrorKind::InvalidArgument, "no process to enter was given"));
                };
                let target = program.descriptor(target);
                // Until its privileges are gone nobody inside may look into this process.
                program.not_dumpable();
                program.setns(target, namespaces.iter().map(|kind| flag(*kind)).sum());
                Ok(())
            }
            Step::NewMountNamespace => {
                program.unshare(namespace::MOUNT);
                Ok(())
            }
            Step::Node { device } => self.node(device),
            Step::Unmount { path } => program.unmount(path),
            Step::Discard { path } => program.unlink_if_possible(path),
            Step::NewCgroupNamespace => {
                program.unshare(namespace::CGROUP);
                Ok(())
            }
            Step::NewTimeNamespace { monotonic, boottime } => {
                program.unshare(namespace::TIME);
                let line = |name: &str, offset: i64| {
                    format!("{name} {} {}\n", offset.div_euclid(1_000_000_000), offset.rem_euclid(1_000_000_000))
                };
                let offsets = line("monotonic", *monotonic) + &line("boottime", *boottime);
                program.write_file(At::Cwd, "/proc/self/timens_offsets", offsets.as_bytes())
            }
            Step::InNetwork { .. } => Ok(()),
            Step::ShareNetwork { .. } => self.share_network(),
            Step::NextPid { pid } => {
                let last = pid.saturating_sub(1).to_string();
                program.write_file(At::Cwd, "/proc/sys/kernel/ns_last_pid", last.as_bytes())
            }
            Step::Fork => self.fork(),
            Step::NewSession => {
                program.setsid();
                // Blocked signals would be inherited by the application.
                program.unblock_signals();
                // Nothing that the stub inherited is the application's; its streams are put in place later.
                program.close_on_exec_all();
                program.umask(0);
                Ok(())
            }
            Step::Travel { travel } => program.set_travel_of_all(*travel),
            Step::TakeSource { source, path, recursive } => {
                let taken = self.descriptors.sources.iter().find(|(number, _)| number == source);
                let tree = match taken {
                    Some((_, taken)) => program.descriptor(*taken),
                    None => program.clone_tree(At::Cwd, path.as_os_str().as_bytes(), *recursive)?.into(),
                };
                self.sources.insert(*source, tree);
                Ok(())
            }
            Step::RootOverlay { overlay } => self.overlay(overlay),
            Step::RootDirectory { path } => {
                let tree = program.clone_tree(At::Cwd, path.as_os_str().as_bytes(), true)?;
                // As on an image's root: a device node in it is a name, nothing more.
                let attributes = Attributes { no_devices: true, ..Attributes::default() };
                program.set_attributes(tree, attributes, None, true)?;
                program.move_mount(tree, At::Cwd, "/")?;
                self.root = Some(tree);
                Ok(())
            }
            Step::Prepare { sys } => {
                let context = program.fsopen("proc")?;
                self.proc = Some(program.fsmount(context, EVERYTHING_NO)?);
                if *sys {
                    let context = program.fsopen("sysfs")?;
                    self.sys = Some(program.fsmount(context, Attributes { read_only: true, ..EVERYTHING_NO })?);
                }
                Ok(())
            }
            Step::Pivot => {
                let Some(root) = self.root else {
                    return Err(Error::new(ErrorKind::InvalidArgument, "no root was mounted"));
                };
                program.pivot(root)?;
                program.stamp("root");
                Ok(())
            }
            Step::Sysctl { name, value } => {
                let path = format!("sys/{}", name.replace('.', "/"));
                self.program.write_file(At::from(made(self.proc)?), &path, value.as_bytes())
            }
            Step::Proc { masked, read_only } => self.proc(masked, read_only),
            Step::Dev { devices, shm_bytes, terminal_group } => self.dev(devices, *shm_bytes, *terminal_group),
            Step::Sys { masked, bound } => self.sys(masked, *bound),
            Step::CgroupView { version2, controllers } => self.cgroup_view(*version2, controllers),
            Step::Bind { source, target, directory, attributes, recursive, travel } => {
                let tree = self.source(*source)?;
                self.program.set_attributes(tree, *attributes, Some(*travel), *recursive)?;
                self.cover(tree, target, *directory)
            }
            Step::Tmpfs { target, attributes, options } => {
                self.directories(target)?;
                let context = self.program.fsopen("tmpfs")?;
                for option in options.split(',').filter(|option| !option.is_empty()) {
                    match option.split_once('=') {
                        Some((key, value)) => self.program.fsconfig_string(context, key, value)?,
                        None => self.program.fsconfig_flag(context, option)?,
                    }
                }
                let mount = self.program.fsmount(context, *attributes)?;
                let onto = self.program.open_path_in(At::Cwd, target, true)?;
                self.program.move_mount_onto(mount, onto)
            }
            Step::Link { target, path } => {
                self.parents(path)?;
                self.program.unlink(At::Cwd, path)?;
                self.program.symlink(target, At::Cwd, path)
            }
            Step::File { path, text } => {
                self.parents(path)?;
                self.program.unlink(At::Cwd, path)?;
                let file = self.program.create_file_in(At::Cwd, path, 0o644)?;
                self.program.write(file, text.as_bytes());
                self.program.close(file);
                Ok(())
            }
            Step::OwnFile { path, contents, mode } => self.own_file(path, contents, *mode),
            Step::OwnMount { source, path } => {
                let tree = self.source(*source)?;
                let attributes = Attributes { read_only: true, ..EVERYTHING_NO };
                self.program.set_attributes(tree, attributes, Some(Travel::Private), false)?;
                self.cover_file(tree, path)
            }
            Step::AwaitHooks { .. } | Step::AwaitNetwork => {
                let Some(gate) = self.descriptors.gate else {
                    return Err(Error::new(ErrorKind::InvalidArgument, "nobody is there to run other programs"));
                };
                let gate = program.descriptor(gate);
                program.write(gate, b"R");
                program.await_byte(gate);
                Ok(())
            }
            Step::Hostname { name } => {
                program.sethostname(name);
                Ok(())
            }
            Step::LoopbackUp => program.loopback_up(),
            Step::ReadOnly { path } => {
                let attributes = Attributes { read_only: true, ..Attributes::default() };
                program.set_attributes_of(path, attributes)
            }
            Step::ResourceLimit { resource, soft, hard, .. } => {
                program.set_resource_limit(*resource, *soft, *hard);
                Ok(())
            }
            Step::OomScore { adjustment } => {
                program.write_file(At::Cwd, "/proc/self/oom_score_adj", adjustment.to_string().as_bytes())
            }
            Step::Terminal { rows, columns } => {
                let (master, slave) = program.open_terminal((*rows, *columns))?;
                let (message, slot) = program.descriptor_message(b'T');
                program.store(slot, master);
                let control = program.descriptor(self.descriptors.control);
                program.send(control, &message);
                program.take_terminal(slave);
                for number in 0..3 {
                    program.duplicate(slave, number);
                }
                Ok(())
            }
            Step::Stdio => {
                let Some(stdio) = self.descriptors.stdio else { return Ok(()) };
                for (number, from) in (0..).zip(stdio) {
                    let from = program.descriptor(from);
                    program.duplicate(from, number);
                }
                Ok(())
            }
            Step::User { user, group, groups } => {
                program.keep_capabilities();
                program.become_user(*user, *group, groups.as_deref());
                Ok(())
            }
            Step::Capabilities { mask } => {
                program.set_capabilities(*mask);
                Ok(())
            }
            Step::BoundingSet { mask, last } => {
                program.limit_bounding_set(*mask, *last);
                Ok(())
            }
            Step::WorkingDirectory { path } => program.enter_directory(path),
            Step::Umask { mask } => {
                program.umask(*mask);
                Ok(())
            }
            Step::NoNewPrivileges => {
                program.no_new_privileges();
                Ok(())
            }
            Step::WatchBinds => {
                let control = program.descriptor(self.descriptors.control);
                program.load_listened_filter(&bind_filter(), control, BINDS)
            }
            Step::Seccomp { instructions, .. } => {
                program.load_filter(instructions);
                Ok(())
            }
            Step::HandOver { .. } => {
                for (number, socket) in (FIRST_HANDED..).zip(&self.descriptors.handed) {
                    let socket = program.descriptor(*socket);
                    program.duplicate(socket, number);
                }
                Ok(())
            }
            Step::Pass { .. } => {
                for (number, fd) in &self.descriptors.passed {
                    let fd = program.descriptor(*fd);
                    program.duplicate(fd, *number);
                }
                Ok(())
            }
            Step::Execute { candidates, argv, envp } => program.execute(candidates, argv, envp),
        }
    }

    /// The new process is a child of the caller's, as if that had made it: its pid namespace begins with it, and
    /// nobody between has to live on.
    fn share_network(&mut self) -> Result<()> {
        let program = &mut self.program;
        for (namespace, kinds) in &self.descriptors.shared {
            let namespace = program.descriptor(*namespace);
            program.setns(namespace, *kinds);
        }
        let child = program.register()?;
        let (message, slot) = program.descriptor_message(WENT_ON);
        let flags = SIGCHLD | CLONE_PARENT | CLONE_PIDFD | clone_flags(self.plan);
        let jump = program.fork(flags, slot, child, false);
        program.release(child);
        self.entered = Some((jump, message));
        // Nothing that this process says may come before who it is, and the other one is not to count in its groups.
        let control = program.descriptor(self.descriptors.control);
        program.await_byte(control);
        Ok(())
    }

    /// The other branch of that: it tells the caller, and ends.
    fn tell_who_went_on(&mut self) -> Result<()> {
        let Some((jump, message)) = self.entered.take() else { return Ok(()) };
        self.program.land(jump);
        let control = self.program.descriptor(self.descriptors.control);
        self.program.send(control, &message);
        Ok(())
    }

    fn fork(&mut self) -> Result<()> {
        let program = &mut self.program;
        // A signal that the host ignores would stay ignored: without SIGCHLD no child would ever be heard of.
        program.default_signals();
        // The supervisor's own working directory would keep one of the host's busy; `/` follows the pivot.
        program.chdir("/")?;
        // Before there is an application that could see another; the application gets its program's name.
        program.set_name("gpuc-init")?;
        let child = program.register()?;
        let (message, slot) = program.descriptor_message(b'P');
        let new_pid =
            if self.plan.init || !self.plan.namespaces.contains(&Namespace::Pid) { 0 } else { namespace::PID };
        // A supervisor that waits for the application cannot tell the host of it while other programs prepare the
        // container, and whoever shares memory keeps the clocks that it has.
        let steps = &self.plan.steps;
        let sharing = !steps.iter().any(|step| step.is_gate() || matches!(step, Step::NewTimeNamespace { .. }));
        let jump = program.fork(SIGCHLD | CLONE_PIDFD | new_pid, slot, child, sharing);
        self.supervisor = Some((jump, child, message));
        Ok(())
    }

    /// The other branch of the fork.
    fn supervise(&mut self) -> Result<()> {
        let Some((jump, child, message)) = self.supervisor.take() else {
            self.program.stamp(END);
            return Ok(());
        };
        let program = &mut self.program;
        program.land(jump);
        let control = program.descriptor(self.descriptors.control);
        let owner = program.descriptor(self.descriptors.owner);
        program.send(control, &message);
        // What the application has open must end with the application, so nobody else may hold it.
        let started = program.descriptor(self.descriptors.started);
        program.close(started);
        let mut closed = vec![];
        let descriptors = self.descriptors;
        let lists = [&descriptors.cgroup_tasks, &descriptors.layers, &descriptors.handed];
        let sources =
            descriptors.sources.iter().map(|(_, source)| source).chain(&descriptors.writes).chain(&descriptors.gate);
        let shared = descriptors.shared.iter().map(|(namespace, _)| namespace);
        let sources = sources.chain(shared).chain(descriptors.passed.iter().map(|(_, fd)| fd));
        for fd in descriptors.stdio.iter().flatten().chain(lists.into_iter().flatten()).chain(sources) {
            let number = fd.as_raw_fd();
            if !closed.contains(&number) {
                closed.push(number);
                let fd = program.descriptor(*fd);
                program.close(fd);
            }
        }
        program.close_if_open(0);
        program.close_if_open(1);
        program.close_if_open(2);
        for claim in &self.descriptors.claims {
            program.descriptor(*claim);
        }
        let lease = self.descriptors.lease.map(|lease| program.descriptor(lease));
        program.no_new_privileges();
        program.not_dumpable();
        program.set_capabilities(KILL);
        let tell = self.descriptors.tell_stops;
        // From outside of the pid namespace it cannot tell who sends a signal, and nobody inside can send it one.
        program.supervise(child, control, owner, lease, (self.plan.init || !tell, tell));
        Ok(())
    }

    fn source(&self, source: usize) -> Result<Argument> {
        let missing = || Error::new(ErrorKind::InvalidArgument, format!("source {source} was not taken"));
        self.sources.get(&source).copied().ok_or_else(missing)
    }

    /// Mounts `tree` over `target`, which is made if it is not there.
    fn cover(&mut self, tree: Argument, target: &str, directory: bool) -> Result<()> {
        if directory {
            self.directories(target)?;
        } else {
            self.parents(target)?;
            if !self.made.contains(target) {
                self.program.touch(At::Cwd, target, 0o644)?;
            }
        }
        let onto = self.program.open_path_in(At::Cwd, target, directory)?;
        self.program.move_mount_onto(tree, onto)?;
        self.program.close(onto);
        self.program.release(onto);
        Ok(())
    }

    /// Makes the directories above `path`.
    fn parents(&mut self, path: &str) -> Result<()> {
        match path.rfind('/') {
            Some(at) if at > 0 => self.directories(&path[..at]),
            _ => Ok(()),
        }
    }

    /// Makes `path` and the directories above it.
    fn directories(&mut self, path: &str) -> Result<()> {
        for (at, _) in path.match_indices('/').skip(1).chain([(path.len(), "")]) {
            let directory = &path[..at];
            if !directory.is_empty() && self.made.insert(directory.to_owned()) {
                self.program.mkdir(At::Cwd, directory, 0o755)?;
                // Nothing is made through a link of the image into /proc, behind which this process's own
                // descriptors are, those of the host's directories among them.
                let checked = self.program.open_path_in(At::Cwd, directory, true)?;
                self.program.close(checked);
                self.program.release(checked);
            }
        }
        Ok(())
    }
}

fn made(mount: Option<Register>) -> Result<Register> {
    mount.ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "the file system was not made before"))
}

fn flag(kind: Namespace) -> u64 {
    match kind {
        Namespace::Cgroup => namespace::CGROUP,
        Namespace::Ipc => namespace::IPC,
        Namespace::Mount => namespace::MOUNT,
        Namespace::Network => namespace::NETWORK,
        Namespace::Pid => namespace::PID,
        Namespace::Time => namespace::TIME,
        Namespace::User => namespace::USER,
        Namespace::Uts => namespace::UTS,
    }
}

/// The flags for the first clone: what is made later, or by the fork, is left out.
pub(crate) fn clone_flags(plan: &Plan) -> u64 {
    let later = |kind: &Namespace| {
        matches!(kind, Namespace::Cgroup | Namespace::Time) || (*kind == Namespace::Pid && !plan.init)
    };
    plan.namespaces.iter().filter(|kind| !later(kind)).map(|kind| flag(*kind)).sum()
}
