//! Hosts whose NVIDIA GPUs are not behind a kernel module: the stand-in's directory turned into one of WSL, or of a board.
//!
//! A test program that uses it has `mod common;`, `mod driver;` and `mod other_hosts;`.

#![allow(dead_code, reason = "every test binary uses a part of this")]
#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

use crate::common;
use crate::driver::{self, FakeDriver, library_directory};
use gpucontainer::GpuRequest;
use serde_json::{Value, json};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// NVIDIA's driver store.
pub(crate) const STORE: &str = "/usr/lib/wsl/drivers/nv_dispi.inf_amd64_0123456789abcdef";
/// The store of another vendor's driver.
const OTHER_STORE: &str = "/usr/lib/wsl/drivers/iigd_dch.inf_amd64_0";
/// The lists of a board.
pub(crate) const LISTS: &str = "/etc/nvidia-container-runtime/host-files-for-container.d";

/// The directory of a board's libraries.
pub(crate) fn board_directory() -> String {
    format!("/{}/tegra", library_directory())
}

fn empty(host: &FakeDriver) {
    for name in ["proc", "dev", "usr", "run", "lib", "etc", "sys"] {
        let path = host.path().join(name);
        if path.exists() {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
}

fn library(host: &FakeDriver, place: &str, soname: &str, version: u32) {
    let object = driver::compile(soname, &format!("int fake_version(void) {{ return {version}; }}\n"));
    host.write(&place[1..], std::fs::read(object).unwrap());
}

/// Puts the stand-in for the management library into a directory, for a machine of its own.
pub(crate) fn management(host: &FakeDriver, directory: &str, mut profile: Value) {
    profile["root"] = json!(host.path());
    host.write(&format!("{}/libnvidia-ml.so.1", &directory[1..]), std::fs::read(driver::fake_nvml()).unwrap());
    host.write(&format!("{}/fake-nvml.json", &directory[1..]), profile.to_string());
}

/// A machine of WSL with the GPUs of a profile, which have no device nodes there; with one for all, if this is root.
pub(crate) fn windows(machine: &str) -> FakeDriver {
    let mut profile = driver::profile(machine);
    for gpu in profile["gpus"].as_array_mut().unwrap() {
        gpu["errors"] = json!({ "nvmlDeviceGetMinorNumber": 3, "nvmlDeviceGetMigMode": 3 });
    }
    let host = FakeDriver::with_profile(profile.clone());
    make_windows(&host, profile);
    host
}

/// Turns the stand-in's directory into WSL's.
pub(crate) fn make_windows(host: &FakeDriver, profile: Value) {
    empty(host);
    management(host, "/usr/lib/wsl/lib", profile);
    library(host, "/usr/lib/wsl/lib/libdxcore.so", "libdxcore.so", 10);
    library(host, "/usr/lib/wsl/lib/libd3d12.so", "libd3d12.so", 12);
    for (file, soname, version) in [
        ("libcuda.so.1.1", "libcuda.so.1.1", 551),
        // The small one that loads the other, under the name that programs know.
        ("libcuda_loader.so", "libcuda.so.1", 552),
        ("libnvidia-ptxjitcompiler.so.1", "libnvidia-ptxjitcompiler.so.1", 553),
        ("libnvidia-ml.so.1", "libnvidia-ml.so.1", 554),
        ("libnvidia-ml_loader.so", "libnvidia-ml.so.1", 555),
        ("libnvdxgdmal.so.1", "libnvdxgdmal.so.1", 556),
        ("libnvidia-encode.so.1", "libnvidia-encode.so.1", 557),
        ("libnvoptix_loader.so.1", "libnvoptix.so.1", 558),
        ("libnvrtum64.so", "libnvrtum64.so", 559),
    ] {
        library(host, &format!("{STORE}/{file}"), soname, version);
    }
    for file in ["nvcubins.bin", "nvngx_dlss.dll", "nv_dispi.inf", "nvlddmkm.sys"] {
        host.write(&format!("{}/{file}", &STORE[1..]), "of Windows");
    }
    let tool = host.write(&format!("{}/nvidia-smi", &STORE[1..]), "#!/bin/sh\necho nvidia-smi of Windows\n");
    std::fs::set_permissions(tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    library(host, &format!("{OTHER_STORE}/libze_intel_gpu.so.1"), "libze_intel_gpu.so.1", 1);
    if common::is_root() {
        host.node("dev/dxg", 240, 63);
    } else {
        // Nobody but root can make nodes; that it is there says what the host is.
        host.write("dev/dxg", "no device");
    }
}

/// A board with a GPU in its processor, and no management library.
pub(crate) fn board() -> FakeDriver {
    let host = FakeDriver::new("none");
    make_board(&host);
    host
}

/// Turns the stand-in's directory into a board's.
pub(crate) fn make_board(host: &FakeDriver) {
    empty(host);
    host.write("etc/nv_tegra_release", "# R35 (release), REVISION: 4.1\n");
    host.write("sys/devices/soc0/family", "Tegra\n");
    host.write("proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0");
    host.write("proc/device-tree/compatible", "nvidia,p3737-0000+p3701-0000\0nvidia,tegra234\0");
    host.write("proc/meminfo", "MemTotal:       31457280 kB\nMemFree: 1 kB\nMemAvailable:   20971520 kB\n");
    let directory = board_directory();
    for (file, soname) in [
        ("libcuda.so.1.1", "libcuda.so.1"),
        ("libnvrm_gpu.so", "libnvrm_gpu.so"),
        ("libnvidia-ptxjitcompiler.so.35.4.1", "libnvidia-ptxjitcompiler.so.1"),
        ("libnvbufsurface.so.1.0.0", "libnvbufsurface.so.1.0.0"),
        ("libunlisted.so.1", "libunlisted.so.1"),
    ] {
        library(host, &format!("{directory}/{file}"), soname, 354);
    }
    let at = |path: &str| host.path().join(&path[1..]);
    symlink("libcuda.so.1.1", at(&format!("{directory}/libcuda.so"))).unwrap();
    symlink("tegra/libcuda.so", at(&format!("/{}/libcuda.so", library_directory()))).unwrap();
    symlink("libnvbufsurface.so.1.0.0", at(&format!("{directory}/libnvbufsurface.so"))).unwrap();
    host.write("lib/firmware/tegra234/nvdec.bin", "firmware");
    host.write("usr/share/glvnd/egl_vendor.d/10_nvidia.json", "{}\n");
    host.write("usr/src/jetson_multimedia_api/README", "samples");
    list(
        host,
        "devices",
        "# nodes of the board\ndev, /dev/nvhost-*\ndev, /dev/nvmap\ndev, /dev/nvidia2\ndev, /dev/not-on-this-board\n",
    );
    list(
        host,
        "drivers",
        &format!("lib, {directory}/libcuda.so.1.1\nlib, {directory}/libnv*.so*\nlib, {directory}/libgone.so.1\n"),
    );
    let links = format!("sym, {directory}/libcuda.so\nsym, /{}/libcuda.so\n", library_directory());
    list(host, "l4t", &format!("{links}dir, /lib/firmware/tegra234\nlib, /usr/share/glvnd/egl_vendor.d/*.json\n"));
    list(host, "samples", "dir, /usr/src/jetson_multimedia_api\n");
    if common::is_root() {
        for (minor, name) in (0..).zip(["nvhost-ctrl", "nvhost-gpu", "nvmap"]) {
            host.node(&format!("dev/{name}"), 240, minor);
        }
        host.node("dev/nvidia2", 241, 2);
        // Another driver's, which no list names.
        host.node("dev/secret", 242, 0);
    }
}

/// Writes a list of a board.
pub(crate) fn list(host: &FakeDriver, name: &str, text: &str) {
    host.write(&format!("{}/{name}.csv", &LISTS[1..]), text);
}

/// Tries links at `places` of images that have the file `kind`, to whatever could be reached outside: each start either fails, or shows nothing of
/// the host's, and changes nothing of it.
pub(crate) fn attack(fixture: &crate::gpu_machine::Fixture, request: &GpuRequest, kind: &str, places: &[String]) {
    let victim = fixture.victim().display().to_string();
    let before = fixture.host();
    let script = places.iter().map(|place| format!("cat {place}/file {place}; echo attack >{place}/file; "));
    let script: String = script.collect();
    let mut started = 0;
    for place in places {
        for target in [
            victim.clone(),
            format!("{}{victim}", "../".repeat(30)),
            format!("{victim}/file"),
            format!("/proc/self/root{victim}"),
            format!("/proc/1/root{victim}"),
            place.clone(),
        ] {
            let what = format!("{place} -> {target}");
            let base = fixture.busybox().file(kind, "13\n", 0o644).symlink(&target, place);
            let Ok(image) = base.commit("attack:1") else { continue };
            let start = std::time::Instant::now();
            let sandbox = fixture.sandbox(&image, "none", &format!("({script}) 2>&1")).gpus(request.clone());
            match crate::gpu_machine::run(sandbox) {
                Ok(said) => {
                    started += 1;
                    assert!(!said.contains("of the host"), "{what}: {said}");
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
            assert!(start.elapsed() < std::time::Duration::from_secs(20), "{what}");
            fixture.check(&before, &what);
        }
    }
    assert!(started >= places.len(), "{started} of the containers started at all");
}

/// Whether something of a grant is at `place`.
pub(crate) fn has_mount(grant: &gpucontainer::gpu::GpuGrant, place: &str) -> bool {
    grant.mounts.iter().any(|mount| mount.target == Path::new(place))
}
