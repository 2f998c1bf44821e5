//! Nothing exists in one language only: every public method of the types that people use in Rust has its function in C
//! and its name in Python, or stands in the list of exceptions with the reason.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A type of Rust, what its functions in C begin with, and the Python files that have its names.
struct Front {
    name: &'static str,
    c: &'static [&'static str],
    python: &'static [&'static str],
}

const FRONTS: &[Front] = &[
    Front {
        name: "Sandbox",
        c: &["gpuc_sandbox_", "gpuc_config_", "gpuc_exec_"],
        python: &["sandbox.py", "process.py", "options.py"],
    },
    Front {
        name: "SandboxBuilder",
        c: &["gpuc_config_", "gpuc_config_set_"],
        python: &["sandbox.py", "options.py", "becoming.py"],
    },
    Front { name: "ExecBuilder", c: &["gpuc_exec_", "gpuc_exec_set_"], python: &["sandbox.py", "options.py"] },
    Front { name: "Process", c: &["gpuc_process_"], python: &["process.py"] },
    Front { name: "Limits", c: &["gpuc_limits_", "gpuc_limits_set_"], python: &["limits.py"] },
    Front { name: "ImageStore", c: &["gpuc_image_store_", "gpuc_image_"], python: &["_native.pyi"] },
    Front { name: "Image", c: &["gpuc_image_"], python: &["_native.pyi"] },
    Front { name: "ImageBuilder", c: &["gpuc_image_builder_", "gpuc_image_builder_set_"], python: &["_native.pyi"] },
    Front { name: "PullOptions", c: &["gpuc_transfer_set_", "gpuc_transfer_add_"], python: &["_native.pyi"] },
    Front { name: "ImportOptions", c: &["gpuc_transfer_set_"], python: &["_native.pyi"] },
    Front { name: "GpuRequest", c: &["gpuc_gpu_request_set_", "gpuc_gpu_request_"], python: &["gpu.py"] },
    Front { name: "GpuAllocator", c: &["gpuc_gpu_allocator_", "gpuc_gpu_allocator_set_"], python: &["gpu.py"] },
    Front { name: "GpuLease", c: &["gpuc_gpu_lease_"], python: &["gpu.py"] },
    Front { name: "GpuTicket", c: &["gpuc_gpu_ticket_"], python: &["gpu.py"] },
    Front { name: "MigDevices", c: &["gpuc_mig_devices_"], python: &["mig.py"] },
    Front { name: "MigLease", c: &["gpuc_mig_lease_"], python: &["mig.py"] },
    Front { name: "XidWatch", c: &["gpuc_xid_watch_"], python: &["xid.py"] },
    Front {
        name: "PrivateNetwork",
        c: &["gpuc_private_network_", "gpuc_private_network_set_"],
        python: &["network.py"],
    },
    Front { name: "NetworkMember", c: &["gpuc_network_member_"], python: &["network.py"] },
    Front { name: "NetworkNamespace", c: &["gpuc_network_namespace_"], python: &["mapper.py"] },
    Front { name: "PortMapper", c: &["gpuc_port_mapper_"], python: &["mapper.py"] },
    Front { name: "Reservation", c: &["gpuc_reservation_"], python: &["mapper.py"] },
    Front { name: "Published", c: &["gpuc_published_"], python: &["mapper.py"] },
    Front {
        name: "ExposedServices",
        c: &["gpuc_exposed_services_", "gpuc_network_namespace_"],
        python: &["mapper.py"],
    },
    Front { name: "HostService", c: &["gpuc_host_service_set_", "gpuc_host_service_"], python: &["ports.py"] },
    Front { name: "PortMapping", c: &["gpuc_port_mapping_set_", "gpuc_port_mapping_"], python: &["ports.py"] },
    Front { name: "Host", c: &["gpuc_host_"], python: &["host.py"] },
    Front { name: "Cancel", c: &["gpuc_cancel_"], python: &["_native.pyi"] },
];

/// What a method is called elsewhere: in C, in Python.
const RENAMED: &[(&str, &str, &str)] = &include!("surface/renamed.in");

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(directory: &Path, all: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push(std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// The public methods of every type, by the `impl` blocks of the source; those of macros count for all who use them.
fn methods() -> BTreeMap<String, BTreeSet<String>> {
    let mut files = Vec::new();
    sources(&repository().join("gpucontainer/src"), &mut files);
    let mut macros: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut used: Vec<(String, String)> = Vec::new();
    for file in &files {
        let mut place: Option<(String, bool)> = None;
        for line in file.lines() {
            if let Some(name) = line.strip_prefix("macro_rules! ").and_then(|rest| rest.split(' ').next()) {
                place = Some((name.to_owned(), true));
            } else if let Some(rest) = line.strip_prefix("impl") {
                let rest = rest.strip_prefix("<'a>").unwrap_or(rest).trim_start();
                let name: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
                place = (!rest.contains(" for ")).then_some((name, false));
            } else if line == "}" || line.starts_with("#[cfg(test)]") {
                place = None;
            }
            let Some((name, is_macro)) = &place else { continue };
            let method = line.trim_start().strip_prefix("pub fn ").or(line.trim_start().strip_prefix("pub const fn "));
            if let Some(method) = method {
                let method: String = method.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let whose = if *is_macro { &mut macros } else { &mut all };
                whose.entry(name.clone()).or_default().insert(method);
            } else if let Some((call, _)) = line.trim().split_once("!(").filter(|_| line.trim().ends_with(");")) {
                used.push((name.clone(), call.to_owned()));
            }
        }
    }
    for (name, call) in used {
        if let Some(methods) = macros.get(&call) {
            all.entry(name).or_default().extend(methods.iter().cloned());
        }
    }
    all
}

/// Whether a word stands in a text as a whole one.
fn has(text: &str, word: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(inside)
            && !text[at + word.len()..].chars().next().is_some_and(inside)
    })
}

#[test]
fn nothing_exists_in_one_language_only() {
    let header = std::fs::read_to_string(repository().join("include/gpucontainer.h")).unwrap();
    let package = repository().join("gpucontainer-py/python/gpucontainer");
    let methods = methods();
    let (mut missing, mut stale): (Vec<String>, BTreeSet<&str>) =
        (Vec::new(), RENAMED.iter().map(|one| one.0).collect());
    for front in FRONTS {
        let python: String =
            front.python.iter().map(|file| std::fs::read_to_string(package.join(file)).unwrap()).collect();
        let of_type = methods.get(front.name).unwrap_or_else(|| panic!("no methods of {} were found", front.name));
        for method in of_type {
            let full = format!("{}::{method}", front.name);
            let renamed = RENAMED.iter().find(|(name, _, _)| *name == full);
            let (in_c, in_python) = renamed.map_or((method.as_str(), method.as_str()), |(_, c, python)| (*c, *python));
            let whole = in_c.starts_with("gpuc_") && has(&header, in_c);
            let c = whole || front.c.iter().any(|prefix| has(&header, &format!("{prefix}{in_c}")));
            // A reason, instead of a name, has spaces.
            if !in_c.contains(' ') && !c {
                missing.push(format!("{full} in C"));
            }
            if !in_python.contains(' ') && !has(&python, in_python) {
                missing.push(format!("{full} in Python"));
            }
            stale.remove(full.as_str());
        }
    }
    assert!(missing.is_empty(), "missing:\n  {}", missing.join("\n  "));
    assert!(stale.is_empty(), "named in surface/renamed.in and no methods: {stale:?}");
}
