//! GPU instances and compute instances, which the safe wrapper of NVIDIA's management library lacks.
#![allow(unsafe_code, reason = "function pointers of a C library, taken from the wrapper that loaded it")]

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper::{Device, Nvml};
use std::ffi::{c_char, c_uint, c_ulonglong, c_void};

/// A call that failed, and how.
pub(crate) type Failure = (&'static str, NvmlError);

/// The library's list of kinds of GPU instances has this many places, and grows.
const PROFILES: u32 = 32;
/// The same of compute instances.
const COMPUTE_PROFILES: u32 = 16;
/// No kind may have more instances or places than this; more is a damaged library's answer.
const MOST: u32 = 64;

/// The second form of the library's structure.
#[repr(C)]
#[derive(Clone, Copy)]
struct ProfileInfo2 {
    version: c_uint,
    id: c_uint,
    peer_to_peer: c_uint,
    slices: c_uint,
    instances: c_uint,
    multiprocessors: c_uint,
    engines: [c_uint; 5],
    memory_mib: c_ulonglong,
    name: [c_char; 96],
}

const _: () = assert!(size_of::<ProfileInfo2>() == 152);

/// The structure's size, with its version in the highest byte.
const PROFILE_INFO_2: c_uint = 152 | 2 << 24;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PlacementInfo {
    start: c_uint,
    size: c_uint,
}

#[repr(C)]
struct InstanceInfo {
    device: *mut c_void,
    id: c_uint,
    profile: c_uint,
    placement: PlacementInfo,
}

#[repr(C)]
#[derive(Default)]
struct ComputeProfileInfo {
    id: c_uint,
    slices: c_uint,
    instances: c_uint,
    multiprocessors: c_uint,
    engines: [c_uint; 5],
}

#[repr(C)]
struct ComputeInfo {
    device: *mut c_void,
    gpu_instance: *mut c_void,
    id: c_uint,
    profile: c_uint,
    placement: PlacementInfo,
}

/// A kind of GPU instance that a GPU offers.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    pub(crate) id: u32,
    /// As in `1g.10gb`.
    pub(crate) name: String,
    /// Slices of the computing part.
    pub(crate) slices: u32,
    /// How many can exist at a time.
    pub(crate) instances: u32,
    /// The memory of each, in bytes.
    pub(crate) memory: u64,
}

/// Where a GPU instance lies among the GPU's places.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) size: u32,
}

/// A GPU instance that exists.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct GpuInstance {
    pub(crate) id: u32,
    pub(crate) profile: u32,
    pub(crate) span: Span,
}

/// A GPU in MIG mode, while the library is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Splitter<'a> {
    nvml: &'a Nvml,
    device: &'a Device<'a>,
}

/// Calls the function `$name` of the library; the pointers are checked where this is used.
macro_rules! call {
    ($self:ident . $name:ident ( $($argument:expr),* )) => {
        nvml_sym($self.nvml.lib().$name.as_ref())
            // SAFETY: the symbol has this type in every version of the library. Handles come from the library, which
            // stays open as long as `Splitter` borrows it; every pointer is to a live local of the structure that
            // the call fills in, large enough for what it may write.
            .and_then(|function| nvml_try(unsafe { function($($argument),*) }))
            .map_err(|error| (stringify!($name), error))
    };
}

impl<'a> Splitter<'a> {
    pub(crate) fn new(nvml: &'a Nvml, device: &'a Device<'a>) -> Self {
        Self { nvml, device }
    }

    fn handle(&self) -> *mut c_void {
        // SAFETY: the handle is used while the library, which `self` borrows, is open.
        unsafe { self.device.handle() }.cast()
    }

    /// The kinds of GPU instances that the GPU offers.
    pub(crate) fn profiles(&self) -> Result<Vec<Profile>, Failure> {
        let mut found = Vec::new();
        for number in 0..PROFILES {
            let mut info = ProfileInfo2 {
                version: PROFILE_INFO_2,
                id: 0,
                peer_to_peer: 0,
                slices: 0,
                instances: 0,
                multiprocessors: 0,
                engines: [0; 5],
                memory_mib: 0,
                name: [0; 96],
            };
            let pointer = (&raw mut info).cast();
            match call!(self.nvmlDeviceGetGpuInstanceProfileInfoV(self.handle().cast(), number, pointer)) {
                Ok(()) => {}
                // A number that this GPU, or this version of the library, does not have.
                Err((_, NvmlError::NotSupported | NvmlError::InvalidArg)) => continue,
                Err(e) => return Err(e),
            }
            let bytes = info.name.iter().take_while(|byte| **byte != 0).map(|byte| byte.to_ne_bytes()[0]);
            let name = String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned();
            found.push(Profile {
                id: info.id,
                name: name.strip_prefix("MIG ").unwrap_or(&name).to_owned(),
                slices: info.slices,
                instances: info.instances.min(MOST),
                memory: info.memory_mib.saturating_mul(1 << 20),
            });
        }
        Ok(found)
    }

    /// Where instances of a kind may lie, whether taken or not.
    pub(crate) fn placements(&self, profile: u32) -> Result<Vec<Span>, Failure> {
        let mut number: c_uint = 0;
        let (device, none) = (self.handle().cast(), std::ptr::null_mut());
        call!(self.nvmlDeviceGetGpuInstancePossiblePlacements_v2(device, profile, none, &mut number))?;
        // With room to spare: nothing else tells the library how much there is.
        let mut places = vec![PlacementInfo::default(); usize::try_from(number.max(MOST)).unwrap_or(0)];
        let pointer = places.as_mut_ptr().cast();
        call!(self.nvmlDeviceGetGpuInstancePossiblePlacements_v2(device, profile, pointer, &mut number))?;
        let known = usize::try_from(number).unwrap_or(0).min(places.len());
        Ok(places[..known].iter().map(|place| Span { start: place.start, size: place.size }).collect())
    }

    /// How many instances of a kind can still be made.
    pub(crate) fn remaining(&self, profile: u32) -> Result<u32, Failure> {
        let mut number: c_uint = 0;
        call!(self.nvmlDeviceGetGpuInstanceRemainingCapacity(self.handle().cast(), profile, &mut number))?;
        Ok(number)
    }

    /// The GPU instances of all `profiles`, by place.
    pub(crate) fn gpu_instances(&self, profiles: &[Profile]) -> Result<Vec<GpuInstance>, Failure> {
        let mut found = Vec::new();
        for profile in profiles {
            let mut handles = vec![std::ptr::null_mut(); usize::try_from(MOST).unwrap_or(0)];
            let mut number: c_uint = 0;
            let (device, pointer) = (self.handle().cast(), handles.as_mut_ptr());
            call!(self.nvmlDeviceGetGpuInstances(device, profile.id, pointer, &mut number))?;
            for handle in handles.into_iter().take(usize::try_from(number).unwrap_or(0)) {
                found.push(self.gpu_instance(handle.cast())?);
            }
        }
        found.sort_by_key(|instance| (instance.span.start, instance.id));
        Ok(found)
    }

    fn gpu_instance(&self, handle: *mut c_void) -> Result<GpuInstance, Failure> {
        let placement = PlacementInfo::default();
        let mut info = InstanceInfo { device: std::ptr::null_mut(), id: 0, profile: 0, placement };
        call!(self.nvmlGpuInstanceGetInfo(handle.cast(), (&raw mut info).cast()))?;
        let span = Span { start: info.placement.start, size: info.placement.size };
        Ok(GpuInstance { id: info.id, profile: info.profile, span })
    }

    fn by_id(&self, id: u32) -> Result<*mut c_void, Failure> {
        let mut handle = std::ptr::null_mut();
        call!(self.nvmlDeviceGetGpuInstanceById(self.handle().cast(), id, &mut handle))?;
        Ok(handle.cast())
    }

    /// Makes a GPU instance at a place; its identifier.
    pub(crate) fn create_gpu_instance(&self, profile: u32, span: Span) -> Result<u32, Failure> {
        let place = PlacementInfo { start: span.start, size: span.size };
        let mut handle = std::ptr::null_mut();
        let (device, place) = (self.handle().cast(), (&raw const place).cast());
        call!(self.nvmlDeviceCreateGpuInstanceWithPlacement(device, profile, place, &mut handle))?;
        Ok(self.gpu_instance(handle.cast())?.id)
    }

    /// Destroys a GPU instance, which must have no compute instance any more.
    pub(crate) fn destroy_gpu_instance(&self, id: u32) -> Result<(), Failure> {
        let handle = self.by_id(id)?;
        call!(self.nvmlGpuInstanceDestroy(handle.cast()))
    }

    /// The kinds of compute instances of a GPU instance: identifier and number of slices.
    fn compute_profiles(&self, handle: *mut c_void) -> Result<Vec<(u32, u32)>, Failure> {
        let mut found = Vec::new();
        for number in 0..COMPUTE_PROFILES {
            let mut info = ComputeProfileInfo::default();
            let pointer = (&raw mut info).cast();
            match call!(self.nvmlGpuInstanceGetComputeInstanceProfileInfo(handle.cast(), number, 0, pointer)) {
                Ok(()) => found.push((info.id, info.slices)),
                Err((_, NvmlError::NotSupported | NvmlError::InvalidArg)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }

    /// The compute instances of a GPU instance, with the handles that destroy them.
    fn compute_handles(&self, gpu_instance: u32) -> Result<Vec<(u32, *mut c_void)>, Failure> {
        let handle = self.by_id(gpu_instance)?;
        let mut found: Vec<(u32, *mut c_void)> = Vec::new();
        for (profile, _) in self.compute_profiles(handle)? {
            let mut handles = vec![std::ptr::null_mut(); usize::try_from(MOST).unwrap_or(0)];
            let mut number: c_uint = 0;
            let pointer = handles.as_mut_ptr();
            call!(self.nvmlGpuInstanceGetComputeInstances(handle.cast(), profile, pointer, &mut number))?;
            for compute in handles.into_iter().take(usize::try_from(number).unwrap_or(0)) {
                let mut info = ComputeInfo {
                    device: std::ptr::null_mut(),
                    gpu_instance: std::ptr::null_mut(),
                    id: 0,
                    profile: 0,
                    placement: PlacementInfo::default(),
                };
                call!(self.nvmlComputeInstanceGetInfo_v2(compute, (&raw mut info).cast()))?;
                if !found.iter().any(|(id, _)| *id == info.id) {
                    found.push((info.id, compute.cast()));
                }
            }
        }
        found.sort_by_key(|(id, _)| *id);
        Ok(found)
    }

    /// The identifiers of the compute instances of a GPU instance.
    pub(crate) fn compute_instances(&self, gpu_instance: u32) -> Result<Vec<u32>, Failure> {
        Ok(self.compute_handles(gpu_instance)?.into_iter().map(|(id, _)| id).collect())
    }

    /// Makes the compute instance that takes all slices of a GPU instance.
    pub(crate) fn create_compute_instance(&self, gpu_instance: u32) -> Result<(), Failure> {
        let handle = self.by_id(gpu_instance)?;
        let profiles = self.compute_profiles(handle)?;
        // Of kinds with the same slices the first: later ones give up some engines.
        let best = profiles.iter().rev().max_by_key(|(_, slices)| *slices);
        let (profile, _) = best.ok_or(("nvmlGpuInstanceGetComputeInstanceProfileInfo", NvmlError::NotSupported))?;
        let mut made = std::ptr::null_mut();
        call!(self.nvmlGpuInstanceCreateComputeInstance(handle.cast(), *profile, &mut made))
    }

    /// Destroys a compute instance, which no process may be using.
    pub(crate) fn destroy_compute_instance(&self, gpu_instance: u32, id: u32) -> Result<(), Failure> {
        match self.compute_handles(gpu_instance)?.into_iter().find(|(other, _)| *other == id) {
            Some((_, handle)) => call!(self.nvmlComputeInstanceDestroy(handle.cast())),
            None => Err(("nvmlGpuInstanceGetComputeInstances", NvmlError::NotFound)),
        }
    }

    /// Asks for MIG mode or for its end: whether the GPU switched at once, or why it did not.
    pub(crate) fn set_mode(&self, enabled: bool) -> Result<Result<(), NvmlError>, Failure> {
        let mut status = 0;
        call!(self.nvmlDeviceSetMigMode(self.handle().cast(), c_uint::from(enabled), &mut status))?;
        Ok(nvml_try(status))
    }
}
