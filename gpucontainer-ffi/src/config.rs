//! What a sandbox is to be, as C sees it.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::boundary::{Fault, bad, call, catch, given, path, strings, text};
use crate::error::Error;
use crate::image::{Image, ImageStore};
use crate::limits::Limits;
use crate::stdio::{Streams, duplicate};
use gpucontainer::net::PortMapping;
use gpucontainer::rootfs::Writable;
use gpucontainer::sandbox::{Capability, Network, ResourceLimit, SandboxBuilder, UserNamespace};
use gpucontainer::seccomp::Profile;
use gpucontainer::{Result, Sandbox};
use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;

/// What a sandbox is to be. A setter that is given something unusable makes gpuc_sandbox_spawn fail.
#[derive(Debug)]
pub struct Config {
    pub(crate) builder: SandboxBuilder,
    pub(crate) streams: Streams,
    pub(crate) fault: Fault,
}

impl Config {
    fn new(builder: SandboxBuilder) -> Option<Box<Self>> {
        Some(Box::new(Self { builder, streams: Streams::default(), fault: Fault::default() }))
    }

    pub(crate) fn update(this: Option<&mut Self>, change: impl FnOnce(SandboxBuilder) -> Result<SandboxBuilder>) {
        let Some(this) = this else { return };
        let changed = catch(|| change(this.builder.clone()));
        if let Some(changed) = this.fault.keep(changed) {
            this.builder = changed;
        }
    }

    /// All that was set, if it can be used.
    pub(crate) fn ready(&self) -> Result<SandboxBuilder> {
        self.fault.check()?;
        let [stdin, stdout, stderr] = self.streams.0.clone();
        Ok(self.builder.clone().stdin(stdin).stdout(stdout).stderr(stderr))
    }
}

/// Describes a sandbox of an image, by its reference. One that is not in the store is pulled at the start.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_config_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_new(
    reference: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Config>> {
    call(error, None, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let reference = unsafe { text(reference, "reference") }?;
        Ok(Config::new(Sandbox::builder(reference)))
    })
}

/// Describes a sandbox of an image of a store.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_config_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_new_from_image(
    image: Option<&Image>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Config>> {
    call(error, None, || Ok(Config::new(Sandbox::from_image(&given(image, "image")?.image))))
}

/// Describes a sandbox whose root is a directory of the host. What is written goes into it.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_config_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_new_from_directory(
    path: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Config>> {
    call(error, None, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let path = unsafe { self::path(path, "path") }?;
        Ok(Config::new(Sandbox::from_directory(path)))
    })
}

/// Uses this store for an image given by reference. By default the user's.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_store(config: Option<&mut Config>, store: Option<&ImageStore>) {
    Config::update(config, |builder| Ok(builder.store(&given(store, "store")?.store)));
}

/// Names the sandbox: letters, digits, '.', '_' and '-', unique among the user's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_set_name(config: Option<&mut Config>, name: *const c_char) {
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    Config::update(config, |builder| Ok(builder.name(unsafe { text(name, "name") }?)));
}

/// Says what to run, instead of the image's command. It is given to the image's entrypoint, if there is one.
///
/// @param arguments  strings, and NULL after the last
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_set_command(config: Option<&mut Config>, arguments: *const *const c_char) {
    // SAFETY: the header asks for NULL or strings with NULL after the last.
    Config::update(config, |builder| Ok(builder.command(unsafe { strings(arguments, "arguments") }?)));
}

/// Replaces the image's entrypoint; an empty one removes it.
///
/// @param arguments  strings, and NULL after the last
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_set_entrypoint(config: Option<&mut Config>, arguments: *const *const c_char) {
    // SAFETY: the header asks for NULL or strings with NULL after the last.
    Config::update(config, |builder| Ok(builder.entrypoint(unsafe { strings(arguments, "arguments") }?)));
}

/// Sets an environment variable, over that of the image.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_env(config: Option<&mut Config>, name: *const c_char, value: *const c_char) {
    Config::update(config, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let name = unsafe { text(name, "name") }?;
        // SAFETY: likewise.
        let value = unsafe { text(value, "value") }?;
        Ok(builder.env(name, value))
    });
}

/// Sets the working directory, an absolute path that exists in the container.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_set_working_dir(config: Option<&mut Config>, path: *const c_char) {
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    Config::update(config, |builder| Ok(builder.working_dir(unsafe { text(path, "path") }?)));
}

/// Runs as this user, and group after a colon: names that the image knows, or numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_set_user(config: Option<&mut Config>, user: *const c_char) {
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    Config::update(config, |builder| Ok(builder.user(unsafe { text(user, "user") }?)));
}

/// Sets the host name, at most 64 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_set_hostname(config: Option<&mut Config>, name: *const c_char) {
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    Config::update(config, |builder| Ok(builder.hostname(unsafe { text(name, "name") }?)));
}

/// Whether process 1 is the library's own, which reaps orphans and hands on signals. Yes by default.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_init(config: Option<&mut Config>, init: bool) {
    Config::update(config, |builder| Ok(builder.init(init)));
}

/// Makes the root file system read-only. Mounts have a say of their own.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_read_only(config: Option<&mut Config>, read_only: bool) {
    Config::update(config, |builder| Ok(builder.read_only(read_only)));
}

/// Keeps writes to the root in memory instead of on disk, at most so many bytes; 0 is the kernel's own limit.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_writable_memory(config: Option<&mut Config>, bytes: u64) {
    Config::update(config, |builder| {
        let builder = builder.writable(Writable::Memory);
        Ok(if bytes == 0 { builder } else { builder.writable_max(bytes) })
    });
}

/// Sets all resource limits at once. They are copied.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_limits(config: Option<&mut Config>, limits: Option<&Limits>) {
    Config::update(config, |builder| {
        let limits = given(limits, "limits")?;
        limits.fault.check()?;
        Ok(builder.limits(limits.limits.clone()))
    });
}

/// Caps memory, page cache included.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_memory_max(config: Option<&mut Config>, bytes: u64) {
    Config::update(config, |builder| Ok(builder.memory_max(bytes)));
}

/// Caps processor time at that of so many cores, for example 1.5.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_cpus(config: Option<&mut Config>, cores: f64) {
    Config::update(config, |builder| Ok(builder.cpus(cores)));
}

/// Caps the number of processes and threads.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_pids_max(config: Option<&mut Config>, count: u64) {
    Config::update(config, |builder| Ok(builder.pids_max(count)));
}

/// Whether to make a control group where that is possible. Yes by default.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_cgroup(config: Option<&mut Config>, cgroup: bool) {
    Config::update(config, |builder| Ok(builder.cgroup(cgroup)));
}

/// Whether the sandbox sees its own part of the control groups in /sys/fs/cgroup.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_cgroup_view(config: Option<&mut Config>, view: bool) {
    Config::update(config, |builder| Ok(builder.cgroup_view(view)));
}

/// Turns the system call filter off. By default there is one that fits the granted capabilities.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_unfiltered(config: Option<&mut Config>) {
    Config::update(config, |builder| Ok(builder.seccomp(Profile::allow_all())));
}

/// Sets the system call filter to that of a runtime bundle: the JSON text of its "seccomp" object.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_set_seccomp_json(config: Option<&mut Config>, json: *const c_char) {
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    Config::update(config, |builder| Ok(builder.seccomp(Profile::from_json(unsafe { text(json, "json") }?)?)));
}

/// As gpuc_config_set_seccomp_json, read from a file of the host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_set_seccomp_file(config: Option<&mut Config>, path: *const c_char) {
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    Config::update(config, |builder| Ok(builder.seccomp(Profile::from_file(unsafe { self::path(path, "path") }?)?)));
}

/// Whether to use the host's network instead of one with nothing but loopback and published ports.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_host_network(config: Option<&mut Config>, host: bool) {
    Config::update(config, |builder| Ok(builder.network(if host { Network::Host } else { Network::None })));
}

/// Makes no user namespace: root inside is root outside, with few capabilities. The default of a privileged caller.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_no_user_namespace(config: Option<&mut Config>) {
    Config::update(config, |builder| Ok(builder.user_namespace(UserNamespace::Host)));
}

/// Makes a user namespace in which root is the caller and no other id exists.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_user_namespace_oneself(config: Option<&mut Config>) {
    Config::update(config, |builder| Ok(builder.user_namespace(UserNamespace::Oneself)));
}

/// Makes a user namespace in which root is the caller and other ids are those of /etc/subuid and /etc/subgid.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_user_namespace_subordinate(config: Option<&mut Config>) {
    Config::update(config, |builder| Ok(builder.user_namespace(UserNamespace::Subordinate)));
}

/// Makes a user namespace whose ids from 0 to count are those from first on outside. Needs privileges.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_user_namespace_shifted(config: Option<&mut Config>, first: u32, count: u32) {
    Config::update(config, |builder| Ok(builder.user_namespace(UserNamespace::Shifted { first, count })));
}

/// Makes a time namespace: the monotonic and the boot clock are moved by these nanoseconds.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_time_offsets(config: Option<&mut Config>, monotonic: i64, boottime: i64) {
    Config::update(config, |builder| Ok(builder.time_offsets(monotonic, boottime)));
}

/// Sets the size of /dev/shm. 64 MiB by default.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_shm_size(config: Option<&mut Config>, bytes: u64) {
    Config::update(config, |builder| Ok(builder.shm_size(bytes)));
}

/// Whether ports that are published later can be injected, as those can be that are published with the start.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_injectable_ports(config: Option<&mut Config>, injectable: bool) {
    Config::update(config, |builder| Ok(builder.injectable_ports(injectable)));
}

/// Publishes a TCP port: connections to host_port of 127.0.0.1 and ::1 reach container_port inside.
///
/// @param host_port  0 for any free one, which gpuc_sandbox_host_port then tells
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_publish(config: Option<&mut Config>, container_port: u16, host_port: u16) {
    Config::update(config, |builder| Ok(builder.publish(container_port, host_port)));
}

/// Publishes a TCP port on another address of the host, as in "0.0.0.0" or "::1".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_publish_at(
    config: Option<&mut Config>,
    address: *const c_char,
    container_port: u16,
    host_port: u16,
) {
    Config::update(config, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        Ok(builder.publish_port(unsafe { on_address(address, container_port, host_port) }?))
    });
}

/// A port on an address of the host; NULL is 127.0.0.1 and ::1.
///
/// # Safety
/// `address` is NULL or a string that ends with a zero byte.
pub(crate) unsafe fn on_address(address: *const c_char, container_port: u16, host_port: u16) -> Result<PortMapping> {
    let mapping = PortMapping::tcp(container_port, host_port);
    if address.is_null() {
        return Ok(mapping);
    }
    // SAFETY: as above.
    let address = unsafe { text(address, "address") }?;
    let address = address.parse().map_err(|e| bad(format!("address {address:?}: {e}")))?;
    Ok(mapping.address(address))
}

fn capability(name: &str) -> Result<Capability> {
    Capability::from_name(name).ok_or_else(|| bad(format!("no capability is called {name:?}")))
}

/// Grants a capability beyond the default ones, as in "NET_ADMIN".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_add_capability(config: Option<&mut Config>, name: *const c_char) {
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    Config::update(config, |builder| Ok(builder.add_capability(capability(unsafe { text(name, "name") }?)?)));
}

/// Takes a capability away; "ALL" takes all of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_drop_capability(config: Option<&mut Config>, name: *const c_char) {
    Config::update(config, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let name = unsafe { text(name, "name") }?;
        if name.eq_ignore_ascii_case("all") {
            return Ok(builder.drop_all_capabilities());
        }
        Ok(builder.drop_capability(capability(name)?))
    });
}

/// Whether executing a set-user-id program may give privileges. No by default.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_new_privileges(config: Option<&mut Config>, allow: bool) {
    Config::update(config, |builder| Ok(builder.allow_new_privileges(allow)));
}

fn resource(name: &str) -> Result<ResourceLimit> {
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
        other => return Err(bad(format!("no resource is called {other:?}"))),
    })
}

/// Limits a resource of the application's process, as in "nofile"; UINT64_MAX is no limit.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_resource_limit(
    config: Option<&mut Config>,
    name: *const c_char,
    soft: u64,
    hard: u64,
) {
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    Config::update(config, |builder| Ok(builder.resource_limit(resource(unsafe { text(name, "name") }?)?, soft, hard)));
}

/// Sets a kernel parameter of the sandbox's own namespaces.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_sysctl(config: Option<&mut Config>, name: *const c_char, value: *const c_char) {
    Config::update(config, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let name = unsafe { text(name, "name") }?;
        // SAFETY: likewise.
        let value = unsafe { text(value, "value") }?;
        Ok(builder.sysctl(name, value))
    });
}

/// Adjusts how likely the application is to be killed when the host's memory is short, -1000 to 1000.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_oom_score(config: Option<&mut Config>, adjustment: i32) {
    Config::update(config, |builder| Ok(builder.oom_score(adjustment)));
}

/// Sets the file mode creation mask. 022 by default.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_umask(config: Option<&mut Config>, mask: u32) {
    Config::update(config, |builder| Ok(builder.umask(mask)));
}

/// Chooses the process id that the application has inside, 2 to 4194303. By default 2, or 1 without an init.
///
/// With that of the process which stands for the sandbox outside, both mean the same. The kernel must have
/// CONFIG_CHECKPOINT_RESTORE, and /proc/sys be writable.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_application_pid(config: Option<&mut Config>, pid: u32) {
    Config::update(config, |builder| Ok(builder.application_pid(pid)));
}

/// Gives the application a terminal for its input, output and errors; see gpuc_sandbox_take_terminal.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_terminal(config: Option<&mut Config>, rows: u16, columns: u16) {
    Config::update(config, |builder| Ok(builder.terminal(rows, columns)));
}

/// Says what standard input (0), output (1) or error (2) is. The host's by default.
///
/// @param kind  of gpuc_stdio_t
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_stdio(config: Option<&mut Config>, stream: c_int, kind: u32) {
    let Some(config) = config else { return };
    let result = config.streams.set(stream, kind);
    config.fault.keep(result);
}

/// Makes an open file standard input (0), output (1) or error (2). The descriptor is duplicated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_set_stdio_file(config: Option<&mut Config>, stream: c_int, fd: c_int) {
    let Some(config) = config else { return };
    // SAFETY: the header asks for an open descriptor.
    let result = unsafe { config.streams.set_file(stream, fd) };
    config.fault.keep(result);
}

/// Lets the application find an open file under a number, 3 to 511, beside its three streams. Nothing is passed by
/// default, whatever the process has open. What is passed is a door into the host as wide as the file is.
///
/// @param number  the number inside
/// @param fd      is duplicated
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_pass_fd(config: Option<&mut Config>, number: c_int, fd: c_int) {
    // SAFETY: the header asks for an open descriptor.
    Config::update(config, |builder| Ok(builder.pass_fd(number, unsafe { duplicate(fd) }?)));
}

/// Frees a configuration. Sandboxes that were made of it live on.
///
/// @param config  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_free(config: Option<Box<Config>>) {
    drop(config);
}
