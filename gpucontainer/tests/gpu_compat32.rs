//! The 32-bit twins of the driver's libraries: found on the host, granted to those who asked, found by 32-bit programs.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
mod gpu_machine;
mod other_hosts;

use driver::{FakeDriver, VERSION, library_directory};
use gpu_machine::{Fixture, possible, run};
use gpucontainer::gpu::cdi::{Catalogue, Spec, VendorHooks};
use gpucontainer::gpu::{Driver, DriverCapability, DriverRoot, GpuGrant, GpuRequest, ImageFacts, Inventory, grant};
use gpucontainer::seccomp::{Architecture, Profile};
use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which GPUs can be had here: an ordinary user can make no nodes for the stand-in.
fn gpus() -> &'static str {
    if common::is_root() { "0" } else { "none" }
}

fn with_32(list: &str) -> GpuRequest {
    let request: GpuRequest = gpus().parse().unwrap();
    request.capabilities(DriverCapability::parse_list(list).unwrap())
}

/// Puts twins into a directory of the driver root; false if they cannot be compiled, which is said.
#[track_caller]
fn twins(host: &FakeDriver, directory: &str) -> bool {
    for (file, soname) in [
        ("libcuda", "libcuda.so.1"),
        ("libnvidia-ml", "libnvidia-ml.so.1"),
        ("libnvidia-ptxjitcompiler", "libnvidia-ptxjitcompiler.so.1"),
        ("vdpau/libvdpau_nvidia", "libvdpau_nvidia.so.1"),
    ] {
        let Some(object) = driver::compile_32(soname, "int fake_version(void) { return 320; }\n") else { return false };
        let place = format!("{directory}/{file}.so.{VERSION}");
        host.write(&place, std::fs::read(object).unwrap());
        let link = host.path().join(&place).with_file_name(soname);
        symlink(Path::new(&place).file_name().unwrap(), link).unwrap();
    }
    true
}

fn class(path: &Path) -> u8 {
    std::fs::read(path).unwrap()[4]
}

/// The granted files that are objects of 32 bits.
fn narrow(grant: &GpuGrant) -> BTreeSet<PathBuf> {
    let libraries = grant.mounts.iter().filter(|mount| mount.source.to_str().unwrap().contains(".so."));
    libraries.filter(|mount| class(&mount.source) == 1).map(|mount| mount.target.clone()).collect()
}

fn set(directory: &str, names: &[&str]) -> BTreeSet<PathBuf> {
    names.iter().map(|name| Path::new(directory).join(format!("{name}.so.{VERSION}"))).collect()
}

#[test]
fn twins_come_only_to_those_who_ask_and_never_among_native_libraries() {
    if !driver::available() {
        return;
    }
    for place in ["usr/lib/i386-linux-gnu", "usr/lib32", "usr/lib", "usr/lib/i386-linux-gnu/nvidia/current"] {
        let host = FakeDriver::new("t4");
        if !twins(&host, place) {
            return;
        }
        let ask = |list: &str, image: &[&str]| {
            let facts = ImageFacts::detect(|path| image.iter().any(|there| Path::new(there) == path));
            grant(&with_32(list), &DriverRoot::new(host.path()), &facts).unwrap()
        };
        let table: [(&[&str], Option<&str>); 5] = [
            (&["/etc/debian_version"], Some("/usr/lib/i386-linux-gnu")),
            (&["/usr/lib64", "/usr/lib32"], Some("/usr/lib32")),
            (&["/usr/lib64"], Some("/usr/lib")),
            (&["/usr/lib64", "/usr/lib/ld-linux-x86-64.so.2"], Some("/usr/lib32")),
            (&["/etc/alpine-release"], None),
        ];
        for (image, directory) in table {
            for list in ["utility", "compute,utility", "graphics", "video"] {
                let plain = ask(list, image);
                assert_eq!(narrow(&plain), BTreeSet::new(), "{place} {image:?} {list}");
                assert_eq!(plain.library_directories.len(), 1);
            }
            let granted = ask("compute,utility,compat32", image);
            let Some(directory) = directory else {
                assert_eq!(narrow(&granted), BTreeSet::new());
                assert!(granted.left_out.iter().any(|why| why.contains("32-bit loader")), "{:?}", granted.left_out);
                continue;
            };
            assert_eq!(narrow(&granted), set(directory, &["libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler"]));
            assert_eq!(granted.library_directories.last().map(PathBuf::as_path), Some(Path::new(directory)));
            assert!(granted.left_out.is_empty());
            let link = |name: &str| granted.links.iter().find(|link| link.link == Path::new(directory).join(name));
            assert_eq!(link("libcuda.so.1").unwrap().target, Path::new(&format!("libcuda.so.{VERSION}")));
            assert_eq!(link("libcuda.so").unwrap().target, Path::new("libcuda.so.1"));
            for mount in granted.mounts.iter().filter(|mount| mount.source.to_str().unwrap().contains(".so.")) {
                let among = mount.target.parent().unwrap() == Path::new(directory);
                assert_eq!(among, class(&mount.source) == 1, "{mount:?}");
            }
            let only_tools = ask("utility,compat32", image);
            assert_eq!(narrow(&only_tools), set(directory, &["libnvidia-ml"]), "twins of what is asked for");
            let video = ask("video,compat32", image);
            assert!(narrow(&video).contains(&Path::new(directory).join(format!("vdpau/libvdpau_nvidia.so.{VERSION}"))));
        }
    }
}

#[test]
fn twins_of_another_version_or_machine_are_left_alone() {
    if !driver::available() {
        return;
    }
    let host = FakeDriver::new("t4");
    let Some(object) = driver::compile_32("libcuda.so.1", "int fake_version(void) { return 320; }\n") else { return };
    let good = std::fs::read(object).unwrap();
    host.write("usr/lib32/libcuda.so.535.54.03", &good);
    // A native library at a place of 32-bit ones, one of another machine, and one that was cut.
    let native = format!("{}/libnvidia-cfg.so.{VERSION}", library_directory());
    let native = std::fs::read(host.path().join(native)).unwrap();
    host.write(&format!("usr/lib32/libnvidia-cfg.so.{VERSION}"), native);
    let mut foreign = good.clone();
    foreign[18] = 8;
    host.write(&format!("usr/lib32/libnvidia-ml.so.{VERSION}"), foreign);
    host.write(&format!("usr/lib32/libnvidia-nvvm.so.{VERSION}"), &good[..good.len() / 2]);
    let driver = Driver::discover(&DriverRoot::new(host.path())).unwrap();
    assert!(driver.libraries.iter().all(|library| !library.thirty_two_bit), "{:?}", driver.libraries);
    // The loader of the host knows a directory that nobody else does.
    if twins(&host, "opt/driver/lib32") && common::which("ldconfig").is_some() {
        host.write("etc/ld.so.conf", "/opt/driver/lib32\n");
        let status = Command::new("ldconfig").arg("-X").arg("-r").arg(host.path()).status().unwrap();
        assert!(status.success());
        let driver = Driver::discover(&DriverRoot::new(host.path())).unwrap();
        let found = driver.libraries.iter().filter(|library| library.thirty_two_bit);
        assert_eq!(found.count(), 4, "by the host's own cache");
    }
}

/// A directory with what `tests/debian-driver` fetches; says why it is skipped if it cannot.
#[track_caller]
fn fetched(set: &str) -> Option<PathBuf> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/debian-driver");
    let output = Command::new(&program).arg(set).output();
    match output {
        Ok(output) if output.status.success() => Some(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())),
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr);
            common::skip("debian-driver", words.lines().last().unwrap_or("tests/debian-driver failed without a word"));
            None
        }
        Err(error) => {
            common::skip("debian-driver", &format!("{}: {error}", program.display()));
            None
        }
    }
}

/// Asks the library that it was linked with, without a C library of its own, and prints the answer.
const PROGRAM: &str = r#"
extern int fake_version(void);
static int call(int number, int first, int second, int third) {
    int result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(first), "c"(second), "d"(third) : "memory");
    return result;
}
void _start(void) {
    int version = fake_version();
    char text[4] = { '0' + version / 100, '0' + version / 10 % 10, '0' + version % 10, '\n' };
    call(4, 1, (int)text, 4);
    call(1, 0, 0, 0);
}
"#;

/// A 32-bit program that asks for `libcuda.so.1`.
fn program(directory: &Path) -> Option<PathBuf> {
    let library = driver::compile_32("libcuda.so.1", "int fake_version(void) { return 320; }\n")?;
    let (source, program) = (directory.join("narrow.c"), directory.join("narrow"));
    std::fs::write(&source, PROGRAM).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-m32", "-nostdlib", "-nostartfiles", "-fno-stack-protector", "-fno-pie", "-no-pie"]);
    cc.args(["-Wl,-dynamic-linker,/lib/ld-linux.so.2", "-o"]).arg(&program).arg(&source).arg(library);
    assert!(cc.status().unwrap().success());
    Some(program)
}

#[test]
fn a_32_bit_program_finds_its_library_and_a_native_one_its_own() {
    if !possible(if common::is_root() { "root" } else { "rootless" }) {
        return;
    }
    let Some(loader) = fetched("loader-32") else { return };
    let fixture = Fixture::new("t4");
    let Some(program) = program(fixture.directory.path()) else { return };
    let _leaks = common::Leaks::watch();
    assert!(twins(&fixture.driver, "usr/lib/i386-linux-gnu"));
    let narrow = |builder: gpucontainer::image::ImageBuilder| {
        builder.copy(loader.join("lib32/ld-linux.so.2"), "/usr/lib/ld-linux.so.2").copy(&program, "/bin/narrow")
    };
    // One with a native C library; one that has nothing but the 32-bit loader beside a program without any.
    let debian = fixture.commit(narrow(fixture.debian()));
    let script = "narrow; loader libcuda.so.1";
    let run_with = |image, list: &str, script: &str| {
        // The default filter kills 32-bit programs, which next to nobody has.
        let filter = Profile::default_for(0).architecture(Architecture::X86);
        run(fixture.sandbox(image, gpus(), script).gpus(with_32(list)).seccomp(filter)).unwrap()
    };
    let said = run_with(&debian, "compute,utility,compat32", script);
    assert_eq!(said, "320\nlibcuda.so.1 550\n");
    let said = run_with(&debian, "compute,utility", script);
    assert!(said.contains("error while loading shared libraries: libcuda.so.1"), "{said}");
    assert!(said.starts_with("libcuda.so.1 550\n"), "{said}");
    let bare = fixture.busybox().directory("/lib", 0o755);
    let bare = bare.copy(loader.join("lib32/ld-linux.so.2"), "/lib/ld-linux.so.2").copy(&program, "/bin/narrow");
    let bare = fixture.commit(bare);
    assert_eq!(run_with(&bare, "compute,compat32", "narrow"), "320\n");
    if common::which("ldconfig").is_some() {
        let program = ["/sbin/ldconfig.real", "/sbin/ldconfig"].into_iter().find(|path| Path::new(path).exists());
        let image = narrow(fixture.debian()).copy_following_links(program.unwrap(), "/usr/sbin/ldconfig");
        let said = run_with(&fixture.commit(image), "compute,compat32", "ldconfig -p");
        for line in [
            format!("libcuda.so.1 (libc6,x86-64) => /{}/libcuda.so.1\n", library_directory()),
            "libcuda.so.1 (libc6) => /usr/lib/i386-linux-gnu/libcuda.so.1\n".to_owned(),
            "libcuda.so (libc6) => /usr/lib/i386-linux-gnu/libcuda.so\n".to_owned(),
        ] {
            assert!(said.contains(&line), "{line}{said}");
        }
    }
}

#[test]
fn a_32_bit_loader_of_musl_is_told_where_to_search() {
    if !possible(if common::is_root() { "root" } else { "rootless" }) {
        return;
    }
    let fixture = Fixture::new("t4");
    if !twins(&fixture.driver, "usr/lib32") {
        return;
    }
    for (own, expected) in
        [(None, "/usr/lib32\n/lib\n/usr/local/lib\n/usr/lib\n"), (Some("/opt/lib\n"), "/usr/lib32\n/opt/lib\n")]
    {
        let mut builder = fixture.busybox().file("/etc/alpine-release", "3.22\n", 0o644);
        builder = builder.file("/lib/ld-musl-i386.so.1", "", 0o755);
        if let Some(own) = own {
            builder = builder.file("/etc/ld-musl-i386.path", own, 0o644);
        }
        let image = fixture.commit(builder);
        let script = "cat /etc/ld-musl-i386.path; ls /usr/lib32";
        let said = run(fixture.sandbox(&image, gpus(), script).gpus(with_32("compute,compat32"))).unwrap();
        assert!(said.starts_with(expected), "{said}");
        assert!(said.contains(&format!("libcuda.so.{VERSION}")), "{said}");
        let plain = run(fixture.sandbox(&image, gpus(), script)).unwrap();
        assert!(!plain.contains("libcuda") && !plain.contains("/usr/lib32\n"), "{plain}");
    }
}

#[test]
fn a_specification_has_the_twins_too() {
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = FakeDriver::new("t4");
    if !twins(&host, "usr/lib/i386-linux-gnu") {
        return;
    }
    let root = DriverRoot::new(host.path());
    let (inventory, request) = (Inventory::discover_with(&root), GpuRequest::all().capabilities(DriverCapability::ALL));
    let facts = ImageFacts::detect(|path| path == Path::new("/etc/debian_version"));
    let spec = Spec::of_host(&request, &inventory, &root, &facts).unwrap();
    let directory = tempfile::tempdir().unwrap();
    spec.save(&directory.path().join("nvidia.json")).unwrap();
    let catalogue = Catalogue::read_from(&[directory.path()]);
    let read = catalogue.grant(&["nvidia.com/gpu=all".parse().unwrap()], VendorHooks::Refuse, &root).unwrap();
    let native = grant(&request, &root, &facts).unwrap();
    assert_eq!(narrow(&read), narrow(&native));
    assert!(narrow(&read).len() >= 4);
    assert_eq!(read.library_directories, native.library_directories);
}

#[test]
fn debian_s_own_twins_are_found() {
    let Some(directory) = fetched("driver-32") else { return };
    let host = FakeDriver::new("t4");
    let status = Command::new("cp").args(["-a", "--no-target-directory"]).arg(&directory).arg(host.path()).status();
    assert!(status.unwrap().success());
    let current = host.path().join("usr/lib/i386-linux-gnu/nvidia/current");
    let names = std::fs::read_dir(&current).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<String> = names.collect();
    let version = names.iter().find_map(|name| name.strip_prefix("libcuda.so.5")).map(|rest| format!("5{rest}"));
    let version = version.unwrap();
    let native = host.path().join(library_directory());
    for name in ["libcuda", "libnvidia-ml"] {
        let (from, to) = (format!("{name}.so.{VERSION}"), format!("{name}.so.{version}"));
        std::fs::rename(native.join(from), native.join(to)).unwrap();
    }
    host.write("proc/driver/nvidia/version", format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  x\n"));
    let driver = Driver::discover(&DriverRoot::new(host.path())).unwrap();
    let found: BTreeSet<&str> =
        driver.libraries.iter().filter(|one| one.thirty_two_bit).filter_map(|one| one.soname.as_deref()).collect();
    assert_eq!(found, BTreeSet::from(["libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1"]));
}

#[test]
fn links_in_an_image_lead_nowhere_outside() {
    if !possible(if common::is_root() { "root" } else { "rootless" }) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    if !twins(&fixture.driver, "usr/lib32") {
        return;
    }
    let debian = [
        "/usr/lib/i386-linux-gnu".to_owned(),
        format!("/usr/lib/i386-linux-gnu/libcuda.so.{VERSION}"),
        "/usr/lib/i386-linux-gnu/libcuda.so.1".to_owned(),
        "/lib/ld-linux.so.2".to_owned(),
        "/etc/ld.so.cache".to_owned(),
    ];
    other_hosts::attack(&fixture, &with_32("compute,compat32"), "/etc/debian_version", &debian);
    let musl = ["/usr/lib32", "/lib/ld-musl-i386.so.1", "/etc/ld-musl-i386.path"].map(str::to_owned);
    other_hosts::attack(&fixture, &with_32("compute,compat32"), "/etc/alpine-release", &musl);
}
