//! Leases on GPUs, among any number of processes and users of a host, without a daemon.

mod placement;
mod wishes;

pub(crate) use wishes::Wishes;
pub use wishes::{ForeignProcesses, Placement, Sharing};
