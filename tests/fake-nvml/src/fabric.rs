//! The NVLink fabric, and what GPUs reach over it.

use crate::abi::{self, Handle, INVALID_ARGUMENT, NOT_SUPPORTED, Return, VERSION_MISMATCH, get, put, target};

use std::ffi::c_uint;

/// The second form; the third one adds a summary of the health.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct FabricInfo {
    version: c_uint,
    cluster: [u8; 16],
    status: Return,
    clique: c_uint,
    state: u8,
    health: c_uint,
}

const VERSION_2: c_uint = 36 | 2 << 24;

/// What a pair of GPUs may be asked for, and the answers.
const OVER_NVLINK: c_uint = 2;
const REACHED: c_uint = 0;
const NO_SUCH_WAY: c_uint = 5;

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuFabricInfoV(device: Handle, info: *mut FabricInfo) -> Return {
    abi::device("nvmlDeviceGetGpuFabricInfoV", device, |target| {
        let Some(fabric) = &target.gpu.fabric else { return NOT_SUPPORTED };
        match get(info.cast::<c_uint>()) {
            None => return INVALID_ARGUMENT,
            Some(VERSION_2) => {}
            Some(_) => return VERSION_MISMATCH,
        }
        let mut cluster = [0; 16];
        for (place, byte) in cluster.iter_mut().enumerate() {
            let digits = fabric.cluster.get(2 * place..2 * place + 2).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16).unwrap_or(0);
        }
        let (status, clique, state) = (fabric.status, fabric.clique, fabric.state);
        put(info, FabricInfo { version: VERSION_2, cluster, status, clique, state, health: 0 })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetP2PStatus(one: Handle, other: Handle, way: c_uint, status: *mut c_uint) -> Return {
    abi::machine("nvmlDeviceGetP2PStatus", |machine| {
        let (Some(one), Some(other)) = (target(machine, one), target(machine, other)) else { return INVALID_ARGUMENT };
        let linked = !one.gpu.nvlinks.is_empty() && !other.gpu.nvlinks.is_empty();
        match machine.topology.nvlink {
            Some(reached) if way == OVER_NVLINK => put(status, if reached && linked { REACHED } else { NO_SUCH_WAY }),
            _ => NOT_SUPPORTED,
        }
    })
}
