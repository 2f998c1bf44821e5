//! Requests for GPUs, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::boundary::{Fault, bad, catch, given, path, slice, strings, text};
use crate::config::Config;
use gpucontainer::Result;
use gpucontainer::gpu::cdi::VendorHooks;
use gpucontainer::gpu::{DriverCapability, DriverRoot, ForeignProcesses, Mps, Placement, Sharing, Vendor};
use std::ffi::c_char;

/// Which GPUs, and which parts of the driver with them. A setter that is given something unusable makes the call
/// fail that later uses the request.
#[derive(Debug, Default)]
pub struct GpuRequest {
    pub(crate) request: gpucontainer::gpu::GpuRequest,
    pub(crate) fault: Fault,
}

impl GpuRequest {
    fn update(
        this: Option<&mut Self>,
        change: impl FnOnce(gpucontainer::gpu::GpuRequest) -> Result<gpucontainer::gpu::GpuRequest>,
    ) {
        let Some(this) = this else { return };
        let changed = catch(|| change(this.request.clone()));
        if let Some(changed) = this.fault.keep(changed) {
            this.request = changed;
        }
    }

    /// All that was set, if it can be used.
    pub(crate) fn ready(&self) -> Result<gpucontainer::gpu::GpuRequest> {
        self.fault.check()?;
        Ok(self.request.clone())
    }
}

fn which(gpus: &str) -> Result<gpucontainer::gpu::GpuRequest> {
    if gpus == "image" {
        return Ok(gpucontainer::gpu::GpuRequest::as_image_says());
    }
    match gpus.strip_prefix("count:") {
        Some(count) => {
            let count = count.parse().map_err(|e| bad(format!("gpus {gpus:?}: {e}")))?;
            Ok(gpucontainer::gpu::GpuRequest::count(count))
        }
        None => gpus.parse(),
    }
}

/// Asks for GPUs, in the words that other engines use: "all", a count as in "count:2", indices as in "0,1",
/// identifiers, names of CDI as in "vendor.com/class=name", or "image" for what NVIDIA_VISIBLE_DEVICES of the image says.
///
/// @return the caller's, freed with gpuc_gpu_request_free
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_gpu_request_new(gpus: *const c_char) -> Option<Box<GpuRequest>> {
    let mut request = Box::<GpuRequest>::default();
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    GpuRequest::update(Some(&mut request), |_| which(unsafe { text(gpus, "gpus") }?));
    Some(request)
}

/// Wants at least so many bytes of free memory on each GPU.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_request_set_min_free_memory(request: Option<&mut GpuRequest>, bytes: u64) {
    GpuRequest::update(request, |request| Ok(request.min_free_memory(bytes)));
}

/// Replaces the parts of the driver that come with the GPUs, "compute" and "utility" by default. The names are those
/// of NVIDIA_DRIVER_CAPABILITIES; none at all gives device nodes without libraries.
///
/// @param names  strings, and NULL after the last
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_gpu_request_set_capabilities(
    request: Option<&mut GpuRequest>,
    names: *const *const c_char,
) {
    GpuRequest::update(request, |request| {
        // SAFETY: the header asks for NULL or strings with NULL after the last.
        let names = unsafe { strings(names, "names") }?;
        if names.is_empty() {
            return Ok(request.capabilities([]));
        }
        Ok(request.capabilities(DriverCapability::parse_list(&names.join(","))?))
    });
}

/// Wants parts of NVIDIA's software that have devices of their own: "gds", "mofed", "gdrcopy", "nvswitch"; or gives rights
/// that no image gets by asking: "mig-config", to make and destroy MIG devices of the container's GPUs, and "mig-monitor",
/// to look at MIG devices that it was not granted.
///
/// @param names  strings, and NULL after the last
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_gpu_request_set_extras(request: Option<&mut GpuRequest>, names: *const *const c_char) {
    GpuRequest::update(request, |request| {
        // SAFETY: the header asks for NULL or strings with NULL after the last.
        let names = unsafe { strings(names, "names") }?;
        Ok(request.extras(names.iter().map(|name| name.parse()).collect::<Result<Vec<_>>>()?))
    });
}

/// Wants these channels of IMEX, which GPUs of several hosts share memory through.
///
/// @param channels  may be NULL if there are none
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_gpu_request_set_imex_channels(
    request: Option<&mut GpuRequest>,
    channels: *const u32,
    count: usize,
) {
    GpuRequest::update(request, |request| {
        // SAFETY: the header asks for that many numbers.
        let channels = unsafe { slice(channels, count, "channels") }?;
        Ok(request.imex_channels(channels.iter().copied()))
    });
}

/// Where specifications of CDI are looked for, instead of /etc/cdi and /var/run/cdi.
///
/// @param directories  strings, and NULL after the last; a later one's devices count before an earlier one's
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_gpu_request_set_cdi_directories(
    request: Option<&mut GpuRequest>,
    directories: *const *const c_char,
) {
    GpuRequest::update(request, |request| {
        // SAFETY: the header asks for NULL or strings with NULL after the last.
        Ok(request.cdi_directories(unsafe { strings(directories, "directories") }?))
    });
}

/// What to do about programs that a specification of CDI wants to be run on the host, other than NVIDIA's, which are
/// not run but done: "refuse" the device, which is the default, "skip" them, or "run" them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_gpu_request_set_vendor_hooks(request: Option<&mut GpuRequest>, policy: *const c_char) {
    GpuRequest::update(request, |request| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        Ok(request.vendor_hooks(match unsafe { text(policy, "policy") }? {
            "refuse" => VendorHooks::Refuse,
            "skip" => VendorHooks::Skip,
            "run" => VendorHooks::Run,
            other => return Err(bad(format!("no policy for hooks is called {other:?}"))),
        }))
    });
}

/// Wants a daemon of NVIDIA's Multi-Process Service (MPS) for the lease, whose clients the processes in its containers
/// are. It starts with the lease and ends with it; leases that share the same GPUs and want the same of it, of one
/// user, have one daemon, which ends with the last of them.
///
/// The limits hold for each process that is a client, and are ceilings: nothing is reserved or isolated. A fatal fault
/// of one client may end the work of all others, and a program that does not look for the daemon uses the GPU without
/// it. The containers of one daemon share /dev/shm. See <https://docs.nvidia.com/deploy/mps/index.html>.
///
/// @param active_threads  the share of a GPU's threads that each client gets at most, in percent; 0 is no limit
/// @param device_memory   bytes that each client can allocate at most on each GPU, at least a mebibyte; 0 is no limit
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_request_set_mps(request: Option<&mut GpuRequest>, active_threads: u32, device_memory: u64) {
    let mut mps = Mps::new();
    if active_threads != 0 {
        mps = mps.active_threads(active_threads);
    }
    if device_memory != 0 {
        mps = mps.device_memory(device_memory);
    }
    GpuRequest::update(request, |request| Ok(request.mps(mps)));
}

/// Whether a Multi-Process Service of the host, which somebody else runs, is shared with the container; no by default.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_request_set_multi_process_service(request: Option<&mut GpuRequest>, shared: bool) {
    GpuRequest::update(request, |request| Ok(request.multi_process_service(shared)));
}

/// Asks for GPUs of a vendor: "nvidia", which is the default, "amd" or "intel".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_gpu_request_set_vendor(request: Option<&mut GpuRequest>, vendor: *const c_char) {
    GpuRequest::update(request, |request| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        Ok(request.vendor(match unsafe { text(vendor, "vendor") }? {
            "nvidia" => Vendor::Nvidia,
            "amd" => Vendor::Amd,
            "intel" => Vendor::Intel,
            other => return Err(bad(format!("no vendor is called {other:?}"))),
        }))
    });
}

/// Wants GPUs with at least so many bytes of memory in all, used or not.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_request_set_min_total_memory(request: Option<&mut GpuRequest>, bytes: u64) {
    GpuRequest::update(request, |request| Ok(request.min_total_memory(bytes)));
}

/// Wants at least this CUDA compute capability, as in 8 and 0.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_request_set_min_compute_capability(
    request: Option<&mut GpuRequest>,
    major: u32,
    minor: u32,
) {
    GpuRequest::update(request, |request| Ok(request.min_compute_capability(major, minor)));
}

/// Wants GPUs whose product name has this form, as in "*A100*": * stands for anything, ? for one character.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_gpu_request_set_model(request: Option<&mut GpuRequest>, pattern: *const c_char) {
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    GpuRequest::update(request, |request| Ok(request.model(unsafe { text(pattern, "pattern") }?)));
}

/// Wants MIG devices of this profile, as in "1g.10gb", instead of whole GPUs. A GPU that is named stands for one device on
/// it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_gpu_request_set_mig_profile(request: Option<&mut GpuRequest>, profile: *const c_char) {
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    GpuRequest::update(request, |request| Ok(request.mig_profile(unsafe { text(profile, "profile") }?)));
}

/// Whether MIG devices of the profile that are missing are made, on GPUs in MIG mode, and destroyed after their last
/// lease; they are by default, where the caller may make them.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_request_set_make_mig_devices(request: Option<&mut GpuRequest>, made: bool) {
    GpuRequest::update(request, |request| Ok(request.make_mig_devices(made)));
}

/// Lets at most so many leases in all have the same GPUs; 1, as by default, is nobody else.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_request_set_shared(request: Option<&mut GpuRequest>, leases: u32) {
    let sharing = if leases == 1 { Sharing::Exclusive } else { Sharing::Shared(leases) };
    GpuRequest::update(request, |request| Ok(request.sharing(sharing)));
}

/// Lets others have the same GPUs who also say how much memory they take, as long as all of it fits.
///
/// @param bytes  of each GPU
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_request_set_fraction(request: Option<&mut GpuRequest>, bytes: u64) {
    GpuRequest::update(request, |request| Ok(request.sharing(Sharing::Fraction(bytes))));
}

/// How the GPUs lie together: "best", which is the default, "nvlink-required", "same-numa-node", "keep-pairs" or
/// "spread".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_gpu_request_set_placement(request: Option<&mut GpuRequest>, placement: *const c_char) {
    GpuRequest::update(request, |request| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        Ok(request.placement(match unsafe { text(placement, "placement") }? {
            "best" => Placement::Best,
            "nvlink-required" => Placement::NvlinkRequired,
            "same-numa-node" => Placement::SameNumaNode,
            "keep-pairs" => Placement::KeepPairs,
            "spread" => Placement::Spread,
            other => return Err(bad(format!("no placement is called {other:?}"))),
        }))
    });
}

/// What to do about processes that belong to no lease: "avoid" their GPUs, which is the default, "ignore" them, or
/// "fail" at once if one is in the way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_gpu_request_set_foreign_processes(
    request: Option<&mut GpuRequest>,
    policy: *const c_char,
) {
    GpuRequest::update(request, |request| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        Ok(request.foreign_processes(match unsafe { text(policy, "policy") }? {
            "avoid" => ForeignProcesses::Avoid,
            "ignore" => ForeignProcesses::Ignore,
            "fail" => ForeignProcesses::Fail,
            other => return Err(bad(format!("no policy for foreign processes is called {other:?}"))),
        }))
    });
}

/// How early the request comes in the queue: 0 by default, more is earlier, each step worth ten seconds of waiting.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_request_set_priority(request: Option<&mut GpuRequest>, priority: i32) {
    GpuRequest::update(request, |request| Ok(request.priority(priority)));
}

/// Frees a request.
///
/// @param request  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_gpu_request_free(request: Option<Box<GpuRequest>>) {
    drop(request);
}

/// Says where the GPU driver's user space is, if not in the host's own root.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_set_driver_root(config: Option<&mut Config>, path: *const c_char) {
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    Config::update(config, |builder| Ok(builder.driver_root(DriverRoot::new(unsafe { self::path(path, "path") }?))));
}

/// Asks for GPUs, which are leased from the start of the sandbox to its end: nobody else who asks an allocator gets
/// them. None by default, whatever the image asks for.
///
/// @param request  copied
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_gpu_request(config: Option<&mut Config>, request: Option<&GpuRequest>) {
    Config::update(config, |builder| Ok(builder.gpus(given(request, "request")?.ready()?)));
}

/// Asks for GPUs without a lease: whoever has leased them, and kept from nobody.
///
/// @param request  copied
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_gpus_unleased(config: Option<&mut Config>, request: Option<&GpuRequest>) {
    Config::update(config, |builder| Ok(builder.gpus_unleased(given(request, "request")?.ready()?)));
}

/// Asks for GPUs in the words of gpuc_gpu_request_new, and for nothing else.
///
/// @param min_free_memory  bytes that must be free on each
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_set_gpus(config: Option<&mut Config>, gpus: *const c_char, min_free_memory: u64) {
    Config::update(config, |builder| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let request = which(unsafe { text(gpus, "gpus") }?)?;
        Ok(builder.gpus(request.min_free_memory(min_free_memory)))
    });
}
