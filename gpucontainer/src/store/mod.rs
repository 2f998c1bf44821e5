//! Content-addressed storage: blobs, layers, references, locks and garbage collection.
//!
//! ```text
//! <root>/
//!   version              "1 real" or "1 mapped": whether files of layers have their own owners, as root
//!                        makes them, or all belong to the user; the two cannot stand for each other
//!   blobs/sha256/<hex>   manifests and configurations, each whole and verified
//!   layers/sha256/<hex>/ one per layer, by the digest of its uncompressed archive
//!     tree/              the layer, unpacked
//!     archive            how that was written, and `replaced/`: see `crate::layer`
//!     implied            if any: the directories that its archive has only as part of other paths
//!   seams/sha256/<hex>/  where layers below know better what an implied directory is: a tree that is stacked right
//!     tree/              above the layer, by the chain ID of the layer and those below it
//!   refs/<name>          one JSON record per reference: which manifest, which configuration
//!   staging/             work under way: <name>/ with <name>.claim, locked as long as its owner lives
//!   locks/               <hex>.layer: who makes this layer; <hex>.image: who uses this image
//!   gc.lock              shared by whoever adds, exclusive for whoever collects
//!   scratch/             writable tops of root file systems
//! ```
//!
//! A name outside of `staging` appears by one rename, after what it names was verified and made
//! durable. So a process that is killed at any instant leaves nothing but its work directory,
//! whose lock the kernel frees and which the next one to open the store removes.

mod gc;
mod layer;
mod refs;
mod seam;
mod work;

pub use gc::Collected;
pub use layer::LayerHandle;

pub(crate) use layer::Held;
pub(crate) use refs::Record;
pub(crate) use seam::{chain_ids, note_implied};
pub(crate) use work::Work;

use crate::digest::Digest;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::progress::Cancel;
use crate::sys::fs;
use crate::sys::lock::{Lock, Mode};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The layout above. A store of another version is left alone.
const VERSION: &str = "1";

/// An open store; all its state is on disk.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store at `root`, made if there is none, and removes what dead processes left in it.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        Self::open_at(root).with_context(|| format!("open image store {root:?}"))
    }

    fn open_at(root: &Path) -> Result<Self> {
        fs::create_dir_all(root)?;
        let root = fs::canonicalize(root)?;
        for (name, private) in [
            ("blobs/sha256", false),
            // Images bring set-user-id files: no other user of the host may reach them by path.
            ("layers", true),
            ("layers/sha256", true),
            ("refs", false),
            ("staging", true),
            ("locks", false),
            ("scratch", false),
        ] {
            let directory = root.join(name);
            if !directory.is_dir() {
                fs::create_dir_all(&directory)?;
                if private {
                    fs::set_mode(&directory, 0o700)?;
                }
            }
        }
        let store = Self { root };
        store.remove_abandoned()?;
        store.check_version()?;
        Ok(store)
    }

    /// Where the user's images are: see [`crate::image::ImageStore::open_default`].
    pub(crate) fn default_path() -> Result<PathBuf> {
        if let Some(path) = fs::path_from_environment("GPUCONTAINER_STORE") {
            return Ok(path);
        }
        if fs::is_root_user() {
            return Ok(PathBuf::from("/var/lib/gpucontainer"));
        }
        if let Some(data) = fs::path_from_environment("XDG_DATA_HOME").filter(|path| path.is_absolute()) {
            return Ok(data.join("gpucontainer"));
        }
        let home = fs::path_from_environment("HOME").filter(|path| path.is_absolute()).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidArgument,
                "no default image store: none of GPUCONTAINER_STORE, XDG_DATA_HOME and HOME is set",
            )
        })?;
        Ok(home.join(".local/share/gpucontainer"))
    }

    /// The store's directory, without links and dots.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where root file systems keep their writable tops.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    fn check_version(&self) -> Result<()> {
        let path = self.root.join("version");
        let found = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let work = Work::begin(self)?;
                work.publish(format!("{VERSION} {}\n", own_owners()).as_bytes(), &path)?;
                return work.finish();
            }
            Err(e) => return Err(e),
        };
        let unsupported = |why: String| Err(Error::new(ErrorKind::Unsupported, why).with_path(&path));
        match found.trim().split_once(' ') {
            Some((VERSION, owners)) if owners == own_owners() => Ok(()),
            Some((VERSION, owners)) => unsupported(format!(
                "the layers of this store have {owners} owners, what this process makes has {} owners",
                own_owners()
            )),
            _ => unsupported(format!("{path:?} says {:?}, this library knows version {VERSION}", found.trim())),
        }
    }

    /// Keeps the collector away: held while something is added that no reference leads to yet.
    pub(crate) fn adding(&self, cancel: &Cancel) -> Result<Held> {
        self.wait(&self.root.join("gc.lock"), Mode::Shared, cancel, &mut || {}).map(Held::new)
    }

    /// Waits for a lock so that `cancel` is heard; `waiting` is called once if it is not free at once.
    fn wait(&self, path: &Path, mode: Mode, cancel: &Cancel, waiting: &mut dyn FnMut()) -> Result<Lock> {
        let mut pause = Duration::from_millis(2);
        loop {
            cancel.check()?;
            if let Some(lock) = Lock::try_take(path, mode)? {
                return Ok(lock);
            }
            if pause == Duration::from_millis(2) {
                waiting();
            }
            // The kernel's own waiting call cannot be ended from another thread.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// The bytes of a blob, checked against their digest; `None` if there is no such blob.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let path = self.blob_path(digest);
        match fs::read(&path) {
            Ok(bytes) => match digest.check("blob of the store", &bytes) {
                Ok(()) => Ok(Some(bytes)),
                Err(e) => Err(e.with_kind(ErrorKind::Corrupt).with_path(path)),
            },
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Adds a blob; the caller holds [`Store::adding`].
    pub(crate) fn add_blob(&self, work: &Work, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        // A damaged blob is replaced by the good one.
        if !matches!(self.blob(&digest), Ok(Some(_))) {
            work.publish(bytes, &self.blob_path(&digest))?;
        }
        Ok(digest)
    }
}

/// Whose the files are that this process makes of a layer.
fn own_owners() -> &'static str {
    if fs::tree::privileged() { "real" } else { "mapped" }
}

#[cfg(test)]
mod tests;
