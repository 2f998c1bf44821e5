//! The only door to the kernel: everything unsafe, and every use of `libc`, `nix` and `rustix`, is behind it.

pub(crate) mod activation;
pub(crate) mod bpf;
pub(crate) mod calls;
pub(crate) mod cgroup;
pub(crate) mod datagram;
pub(crate) mod device;
pub(crate) mod epoll;
pub(crate) mod errno;
#[cfg(feature = "nvml")]
pub(crate) mod events;
pub(crate) mod fs;
pub(crate) mod hostport;
pub(crate) mod identity;
pub(crate) mod launch;
pub(crate) mod lock;
#[cfg(feature = "nvml")]
pub(crate) mod mig;
pub(crate) mod netlink;
pub(crate) mod netns;
pub(crate) mod notify;
#[cfg(feature = "nvml")]
pub(crate) mod nvml;
pub(crate) mod peer;
pub(crate) mod probe;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod rewatch;
pub(crate) mod root;
pub(crate) mod seccomp;
pub(crate) mod signals;
pub(crate) mod slot;
pub(crate) mod socket;
pub(crate) mod stand_in;
mod thread;
pub(crate) mod transparent;
pub(crate) mod watch;
