//! Importing images from files that other tools wrote.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod image_support;

use gpucontainer::image::ImportOptions;
use gpucontainer::{Cancel, Digest, ErrorKind, Phase};
use image_support::layout::{Handmade, tar_of};
use image_support::{Place, read, run, umoci_layout};
use std::path::Path;
use std::process::Command;

fn ready() -> bool {
    common::tier("registry") && common::tools("registry", &["umoci", "gzip", "zstd", "tar"])
}

fn skopeo(from: &str, to: &str, arguments: &[&str]) {
    run(Command::new("skopeo").args(["copy", "--quiet", "--insecure-policy"]).args(arguments).args([from, to]));
}

#[test]
fn every_kind_of_archive_gives_the_same_layers() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let layout = umoci_layout(&place.path(""), 3, 50_000);
    let source = format!("oci:{}:v1", layout.display());
    let path = |name: &str| place.path(name).display().to_string();
    skopeo(&source, &format!("oci-archive:{}:example.org/oci:1", path("oci.tar")), &[]);
    skopeo(&source, &format!("docker-archive:{}:example.org/docker:1", path("docker.tar")), &[]);
    skopeo(&source, &format!("oci:{}:example.org/zstd:1", path("zstd-layout")), &["--dest-compress-format", "zstd"]);
    run(Command::new("gzip").args(["-k", &path("oci.tar"), &path("docker.tar")]));
    run(Command::new("zstd").args(["-q", "-k", &path("docker.tar")]));

    let mut all = Vec::new();
    let table = [
        ("layout", Some("layout:1"), "docker.io/library/layout:1"),
        ("zstd-layout", None, "example.org/zstd:1"),
        ("oci.tar", None, "example.org/oci:1"),
        ("oci.tar.gz", Some("other"), "docker.io/library/other:latest"),
        ("docker.tar", None, "example.org/docker:1"),
        ("docker.tar.gz", None, "example.org/docker:1"),
        ("docker.tar.zst", None, "example.org/docker:1"),
    ];
    for (file, name, reference) in table {
        let fresh = Place::new();
        let mut reports = Vec::new();
        let mut options = ImportOptions::new().progress(|p| reports.push(p.phase));
        if let Some(name) = name {
            options = options.reference(name);
        }
        let image = fresh.store.import(place.path(file), options).unwrap();
        assert_eq!(image.reference().to_string(), reference, "{file}");
        for number in 0..3 {
            assert_eq!(read(&image, &format!("etc/layer-{number}")).unwrap(), format!("layer {number}"), "{file}");
        }
        assert_eq!((image.config().env.as_slice(), image.config().user.as_str()), (&["A=1".to_owned()][..], "1000"));
        assert!(reports.contains(&Phase::Importing) && reports.contains(&Phase::Done), "{reports:?}");
        let again = fresh.store.import(place.path(file), ImportOptions::new().reference("again")).unwrap();
        assert_eq!((again.id(), again.manifest_digest()), (image.id(), image.manifest_digest()));
        all.push(image.layers().unwrap().iter().map(|layer| layer.diff_id()).collect::<Vec<_>>());
        fresh.assert_good();
    }
    assert!(all.iter().all(|layers| *layers == all[0]));
}

#[test]
fn one_of_several_images_is_selected() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let layout = umoci_layout(&place.path(""), 1, 0);
    let image = layout.display().to_string();
    let second = place.path("second");
    std::fs::write(&second, "second").unwrap();
    run(Command::new("umoci").args(["tag", "--image", &format!("{image}:v1"), "example.org/second:2"]));
    let second = second.display().to_string();
    let tagged = format!("{image}:example.org/second:2");
    run(Command::new("umoci").args(["insert", "--image", &tagged, &second, "/second"]));

    let import = |options| place.store.import(&layout, options);
    let error = import(ImportOptions::new().reference("x")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.to_string().contains("v1") && error.to_string().contains("example.org/second:2"), "{error}");
    let error = import(ImportOptions::new().select("third")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ImageNotFound, "{error}");
    let error = import(ImportOptions::new().select("v1")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "a tag alone is no name: {error}");
    assert_eq!(import(ImportOptions::new().select("v1").reference("x")).unwrap().layers().unwrap().len(), 1);
    let image = import(ImportOptions::new().select("example.org/second:2")).unwrap();
    assert_eq!(image.reference().to_string(), "example.org/second:2");
    assert_eq!(read(&image, "second").unwrap(), "second");
    place.assert_good();
}

/// What `docker save` wrote for years: a directory for each layer, some of them links to others.
fn old_docker_save(path: &Path, layers: &[&[u8]], tags: &[&str]) {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config = serde_json::json!({
        "architecture": image_support::architecture(), "os": "linux", "config": {"Cmd": ["/old"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}
    })
    .to_string();
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let mut builder = tar::Builder::new(std::fs::File::create(path).unwrap());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content).unwrap();
    };
    let mut names = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        add(&format!("layer{number}/VERSION"), b"1.0");
        add(&format!("layer{number}/layer.tar"), layer);
        names.push(format!("layer{number}/layer.tar"));
    }
    add(&config_name, config.as_bytes());
    let manifest = serde_json::json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]).to_string();
    add("manifest.json", manifest.as_bytes());
    builder.finish().unwrap();
}

#[test]
fn old_docker_archives_with_shared_layers_are_read() {
    let place = Place::new();
    let (one, two) = (tar_of("one", b"1"), tar_of("two", b"2"));
    old_docker_save(&place.path("old.tar"), &[&one, &two, &one], &["old:1", "old:2"]);
    let image = place.store.import(place.path("old.tar"), ImportOptions::new()).unwrap();
    assert_eq!(image.layers().unwrap().len(), 3);
    assert_eq!(image.config().command, ["/old"]);
    assert_eq!((read(&image, "one").unwrap(), read(&image, "two").unwrap()), ("1".to_owned(), "2".to_owned()));
    assert_eq!(place.store.image("old:2").unwrap().id(), image.id());
    assert_eq!(place.layers(), 2);

    // The same with a link in the place of the third layer.
    let mut builder = tar::Builder::new(Vec::new());
    let mut archive = tar::Archive::new(std::fs::File::open(place.path("old.tar")).unwrap());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().into_owned();
        let mut header = entry.header().clone();
        if name == Path::new("layer2/layer.tar") {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, &name, "../layer0/layer.tar").unwrap();
        } else {
            builder.append_data(&mut header, &name, &mut entry).unwrap();
        }
    }
    std::fs::write(place.path("linked.tar"), builder.into_inner().unwrap()).unwrap();
    let linked = place.store.import(place.path("linked.tar"), ImportOptions::new().reference("linked")).unwrap();
    assert_eq!(linked.manifest_digest(), image.manifest_digest());
    place.assert_good();
}

#[test]
fn what_is_no_image_is_refused_and_changes_nothing() {
    let place = Place::new();
    let write = |name: &str, bytes: &[u8]| std::fs::write(place.path(name), bytes).unwrap();
    write("empty", b"");
    write("text", b"this is no archive");
    write("other.tar", &tar_of("file", b"x"));
    write("manifest.tar", &tar_of("manifest.json", b"[]"));
    write("broken.tar", &tar_of("manifest.json", b"[{"));
    write("missing.tar", &tar_of("manifest.json", br#"[{"Config":"c.json","Layers":[]}]"#));
    write("escape.tar", &tar_of("manifest.json", br#"[{"Config":"../../../../etc/passwd","Layers":[]}]"#));
    write("index.tar", &tar_of("index.json", br#"{"schemaVersion":2,"manifests":[]}"#));
    let layer = tar_of("x", b"x");
    old_docker_save(&place.path("good.tar"), &[&layer], &["good:1"]);
    let good = std::fs::read(place.path("good.tar")).unwrap();
    write("cut.tar", &good[..good.len() / 2]);
    write("cut.tar.gz", &image_support::layout::gzip(&good)[..200]);
    old_docker_save(&place.path("unnamed.tar"), &[&layer], &[]);
    std::fs::create_dir(place.path("directory")).unwrap();
    let handmade = |name: &str, change: &dyn Fn(&mut Handmade)| {
        let mut image = Handmade::good();
        change(&mut image);
        image.write(&place.path(name), "example.org/x:1");
    };
    handmade("arch", &|image| image.config["architecture"] = "sparc".into());
    handmade("count", &|image| image.config["rootfs"]["diff_ids"] = serde_json::json!([]));
    handmade("size", &|image| image.manifest["layers"][0]["size"] = 7.into());
    handmade("longer", &|image| image.manifest["layers"][0]["size"] = 100_000.into());
    handmade("diff", &|image| image.config["rootfs"]["diff_ids"][0] = Digest::of(b"other").to_string().into());
    handmade("foreign", &|image| {
        image.manifest["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
    });
    handmade("gone", &|image| image.blobs.clear());

    use ErrorKind::{DigestMismatch, InvalidArgument, InvalidImage, NotFound, Unsupported};
    let table = [
        ("nothing-there", NotFound),
        ("empty", InvalidImage),
        ("text", InvalidImage),
        ("other.tar", InvalidImage),
        ("manifest.tar", InvalidImage),
        ("broken.tar", InvalidImage),
        ("missing.tar", InvalidImage),
        ("escape.tar", InvalidImage),
        ("index.tar", InvalidImage),
        ("cut.tar", InvalidImage),
        ("cut.tar.gz", InvalidImage),
        ("unnamed.tar", InvalidArgument),
        ("directory", InvalidImage),
        ("arch", InvalidImage),
        ("count", InvalidImage),
        ("size", DigestMismatch),
        ("longer", DigestMismatch),
        ("diff", DigestMismatch),
        ("foreign", Unsupported),
        ("gone", InvalidImage),
    ];
    for (name, kind) in table {
        let error = place.store.import(place.path(name), ImportOptions::new()).unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
        assert!(place.store.list().unwrap().is_empty(), "{name}");
        assert_eq!(place.layers(), 0, "{name}");
        place.assert_good();
    }
    let import = |options| place.store.import(place.path("good.tar"), options).unwrap_err().kind();
    let cancel = Cancel::new();
    cancel.cancel();
    assert_eq!(import(ImportOptions::new().cancel(cancel)), ErrorKind::Cancelled);
    assert_eq!(import(ImportOptions::new().reference("Bad")), ErrorKind::InvalidReference);
    assert_eq!(import(ImportOptions::new().concurrency(0)), ErrorKind::InvalidArgument);
    assert_eq!(import(ImportOptions::new().max_layer_bytes(100)), ErrorKind::InvalidLayer);
    place.store.import(place.path("good.tar"), ImportOptions::new()).unwrap();
    place.assert_good();
}
