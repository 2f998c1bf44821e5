//! A real system end to end: Debian with Python, pushed into a real registry by another tool, pulled by the library,
//! run as root and as ordinary users.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
#[path = "debian/image.rs"]
mod debian_image;
mod image_support;

use common::{Leaks, Ordinary};
use gpucontainer::cgroup::Limits;
use gpucontainer::image::{Credentials, Image, ImageStore, PullOptions};
use gpucontainer::sandbox::{Output, SandboxBuilder, Stdio, UserNamespace};
use gpucontainer::{ErrorKind, Sandbox};
use image_support::Registry;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// Says how the ordinary user's half finds the image.
const REFERENCE: &str = "GPUC_TEST_DEBIAN";
const NAMESPACE: &str = "GPUC_TEST_DEBIAN_IDS";

/// A registry with the image in it, and the image's name; `None` where the tier is skipped.
fn served(directory: &Path) -> Option<(Registry, String)> {
    if !common::tier("debian") || !common::tier("registry") {
        return None;
    }
    let layout = directory.join("layout");
    if let Err(why) = debian_image::write_layout(&layout) {
        common::skip("debian", &why);
        return None;
    }
    let registry = Registry::start(&directory.join("registry"), "", "");
    registry.push(&format!("oci:{}:v1", layout.display()), "team/debian-python:12", &[]);
    let name = registry.name("team/debian-python:12");
    Some((registry, name))
}

#[test]
fn debian_runs_as_root() {
    let leaks = Leaks::watch();
    let directory = tempfile::tempdir().unwrap();
    let Some((registry, name)) = served(directory.path()) else { return };
    let scene = Scene::pull(&directory.path().join("store"), &name, UserNamespace::Auto);
    // Whatever follows needs no registry.
    drop(registry);
    scene.check_system();
    scene.check_owners();
    scene.check_programs_that_change_user();
    scene.check_new_user();
    scene.check_servers();
    scene.check_memory_limit();
    scene.check_process_limit();
    drop((scene, directory));
    leaks.check();
}

#[test]
fn debian_runs_as_an_ordinary_user() {
    let leaks = Leaks::watch();
    if !common::tools("rootless", &["setpriv", "unshare"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let Some((registry, name)) = served(directory.path()) else { return };
    let run = |user: Ordinary, ids: &str| {
        user.run("step_as_an_ordinary_user", &[(REFERENCE, OsStr::new(&name)), (NAMESPACE, OsStr::new(ids))])
    };
    run(Ordinary::nobody(), "oneself");
    match Ordinary::with_subordinate_ids() {
        _ if common::which("newuidmap").is_none() => common::skip("rootless", "newuidmap is not installed"),
        Some(user) => drop(run(user, "subordinate")),
        None => common::skip("rootless", "no test user with subordinate ids, whom tests/tiers makes"),
    }
    drop((registry, directory));
    leaks.check();
}

/// Runs as an ordinary user, started by `debian_runs_as_an_ordinary_user`; nothing to do by itself.
#[test]
fn step_as_an_ordinary_user() {
    let Ok(name) = std::env::var(REFERENCE) else { return };
    assert!(!common::is_root());
    if !common::tier("rootless") {
        return;
    }
    let leaks = Leaks::watch();
    let directory = tempfile::tempdir().unwrap();
    let subordinate = std::env::var(NAMESPACE).is_ok_and(|ids| ids == "subordinate");
    let ids = if subordinate { UserNamespace::Subordinate } else { UserNamespace::Auto };
    let scene = Scene::pull(&directory.path().join("store"), &name, ids);
    scene.check_system();
    if subordinate {
        scene.check_programs_that_change_user();
        scene.check_new_user();
    } else {
        let error = scene.sandbox(&["id"]).user("www-data").spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UserNotFound, "{error}");
        assert!(error.to_string().contains("33"), "{error}");
    }
    scene.check_servers();
    scene.check_limits_that_nobody_delegated();
    drop((scene, directory));
    leaks.check();
}

/// The image in a store of the user who runs it.
struct Scene {
    store: ImageStore,
    image: Image,
    ids: UserNamespace,
}

impl Scene {
    fn pull(path: &Path, name: &str, ids: UserNamespace) -> Self {
        let store = ImageStore::open(path).unwrap();
        let image = store.pull(name, PullOptions::new().credentials(Credentials::anonymous())).unwrap();
        assert_eq!(image.layers().unwrap().len(), 3);
        Self { store, image, ids }
    }

    fn as_the_image_says(&self) -> SandboxBuilder {
        Sandbox::from_image(&self.image)
            .store(&self.store)
            .user_namespace(self.ids)
            .stdin(Stdio::Null)
            .stdout(Stdio::Piped)
            .stderr(Stdio::Piped)
    }

    fn sandbox(&self, command: &[&str]) -> SandboxBuilder {
        self.as_the_image_says().entrypoint([] as [&str; 0]).command(command.iter().copied())
    }

    /// What the command prints; it must succeed and complain about nothing.
    #[track_caller]
    fn said(&self, command: &[&str]) -> String {
        let output = finish(self.sandbox(command));
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command:?}: {text}");
        assert!(output.status.success(), "{command:?}: {}: {text}", output.status);
        text
    }

    fn check_system(&self) {
        // By the image's own entrypoint, command, working directory and environment.
        assert_eq!(finish(self.as_the_image_says()).stdout, b"of the third layer\n");
        let script = "import hashlib, os, sqlite3; \
            print(sum(range(10**6)), hashlib.sha256(b'gpu').hexdigest()[:8], os.environ['FROM_IMAGE'], os.getcwd(), \
            sqlite3.connect(':memory:').execute('select 6 * 7').fetchone()[0])";
        assert_eq!(self.said(&["python3", "-c", script]), "499999500000 e3c5ba51 yes /srv/web 42\n");
        let version = self.said(&["apt-get", "--version"]);
        assert!(version.starts_with("apt 2.") && version.contains("Supported modules"), "{version}");
        assert_eq!(self.said(&["cat", "/etc/os-release"]), debian_image::RELEASE);

        // The package manager's own list of digests: every file of the base layer, save what the layers above changed.
        let output = finish(self.sandbox(&["dpkg", "--verify"]));
        let mut changed: Vec<_> = std::str::from_utf8(&output.stdout).unwrap().lines().collect();
        changed.sort_unstable();
        assert_eq!(
            changed,
            [
                "??5??????   /usr/lib/os-release",
                "missing   c /etc/issue",
                "missing   c /etc/skel/.bash_logout",
                "missing   c /etc/skel/.bashrc",
                "missing   c /etc/skel/.profile",
            ]
        );
        assert_eq!(
            self.said(&["ls", "-A", "/etc/skel", "/srv"]),
            "/etc/skel:\nwelcome\n\n/srv:\nchanged\nnoted\nweb\n"
        );
        assert_eq!(self.said(&["cat", "/srv/changed/inside"]), "was a link\n");
        let stat = self.said(&["stat", "-c", "%a %h %s", "/usr/local/bin/tool-too", "/usr/local/bin/as-root"]);
        assert_eq!(stat, "755 2 32\n4755 1 16\n");
        assert_eq!(self.said(&["tool-too"]), "tool of 0\n");
        let note = "import os; print(os.getxattr('/srv/noted', 'user.note'), os.listxattr('/srv/noted'))";
        assert_eq!(self.said(&["python3", "-c", note]), "b'kept' ['user.note']\n");

        // Writes go to this sandbox alone: over a file of a layer, and through a rename of a layer's directory.
        let script = "set -e; echo mine > index.html; rm -r /usr/share/doc; mv /etc/skel /etc/other; mkdir /etc/skel; \
            ln tool /usr/local/bin/third 2>/dev/null || ln /usr/local/bin/tool /usr/local/bin/third; \
            cat index.html /etc/other/welcome; ls /etc/skel; /usr/local/bin/third";
        assert_eq!(self.said(&["sh", "-c", script]), "mine\nhello\ntool of 0\n");
        assert_eq!(self.said(&["sh", "-c", "cat index.html; ls /usr/share/doc/apt | head -n 1"]).lines().count(), 2);
    }

    /// Root keeps every owner of the image.
    fn check_owners(&self) {
        let stat = self.said(&["stat", "-c", "%U:%G %a", "/srv/web", "/srv/noted", "/etc/shadow", "/usr/bin/passwd"]);
        assert_eq!(stat, "www-data:www-data 755\nwww-data:www-data 640\nroot:shadow 640\nroot:root 4755\n");
    }

    /// Where there are more users than one.
    fn check_programs_that_change_user(&self) {
        let user = self.sandbox(&["sh", "-c", "id -un; id -gn; as-root; tool; echo x > /etc/issue"]).user("www-data");
        let output = finish(user);
        // A script is never set-user-id; the sandbox allows no new privileges to a program that is.
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "www-data\nwww-data\n33\ntool of 33\n");
        assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied"));
    }

    /// A user who is added to the system and has a home directory.
    fn check_new_user(&self) {
        let script = "set -e; useradd --create-home worker; setpriv --reuid worker --regid worker --init-groups \
            sh -c 'id -un; touch ~worker/file'; stat -c %U /home/worker/file";
        assert_eq!(self.said(&["sh", "-c", script]), "worker\nworker\n");
    }

    /// Three instances side by side, each with a web server on the same port inside.
    fn check_servers(&self) {
        let script = "echo $NAME > index.html; exec python3 -m http.server 8000";
        let start = |name: &&str| {
            let builder = self.sandbox(&["sh", "-c", script]).env("NAME", *name).publish(8000, 0);
            builder.stdout(Stdio::Null).stderr(Stdio::Null).spawn().unwrap()
        };
        let names = ["one", "two", "three"];
        let sandboxes: Vec<Sandbox> = names.iter().map(start).collect();
        let addresses: Vec<SocketAddr> = sandboxes.iter().map(|sandbox| sandbox.ports()[0].host()).collect();
        assert_eq!(addresses.iter().map(SocketAddr::port).collect::<BTreeSet<_>>().len(), names.len(), "{addresses:?}");
        for (name, address) in names.iter().zip(&addresses) {
            let page = get(*address);
            assert!(page.starts_with("HTTP/1.0 200") && page.ends_with(&format!("\r\n{name}\n")), "{page}");
        }
        // A port that one of them has is nobody else's, and that is known before anything starts.
        let taken = addresses[0].port();
        let error = self.sandbox(&["true"]).publish(8000, taken).spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PortInUse, "{error}");
        assert!(error.to_string().contains(&taken.to_string()), "{error}");
        for sandbox in sandboxes {
            assert_eq!(sandbox.poll().unwrap(), None, "it still serves");
            sandbox.kill(15).unwrap();
            assert_eq!(sandbox.wait().unwrap().signal(), Some(15));
            sandbox.close().unwrap();
        }
        assert!(addresses.iter().all(|address| TcpStream::connect(address).is_err()), "the ports are closed");
    }

    fn check_memory_limit(&self) {
        let hog = ["python3", "-c", "kept = []\nwhile True: kept.append(b'x' * (1 << 20))"];
        let sandbox = self.sandbox(&hog).limits(Limits::new().memory_max(64 << 20)).spawn().unwrap();
        let status = sandbox.wait_timeout(LIMIT).unwrap().expect("the hog dies");
        assert!(status.oom_killed(), "{status}");
        assert_eq!(status.signal(), Some(9), "{status}");
        let memory = sandbox.stats().unwrap().memory.unwrap();
        assert!(memory.oom_kills >= 1 && memory.limit == Some(64 << 20), "{memory:?}");
        sandbox.close().unwrap();
        // Less than the limit is no harm, and an exit code of its own is not taken for a kill.
        let builder = self.sandbox(&["python3", "-c", "x = b'x' * (16 << 20); exit(9)"]).memory_max(64 << 20);
        let status = finish(builder).status;
        assert_eq!((status.code(), status.oom_killed()), (Some(9), false));
    }

    fn check_process_limit(&self) {
        let script = "import os, errno, signal\ncount = 0\nwhile True:\n try:\n  if os.fork() == 0: signal.pause()\n except \
            OSError as e:\n  print(count, errno.errorcode[e.errno])\n  break\n count += 1";
        let output = finish(self.sandbox(&["python3", "-c", script]).pids_max(20));
        let text = String::from_utf8(output.stdout).unwrap();
        let (count, error) = text.trim().split_once(' ').unwrap();
        assert_eq!(error, "EAGAIN");
        assert!((15..20).contains(&count.parse::<u32>().unwrap()), "{text}");

        let bomb = self.sandbox(&["bash", "-c", ":() { :|:& }; :; exec sleep 1000"]).pids_max(50);
        let bomb = bomb.stdout(Stdio::Null).stderr(Stdio::Null).spawn().unwrap();
        let end = Instant::now() + LIMIT;
        let pids = loop {
            let pids = bomb.stats().unwrap().pids.unwrap();
            if pids.limit_hits > 0 && pids.current >= 40 {
                break pids;
            }
            assert!(Instant::now() < end, "{pids:?}");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(pids.current <= 50 && pids.limit == Some(50), "{pids:?}");
        let started = Instant::now();
        bomb.close().unwrap();
        assert!(started.elapsed() < Duration::from_secs(10), "it took {:?} to end it", started.elapsed());
    }

    /// A limit that cannot be given is an error that names it, unless the user was given a group to limit.
    fn check_limits_that_nobody_delegated(&self) {
        let version_1 = Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists();
        for (limits, name) in [
            (Limits::new().memory_max(64 << 20), "memory"),
            (Limits::new().pids_max(20), "pids"),
            (Limits::new().cpus(0.5), "cpu"),
        ] {
            match self.sandbox(&["true"]).limits(limits).spawn() {
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::LimitNotApplied | ErrorKind::Unsupported), "{error}");
                    assert!(error.to_string().contains(name), "{error}");
                }
                Ok(sandbox) => {
                    assert!(!version_1, "nobody may limit {name} in version 1 but root");
                    assert!(sandbox.wait().unwrap().success());
                }
            }
        }
    }
}

fn finish(builder: SandboxBuilder) -> Output {
    let sandbox = builder.spawn().unwrap();
    let output = sandbox.communicate(b"", Some(LIMIT)).unwrap();
    sandbox.close().unwrap();
    output
}

/// Fetches `/`, as soon as the server is up.
fn get(address: SocketAddr) -> String {
    let end = Instant::now() + LIMIT;
    loop {
        let mut answer = String::new();
        // Before the server listens the port is there already, and connections to it are reset.
        let result = TcpStream::connect(address).and_then(|mut stream| {
            stream.set_read_timeout(Some(LIMIT))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            stream.read_to_string(&mut answer)
        });
        if result.is_ok() && !answer.is_empty() {
            return answer;
        }
        assert!(Instant::now() < end, "no answer: {result:?} {answer:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
