//! Sandboxes and the processes in them, as Python sees them. The classes that people use are written in
//! Python, in `gpucontainer.sandbox`; these hold the handles.

use crate::describe::{
    MappingFields, ServiceFields, describe, duplicate, limits, mapping, ours, protocol, refuse, service, stdio,
};
use crate::error::raise;
use crate::gpu::{GrantHandle, LeaseHandle, request, until};
use crate::image::{ImageStore, seconds};
use crate::slot::Slot;
use crate::work::{self, Callback, in_turns};
use gpucontainer::net::{HostService, NetworkNamespace, PortMapper, PortStatus, ServiceStatus};
use gpucontainer::sandbox::{ExitStatus, Stdio};
use gpucontainer::{Cancel, Error, ErrorKind, Result};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a wait keeps Python from looking whether a signal came, at most.
const SIGNALS: Duration = Duration::from_millis(100);

/// Each turn of waiting for a server begins with short pauses; signals interrupt it.
const READINESS: Duration = Duration::from_millis(250);

/// How it ended: exit code, signal, whether the memory limit killed something.
type Ended = (Option<i32>, Option<i32>, bool);

fn ended(status: ExitStatus) -> Ended {
    (status.code(), status.signal(), status.oom_killed())
}

/// What a start would do, a line a step.
#[pyfunction]
pub(crate) fn activated() -> PyResult<Vec<(String, i32)>> {
    let sockets = ours(gpucontainer::net::activated())?;
    Ok(sockets.into_iter().map(|one| (one.name, one.socket.into_raw_fd())).collect())
}

#[pyfunction]
pub(crate) fn explain(py: Python<'_>, image: &Bound<'_, PyAny>, options: &Bound<'_, PyDict>) -> PyResult<String> {
    let builder = describe(image, options, &Cancel::new())?;
    ours(py.detach(|| builder.plan())).map(|plan| plan.explain())
}

/// Removes what sandboxes of processes that died left.
#[pyfunction]
pub(crate) fn collect_abandoned(py: Python<'_>, store: &ImageStore) -> PyResult<()> {
    ours(py.detach(|| gpucontainer::sandbox::collect_abandoned(&store.0)))
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

/// Counters of a port.
type Counts = (u64, u64, u64, u64, u64);

/// A published port: inside, address, outside, its counters; its last error, protocol, count, all addresses, mode, why.
type PortFields = (u16, String, u16, Counts, (Option<String>, String, u16, Vec<String>, String, String));

/// A service of the host: inside, address, outside, its counters; its last error, protocol.
type ServiceStatusFields = (u16, String, u16, Counts, (Option<String>, String));

/// The handle of a sandbox.
#[pyclass(frozen, name = "_Sandbox", module = "gpucontainer._native")]
pub(crate) struct SandboxHandle(Slot<gpucontainer::Sandbox>, Mutex<Waits>);

/// The waits for GPUs of a sandbox, which closing it ends.
#[derive(Default)]
pub(crate) struct Waits {
    /// What ends those that go on now, each under the address of who waits.
    switches: BTreeMap<usize, Cancel>,
    /// Whether the handle is being given up, so that no wait is to begin.
    over: bool,
}

impl SandboxHandle {
    /// The network, for another sandbox to join.
    pub(crate) fn network(&self, py: Python<'_>) -> PyResult<NetworkNamespace> {
        self.with(py, gpucontainer::Sandbox::network_namespace)
    }

    fn with<R: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&gpucontainer::Sandbox) -> Result<R> + Send,
    ) -> PyResult<R> {
        ours(py.detach(|| self.0.with(work)))
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sandbox, for whoever gives the handle up; nobody waits for GPUs of it any more.
    fn take(&self) -> Option<gpucontainer::Sandbox> {
        let mut waits = self.waits();
        waits.over = true;
        waits.switches.values().for_each(Cancel::cancel);
        drop(waits);
        self.0.take()
    }
}

#[pymethods]
impl SandboxHandle {
    /// Checks everything, then starts the sandbox.
    #[new]
    fn new(py: Python<'_>, image: &Bound<'_, PyAny>, options: &Bound<'_, PyDict>) -> PyResult<Self> {
        let callback = Callback::new(None, None);
        let builder = describe(image, options, &callback.cancel())?;
        // An image that is not here is pulled, and GPUs may be waited for; a start that was interrupted is undone.
        let sandbox = callback.run(py, || builder.spawn())?;
        Ok(Self(Slot::new(sandbox, "sandbox"), Mutex::default()))
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
            let hosts = status.port.hosts().iter().map(|host| host.ip().to_string()).collect();
            let (protocol, count) = (status.port.protocol().to_string(), status.port.count());
            let (mode, why) = (status.mode.to_string(), status.why.clone());
            let error = status.last_error.clone();
            (port, host.ip().to_string(), host.port(), counts, (error, protocol, count, hosts, mode, why))
        };
        self.with(py, |sandbox| Ok(sandbox.port_status().iter().map(fields).collect()))
    }

    fn host_services(&self, py: Python<'_>) -> PyResult<Vec<ServiceStatusFields>> {
        let fields = |status: &ServiceStatus| {
            let (port, host) = (status.service.port(), status.service.host());
            let counts = (status.accepted, status.open, status.refused, status.bytes_in, status.bytes_out);
            let protocol = status.service.protocol().to_string();
            (port, host.ip().to_string(), host.port(), counts, (status.last_error.clone(), protocol))
        };
        self.with(py, |sandbox| Ok(sandbox.host_services().iter().map(fields).collect()))
    }

    fn expose_host(&self, py: Python<'_>, fields: ServiceFields) -> PyResult<u16> {
        let service = service(fields)?;
        self.with(py, |sandbox| Ok(sandbox.expose_host(&[service])?.first().map_or(0, HostService::port)))
    }

    fn withdraw_host(&self, py: Python<'_>, port: u16, protocol: String) -> PyResult<()> {
        let protocol = self::protocol(&protocol)?;
        self.with(py, |sandbox| sandbox.withdraw_host(port, protocol))
    }

    fn publish(&self, py: Python<'_>, fields: MappingFields) -> PyResult<(String, u16)> {
        let mapping = mapping(fields)?;
        self.with(py, |sandbox| {
            let ports = sandbox.publish(&[mapping])?;
            Ok(ports.first().map(|port| (port.host().ip().to_string(), port.host().port())).unwrap_or_default())
        })
    }

    fn publish_socket(
        &self,
        py: Python<'_>,
        socket: &Bound<'_, PyAny>,
        container_port: u16,
    ) -> PyResult<(String, u16)> {
        let socket = duplicate(socket)?;
        self.with(py, |sandbox| {
            let ports = sandbox.publish_reserved(PortMapper::new().adopt(container_port, socket)?)?;
            Ok(ports.first().map(|port| (port.host().ip().to_string(), port.host().port())).unwrap_or_default())
        })
    }

    fn unpublish(&self, py: Python<'_>, address: IpAddr, host_port: u16) -> PyResult<()> {
        self.with(py, |sandbox| sandbox.unpublish(SocketAddr::new(address, host_port)))
    }

    fn addresses(&self, py: Python<'_>) -> PyResult<Vec<IpAddr>> {
        self.with(py, |sandbox| Ok(sandbox.addresses().to_vec()))
    }

    fn gpus(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.with(py, |sandbox| Ok(sandbox.gpus()))
    }

    fn gpu_lease(&self, py: Python<'_>) -> PyResult<Option<LeaseHandle>> {
        self.with(py, |sandbox| Ok(sandbox.gpu_lease().as_ref().map(LeaseHandle::holding)))
    }

    fn gpu_leases(&self, py: Python<'_>) -> PyResult<Vec<LeaseHandle>> {
        self.with(py, |sandbox| Ok(sandbox.gpu_leases().iter().map(LeaseHandle::holding).collect()))
    }

    /// Waits on a thread of its own, so that signals are seen.
    fn attach_gpus(
        &self,
        py: Python<'_>,
        fields: &Bound<'_, PyDict>,
        timeout: Option<f64>,
        cancel: Option<&work::Cancel>,
    ) -> PyResult<GrantHandle> {
        let request = request(fields)?;
        let callback = Callback::heeding(cancel);
        let wait = until(timeout)?.cancel(&callback.cancel());
        let own = std::ptr::from_ref(&callback).addr();
        let mut waits = self.waits();
        waits.switches.insert(own, callback.cancel());
        if waits.over {
            callback.cancel().cancel();
        }
        drop(waits);
        let grant = callback.run(py, || self.0.with(|sandbox| sandbox.attach_gpus(&request, wait)));
        self.waits().switches.remove(&own);
        grant.map(GrantHandle)
    }

    fn attach_gpus_unleased(&self, py: Python<'_>, fields: &Bound<'_, PyDict>) -> PyResult<GrantHandle> {
        let request = request(fields)?;
        self.with(py, |sandbox| sandbox.attach_gpus_unleased(&request)).map(GrantHandle)
    }

    fn attach_lease(&self, py: Python<'_>, lease: &LeaseHandle) -> PyResult<GrantHandle> {
        let lease = lease.lease()?;
        self.with(py, |sandbox| sandbox.attach_lease(&lease)).map(GrantHandle)
    }

    fn detach_gpus(&self, py: Python<'_>, grant: &GrantHandle, force: bool) -> PyResult<()> {
        self.with(py, |sandbox| sandbox.detach_gpus(&grant.0, force))
    }

    fn granted(&self, py: Python<'_>) -> PyResult<Vec<GrantHandle>> {
        self.with(py, |sandbox| Ok(sandbox.granted().into_iter().map(GrantHandle).collect()))
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

    fn wait_ready(&self, py: Python<'_>, port: u16, timeout: Option<f64>) -> PyResult<()> {
        let timeout = timeout.map(|timeout| seconds("timeout", timeout)).transpose()?;
        let mut late = None;
        let ready = in_turns(py, timeout, READINESS, |turn| {
            match self.0.with(|sandbox| sandbox.wait_ready(port, Some(turn))) {
                Err(error) if error.kind() == ErrorKind::TimedOut => {
                    late = Some(error);
                    Ok(None)
                }
                other => other.map(Some),
            }
        })?;
        match (ready, late) {
            (None, Some(error)) => Err(raise(&error)),
            _ => Ok(()),
        }
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
        ours(py.detach(|| self.take().map_or(Ok(()), gpucontainer::Sandbox::detach)))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        ours(py.detach(|| self.take().map_or(Ok(()), gpucontainer::Sandbox::close)))
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
