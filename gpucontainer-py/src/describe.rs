//! What the arguments of Python say of a sandbox, as a configuration.

use crate::error::raise;
use crate::gpu::{AllocatorHandle, LeaseHandle, request};
use crate::image::{Image, ImageStore, seconds};
use crate::network::network;
use crate::sandbox::SandboxHandle;
use gpucontainer::cgroup::{IoLimit, Limits};
use gpucontainer::gpu::{DriverRoot, Wait};
use gpucontainer::net::{HostService, NetworkNamespace, PortMapping, PortMode, Protocol, SourceAddress};
use gpucontainer::rootfs::Writable;
use gpucontainer::sandbox::{
    Capability, Mount, Network, Propagation, ResourceLimit, SandboxBuilder, Stdio, UserNamespace,
};
use gpucontainer::seccomp::Profile;
use gpucontainer::{Cancel, Error, ErrorKind, Result};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;

pub(crate) fn refuse<T>(message: impl Display) -> PyResult<T> {
    Err(raise(&Error::new(ErrorKind::InvalidArgument, message.to_string())))
}

pub(crate) fn ours<T>(result: Result<T>) -> PyResult<T> {
    result.map_err(|error| raise(&error))
}

/// A stream: `"inherit"`, `"null"`, `"pipe"`, or the number of an open descriptor, which is duplicated.
pub(crate) fn stdio(value: &Bound<'_, PyAny>) -> PyResult<Stdio> {
    if let Ok(name) = value.extract::<String>() {
        return match name.as_str() {
            "inherit" => Ok(Stdio::Inherit),
            "null" => Ok(Stdio::Null),
            "pipe" => Ok(Stdio::Piped),
            other => refuse(format!("{other:?} is no stream")),
        };
    }
    Ok(duplicate(value)?.into())
}

/// A duplicate of an open descriptor, by its number.
pub(crate) fn duplicate(value: &Bound<'_, PyAny>) -> PyResult<OwnedFd> {
    let copy: i32 = value.py().import("os")?.call_method1("dup", (value,))?.extract()?;
    #[allow(unsafe_code, reason = "a descriptor from Python is a number")]
    // SAFETY: `os.dup` has just made it, and nobody else knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// What is passed: pairs of the number inside and that of an open descriptor, which is duplicated.
pub(crate) fn pass_fds(value: &Bound<'_, PyAny>) -> PyResult<Vec<(i32, OwnedFd)>> {
    let pairs: Vec<(i32, Bound<'_, PyAny>)> = value.extract()?;
    pairs.into_iter().map(|(number, file)| Ok((number, duplicate(&file)?))).collect()
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

/// A block device and its rates: major, minor, bytes read and written, operations of reading and writing.
type IoFields = (u32, u32, Option<u64>, Option<u64>, Option<u64>, Option<u64>);

fn io((major, minor, read_bytes, write_bytes, read_operations, write_operations): IoFields) -> IoLimit {
    let mut limit = IoLimit::new(major, minor);
    if let Some(bytes) = read_bytes {
        limit = limit.read_bytes(bytes);
    }
    if let Some(bytes) = write_bytes {
        limit = limit.write_bytes(bytes);
    }
    if let Some(operations) = read_operations {
        limit = limit.read_operations(operations);
    }
    if let Some(operations) = write_operations {
        limit = limit.write_operations(operations);
    }
    limit
}

pub(crate) fn limits(fields: &Bound<'_, PyDict>) -> PyResult<Limits> {
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
            "io" => {
                let devices: Vec<IoFields> = value.extract()?;
                devices.into_iter().fold(limits, |limits, device| limits.io(io(device)))
            }
            "io_weight" => limits.io_weight(value.extract()?),
            "hugetlb" => {
                let sizes: Vec<(u64, u64)> = value.extract()?;
                sizes.into_iter().fold(limits, |limits, (page_size, bytes)| limits.hugetlb(page_size, bytes))
            }
            "raw" => {
                let files: Vec<(String, String)> = value.extract()?;
                files.into_iter().fold(limits, |limits, (file, value)| limits.raw(file, value))
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
pub(crate) fn describe(
    image: &Bound<'_, PyAny>,
    options: &Bound<'_, PyDict>,
    cancel: &Cancel,
) -> PyResult<SandboxBuilder> {
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
            "injectable_ports" => builder.injectable_ports(value.extract()?),
            "cgroup_view" => builder.cgroup_view(value.extract()?),
            "unfiltered" if value.extract()? => builder.seccomp(Profile::allow_all()),
            "unfiltered" => builder,
            "seccomp_json" => builder.seccomp(ours(Profile::from_json(&value.extract::<String>()?))?),
            "seccomp_file" => builder.seccomp(ours(Profile::from_file(value.extract::<PathBuf>()?))?),
            "driver_root" => builder.driver_root(DriverRoot::new(value.extract::<PathBuf>()?)),
            "network" => match value.extract::<String>()?.as_str() {
                "none" => builder.network(Network::None),
                "host" => builder.network(Network::Host),
                "outbound" => builder.network(Network::Outbound),
                other => return refuse(format!("no network is called {other:?}")),
            },
            "private_network" => builder.network(Network::Private(network(value.extract()?))),
            "join_sandbox" => builder.network(Network::Join(value.cast::<SandboxHandle>()?.get().network(value.py())?)),
            "join_namespace" => builder.network(Network::Join(NetworkNamespace::from_fds(duplicate(&value)?, None))),
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
                for fields in value.extract::<Vec<MappingFields>>()? {
                    builder = builder.publish_port(mapping(fields)?);
                }
                builder
            }
            "host_services" => {
                for fields in value.extract::<Vec<ServiceFields>>()? {
                    builder = builder.host_service(service(fields)?);
                }
                builder
            }
            "gpu_lease" => builder.gpu_lease(&value.cast::<LeaseHandle>()?.get().lease()?),
            "gpus" => builder.gpus(request(value.cast()?)?),
            "gpus_unleased" => builder.gpus_unleased(request(value.cast()?)?),
            "gpu_allocator" => builder.gpu_allocator(&value.cast::<AllocatorHandle>()?.get().0),
            "gpu_timeout" => builder.gpu_wait(wait(value.extract()?)?.cancel(cancel)),
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
            "application_pid" => builder.application_pid(value.extract()?),
            "umask" => builder.umask(value.extract()?),
            "terminal" => {
                let (rows, columns) = value.extract()?;
                builder.terminal(rows, columns)
            }
            "stdin" => builder.stdin(stdio(&value)?),
            "stdout" => builder.stdout(stdio(&value)?),
            "stderr" => builder.stderr(stdio(&value)?),
            "pass_fds" => {
                pass_fds(&value)?.into_iter().fold(builder, |builder, (number, file)| builder.pass_fd(number, file))
            }
            other => return refuse(format!("no option is called {other:?}")),
        };
    }
    Ok(builder)
}

/// At most so many seconds; infinite is for ever.
fn wait(timeout: f64) -> PyResult<Wait> {
    Ok(if timeout == f64::INFINITY { Wait::forever() } else { Wait::at_most(seconds("gpu_timeout", timeout)?) })
}

/// A wish for ports: protocol, port inside, port of the host, count, address, all interfaces, mode, source, seconds of
/// idleness, name, whether sockets for it need not be locked.
pub(crate) type MappingFields =
    (String, u16, u16, u16, Option<IpAddr>, bool, String, String, Option<f64>, Option<String>, bool);

pub(crate) fn mapping(fields: MappingFields) -> PyResult<PortMapping> {
    let (protocol, container_port, host_port, count, address, everywhere, mode, source, idle, name, unlocked) = fields;
    let mut mapping = match self::protocol(&protocol)? {
        Protocol::Udp => PortMapping::udp_range(container_port, host_port, count),
        _ => PortMapping::tcp_range(container_port, host_port, count),
    };
    if let Some(address) = address {
        mapping = mapping.address(address);
    }
    if everywhere {
        mapping = mapping.all_interfaces();
    }
    if let Some(idle) = idle {
        mapping = mapping.idle_timeout(seconds("idle_timeout", idle)?);
    }
    if let Some(name) = name {
        mapping = mapping.name(name);
    }
    let mode = match mode.as_str() {
        "auto" => PortMode::Auto,
        "hand over" => PortMode::HandOver,
        "inject" => PortMode::Inject,
        "relay" => PortMode::Relay,
        "nat" => PortMode::Nat,
        other => return refuse(format!("no mode of a port is called {other:?}")),
    };
    let source = match source.as_str() {
        "loopback" => SourceAddress::Loopback,
        "keep" => SourceAddress::Keep,
        "proxy-v2" => SourceAddress::ProxyV2,
        other => return refuse(format!("no kind of source address is called {other:?}")),
    };
    Ok(mapping.mode(mode).source(source).unlocked(unlocked))
}

pub(crate) fn protocol(name: &str) -> PyResult<Protocol> {
    match name {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        other => refuse(format!("no protocol is called {other:?}")),
    }
}

/// A service of the host: protocol, address and port inside, its address and port, seconds of idleness.
pub(crate) type ServiceFields = (String, Option<IpAddr>, u16, IpAddr, u16, Option<f64>);

pub(crate) fn service((protocol, inside, port, address, host_port, idle): ServiceFields) -> PyResult<HostService> {
    let host = SocketAddr::new(address, host_port);
    let service = match self::protocol(&protocol)? {
        Protocol::Udp => HostService::udp(port, host),
        _ => HostService::tcp(port, host),
    };
    let service = match inside {
        Some(inside) => service.address(inside),
        None => service,
    };
    match idle {
        Some(idle) => Ok(service.idle_timeout(seconds("idle_timeout", idle)?)),
        None => Ok(service),
    }
}
