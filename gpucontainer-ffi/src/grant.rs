//! GPUs that a running sandbox is given, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library")]

use crate::allocator::{GpuLease, wait};
use crate::boundary::{c_string, call, given, release};
use crate::error::Error;
use crate::gpu::GpuRequest;
use crate::sandbox::Sandbox;
use crate::transfer::Cancel;
use gpucontainer::ErrorKind;
use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;

/// What a sandbox has for some of its GPUs: nodes, files of the driver, variables. A copy, which changes with nothing.
#[derive(Debug)]
pub struct GpuGrant(gpucontainer::gpu::GpuGrant);

/// Gives a running sandbox GPUs: all that was asked for, or nothing. They are leased, of the allocator of the sandbox,
/// until they are detached or the sandbox ends. What the application executes from now on finds them, and so does what
/// is executed inside, which also gets their variables.
///
/// @param milliseconds  how long to wait for what others have; negative is for ever, and with 0 it fails at once with the
///                      reason
/// @param cancel        ends the wait early; may be NULL
/// @param error         may be NULL; GPUC_ERROR_GPU_UNAVAILABLE, GPUC_ERROR_TIMED_OUT, GPUC_ERROR_CANCELLED,
///                      GPUC_ERROR_ALREADY_EXISTS, GPUC_ERROR_CLOSED
/// @return the caller's, freed with gpuc_gpu_grant_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_attach_gpus(
    sandbox: Option<&Sandbox>,
    request: Option<&GpuRequest>,
    milliseconds: i64,
    cancel: Option<&Cancel>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<GpuGrant>> {
    attached(sandbox, error, |sandbox| {
        sandbox.attach_gpus(&given(request, "request")?.ready()?, wait(milliseconds, cancel))
    })
}

/// As gpuc_sandbox_attach_gpus, with the GPUs of a lease. The sandbox holds it too until they are detached, also when
/// this process is gone.
///
/// @param lease  stays the caller's
/// @param error  may be NULL; GPUC_ERROR_ALREADY_EXISTS, GPUC_ERROR_CLOSED
/// @return the caller's, freed with gpuc_gpu_grant_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_attach_lease(
    sandbox: Option<&Sandbox>,
    lease: Option<&GpuLease>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<GpuGrant>> {
    attached(sandbox, error, |sandbox| sandbox.attach_lease(&given(lease, "lease")?.lease))
}

/// As gpuc_sandbox_attach_gpus without a lease: whoever has the GPUs is not asked, and others may be given them too.
///
/// @param error  may be NULL; GPUC_ERROR_GPU_UNAVAILABLE, GPUC_ERROR_ALREADY_EXISTS, GPUC_ERROR_CLOSED
/// @return the caller's, freed with gpuc_gpu_grant_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_attach_gpus_unleased(
    sandbox: Option<&Sandbox>,
    request: Option<&GpuRequest>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<GpuGrant>> {
    attached(sandbox, error, |sandbox| sandbox.attach_gpus_unleased(&given(request, "request")?.ready()?))
}

fn attached(
    sandbox: Option<&Sandbox>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
    attach: impl FnOnce(&gpucontainer::Sandbox) -> gpucontainer::Result<gpucontainer::gpu::GpuGrant>,
) -> Option<Box<GpuGrant>> {
    call(error, None, || Ok(Some(Box::new(GpuGrant(attach(&given(sandbox, "sandbox")?.sandbox)?)))))
}

/// Takes away what a grant brought: one of gpuc_sandbox_attach_gpus or gpuc_sandbox_granted. What other grants have as
/// well stays. If its GPUs were leased for it, they are free when this returns; a lease of the caller's own is the
/// caller's alone again.
///
/// @param grant  stays the caller's
/// @param force  also if a process inside has a device open, which it keeps then
/// @param error  may be NULL; GPUC_ERROR_BUSY with the processes that have a device open, GPUC_ERROR_NOT_FOUND
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_detach_gpus(
    sandbox: Option<&Sandbox>,
    grant: Option<&GpuGrant>,
    force: bool,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || given(sandbox, "sandbox")?.sandbox.detach_gpus(&given(grant, "grant")?.0, force).map(|()| 0))
}

/// What a sandbox has of GPUs: the grant of the start, if there was one, then those that were attached.
///
/// @param number  from 0
/// @param error   may be NULL; only a failure sets it
/// @return the caller's, freed with gpuc_gpu_grant_free; NULL if there is none of that number, and on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_granted(
    sandbox: Option<&Sandbox>,
    number: usize,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<GpuGrant>> {
    call(error, None, || {
        let grants = given(sandbox, "sandbox")?.sandbox.granted();
        Ok(grants.into_iter().nth(number).map(|grant| Box::new(GpuGrant(grant))))
    })
}

/// All of a grant as one JSON object: gpus, device_nodes, mounts, links, environment, driver_version, left_out and more.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_string_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_grant_json(
    grant: Option<&GpuGrant>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        let wrong = |cause| gpucontainer::Error::new(ErrorKind::Corrupt, format!("grant as JSON: {cause}"));
        let json = serde_json::to_string(&given(grant, "grant")?.0).map_err(wrong)?;
        Ok(c_string(json.as_bytes()).into_raw())
    })
}

/// Frees a grant. The sandbox keeps its GPUs.
///
/// @param grant  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_grant_free(grant: Option<Box<GpuGrant>>) {
    release(grant);
}
