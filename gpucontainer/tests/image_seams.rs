//! Directories that a layer only implies: what they are is for the layers below to say.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod image_support;

use gpucontainer::image::{Image, ImportOptions};
use gpucontainer::sandbox::Stdio;
use gpucontainer::{Digest, Sandbox};
use image_support::{Place, run};
use std::path::Path;
use std::process::Command;

/// One layer, entry by entry; what is in no directory of its own entry implies it.
struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, kind: tar::EntryType, path: &str, mode: u32, owner: u64, content: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_500_000_000);
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    fn file(self, path: &str, content: &[u8]) -> Self {
        self.add(tar::EntryType::Regular, path, 0o755, 0, content)
    }

    fn directory(self, path: &str, mode: u32, owner: u64) -> Self {
        self.add(tar::EntryType::Directory, path, mode, owner, b"")
    }

    fn link(mut self, path: &str, target: &str) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_mtime(1_500_000_000);
        header.set_size(0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// An image of these layers, as `docker save` writes it.
fn import(place: &Place, name: &str, layers: &[Vec<u8>]) -> Image {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config = serde_json::json!({
        "architecture": image_support::architecture(), "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}
    });
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content).unwrap();
    };
    let names: Vec<String> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    for (name, layer) in names.iter().zip(layers) {
        add(name, layer);
    }
    add("config.json", config.to_string().as_bytes());
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": names}]);
    add("manifest.json", manifest.to_string().as_bytes());
    let path = place.path("image.tar");
    std::fs::write(&path, archive.into_inner().unwrap()).unwrap();
    place.store.import(&path, ImportOptions::new()).unwrap()
}

/// A root with links for directories, as distributions have it.
fn base() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").unwrap();
    Layer::new()
        .directory("usr/", 0o755, 0)
        .directory("usr/bin/", 0o755, 0)
        .file("usr/bin/busybox", &busybox)
        .link("usr/bin/sh", "busybox")
        .link("usr/bin/cat", "busybox")
        .link("usr/bin/readlink", "busybox")
        .link("usr/bin/stat", "busybox")
        .file("usr/bin/gone", b"")
        .directory("usr/lib/", 0o751, 0)
        .link("bin", "usr/bin")
        .link("lib", "usr/lib")
        .directory("tmp/", 0o1777, 0)
        .directory("home/", 0o711, 0)
        .directory("home/user/", 0o750, 1000)
        .directory("home/other/", 0o700, 1001)
        .bytes()
}

fn above() -> Vec<u8> {
    Layer::new()
        .file("tmp/x", b"x")
        .file("home/user/deep/er/file", b"deep")
        .file("bin/tool", b"tool")
        .file("bin/more/tool", b"more")
        .file("lib/one", b"one")
        .file("new/place/file", b"new")
        .directory("home/other/", 0o755, 7)
        .file("home/other/listed", b"")
        .bytes()
}

fn top() -> Vec<u8> {
    Layer::new()
        .file("bin/.wh.gone", b"")
        .file("bin/more/again", b"again")
        .file("tmp/y", b"y")
        .file("home/user/deep/er/more", b"more")
        .file("new/place/more", b"more")
        .directory("lib/listed/", 0o700, 5)
        .file("lib/listed/file", b"")
        .bytes()
}

/// What is where. The times of directories change with what is unpacked into them.
fn list(busybox: &str, owners: bool) -> String {
    let owners = if owners { " %u %g" } else { "" };
    format!(
        "for place in tmp home usr bin lib new; do {busybox} find $place ! -type d \
         -exec {busybox} stat -c '%N %F %a %Y %s{owners}' {{}} ';' -o \
         -exec {busybox} stat -c '%N %F %a{owners}' {{}} ';'; done | {busybox} sort"
    )
}

/// What a shell in a sandbox of the image prints.
fn inside(place: &Place, image: &Image, script: &str) -> String {
    let sandbox = Sandbox::from_image(image).store(&place.store).command(["/usr/bin/sh", "-c", script]);
    let output = sandbox.stdout(Stdio::Piped).spawn().unwrap().communicate(b"", None).unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn may_run() -> bool {
    common::tier(if common::is_root() { "root" } else { "rootless" }) && common::tools("rust", &["busybox", "tar"])
}

#[test]
fn an_implied_directory_is_what_it_is_below() {
    let leaks = common::Leaks::watch();
    if !may_run() {
        return;
    }
    let place = Place::new();
    let layers = [base(), above(), top()];
    // GNU tar in the place of an engine that unpacks one layer onto the other.
    let expected = place.path("expected");
    std::fs::create_dir(&expected).unwrap();
    for (number, layer) in layers.iter().enumerate() {
        let archive = place.path(&format!("{number}.tar"));
        std::fs::write(&archive, layer).unwrap();
        let unpack = "umask 022; exec tar --keep-directory-symlink -xpf \"$0\"";
        run(Command::new("sh").current_dir(&expected).args(["-c", unpack]).arg(&archive));
    }
    std::fs::remove_file(expected.join("usr/bin/.wh.gone")).unwrap();
    std::fs::remove_file(expected.join("usr/bin/gone")).unwrap();
    let expected = run(Command::new("sh").current_dir(&expected).args(["-c", &list("busybox", common::is_root())]));
    assert!(expected.contains("usr/bin/more/again"), "{expected}");

    let image = import(&place, "seams:1", &layers);
    let list = format!("cd /; {}", list("/usr/bin/busybox", common::is_root()));
    assert_eq!(inside(&place, &image, &list), expected);
    // A layer of an image is what its archive says, whatever it is stacked on.
    assert_eq!(image.layers().unwrap().len(), 3);

    // What is built on it is built on the same.
    let built = place.store.build().base(&image).copy(place.path("0.tar"), "/bin/copied").commit("built:1").unwrap();
    assert_eq!(inside(&place, &built, "cd /; test -f usr/bin/copied && stat -c %a tmp && cat bin/tool"), "1777\ntool");
    drop((image, built));
    place.assert_good();
    drop(place);
    leaks.check();
}

#[test]
fn seams_are_kept_once_and_go_with_their_images() {
    let leaks = common::Leaks::watch();
    if !may_run() {
        return;
    }
    let place = Place::new();
    let seams = || std::fs::read_dir(place.store.path().join("seams/sha256")).map_or(0, Iterator::count);
    let plain =
        import(&place, "plain:1", &[base(), Layer::new().directory("tmp/", 0o1777, 0).file("tmp/x", b"").bytes()]);
    assert_eq!(seams(), 0, "nothing is only implied");
    let two = import(&place, "seams:2", &[base(), above()]);
    assert_eq!(seams(), 1);
    let three = import(&place, "seams:3", &[base(), above(), top()]);
    let again = import(&place, "seams:4", &[base(), above(), top()]);
    assert_eq!(seams(), 2, "one a chain of layers");
    assert_eq!(inside(&place, &two, "cat /tmp/x"), "x");
    drop((three, again));
    for name in ["seams:3", "seams:4"] {
        place.store.remove(name).unwrap();
    }
    place.store.collect_garbage().unwrap();
    assert_eq!(seams(), 1);
    assert_eq!(inside(&place, &two, "cat /tmp/x"), "x");
    drop((two, plain));
    place.store.remove("seams:2").unwrap();
    place.store.collect_garbage().unwrap();
    assert_eq!(seams(), 0);
    place.assert_good();
    drop(place);
    leaks.check();
}

#[test]
fn no_link_of_an_image_leads_out_of_it() {
    let leaks = common::Leaks::watch();
    if !may_run() {
        return;
    }
    let place = Place::new();
    let outside = place.path("outside");
    std::fs::create_dir(&outside).unwrap();
    let hostile = Layer::new()
        .link("absolute", "/usr/lib")
        .link("outside", outside.to_str().unwrap())
        .link("up", &format!("../../../../../../../..{}", outside.display()))
        .link("around", "around")
        .link("etc", "/etc")
        .bytes();
    let layer = Layer::new()
        .file("absolute/gpuc-seam", b"in")
        .file("outside/file", b"no")
        .file("up/file", b"no")
        .file("around/file", b"no")
        .file("etc/thing/file", b"no")
        .bytes();
    let image = import(&place, "hostile:1", &[base(), hostile, layer]);
    let seen =
        inside(&place, &image, "cd /; cat usr/lib/gpuc-seam; readlink absolute; cat outside/file up/file around/file");
    assert_eq!(seen, "in/usr/lib\nnonono");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert!(!Path::new("/etc/thing/file").exists() && !Path::new("/usr/lib/gpuc-seam").exists());
    drop(image);
    place.assert_good();
    drop(place);
    leaks.check();
}
