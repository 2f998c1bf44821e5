//! The single questions of a probe.

use crate::cgroup::{Cgroup, Mode, Support, Version};
use crate::error::{Error, Result};
use crate::gpu::{Inventory, Vendor};
use crate::host::Capability;
use crate::host::kernel::{Kernel, Presence};
use crate::sys::probe::{self, Call};

use std::path::Path;

/// The answer to one question: yes and how, or no and why.
type Answer = Result<String, String>;

fn yes(detail: impl Into<String>) -> Answer {
    Ok(detail.into())
}

fn no(detail: impl Into<String>) -> Answer {
    Err(detail.into())
}

fn if_so(available: bool, detail: &str, otherwise: &str) -> Answer {
    if available { yes(detail) } else { no(otherwise) }
}

/// Everything that is looked for, in the order in which it is shown.
pub(crate) fn capabilities(store: Result<&Path, &Error>, gpus: &Inventory) -> Vec<Capability> {
    let kernel = Kernel::read();
    let groups = Cgroup::support();
    let root = probe::effective_user() == 0;
    let user_namespaces = user_namespaces(root);
    let has_user_namespaces = user_namespaces.is_ok();
    let table: Vec<(&str, Answer)> = vec![
        ("kernel", if_so(kernel.at_least(5, 15), "5.15 or later", "older than 5.15, which nothing is tested on")),
        ("root", if_so(root, "effective user 0", "containers are made in a user namespace")),
        ("user-namespaces", user_namespaces),
        ("subordinate-ids", subordinate_ids(root)),
        ("time-namespaces", namespace("time")),
        ("mount-api", call(Call::FsOpen, "fsopen, move_mount")),
        ("mount-attributes", call(Call::MountSetattr, "mount_setattr: id-mapped and recursively read-only mounts")),
        ("overlayfs", filesystem(&kernel, "overlay", "CONFIG_OVERLAY_FS")),
        ("overlayfs-unprivileged", overlay_unprivileged(&kernel, has_user_namespaces)),
        ("erofs", filesystem(&kernel, "erofs", "CONFIG_EROFS_FS")),
        (
            "erofs-files",
            if_so(kernel.at_least(6, 12), "mounted from a file directly", "before 6.12 a file needs a loop device"),
        ),
        ("fanotify-pre-content", pre_content(&kernel, root)),
        ("pidfd", if_so(probe::has_pidfd(), "processes are held by descriptor", "pidfd_open is refused")),
        ("clone3", call(Call::Clone3, "clone3")),
        ("memfd-execution", memfd_execution()),
        ("seccomp", seccomp("errno")),
        ("seccomp-notification", seccomp("user_notif")),
        ("landlock", landlock()),
        ("cgroups", cgroups(&groups)),
        ("cgroup-limits", limits(&groups)),
        ("cgroup-devices", device_filter(&groups)),
        ("nf-tables", nf_tables(&kernel, root)),
        ("store", store_answer(store)),
        ("nvidia-driver", nvidia_driver(gpus)),
        ("gpus", gpus_found(gpus)),
    ];
    let capability = |(name, answer): (&str, Answer)| {
        let available = answer.is_ok();
        let detail = answer.unwrap_or_else(|why| why).replace('\n', " ");
        Capability { name: name.to_owned(), available, detail }
    };
    table.into_iter().map(capability).collect()
}

fn text(path: &str) -> Option<String> {
    crate::sys::fs::read_to_string(Path::new(path)).ok()
}

fn there(path: &str) -> bool {
    crate::sys::fs::metadata(Path::new(path)).is_ok()
}

/// A number that the kernel shows below `/proc/sys`.
fn setting(name: &str) -> Option<u64> {
    text(&format!("/proc/sys/{name}"))?.trim().parse().ok()
}

fn call(call: Call, detail: &str) -> Answer {
    if_so(probe::has(call), detail, "the kernel lacks the call, or a seccomp filter hides it")
}

fn namespace(kind: &str) -> Answer {
    if_so(there(&format!("/proc/self/ns/{kind}")), "offered by the kernel", "the kernel was built without them")
}

fn user_namespaces(root: bool) -> Answer {
    namespace("user")?;
    let most = setting("user/max_user_namespaces");
    if most == Some(0) {
        return no("the setting user.max_user_namespaces is 0");
    }
    if !root && setting("kernel/unprivileged_userns_clone") == Some(0) {
        return no("the setting kernel.unprivileged_userns_clone is 0");
    }
    if !root && setting("kernel/apparmor_restrict_unprivileged_userns").is_some_and(|value| value != 0) {
        return no("AppArmor restricts them: kernel.apparmor_restrict_unprivileged_userns is not 0");
    }
    yes(most.map_or_else(|| "offered by the kernel".to_owned(), |most| format!("at most {most}")))
}

fn subordinate_ids(root: bool) -> Answer {
    if root {
        return yes("root may map any");
    }
    let user = probe::effective_user().to_string();
    let passwd = text("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == user).then(|| name.to_owned())
    });
    let count =
        |file: &str| subordinate_count(&text(file).unwrap_or_default(), name.as_deref().unwrap_or(&user), &user);
    let (users, groups) = (count("/etc/subuid"), count("/etc/subgid"));
    if users == 0 || groups == 0 {
        return no("no range in /etc/subuid and /etc/subgid: one user and one group in a container");
    }
    for program in ["newuidmap", "newgidmap"] {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|directory| crate::sys::fs::metadata(&directory.join(program)).is_ok()) {
            return no(format!("{program} is not installed (package uidmap)"));
        }
    }
    yes(format!("{users} users, {groups} groups"))
}

/// How many identifiers `name:first:count` lines give to a user.
fn subordinate_count(text: &str, name: &str, number: &str) -> u64 {
    let ranges = text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let _first: u64 = fields.next()?.parse().ok()?;
        let count: u64 = fields.next()?.parse().ok()?;
        (owner == name || owner == number).then_some(count)
    });
    ranges.fold(0, u64::saturating_add)
}

fn present(presence: Presence) -> Answer {
    match presence {
        Presence::Ready => yes("in the kernel"),
        Presence::Module => yes("as a module, loaded at first use"),
        Presence::Missing => no("the kernel was built without it"),
        Presence::Unknown => no("not in the kernel, and there is no list of its modules"),
    }
}

fn filesystem(kernel: &Kernel, name: &str, option: &str) -> Answer {
    present(kernel.filesystem(name, option))
}

fn overlay_unprivileged(kernel: &Kernel, user_namespaces: bool) -> Answer {
    filesystem(kernel, "overlay", "CONFIG_OVERLAY_FS")?;
    if !user_namespaces {
        return no("user namespaces are not available");
    }
    if_so(kernel.at_least(5, 11), "in a user namespace, with userxattr", "before 5.11 overlayfs needs root")
}

fn pre_content(kernel: &Kernel, root: bool) -> Answer {
    if !probe::has(Call::FanotifyPreContent) {
        return no("the kernel was built without fanotify");
    }
    if !kernel.at_least(6, 14) {
        return no("before 6.14 no event comes before a file's contents are read");
    }
    if_so(root, "events before a file's contents are read", "needs root")
}

fn memfd_execution() -> Answer {
    match setting("vm/memfd_noexec") {
        None | Some(0) => yes("programs in memory may be executed"),
        Some(1) => yes("programs in memory may be executed if asked for (vm.memfd_noexec is 1)"),
        Some(_) => no("vm.memfd_noexec is 2: an unlinked file serves instead"),
    }
}

fn seccomp(action: &str) -> Answer {
    match text("/proc/sys/kernel/seccomp/actions_avail") {
        None => no("the kernel was built without seccomp filters"),
        Some(actions) => if_so(
            actions.split_whitespace().any(|known| known == action),
            &format!("filters with the action {action}"),
            &format!("the kernel lacks the action {action}"),
        ),
    }
}

fn landlock() -> Answer {
    match probe::answer(Call::Landlock) {
        Ok(version) => yes(format!("version {version}")),
        Err(_) => no("the kernel lacks it, or it is turned off at boot"),
    }
}

/// How control groups are mounted, and with which controllers.
fn cgroups(support: &Result<Support>) -> Answer {
    let support = support.as_ref().map_err(ToString::to_string)?;
    let controllers = |version| {
        let hierarchies = support.hierarchies.iter().filter(move |hierarchy| hierarchy.version == version);
        let names: Vec<&str> = hierarchies.flat_map(|hierarchy| &hierarchy.controllers).map(String::as_str).collect();
        if names.is_empty() { "no controller".to_owned() } else { names.join(" ") }
    };
    match support.mode() {
        Mode::Missing => no("no hierarchy is mounted"),
        Mode::Legacy => yes(format!("version 1: {}", controllers(Version::V1))),
        Mode::Unified => yes(format!("version 2: {}", controllers(Version::V2))),
        Mode::Hybrid => {
            yes(format!("hybrid, version 1: {}; version 2: {}", controllers(Version::V1), controllers(Version::V2)))
        }
    }
}

/// Whether this user may set limits, and which.
fn limits(support: &Result<Support>) -> Answer {
    let support = support.as_ref().map_err(ToString::to_string)?;
    let (mut usable, mut missing) = (Vec::new(), Vec::new());
    for controller in ["memory", "cpu", "cpuset", "pids", "io", "hugetlb"] {
        match support.controller(controller) {
            Ok(_) => usable.push(controller),
            Err(why) => missing.push((controller, why)),
        }
    }
    let names: Vec<&str> = missing.iter().map(|(controller, _)| *controller).collect();
    match missing.first() {
        None => yes(usable.join(" ")),
        Some((_, why)) if usable.is_empty() => no(why.as_str()),
        Some((_, why)) => yes(format!("{}; not {}: {why}", usable.join(" "), names.join(" "))),
    }
}

/// Whether a container can be kept from devices that it was not given.
fn device_filter(support: &Result<Support>) -> Answer {
    let support = support.as_ref().map_err(ToString::to_string)?;
    support.no_devices.as_deref().map_or_else(|| yes("devices that were not given are refused"), no)
}

fn nf_tables(kernel: &Kernel, root: bool) -> Answer {
    present(kernel.feature("nf_tables", "CONFIG_NF_TABLES"))?;
    if_so(root, "for published ports and private networks", "there, but only in a container's own network without root")
}

fn store_answer(store: Result<&Path, &Error>) -> Answer {
    let path = store.map_err(ToString::to_string)?;
    let nearest = path.ancestors().find(|ancestor| crate::sys::fs::metadata(ancestor).is_ok());
    let writable = nearest.is_some_and(crate::sys::fs::writable);
    let shown = path.display().to_string();
    if_so(writable, &shown, &format!("{shown} cannot be written by this user"))
}

fn nvidia_driver(gpus: &Inventory) -> Answer {
    let cuda = gpus.cuda_version().map(|(major, minor)| format!(", CUDA {major}.{minor}")).unwrap_or_default();
    match (gpus.driver_version(), gpus.unavailable()) {
        (Some(version), _) => yes(format!("{version}{cuda}")),
        (None, Some(reason)) => no(reason),
        (None, None) => yes(format!("of unknown version{cuda}")),
    }
}

fn gpus_found(gpus: &Inventory) -> Answer {
    let counts: Vec<String> = [Vendor::Nvidia, Vendor::Amd, Vendor::Intel]
        .into_iter()
        .map(|vendor| (vendor, gpus.gpus().iter().filter(|gpu| gpu.vendor == vendor).count()))
        .filter(|(_, count)| *count > 0)
        .map(|(vendor, count)| format!("{count} of {vendor}"))
        .collect();
    if counts.is_empty() { no(gpus.unavailable().unwrap_or("none was found")) } else { yes(counts.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ranges_are_counted() {
        let table = "root:1:2\nann:100000:65536\n1000:300000:5\nbob:1:x\nann:1\n# ann:1:1\n";
        assert_eq!(subordinate_count(table, "ann", "1000"), 65_541);
        assert_eq!(subordinate_count(table, "bob", "1001"), 0);
        assert_eq!(subordinate_count("a:0:18446744073709551615\na:0:9\n", "a", "7"), u64::MAX);
    }
}
