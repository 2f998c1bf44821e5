//! Leases on GPUs, among any number of processes and users of a host, without a daemon.

#[cfg(feature = "nvml")]
mod fit;
#[cfg(feature = "nvml")]
mod journal;
#[cfg(feature = "nvml")]
mod mig;
mod placement;
mod wishes;

#[cfg(feature = "nvml")]
pub use mig::{MigDevices, MigLease, MigModeChange};
pub(crate) use wishes::Wishes;
pub use wishes::{ForeignProcesses, Placement, Sharing};
