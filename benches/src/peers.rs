//! The programs that are compared with: container engines and their like, as Debian packages them.

use crate::Result;
use crate::bundle::{Options, write_bundle};
use crate::contender::{Contender, Program, Sample, measure, version};
use crate::machine::Machine;
use crate::system;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A container engine with runc's command line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Engine {
    Crun,
    Runc,
}

impl Engine {
    pub const ALL: [Self; 2] = [Self::Crun, Self::Runc];

    pub fn name(self) -> &'static str {
        match self {
            Self::Crun => "crun",
            Self::Runc => "runc",
        }
    }

    fn command(self, machine: &Machine) -> Result<Vec<String>> {
        let state = machine.scratch(&format!("{}-state", self.name()))?;
        Ok(vec![self.name().to_owned(), "--root".to_owned(), state.display().to_string()])
    }

    /// Starts a container that stays, for others to enter.
    pub fn hold(self, machine: &Machine) -> Result<Held> {
        let name = format!("gpuc-bench-{}-{}-held", std::process::id(), self.name());
        let arguments = ["/bin/sleep", "100000"];
        let options = Options { name: &name, root: &machine.root, arguments: &arguments, user_namespace: false };
        let bundle = write_bundle(machine, &options)?;
        let pid_file = bundle.join("pid");
        let command = self.command(machine)?;
        let mut start = command.clone();
        start.extend(["run", "--detach", "--pid-file"].map(str::to_owned));
        start.extend([pid_file.display().to_string(), "--bundle".to_owned(), bundle.display().to_string()]);
        start.push(name.clone());
        // The container keeps the standard streams, so they must not be pipes that somebody reads to the end.
        let (program, arguments) = start.split_first().ok_or("no program")?;
        let null = std::process::Stdio::null;
        let status = Command::new(program).args(arguments).stdin(null()).stdout(null()).stderr(null()).status();
        if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
            return Err(format!("{}: {status:?}", start.join(" ")));
        }
        let pid = std::fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse().ok());
        Ok(Held { pid: pid.ok_or("no pid")?, name, command })
    }
}

/// A running container; removed when dropped.
#[derive(Debug)]
pub struct Held {
    pub pid: u32,
    /// Its name and that of its cgroup.
    pub name: String,
    command: Vec<String>,
}

impl Held {
    /// Runs `true` in it by the engine's own command.
    pub fn exec(&self) -> Program {
        let mut arguments = self.command.clone();
        arguments.extend(["exec", &self.name, "/bin/true"].map(str::to_owned));
        Program { name: format!("{} exec", self.command[0]), arguments, input: None }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ =
            Command::new(&self.command[0]).args(&self.command[1..]).args(["delete", "--force", &self.name]).output();
    }
}

/// Whether `program` is installed.
pub fn installed(program: &str) -> Result<()> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&paths).any(|path| path.join(program).exists()) {
        return Ok(());
    }
    Err(format!("{program} is not installed"))
}

/// What a start has besides.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Plain,
    /// The root is an overlay, mounted before the engine starts and unmounted after it, as those who use
    /// engines do.
    Overlay,
    User,
}

/// `run` of an engine.
pub struct EngineRun {
    program: Program,
    overlay: Option<Overlay>,
}

struct Overlay {
    lower: PathBuf,
    directory: PathBuf,
}

impl EngineRun {
    pub fn new(engine: Engine, machine: &Machine, kind: Kind) -> Result<Self> {
        Self::numbered(engine, machine, kind, 0)
    }

    /// One of several that run at the same time.
    pub fn numbered(engine: Engine, machine: &Machine, kind: Kind, number: u32) -> Result<Self> {
        installed(engine.name())?;
        let name = format!("gpuc-bench-{}-{}-{kind:?}-{number}", std::process::id(), engine.name());
        let overlay = match kind {
            Kind::Overlay => {
                let directory = machine.scratch(&format!("{}-overlay", engine.name()))?;
                Some(Overlay { lower: machine.root.clone(), directory })
            }
            _ => None,
        };
        let merged = overlay.as_ref().map(|overlay| overlay.directory.join("merged"));
        let root: &Path = merged.as_ref().unwrap_or(&machine.root);
        let options = Options { name: &name, root, arguments: &["/bin/true"], user_namespace: kind == Kind::User };
        let bundle = write_bundle(machine, &options)?;
        let mut arguments = engine.command(machine)?;
        arguments.extend(["run".to_owned(), "--bundle".to_owned(), bundle.display().to_string(), name]);
        let program = Program { name: format!("{} run", engine.name()), arguments, input: None };
        Ok(Self { program, overlay })
    }

    pub fn once(&self) -> Result<()> {
        let Some(overlay) = &self.overlay else { return self.program.once() };
        let path = |name: &str| overlay.directory.join(name);
        for name in ["upper", "work", "merged"] {
            std::fs::create_dir(path(name)).map_err(|e| format!("{:?}: {e}", path(name)))?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={},volatile",
            overlay.lower.display(),
            path("upper").display(),
            path("work").display()
        );
        system::mount("overlay", &path("merged"), "overlay", &options)?;
        let result = self.program.once();
        system::unmount(&path("merged"))?;
        for name in ["upper", "work", "merged"] {
            std::fs::remove_dir_all(path(name)).map_err(|e| format!("{:?}: {e}", path(name)))?;
        }
        result
    }
}

impl Contender for EngineRun {
    fn name(&self) -> String {
        self.program.name.clone()
    }

    fn version(&self) -> String {
        version(&self.program.arguments[0])
    }

    fn command(&self) -> String {
        let overlay =
            if self.overlay.is_some() { "mkdir…, mount -t overlay…, then umount…, rm -r…: " } else { "" };
        format!("{overlay}{}", self.program.arguments.join(" "))
    }

    fn run(&mut self) -> Result<Sample> {
        measure(|| self.once())
    }
}

/// bubblewrap: all namespaces and the filter, but no cgroup, no masks.
pub fn bubblewrap(machine: &Machine) -> Result<Program> {
    installed("bwrap")?;
    let root = machine.root.display().to_string();
    let mut program = Program::new(
        "bwrap --unshare-all",
        &[
            "bwrap",
            "--unshare-all",
            "--die-with-parent",
            "--bind",
            &root,
            "/",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "--mqueue",
            "/dev/mqueue",
            "--ro-bind",
            "/sys",
            "/sys",
            "--hostname",
            "bench",
            "--chdir",
            "/",
            "--seccomp",
            "0",
            "/bin/true",
        ],
    );
    program.input = Some(machine.filter_file.clone());
    Ok(program)
}

/// nsenter: the namespaces of `held`, but not its cgroup, filter or capabilities.
pub fn nsenter(held: &Held) -> Result<Program> {
    installed("nsenter")?;
    let pid = held.pid.to_string();
    Ok(Program::new("nsenter", &["nsenter", "-t", &pid, "-m", "-u", "-i", "-n", "-p", "-C", "/bin/true"]))
}
