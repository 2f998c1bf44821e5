//! A section of a shared object by its name; of interest only where programs keep remarks in one.

use super::{Paged, ReadAt, Reader, at, header};

/// Sections that are looked at; real objects have about forty.
const MAX_SECTIONS: u64 = 512;

/// The bytes of the section `name`, of which there may be at most `limit`; `None` if there is none such.
pub(crate) fn find<R: ReadAt + ?Sized>(source: &R, name: &str, limit: u64) -> Result<Option<Vec<u8>>, &'static str> {
    let source = Paged::new(source);
    let reader = Reader { source: &source };
    let (layout, _) = header(&reader)?;
    // Where the table is; the size of a header, how many there are, and which of them is that of the names; within a
    // header, where offset and size are.
    let (table, counts, offset_field, size_field) = if layout.wide { (40, 58, 24, 32) } else { (32, 46, 16, 20) };
    let table = reader.address(table, &layout)?;
    let (size, count) = (u64::from(reader.half(counts)?), u64::from(reader.half(counts + 2)?));
    let names = u64::from(reader.half(counts + 4)?);
    if table == 0 || count == 0 {
        return Ok(None);
    }
    if names >= count || size < size_field + 4 {
        return Err("its section headers are damaged");
    }
    let place = |index: u64| {
        let header = at(table, index, size)?;
        let field = |offset| reader.address(at(header, offset, 1)?, &layout);
        Ok::<_, &'static str>((field(offset_field)?, field(size_field)?))
    };
    let (strings, strings_size) = place(names)?;
    for index in 0..count.min(MAX_SECTIONS) {
        let offset = u64::from(reader.word(at(table, index, size)?)?);
        let Some(room) = strings_size.checked_sub(offset) else { continue };
        if reader.name(at(strings, offset, 1)?, room).as_deref() != Some(name) {
            continue;
        }
        let (offset, size) = place(index)?;
        if size > limit {
            return Err("its section is too large");
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| "its section is too large")?];
        source.read_at(offset, &mut bytes).ok_or("it is truncated")?;
        return Ok(Some(bytes));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn this_program_s_sections_are_found() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let found = find(&file, ".interp", 4096).unwrap().unwrap();
        assert!(found.starts_with(b"/lib"), "{found:?}");
        assert_eq!(find(&file, ".no-such-section", 4096).unwrap(), None);
        assert!(find(&file, ".text", 16).is_err(), "a section has a limit");
    }

    proptest! {
        #[test]
        fn no_damage_panics(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let mut object = b"\x7fELF\x02\x01".to_vec();
            object.resize(16, 0);
            object.extend([3, 0, 62, 0]);
            object.extend(bytes);
            let _ = find(&object[..], ".note", 100);
        }
    }
}
