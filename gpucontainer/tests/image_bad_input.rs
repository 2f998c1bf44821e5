//! Registries that say wrong things: each is a typed error, and the store stays good.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod image_support;

use gpucontainer::image::{Credentials, PullOptions};
use gpucontainer::{Cancel, Digest, ErrorKind};
use image_support::front::{Front, answer};
use image_support::layout::{Handmade, gzip, tar_of};
use image_support::{Place, Registry, run, umoci_layout};
use std::collections::HashMap;
use std::io::Write;
use std::process::Command;
use std::time::Duration;

fn options() -> PullOptions<'static> {
    PullOptions::new().credentials(Credentials::anonymous()).timeout(Duration::from_secs(20))
}

/// Zeros without end, compressed: a stream of some megabytes that unpacks to gigabytes.
fn endless() -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_path("zeros").unwrap();
    header.set_size(8_000_000_000);
    header.set_mode(0o644);
    header.set_cksum();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(header.as_bytes()).unwrap();
    for _ in 0..64 {
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
    }
    encoder.finish().unwrap()
}

#[test]
fn each_wrong_answer_is_an_error_of_its_kind() {
    use ErrorKind::{DigestMismatch, InvalidImage, InvalidLayer, Registry, Unsupported};
    let any = Digest::of(b"any").to_string();
    let of_layer = |layer: Vec<u8>, diff_id: &str| Handmade::new(&[(layer, diff_id.to_owned())]);
    let good_tar = tar_of("file", b"content");
    let good_id = Digest::of(&good_tar).to_string();
    let compressed = gzip(&good_tar);
    let cut = compressed[..compressed.len() / 2].to_vec();
    let mut flipped = compressed.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    let two_members = [gzip(&good_tar[..600]), gzip(&good_tar[600..])].concat();
    let escape = {
        let mut tar = tar_of("aaaaaaaaaaaaaaa", b"content");
        tar[..15].copy_from_slice(b"../../../escape");
        let mut header = tar::Header::from_byte_slice(&tar[..512]).clone();
        header.set_cksum();
        tar[..512].copy_from_slice(header.as_bytes());
        tar
    };
    let changed = |change: &dyn Fn(&mut Handmade)| {
        let mut image = Handmade::good();
        change(&mut image);
        image
    };
    let served = |image: Handmade| image.served("x", "1");
    let replaced = |path_has: &str, bytes: &[u8]| {
        let mut files = served(Handmade::good());
        for (path, content) in &mut files {
            if path.contains(path_has) {
                *content = bytes.to_vec();
            }
        }
        files
    };
    let good_layer = Digest::of(&compressed).to_string();
    let zip_bomb = endless();

    type Files = HashMap<String, Vec<u8>>;
    let table: Vec<(&str, Files, ErrorKind)> = vec![
        ("no manifest", HashMap::new(), ErrorKind::ImageNotFound),
        ("manifest of text", replaced("manifests/1", b"hello"), InvalidImage),
        ("manifest too large", replaced("manifests/1", &vec![b' '; 5 << 20]), InvalidImage),
        ("manifest of schema 1", replaced("manifests/1", br#"{"schemaVersion":1}"#), InvalidImage),
        (
            "configuration of text",
            served(changed(&|image| {
                let digest = Digest::of(b"hello").to_string();
                image.blobs.insert(digest.clone(), b"hello".to_vec());
                image.manifest["config"] = serde_json::json!({"mediaType": "x", "digest": digest, "size": 5});
            })),
            InvalidImage,
        ),
        (
            "configuration too large",
            served(changed(&|image| {
                image.manifest["config"] = serde_json::json!({"mediaType": "x", "digest": any, "size": 1_u64 << 40});
            })),
            InvalidImage,
        ),
        (
            "sha512",
            served(changed(&|image| {
                image.manifest["layers"][0]["digest"] = format!("sha512:{}", "0".repeat(128)).into()
            })),
            InvalidImage,
        ),
        (
            "digest with a path",
            served(changed(&|image| image.manifest["layers"][0]["digest"] = "sha256:../../../x".into())),
            InvalidImage,
        ),
        ("wrong platform", served(changed(&|image| image.config["os"] = "windows".into())), InvalidImage),
        ("fewer layers", served(changed(&|image| image.manifest["layers"] = serde_json::json!([]))), InvalidImage),
        (
            "foreign layer",
            served(changed(&|image| {
                image.manifest["layers"][0]["mediaType"] =
                    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip".into()
            })),
            Unsupported,
        ),
        ("other bytes", replaced(&good_layer, &gzip(&tar_of("file", b"CONTENT"))), DigestMismatch),
        ("fewer bytes", replaced(&good_layer, &cut), DigestMismatch),
        ("more bytes", replaced(&good_layer, &two_members), DigestMismatch),
        (
            "no layer",
            {
                let mut files = served(Handmade::good());
                files.retain(|path, _| !path.contains(&good_layer));
                files
            },
            Registry,
        ),
        ("wrong diff id", served(of_layer(compressed.clone(), &any)), DigestMismatch),
        ("truncated gzip", served(of_layer(cut.clone(), &good_id)), InvalidLayer),
        ("damaged gzip", served(of_layer(flipped, &good_id)), InvalidLayer),
        (
            "truncated archive",
            served(of_layer(gzip(&good_tar[..700]), &Digest::of(&good_tar[..700]).to_string())),
            InvalidLayer,
        ),
        (
            "no archive",
            served(of_layer(b"not an archive at all".to_vec(), &Digest::of(b"not an archive at all").to_string())),
            InvalidLayer,
        ),
        ("way out", served(of_layer(gzip(&escape), &Digest::of(&escape).to_string())), InvalidLayer),
        ("endless", served(of_layer(zip_bomb, &any)), InvalidLayer),
    ];
    let place = Place::new();
    let before = std::fs::read_dir(place.path("")).unwrap().count();
    for (case, files, kind) in table {
        let front = Front::of_files(files);
        let error = place.store.pull(&front.name("x:1"), options().max_layer_bytes(10 << 20)).unwrap_err();
        assert_eq!(error.kind(), kind, "{case}: {error}");
        assert!(error.to_string().starts_with(&format!("pull image {}: ", front.name("x:1"))), "{error}");
        assert!(place.store.list().unwrap().is_empty(), "{case}");
        assert_eq!(place.layers(), 0, "{case}");
        place.assert_good();
    }
    assert_eq!(std::fs::read_dir(place.path("")).unwrap().count(), before, "nothing beside the store");

    // Several members are one layer, as gzip says.
    let front = Front::of_files(served(of_layer(two_members, &good_id)));
    place.store.pull(&front.name("x:1"), options()).unwrap();
    let front = Front::of_files(served(Handmade::good()));
    place.store.pull(&front.name("x:1"), options()).unwrap();
    assert_eq!(place.layers(), 1);
    place.assert_good();
}

#[test]
fn registries_that_break_the_protocol_are_told_apart() {
    use ErrorKind::{Authentication, Cancelled, DigestMismatch, InvalidArgument, InvalidReference, Network, Registry};
    let place = Place::new();
    type Reply = fn(&image_support::front::Request, &mut std::net::TcpStream);
    let table: Vec<(&str, Reply, ErrorKind, &str)> = vec![
        ("500", |_, s| answer(s, "500 Internal Server Error", &[], b""), Registry, "500"),
        (
            "418",
            |_, s| answer(s, "418 Teapot", &[], br#"{"errors":[{"code":"TEA","message":"pot"}]}"#),
            Registry,
            "TEA pot",
        ),
        ("403", |_, s| answer(s, "403 Forbidden", &[], b""), Authentication, "403"),
        ("401 without a challenge", |_, s| answer(s, "401 Unauthorized", &[], b""), Authentication, "no credentials"),
        (
            "challenge without a realm",
            |_, s| answer(s, "401 Unauthorized", &[("WWW-Authenticate", "Bearer x=y")], b""),
            Registry,
            "token server",
        ),
        (
            "realm of nonsense",
            |_, s| answer(s, "401 Unauthorized", &[("WWW-Authenticate", "Bearer realm=\"file:///etc\"")], b""),
            Registry,
            "file:///etc",
        ),
        ("redirects for ever", |r, s| answer(s, "302 Found", &[("Location", &r.path)], b""), Registry, "redirects"),
        ("redirect to nowhere", |_, s| answer(s, "302 Found", &[], b""), Registry, "redirect"),
        (
            "redirect to a file",
            |_, s| answer(s, "302 Found", &[("Location", "file:///etc/passwd")], b""),
            Registry,
            "file:///etc/passwd",
        ),
        (
            "another digest",
            |_, s| answer(s, "200 OK", &[("Docker-Content-Digest", &format!("sha256:{}", "0".repeat(64)))], b"{}"),
            DigestMismatch,
            "sha256:000",
        ),
        ("hangs up", |_, _| (), Network, "GET"),
        ("no HTTP", |_, s| s.write_all(b"SSH-2.0-x\r\n").unwrap(), Network, "GET"),
    ];
    for (case, reply, kind, text) in table {
        let front = Front::start(reply);
        let error = place.store.pull(&front.name("x:1"), options()).unwrap_err();
        assert_eq!(error.kind(), kind, "{case}: {error}");
        assert!(error.to_string().contains(text), "{case}: {error}");
        place.assert_good();
    }
    // Nobody listens; nobody is called so; nobody may be asked that way.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cancel = Cancel::new();
    cancel.cancel();
    let table = [
        (format!("127.0.0.1:{port}/x"), options(), Network),
        ("no-such-host.invalid/x".to_owned(), options(), Network),
        ("a b".to_owned(), options(), InvalidReference),
        ("localhost:1/x".to_owned(), options().concurrency(0), InvalidArgument),
        ("localhost:1/x".to_owned(), options().max_layer_bytes(0), InvalidArgument),
        ("localhost:1/x".to_owned(), options().timeout(Duration::ZERO), InvalidArgument),
        ("localhost:1/x".to_owned(), options().cancel(cancel), Cancelled),
    ];
    for (name, options, kind) in table {
        let error = place.store.pull(&name, options).unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        place.assert_good();
    }
}

#[test]
fn a_real_registry_with_damaged_storage() {
    if !common::tier("registry") || !common::tools("registry", &["umoci"]) {
        return;
    }
    let place = Place::new();
    let registry = Registry::start(&place.path("registry"), "", "");
    let layout = umoci_layout(&place.path(""), 2, 200_000);
    registry.push(&format!("oci:{}:v1", layout.display()), "x:1", &[]);
    let raw = run(Command::new("skopeo")
        .args(["inspect", "--raw", "--tls-verify=false"])
        .arg(format!("docker://{}", registry.name("x:1"))));
    let manifest: serde_json::Value = serde_json::from_str(&raw).unwrap();
    let file = registry.blob_file(manifest["layers"][1]["digest"].as_str().unwrap());
    let good = std::fs::read(&file).unwrap();
    let pull = |options| place.store.pull(&registry.name("x:1"), options);

    let error = place.store.pull(&registry.name("y:1"), options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ImageNotFound, "{error}");
    let error = place.store.pull(&registry.name("x:2"), options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ImageNotFound, "{error}");

    // One byte differs, in the middle of what gzip stores as it is, and at the very end.
    for at in [good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&file, &bad).unwrap();
        let error = pull(options()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{error}");
        assert!(place.store.get(&registry.name("x:1")).unwrap().is_none());
        place.assert_good();
    }
    std::fs::write(&file, &good[..good.len() - 10]).unwrap();
    assert_eq!(pull(options()).unwrap_err().kind(), ErrorKind::DigestMismatch);
    std::fs::write(&file, &good).unwrap();

    // Cancelled from the callback, in the middle of a layer.
    let cancel = Cancel::new();
    let switch = cancel.clone();
    let error = pull(options().concurrency(1).cancel(cancel).progress(move |_| switch.cancel())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    place.assert_good();
    assert_eq!(pull(options()).unwrap().layers().unwrap().len(), 2);
    place.assert_good();
}

/// A file system of a few megabytes, unmounted when it is dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Self {
        let directory = tempfile::tempdir().unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(directory.path()));
        Self(directory)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_file_system_is_said_to_be_full() {
    if !common::tier("root") {
        return;
    }
    let leaks = common::Leaks::watch();
    let small = Small::mount();
    let store = gpucontainer::ImageStore::open(small.0.path().join("store")).unwrap();
    let tar = tar_of("large", &image_support::noise(3 << 20, 1));
    let image = || Handmade::new(&[(gzip(&tar), Digest::of(&tar).to_string())]);
    let front = Front::of_files(image().served("x", "1"));
    let layout = tempfile::tempdir().unwrap();
    image().write(layout.path(), "example.org/x:1");
    let large = layout.path().join("large");
    std::fs::write(&large, image_support::noise(3 << 20, 2)).unwrap();
    let errors = [
        store.pull(&front.name("x:1"), options()).unwrap_err(),
        store.import(layout.path(), gpucontainer::image::ImportOptions::new()).unwrap_err(),
        store.build().copy(&large, "/large").commit("x").unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    }
    for directory in ["staging", "layers/sha256", "refs"] {
        assert_eq!(std::fs::read_dir(store.path().join(directory)).unwrap().count(), 0, "{directory}");
    }
    // The space is free again.
    store.build().file("/small", "fits", 0o644).commit("small").unwrap();
    drop((store, small, front));
    leaks.check();
}
