//! Which versions of glibc an object uses, or has.
//!
//! glibc marks each function with the version that brought it, and the loader refuses an object that asks
//! for a version it does not know.

use super::{Dynamic, ReadAt, Reader};
use serde::{Deserialize, Serialize};
use std::fmt;

const DT_VERDEF: u64 = 0x6fff_fffc;
const DT_VERNEED: u64 = 0x6fff_fffe;

/// Records that are looked at; glibc itself has about fifty.
const MAX_RECORDS: u32 = 512;

/// A version of glibc, as in 2.34.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) struct CLibrary(pub(crate) u32, pub(crate) u32);

impl fmt::Display for CLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The version behind a mark such as `GLIBC_2.34` or `GLIBC_2.2.5`.
fn parse(mark: &str) -> Option<CLibrary> {
    let version = mark.strip_prefix("GLIBC_")?;
    if version == "ABI_DT_RELR" {
        // Says that the loader knows packed relocations, which it does since this version.
        return Some(CLibrary(2, 36));
    }
    let mut numbers = version.split('.').map(str::parse);
    Some(CLibrary(numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The newest version of glibc that the object needs.
pub(super) fn needed<R: ReadAt + ?Sized>(reader: &Reader<'_, R>, dynamic: &Dynamic) -> Option<CLibrary> {
    let mut newest = None;
    let mut record = dynamic.place(dynamic.value(DT_VERNEED)?)?;
    for _ in 0..MAX_RECORDS {
        // version u16, count u16, file u32, offset of the first mark u32, offset of the next record u32
        let (first, next) = (reader.word(record.checked_add(8)?).ok()?, reader.word(record.checked_add(12)?).ok()?);
        let mut mark = record.checked_add(first.into())?;
        for _ in 0..MAX_RECORDS {
            // hash u32, flags u16, index u16, name u32, offset of the next mark u32
            let (name, next) = (reader.word(mark.checked_add(8)?).ok()?, reader.word(mark.checked_add(12)?).ok()?);
            newest = newest.max(named(reader, dynamic, name));
            if next == 0 {
                break;
            }
            mark = mark.checked_add(next.into())?;
        }
        if next == 0 {
            break;
        }
        record = record.checked_add(next.into())?;
    }
    newest
}

/// The newest version of glibc that the object defines.
pub(super) fn defined<R: ReadAt + ?Sized>(reader: &Reader<'_, R>, dynamic: &Dynamic) -> Option<CLibrary> {
    let mut newest = None;
    let mut record = dynamic.place(dynamic.value(DT_VERDEF)?)?;
    for _ in 0..MAX_RECORDS {
        // version, flags, index, count, all u16; hash u32, offset of the name u32, offset of the next record u32
        let (name, next) = (reader.word(record.checked_add(12)?).ok()?, reader.word(record.checked_add(16)?).ok()?);
        let name = reader.word(record.checked_add(name.into())?).ok()?;
        newest = newest.max(named(reader, dynamic, name));
        if next == 0 {
            break;
        }
        record = record.checked_add(next.into())?;
    }
    newest
}

fn named<R: ReadAt + ?Sized>(reader: &Reader<'_, R>, dynamic: &Dynamic, name: u32) -> Option<CLibrary> {
    let (place, room) = dynamic.string(name.into()).ok()?;
    parse(&reader.name(place, room)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_versions() {
        assert_eq!(parse("GLIBC_2.34"), Some(CLibrary(2, 34)));
        assert_eq!(parse("GLIBC_2.2.5"), Some(CLibrary(2, 2)));
        assert_eq!(parse("GLIBC_ABI_DT_RELR"), Some(CLibrary(2, 36)));
        for other in ["GLIBC_PRIVATE", "GLIBCXX_3.4", "GLIBC_", "GLIBC_2", "GLIBC_2.x"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn this_program_needs_no_more_than_its_host_has() {
        let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
        let Some(path) =
            maps.lines().find_map(|line| line.split_whitespace().find(|word| word.ends_with("/libc.so.6")))
        else {
            eprintln!("SKIP this_program_needs_no_more_than_its_host_has: the C library is not glibc");
            return;
        };
        let read = |path: &str| super::super::read(&std::fs::File::open(path).unwrap()).unwrap();
        let (own, library) = (read("/proc/self/exe").needs.unwrap(), read(path).defines.unwrap());
        assert!(own <= library && own >= CLibrary(2, 17), "{own} {library}");
    }
}
