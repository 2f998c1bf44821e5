//! The only door to the kernel: everything unsafe, and every use of `libc`, `nix` and `rustix`, is behind it.

pub(crate) mod errno;
pub(crate) mod fs;
pub(crate) mod lock;
pub(crate) mod root;
