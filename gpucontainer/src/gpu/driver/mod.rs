//! The user space of an installed NVIDIA driver: its version, and the files that programs need of it.

pub(crate) mod catalog;
pub(crate) mod elf;
pub(crate) mod loader_cache;
pub(crate) mod platform;
pub(crate) mod root;
pub(crate) mod tegra;
pub(crate) mod trail;
pub(crate) mod wsl;

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::driver::elf::{CLibrary, Machine};
use crate::gpu::driver::platform::Platform;
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::request::DriverCapability;

use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Directories of native libraries, best first: distributions, NVIDIA's installer, Google's nodes, NixOS.
pub(crate) const LIBRARY_DIRECTORIES: &[&str] = &[
    #[cfg(target_arch = "aarch64")]
    "/usr/lib/aarch64-linux-gnu",
    #[cfg(not(target_arch = "aarch64"))]
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    #[cfg(target_arch = "aarch64")]
    "/usr/lib/aarch64-linux-gnu/nvidia/current",
    #[cfg(not(target_arch = "aarch64"))]
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/local/nvidia/lib64",
    "/home/kubernetes/bin/nvidia/lib64",
    "/run/opengl-driver/lib",
    // On systems that keep them apart from those below /usr.
    #[cfg(target_arch = "aarch64")]
    "/lib/aarch64-linux-gnu",
    #[cfg(not(target_arch = "aarch64"))]
    "/lib/x86_64-linux-gnu",
    "/lib64",
    "/lib",
];

/// Directories of 32-bit libraries, in the same order.
const LIBRARY_DIRECTORIES_32: &[&str] = &[
    #[cfg(target_arch = "aarch64")]
    "/usr/lib/arm-linux-gnueabihf",
    #[cfg(not(target_arch = "aarch64"))]
    "/usr/lib/i386-linux-gnu",
    "/usr/lib32",
    "/usr/lib",
    #[cfg(target_arch = "aarch64")]
    "/usr/lib/arm-linux-gnueabihf/nvidia/current",
    #[cfg(not(target_arch = "aarch64"))]
    "/usr/lib/i386-linux-gnu/nvidia/current",
    "/usr/local/nvidia/lib",
    "/run/opengl-driver-32/lib",
    "/lib32",
    "/lib",
];

const PROGRAM_DIRECTORIES: &[&str] = &[
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/local/nvidia/bin",
    "/home/kubernetes/bin/nvidia/bin",
    "/run/opengl-driver/bin",
    "/bin",
];

/// The variable that says where shared data is.
const DATA_VARIABLE: &str = "XDG_DATA_DIRS";
/// The variable that says where the pipes of the Multi-Process Service are.
const PIPES_VARIABLE: &str = "CUDA_MPS_PIPE_DIRECTORY";

/// A file of the driver.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DriverFile {
    /// The file on the host, without links.
    pub host_path: PathBuf,
    /// Its place in a container; for a library, its place below the directory of libraries, or an absolute one.
    pub place: PathBuf,
    /// What it is for.
    pub capability: DriverCapability,
}

/// A library of the driver.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DriverLibrary {
    /// The file.
    pub file: DriverFile,
    /// The name that programs ask for; `None` if it is the file's own.
    pub soname: Option<String>,
    /// Whether it is for 32-bit programs.
    pub thirty_two_bit: bool,
    /// The oldest glibc that it works with, if it uses any.
    pub(crate) needs: Option<CLibrary>,
    /// The name without a version, if the host has it by that too.
    pub(crate) plain_name: Option<String>,
}

/// The user space of an installed NVIDIA driver.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Driver {
    /// The version, as in `550.163.01`; empty under WSL, where the files do not say.
    pub version: String,
    /// The libraries, by name.
    pub libraries: Vec<DriverLibrary>,
    /// The programs.
    pub programs: Vec<DriverFile>,
    /// Configuration files, and the firmware.
    pub data: Vec<DriverFile>,
    /// Modules of the X server, at their places on the host.
    pub modules: Vec<DriverFile>,
    /// Sockets of the driver's services.
    pub sockets: Vec<DriverFile>,
    /// The directory of pipes of a running Multi-Process Service.
    pub multi_process_service: Option<PathBuf>,
}

impl Driver {
    /// Finds the driver in `root`; under WSL, that of Windows.
    ///
    /// # Errors
    /// [`ErrorKind::GpuUnavailable`] if there is none, or none that fits the loaded kernel module.
    pub fn discover(root: &DriverRoot) -> Result<Self> {
        trail::known(root).map(|driver| Self::clone(&driver))
    }

    fn look(root: &DriverRoot) -> Result<Self> {
        if Platform::of(root) == Platform::Wsl {
            return wsl::discover(root);
        }
        let directories = library_directories(root, LIBRARY_DIRECTORIES);
        let version = version(root, &directories)?;
        let narrow = library_directories(root, LIBRARY_DIRECTORIES_32);
        let (mut libraries, mut own) = (Vec::new(), Vec::new());
        for (directories, machine) in [(directories, Machine::Native), (narrow, Machine::Narrow)] {
            for directory in directories {
                let before = libraries.len();
                for below in ["", "vdpau"] {
                    add_libraries(root, &directory.join(below), Path::new(below), &version, machine, &mut libraries);
                }
                if libraries.len() > before && machine == Machine::Native {
                    own.push(directory);
                }
            }
        }
        libraries.sort_by(|a, b| (a.thirty_two_bit, &a.file.place).cmp(&(b.thirty_two_bit, &b.file.place)));
        Ok(Self {
            libraries,
            modules: modules(root, &version, &own),
            programs: programs(root),
            data: configuration(root).into_iter().chain(firmware(root, &version)).collect(),
            sockets: sockets(root),
            multi_process_service: multi_process_service(root),
            version,
        })
    }
}

/// Whether `text` is a version of a driver, as in `550.163.01`; it becomes part of file names.
pub(crate) fn is_version(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    let digits = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    (2..=4).contains(&parts.len()) && text.len() <= 32 && parts.iter().all(digits)
}

/// The version of the loaded kernel module, if one is loaded.
pub(crate) fn kernel_version(root: &DriverRoot) -> Option<String> {
    let text = root.text("/proc/driver/nvidia/version")?;
    let line = text.lines().find(|line| line.starts_with("NVRM"))?;
    line.split_whitespace().find(|word| is_version(word)).map(str::to_owned)
}

/// The directories in which the loader of the host found a driver.
pub(crate) fn cached_directories(root: &DriverRoot) -> Vec<PathBuf> {
    let Ok(path) = root.resolve(Path::new("/etc/ld.so.cache")) else { return Vec::new() };
    let Ok(cache) = crate::sys::fs::read_small(&path) else { return Vec::new() };
    loader_cache::directories(&cache, |name| name.starts_with("libcuda.so.") || name.starts_with("libnvidia-ml.so."))
}

/// Every directory with libraries of a driver, the `usual` ones first, each once however it is linked.
fn library_directories(root: &DriverRoot, usual: &[&str]) -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    let all = usual.iter().map(PathBuf::from).chain(cached_directories(root));
    all.filter(|directory| root.resolve(directory).is_ok_and(|path| seen.insert(path))).collect()
}

/// The versions of the installed libraries: several if a driver was not removed cleanly.
fn installed_versions(root: &DriverRoot, directories: &[PathBuf]) -> Vec<String> {
    let mut versions = Vec::new();
    for prefix in ["libcuda.so.", "libnvidia-ml.so."] {
        for directory in directories {
            for name in root.names(directory) {
                match name.strip_prefix(prefix) {
                    Some(version) if is_version(version) && !versions.iter().any(|known| known == version) => {
                        versions.push(version.to_owned());
                    }
                    _ => {}
                }
            }
        }
        if !versions.is_empty() {
            break;
        }
    }
    versions
}

fn version(root: &DriverRoot, directories: &[PathBuf]) -> Result<String> {
    let installed = installed_versions(root, directories);
    let unavailable = |why: String| Err(Error::new(ErrorKind::GpuUnavailable, why));
    match (kernel_version(root), installed.as_slice()) {
        (_, []) => unavailable(format!(
            "no driver library (libcuda.so.VERSION or libnvidia-ml.so.VERSION) is in {}",
            root.path().display()
        )),
        (Some(kernel), installed) if installed.contains(&kernel) => Ok(kernel),
        (Some(kernel), installed) => unavailable(format!(
            "the loaded kernel module is version {kernel}, but the installed libraries are version {}: \
             the driver was updated, and the module not yet reloaded",
            installed.join(" and ")
        )),
        (None, [only]) => Ok(only.clone()),
        (None, installed) => unavailable(format!(
            "driver versions {} are installed side by side, and no loaded kernel module says which one is in use",
            installed.join(" and ")
        )),
    }
}

fn add_libraries(
    root: &DriverRoot,
    directory: &Path,
    below: &Path,
    version: &str,
    machine: Machine,
    libraries: &mut Vec<DriverLibrary>,
) {
    let names = root.names(directory);
    for name in &names {
        let Some(capability) = catalog::capability(name, version) else { continue };
        let Ok(host_path) = root.resolve(&directory.join(name)) else { continue };
        // A link, as `libnvidia-nvvm70.so.4`, is made anew in the container, from the name in its file.
        let Some(own) = host_path.file_name().and_then(|own| own.to_str()).filter(|own| elf::is_file_name(own)) else {
            continue;
        };
        let thirty_two_bit = machine == Machine::Narrow;
        let place = below.join(own);
        if libraries.iter().any(|known| known.file.place == place && known.thirty_two_bit == thirty_two_bit) {
            continue;
        }
        if !is_file(&host_path) {
            continue;
        }
        let read =
            |file| elf::read(&file).map(|object| (object.machine == machine && catalog::is_right(own, &file), object));
        let object = match crate::sys::fs::open(&host_path).map(read) {
            Ok(Ok((true, object))) => object,
            Ok(Ok(_)) => continue,
            Ok(Err(why)) => {
                tracing::debug!(library = %host_path.display(), why, "driver library left out");
                continue;
            }
            Err(error) => {
                tracing::debug!(library = %host_path.display(), %error, "driver library left out");
                continue;
            }
        };
        let soname = object.soname.filter(|soname| soname != own);
        let plain_name = own.find(".so.").map(|end| own[..end + 3].to_owned());
        let plain_name = plain_name.filter(|plain| {
            let there = names.binary_search(plain).is_ok();
            there && root.resolve(&directory.join(plain)).is_ok_and(|to| to == host_path)
        });
        let file = DriverFile { host_path, place, capability };
        libraries.push(DriverLibrary { file, soname, thirty_two_bit, needs: object.needs, plain_name });
    }
}

fn programs(root: &DriverRoot) -> Vec<DriverFile> {
    let find = |(name, capability): &(&str, DriverCapability)| {
        let paths = PROGRAM_DIRECTORIES.iter().map(|directory| Path::new(directory).join(name));
        let host_path = paths.filter_map(|path| root.resolve(&path).ok()).find(|path| is_program(path))?;
        Some(DriverFile { host_path, place: Path::new("/usr/bin").join(name), capability: *capability })
    };
    catalog::PROGRAMS.iter().filter_map(find).collect()
}

/// The X server's modules: its driver, and its part of OpenGL.
fn modules(root: &DriverRoot, version: &str, libraries: &[PathBuf]) -> Vec<DriverFile> {
    let own = libraries.iter().flat_map(|directory| [directory.join("nvidia/xorg"), directory.join("xorg/modules")]);
    let usual = catalog::X_SERVERS.iter().map(PathBuf::from);
    let below = |directory: PathBuf| {
        ["", "drivers", "extensions", "updates/drivers", "updates/extensions"].map(|below| directory.join(below))
    };
    let mut found: Vec<DriverFile> = Vec::new();
    for directory in own.chain(usual).filter(|directory| root.resolve(directory).is_ok()).flat_map(below) {
        for name in ["nvidia_drv.so".to_owned(), format!("libglxserver_nvidia.so.{version}")] {
            let place = directory.join(name);
            let Ok(host_path) = root.resolve(&place) else { continue };
            if is_file(&host_path) && !found.iter().any(|known| known.host_path == host_path) {
                found.push(DriverFile { host_path, place, capability: DriverCapability::Display });
            }
        }
    }
    found
}

/// A program of the driver, by its name.
pub(crate) fn program(root: &DriverRoot, name: &str) -> Option<DriverFile> {
    programs(root).into_iter().find(|file| file.place.ends_with(name))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    crate::sys::fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

fn is_file(path: &Path) -> bool {
    crate::sys::fs::metadata(path).is_ok_and(|data| data.is_file())
}

fn configuration(root: &DriverRoot) -> Vec<DriverFile> {
    let directories = configuration_directories(root);
    let there: Vec<PathBuf> = directories.iter().filter_map(|place| root.resolve(place).ok()).collect();
    let find = |(place, below, capability): &(&str, &str, DriverCapability)| {
        // Most are not there at all, which is seen at once.
        let probable = there.iter().any(|directory| crate::sys::fs::symlink_metadata(&directory.join(below)).is_ok());
        let places = directories.iter().map(|place| place.join(below));
        if !probable {
            directories.iter().for_each(|place| root.passed(&place.join(below)));
        }
        let mut found = places.take(if probable { usize::MAX } else { 0 }).filter_map(|path| root.resolve(&path).ok());
        let host_path = found.find(|path| is_file(path))?;
        Some(DriverFile { host_path, place: Path::new(place).join(below), capability: *capability })
    };
    catalog::CONFIGURATION.iter().filter_map(find).collect()
}

/// Where the host has configuration: what its environment says stands for the usual directories of shared data.
fn configuration_directories(root: &DriverRoot) -> Vec<PathBuf> {
    let data = std::env::var_os(DATA_VARIABLE).filter(|list| !list.is_empty() && root.is_host());
    let data: Vec<PathBuf> = data.iter().flat_map(std::env::split_paths).filter(|path| path.is_absolute()).collect();
    let usual = catalog::CONFIGURATION_DIRECTORIES.iter().map(PathBuf::from);
    // After the directory of configuration itself.
    let (first, rest): (Vec<PathBuf>, Vec<PathBuf>) = usual.partition(|path| path == Path::new("/etc"));
    [first, data, rest].concat()
}

/// The firmware of the GPUs' own processors, which the management library reads the version of.
fn firmware(root: &DriverRoot, version: &str) -> Vec<DriverFile> {
    let configured = root.text("/sys/module/firmware_class/parameters/path").map(|path| path.trim().to_owned());
    let configured = configured.filter(|path| path.starts_with('/'));
    let release = root.text("/proc/sys/kernel/osrelease").unwrap_or_default();
    let plain = |release: &&str| !release.is_empty() && !release.contains('/');
    let release = Some(release.trim()).filter(plain);
    let with_release =
        |base: &str| release.map(|release| format!("{base}/{release}")).into_iter().chain([base.to_owned()]);
    let usual = ["/lib/firmware/updates", "/lib/firmware"].into_iter().flat_map(with_release);
    let bases = configured.into_iter().chain(usual);
    for base in bases {
        let directory = Path::new(&base).join("nvidia").join(version);
        let names = root.names(&directory).into_iter().filter(|name| name.starts_with("gsp") && name.ends_with(".bin"));
        let files: Vec<DriverFile> = names
            .filter_map(|name| {
                let host_path = root.resolve(&directory.join(&name)).ok().filter(|path| is_file(path))?;
                let place = Path::new("/lib/firmware/nvidia").join(version).join(name);
                Some(DriverFile { host_path, place, capability: DriverCapability::Utility })
            })
            .collect();
        if !files.is_empty() {
            return files;
        }
    }
    Vec::new()
}

fn sockets(root: &DriverRoot) -> Vec<DriverFile> {
    use std::os::unix::fs::FileTypeExt;
    let places = ["/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket"];
    let found = places.iter().filter_map(|place| {
        let host_path = root.resolve(Path::new(place)).or_else(|_| root.resolve(&Path::new("/var").join(&place[1..])));
        let host_path = host_path.ok()?;
        let socket = crate::sys::fs::metadata(&host_path).is_ok_and(|data| data.file_type().is_socket());
        socket.then(|| DriverFile { host_path, place: place.into(), capability: DriverCapability::Utility })
    });
    found.collect()
}

fn multi_process_service(root: &DriverRoot) -> Option<PathBuf> {
    let configured = std::env::var_os(PIPES_VARIABLE).filter(|path| !path.is_empty() && root.is_host());
    let directory = configured.map_or_else(|| PathBuf::from("/tmp/nvidia-mps"), PathBuf::from);
    // The pipe is there while the daemon runs.
    root.resolve(&directory.join("control")).ok()?;
    root.resolve(&directory).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, DriverRoot) {
        let directory = tempfile::tempdir().unwrap();
        for (path, contents) in files {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, contents).unwrap();
        }
        let root = DriverRoot::new(directory.path());
        (directory, root)
    }

    const NVRM: &str = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue Apr  8 12:41:17 UTC 2025\n\
                        GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n";

    #[test]
    fn versions_have_a_form() {
        for good in ["550.163.01", "535.54", "460.32.03", "1.2.3.4"] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["1", "", "550.", ".5", "550.163.01.2.3", "550.x", "../5.4", "-5.4"] {
            assert!(!is_version(bad), "{bad}");
        }
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n";
        let (_directory, root) = root(&[("proc/driver/nvidia/version", open)]);
        assert_eq!(kernel_version(&root).as_deref(), Some("570.86.15"));
    }

    #[test]
    fn the_kernel_decides_between_versions() {
        let (old, new) = ("usr/lib64/libcuda.so.535.54.03", "usr/lib64/libcuda.so.550.163.01");
        let kernel = ("proc/driver/nvidia/version", NVRM);
        type Files<'a> = &'a [(&'a str, &'a str)];
        let table: [(Files<'_>, Result<&str, &str>); 6] = [
            (&[], Err("no driver library")),
            (&[kernel], Err("no driver library")),
            (&[(old, "")], Ok("535.54.03")),
            (&[(old, ""), (new, "")], Err("535.54.03 and 550.163.01 are installed side by side")),
            (&[(old, ""), (new, ""), kernel], Ok("550.163.01")),
            (&[(old, ""), kernel], Err("kernel module is version 550.163.01, but the installed")),
        ];
        for (files, expected) in table {
            let (_directory, root) = root(files);
            match (Driver::discover(&root), expected) {
                (Ok(driver), Ok(version)) => assert_eq!(driver.version, version),
                (Err(error), Err(words)) => {
                    assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
                    assert!(error.to_string().contains(words), "{error}");
                }
                (found, expected) => panic!("{files:?}: {found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_library_is_left_out() {
        let (_directory, root) = root(&[("usr/lib64/libcuda.so.550.163.01", "#!/bin/sh"), ("usr/bin/nvidia-smi", "")]);
        let driver = Driver::discover(&root).unwrap();
        assert!(driver.libraries.is_empty(), "{driver:?}");
        assert!(driver.programs.is_empty(), "a program must be executable: {driver:?}");
    }
}
