//! Groups of leases that have one daemon, and what of a group is in the directory of the slots.
//!
//! ```text
//! mps-<user>/                   that user's alone: its daemons are nobody else's to talk to
//!   <group>/                    locked (flock) while somebody starts or removes the group
//!     group                     who it is; its first byte is locked as long as a process of the group lives, the second
//!                               as long as somebody starts one
//!     members/<lease>           second names of the slots of its leases; gone: nobody can enter any more
//!     pipe/  log/  bin/  lib/   the daemon's
//!     left-<random>             what of these could not be removed when the group got a new daemon
//!     shm                       a link to /dev/shm/gpucontainer-mps-<random>/shm, or to a directory beside it
//! ```
//!
//! What a dead group leaves, the next allocator of the same user removes, once its leases are over as well: containers
//! have `pipe` and `shm`. A lease that comes before gives the group a new daemon.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::allocator::choice::wishes::Sharing;
use crate::gpu::allocator::mps::keeper::{self, Belongings, Executable, GROUP, Kept, LIVES, SHARED_MEMORY};
use crate::gpu::allocator::mps::remains::{SHARED_PREFIX, clear, contents, remove_contents};
use crate::gpu::allocator::mps::talk::ask;
use crate::gpu::allocator::mps::{Access, CONTROL, Mps, PIPES_INSIDE, Programs, SERVER};
use crate::gpu::allocator::slots::record;
use crate::gpu::allocator::slots::table::{Slot, nanoseconds};
use crate::gpu::driver::Driver;
use crate::gpu::driver::root::DriverRoot;
use crate::progress::Cancel;
use crate::sys::cgroup::{Process, effective_user, is_in_memory};
use crate::sys::process::{await_readable, since_boot};
use crate::sys::{fs, launch, slot};

use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PREFIX: &str = "mps-";
/// What of the file `group` is locked by who starts a process of the group, until that has locked [`LIVES`].
const STARTS: slot::Range = (1, 1);
/// How long who gives up the last lease of a group waits for the end of its daemon.
const END: Duration = Duration::from_secs(5);
/// How much of what a daemon said is repeated, in bytes.
const WORDS: usize = 2048;

/// The daemon of a group of leases.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MpsGroup {
    /// The group's name: that of its lease, if that is held alone.
    pub id: String,
    /// The user whose leases they are.
    pub user: u32,
    /// The control daemon, as the PID namespace of the process that took the first lease counts.
    pub pid: u32,
    /// That PID namespace, as `/proc/self/ns/pid` names it.
    pub pid_namespace: String,
    /// Whether it lives.
    pub running: bool,
    /// For how long it has.
    pub age: Duration,
    /// The GPUs and MIG devices that it serves.
    pub gpus: Vec<String>,
    /// The ceiling of each client's share of threads in percent; `None` without one.
    pub active_threads: Option<u32>,
    /// The ceiling of each client's allocations on each GPU, in bytes; `None` without one.
    pub device_memory: Option<u64>,
    /// The leases of the group, by name.
    pub leases: Vec<String>,
    /// The daemon's pipes, for `CUDA_MPS_PIPE_DIRECTORY` of a process of the same user, or of root. In what the daemon
    /// answers there, servers and clients have the numbers of its own PID namespace.
    pub pipe_directory: PathBuf,
    /// What the daemon and its servers say.
    pub log: PathBuf,
}

/// Who a group is, as the file `group` says.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct GroupRecord {
    daemon: u32,
    keeper: u32,
    pid_namespace: String,
    since: u64,
    gpus: Vec<String>,
    mps: Mps,
}

/// What a lease brings to its group.
#[derive(Debug)]
pub(crate) struct Joining<'a> {
    /// The directory of the slots.
    pub(crate) table: &'a Path,
    pub(crate) slot: &'a Slot,
    pub(crate) gpus: &'a [String],
    pub(crate) sharing: Sharing,
    pub(crate) mps: &'a Mps,
    pub(crate) programs: &'a Programs,
    pub(crate) root: &'a DriverRoot,
    pub(crate) pid_namespace: &'a str,
    /// How long the daemon may take to answer.
    pub(crate) limit: Duration,
    pub(crate) cancel: &'a Cancel,
}

/// A lease's place in its group.
#[derive(Debug)]
pub(crate) struct Membership {
    directory: PathBuf,
    /// The second name of the lease's slot.
    member: PathBuf,
    keeper: Process,
    access: Access,
}

/// The directory of a user's groups.
fn of_user(table: &Path, user: u32) -> PathBuf {
    table.join(format!("{PREFIX}{user}"))
}

impl Joining<'_> {
    /// What the group is called that the lease belongs to.
    fn group(&self) -> String {
        if self.sharing == Sharing::Exclusive {
            return self.slot.id.clone();
        }
        let mut gpus: Vec<&String> = self.gpus.iter().collect();
        gpus.sort();
        let same = (gpus, self.mps, self.pid_namespace, self.root.path());
        // Strings, numbers and lists of them always have a JSON form.
        format!("{:016x}", record::hash(serde_json::to_string(&same).unwrap_or_default().as_bytes()))
    }

    /// Waits a little, if there is time.
    fn pause(&self, deadline: Instant, what: &str) -> Result<()> {
        self.cancel.check()?;
        if Instant::now() >= deadline {
            return Err(Error::new(ErrorKind::TimedOut, format!("{what} within {:?}", self.limit)));
        }
        std::thread::sleep(Duration::from_millis(2));
        Ok(())
    }
}

/// Makes a lease a member of its group, whose daemon then runs and answers.
///
/// # Errors
/// [`ErrorKind::GpuUnavailable`] with the daemon's own words if it does not start, [`ErrorKind::TimedOut`] if it does
/// not answer in time, [`ErrorKind::Unsupported`] for limits that it does not know.
pub(crate) fn join(joining: &Joining<'_>) -> Result<Membership> {
    enter(joining).context("start an MPS daemon for a lease")
}

fn enter(joining: &Joining<'_>) -> Result<Membership> {
    let user = effective_user();
    let parent = of_user(joining.table, user);
    let directory = parent.join(joining.group());
    let deadline = Instant::now() + joining.limit;
    loop {
        make_own_directory(&parent, user)?;
        match fs::create_dir(&directory) {
            // The last group of the user was removed, and the directory of all with it.
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let lock = match slot::try_lock_directory(&directory) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            lock => lock?,
        };
        let Some(_lock) = lock.filter(|lock| lock.is_at(&directory)) else {
            joining.pause(deadline, "somebody else has not started the daemon")?;
            continue;
        };
        if !is_alive(&directory)? {
            return begin(joining, &directory, deadline).inspect_err(|_| {
                // The error to report is the first.
                let _ = fs::remove_file(&member(joining, &directory)).and_then(|()| remove_unless_held(&directory));
            });
        }
        if let Some(membership) = enter_living(joining, &directory)? {
            return Ok(membership);
        }
        // It is about to end; its successor has its place.
        joining.pause(deadline, "the last daemon of the group has not ended")?;
    }
}

/// Joins a group that lives, if it still takes members.
fn enter_living(joining: &Joining<'_>, directory: &Path) -> Result<Option<Membership>> {
    let Some(record) = read(&directory.join("group"))? else { return Ok(None) };
    let Some(keeper) = Process::open(record.keeper)? else { return Ok(None) };
    let member = member(joining, directory);
    match fs::hard_link(&joining.slot.path, &member) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        linked => linked?,
    }
    // Alive now, the keeper was so when it was taken hold of, and the number was its own.
    let lives = || Ok(!await_readable(&keeper, Some(Duration::ZERO))? && is_alive(directory)?);
    let entered = lives().and_then(|lives| if lives { access(directory, joining).map(Some) } else { Ok(None) });
    if !matches!(entered, Ok(Some(_))) {
        // Whoever begins the group anew makes the same name. A keeper that is about to end may have taken it away.
        let removed = fs::remove_file(&member);
        removed.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
    }
    Ok(entered?.map(|access| Membership { directory: directory.to_owned(), member, keeper, access }))
}

/// Where the second name of a lease's slot is.
fn member(joining: &Joining<'_>, directory: &Path) -> PathBuf {
    directory.join("members").join(&joining.slot.id)
}

/// Makes a daemon for the group whose directory it is, and which the caller has locked: a new one, or the next of one
/// whose daemon has died.
fn begin(joining: &Joining<'_>, directory: &Path, deadline: Instant) -> Result<Membership> {
    let shared_memory = if has_living_members(directory)? {
        let of_daemon = ["group", "log", "bin", "lib"].map(|name| directory.join(name));
        of_daemon.iter().try_for_each(|path| fs::remove_tree(path))?;
        // Containers have this directory, so that it stays, and what was made in it goes.
        fs::read_dir(&directory.join("pipe"))?.iter().try_for_each(|path| clear(path))?;
        fs::read_link(&directory.join("shm"))?
    } else {
        contents(directory)?.iter().try_for_each(|path| clear(path))?;
        fs::set_mode(directory, 0o755)?;
        make_directory(directory, "members", 0o755)?;
        make_directory(directory, "pipe", 0o1777)?;
        make_shared_memory(directory)?
    };
    for name in ["log", "bin", "lib"] {
        make_directory(directory, name, 0o755)?;
    }
    let Programs { control, server } = joining.programs;
    fs::symlink(&control.host_path, &directory.join("bin").join(CONTROL))?;
    fs::symlink(&server.host_path, &directory.join("bin").join(SERVER))?;
    if !joining.root.is_host() {
        link_libraries(joining.root, &directory.join("lib"))?;
    }
    let member = member(joining, directory);
    // Last of what containers have: who has a living member has all of it.
    fs::hard_link(&joining.slot.path, &member)?;
    // Whoever reads it before it is whole sees that it is not.
    let path = directory.join("group");
    let group = slot::create(&path, &[STARTS], b"")?;
    let log = fs::create_new(&log(directory))?;
    let opened = fs::open_dir(directory)?;
    let belongings = Belongings { group: (&opened, directory), born: &group, log: &log, shared_memory: &shared_memory };
    let kept = keeper::start(&daemon(joining), &belongings, deadline);
    // Said, for all copies, since what this process forks meanwhile has one and may live longer than the group.
    let freed = slot::free(&group, &path);
    let kept = kept?;
    let begun = || -> Result<Membership> {
        freed?;
        await_answer(joining, directory, &kept, deadline)?;
        let record = GroupRecord {
            daemon: kept.daemon_pid,
            keeper: kept.keeper_pid,
            pid_namespace: joining.pid_namespace.to_owned(),
            since: nanoseconds(since_boot()),
            gpus: joining.gpus.to_vec(),
            mps: joining.mps.clone(),
        };
        slot::write(&group, &path, &record::encode(&record))?;
        let access = access(directory, joining)?;
        let keeper = Process::open(kept.keeper_pid)?.ok_or_else(|| died(directory))?;
        Ok(Membership { directory: directory.to_owned(), member, keeper, access })
    };
    let membership = begun();
    if membership.is_err() {
        keeper::end(&kept.keeper)?;
    }
    membership
}

fn make_directory(directory: &Path, name: &str, mode: u32) -> Result<()> {
    let path = directory.join(name);
    fs::create_dir(&path)?;
    fs::set_mode(&path, mode)
}

/// Whether a process of the group lives, or somebody starts one.
fn is_alive(directory: &Path) -> Result<bool> {
    let path = directory.join("group");
    let Some(found) = slot::open(&path)? else { return Ok(false) };
    // In this order, since the one is locked before the other is free.
    Ok(slot::held(&found.file, &path, STARTS)?.is_some() || slot::held(&found.file, &path, LIVES)?.is_some())
}

/// Whether one of the leases of the group is not over.
fn has_living_members(directory: &Path) -> Result<bool> {
    for member in fs::read_dir(&directory.join("members")).unwrap_or_default() {
        if Slot::is_alive(&member)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The daemon, as it is executed where the group's directory has another path.
fn daemon(joining: &Joining<'_>) -> Executable {
    let mut environment = vec![
        // The daemon finds its server by name.
        format!("PATH={GROUP}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        format!("CUDA_VISIBLE_DEVICES={}", joining.gpus.join(",")),
        "CUDA_DEVICE_ORDER=PCI_BUS_ID".to_owned(),
        format!("CUDA_MPS_PIPE_DIRECTORY={GROUP}/pipe"),
        format!("CUDA_MPS_LOG_DIRECTORY={GROUP}/log"),
    ];
    if let Some(percent) = joining.mps.active_threads {
        environment.push(format!("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE={percent}"));
    }
    if !joining.root.is_host() {
        environment.push(format!("LD_LIBRARY_PATH={GROUP}/lib"));
    }
    let arguments = vec![CONTROL.to_owned(), "-f".to_owned()];
    let path = Path::new(GROUP).join("bin").join(CONTROL);
    Executable { path, arguments, environment, working_directory: "/".to_owned() }
}

/// The program that talks to the daemon, which is not asked for a long path.
fn interface(directory: &Path) -> Result<Executable> {
    let working_directory = directory.to_str().ok_or_else(|| {
        let why = format!("the path {} is no text", directory.display());
        Error::new(ErrorKind::InvalidArgument, why).with_path(directory)
    })?;
    Ok(Executable {
        path: directory.join("bin").join(CONTROL),
        arguments: vec![CONTROL.to_owned()],
        environment: vec!["CUDA_MPS_PIPE_DIRECTORY=pipe".to_owned()],
        working_directory: working_directory.to_owned(),
    })
}

/// Waits until the daemon answers, and tells it the limits that it cannot be told otherwise.
fn await_answer(joining: &Joining<'_>, directory: &Path, kept: &Kept, deadline: Instant) -> Result<()> {
    let interface = interface(directory)?;
    let mut commands = String::new();
    if let Some(mebibytes) = joining.mps.mebibytes() {
        // It counts the GPUs that it sees, in the order in which they are named to it.
        for device in 0..joining.gpus.len() {
            commands += &format!("set_default_device_pinned_mem_limit {device} {mebibytes}M\n");
        }
    }
    commands += "get_default_active_thread_percentage\n";
    let socket = directory.join("pipe/control");
    let late = || format!("the daemon did not answer{}", said(directory));
    loop {
        if await_readable(&kept.keeper, Some(Duration::ZERO))? {
            return Err(died(directory));
        }
        if fs::symlink_metadata(&socket).is_ok() {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = ask(&interface, &commands, left)?.unwrap_or_default();
            if answer.contains("Unknown command") {
                let why = format!("the driver's MPS does not know the limits: {}", answer.trim());
                return Err(Error::new(ErrorKind::Unsupported, why));
            }
            if let Some(percent) = answer.lines().last().and_then(|line| line.trim().parse::<f64>().ok()) {
                let wanted = f64::from(joining.mps.active_threads.unwrap_or(100));
                if (percent - wanted).abs() < 1.0 {
                    return Ok(());
                }
                let why = format!("the daemon limits clients to {percent} % of the threads instead of {wanted} %");
                return Err(Error::new(ErrorKind::Unsupported, why));
            }
        }
        joining.pause(deadline, &late())?;
    }
}

fn died(directory: &Path) -> Error {
    Error::new(ErrorKind::GpuUnavailable, format!("the daemon ended at once{}", said(directory)))
}

/// The end of what the daemon said, as a part of an error.
fn said(directory: &Path) -> String {
    let bytes = fs::read_small(&log(directory)).unwrap_or_default();
    let end = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(WORDS)..]).trim().to_owned();
    if end.is_empty() { String::new() } else { format!(" (it said: {end})") }
}

fn log(directory: &Path) -> PathBuf {
    directory.join("log/daemon.log")
}

/// The driver's libraries of a root that is not the host's, and nothing else of that root: its C library would not
/// go with the host's loader.
fn link_libraries(root: &DriverRoot, into: &Path) -> Result<()> {
    for library in Driver::discover(root).context("find the NVIDIA driver")?.libraries {
        let plain = library.file.place.components().count() == 1;
        if library.thirty_two_bit || !plain {
            continue;
        }
        let names = [library.file.place.to_str(), library.soname.as_deref()];
        for name in names.into_iter().flatten() {
            match fs::symlink(&library.file.host_path, &into.join(name)) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The directory of the group's shared memory, which the link `shm` leads to: where shared memory may grow.
fn make_shared_memory(directory: &Path) -> Result<PathBuf> {
    let link = directory.join("shm");
    let outer = if is_in_memory(Path::new(SHARED_MEMORY)) && fs::writable(Path::new(SHARED_MEMORY)) {
        Path::new(SHARED_MEMORY).join(format!("{SHARED_PREFIX}{}", &fs::unique()[..16]))
    } else {
        directory.join("shared")
    };
    // First the link, so that the directory is found whenever the caller dies.
    fs::symlink(&outer.join("shm"), &link)?;
    // All users of the group's containers may write there, and nobody else of the host gets there.
    fs::create_dir(&outer)?;
    fs::set_mode(&outer, 0o700)?;
    make_directory(&outer, "shm", 0o1777)?;
    Ok(outer.join("shm"))
}

fn access(directory: &Path, joining: &Joining<'_>) -> Result<Access> {
    Ok(Access {
        pipes: (directory.join("pipe"), PIPES_INSIDE.into()),
        shared_memory: (fs::read_link(&directory.join("shm"))?, SHARED_MEMORY.into()),
        environment: joining.mps.environment(joining.gpus.len()),
    })
}

/// Makes the directory of the caller's groups, or sees that it is the caller's.
fn make_own_directory(path: &Path, user: u32) -> Result<()> {
    match fs::create_dir(path) {
        Ok(()) => return fs::set_mode(path, 0o700),
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
        Err(_) => {}
    }
    match fs::symlink_metadata(path) {
        // Whoever was first may have died before it had its mode.
        Ok(found) if found.is_dir() && found.uid() == user && found.mode() & 0o7777 != 0o700 => {
            fs::set_mode(path, 0o700).or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })
        }
        Ok(found) if found.is_dir() && found.uid() == user => Ok(()),
        // It was removed just now; whoever makes something in it finds out.
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(_) => {
            let why = format!("{} is there, and no directory of user {user}", path.display());
            Err(Error::new(ErrorKind::PermissionDenied, why).with_path(path))
        }
    }
}

fn read(group: &Path) -> Result<Option<GroupRecord>> {
    let Some(found) = slot::open(group)? else { return Ok(None) };
    Ok(record::decode(&slot::read(&found.file, group)?))
}

impl Membership {
    /// What a container needs to be a client.
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    /// The group as it is now; `None` if it is gone.
    pub(crate) fn group(&self) -> Result<Option<MpsGroup>> {
        describe(&self.directory, effective_user())
    }

    /// To be called when the lease is over: waits for the end of the daemon if it was the last, and removes what is left.
    pub(crate) fn leave(&self) -> Result<()> {
        match fs::remove_file(&self.member) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let deadline = Instant::now() + END;
        loop {
            if await_readable(&self.keeper, Some(Duration::from_millis(20)))? {
                launch::collect_if_ended(&self.keeper)?;
                if remove_dead(&self.directory)? {
                    return Ok(());
                }
                // Its daemon had died before, and another lease has brought a new one.
                std::thread::sleep(Duration::from_millis(2));
            }
            let others = fs::read_dir(&self.directory.join("members")).unwrap_or_default();
            if !others.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let why = format!("the MPS daemon of {} has not ended after its last lease", self.directory.display());
                return Err(Error::new(ErrorKind::TimedOut, why));
            }
        }
    }
}

/// Removes what dead groups of the caller left. Those of others are not touched, by root neither: whoever owns a
/// directory can turn a path in it into another.
pub(crate) fn collect(table: &Path) {
    let user = effective_user();
    let parent = of_user(table, user);
    if !fs::symlink_metadata(&parent).is_ok_and(|found| found.is_dir() && found.uid() == user) {
        return;
    }
    for directory in fs::read_dir(&parent).unwrap_or_default() {
        if let Err(error) = remove_dead(&directory) {
            tracing::warn!(%error, "what an MPS daemon left stays for now");
        }
    }
}

/// Removes a group if it and its leases are dead and nobody is busy with it; whether it is gone.
fn remove_dead(directory: &Path) -> Result<bool> {
    let lock = match slot::try_lock_directory(directory) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(true),
        lock => lock?,
    };
    let Some(_lock) = lock.filter(|lock| lock.is_at(directory)) else { return Ok(false) };
    if is_alive(directory)? {
        return Ok(false);
    }
    remove_unless_held(directory)?;
    Ok(fs::symlink_metadata(directory).is_err())
}

/// Removes a group's directory, and the user's with the last, unless leases of it live.
fn remove_unless_held(directory: &Path) -> Result<()> {
    if has_living_members(directory)? {
        return Ok(());
    }
    remove_contents(directory)?;
    fs::remove_tree(directory)?;
    if let Some(parent) = directory.parent() {
        // It stays for the others.
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

/// All groups that the caller may look at, as far as they are whole.
pub(crate) fn groups(table: &Path) -> Result<Vec<MpsGroup>> {
    let mut found = Vec::new();
    for parent in fs::read_dir(table)? {
        let name = parent.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(user) = name.strip_prefix(PREFIX).and_then(|user| user.parse().ok()) else { continue };
        // Nobody speaks for another.
        if !fs::symlink_metadata(&parent).is_ok_and(|data| data.is_dir() && data.uid() == user) {
            continue;
        }
        for directory in fs::read_dir(&parent).unwrap_or_default() {
            found.extend(describe(&directory, user)?);
        }
    }
    Ok(found)
}

fn describe(directory: &Path, user: u32) -> Result<Option<MpsGroup>> {
    let group = directory.join("group");
    let Some(record) = read(&group)? else { return Ok(None) };
    let members = fs::read_dir(&directory.join("members")).unwrap_or_default();
    let name = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    Ok(Some(MpsGroup {
        id: name(&directory.to_owned()).unwrap_or_default(),
        user,
        pid: record.daemon,
        pid_namespace: record.pid_namespace,
        running: is_alive(directory)?,
        age: since_boot().saturating_sub(Duration::from_nanos(record.since)),
        gpus: record.gpus,
        active_threads: record.mps.active_threads,
        device_memory: record.mps.device_memory,
        leases: members.iter().filter_map(name).collect(),
        pipe_directory: directory.join("pipe"),
        log: log(directory),
    }))
}
