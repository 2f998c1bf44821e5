//! What the tests share: tiers that may be skipped, and a guard that sees what a test leaves behind.
//!
//! A tier is a privilege or a tool that a test needs. Where it is missing the test prints
//! `SKIP <test>: <why>` and returns, unless the environment variable `GPUC_REQUIRE` (a list with
//! commas) names the tier: then it fails.
//!
//! ```ignore
//! #[test]
//! fn something_that_needs_root() {
//!     if !common::tier("root") {
//!         return;
//!     }
//!     let leaks = common::Leaks::watch();
//!     // …
//!     leaks.check();
//! }
//! ```

#![allow(dead_code, unused_imports, reason = "every test binary uses a part of this")]
#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod leaks;
mod ordinary;

pub(crate) use leaks::Leaks;
pub(crate) use ordinary::Ordinary;

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Whether this process has the tier; if not, says so as [`skip`] does.
///
/// - `root`: effective user 0, able to mount
/// - `rootless`: another user, able to make a user namespace
/// - `cgroup1`, `cgroup2`: the memory controller is in a hierarchy of that version
/// - `registry`: `docker-registry` and `skopeo` are installed
/// - `debian`: `mmdebstrap` is installed and a package archive is configured (root)
/// - `subordinate`: another user, with subordinate ids and the programs to map them
/// - `gpu`: the NVIDIA driver is loaded
#[track_caller]
pub(crate) fn tier(name: &str) -> bool {
    match missing(name) {
        None => true,
        Some(why) => {
            skip(name, &why);
            false
        }
    }
}

/// Whether all `tools` are installed; if not, says so as [`skip`] does.
#[track_caller]
pub(crate) fn tools(tier: &str, tools: &[&str]) -> bool {
    match tools.iter().find(|tool| which(tool).is_none()) {
        None => true,
        Some(tool) => {
            skip(tier, &format!("{tool} is not installed"));
            false
        }
    }
}

/// Says that the running test is skipped and why.
///
/// # Panics
/// If `GPUC_REQUIRE` names the tier.
#[track_caller]
pub(crate) fn skip(tier: &str, why: &str) {
    let required = std::env::var("GPUC_REQUIRE").unwrap_or_default();
    let test = match std::thread::current().name() {
        Some(name) if name != "main" => name.to_owned(),
        // With one test thread the harness runs tests on the main thread, which has no test's name.
        _ => Location::caller().to_string(),
    };
    assert!(!required.split(',').any(|name| name.trim() == tier), "{test} may not skip tier {tier}: {why}");
    // Straight to the stream: the harness hides what a passing test prints with a macro.
    let line = format!("SKIP {test}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Whether the process is the superuser.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Where an executable of that name is, as a shell would find it.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beyond = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(beyond).map(|directory| directory.join(name)).find(|file| file.is_file())
}

fn missing(tier: &str) -> Option<String> {
    match tier {
        "root" => (!is_root()).then(|| "not root".to_owned()),
        "rootless" if is_root() => Some("is root".to_owned()),
        "rootless" => no_user_namespace(),
        "cgroup1" => (!Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists())
            .then(|| "no memory controller of cgroup version 1".to_owned()),
        "cgroup2" => (!has_controller("/sys/fs/cgroup/cgroup.controllers", "memory"))
            .then(|| "no memory controller of cgroup version 2 in /sys/fs/cgroup".to_owned()),
        "registry" => ["docker-registry", "skopeo"]
            .into_iter()
            .find(|tool| which(tool).is_none())
            .map(|tool| format!("{tool} is not installed")),
        "debian" if !is_root() => Some("not root".to_owned()),
        "debian" => which("mmdebstrap").is_none().then(|| "mmdebstrap is not installed".to_owned()),
        "subordinate" if is_root() => Some("is root".to_owned()),
        "subordinate" => no_subordinate_ids(),
        "gpu" => (!Path::new("/proc/driver/nvidia/version").exists()).then(|| "no NVIDIA driver".to_owned()),
        _ => panic!("no tier is called {tier}"),
    }
}

fn has_controller(file: &str, name: &str) -> bool {
    std::fs::read_to_string(file).is_ok_and(|text| text.split_whitespace().any(|word| word == name))
}

fn no_user_namespace() -> Option<String> {
    // Tried for real: a sysctl, a security module or a seccomp filter may forbid it.
    let output = Command::new("unshare").args(["-U", "-r", "true"]).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("no user namespaces: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Some(format!("cannot try user namespaces, unshare: {error}")),
    }
}

fn no_subordinate_ids() -> Option<String> {
    if let Some(tool) = ["newuidmap", "newgidmap"].into_iter().find(|tool| which(tool).is_none()) {
        return Some(format!("{tool} is not installed"));
    }
    let user = std::fs::metadata("/proc/self").unwrap().uid();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let own = fields.into_iter().find(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(user));
    let name = own.map_or_else(|| user.to_string(), |fields| fields[0].to_owned());
    let has = |file: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.lines().any(|line| line.split(':').next().is_some_and(|owner| owner == name || owner == user.to_string()))
    };
    (!has("/etc/subuid") || !has("/etc/subgid")).then(|| format!("{name} has no subordinate ids"))
}

/// Whether a process has ended, or does nothing but end: then its files are being closed.
pub(crate) fn ended(pid: u32) -> bool {
    const EXITING: u64 = 4;
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let Some((_, rest)) = stat.rsplit_once(')') else { return true };
    let fields: Vec<&str> = rest.split_whitespace().collect();
    matches!(fields[0], "Z" | "X") || fields[6].parse::<u64>().unwrap() & EXITING != 0
}

/// Asks again and again until `done` says yes; panics with `what` after `limit`.
pub(crate) fn until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
