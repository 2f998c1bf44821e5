//! The only door to the kernel: everything unsafe, and every use of `libc`, `nix` and `rustix`, is behind it.

pub(crate) mod device;
pub(crate) mod errno;
pub(crate) mod fs;
pub(crate) mod lock;
#[cfg(feature = "nvml")]
pub(crate) mod nvml;
pub(crate) mod probe;
pub(crate) mod root;
