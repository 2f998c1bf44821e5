//! Pushing to a real registry what other tools then read.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod image_support;

use gpucontainer::image::{Credentials, Image, ImageStore, PushOptions};
use gpucontainer::{Cancel, Digest, ErrorKind, Phase};
use image_support::front::{Front, answer, ask, forward};
use image_support::pushing::{behind, built, pull, pulled, push, raw_manifest, requests};
use image_support::{Place, Registry, noise, run, umoci_layout};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn ready() -> bool {
    common::tier("registry") && common::tools("registry", &["umoci"])
}

/// Names, kinds, modes and contents below a directory.
fn tree(directory: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut below = vec![directory.to_owned()];
    while let Some(next) = below.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let about = std::fs::symlink_metadata(&path).unwrap();
            let contents = if about.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
            found.push((path.strip_prefix(directory).unwrap().display().to_string(), about.mode(), contents));
            if about.is_dir() {
                below.push(path);
            }
        }
    }
    found.sort();
    found
}

fn trees(image: &Image) -> Vec<Vec<(String, u32, Vec<u8>)>> {
    image.layers().unwrap().iter().map(|layer| tree(layer.path())).collect()
}

#[test]
fn an_image_comes_back_as_it_was_and_is_sent_once() {
    if !ready() {
        return;
    }
    let leaks = common::Leaks::watch();
    let place = Place::new();
    let (registry, front) = behind(&place, |_, _, _| false);
    let image = built(&place, 300_000);
    let mut reports = Vec::new();
    let digest = place.store.push(&image, &front.name("team/built:1"), push().progress(|p| reports.push(p))).unwrap();
    let phases: Vec<Phase> = reports.iter().map(|report| report.phase).collect();
    assert!(phases.contains(&Phase::Pushing) && phases.last() == Some(&Phase::Done), "{reports:?}");
    assert!(reports.iter().all(|report| report.total.is_none_or(|total| report.bytes <= total)), "{reports:?}");

    let raw = raw_manifest(&registry.name("team/built:1"));
    assert_eq!(Digest::of(raw.as_bytes()), digest);
    assert!(raw.contains("tar+gzip"), "{raw}");
    let again = pulled(&place, &registry.name("team/built:1"));
    assert_eq!((again.id(), again.manifest_digest()), (image.id(), digest));
    assert_eq!(trees(&again), trees(&image));
    // And another tool unpacks it.
    let copy = place.path("copy");
    run(Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false"])
        .arg(format!("docker://{}", registry.name("team/built:1")))
        .arg(format!("oci:{}:1", copy.display())));

    let sent = requests(&front, "PATCH").len();
    assert_eq!(sent, 2, "one layer, one configuration");
    let mut reports = Vec::new();
    let second = place.store.push(&image, &front.name("team/built:2"), push().progress(|p| reports.push(p.phase)));
    assert_eq!(second.unwrap(), digest);
    assert_eq!(requests(&front, "PATCH").len(), sent, "nothing is sent again");
    assert_eq!(reports.last(), Some(&Phase::Present));
    // The one that was pulled has the registry's own layers: not even compressed again.
    let mut reports = Vec::new();
    let store = ImageStore::open(again.layers().unwrap()[0].path().ancestors().nth(4).unwrap()).unwrap();
    let name = front.name("team/built:3");
    assert_eq!(store.push(&again, &name, push().progress(|p| reports.push(p.phase))).unwrap(), digest);
    assert_eq!(reports, [Phase::Present]);
    place.assert_good();
    drop((registry, front, store, again, image, place));
    leaks.check();
}

#[test]
fn what_the_registry_has_elsewhere_is_mounted() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let (registry, front) = behind(&place, |_, _, _| false);
    let layout = umoci_layout(&place.path(""), 3, 50_000);
    registry.push(&format!("oci:{}:v1", layout.display()), "from:1", &[]);
    let image = place.store.pull(&front.name("from:1"), pull()).unwrap();
    let digest = place.store.push(&image, &front.name("team/to:1"), push()).unwrap();
    assert_eq!(digest, image.manifest_digest());
    let posts: Vec<String> = requests(&front, "POST").into_iter().map(|request| request.path).collect();
    let mounts = posts.iter().filter(|path| path.contains("mount=") && path.contains("from=from")).count();
    assert_eq!((mounts, requests(&front, "PATCH").len()), (3, 1), "only the configuration is sent: {posts:?}");
    assert_eq!(pulled(&place, &registry.name("team/to:1")).id(), image.id());
    place.assert_good();
}

#[test]
fn images_of_other_tools_stay_what_they_are_in_another_registry() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let (one, two) = (Registry::start(&place.path("one"), "", ""), Registry::start(&place.path("two"), "", ""));
    let layout = umoci_layout(&place.path(""), 2, 50_000);
    let source = format!("oci:{}:v1", layout.display());
    one.push(&source, "oci:1", &[]);
    one.push(&source, "zstd:1", &["--dest-compress-format", "zstd"]);
    one.push(&source, "docker:1", &["--format", "v2s2"]);
    for name in ["oci:1", "zstd:1", "docker:1"] {
        let image = place.store.pull(&one.name(name), pull()).unwrap();
        let digest = place.store.push(&image, &two.name(name), push()).unwrap();
        let raw = raw_manifest(&two.name(name));
        assert_eq!(Digest::of(raw.as_bytes()), digest);
        let manifest: serde_json::Value = serde_json::from_str(&raw).unwrap();
        let kinds: Vec<&str> =
            manifest["layers"].as_array().unwrap().iter().map(|layer| layer["mediaType"].as_str().unwrap()).collect();
        let kind = match name {
            "docker:1" => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            _ => "application/vnd.oci.image.layer.v1.tar+gzip",
        };
        assert_eq!(kinds, [kind; 2], "{name}");
        let again = pulled(&place, &two.name(name));
        assert_eq!((again.id(), trees(&again)), (image.id(), trees(&image)), "{name}");
    }
    place.assert_good();
}

/// Debian's registry begins anew when asked for the state of an upload that broke off; the front remembers for it.
#[test]
fn an_upload_that_breaks_off_goes_on_where_it_broke() {
    if !ready() {
        return;
    }
    const PART: usize = 700_000;
    for remembers in [true, false] {
        let place = Place::new();
        let count = AtomicU64::new(0);
        let state = Mutex::new(String::new());
        let (registry, front) = behind(&place, move |port, request, stream| {
            if request.method == "GET" && request.path.contains("/uploads/") && remembers {
                let range = format!("0-{}", count.load(Ordering::SeqCst).min(2) * PART as u64 - 1);
                let location = state.lock().unwrap().clone();
                let headers = [("Location", location.as_str()), ("Range", &range)];
                answer(stream, "204 No Content", &headers, b"");
                return true;
            }
            if request.method != "PATCH" || request.body.len() < 10_000 {
                return false;
            }
            let number = count.fetch_add(1, Ordering::SeqCst);
            if number < 2 && (remembers || number == 0) {
                // The registry gets a part, the client no answer.
                let mut part = request.clone();
                part.body.truncate(PART);
                part.headers.insert("content-length".to_owned(), PART.to_string());
                if number == 1 {
                    part.headers.insert("content-range".to_owned(), format!("{PART}-{}", 2 * PART - 1));
                }
                let said = std::io::read_to_string(ask(port, &part)).unwrap();
                let location = said.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
                location.trim().clone_into(&mut state.lock().unwrap());
            } else if number == 2 && remembers {
                answer(stream, "503 Service Unavailable", &[], b"");
            } else {
                return false;
            }
            true
        });
        let image = built(&place, 3_000_000);
        place.store.push(&image, &front.name("x:1"), push()).unwrap();
        let start = |range: &str| range.split('-').next().unwrap().parse::<usize>().unwrap();
        let starts: Vec<Option<usize>> = requests(&front, "PATCH")
            .iter()
            .filter(|request| request.body.len() > 10_000)
            .map(|request| request.header("content-range").map(start))
            .collect();
        let expected: &[_] =
            if remembers { &[None, Some(PART), Some(2 * PART), Some(2 * PART)] } else { &[None, None] };
        assert_eq!(starts, expected);
        assert_eq!(trees(&pulled(&place, &registry.name("x:1"))), trees(&image));
        place.assert_good();
    }
}

#[test]
fn an_upload_that_the_registry_forgot_begins_anew_and_a_hopeless_one_ends() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let count = AtomicU64::new(0);
    let (registry, front) = behind(&place, move |_, request, stream| {
        let first = request.method == "PATCH" && count.fetch_add(1, Ordering::SeqCst) == 0;
        if first {
            answer(stream, "404 Not Found", &[], br#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"gone"}]}"#);
        }
        first
    });
    let image = built(&place, 100_000);
    place.store.push(&image, &front.name("x:1"), push()).unwrap();
    assert_eq!(pulled(&place, &registry.name("x:1")).id(), image.id());
    drop((registry, front));

    let other = Place::new();
    let (_registry, front) = behind(&other, |_, request, _| request.method == "PATCH");
    let image = built(&other, 100_000);
    let error = other.store.push(&image, &front.name("x:1"), push()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network, "{error}");
    assert!(error.to_string().contains("PATCH"), "{error}");
    assert!(front.seen().len() < 40, "the attempts are bounded");
    other.assert_good();
}

#[test]
fn who_may_not_write_is_told_so() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let image = built(&place, 1000);
    // `user` with the password `secret`, as `htpasswd -B` writes it.
    let line = "user:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n";
    std::fs::write(place.path("htpasswd"), line).unwrap();
    let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", place.path("htpasswd").display());
    let registry = Registry::start(&place.path("registry"), "", &auth);
    let name = registry.name("x:1");
    let with = |credentials| PushOptions::new().credentials(credentials);
    for credentials in [Credentials::anonymous(), Credentials::password("user", "wrong")] {
        let error = place.store.push(&image, &name, with(credentials)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
        assert!(!error.to_string().contains("wrong"), "the password is not shown: {error}");
    }
    place.store.push(&image, &name, with(Credentials::password("user", "secret"))).unwrap();
    drop(registry);
    let error = place.store.push(&image, &name, push()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network, "nobody listens: {error}");
    for (status, kind) in [
        ("403 Forbidden", ErrorKind::Authentication),
        ("405 Method Not Allowed", ErrorKind::Registry),
        ("413 Payload Too Large", ErrorKind::Registry),
        ("400 Bad Request", ErrorKind::Registry),
    ] {
        let front = Front::start(move |request, stream| match request.method.as_str() {
            "HEAD" => answer(stream, "404 Not Found", &[], b""),
            _ => answer(stream, status, &[], br#"{"errors":[{"code":"X","message":"because of this"}]}"#),
        });
        let error = place.store.push(&image, &front.name("x:1"), push()).unwrap_err();
        assert_eq!(error.kind(), kind, "{status}: {error}");
        assert!(error.to_string().contains("because of this"), "{status}: {error}");
        assert!(error.to_string().contains(&format!("127.0.0.1:{}", front.port)), "{error}");
    }
    place.assert_good();
}

/// A token server of its own, that signs nothing: the front is the registry that believes it.
#[test]
fn a_token_is_asked_for_writing_and_an_expired_one_is_renewed() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let image = built(&place, 200_000);
    let number = Arc::new(AtomicU64::new(0));
    let count = number.clone();
    let tokens = Front::start(move |_, stream| {
        let token = format!("{{\"token\":\"t{}\"}}", count.fetch_add(1, Ordering::SeqCst));
        answer(stream, "200 OK", &[], token.as_bytes());
    });
    let realm = format!("http://127.0.0.1:{}/token", tokens.port);
    let (registry, front) = behind(&place, move |_, request, stream| {
        // Each is good until the first piece of a blob came with it.
        let newest = format!("Bearer t{}", number.load(Ordering::SeqCst).wrapping_sub(1));
        let spent = request.method == "PATCH" && newest == "Bearer t0";
        if request.header("authorization") == Some(&newest) && !spent {
            return false;
        }
        let challenge = format!("Bearer realm=\"{realm}\",service=\"s\",scope=\"repository:x:pull\"");
        answer(stream, "401 Unauthorized", &[("WWW-Authenticate", &challenge)], b"");
        true
    });
    place.store.push(&image, &front.name("x:1"), push().concurrency(1)).unwrap();
    assert_eq!(pulled(&place, &registry.name("x:1")).id(), image.id());
    let asked: Vec<String> = tokens.seen().into_iter().map(|request| request.path).collect();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked.iter().all(|path| path.contains("repository%3Ax%3Apull%2Cpush")), "{asked:?}");
    place.assert_good();
}

#[test]
fn a_registry_that_leads_elsewhere_gets_no_credentials_sent_there() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let image = built(&place, 50_000);
    let inner = Registry::start(&place.path("registry"), "", "");
    let port = inner.port;
    let storage = Front::start(move |request, stream| forward(port, request, stream, u64::MAX));
    let target = storage.port;
    let front = Front::start(move |request, stream| {
        if request.header("authorization").is_none() {
            return answer(stream, "401 Unauthorized", &[("WWW-Authenticate", "Basic realm=\"x\"")], b"");
        }
        if request.method == "PATCH" {
            let location = format!("http://localhost:{target}{}", request.path);
            return answer(stream, "307 Temporary Redirect", &[("Location", &location)], b"");
        }
        forward(port, request, stream, u64::MAX);
    });
    let login = PushOptions::new().credentials(Credentials::password("user", "secret"));
    place.store.push(&image, &front.name("x:1"), login).unwrap();
    let seen = storage.seen();
    assert!(!seen.is_empty() && seen.iter().all(|request| request.header("authorization").is_none()), "{seen:?}");
    assert_eq!(pulled(&place, &inner.name("x:1")).id(), image.id());

    // And those that lead nowhere, or in circles.
    for location in ["", "::::", "ftp://127.0.0.1/x", "http://user:password@127.0.0.1/x", "/v2/again"] {
        let front = Front::start(move |request, stream| match request.method.as_str() {
            "HEAD" => answer(stream, "404 Not Found", &[], b""),
            "POST" if location == "/v2/again" => answer(stream, "308 Moved", &[("Location", location)], b""),
            "POST" => answer(stream, "202 Accepted", &[("Location", location)], b""),
            _ => answer(stream, "404 Not Found", &[], b""),
        });
        let error = place.store.push(&image, &front.name("x:1"), push()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Registry, "{location:?}: {error}");
        assert!(front.seen().len() < 40, "{location:?}");
    }
    // One that says that something else arrived.
    let wrong = Digest::of(b"something else").to_string();
    let (_registry, front) = behind(&place, move |_, request, stream| {
        let last = request.method == "PUT" && request.path.contains("/manifests/");
        if last {
            answer(stream, "201 Created", &[("Docker-Content-Digest", &wrong)], b"");
        }
        last
    });
    let error = place.store.push(&image, &front.name("y:1"), push()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{error}");
    place.assert_good();
}

#[test]
fn what_cannot_be_pushed_is_refused_before_anything_is_sent() {
    if !ready() {
        return;
    }
    let (place, other) = (Place::new(), Place::new());
    let front = Front::start(|_, stream| answer(stream, "500 Error", &[], b""));
    let (image, foreign) = (built(&place, 1000), built(&other, 1000));
    let store = &place.store;
    let pinned = format!("{}@{}", front.name("x"), image.manifest_digest());
    let name = front.name("x:1");
    let switched = Cancel::new();
    switched.cancel();
    for (case, result, kind) in [
        ("digest", store.push(&image, &pinned, push()), ErrorKind::InvalidReference),
        ("reference", store.push(&image, "NO SUCH", push()), ErrorKind::InvalidReference),
        ("store", store.push(&foreign, &name, push()), ErrorKind::InvalidArgument),
        ("none at a time", store.push(&image, &name, push().concurrency(0)), ErrorKind::InvalidArgument),
        ("no time", store.push(&image, &name, push().timeout(Duration::ZERO)), ErrorKind::InvalidArgument),
        ("no pem", store.push(&image, &name, push().certificate_authority("x")), ErrorKind::InvalidArgument),
        ("cancelled", store.push(&image, &name, push().cancel(switched)), ErrorKind::Cancelled),
    ] {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind, "{case}: {error}");
    }
    assert!(front.seen().is_empty());

    // A layer that somebody changed is not sent as what it was.
    let (registry, front) = behind(&place, |_, _, _| false);
    let file = image.layers().unwrap()[0].path().join("data/noise");
    std::fs::write(&file, noise(1000, 2)).unwrap();
    let error = store.push(&image, &front.name("x:1"), push()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(requests(&front, "PATCH").is_empty());
    std::fs::remove_file(file.ancestors().nth(3).unwrap().join("archive")).unwrap();
    let error = store.push(&image, &front.name("x:1"), push()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    drop(registry);
    place.assert_good();
}

#[test]
fn cancel_does_not_wait_for_a_registry_that_says_nothing() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let image = built(&place, 100_000);
    let released = Arc::new(AtomicU64::new(0));
    let hold = released.clone();
    let (_registry, front) = behind(&place, move |_, request, _| {
        while request.method == "PATCH" && hold.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        request.method == "PATCH"
    });
    let cancel = Cancel::new();
    let switch = cancel.clone();
    let start = Instant::now();
    let hour = push().timeout(Duration::from_secs(3600)).cancel(cancel);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            while requests(&front, "PATCH").is_empty() {
                std::thread::sleep(Duration::from_millis(5));
            }
            switch.cancel();
        });
        place.store.push(&image, &front.name("x:1"), hour).unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert!(start.elapsed() < Duration::from_secs(60));
    released.store(1, Ordering::SeqCst);
    place.assert_good();
}

#[test]
#[ignore = "only the other tests run it, in a process of its own"]
fn push_as_a_process_of_its_own() {
    let (Some(store), Ok(name)) = (std::env::var_os("GPUC_TEST_STORE"), std::env::var("GPUC_TEST_NAME")) else {
        return;
    };
    let store = ImageStore::open(store).unwrap();
    store.push(&store.image("built:1").unwrap(), &name, push()).unwrap();
}

#[test]
fn a_push_killed_at_any_instant_leaves_a_good_store_and_no_half_image() {
    use std::os::unix::process::ExitStatusExt;
    if !ready() {
        return;
    }
    let leaks = common::Leaks::watch();
    let place = Place::new();
    let registry = Registry::start(&place.path("registry"), "", "");
    let image = built(&place, 4_000_000);
    let start = |name: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "push_as_a_process_of_its_own", "--ignored"]);
        command.env("GPUC_TEST_STORE", place.store.path()).env("GPUC_TEST_NAME", registry.name(name));
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
    };
    let whole = {
        let before = Instant::now();
        assert!(start("measured:1").wait().unwrap().success());
        before.elapsed()
    };
    const POINTS: u32 = 16;
    let mut killed = 0;
    for point in 0..POINTS {
        let name = format!("killed{point}:1");
        let mut child = start(&name);
        // Killed at instants spread over the whole push: this is what is being tested, not a wait for luck.
        std::thread::sleep(whole * point / POINTS);
        child.kill().unwrap();
        killed += u32::from(child.wait().unwrap().signal() == Some(9));
        place.assert_good_after_reopening();
        let fresh = tempfile::tempdir_in(place.path("")).unwrap();
        match ImageStore::open(fresh.path()).unwrap().pull(&registry.name(&name), pull()) {
            Ok(whole) => assert_eq!(whole.id(), image.id()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ImageNotFound, "{error}"),
        }
        assert_eq!(
            place.store.push(&image, &registry.name(&name), push()).unwrap(),
            Digest::of(raw_manifest(&registry.name(&name)).as_bytes())
        );
    }
    assert!(killed > POINTS / 2, "only {killed} were killed in time");
    drop((registry, image, place));
    leaks.check();
}
