//! The machine and what all contenders share on it: one root directory, one filter, the same limits.

use crate::{Result, system};
use gpucontainer::seccomp::{Filter, Profile};
use serde::Serialize;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The capabilities that every contender leaves to the program, as a mask: those of a sandbox that asks for no others.
pub const CAPABILITIES: u64 = 0x8004_04fb;
/// The limits that every contender sets.
pub const MEMORY_BYTES: u64 = 512 << 20;
pub const CPU_QUOTA_MICROSECONDS: i64 = 100_000;
pub const PIDS: i64 = 512;

/// Where everything of a run is; removed when dropped.
#[derive(Debug)]
pub struct Machine {
    pub directory: PathBuf,
    pub root: PathBuf,
    pub filter_file: PathBuf,
    pub floor: PathBuf,
    pub profile: Profile,
    _hugetlb: Option<Hugetlb>,
}

impl Machine {
    /// Makes the root directory (a static busybox), the filter and the floor program.
    pub fn prepare() -> Result<Self> {
        system::private_mounts().map_err(|why| format!("{why} (the benchmarks need root)"))?;
        let directory = PathBuf::from(format!("/var/tmp/gpuc-bench-{}", std::process::id()));
        let machine = Self {
            root: directory.join("root"),
            filter_file: directory.join("filter.bpf"),
            floor: directory.join("floor"),
            profile: Profile::default_for(CAPABILITIES),
            _hugetlb: mount_hugetlb(),
            directory,
        };
        make_root(&machine.root)?;
        let filter: Filter = machine.profile.compile().map_err(|e| e.to_string())?;
        write(&machine.filter_file, &filter.to_bytes())?;
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/floor/floor.c");
        let compiled = Command::new("cc").args(["-O2", "-o"]).arg(&machine.floor).arg(source).status();
        if !compiled.as_ref().is_ok_and(std::process::ExitStatus::success) {
            return Err(format!("cc {source}: {compiled:?}"));
        }
        Ok(machine)
    }

    /// A new directory for a contender.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        std::fs::create_dir_all(&path).map_err(|e| format!("{path:?}: {e}"))?;
        Ok(path)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A hierarchy mounted for the time of the benchmarks.
#[derive(Debug)]
struct Hugetlb {
    path: PathBuf,
    /// Groups of the unified hierarchy that gave the controller to their children, and will again; parents first.
    givers: Vec<PathBuf>,
}

/// crun 1.8 fails on hosts with v1 hierarchies that lack one for a controller that the kernel has.
fn mount_hugetlb() -> Option<Hugetlb> {
    let path = PathBuf::from("/sys/fs/cgroup/hugetlb");
    let controllers = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    if !Path::new("/sys/fs/cgroup/memory").exists() || path.exists() || !controllers.contains("hugetlb") {
        return None;
    }
    let mut givers = Vec::new();
    find_givers(Path::new("/sys/fs/cgroup/unified"), &mut givers);
    for giver in givers.iter().rev() {
        let _ = std::fs::write(giver, "-hugetlb");
    }
    let _ = std::fs::create_dir(&path);
    let hugetlb = Hugetlb { path, givers };
    // The kernel lets a controller go some time after the last group that used it.
    for _ in 0..50 {
        match system::mount("cgroup", &hugetlb.path, "cgroup", "hugetlb") {
            Ok(()) => return Some(hugetlb),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(100)),
        }
    }
    // crun will say what it lacks.
    None
}

impl Drop for Hugetlb {
    fn drop(&mut self) {
        // A hierarchy that is unmounted while a group of it is still dying stays for ever, unseen.
        for _ in 0..50 {
            let _ = system::unmount(&self.path);
            std::thread::sleep(std::time::Duration::from_millis(100));
            let controllers = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
            let gone = controllers.lines().any(|line| line.starts_with("hugetlb\t0\t"));
            if gone || system::mount("cgroup", &self.path, "cgroup", "hugetlb").is_err() {
                break;
            }
        }
        let _ = std::fs::remove_dir(&self.path);
        for giver in &self.givers {
            let _ = (0..50).try_for_each(|_| match std::fs::write(giver, "+hugetlb") {
                // The kernel takes it back some time after it was unmounted.
                Err(_) if giver.exists() => {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    Ok(())
                }
                _ => Err(()),
            });
        }
    }
}

/// Finds the files of `group` and the groups below it that give hugetlb to their children.
fn find_givers(group: &Path, givers: &mut Vec<PathBuf>) {
    let file = group.join("cgroup.subtree_control");
    let given = std::fs::read_to_string(&file).unwrap_or_default();
    if !given.split_whitespace().any(|controller| controller == "hugetlb") {
        return;
    }
    givers.push(file);
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find_givers(&entry.path(), givers);
        }
    }
}

pub fn make_root(root: &Path) -> Result<()> {
    for name in ["bin", "proc", "sys", "dev", "tmp", "etc", "run"] {
        let path = root.join(name);
        std::fs::create_dir_all(&path).map_err(|e| format!("{path:?}: {e}"))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let busybox = busybox.ok_or("no busybox; install busybox-static")?;
    let target = root.join("bin/busybox");
    std::fs::copy(busybox, &target).map_err(|e| format!("{busybox}: {e}"))?;
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
    for name in ["true", "sleep", "sh"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).map_err(|e| e.to_string())?;
    }
    // As in images of distributions.
    for name in ["hosts", "hostname", "resolv.conf"] {
        write(&root.join("etc").join(name), b"")?;
    }
    write(&root.join("etc/passwd"), b"root:x:0:0:root:/:/bin/sh\n")?;
    write(&root.join("etc/group"), b"root:x:0:\n")
}

pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|e| format!("{path:?}: {e}"))
}

/// What the figures were taken on.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    pub kernel: String,
    pub processor: String,
    pub processors: usize,
    pub load: String,
    pub cgroups: &'static str,
    pub file_system: String,
    pub commit: String,
    pub unix_time: u64,
    pub arguments: Vec<String>,
}

/// Describes the machine as it is now.
pub fn describe() -> Description {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let information = read("/proc/cpuinfo");
    let model = information.lines().find(|line| line.starts_with("model name"));
    Description {
        kernel: read("/proc/sys/kernel/osrelease"),
        processor: model.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").to_owned(),
        processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        load: read("/proc/loadavg"),
        cgroups: match (
            Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            Path::new("/sys/fs/cgroup/unified").exists(),
        ) {
            (true, _) => "v2",
            (false, true) => "hybrid",
            (false, false) => "v1",
        },
        file_system: output("stat", &["-f", "-c", "%T", "/var/tmp"]),
        commit: output("git", &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"]),
        unix_time: std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs()),
        arguments: std::env::args().collect(),
    }
}
