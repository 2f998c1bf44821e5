//! What of an image decides about a grant: its loader, its C library, its compatibility libraries, what it asks for
//! and requires.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
mod gpu_machine;

use driver::{FakeDriver, MAJORS, VERSION, library_directory};
use gpu_machine::{Fixture, possible, run, snapshot};
use gpucontainer::gpu::{DriverCapability, DriverExtra, DriverRoot, GpuGrant, GpuRequest, ImageFacts, grant};
use gpucontainer::image::ImageBuilder;
use gpucontainer::{ErrorKind, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which GPUs can be had here: an ordinary user can make no nodes for the stand-in.
fn gpus() -> &'static str {
    if common::is_root() { "0" } else { "none" }
}

fn tier() -> &'static str {
    if common::is_root() { "root" } else { "rootless" }
}

/// The image with Debian's program that prints the cache.
fn with_ldconfig(builder: ImageBuilder) -> ImageBuilder {
    let program = ["/sbin/ldconfig.real", "/sbin/ldconfig"].into_iter().find(|path| Path::new(path).exists());
    builder.copy_following_links(program.unwrap(), "/usr/sbin/ldconfig")
}

/// A library that says its version is `number`, which asks to be found as `libcuda.so.1`.
fn cuda(number: u32, more: &str) -> PathBuf {
    driver::compile("libcuda.so.1", &format!("int fake_version(void) {{ return {number}; }}\n{more}"))
}

/// The note by which a compatibility library says which drivers it is for.
fn note(drivers: &str) -> String {
    let text = format!(
        "{{\\\"format\\\":1,\\\"CUDA version\\\":\\\"12.9\\\",\\\"driver\\\":[{drivers}],\\\"device\\\":[1,2]}}"
    );
    format!(
        "asm(\".section .note.cuda.fwd_compatibility,\\\"a\\\",@note\\n.long 2f-1f,4f-3f,1\\n1: .asciz \\\"NVIDIA Corporation\\\"\\n2: \
         .balign 4\\n3: .asciz \\\"{}\\\"\\n4: .balign 4\\n.text\\n\");\n",
        text.replace('\\', "\\\\\\")
    )
}

#[test]
fn the_loader_knows_the_granted_libraries() {
    if !possible(tier()) || !common::tools("ldconfig", &["ldconfig"]) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let place = library_directory();
    // An image without a cache, as distroless ones; and one whose cache names a library at a place of its own.
    let plain = with_ldconfig(fixture.debian()).copy(cuda(1, ""), "/opt/own/libown.so.7");
    let mut images = vec![(plain.clone(), false)];
    let tree = tempfile::tempdir().unwrap();
    if common::is_root() {
        std::fs::create_dir_all(tree.path().join("opt/own")).unwrap();
        std::fs::create_dir_all(tree.path().join("etc")).unwrap();
        let own = driver::compile("libown.so.7", "int fake_version(void) { return 7; }\n");
        std::fs::copy(own, tree.path().join("opt/own/libown.so.7")).unwrap();
        std::fs::write(tree.path().join("etc/ld.so.conf"), "/opt/own\n").unwrap();
        assert!(Command::new("ldconfig").arg("-r").arg(tree.path()).status().unwrap().success());
        let cache = std::fs::read(tree.path().join("etc/ld.so.cache")).unwrap();
        images.push((plain.copy(tree.path().join("opt"), "/opt").file("/etc/ld.so.cache", cache, 0o644), true));
    }
    for (builder, cached) in images {
        let image = fixture.commit(builder);
        let before = layers(&fixture);
        for read_only in [false, true] {
            let script = "ldconfig -p; loader libcuda.so.1 libcuda.so libown.so.7; ls -l /etc/ld.so.cache";
            let sandbox = fixture.sandbox(&image, gpus(), script);
            let said = run(if read_only { sandbox.read_only(true) } else { sandbox }).unwrap();
            for line in [
                format!("libcuda.so.1 (libc6,x86-64) => /{place}/libcuda.so.1\n"),
                format!("libcuda.so (libc6,x86-64) => /{place}/libcuda.so\n"),
                format!("libnvidia-ml.so.1 (libc6,x86-64) => /{place}/libnvidia-ml.so.1\n"),
            ] {
                assert!(!cfg!(target_arch = "x86_64") || said.contains(&line), "{line}{said}");
            }
            assert!(said.contains("libcuda.so.1 550\nlibcuda.so 550\n"), "{said}");
            assert!(said.contains("-rw-r--r--"), "{said}");
            if cached {
                assert!(said.contains("libown.so.7 7\n"), "the image's own entries stay: {said}");
            } else {
                assert!(said.contains("libc.so.6 (libc6"), "what is in the image is found: {said}");
            }
        }
        assert_eq!(layers(&fixture), before, "nothing was written to the image");
    }
}

/// Everything in the store's layers.
fn layers(fixture: &Fixture) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    snapshot(&fixture.store.path().join("layers"), &mut all);
    // Using a layer touches its directory, not what is in it.
    all.retain(|path, _| path.components().any(|part| part.as_os_str() == "etc"));
    all
}

#[test]
fn a_newer_cuda_brings_its_own_library() {
    if !possible(tier()) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let table = [
        ("570.86.15", String::new(), 570, "of a newer major version"),
        ("550.999", String::new(), 550, "of the same major version"),
        ("535.1", String::new(), 550, "older"),
        ("570.86.15", note("535, 550"), 570, "made for this driver"),
        ("570.86.15", note("535, 560"), 550, "made for others"),
    ];
    for (version, more, expected, what) in table {
        let number = version.split('.').next().unwrap().parse().unwrap();
        let base = || fixture.debian().copy(cuda(number, &more), format!("/opt/cuda-12/compat/libcuda.so.{version}"));
        // By an absolute link and by a relative one, as images have them.
        for target in ["/opt/cuda-12", "../../opt/cuda-12"] {
            let builder = base()
                .symlink(target, "/usr/local/cuda")
                .symlink(format!("libcuda.so.{version}"), "/opt/cuda-12/compat/libcuda.so.1");
            let said =
                run(fixture.sandbox(&fixture.commit(builder), gpus(), "loader libcuda.so.1 libcuda.so")).unwrap();
            assert_eq!(said, format!("libcuda.so.1 {expected}\nlibcuda.so {expected}\n"), "{what}");
        }
    }
    let two = fixture
        .debian()
        .copy(cuda(570, ""), "/usr/local/cuda/compat/libcuda.so.570.1")
        .copy(cuda(575, ""), "/usr/local/cuda/compat/libcuda.so.575.1");
    let said = run(fixture.sandbox(&fixture.commit(two), gpus(), "loader libcuda.so.1")).unwrap();
    assert_eq!(said, "libcuda.so.1 550\n", "nobody can say which of two is meant");
}

#[test]
fn a_loader_of_musl_is_told_where_to_search() {
    if !possible(tier()) {
        return;
    }
    let fixture = Fixture::new("t4");
    let file = format!("/etc/ld-musl-{}.path", std::env::consts::ARCH);
    let script = format!("cat {file}; ls /usr/lib");
    for (own, expected) in [
        (Some("/opt/lib:/lib\n"), "/opt/lib\n/lib\n/usr/lib\n"),
        (Some("/usr/lib\n/lib\n"), "/usr/lib\n/lib\n"),
        (Some(""), "/lib\n/usr/local/lib\n/usr/lib\n"),
        (None, ""),
    ] {
        let mut builder = fixture.busybox().file("/etc/alpine-release", "3.22\n", 0o644);
        if let Some(own) = own {
            builder = builder.file(&file, own, 0o644);
        }
        let said = run(fixture.sandbox(&fixture.commit(builder), gpus(), &script)).unwrap();
        let said = said.lines().filter(|line| !line.starts_with("cat:")).map(|line| format!("{line}\n"));
        let said: String = said.collect();
        assert!(said.starts_with(expected), "{own:?}: {said}");
        assert!(said.contains(&format!("libcuda.so.{VERSION}")), "{said}");
    }
}

/// A directory with a C library that has nothing newer than `version`, at the place where Debian has it.
fn tree_with_glibc(version: &str) -> tempfile::TempDir {
    let tree = tempfile::tempdir().unwrap();
    let place = tree.path().join(library_directory());
    std::fs::create_dir_all(&place).unwrap();
    let script = tree.path().join("versions");
    std::fs::write(&script, format!("GLIBC_2.2.5 {{ global: first; }};\nGLIBC_{version} {{ global: last; }};\n"))
        .unwrap();
    let source = tree.path().join("libc.c");
    std::fs::write(&source, "int first(void) { return 1; }\nint last(void) { return 2; }\n").unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libc.so.6", "-o"]).arg(place.join("libc.so.6"));
    assert!(cc.arg(&source).arg(format!("-Wl,--version-script={}", script.display())).status().unwrap().success());
    tree
}

#[test]
fn an_older_c_library_is_no_secret() {
    if !driver::available() {
        return;
    }
    // The function came with glibc 2.25, and an object that calls it needs that.
    let source = "#include <sys/random.h>\nint fake_version(void) { char c; return (int)getrandom(&c, 1, 0); }\n";
    let needy = tempfile::tempdir().unwrap();
    std::fs::write(needy.path().join("cuda.c"), source).unwrap();
    let built = needy.path().join("libcuda.so");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"]).arg(&built).arg(needy.path().join("cuda.c"));
    assert!(cc.status().unwrap().success());
    let host = FakeDriver::new("t4");
    let ask = |tree: &Path, capability: DriverCapability| {
        let facts = ImageFacts::of_directory(tree, Vec::new()).unwrap();
        // A driver without GPUs, which anybody can be granted.
        let request = "none".parse::<GpuRequest>().unwrap().capabilities([capability]);
        grant(&request, &DriverRoot::new(host.path()), &facts)
    };
    let (old, new) = (tree_with_glibc("2.17"), tree_with_glibc("2.99"));
    assert!(ask(old.path(), DriverCapability::Compute).unwrap().left_out.is_empty(), "what needs nothing fits");
    let file = |name: &str| format!("{}/{name}.so.{VERSION}", library_directory());
    host.write(&file("libnvidia-ptxjitcompiler"), std::fs::read(&built).unwrap());
    let granted = ask(old.path(), DriverCapability::Compute).unwrap();
    let [why] = granted.left_out.as_slice() else { panic!("{:?}", granted.left_out) };
    assert!(
        why.contains("libnvidia-ptxjitcompiler")
            && why.contains("needs glibc 2.25 or newer, and the image has glibc 2.17"),
        "{why}"
    );
    assert!(!granted.mounts.iter().any(|mount| mount.target.to_string_lossy().contains("ptxjit")));
    assert!(ask(new.path(), DriverCapability::Compute).unwrap().left_out.is_empty());
    host.write(&file("libcuda"), std::fs::read(&built).unwrap());
    let error = ask(old.path(), DriverCapability::Compute).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
    assert!(error.to_string().contains("libcuda.so.550.163.01 needs glibc 2.25"), "{error}");
    assert!(ask(old.path(), DriverCapability::Graphics).is_ok(), "which needs no CUDA");
}

#[test]
fn an_image_with_musl_is_told_what_the_driver_is_made_for() {
    if !driver::available() {
        return;
    }
    let host = FakeDriver::new("t4");
    let needy = tempfile::tempdir().unwrap();
    let (source, built) = (needy.path().join("cuda.c"), needy.path().join("libcuda.so"));
    std::fs::write(&source, "#include <stdlib.h>\nint fake_version(void) { return abs(550); }\n").unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-fno-builtin", "-Wl,-soname,libcuda.so.1", "-o"]).arg(&built).arg(&source);
    assert!(cc.status().unwrap().success());
    for library in ["libcuda", "libnvidia-ptxjitcompiler"] {
        let place = format!("{}/{library}.so.{VERSION}", library_directory());
        host.write(&place, std::fs::read(&built).unwrap());
    }
    let ask = |place: &str| {
        let facts = ImageFacts::detect(|path| path == Path::new(place));
        grant(&"none".parse().unwrap(), &DriverRoot::new(host.path()), &facts).unwrap()
    };
    let alpine = ask("/etc/alpine-release");
    let [why] = alpine.left_out.as_slice() else { panic!("{:?}", alpine.left_out) };
    assert!(why.contains("made for glibc") && why.contains("musl") && why.contains("gcompat"), "{why}");
    assert!(alpine.mounts.iter().any(|mount| mount.target.ends_with(format!("libcuda.so.{VERSION}"))));
    assert!(ask("/etc/debian_version").left_out.is_empty());
}

#[test]
fn what_an_image_requires_is_checked_for_every_gpu() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = FakeDriver::new("dgx-a100");
    let ask = |variables: &[(&str, &str)], request: &GpuRequest| -> Result<GpuGrant> {
        let mut facts = ImageFacts::detect(|path| path == Path::new("/etc/debian_version"));
        facts.environment = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        grant(request, &DriverRoot::new(host.path()), &facts)
    };
    let two = GpuRequest::count(2);
    assert!(ask(&[("NVIDIA_REQUIRE_CUDA", "cuda>=11.0 brand=tesla,driver>=418,driver<419")], &two).is_ok());
    let error = ask(&[("NVIDIA_REQUIRE_CUDA", "cuda>=99.0 brand=tesla,driver>=999")], &two).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
    let words = error.to_string();
    assert!(words.contains("GPU 0 (") && words.contains("cuda>=99.0 (it is 1"), "{words}");
    assert!(words.contains(&format!("driver>=999 (it is {VERSION})")) || words.contains("NVIDIA_DISABLE_REQUIRE"));
    assert!(ask(&[("NVIDIA_REQUIRE_CUDA", "cuda>=99.0"), ("NVIDIA_DISABLE_REQUIRE", "true")], &two).is_ok());
    assert!(ask(&[("NVIDIA_REQUIRE_ARCH", "arch>=9.0")], &two).unwrap_err().to_string().contains("arch>=9.0"));
    let bad = ask(&[("NVIDIA_REQUIRE_CUDA", "cuda~12")], &two).unwrap_err();
    assert_eq!(bad.kind(), ErrorKind::InvalidArgument);
    // An image chooses its own GPUs and parts of the driver, if it is asked.
    let image = GpuRequest::as_image_says();
    assert!(ask(&[], &image).unwrap().is_empty());
    let chosen = ask(&[("NVIDIA_VISIBLE_DEVICES", "1,3"), ("NVIDIA_DRIVER_CAPABILITIES", "utility")], &image).unwrap();
    assert_eq!(chosen.gpus.len(), 2);
    assert!(!chosen.mounts.iter().any(|mount| mount.target.to_string_lossy().contains("libcuda.so")));
}

#[test]
fn rights_about_mig_devices_are_the_caller_s_to_give() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = FakeDriver::new("h100-mig");
    let ask = |request: &GpuRequest, variables: &[(&str, &str)]| {
        let mut facts = ImageFacts::detect(|path| path == Path::new("/etc/debian_version"));
        facts.environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        grant(request, &DriverRoot::new(host.path()), &facts)
    };
    let shows = |granted: &GpuGrant, right: &str, minor: u32| {
        let path = format!("/dev/nvidia-caps/nvidia-cap{minor}");
        let node = granted.device_nodes.iter().any(|node| node.path == Path::new(&path) && node.minor == minor);
        let file = format!("capabilities/mig/{right}");
        let files = granted.trees.iter().flat_map(|tree| &tree.files);
        (node, files.filter(|shown| shown.path == Path::new(&file)).count() == 1)
    };
    let image = [("NVIDIA_VISIBLE_DEVICES", "0:0"), ("NVIDIA_MIG_CONFIG_DEVICES", "all")];
    let (config, monitor) = (DriverExtra::MigConfig, DriverExtra::MigMonitor);
    for (request, expected) in [
        (GpuRequest::count(1), [(false, false); 2]),
        (GpuRequest::count(1).extras([config]), [(true, true), (false, false)]),
        (GpuRequest::count(1).extras([monitor]), [(false, false), (true, true)]),
        (GpuRequest::as_image_says().extras([config, monitor]), [(true, true); 2]),
    ] {
        let granted = ask(&request, &image).unwrap();
        assert_eq!([shows(&granted, "config", 1), shows(&granted, "monitor", 2)], expected, "{request:?}");
        let said = granted.left_out.iter().any(|why| why.starts_with("NVIDIA_MIG_CONFIG_DEVICES=all: "));
        assert_eq!(said, !expected[0].0, "{:?}", granted.left_out);
    }
    let error = ask(&GpuRequest::as_image_says().extras([monitor]), &image).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    host.write("proc/driver/nvidia-caps/mig-minors", "monitor 2\n");
    let error = ask(&GpuRequest::count(0).extras([config]), &image).map(|granted| granted.is_empty());
    assert!(error.unwrap(), "of nothing there is no right");
    host.write("proc/driver/nvidia-caps/mig-minors", "");
    let error = ask(&"none".parse::<GpuRequest>().unwrap().extras([config]), &[]).unwrap_err();
    assert!(error.kind() == ErrorKind::GpuUnavailable && error.to_string().contains("capability config"), "{error}");
}

#[test]
fn extras_come_with_their_devices_or_a_reason() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = FakeDriver::new("t4");
    let facts = ImageFacts::detect(|path| path == Path::new("/etc/debian_version"));
    let ask = |request: &GpuRequest| grant(request, &DriverRoot::new(host.path()), &facts);
    let rights = [DriverExtra::MigConfig, DriverExtra::MigMonitor];
    let parts = DriverExtra::ALL.into_iter().filter(|extra| !rights.contains(extra));
    for extra in parts.clone() {
        let error = ask(&GpuRequest::count(1).extras([extra])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
        assert!(error.to_string().contains("/dev/"), "{error}");
    }
    assert!(ask(&GpuRequest::count(1).imex_channels([0])).unwrap_err().to_string().contains("IMEX"));
    let nodes = [
        "nvidia-fs0",
        "nvidia-fs1",
        "gdrdrv",
        "nvidia-nvswitchctl",
        "nvidia-nvswitch0",
        "infiniband/uverbs0",
        "infiniband/rdma_cm",
    ];
    for (minor, name) in (0..).zip(nodes) {
        host.node(&format!("dev/{name}"), 243, minor);
    }
    host.node("dev/nvidia-caps-imex-channels/channel5", 244, 5);
    let devices = std::fs::read_to_string(host.path().join("proc/devices")).unwrap();
    host.write("proc/devices", devices.replace("\n\nBlock", "\n244 nvidia-caps-imex-channels\n\nBlock"));
    host.write("etc/cufile.json", "{}");
    std::fs::create_dir_all(host.path().join("run/udev")).unwrap();
    let granted = ask(&GpuRequest::count(1).extras(parts).imex_channels([5])).unwrap();
    let has = |name: &str| granted.device_nodes.iter().any(|node| node.path == Path::new("/dev").join(name));
    assert!(nodes.into_iter().all(has) && has("nvidia-caps-imex-channels/channel5"), "{granted:?}");
    for target in ["/run/udev", "/etc/cufile.json"] {
        assert!(granted.mounts.iter().any(|mount| mount.target == Path::new(target) && mount.read_only));
    }
    // Its number in the kernel would be that of channel 5.
    let error = ask(&GpuRequest::count(1).imex_channels([5, (1 << 20) + 5])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    let plain = ask(&GpuRequest::count(1)).unwrap();
    assert_eq!(plain.device_nodes.len(), 4, "nothing without asking");
    // Drawing libraries are told which GPUs there are.
    let drawing = ask(&GpuRequest::count(1).capabilities(DriverCapability::ALL)).unwrap();
    let profile = drawing.files.iter().find(|file| file.path.ends_with("10-container.conf")).unwrap();
    assert!(String::from_utf8_lossy(&profile.contents).contains("EGLVisibleDGPUDevices"));
    // Without the module of unified memory there is no CUDA.
    let text = format!("Character devices:\n{} nvidia\n\nBlock devices:\n", MAJORS.0);
    host.write("proc/devices", text);
    let error = ask(&GpuRequest::count(1)).unwrap_err();
    assert!(error.to_string().contains("nvidia-uvm") && error.to_string().contains("nvidia-modprobe"), "{error}");
    assert!(ask(&GpuRequest::count(1).capabilities([DriverCapability::Utility])).is_ok());
}
