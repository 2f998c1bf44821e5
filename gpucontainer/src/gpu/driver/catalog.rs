//! What belongs to which part of NVIDIA's driver.
//!
//! # References
//! The names are those of the files in the driver's own package; see the list of installed components in
//! <https://download.nvidia.com/XFree86/Linux-x86_64/550.163.01/README/installedcomponents.html>.

use crate::gpu::driver::elf::{self, ReadAt};
use crate::gpu::request::DriverCapability;

use DriverCapability::{Compute, Display, Graphics, Ngx, Utility, Video};

/// Libraries whose file is named `<name>.so.<driver version>`, without the prefix `lib`.
const VERSIONED: &[(&str, DriverCapability)] = &[
    ("nvidia-ml", Utility),
    ("nvidia-cfg", Utility),
    ("nvidia-nscq", Utility),
    ("cuda", Compute),
    ("cudadebugger", Compute),
    ("nvidia-opencl", Compute),
    ("nvidia-gpucomp", Compute),
    ("nvidia-ptxjitcompiler", Compute),
    ("nvidia-fatbinaryloader", Compute),
    ("nvidia-allocator", Compute),
    ("nvidia-compiler", Compute),
    ("nvidia-pkcs11", Compute),
    ("nvidia-pkcs11-openssl3", Compute),
    ("nvidia-nvvm", Compute),
    ("nvidia-tileiras", Compute),
    ("vdpau_nvidia", Video),
    ("nvidia-encode", Video),
    ("nvidia-opticalflow", Video),
    ("nvcuvid", Video),
    ("nvidia-eglcore", Graphics),
    ("nvidia-glcore", Graphics),
    ("nvidia-tls", Graphics),
    ("nvidia-glsi", Graphics),
    ("nvidia-fbc", Graphics),
    ("nvidia-ifr", Graphics),
    ("nvidia-rtcore", Graphics),
    ("nvoptix", Graphics),
    ("GLX_nvidia", Graphics),
    ("EGL_nvidia", Graphics),
    ("GLESv2_nvidia", Graphics),
    ("GLESv1_CM_nvidia", Graphics),
    ("nvidia-glvkspirv", Graphics),
    ("nvidia-cbl", Graphics),
    ("nvidia-vulkan-producer", Graphics),
    ("nvidia-ngx", Ngx),
];

/// Libraries with versions of their own.
const OTHERWISE_VERSIONED: &[(&str, DriverCapability)] = &[
    ("nvidia-nvvm70", Compute),
    ("nvidia-egl-gbm", Graphics),
    ("nvidia-egl-wayland", Graphics),
    ("nvidia-egl-wayland2", Graphics),
    ("nvidia-egl-xcb", Graphics),
    ("nvidia-egl-xlib", Graphics),
];

/// Libraries that only the driver of Windows has.
const WINDOWS: &[(&str, DriverCapability)] = &[("nvwgf2umx", Graphics)];

/// The drawing libraries themselves, which come from a driver only where it has no use for GLVND's.
const WITHOUT_DISPATCH: &[&str] = &["GL", "EGL", "GLESv1_CM", "GLESv2"];

/// What those of a driver ask for, and nobody else's.
const OWN_CORES: &[&str] = &["libnvidia-glcore.so.", "libnvidia-eglcore.so."];

/// Of the two libraries for variables of threads that old drivers have, the right one says this in its note.
const THREADS_OF_KERNEL: [u32; 3] = [2, 3, 99];

/// Parts of the desktop: the settings program's windows, and modules of the X server; and GLVND, which images bring.
const NEVER: &[&str] = &[
    "nvidia-gtk2",
    "nvidia-gtk3",
    "nvidia-wfb",
    "nvidia-wayland-client",
    "glxserver_nvidia",
    "GLX",
    "OpenGL",
    "GLdispatch",
];

/// Programs, which go to `/usr/bin`.
pub(crate) const PROGRAMS: &[(&str, DriverCapability)] = &[
    ("nvidia-smi", Utility),
    ("nvidia-debugdump", Utility),
    ("nvidia-persistenced", Utility),
    ("nv-fabricmanager", Utility),
    ("nvidia-imex", Utility),
    ("nvidia-imex-ctl", Utility),
    ("nvidia-xconfig", Display),
    ("nvidia-cuda-mps-control", Compute),
    ("nvidia-cuda-mps-server", Compute),
];

/// Configuration: the directory in which a container has it, its path below that or another such directory of the
/// host, and what it is for.
pub(crate) const CONFIGURATION: &[(&str, &str, DriverCapability)] = &[
    ("/etc", "OpenCL/vendors/nvidia.icd", Compute),
    ("/usr/share", "glvnd/egl_vendor.d/10_nvidia.json", Graphics),
    ("/usr/share", "egl/egl_external_platform.d/15_nvidia_gbm.json", Graphics),
    ("/usr/share", "egl/egl_external_platform.d/10_nvidia_wayland.json", Graphics),
    ("/usr/share", "egl/egl_external_platform.d/09_nvidia_wayland2.json", Graphics),
    ("/usr/share", "egl/egl_external_platform.d/20_nvidia_xcb.json", Graphics),
    ("/usr/share", "egl/egl_external_platform.d/20_nvidia_xlib.json", Graphics),
    ("/etc", "vulkan/icd.d/nvidia_icd.json", Graphics),
    #[cfg(target_arch = "aarch64")]
    ("/etc", "vulkan/icd.d/nvidia_icd.aarch64.json", Graphics),
    #[cfg(not(target_arch = "aarch64"))]
    ("/etc", "vulkan/icd.d/nvidia_icd.x86_64.json", Graphics),
    ("/etc", "vulkan/icd.d/nvidia_layers.json", Graphics),
    ("/etc", "vulkan/implicit_layer.d/nvidia_layers.json", Graphics),
    ("/usr/share", "nvidia/nvoptix.bin", Graphics),
    ("/usr/share", "X11/xorg.conf.d/10-nvidia.conf", Display),
    ("/usr/share", "X11/xorg.conf.d/nvidia-drm-outputclass.conf", Display),
];

/// Where a host has configuration. The last is that of Google's nodes, whose driver root is a directory of the driver.
pub(crate) const CONFIGURATION_DIRECTORIES: &[&str] =
    &["/etc", "/usr/local/share", "/usr/share", "/run/opengl-driver/share", "/"];

/// Where X servers have their modules.
pub(crate) const X_SERVERS: &[&str] =
    &["/usr/lib/xorg/modules", "/usr/lib64/xorg/modules", "/usr/X11R6/lib/modules", "/usr/X11R6/lib64/modules"];

/// Links that programs expect and that no library asks for by its own name: the link, and what it says.
pub(crate) const LINKS: &[(&str, &str)] = &[
    ("libcuda.so", "libcuda.so.1"),
    ("libnvidia-opticalflow.so", "libnvidia-opticalflow.so.1"),
    ("gbm/nvidia-drm_gbm.so", "../libnvidia-allocator.so.1"),
];

/// The part of the driver that the library `file` of the driver `version` belongs to.
///
/// A library of the driver's own version that no table knows counts as `compute`: each new driver
/// splits libraries, and a container must not lose CUDA for it. Whether it is the right one of several of a name,
/// [`is_right`] says.
pub(crate) fn capability(file: &str, version: &str) -> Option<DriverCapability> {
    let (name, suffix) = file.strip_prefix("lib")?.split_once(".so.")?;
    if NEVER.contains(&name) {
        return None;
    }
    let find = |table: &[(&str, DriverCapability)]| {
        table.iter().find(|(known, _)| *known == name).map(|(_, capability)| *capability)
    };
    if suffix == version {
        let without_dispatch = WITHOUT_DISPATCH.contains(&name).then_some(Graphics);
        let own = ["nv", "cuda"].iter().any(|prefix| name.starts_with(prefix)).then_some(Compute);
        return find(VERSIONED).or_else(|| find(OTHERWISE_VERSIONED)).or(without_dispatch).or(own);
    }
    let numbers = suffix.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    if numbers { find(OTHERWISE_VERSIONED) } else { None }
}

/// The part of the driver that the file `name` of a driver of Windows belongs to: `compute` if no table knows.
pub(crate) fn of_windows(name: &str) -> DriverCapability {
    let stem = name.strip_prefix("lib").unwrap_or(name);
    let stem = stem.split_once(['.']).map_or(stem, |(stem, _)| stem);
    let stem = stem.strip_suffix("_loader").unwrap_or(stem);
    if stem.starts_with("nvngx") || stem.starts_with("nvidia-ngx") {
        return Ngx;
    }
    let tables = VERSIONED.iter().chain(OTHERWISE_VERSIONED).chain(WINDOWS);
    tables.into_iter().find(|(known, _)| *known == stem).map_or(Compute, |(_, capability)| *capability)
}

/// Whether the library `file`, which is read from `source`, is one that programs are to load.
pub(crate) fn is_right<R: ReadAt + ?Sized>(file: &str, source: &R) -> bool {
    let name = file.strip_prefix("lib").and_then(|rest| rest.split_once(".so.")).map(|(name, _)| name);
    match name {
        Some("nvidia-tls") => elf::kernel_of_note(source) == Some(THREADS_OF_KERNEL),
        Some(name) if WITHOUT_DISPATCH.contains(&name) => elf::needs_library(source, OWN_CORES),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_sorted_by_what_they_are_for() {
        let table = [
            ("libcuda.so.550.163.01", Some(Compute)),
            ("libnvidia-ml.so.550.163.01", Some(Utility)),
            ("libGLX_nvidia.so.550.163.01", Some(Graphics)),
            ("libnvidia-egl-wayland.so.1.1.13", Some(Graphics)),
            ("libnvidia-nvvm70.so.4", Some(Compute)),
            ("libnvidia-invented.so.550.163.01", Some(Compute)),
            ("libnvidia-gtk3.so.550.163.01", None),
            ("libnvcuextend.so.550.163.01", Some(Compute)),
            ("libGL.so.550.163.01", Some(Graphics)),
            ("libGLX.so.550.163.01", None),
            ("libOpenGL.so.550.163.01", None),
            ("libOpenCL.so.550.163.01", None),
            ("libcuda.so.1", None),
            ("libcuda.so.535.1.1", None),
            ("libcuda.so", None),
            ("cuda.so.550.163.01", None),
            ("libnvidia-nvvm70.so.4.bak", None),
        ];
        for (file, expected) in table {
            assert_eq!(capability(file, "550.163.01"), expected, "{file}");
        }
    }

    #[test]
    fn files_of_windows_are_sorted_too() {
        for (file, expected) in [
            ("libnvidia-ml_loader.so", Utility),
            ("libnvidia-encode.so.1", Video),
            ("libnvoptix_loader.so.1", Graphics),
            ("libnvwgf2umx.so", Graphics),
            ("nvngx_dlss.dll", Ngx),
            ("libnvrtum64.so", Compute),
            ("x.bin", Compute),
        ] {
            assert_eq!(of_windows(file), expected, "{file}");
        }
    }
}
