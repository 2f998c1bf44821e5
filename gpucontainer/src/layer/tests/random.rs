//! Archives that nobody would think of: random ones, and damaged ones.

use super::{Tar, options};
use crate::error::ErrorKind;
use crate::layer::{LayerArchive, unpack};
use proptest::prelude::*;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Names from few parts, so that entries meet each other, with every trick among them.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        12 => Just("a"), 12 => Just("b"), 8 => Just("c"), 1 => Just(".."), 2 => Just("."), 1 => Just(""),
        1 => Just("\u{fc}\n"), 1 => Just("outside"),
    ];
    let last = prop_oneof![
        20 => part.clone(), 3 => Just(".wh.a"), 2 => Just(".wh.b"), 2 => Just(".wh..wh..opq"),
        1 => Just(".wh..wh.plnk"), 1 => Just(".wh..."), 1 => Just(".wh.a/b"),
    ];
    let path = (proptest::collection::vec(part, 0..4), last)
        .prop_map(|(parts, last)| parts.iter().copied().chain([last]).collect::<Vec<_>>().join("/").into_bytes());
    (path, prop::bool::weighted(0.1)).prop_map(|(path, slash)| if slash { [b"/", &path[..]].concat() } else { path })
}

fn target() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => name(),
        1 => Just(b"../outside".to_vec()),
        1 => Just(b"../../outside/file".to_vec()),
        1 => Just(b"/".to_vec()),
        1 => Just(b"..".to_vec()),
        1 => Just(b"/proc/self/cwd".to_vec()),
        1 => Just(Vec::new()),
    ]
}

#[derive(Clone, Debug)]
struct Entry {
    kind: u8,
    name: Vec<u8>,
    target: Vec<u8>,
    mode: u32,
    size: usize,
}

fn entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![6 => Just(b'0'), 4 => Just(b'5'), 4 => Just(b'2'), 4 => Just(b'1'), 1 => Just(b'6'), 1 => Just(b'3')];
    (kind, name(), target(), 0..0o10000_u32, 0..1500_usize).prop_map(|(kind, name, target, mode, size)| Entry {
        kind,
        name,
        target,
        mode,
        size,
    })
}

/// A directory with a neighbour that no layer may touch.
fn in_a_cage(archive: &[u8]) -> Result<(), TestCaseError> {
    let cage = tempfile::tempdir().unwrap();
    let (layer, outside) = (cage.path().join("layer"), cage.path().join("outside"));
    let tree = layer.join("tree");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "untouched").unwrap();
    let look = |path: &Path| {
        let m = std::fs::symlink_metadata(path).unwrap();
        (m.mode(), m.uid(), m.nlink(), m.mtime(), m.mtime_nsec(), m.ctime_nsec(), m.size())
    };
    let before = (look(&outside), look(&outside.join("file")));
    let result = unpack(&mut &archive[..], &tree, &options().max_bytes(64 << 20).record(&layer));
    prop_assert_eq!(before, (look(&outside), look(&outside.join("file"))));
    prop_assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"untouched");
    let mut beside: Vec<_> = std::fs::read_dir(cage.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    beside.sort();
    prop_assert_eq!(beside, ["layer", "outside"]);
    match result {
        Ok(unpacked) => {
            prop_assert_eq!(unpacked.archive_bytes, archive.len() as u64);
            no_marks(&tree)?;
            let mut again = Vec::new();
            LayerArchive::open(&layer).unwrap().read_to_end(&mut again).unwrap();
            prop_assert!(again == archive, "{} bytes, written again {}", archive.len(), again.len());
        }
        // Full: a damaged size of a sparse file, or an attribute that the file system has no room for.
        Err(error) => prop_assert!(matches!(error.kind(), ErrorKind::InvalidLayer | ErrorKind::NoSpace), "{error}"),
    }
    crate::sys::fs::remove_tree(&layer).unwrap();
    prop_assert!(!layer.exists());
    Ok(())
}

/// The marks of archives become those of overlayfs, none stays a file.
fn no_marks(directory: &Path) -> Result<(), TestCaseError> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(()) };
    for entry in entries {
        let entry = entry.unwrap();
        prop_assert!(!entry.file_name().as_encoded_bytes().starts_with(b".wh."), "{:?}", entry.path());
        if entry.file_type().unwrap().is_dir() {
            no_marks(&entry.path())?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_ever_leaves_the_directory_and_all_can_be_written_again(
        entries in proptest::collection::vec(entry(), 1..14),
        after in proptest::collection::vec(any::<u8>(), 0..3000),
    ) {
        let mut archive = Tar::default();
        for entry in entries {
            let data = if entry.kind == b'0' { vec![b'x'; entry.size] } else { Vec::new() };
            archive = archive.raw(entry.kind, &entry.name, &entry.target, &data, |h| {
                h.set_mode(entry.mode);
                // Whiteouts in overlayfs's own form; other devices are for root.
                h.set_device_major(0).unwrap();
                h.set_device_minor(0).unwrap();
            });
        }
        let mut archive = archive.end();
        archive.extend(after);
        in_a_cage(&archive)?;
    }

    #[test]
    fn records_of_any_bytes_never_panic(bytes in proptest::collection::vec(prop_oneof![
        Just(b'1'), Just(b'0'), Just(b'9'), Just(b' '), Just(b'='), Just(b'\n'), Just(0), any::<u8>()
    ], 0..60)) {
        if let Ok(records) = crate::layer::pax::records(&bytes) {
            prop_assert!(records.iter().all(|(key, _)| !key.is_empty()));
        }
        let _ = crate::layer::pax::moment(&bytes);
    }
}

/// Damage of the kinds that happen and of those that are made: bits, lengths, blocks lost, doubled and moved.
#[test]
fn damaged_archives_never_panic_or_escape() {
    let map = |text: &str| {
        let mut map = text.as_bytes().to_vec();
        map.resize(1024, 0);
        map
    };
    let sound = Tar::default()
        .directory("d", 0o755)
        .file("d/file", &[b'x'; 1300])
        .link("d/link", "../outside")
        .file("d/link2", b"")
        .hard_link("hard", "d/file")
        .raw(b'L', b"././@LongLink", b"", &[b'n'; 180], |_| {})
        .file("n", b"long")
        .pax(&[(b"path", b"pax/name"), (b"size", b"3"), (b"SCHILY.xattr.user.x", b"value"), (b"mtime", b"1.5")])
        .file("short", b"abc")
        .pax(&[(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"1000000")])
        .file("sparse", &map("2\n0\n256\n70000\n256\n"))
        .pax(&[(b"GNU.sparse.size", b"9000"), (b"GNU.sparse.map", b"0,100,8000,100")])
        .file("sparse01", &[b's'; 200])
        .file("d/.wh.gone", b"")
        .file("e/.wh..wh..opq", b"")
        .end();
    in_a_cage(&sound).unwrap();
    // A fixed sequence: a failure is found again.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(below).unwrap()).unwrap()
    };
    for round in 0..500 {
        let mut archive = sound.clone();
        for _ in 0..=random(3) {
            let blocks = archive.len() / 512;
            let block = random(blocks) * 512;
            match random(8) {
                0 => archive.truncate(random(archive.len()).max(1024)),
                1 => drop(archive.drain(block..block + 512)),
                2 => {
                    let copy = archive[block..block + 512].to_vec();
                    let at = random(blocks) * 512;
                    archive.splice(at..at, copy);
                }
                // Mostly in the fields of headers, where numbers and types are.
                3..=5 => archive[block + 100 + random(80)] = b"0123456789xgLKS \0\xff\x80-"[random(20)],
                _ => archive[block + random(512)] ^= 1 << random(8),
            }
            let whole = archive.len() / 512 * 512;
            archive.truncate(whole.max(1024));
        }
        // Most of them with sums that are right again, or damage would end at the first header.
        if round % 4 != 0 {
            for block in archive.chunks_exact_mut(512) {
                if &block[257..262] == b"ustar" {
                    let mut header = tar::Header::from_byte_slice(block).clone();
                    header.set_cksum();
                    block.copy_from_slice(header.as_bytes());
                }
            }
        }
        if let Err(error) = in_a_cage(&archive) {
            panic!("round {round}: {error}");
        }
    }
}
