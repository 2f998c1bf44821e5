//! Pushing to registries that refuse, forget and fail, and images that say of themselves what is not so.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod image_support;

use gpucontainer::image::{ImageStore, ImportOptions, PushOptions};
use gpucontainer::{Digest, ErrorKind};
use image_support::front::{Front, answer};
use image_support::pushing::{behind, built, pulled, push, raw_manifest, requests};
use image_support::{Place, umoci_layout};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

fn ready() -> bool {
    common::tier("registry") && common::tools("registry", &["umoci"])
}

/// Pieces of layers, which are larger than the configuration.
fn pieces(front: &Front) -> usize {
    requests(front, "PATCH").iter().filter(|request| request.body.len() > 10_000).count()
}

/// The manifest of a layout's one image is what `change` makes of it.
fn change_manifest(layout: &Path, change: impl FnOnce(&mut Value)) {
    let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
    let read = |path: PathBuf| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let mut index = read(layout.join("index.json"));
    let mut manifest = read(blob(index["manifests"][0]["digest"].as_str().unwrap()));
    change(&mut manifest);
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let digest = Digest::of(&bytes).to_string();
    std::fs::write(blob(&digest), &bytes).unwrap();
    index["manifests"][0]["digest"] = digest.into();
    index["manifests"][0]["size"] = bytes.len().into();
    std::fs::write(layout.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
}

#[test]
fn what_was_sent_is_not_sent_again_for_a_moment_s_failure() {
    if !ready() {
        return;
    }
    for refused in ["PUT", "GET"] {
        let place = Place::new();
        let (puts, gets) = (AtomicU64::new(0), AtomicU64::new(0));
        let (registry, front) = behind(&place, move |_, request, stream| {
            let first = match request.method.as_str() {
                "PUT" if request.path.contains("digest=") => puts.fetch_add(1, Ordering::SeqCst) == 0,
                "GET" if request.path.contains("/uploads/") => gets.fetch_add(1, Ordering::SeqCst) == 0,
                _ => false,
            };
            let fails = first && (request.method == "PUT" || refused == "GET");
            if fails {
                answer(stream, "503 Service Unavailable", &[], b"");
            }
            fails
        });
        let image = built(&place, 300_000);
        place.store.push(&image, &front.name("x:1"), push().concurrency(1)).unwrap();
        assert_eq!(pieces(&front), 1, "{refused}");
        assert_eq!(pulled(&place, &registry.name("x:1")).id(), image.id());
        place.assert_good();
    }
}

#[test]
fn a_registry_may_be_away_for_a_while() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let count = AtomicU64::new(0);
    let away = AtomicU64::new(0);
    let (registry, front) = behind(&place, move |_, request, _| {
        let is_layer = request.method == "PATCH" && request.body.len() > 10_000;
        if is_layer && count.fetch_add(1, Ordering::SeqCst) == 0 {
            // Closed without an answer, and so are the next ones: more than one request is repeated.
            away.store(6, Ordering::SeqCst);
            return true;
        }
        away.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    });
    let image = built(&place, 300_000);
    place.store.push(&image, &front.name("x:1"), push().concurrency(1)).unwrap();
    assert_eq!(pulled(&place, &registry.name("x:1")).id(), image.id());
    place.assert_good();
}

#[test]
fn a_mount_that_is_refused_ends_nothing() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let (registry, front) = behind(&place, |_, request, stream| {
        let mounts = request.path.contains("mount=");
        if mounts {
            answer(stream, "403 Forbidden", &[], br#"{"errors":[{"code":"DENIED","message":"not yours"}]}"#);
        }
        mounts
    });
    // As if it had come from there: the name is all that says so.
    let image = place.store.tag(&built(&place, 100_000), &front.name("theirs/x:1")).unwrap();
    place.store.push(&image, &front.name("mine/x:1"), push()).unwrap();
    assert!(front.seen().iter().any(|request| request.path.contains("from=theirs")));
    assert_eq!(pulled(&place, &registry.name("mine/x:1")).id(), image.id());
    place.assert_good();
}

#[test]
fn a_token_server_that_gives_less_than_was_wished_for_ends_nothing() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let tokens = Front::start(|request, stream| {
        let refused = request.path.contains("theirs");
        let status = if refused { "403 Forbidden" } else { "200 OK" };
        answer(stream, status, &[], b"{\"token\":\"good\"}");
    });
    let realm = format!("http://127.0.0.1:{}/token", tokens.port);
    let (registry, front) = behind(&place, move |_, request, stream| {
        if request.header("authorization") == Some("Bearer good") {
            return false;
        }
        let challenge = format!("Bearer realm=\"{realm}\",service=\"s\"");
        answer(stream, "401 Unauthorized", &[("WWW-Authenticate", &challenge)], b"");
        true
    });
    let image = place.store.tag(&built(&place, 100_000), &front.name("theirs/x:1")).unwrap();
    place.store.push(&image, &front.name("mine/x:1"), push()).unwrap();
    assert!(front.seen().iter().all(|request| !request.path.contains("mount=")), "it may not read there");
    assert_eq!(pulled(&place, &registry.name("mine/x:1")).id(), image.id());
    place.assert_good();
}

#[test]
fn a_range_that_cannot_be_begins_the_upload_anew() {
    if !ready() {
        return;
    }
    for range in ["0-18446744073709551615", "0--1", "0-99999999", "5-9", ""] {
        let place = Place::new();
        let count = AtomicU64::new(0);
        let (registry, front) = behind(&place, move |_, request, stream| {
            if request.method == "GET" && request.path.contains("/uploads/") {
                answer(stream, "204 No Content", &[("Location", &request.path), ("Range", range)], b"");
                return true;
            }
            let is_layer = request.method == "PATCH" && request.body.len() > 10_000;
            is_layer && count.fetch_add(1, Ordering::SeqCst) == 0
        });
        let image = built(&place, 100_000);
        place.store.push(&image, &front.name("x:1"), push().concurrency(1)).unwrap();
        let starts: Vec<bool> =
            requests(&front, "PATCH").iter().map(|request| request.header("content-range").is_some()).collect();
        assert!(!starts.contains(&true), "{range}: {starts:?}");
        assert_eq!(pulled(&place, &registry.name("x:1")).id(), image.id(), "{range}");
        place.assert_good();
    }
}

#[test]
fn a_configuration_of_another_size_is_no_image() {
    if !ready() {
        return;
    }
    for known in [false, true] {
        for wrong in [-1_i64, 1] {
            let place = Place::new();
            let layout = umoci_layout(&place.path(""), 1, 0);
            if known {
                place.store.import(&layout, ImportOptions::new().reference("right:1")).unwrap();
            }
            change_manifest(&layout, |manifest| {
                let size = manifest["config"]["size"].as_i64().unwrap() + wrong;
                manifest["config"]["size"] = size.into();
            });
            let error = place.store.import(&layout, ImportOptions::new().reference("wrong:1")).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::InvalidImage | ErrorKind::DigestMismatch), "{error}");
            place.assert_good();
        }
    }
}

#[test]
fn what_was_said_of_the_bytes_before_is_not_said_of_others() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let (registry, front) = behind(&place, |_, _, _| false);
    let layout = umoci_layout(&place.path(""), 1, 20_000);
    change_manifest(&layout, |manifest| {
        manifest["annotations"] = json!({ "of.the": "image" });
        let layer = &mut manifest["layers"][0];
        layer["annotations"] = json!({ "containerd.io/snapshot/stargz/toc.digest": "sha256:0" });
        layer["urls"] = json!(["https://example.com/layer"]);
    });
    let image = place.store.import(&layout, ImportOptions::new().reference("x:1")).unwrap();
    place.store.push(&image, &front.name("x:1"), push()).unwrap();
    let manifest: Value = serde_json::from_str(&raw_manifest(&registry.name("x:1"))).unwrap();
    let layer = manifest["layers"][0].as_object().unwrap();
    assert_eq!(layer.keys().collect::<Vec<_>>(), ["digest", "mediaType", "size"], "{layer:?}");
    assert_eq!(manifest["annotations"]["of.the"], "image");
    assert_eq!(pulled(&place, &registry.name("x:1")).id(), image.id());
    place.assert_good();
}

#[test]
#[ignore = "only the other tests run it, in a process of its own"]
fn push_as_a_process_of_its_own() {
    let (Some(store), Ok(name)) = (std::env::var_os("GPUC_TEST_STORE"), std::env::var("GPUC_TEST_NAME")) else {
        return;
    };
    let store = ImageStore::open(store).unwrap();
    store.push(&store.image("built:1").unwrap(), &name, PushOptions::new()).unwrap();
}

/// What is for this machine would be for another one behind the proxy.
#[test]
fn a_registry_of_this_machine_is_reached_without_a_proxy() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let proxy = Front::start(|_, stream| answer(stream, "502 Bad Gateway", &[], b""));
    let (registry, _front) = behind(&place, |_, _, _| false);
    let image = built(&place, 1000);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "push_as_a_process_of_its_own", "--ignored"]);
    command.env("GPUC_TEST_STORE", place.store.path()).env("GPUC_TEST_NAME", registry.name("x:1"));
    for name in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"] {
        command.env(name, format!("http://127.0.0.1:{}", proxy.port));
    }
    command.env_remove("NO_PROXY").env_remove("no_proxy").env("HOME", place.path("")).env_remove("REGISTRY_AUTH_FILE");
    assert!(command.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap().success());
    assert!(proxy.seen().is_empty());
    assert_eq!(pulled(&place, &registry.name("x:1")).id(), image.id());
}
