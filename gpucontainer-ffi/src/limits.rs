//! Limits of processes, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::boundary::{Fault, catch, text};
use gpucontainer::Result;
use gpucontainer::cgroup::{self, IoLimit};
use std::ffi::c_char;

/// What processes in a sandbox may use at most.
#[derive(Debug, Default)]
pub struct Limits {
    pub(crate) limits: cgroup::Limits,
    pub(crate) fault: Fault,
}

impl Limits {
    fn update(this: Option<&mut Self>, change: impl FnOnce(cgroup::Limits) -> Result<cgroup::Limits>) {
        let Some(this) = this else { return };
        let changed = catch(|| change(this.limits.clone()));
        if let Some(changed) = this.fault.keep(changed) {
            this.limits = changed;
        }
    }
}

/// Makes no limits.
///
/// @return the caller's, freed with gpuc_limits_free
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_limits_new() -> Option<Box<Limits>> {
    Some(Box::default())
}

/// Caps memory, page cache included; swap is not counted.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_limits_set_memory_max(limits: Option<&mut Limits>, bytes: u64) {
    Limits::update(limits, |limits| Ok(limits.memory_max(bytes)));
}

/// Caps swap.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_limits_set_memory_swap_max(limits: Option<&mut Limits>, bytes: u64) {
    Limits::update(limits, |limits| Ok(limits.memory_swap_max(bytes)));
}

/// Slows processes down that use more memory than this.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_limits_set_memory_high(limits: Option<&mut Limits>, bytes: u64) {
    Limits::update(limits, |limits| Ok(limits.memory_high(bytes)));
}

/// Protects so much memory from being reclaimed.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_limits_set_memory_low(limits: Option<&mut Limits>, bytes: u64) {
    Limits::update(limits, |limits| Ok(limits.memory_low(bytes)));
}

/// Caps processor time at that of so many cores, for example 1.5.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_limits_set_cpus(limits: Option<&mut Limits>, cores: f64) {
    Limits::update(limits, |limits| Ok(limits.cpus(cores)));
}

/// Sets the share of processor time when it is short, 1 to 10,000; 100 is normal.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_limits_set_cpu_weight(limits: Option<&mut Limits>, weight: u64) {
    Limits::update(limits, |limits| Ok(limits.cpu_weight(weight)));
}

/// Sets the processors that may be used, as in "0-3,8".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_limits_set_cpuset_cpus(limits: Option<&mut Limits>, list: *const c_char) {
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    Limits::update(limits, |limits| Ok(limits.cpuset_cpus(unsafe { text(list, "list") }?)));
}

/// Sets the memory nodes that may be used, as in "0-1".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_limits_set_cpuset_mems(limits: Option<&mut Limits>, list: *const c_char) {
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    Limits::update(limits, |limits| Ok(limits.cpuset_mems(unsafe { text(list, "list") }?)));
}

/// Caps the number of processes and threads.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_limits_set_pids_max(limits: Option<&mut Limits>, count: u64) {
    Limits::update(limits, |limits| Ok(limits.pids_max(count)));
}

/// Sets the share of block devices when they are busy, 1 to 10,000; 100 is normal.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_limits_set_io_weight(limits: Option<&mut Limits>, weight: u64) {
    Limits::update(limits, |limits| Ok(limits.io_weight(weight)));
}

/// Caps huge pages of one size, both in bytes.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_limits_set_hugetlb(limits: Option<&mut Limits>, page_size: u64, bytes: u64) {
    Limits::update(limits, |limits| Ok(limits.hugetlb(page_size, bytes)));
}

/// Caps the use of a block device, a whole disk, each a second; 0 caps nothing. May be called once for each device.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_limits_io(
    limits: Option<&mut Limits>,
    major: u32,
    minor: u32,
    read_bytes: u64,
    write_bytes: u64,
    read_operations: u64,
    write_operations: u64,
) {
    Limits::update(limits, |limits| {
        let mut limit = IoLimit::new(major, minor);
        if read_bytes > 0 {
            limit = limit.read_bytes(read_bytes);
        }
        if write_bytes > 0 {
            limit = limit.write_bytes(write_bytes);
        }
        if read_operations > 0 {
            limit = limit.read_operations(read_operations);
        }
        if write_operations > 0 {
            limit = limit.write_operations(write_operations);
        }
        Ok(limits.io(limit))
    });
}

/// Writes a value into a control file of this host's version of control groups, as it stands, as in
/// "memory.oom.group" and "1".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_limits_raw(limits: Option<&mut Limits>, file: *const c_char, value: *const c_char) {
    Limits::update(limits, |limits| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let file = unsafe { text(file, "file") }?;
        // SAFETY: likewise.
        let value = unsafe { text(value, "value") }?;
        Ok(limits.raw(file, value))
    });
}

/// Frees limits.
///
/// @param limits  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_limits_free(limits: Option<Box<Limits>>) {
    drop(limits);
}
