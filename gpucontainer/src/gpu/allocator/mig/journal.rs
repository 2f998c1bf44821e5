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
//! An instance whose claim nobody holds any more belongs to a dead owner, and the next comer destroys it. One that was
//! made for a lease of an allocator says in `leases` where the allocator's slots are: then it is the device's leases
//! that count, and the claim is held only while it is being made. The directory is on tmpfs: like the instances it does
//! not outlive a boot.

use crate::claim::Claim;
use crate::error::{Context, Result};
use crate::gpu::allocator::slots::table::Table;
use crate::gpu::inventory::MigDevice;
use crate::sys::cgroup::effective_user;
use crate::sys::mig::Span;
use crate::sys::{fs, slot};

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
    /// The slots of the allocator for whose lease it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) leases: Option<PathBuf>,
}

impl Entry {
    /// Whether the entry is about this MIG device.
    pub(crate) fn concerns(&self, gpu: &str, slice: &MigDevice) -> bool {
        let same = self.gpu_instance == Some(slice.gpu_instance) || self.device.as_ref() == Some(&slice.uuid);
        self.gpu == gpu && same
    }

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
    let name = fs::unique();
    let claim = Claim::take(directory, &name, &entry.line()?).context("write down the intent")?;
    // Whoever may lease the device reads it, whatever the mask of this process.
    match fs::set_mode(&directory.join(format!("{name}.claim")), 0o644) {
        Ok(()) => Ok(claim),
        Err(error) => {
            // The error to report is the first.
            let _ = claim.release();
            Err(error)
        }
    }
}

/// Gives a file or directory of the caller's own the mode, if it has another.
pub(crate) fn set_own_mode(path: &Path, mode: u32) -> Result<()> {
    let found = fs::symlink_metadata(path)?;
    let wrong = !found.is_symlink() && found.mode() & 0o7777 != mode;
    if wrong && found.uid() == effective_user() { fs::set_mode(path, mode) } else { Ok(()) }
}

/// Writes down what was done.
pub(crate) fn proceed(claim: &Claim, entry: &Entry) -> Result<()> {
    claim.append(&entry.line()?).context("write down the progress")
}

/// Whether something was left by a dead owner, as far as can be told without the driver.
pub(crate) fn is_untidy(directory: &Path) -> Result<bool> {
    // The devices that have to be held, by the slots.
    let mut wanted: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
    for path in fs::read_dir(directory)? {
        if path.extension().is_none_or(|extension| extension != "claim") {
            continue;
        }
        let Some(found) = slot::open(&path)? else { continue };
        let whole_file = (0, 0);
        if slot::held(&found.file, &path, whole_file)?.is_some() {
            continue;
        }
        match Entry::parse(&slot::read(&found.file, &path)?) {
            Some(Entry { leases: Some(leases), device: Some(device), .. }) => {
                wanted.entry(leases).or_default().insert(device);
            }
            _ => return Ok(true),
        }
    }
    for (leases, devices) in wanted {
        if Table::new(leases).held(&devices)? != devices {
            return Ok(true);
        }
    }
    Ok(false)
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
            leases: None,
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
            leases: None,
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
            let gpu = "GPU-1".to_owned();
            let leases = Some("/run/leases".into());
            let entry = Entry { gpu, profile: 0, start, size, gpu_instance: None, device: None, found: false, leases };
            let note = [entry.line().unwrap(), rubbish].concat();
            prop_assert_eq!(Entry::parse(&note), Some(entry));
        }
    }
}
