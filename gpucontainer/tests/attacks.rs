//! Images and applications that try to reach the host: each attempt fails, or stays inside.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod fixture;

use fixture::{Fixture, run};
use gpucontainer::sandbox::{Capability, Mount};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Host files that the attempts aim at.
const TARGETS: &[&str] = &[
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/etc/passwd",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/vm/overcommit_memory",
];

/// What the host's files are, to compare them afterwards.
fn host() -> BTreeMap<&'static str, Option<Vec<u8>>> {
    TARGETS.iter().map(|path| (*path, std::fs::read(path).ok())).collect()
}

#[test]
fn links_of_an_image_stay_inside() {
    let leaks = common::Leaks::watch();
    let outside = tempfile::tempdir().unwrap();
    let before = host();
    let place = outside.path().display().to_string();
    // Where links of an image may point: at the host's directories, if they were followed outside.
    let targets = [place.clone(), format!("../../../../..{place}"), format!("/proc/1/root{place}"), "/etc".to_owned()];
    for directory in ["/proc", "/dev", "/sys", "/etc", "/tmp", "/mnt"] {
        for target in &targets {
            if directory == target {
                continue;
            }
            let fixture = Fixture::new();
            let layout = tempfile::tempdir().unwrap();
            // A root of its own: the image's own `/etc` would be in the way of a link.
            std::fs::create_dir(layout.path().join("bin")).unwrap();
            std::fs::copy(common::which("busybox").unwrap(), layout.path().join("bin/busybox")).unwrap();
            std::os::unix::fs::symlink(target, layout.path().join(&directory[1..])).unwrap();
            let image = fixture.store.build().copy(layout.path(), "/").commit("links:1").unwrap();
            let script = "echo x > /tmp/attack; echo x > /etc/attack; echo x > /mnt/attack; /bin/busybox ls / /mnt/";
            let builder = gpucontainer::Sandbox::from_image(&image).store(&fixture.store);
            let builder = builder
                .stdin(gpucontainer::sandbox::Stdio::Null)
                .stdout(gpucontainer::sandbox::Stdio::Piped)
                .stderr(gpucontainer::sandbox::Stdio::Piped)
                .mount(Mount::tmpfs("/mnt/below"))
                .command(["/bin/busybox", "sh", "-c", script]);
            // It starts, with what it wrote inside, or says why not.
            match builder.spawn() {
                Ok(sandbox) => {
                    sandbox.communicate(b"", Some(std::time::Duration::from_secs(30))).unwrap();
                    sandbox.close().unwrap();
                }
                Err(error) => assert!(!error.to_string().is_empty(), "{directory} -> {target}"),
            }
            assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0, "{directory} -> {target}");
            assert!(!Path::new("/etc/attack").exists(), "{directory} -> {target}");
        }
    }
    assert_eq!(host(), before);
    drop(outside);
    leaks.check();
}

#[test]
fn links_to_descriptors_of_the_start_lead_nowhere() {
    let leaks = common::Leaks::watch();
    let outside = tempfile::tempdir().unwrap();
    let inside = tempfile::tempdir().unwrap();
    // While the mounts are made, one of the numbers is that of the directory that is to be read-only.
    for number in 3..32 {
        let fixture = Fixture::with(|image| image.symlink(format!("/proc/self/fd/{number}"), "/link"));
        let builder = fixture
            .builder()
            .command(["/bin/true"])
            .mount(Mount::bind(inside.path(), "/link/made"))
            .mount(Mount::bind(outside.path(), "/deeper/than/that").read_only());
        let error = builder.spawn().unwrap_err();
        assert!(error.to_string().contains("/link"), "{error}");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0, "descriptor {number}");
    }
    drop((inside, outside));
    leaks.check();
}

#[test]
fn files_of_the_host_are_not_written_through_links() {
    let leaks = common::Leaks::watch();
    let before = host();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("file"), "of the host\n").unwrap();
    let inside = tempfile::tempdir().unwrap();
    std::fs::write(inside.path().join("own"), "shared\n").unwrap();
    let file = outside.path().join("file").display().to_string();
    let fixture = Fixture::with(|builder| {
        builder
            .symlink("/proc/1/root/etc/hostname", "/etc/hosts")
            .symlink(&file, "/etc/hostname")
            .symlink(format!("../../../../..{file}"), "/etc/resolv.conf")
            .symlink(outside.path(), "/out")
            .file("/dev/null", "a file of the image\n", 0o644)
            .file("/dev/console", "", 0o644)
    });
    let script = "cat /etc/hosts /etc/hostname; echo x >> /etc/hosts; echo x >> /etc/hostname; echo x > /dev/null
        cat /dev/null; cat /proc/kcore | /bin/busybox head -c 10; cat /proc/keys /proc/timer_list; ls /sys/firmware";
    let (_, text, errors) = run(fixture.shell(script));
    assert!(text.starts_with("127.0.0.1\tlocalhost\n") && text.contains("\ngpucontainer\n"), "{text}{errors}");
    assert!(!text.contains("of the host") && !text.contains("a file of the image"), "{text}");
    // A target behind a link that leads outside: below the container's own root there is no such place.
    let builder = fixture.shell("cat /out/below/own").mount(Mount::bind(inside.path(), "/out/below"));
    match builder.spawn() {
        Ok(sandbox) => {
            sandbox.communicate(b"", Some(std::time::Duration::from_secs(30))).unwrap();
            sandbox.close().unwrap();
        }
        Err(error) => assert!(error.to_string().contains("/out/below"), "{error}"),
    }
    assert_eq!(std::fs::read_to_string(outside.path().join("file")).unwrap(), "of the host\n");
    assert!(!outside.path().join("below").exists());
    assert_eq!(host(), before);
    drop((fixture, outside, inside));
    leaks.check();
}

/// Every line says `held` or `reached`.
const ATTEMPTS: &str = r#"
try() { name=$1; shift; if "$@" >/out 2>&1; then echo "reached: $name: $(/bin/busybox head -c 80 /out)"; elif /bin/busybox grep "not found" /out; then echo "reached: no tool: $name"; else echo "held: $name"; fi; }
write() { echo x > "$1"; }
try "mount tmpfs" /bin/busybox mount -t tmpfs none /tmp
try "mount proc" /bin/busybox mount -t proc none /tmp
try "bind" /bin/busybox mount -o bind / /tmp
try "remount /proc/sys" /bin/busybox mount -o remount,rw,bind /proc/sys
try "umount /proc" /bin/busybox umount /proc
try "umount mask" /bin/busybox umount /proc/keys
try "mknod of the disk" /bin/busybox mknod /tmp/disk b 254 0
try "mknod of memory" /bin/busybox mknod /dev/mem c 1 1
try "core_pattern" write /proc/sys/kernel/core_pattern
try "modprobe" write /proc/sys/kernel/modprobe
try "host sysctl" write /proc/sys/vm/overcommit_memory
try "sysrq" write /proc/sysrq-trigger
try "uevent_helper" write /sys/kernel/uevent_helper
try "sys write" write /sys/kernel/profiling
try "cgroup" /bin/busybox mkdir /sys/fs/cgroup/memory/attack
try "release_agent" write /sys/fs/cgroup/memory/release_agent
try "hostname" /bin/busybox hostname attacked
try "unshare user" /bin/busybox unshare -U -r /bin/busybox true
try "unshare mount" /bin/busybox unshare -m /bin/busybox true
try "setns of pid 1" /bin/busybox nsenter -t 1 -m /bin/busybox true
try "memory of pid 1" /bin/busybox head -c 1 /proc/1/mem
try "program of pid 1" /bin/busybox cat /proc/1/exe
try "descriptors of pid 1" /bin/busybox readlink /proc/1/fd/3
try "root of pid 1" /bin/busybox ls /proc/1/root/
try "environment of pid 1" /bin/busybox head -c 1 /proc/1/environ
try "kcore" /bin/busybox grep -q . /proc/kcore
try "mem" /bin/busybox head -c 1 /dev/mem
try "kmsg" /bin/busybox dmesg
try "swapoff" /bin/busybox swapoff -a /nothing
try "interface" /bin/busybox ip link add attack type dummy
try "kill outside" /bin/busybox kill -9 VICTIM
for process in /proc/[0-9]*; do [ -e "$process/status" ] && count=$((count + 1)); done
[ "$count" -lt 6 ] && echo "held: processes" || echo "reached: processes: $count"
echo end
"#;

#[test]
fn attempts_of_an_application_fail() {
    let leaks = common::Leaks::watch();
    let before = host();
    let fixture = Fixture::new();
    let mut victim = Command::new("sleep").arg("1000").spawn().unwrap();
    let script = ATTEMPTS.replace("VICTIM", &victim.id().to_string());
    let (_, out, err) = run(fixture.shell(&script));
    let alive = victim.try_wait().unwrap().is_none();
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(out.ends_with("end\n"), "{out}{err}");
    let reached: Vec<_> = out.lines().filter(|line| line.starts_with("reached")).collect();
    assert!(reached.is_empty(), "{reached:#?}");
    assert!(out.matches("held: ").count() > 28, "{out}");
    assert!(alive);
    assert_eq!(host(), before);
    drop(fixture);
    leaks.check();
}

/// What needs more than a shell. Prints what it could do; a clean run prints nothing but the last line.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static void attempt(const char *name, long result) {
    if (result >= 0) printf("reached: %s\n", name);
}

int main(int argc, char **argv) {
    attempt("ptrace of pid 1", ptrace(PTRACE_ATTACH, 1, 0, 0));
    attempt("seize of pid 1", ptrace(PTRACE_SEIZE, 1, 0, 0));
    attempt("memory of pid 1", open("/proc/1/mem", O_RDWR));
    int namespace = open("/proc/1/ns/mnt", O_RDONLY);
    attempt("setns", namespace < 0 ? -1 : setns(namespace, 0));
    attempt("unshare user", unshare(CLONE_NEWUSER));
    attempt("unshare all", unshare(CLONE_NEWNS | CLONE_NEWPID));
    attempt("clone user", syscall(SYS_clone, CLONE_NEWUSER | 17, 0, 0, 0, 0));
    attempt("keyctl", syscall(SYS_keyctl, 0, -3, 1, 0, 0));
    attempt("add_key", syscall(SYS_add_key, "user", "attack", "x", 1, -3));
    struct timespec past = {1000000000, 0};
    attempt("clock_settime", clock_settime(CLOCK_REALTIME, &past));
    attempt("sethostname", sethostname("attacked", 8));
    attempt("bpf", syscall(SYS_bpf, 0, 0, 0));
    attempt("perf_event_open", syscall(SYS_perf_event_open, 0, 0, -1, -1, 0));
    attempt("kexec_load", syscall(SYS_kexec_load, 0, 0, 0, 0));
    attempt("init_module", syscall(SYS_init_module, "", 0, ""));
    attempt("open_by_handle_at", syscall(SYS_open_by_handle_at, -100, 0, 0));
    attempt("fsopen", syscall(SYS_fsopen, "tmpfs", 0));
    attempt("open_tree", syscall(SYS_open_tree, -100, "/", 1));
    attempt("mount", mount("none", "/tmp", "tmpfs", 0, 0));
    attempt("pivot_root", syscall(SYS_pivot_root, "/", "/tmp"));
    attempt("personality", syscall(SYS_personality, 0x0040000));
    attempt("userfaultfd", syscall(SYS_userfaultfd, 0));
    attempt("io_uring", syscall(SYS_io_uring_setup, 1, 0));
    char typed = 'x';
    for (int fd = 0; fd < 3; fd++)
        if (isatty(fd)) attempt("TIOCSTI", ioctl(fd, TIOCSTI, &typed));
    for (int fd = 0; fd < 64; fd++) {
        struct stat about;
        if (fd > 2 && fstat(fd, &about) == 0 && S_ISDIR(about.st_mode) && fd != namespace) printf("reached: directory %d\n", fd);
    }
    /* Out of a chroot by a directory that stayed open outside of it. */
    int top = open("/", O_RDONLY | O_DIRECTORY);
    mkdir("/tmp/jail", 0700);
    if (top >= 0 && chroot("/tmp/jail") == 0) {
        fchdir(top);
        for (int at = 0; at < 64; at++) chdir("..");
        chroot(".");
    }
    if (access("/etc/inside", F_OK) != 0) printf("reached: another root\n");
    if (argc > 1 && access(argv[1], F_OK) == 0) printf("reached: %s\n", argv[1]);
    for (int process = 2; process < 70000; process += 1)
        if (process != getpid() && syscall(SYS_pidfd_open, process, 0) >= 0 && process > 20) printf("reached: process %d\n", process);
    printf("end\n");
    return 0;
}
"#;

#[test]
fn attempts_by_system_calls_fail() {
    if !common::tools("compiler", &["cc"]) {
        return;
    }
    let leaks = common::Leaks::watch();
    let before = host();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("attack.c"), PROGRAM).unwrap();
    let program = outside.path().join("attack");
    let mut built = Command::new("cc");
    built.args(["-static", "-O1", "-w", "-o"]).arg(&program).arg(outside.path().join("attack.c"));
    assert!(built.status().unwrap().success());
    let fixture = Fixture::with(|builder| builder.copy(&program, "/bin/attack"));
    let secret = program.display().to_string();
    let ordinary = fixture.builder().command(["/bin/attack", &secret]);
    // `/proc/1/mem` and the like are held by more than missing capabilities.
    let few = fixture.builder().command(["/bin/attack", &secret]).drop_all_capabilities();
    for builder in [ordinary, few] {
        assert_eq!(run(builder), (Some(0), "end\n".to_owned(), String::new()));
    }
    let sandbox = fixture.builder().command(["/bin/attack", &secret]).terminal(24, 80).spawn().unwrap();
    let mut terminal = std::fs::File::from(sandbox.take_terminal().unwrap());
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = std::io::Read::read(&mut terminal, &mut buffer) {
        text.extend_from_slice(&buffer[..count]);
    }
    assert_eq!(String::from_utf8_lossy(&text), "end\r\n");
    assert!(sandbox.wait().unwrap().success());
    drop(terminal);
    sandbox.close().unwrap();
    assert_eq!(host(), before);
    drop((fixture, outside));
    leaks.check();
}

#[test]
fn device_nodes_of_an_image_open_nothing() {
    if !common::tier("root") {
        return;
    }
    let leaks = common::Leaks::watch();
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("bin")).unwrap();
    std::fs::copy(common::which("busybox").unwrap(), root.path().join("bin/busybox")).unwrap();
    for (name, kind, major, minor) in [("disk", "b", "254", "0"), ("memory", "c", "1", "1"), ("zero", "c", "1", "5")] {
        let made = Command::new("mknod").arg(root.path().join(name)).args([kind, major, minor]).status().unwrap();
        assert!(made.success());
    }
    let fixture = Fixture::new();
    let script =
        "for node in /disk /memory /zero; do /bin/busybox head -c 1 $node && echo reached $node; done; echo end";
    let stdio = |builder: gpucontainer::sandbox::SandboxBuilder| {
        use gpucontainer::sandbox::Stdio;
        builder.stdin(Stdio::Null).stdout(Stdio::Piped).stderr(Stdio::Piped)
    };
    for writable in [gpucontainer::rootfs::Writable::InPlace, gpucontainer::rootfs::Writable::Memory] {
        let builder = gpucontainer::Sandbox::from_directory(root.path()).store(&fixture.store).writable(writable);
        let builder = builder.command(["/bin/busybox", "sh", "-c", script]);
        // Also for those who may make nodes themselves.
        for builder in [builder.clone(), builder.add_capability(Capability::Mknod)] {
            let (_, out, err) = run(stdio(builder));
            assert_eq!(out, "end\n", "{err}");
        }
    }
    drop((fixture, root));
    leaks.check();
}
