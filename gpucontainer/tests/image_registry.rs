//! Pulling from a real registry what other tools pushed.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

#[path = "image_registry/authentication.rs"]
mod authentication;
mod common;
mod image_support;

use gpucontainer::image::{Credentials, ImageStore, PullOptions};
use gpucontainer::{Cancel, Digest, ErrorKind, Phase};
use image_support::front::{Front, answer, forward};
use image_support::{Place, Registry, architecture, read, run, umoci_layout};
use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn options() -> PullOptions<'static> {
    // The user's own credentials have no place in a test.
    PullOptions::new().credentials(Credentials::anonymous())
}

fn ready() -> bool {
    common::tier("registry") && common::tools("registry", &["umoci", "openssl", "base64"])
}

#[test]
fn every_form_that_tools_push_is_pulled() {
    if !ready() {
        return;
    }
    let leaks = common::Leaks::watch();
    let place = Place::new();
    let registry = Registry::start(&place.path("registry"), "", "");
    let layout = umoci_layout(&place.path(""), 3, 100_000);
    let source = format!("oci:{}:v1", layout.display());
    registry.push(&source, "gzip:1", &[]);
    registry.push(&source, "team/zstd:1", &["--dest-compress-format", "zstd"]);
    registry.push(&source, "docker:1", &["--format", "v2s2"]);
    let unpacked = place.path("plain");
    run(Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy", "--dest-decompress", &source])
        .arg(format!("dir:{}", unpacked.display())));
    registry.push(&format!("dir:{}", unpacked.display()), "plain:1", &[]);

    let mut ids = Vec::new();
    for name in ["gzip:1", "team/zstd:1", "docker:1", "plain:1"] {
        // Each from nothing, or the first would have brought all layers.
        let fresh = ImageStore::open(place.path(&format!("store-{}", name.replace('/', "-")))).unwrap();
        let mut reports = Vec::new();
        let image = fresh.pull(&registry.name(name), options().progress(|p| reports.push(p))).unwrap();
        assert_eq!(image.reference().to_string(), registry.name(name));
        for number in 0..3 {
            assert_eq!(read(&image, &format!("etc/layer-{number}")).unwrap(), format!("layer {number}"), "{name}");
        }
        let noise = std::fs::read(image.layers().unwrap()[2].path().join("etc/noise-2")).unwrap();
        assert_eq!(noise, image_support::noise(100_000, 2));
        let config = image.config();
        assert_eq!((config.env.as_slice(), config.user.as_str()), (&["A=1".to_owned()][..], "1000"));
        assert_eq!((config.command.as_slice(), config.working_dir.as_str()), (&["/bin/sh".to_owned()][..], "/work"));
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert_eq!(config.labels["maker"], "umoci");
        ids.push((image.id(), image.layers().unwrap().iter().map(|layer| layer.diff_id()).collect::<Vec<_>>()));

        let done = reports.iter().filter(|p| p.phase == Phase::Done).count();
        assert_eq!(done, 3, "{reports:?}");
        assert!(reports.iter().all(|p| p.total.is_some_and(|total| p.bytes <= total)));

        // By digest, and again: nothing is fetched twice.
        let (repository, _) = name.split_once(':').unwrap();
        let pinned = format!("{}@{}", registry.name(repository), image.manifest_digest());
        assert_eq!(fresh.pull(&pinned, options()).unwrap().id(), image.id());
        let mut reports = Vec::new();
        fresh.pull(&registry.name(name), options().progress(|p| reports.push(p.phase))).unwrap();
        assert_eq!(reports, [Phase::Present; 3]);
        assert_eq!(std::fs::read_dir(fresh.path().join("staging")).unwrap().count(), 0);
    }
    assert!(ids.iter().all(|(_, layers)| *layers == ids[0].1), "the plain forms are the same");

    // All of them in one store share their layers.
    for name in ["gzip:1", "team/zstd:1", "docker:1", "plain:1"] {
        place.store.pull(&registry.name(name), options()).unwrap();
    }
    assert_eq!((place.layers(), place.store.list().unwrap().len()), (3, 4));
    place.assert_good();
    drop((registry, place));
    leaks.check();
}

#[test]
fn an_index_gives_the_image_of_the_platform() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let registry = Registry::start(&place.path("registry"), "", "");
    let mut entries = Vec::new();
    for (number, arch) in ["amd64", "arm64", "s390x"].iter().enumerate() {
        let directory = place.path(arch);
        std::fs::create_dir(&directory).unwrap();
        let layout = umoci_layout(&directory, 1, 0);
        let image = format!("{}:v1", layout.display());
        run(Command::new("umoci").args(["config", "--image", &image, "--architecture", arch]));
        run(Command::new("umoci").args(["config", "--image", &image, "--config.env", &format!("NUMBER={number}")]));
        registry.push(&format!("oci:{image}"), &format!("multi:{arch}"), &[]);
        let raw = run(Command::new("skopeo")
            .args(["inspect", "--raw", "--tls-verify=false"])
            .arg(format!("docker://{}", registry.name(&format!("multi:{arch}")))));
        entries.push(serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": Digest::of(raw.as_bytes()).to_string(),
            "size": raw.len(), "platform": {"os": "linux", "architecture": arch}
        }));
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).to_string();
    registry.put_manifest("multi", "all", media_type, &index);

    let image = place.store.pull(&registry.name("multi:all"), options()).unwrap();
    assert_eq!(image.config().architecture, architecture());
    let other = options().platform("linux/s390x".parse().unwrap());
    let image = place.store.pull(&registry.name("multi:all"), other).unwrap();
    assert_eq!((image.config().architecture.as_str(), &image.config().env[1]), ("s390x", &"NUMBER=2".to_owned()));
    let pinned = format!("{}@{}", registry.name("multi"), Digest::of(index.as_bytes()));
    let image = place.store.pull(&pinned, options()).unwrap();
    assert_eq!(image.config().architecture, architecture());
    // Pinned by the index's digest, another platform is another image all the same.
    let other = options().platform("linux/s390x".parse().unwrap());
    assert_eq!(place.store.pull(&pinned, other).unwrap().config().architecture, "s390x");

    let missing = options().platform("linux/riscv64".parse().unwrap());
    let error = place.store.pull(&registry.name("multi:all"), missing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidImage, "{error}");
    let error = place.store.pull(&registry.name("multi:s390x"), options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidImage, "{error}");
    place.assert_good();
}

/// A registry with an image, behind a front that passes on all but what `blob` answers itself. `blob` gets
/// the number of the request for a layer and says whether it answered.
fn behind(
    place: &Place,
    layers: usize,
    bytes: usize,
    blob: impl Fn(u64, u16, &image_support::front::Request, &mut std::net::TcpStream) -> bool + Send + Sync + 'static,
) -> (Registry, Front) {
    let registry = Registry::start(&place.path("registry"), "", "");
    let layout = umoci_layout(&place.path(""), layers, bytes);
    registry.push(&format!("oci:{}:v1", layout.display()), "x:1", &[]);
    let port = registry.port;
    let count = AtomicU64::new(0);
    let front = Front::start(move |request, stream| {
        let handled =
            request.path.contains("/blobs/") && blob(count.fetch_add(1, Ordering::SeqCst), port, request, stream);
        if !handled {
            forward(port, request, stream, u64::MAX);
        }
    });
    (registry, front)
}

#[test]
fn a_broken_download_goes_on_where_it_broke() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let (_registry, front) = behind(&place, 1, 3_000_000, |number, port, request, stream| {
        // The first request for the layer and two resumptions are cut short.
        let cut = (1..=3).contains(&number);
        if cut {
            forward(port, request, stream, 700_000);
        }
        cut
    });
    let image = place.store.pull(&front.name("x:1"), options().concurrency(1)).unwrap();
    let noise = std::fs::read(image.layers().unwrap()[0].path().join("etc/noise-0")).unwrap();
    assert!(noise == image_support::noise(3_000_000, 0));
    let ranges: Vec<String> =
        front.seen().iter().filter_map(|request| request.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert!(ranges.iter().all(|range| range.starts_with("bytes=") && range.ends_with('-')));
    place.assert_good();
}

#[test]
fn a_registry_that_never_holds_a_connection_is_given_up() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let (_registry, front) = behind(&place, 1, 100_000, |number, port, request, stream| {
        if number > 0 {
            forward(port, request, stream, 1000);
        }
        number > 0
    });
    let error = place.store.pull(&front.name("x:1"), options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network, "{error}");
    assert!(front.seen().len() < 20, "the attempts are bounded");
    place.assert_good();
}

#[test]
fn a_silent_registry_is_given_up_and_cancel_does_not_wait_for_it() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let released = Arc::new(AtomicU64::new(0));
    let hold = released.clone();
    let (_registry, front) = behind(&place, 1, 100_000, move |number, port, request, stream| {
        if number > 0 {
            forward(port, request, stream, 1000);
            while hold.load(Ordering::SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        number > 0
    });
    // Cancelled while a read waits that would wait for an hour.
    let cancel = Cancel::new();
    let switch = cancel.clone();
    let start = Instant::now();
    let hour = options().timeout(Duration::from_secs(3600)).cancel(cancel);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            while front.seen().iter().filter(|request| request.path.contains("/blobs/")).count() < 2 {
                std::thread::sleep(Duration::from_millis(5));
            }
            switch.cancel();
        });
        place.store.pull(&front.name("x:1"), hour).unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert!(start.elapsed() < Duration::from_secs(60));
    place.assert_good();

    let error = place.store.pull(&front.name("x:1"), options().timeout(Duration::from_millis(50))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network, "{error}");
    place.assert_good();
    released.store(1, Ordering::SeqCst);
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_server() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let inner = Registry::start(&place.path("registry"), "", "");
    let layout = umoci_layout(&place.path(""), 1, 0);
    inner.push(&format!("oci:{}:v1", layout.display()), "x:1", &[]);
    let port = inner.port;
    let storage = Front::start(move |request, stream| {
        let mut request = request.clone();
        request.path = request.path.split('?').next().unwrap().to_owned();
        forward(port, &request, stream, u64::MAX);
    });
    let target = storage.port;
    let front = Front::start(move |request, stream| {
        if request.header("authorization").is_none() {
            return answer(stream, "401 Unauthorized", &[("WWW-Authenticate", "Basic realm=\"x\"")], b"");
        }
        if request.path.contains("/blobs/") {
            let location = format!("http://localhost:{target}{}?signature=1", request.path);
            return answer(stream, "307 Temporary Redirect", &[("Location", &location)], b"");
        }
        forward(port, request, stream, u64::MAX);
    });
    let login = PullOptions::new().credentials(Credentials::password("user", "secret"));
    place.store.pull(&front.name("x:1"), login).unwrap();
    assert!(front.seen().iter().any(|request| request.header("authorization").is_some()));
    let seen = storage.seen();
    assert_eq!(seen.len(), 2, "configuration and layer");
    assert!(seen.iter().all(|request| request.header("authorization").is_none()), "{seen:?}");
}

#[test]
fn credentials_do_not_go_where_another_server_wants_them() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let inner = Registry::start(&place.path("registry"), "", "");
    let layout = umoci_layout(&place.path(""), 1, 0);
    inner.push(&format!("oci:{}:v1", layout.display()), "x:1", &[]);
    let port = inner.port;
    let thief = Front::start(|_, stream| answer(stream, "200 OK", &[], b"{\"token\":\"abc\"}"));
    let realm = thief.port;
    for challenge in [format!("Bearer realm=\"http://localhost:{realm}/token\""), "Basic realm=\"x\"".to_owned()] {
        let storage = Front::start(move |_, stream| {
            answer(stream, "401 Unauthorized", &[("WWW-Authenticate", &challenge)], b"");
        });
        let target = storage.port;
        let front = Front::start(move |request, stream| {
            if request.path.contains("/blobs/") {
                let location = format!("http://localhost:{target}{}", request.path);
                return answer(stream, "307 Temporary Redirect", &[("Location", &location)], b"");
            }
            forward(port, request, stream, u64::MAX);
        });
        let login = PullOptions::new().credentials(Credentials::password("user", "secret"));
        let error = place.store.pull(&front.name("x:1"), login).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
        let seen = [front.seen(), storage.seen(), thief.seen()].concat();
        assert!(seen.iter().all(|request| request.header("authorization").is_none()), "{seen:?}");
    }
    assert!(thief.seen().is_empty());
    place.assert_good();
}

/// This test binary, told to pull.
fn puller(store: &Path, name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "pull_as_a_process_of_its_own", "--ignored", "--nocapture"])
        .env("GPUC_TEST_STORE", store)
        .env("GPUC_TEST_NAME", name)
        .env("XDG_RUNTIME_DIR", store)
        .env("XDG_CONFIG_HOME", store)
        .env("DOCKER_CONFIG", store)
        .env_remove("REGISTRY_AUTH_FILE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

#[test]
#[ignore = "only the other tests run it, in a process of its own"]
fn pull_as_a_process_of_its_own() {
    let (Some(store), Ok(name)) = (std::env::var_os("GPUC_TEST_STORE"), std::env::var("GPUC_TEST_NAME")) else {
        return;
    };
    let mut options = PullOptions::new();
    if let Some(ca) = std::env::var_os("GPUC_TEST_CA") {
        options = options.plain_http(false).certificate_authority(std::fs::read(ca).unwrap());
    }
    let image = ImageStore::open(store).unwrap().pull(&name, options);
    if let Err(error) = &image {
        println!("{error:?}");
    }
    assert_eq!(
        image.unwrap().layers().unwrap().len(),
        std::env::var("GPUC_TEST_LAYERS").map_or(1, |n| n.parse().unwrap())
    );
}

#[test]
fn an_ordinary_user_pulls_into_a_store_of_its_own() {
    use std::os::unix::process::CommandExt;
    if !ready() || !common::tier("root") {
        return;
    }
    let place = Place::new();
    let (_registry, front) = behind(&place, 2, 1000, |_, _, _, _| false);
    let store = place.path("of-nobody");
    // The directory above belongs to root and is closed to others, and so may be that of this binary.
    std::fs::set_permissions(place.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let binary = place.path("binary");
    std::fs::copy(std::env::current_exe().unwrap(), &binary).unwrap();
    std::fs::create_dir(&store).unwrap();
    std::os::unix::fs::chown(&store, Some(65534), Some(65534)).unwrap();
    for _ in 0..2 {
        let same = puller(&store, &front.name("x:1"));
        let mut child = Command::new(&binary);
        child.args(same.get_args()).envs(same.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = child.env("GPUC_TEST_LAYERS", "2").uid(65534).gid(65534).current_dir("/").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    for entry in std::fs::read_dir(store.join("layers/sha256")).unwrap() {
        let tree = entry.unwrap().path().join("tree/etc");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(tree).unwrap()), 65534);
    }
    let error = ImageStore::open(&store).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "root's layers are others: {error}");
    assert_eq!(std::fs::read_dir(store.join("staging")).unwrap().count(), 0);
}

#[test]
fn processes_that_pull_the_same_at_once_fetch_each_layer_once() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let (_registry, front) = behind(&place, 4, 500_000, |_, _, _, _| false);
    let name = front.name("x:1");
    let mut children: Vec<_> =
        (0..3).map(|_| puller(place.store.path(), &name).env("GPUC_TEST_LAYERS", "4").spawn().unwrap()).collect();
    // And this process, from two threads.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(place.store.pull(&name, options()).unwrap().layers().unwrap().len(), 4));
        }
    });
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let image = place.store.image(&name).unwrap();
    let manifest: serde_json::Value = {
        let file = place.store.path().join("blobs/sha256").join(image.manifest_digest().hex());
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    };
    let mut fetched: HashMap<String, u32> = HashMap::new();
    for request in front.seen() {
        *fetched.entry(request.path).or_default() += 1;
    }
    for layer in manifest["layers"].as_array().unwrap() {
        let path = format!("/v2/x/blobs/{}", layer["digest"].as_str().unwrap());
        assert_eq!(fetched.get(&path), Some(&1), "{fetched:?}");
    }
    assert_eq!(place.layers(), 4);
    place.assert_good();
}

#[test]
fn a_pull_killed_at_any_instant_leaves_a_good_store() {
    if !ready() {
        return;
    }
    let leaks = common::Leaks::watch();
    let place = Place::new();
    let (registry, _front) = behind(&place, 3, 1_000_000, |_, _, _, _| false);
    let name = registry.name("x:1");
    let whole = {
        let start = Instant::now();
        let mut child = puller(&place.path("measured"), &name).env("GPUC_TEST_LAYERS", "3").spawn().unwrap();
        assert!(child.wait().unwrap().success());
        start.elapsed()
    };
    const POINTS: u32 = 24;
    let mut killed = 0;
    for point in 0..POINTS {
        let store = place.path(&format!("killed-{point}"));
        let mut child = puller(&store, &name).env("GPUC_TEST_LAYERS", "3").spawn().unwrap();
        // Killed at instants spread over the whole pull: this is what is being tested, not a wait for luck.
        std::thread::sleep(whole * point / POINTS);
        child.kill().unwrap();
        killed += u32::from(child.wait().unwrap().signal() == Some(9));
        let store = ImageStore::open(&store).unwrap();
        assert_eq!(std::fs::read_dir(store.path().join("staging")).unwrap().count(), 0, "point {point}");
        // What is listed is whole, whenever it was killed.
        for image in store.list().unwrap() {
            assert_eq!(image.layers().unwrap().len(), 3);
        }
        let image = store.pull(&name, options()).unwrap();
        for (number, layer) in image.layers().unwrap().iter().enumerate() {
            let noise = std::fs::read(layer.path().join(format!("etc/noise-{number}"))).unwrap();
            assert!(noise == image_support::noise(1_000_000, number), "point {point}");
        }
        store.remove(&name).unwrap();
        drop(image);
        store.collect_garbage().unwrap();
        for directory in ["layers/sha256", "blobs/sha256", "refs", "locks", "staging"] {
            assert_eq!(std::fs::read_dir(store.path().join(directory)).unwrap().count(), 0, "{directory}");
        }
    }
    assert!(killed > POINTS / 2, "only {killed} were killed in time");
    drop((registry, _front, place));
    leaks.check();
}
