//! The only door to the kernel: everything unsafe, and every use of `libc`, `nix` and `rustix`, is behind it.

pub(crate) mod bpf;
pub(crate) mod calls;
pub(crate) mod cgroup;
pub(crate) mod epoll;
pub(crate) mod errno;
pub(crate) mod fs;
pub(crate) mod launch;
pub(crate) mod lock;
pub(crate) mod netns;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod root;
pub(crate) mod seccomp;
pub(crate) mod signals;
pub(crate) mod socket;

#[cfg(feature = "nvml")]
pub(crate) use fs::nvml;
pub(crate) use fs::{device, probe};
