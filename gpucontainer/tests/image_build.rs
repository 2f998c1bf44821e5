//! Building images from files, and what the store keeps of them.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

use gpucontainer::ErrorKind;
use gpucontainer::image::{Image, ImageBuilder, ImageStore};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

fn store() -> (tempfile::TempDir, ImageStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = ImageStore::open(directory.path().join("store")).unwrap();
    (directory, store)
}

fn assert_clean(store: &ImageStore) {
    let left: Vec<_> = std::fs::read_dir(store.path().join("staging")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

fn read(image: &Image, path: &str) -> Option<String> {
    // Top first, as an overlay without whiteouts would show it.
    let layers = image.layers().unwrap();
    layers.iter().rev().find_map(|layer| std::fs::read_to_string(layer.path().join(path)).ok())
}

fn host_tree(directory: &Path) {
    std::fs::create_dir_all(directory.join("lib/deep")).unwrap();
    std::fs::write(directory.join("lib/deep/file"), "content").unwrap();
    std::fs::write(directory.join("program"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(directory.join("program"), PermissionsExt::from_mode(0o4755)).unwrap();
    symlink("deep/file", directory.join("lib/link")).unwrap();
    symlink("program", directory.join("shortcut")).unwrap();
}

fn example(store: &ImageStore, host: &Path) -> ImageBuilder {
    store
        .build()
        .copy(host.join("lib"), "/usr/lib")
        .copy(host.join("shortcut"), "/usr/bin/")
        .symlink("usr/lib", "/lib")
        .file("/lib/through-the-link", "here", 0o600)
        .file("/etc/os-release", "NAME=test\n", 0o644)
        .directory("/tmp", 0o1777)
        .env("PATH", "/usr/bin")
        .entrypoint(["/usr/bin/shortcut"])
        .command(["-v"])
        .user("1000:1000")
        .working_dir("/tmp")
        .label("maker", "test")
        .expose(8080)
        .stop_signal("SIGINT")
}

#[test]
fn a_built_image_has_its_files_and_settings() {
    let (directory, store) = store();
    host_tree(directory.path());
    let image = example(&store, directory.path()).commit("example:1").unwrap();
    assert_eq!(image.reference().to_string(), "docker.io/library/example:1");
    let config = image.config();
    assert_eq!(config.env, ["PATH=/usr/bin"]);
    assert_eq!((config.entrypoint[0].as_str(), config.command[0].as_str()), ("/usr/bin/shortcut", "-v"));
    assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("1000:1000", "/tmp"));
    assert_eq!(config.exposed_ports, ["8080/tcp"]);
    assert_eq!(config.labels["maker"], "test");
    assert_eq!(config.created.as_deref(), Some("1970-01-01T00:00:00Z"));

    let layers = image.layers().unwrap();
    assert_eq!(layers.len(), 1);
    let tree = layers[0].path();
    assert_eq!(read(&image, "usr/lib/deep/file").unwrap(), "content");
    assert_eq!(std::fs::read_link(tree.join("usr/lib/link")).unwrap(), Path::new("deep/file"));
    assert_eq!(read(&image, "usr/lib/through-the-link").unwrap(), "here");
    let program = std::fs::symlink_metadata(tree.join("usr/bin/shortcut")).unwrap();
    assert!(program.is_file(), "the link itself was followed");
    assert_eq!(program.mode() & 0o7777, 0o4755);
    assert_eq!(program.mtime(), 0);
    assert_eq!(std::fs::metadata(tree.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert_clean(&store);
}

#[test]
fn the_same_input_gives_the_same_image_in_any_store() {
    let (directory, store) = store();
    host_tree(directory.path());
    let other = ImageStore::open(directory.path().join("other")).unwrap();
    let first = example(&store, directory.path()).commit("example").unwrap();
    let second = example(&other, directory.path()).commit("another:name").unwrap();
    assert_eq!((first.id(), first.manifest_digest()), (second.id(), second.manifest_digest()));
    let later = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let third = example(&store, directory.path()).created(later).commit("example:later").unwrap();
    assert_ne!(first.id(), third.id());
    assert_eq!(third.config().created.as_deref(), Some("2001-09-09T01:46:40Z"));
}

#[test]
fn a_base_is_extended_and_its_links_and_modes_are_kept() {
    let (_directory, store) = store();
    let base = store
        .build()
        .directory("/usr/bin", 0o755)
        .symlink("usr/bin", "/bin")
        .directory("/tmp", 0o1777)
        .directory("/private", 0o700)
        .file("/etc/config", "old", 0o644)
        .env("PATH", "/bin")
        .env("LANG", "C")
        .command(["/bin/old"])
        .commit("base")
        .unwrap();
    let image = store
        .build()
        .base(&base)
        .file("/bin/new", "program", 0o755)
        .file("/tmp/inside", "x", 0o644)
        .file("/private/inside", "x", 0o644)
        .file("/etc/config", "new", 0o644)
        .env("LANG", "C.UTF-8")
        .commit("extended")
        .unwrap();
    let layers = image.layers().unwrap();
    assert_eq!(layers.len(), 2);
    assert_eq!(layers[0].diff_id(), base.layers().unwrap()[0].diff_id());
    let top = layers[1].path();
    assert!(!top.join("bin").exists(), "the link of the base is not covered");
    assert!(top.join("usr/bin/new").is_file());
    assert_eq!(std::fs::metadata(top.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(std::fs::metadata(top.join("private")).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(read(&image, "etc/config").unwrap(), "new");
    assert_eq!(image.config().env, ["PATH=/bin", "LANG=C.UTF-8"]);
    assert_eq!(image.config().command, ["/bin/old"]);

    // Settings alone make no layer.
    let relabelled = store.build().base(&image).label("a", "b").commit("relabelled").unwrap();
    assert_eq!(relabelled.layers().unwrap().len(), 2);
    assert_ne!(relabelled.id(), image.id());
}

#[test]
fn references_come_and_go_and_garbage_is_what_nothing_leads_to() {
    let (_directory, store) = store();
    let build = |name: &str| store.build().file("/name", name, 0o644).commit(name).unwrap();
    build("one");
    let two = build("two");
    let tagged = store.tag(&two, "localhost:5000/mine:2").unwrap();
    assert_eq!(tagged.id(), two.id());
    let names: Vec<String> = store.list().unwrap().iter().map(|image| image.reference().to_string()).collect();
    assert_eq!(names, ["docker.io/library/one:latest", "docker.io/library/two:latest", "localhost:5000/mine:2"]);
    let by_digest = format!("localhost:5000/mine@{}", two.manifest_digest());
    assert_eq!(store.get(&by_digest).unwrap().unwrap().id(), two.id());
    assert!(store.get("three").unwrap().is_none());
    assert_eq!(store.image("three").unwrap_err().kind(), ErrorKind::ImageNotFound);
    assert_eq!(store.remove("three").unwrap_err().kind(), ErrorKind::ImageNotFound);

    store.remove("one").unwrap();
    store.remove("two").unwrap();
    let collected = store.collect_garbage().unwrap();
    assert_eq!((collected.layers, collected.blobs), (1, 2), "the tag keeps the second");
    store.remove("localhost:5000/mine:2").unwrap();
    let layers = two.layers().unwrap();
    drop((two, tagged));
    assert_eq!(store.collect_garbage().unwrap().layers, 0, "handles keep the layer");
    assert!(layers[0].path().join("name").is_file());
    drop(layers);
    assert_eq!(store.collect_garbage().unwrap().layers, 1);
    assert_eq!(std::fs::read_dir(store.path().join("layers/sha256")).unwrap().count(), 0);
    assert_clean(&store);
}

#[test]
fn what_cannot_be_built_is_refused_and_changes_nothing() {
    use ErrorKind::{Cancelled, InvalidArgument, InvalidReference, NotFound};
    let (directory, store) = store();
    let fifo = directory.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let loops = directory.path().join("loops");
    std::fs::create_dir(&loops).unwrap();
    symlink(".", loops.join("again")).unwrap();
    let missing = directory.path().join("missing");
    let cancel = gpucontainer::Cancel::new();
    cancel.cancel();
    let build = || store.build();
    let with_digest = format!("a@sha256:{}", "0".repeat(64));
    let table: Vec<(&str, ImageBuilder, &str, ErrorKind)> = vec![
        ("reference", build(), "Bad", InvalidReference),
        ("digest", build(), &with_digest, InvalidReference),
        ("relative", build().file("x", "", 0o644), "a", InvalidArgument),
        ("dots", build().file("/a/../b", "", 0o644), "a", InvalidArgument),
        ("mode", build().file("/a", "", 0o100_644), "a", InvalidArgument),
        ("through a file", build().file("/a", "", 0o644).file("/a/b", "", 0o644), "a", InvalidArgument),
        ("over a directory", build().directory("/a", 0o755).file("/a", "", 0o644), "a", InvalidArgument),
        ("root as a file", build().file("/", "", 0o644), "a", InvalidArgument),
        ("empty link", build().symlink("", "/a"), "a", InvalidArgument),
        ("link loop", build().symlink("/b", "/a").symlink("/a", "/b").file("/a/x", "", 0o644), "a", InvalidArgument),
        ("missing", build().copy(&missing, "/a"), "a", NotFound),
        ("fifo", build().copy(&fifo, "/a"), "a", InvalidArgument),
        ("loop", build().copy_following_links(&loops, "/a"), "a", InvalidArgument),
        ("env", build().env("A=B", "c"), "a", InvalidArgument),
        ("workdir", build().working_dir("x"), "a", InvalidArgument),
        ("cancelled", build().file("/a", "", 0o644).cancel(cancel), "a", Cancelled),
    ];
    for (name, builder, reference, kind) in table {
        let error = builder.commit(reference).unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert_clean(&store);
        assert!(store.list().unwrap().is_empty());
    }
    store.build().copy(&loops, "/a").commit("links-are-kept").unwrap();
    assert_eq!(std::fs::read_dir(store.path().join("layers/sha256")).unwrap().count(), 1);
}

#[test]
fn what_the_base_deleted_is_not_seen_again() {
    let (directory, store) = store();
    // Below: a link where the layer above has deleted it and made a directory of its own.
    let layer = |entries: &[(&str, tar::EntryType, &str)]| {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, target) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(*kind);
            header.set_mode(if *kind == tar::EntryType::Directory { 0o711 } else { 0o644 });
            header.set_size(0);
            if target.is_empty() {
                builder.append_data(&mut header, name, &b""[..]).unwrap();
            } else {
                builder.append_link(&mut header, name, target).unwrap();
            }
        }
        builder.into_inner().unwrap()
    };
    use tar::EntryType::{Directory, Regular, Symlink};
    let layers = [
        layer(&[
            ("bin", Symlink, "usr/bin"),
            ("lib", Symlink, "usr/lib"),
            ("opt", Directory, ""),
            ("opt/inside", Symlink, "/elsewhere"),
            ("var", Directory, ""),
            ("var/data", Symlink, "/elsewhere"),
        ]),
        layer(&[
            (".wh.bin", Regular, ""),
            ("lib", Directory, ""),
            ("opt", Directory, ""),
            ("opt/.wh..wh..opq", Regular, ""),
        ]),
    ];
    let diff_ids: Vec<String> = layers.iter().map(|layer| gpucontainer::Digest::of(layer).to_string()).collect();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids}
    });
    let manifest = r#"[{"Config":"c","RepoTags":["base:1"],"Layers":["0","1"]}]"#;
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("0", &layers[0][..]),
        ("1", &layers[1]),
        ("c", config.to_string().as_bytes()),
        ("manifest.json", manifest.as_bytes()),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).unwrap();
    }
    let path = directory.path().join("base.tar");
    std::fs::write(&path, archive.into_inner().unwrap()).unwrap();
    let base = store.import(&path, Default::default()).unwrap();

    let image = ["/bin/x", "/lib/x", "/opt/inside/x", "/var/data/x"]
        .into_iter()
        .fold(store.build().base(&base), |builder, path| builder.file(path, path, 0o644))
        .commit("on-top")
        .unwrap();
    let layers = image.layers().unwrap();
    let top = layers[2].path();
    for (asked, place) in
        [("/bin/x", "bin/x"), ("/lib/x", "lib/x"), ("/opt/inside/x", "opt/inside/x"), ("/var/data/x", "elsewhere/x")]
    {
        assert_eq!(std::fs::read_to_string(top.join(place)).unwrap(), asked);
    }
    for (directory, mode) in [("bin", 0o755), ("lib", 0o711), ("opt", 0o711), ("elsewhere", 0o755)] {
        assert_eq!(std::fs::metadata(top.join(directory)).unwrap().mode() & 0o7777, mode, "{directory}");
    }
}
