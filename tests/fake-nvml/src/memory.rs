//! How much memory there is.

use crate::abi::{self, Handle, INVALID_ARGUMENT, Return, Target, VERSION_MISMATCH, get, put};
use crate::profile::Memory;

use std::ffi::{c_uint, c_ulonglong};

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct MemoryInfo {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct MemoryInfo2 {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// The size of the structure, with the version in the highest byte.
const VERSION_2: c_uint = 40 | 2 << 24;

fn memory(target: Target<'_>) -> (Memory, u64) {
    let memory = target.slice.map_or(target.gpu.memory, |slice| slice.memory);
    let rest = memory.total.saturating_sub(memory.reserved).saturating_sub(memory.used);
    (memory, memory.free.unwrap_or(rest))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo(device: Handle, info: *mut MemoryInfo) -> Return {
    abi::device("nvmlDeviceGetMemoryInfo", device, |target| {
        let (memory, free) = memory(target);
        // The first form of this call counts what is reserved as used.
        put(info, MemoryInfo { total: memory.total, free, used: memory.total.saturating_sub(free) })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: Handle, info: *mut MemoryInfo2) -> Return {
    abi::device("nvmlDeviceGetMemoryInfo_v2", device, |target| {
        let (memory, free) = memory(target);
        match get(info) {
            None => INVALID_ARGUMENT,
            Some(MemoryInfo2 { version: VERSION_2, .. }) => {
                let Memory { total, reserved, used, .. } = memory;
                put(info, MemoryInfo2 { version: VERSION_2, total, reserved, free, used })
            }
            Some(_) => VERSION_MISMATCH,
        }
    })
}
