//! GPUs inside sandboxes: of a driver root with our stand-in for NVML, with nodes that no driver answers.
//!
//! Opening a node whose major has no driver fails with "No such device or address" where the device filter lets it
//! through, and with "Operation not permitted" where it does not: so both are seen without a GPU.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
mod gpu_machine;

use driver::{MAJORS, VERSION, library_directory};
use gpu_machine::{Fixture, possible, run};
use gpucontainer::gpu::DriverCapability;
use gpucontainer::image::ImageBuilder;
use gpucontainer::rootfs::Writable;
use gpucontainer::sandbox::{Capability, Mount, Stdio, UserNamespace};
use gpucontainer::{ErrorKind, GpuRequest, Sandbox};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

#[test]
fn one_gpu_of_eight_is_all_there_is() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("dgx-a100");
    let image = fixture.commit(fixture.debian());
    let (before, machine) = (fixture.host(), fixture.driver.gpus());
    // The first GPU has minor 2: the nodes go by minor.
    let sandbox = fixture.sandbox(&image, "0", "while :; do read -r line; done").stdin(Stdio::Piped).spawn().unwrap();
    assert_eq!(sandbox.gpus(), [machine[0]["uuid"].as_str().unwrap()]);
    let ask = |script: &str| {
        let process = sandbox.exec(["sh", "-c", script]).stdin(Stdio::Null).stdout(Stdio::Piped).stderr(Stdio::Piped);
        let output = process.spawn().unwrap().communicate(b"", Some(Duration::from_secs(60))).unwrap();
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat()
    };
    let nodes = "nvidia-uvm\nnvidia-uvm-tools\nnvidia2\nnvidiactl\n";
    assert_eq!(ask("cd /dev; ls -d -1 nvidia*"), nodes);
    let (gpu, memory) = (format!("{:x}", MAJORS.0), format!("{:x}", MAJORS.1));
    let seen = ask("cd /dev; stat -c '%n %t:%T %a' nvidia2 nvidiactl nvidia-uvm nvidia-uvm-tools");
    assert_eq!(
        seen,
        format!(
            "nvidia2 {gpu}:2 666\nnvidiactl {gpu}:ff 666\nnvidia-uvm {memory}:0 666\nnvidia-uvm-tools {memory}:1 666\n"
        )
    );
    for node in nodes.lines() {
        let said = ask(&format!("cat /dev/{node}"));
        assert!(said.contains("No such device or address"), "the filter lets {node} through: {said}");
    }
    assert!(ask("mknod /dev/nvidia0 c 240 0").contains("Operation not permitted"), "no node can be made");
    assert_eq!(ask("echo $NVIDIA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER"), "void PCI_BUS_ID\n");
    if Path::new("/proc/driver/nvidia").exists() {
        let bus_id = machine[0]["pci_bus_id"].as_str().unwrap();
        assert_eq!(ask("ls /proc/driver/nvidia/gpus"), format!("{bus_id}\n"));
        assert!(ask("cat /proc/driver/nvidia/params").contains("ModifyDeviceFiles: 0"));
    }
    sandbox.close().unwrap();
    fixture.check(&before, "the host");
}

#[test]
fn a_node_made_inside_opens_nothing_that_was_not_granted() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("dgx-a100");
    let image = fixture.commit(fixture.debian());
    let script = format!(
        "cd /dev; for minor in 0 1 2 3 4 5 6 7 254; do mknod own$minor c {} $minor; cat own$minor; done; \
         mknod /tmp/own3 c {} 3; cat /tmp/own3; mknod mem c 1 1; cat mem; mknod disk b 254 0; cat disk",
        MAJORS.0, MAJORS.0
    );
    // As much as an application can be given: the device filter stands nevertheless.
    let builder = fixture.sandbox(&image, "0", &script).add_capability(Capability::Mknod);
    let said = run(builder.add_capability(Capability::SysAdmin).add_capability(Capability::SysRawio)).unwrap();
    for minor in [0, 1, 3, 4, 5, 6, 7, 254] {
        assert!(said.contains(&format!("'own{minor}': Operation not permitted")), "{said}");
    }
    assert!(said.contains("'own2': No such device or address"), "{said}");
    for name in ["mem", "disk"] {
        assert!(said.contains(&format!("'{name}': Operation not permitted")), "{said}");
    }
    assert!(said.contains("'/tmp/own3': Permission denied"), "the root has no devices: {said}");
}

#[test]
fn who_can_make_nodes_opens_none_without_a_grant() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let image = fixture.commit(fixture.debian());
    let script = format!("cd /dev; mknod gpu c {} 0; cat gpu; mknod mem c 1 1; cat mem; cat null", MAJORS.0);
    let builder = fixture.sandbox(&image, "void", &script).add_capability(Capability::Mknod);
    let said = run(builder.clone()).unwrap();
    for name in ["gpu", "mem"] {
        assert!(said.contains(&format!("'{name}': Operation not permitted")), "{said}");
    }
    assert!(!said.contains("null"), "the usual devices stay: {said}");
    // Without a control group nothing could keep it from them.
    match run(builder.cgroup(false)) {
        Ok(said) => assert!(said.contains("'gpu': Operation not permitted"), "{said}"),
        Err(error) => assert!(error.to_string().contains("device"), "{error}"),
    }
}

#[test]
fn programs_load_the_driver_and_cannot_change_it() {
    if !possible(if common::is_root() { "root" } else { "rootless" }) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let image = fixture.commit(fixture.debian());
    let before = fixture.host();
    // An ordinary user can make no nodes for the stand-in, so it is the driver alone there.
    let gpus = if common::is_root() { "0" } else { "none" };
    let said =
        run(fixture.sandbox(&image, gpus, "loader libcuda.so.1 libcuda.so libnvidia-nvvm.so.4 libnvidia-encode.so.1"));
    let said = said.unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..3], ["libcuda.so.1 550", "libcuda.so 550", "libnvidia-nvvm.so.4 550"], "{said}");
    assert!(lines[3].contains("No such file"), "video was not asked for: {said}");
    let script = format!(
        "cd /{}; readlink libcuda.so.1; readlink libcuda.so; cat libnvidia-ml.so.1 >/dev/null && echo readable
        for name in libcuda.so.{VERSION} libcuda.so.1 /usr/bin/nvidia-smi; do
            (echo x >$name) || echo refused; chmod 777 $name || echo refused; rm -f $name || echo refused
        done; nvidia-smi",
        library_directory()
    );
    let said = run(fixture.sandbox(&image, gpus, &script)).unwrap();
    let expected = format!("libcuda.so.{VERSION}\nlibcuda.so.1\nreadable\n");
    assert!(said.starts_with(&expected), "{said}");
    // The link is the container's own and may go; the files may not.
    assert_eq!(said.matches("refused").count(), 8, "{said}");
    assert!(said.contains(&format!("stand-in for nvidia-smi {VERSION}")), "{said}");
    let utility = GpuRequest::none();
    let none = run(fixture.sandbox(&image, gpus, "ls /usr/bin; loader libcuda.so.1").gpus(utility)).unwrap();
    assert!(!none.contains("nvidia-smi") && none.contains("cannot open"), "nothing without asking: {none}");
    fixture.check(&before, "the host");
}

#[test]
fn sandboxes_side_by_side_have_different_gpus() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("dgx-a100");
    let image = fixture.commit(fixture.debian());
    let machine = fixture.driver.gpus();
    let script = "cd /dev; ls -d -1 nvidia[0-9]*; for node in nvidia[0-9]*; do cat $node; done; read -r line";
    let all = ["0", "7", "1,2"];
    let sandboxes = all.map(|gpus| fixture.sandbox(&image, gpus, script).stdin(Stdio::Piped).spawn().unwrap());
    for (sandbox, indices) in sandboxes.iter().zip([&[0][..], &[7], &[1, 2]]) {
        let uuids: Vec<&str> = indices.iter().map(|index| machine[*index]["uuid"].as_str().unwrap()).collect();
        assert_eq!(sandbox.gpus(), uuids);
        let output = sandbox.communicate(b"go on\n", Some(Duration::from_secs(60))).unwrap();
        let mut names: Vec<String> =
            indices.iter().map(|index| format!("nvidia{}", machine[*index]["minor"])).collect();
        names.sort();
        let seen: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
        assert_eq!(seen, names);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.matches("No such device or address").count(), names.len(), "{said}");
    }
    for sandbox in sandboxes {
        sandbox.close().unwrap();
    }
}

#[test]
fn a_user_namespace_is_shown_the_nodes_of_the_host() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("l40s-pair");
    let image = fixture.commit(fixture.debian());
    let before = fixture.host();
    let minor = &fixture.driver.gpus()[1]["minor"];
    let script = "cd /dev; ls -d -1 nvidia*; cat nvidia[0-9]*; mknod own c 240 0; loader libcuda.so.1; \
         chmod 600 nvidiactl null; touch -t 200001010000 nvidiactl";
    for users in [UserNamespace::Oneself, UserNamespace::Shifted { first: 200_000, count: 65_536 }] {
        let builder = fixture.sandbox(&image, "1", script).user_namespace(users).add_capability(Capability::Mknod);
        let said = run(builder).unwrap();
        assert!(
            said.starts_with(&format!("nvidia-uvm\nnvidia-uvm-tools\nnvidia{minor}\nnvidiactl\nlibcuda")),
            "{said}"
        );
        assert!(said.contains("libcuda.so.1 550"), "{said}");
        assert!(said.contains(&format!("'nvidia{minor}': No such device or address")), "{said}");
        assert!(said.contains("mknod: own: Operation not permitted"), "{said}");
        for node in ["nvidiactl", "null"] {
            assert!(said.contains(&format!("chmod: {node}: Read-only file system")), "{said}");
        }
    }
    fixture.check(&before, "the host");
}

#[test]
fn without_a_node_an_ordinary_user_gets_no_gpu_and_the_reason() {
    if !possible("rootless") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let image = fixture.commit(fixture.debian());
    let error = fixture.sandbox(&image, "0", "true").spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable, "{error}");
    assert!(error.to_string().contains("/dev/nvidiactl"), "{error}");
}

#[test]
fn hostile_images_reach_nothing_of_the_host() {
    if !possible(if common::is_root() { "root" } else { "rootless" }) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let gpus = if common::is_root() { "0" } else { "none" };
    let victim = fixture.victim().display().to_string();
    let up = format!("{}{victim}", "../".repeat(30));
    let file = format!("{victim}/file");
    let place = format!("/{}", library_directory());
    let library = format!("{place}/libcuda.so.{VERSION}");
    let before = fixture.host();
    type Change<'a> = Box<dyn Fn(ImageBuilder) -> ImageBuilder + 'a>;
    let link = |target: &str, path: &str| -> Change<'_> {
        let (target, path) = (target.to_owned(), path.to_owned());
        Box::new(move |builder| builder.symlink(&target, &path))
    };
    // What is in the image where something of the driver goes, and whether the driver can be used nevertheless.
    let table: Vec<(&str, Change<'_>, bool)> = vec![
        ("the place of libraries leads to a directory of the host", link(&victim, &place), false),
        ("the same, upwards", link(&up, &place), false),
        ("all of /usr/lib does", link(&victim, "/usr/lib"), false),
        ("a place that leads to itself", link(&place, &place), false),
        ("a place that is a file", Box::new(|builder| builder.file(&place, "file", 0o644)), false),
        ("a link to /etc/passwd where a link goes", link("/etc/passwd", &format!("{place}/libcuda.so.1")), true),
        ("a link to the host's file where a link goes", link(&file, &format!("{place}/libcuda.so.1")), true),
        ("a link to the host's file where a library goes", link(&file, &library), false),
        ("the same, upwards", link(&format!("{up}/file"), &library), false),
        ("a link to a directory where a library goes", link("/tmp", &library), false),
        ("a directory where a library goes", Box::new(|builder| builder.directory(&library, 0o755)), false),
        ("a directory where a link goes", Box::new(|b| b.directory(format!("{place}/libcuda.so.1/x"), 0o755)), false),
        ("a file where a library goes", Box::new(|builder| builder.file(&library, "of the image", 0o600)), true),
        ("a program that is a link to the host's file", link(&file, "/usr/bin/nvidia-smi"), false),
        ("/dev that leads to the host", link(&victim, "/dev"), false),
        ("/proc that leads to the host", link(&victim, "/proc"), false),
        ("/run that leads to the host", link(&victim, "/run"), false),
        ("/etc/OpenCL that leads to the host", link(&victim, "/etc/OpenCL"), false),
        ("links by way of procfs", link("/proc/self/root/../../tmp", &place), false),
        ("links by way of a process's descriptors", link("/proc/self/cwd", &place), false),
        (
            "nodes that are files",
            Box::new(|b| b.file("/dev/nvidia0", "", 0o666).file("/dev/nvidiactl", "", 0o666)),
            true,
        ),
    ];
    let script =
        format!("cd {place} && cat libcuda.so.{VERSION} libcuda.so.1 libcuda.so >/dev/null && readlink libcuda.so.1");
    for (what, change, usable) in table {
        let image = fixture.commit(change(fixture.busybox().file("/etc/debian_version", "13\n", 0o644)));
        match run(fixture.sandbox(&image, gpus, &script)) {
            Ok(said) => assert!(usable && said == format!("libcuda.so.{VERSION}\n"), "{what}: {said}"),
            Err(error) => {
                let words = error.to_string();
                assert!(!usable && [": mount ", ": link "].iter().any(|step| words.contains(step)), "{what}: {words}");
            }
        }
        fixture.check(&before, what);
    }
}

/// Programs that draw find the node of a card by its bus address, below a file system of the sandbox's own.
#[test]
fn links_among_the_nodes_of_devices_are_there() {
    if !possible("root") {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let bus_id = fixture.driver.gpus()[0]["pci_bus_id"].as_str().unwrap().to_owned();
    fixture.driver.write(&format!("sys/bus/pci/devices/{bus_id}/drm/renderD128/dev"), "226:128\n");
    fixture.driver.node("dev/dri/renderD128", 226, 128);
    let image = fixture.commit(fixture.debian());
    let builder = fixture.sandbox(&image, "", "readlink /dev/dri/by-path/*; ls /dev/dri");
    let said = run(builder.gpus(GpuRequest::count(1).capabilities([DriverCapability::Graphics]))).unwrap();
    assert_eq!(said, "../renderD128\nby-path\nrenderD128\n");
}

#[test]
fn directories_of_the_image_stay_as_they_are() {
    let root = common::is_root();
    if !possible(if root { "root" } else { "rootless" }) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let place = format!("/{}", library_directory());
    // Everybody may write to it and nobody may remove what others have there; its neighbour is behind a link.
    let image = fixture.busybox().file("/etc/debian_version", "13\n", 0o644).directory(&place, 0o1777);
    let image = image.directory("/opt/programs", 0o750).symlink("../opt/programs", "/usr/bin").file(
        "/opt/programs/own",
        "own",
        0o600,
    );
    let image = fixture.commit(image.file(format!("{place}/own"), "own\n", 0o640));
    let script =
        format!("stat -c '%n %a %u:%g' / /usr /usr/lib {place} {place}/own /opt /opt/programs; readlink /usr/bin");
    let before = fixture.host();
    let mut ways = vec![("the default", UserNamespace::Auto)];
    if root {
        ways.push(("root alone", UserNamespace::Oneself));
        ways.push(("a range of ids", UserNamespace::Shifted { first: 200_000, count: 65_536 }));
    }
    for writable in [Writable::Disk, Writable::Memory] {
        for (what, users) in &ways {
            let with = |gpus: &str, script: &str| {
                run(fixture.sandbox(&image, gpus, script).user_namespace(*users).writable(writable)).unwrap()
            };
            let what = format!("{what}, {writable:?}");
            assert_eq!(with("none", &script), with("", &script), "{what}");
            let loaded = format!(
                "cd {place}; cat own; stat -c %s libcuda.so.1 >/dev/null && readlink libcuda.so.1; ls /opt/programs"
            );
            let said = with("none", &loaded);
            assert_eq!(said, format!("own\nlibcuda.so.{VERSION}\nnvidia-smi\nown\n"), "{what}");
            // What comes later than the places is found, too: a mount of the caller's over a directory of theirs.
            let mounted = fixture.sandbox(&image, "none", &format!("ls {place}")).user_namespace(*users);
            let said = run(mounted.writable(writable).mount(Mount::tmpfs(&place))).unwrap();
            assert!(said.contains("libcuda.so.1\n") && !said.contains("own"), "{what}: {said}");
        }
    }
    fixture.check(&before, "the host");
}

/// What is neither file nor directory is mounted over like a file: opening it would wait for ever.
#[test]
fn pipes_and_sockets_of_a_root_are_not_opened() {
    if !possible(if common::is_root() { "root" } else { "rootless" }) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let gpus = if common::is_root() { "0" } else { "none" };
    let root = fixture.directory.path().join("root");
    for name in ["bin", "proc", "dev", "sys", "tmp", "etc", "run", "usr/bin", library_directory()] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    std::fs::copy(common::which("busybox").unwrap(), root.join("bin/sh")).unwrap();
    std::fs::copy(common::which("busybox").unwrap(), root.join("bin/cat")).unwrap();
    std::fs::write(root.join("etc/debian_version"), "13\n").unwrap();
    let library = format!("{}/libcuda.so.{VERSION}", library_directory());
    let link = format!("{}/libcuda.so.1", library_directory());
    for path in [&library, &link, "dev/nvidia0", "dev/nvidiactl"] {
        assert!(Command::new("mkfifo").arg(root.join(path)).status().unwrap().success());
    }
    drop(std::os::unix::net::UnixListener::bind(root.join("usr/bin/nvidia-smi")).unwrap());
    let script = format!("cat /{library} /{link} >/dev/null && nvidia-smi");
    let sandbox = Sandbox::from_directory(&root).gpu_allocator(&fixture.allocator());
    let builder = sandbox.gpus(gpus.parse().unwrap()).command(["sh", "-c", &script]);
    let said = run(builder.stdin(Stdio::Null).stdout(Stdio::Piped).stderr(Stdio::Piped)).unwrap();
    assert_eq!(said, format!("stand-in for nvidia-smi {VERSION}\n"));
}
