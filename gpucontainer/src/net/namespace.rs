//! Network namespaces by descriptor, and connections into them.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::calls::namespace;
use crate::sys::netns::{self, Family, Memory, Target, Transport};
use crate::sys::process;
use crate::sys::socket::{self, number};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// A network namespace to connect into. Cheap to clone; all clones share the descriptors.
///
/// The calling process must be privileged over it: root (`CAP_SYS_ADMIN`), or the user who made the user namespace
/// that owns it. Nothing of it is checked before the first use.
#[derive(Clone, Debug)]
pub struct NetworkNamespace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    handle: Handle,
    memory: Memory,
}

#[derive(Debug)]
enum Handle {
    Process(OwnedFd),
    Namespaces { network: OwnedFd, user: Option<OwnedFd> },
}

impl NetworkNamespace {
    /// The network namespace in which a process lives, by a descriptor of `pidfd_open(2)`.
    ///
    /// It can be entered as long as the process lives.
    pub fn of_process(pidfd: OwnedFd) -> Self {
        Self::new(Handle::Process(pidfd))
    }

    /// A network namespace by a descriptor of `/proc/PID/ns/net` or of a file that it is mounted on.
    ///
    /// `user` is a descriptor of the user namespace that owns it, as in `/proc/PID/ns/user`; callers without
    /// privilege need it. The namespace lives at least as long as the descriptor.
    pub fn from_fds(network: OwnedFd, user: Option<OwnedFd>) -> Self {
        Self::new(Handle::Namespaces { network, user })
    }

    fn new(handle: Handle) -> Self {
        Self(Arc::new(Inner { handle, memory: Memory::default() }))
    }

    /// Connects to a TCP port in the namespace: to 127.0.0.1, or else to `[::1]`.
    ///
    /// No port needs to be published for that, and the namespace needs no network but its own loopback device.
    /// `timeout` is how long the connection may take each time; `None` is as long as the kernel tries (about two
    /// minutes).
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for port 0, [`TimedOut`](ErrorKind::TimedOut),
    /// [`PermissionDenied`](ErrorKind::PermissionDenied) for a namespace of somebody else, and a refused connection
    /// as [`SystemCall`](ErrorKind::SystemCall) with `ECONNREFUSED`.
    pub fn dial(&self, port: u16, timeout: Option<Duration>) -> Result<TcpStream> {
        if port == 0 {
            return Err(Error::new(ErrorKind::InvalidArgument, "connect into a network namespace: port 0 names none"));
        }
        let mut refused = None;
        for loopback in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            match self.dial_address(SocketAddr::new(loopback, port), timeout) {
                Ok(stream) => return Ok(stream),
                Err(error) if is_not_there(error.errno()) => _ = refused.get_or_insert(error),
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| socket::error(format!("connect(port {port})"), number::ECONNREFUSED)))
    }

    fn dial_address(&self, address: SocketAddr, timeout: Option<Duration>) -> Result<TcpStream> {
        let failed = |errno| socket::error(format!("connect({address}) in the network namespace"), errno);
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        let fd = self.open_sockets(family, Transport::Stream, 1)?.pop().ok_or_else(|| failed(number::EAGAIN))?;
        while !socket::connect(&fd, address).map_err(failed)? {
            if !socket::wait_writable(&fd, timeout)? {
                let message = format!("connect({address}) in the network namespace: no answer within {timeout:?}");
                return Err(Error::new(ErrorKind::TimedOut, message));
            }
        }
        socket::set_blocking(&fd)?;
        Ok(TcpStream::from(fd))
    }

    /// A descriptor that `setns(2)` takes for it: of the namespace, or of a process in it.
    pub(crate) fn entrance(&self) -> BorrowedFd<'_> {
        match &self.0.handle {
            Handle::Process(fd) | Handle::Namespaces { network: fd, .. } => fd.as_fd(),
        }
    }

    /// What an ordinary user enters to be in it, one after the other, each with its kind as `setns(2)` takes it: the user
    /// namespace that owns it comes first.
    pub(crate) fn entrances(&self) -> Vec<(BorrowedFd<'_>, u64)> {
        match &self.0.handle {
            Handle::Process(pidfd) => vec![(pidfd.as_fd(), namespace::USER | namespace::NETWORK)],
            Handle::Namespaces { network, user } => {
                let user = user.iter().map(|user| (user.as_fd(), namespace::USER));
                user.chain([(network.as_fd(), namespace::NETWORK)]).collect()
            }
        }
    }

    /// A process in the user namespace that owns it.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed) if its process has ended, [`PermissionDenied`](ErrorKind::PermissionDenied) if its
    /// user namespace is not known, [`NotFound`](ErrorKind::NotFound) if nobody is in there.
    pub(crate) fn process_of_owner(&self) -> Result<i32> {
        match &self.0.handle {
            Handle::Process(pidfd) => process::pid_of(pidfd)?
                .ok_or_else(|| Error::new(ErrorKind::Closed, "the process whose network is wanted has ended")),
            Handle::Namespaces { user: None, .. } => Err(Error::new(
                ErrorKind::PermissionDenied,
                "without privilege a network can be entered with the user namespace that owns it alone, which was not \
                 given",
            )),
            Handle::Namespaces { user: Some(user), .. } => process::in_user_namespace(user)?
                .ok_or_else(|| Error::new(ErrorKind::NotFound, "no process is in the user namespace of the network")),
        }
    }

    /// Makes sockets inside: non-blocking, at least one.
    pub(super) fn open_sockets(&self, family: Family, transport: Transport, count: usize) -> Result<Vec<OwnedFd>> {
        let target = match &self.0.handle {
            Handle::Process(pidfd) => Target::Process(pidfd.as_fd()),
            Handle::Namespaces { network, user } => {
                Target::Namespaces { network: network.as_fd(), user: user.as_ref().map(AsFd::as_fd) }
            }
        };
        netns::open_sockets(target, &self.0.memory, family, transport, count)
    }
}

/// Whether the other loopback address is worth a try after this error.
pub(super) fn is_not_there(errno: Option<i32>) -> bool {
    use number::{EADDRNOTAVAIL, EAFNOSUPPORT, ECONNREFUSED};
    matches!(errno, Some(EADDRNOTAVAIL | EAFNOSUPPORT | ECONNREFUSED))
}
