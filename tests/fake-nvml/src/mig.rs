//! Split GPUs.

use crate::abi::{
    self, Handle, IN_USE, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, RESET_REQUIRED, Return, SUCCESS, handle, put,
};

use std::ffi::{c_uint, c_ulonglong};

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Attributes {
    multiprocessors: c_uint,
    copy_engines: c_uint,
    decoders: c_uint,
    encoders: c_uint,
    jpeg: c_uint,
    optical_flow: c_uint,
    gpu_slices: c_uint,
    compute_slices: c_uint,
    memory_mib: c_ulonglong,
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMigMode(device: Handle, current: *mut c_uint, pending: *mut c_uint) -> Return {
    abi::device("nvmlDeviceGetMigMode", device, |target| match &target.gpu.mig {
        None => NOT_SUPPORTED,
        Some(mig) => {
            put(current, c_uint::from(mig.enabled)).max(put(pending, c_uint::from(mig.enabled != mig.pending)))
        }
    })
}

/// Switches at once, or waits for a reset: `profile.rs` says which.
#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceSetMigMode(device: Handle, mode: c_uint, status: *mut Return) -> Return {
    abi::change("nvmlDeviceSetMigMode", |machine| {
        let Some(found) = abi::target(machine, device) else { return INVALID_ARGUMENT };
        let (index, used) = (found.index, !found.gpu.compute_processes.is_empty());
        let Some(mig) = machine.gpus[index].mig.as_mut() else { return NOT_SUPPORTED };
        if mig.enabled == (mode == 1) {
            mig.pending = false;
            return put(status, SUCCESS);
        }
        if used || !mig.gpu_instances.is_empty() || !mig.devices.is_empty() {
            return put(status, IN_USE);
        }
        if mig.needs_reset {
            mig.pending = true;
            return put(status, RESET_REQUIRED);
        }
        mig.enabled = mode == 1;
        put(status, SUCCESS)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: Handle, number: *mut c_uint) -> Return {
    abi::device("nvmlDeviceGetMaxMigDeviceCount", device, |target| {
        put(number, target.gpu.mig.as_ref().map_or(0, |mig| mig.places))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(device: Handle, index: c_uint, slice: *mut Handle) -> Return {
    abi::device("nvmlDeviceGetMigDeviceHandleByIndex", device, |target| match &target.gpu.mig {
        Some(mig) if mig.enabled => {
            let found = mig.devices.iter().any(|device| device.place == index);
            if found { put(slice, handle(target.index, Some(index))) } else { NOT_FOUND }
        }
        Some(_) => INVALID_ARGUMENT,
        None => NOT_SUPPORTED,
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(slice: Handle, device: *mut Handle) -> Return {
    abi::device("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", slice, |target| match target.slice {
        Some(_) => put(device, handle(target.index, None)),
        None => INVALID_ARGUMENT,
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceIsMigDeviceHandle(device: Handle, is_slice: *mut c_uint) -> Return {
    abi::device("nvmlDeviceIsMigDeviceHandle", device, |target| put(is_slice, c_uint::from(target.slice.is_some())))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuInstanceId(device: Handle, instance: *mut c_uint) -> Return {
    abi::device("nvmlDeviceGetGpuInstanceId", device, |target| {
        target.slice.map_or(NOT_SUPPORTED, |slice| put(instance, slice.gpu_instance))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetComputeInstanceId(device: Handle, instance: *mut c_uint) -> Return {
    abi::device("nvmlDeviceGetComputeInstanceId", device, |target| {
        target.slice.map_or(NOT_SUPPORTED, |slice| put(instance, slice.compute_instance))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetAttributes_v2(device: Handle, attributes: *mut Attributes) -> Return {
    abi::device("nvmlDeviceGetAttributes_v2", device, |target| {
        let Some(slice) = target.slice else { return NOT_SUPPORTED };
        put(
            attributes,
            Attributes {
                multiprocessors: slice.multiprocessors,
                copy_engines: slice.gpu_slices,
                decoders: 0,
                encoders: 0,
                jpeg: 0,
                optical_flow: 0,
                gpu_slices: slice.gpu_slices,
                compute_slices: slice.gpu_slices,
                memory_mib: slice.memory.total >> 20,
            },
        )
    })
}
