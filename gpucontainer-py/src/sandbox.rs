//! Sandboxes and the processes in them, as Python sees them. The classes that people use are written in
//! Python, in `gpucontainer.sandbox`; these hold the handles.

use crate::error::raise;
use crate::image::{Image, ImageStore, seconds};
use crate::work::Callback;
use gpucontainer::cgroup::Limits;
use gpucontainer::gpu::{DriverRoot, GpuRequest};
use gpucontainer::net::{PortMapping, PortStatus};
use gpucontainer::rootfs::Writable;
use gpucontainer::sandbox::{
    Capability, ExitStatus, Mount, Network, Propagation, ResourceLimit, SandboxBuilder, Stdio, UserNamespace,
};
use gpucontainer::seccomp::Profile;
use gpucontainer::{Error, ErrorKind, Result};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::fmt::Display;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

/// How long a wait keeps Python from looking whether a signal came, at most.
const SIGNALS: Duration = Duration::from_millis(100);

fn refuse<T>(message: impl Display) -> PyResult<T> {
    Err(raise(&Error::new(ErrorKind::InvalidArgument, message.to_string())))
}

fn ours<T>(result: Result<T>) -> PyResult<T> {
    result.map_err(|error| raise(&error))
}

/// How it ended: exit code, signal, whether the memory limit killed something.
type Ended = (Option<i32>, Option<i32>, bool);

fn ended(status: ExitStatus) -> Ended {
    (status.code(), status.signal(), status.oom_killed())
}

/// A stream: `"inherit"`, `"null"`, `"pipe"`, or the number of an open descriptor, which is duplicated.
fn stdio(value: &Bound<'_, PyAny>) -> PyResult<Stdio> {
    if let Ok(name) = value.extract::<String>() {
        return match name.as_str() {
            "inherit" => Ok(Stdio::Inherit),
            "null" => Ok(Stdio::Null),
            "pipe" => Ok(Stdio::Piped),
            other => refuse(format!("{other:?} is no stream")),
        };
    }
    let copy: i32 = value.py().import("os")?.call_method1("dup", (value,))?.extract()?;
    #[allow(unsafe_code, reason = "a descriptor from Python is a number")]
    // SAFETY: `os.dup` has just made it, and nobody else knows the number.
    let owned = unsafe { OwnedFd::from_raw_fd(copy) };
    Ok(owned.into())
}

fn resource(name: &str) -> PyResult<ResourceLimit> {
    Ok(match name {
        "as" => ResourceLimit::As,
        "core" => ResourceLimit::Core,
        "cpu" => ResourceLimit::Cpu,
        "data" => ResourceLimit::Data,
        "fsize" => ResourceLimit::Fsize,
        "memlock" => ResourceLimit::Memlock,
        "msgqueue" => ResourceLimit::Msgqueue,
        "nofile" => ResourceLimit::Nofile,
        "nproc" => ResourceLimit::Nproc,
        "stack" => ResourceLimit::Stack,
        other => return refuse(format!("no resource is called {other:?}")),
    })
}

fn capability(name: &str) -> PyResult<Capability> {
    let found = Capability::from_name(name).ok_or_else(|| format!("no capability is called {name:?}"));
    found.or_else(refuse)
}

fn limits(fields: &Bound<'_, PyDict>) -> PyResult<Limits> {
    let mut limits = Limits::new();
    for (key, value) in fields {
        limits = match key.extract::<String>()?.as_str() {
            "memory" => limits.memory_max(value.extract()?),
            "swap" => limits.memory_swap_max(value.extract()?),
            "memory_high" => limits.memory_high(value.extract()?),
            "memory_low" => limits.memory_low(value.extract()?),
            "cpus" => limits.cpus(value.extract()?),
            "cpu_weight" => limits.cpu_weight(value.extract()?),
            "cpuset_cpus" => limits.cpuset_cpus(value.extract::<String>()?),
            "cpuset_mems" => limits.cpuset_mems(value.extract::<String>()?),
            "pids" => limits.pids_max(value.extract()?),
            "io_weight" => limits.io_weight(value.extract()?),
            "hugetlb" => {
                let sizes: Vec<(u64, u64)> = value.extract()?;
                sizes.into_iter().fold(limits, |limits, (page_size, bytes)| limits.hugetlb(page_size, bytes))
            }
            other => return refuse(format!("no limit is called {other:?}")),
        };
    }
    Ok(limits)
}

/// A mount: kind, source or name, target, bytes, read-only, recursive, executable, propagation.
type MountFields = (String, String, String, Option<u64>, bool, bool, bool, String);

fn mount((kind, source, target, bytes, read_only, recursive, executable, travel): MountFields) -> PyResult<Mount> {
    let mut mount = match kind.as_str() {
        "bind" => Mount::bind(source, target),
        "volume" => Mount::volume(source, target),
        "tmpfs" => Mount::tmpfs(target),
        other => return refuse(format!("no mount is called {other:?}")),
    };
    if let Some(bytes) = bytes {
        mount = mount.size(bytes);
    }
    if read_only {
        mount = mount.read_only();
    }
    if !executable {
        mount = mount.no_execute();
    }
    let propagation = match travel.as_str() {
        "private" => Propagation::Private,
        "slave" => Propagation::Slave,
        "shared" => Propagation::Shared,
        other => return refuse(format!("no propagation is called {other:?}")),
    };
    Ok(mount.recursive(recursive).propagation(propagation))
}

fn gpus(value: &Bound<'_, PyAny>) -> PyResult<GpuRequest> {
    if let Ok(count) = value.extract::<u32>() {
        return Ok(GpuRequest::count(count));
    }
    if let Ok(text) = value.extract::<String>() {
        return ours(text.parse());
    }
    let names: Vec<String> = value.extract()?;
    ours(GpuRequest::named(names))
}

fn user_namespace(value: &Bound<'_, PyAny>) -> PyResult<UserNamespace> {
    if let Ok((first, count)) = value.extract::<(u32, u32)>() {
        return Ok(UserNamespace::Shifted { first, count });
    }
    match value.extract::<String>()?.as_str() {
        "auto" => Ok(UserNamespace::Auto),
        "host" => Ok(UserNamespace::Host),
        "oneself" => Ok(UserNamespace::Oneself),
        "subordinate" => Ok(UserNamespace::Subordinate),
        other => refuse(format!("no user namespace is called {other:?}")),
    }
}

/// The sandbox that keyword arguments describe; those that are None were left out in Python.
fn describe(image: &Bound<'_, PyAny>, options: &Bound<'_, PyDict>) -> PyResult<SandboxBuilder> {
    let mut builder = if let Ok(image) = image.cast::<Image>() {
        gpucontainer::Sandbox::from_image(&image.get().0)
    } else if let Ok(reference) = image.extract::<String>() {
        gpucontainer::Sandbox::builder(reference)
    } else {
        gpucontainer::Sandbox::from_directory(image.extract::<PathBuf>()?)
    };
    for (key, value) in options {
        let key: String = key.extract()?;
        builder = match key.as_str() {
            "store" => builder.store(&value.cast::<ImageStore>()?.get().0),
            "name" => builder.name(value.extract::<String>()?),
            "command" => builder.command(value.extract::<Vec<String>>()?),
            "entrypoint" => builder.entrypoint(value.extract::<Vec<String>>()?),
            "env" => {
                let pairs: Vec<(String, String)> = value.extract()?;
                pairs.into_iter().fold(builder, |builder, (name, value)| builder.env(name, value))
            }
            "cwd" => builder.working_dir(value.extract::<String>()?),
            "user" => builder.user(value.extract::<String>()?),
            "hostname" => builder.hostname(value.extract::<String>()?),
            "init" => builder.init(value.extract()?),
            "read_only" => builder.read_only(value.extract()?),
            "writable_memory" => builder.writable(Writable::Memory).writable_max(value.extract()?),
            "limits" => builder.limits(limits(value.cast()?)?),
            "cgroup" => builder.cgroup(value.extract()?),
            "cgroup_view" => builder.cgroup_view(value.extract()?),
            "unfiltered" if value.extract()? => builder.seccomp(Profile::allow_all()),
            "unfiltered" => builder,
            "driver_root" => builder.driver_root(DriverRoot::new(value.extract::<PathBuf>()?)),
            "network" => match value.extract::<String>()?.as_str() {
                "none" => builder.network(Network::None),
                "host" => builder.network(Network::Host),
                other => return refuse(format!("no network is called {other:?}")),
            },
            "user_namespace" => builder.user_namespace(user_namespace(&value)?),
            "time_offsets" => {
                let (monotonic, boottime) = value.extract()?;
                builder.time_offsets(monotonic, boottime)
            }
            "mounts" => {
                for fields in value.extract::<Vec<MountFields>>()? {
                    builder = builder.mount(mount(fields)?);
                }
                builder
            }
            "shm_size" => builder.shm_size(value.extract()?),
            "ports" => {
                for (container_port, address, host_port) in value.extract::<Vec<(u16, Option<IpAddr>, u16)>>()? {
                    let mapping = PortMapping::tcp(container_port, host_port);
                    builder = builder.publish_port(match address {
                        Some(address) => mapping.address(address),
                        None => mapping,
                    });
                }
                builder
            }
            "gpus" => {
                let (wanted, free): (Bound<'_, PyAny>, u64) = value.extract()?;
                builder.gpus(gpus(&wanted)?.min_free_memory(free))
            }
            "drop_all_capabilities" => builder.drop_all_capabilities(),
            "add_capabilities" => {
                for name in value.extract::<Vec<String>>()? {
                    builder = builder.add_capability(capability(&name)?);
                }
                builder
            }
            "drop_capabilities" => {
                for name in value.extract::<Vec<String>>()? {
                    builder = builder.drop_capability(capability(&name)?);
                }
                builder
            }
            "new_privileges" => builder.allow_new_privileges(value.extract()?),
            "resource_limits" => {
                for (name, soft, hard) in value.extract::<Vec<(String, u64, u64)>>()? {
                    builder = builder.resource_limit(resource(&name)?, soft, hard);
                }
                builder
            }
            "sysctls" => {
                let pairs: Vec<(String, String)> = value.extract()?;
                pairs.into_iter().fold(builder, |builder, (name, value)| builder.sysctl(name, value))
            }
            "oom_score" => builder.oom_score(value.extract()?),
            "umask" => builder.umask(value.extract()?),
            "terminal" => {
                let (rows, columns) = value.extract()?;
                builder.terminal(rows, columns)
            }
            "stdin" => builder.stdin(stdio(&value)?),
            "stdout" => builder.stdout(stdio(&value)?),
            "stderr" => builder.stderr(stdio(&value)?),
            other => return refuse(format!("no option is called {other:?}")),
        };
    }
    Ok(builder)
}

/// What a start would do, a line a step.
#[pyfunction]
pub(crate) fn explain(py: Python<'_>, image: &Bound<'_, PyAny>, options: &Bound<'_, PyDict>) -> PyResult<String> {
    let builder = describe(image, options)?;
    ours(py.detach(|| builder.plan())).map(|plan| plan.explain())
}

/// Waits in slices, so that signals are seen.
fn wait(
    py: Python<'_>,
    timeout: Option<f64>,
    look: impl Fn(Duration) -> Result<Option<ExitStatus>> + Sync,
) -> PyResult<Option<Ended>> {
    let end = match timeout {
        None => None,
        Some(timeout) => Instant::now().checked_add(seconds("timeout", timeout.max(0.0))?),
    };
    loop {
        let left = end.map_or(SIGNALS, |end| end.saturating_duration_since(Instant::now()));
        match py.detach(|| look(left.min(SIGNALS))) {
            Ok(Some(status)) => return Ok(Some(ended(status))),
            Ok(None) if left.is_zero() => return Ok(None),
            Ok(None) => {}
            // A signal handler ran.
            Err(error) if error.errno() == Some(EINTR) => {}
            Err(error) => return Err(raise(&error)),
        }
        py.check_signals()?;
    }
}

const EINTR: i32 = 4;

fn number(stream: Option<OwnedFd>) -> Option<i32> {
    stream.map(IntoRawFd::into_raw_fd)
}

/// A published port: inside, address, outside, its counters, its last error.
type PortFields = (u16, String, u16, (u64, u64, u64, u64, u64), Option<String>);

/// A handle that can be given up while other threads use it.
struct Slot<T>(RwLock<Option<T>>, &'static str);

impl<T> Slot<T> {
    fn new(value: T, what: &'static str) -> Self {
        Self(RwLock::new(Some(value)), what)
    }

    fn with<R>(&self, work: impl FnOnce(&T) -> Result<R>) -> Result<R> {
        let guard = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match guard.as_ref() {
            Some(value) => work(value),
            None => Err(Error::new(ErrorKind::Closed, format!("the {} was closed", self.1))),
        }
    }

    fn take(&self) -> Option<T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The handle of a sandbox.
#[pyclass(frozen, name = "_Sandbox", module = "gpucontainer._native")]
pub(crate) struct SandboxHandle(Slot<gpucontainer::Sandbox>);

impl SandboxHandle {
    fn with<R: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&gpucontainer::Sandbox) -> Result<R> + Send,
    ) -> PyResult<R> {
        ours(py.detach(|| self.0.with(work)))
    }
}

#[pymethods]
impl SandboxHandle {
    /// Checks everything, then starts the sandbox.
    #[new]
    fn new(py: Python<'_>, image: &Bound<'_, PyAny>, options: &Bound<'_, PyDict>) -> PyResult<Self> {
        let builder = describe(image, options)?;
        // An image that is not here is pulled, which may take long; a start that was interrupted is undone.
        let sandbox = Callback::new(None, None).run(py, || builder.spawn())?;
        Ok(Self(Slot::new(sandbox, "sandbox")))
    }

    fn name(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |sandbox| Ok(sandbox.name().to_owned()))
    }

    fn pid(&self, py: Python<'_>) -> PyResult<i32> {
        self.with(py, |sandbox| Ok(sandbox.pid()))
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        self.with(py, |sandbox| Ok(sandbox.as_fd().as_raw_fd()))
    }

    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Ended>> {
        wait(py, timeout, |time| self.0.with(|sandbox| sandbox.wait_timeout(time)))
    }

    fn kill(&self, py: Python<'_>, signal: i32) -> PyResult<()> {
        self.with(py, |sandbox| sandbox.kill(signal))
    }

    fn take_stream(&self, py: Python<'_>, stream: u8) -> PyResult<Option<i32>> {
        self.with(py, |sandbox| {
            Ok(number(match stream {
                0 => sandbox.take_stdin(),
                1 => sandbox.take_stdout(),
                _ => sandbox.take_stderr(),
            }))
        })
    }

    fn take_terminal(&self, py: Python<'_>) -> PyResult<Option<i32>> {
        self.with(py, |sandbox| Ok(number(sandbox.take_terminal())))
    }

    fn ports(&self, py: Python<'_>) -> PyResult<Vec<PortFields>> {
        let fields = |status: &PortStatus| {
            let (port, host) = (status.port.container_port(), status.port.host());
            let counts = (status.accepted, status.open, status.refused, status.bytes_in, status.bytes_out);
            (port, host.ip().to_string(), host.port(), counts, status.last_error.clone())
        };
        self.with(py, |sandbox| Ok(sandbox.port_status().iter().map(fields).collect()))
    }

    fn gpus(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.with(py, |sandbox| Ok(sandbox.gpus().to_vec()))
    }

    fn timeline(&self, py: Python<'_>) -> PyResult<Vec<(&'static str, f64)>> {
        let seconds = |phase: &gpucontainer::sandbox::Phase| (phase.name, phase.duration.as_secs_f64());
        self.with(py, |sandbox| Ok(sandbox.timeline().iter().map(seconds).collect()))
    }

    fn explain(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |sandbox| Ok(sandbox.plan().explain()))
    }

    fn dial(&self, py: Python<'_>, port: u16, timeout: Option<f64>) -> PyResult<i32> {
        let timeout = timeout.map(|timeout| seconds("timeout", timeout)).transpose()?;
        self.with(py, |sandbox| Ok(OwnedFd::from(sandbox.dial(port, timeout)?).into_raw_fd()))
    }

    fn pause(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, gpucontainer::Sandbox::pause)
    }

    fn resume(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, gpucontainer::Sandbox::resume)
    }

    fn stats(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |sandbox| {
            let wrong = |cause| Error::new(ErrorKind::Corrupt, format!("statistics as JSON: {cause}"));
            serde_json::to_string(&sandbox.stats()?).map_err(wrong)
        })
    }

    fn update(&self, py: Python<'_>, fields: &Bound<'_, PyDict>) -> PyResult<()> {
        let limits = limits(fields)?;
        self.with(py, |sandbox| sandbox.update(&limits))
    }

    /// Starts a further process inside.
    fn exec(&self, py: Python<'_>, command: Vec<String>, options: &Bound<'_, PyDict>) -> PyResult<ProcessHandle> {
        let mut env = Vec::new();
        let (mut cwd, mut user, mut terminal) = (None, None, None);
        let mut streams = [Stdio::Inherit, Stdio::Inherit, Stdio::Inherit];
        for (key, value) in options {
            match key.extract::<String>()?.as_str() {
                "env" => env = value.extract::<Vec<(String, String)>>()?,
                "cwd" => cwd = Some(value.extract::<String>()?),
                "user" => user = Some(value.extract::<String>()?),
                "terminal" => terminal = Some(value.extract::<(u16, u16)>()?),
                "stdin" => streams[0] = stdio(&value)?,
                "stdout" => streams[1] = stdio(&value)?,
                "stderr" => streams[2] = stdio(&value)?,
                other => return refuse(format!("no option is called {other:?}")),
            }
        }
        let process = self.with(py, |sandbox| {
            let mut builder = sandbox.exec(command);
            for (name, value) in env {
                builder = builder.env(name, value);
            }
            if let Some(path) = cwd {
                builder = builder.working_dir(path);
            }
            if let Some(user) = user {
                builder = builder.user(user);
            }
            if let Some((rows, columns)) = terminal {
                builder = builder.terminal(rows, columns);
            }
            let [stdin, stdout, stderr] = streams;
            builder.stdin(stdin).stdout(stdout).stderr(stderr).spawn()
        })?;
        Ok(ProcessHandle(Slot::new(process, "process")))
    }

    fn detach(&self, py: Python<'_>) -> PyResult<()> {
        ours(py.detach(|| self.0.take().map_or(Ok(()), gpucontainer::Sandbox::detach)))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        ours(py.detach(|| self.0.take().map_or(Ok(()), gpucontainer::Sandbox::close)))
    }
}

/// The handle of a further process.
#[pyclass(frozen, name = "_Process", module = "gpucontainer._native")]
pub(crate) struct ProcessHandle(Slot<gpucontainer::sandbox::Process>);

impl ProcessHandle {
    fn with<R: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&gpucontainer::sandbox::Process) -> Result<R> + Send,
    ) -> PyResult<R> {
        ours(py.detach(|| self.0.with(work)))
    }
}

#[pymethods]
impl ProcessHandle {
    fn pid(&self, py: Python<'_>) -> PyResult<i32> {
        self.with(py, |process| Ok(process.pid()))
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<i32> {
        self.with(py, |process| Ok(process.as_fd().as_raw_fd()))
    }

    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Ended>> {
        wait(py, timeout, |time| self.0.with(|process| process.wait_timeout(time)))
    }

    fn kill(&self, py: Python<'_>, signal: i32) -> PyResult<()> {
        self.with(py, |process| process.kill(signal))
    }

    fn take_stream(&self, py: Python<'_>, stream: u8) -> PyResult<Option<i32>> {
        self.with(py, |process| {
            Ok(number(match stream {
                0 => process.take_stdin(),
                1 => process.take_stdout(),
                _ => process.take_stderr(),
            }))
        })
    }

    fn take_terminal(&self, py: Python<'_>) -> PyResult<Option<i32>> {
        self.with(py, |process| Ok(number(process.take_terminal())))
    }

    /// Kills the process, if it still runs.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.0.take()));
    }
}
