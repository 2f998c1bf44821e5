//! Applications that attack whoever gives them GPUs while they run: what a hostile image can only have, they can also
//! change at any moment, in the container and as its root.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
mod gpu_machine;

use driver::{VERSION, library_directory};
use gpu_machine::{Fixture, possible};
use gpucontainer::Sandbox;
use gpucontainer::gpu::Wait;
use gpucontainer::sandbox::Stdio;
use std::path::Path;
use std::time::{Duration, Instant};

/// No attachment takes longer, whatever is in the container.
const LIMIT: Duration = Duration::from_secs(20);

fn gpus() -> &'static str {
    if common::is_root() { "0" } else { "none" }
}

fn here() -> bool {
    possible(if common::is_root() { "root" } else { "rootless" })
}

/// What whoever attaches makes, mounts over or replaces by links.
fn places() -> Vec<String> {
    let library = format!("/{}", library_directory());
    let fixed = [
        "/usr/bin",
        "/usr/bin/nvidia-smi",
        "/usr/lib",
        "/etc",
        "/etc/ld.so.cache",
        "/etc/nvidia",
        "/etc/nvidia/nvidia-application-profiles-rc.d",
        "/etc/OpenCL",
        "/etc/OpenCL/vendors/nvidia.icd",
        "/usr/local/cuda",
        "/usr/local/cuda/compat",
        "/usr/local/cuda/compat/libcuda.so.999.1.1",
        "/run",
        "/run/nvidia-persistenced",
        "/run/nvidia-persistenced/socket",
        "/lib/firmware",
        "/lib/firmware/nvidia",
        "/dev/nvidiactl",
        "/dev/nvidia0",
    ];
    let names = [format!("libcuda.so.{VERSION}"), "libcuda.so.1".to_owned(), "libc.so.6".to_owned()];
    let below = names.map(|name| format!("{library}/{name}"));
    fixed.map(str::to_owned).into_iter().chain([library]).chain(below).collect()
}

/// What an application of a container's root makes with the tools that it brings.
fn kinds(victim: &Path) -> Vec<String> {
    let victim = victim.display();
    let up = "../".repeat(30);
    let links = [
        format!("{victim}"),
        format!("{up}{victim}"),
        format!("{victim}/file"),
        format!("/proc/1/root{victim}"),
        "/proc/1/cwd".to_owned(),
        "/proc/1/fd/3".to_owned(),
        "PLACE".to_owned(),
        "/proc/sys/kernel".to_owned(),
    ];
    let others = ["mkfifo PLACE", "mkdir PLACE", "touch PLACE", "truncate -s 1T PLACE"];
    links.into_iter().map(|link| format!("ln -s {link} PLACE")).chain(others.map(str::to_owned)).collect()
}

/// A sandbox that waits, in which everything of busybox is there.
fn waiting(fixture: &Fixture) -> Sandbox {
    let mut builder = fixture.busybox().file("/etc/debian_version", "13\n", 0o644);
    for name in ["ln", "mkfifo", "truncate", "timeout"] {
        builder = builder.symlink("busybox", format!("/bin/{name}"));
    }
    for directory in ["/usr/local/cuda/compat", "/lib/firmware", "/run", "/etc/OpenCL/vendors", "/etc/nvidia"] {
        builder = builder.directory(directory, 0o755);
    }
    let image = fixture.commit(builder.directory(format!("/{}", library_directory()), 0o755));
    fixture.waiting(&image, "void").stdout(Stdio::Null).stderr(Stdio::Null).spawn().unwrap()
}

fn ask(sandbox: &Sandbox, script: &str) -> String {
    let process = sandbox.exec(["/bin/sh", "-c", script]).stdin(Stdio::Null).stdout(Stdio::Piped).stderr(Stdio::Piped);
    let output = process.spawn().unwrap().communicate(b"", Some(LIMIT)).unwrap();
    [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
}

#[test]
fn whatever_an_application_puts_in_a_place_leads_nowhere_outside() {
    if !here() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    // What a followed link would find: a library that is newer than the driver.
    let secret = driver::compile("libcuda.so.1", "int fake_version(void) { return 666; }\n");
    std::fs::copy(secret, fixture.victim().join("libcuda.so.999.1.1")).unwrap();
    let before = fixture.host();
    let look = format!(
        "for place in /usr/lib /etc /etc/nvidia /{} /usr/local/cuda/compat /lib/firmware /run /dev; do \
         [ -f $place/file ] && cat $place/file; echo attack >$place/file; rm -f $place/file; done 2>/dev/null; true",
        library_directory()
    );
    let mut attached = 0;
    for kind in kinds(&fixture.victim()) {
        // One sandbox for all places: what an attack leaves in it must not help the next one either.
        let sandbox = waiting(&fixture);
        for place in places() {
            let what = format!("{kind} at {place}");
            let make = kind.replace("PLACE", &place);
            ask(&sandbox, &format!("mv {place} /aside; mkdir -p $(dirname {place}); {make}"));
            let start = Instant::now();
            match sandbox.attach_gpus(&gpus().parse().unwrap(), Wait::none()) {
                Ok(grant) => {
                    attached += 1;
                    let named = |bytes: &[u8]| bytes.windows(7).any(|part| part == b"999.1.1");
                    assert!(!grant.files.iter().any(|file| named(&file.contents)), "{what}: the host was read");
                    let said = ask(&sandbox, &look);
                    assert!(!said.contains("of the host"), "{what}: {said}");
                    // Whether it can be taken away is the application's; that nothing outside is touched is ours.
                    let _ = sandbox.detach_gpus(&grant, true);
                }
                Err(error) => assert!(!error.to_string().is_empty(), "{what}"),
            }
            assert!(start.elapsed() < LIMIT, "{what}");
            fixture.check(&before, &what);
            ask(&sandbox, &format!("rm -rf {place}; mv /aside {place}"));
        }
        sandbox.close().unwrap();
    }
    assert!(attached > 20, "{attached}");
    fixture.check(&before, "the host");
}

/// What is checked is what is used, also if the application changes it in between.
#[test]
fn an_application_that_races_gets_nothing_of_the_host_made_or_removed() {
    if !here() {
        return;
    }
    let _leaks = common::Leaks::watch();
    let fixture = Fixture::new("t4");
    let before = fixture.host();
    let victim = fixture.victim();
    for target in
        [format!("{}", victim.display()), format!("/proc/1/root{}", victim.display()), "/proc/1/cwd".to_owned()]
    {
        let sandbox = waiting(&fixture);
        let swap = |place: &str| {
            format!(
                "while :; do mv {place} {place}.aside; ln -s {target} {place}; rm -f {place}; mv {place}.aside {place}; done"
            )
        };
        let racing: Vec<_> = ["/usr/lib", "/etc/OpenCL", "/run", "/lib/firmware"]
            .into_iter()
            .map(|place| {
                let process = sandbox.exec(["/bin/sh", "-c", &swap(place)]);
                process.stdin(Stdio::Null).stdout(Stdio::Null).stderr(Stdio::Null).spawn().unwrap()
            })
            .collect();
        let mut attached = 0;
        for _ in 0..40 {
            if let Ok(grant) = sandbox.attach_gpus(&gpus().parse().unwrap(), Wait::none()) {
                attached += 1;
                let _ = sandbox.detach_gpus(&grant, true);
            }
            // One that could not be taken away whole: the next attachment starts from a clean one.
            if !sandbox.gpus().is_empty() {
                break;
            }
        }
        drop(racing);
        sandbox.close().unwrap();
        fixture.check(&before, &format!("{target}, attached {attached} times"));
    }
}
