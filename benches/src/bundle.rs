//! The same container for the engines: a runtime bundle.

use crate::Result;
use crate::machine::{CAPABILITIES, CPU_QUOTA_MICROSECONDS, MEMORY_BYTES, Machine, PIDS, write};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const CAPABILITY_NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a bundle has that others have not.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// The cgroup below each hierarchy, and the name of the directory.
    pub name: &'a str,
    pub root: &'a Path,
    pub arguments: &'a [&'a str],
    pub user_namespace: bool,
}

/// Writes a bundle and returns its directory.
pub fn write_bundle(machine: &Machine, options: &Options<'_>) -> Result<PathBuf> {
    let directory = machine.scratch(&format!("bundle-{}", options.name))?;
    let text = serde_json::to_vec_pretty(&configuration(machine, options)?).map_err(|e| e.to_string())?;
    write(&directory.join("config.json"), &text)?;
    Ok(directory)
}

fn configuration(machine: &Machine, options: &Options<'_>) -> Result<Value> {
    let kept = CAPABILITY_NAMES.iter().enumerate().filter(|(number, _)| CAPABILITIES >> number & 1 == 1);
    let capabilities: Vec<String> = kept.map(|(_, name)| format!("CAP_{name}")).collect();
    let mut namespaces: Vec<Value> =
        ["mount", "uts", "ipc", "pid", "cgroup", "network"].iter().map(|kind| json!({"type": kind})).collect();
    let mut linux = json!({
        "cgroupsPath": format!("/{}", options.name),
        "maskedPaths": [
            "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
            "/sys/devices/virtual/powercap"
        ],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
        "resources": {
            "memory": {"limit": MEMORY_BYTES},
            "cpu": {"quota": CPU_QUOTA_MICROSECONDS, "period": 100_000},
            "pids": {"limit": PIDS}
        },
        "seccomp": seccomp(&serde_json::to_value(&machine.profile).map_err(|e| e.to_string())?),
    });
    if options.user_namespace {
        namespaces.push(json!({"type": "user"}));
        for key in ["uidMappings", "gidMappings"] {
            linux[key] = json!([{"containerID": 0, "hostID": 1_000_000, "size": 65_536}]);
        }
    }
    linux["namespaces"] = namespaces.into();
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if !options.user_namespace {
        pts.push("gid=5");
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": options.arguments,
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}],
            "noNewPrivileges": true
        },
        "root": {"path": options.root, "readonly": false},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": pts},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": linux
    }))
}

/// Our profile in the engines' words, for this machine's architecture alone, which is what costs them least.
///
/// They read two conditions on one argument as alternatives, so of the values that `socket` and `ioctl`
/// refuse only the first can be told them.
fn seccomp(profile: &Value) -> Value {
    let mut syscalls = Vec::new();
    let mut refused: Vec<(&str, Value)> = Vec::new();
    for rule in profile["rules"].as_array().into_iter().flatten() {
        let conditions = rule["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let names = &rule["names"];
        let name = names[0].as_str().unwrap_or_default();
        if let (Some(number), [condition]) = (rule["action"]["errno"].as_u64(), conditions) {
            if number == 1 && !refused.iter().any(|(known, _)| *known == name) {
                let value = &condition["value"];
                refused.push((name, json!([{"index": condition["argument"], "value": value, "op": "SCMP_CMP_NE"}])));
            }
            continue;
        }
        let mut entry = json!({"names": names, "action": "SCMP_ACT_ALLOW"});
        if let Some(number) = rule["action"]["errno"].as_u64() {
            entry["action"] = "SCMP_ACT_ERRNO".into();
            entry["errnoRet"] = number.into();
        }
        if let Some((_, arguments)) = refused.iter().find(|(known, _)| *known == name) {
            entry["args"] = arguments.clone();
        } else if let [condition] = conditions {
            let mask = condition["operator"]["masked_equal"].as_u64().unwrap_or(u64::MAX);
            entry["args"] = json!([{
                "index": condition["argument"], "value": mask, "valueTwo": condition["value"],
                "op": "SCMP_CMP_MASKED_EQ"
            }]);
        }
        syscalls.push(entry);
    }
    let architecture = if cfg!(target_arch = "aarch64") { "SCMP_ARCH_AARCH64" } else { "SCMP_ARCH_X86_64" };
    json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": [architecture], "syscalls": syscalls
    })
}
