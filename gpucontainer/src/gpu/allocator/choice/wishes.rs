//! What a lease wants of its GPUs beyond how many: how they are shared, what they must be, how they lie together.

use crate::gpu::allocator::mps::Mps;
use crate::gpu::request::{GpuRequest, Which};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Whether others may hold a lease on the same GPU at the same time.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Sharing {
    /// Nobody else.
    #[default]
    Exclusive,
    /// At most so many leases in all; the smallest number of those who share counts.
    Shared(u32),
    /// Others who also say how much memory they take, as long as all of it fits: bytes on each GPU.
    ///
    /// The promise is an account among leases. Nothing keeps a process from allocating more.
    Fraction(u64),
}

/// How the GPUs of one lease lie together, and what is left for the next.
///
/// Among equals the choice is always the same: the lower positions in the inventory.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Placement {
    /// The fastest links among the GPUs; then, what keeps the best set for the next request.
    #[default]
    Best,
    /// As [`Best`](Self::Best), and NVLinks connect all of them: directly, through switches or through one another.
    NvlinkRequired,
    /// As [`Best`](Self::Best), and all GPUs are attached to one NUMA node.
    SameNumaNode,
    /// As [`Best`](Self::Best), but pairs of close GPUs are broken only if nothing else is left.
    KeepPairs,
    /// As far apart as possible, so that each GPU has its own links and memory node.
    Spread,
}

/// What to do about processes on a GPU that belong to no lease.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ForeignProcesses {
    /// Such a GPU is not free until they are gone.
    #[default]
    Avoid,
    /// They do not matter.
    Ignore,
    /// If one of them stands in the way, the request fails at once instead of waiting.
    Fail,
}

/// The wishes of a request.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub(crate) struct Wishes {
    pub(crate) sharing: Sharing,
    pub(crate) min_total_memory: u64,
    pub(crate) min_compute_capability: Option<(u32, u32)>,
    pub(crate) model: Option<String>,
    pub(crate) mig_profile: Option<String>,
    /// No MIG devices are made.
    pub(crate) existing_only: bool,
    pub(crate) placement: Placement,
    /// `None` if the caller did not say.
    pub(crate) foreign: Option<ForeignProcesses>,
    pub(crate) priority: i32,
    pub(crate) mps: Option<Mps>,
    /// The GPUs and MIG devices of this host that a device of a specification stands for, by its name.
    pub(crate) described: BTreeMap<String, Vec<String>>,
}

impl Wishes {
    pub(crate) fn foreign(&self) -> ForeignProcesses {
        self.foreign.unwrap_or_default()
    }
}

impl GpuRequest {
    /// Whether others may hold a lease on the same GPUs; nobody by default.
    pub fn sharing(mut self, sharing: Sharing) -> Self {
        self.wishes.sharing = sharing;
        self
    }

    /// Wants GPUs with at least `bytes` of memory in all, used or not. 0, the default, wants nothing.
    pub fn min_total_memory(mut self, bytes: u64) -> Self {
        self.wishes.min_total_memory = bytes;
        self
    }

    /// Wants at least this CUDA compute capability, as in `(8, 0)`. None by default.
    pub fn min_compute_capability(mut self, major: u32, minor: u32) -> Self {
        self.wishes.min_compute_capability = Some((major, minor));
        self
    }

    /// Wants GPUs whose product name has this form, upper and lower case alike: `*` stands for anything,
    /// `?` for one character. `*A100*` finds every A100.
    pub fn model(mut self, pattern: impl Into<String>) -> Self {
        self.wishes.model = Some(pattern.into());
        self
    }

    /// Wants MIG devices of this profile, as in `1g.10gb`, instead of whole GPUs. A GPU that is named stands for one
    /// device on it.
    ///
    /// Idle ones that are there come first. Those that are missing are made on GPUs in MIG mode, where the caller may
    /// and [`make_mig_devices`](Self::make_mig_devices) does not say otherwise, and destroyed after their last lease.
    pub fn mig_profile(mut self, profile: impl Into<String>) -> Self {
        self.wishes.mig_profile = Some(profile.into());
        self
    }

    /// Whether MIG devices of the [profile](Self::mig_profile) that are missing are made; they are by default, for a
    /// number of devices and for named GPUs. With `false` only those are leased that are there.
    ///
    /// That takes root, or the right to the driver's capability `mig/config` and an account of leases of one's own.
    /// MIG mode itself is never switched by a request; [`MigDevices`](crate::gpu::MigDevices) does that.
    pub fn make_mig_devices(mut self, made: bool) -> Self {
        self.wishes.existing_only = !made;
        self
    }

    /// The profile of MIG devices that may be made for the request.
    pub(crate) fn makes(&self) -> Option<&str> {
        let which = matches!(self.which(), Which::Count(_) | Which::Named(_));
        self.wishes.mig_profile.as_deref().filter(|_| which && !self.wishes.existing_only)
    }

    /// How the GPUs lie together; [`Placement::Best`] by default.
    pub fn placement(mut self, placement: Placement) -> Self {
        self.wishes.placement = placement;
        self
    }

    /// What to do about processes that belong to no lease; [`ForeignProcesses::Avoid`] by default.
    ///
    /// Of a request for all GPUs or for GPUs by name that a sandbox leases itself, it is [`ForeignProcesses::Ignore`].
    pub fn foreign_processes(mut self, policy: ForeignProcesses) -> Self {
        self.wishes.foreign = Some(policy);
        self
    }

    /// How early the request comes in the queue; 0 by default, more is earlier.
    ///
    /// Each step is worth ten seconds of waiting, so that no request waits for ever behind later ones.
    pub fn priority(mut self, priority: i32) -> Self {
        self.wishes.priority = priority;
        self
    }
}
