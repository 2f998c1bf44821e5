//! Sockets made inside another network namespace.
//!
//! A socket belongs for life to the network namespace of the thread that made it, so a process can
//! hold sockets of many namespaces. The host process has threads, and neither of the two simple ways
//! is open to it: a thread of a threaded process may not enter a user namespace, and one that left its
//! network namespace and could not come back would be lost. So somebody else does it, makes as many sockets as are
//! wanted, and ends; one of two kinds:
//!
//! * [`near`]: a caller that is privileged over the namespace needs to enter nothing else. A thread that lives for a moment
//!   does it and takes some 30 microseconds, whatever the size of the caller.
//! * [`far`]: any other caller must enter the user namespace too. While a process is in there, who is root there may
//!   trace it, and with it whatever memory it has. So a child executes the stub, which has no memory of the
//!   caller's and makes itself untraceable before it enters; the sockets come back in a message.
//!
//! [`errand`] has such a thread do other things, such as make a namespace.
//!
//! The host process notices neither: all signals are blocked in what runs on its memory, no child ends with a signal to it,
//! and no wait for ordinary children sees one. Neither keeps anything of a host process that was killed.

mod errand;
mod far;
mod near;

pub(crate) use errand::{NewNetwork, configure, netlink, new_network, sysfs};

use crate::error::{Error, ErrorKind, Result};
use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The most sockets that one call makes.
pub(crate) const SOCKETS_MAX: usize = 64;

/// How a network namespace is named.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'fd> {
    /// That of a process, by a descriptor of `pidfd_open(2)`.
    Process(BorrowedFd<'fd>),
    /// By descriptors of `/proc/PID/ns/net` and of the user namespace that owns it.
    Namespaces { network: BorrowedFd<'fd>, user: Option<BorrowedFd<'fd>> },
}

/// Which kind of address the sockets are for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    fn number(self) -> libc::c_int {
        match self {
            Self::V4 => libc::AF_INET,
            Self::V6 => libc::AF_INET6,
        }
    }
}

/// Which kind of socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Transport {
    /// TCP.
    Stream,
    /// UDP.
    Datagram,
    /// Netlink, for routes of either family; before it is made, sockets of accepted connections there are made to inherit
    /// the mark of their first segment, by which their answers can be routed.
    Routing,
}

/// What switches that on.
const INHERIT_MARKS: &CStr = c"/proc/sys/net/ipv4/tcp_fwmark_accept";

impl Transport {
    /// The family and the type of socket, non-blocking and closed on exec.
    fn numbers(self, family: Family) -> (libc::c_int, libc::c_int) {
        let (family, kind) = match self {
            Self::Stream => (family.number(), libc::SOCK_STREAM),
            Self::Datagram => (family.number(), libc::SOCK_DGRAM),
            Self::Routing => (libc::AF_NETLINK, libc::SOCK_RAW),
        };
        (family, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)
    }
}

/// What went wrong where, before it is put into words.
#[derive(Clone, Copy, Debug)]
struct Fault {
    call: Call,
    errno: i32,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Call {
    EnterProcess,
    EnterNetwork,
    EnterUser,
    InheritMarks,
    Socket,
}

/// What is known of a namespace from earlier calls.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// The caller is not privileged over it from outside.
    far: AtomicBool,
}

/// Makes 1 to [`SOCKETS_MAX`] sockets in a network namespace: non-blocking, closed on exec. At least one, but
/// perhaps fewer than `count` when descriptors run out.
///
/// # Errors
/// The call that failed: a namespace that is gone (`ESRCH`) or not the caller's
/// ([`PermissionDenied`](ErrorKind::PermissionDenied)), an address family that is switched off (`EAFNOSUPPORT`), no
/// descriptor left (`EMFILE`), or a host that lets its processes make no children.
pub(crate) fn open_sockets(
    target: Target<'_>,
    memory: &Memory,
    family: Family,
    transport: Transport,
    count: usize,
) -> Result<Vec<OwnedFd>> {
    let count = count.clamp(1, SOCKETS_MAX);
    let mut result = Ok(Err(Fault { call: Call::EnterNetwork, errno: libc::EPERM }));
    if !memory.far.load(Ordering::Relaxed) {
        let network = match target {
            Target::Process(pidfd) => pidfd,
            Target::Namespaces { network, .. } => network,
        };
        result = near::open_sockets(network, family, transport, count);
    }
    let refused = matches!(result, Ok(Err(Fault { call: Call::EnterNetwork, errno: libc::EPERM })));
    if refused && !matches!(target, Target::Namespaces { user: None, .. }) {
        result = far::open_sockets(target, family, transport, count);
        memory.far.fetch_or(matches!(result, Ok(Ok(_))), Ordering::Relaxed);
    }
    match result.map_err(|e| e.context("make a child that enters the container's network namespace"))? {
        Ok(sockets) if sockets.is_empty() => Err(Error::from_errno("socket()", libc::EMFILE)),
        Ok(sockets) => Ok(sockets),
        Err(fault) => Err(explain(target, (family, transport), fault)),
    }
}

fn explain(target: Target<'_>, (family, transport): (Family, Transport), fault: Fault) -> Error {
    let call = match (fault.call, target) {
        (Call::InheritMarks, _) => format!("write({})", INHERIT_MARKS.to_string_lossy()),
        (Call::Socket, _) if transport == Transport::Routing => "socket(AF_NETLINK)".to_owned(),
        (Call::Socket, _) => format!("socket(AF_INET{})", if family == Family::V4 { "" } else { "6" }),
        (Call::EnterProcess, _) => "setns(pidfd, CLONE_NEWUSER | CLONE_NEWNET)".to_owned(),
        (Call::EnterUser, _) => "setns(user namespace)".to_owned(),
        (Call::EnterNetwork, Target::Process(_)) => "setns(pidfd, CLONE_NEWNET)".to_owned(),
        (Call::EnterNetwork, Target::Namespaces { .. }) => "setns(network namespace)".to_owned(),
    };
    if fault.errno == 0 {
        return Error::new(ErrorKind::SystemCall, format!("{call}: the child that makes sockets was killed"));
    }
    let error = Error::from_errno(call, fault.errno);
    if matches!(fault.call, Call::Socket | Call::InheritMarks) {
        error
    } else {
        error.context("enter the container's network namespace")
    }
}
