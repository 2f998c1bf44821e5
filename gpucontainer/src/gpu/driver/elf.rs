//! Just enough of ELF to know a shared object's machine, the name it wants to be found by, and which
//! versions of the C library it needs or is.
//!
//! The bytes are not trusted: every offset and size is checked against the file, every table is
//! bounded, and nothing is read that is not needed; driver libraries are up to hundreds of megabytes.

mod asked;
pub(crate) mod section;
mod versions;

pub(crate) use asked::{kernel_of_note, needs_library};
pub(crate) use versions::CLibrary;

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Program headers that are looked at; real objects have about ten.
const MAX_HEADERS: u64 = 256;
/// Entries of the dynamic section that are looked at; real objects have about forty.
const MAX_DYNAMIC: u64 = 4096;
/// The longest name, the kernel's own limit for one.
const MAX_NAME: usize = 255;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_NULL: u64 = 0;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;
const DT_SONAME: u64 = 14;
const ET_DYN: u16 = 3;

/// The machine of this program and its twin of 32 bits, as ELF numbers them.
#[cfg(target_arch = "aarch64")]
const MACHINES: [u16; 2] = [183, 40];
/// The machine of this program and its twin of 32 bits, as ELF numbers them.
#[cfg(not(target_arch = "aarch64"))]
const MACHINES: [u16; 2] = [62, 3];

/// Bytes that can be read at an offset: a file, or a slice in tests.
pub(crate) trait ReadAt {
    /// Fills `buffer` from `offset`, or fails.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Option<()>;

    /// How many bytes there are.
    fn length(&self) -> u64;
}

impl ReadAt for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Option<()> {
        self.read_exact_at(buffer, offset).ok()
    }

    fn length(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Option<()> {
        let start = usize::try_from(offset).ok()?;
        buffer.copy_from_slice(self.get(start..start.checked_add(buffer.len())?)?);
        Some(())
    }

    fn length(&self) -> u64 {
        self.len() as u64
    }
}

/// Which programs can load a library.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Machine {
    /// Those of this architecture.
    Native,
    /// Those of its twin of 32 bits: x86 on x86-64, 32-bit ARM on aarch64.
    Narrow,
    /// None on this host.
    Foreign,
}

/// What is known of a shared object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct SharedObject {
    pub(crate) machine: Machine,
    /// `DT_SONAME`, if it has one that can be a file name.
    pub(crate) soname: Option<String>,
    /// The newest version of glibc of which it uses something.
    pub(crate) needs: Option<CLibrary>,
    /// The newest version of glibc of which it has something, if it is a part of glibc.
    pub(crate) defines: Option<CLibrary>,
}

/// Remembers the last page that was read: what is wanted of an object lies together.
struct Paged<'a, R: ?Sized> {
    source: &'a R,
    length: u64,
    page: RefCell<(u64, Vec<u8>)>,
}

const PAGE: u64 = 4096;

impl<'a, R: ReadAt + ?Sized> Paged<'a, R> {
    fn new(source: &'a R) -> Self {
        Self { source, length: source.length(), page: RefCell::new((u64::MAX, Vec::new())) }
    }
}

impl<R: ReadAt + ?Sized> ReadAt for Paged<'_, R> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Option<()> {
        let mut done = 0;
        while done < buffer.len() {
            let offset = offset.checked_add(done as u64)?;
            let start = offset - offset % PAGE;
            let mut page = self.page.borrow_mut();
            if page.0 != start {
                let there = self.length.checked_sub(start)?.min(PAGE);
                page.1.resize(usize::try_from(there).ok()?, 0);
                page.0 = u64::MAX;
                self.source.read_at(start, &mut page.1)?;
                page.0 = start;
            }
            let rest = page.1.get(usize::try_from(offset - start).ok()?..).filter(|rest| !rest.is_empty())?;
            let count = rest.len().min(buffer.len() - done);
            buffer[done..done + count].copy_from_slice(&rest[..count]);
            done += count;
        }
        Some(())
    }

    fn length(&self) -> u64 {
        self.length
    }
}

/// Offsets within the structures, which differ between the classes.
struct Layout {
    wide: bool,
    header_offset: u64,
    header_size: u64,
    header_count: u64,
    /// Size of a program header, and where its offset, address and file size are.
    program: (u64, u64, u64, u64),
}

const NARROW: Layout =
    Layout { wide: false, header_offset: 28, header_size: 42, header_count: 44, program: (32, 4, 8, 16) };
const WIDE: Layout =
    Layout { wide: true, header_offset: 32, header_size: 54, header_count: 56, program: (56, 8, 16, 32) };

struct Reader<'a, R: ?Sized> {
    source: &'a R,
}

impl<R: ReadAt + ?Sized> Reader<'_, R> {
    fn bytes<const N: usize>(&self, offset: u64) -> Result<[u8; N], &'static str> {
        let mut bytes = [0; N];
        self.source.read_at(offset, &mut bytes).ok_or("it is truncated")?;
        Ok(bytes)
    }

    fn half(&self, offset: u64) -> Result<u16, &'static str> {
        self.bytes(offset).map(u16::from_le_bytes)
    }

    fn word(&self, offset: u64) -> Result<u32, &'static str> {
        self.bytes(offset).map(u32::from_le_bytes)
    }

    /// A number as wide as an address of the class.
    fn address(&self, offset: u64, layout: &Layout) -> Result<u64, &'static str> {
        if layout.wide { self.bytes(offset).map(u64::from_le_bytes) } else { self.word(offset).map(u64::from) }
    }

    /// A string of the string table; `None` if no such can be a file name.
    fn name(&self, offset: u64, room: u64) -> Option<String> {
        let mut name = Vec::new();
        for index in 0..room.min(MAX_NAME as u64 + 1) {
            match self.bytes::<1>(offset.checked_add(index)?).ok()? {
                [0] => {
                    let name = String::from_utf8(name).ok()?;
                    return is_file_name(&name).then_some(name);
                }
                [byte] => name.push(byte),
            }
        }
        None
    }
}

/// Whether a name found in a file may name another file in the same directory.
pub(crate) fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

fn at(base: u64, index: u64, size: u64) -> Result<u64, &'static str> {
    index.checked_mul(size).and_then(|offset| base.checked_add(offset)).ok_or("its tables are out of range")
}

/// Reads what is needed of a shared object, or says why it is none, or not all of one.
pub(crate) fn read<R: ReadAt + ?Sized>(source: &R) -> Result<SharedObject, &'static str> {
    let source = Paged::new(source);
    let reader = Reader { source: &source };
    let (layout, machine) = header(&reader)?;
    let dynamic = Dynamic::read(&reader, &layout)?;
    let soname = match dynamic.value(DT_SONAME) {
        Some(soname) => {
            let (place, room) = dynamic.string(soname)?;
            reader.name(place, room)
        }
        None => None,
    };
    let needs = versions::needed(&reader, &dynamic);
    Ok(SharedObject { machine, soname, needs, defines: versions::defined(&reader, &dynamic) })
}

/// The class and the machine of a shared object.
fn header<R: ReadAt + ?Sized>(reader: &Reader<'_, R>) -> Result<(Layout, Machine), &'static str> {
    let identity: [u8; 16] = reader.bytes(0).map_err(|_| "it is too short for an ELF file")?;
    if identity[..4] != *b"\x7fELF" {
        return Err("it is no ELF file");
    }
    let layout = match identity[4] {
        1 => NARROW,
        2 => WIDE,
        _ => return Err("it is of an unknown ELF class"),
    };
    if identity[5] != 1 {
        return Err("it is not little-endian");
    }
    if reader.half(16)? != ET_DYN {
        return Err("it is no shared object");
    }
    let [native, narrow] = MACHINES;
    let machine = match (reader.half(18)?, layout.wide) {
        (machine, true) if machine == native => Machine::Native,
        (machine, false) if machine == narrow => Machine::Narrow,
        _ => Machine::Foreign,
    };
    Ok((layout, machine))
}

/// The dynamic section, and where in the file the addresses in it are.
struct Dynamic {
    /// Address, size, offset in the file.
    segments: Vec<(u64, u64, u64)>,
    entries: Vec<(u64, u64)>,
}

impl Dynamic {
    fn read<R: ReadAt + ?Sized>(reader: &Reader<'_, R>, layout: &Layout) -> Result<Self, &'static str> {
        let table = reader.address(layout.header_offset, layout)?;
        let size = u64::from(reader.half(layout.header_size)?);
        let count = u64::from(reader.half(layout.header_count)?).min(MAX_HEADERS);
        let (least, offset_field, address_field, size_field) = layout.program;
        if count > 0 && size < least {
            return Err("its program headers are too small");
        }
        let mut section = None;
        let mut segments = Vec::new();
        for index in 0..count {
            let header = at(table, index, size)?;
            let kind = reader.word(header)?;
            let field = |offset| reader.address(at(header, offset, 1)?, layout);
            if kind == PT_DYNAMIC {
                section = Some((field(offset_field)?, field(size_field)?));
            } else if kind == PT_LOAD {
                let (address, size, offset) = (field(address_field)?, field(size_field)?, field(offset_field)?);
                // The loader maps what the header says; touching what the file lacks would kill the process.
                if offset.checked_add(size).is_none_or(|end| end > reader.source.length()) {
                    return Err("it is truncated");
                }
                segments.push((address, size, offset));
            }
        }
        let mut entries = Vec::new();
        let (section, section_size) = section.unwrap_or_default();
        let entry = if layout.wide { 16 } else { 8 };
        for index in 0..(section_size / entry).min(MAX_DYNAMIC) {
            let place = at(section, index, entry)?;
            let value = reader.address(at(place, entry / 2, 1)?, layout)?;
            match reader.address(place, layout)? {
                DT_NULL => break,
                tag => entries.push((tag, value)),
            }
        }
        Ok(Self { segments, entries })
    }

    fn value(&self, wanted: u64) -> Option<u64> {
        self.entries.iter().rev().find(|(tag, _)| *tag == wanted).map(|(_, value)| *value)
    }

    /// Where in the file an address is.
    fn place(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|(first, size, offset)| {
            let inside = address.checked_sub(*first).filter(|inside| inside < size)?;
            offset.checked_add(inside)
        })
    }

    /// Where in the file a string of the string table is, and how long it can be at most.
    fn string(&self, offset: u64) -> Result<(u64, u64), &'static str> {
        // The table is given by its address in memory; the segments say where in the file that is.
        let (table, size) = self.value(DT_STRTAB).zip(self.value(DT_STRSZ)).ok_or("it has no string table")?;
        let place = self.place(table).and_then(|table| table.checked_add(offset));
        Ok((place.ok_or("its string table is out of range")?, size.saturating_sub(offset)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A small shared object of 64 bits: ELF header, two program headers, dynamic section, strings.
    fn object(soname: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0_u8; 64 + 2 * 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16..18].copy_from_slice(&ET_DYN.to_le_bytes());
        bytes[18..20].copy_from_slice(&MACHINES[0].to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&2_u16.to_le_bytes());
        let dynamic = bytes.len() as u64;
        let strings = dynamic + 4 * 16;
        let end = strings + 1 + soname.len() as u64 + 1;
        // Loaded at an address that is not the offset, as linkers do for the data segment.
        header(&mut bytes[64..120], PT_LOAD, [0, 0x10000, end]);
        header(&mut bytes[120..176], PT_DYNAMIC, [dynamic, 0x10000 + dynamic, 4 * 16]);
        let entries =
            [(DT_SONAME, 1), (DT_STRTAB, 0x10000 + strings), (DT_STRSZ, 2 + soname.len() as u64), (DT_NULL, 0)];
        for (tag, value) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        bytes.push(0);
        bytes.extend(soname);
        bytes.push(0);
        bytes
    }

    fn header(bytes: &mut [u8], kind: u32, [offset, address, size]: [u64; 3]) {
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&address.to_le_bytes());
        bytes[32..40].copy_from_slice(&size.to_le_bytes());
    }

    #[test]
    fn the_name_of_a_library_is_read() {
        let read = read(&object(b"libcuda.so.1")[..]).unwrap();
        let soname = Some("libcuda.so.1".to_owned());
        assert_eq!(read, SharedObject { machine: Machine::Native, soname, needs: None, defines: None });
    }

    /// The same as [`object`], of 32 bits.
    fn narrow_object(soname: &[u8]) -> Vec<u8> {
        let (dynamic, strings) = (52 + 2 * 32, 52 + 2 * 32 + 4 * 8);
        let length = u32::try_from(soname.len()).unwrap();
        let mut bytes = b"\x7fELF\x01\x01".to_vec();
        bytes.resize(16, 0);
        bytes.extend(ET_DYN.to_le_bytes());
        bytes.extend(MACHINES[1].to_le_bytes());
        bytes.resize(28, 0);
        bytes.extend(52_u32.to_le_bytes());
        bytes.resize(42, 0);
        bytes.extend([32, 0, 2, 0]);
        bytes.resize(52, 0);
        let end = strings + length + 2;
        let headers = [[PT_LOAD, 0, 0x1000, 0, end, end, 0, 0], [PT_DYNAMIC, dynamic, 0, 0, 4 * 8, 0, 0, 0]];
        let entries = [[14, 1], [5, 0x1000 + strings], [10, 2 + length], [0, 0]];
        let words = headers.into_iter().flatten().chain(entries.into_iter().flatten());
        bytes.extend(words.flat_map(u32::to_le_bytes));
        bytes.push(0);
        bytes.extend(soname);
        bytes.push(0);
        bytes
    }

    #[test]
    fn libraries_of_32_bits_are_told_apart() {
        let found = read(&narrow_object(b"libcuda.so.1")[..]).unwrap();
        assert_eq!(found.soname.as_deref(), Some("libcuda.so.1"));
        assert_eq!(found.machine, Machine::Narrow);
        // Programs with addresses of 32 bits on the machine of 64 (x32) load neither kind.
        let mut short = narrow_object(b"libcuda.so.1");
        short[18..20].copy_from_slice(&MACHINES[0].to_le_bytes());
        assert_eq!(read(&short[..]).unwrap().machine, Machine::Foreign);
        let mut foreign = object(b"libcuda.so.1");
        foreign[18..20].copy_from_slice(&243_u16.to_le_bytes());
        assert_eq!(read(&foreign[..]).unwrap().machine, Machine::Foreign, "RISC-V");
    }

    #[test]
    fn names_that_could_leave_the_directory_are_no_names() {
        for name in [&b"../libc.so.6"[..], b"/etc/passwd", b"", b".", b"..", b"a b", b"\xff\xfe", &[b'a'; 300]] {
            assert_eq!(read(&object(name)[..]).unwrap().soname, None, "{name:?}");
        }
    }

    #[test]
    fn hostile_bytes_are_refused() {
        let good = object(b"libx.so.1");
        let with = |place: usize, bytes: &[u8]| {
            let mut bad = good.clone();
            bad[place..place + bytes.len()].copy_from_slice(bytes);
            bad
        };
        let all = u64::MAX.to_le_bytes();
        let table: [(&str, Vec<u8>); 12] = [
            ("nothing", Vec::new()),
            ("a script", b"#!/bin/sh\nexit 0\n".to_vec()),
            ("class 3", with(4, &[3])),
            ("big-endian", with(5, &[2])),
            ("an executable", with(16, &[2, 0])),
            ("headers far away", with(32, &all)),
            ("headers without size", with(54, &[0, 0])),
            ("too many headers", with(56, &[0xff, 0xff])),
            ("dynamic section far away", with(128, &all)),
            ("endless dynamic section", with(152, &all)),
            ("strings far away", with(176 + 24, &all)),
            ("cut in the strings", good[..good.len() - 12].to_vec()),
        ];
        for (what, bytes) in table {
            // An endless section ends at its null entry, which makes it harmless.
            let refused = read(&bytes[..]).map(|object| object.soname);
            assert!(refused.is_err() || what.starts_with("endless") || refused == Ok(None), "{what}: {refused:?}");
        }
    }

    #[test]
    fn this_machine_s_own_library_is_native() {
        // The test program itself is position-independent, and so a shared object to ELF.
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert_eq!(read(&file).unwrap().machine, Machine::Native);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = read(&bytes[..]);
        }

        #[test]
        fn no_damage_panics(place in 0_usize..250, byte in any::<u8>(), cut in 0_usize..260) {
            let mut bytes = object(b"libcuda.so.1");
            if let Some(there) = bytes.get_mut(place) {
                *there = byte;
            }
            bytes.truncate(cut);
            if let Some(name) = read(&bytes[..]).ok().and_then(|object| object.soname) {
                prop_assert!(is_file_name(&name));
            }
        }
    }
}
