//! What is written down of leases: a slot each, a small file whose locks are the truth.

pub(super) mod directory;
pub(in crate::gpu) mod record;
pub(super) mod returning;
pub(in crate::gpu) mod table;
