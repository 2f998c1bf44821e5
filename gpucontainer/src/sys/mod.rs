//! The only door to the kernel: everything unsafe, and every use of `libc`, `nix` and `rustix`, is behind it.

pub(crate) mod bpf;
pub(crate) mod calls;
pub(crate) mod device;
