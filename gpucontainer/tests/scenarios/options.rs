//! The options of the table in the words of Rust. What is not known here is a failure: no row is half done.

use gpucontainer::cgroup::Limits;
use gpucontainer::gpu::{GpuAllocator, Sharing};
use gpucontainer::image::ImageBuilder;
use gpucontainer::net::{HostService, PortMapping, PrivateNetwork};
use gpucontainer::rootfs::Writable;
use gpucontainer::sandbox::{
    Capability, ExecBuilder, Mount, Network, ResourceLimit, SandboxBuilder, Stdio, UserNamespace,
};
use gpucontainer::seccomp::Profile;
use gpucontainer::{Error, ErrorKind, GpuRequest, Result};
use serde_json::Value;
use std::time::{Duration, UNIX_EPOCH};

pub(crate) fn object(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

pub(crate) fn number<T: TryFrom<i64>>(value: &Value) -> T {
    value.as_i64().and_then(|number| T::try_from(number).ok()).unwrap_or_else(|| panic!("{value} is no such number"))
}

pub(crate) fn words(value: &Value) -> Vec<String> {
    list(value).iter().map(text).collect()
}

fn wrong(message: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}

pub(crate) fn limits(value: &Value) -> Limits {
    object(value).fold(Limits::new(), |limits, (key, value)| match key {
        "memory" => limits.memory_max(number(value)),
        "swap" => limits.memory_swap_max(number(value)),
        "cpus" => limits.cpus(value.as_f64().unwrap()),
        "cpu_weight" => limits.cpu_weight(number(value)),
        "cpuset_cpus" => limits.cpuset_cpus(text(value)),
        "pids" => limits.pids_max(number(value)),
        "raw" => object(value).fold(limits, |limits, (file, value)| limits.raw(file, text(value))),
        other => panic!("no limit is called {other:?}"),
    })
}

fn mount(value: &Value) -> Mount {
    let (source, target) = (value.get("source").map(text).unwrap_or_default(), text(&value["target"]));
    let mount = match value["kind"].as_str().unwrap() {
        "bind" => Mount::bind(source, target),
        "volume" => Mount::volume(source, target),
        "tmpfs" => Mount::tmpfs(target),
        other => panic!("no mount is called {other:?}"),
    };
    object(value).fold(mount, |mount, (key, value)| match key {
        "kind" | "source" | "target" => mount,
        "size" => mount.size(number(value)),
        "read_only" if value == true => mount.read_only(),
        "executable" if value == false => mount.no_execute(),
        other => panic!("no option of a mount is called {other:?}"),
    })
}

pub(crate) fn request(value: &Value) -> Result<GpuRequest> {
    let gpus = &value["gpus"];
    let request = match gpus.as_u64() {
        Some(_) => GpuRequest::count(number(gpus)),
        None => text(gpus).parse()?,
    };
    Ok(object(value).fold(request, |request, (key, value)| match key {
        "gpus" => request,
        "shared" => request.sharing(Sharing::Shared(number(value))),
        "fraction" => request.sharing(Sharing::Fraction(number(value))),
        "min_free_memory" => request.min_free_memory(number(value)),
        "model" => request.model(text(value)),
        "mig_profile" => request.mig_profile(text(value)),
        other => panic!("no wish for GPUs is called {other:?}"),
    }))
}

pub(crate) fn network(value: &Value) -> PrivateNetwork {
    object(value).fold(PrivateNetwork::named(text(&value["name"])), |network, (key, value)| match key {
        "name" => network,
        "ipv4" => {
            let text = text(value);
            let (address, prefix) = text.split_once('/').unwrap();
            network.ipv4(address.parse().unwrap(), prefix.parse().unwrap())
        }
        "ipv6" => network.ipv6(value.as_bool().unwrap()),
        "outbound" => network.outbound(value.as_bool().unwrap()),
        "host_access" => network.host_access(value.as_bool().unwrap()),
        other => panic!("no option of a network is called {other:?}"),
    })
}

pub(crate) fn service(value: &Value) -> HostService {
    let service = HostService::tcp(number(&value["port"]), text(&value["host"]).parse().unwrap());
    match value.get("address") {
        Some(address) => service.address(text(address).parse().unwrap()),
        None => service,
    }
}

fn resource(name: &str) -> ResourceLimit {
    match name {
        "nofile" => ResourceLimit::Nofile,
        "core" => ResourceLimit::Core,
        other => panic!("the table knows no resource {other:?}"),
    }
}

fn capability(name: &Value) -> Result<Capability> {
    let name = text(name);
    Capability::from_name(&name).ok_or_else(|| wrong(format!("no capability is called {name:?}")))
}

pub(crate) fn sandbox(
    mut builder: SandboxBuilder,
    value: &Value,
    allocator: Option<&GpuAllocator>,
) -> Result<SandboxBuilder> {
    // First everything goes, then what is added comes back.
    if value.pointer("/drop_capabilities/0").is_some_and(|name| name == "ALL") {
        builder = builder.drop_all_capabilities();
    }
    for (key, value) in object(value) {
        builder = match key {
            // Which sandbox, and where from, is the scene's.
            "image" | "directory" | "as" | "join" | "lease" => builder,
            "name" => builder.name(text(value)),
            "command" => builder.command(words(value)),
            "entrypoint" => builder.entrypoint(words(value)),
            "env" => object(value).fold(builder, |builder, (name, value)| builder.env(name, text(value))),
            "cwd" => builder.working_dir(text(value)),
            "user" => builder.user(text(value)),
            "hostname" => builder.hostname(text(value)),
            "init" => builder.init(value.as_bool().unwrap()),
            "read_only" => builder.read_only(value.as_bool().unwrap()),
            "writable_memory" => builder.writable(Writable::Memory).writable_max(number(value)),
            "limits" => builder.limits(limits(value)),
            "cgroup" => builder.cgroup(value.as_bool().unwrap()),
            "network" => match value.as_str() {
                Some("none") => builder.network(Network::None),
                Some("host") => builder.network(Network::Host),
                _ => builder.network(Network::Private(network(value))),
            },
            "user_namespace" => builder.user_namespace(match text(value).as_str() {
                "auto" => UserNamespace::Auto,
                "oneself" => UserNamespace::Oneself,
                other => panic!("the table knows no user namespace {other:?}"),
            }),
            "time_offsets" => builder.time_offsets(number(&value[0]), number(&value[1])),
            "mounts" => list(value).iter().fold(builder, |builder, one| builder.mount(mount(one))),
            "shm_size" => builder.shm_size(number(value)),
            "publish" => list(value).iter().fold(builder, |builder, pair| {
                builder.publish_port(PortMapping::tcp(number(&pair[0]), number(&pair[1])))
            }),
            "host_services" => list(value).iter().fold(builder, |builder, one| builder.host_service(service(one))),
            "gpus" => {
                builder = builder.gpus(request(value)?);
                allocator.into_iter().fold(builder, |builder, allocator| builder.gpu_allocator(allocator))
            }
            "add_capabilities" => {
                for name in list(value) {
                    builder = builder.add_capability(capability(name)?);
                }
                builder
            }
            "drop_capabilities" if value[0] == "ALL" => builder,
            "drop_capabilities" => {
                for name in list(value) {
                    builder = builder.drop_capability(capability(name)?);
                }
                builder
            }
            "seccomp" => builder.seccomp(Profile::from_json(&value.to_string())?),
            "unfiltered" if value == true => builder.seccomp(Profile::allow_all()),
            "resource_limits" => object(value).fold(builder, |builder, (name, value)| {
                builder.resource_limit(resource(name), number(value), number(value))
            }),
            "sysctls" => object(value).fold(builder, |builder, (name, value)| builder.sysctl(name, text(value))),
            "oom_score" => builder.oom_score(number(value)),
            "umask" => builder.umask(number(value)),
            "terminal" => builder.terminal(number(&value[0]), number(&value[1])),
            other => panic!("no option is called {other:?}"),
        };
    }
    Ok(builder)
}

pub(crate) fn exec<'a>(builder: ExecBuilder<'a>, value: &Value) -> ExecBuilder<'a> {
    let builder = builder.stdin(Stdio::Piped).stdout(Stdio::Piped).stderr(Stdio::Piped);
    object(value).fold(builder, |builder, (key, value)| match key {
        "command" => builder,
        "env" => object(value).fold(builder, |builder, (name, value)| builder.env(name, text(value))),
        "cwd" => builder.working_dir(text(value)),
        "user" => builder.user(text(value)),
        other => panic!("no option of a further process is called {other:?}"),
    })
}

pub(crate) fn image(builder: ImageBuilder, value: &Value) -> ImageBuilder {
    object(value).fold(builder, |builder, (key, value)| match key {
        "reference" | "base" => builder,
        "copy" => list(value).iter().fold(builder, |b, one| b.copy_following_links(text(&one[0]), text(&one[1]))),
        "files" => list(value).iter().fold(builder, |b, one| b.file(text(&one[0]), text(&one[1]), number(&one[2]))),
        "directories" => list(value).iter().fold(builder, |b, one| b.directory(text(&one[0]), number(&one[1]))),
        "symlinks" => list(value).iter().fold(builder, |b, one| b.symlink(text(&one[0]), text(&one[1]))),
        "env" => object(value).fold(builder, |builder, (name, value)| builder.env(name, text(value))),
        "entrypoint" => builder.entrypoint(words(value)),
        "command" => builder.command(words(value)),
        "user" => builder.user(text(value)),
        "working_dir" => builder.working_dir(text(value)),
        "labels" => object(value).fold(builder, |builder, (name, value)| builder.label(name, text(value))),
        "expose" => list(value).iter().fold(builder, |builder, port| builder.expose(number(port))),
        "volumes" => list(value).iter().fold(builder, |builder, path| builder.volume(text(path))),
        "stop_signal" => builder.stop_signal(text(value)),
        "created" => builder.created(UNIX_EPOCH + Duration::from_secs(number(value))),
        other => panic!("no option of a build is called {other:?}"),
    })
}
