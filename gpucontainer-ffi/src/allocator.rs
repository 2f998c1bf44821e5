//! Leases on GPUs, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::boundary::{c_string, call, given, path, release, text};
use crate::config::Config;
use crate::error::Error;
use crate::gpu::GpuRequest;
use crate::host::Host;
use crate::output::time;
use crate::sandbox::Sandbox;
use crate::transfer::Cancel;
use gpucontainer::gpu::{DriverRoot, GpuFault, Topology, Wait};
use std::ffi::{CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::os::fd::IntoRawFd;
use std::time::Duration;

/// Gives out GPUs of this host, so that nobody else who asks an allocator of the same directory gets the same:
/// whichever process, thread or user it is. Holds nothing open. Any number of threads may use it at once, but for its
/// setters.
#[derive(Debug)]
pub struct GpuAllocator {
    allocator: gpucontainer::gpu::GpuAllocator,
    path: CString,
}

impl GpuAllocator {
    fn new(allocator: gpucontainer::gpu::GpuAllocator) -> Option<Box<Self>> {
        use std::os::unix::ffi::OsStrExt;
        let path = c_string(allocator.path().as_os_str().as_bytes());
        Some(Box::new(Self { allocator, path }))
    }

    pub(crate) fn allocator(&self) -> &gpucontainer::gpu::GpuAllocator {
        &self.allocator
    }
}

/// Opens the allocator of this host.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_gpu_allocator_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_allocator_open(
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<GpuAllocator>> {
    call(error, None, || Ok(GpuAllocator::new(gpucontainer::gpu::GpuAllocator::open()?)))
}

/// Opens an allocator with an account of its own in a directory, which is made if it is not there.
///
/// @param path   should be on a tmpfs
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_gpu_allocator_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_gpu_allocator_open_at(
    path: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<GpuAllocator>> {
    call(error, None, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let path = unsafe { self::path(path, "path") }?;
        Ok(GpuAllocator::new(gpucontainer::gpu::GpuAllocator::at(path)?))
    })
}

/// Says where the GPU driver's user space is, if not in the host's own root.
///
/// @param error  may be NULL
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_gpu_allocator_set_driver_root(
    allocator: Option<&mut GpuAllocator>,
    path: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        let this = given(allocator, "allocator")?;
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let path = unsafe { self::path(path, "path") }?;
        this.allocator = this.allocator.clone().driver_root(DriverRoot::new(path));
        Ok(0)
    })
}

/// Sets how long a GPU is held back whose memory does not return after its lease, however that ended; ten seconds by
/// default. Who does not wait for GPUs still bears with it for a second.
///
/// @param allocator  may be NULL, which does nothing
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_allocator_set_memory_return(allocator: Option<&mut GpuAllocator>, milliseconds: u64) {
    if let Some(this) = allocator {
        this.allocator = this.allocator.clone().memory_return(Duration::from_millis(milliseconds));
    }
}

/// Sets how long the daemon of a lease that asks for gpuc_gpu_request_set_mps may take until it answers; ten seconds
/// by default.
///
/// @param allocator  may be NULL, which does nothing
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_allocator_set_mps_start(allocator: Option<&mut GpuAllocator>, milliseconds: u64) {
    if let Some(this) = allocator {
        this.allocator = this.allocator.clone().mps_start(Duration::from_millis(milliseconds));
    }
}

/// Whether GPUs are left out that an outer scheduler keeps from this process; they are by default.
///
/// @param allocator  may be NULL, which does nothing
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_allocator_set_respect_outer(allocator: Option<&mut GpuAllocator>, respected: bool) {
    if let Some(this) = allocator {
        this.allocator = this.allocator.clone().respect_outer(respected);
    }
}

/// The directory of the leases.
///
/// @param allocator  may be NULL, which is an empty string
/// @return a string that lives as long as the object
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_allocator_path(allocator: Option<&GpuAllocator>) -> *const c_char {
    allocator.map_or(c"", |allocator| allocator.path.as_c_str()).as_ptr()
}

/// Leases GPUs. Requests are served in the order in which they came, those of a higher priority earlier.
///
/// @param milliseconds  how long to wait; negative is for ever, 0 fails at once with the reason
/// @param cancel        ends the wait early; may be NULL
/// @param error         may be NULL; GPUC_ERROR_GPU_UNAVAILABLE, GPUC_ERROR_TIMED_OUT, GPUC_ERROR_CANCELLED
/// @return the caller's, freed with gpuc_gpu_lease_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_allocator_acquire(
    allocator: Option<&GpuAllocator>,
    request: Option<&GpuRequest>,
    milliseconds: i64,
    cancel: Option<&Cancel>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<GpuLease>> {
    call(error, None, || {
        let request = given(request, "request")?.ready()?;
        let lease = given(allocator, "allocator")?.allocator.acquire(&request, wait(milliseconds, cancel))?;
        Ok(Some(Box::new(GpuLease::from(lease))))
    })
}

pub(crate) fn wait(milliseconds: i64, cancel: Option<&Cancel>) -> Wait {
    let wait = time(milliseconds).map_or_else(Wait::forever, Wait::at_most);
    match cancel {
        Some(cancel) => wait.cancel(&cancel.0),
        None => wait,
    }
}

/// Who holds what since when, and who waits, as one JSON object: directory, private, gpus, leases, waiting,
/// quarantined, returning (GPUs whose memory is not back from their last lease), mps.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_string_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_allocator_status_json(
    allocator: Option<&GpuAllocator>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        let status = given(allocator, "allocator")?.allocator.status()?;
        Ok(json(serde_json::to_string(&status))?.into_raw())
    })
}

/// The same as a table for people, a line for each GPU and for each who waits.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_string_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_allocator_status_text(
    allocator: Option<&GpuAllocator>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        let status = given(allocator, "allocator")?.allocator.status()?;
        Ok(c_string(status.to_string().as_bytes()).into_raw())
    })
}

fn json(encoded: serde_json::Result<String>) -> gpucontainer::Result<CString> {
    let wrong = |cause| gpucontainer::Error::new(gpucontainer::ErrorKind::Corrupt, format!("leases as JSON: {cause}"));
    encoded.map(|text| c_string(text.as_bytes())).map_err(wrong)
}

/// Keeps a GPU from new leases, until gpuc_gpu_allocator_readmit.
///
/// @param gpu    its identifier
/// @param error  may be NULL; GPUC_ERROR_PERMISSION_DENIED
/// @return 1, or 0 if it was kept back so before, or -1 on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_gpu_allocator_quarantine(
    allocator: Option<&GpuAllocator>,
    gpu: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let gpu = unsafe { text(gpu, "gpu") }?;
        given(allocator, "allocator")?.allocator.quarantine().report(gpu, GpuFault::Requested).map(c_int::from)
    })
}

/// Lets a GPU be leased again, whatever it was kept back for.
///
/// @param gpu    its identifier
/// @param error  may be NULL; GPUC_ERROR_PERMISSION_DENIED
/// @return 1, or 0 if it was not kept back, or -1 on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_gpu_allocator_readmit(
    allocator: Option<&GpuAllocator>,
    gpu: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let gpu = unsafe { text(gpu, "gpu") }?;
        given(allocator, "allocator")?.allocator.quarantine().release(gpu).map(c_int::from)
    })
}

/// Looks after the health of the GPUs, and says who is in quarantine then: those that are faulty by their own account,
/// or by the XIDs of the kernel's log as far as the caller may read it, get no new leases from now on; those that a
/// reset has mended do again.
///
/// @param error  may be NULL; GPUC_ERROR_PERMISSION_DENIED
/// @return a JSON list of objects with gpu, faults and since; the caller's, freed with gpuc_string_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_allocator_review_json(
    allocator: Option<&GpuAllocator>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        let kept = given(allocator, "allocator")?.allocator.review()?;
        Ok(json(serde_json::to_string(&kept))?.into_raw())
    })
}

/// Frees an allocator. Leases live on.
///
/// @param allocator  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_allocator_free(allocator: Option<Box<GpuAllocator>>) {
    drop(allocator);
}

/// GPUs that are the holder's, until this is freed and every sandbox that was started with it, or given it, has ended.
#[derive(Debug)]
pub struct GpuLease {
    pub(crate) lease: gpucontainer::gpu::GpuLease,
    id: CString,
    gpus: Vec<CString>,
    description: CString,
}

impl From<gpucontainer::gpu::GpuLease> for GpuLease {
    fn from(lease: gpucontainer::gpu::GpuLease) -> Self {
        Self {
            id: c_string(lease.id().as_bytes()),
            gpus: lease.gpus().iter().map(|gpu| c_string(gpu.as_bytes())).collect(),
            description: c_string(lease.describe().as_bytes()),
            lease,
        }
    }
}

/// The name of the lease, as the status of the allocator shows it.
///
/// @param lease  may be NULL, which is an empty string
/// @return a string that lives as long as the object
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_lease_id(lease: Option<&GpuLease>) -> *const c_char {
    lease.map_or(c"", |lease| lease.id.as_c_str()).as_ptr()
}

/// How many GPUs and MIG devices are leased.
///
/// @param lease  may be NULL, which has none
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_lease_count(lease: Option<&GpuLease>) -> usize {
    lease.map_or(0, |lease| lease.gpus.len())
}

/// The identifier of a leased GPU or MIG device, by its number in a container, from 0.
///
/// @param lease  may be NULL
/// @return a string that lives as long as the object; NULL if there is none of that number
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_lease_gpu(lease: Option<&GpuLease>, number: usize) -> *const c_char {
    lease.and_then(|lease| lease.gpus.get(number)).map_or(std::ptr::null(), |gpu| gpu.as_ptr())
}

/// What was chosen, and what connects it, in words.
///
/// @param lease  may be NULL, which is an empty string
/// @return a string that lives as long as the object
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_lease_description(lease: Option<&GpuLease>) -> *const c_char {
    lease.map_or(c"", |lease| lease.description.as_c_str()).as_ptr()
}

/// Everything that can be told of a lease as one JSON object: id, gpus, sharing, cpus, numa_nodes, description.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_string_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_lease_json(
    lease: Option<&GpuLease>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        let lease = &given(lease, "lease")?.lease;
        let all = serde_json::json!({
            "id": lease.id(), "gpus": lease.gpus(), "sharing": lease.sharing(), "cpus": lease.cpus(),
            "numa_nodes": lease.numa_nodes(), "description": lease.describe(),
        });
        Ok(c_string(all.to_string().as_bytes()).into_raw())
    })
}

/// The MPS daemon that the lease has with gpuc_gpu_request_set_mps, as it is now, as one JSON object: id, user, pid,
/// pid_namespace, running, age, gpus, active_threads, device_memory, leases, pipe_directory, log.
///
/// @param error  may be NULL; only a failure sets it
/// @return the caller's, freed with gpuc_string_free; NULL without a daemon, and on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_lease_mps_json(
    lease: Option<&GpuLease>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        let Some(group) = given(lease, "lease")?.lease.mps()? else { return Ok(std::ptr::null_mut()) };
        Ok(json(serde_json::to_string(&group))?.into_raw())
    })
}

/// Gives the sandbox the GPUs of a lease, instead of what gpuc_config_set_gpu_request asked for. The sandbox holds
/// the lease too, also when this process is gone.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_gpu_lease(config: Option<&mut Config>, lease: Option<&GpuLease>) {
    Config::update(config, |builder| Ok(builder.gpu_lease(&given(lease, "lease")?.lease)));
}

/// The allocator of which the sandbox leases the GPUs that it asks for. By default that of the host.
///
/// @param allocator  copied
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_gpu_allocator(config: Option<&mut Config>, allocator: Option<&GpuAllocator>) {
    Config::update(config, |builder| Ok(builder.gpu_allocator(&given(allocator, "allocator")?.allocator)));
}

/// How long a start waits for GPUs that somebody else has leased. Not at all by default: the start then fails with
/// GPUC_ERROR_GPU_UNAVAILABLE, and says who has them.
///
/// @param milliseconds  negative is for ever; after the time the start fails with GPUC_ERROR_TIMED_OUT
/// @param cancel        ends the wait early; may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_gpu_wait(config: Option<&mut Config>, milliseconds: i64, cancel: Option<&Cancel>) {
    Config::update(config, |builder| Ok(builder.gpu_wait(wait(milliseconds, cancel))));
}

/// The lease on the GPUs that the sandbox started with, as a handle of its own, which holds them too.
///
/// @param error  may be NULL; only a failure sets it
/// @return the caller's, freed with gpuc_gpu_lease_free; NULL without a lease, once they were detached, and on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_gpu_lease(
    sandbox: Option<&Sandbox>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<GpuLease>> {
    call(error, None, || {
        let lease = given(sandbox, "sandbox")?.sandbox.gpu_lease();
        Ok(lease.map(|lease| Box::new(GpuLease::from(lease))))
    })
}

/// A lease on GPUs of the sandbox, as a handle of its own, which holds them too: that of the start, if there is one, then
/// those of what was attached, in the order in which it came.
///
/// @param number  from 0
/// @param error   may be NULL; only a failure sets it
/// @return the caller's, freed with gpuc_gpu_lease_free; NULL if there is none of that number, and on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_gpu_lease_at(
    sandbox: Option<&Sandbox>,
    number: usize,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<GpuLease>> {
    call(error, None, || {
        let leases = given(sandbox, "sandbox")?.sandbox.gpu_leases();
        Ok(leases.into_iter().nth(number).map(|lease| Box::new(GpuLease::from(lease))))
    })
}

/// Gives the GPUs up now, whoever else holds the lease, and says what went wrong with that.
///
/// @param lease  freed, also on failure
/// @param error  may be NULL; GPUC_ERROR_BUSY if a process still uses a MIG device that was made for the lease: the lease
///               is over then, and the device is destroyed later
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_lease_release(
    lease: Option<Box<GpuLease>>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || given(lease, "lease")?.lease.release().map(|()| 0))
}

/// Turns a lease into a descriptor that holds it: it ends when the last copy of that is closed, in any process.
///
/// @param lease  freed, also on failure
/// @param error  may be NULL
/// @return a descriptor that the caller closes; -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_lease_into_fd(
    lease: Option<Box<GpuLease>>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || Ok(given(lease, "lease")?.lease.into_fd()?.into_raw_fd()))
}

/// Gives the GPUs up, unless a sandbox holds the lease still.
///
/// @param lease  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_lease_free(lease: Option<Box<GpuLease>>) {
    release(lease);
}

/// How near the host's GPUs are to each other, as a table for people: NV12 is twelve NVLinks.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_string_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_host_topology_text(
    host: Option<&Host>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        let topology = Topology::of(given(host, "host")?.host.gpus());
        Ok(c_string(topology.to_string().as_bytes()).into_raw())
    })
}
