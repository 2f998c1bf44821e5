//! The image of the Debian tests: a real system, with layers on top that change it in every way layers can.

use crate::image_support::architecture;
use crate::image_support::layout::{Handmade, gzip};
use gpucontainer::Digest;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the base layer is made of; another list has another name in the cache.
const PACKAGES: &str = "apt,python3";
const SUITE: &str = "bookworm";

/// The release that the second layer claims to be, so that it cannot be taken for the host's.
pub(crate) const RELEASE: &str =
    "PRETTY_NAME=\"Debian of the test\"\nID=debian\nVERSION_CODENAME=bookworm\nVARIANT_ID=layered\n";

/// The base layer, compressed, and the digest of its archive; made once and kept in the build directory.
///
/// The error says why it cannot be made here, for example without a package archive.
fn base() -> Result<(Vec<u8>, String), String> {
    // Cargo's directory for tests is inside the build directory.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("debian");
    let kept = target.join(format!("{SUITE}-{}-{}", PACKAGES.replace(',', "-"), architecture()));
    let read = |directory: &Path| {
        let digest = std::fs::read_to_string(directory.join("digest")).ok()?;
        Some((std::fs::read(directory.join("base.tar.gz")).ok()?, digest))
    };
    if let Some(base) = read(&kept) {
        return Ok(base);
    }
    std::fs::create_dir_all(&target).unwrap();
    let work = tempfile::Builder::new().prefix("making-").tempdir_in(&target).unwrap();
    let archive = make(work.path())?;
    let bytes = std::fs::read(&archive).unwrap();
    std::fs::remove_file(&archive).unwrap();
    std::fs::write(work.path().join("base.tar.gz"), gzip(&bytes)).unwrap();
    std::fs::write(work.path().join("digest"), Digest::of(&bytes).to_string()).unwrap();
    // Another run may have been first.
    if std::fs::rename(work.path(), &kept).is_ok() {
        let _ = work.keep();
    }
    Ok(read(&kept).unwrap())
}

fn make(directory: &Path) -> Result<PathBuf, String> {
    let archive = directory.join("base.tar");
    let output = Command::new("mmdebstrap")
        .args(["--quiet", "--variant=essential", &format!("--include={PACKAGES}"), SUITE])
        .arg(&archive)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(archive)
    } else {
        Err(format!("mmdebstrap: {}", words.lines().last().unwrap_or("failed without a word")))
    }
}

/// Writes an OCI layout of the image, called `v1` there; see [`base`] for the error.
pub(crate) fn write_layout(directory: &Path) -> Result<(), String> {
    let packed = |tar: Vec<u8>| (gzip(&tar), Digest::of(&tar).to_string());
    let mut image = Handmade::new(&[base()?, packed(second_layer()), packed(third_layer())]);
    image.config["config"] = serde_json::json!({
        "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "FROM_IMAGE=yes"],
        "Entrypoint": ["/usr/bin/env"], "Cmd": ["cat", "index.html"], "WorkingDir": "/srv/web"
    });
    image.write(directory, "v1");
    Ok(())
}

struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn add(&mut self, kind: tar::EntryType, path: &str, mode: u32, owner: u64, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, path, content).unwrap();
    }

    fn file(&mut self, path: &str, mode: u32, owner: u64, content: &str) {
        self.add(tar::EntryType::Regular, path, mode, owner, content.as_bytes());
    }

    fn directory(&mut self, path: &str, mode: u32, owner: u64) {
        self.add(tar::EntryType::Directory, path, mode, owner, b"");
    }

    fn link(&mut self, kind: tar::EntryType, path: &str, target: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o777);
        header.set_size(0);
        self.0.append_link(&mut header, path, target).unwrap();
    }
}

/// Replaces a file, hides one, empties a directory; links, modes, owners, attributes.
fn second_layer() -> Vec<u8> {
    let mut layer = Layer(tar::Builder::new(Vec::new()));
    layer.file("usr/lib/os-release", 0o644, 0, RELEASE);
    layer.file("etc/.wh.issue", 0o644, 0, "");
    layer.directory("etc/skel/", 0o755, 0);
    layer.file("etc/skel/.wh..wh..opq", 0o644, 0, "");
    layer.file("etc/skel/welcome", 0o644, 0, "hello\n");
    layer.file("usr/local/bin/tool", 0o755, 0, "#!/bin/sh\necho tool of $(id -u)\n");
    layer.link(tar::EntryType::Link, "usr/local/bin/tool-too", "usr/local/bin/tool");
    layer.file("usr/local/bin/as-root", 0o4755, 0, "#!/bin/sh\nid -u\n");
    layer.directory("srv/web/", 0o755, 33);
    layer.file("srv/web/index.html", 0o644, 33, "of the second layer\n");
    layer.file("srv/gone", 0o644, 0, "soon\n");
    layer.link(tar::EntryType::Symlink, "srv/changed", "web");
    layer.0.append_pax_extensions([("SCHILY.xattr.user.note", "kept".as_bytes())]).unwrap();
    layer.file("srv/noted", 0o640, 33, "with a note\n");
    layer.0.into_inner().unwrap()
}

/// Changes what the second made.
fn third_layer() -> Vec<u8> {
    let mut layer = Layer(tar::Builder::new(Vec::new()));
    layer.file("srv/.wh.gone", 0o644, 0, "");
    layer.directory("srv/web/", 0o755, 33);
    layer.file("srv/web/index.html", 0o644, 33, "of the third layer\n");
    layer.directory("srv/changed/", 0o750, 0);
    layer.file("srv/changed/inside", 0o600, 0, "was a link\n");
    layer.0.into_inner().unwrap()
}
