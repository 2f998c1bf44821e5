//! The driver of Windows as WSL shows it: files below `/usr/lib/wsl`, without a version in their names.
//!
//! ```text
//! /usr/lib/wsl/lib/libdxcore.so              how everything talks to Windows
//! /usr/lib/wsl/drivers/<driver>/             a driver store: NVIDIA's is the one with libcuda.so.1.1
//! ```
//!
//! The libraries find each other by these paths, so a container has them at the same.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::driver::elf::{self, Machine};
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::driver::{Driver, DriverFile, DriverLibrary, catalog, is_file, is_program};
use crate::gpu::request::DriverCapability;

use DriverCapability::{Compute, Utility};
use std::path::{Path, PathBuf};

/// Where the libraries are that are nobody's in particular, and copies of some of the driver's.
pub(crate) const LIBRARIES: &str = "/usr/lib/wsl/lib";
/// The directory of driver stores.
const STORES: &str = "/usr/lib/wsl/drivers";
/// The file by which NVIDIA's driver store is known.
const CUDA: &str = "libcuda.so.1.1";
/// The library through which everything else talks to Windows.
pub(crate) const CORE: &str = "libdxcore.so";

/// More files than any driver store has.
const MAX_FILES: usize = 4096;

/// The files that a driver store of today has, and what they are for.
pub(crate) const REQUIRED: &[(&str, DriverCapability)] = &[
    (CUDA, Compute),
    ("libcuda_loader.so", Compute),
    ("libnvidia-ptxjitcompiler.so.1", Compute),
    ("libnvdxgdmal.so.1", Compute),
    ("nvcubins.bin", Compute),
    ("libnvidia-ml.so.1", Utility),
    ("libnvidia-ml_loader.so", Utility),
    ("nvidia-smi", Utility),
];

/// The directories of driver stores of NVIDIA's, as the container will see them.
fn stores(root: &DriverRoot) -> Vec<PathBuf> {
    let all = root.names(Path::new(STORES)).into_iter().map(|name| Path::new(STORES).join(name));
    let stores: Vec<PathBuf> = all.filter(|store| root.resolve(&store.join(CUDA)).is_ok()).collect();
    if stores.is_empty() && root.resolve(&Path::new(LIBRARIES).join(CUDA)).is_ok() {
        return vec![LIBRARIES.into()];
    }
    stores
}

/// Whether there is a driver of NVIDIA's.
pub(crate) fn is_installed(root: &DriverRoot) -> bool {
    !stores(root).is_empty()
}

/// Finds the driver. All places are absolute, and the version is empty: the files do not say it.
pub(crate) fn discover(root: &DriverRoot) -> Result<Driver> {
    let unavailable = |why: String| Error::new(ErrorKind::GpuUnavailable, why);
    let stores = stores(root);
    if stores.is_empty() {
        let why = format!("this is WSL, and no driver store ({STORES}/*/{CUDA}) is in {}", root.path().display());
        return Err(unavailable(format!("{why}: the driver for Windows is not installed, or too old")));
    }
    let mut driver = Driver {
        version: String::new(),
        libraries: Vec::new(),
        programs: Vec::new(),
        data: Vec::new(),
        modules: Vec::new(),
        sockets: Vec::new(),
        multi_process_service: None,
    };
    let core = Path::new(LIBRARIES).join(CORE);
    add(root, &core, Compute, &mut driver);
    if driver.libraries.is_empty() {
        return Err(unavailable(format!("this is WSL, and {} is missing or cannot be used", core.display())));
    }
    for store in &stores {
        for name in root.names(store).into_iter().take(MAX_FILES) {
            let wanted = [".bin", ".dll"].iter().any(|end| name.ends_with(end)) || is_library(&name);
            if let Some(capability) = capability(&name).filter(|_| wanted || REQUIRED.iter().any(|one| one.0 == name)) {
                add(root, &store.join(&name), capability, &mut driver);
            }
        }
    }
    for (name, capability) in REQUIRED {
        if !has(&driver, name) {
            add(root, &Path::new(LIBRARIES).join(name), *capability, &mut driver);
        }
    }
    Ok(driver)
}

/// Whether the driver has a file of this name.
pub(crate) fn has(driver: &Driver, name: &str) -> bool {
    let libraries = driver.libraries.iter().map(|library| &library.file);
    libraries.chain(&driver.programs).chain(&driver.data).any(|file| file.place.ends_with(name))
}

fn is_library(name: &str) -> bool {
    name.ends_with(".so") || name.contains(".so.")
}

/// What a file is for; `None` if no path may have such a name.
fn capability(name: &str) -> Option<DriverCapability> {
    let required = REQUIRED.iter().find(|(known, _)| *known == name).map(|(_, capability)| *capability);
    elf::is_file_name(name).then(|| required.unwrap_or_else(|| catalog::of_windows(name)))
}

fn add(root: &DriverRoot, place: &Path, capability: DriverCapability, driver: &mut Driver) {
    let Ok(host_path) = root.resolve(place) else { return };
    let name = place.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !is_file(&host_path) || place.ends_with(CORE) && has(driver, CORE) {
        return;
    }
    let file = DriverFile { host_path, place: place.to_owned(), capability };
    if !is_library(name) {
        let program = !name.ends_with(".bin");
        if !program {
            driver.data.push(file);
        } else if name.ends_with(".dll") || is_program(&file.host_path) {
            driver.programs.push(file);
        }
        return;
    }
    match crate::sys::fs::open(&file.host_path).map(|opened| elf::read(&opened)) {
        Ok(Ok(object)) if object.machine == Machine::Native => {
            let soname = object.soname.filter(|soname| soname != name);
            let (thirty_two_bit, needs, plain_name) = (false, object.needs, None);
            driver.libraries.push(DriverLibrary { file, soname, thirty_two_bit, needs, plain_name });
        }
        Ok(Ok(_)) => {}
        Ok(Err(why)) => tracing::debug!(library = %file.host_path.display(), why, "driver library left out"),
        Err(error) => tracing::debug!(library = %file.host_path.display(), %error, "driver library left out"),
    }
}
