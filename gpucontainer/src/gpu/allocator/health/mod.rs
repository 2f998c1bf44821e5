//! GPUs in which something is wrong: what the driver reports, and what is kept from new leases.

#[cfg(feature = "nvml")]
mod listener;
pub(super) mod quarantine;
#[cfg(feature = "nvml")]
pub(super) mod watch;
pub(in crate::gpu) mod xid;
