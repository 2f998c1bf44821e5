//! GPU instances and compute instances: what can be made, what is there, making and destroying.

use crate::abi::{
    self, Handle, IN_USE, INSUFFICIENT_RESOURCES, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, Return, SUCCESS,
    VERSION_MISMATCH, count, get, place, put, put_list,
};
use crate::capabilities;
use crate::profile::{Gpu, GpuInstance, Machine, Memory, Mig, Profile, Slice};

use std::ffi::{c_char, c_uint, c_ulonglong};

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Placement {
    start: c_uint,
    size: c_uint,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct ProfileInfo {
    version: c_uint,
    id: c_uint,
    peer_to_peer: c_uint,
    slices: c_uint,
    instances: c_uint,
    multiprocessors: c_uint,
    /// Copy engines, decoders, encoders, JPEG, optical flow.
    engines: [c_uint; 5],
    memory_mib: c_ulonglong,
    name: [c_char; 96],
}

/// The size of the structure, with the version in the highest byte.
const VERSION_2: c_uint = 152 | 2 << 24;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct InstanceInfo {
    device: Handle,
    id: c_uint,
    profile: c_uint,
    placement: Placement,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct ComputeProfileInfo {
    id: c_uint,
    slices: c_uint,
    instances: c_uint,
    multiprocessors: c_uint,
    engines: [c_uint; 5],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct ComputeInfo {
    device: Handle,
    gpu_instance: Handle,
    id: c_uint,
    profile: c_uint,
    placement: Placement,
}

/// The slices of compute profiles by their number in NVML's list, which is also their identifier here.
const COMPUTE_SLICES: [u32; 5] = [1, 2, 3, 4, 7];

/// A GPU instance, or a compute instance, in the shape of a pointer.
fn instance_handle(gpu: usize, instance: u32, compute: Option<u32>) -> Handle {
    let number = 1 << 32 | gpu << 16 | place(instance) << 8 | compute.map_or(0, |compute| place(compute) + 1);
    std::ptr::without_provenance_mut(number)
}

/// GPU, GPU instance, compute instance.
fn parts(handle: Handle) -> Option<(usize, u32, Option<u32>)> {
    let number = handle.addr();
    let byte = |shift: u32| u32::try_from(number >> shift & 0xff).ok();
    (number >> 32 == 1).then_some(())?;
    Some((number >> 16 & 0xff, byte(8)?, byte(0)?.checked_sub(1)))
}

fn instance(machine: &Machine, handle: Handle) -> Option<(usize, &Gpu, &Mig, GpuInstance)> {
    let (index, id, _) = parts(handle)?;
    let gpu = machine.gpus.get(index)?;
    let mig = gpu.mig.as_ref()?;
    let found = mig.gpu_instances.iter().find(|instance| instance.id == id)?;
    Some((index, gpu, mig, *found))
}

fn profile(mig: &Mig, id: u32) -> Option<&Profile> {
    mig.profiles.iter().find(|profile| profile.id == id)
}

fn is_free(mig: &Mig, start: u32, size: u32) -> bool {
    mig.gpu_instances.iter().all(|other| start + size <= other.start || other.start + other.size <= start)
}

/// Answers a call about a GPU that can be split.
fn split(call: &str, device: Handle, answer: impl FnOnce(usize, &Mig) -> Return) -> Return {
    abi::device(call, device, |target| match &target.gpu.mig {
        Some(mig) if target.slice.is_none() => answer(target.index, mig),
        _ => NOT_SUPPORTED,
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuInstanceProfileInfoV(device: Handle, number: c_uint, info: *mut ProfileInfo) -> Return {
    split("nvmlDeviceGetGpuInstanceProfileInfoV", device, |_, mig| {
        let Some(profile) = mig.profiles.iter().find(|profile| profile.number == number) else { return NOT_SUPPORTED };
        // SAFETY: the contract demands a structure whose first field is filled in.
        if info.is_null() || unsafe { (*info).version } != VERSION_2 {
            return VERSION_MISMATCH;
        }
        let mut name = [0; 96];
        for (place, byte) in name.iter_mut().zip(format!("MIG {}", profile.name).bytes().take(95)) {
            *place = c_char::from_ne_bytes([byte]);
        }
        let answer = ProfileInfo {
            version: VERSION_2,
            id: profile.id,
            peer_to_peer: 0,
            slices: profile.slices,
            instances: profile.instances,
            multiprocessors: profile.multiprocessors,
            engines: [profile.slices, 0, 0, 0, 0],
            memory_mib: profile.memory_mib,
            name,
        };
        put(info, answer)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuInstancePossiblePlacements_v2(
    device: Handle,
    id: c_uint,
    placements: *mut Placement,
    number: *mut c_uint,
) -> Return {
    split("nvmlDeviceGetGpuInstancePossiblePlacements_v2", device, |_, mig| {
        let Some(profile) = profile(mig, id) else { return INVALID_ARGUMENT };
        let all: Vec<_> = profile.starts.iter().map(|start| Placement { start: *start, size: profile.size }).collect();
        let code = put(number, count(all.len()));
        // Asked without room it says how many there are. With room it trusts the caller, as NVIDIA's does.
        if placements.is_null() { code } else { put_list(placements, all.len(), &all) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuInstanceRemainingCapacity(device: Handle, id: c_uint, number: *mut c_uint) -> Return {
    split("nvmlDeviceGetGpuInstanceRemainingCapacity", device, |_, mig| {
        let Some(profile) = profile(mig, id) else { return INVALID_ARGUMENT };
        let made = mig.gpu_instances.iter().filter(|instance| instance.profile == id).count();
        let free = profile.starts.iter().filter(|start| is_free(mig, **start, profile.size)).count();
        put(number, count(free).min(profile.instances.saturating_sub(count(made))))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuInstances(
    device: Handle,
    id: c_uint,
    instances: *mut Handle,
    number: *mut c_uint,
) -> Return {
    split("nvmlDeviceGetGpuInstances", device, |index, mig| {
        let Some(profile) = profile(mig, id) else { return INVALID_ARGUMENT };
        let found = mig.gpu_instances.iter().filter(|instance| instance.profile == id);
        let handles: Vec<Handle> = found.map(|instance| instance_handle(index, instance.id, None)).collect();
        put(number, count(handles.len())).max(put_list(instances, place(profile.instances), &handles))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuInstanceById(device: Handle, id: c_uint, handle: *mut Handle) -> Return {
    split("nvmlDeviceGetGpuInstanceById", device, |index, mig| {
        let found = mig.gpu_instances.iter().any(|instance| instance.id == id);
        if found { put(handle, instance_handle(index, id, None)) } else { NOT_FOUND }
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlGpuInstanceGetInfo(handle: Handle, info: *mut InstanceInfo) -> Return {
    abi::machine("nvmlGpuInstanceGetInfo", |machine| match instance(machine, handle) {
        None => INVALID_ARGUMENT,
        Some((index, _, _, GpuInstance { id, profile, start, size })) => {
            let (device, placement) = (abi::handle(index, None), Placement { start, size });
            put(info, InstanceInfo { device, id, profile, placement })
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceCreateGpuInstanceWithPlacement(
    device: Handle,
    id: c_uint,
    placement: *const Placement,
    handle: *mut Handle,
) -> Return {
    let Some(Placement { start, size }) = get(placement) else { return INVALID_ARGUMENT };
    abi::change("nvmlDeviceCreateGpuInstanceWithPlacement", |machine| {
        let Some(index) = abi::target(machine, device).map(|target| target.index) else { return INVALID_ARGUMENT };
        let Some(mig) = machine.gpus[index].mig.as_mut().filter(|mig| mig.enabled) else { return NOT_SUPPORTED };
        let Some(profile) = profile(mig, id).cloned() else { return INVALID_ARGUMENT };
        if size != profile.size || !profile.starts.contains(&start) {
            return INVALID_ARGUMENT;
        }
        let made = mig.gpu_instances.iter().filter(|instance| instance.profile == id).count();
        if !is_free(mig, start, size) || count(made) >= profile.instances {
            return INSUFFICIENT_RESOURCES;
        }
        // The hardware numbers them by their place in a tree.
        let number = match size {
            8 => 0,
            4 => 1 + start / 4,
            2 => 3 + start / 2,
            _ => 7 + start,
        };
        mig.gpu_instances.push(GpuInstance { id: number, profile: id, start, size });
        capabilities::made(machine, index, number, None);
        put(handle, instance_handle(index, number, None))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlGpuInstanceDestroy(handle: Handle) -> Return {
    abi::change("nvmlGpuInstanceDestroy", |machine| {
        let Some((index, _, mig, GpuInstance { id, .. })) = instance(machine, handle) else { return INVALID_ARGUMENT };
        if mig.devices.iter().any(|slice| slice.gpu_instance == id) {
            return IN_USE;
        }
        if let Some(mig) = machine.gpus[index].mig.as_mut() {
            mig.gpu_instances.retain(|instance| instance.id != id);
        }
        capabilities::destroyed(machine, index, id, None);
        SUCCESS
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlGpuInstanceGetComputeInstanceProfileInfo(
    handle: Handle,
    number: c_uint,
    _engines: c_uint,
    info: *mut ComputeProfileInfo,
) -> Return {
    abi::machine("nvmlGpuInstanceGetComputeInstanceProfileInfo", |machine| {
        let Some((_, _, mig, instance)) = instance(machine, handle) else { return INVALID_ARGUMENT };
        let most = profile(mig, instance.profile).map_or(0, |profile| profile.slices);
        match COMPUTE_SLICES.get(place(number)) {
            Some(slices) if *slices <= most => {
                let (multiprocessors, engines) = (14 * slices, [0; 5]);
                let instances = most / slices;
                put(info, ComputeProfileInfo { id: number, slices: *slices, instances, multiprocessors, engines })
            }
            _ => NOT_SUPPORTED,
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlGpuInstanceCreateComputeInstance(handle: Handle, id: c_uint, made: *mut Handle) -> Return {
    abi::change("nvmlGpuInstanceCreateComputeInstance", |machine| {
        let Some((index, gpu, mig, of)) = instance(machine, handle) else { return INVALID_ARGUMENT };
        let Some(slices) = COMPUTE_SLICES.get(place(id)).copied() else { return INVALID_ARGUMENT };
        let Some(kind) = profile(mig, of.profile) else { return INVALID_ARGUMENT };
        let inside = || mig.devices.iter().filter(|slice| slice.gpu_instance == of.id);
        if inside().map(|slice| slice.gpu_slices).sum::<u32>() + slices > kind.slices {
            return INSUFFICIENT_RESOURCES;
        }
        let free = |taken: &dyn Fn(u32) -> bool| (0..64).find(|number| !taken(*number)).unwrap_or(64);
        let compute = free(&|number| inside().any(|slice| slice.compute_instance == number));
        let name = if slices == kind.slices { kind.name.clone() } else { format!("{slices}c.{}", kind.name) };
        let number = if mig.same_uuids { 0 } else { mig.made + 1 };
        let slice = Slice {
            uuid: format!("MIG-{:08x}-{:04x}-5000-8000-{number:012x}", gpu.minor, of.id << 8 | compute),
            profile: name,
            place: free(&|number| mig.devices.iter().any(|slice| slice.place == number)),
            gpu_instance: of.id,
            compute_instance: compute,
            memory: Memory { total: kind.memory_mib << 20, ..Memory::default() },
            multiprocessors: kind.multiprocessors * slices / kind.slices,
            gpu_slices: slices,
            compute_processes: Vec::new(),
        };
        if let Some(mig) = machine.gpus[index].mig.as_mut() {
            mig.devices.push(slice);
            mig.made += 1;
        }
        capabilities::made(machine, index, of.id, Some(compute));
        put(made, instance_handle(index, of.id, Some(compute)))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlGpuInstanceGetComputeInstances(
    handle: Handle,
    id: c_uint,
    instances: *mut Handle,
    number: *mut c_uint,
) -> Return {
    abi::machine("nvmlGpuInstanceGetComputeInstances", |machine| {
        let Some((index, _, mig, of)) = instance(machine, handle) else { return INVALID_ARGUMENT };
        let Some(slices) = COMPUTE_SLICES.get(place(id)) else { return INVALID_ARGUMENT };
        let inside = mig.devices.iter().filter(|slice| slice.gpu_instance == of.id && slice.gpu_slices == *slices);
        let list: Vec<Handle> =
            inside.map(|slice| instance_handle(index, of.id, Some(slice.compute_instance))).collect();
        put(number, count(list.len())).max(put_list(instances, list.len(), &list))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlComputeInstanceGetInfo_v2(handle: Handle, info: *mut ComputeInfo) -> Return {
    abi::machine("nvmlComputeInstanceGetInfo_v2", |machine| {
        let Some((index, _, mig, of)) = instance(machine, handle) else { return INVALID_ARGUMENT };
        let compute = parts(handle).and_then(|(_, _, compute)| compute);
        let inside = |slice: &&Slice| slice.gpu_instance == of.id && Some(slice.compute_instance) == compute;
        let Some(slice) = mig.devices.iter().find(inside) else { return INVALID_ARGUMENT };
        let known = COMPUTE_SLICES.iter().position(|slices| *slices == slice.gpu_slices);
        let answer = ComputeInfo {
            device: abi::handle(index, None),
            gpu_instance: instance_handle(index, of.id, None),
            id: slice.compute_instance,
            profile: known.map_or(0, count),
            placement: Placement { start: 0, size: slice.gpu_slices },
        };
        put(info, answer)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlComputeInstanceDestroy(handle: Handle) -> Return {
    abi::change("nvmlComputeInstanceDestroy", |machine| {
        let Some((index, id, Some(compute))) = parts(handle) else { return INVALID_ARGUMENT };
        let Some(mig) = machine.gpus.get_mut(index).and_then(|gpu| gpu.mig.as_mut()) else { return INVALID_ARGUMENT };
        let this = |slice: &Slice| (slice.gpu_instance, slice.compute_instance) == (id, compute);
        match mig.devices.iter().find(|slice| this(slice)) {
            None => return INVALID_ARGUMENT,
            Some(slice) if !slice.compute_processes.is_empty() => return IN_USE,
            Some(_) => mig.devices.retain(|slice| !this(slice)),
        }
        capabilities::destroyed(machine, index, id, Some(compute));
        SUCCESS
    })
}
