//! Keeps `include/gpucontainer.h` and the exported names in step with the source.
//!
//! `UPDATE=1 cargo test -p gpucontainer-ffi` writes the header anew.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn crate_directory() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn header_file() -> PathBuf {
    crate_directory().join("../include/gpucontainer.h")
}

fn generate() -> String {
    let defines = [
        ("MAJOR", env!("CARGO_PKG_VERSION_MAJOR")),
        ("MINOR", env!("CARGO_PKG_VERSION_MINOR")),
        ("PATCH", env!("CARGO_PKG_VERSION_PATCH")),
    ];
    let mut versions = String::new();
    for (name, value) in defines {
        versions.push_str(&format!("\n#define GPUC_VERSION_{name} {value}"));
    }
    let mut config = cbindgen::Config {
        language: cbindgen::Language::C,
        cpp_compat: true,
        include_guard: Some("GPUCONTAINER_H".to_owned()),
        no_includes: true,
        sys_includes: ["stdbool.h", "stddef.h", "stdint.h"].map(str::to_owned).to_vec(),
        header: Some(include_str!("header.txt").trim_end().to_owned()),
        after_includes: Some(versions),
        style: cbindgen::Style::Type,
        documentation_style: cbindgen::DocumentationStyle::Doxy,
        line_length: 100,
        tab_width: 4,
        sort_by: cbindgen::SortKey::None,
        usize_is_size_t: true,
        ..cbindgen::Config::default()
    };
    let objects = [
        ("Cancel", "gpuc_cancel_t"),
        ("Collected", "gpuc_output_t"),
        ("Config", "gpuc_config_t"),
        ("Error", "gpuc_error_t"),
        ("Exec", "gpuc_exec_t"),
        ("ExposedServices", "gpuc_exposed_services_t"),
        ("GpuAllocator", "gpuc_gpu_allocator_t"),
        ("GpuGrant", "gpuc_gpu_grant_t"),
        ("GpuLease", "gpuc_gpu_lease_t"),
        ("GpuRequest", "gpuc_gpu_request_t"),
        ("GpuTicket", "gpuc_gpu_ticket_t"),
        ("Host", "gpuc_host_t"),
        ("HostService", "gpuc_host_service_t"),
        ("Image", "gpuc_image_t"),
        ("ImageBuilder", "gpuc_image_builder_t"),
        ("ImageStore", "gpuc_image_store_t"),
        ("Images", "gpuc_images_t"),
        ("Limits", "gpuc_limits_t"),
        ("Mapping", "gpuc_port_mapping_t"),
        ("MigDevices", "gpuc_mig_devices_t"),
        ("MigLease", "gpuc_mig_lease_t"),
        ("NetworkMember", "gpuc_network_member_t"),
        ("NetworkNamespace", "gpuc_network_namespace_t"),
        ("PrivateNetwork", "gpuc_private_network_t"),
        ("Process", "gpuc_process_t"),
        ("Published", "gpuc_published_t"),
        ("Reservation", "gpuc_reservation_t"),
        ("Sandbox", "gpuc_sandbox_t"),
        ("Transfer", "gpuc_transfer_t"),
        ("XidEvent", "gpuc_xid_event_t"),
        ("XidWatch", "gpuc_xid_watch_t"),
    ];
    for (rust, c) in objects {
        config.export.rename.insert(rust.to_owned(), c.to_owned());
    }
    // Nothing takes these as they are, so that numbers from C are never taken for an enumeration unchecked.
    let numbers = [
        "gpuc_log_level_t",
        "gpuc_mig_mode_change_t",
        "gpuc_mount_t",
        "gpuc_port_mode_t",
        "gpuc_protocol_t",
        "gpuc_source_address_t",
        "gpuc_stdio_t",
    ];
    config.export.include = numbers.map(str::to_owned).to_vec();
    let mut bytes = Vec::new();
    cbindgen::Builder::new().with_crate(crate_directory()).with_config(config).generate().unwrap().write(&mut bytes);
    String::from_utf8(bytes).unwrap()
}

fn exported_in(header: &str) -> BTreeSet<String> {
    header
        .split(|c: char| !c.is_alphanumeric() && c != '_' && c != '(')
        .filter_map(|word| word.split_once('('))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.starts_with("gpuc_"))
        .collect()
}

#[test]
fn the_header_is_that_of_the_source() {
    let fresh = generate();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(header_file(), &fresh).unwrap();
    }
    let committed = std::fs::read_to_string(header_file()).unwrap_or_default();
    assert!(committed == fresh, "include/gpucontainer.h is stale: run UPDATE=1 cargo test -p gpucontainer-ffi");
}

#[test]
fn the_library_exports_just_what_the_header_declares() {
    // The test runs from target/<profile>/deps, where the library lies beside it.
    let library = std::env::current_exe().unwrap().parent().unwrap().join("libgpucontainer_ffi.so");
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(&library).output().unwrap();
    assert!(output.status.success(), "nm {library:?}: {}", String::from_utf8_lossy(&output.stderr));
    let exported: BTreeSet<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2))
        .map(str::to_owned)
        .collect();
    assert_eq!(exported, exported_in(&generate()));
    assert!(exported.contains("gpuc_version"));
}

#[test]
fn the_library_needs_nothing_but_the_c_library() {
    let library = std::env::current_exe().unwrap().parent().unwrap().join("libgpucontainer_ffi.so");
    let output = Command::new("readelf").args(["-d", "-W"]).arg(&library).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let needed = text.lines().filter(|line| line.contains("(NEEDED)"));
    let needed: Vec<&str> = needed.filter_map(|line| line.split_once('[')?.1.strip_suffix(']')).collect();
    let known = ["libc.so.6", "libgcc_s.so.1", "libm.so.6", "libdl.so.2", "libpthread.so.0"];
    let foreign: Vec<&&str> =
        needed.iter().filter(|name| !known.contains(*name) && !name.starts_with("ld-linux")).collect();
    assert!(!needed.is_empty() && foreign.is_empty(), "{needed:?}");
}

#[test]
fn the_library_has_a_name_to_link_to() {
    let library = std::env::current_exe().unwrap().parent().unwrap().join("libgpucontainer_ffi.so");
    let output = Command::new("readelf").args(["-d", "-W"]).arg(&library).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let name = format!("[libgpucontainer.so.{}]", env!("CARGO_PKG_VERSION_MAJOR"));
    assert!(text.lines().any(|line| line.contains("(SONAME)") && line.contains(&name)), "{text}");
}
