//! Places in the queue for GPUs, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library")]

use crate::allocator::{GpuAllocator, GpuLease};
use crate::boundary::{c_string, call, given, release};
use crate::error::Error;
use crate::gpu::GpuRequest;
use crate::output::time;
use std::ffi::{CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// A place in the queue for GPUs, which is kept between waits.
#[derive(Debug)]
pub struct GpuTicket {
    ticket: gpucontainer::gpu::GpuTicket,
    reason: CString,
}

/// Takes a place in the queue; gpuc_gpu_ticket_wait then waits for the GPUs, as often and as long as wanted.
///
/// @param request  copied
/// @param error    may be NULL; GPUC_ERROR_GPU_UNAVAILABLE for more than the host has
/// @return the caller's, freed with gpuc_gpu_ticket_free, which gives the place up; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_allocator_enqueue(
    allocator: Option<&GpuAllocator>,
    request: Option<&GpuRequest>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<GpuTicket>> {
    call(error, None, || {
        let request = given(request, "request")?.ready()?;
        let ticket = given(allocator, "allocator")?.allocator().enqueue(&request)?;
        Ok(Some(Box::new(GpuTicket { ticket, reason: CString::default() })))
    })
}

/// Waits until the GPUs are there. The place in the queue is kept if they are not. Who polls looks with 0 whenever the
/// descriptor of gpuc_gpu_ticket_fd can be read.
///
/// @param milliseconds  negative is for ever, 0 only looks
/// @param lease         set to the caller's, freed with gpuc_gpu_lease_free, if 1 is returned
/// @param error         may be NULL; a system call error with EINTR if a signal came; GPUC_ERROR_GPU_UNAVAILABLE for what
///                      has become impossible; GPUC_ERROR_CLOSED once the lease was given
/// @return 1 with the lease, 0 when the time has passed, -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_ticket_wait(
    ticket: Option<&mut GpuTicket>,
    milliseconds: i64,
    lease: Option<&mut MaybeUninit<Option<Box<GpuLease>>>>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        let slot = given(lease, "lease")?;
        slot.write(None);
        let this = given(ticket, "ticket")?;
        let found = this.ticket.wait(time(milliseconds));
        this.reason = c_string(this.ticket.reason().as_bytes());
        let Some(found) = found? else { return Ok(0) };
        slot.write(Some(Box::new(GpuLease::from(found))));
        Ok(1)
    })
}

/// A descriptor that can be read, in the words of poll(), when it is time to call gpuc_gpu_ticket_wait with 0: something was
/// freed that matters, or so much time has passed that one should look. It may be so without need. Nothing is to be read
/// from it.
///
/// @param error  may be NULL
/// @return the same for the life of the ticket, which it belongs to; -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_ticket_fd(
    ticket: Option<&mut GpuTicket>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || Ok(given(ticket, "ticket")?.ticket.poll_fd()?.as_raw_fd()))
}

/// Why the GPUs were not to be had when it was last tried.
///
/// @param ticket  may be NULL, which is an empty string
/// @return a string that lives until the next wait
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_ticket_reason(ticket: Option<&GpuTicket>) -> *const c_char {
    ticket.map_or(c"", |ticket| ticket.reason.as_c_str()).as_ptr()
}

/// Gives the place in the queue up. A lease that it gave lives on.
///
/// @param ticket  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_ticket_free(ticket: Option<Box<GpuTicket>>) {
    release(ticket);
}
