//! Trees unpacked from archives, mounted for real: as root, and in a user namespace of an ordinary user.

use super::*;
use crate::common;
use crate::error::ErrorKind;
use crate::layer::tests::Tar;
use crate::layer::{UnpackOptions, unpack};
use crate::sys::fs::overlay::{OverlayFeatures, overlay_features};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::Duration;

const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Unpacks archives into `base/0`, `base/1`…, the bottom one first.
fn layers(base: &Path, archives: &[Vec<u8>]) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    for (index, archive) in archives.iter().enumerate() {
        let directory = base.join(index.to_string());
        fs::create_dir(&directory).unwrap();
        unpack(&mut &archive[..], &directory, &UnpackOptions::for_this_user()).unwrap();
        directories.push(directory);
    }
    directories
}

fn base_and_change() -> Vec<Vec<u8>> {
    let base = Tar::default()
        .directory("./", 0o755)
        .directory("etc", 0o755)
        .file("etc/passwd", b"old")
        .file("etc/gone", b"gone")
        .file("etc/kept", b"kept")
        .directory("opt", 0o755)
        .file("opt/hidden/a", b"a")
        .file("opt/hidden/b", b"b")
        .file("opt/replaced/c", b"c")
        .file("one", b"linked")
        .hard_link("two", "one")
        .hard_link("etc/three", "two")
        .raw(b'0', b"su", b"", b"#!", |h| h.set_mode(0o4755))
        .pax(&[(b"SCHILY.xattr.security.capability", &CAPABILITY), (b"SCHILY.xattr.user.note", b"kept")])
        .file("ping", b"#!")
        .directory("tmp", 0o1777)
        .end();
    let change = Tar::default()
        .raw(b'5', b"./", b"", b"", |h| {
            h.set_mode(0o751);
            h.set_mtime(1_500_000_000);
        })
        .file("etc/passwd", b"new")
        .file("etc/.wh.gone", b"")
        .file("opt/hidden/.wh..wh..opq", b"")
        .file("opt/hidden/d", b"d")
        .file("opt/.wh.replaced", b"")
        .directory("opt/replaced", 0o700)
        .file(".wh.never-was", b"")
        .end();
    vec![base, change]
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let file = fs::File::open(path).unwrap();
    crate::sys::fs::tree::attribute(std::os::fd::AsFd::as_fd(&file), std::ffi::OsStr::new(name)).unwrap()
}

/// What both layers together must look like, wherever they are mounted.
fn check_tree(root: &Path, owners: bool) {
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    assert_eq!((read("etc/passwd"), read("etc/kept")), ("new".to_owned(), "kept".to_owned()));
    assert_eq!(names(&root.join("etc")), ["kept", "passwd", "three"]);
    assert_eq!(names(&root.join("opt/hidden")), ["d"]);
    assert_eq!(names(&root.join("opt/replaced")), [] as [&str; 0]);
    assert_eq!(names(root), ["etc", "one", "opt", "ping", "su", "tmp", "two"]);
    let at = |name: &str| fs::metadata(root.join(name)).unwrap();
    assert_eq!((at("").mode() & 0o7777, at("").mtime()), (0o751, 1_500_000_000));
    assert_eq!((at("su").mode() & 0o7777, at("tmp").mode() & 0o7777), (0o4755, 0o1777));
    assert_eq!((at("one").nlink(), at("one").ino()), (3, at("etc/three").ino()));
    assert_eq!(attribute(&root.join("ping"), "user.note").as_deref(), Some(&b"kept"[..]));
    if owners {
        assert_eq!(attribute(&root.join("ping"), "security.capability").as_deref(), Some(&CAPABILITY[..]));
    }
}

/// Writes of every kind that needs overlayfs to work: copy up, whiteout, opaque directory, link.
fn check_writes(root: &Path) {
    fs::write(root.join("etc/passwd"), "mine").unwrap();
    fs::remove_file(root.join("etc/kept")).unwrap();
    fs::remove_dir_all(root.join("opt")).unwrap();
    fs::create_dir(root.join("opt")).unwrap();
    fs::hard_link(root.join("one"), root.join("four")).unwrap();
    fs::rename(root.join("su"), root.join("sudo")).unwrap();
    assert_eq!(names(&root.join("opt")), [] as [&str; 0]);
    assert_eq!(names(&root.join("etc")), ["passwd", "three"]);
    assert_eq!(fs::read(root.join("four")).unwrap(), b"linked");
    assert_eq!(fs::metadata(root.join("sudo")).unwrap().mode() & 0o7777, 0o4755);
}

/// Mounts `layers` in each way and checks what is there, what can be written, and that nothing is left.
fn check_mounts(layers: &[PathBuf], base: &Path, owners: bool, features: OverlayFeatures) {
    let target = base.join("target");
    fs::create_dir_all(&target).unwrap();
    let scratch = base.join("scratch");
    let rootfs = Rootfs::new(layers).scratch_in(&scratch);
    let mounts = || {
        fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .lines()
            .filter(|l| l.contains(base.to_str().unwrap()))
            .count()
    };

    for _again in 0..2 {
        let mounted = mounted::mount(&rootfs, &target, features).unwrap();
        check_tree(mounted.path(), owners);
        check_writes(mounted.path());
        assert_eq!(mounts(), 1);
        assert_eq!(names(&scratch).len(), 2);
        mounted.unmount().unwrap();
        assert_eq!((mounts(), names(&scratch).len()), (0, 0));
    }

    if owners || features.tmpfs_user_attributes {
        let memory = rootfs.clone().writable(Writable::Memory).memory_max(4 << 20);
        let mounted = mounted::mount(&memory, &target, features).unwrap();
        assert_eq!(mounts(), 1, "the memory itself is not seen");
        let root = fs::metadata(mounted.path()).unwrap();
        assert_eq!(root.mode() & 0o7777, 0o751);
        check_writes(mounted.path());
        let error = fs::write(target.join("large"), vec![1; 6 << 20]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        mounted.unmount().unwrap();
        assert_eq!(mounts(), 0);
    }

    let mounted = mounted::mount(&rootfs.clone().writable(Writable::ReadOnly), &target, features).unwrap();
    check_tree(mounted.path(), owners);
    let error = fs::write(target.join("etc/passwd"), "mine").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    mounted.unmount().unwrap();

    let mounted = mounted::mount(&Rootfs::new(&layers[..1]).writable(Writable::ReadOnly), &target, features).unwrap();
    assert_eq!(fs::read(target.join("etc/gone")).unwrap(), b"gone");
    let error = fs::write(target.join("etc/gone"), "mine").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    drop(mounted);
    assert_eq!(mounts(), 0);
}

#[test]
fn layers_mount_as_root() {
    if !common::tier("root") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let layers = layers(directory.path(), &base_and_change());
    let features = overlay_features();
    check_mounts(&layers, directory.path(), true, features);
    check_mounts(&layers, directory.path(), true, OverlayFeatures { lowerdir_add: false, ..features });
}

/// Runs as an ordinary user, started by `layers_mount_rootless`; nothing to do by itself.
#[test]
fn step_unpack() {
    if let Some(base) = std::env::var_os("GPUC_STEP_UNPACK") {
        layers(Path::new(&base), &base_and_change());
    }
}

/// Runs in a user and mount namespace, started by `layers_mount_rootless`; nothing to do by itself.
#[test]
fn step_mount() {
    let Some(base) = std::env::var_os("GPUC_STEP_MOUNT") else { return };
    let base = Path::new(&base);
    assert!(!UnpackOptions::for_this_user().keeps_owners());
    let features = overlay_features();
    let layers = [base.join("0"), base.join("1")];
    check_mounts(&layers, base, false, features);
    check_mounts(&layers, base, false, OverlayFeatures { lowerdir_add: false, ..features });
}

#[test]
fn layers_mount_rootless() {
    if !common::tools("rootless", &["setpriv", "unshare"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join("base");
    fs::create_dir(&base).unwrap();
    // The test program may lie where other users cannot go.
    let program = directory.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let ordinary: &[&str] = if common::is_root() {
        std::os::unix::fs::chown(&base, Some(65534), Some(65534)).unwrap();
        &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    } else {
        &["env"]
    };
    let namespaces = ["unshare", "--user", "--map-root-user", "--mount"];
    let run = |prefix: &[&str], variable: &str, test: &str| {
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]);
        let name = format!("rootfs::tests::{test}");
        let output =
            command.arg(&program).args([&name, "--exact", "--nocapture"]).env(variable, &base).output().unwrap();
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        assert!(output.status.success(), "{test}: {}", String::from_utf8_lossy(&text));
        assert!(String::from_utf8_lossy(&text).contains("1 passed"), "{test} did not run");
    };
    let can = Command::new(if ordinary.len() > 1 { "setpriv" } else { "env" })
        .args(&ordinary[1..])
        .args(namespaces)
        .arg("true")
        .status();
    if !can.is_ok_and(|status| status.success()) {
        return common::skip("rootless", "an ordinary user may not make a user namespace");
    }
    run(ordinary, "GPUC_STEP_UNPACK", "step_unpack");
    if common::is_root() {
        assert_eq!(fs::metadata(base.join("0/su")).unwrap().uid(), 65534, "everything is the user's");
    }
    run(&[ordinary, &namespaces].concat(), "GPUC_STEP_MOUNT", "step_mount");
    crate::sys::fs::remove_tree(&base).unwrap();
}

/// `count` layers by hand: each has a file of its own and all have one in common.
fn many(base: &Path, count: usize) -> Vec<PathBuf> {
    let layer = |index: usize| {
        let path = base.join(format!("{index:03}"));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join(format!("own-{index}")), "").unwrap();
        fs::write(path.join("common"), index.to_string()).unwrap();
        path
    };
    (0..count).map(layer).collect()
}

#[test]
fn hundreds_of_layers_mount() {
    if !common::tier("root") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join("a-name-that-makes-paths-as-long-as-those-of-a-real-store-are-0123456789abcdef");
    let layers = many(&base, 501);
    let target = directory.path().join("target");
    fs::create_dir(&target).unwrap();
    let features = overlay_features();
    let one_page = OverlayFeatures { lowerdir_add: false, ..features };
    let rootfs = |count: usize| Rootfs::new(&layers[..count]).writable(Writable::ReadOnly);
    let mut possible = vec![(120, one_page), (150, one_page)];
    if features.lowerdir_add {
        possible.extend([(120, features), (400, features), (500, features)]);
    }
    for (count, features) in possible {
        let mounted = mounted::mount(&rootfs(count), &target, features).unwrap();
        assert_eq!(names(&target).len(), count + 1);
        assert_eq!(fs::read_to_string(target.join("common")).unwrap(), (count - 1).to_string());
        mounted.unmount().unwrap();
    }
    for (count, features) in [(501, features), (400, one_page)] {
        let error = mounted::mount(&rootfs(count), &target, features).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(&count.to_string()), "{error}");
    }
    assert_eq!(names(&target).len(), 0);
}

#[test]
fn paths_that_are_long_or_odd() {
    if !common::tier("root") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let features = overlay_features();
    for name in ["comma,colon:", "back\\slash", "white space\n", "caf\u{e9}", &"long/".repeat(80)] {
        let base = directory.path().join(name);
        let layers = many(&base, 3);
        let target = base.join("target");
        fs::create_dir(&target).unwrap();
        for features in [features, OverlayFeatures { lowerdir_add: false, ..features }] {
            for writable in [Writable::Disk, Writable::Memory, Writable::ReadOnly] {
                let rootfs = Rootfs::new(&layers).writable(writable).scratch_in(base.join("scratch"));
                let mounted = mounted::mount(&rootfs, &target, features)
                    .unwrap_or_else(|e| panic!("{name:?} {writable:?} {}: {e}", features.lowerdir_add));
                assert_eq!(fs::read_to_string(target.join("common")).unwrap(), "2");
                mounted.unmount().unwrap();
            }
        }
    }
}

#[test]
fn the_same_layer_twice_and_an_opaque_root() {
    if !common::tier("root") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let bottom = Tar::default().file("a", b"bottom").file("b", b"bottom").end();
    let middle = Tar::default().file(".wh.a", b"").file("b", b"middle").end();
    let fresh = Tar::default().file(".wh..wh..opq", b"").file("c", b"fresh").end();
    let layers = layers(directory.path(), &[bottom, middle, fresh]);
    let target = directory.path().join("target");
    fs::create_dir(&target).unwrap();
    let show = |order: &[usize]| {
        let rootfs = Rootfs::new(order.iter().map(|index| &layers[*index])).writable(Writable::ReadOnly);
        let mounted = rootfs.mount(&target).unwrap();
        let shown: Vec<_> =
            names(&target).iter().map(|n| format!("{n}={}", fs::read_to_string(target.join(n)).unwrap())).collect();
        mounted.unmount().unwrap();
        shown
    };
    assert_eq!(show(&[0, 1]), ["b=middle"]);
    assert_eq!(show(&[0, 1, 0]), ["a=bottom", "b=bottom"]);
    assert_eq!(show(&[1, 0, 1, 1]), ["b=middle"]);
    assert_eq!(show(&[0, 1, 2]), ["c=fresh"]);
    assert_eq!(show(&[0, 2, 0]), ["a=bottom", "b=bottom", "c=fresh"]);
}

#[test]
fn a_directory_of_the_host_in_every_way() {
    if !common::tier("root") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (host, target) = (directory.path().join("host"), directory.path().join("target"));
    for path in [&host, &target] {
        fs::create_dir(path).unwrap();
    }
    fs::write(host.join("file"), "host").unwrap();
    let rootfs = Rootfs::directory(&host).scratch_in(directory.path().join("scratch"));
    let write = |writable: Option<Writable>| {
        let rootfs = writable.map_or_else(|| rootfs.clone(), |writable| rootfs.clone().writable(writable));
        let mounted = rootfs.mount(&target).unwrap();
        let result = fs::write(target.join("file"), "inside");
        mounted.unmount().unwrap();
        (result.is_ok(), fs::read_to_string(host.join("file")).unwrap())
    };
    assert_eq!(write(Some(Writable::ReadOnly)), (false, "host".to_owned()));
    assert_eq!(write(Some(Writable::Disk)), (true, "host".to_owned()));
    assert_eq!(write(Some(Writable::Memory)), (true, "host".to_owned()));
    assert_eq!(write(None), (true, "inside".to_owned()));
}

#[test]
fn what_is_kept_alive_goes_with_the_mount() {
    if !common::tier("root") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let layers = many(directory.path(), 2);
    let target = directory.path().join("target");
    fs::create_dir(&target).unwrap();
    let lease = Arc::new(());
    let rootfs = Rootfs::new(&layers).writable(Writable::ReadOnly).keep_alive(lease.clone());
    let mounted = rootfs.mount(&target).unwrap();
    drop(rootfs);
    assert_eq!(Arc::strong_count(&lease), 2);
    let open = fs::File::open(target.join("common")).unwrap();
    let error = mounted.unmount().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    drop(open);
    assert_eq!(Arc::strong_count(&lease), 1);
    assert_eq!(names(&target).len(), 0, "detached");
}

#[test]
fn mistakes_are_named_and_leave_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for name in ["layer", "target"] {
        fs::create_dir(path(name)).unwrap();
    }
    fs::write(path("file"), "").unwrap();
    let scratch = path("scratch");
    let table = [
        (Rootfs::new([path("absent")]), path("target"), ErrorKind::NotFound, "absent"),
        (Rootfs::new([path("file")]), path("target"), ErrorKind::InvalidArgument, "file"),
        (Rootfs::new([path("layer")]), path("nowhere"), ErrorKind::NotFound, "nowhere"),
        (Rootfs::new([] as [&str; 0]), path("target"), ErrorKind::InvalidArgument, "no layers"),
        (Rootfs::new([path("layer")]).writable(Writable::InPlace), path("target"), ErrorKind::InvalidArgument, "place"),
        (Rootfs::directory(path("absent")), path("target"), ErrorKind::NotFound, "absent"),
    ];
    for (rootfs, target, kind, word) in table {
        let error = rootfs.scratch_in(&scratch).mount(&target).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    let error = Rootfs::new([path("layer")]).mount(&path("target")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(!scratch.exists() || names(&scratch).is_empty());
}

#[test]
fn the_kernels_own_words_are_in_the_error() {
    if !common::tier("root") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let layers = many(directory.path(), 2);
    let (target, second) = (directory.path().join("target"), directory.path().join("second"));
    for path in [&target, &second] {
        fs::create_dir(path).unwrap();
    }
    let rootfs = Rootfs::new(&layers).writable(Writable::Memory);
    let mounted = rootfs.mount(&target).unwrap();
    // The kernel makes no upper directory of an overlay.
    let error = rootfs.writable(Writable::Disk).scratch_in(target.join("scratch")).mount(&second).unwrap_err();
    assert!(error.to_string().contains("upperdir"), "{error}");
    assert_eq!(names(&target.join("scratch")).len(), 0, "nothing is left");
    mounted.unmount().unwrap();
}

#[test]
fn scratch_directories_live_as_long_as_their_owner() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("scratch");
    assert_eq!(Scratch::collect_abandoned(&root).unwrap(), 0, "nothing there yet");
    let scratch = Scratch::create(&root, "s1").unwrap();
    assert_eq!(fs::metadata(root.join("s1")).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(Scratch::create(&root, "s1").unwrap_err().kind(), ErrorKind::AlreadyExists);
    // As overlayfs and a hostile container leave it: shut, and deeper than descriptors go.
    let mut deep = scratch.upper();
    for _ in 0..300 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    fs::File::create(deep.join("f")).unwrap().write_all(b"x").unwrap();
    fs::create_dir(scratch.work().join("work")).unwrap();
    fs::create_dir(scratch.work().join("work/inner")).unwrap();
    fs::set_permissions(scratch.work().join("work"), fs::Permissions::from_mode(0o000)).unwrap();
    std::os::unix::fs::symlink("/", scratch.upper().join("link")).unwrap();
    let inherited = std::os::fd::AsFd::as_fd(&scratch).try_clone_to_owned().unwrap();
    scratch.leave();
    assert_eq!(Scratch::collect_abandoned(&root).unwrap(), 0, "a living process has the claim");
    assert!(root.join("s1/upper/link").is_symlink());
    drop(inherited);
    // A child of a test beside this one has the descriptor too, until it executes its program.
    common::until("the last descriptor is closed", Duration::from_secs(60), || {
        Scratch::collect_abandoned(&root).unwrap() == 1
    });
    assert_eq!(names(&root).len(), 0);
    drop(Scratch::create(&root, "s1").unwrap());
    Scratch::create(&root, "s2").unwrap().remove().unwrap();
    assert_eq!(names(&root).len(), 0);
    for bad in ["", ".", "..", ".x", "a/b", "a\0b"] {
        assert_eq!(Scratch::create(&root, bad).unwrap_err().kind(), ErrorKind::InvalidArgument, "{bad:?}");
    }
    assert_eq!(names(directory.path()), ["scratch"]);
}

#[test]
fn names_of_any_bytes_mount() {
    if !common::tier("root") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9\xff"));
    let layers = many(&base, 2);
    let target = directory.path().join("target");
    fs::create_dir(&target).unwrap();
    let features = overlay_features();
    for features in [features, OverlayFeatures { lowerdir_add: false, ..features }] {
        let mounted = mounted::mount(&Rootfs::new(&layers).writable(Writable::ReadOnly), &target, features).unwrap();
        assert_eq!(names(&target), ["common", "own-0", "own-1"]);
        mounted.unmount().unwrap();
    }
}
