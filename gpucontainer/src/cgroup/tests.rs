//! Version 2 against the real kernel, also on hosts where it has few controllers or none: what every group
//! of version 2 can do, in a layout that has nothing else.

use super::layout::{Hierarchy, Layout, Version};
use super::{Cgroup, DeviceRule, Limits, Options};
use crate::error::{ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// The version 2 hierarchy alone, and a directory for claims; `None` where this process may not make groups in it.
fn host(test: &str) -> Option<(Layout, tempfile::TempDir)> {
    let mut layout = Layout::detect().unwrap();
    layout.hierarchies.retain(|hierarchy| hierarchy.version == Version::V2);
    let why = match layout.unified().map(|hierarchy| hierarchy.parent(&[])) {
        Some(Ok(_)) => return Some((layout, tempfile::tempdir().unwrap())),
        Some(Err(why)) => why,
        None => "no hierarchy of version 2 is mounted".to_owned(),
    };
    let required = std::env::var("GPUC_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|tier| tier == "root"), "{test} may not be skipped: {why}");
    eprintln!("SKIP {test}: {why}");
    None
}

fn name(test: &str) -> String {
    format!("unit-{test}-{}", std::process::id())
}

fn make(host: &(Layout, tempfile::TempDir), test: &str, limits: &Limits) -> Result<Cgroup> {
    Cgroup::create_in(&host.0, host.1.path(), &name(test), limits, &Options::new())
}

/// Starts a program that enters the group by itself; a launcher has the quicker way.
fn start(group: &Cgroup, script: &str) -> Child {
    let enter = format!("echo 0 > {}/cgroup.procs || exit 99; {script}", group.paths()[0].display());
    Command::new("/bin/sh").args(["-c", &enter]).spawn().unwrap()
}

fn wait_until_inside(group: &Cgroup, child: &Child) {
    while !group.processes().unwrap().contains(&child.id()) {
        std::thread::yield_now();
    }
}

#[test]
fn a_group_is_entered_frozen_killed_and_removed() {
    let Some(host) = host("a_group_is_entered_frozen_killed_and_removed") else { return };
    let mut group = make(&host, "life", &Limits::new()).unwrap();
    let path = group.paths().remove(0);
    let entry = group.entry();
    assert!(entry.directory().is_some() && entry.tasks().next().is_none());
    let mut child = start(&group, "while :; do :; done");
    wait_until_inside(&group, &child);
    group.freeze().unwrap();
    assert!(group.is_frozen().unwrap());
    assert!(std::fs::read_to_string(path.join("cgroup.events")).unwrap().contains("frozen 1"));
    group.thaw().unwrap();
    assert!(!group.is_frozen().unwrap());
    assert!(group.stats().unwrap().cpu.unwrap().usage.is_some());
    // A group that the container made for itself goes too.
    std::fs::create_dir(path.join("inner")).unwrap();
    assert_eq!(group.remove().unwrap_err().kind(), ErrorKind::Busy);
    assert!(!path.join("inner").exists() && path.exists());
    std::fs::create_dir(path.join("inner")).unwrap();
    group.kill().unwrap();
    child.wait().unwrap();
    group.remove().unwrap();
    assert!(!path.exists());
    assert_eq!(std::fs::read_dir(host.1.path()).unwrap().count(), 0);
    assert_eq!(group.stats().unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn a_program_decides_on_devices() {
    let Some(host) = host("a_program_decides_on_devices") else { return };
    if let Err(why) = crate::sys::bpf::can_filter_devices() {
        eprintln!("SKIP a_program_decides_on_devices: {why}");
        return;
    }
    let group = make(&host, "devices", &Limits::new()).unwrap();
    let opens = |node: &str| start(&group, &format!("exec 2> /dev/null; exec 3< {node}")).wait().unwrap().success();
    assert!(opens("/dev/zero"));
    group.allow_devices(&DeviceRule::defaults()).unwrap();
    assert!(opens("/dev/zero"));
    let fewer = [DeviceRule::device(super::DeviceKind::Character, 1, 3)];
    group.allow_devices(&fewer).unwrap();
    assert!(!opens("/dev/zero"));
    // The program that was there is replaced and not only joined, which could never allow more again.
    group.allow_devices(&DeviceRule::defaults()).unwrap();
    assert!(opens("/dev/zero"));
}

#[test]
fn the_verifier_says_why_it_refuses() {
    if crate::sys::bpf::can_filter_devices().is_err() {
        eprintln!("SKIP the_verifier_says_why_it_refuses: no right to load programs");
        return;
    }
    // Falls off its end.
    let wrong = [crate::sys::bpf::Instruction { code: 0xb7, registers: 0, offset: 0, immediate: 1 }];
    let error = crate::sys::bpf::load_device_program(&wrong).unwrap_err();
    assert!(error.to_string().contains("verifier"), "{error}");
}

#[test]
fn controllers_are_given_down_the_path() {
    let Some(host) = host("controllers_are_given_down_the_path") else { return };
    let sizes = std::fs::read_dir("/sys/kernel/mm/hugepages").map(Iterator::count).unwrap_or(0);
    if !host.0.unified().unwrap().has("hugetlb") || sizes == 0 {
        eprintln!("SKIP controllers_are_given_down_the_path: version 2 has no hugetlb here");
        return;
    }
    let group = make(&host, "hugetlb", &Limits::new().hugetlb(2 << 20, 5 << 20)).unwrap();
    let path = group.paths().remove(0);
    assert!(path.ends_with(Path::new("gpucontainer").join(name("hugetlb"))), "{path:?}");
    let value = || std::fs::read_to_string(path.join("hugetlb.2MB.max")).unwrap();
    assert_eq!(value(), "4194304\n");
    group.update(&Limits::new().hugetlb(2 << 20, 8 << 20)).unwrap();
    assert_eq!(value(), "8388608\n");
    let huge = group.stats().unwrap().hugetlb;
    assert!(huge.iter().any(|one| one.page_size == "2MB" && one.current == 0), "{huge:?}");
}

#[test]
fn a_missing_controller_is_an_error_before_anything_is_made() {
    let Some(mut host) = host("a_missing_controller_is_an_error_before_anything_is_made") else { return };
    host.0.hierarchies[0].controllers.retain(|name| name != "rdma");
    let error = make(&host, "missing", &Limits::new().raw("rdma.max", "x hca_handle=1")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitNotApplied, "{error}");
    assert_eq!(std::fs::read_dir(host.1.path()).unwrap().count(), 0);
}

#[test]
fn a_caller_who_may_write_nowhere_is_told_where_that_was_tried() {
    let directory = tempfile::tempdir().unwrap();
    // A hierarchy on which nothing can be made, as one that is mounted read-only.
    let mount = PathBuf::from("/proc/self");
    let layout = Layout {
        hierarchies: vec![Hierarchy { version: Version::V2, controllers: vec!["memory".into()], mount, own: None }],
    };
    let make =
        |limits: Limits| Cgroup::create_in(&layout, directory.path(), "nowhere", &limits, &Options::new()).unwrap_err();
    let error = make(Limits::new());
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("/proc/self"), "{error}");
    let error = make(Limits::new().memory_max(1 << 20));
    assert_eq!(error.kind(), ErrorKind::LimitNotApplied);
    assert!(error.to_string().contains("memory.max = 1048576") && error.to_string().contains("/proc/self"), "{error}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn an_empty_group_left_by_a_crash_is_replaced_and_one_in_use_is_not() {
    let Some(host) = host("an_empty_group_left_by_a_crash_is_replaced_and_one_in_use_is_not") else { return };
    let group = make(&host, "again", &Limits::new()).unwrap();
    let path = group.paths().remove(0);
    group.leave();
    assert!(path.exists());
    // Its claim is nobody's: the name is free.
    let group = make(&host, "again", &Limits::new()).unwrap();
    let mut child = start(&group, "exec sleep 1000");
    wait_until_inside(&group, &child);
    group.leave();
    assert_eq!(make(&host, "again", &Limits::new()).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(super::abandoned::collect(host.1.path()).unwrap(), [name("again")]);
    child.wait().unwrap();
    assert!(!path.exists());
}
