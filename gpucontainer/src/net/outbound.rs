//! A way out for ordinary users: the program `pasta`, which carries what a network namespace sends as its user's own
//! traffic.
//!
//! Some versions of it go on when the namespace is gone. So each has a claim, which the sandbox's supervisor holds too,
//! and the next start ends those whose claims nobody holds.

use crate::claim::Claim;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::cgroup::{Process, make_private_directory};
use crate::sys::{fs, process};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The name server inside, which stands for the host's own, wherever that is.
pub(crate) const NAME_SERVER: &str = "169.254.1.1";

/// What it calls itself: one program does the work of two.
const NAMES: [&str; 2] = ["pasta", "passt"];

/// A way out for one sandbox. It is closed when this is dropped.
#[derive(Debug)]
pub(crate) struct Outbound {
    program: PathBuf,
    claim: Option<Claim>,
    running: OnceLock<Process>,
}

/// Where the program is.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) if it is not installed, or the caller is privileged, whom it does not serve.
fn program() -> Result<PathBuf> {
    if process::is_privileged() {
        let message = "pasta gives a way out to ordinary users alone; with privileges choose a private network";
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).chain([PathBuf::from("/usr/bin")]).map(|place| place.join("pasta"));
    places.find(|program| fs::metadata(program).is_ok_and(|metadata| metadata.is_file())).ok_or_else(|| {
        let message =
            "the program pasta is not installed, which gives ordinary users a way out (Debian's package passt)";
        Error::new(ErrorKind::Unsupported, message)
    })
}

/// The resolver configuration inside: the host's, but for the servers.
pub(crate) fn resolver() -> Result<String> {
    let host = match fs::read_to_string(Path::new("/etc/resolv.conf")) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        other => other?,
    };
    let other = host.lines().filter(|line| !line.trim_start().starts_with("nameserver"));
    Ok(other.fold(format!("nameserver {NAME_SERVER}\n"), |text, line| text + line + "\n"))
}

impl Outbound {
    /// Gets ready to give a way out: what is missing is found now. Ends what sandboxes of killed processes left.
    pub(crate) fn prepare() -> Result<Self> {
        let program = program()?;
        let directory = directory()?;
        let abandoned = Claim::abandoned(&directory)?;
        let living = living(&directory, &abandoned)?;
        for claim in abandoned {
            end(&note(&claim)?.into_iter().filter(|target| !living.contains(target)).collect::<Vec<_>>())?;
            claim.release()?;
        }
        let claim = Claim::take(&directory, &fs::unique(), b"")?;
        Ok(Self { program, claim: Some(claim), running: OnceLock::new() })
    }

    /// What the supervisor holds as long as it lives.
    pub(crate) fn claim(&self) -> Option<BorrowedFd<'_>> {
        self.claim.as_ref().map(AsFd::as_fd)
    }

    /// Gives the network namespace of the process `pid` a way out, and returns when it is there. No port of the host or of
    /// the namespace is published, and the gateway's address does not lead to the host.
    pub(crate) fn start(&self, pid: i32) -> Result<()> {
        self.run(pid).context("give a sandbox a way out with pasta")
    }

    fn run(&self, pid: i32) -> Result<()> {
        let program = &self.program;
        if let Some(claim) = &self.claim {
            claim.append(format!("{pid}\n").as_bytes())?;
        }
        // It writes its number when all is set up, and goes to the background; what it says before tells of failures.
        let number = process::memory_file(b"")?;
        let words = process::memory_file(b"")?;
        let failed = |call: &str, error| Error::from_io(format!("{call}({program:?})"), error).with_path(program);
        let mut child = Command::new(program)
            .args(["--config-net", "--quiet", "--no-map-gw", "--dns-forward", NAME_SERVER])
            .args(["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--pid", "/proc/self/fd/1"])
            .args(["--userns", &format!("/proc/{pid}/ns/user"), "--netns", &namespace(pid)])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(process::duplicate(&number)?)
            .stderr(process::duplicate(&words)?)
            .spawn()
            .map_err(|error| failed("execute", error))?;
        let status = child.wait().map_err(|error| failed("wait for", error))?;
        if !status.success() {
            let words = process::memory_text(&words)?;
            let message = format!("{status}: {}", words.trim());
            return Err(Error::new(ErrorKind::SystemCall, message).with_path(program));
        }
        let text = process::memory_text(&number)?;
        let silent = || Error::new(ErrorKind::SystemCall, format!("its number is {text:?}")).with_path(program);
        let number = text.trim().parse().map_err(|_| silent())?;
        // It may have died since, and its number be somebody else's.
        let running = Process::open(number)?.filter(|_| serves(number, &[pid])).ok_or_else(silent)?;
        self.running.set(running).map_err(|_| silent())
    }

    /// Leaves it to the supervisor.
    pub(crate) fn forget(&mut self) {
        self.claim = None;
        self.running = OnceLock::new();
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        let Some(claim) = self.claim.take() else { return };
        // It is process 1 of a namespace, which heeds nothing less, and it has nothing to put in order.
        let ended = match self.running.get() {
            Some(running) => running.kill(),
            None => note(&claim).and_then(|targets| end(&targets)),
        };
        if let Err(error) = ended.and_then(|()| claim.release()) {
            tracing::warn!(%error, "pasta could not be ended");
        }
    }
}

fn namespace(pid: i32) -> String {
    format!("/proc/{pid}/ns/net")
}

/// The processes that a claim's owner gave ways out.
fn note(claim: &Claim) -> Result<Vec<i32>> {
    Ok(targets(&claim.note()?))
}

fn targets(note: &[u8]) -> Vec<i32> {
    String::from_utf8_lossy(note).lines().filter_map(|line| line.parse().ok()).collect()
}

/// Those whose claims are held, or were taken away just now.
fn living(directory: &Path, abandoned: &[Claim]) -> Result<Vec<i32>> {
    let mut living = Vec::new();
    for path in fs::read_dir(directory)? {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".claim"));
        if name.is_none_or(|name| abandoned.iter().any(|claim| claim.name() == name)) {
            continue;
        }
        match fs::read(&path) {
            Ok(note) => living.extend(targets(&note)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(living)
}

/// Ends what serves these processes.
fn end(targets: &[i32]) -> Result<()> {
    if targets.is_empty() {
        return Ok(());
    }
    let numbers = fs::read_dir(Path::new("/proc"))?;
    for pid in numbers.iter().filter_map(|path| path.file_name()?.to_str()?.parse::<u32>().ok()) {
        if serves(pid, targets) {
            // Looked at once more while its number cannot become another's.
            let Some(running) = Process::open(pid)? else { continue };
            if serves(pid, targets) {
                running.kill()?;
            }
        }
    }
    Ok(())
}

/// Whether a process is the program, serving one of these.
fn serves(pid: u32, targets: &[i32]) -> bool {
    let read = |name: &str| fs::read(Path::new(&format!("/proc/{pid}/{name}"))).unwrap_or_default();
    let name = read("comm");
    if !NAMES.iter().any(|known| name.starts_with(known.as_bytes())) {
        return false;
    }
    let arguments = read("cmdline");
    let mut words = arguments.split(|byte| *byte == 0);
    words.any(|word| targets.iter().any(|target| word == namespace(*target).as_bytes()))
}

/// Where the claims of the user are: in memory.
fn directory() -> Result<PathBuf> {
    let user = process::own_ids().0;
    if let Some(runtime) = fs::path_from_environment("XDG_RUNTIME_DIR") {
        // What the login made belongs to the user alone. The variable may be that of another user (sudo, su).
        if runtime.is_absolute() && fs::metadata(&runtime).is_ok_and(|found| found.is_dir() && found.uid() == user) {
            let directory = runtime.join("gpucontainer/outbound");
            fs::create_dir_all(&directory)?;
            return Ok(directory);
        }
    }
    let memory = if fs::writable(Path::new("/dev/shm")) { "/dev/shm" } else { "/tmp" };
    let own = PathBuf::from(format!("{memory}/gpucontainer-{user}"));
    make_private_directory(&own)?;
    let directory = own.join("outbound");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}
