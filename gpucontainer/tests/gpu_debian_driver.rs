//! The user space of NVIDIA's driver as Debian ships it: real libraries, programs and chains of links.
//!
//! `tests/debian-driver` fetches it; where it cannot, for example without a package archive, the tests are skipped.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;

use driver::{FakeDriver, library_directory};
use gpucontainer::gpu::{
    Driver, DriverCapability, DriverRoot, ForeignProcesses, GpuAllocator, GpuGrant, GpuRequest, ImageFacts, Inventory,
    MountKind, Mps, Wait, grant,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The driver root without a kernel, or says why it is skipped.
#[track_caller]
fn debian_driver() -> Option<PathBuf> {
    if std::env::consts::ARCH != "x86_64" {
        common::skip("debian-driver", "the packages are those of x86-64");
        return None;
    }
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/debian-driver");
    let output = match Command::new(&program).output() {
        Ok(output) => output,
        Err(error) => {
            common::skip("debian-driver", &format!("{}: {error}", program.display()));
            return None;
        }
    };
    let words = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        common::skip("debian-driver", words.lines().last().unwrap_or("tests/debian-driver failed without a word"));
        return None;
    }
    Some(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()))
}

/// The version that the name of the CUDA library ends in.
fn version(root: &Path) -> String {
    let names = std::fs::read_dir(root.join(library_directory()).join("nvidia/current")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.into_iter().find_map(|name| name.strip_prefix("libcuda.so.5").map(|rest| format!("5{rest}"))).unwrap()
}

#[test]
fn the_driver_is_found_through_the_alternatives() {
    let Some(directory) = debian_driver() else { return };
    let version = version(&directory);
    let driver = Driver::discover(&DriverRoot::new(&directory)).unwrap();
    assert_eq!(driver.version, version);
    let names: BTreeMap<&str, DriverCapability> = driver
        .libraries
        .iter()
        .filter_map(|library| Some((library.soname.as_deref()?, library.file.capability)))
        .collect();
    let expected = BTreeMap::from([
        ("libcuda.so.1", DriverCapability::Compute),
        ("libnvcuvid.so.1", DriverCapability::Video),
        ("libnvidia-allocator.so.1", DriverCapability::Compute),
        ("libnvidia-cfg.so.1", DriverCapability::Utility),
        ("libnvidia-encode.so.1", DriverCapability::Video),
        ("libnvidia-ml.so.1", DriverCapability::Utility),
        ("libnvidia-nvvm.so.4", DriverCapability::Compute),
        ("libnvidia-opencl.so.1", DriverCapability::Compute),
        ("libnvidia-ptxjitcompiler.so.1", DriverCapability::Compute),
    ]);
    assert_eq!(names, expected, "each once, by the name in the file itself");
    let current = directory.canonicalize().unwrap().join(library_directory()).join("nvidia/current");
    for library in &driver.libraries {
        assert_eq!(library.file.host_path.parent(), Some(current.as_path()), "{library:?}");
        assert!(library.file.host_path.to_str().unwrap().ends_with(&version) && !library.thirty_two_bit);
    }
    let programs: BTreeSet<&str> = driver.programs.iter().filter_map(|file| file.place.to_str()).collect();
    assert!(programs.iter().any(|name| name.ends_with("nvidia-smi")), "{programs:?}");
    assert!(programs.iter().any(|name| name.ends_with("nvidia-cuda-mps-control")), "{programs:?}");
}

#[test]
fn nvidia_s_own_library_says_that_there_is_no_kernel_module() {
    let Some(directory) = debian_driver() else { return };
    if Path::new("/proc/driver/nvidia/version").exists() {
        common::skip("debian-driver", "this host has the kernel module nvidia, of another version");
        return;
    }
    // As root, the library makes its device nodes by itself: in a /dev that ends with the process.
    let apart = "mount -t tmpfs none /dev && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "--", "sh", "-c", apart]);
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", "other_process", "--ignored", "--nocapture"]).env(DIRECTORY, &directory);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "it ran");
}

/// Where the other process finds the driver.
const DIRECTORY: &str = "GPUC_TEST_DRIVER";

#[test]
#[ignore = "the other process of a test"]
fn other_process() {
    let directory = std::env::var(DIRECTORY).unwrap();
    let inventory = Inventory::discover_with(&DriverRoot::new(&directory));
    let reason = inventory.unavailable().unwrap();
    assert!(reason.contains("its kernel module nvidia is not loaded"), "{reason}");
    let error = grant(&GpuRequest::count(1), &DriverRoot::new(&directory), &ImageFacts::default()).unwrap_err();
    assert!(error.to_string().contains("its kernel module nvidia is not loaded"), "{error}");
}

/// Debian's user space on the kernel side of the stand-in, which also takes the place of the management library.
fn host(directory: &Path) -> FakeDriver {
    let host = FakeDriver::new("l40s");
    let libraries = host.path().join(library_directory());
    let profile = std::fs::read(libraries.join("fake-nvml.json")).unwrap();
    std::fs::remove_dir_all(host.path().join("usr")).unwrap();
    let status = Command::new("cp").args(["-a", "--no-target-directory"]).arg(directory).arg(host.path()).status();
    assert!(status.unwrap().success());
    let version = version(directory);
    host.write("proc/driver/nvidia/version", format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  x\n"));
    let current = libraries.join("nvidia/current");
    let management = current.join(format!("libnvidia-ml.so.{version}"));
    std::fs::remove_file(&management).unwrap();
    std::fs::copy(driver::fake_nvml(), management).unwrap();
    std::fs::write(current.join("fake-nvml.json"), profile).unwrap();
    host
}

#[test]
fn nvidia_s_own_mps_daemon_lives_as_long_as_its_lease() {
    let Some(directory) = debian_driver() else { return };
    let tier = if common::is_root() { "root" } else { "rootless" };
    if !driver::available() || !common::tier(tier) {
        return;
    }
    let _leaks = common::Leaks::watch();
    let host = host(&directory);
    let table = tempfile::Builder::new().prefix("gpuc-mps.").tempdir_in("/dev/shm").unwrap();
    let allocator = GpuAllocator::at(table.path().join("gpu")).unwrap().driver_root(DriverRoot::new(host.path()));
    let allocator = allocator.respect_outer(false);
    let limits = Mps::new().active_threads(40).device_memory(2 << 30);
    let request = GpuRequest::count(2).foreign_processes(ForeignProcesses::Ignore).mps(limits);
    let lease = allocator.acquire(&request, Wait::none()).unwrap();
    let group = lease.mps().unwrap().unwrap();
    assert!(group.running, "{group:?}");
    let mut interface = Command::new(directory.join("usr/bin/nvidia-cuda-mps-control"));
    interface.env_clear().env("CUDA_MPS_PIPE_DIRECTORY", &group.pipe_directory).stdin(Stdio::piped());
    let mut interface = interface.stdout(Stdio::piped()).spawn().unwrap();
    let commands = "get_default_active_thread_percentage\nget_default_device_pinned_mem_limit 1\n";
    interface.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    let output = interface.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "40.0\n2G\n", "it has the limits");
    let log = std::fs::read_to_string(&group.log).unwrap();
    assert!(log.contains("Starting control daemon using socket"), "{log}");
    lease.release().unwrap();
    assert!(!Path::new(&format!("/proc/{}/exe", group.pid)).exists());
    assert_eq!(driver::slots(&allocator), [""; 0]);
}

fn sources(grant: &GpuGrant) -> BTreeMap<String, PathBuf> {
    let files = grant.mounts.iter().filter(|mount| mount.kind == MountKind::File);
    files.map(|mount| (mount.target.to_str().unwrap().to_owned(), mount.source.clone())).collect()
}

#[test]
fn a_container_is_granted_the_files_behind_the_links() {
    let Some(directory) = debian_driver() else { return };
    if !driver::available() || !common::tier("root") {
        return;
    }
    let host = host(&directory);
    let version = version(&directory);
    let root = host.path().canonicalize().unwrap();
    let debian = ImageFacts::detect(|path| path == Path::new("/etc/debian_version"));
    let granted = grant(&GpuRequest::count(2), &DriverRoot::new(host.path()), &debian).unwrap();
    assert_eq!(granted.gpus.len(), 2);
    let mounts = sources(&granted);
    for (target, source) in &mounts {
        assert!(source.starts_with(&root) && source.canonicalize().unwrap() == *source, "{target}: {source:?}");
    }
    let place = format!("/{}", library_directory());
    let cuda = mounts.get(&format!("{place}/libcuda.so.{version}")).expect("the CUDA library");
    assert!(cuda.metadata().unwrap().len() > 10_000_000, "the real one");
    let links: BTreeMap<&str, &str> =
        granted.links.iter().filter_map(|link| Some((link.link.to_str()?, link.target.to_str()?))).collect();
    let cuda_link = links.get(format!("{place}/libcuda.so.1").as_str());
    assert_eq!(cuda_link, Some(&format!("libcuda.so.{version}").as_str()), "{links:?}");
    assert!(mounts.contains_key("/usr/bin/nvidia-smi"), "{mounts:?}");
    assert!(!mounts.keys().any(|target| target.contains("nvcuvid")), "video was not asked for");
    let video = GpuRequest::count(1).capabilities([DriverCapability::Video]);
    let granted = grant(&video, &DriverRoot::new(host.path()), &debian).unwrap();
    assert!(sources(&granted).contains_key(&format!("{place}/libnvcuvid.so.{version}")));
}
