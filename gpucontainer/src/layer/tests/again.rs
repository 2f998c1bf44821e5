//! Archives written again from what a layer keeps of them.

use super::{Tar, options};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::layer::{LayerArchive, unpack};
use std::io::Read;

/// A layer's directory with this archive in it, and what is written of it again.
fn again(archive: &[u8]) -> (tempfile::TempDir, Vec<u8>) {
    let layer = tempfile::tempdir().unwrap();
    std::fs::create_dir(layer.path().join("tree")).unwrap();
    unpack(&mut &archive[..], &layer.path().join("tree"), &options().record(layer.path())).unwrap();
    let mut bytes = Vec::new();
    LayerArchive::open(layer.path()).unwrap().read_to_end(&mut bytes).unwrap();
    (layer, bytes)
}

#[test]
fn an_archive_is_written_again_whatever_became_of_its_files() {
    let secret = |h: &mut tar::Header| h.set_mode(0);
    let archive = Tar::default()
        .file("a", b"first")
        .file("a", b"second")
        .hard_link("b", "a")
        .file("a", b"third")
        .file("d/e/f", b"below")
        .file("d", b"in its place")
        .raw(b'0', b"unreadable", b"", b"nobody may read this", secret)
        .raw(b'5', b"closed", b"", b"", secret)
        .file("closed/inside", b"nor reach this")
        .file("closed/.wh.gone", b"a mark with contents")
        .file("gone", b"hidden by its own layer")
        .file(".wh.gone", b"")
        .end();
    let archive = [archive, b"after the end".to_vec()].concat();
    let (layer, bytes) = again(&archive);
    assert_eq!(bytes, archive);
    crate::sys::fs::remove_tree(&layer.path().join("tree")).unwrap();
}

#[test]
fn an_archive_is_written_again_whatever_its_root_allows() {
    for mode in [0o111, 0o311, 0o444, 0] {
        let archive = Tar::default().raw(b'5', b"./", b"", b"", |h| h.set_mode(mode)).file("a", b"contents").end();
        let (_layer, written) = again(&archive);
        assert!(written == archive, "{mode:o}");
    }
}

#[test]
fn what_was_changed_or_never_kept_is_said_to_be() {
    let archive = Tar::default().file("a", b"contents").file("b", b"").end();
    let (layer, _) = again(&archive);
    let read = || {
        LayerArchive::open(layer.path()).and_then(|mut archive| {
            let mut bytes = Vec::new();
            archive.read_to_end(&mut bytes).map_err(|e| Error::from_io("read", e))?;
            Ok(bytes)
        })
    };
    let file = layer.path().join("tree/a");
    std::fs::write(&file, b"short").unwrap();
    assert_eq!(read().unwrap_err().kind(), ErrorKind::Corrupt);
    std::fs::write(&file, b"CONTENTS").unwrap();
    let (found, wanted) = (Digest::of(&read().unwrap()), Digest::of(&archive));
    assert_eq!(LayerArchive::check(&wanted, &found).unwrap_err().kind(), ErrorKind::Corrupt);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(read().unwrap_err().kind(), ErrorKind::Corrupt);
    // Nothing leads outside.
    std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
    assert!(read().is_err());
    let record = layer.path().join("archive");
    let mut bytes = std::fs::read(&record).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&record, &bytes).unwrap();
    assert_eq!(read().unwrap_err().kind(), ErrorKind::Corrupt);
    std::fs::write(&record, b"gpucontainer layer archive 9\n").unwrap();
    assert_eq!(read().unwrap_err().kind(), ErrorKind::Unsupported);
    std::fs::remove_file(&record).unwrap();
    let error = read().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("pull the image again"), "{error}");
}
