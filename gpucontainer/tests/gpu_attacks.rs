//! Images that attack whoever puts a driver into them: links, pipes and devices at every place that is touched, files
//! that are not what they claim to be, programs and variables that want to be used by the host.
//!
//! As in CVE-2024-0132 and CVE-2025-23359 (links among compatibility libraries lead to the host, also by a race),
//! CVE-2025-23266 (`LD_PRELOAD` of the image in a program of the host) and CVE-2025-23267 (links in the way of the
//! loader's cache). Each is attempted; nothing of the host may be read, written or executed, and nothing may hang.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
mod gpu_machine;

use driver::{VERSION, library_directory};
use gpu_machine::{Fixture, possible, run};
use gpucontainer::gpu::{DriverRoot, GpuRequest, ImageFacts, grant};
use gpucontainer::image::ImageBuilder;
use gpucontainer::sandbox::Stdio;
use gpucontainer::{Result, Sandbox};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// No start takes longer, whatever is in the image.
const LIMIT: Duration = Duration::from_secs(20);

fn gpus() -> &'static str {
    if common::is_root() { "0" } else { "none" }
}

fn here() -> bool {
    possible(if common::is_root() { "root" } else { "rootless" })
}

/// Directories and files that whoever injects reads, writes or mounts over.
fn places() -> Vec<String> {
    let library = format!("/{}", library_directory());
    [
        "/usr",
        "/usr/bin",
        "/usr/lib",
        "/usr/lib64",
        "/lib",
        "/lib64",
        &library,
        "/etc",
        "/etc/debian_version",
        "/etc/alpine-release",
        "/etc/ld.so.cache",
        "/etc/ld.so.conf",
        "/etc/ld.so.conf.d",
        "/usr/local",
        "/usr/local/cuda",
        "/usr/local/cuda/compat",
        "/usr/local/cuda/compat/libcuda.so.999.1.1",
        "/usr/local/cuda/compat/libcuda.so.1",
        "/etc/nvidia",
        "/etc/nvidia/nvidia-application-profiles-rc.d",
        "/etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf",
        "/etc/OpenCL/vendors",
        "/etc/vulkan/icd.d/nvidia_icd.json",
        "/run",
        "/run/nvidia-persistenced",
        "/run/nvidia-persistenced/socket",
        "/lib/firmware",
        "/usr/bin/nvidia-smi",
        "/sbin/ldconfig",
        "/dev",
        "/dev/nvidia0",
        "/dev/nvidiactl",
        "/proc",
        "/proc/driver/nvidia",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([
        format!("{library}/libcuda.so.1"),
        format!("{library}/libc.so.6"),
        format!("{library}/libcuda.so.{VERSION}"),
        format!("/etc/ld-musl-{}.path", std::env::consts::ARCH),
        format!("/lib/ld-musl-{}.so.1", std::env::consts::ARCH),
    ])
    .collect()
}

#[test]
fn links_at_every_place_lead_nowhere_outside() {
    if !here() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    // What a followed link would find: a library of the host that must not come into the container.
    let secret = driver::compile("libcuda.so.1", "int fake_version(void) { return 666; }\n");
    std::fs::copy(secret, fixture.victim().join("libcuda.so.999.1.1")).unwrap();
    std::fs::write(fixture.victim().join("ld.so.conf"), "include /etc/ld.so.conf\n/etc\n").unwrap();
    let victim = fixture.victim().display().to_string();
    let before = fixture.host();
    let script = "cat /usr/lib/file /usr/local/cuda/compat/* /etc/ld.so.cache /etc/nvidia/* 2>&1 | tr -d '\\0'; \
        echo attack >/etc/ld.so.cache; loader libcuda.so.1; \
        for place in /usr/lib /etc/ld.so.conf.d /usr/local/cuda/compat /usr/local/cuda /lib/firmware; do echo attack >$place/file; done";
    for place in places() {
        for target in [victim.clone(), format!("{}{victim}", "../".repeat(30)), format!("/proc/1/root{victim}")] {
            let what = format!("{place} -> {target}");
            let image = |base: ImageBuilder| base.file("/etc/debian_version", "13\n", 0o644).symlink(&target, &place);
            let base = if place.starts_with("/usr/lib") || place.starts_with(&format!("/{}", library_directory())) {
                fixture.busybox()
            } else {
                fixture.debian()
            };
            // Where the image's own directory is in the way there is no such image; a root can be such.
            let Ok(image) = image(base).commit("attack:1") else { continue };
            let start = Instant::now();
            match run(fixture.sandbox(&image, gpus(), script)) {
                Ok(said) => assert!(!said.contains("of the host") && !said.contains("666"), "{what}: {said}"),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
            assert!(start.elapsed() < LIMIT, "{what}");
            fixture.check(&before, &what);
        }
    }
}

/// A directory that is a root, with what a start needs.
fn root(fixture: &Fixture, name: &str) -> PathBuf {
    let root = fixture.directory.path().join(name);
    for name in
        ["bin", "proc", "dev", "sys", "tmp", "etc", "run", "usr/bin", "usr/local/cuda/compat", library_directory()]
    {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    for name in ["bin/sh", "bin/cat"] {
        std::fs::copy(common::which("busybox").unwrap(), root.join(name)).unwrap();
    }
    std::fs::write(root.join("etc/debian_version"), "13\n").unwrap();
    root
}

fn in_directory(fixture: &Fixture, root: &Path, script: &str) -> Result<String> {
    let sandbox = Sandbox::from_directory(root).gpu_allocator(&fixture.allocator()).store(&fixture.store);
    let builder = sandbox.gpus(gpus().parse().unwrap()).command(["sh", "-c", script]);
    run(builder.stdin(Stdio::Null).stdout(Stdio::Piped).stderr(Stdio::Piped))
}

/// What is put in the place of something else: by a command in the directory that it is to be in.
fn kinds(victim: &Path) -> Vec<(&'static str, Vec<String>)> {
    let victim = victim.display();
    let mut kinds: Vec<(&str, String)> = vec![
        ("a link to a directory of the host", format!("ln -s {victim} NAME")),
        ("a link upwards", format!("ln -s {}{victim} NAME", "../".repeat(30))),
        ("a link to a file of the host", format!("ln -s {victim}/file NAME")),
        ("a link through a process's root", format!("ln -s /proc/1/root{victim} NAME")),
        ("a link through a process's descriptor", "ln -s /proc/self/fd/3 NAME".to_owned()),
        ("a link to itself", "ln -s NAME NAME".to_owned()),
        ("a link to nothing", "ln -s /nothing/there NAME".to_owned()),
        ("a FIFO", "mkfifo NAME".to_owned()),
        ("a directory", "mkdir NAME".to_owned()),
        ("a file", "touch NAME".to_owned()),
        ("a file that nobody may read", "touch NAME; chmod 000 NAME".to_owned()),
        ("a file without an end", "truncate -s 1T NAME".to_owned()),
    ];
    if common::is_root() {
        // One whose opening fails, one that never ends, and a disk.
        kinds.push(("a device without a driver", "mknod NAME c 240 77".to_owned()));
        kinds.push(("a device without an end", "mknod NAME c 1 5".to_owned()));
        kinds.push(("a disk", "mknod NAME b 240 77".to_owned()));
    }
    kinds.into_iter().map(|(what, script)| (what, vec!["-ec".to_owned(), script])).collect()
}

/// Puts something in the place of what is at `path`.
fn replace(path: &Path, script: &[String]) {
    let remove = |path: &Path| match path.symlink_metadata() {
        Ok(facts) if facts.is_dir() => std::fs::remove_dir_all(path).unwrap(),
        Ok(_) => std::fs::remove_file(path).unwrap(),
        Err(_) => {}
    };
    remove(path);
    let directory = path.parent().unwrap();
    std::fs::create_dir_all(directory).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let script: Vec<String> = script.iter().map(|word| word.replace("NAME", name)).collect();
    assert!(Command::new("sh").args(&script).current_dir(directory).status().unwrap().success(), "{script:?}");
}

#[test]
fn whatever_is_in_a_place_neither_leads_outside_nor_hangs() {
    if !here() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let before = fixture.host();
    let script = "echo started; for place in /usr/lib /etc /etc/nvidia /usr/local/cuda/compat /lib/firmware /run; do \
        [ -f $place/file ] && cat $place/file; echo attack >$place/file; done 2>/dev/null";
    let mut started = 0;
    for (kind, (what, command)) in kinds(&fixture.victim()).iter().enumerate() {
        for (number, place) in places().iter().enumerate() {
            let what = format!("{what} at {place}");
            let root = root(&fixture, &format!("root-{kind}-{number}"));
            replace(&root.join(&place[1..]), command);
            let start = Instant::now();
            match in_directory(&fixture, &root, script) {
                Ok(said) => {
                    assert!(said.contains("started") && !said.contains("of the host"), "{what}: {said}");
                    started += 1;
                }
                Err(error) => {
                    let words = error.to_string();
                    let steps = [": mount ", ": link ", ": node ", ": file ", ": execute ", " leads through "];
                    assert!(steps.iter().any(|step| words.contains(step)), "{what}: {words}");
                }
            }
            assert!(start.elapsed() < LIMIT, "{what}");
            fixture.check(&before, &what);
            std::fs::remove_dir_all(&root).unwrap();
        }
    }
    assert!(started > 100, "{started}");
}

#[test]
fn files_that_lie_about_themselves_are_left_out() {
    if !driver::available() {
        return;
    }
    let fixture = Fixture::new("t4");
    let library = driver::compile("libcuda.so.1", "int fake_version(void) { return 570; }\n");
    let good = std::fs::read(&library).unwrap();
    // A note that fills the file, and one that says it is larger than any file.
    let noted = |size: usize| {
        let source = format!(
            "__attribute__((section(\".note.cuda.fwd_compatibility\"), used)) static const char note[{size}] = {{1}};\nint fake_version(void) {{ return 570; }}\n"
        );
        std::fs::read(driver::compile("libcuda.so.1", &source)).unwrap()
    };
    let changed = |place: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[place..place + bytes.len()].copy_from_slice(bytes);
        bad
    };
    let everything = [0xff_u8; 8];
    let files: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"#!/bin/sh\ntouch /attack\n".to_vec(),
        good[..70].to_vec(),
        good[..good.len() / 2].to_vec(),
        changed(32, &everything),
        changed(40, &everything),
        changed(54, &[0xff; 10]),
        noted(48 << 20),
        noted(40),
    ];
    for (number, bytes) in files.into_iter().enumerate() {
        let root = root(&fixture, &format!("elf-{number}"));
        std::fs::write(root.join("usr/local/cuda/compat/libcuda.so.999.1.1"), &bytes).unwrap();
        std::fs::write(root.join(library_directory()).join("libc.so.6"), &bytes).unwrap();
        // A cache of the right beginning, and then as much as there can be.
        let mut cache = b"glibc-ld.so.cache1.1".to_vec();
        cache.extend([0xff; 4096]);
        std::fs::write(root.join("etc/ld.so.cache"), cache).unwrap();
        std::fs::create_dir_all(root.join("etc/ld.so.conf.d")).unwrap();
        std::fs::write(root.join("etc/ld.so.conf"), "include /etc/ld.so.conf.d/*.conf\n".repeat(1000)).unwrap();
        for file in 0..20 {
            let text = "include /etc/ld.so.conf\ninclude *.conf\n/usr/lib\n".repeat(100);
            std::fs::write(root.join(format!("etc/ld.so.conf.d/{file}.conf")), text).unwrap();
        }
        let start = Instant::now();
        let facts = ImageFacts::of_directory(&root, Vec::new()).unwrap();
        let request: GpuRequest = gpus().parse().unwrap();
        grant(&request, &DriverRoot::new(fixture.driver.path()), &facts).unwrap();
        assert!(start.elapsed() < LIMIT, "file {number}");
    }
    // A file with nothing but holes, larger than memory.
    let root = root(&fixture, "huge");
    for name in ["etc/ld.so.cache", "etc/ld.so.conf", "usr/local/cuda/compat/libcuda.so.999.1.1"] {
        std::fs::File::create(root.join(name)).unwrap().set_len(1 << 40).unwrap();
    }
    let start = Instant::now();
    ImageFacts::of_directory(&root, Vec::new()).unwrap();
    assert!(start.elapsed() < LIMIT);
}

#[test]
fn nothing_of_an_image_is_executed_by_the_host() {
    if !here() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let marker = fixture.victim().join("executed");
    let source = format!(
        "#include <fcntl.h>\n__attribute__((constructor)) static void run(void) {{ open(\"{}\", O_CREAT | O_WRONLY, 0600); }}\n",
        marker.display()
    );
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("evil.c"), source).unwrap();
    let evil = directory.path().join("evil.so");
    assert!(
        Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&evil)
            .arg(directory.path().join("evil.c"))
            .status()
            .unwrap()
            .success()
    );
    let program = format!("#!/bin/sh\ntouch {}\n", marker.display());
    let mut builder = fixture.debian().copy(&evil, "/evil.so").copy(&evil, "/usr/local/cuda/compat/libcuda.so.999.1.1");
    for name in [
        "/sbin/ldconfig",
        "/sbin/ldconfig.real",
        "/usr/sbin/ldconfig",
        "/usr/bin/nvidia-container-cli",
        "/usr/bin/nvidia-modprobe",
        "/usr/bin/nvidia-cdi-hook",
        "/bin/mount",
    ] {
        builder = builder.file(name, program.as_bytes(), 0o755);
    }
    for (name, value) in [
        ("LD_PRELOAD", "/evil.so"),
        ("LD_AUDIT", "/evil.so"),
        ("LD_LIBRARY_PATH", "/"),
        ("GPUCONTAINER_DRIVER_ROOT", "/"),
    ] {
        builder = builder.env(name, value);
    }
    let image = fixture.commit(builder.file("/etc/ld.so.preload", "/evil.so\n", 0o644));
    let before = fixture.host();
    // Inside the container the image may do with itself whatever it likes.
    let said = run(fixture.sandbox(&image, gpus(), "echo started")).unwrap();
    assert!(said.contains("started"), "{said}");
    assert!(!marker.exists());
    fixture.check(&before, "the host");
}

/// The image changes while it is looked at, as in CVE-2025-23359: what is checked is what is used.
#[test]
fn places_that_change_during_a_start_lead_nowhere_outside() {
    if !here() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let root = root(&fixture, "racing");
    let secret = driver::compile("libcuda.so.1", "int fake_version(void) { return 666; }\n");
    std::fs::copy(secret, fixture.victim().join("libcuda.so.999.1.1")).unwrap();
    let before = fixture.host();
    let directories = [root.join("usr/local/cuda"), root.join("etc/nvidia"), root.join(library_directory())];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (directories, done, victim) = (&directories, &done, fixture.victim());
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                for place in directories {
                    let aside = place.with_extension("aside");
                    // A start may have made something there, or be in the middle of it: then the turn is lost.
                    if std::fs::rename(place, &aside).is_ok() {
                        let _ = symlink(&victim, place);
                        let _ = std::fs::remove_file(place);
                    }
                    let _ = std::fs::rename(&aside, place);
                }
            }
        });
        for _ in 0..40 {
            let script = format!("cat /usr/local/cuda/compat/* /{}/file /etc/nvidia/file", library_directory());
            if let Ok(said) = in_directory(&fixture, &root, &script) {
                assert!(!said.contains("of the host"), "{said}");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    fixture.check(&before, "the host");
}
