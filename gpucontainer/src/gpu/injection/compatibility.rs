//! CUDA's forward compatibility: libraries in the image that let a newer CUDA run on an older driver.
//!
//! # References
//! <https://docs.nvidia.com/deploy/cuda-compatibility/>

use crate::gpu::driver::elf::{self, Machine, section};
use crate::gpu::driver::is_version;
use crate::gpu::driver::loader_cache::Entry;
use crate::gpu::injection::image_files::ImageFiles;

use serde::{Deserialize, Serialize};
use std::path::Path;

/// Where NVIDIA's images have them; often by way of links.
const DIRECTORY: &str = "/usr/local/cuda/compat";
/// The section in which a library says which drivers it is for.
const NOTE: &str = ".note.cuda.fwd_compatibility";
const OWNER: &[u8] = b"NVIDIA Corporation";
/// Far more than a list of drivers and devices takes.
const MAX_NOTE: u64 = 64 << 10;
const MAX_FILES: usize = 64;

/// The compatibility libraries of an image.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Compatibility {
    /// The driver that they are of, as in `570.86.15`.
    version: String,
    /// What the libraries say of themselves, if they do.
    note: Option<Note>,
    /// How programs ask for them, and where they are.
    libraries: Vec<(String, String)>,
}

/// The words of a compatibility library.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(in crate::gpu) struct Note {
    /// The major versions of the drivers that it works on.
    driver: Vec<u32>,
}

impl Compatibility {
    /// Finds the libraries; `None` unless there is exactly one driver library among them.
    pub(crate) fn find(files: &dyn ImageFiles) -> Option<Self> {
        let mut version = None;
        let mut note = None;
        let mut libraries = Vec::new();
        let names = files.names(Path::new(DIRECTORY));
        for name in names.iter().filter(|name| name.starts_with("lib") && name.contains(".so.")).take(MAX_FILES) {
            let path = format!("{DIRECTORY}/{name}");
            let Some(file) = files.open(Path::new(&path)) else { continue };
            let Ok(object) = elf::read(&file) else { continue };
            if object.machine != Machine::Native || !elf::is_file_name(name) {
                continue;
            }
            let wanted = object.soname.unwrap_or_else(|| name.clone());
            let own = name.strip_prefix("libcuda.so.").filter(|version| is_version(version));
            if let Some(own) = own {
                // Two of them: nobody can say which one is meant.
                if version.replace(own.to_owned()).is_some() {
                    return None;
                }
                note = read_note(&file);
            }
            // A link and the file that it leads to ask for the same name.
            if !libraries.iter().any(|(known, _)| *known == wanted) {
                libraries.push((wanted, path));
            }
        }
        version.map(|version| Self { version, note, libraries })
    }

    /// Whether the libraries are to be used instead of those of the driver `version`.
    pub(crate) fn serves(&self, version: &str) -> bool {
        let (Some(own), Some(host)) = (numbers(&self.version), numbers(version)) else { return false };
        match &self.note {
            Some(note) => own > host && host.first().is_some_and(|major| note.driver.contains(major)),
            // A minor version is compatible with another by itself.
            None => own.first() > host.first(),
        }
    }

    /// Entries of a loader's cache by which programs find them before others.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let unversioned = self.libraries.iter().filter(|(wanted, _)| wanted == "libcuda.so.1");
        let unversioned = unversioned.map(|(_, path)| Entry::new("libcuda.so", path.clone(), false));
        self.libraries.iter().map(|(wanted, path)| Entry::new(wanted.clone(), path.clone(), false)).chain(unversioned)
    }

    /// The driver that the libraries are of.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }
}

fn numbers(version: &str) -> Option<Vec<u32>> {
    version.split('.').map(|part| part.parse().ok()).collect()
}

fn read_note(file: &crate::sys::fs::File) -> Option<Note> {
    match section::find(file, NOTE, MAX_NOTE) {
        Ok(bytes) => parse_note(&bytes?),
        Err(why) => {
            tracing::debug!(why, "note of forward compatibility left out");
            None
        }
    }
}

/// Size of the owner's name, size of the text, kind, all u32; then both, each filled up to a multiple of 4.
pub(in crate::gpu) fn parse_note(bytes: &[u8]) -> Option<Note> {
    let word = |place: usize| {
        let bytes = bytes.get(place..place + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let (name, size) = (word(0)?, word(4)?);
    let owner = bytes.get(12..12_usize.checked_add(name)?)?;
    if owner.strip_suffix(b"\0").unwrap_or(owner) != OWNER {
        return None;
    }
    let start = 12_usize.checked_add(name.checked_next_multiple_of(4)?)?;
    let text = bytes.get(start..start.checked_add(size)?)?;
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    serde_json::from_slice(&text[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(version: &str, note: Option<&[u32]>) -> Compatibility {
        let note = note.map(|driver| Note { driver: driver.to_vec() });
        let libraries = vec![("libcuda.so.1".to_owned(), "/usr/local/cuda/compat/libcuda.so.1".to_owned())];
        Compatibility { version: version.to_owned(), note, libraries }
    }

    #[test]
    fn drivers_that_are_new_enough_are_left_alone() {
        let table = [
            ("570.86.15", None, "550.163.01", true),
            ("570.86.15", None, "570.100", false),
            ("570.86.15", None, "580.1", false),
            ("575.51.03", Some(&[535, 550][..]), "550.163.01", true),
            ("575.51.03", Some(&[535, 550]), "560.1.1", false),
            ("575.51.03", Some(&[535, 550, 580]), "580.1.1", false),
            ("575.51.03", None, "unknown", false),
        ];
        for (own, note, host, expected) in table {
            assert_eq!(of(own, note).serves(host), expected, "{own} {note:?} on {host}");
        }
        let names: Vec<String> = of("575.51.03", None).entries().map(|entry| entry.name).collect();
        assert_eq!(names, ["libcuda.so.1", "libcuda.so"]);
    }

    pub(super) fn note(text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [19, text.len(), 0] {
            bytes.extend(u32::try_from(word).unwrap().to_le_bytes());
        }
        bytes.extend(OWNER);
        bytes.extend([0, 0]);
        bytes.extend(text.bytes());
        bytes
    }

    #[test]
    fn notes_are_read() {
        let text = r#"{"format":1,"CUDA version":"12.9","driver":[535,550],"device":[1,2]}"#;
        let expected = Note { driver: vec![535, 550] };
        assert_eq!(parse_note(&note(text)), Some(expected.clone()));
        assert_eq!(parse_note(&note(&format!("{text}\0\0"))), Some(expected));
        for bad in ["", "{}", "[", "{\"driver\":[-1]}", &"[".repeat(60_000)] {
            assert_eq!(parse_note(&note(bad)), None);
        }
        let mut foreign = note(text);
        foreign[12] = b'X';
        assert_eq!(parse_note(&foreign), None);
        let mut endless = note(text);
        endless[..8].copy_from_slice(&[0xff; 8]);
        assert_eq!(parse_note(&endless), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = parse_note(&bytes);
            let _ = parse_note(&[&note("{}")[..30], &bytes].concat());
        }
    }
}
