//! Grants: exactly what a container needs for its GPUs, and nothing of any other GPU.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;

use driver::{FakeDriver, MAJORS, VERSION, library_directory, profile};
use gpucontainer::gpu::{DriverCapability, DriverRoot, GpuGrant, GpuRequest, ImageFacts, MountKind, grant};
use gpucontainer::{ErrorKind, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// A Debian image, an Alpine image, and so on: by the files that tell them apart.
fn image(files: &[&str]) -> ImageFacts {
    ImageFacts::detect(|path| files.iter().any(|file| Path::new(file) == path))
}

fn debian() -> ImageFacts {
    image(&["/etc/debian_version"])
}

fn ask(host: &FakeDriver, request: &GpuRequest) -> Result<GpuGrant> {
    grant(request, &DriverRoot::new(host.path()), &debian())
}

fn node_names(grant: &GpuGrant) -> BTreeSet<String> {
    grant.device_nodes.iter().map(|node| node.path.to_str().unwrap().to_owned()).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

fn targets(grant: &GpuGrant) -> BTreeSet<String> {
    grant.mounts.iter().map(|mount| mount.target.to_str().unwrap().to_owned()).collect()
}

/// What holds of every grant, whoever asked for whatever.
fn check(host: &FakeDriver, grant: &GpuGrant) {
    assert_eq!(targets(grant).len(), grant.mounts.len(), "no two mounts on one target");
    assert_eq!(node_names(grant).len(), grant.device_nodes.len(), "no node twice");
    let root = host.path().canonicalize().unwrap();
    for mount in &grant.mounts {
        let source = mount.source.canonicalize().unwrap();
        assert_eq!(source, mount.source, "a source has no links");
        assert!(source.starts_with(&root), "{source:?} is outside of the driver root");
        assert!(mount.read_only || mount.kind == MountKind::Socket, "{mount:?}");
        assert_eq!(mount.kind == MountKind::File, source.metadata().unwrap().is_file());
    }
    let made: BTreeSet<_> = grant.mounts.iter().map(|mount| mount.target.clone()).collect();
    let links: BTreeSet<_> = grant.links.iter().map(|link| link.link.clone()).collect();
    assert_eq!(links.len(), grant.links.len(), "no link twice");
    for link in &grant.links {
        let leads_to = link.link.parent().unwrap().join(&link.target);
        assert!(made.contains(&leads_to) || links.contains(&leads_to), "{link:?} leads nowhere");
        assert!(!made.contains(&link.link), "{link:?} is a mount as well");
    }
    let inside = |path: &Path| path.is_absolute() && !path.components().any(|part| part.as_os_str() == "..");
    let paths = made.iter().chain(&links).chain(grant.device_nodes.iter().map(|node| &node.path));
    assert!(paths.chain(&grant.library_directories).all(|path| inside(path)));
    let text = serde_json::to_string(grant).unwrap();
    assert_eq!(serde_json::from_str::<GpuGrant>(&text).unwrap(), *grant);
}

#[test]
fn each_gpu_comes_with_its_own_node_and_no_other() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = FakeDriver::new("dgx-a100");
    for (index, gpu) in host.gpus().iter().enumerate() {
        let grant = ask(&host, &index.to_string().parse().unwrap()).unwrap();
        check(&host, &grant);
        let own = format!("/dev/nvidia{}", gpu["minor"]);
        assert_eq!(node_names(&grant), set(["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", &own]));
        assert_eq!(grant.gpus, [gpu["uuid"].as_str().unwrap()]);
        for node in &grant.device_nodes {
            let uvm = node.path.to_str().unwrap().contains("uvm");
            assert_eq!(node.major, if uvm { MAJORS.1 } else { MAJORS.0 }, "{node:?}");
            assert_eq!(node.mode, 0o666);
            let below = host.path().canonicalize().unwrap().join(node.path.strip_prefix("/").unwrap());
            assert_eq!(node.host_path.as_deref(), Some(below.as_path()));
        }
        let [tree] = grant.trees.as_slice() else { panic!("{grant:?}") };
        let shown: Vec<&str> = tree.files.iter().filter_map(|file| file.path.to_str()?.strip_prefix("gpus/")).collect();
        assert_eq!(
            shown,
            [format!("{}/information", gpu["pci_bus_id"].as_str().unwrap())],
            "no other GPU is in procfs"
        );
        let params = tree.files.iter().find(|file| file.path == Path::new("params")).unwrap();
        assert!(params.contents.contains("ModifyDeviceFiles: 0"), "{params:?}");
    }
    let two = ask(&host, &GpuRequest::indices([7, 0]).unwrap()).unwrap();
    check(&host, &two);
    assert_eq!(two.gpus, [host.gpus()[7]["uuid"].as_str().unwrap(), host.gpus()[0]["uuid"].as_str().unwrap()]);
    assert_eq!(two.device_nodes.len(), 5);
    let all = ask(&host, &GpuRequest::all()).unwrap();
    check(&host, &all);
    assert_eq!(all.device_nodes.len(), 3 + 8);
}

#[test]
fn each_kind_of_image_gets_the_libraries_where_its_loader_looks() {
    if !driver::available() {
        return;
    }
    let host = FakeDriver::new("t4");
    let debian_directory = format!("/{}", library_directory());
    let table: [(&[&str], &str); 4] = [
        (&["/etc/debian_version", "/usr/lib64"], &debian_directory),
        (&["/usr/lib64"], "/usr/lib64"),
        (&["/etc/alpine-release"], "/usr/lib"),
        (&[], "/usr/lib"),
    ];
    for (files, directory) in table {
        let grant = grant(&GpuRequest::count(1), &DriverRoot::new(host.path()), &image(files)).unwrap();
        check(&host, &grant);
        assert_eq!(grant.library_directories, [Path::new(directory)]);
        let names = [
            format!("libnvidia-ml.so.{VERSION}"),
            format!("libcuda.so.{VERSION}"),
            format!("libcudadebugger.so.{VERSION}"),
            format!("libnvidia-cfg.so.{VERSION}"),
            format!("libnvidia-nvvm.so.{VERSION}"),
            format!("libnvidia-ptxjitcompiler.so.{VERSION}"),
        ];
        let mut expected: BTreeSet<String> = names.map(|name| format!("{directory}/{name}")).into();
        expected.extend([
            "/usr/bin/nvidia-smi".to_owned(),
            "/etc/OpenCL/vendors/nvidia.icd".to_owned(),
            "/run/nvidia-persistenced/socket".to_owned(),
            format!("/lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin"),
        ]);
        assert_eq!(targets(&grant), expected, "{files:?}");
        let link = |name: &str| grant.links.iter().find(|link| link.link == Path::new(directory).join(name)).unwrap();
        assert_eq!(link("libcuda.so.1").target, Path::new(&format!("libcuda.so.{VERSION}")));
        assert_eq!(link("libcuda.so").target, Path::new("libcuda.so.1"));
        assert_eq!(link("libnvidia-ml.so.1").target, Path::new(&format!("libnvidia-ml.so.{VERSION}")));
        assert_eq!(link("libnvidia-nvvm.so.4").target, Path::new(&format!("libnvidia-nvvm.so.{VERSION}")));
        assert_eq!(grant.driver_version.as_deref(), Some(VERSION));
        let variable =
            |name: &str| grant.environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        assert_eq!(variable("NVIDIA_VISIBLE_DEVICES"), Some("void"));
        assert_eq!(variable("CUDA_DEVICE_ORDER"), Some("PCI_BUS_ID"));
    }
}

#[test]
fn capabilities_choose_what_of_the_driver_comes() {
    if !driver::available() {
        return;
    }
    let host = FakeDriver::new("t4");
    let with = |list: &str| {
        let request = GpuRequest::count(1).capabilities(DriverCapability::parse_list(list).unwrap());
        let grant = ask(&host, &request).unwrap();
        check(&host, &grant);
        let has = |name: &str| targets(&grant).iter().any(|target| target.contains(name));
        (
            ["libnvidia-ml", "libcuda", "libGLX_nvidia", "libnvidia-encode", "vdpau/libvdpau", "nvidia_icd"].map(has),
            grant,
        )
    };
    assert_eq!(with("utility").0, [true, false, false, false, false, false]);
    assert_eq!(with("compute").0, [false, true, false, false, false, false]);
    assert_eq!(with("video").0, [false, true, false, true, true, false], "video needs CUDA");
    let (graphics, grant) = with("graphics");
    assert_eq!(graphics, [false, false, true, false, false, true]);
    assert!(grant.links.iter().any(|link| link.link.ends_with("libGLX_indirect.so.0")));
    let (all, grant) = with("all");
    assert_eq!(all, [true; 6]);
    assert!(!targets(&grant).iter().any(|target| target.contains("gtk3")), "nothing of the desktop's settings");
    let uvm = |grant: &GpuGrant| node_names(grant).contains("/dev/nvidia-uvm");
    assert!(uvm(&with("compute").1) && !uvm(&with("utility").1));
    let bare = ask(&host, &GpuRequest::count(1).capabilities([])).unwrap();
    assert!(bare.mounts.is_empty() && bare.links.is_empty() && !bare.device_nodes.is_empty());
}

#[test]
fn a_slice_comes_with_its_two_capabilities() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = FakeDriver::new("h100-mig");
    let minors = host.capabilities();
    let grant = ask(&host, &"0:2".parse().unwrap()).unwrap();
    check(&host, &grant);
    let capability = |name: &str| format!("/dev/nvidia-caps/nvidia-cap{}", minors[name]);
    let (instance, compute) = (capability("gpu1/gi3/access"), capability("gpu1/gi3/ci0/access"));
    let expected =
        set(["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia1", &instance, &compute]);
    assert_eq!(node_names(&grant), expected);
    let files: BTreeSet<&str> = grant.trees[0].files.iter().filter_map(|file| file.path.to_str()).collect();
    let shown: Vec<&&str> = files.iter().filter(|path| path.starts_with("capabilities")).collect();
    assert_eq!(shown, [&"capabilities/gpu1/mig/gi3/access", &"capabilities/gpu1/mig/gi3/ci0/access"]);
    let both = ask(&host, &"0:0,0:3".parse().unwrap()).unwrap();
    check(&host, &both);
    assert_eq!(both.device_nodes.len(), 4 + 4, "one GPU, two slices");
    let whole = ask(&host, &GpuRequest::count(1)).unwrap();
    assert_eq!(whole.gpus, [host.gpus()[1]["uuid"].as_str().unwrap()], "the GPU that is not split");
    assert!(!node_names(&whole).iter().any(|name| name.contains("caps")));
    host.write("proc/driver/nvidia-caps/mig-minors", "config 1\nmonitor 2\n");
    let error = ask(&host, &"0:2".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("does not list its capability gpu1/gi3/access"), "{error}");
}

#[test]
fn a_node_that_is_another_device_is_refused() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = FakeDriver::new("l40s-pair");
    std::fs::remove_file(host.path().join("dev/nvidia1")).unwrap();
    host.node("dev/nvidia1", MAJORS.0, 0);
    let error = ask(&host, &"0".parse().unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
    assert!(error.to_string().contains("/dev/nvidia1: it is device 240:0, where 240:1 was expected"), "{error}");
    assert!(ask(&host, &"1".parse().unwrap()).is_ok(), "the other GPU is not concerned");
    std::fs::remove_file(host.path().join("dev/nvidia1")).unwrap();
    host.write("dev/nvidia1", "no device");
    assert!(ask(&host, &"0".parse().unwrap()).unwrap_err().to_string().contains("no character device"));
}

#[test]
fn a_missing_node_is_granted_by_number() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = FakeDriver::new("t4");
    // The driver's user space makes it at the first use of CUDA.
    std::fs::remove_file(host.path().join("dev/nvidia-uvm")).unwrap();
    let grant = ask(&host, &GpuRequest::count(1)).unwrap();
    let node = grant.device_nodes.iter().find(|node| node.path == Path::new("/dev/nvidia-uvm")).unwrap();
    assert_eq!((node.host_path.clone(), node.major, node.minor), (None, MAJORS.1, 0));
}

#[test]
fn damaged_drivers_are_refused_with_a_reason() {
    if !driver::available() {
        return;
    }
    let library = |name: &str| format!("{}/{name}.so.{VERSION}", library_directory());
    let broken = FakeDriver::new("t4");
    broken.write(&library("libcuda"), "garbage");
    let error = ask(&broken, &GpuRequest::count(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
    assert!(error.to_string().contains(&format!("libcuda.so.{VERSION} is missing or cannot be used")), "{error}");
    let only_tools = GpuRequest::count(1).capabilities([DriverCapability::Utility]);
    assert!(ask(&broken, &only_tools).is_ok(), "which needs no CUDA");
    let updated = FakeDriver::new("t4");
    updated.write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue\n");
    let error = ask(&updated, &GpuRequest::count(1)).unwrap_err().to_string();
    assert!(error.contains("kernel module is version 535.54.03") && error.contains(VERSION), "{error}");
    let renamed = FakeDriver::new("t4");
    let source = "int x;\n";
    for name in ["../../../../etc/cron.d/x", "/etc/passwd", "a b"] {
        // A library whose own name would leave the directory: no link is made of it.
        let object = driver::compile("plain", source);
        let mut bytes = std::fs::read(object).unwrap();
        let place = bytes.windows(5).position(|window| window == b"plain").unwrap();
        let cut = &name.as_bytes()[..name.len().min(5)];
        bytes[place..place + cut.len()].copy_from_slice(cut);
        renamed.write(&library("libnvidia-ptxjitcompiler"), bytes);
        check(&renamed, &ask(&renamed, &GpuRequest::count(1)).unwrap());
    }
}

#[test]
fn nothing_is_granted_for_nothing() {
    let nowhere = DriverRoot::new("/no/such/directory");
    let empty = grant(&GpuRequest::none(), &nowhere, &debian()).unwrap();
    assert!(empty.is_empty(), "{empty:?}");
    assert!(grant(&"void".parse().unwrap(), &nowhere, &debian()).unwrap().is_empty());
    let error = grant(&GpuRequest::count(1), &nowhere, &debian()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
    if !driver::available() {
        return;
    }
    let host = FakeDriver::with_profile(profile("none"));
    let driver_only = ask(&host, &"none".parse().unwrap()).unwrap();
    check(&host, &driver_only);
    assert!(driver_only.device_nodes.is_empty() && !driver_only.mounts.is_empty());
}

/// An object that asks for a library of this name.
fn asking(for_library: &str, soname: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let (needed, object) = (directory.path().join(for_library), directory.path().join("object.so"));
    std::fs::copy(driver::compile(for_library, "int core(void) { return 1; }\n"), &needed).unwrap();
    let source = directory.path().join("object.c");
    std::fs::write(&source, "extern int core(void);\nint draw(void) { return core(); }\n").unwrap();
    let mut cc = std::process::Command::new("cc");
    cc.args(["-shared", "-fPIC", "-nostdlib", "-o"]).arg(&object).arg(&source).arg(&needed);
    assert!(cc.arg(format!("-Wl,-soname,{soname}")).status().unwrap().success());
    std::fs::read(object).unwrap()
}

#[test]
fn of_several_libraries_of_a_name_the_right_one_comes() {
    if !driver::available() {
        return;
    }
    let host = FakeDriver::new("t4");
    let place = |name: &str| format!("{}/{name}", library_directory());
    let base = if common::is_root() { GpuRequest::count(1) } else { "none".parse().unwrap() };
    let drawing = base.capabilities([DriverCapability::Graphics]);
    let has = |name: &str| {
        let grant = ask(&host, &drawing).unwrap();
        check(&host, &grant);
        targets(&grant).contains(&format!("/{}", place(name)))
    };
    // Drawing libraries without GLVND, which ask for the driver's own core; of others there may be any number.
    let (gl, egl) = (format!("libGL.so.{VERSION}"), format!("libEGL.so.{VERSION}"));
    host.write(&place(&gl), asking(&format!("libnvidia-glcore.so.{VERSION}"), "libGL.so.1"));
    host.write(&place(&egl), asking("libGLdispatch.so.0", "libEGL.so.1"));
    assert!(has(&gl) && !has(&egl));
    // Variables of threads as kernels since 2.4 have them, by the note in the library.
    let tls = format!("libnvidia-tls.so.{VERSION}");
    let note = |kernel: &str| {
        let source = format!(
            "asm(\".section .note.ABI-tag,\\\"a\\\",@note\\n.long 4,16,1\\n.asciz \\\"GNU\\\"\\n.long 0,{kernel}\\n.text\\n\");\n"
        );
        std::fs::read(driver::compile(&tls, &source)).unwrap()
    };
    host.write(&place(&tls), note("2,2,5"));
    assert!(!has(&tls));
    host.write(&place(&tls), note("2,3,99"));
    assert!(has(&tls));
}

#[test]
fn names_without_a_version_come_if_the_host_has_them() {
    if !driver::available() {
        return;
    }
    let host = FakeDriver::new("t4");
    let link = |name: &str, target: &str| {
        std::os::unix::fs::symlink(target, host.path().join(library_directory()).join(name)).unwrap();
    };
    link("libnvidia-cfg.so", "libnvidia-cfg.so.1");
    link("libnvidia-ptxjitcompiler.so", "/etc/passwd");
    link("libnvidia-nvvm.so", "libnvidia-cfg.so.1");
    let request = if common::is_root() { GpuRequest::count(1) } else { "none".parse().unwrap() };
    let grant = ask(&host, &request).unwrap();
    check(&host, &grant);
    let found = |name: &str| {
        let link = Path::new("/").join(library_directory()).join(name);
        grant.links.iter().find(|known| known.link == link).map(|link| link.target.display().to_string())
    };
    assert_eq!(found("libnvidia-cfg.so").as_deref(), Some("libnvidia-cfg.so.1"));
    assert_eq!(found("libnvidia-ptxjitcompiler.so"), None, "it leads to something else");
    assert_eq!(found("libnvidia-nvvm.so"), None, "it leads to another library");
    assert_eq!(found("libcudadebugger.so"), None);
}

#[test]
fn an_x_server_gets_its_modules() {
    if !driver::available() {
        return;
    }
    let host = FakeDriver::new("t4");
    host.write("usr/lib/xorg/modules/drivers/nvidia_drv.so", "module");
    host.write(&format!("usr/lib/xorg/modules/extensions/libglxserver_nvidia.so.{VERSION}"), "module");
    host.write(&format!("{}/nvidia/xorg/libglxserver_nvidia.so.1.2.3", library_directory()), "of another driver");
    let base = if common::is_root() { GpuRequest::count(1) } else { "none".parse().unwrap() };
    for (capability, expected) in [(DriverCapability::Display, true), (DriverCapability::Graphics, false)] {
        let grant = ask(&host, &base.clone().capabilities([capability])).unwrap();
        check(&host, &grant);
        let modules: Vec<_> =
            grant.mounts.iter().filter(|mount| mount.target.to_string_lossy().contains("xorg")).collect();
        assert_eq!(modules.len(), if expected { 2 } else { 0 });
        assert!(modules.iter().all(|mount| mount.executable));
        let link = grant.links.iter().find(|link| link.link.ends_with("extensions/libglxserver_nvidia.so"));
        assert_eq!(link.is_some(), expected);
    }
}
