//! Sandboxes through the public API: images built from the host's files, run as root or as an ordinary user.

mod common;

use gpucontainer::image::{Image, ImageStore};
use gpucontainer::sandbox::{Mount, SandboxBuilder, Stdio};
use gpucontainer::{ErrorKind, Sandbox};

struct Fixture {
    _directory: tempfile::TempDir,
    store: ImageStore,
    image: Image,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path().join("store")).unwrap();
        let mut builder = store.build().copy_following_links("/bin/busybox", "/bin/busybox");
        for name in [
            "sh", "ls", "cat", "id", "hostname", "sleep", "true", "env", "pwd", "touch", "mount", "ps", "readlink",
            "head", "tail", "mknod", "kill", "stat", "wc", "dd",
        ] {
            builder = builder.symlink("busybox", format!("/bin/{name}"));
        }
        let image = builder
            .file("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n", 0o644)
            .file("/etc/group", "root:x:0:\nwww:x:34:\nvideo:x:44:web\n", 0o644)
            .directory("/root", 0o700)
            .directory("/srv", 0o755)
            .directory("/tmp", 0o1777)
            .env("IMAGE", "yes")
            .command(["sh", "-c", "echo from the image"])
            .commit("fixture:1")
            .unwrap();
        Self { _directory: directory, store, image }
    }

    fn shell(&self, script: &str) -> SandboxBuilder {
        self.builder().command(["sh", "-c", script])
    }

    fn builder(&self) -> SandboxBuilder {
        Sandbox::from_image(&self.image).store(&self.store).stdin(Stdio::Null).stdout(Stdio::Piped).stderr(Stdio::Piped)
    }
}

fn run(builder: SandboxBuilder) -> (Option<i32>, String, String) {
    let sandbox = builder.spawn().unwrap();
    let output = sandbox.communicate(b"", Some(std::time::Duration::from_secs(60))).unwrap();
    sandbox.close().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_image_says_what_runs() {
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    assert_eq!(run(fixture.builder()), (Some(0), "from the image\n".into(), String::new()));
    let (code, out, err) = run(fixture.shell("pwd; hostname; id -u; echo $IMAGE $HOME $PATH; exit 3"));
    assert_eq!(err, "");
    assert_eq!(code, Some(3));
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(out, format!("/\ngpucontainer\n0\nyes /root {path}\n"));
    drop(fixture);
    leaks.check();
}

#[test]
fn nothing_of_the_host_shows() {
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let (code, out, err) = run(
        fixture.shell("ls /; ls /dev; ls -1 /proc | head -n 4; cat /proc/mounts | wc -l; ls /proc/self/fd | wc -l")
    );
    assert_eq!((code, err.as_str()), (Some(0), ""));
    eprintln!("{out}");
    let (_, out, _) = run(fixture.shell("readlink /proc/1/exe; readlink /proc/1/cwd; ls /proc/1/fd; touch /sys/x /proc/sys/x; mount -t tmpfs x /tmp; mknod /tmp/d c 1 1"));
    eprintln!("{out}");
    drop(fixture);
    leaks.check();
}

#[test]
fn a_missing_command_is_named() {
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let error = fixture.builder().command(["no-such-program"]).spawn().unwrap_err();
    eprintln!("{error}");
    assert_eq!(error.kind(), ErrorKind::CommandNotFound);
    let error = fixture.builder().working_dir("/nowhere").spawn().unwrap_err();
    eprintln!("{error}");
    assert_eq!(error.kind(), ErrorKind::WorkingDirectoryNotFound);
    let error = fixture.builder().user("nobody-here").spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UserNotFound);
    drop(fixture);
    leaks.check();
}

#[test]
fn mounts_show_what_they_say() {
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("file"), "of the host\n").unwrap();
    let builder = fixture
        .shell("cat /data/file /one; touch /data/new; touch /ro/new; touch /mem/new && ls /mem")
        .mount(Mount::bind(host.path(), "/data"))
        .mount(Mount::bind(host.path(), "/ro").read_only())
        .mount(Mount::bind(host.path().join("file"), "/one").read_only())
        .mount(Mount::tmpfs("/mem").size(1 << 20));
    let (_, out, err) = run(builder);
    assert_eq!(out, "of the host\nof the host\nnew\n");
    assert!(err.contains("/ro/new: Read-only file system"), "{err}");
    assert!(host.path().join("new").exists());
    drop(fixture);
    leaks.check();
}

#[test]
fn exec_joins_the_sandbox() {
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let sandbox = fixture.shell("echo main > /tmp/x; sleep 1000").spawn().unwrap();
    let process = sandbox
        .exec(["sh", "-c", "while ! cat /tmp/x; do :; done; hostname; ps; exit 9"])
        .stdin(Stdio::Null)
        .stdout(Stdio::Piped)
        .spawn()
        .unwrap();
    let output = process.communicate(b"", None).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("main\ngpucontainer\n") && text.contains("sleep 1000"), "{text}");
    assert_eq!(output.status.code(), Some(9));
    drop(process);
    sandbox.kill(15).unwrap();
    assert_eq!(sandbox.wait().unwrap().signal(), Some(15));
    eprintln!("{:#?}", sandbox.timeline());
    sandbox.close().unwrap();
    drop(fixture);
    leaks.check();
}
