//! What every container has: devices, masked paths, search path.

use crate::error::{Error, ErrorKind, Result};
use crate::sandbox::plan::{Device, Masked};
use crate::sys::fs;
use std::path::Path;

/// Where commands are looked for when neither image nor caller says so.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The same in every instance and on every host, as an image's environment should be.
pub(crate) const HOSTNAME: &str = "gpucontainer";

/// "Default Devices" of <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md>;
/// `/dev/console` and `/dev/ptmx` belong to the terminal.
pub(crate) const DEVICES: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Files and directories of procfs that tell about the host or steer it.
pub(crate) const MASKED_PROC: &[&str] = &[
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];

/// Directories and files of procfs that stay readable.
pub(crate) const READ_ONLY_PROC: &[&str] = &["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Directories of sysfs that tell about the host.
pub(crate) const MASKED_SYS: &[&str] = &["firmware", "devices/virtual/powercap"];

pub(crate) fn device((path, major, minor): &(&str, u32, u32)) -> Device {
    Device {
        path: (*path).to_owned(),
        major: *major,
        minor: *minor,
        mode: 0o666,
        block: false,
        owner: None,
        bound: None,
    }
}

/// Those of `paths` that this host's kernel has, which is the container's kernel too.
pub(crate) fn masked(file_system: &str, paths: &[&str]) -> Vec<Masked> {
    let find = |path: &&str| {
        let metadata = fs::metadata(&Path::new(file_system).join(path)).ok()?;
        Some(Masked { path: (*path).to_owned(), directory: metadata.is_dir() })
    };
    paths.iter().filter_map(find).collect()
}

/// Whether the parameter belongs to a namespace of the sandbox; all others are the host's.
pub(crate) fn check_sysctl(name: &str, host_network: bool) -> Result<()> {
    let clean = name
        .split('.')
        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)));
    let of_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| name.starts_with(prefix));
    let own = of_ipc || name == "kernel.sem" || (name.starts_with("net.") && !host_network);
    if clean && own {
        return Ok(());
    }
    let message = format!("kernel parameter {name:?} does not belong to a namespace of the sandbox");
    Err(Error::new(ErrorKind::InvalidArgument, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_of_namespaces_are_taken() {
        for name in ["net.ipv4.tcp_syncookies", "kernel.shmmax", "kernel.sem", "fs.mqueue.msg_max"] {
            assert!(check_sysctl(name, false).is_ok(), "{name}");
        }
        for name in ["kernel.core_pattern", "vm.swappiness", "net..ipv4", "net/ipv4", "net.ipv4/../../kernel", ""] {
            assert!(check_sysctl(name, false).is_err(), "{name}");
        }
        assert!(check_sysctl("net.ipv4.tcp_syncookies", true).is_err());
    }
}
