//! The image store and its images, as Python sees them.

use crate::error::raise;
use crate::work::{Callback, Cancel};
use gpucontainer::image::{Credentials, ImportOptions, Platform, PullOptions, PushOptions};
use pyo3::prelude::*;
use pyo3::types::PyBool;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

fn ours<T>(result: gpucontainer::Result<T>) -> PyResult<T> {
    result.map_err(|error| raise(&error))
}

fn parse_platform(text: Option<&str>) -> PyResult<Option<Platform>> {
    text.map(|text| ours(text.parse())).transpose()
}

/// Who asks a registry; `None` leaves it to the user's files.
fn parse_credentials(
    user: Option<&str>,
    password: Option<&str>,
    identity_token: Option<&str>,
    anonymous: bool,
) -> PyResult<Option<Credentials>> {
    match (user, password, identity_token, anonymous) {
        (None, None, None, false) => Ok(None),
        (None, None, None, true) => Ok(Some(Credentials::anonymous())),
        (Some(user), Some(password), None, false) => Ok(Some(Credentials::password(user, password))),
        (None, None, Some(token), false) => Ok(Some(Credentials::identity_token(token))),
        _ => {
            let why = "give user and password, or identity_token, or anonymous";
            ours(Err(gpucontainer::Error::new(gpucontainer::ErrorKind::InvalidArgument, why)))
        }
    }
}

/// Says to options how the registry is reached, and by how many at once.
macro_rules! reaching {
    ($options:ident, $credentials:ident, $plain_http:ident, $authority:ident, $timeout:ident, $concurrency:ident) => {
        if let Some(credentials) = $credentials {
            $options = $options.credentials(credentials);
        }
        if let Some(plain) = $plain_http {
            $options = $options.plain_http(plain);
        }
        if let Some(pem) = $authority {
            $options = $options.certificate_authority(pem);
        }
        if let Some(silence) = $timeout {
            $options = $options.timeout(seconds("timeout", silence)?);
        }
        if let Some(layers) = $concurrency {
            $options = $options.concurrency(layers);
        }
    };
}

/// What `progress` is by default: it is shown where somebody looks.
fn shown() -> Option<Py<PyAny>> {
    Python::attach(|py| Some(PyBool::new(py, true).to_owned().into_any().unbind()))
}

/// Whom to tell of progress, after what the caller gave.
fn reporter(py: Python<'_>, progress: Option<Py<PyAny>>, what: String) -> PyResult<Option<Py<PyAny>>> {
    let chosen = py.import("gpucontainer.progress")?.call_method1("choose", (progress, what))?;
    Ok((!chosen.is_none()).then(|| chosen.unbind()))
}

/// Takes away what was shown of the progress.
fn finish(py: Python<'_>, reporter: Option<Py<PyAny>>) -> PyResult<()> {
    py.import("gpucontainer.progress")?.call_method1("finish", (reporter,)).map(drop)
}

/// An image in a store. While it lives, garbage collection leaves it alone.
#[pyclass(frozen, module = "gpucontainer")]
#[derive(Debug)]
pub(crate) struct Image(pub(crate) gpucontainer::Image);

#[pymethods]
impl Image {
    /// The name under which the image was asked for, in full.
    #[getter]
    fn reference(&self) -> String {
        self.0.reference().to_string()
    }

    /// The digest of the image's configuration: the same for the same content, wherever it came from.
    #[getter]
    fn id(&self) -> String {
        self.0.id().to_string()
    }

    /// The digest of the manifest of the image's platform.
    #[getter]
    fn manifest_digest(&self) -> String {
        self.0.manifest_digest().to_string()
    }

    /// What the image says about how to run it.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let config = self.0.config();
        let fields = pyo3::types::PyDict::new(py);
        fields.set_item("entrypoint", &config.entrypoint)?;
        fields.set_item("command", &config.command)?;
        fields.set_item("env", &config.env)?;
        fields.set_item("user", &config.user)?;
        fields.set_item("working_dir", &config.working_dir)?;
        fields.set_item("exposed_ports", &config.exposed_ports)?;
        fields.set_item("labels", &config.labels)?;
        fields.set_item("volumes", &config.volumes)?;
        fields.set_item("stop_signal", &config.stop_signal)?;
        fields.set_item("architecture", &config.architecture)?;
        fields.set_item("os", &config.os)?;
        fields.set_item("created", &config.created)?;
        py.import("gpucontainer.image")?.getattr("ImageConfig")?.call((), Some(&fields))
    }

    fn __repr__(&self) -> String {
        format!("<gpucontainer.Image {} {}>", self.0.reference(), self.0.id())
    }
}

/// A directory with images, which any number of processes and threads may use at the same time.
#[pyclass(frozen, module = "gpucontainer")]
#[derive(Debug)]
pub(crate) struct ImageStore(pub(crate) gpucontainer::ImageStore);

#[pymethods]
impl ImageStore {
    /// Opens the store at `path`, by default the user's; it is made if there is none.
    #[new]
    #[pyo3(signature = (path = None))]
    fn new(py: Python<'_>, path: Option<PathBuf>) -> PyResult<Self> {
        let store = py.detach(|| match &path {
            Some(path) => gpucontainer::ImageStore::open(path),
            None => gpucontainer::ImageStore::open_default(),
        });
        ours(store).map(Self)
    }

    /// Where the store is.
    #[getter]
    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    /// The image that `reference` stands for here, or None. No registry is asked.
    fn get(&self, py: Python<'_>, reference: &str) -> PyResult<Option<Image>> {
        Ok(ours(py.detach(|| self.0.get(reference)))?.map(Image))
    }

    /// The image that `reference` stands for here. No registry is asked.
    fn image(&self, py: Python<'_>, reference: &str) -> PyResult<Image> {
        ours(py.detach(|| self.0.image(reference))).map(Image)
    }

    /// All images, one for each reference, in the order of their references.
    fn list(&self, py: Python<'_>) -> PyResult<Vec<Image>> {
        Ok(ours(py.detach(|| self.0.list()))?.into_iter().map(Image).collect())
    }

    /// Forgets a reference.
    fn remove(&self, py: Python<'_>, reference: &str) -> PyResult<()> {
        ours(py.detach(|| self.0.remove(reference)))
    }

    /// Gives an image one more name, or moves the name to it.
    fn tag(&self, py: Python<'_>, image: &Image, reference: &str) -> PyResult<Image> {
        ours(py.detach(|| self.0.tag(&image.0, reference))).map(Image)
    }

    /// Removes what no reference and no living object leads to; returns the counts of layers and of blobs.
    #[pyo3(signature = (*, cancel = None))]
    fn collect_garbage(&self, py: Python<'_>, cancel: Option<&Cancel>) -> PyResult<(u64, u64)> {
        let work = Callback::new(None, cancel);
        let collected = work.run(py, || self.0.collect_garbage_cancellable(&work.cancel()))?;
        Ok((collected.layers, collected.blobs))
    }

    /// Pulls an image from its registry.
    #[pyo3(signature = (reference, *, platform = None, user = None, password = None, identity_token = None,
        anonymous = false, plain_http = None, certificate_authority = None, timeout = None, progress = shown(),
        cancel = None, concurrency = None, max_layer_bytes = None))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords, each with a default")]
    fn pull(
        &self,
        py: Python<'_>,
        reference: &str,
        platform: Option<&str>,
        user: Option<&str>,
        password: Option<&str>,
        identity_token: Option<&str>,
        anonymous: bool,
        plain_http: Option<bool>,
        certificate_authority: Option<&[u8]>,
        timeout: Option<f64>,
        progress: Option<Py<PyAny>>,
        cancel: Option<&Cancel>,
        concurrency: Option<usize>,
        max_layer_bytes: Option<u64>,
    ) -> PyResult<Image> {
        let reporter = reporter(py, progress, format!("pull {reference}"))?;
        let work = Callback::new(reporter.as_ref().map(|reporter| reporter.clone_ref(py)), cancel);
        let mut options = PullOptions::new().cancel(work.cancel()).progress(|progress| work.report(progress));
        if let Some(platform) = parse_platform(platform)? {
            options = options.platform(platform);
        }
        let credentials = parse_credentials(user, password, identity_token, anonymous)?;
        reaching!(options, credentials, plain_http, certificate_authority, timeout, concurrency);
        if let Some(bytes) = max_layer_bytes {
            options = options.max_layer_bytes(bytes);
        }
        let pulled = work.run(py, || self.0.pull(reference, options)).map(Image);
        finish(py, reporter)?;
        pulled
    }

    /// Pushes an image of this store to the registry, repository and tag of `reference`; the digest of its manifest there.
    #[pyo3(signature = (image, reference, *, user = None, password = None, identity_token = None, anonymous = false,
        plain_http = None, certificate_authority = None, timeout = None, progress = shown(), cancel = None,
        concurrency = None))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords, each with a default")]
    fn push(
        &self,
        py: Python<'_>,
        image: &Image,
        reference: &str,
        user: Option<&str>,
        password: Option<&str>,
        identity_token: Option<&str>,
        anonymous: bool,
        plain_http: Option<bool>,
        certificate_authority: Option<&[u8]>,
        timeout: Option<f64>,
        progress: Option<Py<PyAny>>,
        cancel: Option<&Cancel>,
        concurrency: Option<usize>,
    ) -> PyResult<String> {
        let reporter = reporter(py, progress, format!("push {reference}"))?;
        let work = Callback::new(reporter.as_ref().map(|reporter| reporter.clone_ref(py)), cancel);
        let mut options = PushOptions::new().cancel(work.cancel()).progress(|progress| work.report(progress));
        let credentials = parse_credentials(user, password, identity_token, anonymous)?;
        reaching!(options, credentials, plain_http, certificate_authority, timeout, concurrency);
        let pushed = work.run(py, || self.0.push(&image.0, reference, options));
        finish(py, reporter)?;
        pushed.map(|digest| digest.to_string())
    }

    /// Imports an image from an OCI layout directory, an archive of one, or what `docker save` writes.
    #[pyo3(signature = (path, *, reference = None, select = None, platform = None, progress = shown(), cancel = None,
        concurrency = None, max_layer_bytes = None))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords, each with a default")]
    fn import_(
        &self,
        py: Python<'_>,
        path: PathBuf,
        reference: Option<&str>,
        select: Option<&str>,
        platform: Option<&str>,
        progress: Option<Py<PyAny>>,
        cancel: Option<&Cancel>,
        concurrency: Option<usize>,
        max_layer_bytes: Option<u64>,
    ) -> PyResult<Image> {
        let reporter = reporter(py, progress, format!("import {}", path.display()))?;
        let work = Callback::new(reporter.as_ref().map(|reporter| reporter.clone_ref(py)), cancel);
        let mut options = ImportOptions::new().cancel(work.cancel()).progress(|progress| work.report(progress));
        if let Some(reference) = reference {
            options = options.reference(reference);
        }
        if let Some(name) = select {
            options = options.select(name);
        }
        if let Some(platform) = parse_platform(platform)? {
            options = options.platform(platform);
        }
        if let Some(layers) = concurrency {
            options = options.concurrency(layers);
        }
        if let Some(bytes) = max_layer_bytes {
            options = options.max_layer_bytes(bytes);
        }
        let imported = work.run(py, || self.0.import(&path, options)).map(Image);
        finish(py, reporter)?;
        imported
    }

    /// Starts an image from nothing, for this host's platform.
    fn build(&self) -> ImageBuilder {
        ImageBuilder { builder: self.0.build() }
    }

    fn __repr__(&self) -> String {
        format!("<gpucontainer.ImageStore {:?}>", self.0.path())
    }

    /// A table of its images, in a notebook.
    fn _repr_html_(&self, py: Python<'_>) -> PyResult<String> {
        py.import("gpucontainer.tables")?.call_method1("images", (self.list(py)?,))?.extract()
    }
}

/// A time span given in seconds.
pub(crate) fn seconds(name: &str, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|why| {
        let words = format!("{name} of {value} seconds: {why}");
        raise(&gpucontainer::Error::new(gpucontainer::ErrorKind::InvalidArgument, words))
    })
}

/// What to build; each method returns the builder.
#[pyclass(module = "gpucontainer")]
#[derive(Debug)]
pub(crate) struct ImageBuilder {
    builder: gpucontainer::image::ImageBuilder,
}

type This<'py> = PyRefMut<'py, ImageBuilder>;

fn update(
    mut this: This<'_>,
    change: impl FnOnce(gpucontainer::image::ImageBuilder) -> gpucontainer::image::ImageBuilder,
) -> This<'_> {
    this.builder = change(this.builder.clone());
    this
}

#[pymethods]
impl ImageBuilder {
    /// Starts from the layers and the configuration of an image of the same store.
    fn base<'py>(this: This<'py>, image: &Image) -> This<'py> {
        update(this, |builder| builder.base(&image.0))
    }

    /// Copies a file or the contents of a directory of the host.
    #[pyo3(signature = (host_path, container_path, *, follow_links = false))]
    fn copy(this: This<'_>, host_path: PathBuf, container_path: PathBuf, follow_links: bool) -> This<'_> {
        update(this, |builder| match follow_links {
            true => builder.copy_following_links(host_path, container_path),
            false => builder.copy(host_path, container_path),
        })
    }

    /// Adds a file with these bytes and permission bits.
    #[pyo3(signature = (container_path, data, mode = 0o644))]
    fn file<'py>(this: This<'py>, container_path: PathBuf, data: &[u8], mode: u32) -> This<'py> {
        update(this, |builder| builder.file(container_path, data, mode))
    }

    /// Adds a directory with these permission bits; those above it are made as needed.
    #[pyo3(signature = (container_path, mode = 0o755))]
    fn directory(this: This<'_>, container_path: PathBuf, mode: u32) -> This<'_> {
        update(this, |builder| builder.directory(container_path, mode))
    }

    /// Adds a symbolic link at `container_path` that says `target`.
    fn symlink(this: This<'_>, target: PathBuf, container_path: PathBuf) -> This<'_> {
        update(this, |builder| builder.symlink(target, container_path))
    }

    /// Sets an environment variable.
    fn env(this: This<'_>, name: String, value: String) -> This<'_> {
        update(this, |builder| builder.env(name, value))
    }

    /// Sets the program and its first arguments. A command of the base is dropped.
    fn entrypoint(this: This<'_>, arguments: Vec<String>) -> This<'_> {
        update(this, |builder| builder.entrypoint(arguments))
    }

    /// Sets the default command, or the arguments of the entrypoint if there is one.
    fn command(this: This<'_>, arguments: Vec<String>) -> This<'_> {
        update(this, |builder| builder.command(arguments))
    }

    /// Sets the user, and the group after a colon, by name or by number.
    fn user(this: This<'_>, user: String) -> This<'_> {
        update(this, |builder| builder.user(user))
    }

    /// Sets the directory where the program starts.
    fn working_dir(this: This<'_>, path: String) -> This<'_> {
        update(this, |builder| builder.working_dir(path))
    }

    /// Sets a label.
    fn label(this: This<'_>, name: String, value: String) -> This<'_> {
        update(this, |builder| builder.label(name, value))
    }

    /// Notes that the program listens on this TCP port.
    fn expose(this: This<'_>, port: u16) -> This<'_> {
        update(this, |builder| builder.expose(port))
    }

    /// Notes that the program expects to write to this directory.
    fn volume(this: This<'_>, path: String) -> This<'_> {
        update(this, |builder| builder.volume(path))
    }

    /// Sets the signal that asks the program to end, as in `SIGINT`.
    fn stop_signal(this: This<'_>, signal: String) -> This<'_> {
        update(this, |builder| builder.stop_signal(signal))
    }

    /// Sets the time of the image and of all files in it, in seconds since the start of 1970.
    fn created(this: This<'_>, timestamp: u64) -> PyResult<This<'_>> {
        let time = UNIX_EPOCH.checked_add(Duration::from_secs(timestamp)).ok_or_else(|| {
            let why = format!("timestamp {timestamp} is too large");
            raise(&gpucontainer::Error::new(gpucontainer::ErrorKind::InvalidArgument, why))
        })?;
        Ok(update(this, |builder| builder.created(time)))
    }

    /// Makes the image and names it. The builder can be used again.
    #[pyo3(signature = (reference, *, cancel = None))]
    fn commit(&self, py: Python<'_>, reference: &str, cancel: Option<&Cancel>) -> PyResult<Image> {
        let work = Callback::new(None, cancel);
        let builder = self.builder.clone().cancel(work.cancel());
        work.run(py, || builder.commit(reference)).map(Image)
    }
}
