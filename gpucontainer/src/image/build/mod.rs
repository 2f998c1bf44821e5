//! Building an image from files: at most one layer on top of a base, and a configuration.

mod base;
mod files;
mod settings;
mod tree;

use super::manifest::{self, Blob, Document, Manifest, OCI_CONFIG, OCI_LAYER};
use super::{Image, ImageStore, Platform, Reference};
use crate::digest::{Digest, HashingReader};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::layer::{self, UnpackOptions};
use crate::progress::Cancel;
use crate::store::{Work, note_implied};
use crate::sys::fs;
use files::Archive;
use settings::Settings;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tree::{Step, Tree};

/// What to build, collected by its methods and made by [`ImageBuilder::commit`].
///
/// The same files and settings give the same image, bit by bit, on every host: entries are sorted, all
/// belong to user and group 0, and all have the time given by [`ImageBuilder::created`].
///
/// ```no_run
/// # fn main() -> gpucontainer::Result<()> {
/// let store = gpucontainer::image::ImageStore::open_default()?;
/// let image = store
///     .build()
///     .copy("/bin/busybox", "/bin/busybox")
///     .symlink("busybox", "/bin/sh")
///     .file("/etc/motd", "hello\n", 0o644)
///     .directory("/tmp", 0o1777)
///     .command(["/bin/sh", "-c", "cat /etc/motd"])
///     .commit("hello")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    store: ImageStore,
    base: Option<Image>,
    steps: Vec<Step>,
    settings: Settings,
    created: Option<SystemTime>,
    cancel: Cancel,
}

impl ImageStore {
    /// Starts an image from nothing, for the host's platform.
    pub fn build(&self) -> ImageBuilder {
        ImageBuilder {
            store: self.clone(),
            base: None,
            steps: Vec::new(),
            settings: Settings::default(),
            created: None,
            cancel: Cancel::new(),
        }
    }
}

impl ImageBuilder {
    /// Starts from the layers and the configuration of `image`, which must be of the same store.
    #[must_use]
    pub fn base(mut self, image: &Image) -> Self {
        self.base = Some(image.clone());
        self
    }

    /// Copies a file or the contents of a directory of the host to `container_path`.
    ///
    /// Permission bits are kept. If `host_path` itself is a symbolic link, what it leads to is copied;
    /// links below it are copied as links. A `container_path` that ends with a slash is the directory
    /// that a file goes into. Directories of the base are added to, files replaced.
    /// Extended attributes and hard links are not kept.
    #[must_use]
    pub fn copy(self, host_path: impl Into<PathBuf>, container_path: impl Into<PathBuf>) -> Self {
        self.step(Step::Copy { from: host_path.into(), to: container_path.into(), follow: false })
    }

    /// As [`ImageBuilder::copy`], but links below `host_path` are replaced by what they lead to.
    #[must_use]
    pub fn copy_following_links(self, host_path: impl Into<PathBuf>, container_path: impl Into<PathBuf>) -> Self {
        self.step(Step::Copy { from: host_path.into(), to: container_path.into(), follow: true })
    }

    /// Adds a file with these bytes and permission bits, for example `0o644`.
    #[must_use]
    pub fn file(self, container_path: impl Into<PathBuf>, bytes: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.step(Step::File { path: container_path.into(), bytes: bytes.into().into(), mode })
    }

    /// Adds a directory with these permission bits, for example `0o755`; those above it are made as needed.
    #[must_use]
    pub fn directory(self, container_path: impl Into<PathBuf>, mode: u32) -> Self {
        self.step(Step::Directory { path: container_path.into(), mode })
    }

    /// Adds a symbolic link at `container_path` that says `target`, which need not exist.
    #[must_use]
    pub fn symlink(self, target: impl Into<PathBuf>, container_path: impl Into<PathBuf>) -> Self {
        self.step(Step::Link { target: target.into(), path: container_path.into() })
    }

    /// Sets an environment variable, also over one of the base.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.env.push((name.into(), value.into()));
        self
    }

    /// Sets the program and its first arguments. A command of the base is dropped, since it was meant for
    /// the base's entrypoint.
    #[must_use]
    pub fn entrypoint<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.settings.entrypoint = Some(arguments.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the default command, or the arguments of the entrypoint if there is one.
    #[must_use]
    pub fn command<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.settings.command = Some(arguments.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the user, and the group after a colon, by name or by number.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.settings.user = Some(user.into());
        self
    }

    /// Sets the directory where the program starts: an absolute path.
    #[must_use]
    pub fn working_dir(mut self, path: impl Into<String>) -> Self {
        self.settings.working_dir = Some(path.into());
        self
    }

    /// Sets a label, also over one of the base.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.labels.push((name.into(), value.into()));
        self
    }

    /// Notes that the program listens on this TCP port. It is published only by who runs the image.
    #[must_use]
    pub fn expose(mut self, port: u16) -> Self {
        self.settings.ports.push(port);
        self
    }

    /// Notes that the program expects to write to this directory: an absolute path.
    #[must_use]
    pub fn volume(mut self, path: impl Into<String>) -> Self {
        self.settings.volumes.push(path.into());
        self
    }

    /// Sets the signal that asks the program to end, as in `SIGINT`.
    #[must_use]
    pub fn stop_signal(mut self, signal: impl Into<String>) -> Self {
        self.settings.stop_signal = Some(signal.into());
        self
    }

    /// Sets the time of the image and of all files in it, in whole seconds, not before 1970.
    /// Default: the environment variable `SOURCE_DATE_EPOCH`, else the start of 1970.
    #[must_use]
    pub fn created(mut self, time: SystemTime) -> Self {
        self.created = Some(time);
        self
    }

    /// Ends the build early when switched.
    #[must_use]
    pub fn cancel(mut self, cancel: Cancel) -> Self {
        self.cancel = cancel;
        self
    }

    /// Makes the image and names it `reference`, which from then on stands for it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidReference`] (also for one with a digest); [`ErrorKind::InvalidArgument`] for a
    /// container path that is not absolute, has `..` in it or goes through a file, for a host file that is
    /// neither file, directory nor link, and for settings that cannot be; [`ErrorKind::NotFound`] and
    /// [`ErrorKind::PermissionDenied`] for host files; [`ErrorKind::NoSpace`], [`ErrorKind::Cancelled`].
    /// The store is as before then.
    pub fn commit(self, reference: &str) -> Result<Image> {
        let result = self.make(reference);
        result.with_context(|| format!("build image {reference:?}"))
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    fn make(self, reference: &str) -> Result<Image> {
        let reference: Reference = reference.parse()?;
        if reference.digest().is_some() {
            let why = "a reference to build cannot have a digest";
            return Err(Error::new(ErrorKind::InvalidReference, why));
        }
        let seconds = self.seconds()?;
        let (mut config, mut layers) = self.start()?;
        self.settings.apply(&mut config, seconds)?;

        let store = &self.store.store;
        let trees = |base: &Image| base.layers().map(|_| base.trees());
        let base = self.base.as_ref().map(trees).transpose()?.unwrap_or_default();
        let tree = Tree::make(&self.steps, &base::Base::open(&base)?)?;
        let adding = store.adding(&self.cancel)?;
        let work = Work::begin(store)?;
        if !tree.is_empty() {
            let layer = self.layer(&tree, &work, seconds)?;
            settings::add_layer(&mut config, &layer.digest, seconds)?;
            layers.push(layer);
        }
        let config = serde_json::to_vec(&config)
            .map_err(|e| Error::new(ErrorKind::InvalidArgument, format!("image configuration: {e}")))?;
        let id = store.add_blob(&work, &config)?;
        let size = u64::try_from(config.len()).unwrap_or(u64::MAX);
        let config = Blob { media_type: OCI_CONFIG.to_owned(), digest: id, size };
        let manifest = store.add_blob(&work, &Manifest { config, layers }.to_json())?;
        let image = self.store.name(&work, &reference, manifest, id, &Platform::host())?;
        work.finish()?;
        drop(adding);
        Ok(image)
    }

    fn seconds(&self) -> Result<u64> {
        let bad = |why: &str| Error::new(ErrorKind::InvalidArgument, format!("time of the image: {why}"));
        let since = match self.created {
            Some(time) => time.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| bad("before 1970"))?,
            None => match fs::path_from_environment("SOURCE_DATE_EPOCH") {
                None => Duration::ZERO,
                Some(text) => Duration::from_secs(
                    text.to_str()
                        .and_then(|text| text.parse().ok())
                        .ok_or_else(|| bad("SOURCE_DATE_EPOCH is not a number of seconds"))?,
                ),
            },
        };
        // What eleven octal digits of an archive can say: the year 2242.
        if since.as_secs() >= 1 << 33 { Err(bad("after 2242")) } else { Ok(since.as_secs()) }
    }

    /// The configuration and the layers to start from.
    fn start(&self) -> Result<(serde_json::Value, Vec<Blob>)> {
        let Some(base) = &self.base else {
            let platform = Platform::host();
            let mut config = serde_json::json!({
                "architecture": platform.architecture(), "os": platform.os(),
                "config": {}, "rootfs": {"type": "layers", "diff_ids": []}, "history": []
            });
            if let Some(variant) = platform.variant() {
                config["variant"] = variant.into();
            }
            return Ok((config, Vec::new()));
        };
        if base.inner.store.root() != self.store.path() {
            return Err(Error::new(ErrorKind::InvalidArgument, "the base is an image of another store"));
        }
        let corrupt = |why: String| Error::new(ErrorKind::Corrupt, format!("base {}: {why}", base.reference()));
        let config = serde_json::from_slice(&base.raw_config()?).map_err(|e| corrupt(e.to_string()))?;
        let Document::Manifest(manifest) = manifest::parse(&base.raw_manifest()?)? else {
            return Err(corrupt("its manifest is an index".to_owned()));
        };
        let layers = manifest.layers.into_iter().map(Blob::into_oci).collect();
        Ok((config, layers))
    }

    /// Makes the one new layer: the archive exists only as a stream on its way into the directory.
    fn layer(&self, tree: &Tree, work: &Work, seconds: u64) -> Result<Blob> {
        let staged = work.fresh_directory()?;
        let path = staged.join("tree");
        fs::create_dir(&path)?;
        let mut archive = HashingReader::new(Archive::new(tree, seconds, &self.cancel));
        let options = UnpackOptions::for_this_user().cancel(self.cancel.clone()).record(&staged);
        let unpacked = layer::unpack(&mut archive, &path, &options)?;
        note_implied(&staged, &unpacked.implied)?;
        let mut rest = Vec::new();
        archive.read_to_end(&mut rest).map_err(|e| Error::from_io("read", e))?;
        let digest: Digest = archive.digest();
        self.store.store.add_layer(work, &digest, &staged)?;
        Ok(Blob { media_type: OCI_LAYER.to_owned(), digest, size: archive.count() })
    }
}
