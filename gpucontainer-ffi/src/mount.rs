//! Mounts of a sandbox, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::boundary::{bad, path, text};
use crate::config::Config;
use gpucontainer::Result;
use gpucontainer::sandbox::{Mount, Propagation};
use std::ffi::c_char;

/// Flags of a mount, joined by |.
#[allow(non_camel_case_types, reason = "the names are those of C, so that one search finds both")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub enum gpuc_mount_t {
    /// Read-only, and with it everything mounted below it.
    GPUC_MOUNT_READ_ONLY = 1,
    /// Without what is mounted below the source.
    GPUC_MOUNT_NOT_RECURSIVE = 2,
    /// Files of it cannot be executed.
    GPUC_MOUNT_NO_EXECUTE = 4,
    /// Later mounts travel from the host into the sandbox.
    GPUC_MOUNT_SLAVE = 8,
    /// Later mounts travel both ways.
    GPUC_MOUNT_SHARED = 16,
}

fn flagged(mount: Mount, flags: u32) -> Result<Mount> {
    let has = |flag: gpuc_mount_t| flags & flag as u32 != 0;
    if flags > 31 {
        return Err(bad(format!("{flags} are no flags of a mount")));
    }
    let mut mount = mount.recursive(!has(gpuc_mount_t::GPUC_MOUNT_NOT_RECURSIVE));
    if has(gpuc_mount_t::GPUC_MOUNT_READ_ONLY) {
        mount = mount.read_only();
    }
    if has(gpuc_mount_t::GPUC_MOUNT_NO_EXECUTE) {
        mount = mount.no_execute();
    }
    if has(gpuc_mount_t::GPUC_MOUNT_SLAVE) {
        mount = mount.propagation(Propagation::Slave);
    }
    if has(gpuc_mount_t::GPUC_MOUNT_SHARED) {
        mount = mount.propagation(Propagation::Shared);
    }
    Ok(mount)
}

/// Shows a file or directory of the host at an absolute path inside.
///
/// @param flags  of gpuc_mount_t, or 0
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_bind(
    config: Option<&mut Config>,
    source: *const c_char,
    target: *const c_char,
    flags: u32,
) {
    Config::update(config, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let source = unsafe { path(source, "source") }?;
        // SAFETY: likewise.
        let target = unsafe { text(target, "target") }?;
        Ok(builder.mount(flagged(Mount::bind(source, target), flags)?))
    });
}

/// Shows a directory of the image store that outlives sandboxes, made when first named.
///
/// @param flags  of gpuc_mount_t, or 0
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_volume(
    config: Option<&mut Config>,
    name: *const c_char,
    target: *const c_char,
    flags: u32,
) {
    Config::update(config, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let name = unsafe { text(name, "name") }?;
        // SAFETY: likewise.
        let target = unsafe { text(target, "target") }?;
        Ok(builder.mount(flagged(Mount::volume(name, target), flags)?))
    });
}

/// Makes an empty file system in memory, which counts as the sandbox's memory.
///
/// @param bytes  how much it may hold; 0 is the kernel's own limit
/// @param flags  of gpuc_mount_t, or 0
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_tmpfs(config: Option<&mut Config>, target: *const c_char, bytes: u64, flags: u32) {
    Config::update(config, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let mount = Mount::tmpfs(unsafe { text(target, "target") }?);
        Ok(builder.mount(flagged(if bytes == 0 { mount } else { mount.size(bytes) }, flags)?))
    });
}
