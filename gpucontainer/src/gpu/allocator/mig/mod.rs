//! MIG devices that are made where they are wanted, and destroyed after their last lease.
//!
//! `making` says where they can be, `fit` where they do the least harm, `makers` makes and destroys them as `instances`,
//! written down in a `journal` before. `devices` are those that callers make for themselves.

#[cfg(feature = "nvml")]
pub(super) mod devices;
#[cfg(feature = "nvml")]
pub(super) mod fit;
#[cfg(feature = "nvml")]
mod instances;
#[cfg(feature = "nvml")]
pub(in crate::gpu) mod journal;
#[cfg(feature = "nvml")]
pub(super) mod makers;
#[cfg(not(feature = "nvml"))]
#[path = "without/makers.rs"]
pub(super) mod makers;
#[cfg(feature = "nvml")]
pub(in crate::gpu) mod making;
#[cfg(not(feature = "nvml"))]
#[path = "without/making.rs"]
pub(in crate::gpu) mod making;
