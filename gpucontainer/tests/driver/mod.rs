//! A host with NVIDIA GPUs, in a directory: a driver root with our stand-in for the management
//! library, real (if empty) shared objects, the kernel's files, and device nodes.
//!
//! A test program that uses it has `mod common;` and `mod driver;`.

#![allow(dead_code, reason = "every test binary uses a part of this")]
#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

use crate::common;

use gpucontainer::gpu::GpuAllocator;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// The version of the driver that [`FakeDriver`] builds.
pub(crate) const VERSION: &str = "550.163.01";

/// Libraries beside the management library: file, name that programs ask for.
const LIBRARIES: &[(&str, &str)] = &[
    ("libcuda.so.550.163.01", "libcuda.so.1"),
    ("libcudadebugger.so.550.163.01", "libcudadebugger.so.1"),
    ("libnvidia-cfg.so.550.163.01", "libnvidia-cfg.so.1"),
    ("libnvidia-ptxjitcompiler.so.550.163.01", "libnvidia-ptxjitcompiler.so.1"),
    ("libnvidia-nvvm.so.550.163.01", "libnvidia-nvvm.so.4"),
    ("libnvidia-encode.so.550.163.01", "libnvidia-encode.so.1"),
    ("libGLX_nvidia.so.550.163.01", "libGLX_nvidia.so.0"),
    ("libnvidia-glcore.so.550.163.01", "libnvidia-glcore.so.550.163.01"),
    ("libnvidia-gtk3.so.550.163.01", "libnvidia-gtk3.so.550.163.01"),
    ("vdpau/libvdpau_nvidia.so.550.163.01", "libvdpau_nvidia.so.1"),
];

/// Where the libraries are in the driver root.
pub(crate) fn library_directory() -> &'static str {
    if cfg!(target_arch = "aarch64") { "usr/lib/aarch64-linux-gnu" } else { "usr/lib/x86_64-linux-gnu" }
}

/// The majors of `nvidia`, `nvidia-uvm` and `nvidia-caps`: of the range for local use, so that nothing
/// opens a device of this machine by mistake.
pub(crate) const MAJORS: (u32, u32, u32) = (240, 241, 242);

/// The names of the slots of an account, after somebody has looked at it: who does removes what is over.
pub(crate) fn slots(allocator: &GpuAllocator) -> Vec<String> {
    allocator.status().unwrap();
    let entries = std::fs::read_dir(allocator.path()).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits until so many wait for GPUs of the allocator.
#[track_caller]
pub(crate) fn until_waiting(allocator: &GpuAllocator, number: usize) {
    let what = format!("{number} wait");
    common::until(&what, Duration::from_secs(60), || allocator.status().unwrap().waiting.len() == number);
}

/// A driver root in a temporary directory, removed when dropped.
#[derive(Debug)]
pub(crate) struct FakeDriver {
    directory: tempfile::TempDir,
    profile: Value,
}

impl FakeDriver {
    /// The machine of `tests/fake-nvml/profiles/NAME.json`. Device nodes are made if this is root.
    pub(crate) fn new(name: &str) -> Self {
        Self::with_profile(profile(name))
    }

    /// A machine of its own.
    pub(crate) fn with_profile(profile: Value) -> Self {
        Self::with_majors(profile, MAJORS)
    }

    /// A machine whose drivers have these majors. With 1 for `nvidia`, the nodes of GPUs with the minors
    /// 3, 5 and 7 are `null`, `zero` and `full`, which can be opened.
    pub(crate) fn with_majors(profile: Value, majors: (u32, u32, u32)) -> Self {
        let driver = Self { directory: tempfile::Builder::new().prefix("gpuc-driver.").tempdir().unwrap(), profile };
        driver.user_space();
        driver.kernel(majors);
        if common::is_root() {
            driver.nodes(majors);
        }
        driver
    }

    /// The directory, for `DriverRoot::new` or the variable `GPUCONTAINER_DRIVER_ROOT`.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The file with the state of the machine, for all processes that use it.
    fn machine(&self) -> PathBuf {
        self.path().join(library_directory()).join("fake-nvml.json")
    }

    /// The machine as it is now.
    pub(crate) fn state(&self) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.machine()).unwrap()).unwrap()
    }

    /// Changes the machine for all processes that use it, while no other process changes it.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut state = self.state();
        change(&mut state);
        let new = self.machine().with_extension("test");
        std::fs::write(&new, state.to_string()).unwrap();
        std::fs::rename(new, self.machine()).unwrap();
    }

    /// Writes a file of the root, its directories too.
    pub(crate) fn write(&self, path: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents).unwrap();
        path
    }

    /// The GPUs of the profile, with its defaults.
    pub(crate) fn gpus(&self) -> Vec<Value> {
        let defaults = self.profile["defaults"].as_object().cloned().unwrap_or_default();
        let with_defaults = |gpu: &Value| {
            let mut all = defaults.clone();
            all.extend(gpu.as_object().unwrap().clone());
            Value::Object(all)
        };
        self.profile["gpus"].as_array().unwrap().iter().map(with_defaults).collect()
    }

    /// The minors of the capabilities of MIG devices, as the kernel lists them.
    pub(crate) fn capabilities(&self) -> BTreeMap<String, u64> {
        let mut minors = BTreeMap::from([("config".to_owned(), 1), ("monitor".to_owned(), 2)]);
        for gpu in self.gpus() {
            for slice in gpu["mig"]["devices"].as_array().into_iter().flatten() {
                let (minor, instance) = (gpu["minor"].as_u64().unwrap(), slice["gpu_instance"].as_u64().unwrap_or(0));
                let base = 3 + minor * 134 + instance * 9;
                minors.insert(format!("gpu{minor}/gi{instance}/access"), base);
                minors.insert(
                    format!("gpu{minor}/gi{instance}/ci{}/access", slice["compute_instance"].as_u64().unwrap_or(0)),
                    base + 1,
                );
            }
        }
        minors
    }

    fn user_space(&self) {
        let libraries = self.path().join(library_directory());
        std::fs::create_dir_all(libraries.join("vdpau")).unwrap();
        let management = format!("libnvidia-ml.so.{VERSION}");
        std::fs::copy(fake_nvml(), libraries.join(&management)).unwrap();
        let mut profile = self.profile.clone();
        profile["root"] = json!(self.path());
        std::fs::write(self.machine(), profile.to_string()).unwrap();
        symlink(&management, libraries.join("libnvidia-ml.so.1")).unwrap();
        for (file, name) in LIBRARIES {
            let path = libraries.join(file);
            std::fs::copy(shared_object(name), &path).unwrap();
            let link = path.with_file_name(name);
            if link != path {
                symlink(path.file_name().unwrap(), link).unwrap();
            }
        }
        symlink("libcuda.so.1", libraries.join("libcuda.so")).unwrap();
        let smi = self.write("usr/bin/nvidia-smi", format!("#!/bin/sh\necho stand-in for nvidia-smi {VERSION}\n"));
        std::fs::set_permissions(smi, std::fs::Permissions::from_mode(0o755)).unwrap();
        self.write(&format!("lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin"), "firmware");
        self.write("etc/OpenCL/vendors/nvidia.icd", "libnvidia-opencl.so.1\n");
        self.write("etc/vulkan/icd.d/nvidia_icd.json", "{}\n");
        std::fs::create_dir_all(self.path().join("run/nvidia-persistenced")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(self.path().join("run/nvidia-persistenced/socket")).unwrap());
    }

    /// Puts the stand-in for the Multi-Process Service into the root; returns its control program.
    pub(crate) fn multi_process_service(&self) -> PathBuf {
        let built = compile_program("mps", include_str!("mps.c"));
        for place in ["usr/sbin/nvidia-cuda-mps-server", "usr/bin/nvidia-cuda-mps-control"] {
            let place = self.path().join(place);
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::copy(&built, &place).unwrap();
        }
        self.path().join("usr/bin/nvidia-cuda-mps-control")
    }

    /// Makes the Multi-Process Service fail: `die`, `hang`, `old` or `deaf`; nothing for none of them.
    pub(crate) fn multi_process_service_mode(&self, mode: &str) {
        self.write("usr/bin/mps-mode", mode);
    }

    fn kernel(&self, (nvidia, memory, capabilities): (u32, u32, u32)) {
        let module =
            format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {VERSION}  Tue Apr  8 12:41:17 UTC 2025\n");
        self.write("proc/driver/nvidia/version", module);
        self.write(
            "proc/driver/nvidia/params",
            "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\nDeviceFileMode: 438\n",
        );
        self.write(
            "proc/devices",
            format!(
                "Character devices:\n  1 mem\n{nvidia} nvidia\n{memory} nvidia-uvm\n{capabilities} nvidia-caps\n\nBlock devices:\n  7 loop\n"
            ),
        );
        let minors: String = self.capabilities().iter().map(|(name, minor)| format!("{name} {minor}\n")).collect();
        self.write("proc/driver/nvidia-caps/mig-minors", minors);
        for (name, minor) in self.capabilities() {
            let contents = format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
            let place = match name.split_once('/') {
                Some((gpu, rest)) => format!("{gpu}/mig/{rest}"),
                None => format!("mig/{name}"),
            };
            self.write(&format!("proc/driver/nvidia/capabilities/{place}"), contents);
        }
        for (index, gpu) in self.gpus().iter().enumerate() {
            let bus_id = gpu["pci_bus_id"].as_str().unwrap();
            if bus_id.contains('/') {
                continue;
            }
            let information =
                format!("Model: {}\nGPU UUID: {}\nDevice Minor: {}\n", gpu["name"], gpu["uuid"], gpu["minor"]);
            self.write(&format!("proc/driver/nvidia/gpus/{bus_id}/information"), information);
            let node = gpu["memory_nodes"][0].as_u64().unwrap_or_else(|| u64::try_from(index / 2).unwrap());
            self.write(&format!("sys/bus/pci/devices/{bus_id}/numa_node"), format!("{node}\n"));
        }
    }

    fn nodes(&self, (nvidia, memory, capabilities): (u32, u32, u32)) {
        self.node("dev/nvidiactl", nvidia, 255);
        self.node("dev/nvidia-modeset", nvidia, 254);
        self.node("dev/nvidia-uvm", memory, 0);
        self.node("dev/nvidia-uvm-tools", memory, 1);
        for gpu in self.gpus() {
            let minor = gpu["minor"].as_u64().and_then(|minor| u32::try_from(minor).ok()).unwrap();
            // A hostile machine may say the same minor twice, or one that no node has.
            if minor < 254 && !self.path().join(format!("dev/nvidia{minor}")).exists() {
                self.node(&format!("dev/nvidia{minor}"), nvidia, minor);
            }
        }
        for minor in self.capabilities().into_values() {
            self.node(&format!("dev/nvidia-caps/nvidia-cap{minor}"), capabilities, u32::try_from(minor).unwrap());
        }
    }

    /// Makes a character device, which takes root.
    pub(crate) fn node(&self, path: &str, major: u32, minor: u32) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let numbers = [major.to_string(), minor.to_string()];
        let status = Command::new("mknod").args(["-m", "666"]).arg(&path).arg("c").args(numbers).status().unwrap();
        assert!(status.success(), "mknod {path:?}");
    }
}

/// A machine profile of `tests/fake-nvml/profiles`.
pub(crate) fn profile(name: &str) -> Value {
    // Part of the program, which may run where the source is not.
    let text = match name {
        "none" => include_str!("../../../tests/fake-nvml/profiles/none.json"),
        "t4" => include_str!("../../../tests/fake-nvml/profiles/t4.json"),
        "l40s-pair" => include_str!("../../../tests/fake-nvml/profiles/l40s-pair.json"),
        "l40s" => include_str!("../../../tests/fake-nvml/profiles/l40s.json"),
        "dgx-1" => include_str!("../../../tests/fake-nvml/profiles/dgx-1.json"),
        "hgx-2" => include_str!("../../../tests/fake-nvml/profiles/hgx-2.json"),
        "hgx-h100" => include_str!("../../../tests/fake-nvml/profiles/hgx-h100.json"),
        "hgx-b200" => include_str!("../../../tests/fake-nvml/profiles/hgx-b200.json"),
        "dgx-a100" => include_str!("../../../tests/fake-nvml/profiles/dgx-a100.json"),
        "h100-mig" => include_str!("../../../tests/fake-nvml/profiles/h100-mig.json"),
        other => panic!("no machine is called {other}"),
    };
    serde_json::from_str(text).unwrap()
}

/// The profiles of GPU instances of a model in `tests/fake-nvml/profiles/mig-profiles.json`.
pub(crate) fn mig_profiles(model: &str) -> Value {
    let text = include_str!("../../../tests/fake-nvml/profiles/mig-profiles.json");
    serde_json::from_str::<Value>(text).unwrap()[model].take()
}

/// The DGX A100, whose first `split` GPUs are in MIG mode, without any instance yet.
pub(crate) fn split_a100(split: usize) -> Value {
    let mut profile = profile("dgx-a100");
    let profiles = mig_profiles("a100-40gb");
    profile["defaults"]["mig"] = json!({ "places": 7, "needs_reset": true, "profiles": profiles });
    for gpu in profile["gpus"].as_array_mut().unwrap().iter_mut().take(split) {
        gpu["mig"] = json!({ "enabled": true, "places": 7, "needs_reset": true, "profiles": profiles });
    }
    profile
}

/// A machine with one GPU, whose fields are those of the T4 with `changes` over them.
pub(crate) fn one_gpu(changes: Value) -> Value {
    let mut profile = profile("t4");
    let gpu = profile["gpus"][0].as_object_mut().unwrap();
    gpu.extend(changes.as_object().unwrap().clone());
    profile
}

/// A machine whose call `name` fails with the code.
pub(crate) fn failing(name: &str, code: u32) -> Value {
    let mut profile = profile("t4");
    profile["errors"] = json!({ name: code });
    profile
}

/// Whether the stand-in and the driver's objects are here or can be built; if not, says so as [`common::skip`] does.
#[track_caller]
pub(crate) fn available() -> bool {
    let why = match cargo_target() {
        _ if common::which("cc").is_none() && !objects().is_dir() => "cc is not installed",
        None if !beside().is_file() => "the stand-in for NVML is not beside the test program",
        _ => return true,
    };
    common::skip("stand-in", why);
    false
}

/// The stand-in for the management library, built when first asked for.
pub(crate) fn fake_nvml() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let Some(target) = cargo_target() else { return beside() };
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--offline", "--package", "fake-nvml", "--target-dir"]).arg(&target);
        // The profile of the tests may be another; this library is the same in all.
        let status = cargo.current_dir(workspace).status().unwrap();
        assert!(status.success(), "cargo build --package fake-nvml");
        target.join("debug/libnvidia_ml.so")
    })
}

/// Where the stand-in is if the test program was copied to another place, by another user or machine.
fn beside() -> PathBuf {
    std::env::current_exe().unwrap().with_file_name("libnvidia_ml.so")
}

/// Where Cargo builds, if this program is still where Cargo built it: `TARGET/PROFILE/deps/NAME`.
fn cargo_target() -> Option<PathBuf> {
    let program = std::env::current_exe().unwrap();
    let profile = program.ancestors().nth(2)?;
    let there = profile.join(".cargo-lock").exists() && Path::new(env!("CARGO")).is_file();
    there.then(|| profile.parent().map(Path::to_owned))?
}

/// A real shared object that asks to be found as `name`; it has the function `fake_version`.
fn shared_object(name: &str) -> PathBuf {
    compile(name, "int fake_version(void) { return 550; }\n")
}

/// Compiles a shared object from C, once for all tests that want the same.
pub(crate) fn compile(name: &str, source: &str) -> PathBuf {
    compile_with(name, source, &["-shared", "-fPIC", "-nostdlib", &format!("-Wl,-soname,{name}")])
}

/// Compiles a shared object for 32-bit programs; `None` if the compiler makes none, which is said.
#[track_caller]
pub(crate) fn compile_32(name: &str, source: &str) -> Option<PathBuf> {
    let mut probe = Command::new("cc");
    probe.args(["-m32", "-shared", "-fPIC", "-nostdlib", "-o", "/dev/null", "-x", "c", "-"]);
    let status = probe.stdin(Stdio::null()).stderr(Stdio::null()).status();
    if cfg!(target_arch = "x86_64") && status.is_ok_and(|status| status.success()) {
        let soname = format!("-Wl,-soname,{name}");
        return Some(compile_with(name, source, &["-m32", "-shared", "-fPIC", "-nostdlib", &soname]));
    }
    common::skip("toolchain", "cc makes no 32-bit objects");
    None
}

/// Compiles a program from C that can load libraries.
pub(crate) fn compile_loader(name: &str, source: &str) -> PathBuf {
    compile_with(name, source, &["-Wall"])
}

/// Compiles a program from C that needs nothing else.
pub(crate) fn compile_program(name: &str, source: &str) -> PathBuf {
    compile_with(name, source, &["-static", "-Wall"])
}

/// What was compiled, where other users and machines find it, too.
fn objects() -> PathBuf {
    let target = cargo_target().map(|target| target.join("tmp"));
    let beside = || std::env::current_exe().unwrap().parent().unwrap().to_owned();
    target.unwrap_or_else(beside).join("shared-objects")
}

fn compile_with(name: &str, source: &str, options: &[&str]) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let directory = objects();
        std::fs::create_dir_all(&directory).unwrap();
        directory
    });
    let mut hash = std::hash::DefaultHasher::new();
    std::hash::Hash::hash(&(source, options), &mut hash);
    let built = directory.join(format!("{:016x}-{name}", std::hash::Hasher::finish(&hash)));
    if !built.exists() {
        // Whoever is second replaces a file by its equal.
        let temporary = tempfile::Builder::new().tempdir_in(directory).unwrap();
        let (code, object) = (temporary.path().join("source.c"), temporary.path().join("object.so"));
        std::fs::write(&code, source).unwrap();
        let mut cc = Command::new("cc");
        cc.args(options).arg("-o").arg(&object).arg(&code);
        let status = cc.status().expect("cc, which Rust itself needs to link");
        assert!(status.success(), "{cc:?}");
        std::fs::rename(object, &built).unwrap();
    }
    built
}
