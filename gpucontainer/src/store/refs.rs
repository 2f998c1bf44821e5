//! References: which image a name stands for.

use super::work::corrupt;
use super::{Store, Work};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::fs;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// File names are at most 255 bytes on every file system that matters.
const NAME_MAX: usize = 200;

/// What is written down for one reference.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Record {
    /// The full reference.
    pub(crate) reference: String,
    /// The digest of the platform's manifest.
    pub(crate) manifest: String,
    /// The digest of the configuration.
    pub(crate) config: String,
    /// `os/architecture[/variant]`.
    pub(crate) platform: String,
}

impl Record {
    /// The digest of the manifest.
    pub(crate) fn manifest_digest(&self) -> Result<Digest> {
        self.manifest.parse::<Digest>().map_err(|e| e.with_kind(ErrorKind::Corrupt))
    }

    /// The digest of the configuration.
    pub(crate) fn config_digest(&self) -> Result<Digest> {
        self.config.parse::<Digest>().map_err(|e| e.with_kind(ErrorKind::Corrupt))
    }
}

/// A file name for a reference: what is not a plain letter, digit, dot, dash or underscore becomes `%XX`.
/// Names that would be too long become their digest; the record inside has the reference anyway.
fn file_name(reference: &str) -> String {
    let mut name = String::new();
    for byte in reference.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            b'.' if !name.is_empty() => name.push('.'),
            _ => name.push_str(&format!("%{byte:02X}")),
        }
    }
    if name.len() > NAME_MAX { format!("%{}", Digest::of(reference.as_bytes()).hex()) } else { name }
}

impl Store {
    fn ref_path(&self, reference: &str) -> PathBuf {
        self.root.join("refs").join(file_name(reference))
    }

    /// Makes the record's reference stand for its image, durably; the caller holds [`Store::adding`].
    pub(crate) fn set_reference(&self, work: &Work, record: &Record) -> Result<()> {
        let bytes = serde_json::to_vec(record)
            .map_err(|e| Error::new(ErrorKind::InvalidArgument, format!("record of {}: {e}", record.reference)))?;
        work.publish(&bytes, &self.ref_path(&record.reference))
    }

    /// What a reference stands for.
    pub(crate) fn reference(&self, reference: &str) -> Result<Option<Record>> {
        self.read_record(&self.ref_path(reference))
    }

    /// Every reference, in the order of their file names.
    pub(crate) fn references(&self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for path in fs::read_dir(&self.root.join("refs"))? {
            // One that is gone by now was removed in between.
            records.extend(self.read_record(&path)?);
        }
        Ok(records)
    }

    /// Forgets a reference; says whether there was one.
    pub(crate) fn remove_reference(&self, reference: &str) -> Result<bool> {
        match fs::remove_file(&self.ref_path(reference)) {
            Ok(()) => fs::sync_dir(&self.root.join("refs")).map(|()| true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn read_record(&self, path: &std::path::Path) -> Result<Option<Record>> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| corrupt(path, e)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_safe_and_differ() {
        assert_eq!(file_name("docker.io/library/python:3"), "docker.io%2Flibrary%2Fpython%3A3");
        assert_eq!(file_name("../x"), "%2E.%2Fx");
        assert!(file_name(&"a".repeat(500)).len() < 100);
        assert_ne!(file_name(&"a".repeat(500)), file_name(&"a".repeat(501)));
    }
}
