//! What is wrong with images, hosts and wishes, through the front door: each is an error of its kind that names the
//! thing, nothing is half done, and the store is as good as before.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
#[path = "bad_input/hostile.rs"]
mod hostile;
mod image_support;

use common::{Leaks, Ordinary};
use gpucontainer::cgroup::Limits;
use gpucontainer::image::{ImageStore, ImportOptions};
use gpucontainer::net::PortMapping;
use gpucontainer::sandbox::{Mount, Output, ResourceLimit, SandboxBuilder, Stdio};
use gpucontainer::{Digest, Error, ErrorKind, GpuRequest, Sandbox};
use hostile::{device, directory, file, hard_link, layer, link, member, sparse};
use image_support::Place;
use image_support::front::Front;
use image_support::layout::{Handmade, gzip};
use std::ffi::OsStr;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A layer with which commands can run.
fn busybox() -> (Vec<u8>, String) {
    let program = std::fs::read(common::which("busybox").unwrap()).unwrap();
    let mut members = vec![directory("bin/"), directory("tmp/"), file("bin/busybox", &program)];
    for name in ["sh", "cat", "head", "true", "ls", "od", "stat", "readlink", "sleep"] {
        members.push(link(&format!("bin/{name}"), "busybox"));
    }
    members.push(directory("etc/"));
    members.push(file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n"));
    members.push(file("etc/group", b"root:x:0:\n"));
    layer(&members)
}

/// A store, and images that are written when they are needed.
struct Scene {
    place: Place,
    busybox: (Vec<u8>, String),
    good: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let place = Place::new();
        let busybox = busybox();
        let good = place.path("good");
        let mut image = Handmade::new(std::slice::from_ref(&busybox));
        image.config["config"] = serde_json::json!({"Cmd": ["true"], "Env": ["PATH=/bin"]});
        image.write(&good, "v1");
        std::fs::write(place.path("canary"), "untouched").unwrap();
        Self { place, busybox, good }
    }

    fn store(&self) -> &ImageStore {
        &self.place.store
    }

    /// Imports an image of the layer with the commands and of this one above it.
    fn import(&self, above: (Vec<u8>, String)) -> Result<gpucontainer::Image, Error> {
        let mut image = Handmade::new(&[self.busybox.clone(), above]);
        image.config["config"] = serde_json::json!({"Cmd": ["true"], "Env": ["PATH=/bin"]});
        self.import_handmade(image, options())
    }

    fn import_handmade(&self, image: Handmade, options: ImportOptions<'_>) -> Result<gpucontainer::Image, Error> {
        let layout = tempfile::tempdir_in(self.place.path("")).unwrap();
        image.write(layout.path(), "v1");
        self.store().import(layout.path(), options)
    }

    fn sandbox(&self) -> SandboxBuilder {
        let image = self.store().import(&self.good, options().reference("good:1")).unwrap();
        piped(Sandbox::from_image(&image).store(self.store()))
    }

    /// Nothing unfinished is there, nothing outside of the store was touched, and another image imports and runs.
    #[track_caller]
    fn assert_good(&self, case: &str) {
        self.place.assert_good();
        assert_eq!(count(&self.store().path().join("scratch")), 0, "{case}: scratch");
        assert_eq!(std::fs::read_to_string(self.place.path("canary")).unwrap(), "untouched", "{case}");
        let mut around: Vec<_> =
            std::fs::read_dir(self.place.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
        around.sort();
        assert_eq!(around, ["canary", "good", "store"], "{case}");
        let output = finish(self.sandbox().command(["cat", "/etc/group"]));
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"root:x:0:\n"[..]), "{case}");
        assert_eq!(count(&self.store().path().join("scratch")), 0, "{case}: scratch");
    }

    /// Leaves nothing in the store.
    fn clear(&self) {
        for image in self.store().list().unwrap() {
            self.store().remove(&image.reference().to_string()).unwrap();
        }
        self.store().collect_garbage().unwrap();
        assert_eq!(self.place.layers(), 0);
    }
}

fn options() -> ImportOptions<'static> {
    ImportOptions::new().reference("bad:1")
}

fn piped(builder: SandboxBuilder) -> SandboxBuilder {
    builder.stdin(Stdio::Null).stdout(Stdio::Piped).stderr(Stdio::Piped)
}

fn finish(builder: SandboxBuilder) -> Output {
    let sandbox = builder.spawn().unwrap();
    let output = sandbox.communicate(b"", Some(Duration::from_secs(60))).unwrap();
    sandbox.close().unwrap();
    output
}

fn count(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

#[track_caller]
fn assert_named(case: &str, error: &Error, kind: ErrorKind, name: &str) {
    assert_eq!(error.kind(), kind, "{case}: {error}");
    assert!(error.to_string().contains(name), "{case}: {name:?} is not in: {error}");
}

#[test]
fn references_and_registries() {
    let leaks = Leaks::watch();
    let scene = Scene::new();
    let empty = Front::of_files(Default::default());
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (unknown, nobody) = (empty.name("team/unknown:1"), format!("127.0.0.1:{free}/x:1"));
    let pinned = empty.name(&format!("x@{}", Digest::of(b"x")));
    use ErrorKind::{ImageNotFound, InvalidReference, Network};
    let table = [
        (unknown.as_str(), ImageNotFound),
        (pinned.as_str(), ImageNotFound),
        (nobody.as_str(), Network),
        ("", InvalidReference),
        ("name/UPPER", InvalidReference),
        ("name:", InvalidReference),
        ("name:tag with spaces", InvalidReference),
        ("../../etc/passwd", InvalidReference),
        ("name@sha256:1234", InvalidReference),
        ("name@md5:d41d8cd98f00b204e9800998ecf8427e", InvalidReference),
        ("host:99999999/name", InvalidReference),
    ];
    for (reference, kind) in table {
        let error = Sandbox::builder(reference).store(scene.store()).command(["true"]).spawn().unwrap_err();
        assert_named(reference, &error, kind, reference);
        scene.assert_good(reference);
    }
    let error = scene.store().import(scene.place.path("nothing"), options()).unwrap_err();
    assert_named("nothing to import", &error, ErrorKind::NotFound, "nothing");
    let error = scene.store().import(scene.place.path("canary"), options()).unwrap_err();
    assert_named("no image at all", &error, ErrorKind::InvalidImage, "canary");
    scene.assert_good("imports");
    drop((empty, scene));
    leaks.check();
}

#[test]
fn layers_that_are_damaged_or_hostile() {
    use ErrorKind::InvalidLayer;
    let leaks = Leaks::watch();
    let scene = Scene::new();
    let outside = scene.place.path("escaped");
    let above = scene.place.path("");
    let above = above.to_str().unwrap().trim_end_matches('/');
    let long = "n".repeat(90);
    let deep: Vec<Vec<u8>> = (1..=300).map(|depth| pax_directory(&"d/".repeat(depth))).collect();
    let tar = [file("a", b"content"), file("b", &[7; 4096])].concat();
    let truncated = (gzip(&tar[..2000]), Digest::of(&tar[..2000]).to_string());
    let whole = layer(&[file("a", &image_support::noise(50_000, 3))]);
    let half = (whole.0[..whole.0.len() / 2].to_vec(), whole.1.clone());
    type Layer = (Vec<u8>, String);
    let table: Vec<(&str, Layer, &str)> = vec![
        ("out", layer(&[file("../../../escaped", b"x")]), "escaped"),
        ("out in the middle", layer(&[directory("a/"), file("a/../../../../escaped", b"x")]), "escaped"),
        ("hard link out", layer(&[hard_link("stolen", "../../../canary")]), "stolen"),
        ("hard link out by root", layer(&[hard_link("stolen", &format!("{above}/canary"))]), "stolen"),
        ("through an absolute link", layer(&[link("out", above), file("out/escaped", b"x")]), "out/escaped"),
        (
            "through a relative link",
            layer(&[link("out", "../../../.."), file("out/escaped/x", b"x"), hard_link("y", "out/canary")]),
            "\"y\"",
        ),
        ("links in circles", layer(&[link("a", "b"), link("b", "a"), file("a/x", b"x")]), "a/x"),
        ("through links to links", layer(&[link("a", "b"), link("b", above), file("a/escaped", b"x")]), "a/escaped"),
        ("hard link to a link's target", layer(&[link("a", above), hard_link("b", "a/canary")]), "\"b\""),
        ("below a file", layer(&[file("f", b"x"), file("f/x", b"x")]), "f/x"),
        ("below a link to a file", layer(&[file("etc", b"x"), link("etc2", "etc"), file("etc2/x", b"")]), "etc2/x"),
        ("no name", layer(&[file("", b"x")]), "name"),
        ("whiteout of the parent", layer(&[file("a/.wh...", b"")]), ".wh..."),
        ("too deep", layer(&deep), "256"),
        ("unknown type", layer(&[member(b'Z', b"odd", b"", b"")]), "odd"),
        ("truncated archive", truncated, "b"),
        ("truncated gzip", half, ""),
        ("pieces beyond the end", layer(&[sparse("holes", 4096, 1 << 35, b"data")]), "holes"),
        ("more gzip than allowed", (hostile::endless(), Digest::of(b"?").to_string()), "endless"),
        ("name longer than names are", layer(&[pax_directory(&long.repeat(4))]), "nnnn"),
    ];
    for (case, layer, name) in table {
        let mut image = Handmade::new(&[scene.busybox.clone(), layer.clone()]);
        image.config["config"] = serde_json::json!({"Cmd": ["true"]});
        let error = scene.import_handmade(image, options().max_layer_bytes(16 << 20)).unwrap_err();
        assert_named(case, &error, InvalidLayer, name);
        // The layer is told by its digest, and the image by where it was.
        let digest = Digest::of(&layer.0).to_string();
        assert!(error.to_string().contains(&digest) && error.to_string().contains(above), "{case}: {error}");
        assert!(scene.store().get("bad:1").unwrap().is_none(), "{case}");
        assert!(!outside.exists(), "{case}");
        scene.assert_good(case);
    }

    // What is promised and what is there differ.
    let (bytes, diff_id) = layer(&[file("a", b"content")]);
    let other = Digest::of(b"other").to_string();
    let wrong_id = Handmade::new(&[(bytes.clone(), other.clone())]);
    let mut swapped = Handmade::new(&[(bytes.clone(), diff_id.clone())]);
    swapped.blobs.insert(Digest::of(&bytes).to_string(), gzip(b"something else"));
    let mut short = Handmade::new(&[(bytes.clone(), diff_id.clone())]);
    short.blobs.insert(Digest::of(&bytes).to_string(), bytes[..bytes.len() - 1].to_vec());
    let blob = Digest::of(&bytes).to_string();
    for (case, image, name) in [("diff id", wrong_id, &other), ("other bytes", swapped, &blob), ("short", short, &blob)]
    {
        let error = scene.import_handmade(image, options()).unwrap_err();
        assert_named(case, &error, ErrorKind::DigestMismatch, name);
        assert!(scene.store().get("bad:1").unwrap().is_none(), "{case}");
        scene.assert_good(case);
    }
    scene.clear();
    drop(scene);
    leaks.check();
}

/// A directory whose name is longer than a header has room for.
fn pax_directory(path: &str) -> Vec<u8> {
    let mut length = path.len() + 8;
    // The length counts its own digits.
    while length != format!("{length} path={path}\n").len() {
        length = format!("{length} path={path}\n").len();
    }
    [member(b'x', b"pax", b"", format!("{length} path={path}\n").as_bytes()), directory("short/")].concat()
}

#[test]
fn layers_that_are_odd_but_right() {
    let leaks = Leaks::watch();
    let scene = Scene::new();
    let host = scene.place.path("");
    let host = host.to_str().unwrap();
    let ten_gigabytes = 10_000_000_000;
    type Members = Vec<Vec<u8>>;
    let table: Vec<(&str, Members, &str, &[u8])> = vec![
        ("absolute names are inside", vec![file("/etc/absolute", b"in")], "cat /etc/absolute", b"in"),
        (
            "absolute links are inside",
            vec![link("etc/link", "/etc/group"), link("up", "../../../etc/group")],
            "cat /etc/link /up",
            b"root:x:0:\nroot:x:0:\n",
        ),
        ("links out lead nowhere", vec![link("out", host)], "cat /out/canary || ls /out || echo no", b"no\n"),
        (
            "the last of two counts",
            vec![file("twice", b"first, longer"), file("twice", b"last"), directory("twice2/"), file("twice2", b"!")],
            "cat /twice /twice2",
            b"last!",
        ),
        (
            "names of any bytes",
            vec![member(b'0', b"tmp/\xff\xfe \xc3(\n\t", b"", b"odd")],
            "cd /tmp; for f in *; do cat \"$f\"; echo -n \"$f\" | od -An -tx1; done",
            b"odd ff fe 20 c3 28 0a 09\n",
        ),
        (
            "ten gigabytes of nothing",
            vec![sparse("holes", ten_gigabytes, ten_gigabytes - 4, b"data")],
            "stat -c %s /holes",
            b"10000000000\n",
        ),
        (
            "a link where the sandbox writes",
            vec![link("etc/hosts", &format!("{host}/canary")), link("etc/hostname", "/etc/passwd")],
            "head -n 1 /etc/hosts; cat /etc/hostname /etc/passwd",
            b"127.0.0.1\tlocalhost\ngpucontainer\nroot:x:0:0:root:/:/bin/sh\n",
        ),
    ];
    for (case, members, script, expected) in table {
        let image = scene.import(layer(&members)).unwrap();
        let holes = image.layers().unwrap()[1].path().join("holes");
        if let Ok(metadata) = std::fs::metadata(&holes) {
            assert!(metadata.size() == ten_gigabytes && metadata.blocks() < 1000, "{case}: {metadata:?}");
        }
        let output = finish(piped(Sandbox::from_image(&image).store(scene.store()).command(["sh", "-c", script])));
        let shown = [output.stdout.as_slice(), &output.stderr].concat();
        assert_eq!(output.stdout, expected, "{case}: {}", String::from_utf8_lossy(&shown));
        drop(image);
        scene.assert_good(case);
    }
    // Who is in the image's files does not come from the host's, wherever the image's link.
    let image = scene.import(layer(&[link("etc/passwd", "/../../../../../../etc/passwd")])).unwrap();
    let error = Sandbox::from_image(&image).store(scene.store()).user("daemon").spawn().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UserNotFound | ErrorKind::InvalidImage), "{error}");
    drop(image);
    scene.assert_good("users by links");

    // No sandbox can do without these directories, and none puts them where a link leads.
    for name in ["dev", "proc", "sys"] {
        let image = scene.import(layer(&[link(name, host)])).unwrap();
        let error = Sandbox::from_image(&image).store(scene.store()).spawn().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidImage | ErrorKind::SystemCall), "{error:?}");
        assert!(error.to_string().contains(&format!("/{name}")), "{error}");
        drop(image);
        scene.assert_good(name);
    }

    let devices = layer(&[device("dev/null"), device("srv/node")]);
    let result = scene.import(devices);
    if common::is_root() {
        assert!(std::fs::symlink_metadata(result.unwrap().layers().unwrap()[1].path().join("srv/node")).is_ok());
    } else {
        assert_named("device", &result.unwrap_err(), ErrorKind::InvalidLayer, "srv/node");
        // A sandbox has a /dev of its own, so what an image has there is no loss.
        scene.import(layer(&[device("dev/null")])).unwrap();
    }
    scene.assert_good("devices");
    scene.clear();
    drop(scene);
    leaks.check();
}

#[test]
fn wishes_that_cannot_be_met() {
    use ErrorKind::{
        CommandNotFound, GpuUnavailable, InvalidArgument, NotFound, PermissionDenied, PortInUse, UserNotFound,
        WorkingDirectoryNotFound,
    };
    let leaks = Leaks::watch();
    let scene = Scene::new();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port();
    let port_text = port.to_string();
    type Change = Box<dyn Fn(SandboxBuilder) -> SandboxBuilder>;
    fn with(change: impl Fn(SandboxBuilder) -> SandboxBuilder + 'static) -> Change {
        Box::new(change)
    }
    let limits = |limits: Limits| with(move |b| b.limits(limits.clone()));
    let table: Vec<(&str, Change, ErrorKind, &str)> = vec![
        ("no such command", with(|b| b.command(["no-such-command"])), CommandNotFound, "no-such-command"),
        ("no such path", with(|b| b.command(["/bin/no-such"])), CommandNotFound, "/bin/no-such"),
        ("a directory as command", with(|b| b.command(["/etc"])), CommandNotFound, "/etc"),
        ("a text as command", with(|b| b.command(["/etc/passwd"])), CommandNotFound, "/etc/passwd"),
        ("an empty command", with(|b| b.command([""])), CommandNotFound, "command"),
        ("no such user", with(|b| b.user("nobody-here")), UserNotFound, "nobody-here"),
        ("no such group", with(|b| b.user("root:no-group")), UserNotFound, "no-group"),
        ("a user beyond numbers", with(|b| b.user("99999999999")), UserNotFound, "99999999999"),
        ("no such directory", with(|b| b.working_dir("/no/where")), WorkingDirectoryNotFound, "/no/where"),
        ("a file as directory", with(|b| b.working_dir("/etc/passwd")), WorkingDirectoryNotFound, "/etc/passwd"),
        ("a relative directory", with(|b| b.working_dir("etc")), InvalidArgument, "etc"),
        ("memory of nothing", with(|b| b.memory_max(0)), InvalidArgument, "memory_max = 0"),
        ("less than a processor", with(|b| b.cpus(0.0)), InvalidArgument, "cpus = 0"),
        ("no number of processors", with(|b| b.cpus(f64::NAN)), InvalidArgument, "cpus = NaN"),
        ("no processes", with(|b| b.pids_max(0)), InvalidArgument, "pids_max = 0"),
        ("no list", limits(Limits::new().cpuset_cpus("0-")), InvalidArgument, "0-"),
        ("port in use", with(move |b| b.publish(80, port)), PortInUse, &port_text),
        ("two on one port", with(|b| b.publish(80, 1234).publish(81, 1234)), InvalidArgument, "1234"),
        ("port 0 inside", with(|b| b.publish_port(PortMapping::tcp(0, 0))), InvalidArgument, "0"),
        ("a name of many words", with(|b| b.name("a b")), InvalidArgument, "a b"),
        ("a name with a way out", with(|b| b.name("../x")), InvalidArgument, "../x"),
        ("a variable without a name", with(|b| b.env("=x", "y")), InvalidArgument, "=x"),
        ("a host name of two", with(|b| b.hostname("a b")), InvalidArgument, "a b"),
        ("no source", with(|b| b.mount(Mount::bind("/no/such/source", "/x"))), NotFound, "/no/such/source"),
        ("no absolute source", with(|b| b.mount(Mount::bind("source", "/x"))), InvalidArgument, "source"),
        ("a target with a way out", with(|b| b.mount(Mount::tmpfs("/x/../../y"))), InvalidArgument, "/x/../../y"),
        ("the root as target", with(|b| b.mount(Mount::tmpfs("/"))), InvalidArgument, "\"/\""),
        (
            "the host's parameter",
            with(|b| b.sysctl("kernel.core_pattern", "x")),
            InvalidArgument,
            "kernel.core_pattern",
        ),
        ("no such parameter", with(|b| b.sysctl("net.ipv4.no_such", "1")), NotFound, "no_such"),
        ("more than all GPUs", with(|b| b.gpus(GpuRequest::count(1000))), GpuUnavailable, ""),
        ("soft above hard", with(|b| b.resource_limit(ResourceLimit::Nofile, 9, 8)), InvalidArgument, "9"),
        ("process 1 for an application", with(|b| b.application_pid(1)), InvalidArgument, "2 to"),
        ("a process id beyond all", with(|b| b.application_pid(1 << 22)), InvalidArgument, "4194304"),
        ("another process 1", with(|b| b.application_pid(7).init(false)), InvalidArgument, "without init"),
        ("a score beyond scores", with(|b| b.oom_score(1001)), InvalidArgument, "1000"),
    ];
    let again = scene.sandbox();
    for (case, change, kind, name) in table {
        let error = change(again.clone()).spawn().unwrap_err();
        assert_named(case, &error, kind, name);
        assert_eq!(count(&scene.store().path().join("scratch")), 0, "{case}: scratch");
    }
    // What only root can try is refused to others before that.
    let impossible = Limits::new().cpuset_cpus("4095");
    let error = again.clone().limits(impossible).spawn().unwrap_err();
    if common::is_root() {
        assert_named("no such processor", &error, ErrorKind::LimitNotApplied, "4095");
    } else {
        assert!(matches!(error.kind(), ErrorKind::LimitNotApplied | ErrorKind::Unsupported), "{error}");
        assert!(error.to_string().contains("cpuset"), "{error}");
        let error = again.clone().user_namespace(gpucontainer::sandbox::UserNamespace::Host).spawn().unwrap_err();
        assert_named("no privilege", &error, PermissionDenied, "CAP_SYS_ADMIN");
    }
    // A name that another sandbox has.
    let first = again.clone().name("gpuc-bad-input").command(["sleep", "1000"]).spawn().unwrap();
    let error = again.clone().name("gpuc-bad-input").spawn().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::Busy), "{error}");
    assert!(error.to_string().contains("gpuc-bad-input"), "{error}");
    first.close().unwrap();
    drop(again);
    scene.assert_good("wishes");
    drop((scene, busy));
    leaks.check();
}

#[test]
fn no_permission() {
    let leaks = Leaks::watch();
    if !common::is_root() {
        store_without_permission();
    } else if common::tools("rootless", &["setpriv"]) {
        Ordinary::nobody().run("step_no_permission", &[("GPUC_TEST_STEP", OsStr::new("1"))]);
    }
    leaks.check();
}

/// Runs as an ordinary user, started by `no_permission`; nothing to do by itself.
#[test]
fn step_no_permission() {
    if std::env::var_os("GPUC_TEST_STEP").is_some() {
        assert!(!common::is_root());
        store_without_permission();
    }
}

fn store_without_permission() {
    let scene = Scene::new();
    let locked = scene.place.path("locked");
    std::fs::create_dir(&locked).unwrap();
    let set = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    set(&locked, 0o555);
    let error = ImageStore::open(locked.join("store")).unwrap_err();
    assert_named("a store", &error, ErrorKind::PermissionDenied, "locked/store");
    assert_eq!(count(&locked), 0);
    std::fs::remove_dir(&locked).unwrap();

    // A directory of root's.
    let error = ImageStore::open("/usr/gpuc-store").unwrap_err();
    assert_named("a store of root's", &error, ErrorKind::PermissionDenied, "/usr/gpuc-store");

    // A store that became read-only: what is in it is still there afterwards.
    scene.assert_good("before");
    for part in ["staging", "scratch"] {
        let path = scene.store().path().join(part);
        set(&path, 0o555);
        let error = match part {
            "staging" => scene.import(layer(&[file("more", b"x")])).unwrap_err(),
            _ => piped(Sandbox::builder("good:1").store(scene.store())).spawn().unwrap_err(),
        };
        set(&path, 0o755);
        assert_named(part, &error, ErrorKind::PermissionDenied, part);
        scene.assert_good(part);
    }
    // What the user may not read is not mounted.
    let error = scene.sandbox().mount(Mount::bind("/root/.no-entry", "/x")).spawn().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::NotFound), "{error}");
    assert!(error.to_string().contains("/root/.no-entry"), "{error}");
    scene.assert_good("mount");
}

/// A small file system, away again when dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn new(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let words = ["-t", "tmpfs", "-o", &format!("size={size},mode=755"), "small"];
        assert!(Command::new("mount").args(words).arg(directory.path()).status().unwrap().success());
        Self(directory)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn no_space() {
    if !common::tier("root") {
        return;
    }
    let leaks = Leaks::watch();
    let small = Small::new("8m");
    let scene = Scene::new();
    let store = ImageStore::open(small.0.path().join("store")).unwrap();
    let good = || store.import(&scene.good, options().reference("good:1"));
    let runs = || {
        let output = finish(piped(Sandbox::builder("good:1").store(&store).command(["cat", "/etc/group"])));
        assert_eq!(output.stdout, b"root:x:0:\n");
    };
    let staging = store.path().join("staging");

    let noise = image_support::noise(16 << 20, 5);
    let big = scene.place.path("big");
    Handmade::new(&[scene.busybox.clone(), layer(&[file("noise", &noise)])]).write(&big, "v1");
    let error = store.import(&big, options()).unwrap_err();
    assert_named("import", &error, ErrorKind::NoSpace, "big");
    assert!(store.list().unwrap().is_empty());
    assert_eq!(count(&staging), 0);
    store.collect_garbage().unwrap();
    good().unwrap();
    runs();

    // Full to the last byte: nothing can start or come in, and what is there stays.
    let filler = small.0.path().join("filler");
    let mut fill = std::fs::File::create(&filler).unwrap();
    let full = std::iter::repeat_with(|| fill.write_all(&[0; 4096])).find_map(Result::err).unwrap();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    drop(fill);
    let one = scene.place.path("one");
    Handmade::new(&[layer(&[file("one", b"more")])]).write(&one, "v1");
    let error = store.import(&one, options()).unwrap_err();
    assert_named("import when full", &error, ErrorKind::NoSpace, "one");
    assert_eq!((count(&staging), store.list().unwrap().len()), (0, 1));
    let error = piped(Sandbox::builder("good:1").store(&store)).spawn().unwrap_err();
    assert_named("start when full", &error, ErrorKind::NoSpace, "scratch");
    assert_eq!(count(&store.path().join("scratch")), 0);
    std::fs::remove_file(&filler).unwrap();
    store.import(&one, options()).unwrap();
    runs();
    assert_eq!(ImageStore::open(store.path()).unwrap().list().unwrap().len(), 2);
    drop((store, small, scene));
    leaks.check();
}
