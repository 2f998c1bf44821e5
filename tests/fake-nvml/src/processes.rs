//! Which processes use a device.

use crate::abi::{
    self, Handle, INSUFFICIENT_SIZE, INVALID_ARGUMENT, Return, SUCCESS, Target, count, get, place, put, put_list,
};
use crate::profile::Process;

use std::ffi::{c_uint, c_ulonglong};

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct ProcessInfo {
    pid: c_uint,
    used_memory: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// What the interface says for a process on a whole GPU.
const NO_INSTANCE: c_uint = c_uint::MAX;

fn list(
    target: Target<'_>,
    processes: &[Process],
    lie: Option<u32>,
    number: *mut c_uint,
    infos: *mut ProcessInfo,
) -> Return {
    let Some(room) = get(number) else { return INVALID_ARGUMENT };
    let infos_of = processes.iter().map(|process| ProcessInfo {
        pid: process.pid,
        used_memory: process.memory,
        gpu_instance: target.slice.map_or(NO_INSTANCE, |slice| slice.gpu_instance),
        compute_instance: target.slice.map_or(NO_INSTANCE, |slice| slice.compute_instance),
    });
    let list: Vec<ProcessInfo> = infos_of.collect();
    let known = lie.unwrap_or_else(|| count(list.len()));
    match put(number, known) {
        SUCCESS if known == 0 => SUCCESS,
        SUCCESS if known > room => INSUFFICIENT_SIZE,
        SUCCESS => put_list(infos, place(room), &list),
        code => code,
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: Handle,
    number: *mut c_uint,
    infos: *mut ProcessInfo,
) -> Return {
    abi::device("nvmlDeviceGetComputeRunningProcesses_v3", device, |target| {
        let processes = target.slice.map_or(&target.gpu.compute_processes, |slice| &slice.compute_processes);
        list(target, processes, target.gpu.process_count, number, infos)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: Handle,
    number: *mut c_uint,
    infos: *mut ProcessInfo,
) -> Return {
    abi::device("nvmlDeviceGetGraphicsRunningProcesses_v3", device, |target| {
        let processes: &[Process] = if target.slice.is_some() { &[] } else { &target.gpu.graphics_processes };
        list(target, processes, None, number, infos)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMPSComputeRunningProcesses_v3(
    device: Handle,
    number: *mut c_uint,
    infos: *mut ProcessInfo,
) -> Return {
    abi::device("nvmlDeviceGetMPSComputeRunningProcesses_v3", device, |target| {
        let processes: &[Process] = if target.slice.is_some() { &[] } else { &target.gpu.mps_processes };
        list(target, processes, None, number, infos)
    })
}
