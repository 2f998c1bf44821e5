//! Archives that no honest tool makes.

use gpucontainer::Digest;
use std::io::Write;

use crate::image_support::layout::gzip;

/// One member, its name and its link as they are given: no library would write some of them.
pub(crate) fn member(kind: u8, name: &[u8], link: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.as_old_mut().linkflag = [kind];
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    if matches!(kind, b'3' | b'4') {
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    }
    header.set_cksum();
    let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
    [header.as_bytes().as_slice(), content, &padding].concat()
}

pub(crate) fn file(name: &str, content: &[u8]) -> Vec<u8> {
    member(b'0', name.as_bytes(), b"", content)
}

pub(crate) fn directory(name: &str) -> Vec<u8> {
    member(b'5', name.as_bytes(), b"", b"")
}

pub(crate) fn link(name: &str, target: &str) -> Vec<u8> {
    member(b'2', name.as_bytes(), target.as_bytes(), b"")
}

pub(crate) fn hard_link(name: &str, target: &str) -> Vec<u8> {
    member(b'1', name.as_bytes(), target.as_bytes(), b"")
}

pub(crate) fn device(name: &str) -> Vec<u8> {
    member(b'3', name.as_bytes(), b"", b"")
}

/// An archive of members, compressed, and its diff id.
pub(crate) fn layer(members: &[Vec<u8>]) -> (Vec<u8>, String) {
    let tar = [members.concat(), vec![0; 1024]].concat();
    (gzip(&tar), Digest::of(&tar).to_string())
}

/// A file of `size` bytes of which `data` lie at `offset`, and nothing else is anything but a hole.
pub(crate) fn sparse(name: &str, size: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkflag = [b'S'];
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(data.len() as u64);
    let octal = |field: &mut [u8; 12], number: u64| field.copy_from_slice(format!("{number:012o}").as_bytes());
    let gnu = header.as_gnu_mut().unwrap();
    octal(&mut gnu.realsize, size);
    octal(&mut gnu.sparse[0].offset, offset);
    octal(&mut gnu.sparse[0].numbytes, data.len() as u64);
    header.set_cksum();
    let padding = vec![0; data.len().next_multiple_of(512) - data.len()];
    [header.as_bytes().as_slice(), data, &padding].concat()
}

/// A file that says it is 8 GB, and 256 MB of it, in some hundred kilobytes.
pub(crate) fn endless() -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path("endless").unwrap();
    header.set_size(8_000_000_000);
    header.set_mode(0o644);
    header.set_cksum();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(header.as_bytes()).unwrap();
    let zeros = vec![0; 1 << 20];
    (0..256).for_each(|_| encoder.write_all(&zeros).unwrap());
    encoder.finish().unwrap()
}
