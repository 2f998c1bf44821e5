//! Archives built in memory, good and hostile.

mod again;
mod random;
mod real;

use super::*;
use crate::error::{Error, ErrorKind};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

/// An archive made header by header, so that nothing keeps hostile ones from being made.
#[derive(Clone, Default)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    pub(crate) fn raw(
        mut self,
        kind: u8,
        name: &[u8],
        link: &[u8],
        data: &[u8],
        edit: impl FnOnce(&mut tar::Header),
    ) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().linkflag[0] = kind;
        header.as_old_mut().name[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        header.as_old_mut().linkname[..link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
        header.set_size(data.len() as u64);
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        edit(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: impl AsRef<[u8]>, data: &[u8]) -> Self {
        self.raw(b'0', name.as_ref(), b"", data, |_| {})
    }

    pub(crate) fn directory(self, name: impl AsRef<[u8]>, mode: u32) -> Self {
        self.raw(b'5', name.as_ref(), b"", b"", |h| h.set_mode(mode))
    }

    pub(crate) fn link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.raw(b'2', name.as_ref(), target.as_ref(), b"", |_| {})
    }

    pub(crate) fn hard_link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.raw(b'1', name.as_ref(), target.as_ref(), b"", |_| {})
    }

    pub(crate) fn node(self, kind: u8, name: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        self.raw(kind, name.as_ref(), b"", b"", |h| {
            h.set_device_major(major).unwrap();
            h.set_device_minor(minor).unwrap();
        })
    }

    pub(crate) fn pax(self, records: &[(&[u8], &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            text.extend_from_slice(format!("{length} ").as_bytes());
            text.extend_from_slice(&[key, &b"="[..], value, b"\n"].concat());
        }
        self.raw(b'x', b"PaxHeaders/0", b"", &text, |_| {})
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn options() -> UnpackOptions {
    UnpackOptions::for_this_user()
}

fn unpacked(archive: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let layer = directory.path().join("layer");
    std::fs::create_dir(&layer).unwrap();
    let result = unpack(&mut &archive[..], &layer, &options()).unwrap();
    assert_eq!(result.archive_bytes, archive.len() as u64, "read to the end");
    assert_eq!(result.tree.directory(), layer);
    (directory, layer)
}

fn refused(archive: &[u8]) -> Error {
    let directory = tempfile::tempdir().unwrap();
    let layer = directory.path().join("layer");
    std::fs::create_dir(&layer).unwrap();
    let error = unpack(&mut &archive[..], &layer, &options()).unwrap_err();
    let beside: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(beside, ["layer"], "nothing outside");
    crate::sys::fs::remove_tree(&layer).unwrap();
    error
}

fn is_whiteout(path: &Path) -> bool {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let root = crate::sys::root::Root::open(path.parent().unwrap()).unwrap();
    let name_of_file = Path::new(path.file_name().unwrap());
    let opened: std::os::fd::OwnedFd = if path.is_dir() {
        crate::sys::fs::tree::open_inside(&root, name_of_file).unwrap()
    } else {
        root.open_file(name_of_file).unwrap().into()
    };
    crate::sys::fs::tree::attribute(std::os::fd::AsFd::as_fd(&opened), OsStr::new(name)).unwrap()
}

fn root() -> bool {
    options().keeps_owners()
}

#[test]
fn everything_comes_out_as_it_went_in() {
    let archive = Tar::default()
        .directory("./", 0o751)
        .directory("./etc/", 0o700)
        .raw(b'0', b"./etc/shadow", b"", b"secret", |h| {
            h.set_mode(0o640);
            h.set_uid(7);
            h.set_gid(42);
        })
        .raw(b'0', b"bin/su", b"", b"#!", |h| h.set_mode(0o6755))
        .link("lib", "usr/lib")
        .link("absolute", "/../../outside")
        .hard_link("etc/second", "./etc/shadow")
        .directory("tmp", 0o1777)
        .directory("closed", 0)
        .file("closed/inner", b"x")
        .raw(b'6', b"fifo", b"", b"", |h| h.set_mode(0o622))
        .end();
    let (_keep, layer) = unpacked(&archive);
    let at = |name: &str| std::fs::symlink_metadata(layer.join(name)).unwrap();
    assert_eq!(at("").mode() & 0o7777, 0o751);
    assert_eq!((at("etc").mode() & 0o7777, at("etc").mtime()), (0o700, 1_600_000_000));
    assert_eq!((at("bin").mode() & 0o7777, at("bin").mtime()), (0o755, 0), "implied");
    assert_eq!(at("bin/su").mode() & 0o7777, 0o6755);
    assert_eq!(at("tmp").mode() & 0o7777, 0o1777);
    assert_eq!(at("closed").mode() & 0o7777, 0);
    assert_eq!((at("etc/shadow").nlink(), at("etc/shadow").ino()), (2, at("etc/second").ino()));
    assert_eq!(at("etc/shadow").mode() & 0o7777, 0o640);
    assert_eq!(std::fs::read(layer.join("etc/shadow")).unwrap(), b"secret");
    assert_eq!(std::fs::read_link(layer.join("lib")).unwrap(), Path::new("usr/lib"));
    assert_eq!(at("lib").mtime(), 1_600_000_000);
    assert_eq!(std::fs::read_link(layer.join("absolute")).unwrap(), Path::new("/../../outside"));
    assert!(at("fifo").file_type().is_fifo());
    assert_eq!(at("fifo").mode() & 0o7777, 0o622);
    let owner = (at("etc/shadow").uid(), at("etc/shadow").gid());
    if root() {
        assert_eq!(owner, (7, 42));
    } else {
        assert_eq!(owner.0, at("").uid());
    }
    // An ordinary user's temporary directory cannot be removed as long as there is a closed one in it.
    crate::sys::fs::remove_tree(&layer).unwrap();
    assert!(!layer.exists());
}

#[test]
fn whiteouts_hide_only_what_is_below() {
    let archive = Tar::default()
        .file("a/.wh.gone", b"")
        .file("a/kept", b"")
        .file("a/.wh.kept", b"")
        .file("b/.wh..wh..opq", b"")
        .file("b/new", b"")
        .file(".wh.replaced", b"")
        .directory("replaced", 0o755)
        .directory("opened", 0o755)
        .file(".wh.opened", b"")
        .file("c/.wh.implied", b"")
        .file("c/implied/x", b"")
        .file(".wh..wh.plnk/1.2", b"aufs")
        .node(b'3', "d/raw", 0, 0)
        .end();
    let (_keep, layer) = unpacked(&archive);
    assert!(is_whiteout(&layer.join("a/gone")));
    assert!(is_whiteout(&layer.join("d/raw")));
    assert!(layer.join("a/kept").is_file());
    for opaque in ["b", "replaced", "opened", "c/implied"] {
        assert_eq!(attribute(&layer.join(opaque), "user.overlay.opaque").as_deref(), Some(&b"y"[..]), "{opaque}");
        if root() {
            assert_eq!(attribute(&layer.join(opaque), "trusted.overlay.opaque").as_deref(), Some(&b"y"[..]));
        }
    }
    assert_eq!(attribute(&layer.join("a"), "user.overlay.opaque"), None);
    assert!(!layer.join(".wh..wh.plnk").exists());
}

#[test]
fn later_entries_win_and_may_change_type() {
    let archive = Tar::default()
        .file("x", b"first")
        .hard_link("other", "x")
        .file("x", b"second")
        .file("d/e/f", b"")
        .file("d", b"now a file")
        .link("l", "elsewhere")
        .directory("l", 0o700)
        .file("l/inside", b"")
        .file("dir/kept", b"")
        .directory("dir", 0o711)
        .directory("dir", 0o710)
        .hard_link("x", "x")
        .end();
    let (_keep, layer) = unpacked(&archive);
    assert_eq!(std::fs::read(layer.join("x")).unwrap(), b"second");
    assert_eq!(std::fs::read(layer.join("other")).unwrap(), b"first", "the other name keeps its contents");
    assert_eq!(std::fs::read(layer.join("d")).unwrap(), b"now a file");
    assert!(layer.join("l/inside").is_file());
    assert!(layer.join("dir/kept").is_file());
    assert_eq!(std::fs::metadata(layer.join("dir")).unwrap().permissions().mode() & 0o7777, 0o710);
}

#[test]
fn names_of_any_bytes_and_any_length() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let mut gnu = long.clone().into_bytes();
    gnu.push(0);
    let archive = Tar::default()
        .file(b"caf\xe9-\xff\x01\n", b"latin")
        .raw(b'L', b"././@LongLink", b"", &gnu, |_| {})
        .file(&long.as_bytes()[..100], b"gnu")
        .pax(&[(b"path", format!("pax/{long}").as_bytes()), (b"mtime", b"-1.5")])
        .file("short", b"pax")
        .raw(b'K', b"././@LongLink", b"", &gnu, |_| {})
        .link("soft", &long.as_bytes()[..100])
        .pax(&[(b"linkpath", long.as_bytes())])
        .hard_link("hard", "short")
        .raw(b'g', b"pax_global_header", b"", b"20 comment=whatever\n", |_| {})
        .end();
    let (_keep, layer) = unpacked(&archive);
    assert_eq!(std::fs::read(layer.join(OsStr::from_bytes(b"caf\xe9-\xff\x01\n"))).unwrap(), b"latin");
    assert_eq!(std::fs::read(layer.join(&long)).unwrap(), b"gnu");
    let pax = std::fs::metadata(layer.join("pax").join(&long)).unwrap();
    assert_eq!((pax.mtime(), pax.mtime_nsec()), (-2, 500_000_000));
    assert_eq!(std::fs::read_link(layer.join("soft")).unwrap(), Path::new(&long));
    assert_eq!(std::fs::read(layer.join("hard")).unwrap(), b"gnu");
}

#[test]
fn attributes_are_kept_but_not_those_of_overlayfs() {
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let archive = Tar::default()
        .pax(&[
            (b"SCHILY.xattr.user.note", b"any\0bytes=\n"),
            (b"SCHILY.xattr.security.capability", &capability),
            (b"SCHILY.xattr.user.overlay.redirect", b"/etc"),
            (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
            (b"SCHILY.xattr.system.posix_acl_access", b"junk"),
        ])
        .file("ping", b"")
        .pax(&[(b"SCHILY.xattr.user.overlay.opaque", b"y"), (b"SCHILY.xattr.user.empty", b"")])
        .directory("d", 0o755)
        .end();
    let (_keep, layer) = unpacked(&archive);
    let file = layer.join("ping");
    assert_eq!(attribute(&file, "user.note").as_deref(), Some(&b"any\0bytes=\n"[..]));
    assert_eq!(attribute(&file, "user.overlay.redirect"), None);
    assert_eq!(attribute(&layer.join("d"), "user.overlay.opaque"), None);
    assert_eq!(attribute(&layer.join("d"), "user.empty").as_deref(), Some(&b""[..]));
    if root() {
        assert_eq!(attribute(&file, "security.capability").as_deref(), Some(&capability[..]));
        assert_eq!(attribute(&file, "trusted.overlay.opaque"), None);
    }
}

#[test]
fn devices_are_for_root() {
    let archive =
        Tar::default().node(b'3', "dev/null", 1, 3).node(b'4', "dev/loop", 7, 300).file("dev/note", b"").end();
    if root() {
        let (_keep, layer) = unpacked(&archive);
        let null = std::fs::symlink_metadata(layer.join("dev/null")).unwrap();
        assert!(null.file_type().is_char_device());
        assert_eq!((null.rdev(), null.mode() & 0o7777), (0x103, 0o644));
        assert!(std::fs::symlink_metadata(layer.join("dev/loop")).unwrap().file_type().is_block_device());
    }
    let directory = tempfile::tempdir().unwrap();
    let ordinary = UnpackOptions { keep_owners: false, ..options() };
    unpack(&mut &archive[..], directory.path(), &ordinary).unwrap();
    let left: Vec<_> =
        std::fs::read_dir(directory.path().join("dev")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["note"], "a sandbox has a /dev of its own");
    for name in ["null", "srv/null", "devices/null"] {
        let archive = Tar::default().node(b'3', name, 1, 3).end();
        let directory = tempfile::tempdir().unwrap();
        let error = unpack(&mut &archive[..], directory.path(), &ordinary).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidLayer);
        assert_eq!(error.path(), Some(Path::new(name)));
    }
}

#[test]
fn links_on_the_way_stay_inside() {
    let archive = Tar::default()
        .directory("usr/lib", 0o755)
        .link("lib", "usr/lib")
        .link("up", "../../../../../../usr")
        .link("absolute", "/usr/lib")
        .file("lib/one", b"1")
        .file("up/lib/two", b"2")
        .file("absolute/three", b"3")
        .hard_link("four", "/absolute/one")
        .end();
    let (_keep, layer) = unpacked(&archive);
    for (name, contents) in [("usr/lib/one", b"1"), ("usr/lib/two", b"2"), ("usr/lib/three", b"3"), ("four", b"1")] {
        assert_eq!(std::fs::read(layer.join(name)).unwrap(), contents, "{name}");
    }
    assert!(std::fs::symlink_metadata(layer.join("lib")).unwrap().is_symlink());
}

fn blocks(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks()
}

#[test]
fn holes_take_no_disk_in_any_sparse_format() {
    const SIZE: u64 = 10 << 30;
    let end = SIZE - 512;
    let old = Tar::default().raw(b'S', b"old", b"", &[b'o'; 512], |h| {
        *h = {
            let mut gnu = tar::Header::new_gnu();
            gnu.as_old_mut().linkflag[0] = b'S';
            gnu.as_old_mut().name[..3].copy_from_slice(b"old");
            gnu.set_size(512);
            gnu.set_mode(0o644);
            gnu.set_uid(0);
            gnu.set_gid(0);
            let inner = gnu.as_gnu_mut().unwrap();
            inner.sparse[0].set_offset(end);
            inner.sparse[0].set_length(512);
            inner.set_real_size(SIZE);
            gnu
        };
    });
    let number = |n: u64| n.to_string().into_bytes();
    let mut map = format!("1\n{end}\n512\n").into_bytes();
    map.resize(512, 0);
    map.extend_from_slice(&[b'n'; 512]);
    let archive = old
        .pax(&[
            (b"GNU.sparse.size", &number(SIZE)),
            (b"GNU.sparse.numblocks", b"1"),
            (b"GNU.sparse.offset", &number(end)),
            (b"GNU.sparse.numbytes", b"512"),
        ])
        .file("v00", &[b'z'; 512])
        .pax(&[(b"GNU.sparse.size", &number(SIZE)), (b"GNU.sparse.map", format!("0,512,{end},0").as_bytes())])
        .file("v01", &[b'y'; 512])
        .pax(&[
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", b"real-name"),
            (b"GNU.sparse.realsize", &number(SIZE)),
        ])
        .file("GNUSparseFile.0/real-name", &map)
        .file("after", b"still in step")
        .end();
    let (_keep, layer) = unpacked(&archive);
    for name in ["old", "v00", "v01", "real-name"] {
        assert_eq!(std::fs::metadata(layer.join(name)).unwrap().len(), SIZE, "{name}");
        assert!(blocks(&layer.join(name)) < 64, "{name}: {} blocks", blocks(&layer.join(name)));
    }
    let mut last = [0; 512];
    std::os::unix::fs::FileExt::read_exact_at(&std::fs::File::open(layer.join("real-name")).unwrap(), &mut last, end)
        .unwrap();
    assert_eq!(last, [b'n'; 512]);
    assert_eq!(std::fs::read(layer.join("after")).unwrap(), b"still in step");
}

/// Endless zeros after a header, as a small gzip file can hold.
struct Zeros<'a>(&'a [u8], u64);

impl Read for Zeros<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if !self.0.is_empty() {
            return self.0.read(into);
        }
        let count = into.len().min(usize::try_from(self.1).unwrap_or(usize::MAX));
        into[..count].fill(0);
        self.1 -= count as u64;
        Ok(count)
    }
}

#[test]
fn plain_zeros_take_no_disk_and_other_bytes_are_exact() {
    const SIZE: u64 = 64 << 20;
    let header = Tar::default().raw(b'0', b"zeros", b"", b"", |h| h.set_size(SIZE)).0;
    let directory = tempfile::tempdir().unwrap();
    unpack(&mut Zeros(&header, SIZE + 1024), directory.path(), &options()).unwrap();
    let zeros = directory.path().join("zeros");
    assert_eq!((std::fs::metadata(&zeros).unwrap().len(), blocks(&zeros)), (SIZE, 0));
    let mut mixed = vec![0; 900 << 10];
    for at in [70 << 10, (300 << 10) + 1, (900 << 10) - 1] {
        mixed[at] = 7;
    }
    let (_keep, layer) = unpacked(&Tar::default().file("mixed", &mixed).end());
    assert!(std::fs::read(layer.join("mixed")).unwrap() == mixed);
    assert!(blocks(&layer.join("mixed")) < 1000);
}

#[test]
fn limits_and_cancel_end_the_work() {
    let header = Tar::default().raw(b'0', b"endless", b"", b"", |h| h.set_size(1 << 40)).0;
    let directory = tempfile::tempdir().unwrap();
    let limited = options().max_bytes(4 << 20);
    let error = unpack(&mut Zeros(&header, u64::MAX), directory.path(), &limited).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidLayer, "{error}");
    let cancel = Cancel::new();
    cancel.cancel();
    let directory = tempfile::tempdir().unwrap();
    let error = unpack(&mut Zeros(&header, u64::MAX), directory.path(), &options().cancel(cancel)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let error = unpack(&mut &[][..], Path::new("/proc/self"), &options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "not empty: {error}");
}

#[test]
fn hostile_archives_are_refused_by_name() {
    let deep = |count: usize| "d/".repeat(count);
    let oversized = |kind: u8| Tar::default().raw(kind, b"x", b"", b"", |h| h.set_size(1 << 40)).end();
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("climbing", Tar::default().file("../evil", b"").end(), "../evil"),
        ("climbing later", Tar::default().file("a/../../evil", b"").end(), "a/../../evil"),
        ("climbing whiteout", Tar::default().file("a/.wh...", b"").end(), "a/.wh..."),
        ("whiteout of the directory", Tar::default().file("a/.wh..", b"").end(), "a/.wh.."),
        ("whiteout of nothing", Tar::default().file("a/.wh.", b"").end(), "a/.wh."),
        ("through a whiteout", Tar::default().file(".wh.a/b", b"").end(), ".wh.a/b"),
        ("no name", Tar::default().file("", b"").end(), ""),
        ("the root as a file", Tar::default().file("./", b"").end(), "./"),
        ("the root as a link", Tar::default().link(".", "/etc").end(), "."),
        ("through a link out", Tar::default().link("out", "/etc").file("out/passwd", b"").end(), "out/passwd"),
        ("through dots out", Tar::default().link("out", "../../..").link("e", "out/etc").file("e/x", b"").end(), "e/x"),
        ("links in a circle", Tar::default().link("a", "b").link("b", "a").file("a/x", b"").end(), "a/x"),
        ("through magic", Tar::default().link("m", "/proc/self/root").file("m/x", b"").end(), "m/x"),
        ("through a file", Tar::default().file("a", b"").file("a/b", b"").end(), "a/b"),
        ("hard link out", Tar::default().hard_link("h", "../../etc/passwd").end(), "h"),
        ("hard link to the host", Tar::default().hard_link("h", "/etc/passwd").end(), "h"),
        ("hard link through a link", Tar::default().link("l", "/etc").hard_link("h", "l/passwd").end(), "h"),
        ("hard link to a directory", Tar::default().directory("d", 0o755).hard_link("h", "d").end(), "h"),
        ("hard link to a whiteout", Tar::default().file(".wh.w", b"").hard_link("h", "w").end(), "h"),
        ("hard link to nothing", Tar::default().hard_link("h", "").end(), "h"),
        ("link to nothing", Tar::default().link("l", "").end(), "l"),
        ("NUL in a name", Tar::default().pax(&[(b"path", b"a\0b")]).file("x", b"").end(), "a\0b"),
        ("name too long", Tar::default().pax(&[(b"path", &[b'a'; 300])]).file("x", b"").end(), ""),
        ("path too long", Tar::default().pax(&[(b"path", deep(3000).as_bytes())]).directory("x", 0o755).end(), ""),
        ("too deep", Tar::default().pax(&[(b"path", deep(400).as_bytes())]).directory("x", 0o755).end(), ""),
        ("user id", Tar::default().pax(&[(b"uid", b"4294967295")]).file("x", b"").end(), ""),
        ("attribute name", Tar::default().pax(&[(b"SCHILY.xattr.user.a\0b", b"")]).file("x", b"").end(), "x"),
        ("unknown type", Tar::default().raw(b'M', b"volume", b"", b"", |_| {}).end(), ""),
        ("truncated contents", oversized(b'0'), "x"),
        ("bomb of a long name", oversized(b'L'), ""),
        ("bomb of a PAX header", oversized(b'x'), ""),
        (
            "two long names",
            Tar::default().raw(b'L', b"", b"", b"a", |_| {}).raw(b'L', b"", b"", b"b", |_| {}).end(),
            "",
        ),
        ("a header for nothing", Tar::default().pax(&[(b"path", b"x")]).end(), ""),
        ("malformed PAX", Tar::default().raw(b'x', b"", b"", b"99 a=b\n", |_| {}).file("x", b"").end(), ""),
        (
            "sparse overlap",
            Tar::default().pax(&[(b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,2,1,1")]).file("x", b"abc").end(),
            "",
        ),
        (
            "sparse beyond",
            Tar::default().pax(&[(b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"8,3")]).file("x", b"abc").end(),
            "",
        ),
        (
            "sparse wrapping",
            Tar::default()
                .pax(&[(b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"18446744073709551615,3")])
                .file("x", b"abc")
                .end(),
            "",
        ),
        (
            "sparse without data",
            Tar::default().pax(&[(b"GNU.sparse.size", b"9"), (b"GNU.sparse.map", b"0,9")]).file("x", b"abc").end(),
            "",
        ),
        (
            "sparse of 8 EiB",
            Tar::default()
                .pax(&[(b"GNU.sparse.size", b"18446744073709551615"), (b"GNU.sparse.map", b"0,3")])
                .file("x", b"abc")
                .end(),
            "x",
        ),
        ("zeros in the middle", [vec![0; 512], Tar::default().file("x", b"").end()].concat(), ""),
        ("no archive", vec![b'?'; 2048], ""),
        ("half a header", Tar::default().file("x", b"").0[..300].to_vec(), ""),
        ("half a file", Tar::default().file("x", &[1; 2000]).0[..1024].to_vec(), "x"),
    ];
    for (what, archive, named) in table {
        let error = refused(&archive);
        assert_eq!(error.kind(), ErrorKind::InvalidLayer, "{what}: {error}");
        if !named.is_empty() {
            assert_eq!(error.path(), Some(Path::new(named)), "{what}: {error}");
        }
    }
}

#[test]
fn errors_of_the_reader_pass_as_they_are() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(Error::new(ErrorKind::DigestMismatch, "not the promised bytes").into())
        }
    }
    struct Undecodable;
    impl Read for Undecodable {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "corrupt deflate stream"))
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let kind = |reader: &mut dyn Read| unpack(reader, directory.path(), &options()).unwrap_err().kind();
    assert_eq!(kind(&mut Broken), ErrorKind::DigestMismatch);
    assert_eq!(kind(&mut Undecodable), ErrorKind::InvalidLayer);
}
