//! NVIDIA's Multi-Process Service for the GPUs of leases: a control daemon that lives as long as its leases do.
//!
//! ```text
//! lease ──┐                          ┌── keeper ── nvidia-cuda-mps-control ── nvidia-cuda-mps-server
//! lease ──┼──► group of leases ◄─────┘   (keeper)     talked to by its own program (talk)
//! lease ──┘    a directory (group)
//! ```
//!
//! The first lease of a group starts the daemon, the end of the last one ends it. Who keeps it is a process of its own
//! that watches the locks of the leases, so that nothing depends on how any of their holders ends.

mod group;
mod keeper;
mod remains;
mod talk;

pub use group::MpsGroup;
pub(super) use group::{Joining, Membership, collect, groups, join};

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::driver::{DriverFile, program};
use crate::gpu::request::{GpuRequest, Vendor};
use crate::gpu::select::Choice;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

const CONTROL: &str = "nvidia-cuda-mps-control";
const SERVER: &str = "nvidia-cuda-mps-server";

/// The unit in which the daemon is told limits of memory.
const MIB: u64 = 1 << 20;

/// Where a container has the pipes of its daemon: where programs look for them that are not told otherwise.
const PIPES_INSIDE: &str = "/tmp/nvidia-mps";

/// The first compute capability whose clients can be limited.
const VOLTA: (u32, u32) = (7, 0);

/// A daemon of NVIDIA's Multi-Process Service (MPS) for the GPUs of a lease, and the limits of those who use it.
///
/// Kernels of several processes then run on a GPU at the same time, where otherwise it belongs to one process after the
/// other. The daemon is started with the lease and ends with it. Leases that [share](crate::gpu::Sharing) the same
/// GPUs, of one user, with equal `Mps`, are one group and have one daemon, which ends with the last of them. A lease
/// that is held alone has a daemon of its own, for the several processes of its container.
///
/// # What the limits are
/// - They hold for each *process* that uses the GPU, not for a container: two processes of one container may have
///   twice the memory.
/// - They are no isolation. The clients share one GPU context or server: a fatal fault of one client, such as an access
///   to an invalid address, may end the work of all others of the group, and nothing keeps one from taking the
///   memory's bandwidth of all. What must be kept apart belongs on MIG devices, or on GPUs of their own.
/// - They bind programs that find the daemon. One that takes `CUDA_MPS_PIPE_DIRECTORY` elsewhere uses the GPU beside
///   the service, without limits: the GPU's compute mode is nobody's to change but the administrator's.
/// - What a container sets in `CUDA_MPS_ACTIVE_THREAD_PERCENTAGE` or `CUDA_MPS_PINNED_DEVICE_MEM_LIMIT` can lower its
///   limits and never raise them, since the daemon has the same.
///
/// # What the service asks for
/// - The programs `nvidia-cuda-mps-control` and `nvidia-cuda-mps-server` in the driver root. Limits need GPUs of
///   Volta's generation or later.
/// - One user: a server works for clients of one user at a time, as the host counts users, and others wait until those
///   are gone. Without root only the caller's own user can be served.
/// - `/dev/shm` is the group's, a directory in that of the host: daemon and clients find small files of each other
///   there. So the containers of one group see each other's shared memory, and its size is not that of
///   [`shm_size`](crate::sandbox::SandboxBuilder::shm_size), but counts against their control groups.
/// - A PID namespace for the daemon, and thus root or a user namespace, and a `/proc` that may be mounted there. The
///   daemon counts against the control group of the process that took the first lease, and dies if that is killed as
///   a whole.
///
/// If the daemon is killed, the leases stay and are without it: CUDA fails in programs that used it, and programs that
/// start later run as they would without MPS, until another lease joins the group, which brings a new daemon.
/// [`GpuStatus::mps`](crate::gpu::GpuStatus::mps) says so.
///
/// # References
/// <https://docs.nvidia.com/deploy/mps/index.html>
///
/// ```
/// use gpucontainer::GpuRequest;
/// use gpucontainer::gpu::{Mps, Sharing};
///
/// // Two leases on one GPU, each of whose processes can use half of it.
/// let half = Mps::new().active_threads(50).device_memory(20 << 30);
/// let request = GpuRequest::count(1).sharing(Sharing::Shared(2)).mps(half);
/// ```
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[must_use]
pub struct Mps {
    active_threads: Option<u32>,
    device_memory: Option<u64>,
}

impl Mps {
    /// A daemon whose clients have no limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Each client gets at most this percentage of a GPU's threads, 1 to 100; all of them by default.
    ///
    /// It is a ceiling and no reservation: clients whose percentages are more than 100 together compete, and what one
    /// does not use the others may have up to their own. The GPU rounds it up to whole multiprocessors.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for another number, when GPUs are acquired.
    ///
    /// # References
    /// `CUDA_MPS_ACTIVE_THREAD_PERCENTAGE` and `set_default_active_thread_percentage` in NVIDIA's documentation of MPS.
    pub fn active_threads(mut self, percent: u32) -> Self {
        self.active_threads = Some(percent);
        self
    }

    /// Each client can allocate at most so many bytes of each GPU's memory, rounded down to whole mebibytes; what there
    /// is by default.
    ///
    /// A limit on allocations, what CUDA itself needs included, and no reservation: others may have taken the memory
    /// before. Needs a driver of CUDA 11.5 or later.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for less than a mebibyte, [`ErrorKind::Unsupported`] if the driver's MPS does not
    /// know such limits, when GPUs are acquired.
    ///
    /// # References
    /// `CUDA_MPS_PINNED_DEVICE_MEM_LIMIT` and `set_default_device_pinned_mem_limit` in NVIDIA's documentation of MPS.
    pub fn device_memory(mut self, bytes: u64) -> Self {
        self.device_memory = Some(bytes);
        self
    }

    fn has_limits(&self) -> bool {
        *self != Self::default()
    }

    fn mebibytes(&self) -> Option<u64> {
        self.device_memory.map(|bytes| bytes / MIB)
    }

    /// Refuses what no daemon could do.
    pub(super) fn check(&self, request: &GpuRequest) -> Result<()> {
        let refuse = |why: String| Err(Error::new(ErrorKind::InvalidArgument, why));
        let vendor = request.wanted_vendor();
        if vendor != Vendor::Nvidia {
            return refuse(format!("MPS is asked for, which no {vendor} GPU has"));
        }
        if request.wants_multi_process_service() {
            return refuse("MPS of the lease is asked for, and that of the host: a process can use one".to_owned());
        }
        if let Some(percent) = self.active_threads.filter(|percent| !(1..=100).contains(percent)) {
            return refuse(format!("MPS with {percent} % of the threads is asked for: 1 to 100 are possible"));
        }
        if let Some(bytes) = self.device_memory.filter(|bytes| *bytes < MIB) {
            return refuse(format!("MPS with {bytes} bytes of memory is asked for: 1 MiB is the least"));
        }
        Ok(())
    }

    /// Refuses GPUs that a daemon cannot serve so.
    pub(super) fn check_devices(&self, chosen: &[Choice<'_>]) -> Result<()> {
        if chosen.len() > 1 && chosen.iter().any(|choice| matches!(choice, Choice::Slice(..))) {
            let why = "MPS for several MIG devices is asked for: a process of CUDA can use one";
            return Err(Error::new(ErrorKind::InvalidArgument, why));
        }
        let old = |choice: &&Choice<'_>| choice.gpu().compute_capability.is_some_and(|found| found < VOLTA);
        match chosen.iter().find(old).filter(|_| self.has_limits()) {
            Some(choice) => {
                let why = format!("MPS with limits is asked for: {choice} is older than Volta and has none");
                Err(Error::new(ErrorKind::Unsupported, why))
            }
            None => Ok(()),
        }
    }

    /// What clients are told, over what the daemon knows: `devices` is how many GPUs they see.
    fn environment(&self, devices: usize) -> Vec<(String, String)> {
        let mut variables = vec![("CUDA_MPS_PIPE_DIRECTORY".to_owned(), PIPES_INSIDE.to_owned())];
        if let Some(percent) = self.active_threads {
            variables.push(("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE".to_owned(), percent.to_string()));
        }
        if let Some(mebibytes) = self.mebibytes() {
            let each: Vec<String> = (0..devices).map(|device| format!("{device}={mebibytes}M")).collect();
            variables.push(("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT".to_owned(), each.join(",")));
        }
        variables
    }
}

/// What a container needs to use the daemon of a lease.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(in crate::gpu) struct Access {
    /// The directory of pipes, and where it goes.
    pub(in crate::gpu) pipes: (PathBuf, PathBuf),
    /// The directory of shared memory, and where it goes.
    pub(in crate::gpu) shared_memory: (PathBuf, PathBuf),
    pub(in crate::gpu) environment: Vec<(String, String)>,
}

/// The programs of a daemon.
#[derive(Debug)]
pub(super) struct Programs {
    control: DriverFile,
    server: DriverFile,
}

impl Programs {
    /// Those of the driver root; `None` if the request wants no daemon.
    ///
    /// # Errors
    /// [`ErrorKind::GpuUnavailable`] if one is missing.
    pub(super) fn wanted(request: &GpuRequest, root: &DriverRoot) -> Result<Option<Self>> {
        if request.wishes.mps.is_none() {
            return Ok(None);
        }
        let find = |name: &str| {
            program(root, name).ok_or_else(|| {
                let why = format!("MPS is asked for, and the driver in {} has no {name}", root.path().display());
                Error::new(ErrorKind::GpuUnavailable, why)
            })
        };
        Ok(Some(Self { control: find(CONTROL)?, server: find(SERVER)? }))
    }
}

impl GpuRequest {
    /// Wants a daemon of NVIDIA's Multi-Process Service for the lease, which its containers are then clients of. None
    /// by default.
    ///
    /// [`multi_process_service`](Self::multi_process_service) is the other way: a daemon that somebody else runs.
    pub fn mps(mut self, mps: Mps) -> Self {
        self.wishes.mps = Some(mps);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::select::tests::{gpu, split};

    #[test]
    fn limits_have_bounds() {
        let check = |mps: Mps| mps.check(&GpuRequest::count(1));
        for good in [Mps::new(), Mps::new().active_threads(1).device_memory(MIB), Mps::new().active_threads(100)] {
            check(good).unwrap();
        }
        for (bad, words) in [
            (Mps::new().active_threads(0), "0 % of the threads"),
            (Mps::new().active_threads(101), "101 % of the threads"),
            (Mps::new().device_memory(0), "0 bytes"),
            (Mps::new().device_memory(MIB - 1), "1 MiB is the least"),
        ] {
            let error = check(bad).unwrap_err();
            assert!(error.kind() == ErrorKind::InvalidArgument && error.to_string().contains(words), "{error}");
        }
        let error = Mps::new().check(&GpuRequest::count(1).vendor(Vendor::Amd)).unwrap_err();
        assert!(error.to_string().contains("no AMD GPU has"), "{error}");
        let error = Mps::new().check(&GpuRequest::count(1).multi_process_service(true)).unwrap_err();
        assert!(error.to_string().contains("that of the host"), "{error}");
    }

    #[test]
    fn not_every_gpu_can_be_served() {
        let mut old = gpu(0, 1, &[]);
        old.compute_capability = Some((6, 1));
        Mps::new().check_devices(&[Choice::Whole(&old)]).unwrap();
        let error = Mps::new().active_threads(50).check_devices(&[Choice::Whole(&old)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let gpu = split(0, 2);
        let slices: Vec<Choice<'_>> = gpu.mig_devices.iter().map(|slice| Choice::Slice(&gpu, slice)).collect();
        Mps::new().check_devices(&slices[..1]).unwrap();
        assert_eq!(Mps::new().check_devices(&slices).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn clients_are_told_their_limits() {
        let told = |mps: Mps| mps.environment(2).into_iter().map(|(name, value)| format!("{name}={value}"));
        let told = |mps: Mps| told(mps).collect::<Vec<_>>().join(" ");
        assert_eq!(told(Mps::new()), "CUDA_MPS_PIPE_DIRECTORY=/tmp/nvidia-mps");
        let all = told(Mps::new().active_threads(30).device_memory((5 << 30) + 17));
        assert!(all.contains("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=30 "), "{all}");
        assert!(all.ends_with("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0=5120M,1=5120M"), "{all}");
    }
}
