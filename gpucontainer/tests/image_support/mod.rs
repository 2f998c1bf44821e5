//! What the image tests share: a real registry, images made by other tools, and a front that misbehaves on request.

#![allow(dead_code, reason = "every test binary uses a part of this")]
#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

pub(crate) mod front;
pub(crate) mod layout;
pub(crate) mod pushing;

use gpucontainer::image::{Image, ImageStore};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Runs a command that must succeed; its standard output.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A temporary directory with a store in it.
pub(crate) struct Place {
    directory: tempfile::TempDir,
    pub(crate) store: ImageStore,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path().join("store")).unwrap();
        Self { directory, store }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The store opens again and nothing unfinished is in it.
    pub(crate) fn assert_good(&self) {
        let left: Vec<_> = std::fs::read_dir(self.store.path().join("staging")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        let again = ImageStore::open(self.store.path()).unwrap();
        for image in again.list().unwrap() {
            image.layers().unwrap();
        }
    }

    /// What a dead process left is gone once somebody opens the store.
    pub(crate) fn assert_good_after_reopening(&self) {
        ImageStore::open(self.store.path()).unwrap();
        self.assert_good();
    }

    pub(crate) fn layers(&self) -> usize {
        std::fs::read_dir(self.store.path().join("layers/sha256")).unwrap().count()
    }
}

/// The text of a file in an image's layers, top first.
pub(crate) fn read(image: &Image, path: &str) -> Option<String> {
    let layers = image.layers().unwrap();
    layers.iter().rev().find_map(|layer| std::fs::read_to_string(layer.path().join(path)).ok())
}

/// Debian's registry on a port of its own, its files in a directory of the test.
pub(crate) struct Registry {
    child: Child,
    pub(crate) port: u16,
    pub(crate) storage: PathBuf,
    secure: bool,
}

impl Registry {
    /// Starts one; `extra` goes into its configuration (YAML), `http_extra` into the section `http`.
    pub(crate) fn start(directory: &Path, http_extra: &str, extra: &str) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let storage = directory.join("storage");
        // The port that was free may be taken a moment later.
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let config = directory.join("registry.yml");
            let text = format!(
                "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
                 rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n{http_extra}\n{extra}\n",
                storage.display()
            );
            std::fs::write(&config, text).unwrap();
            let log = std::fs::File::create(directory.join("registry.log")).unwrap();
            let child = Command::new("docker-registry")
                .args(["serve".as_ref(), config.as_os_str()])
                .env("OTEL_TRACES_EXPORTER", "none")
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap();
            let secure = http_extra.contains("tls:");
            let mut registry = Self { child, port, storage: storage.clone(), secure };
            if registry.is_up() {
                return registry;
            }
        }
        panic!("docker-registry does not start: {}", std::fs::read_to_string(directory.join("registry.log")).unwrap());
    }

    fn is_up(&mut self) -> bool {
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// `127.0.0.1:PORT/name`
    pub(crate) fn name(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// Copies an image into the registry with skopeo: `source` in skopeo's words, as in `oci:DIRECTORY:TAG`.
    pub(crate) fn push(&self, source: &str, name: &str, arguments: &[&str]) {
        assert!(!self.secure, "push before the registry is secured");
        run(Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
            .args(arguments)
            .args([source, &format!("docker://{}", self.name(name))]));
    }

    /// Puts a manifest of our own making; says its digest.
    pub(crate) fn put_manifest(&self, name: &str, tag: &str, media_type: &str, json: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(
            stream,
            "PUT /v2/{name}/manifests/{tag} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: {media_type}\r\nContent-Length: {}\r\n\r\n{json}",
            json.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }

    /// The file in the registry's storage that holds a blob.
    pub(crate) fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.storage.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An OCI layout made by umoci: `layers` layers with `etc/layer-N`, each with `bytes` bytes beside it that do
/// not compress well, and a configuration.
pub(crate) fn umoci_layout(directory: &Path, layers: usize, bytes: usize) -> PathBuf {
    let layout = directory.join("layout");
    let image = format!("{}:v1", layout.display());
    run(Command::new("umoci").args(["init", "--layout"]).arg(&layout));
    run(Command::new("umoci").args(["new", "--image", &image]));
    for number in 0..layers {
        let source = directory.join(format!("source-{number}"));
        std::fs::create_dir_all(&source).unwrap();
        std::fs::write(source.join(format!("layer-{number}")), format!("layer {number}")).unwrap();
        if bytes > 0 {
            std::fs::write(source.join(format!("noise-{number}")), noise(bytes, number)).unwrap();
        }
        run(Command::new("umoci").args(["insert", "--image", &image]).arg(&source).arg("/etc"));
    }
    run(Command::new("umoci").args(["config", "--image", &image]).args([
        "--architecture",
        architecture(),
        "--config.env=A=1",
        "--config.cmd=/bin/sh",
        "--config.user=1000",
        "--config.workingdir=/work",
        "--config.label=maker=umoci",
        "--config.exposedports=80/tcp",
    ]));
    layout
}

/// This machine, in the words of images.
pub(crate) fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// Bytes that look random and are always the same.
pub(crate) fn noise(bytes: usize, seed: usize) -> Vec<u8> {
    let mut state = (seed as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(bytes)
    .collect()
}

/// Base64, for headers.
pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut child = Command::new("base64").arg("-w0").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}
