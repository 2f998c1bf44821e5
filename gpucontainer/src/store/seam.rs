//! Seams: what must lie right above a layer so that its directories meet those of the layers below.
//!
//! What a seam is made of depends on the layer and all those below it, so it is named by the OCI chain ID of these.

use super::{Store, Work};
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::sys::errno;
use crate::sys::fs;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The file beside a layer's tree that lists the directories which its archive only implied.
const IMPLIED: &str = "implied";

/// The chain ID of each layer of `diff_ids`, which are in their order, bottom first.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chains: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chains.push(match chains.last() {
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
            None => *diff_id,
        });
    }
    chains
}

/// Notes in the staged directory of a layer which directories its archive only implied.
pub(crate) fn note_implied(staged: &Path, implied: &[PathBuf]) -> Result<()> {
    if implied.is_empty() {
        return Ok(());
    }
    let mut text = Vec::new();
    for path in implied {
        // No path has a NUL in it.
        text.extend_from_slice(path.as_os_str().as_bytes());
        text.push(0);
    }
    fs::write(&staged.join(IMPLIED), &text)
}

impl Store {
    fn seams(&self) -> PathBuf {
        self.root.join("seams/sha256")
    }

    /// The directories that the archive of a stored layer only implied.
    pub(crate) fn implied(&self, diff_id: &Digest) -> Result<Vec<PathBuf>> {
        match fs::read(&self.layer_path(diff_id).join(IMPLIED)) {
            Ok(text) => {
                let paths = text.split(|byte| *byte == 0).filter(|path| !path.is_empty());
                Ok(paths.map(|path| PathBuf::from(OsStr::from_bytes(path))).collect())
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    /// The trees of these layers and their seams, bottom first: what is stacked for a root file system.
    pub(crate) fn trees(&self, diff_ids: &[Digest]) -> Vec<PathBuf> {
        let layers = diff_ids.iter().map(|diff_id| self.layer_tree(diff_id));
        // Most stores have no seams, and the lowest layer never has one.
        if diff_ids.len() < 2 || !self.seams().is_dir() {
            return layers.collect();
        }
        let seams = chain_ids(diff_ids).into_iter().map(|chain| self.seam(&chain));
        layers.zip(seams).flat_map(|(layer, seam)| [Some(layer), seam]).flatten().collect()
    }

    fn seam(&self, chain: &Digest) -> Option<PathBuf> {
        Some(self.seams().join(chain.hex()).join("tree")).filter(|path| path.is_dir())
    }

    /// Whether the seam is in the store.
    pub(crate) fn has_seam(&self, chain: &Digest) -> bool {
        self.seam(chain).is_some()
    }

    /// Publishes the seam whose `tree` was made in a directory of `work` called `staged`, as layers are published.
    pub(crate) fn add_seam(&self, work: &Work, chain: &Digest, staged: &Path) -> Result<()> {
        let seams = self.seams();
        if !seams.is_dir() {
            let above = self.root.join("seams");
            fs::create_dir_all(&above)?;
            // As with layers: no other user of the host may reach what is inside by path.
            fs::set_mode(&above, 0o700)?;
            fs::create_dir_all(&seams)?;
        }
        fs::sync_filesystem(staged)?;
        match fs::rename(staged, &seams.join(chain.hex())) {
            Ok(()) => fs::sync_dir(&seams),
            // Another process made the same.
            Err(e) if matches!(e.errno(), Some(errno::ENOTEMPTY | errno::EEXIST)) => work.discard(staged),
            Err(e) => Err(e),
        }
    }

    /// Removes the seams of chains that are not in `used`.
    pub(super) fn collect_seams(&self, used: &BTreeSet<Digest>, work: &Work) -> Result<()> {
        if !self.seams().is_dir() {
            return Ok(());
        }
        for path in fs::read_dir(&self.seams())? {
            let chain = path.file_name().and_then(OsStr::to_str).and_then(Digest::from_hex);
            if chain.is_some_and(|chain| !used.contains(&chain)) {
                let doomed = work.fresh_path();
                fs::rename(&path, &doomed)?;
                work.discard(&doomed)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_named_as_the_image_specification_has_it() {
        let [one, two] = [Digest::of(b"one"), Digest::of(b"two")];
        let chains = chain_ids(&[one, two, one]);
        assert_eq!(chains[0], one);
        assert_eq!(chains[1], Digest::of(format!("sha256:{} sha256:{}", one.hex(), two.hex()).as_bytes()));
        assert_eq!(chains[2], Digest::of(format!("{} {one}", chains[1]).as_bytes()));
        assert_eq!(chain_ids(&[]), []);
    }
}
