//! The dynamic loader's cache, `/etc/ld.so.cache`: where the host's libraries are.
//!
//! ```text
//! "glibc-ld.so.cache1.1"  20 bytes
//! entries u32, size of the strings u32, endianness u8, padding, offset of extensions u32, 3 × u32
//! entry × n: flags i32, name u32, path u32, kernel version u32, hardware capabilities u64
//! strings, each ended by a null byte; names and paths are offsets from the first byte of all this
//! ```
//!
//! An older format may stand before it; the newer one then starts at the next multiple of 8.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
const HEADER: usize = 48;
const ENTRY: usize = 24;
const OLD_HEADER: usize = 16;
const OLD_ENTRY: usize = 12;

/// The directories of the libraries in the cache for which `wanted` holds, in the order of their names.
///
/// A damaged cache gives what can be read of it, mostly nothing: the directories that are always
/// searched remain.
pub(crate) fn directories(cache: &[u8], wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = BTreeSet::new();
    for (name, path) in entries(cache) {
        if wanted(name) {
            found.extend(Path::new(path).parent().filter(|parent| parent.is_absolute()).map(Path::to_owned));
        }
    }
    found.into_iter().collect()
}

/// Names and paths.
fn entries(cache: &[u8]) -> Vec<(&str, &str)> {
    let Some(cache) = newer_format(cache) else { return Vec::new() };
    let count = number(cache, MAGIC.len()).unwrap_or(0);
    let entries = (0..count).map_while(|index| {
        let place = HEADER.checked_add(index.checked_mul(ENTRY)?)?;
        Some((text(cache, number(cache, place.checked_add(4)?)?), text(cache, number(cache, place.checked_add(8)?)?)))
    });
    entries.filter_map(|(name, path)| name.zip(path)).collect()
}

fn newer_format(cache: &[u8]) -> Option<&[u8]> {
    if cache.starts_with(MAGIC) {
        return Some(cache);
    }
    let count = cache.starts_with(OLD_MAGIC).then(|| number(cache, 12)).flatten()?;
    let end = OLD_HEADER.checked_add(count.checked_mul(OLD_ENTRY)?)?;
    cache.get(end.checked_next_multiple_of(8)?..).filter(|rest| rest.starts_with(MAGIC))
}

fn number(cache: &[u8], place: usize) -> Option<usize> {
    let bytes = cache.get(place..place.checked_add(4)?)?;
    usize::try_from(u32::from_ne_bytes(bytes.try_into().ok()?)).ok()
}

fn text(cache: &[u8], place: usize) -> Option<&str> {
    let rest = cache.get(place..)?;
    let end = rest.iter().take(4096).position(|byte| *byte == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cache(libraries: &[(&str, &str)]) -> Vec<u8> {
        let mut strings = Vec::new();
        let mut table = Vec::new();
        let base = HEADER + libraries.len() * ENTRY;
        for (name, path) in libraries {
            table.extend(3_i32.to_ne_bytes());
            for text in [name, path] {
                table.extend(u32::try_from(base + strings.len()).unwrap().to_ne_bytes());
                strings.extend(text.bytes().chain([0]));
            }
            table.extend([0; 12]);
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend(u32::try_from(libraries.len()).unwrap().to_ne_bytes());
        bytes.extend(u32::try_from(strings.len()).unwrap().to_ne_bytes());
        bytes.resize(HEADER, 0);
        [bytes, table, strings].concat()
    }

    fn is_cuda(name: &str) -> bool {
        name.starts_with("libcuda.so.")
    }

    #[test]
    fn directories_of_wanted_libraries_are_found() {
        let bytes = cache(&[
            ("libc.so.6", "/lib/libc.so.6"),
            ("libcuda.so.1", "/opt/driver/lib/libcuda.so.1"),
            ("libcuda.so.1", "relative/libcuda.so.1"),
        ]);
        assert_eq!(directories(&bytes, is_cuda), [Path::new("/opt/driver/lib")]);
        let mut both = OLD_MAGIC.to_vec();
        both.resize(12, 0);
        both.extend(1_u32.to_ne_bytes());
        both.resize((OLD_HEADER + OLD_ENTRY).next_multiple_of(8), 0);
        both.extend(&bytes);
        assert_eq!(directories(&both, is_cuda), [Path::new("/opt/driver/lib")], "behind the older format");
        assert!(directories(b"garbage", |_| true).is_empty());
    }

    #[test]
    fn this_host_s_cache_is_read() {
        let Ok(bytes) = std::fs::read("/etc/ld.so.cache") else {
            eprintln!("SKIP this_host_s_cache_is_read: no /etc/ld.so.cache, the host's C library is not glibc");
            return;
        };
        assert!(!directories(&bytes, |name| name == "libc.so.6").is_empty());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = directories(&bytes, |_| true);
            let _ = directories(&[MAGIC, &bytes].concat(), |_| true);
            let _ = directories(&[OLD_MAGIC, &bytes].concat(), |_| true);
        }
    }
}
