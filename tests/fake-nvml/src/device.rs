//! Finding devices, and what they are.

use crate::abi::{
    self, Handle, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, Return, count, get_text, handle, place, put, put_list,
    put_text,
};
use crate::pci;

use std::ffi::{c_char, c_int, c_uint, c_ulong};

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCount_v2(number: *mut c_uint) -> Return {
    abi::machine("nvmlDeviceGetCount_v2", |machine| {
        put(number, machine.gpu_count.unwrap_or_else(|| count(machine.gpus.len())))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut Handle) -> Return {
    abi::machine("nvmlDeviceGetHandleByIndex_v2", |machine| match machine.gpus.get(place(index)) {
        None => INVALID_ARGUMENT,
        Some(gpu) => match gpu.errors.get("nvmlDeviceGetHandleByIndex_v2") {
            Some(code) => *code,
            None => put(device, handle(place(index), None)),
        },
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut Handle) -> Return {
    let Some(uuid) = get_text(uuid) else { return INVALID_ARGUMENT };
    abi::machine("nvmlDeviceGetHandleByUUID", |machine| {
        for (index, gpu) in machine.gpus.iter().enumerate() {
            if gpu.uuid == uuid {
                return put(device, handle(index, None));
            }
            let slices = gpu.mig.iter().flat_map(|mig| &mig.devices);
            if let Some(slice) = slices.into_iter().find(|slice| slice.uuid == uuid) {
                return put(device, handle(index, Some(slice.place)));
            }
        }
        NOT_FOUND
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(bus_id: *const c_char, device: *mut Handle) -> Return {
    let Some(wanted) = get_text(bus_id).and_then(|text| pci::Address::parse(&text)) else { return INVALID_ARGUMENT };
    abi::machine("nvmlDeviceGetHandleByPciBusId_v2", |machine| {
        let found = machine.gpus.iter().position(|gpu| pci::Address::parse(&gpu.pci_bus_id) == Some(wanted));
        found.map_or(NOT_FOUND, |index| put(device, handle(index, None)))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetIndex(device: Handle, index: *mut c_uint) -> Return {
    abi::device("nvmlDeviceGetIndex", device, |target| put(index, count(target.index)))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetUUID(device: Handle, uuid: *mut c_char, length: c_uint) -> Return {
    abi::device("nvmlDeviceGetUUID", device, |target| {
        let text = target.slice.map_or(&target.gpu.uuid, |slice| &slice.uuid);
        put_text(uuid, length, text.as_bytes())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetName(device: Handle, name: *mut c_char, length: c_uint) -> Return {
    abi::device("nvmlDeviceGetName", device, |target| {
        let mut text = target.gpu.name_bytes.clone().unwrap_or_else(|| target.gpu.name.clone().into_bytes());
        if let Some(slice) = target.slice {
            text.extend(format!(" MIG {}", slice.profile).bytes());
        }
        put_text(name, length, &text)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMinorNumber(device: Handle, minor: *mut c_uint) -> Return {
    abi::device("nvmlDeviceGetMinorNumber", device, |target| put(minor, target.gpu.minor))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCudaComputeCapability(device: Handle, major: *mut c_int, minor: *mut c_int) -> Return {
    abi::device("nvmlDeviceGetCudaComputeCapability", device, |target| {
        put(major, target.gpu.compute_capability.0).max(put(minor, target.gpu.compute_capability.1))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetBrand(device: Handle, brand: *mut c_uint) -> Return {
    abi::device("nvmlDeviceGetBrand", device, |target| {
        target.gpu.brand.map_or(NOT_SUPPORTED, |known| put(brand, known))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCpuAffinity(device: Handle, length: c_uint, words: *mut c_ulong) -> Return {
    abi::device("nvmlDeviceGetCpuAffinity", device, |target| {
        put_bits(target.gpu.cpus.iter().flat_map(|(first, last)| *first..=*last), length, words)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryAffinity(
    device: Handle,
    length: c_uint,
    words: *mut c_ulong,
    _scope: c_uint,
) -> Return {
    abi::device("nvmlDeviceGetMemoryAffinity", device, |target| {
        put_bits(target.gpu.memory_nodes.iter().copied(), length, words)
    })
}

/// Sets the bits with these numbers, as far as there is room, and clears the others.
fn put_bits(numbers: impl Iterator<Item = u32>, length: c_uint, words: *mut c_ulong) -> Return {
    let mut mask = vec![0; place(length)];
    for number in numbers {
        if let Some(word) = mask.get_mut(place(number / c_ulong::BITS)) {
            *word |= 1 << (number % c_ulong::BITS);
        }
    }
    put_list(words, mask.len(), &mask)
}
