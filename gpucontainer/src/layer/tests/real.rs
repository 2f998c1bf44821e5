//! Archives made by the tar program, and full file systems.

use super::{Tar, options, root};
use crate::common;
use crate::error::ErrorKind;
use crate::layer::{LayerArchive, unpack};
use crate::sys::fs::mount;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Everything that must come back: kind and mode, owner, time, names of one file, size, contents or target.
type Seen = BTreeMap<PathBuf, (u32, u32, u32, i64, u64, u64, Vec<u8>)>;

fn look(top: &Path, directory: &Path, seen: &mut Seen) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let m = std::fs::symlink_metadata(&path).unwrap();
        let (size, contents) = if m.is_file() {
            (m.size(), std::fs::read(&path).unwrap())
        } else if m.is_symlink() {
            (0, std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec())
        } else {
            (0, Vec::new())
        };
        let names = if m.is_dir() { 0 } else { m.nlink() };
        let place = path.strip_prefix(top).unwrap().to_owned();
        seen.insert(place, (m.mode(), m.uid(), m.gid(), m.mtime(), names, size, contents));
        if m.is_dir() {
            look(top, &path, seen);
        }
    }
}

#[test]
fn what_the_tar_program_packs_comes_out_the_same() {
    if !common::tools("root", &["tar"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    let at = |name: &str| source.join(name);
    std::fs::create_dir_all(at(&format!("{}/{}", "deep".repeat(30), "deeper".repeat(20)))).unwrap();
    std::fs::write(at(&format!("{}/{}/{}", "deep".repeat(30), "deeper".repeat(20), "n".repeat(250))), "long").unwrap();
    std::fs::write(source.join(OsStr::from_bytes(b"\xff\xfe not text \n")), "bytes").unwrap();
    std::fs::write(at("setuid"), vec![b'#'; 700_001]).unwrap();
    std::fs::set_permissions(at("setuid"), std::fs::Permissions::from_mode(0o6711)).unwrap();
    std::fs::hard_link(at("setuid"), at("second name")).unwrap();
    std::os::unix::fs::symlink("l".repeat(180), at("long link")).unwrap();
    std::fs::create_dir(at("sticky")).unwrap();
    std::fs::set_permissions(at("sticky"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let sparse = std::fs::File::create(at("sparse")).unwrap();
    for piece in 0..40_u64 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", piece * 1_000_000).unwrap();
    }
    sparse.set_len(100 << 20).unwrap();
    drop(sparse);
    if root() {
        std::os::unix::fs::chown(at("sticky"), Some(3_000_000), Some(5)).unwrap();
    }
    let mut expected = Seen::new();
    look(&source, &source, &mut expected);
    let formats =
        [&["gnu"][..], &["pax"], &["pax", "--sparse-version=0.0"], &["pax", "--sparse-version=0.1"], &["oldgnu"]];
    for (index, format) in formats.iter().enumerate() {
        let archive = directory.path().join("archive");
        let output = Command::new("tar")
            .arg(format!("--format={}", format[0]))
            .args(&format[1..])
            .args(["--sparse", "--numeric-owner", "-cf"])
            .arg(&archive)
            .arg("-C")
            .arg(&source)
            .arg(".")
            .output()
            .unwrap();
        assert!(output.status.success(), "{format:?}: {}", String::from_utf8_lossy(&output.stderr));
        let bytes = std::fs::metadata(&archive).unwrap().len();
        assert!(bytes < 3 << 20, "tar kept the holes: {bytes}");
        let stored = directory.path().join(format!("layer-{index}"));
        let layer = stored.join("tree");
        std::fs::create_dir_all(&layer).unwrap();
        let unpacked = unpack(&mut std::fs::File::open(&archive).unwrap(), &layer, &options().record(&stored)).unwrap();
        assert_eq!(unpacked.archive_bytes, bytes);
        let mut again = Vec::new();
        LayerArchive::open(&stored).unwrap().read_to_end(&mut again).unwrap();
        assert!(again == std::fs::read(&archive).unwrap(), "{format:?}: not the same archive");
        // Headers and marks, no contents.
        let record = std::fs::metadata(stored.join("archive")).unwrap().len();
        assert!(record < 20_000, "{format:?}: {record} bytes of record");
        let mut seen = Seen::new();
        look(&layer, &layer, &mut seen);
        let different: Vec<_> =
            expected.iter().filter(|(path, what)| seen.get(*path) != Some(what)).map(|(p, _)| p).collect();
        assert!(different.is_empty() && seen.len() == expected.len(), "{format:?}: {different:?}");
        assert!(std::fs::metadata(layer.join("sparse")).unwrap().blocks() < 2000);
    }
}

#[test]
fn a_full_file_system_is_said_to_be_full() {
    if !common::tier("root") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let context = mount::Context::open("tmpfs").unwrap();
    context.set_text("size", OsStr::new("1m")).unwrap();
    context.create().unwrap();
    mount::attach(context.mount(false).unwrap().as_fd(), directory.path()).unwrap();
    let layer = directory.path().join("layer");
    std::fs::create_dir(&layer).unwrap();
    let archive = Tar::default().file("small", b"fits").file("large", &vec![1; 3 << 20]).end();
    let result = unpack(&mut &archive[..], &layer, &options());
    mount::unmount(directory.path(), true).unwrap();
    let error = result.unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::NoSpace, Some(Path::new("large"))), "{error}");
}
