//! What a process is about to do to a split GPU, written down before it does it.
//!
//! Each lease on a MIG device has one claim, whose note grows line by line; the last whole line counts:
//!
//! ```text
//! <directory>/
//!   lock             held while GPUs are split, put together, or tidied up
//!   <name>.claim     {"gpu":"GPU-…","profile":19,"start":4,"size":1}                     about to be made
//!                    {…,"gpu_instance":11}                                               half made
//!                    {…,"gpu_instance":11,"device":"MIG-…"}                              in use
//! ```
//!
//! An instance whose claim nobody holds any more belongs to a dead owner, and the next comer destroys it. The directory
//! is on tmpfs: like the instances it does not outlive a boot.

use crate::claim::Claim;
use crate::error::{Context, Result};
use crate::sys::fs;
use crate::sys::mig::Span;

use serde::{Deserialize, Serialize};
use std::path::Path;

/// The state of a lease on a MIG device.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Entry {
    /// The whole GPU.
    pub(crate) gpu: String,
    pub(crate) profile: u32,
    pub(crate) start: u32,
    pub(crate) size: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gpu_instance: Option<u32>,
    /// The MIG device, once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<String>,
    /// The device was there before, and stays.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) found: bool,
}

impl Entry {
    pub(crate) fn span(&self) -> Span {
        Span { start: self.start, size: self.size }
    }

    pub(in crate::gpu) fn line(&self) -> Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)
            .map_err(|e| crate::error::Error::from_io("serialise a lease on a MIG device", e.into()))?;
        line.push(b'\n');
        Ok(line)
    }

    /// The last whole line. `None` if there is none: then nothing was done yet.
    pub(crate) fn parse(note: &[u8]) -> Option<Self> {
        let whole = &note[..note.iter().rposition(|byte| *byte == b'\n')?];
        whole.rsplit(|byte| *byte == b'\n').find_map(|line| serde_json::from_slice(line).ok())
    }
}

/// Writes down what is about to be done.
pub(crate) fn begin(directory: &Path, entry: &Entry) -> Result<Claim> {
    // The note is part of the claim from its first moment on, as far as anybody sees who holds the directory's lock.
    Claim::take(directory, &fs::unique(), &entry.line()?).context("write down the intent")
}

/// Writes down what was done.
pub(crate) fn proceed(claim: &Claim, entry: &Entry) -> Result<()> {
    claim.append(&entry.line()?).context("write down the progress")
}

/// The leases that are there, of the living and of the dead that could not be tidied up after.
pub(crate) fn entries(directory: &Path) -> Result<Vec<Entry>> {
    Ok(Claim::notes(directory)?.iter().filter_map(|note| Entry::parse(note)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_whole_line_counts() {
        let first = Entry {
            gpu: "GPU-1".into(),
            profile: 19,
            start: 4,
            size: 1,
            gpu_instance: None,
            device: None,
            found: false,
        };
        let second = Entry { gpu_instance: Some(11), ..first.clone() };
        let (one, two) = (first.line().unwrap(), second.line().unwrap());
        assert_eq!(one, b"{\"gpu\":\"GPU-1\",\"profile\":19,\"start\":4,\"size\":1}\n");
        for cut in 0..two.len() {
            let note = [one.as_slice(), &two[..cut]].concat();
            assert_eq!(Entry::parse(&note).as_ref(), Some(&first), "{cut}");
        }
        assert_eq!(Entry::parse(&[one.clone(), two].concat()), Some(second));
        assert_eq!(Entry::parse(&one[..one.len() - 1]), None, "a line without its end was not written");
        assert_eq!(Entry::parse(b"\n\nrubbish\n"), None);
    }

    #[test]
    fn entries_are_those_of_all_claims() {
        let directory = tempfile::tempdir().unwrap();
        let entry = |gpu: &str| Entry {
            gpu: gpu.into(),
            profile: 0,
            start: 0,
            size: 8,
            gpu_instance: None,
            device: Some("MIG-1".into()),
            found: true,
        };
        let held = begin(directory.path(), &entry("GPU-1")).unwrap();
        drop(begin(directory.path(), &entry("GPU-2")).unwrap());
        std::fs::write(directory.path().join("other"), "x").unwrap();
        let mut gpus: Vec<String> = entries(directory.path()).unwrap().into_iter().map(|entry| entry.gpu).collect();
        gpus.sort();
        assert_eq!(gpus, ["GPU-1", "GPU-2"]);
        held.release().unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn rubbish_after_a_line_leaves_the_line(
            start in any::<u32>(),
            size in any::<u32>(),
            rubbish in prop::collection::vec(any::<u8>(), 0..120),
        ) {
            let entry =
                Entry { gpu: "GPU-1".into(), profile: 0, start, size, gpu_instance: None, device: None, found: false };
            let note = [entry.line().unwrap(), rubbish].concat();
            prop_assert_eq!(Entry::parse(&note), Some(entry));
        }
    }
}
