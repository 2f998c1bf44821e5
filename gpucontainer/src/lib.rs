//! GPU containers as a function call.

pub mod cgroup;
pub mod digest;
pub mod error;
pub mod events;
pub mod gpu;
pub mod host;
pub mod image;
pub mod net;
pub mod progress;
pub mod rootfs;
pub mod sandbox;
pub mod seccomp;

mod claim;
mod layer;
mod store;
mod sys;

#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;

pub use digest::Digest;
pub use error::{Error, ErrorKind, Result};
pub use gpu::{GpuGrant, GpuRequest};
pub use host::Host;
pub use image::{Image, ImageStore};
pub use progress::{Cancel, Phase, Progress};
pub use sandbox::{ExitStatus, Sandbox};

/// The examples of the README, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}
