//! What an object asks of whoever loads it beside its C library: other libraries, and a kernel.
//!
//! Of interest only where a driver brings several libraries of one name, of which one is right.

use super::{Dynamic, MAX_HEADERS, Paged, ReadAt, Reader, at, header};

const PT_NOTE: u32 = 4;
const DT_NEEDED: u64 = 1;
/// The kind of a note of GNU's that names the oldest kernel.
const ABI_TAG: u32 = 1;
/// Far more than the notes of a shared object take.
const MAX_NOTES: u64 = 4096;

/// Whether the object asks for a library whose name begins with one of `prefixes`.
pub(crate) fn needs_library<R: ReadAt + ?Sized>(source: &R, prefixes: &[&str]) -> bool {
    let source = Paged::new(source);
    let reader = Reader { source: &source };
    let Ok((layout, _)) = header(&reader) else { return false };
    let Ok(dynamic) = Dynamic::read(&reader, &layout) else { return false };
    let names = dynamic.entries.iter().filter(|(tag, _)| *tag == DT_NEEDED).filter_map(|(_, name)| {
        let (place, room) = dynamic.string(*name).ok()?;
        reader.name(place, room)
    });
    names.into_iter().any(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
}

/// The oldest kernel that the object's own note names, as in `[2, 3, 99]`; `None` if it has no such note.
pub(crate) fn kernel_of_note<R: ReadAt + ?Sized>(source: &R) -> Option<[u32; 3]> {
    let source = Paged::new(source);
    let reader = Reader { source: &source };
    let (layout, _) = header(&reader).ok()?;
    let table = reader.address(layout.header_offset, &layout).ok()?;
    let size = u64::from(reader.half(layout.header_size).ok()?);
    let count = u64::from(reader.half(layout.header_count).ok()?).min(MAX_HEADERS);
    let (_, offset_field, _, size_field) = layout.program;
    for index in 0..count {
        let header = at(table, index, size).ok()?;
        if reader.word(header).ok()? != PT_NOTE {
            continue;
        }
        let field = |offset| reader.address(at(header, offset, 1).ok()?, &layout).ok();
        if let Some(kernel) = notes(&reader, field(offset_field)?, field(size_field)?) {
            return Some(kernel);
        }
    }
    None
}

/// Size of the owner's name, size of the description, kind, all u32; then both, each filled up to a multiple of 4.
fn notes<R: ReadAt + ?Sized>(reader: &Reader<'_, R>, start: u64, size: u64) -> Option<[u32; 3]> {
    let end = start.checked_add(size.min(MAX_NOTES))?;
    let mut note = start;
    while note.checked_add(12)? <= end {
        let word = |offset: u64| reader.word(note.checked_add(offset)?).ok();
        let (name, description, kind) = (word(0)?, word(4)?, word(8)?);
        let filled = |size: u32| u64::from(size).next_multiple_of(4);
        let text = 12 + filled(name);
        if kind == ABI_TAG && name == 4 && description >= 16 && reader.bytes::<4>(note + 12).ok()? == *b"GNU\0" {
            // The first word says that the system is Linux.
            return Some([word(text + 4)?, word(text + 8)?, word(text + 12)?]);
        }
        note = note.checked_add(text)?.checked_add(filled(description))?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_this_program_asks_for_is_found() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(needs_library(&file, &["libc.so.", "libc.musl", "libgcc_s.so."]));
        assert!(!needs_library(&file, &["libnvidia-glcore.so."]));
        let kernel = kernel_of_note(&file);
        assert!(kernel.is_none_or(|kernel| kernel[0] >= 2 && kernel != [2, 3, 99]), "{kernel:?}");
    }

    #[test]
    fn a_note_names_a_kernel() {
        let mut bytes = vec![0_u8; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16..20].copy_from_slice(&[3, 0, 62, 0]);
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..58].copy_from_slice(&[56, 0, 1, 0]);
        bytes[64..68].copy_from_slice(&PT_NOTE.to_le_bytes());
        bytes[72..80].copy_from_slice(&120_u64.to_le_bytes());
        let words = |owner: [u8; 4], kind: u32, description: &[u32]| {
            let mut note = Vec::new();
            for word in [4, u32::try_from(description.len() * 4).unwrap(), kind] {
                note.extend(word.to_le_bytes());
            }
            note.extend(owner);
            note.extend(description.iter().flat_map(|word| word.to_le_bytes()));
            note
        };
        let notes = [words(*b"GNU\0", 3, &[1, 2, 3, 4, 5]), words(*b"GNU\0", ABI_TAG, &[0, 2, 3, 99])].concat();
        bytes[96..104].copy_from_slice(&u64::try_from(notes.len()).unwrap().to_le_bytes());
        bytes.extend(notes);
        assert_eq!(kernel_of_note(&bytes[..]), Some([2, 3, 99]));
        bytes.truncate(bytes.len() - 1);
        assert_eq!(kernel_of_note(&bytes[..]), None, "cut in the note");
    }

    proptest! {
        #[test]
        fn no_damage_panics(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let mut object = b"\x7fELF\x02\x01".to_vec();
            object.resize(16, 0);
            object.extend([3, 0, 62, 0]);
            object.extend(bytes);
            let _ = kernel_of_note(&object[..]);
            let _ = needs_library(&object[..], &["lib"]);
        }
    }
}
