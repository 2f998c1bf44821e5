//! Sandboxes through the public API: images built from the host's files, run as root or as an ordinary user.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;

use gpucontainer::image::{Image, ImageStore};
use gpucontainer::net::PortMapping;
use gpucontainer::rootfs::Writable;
use gpucontainer::sandbox::{Capability, Mount, Network, ResourceLimit, SandboxBuilder, Stdio, UserNamespace};
use gpucontainer::{ErrorKind, Sandbox};
use std::io::{Read, Write};
use std::time::Duration;

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
        .exec(["sh", "-c", "until read -r word </tmp/x; do :; done; echo $word; hostname; ps; exit 9"])
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

#[test]
fn a_shifted_user_namespace_shows_the_same_owners() {
    if !common::tier("root") {
        return;
    }
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let shifted = UserNamespace::Shifted { first: 200_000, count: 65536 };
    let script = "id -u; stat -c %u:%g /etc/passwd /root /; touch /x /root/y; stat -c %u /x; cat /proc/self/uid_map";
    for writable in [Writable::Disk, Writable::Memory] {
        let (code, out, err) = run(fixture.shell(script).user_namespace(shifted).writable(writable));
        assert_eq!((code, err.as_str()), (Some(0), ""));
        assert!(out.starts_with("0\n0:0\n0:0\n0:0\n0\n"), "{out}");
        assert!(out.contains("200000"), "{out}");
    }
    let (_, out, _) = run(fixture.shell("id -u; id -G; stat -c %u /etc/passwd").user("web").user_namespace(shifted));
    assert_eq!(out, "33\n34 44\n0\n");
    // Who enters the namespaces finds what the application has, and no mount of the host.
    for writable in [Writable::Disk, Writable::Memory, Writable::ReadOnly] {
        let sandbox = fixture.shell("sleep 1000").user_namespace(shifted).writable(writable).spawn().unwrap();
        let process = sandbox.exec(["sh", "-c", "ps; cat /proc/self/mountinfo"]).stdin(Stdio::Null);
        let output = process.stdout(Stdio::Piped).spawn().unwrap().communicate(b"", None).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("sleep 1000"), "{writable:?}: {text}");
        let roots: Vec<&str> = text.lines().filter(|line| line.split(' ').nth(4) == Some("/")).collect();
        assert!(roots.len() == 1 && roots[0].contains(" overlay "), "{writable:?}: {roots:?}");
        sandbox.close().unwrap();
    }
    drop(fixture);
    leaks.check();
}

#[test]
fn writes_go_where_they_were_sent() {
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    for writable in [Writable::Disk, Writable::Memory] {
        let (_, out, err) = run(fixture.shell("echo a > /file; cat /file; echo b >> /etc/passwd").writable(writable));
        assert_eq!((out.as_str(), err.as_str()), ("a\n", ""));
    }
    for builder in [
        fixture.shell("touch /file /etc/x").read_only(true),
        fixture.shell("touch /file /etc/x").writable(Writable::ReadOnly),
    ] {
        let (_, _, err) = run(builder);
        assert_eq!(err.matches("Read-only file system").count(), 2, "{err}");
    }
    // Nothing of one instance is seen by another.
    let (_, out, _) = run(fixture.shell("ls /file; cat /etc/passwd | wc -l"));
    assert_eq!(out, "2\n");
    drop(fixture);
    leaks.check();
}

#[test]
fn many_layers_become_one_root() {
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let mut image = fixture.image.clone();
    for number in 0..60 {
        let builder = fixture.store.build().base(&image).file(format!("/layer/{number}"), "x", 0o644);
        image = builder.commit(&format!("layers:{number}")).unwrap();
    }
    let builder = Sandbox::from_image(&image).store(&fixture.store).stdin(Stdio::Null).stdout(Stdio::Piped);
    assert_eq!(run(builder.command(["sh", "-c", "ls /layer | wc -l"])).1, "60\n");
    drop((image, fixture));
    leaks.check();
}

#[test]
fn privileges_are_few() {
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    // Without a shell, which ignores signals of its own.
    let status = || fixture.builder().command(["cat", "/proc/self/status"]);
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let (_, root, _) = run(status());
    assert_eq!(field(&root, "CapInh:"), "0000000000000000");
    assert_eq!(field(&root, "CapAmb:"), "0000000000000000");
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(field(&root, set), "00000000800404fb", "{set}");
    }
    assert_eq!((field(&root, "NoNewPrivs:"), field(&root, "Seccomp:")), ("1".into(), "2".into()));
    for mask in ["SigBlk:", "SigIgn:"] {
        assert_eq!(field(&root, mask), "0000000000000000", "{mask}");
    }
    let (_, bare, _) = run(status().drop_all_capabilities().add_capability(Capability::NetRaw));
    assert_eq!(field(&bare, "CapEff:"), "0000000000002000");
    if common::tier("root") {
        let (_, web, _) = run(status().user("web"));
        assert_eq!(
            (field(&web, "CapEff:"), field(&web, "CapPrm:"), field(&web, "Uid:")),
            ("0000000000000000".into(), "0000000000000000".into(), "33".into())
        );
    }
    let limited = run(fixture.shell("ulimit -n; umask").resource_limit(ResourceLimit::Nofile, 64, 64).umask(0o077));
    assert_eq!(limited.1, "64\n0077\n");
    drop(fixture);
    leaks.check();
}

#[test]
fn clocks_names_and_process_one() {
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let day = 86_400 * 1_000_000_000_i64;
    let (_, out, _) = run(fixture.shell("cat /proc/uptime").time_offsets(day, 10 * day));
    let seconds: f64 = out.split(' ').next().unwrap().parse().unwrap();
    assert!(seconds > 10.0 * 86_400.0, "{out}");
    let (code, out, _) = run(fixture.shell("echo $$; hostname; exit 4").init(false).hostname("one"));
    assert_eq!((code, out.as_str()), (Some(4), "1\none\n"));
    let (_, out, _) = run(fixture.shell("cat /proc/1/comm"));
    assert_eq!(out, "gpuc-init\n");
    let own = std::process::id();
    let (_, out, _) = run(fixture.shell("echo $$").application_pid(own));
    assert_eq!(out, format!("{own}\n"));
    let (_, host, _) = run(fixture.shell("cat /proc/net/dev | wc -l").network(Network::Host));
    let (_, own, _) = run(fixture.shell("cat /proc/net/dev | wc -l"));
    assert_eq!(own, "3\n");
    assert_eq!(host, format!("{}\n", std::fs::read_to_string("/proc/net/dev").unwrap().lines().count()));
    drop(fixture);
    leaks.check();
}

#[test]
fn a_terminal_is_the_containers_own() {
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let sandbox = fixture
        .shell("readlink /proc/self/fd/0; test -t 0 && test -t 1 && echo yes; read line; echo got $line")
        .terminal(24, 80)
        .spawn()
        .unwrap();
    let mut terminal = std::fs::File::from(sandbox.take_terminal().unwrap());
    terminal.write_all(b"words\n").unwrap();
    let mut text = Vec::new();
    // When the last process of the other side is gone, reading ends with EIO.
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = terminal.read(&mut buffer) {
        text.extend_from_slice(&buffer[..count]);
    }
    let text = String::from_utf8(text).unwrap();
    for words in ["/dev/pts/0", "yes", "got words"] {
        assert!(text.contains(words), "{text}");
    }
    assert!(sandbox.wait().unwrap().success());
    drop((terminal, sandbox, fixture));
    leaks.check();
}

#[test]
fn input_and_timeouts() {
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let sandbox = fixture.shell("cat; echo end").stdin(Stdio::Piped).spawn().unwrap();
    let input = vec![b'x'; 300_000];
    let output = sandbox.communicate(&input, None).unwrap();
    assert_eq!(output.stdout.len(), 300_004);
    drop(sandbox);
    let sandbox = fixture.shell("sleep 1000").spawn().unwrap();
    assert_eq!(sandbox.wait_timeout(Duration::from_millis(20)).unwrap(), None);
    assert_eq!(sandbox.poll().unwrap(), None);
    assert!(std::fs::read_to_string(format!("/proc/{}/cmdline", sandbox.pid())).unwrap().contains("sleep"));
    sandbox.kill(9).unwrap();
    assert_eq!(sandbox.wait().unwrap().signal(), Some(9));
    assert_eq!(sandbox.exec(["true"]).spawn().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(sandbox.kill(0).unwrap_err().kind(), ErrorKind::InvalidArgument);
    sandbox.kill(15).unwrap();
    drop((sandbox, fixture));
    leaks.check();
}

#[test]
fn limits_hold_and_are_reported() {
    if !common::tier("root") {
        return;
    }
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let hog = "dd if=/dev/zero of=/dev/null bs=200M count=1";
    let sandbox = fixture.shell(hog).memory_max(32 << 20).spawn().unwrap();
    let status = sandbox.wait().unwrap();
    assert!(status.oom_killed(), "{status}");
    assert!(!status.success());
    sandbox.close().unwrap();
    let sandbox = fixture.shell("true").memory_max(32 << 20).spawn().unwrap();
    assert!(!sandbox.wait().unwrap().oom_killed());
    sandbox.close().unwrap();

    let bomb = "bomb() { bomb | bomb & }; bomb; sleep 1000";
    let sandbox = fixture.shell(bomb).pids_max(20).spawn().unwrap();
    let mut text = String::new();
    std::fs::File::from(sandbox.take_stderr().unwrap()).take(200).read_to_string(&mut text).unwrap();
    assert!(text.contains("fork"), "{text}");
    assert!(sandbox.stats().unwrap().pids.unwrap().current <= 20);
    sandbox.close().unwrap();

    let sandbox = fixture.shell("echo ready; sleep 1000").spawn().unwrap();
    let mut ready = [0; 5];
    std::fs::File::from(sandbox.take_stdout().unwrap()).read_exact(&mut ready).unwrap();
    sandbox.pause().unwrap();
    sandbox.kill(15).unwrap();
    assert_eq!(sandbox.wait_timeout(Duration::from_millis(100)).unwrap(), None, "a paused application does nothing");
    sandbox.resume().unwrap();
    assert_eq!(sandbox.wait().unwrap().signal(), Some(15));
    sandbox.close().unwrap();
    // Dropping a paused one does not hang.
    let sandbox = fixture.shell("sleep 1000").spawn().unwrap();
    sandbox.pause().unwrap();
    drop(sandbox);
    drop(fixture);
    leaks.check();
}

#[test]
fn ports_of_several_instances() {
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let serve = |word: &str| {
        let script = format!("while true; do echo {word} | busybox nc -l -p 80; done");
        fixture
            .builder()
            .command(["/bin/busybox", "sh", "-c", &script.replace("busybox", "/bin/busybox")])
            .publish(80, 0)
            .spawn()
            .unwrap()
    };
    let sandboxes = [serve("one"), serve("two"), serve("three")];
    for (sandbox, word) in sandboxes.iter().zip(["one", "two", "three"]) {
        let address = sandbox.ports()[0].host();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let text = loop {
            let mut text = String::new();
            let read = std::net::TcpStream::connect(address).and_then(|mut stream| stream.read_to_string(&mut text));
            if read.is_ok() && !text.is_empty() {
                break text;
            }
            assert!(std::time::Instant::now() < deadline, "nobody answers at {address}");
            std::thread::yield_now();
        };
        assert_eq!(text.trim(), word);
    }
    let taken = sandboxes[0].ports()[0].host().port();
    let error = fixture.shell("true").publish(80, taken).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PortInUse);
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
    drop(sandboxes);
    drop(fixture);
    leaks.check();
}

#[test]
fn ports_come_and_go_while_it_runs() {
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let sandbox = fixture.shell("while true; do echo here | /bin/busybox nc -l -p 80; done").spawn().unwrap();
    assert_eq!(sandbox.ports(), []);
    let mappings = [PortMapping::tcp(80, 0), PortMapping::tcp(80, 0)];
    let ports = sandbox.publish(&mappings).unwrap();
    assert_eq!(sandbox.ports(), ports);
    let (first, second) = (ports[0].host(), ports[1].host());
    let answer = |address: std::net::SocketAddr| {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let mut text = String::new();
            let read = std::net::TcpStream::connect(address).and_then(|mut stream| stream.read_to_string(&mut text));
            if read.is_ok() && !text.is_empty() {
                break text;
            }
            assert!(std::time::Instant::now() < deadline, "nobody answers at {address}");
            std::thread::yield_now();
        }
    };
    assert_eq!((answer(first), answer(second)), ("here\n".to_owned(), "here\n".to_owned()));

    // All or none: the second is taken.
    let error = sandbox.publish(&[PortMapping::tcp(81, 0), PortMapping::tcp(80, first.port())]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PortInUse);
    assert_eq!(sandbox.ports(), ports);

    sandbox.unpublish(first).unwrap();
    drop(std::net::TcpListener::bind(first).unwrap());
    assert_eq!(sandbox.ports(), ports[1..]);
    assert_eq!(answer(second), "here\n");
    let error = sandbox.unpublish(first).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains(&first.to_string()), "{error}");

    sandbox.kill(9).unwrap();
    sandbox.wait().unwrap();
    assert!(sandbox.publish(&mappings[..1]).is_err(), "its network is gone");
    sandbox.close().unwrap();
    drop(std::net::TcpListener::bind(second).unwrap());

    let sandbox = fixture.shell("sleep 1000").network(Network::Host).spawn().unwrap();
    assert_eq!(sandbox.publish(&mappings[..1]).unwrap_err().kind(), ErrorKind::InvalidArgument);
    drop((sandbox, fixture));
    leaks.check();
}

#[test]
fn plans_are_readable() {
    let fixture = Fixture::new();
    let plan = fixture.shell("true").name("golden").plan().unwrap();
    let text = plan.explain();
    eprintln!("{text}");
    for words in [
        "sandbox golden: new namespaces:",
        "make the application's process",
        "enter the root",
        "mount /proc",
        "load the system call filter",
        "execute \"sh\"",
    ] {
        assert!(text.contains(words), "{text}");
    }
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["name"], "golden");
}

#[test]
fn subordinate_ids_are_users_of_the_container() {
    if !common::tier("subordinate") {
        return;
    }
    let leaks = common::Leaks::watch();
    let fixture = Fixture::new();
    let script = "id -u; id -G; touch /tmp/x; stat -c %u:%g /tmp/x /etc/passwd; exit 5";
    let builder = fixture.shell(script).user("web").user_namespace(UserNamespace::Subordinate);
    let (code, out, err) = run(builder);
    assert_eq!((code, out.as_str(), err.as_str()), (Some(5), "33\n34 44\n33:34\n0:0\n", ""));
    let error = fixture.shell("true").user_namespace(UserNamespace::Subordinate).writable(Writable::Disk).spawn();
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidArgument);
    drop(fixture);
    leaks.check();
}
