//! The dynamic loader's cache, `/etc/ld.so.cache`: where libraries are, read and written.
//!
//! ```text
//! "glibc-ld.so.cache1.1"  20 bytes
//! entries u32, size of the strings u32, endianness u8, padding, offset of extensions u32, 3 × u32
//! entry × n: flags i32, name u32, path u32, kernel version u32, hardware capabilities u64
//! strings, each ended by a null byte; names and paths are offsets from the first byte of all this
//! extensions: magic u32, number of sections u32; section × n: tag u32, flags u32, offset u32, size u32
//! section 1: u32 × n, offsets of the names of hardware, as in "x86-64-v3", sorted
//! ```
//!
//! An older format may stand before it; the newer one then starts at the next multiple of 8. What is
//! written is the newer format alone, which every glibc since 2.2 reads.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
const HEADER: usize = 48;
const ENTRY: usize = 24;
const OLD_HEADER: usize = 16;
const OLD_ENTRY: usize = 12;
/// Where the offset of the extensions is.
const EXTENSIONS_AT: usize = 32;
const EXTENSIONS_MAGIC: u32 = 0xeaa4_2174;
/// The section of the names of hardware.
const HARDWARE_SECTION: u32 = 1;
/// Little-endian.
const ENDIANNESS: u8 = 2;
/// Set in the hardware capabilities of an entry that names its hardware; the ten bits from 32 on are a
/// level, the low 32 an index into the section.
const NAMED: u64 = 1 << 62;

/// More entries than any system has; the rest of a larger cache is ignored.
const MAX_ENTRIES: usize = 65_536;
/// How many times as long as its cache all strings of the entries may be: `ldconfig` writes a name that is the end of a
/// path once, and equal paths once.
const SHARED: usize = 4;
/// As long as all strings may be in any case, in bytes: more than of any real cache.
const ALWAYS: usize = 16 << 20;

/// The flags of a library of glibc for this machine, and for its twin of 32 bits (ARM: of hard floats).
#[cfg(target_arch = "aarch64")]
const FLAGS: [i32; 2] = [0x0a03, 0x0903];
/// The flags of a library of glibc for this machine, and for its twin of 32 bits.
#[cfg(not(target_arch = "aarch64"))]
const FLAGS: [i32; 2] = [0x0303, 0x0003];

/// Where one library is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Entry {
    flags: i32,
    /// What programs ask for.
    pub(crate) name: String,
    /// The file.
    pub(crate) path: String,
    /// The oldest kernel that it works on; 0 in all caches of today.
    kernel: u32,
    hardware: Hardware,
}

/// What an image's loader knows, and what was last written for it with others before: starts of one image mostly add the
/// same.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct LoaderCache {
    entries: Vec<Entry>,
    #[serde(skip)]
    written: Mutex<Option<Written>>,
}

#[derive(Debug)]
struct Written {
    first: Vec<Entry>,
    bytes: Vec<u8>,
}

impl PartialEq for LoaderCache {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl Eq for LoaderCache {}

impl LoaderCache {
    pub(crate) fn new(entries: Vec<Entry>) -> Arc<Self> {
        Arc::new(Self { entries, written: Mutex::default() })
    }

    /// In the order of the cache.
    #[cfg(test)]
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How long all names and paths are, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.entries.iter().map(|entry| entry.name.len() + entry.path.len()).sum()
    }

    /// The file for a loader that is to know `first`, and of its own what is not among them.
    pub(crate) fn with(&self, first: Vec<Entry>) -> Vec<u8> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(written) = written.as_ref().filter(|written| written.first == first) {
            return written.bytes.clone();
        }
        let known: HashSet<(&str, &str)> = first.iter().map(Entry::key).collect();
        let own = self.entries.iter().filter(|entry| !known.contains(&entry.key()));
        let bytes = write(first.iter().chain(own));
        *written = Some(Written { first, bytes: bytes.clone() });
        bytes
    }
}

/// The hardware that a library is for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
enum Hardware {
    /// By bits of the time before glibc 2.33; 0 is any.
    Bits(u64),
    /// By the name of its directory below `glibc-hwcaps`, and the bits beside it.
    Named(u64, String),
}

impl Entry {
    /// A library for any hardware that this system runs on.
    pub(crate) fn new(name: impl Into<String>, path: impl Into<String>, thirty_two_bit: bool) -> Self {
        let flags = FLAGS[usize::from(thirty_two_bit)];
        Self { flags, name: name.into(), path: path.into(), kernel: 0, hardware: Hardware::Bits(0) }
    }

    /// What is asked for, and what is found.
    fn key(&self) -> (&str, &str) {
        (&self.name, &self.path)
    }

    /// As `ldconfig` sorts, and as the loader's binary search wants it: names descending, those of this machine
    /// first, those for special hardware before those for any.
    fn order(&self, other: &Self) -> Ordering {
        let hardware = || match (&self.hardware, &other.hardware) {
            (Hardware::Named(_, own), Hardware::Named(_, other)) => own.cmp(other),
            (Hardware::Named(..), Hardware::Bits(_)) => Ordering::Less,
            (Hardware::Bits(_), Hardware::Named(..)) => Ordering::Greater,
            (Hardware::Bits(own), Hardware::Bits(there)) => there.cmp(own),
        };
        compare_names(other.name.as_bytes(), self.name.as_bytes())
            .then_with(|| other.flags.cmp(&self.flags))
            .then_with(hardware)
            .then_with(|| other.kernel.cmp(&self.kernel))
    }
}

/// Compares as the loader does: digits as numbers, which come after everything else.
fn compare_names(mut one: &[u8], mut other: &[u8]) -> Ordering {
    loop {
        let (first, second) = (one.first().copied().unwrap_or(0), other.first().copied().unwrap_or(0));
        if first == 0 || !first.is_ascii_digit() && first == second {
            if first == 0 {
                // The loader subtracts characters, whose sign is the machine's.
                return character(first).cmp(&character(second));
            }
            (one, other) = (&one[1..], &other[1..]);
            continue;
        }
        match (first.is_ascii_digit(), second.is_ascii_digit()) {
            (true, true) => match number_at(&mut one).cmp(&number_at(&mut other)) {
                Ordering::Equal => {}
                different => return different,
            },
            (true, false) => return Ordering::Greater,
            (false, true) => return Ordering::Less,
            (false, false) => return character(first).cmp(&character(second)),
        }
    }
}

fn character(byte: u8) -> c_char {
    c_char::from_ne_bytes([byte])
}

/// The number that `bytes` start with, which is taken off; it overflows as the loader's does.
fn number_at(bytes: &mut &[u8]) -> i32 {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = bytes.split_at(digits);
    *bytes = rest;
    number.iter().fold(0, |value: i32, digit| value.wrapping_mul(10).wrapping_add(i32::from(digit - b'0')))
}

/// The directories of the libraries in the cache for which `wanted` holds, in the order of their names.
///
/// A damaged cache gives what can be read of it, mostly nothing: the directories that are always
/// searched remain.
pub(crate) fn directories(cache: &[u8], wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in read(cache) {
        if wanted(&entry.name) {
            found.extend(Path::new(&entry.path).parent().filter(|parent| parent.is_absolute()).map(Path::to_owned));
        }
    }
    found.into_iter().collect()
}

/// The entries of a cache, in its order; of a damaged one, what can be read.
pub(crate) fn read(file: &[u8]) -> Vec<Entry> {
    let Some(cache) = newer_format(file) else { return Vec::new() };
    let hardware = hardware_names(file, cache).unwrap_or_default();
    let count = number(cache, MAGIC.len()).unwrap_or(0).min(MAX_ENTRIES);
    let entries = (0..count).map_while(|index| {
        let place = HEADER.checked_add(index.checked_mul(ENTRY)?)?;
        cache.get(place..place.checked_add(ENTRY)?).map(|bytes| entry(cache, bytes, &hardware))
    });
    // Entries share strings, each of which becomes one of its own here: those of a hostile cache are no more than this.
    let mut room = file.len().saturating_mul(SHARED).max(ALWAYS);
    let fits = |entry: &Entry| {
        let left = room.checked_sub(entry.name.len() + entry.path.len());
        room = left.unwrap_or(0);
        left.is_some()
    };
    entries.flatten().take_while(fits).collect()
}

fn entry(cache: &[u8], bytes: &[u8], hardware: &[Option<&str>]) -> Option<Entry> {
    let word = |place: usize| number(bytes, place);
    let bits = u64::from_ne_bytes(bytes.get(16..24)?.try_into().ok()?);
    let hardware = if bits & NAMED == 0 {
        Hardware::Bits(bits)
    } else {
        let index = usize::try_from(bits & u64::from(u32::MAX)).ok()?;
        Hardware::Named(bits & !u64::from(u32::MAX), (*hardware.get(index)?)?.to_owned())
    };
    Some(Entry {
        flags: i32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?),
        name: text(cache, word(4)?)?.to_owned(),
        path: text(cache, word(8)?)?.to_owned(),
        kernel: u32::from_ne_bytes(bytes.get(12..16)?.try_into().ok()?),
        hardware,
    })
}

/// The names of hardware that entries refer to.
fn hardware_names<'a>(file: &[u8], cache: &'a [u8]) -> Option<Vec<Option<&'a str>>> {
    // The offsets of extensions are those of the file, the offsets of strings those of the newer format.
    let extensions = number(cache, EXTENSIONS_AT).filter(|place| *place != 0)?;
    if number(file, extensions)? != usize::try_from(EXTENSIONS_MAGIC).ok()? {
        return None;
    }
    let sections = number(file, extensions.checked_add(4)?)?.min(64);
    let mut headers = (0..sections).filter_map(|index| extensions.checked_add(8 + index * 16));
    let header = headers.find(|header| number(file, *header) == usize::try_from(HARDWARE_SECTION).ok())?;
    let (offset, size) = (number(file, header.checked_add(8)?)?, number(file, header.checked_add(12)?)?);
    let names = (0..(size / 4).min(MAX_ENTRIES)).map_while(|index| number(file, offset.checked_add(index * 4)?));
    Some(names.map(|place| text(cache, place)).collect())
}

/// Writes a cache. Of entries that are equal but for their paths the first wins.
pub(crate) fn write<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Vec<u8> {
    let mut entries: Vec<&Entry> = entries.into_iter().take(MAX_ENTRIES).collect();
    entries.sort_by(|one, other| one.order(other));
    let hardware: BTreeMap<&str, u64> = {
        let names: BTreeSet<&str> = entries
            .iter()
            .filter_map(|entry| match &entry.hardware {
                Hardware::Named(_, name) => Some(name.as_str()),
                Hardware::Bits(_) => None,
            })
            .collect();
        names.into_iter().zip(0..).collect()
    };
    let mut strings = Strings { base: HEADER + entries.len() * ENTRY, bytes: Vec::new() };
    let mut before = ("", 0);
    let mut table = Vec::with_capacity(entries.len() * ENTRY);
    for entry in &entries {
        let bits = match &entry.hardware {
            Hardware::Bits(bits) => *bits,
            Hardware::Named(bits, name) => bits | hardware.get(name.as_str()).copied().unwrap_or_default(),
        };
        let path = strings.place(&entry.path);
        // As `ldconfig` does it: a name is the end of its path, or else often that of the entry before.
        let name = match entry.path.strip_suffix(&entry.name) {
            Some(directory) => path.saturating_add(small(directory.len())),
            None if entry.name == before.0 => before.1,
            None => strings.place(&entry.name),
        };
        before = (&entry.name, name);
        table.extend_from_slice(&entry.flags.to_ne_bytes());
        table.extend_from_slice(&name.to_ne_bytes());
        table.extend_from_slice(&path.to_ne_bytes());
        table.extend_from_slice(&entry.kernel.to_ne_bytes());
        table.extend_from_slice(&bits.to_ne_bytes());
    }
    let names: Vec<u32> = hardware.keys().map(|name| strings.place(name)).collect();
    let mut bytes = MAGIC.to_vec();
    bytes.extend(small(entries.len()).to_ne_bytes());
    bytes.extend(small(strings.bytes.len()).to_ne_bytes());
    bytes.push(ENDIANNESS);
    bytes.resize(HEADER, 0);
    bytes.extend_from_slice(&table);
    bytes.extend_from_slice(&strings.bytes);
    if !names.is_empty() {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let extensions = bytes.len();
        bytes[EXTENSIONS_AT..EXTENSIONS_AT + 4].copy_from_slice(&small(extensions).to_ne_bytes());
        let words = [EXTENSIONS_MAGIC, 1, HARDWARE_SECTION, 0, small(extensions + 24), small(names.len() * 4)];
        bytes.extend(words.into_iter().chain(names).flat_map(u32::to_ne_bytes));
    }
    bytes
}

/// The strings of a cache that is written.
struct Strings {
    base: usize,
    bytes: Vec<u8>,
}

impl Strings {
    fn place(&mut self, text: &str) -> u32 {
        let place = small(self.base + self.bytes.len());
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        place
    }
}

/// A size within a cache: entries and strings are bounded, so it is far from the end of the numbers.
fn small(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
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
    CStr::from_bytes_until_nul(&rest[..rest.len().min(4096)]).ok()?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cache(libraries: &[(&str, &str)]) -> Vec<u8> {
        let entries: Vec<Entry> = libraries.iter().map(|(name, path)| Entry::new(*name, *path, false)).collect();
        write(&entries)
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
    fn what_was_written_is_kept_for_the_same_additions_alone() {
        let own =
            vec![Entry::new("liba.so.1", "/lib/liba.so.1", false), Entry::new("libb.so.1", "/lib/libb.so.1", false)];
        let cache = LoaderCache::new(own.clone());
        for path in ["/lib/libb.so.1", "/lib/libb.so.1", "/opt/libb.so.1", "/lib/libb.so.1"] {
            let new = Entry::new("libb.so.1", path, false);
            let rest = own.iter().filter(|entry| entry.path != path);
            let expected = write([&new].into_iter().chain(rest));
            assert_eq!(cache.with(vec![new]), expected, "{path}");
        }
    }

    #[test]
    fn this_host_s_cache_is_read_and_written_alike() {
        let Ok(bytes) = std::fs::read("/etc/ld.so.cache") else {
            eprintln!("SKIP this_host_s_cache_is_read_and_written_alike: the host's C library is not glibc");
            return;
        };
        assert!(!directories(&bytes, |name| name == "libc.so.6").is_empty());
        let entries = read(&bytes);
        let mixed: Vec<Entry> = entries.iter().rev().cloned().collect();
        let again = read(&write(&mixed));
        assert_eq!(again.len(), entries.len());
        // Turned round, equal entries are too; everything else is as ldconfig sorts it.
        for (own, theirs) in again.iter().zip(&entries) {
            assert_eq!((&own.name, own.flags, &own.hardware), (&theirs.name, theirs.flags, &theirs.hardware));
        }
        assert_eq!(read(&write(&entries)), entries);
    }

    #[test]
    fn names_are_sorted_as_the_loader_searches() {
        use Ordering::{Equal, Greater, Less};
        let table = [
            ("libx.so.10", "libx.so.9", Greater),
            ("libx.so.1", "libx.so.1", Equal),
            ("libx.so.1", "libx.so", Greater),
            ("libx1.so", "libx.so", Greater),
            ("liba.so.1", "libb.so.1", Less),
            ("libx-2.so", "libx.so", Less),
            ("lib01.so", "lib1.so", Equal),
        ];
        for (one, other, expected) in table {
            assert_eq!(compare_names(one.as_bytes(), other.as_bytes()), expected, "{one} {other}");
            assert_eq!(compare_names(other.as_bytes(), one.as_bytes()), expected.reverse(), "{other} {one}");
        }
    }

    #[test]
    fn libraries_for_special_hardware_keep_their_place() {
        let named = |name: &str, path: &str| Entry {
            hardware: Hardware::Named(NAMED | 3 << 32, name.to_owned()),
            ..Entry::new("libx.so.1", path, false)
        };
        let entries = vec![
            Entry::new("libx.so.1", "/first", false),
            Entry::new("libx.so.1", "/second", false),
            Entry::new("libx.so.1", "/narrow", true),
            named("x86-64-v4", "/v4"),
            named("x86-64-v3", "/v3"),
            Entry { hardware: Hardware::Bits(1 << 4), ..Entry::new("libx.so.1", "/old", false) },
        ];
        let read = read(&write(&entries));
        let paths: Vec<&str> = read.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["/v3", "/v4", "/old", "/first", "/second", "/narrow"]);
        assert_eq!(read[0].hardware, Hardware::Named(NAMED | 3 << 32, "x86-64-v3".to_owned()));
    }

    #[test]
    fn a_small_cache_does_not_fill_the_memory() {
        // As many entries as are read, all of the same long string, each from another place of it.
        let count = MAX_ENTRIES;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(small(count).to_ne_bytes());
        bytes.resize(HEADER, 0);
        let strings = HEADER + count * ENTRY;
        for index in 0..count {
            let place = small(strings + index % 2000);
            bytes.extend(FLAGS[0].to_ne_bytes());
            bytes.extend(place.to_ne_bytes());
            bytes.extend(place.to_ne_bytes());
            bytes.extend([0; 12]);
        }
        bytes.extend([b'x'; 4000]);
        bytes.push(0);
        let entries = read(&bytes);
        let held: usize = entries.iter().map(|entry| entry.name.len() + entry.path.len()).sum();
        assert!(!entries.is_empty() && held <= ALWAYS, "{held} bytes of {}", bytes.len());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..256), place in any::<u32>()) {
            let _ = read(&bytes);
            let _ = read(&[MAGIC, &bytes].concat());
            let _ = read(&[OLD_MAGIC, &bytes].concat());
            let mut damaged = cache(&[("liba.so.1", "/a"), ("libb.so.2", "/b")]);
            damaged[EXTENSIONS_AT..EXTENSIONS_AT + 4].copy_from_slice(&(place % 200).to_ne_bytes());
            damaged.extend(bytes);
            let _ = read(&damaged);
        }

        #[test]
        fn what_is_written_is_read(names in prop::collection::vec("lib[a-z0-9.]{1,12}", 0..40)) {
            let entries: Vec<Entry> = names.iter().map(|name| Entry::new(name, format!("/lib/{name}"), false)).collect();
            let again = read(&write(&entries));
            prop_assert_eq!(again.len(), entries.len());
            for pair in again.windows(2) {
                prop_assert!(compare_names(pair[0].name.as_bytes(), pair[1].name.as_bytes()) != Ordering::Less);
            }
        }
    }
}
