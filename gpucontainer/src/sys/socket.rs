//! TCP and UDP sockets and pipes that never block, with error numbers as plain numbers where they are handled at once.

use super::errno::failed;
use crate::error::{Error, Result};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt};
use rustix::pipe::{PipeFlags, SpliceFlags};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Error numbers that callers tell apart.
pub(crate) mod number {
    pub(crate) use libc::{
        EACCES, EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT, EAGAIN, ECONNABORTED, ECONNREFUSED, ECONNRESET, EHOSTDOWN,
        EHOSTUNREACH, EINTR, EINVAL, EMFILE, ENETDOWN, ENETUNREACH, ENFILE, ENOBUFS, ENOMEM, ENOPROTOOPT, EPROTO,
        ESRCH,
    };
}

/// What became of a call that never blocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// So many bytes; when reading, 0 is the end.
    Moved(usize),
    /// Nothing can be moved now.
    NotNow,
    /// The error number.
    Failed(i32),
}

fn outcome(mut call: impl FnMut() -> rustix::io::Result<usize>) -> Outcome {
    loop {
        match call() {
            Ok(bytes) => return Outcome::Moved(bytes),
            Err(Errno::AGAIN) => return Outcome::NotNow,
            Err(Errno::INTR) => {}
            Err(e) => return Outcome::Failed(e.raw_os_error()),
        }
    }
}

/// Which families a wildcard address of IPv6 stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Span {
    /// IPv6 alone, so that `0.0.0.0` and `[::]` are two addresses.
    OneFamily,
    /// IPv4 too.
    BothFamilies,
}

/// Binds and listens on a TCP address of the host; `span` says what a wildcard address stands for. The connections accepted
/// from it send small pieces at once.
pub(crate) fn listen(address: SocketAddr, span: Span) -> Result<OwnedFd> {
    let mut socket = bound(address, SocketType::STREAM, span)?;
    if address.port() == 0 {
        // A port that the kernel chose is given back when the socket stops listening; one that was named is not.
        let chosen = socket;
        socket = bound(local_address(&chosen)?, SocketType::STREAM, span)?;
    }
    start_listening(&socket).map_err(|errno| error(format!("listen({address})"), errno))?;
    Ok(socket)
}

/// Binds a UDP socket to an address of the host.
pub(crate) fn bind_datagrams(address: SocketAddr, span: Span) -> Result<OwnedFd> {
    bound(address, SocketType::DGRAM, span)
}

/// Binds a socket as it is. The error is a number.
pub(crate) fn bind_any(socket: impl AsFd, address: SocketAddr) -> Result<(), i32> {
    rustix::net::bind(socket, &address).map_err(Errno::raw_os_error)
}

/// Binds a socket that was made elsewhere, TCP or UDP, to an address of its own network namespace.
pub(crate) fn bind(socket: impl AsFd, address: SocketAddr) -> Result<()> {
    let socket = socket.as_fd();
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(socket, true).map_err(|e| failed("setsockopt IPV6_V6ONLY", e))?;
    }
    if sockopt::socket_type(socket).is_ok_and(|kind| kind == SocketType::STREAM) {
        sockopt::set_socket_reuseaddr(socket, true).map_err(|e| failed("setsockopt SO_REUSEADDR", e))?;
    }
    rustix::net::bind(socket, &address).map_err(|e| failed(format!("bind({address})"), e))
}

/// A fresh UDP socket of the host for datagrams to and from `address`.
pub(crate) fn open_datagrams(address: SocketAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(family, SocketType::DGRAM, flags, None)
        .map_err(|e| failed(format!("socket({address})"), e))
}

/// A fresh TCP socket of the host for a connection to `address`.
pub(crate) fn open(address: SocketAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
        .map_err(|e| failed(format!("socket({address})"), e))?;
    Ok(socket)
}

fn bound(address: SocketAddr, kind: SocketType, span: Span) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let wrap = |call: &str| {
        let call = format!("{call}({address})");
        move |e| failed(call, e)
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None).map_err(wrap("socket"))?;
    if kind == SocketType::STREAM {
        // A port whose last connections linger in TIME_WAIT is free; one with a listener stays taken all the same. UDP
        // knows no such wait, and two sockets with the option would share a port.
        sockopt::set_socket_reuseaddr(&socket, true).map_err(wrap("setsockopt SO_REUSEADDR"))?;
        sockopt::set_tcp_nodelay(&socket, true).map_err(wrap("setsockopt TCP_NODELAY"))?;
    }
    if address.is_ipv6() {
        let only = span == Span::OneFamily;
        sockopt::set_ipv6_v6only(&socket, only).map_err(wrap("setsockopt IPV6_V6ONLY"))?;
    }
    rustix::net::bind(&socket, &address).map_err(wrap("bind"))?;
    Ok(socket)
}

/// The address that a socket is bound to.
pub(crate) fn local_address(socket: impl AsFd) -> Result<SocketAddr> {
    let address = rustix::net::getsockname(socket).map_err(|e| failed("getsockname()", e))?;
    SocketAddr::try_from(address).map_err(|e| failed("getsockname()", e))
}

/// The address of the other side.
pub(crate) fn peer_address(socket: impl AsFd) -> Result<SocketAddr> {
    let address = rustix::net::getpeername(socket).map_err(|e| failed("getpeername()", e))?;
    let address = address.ok_or_else(|| failed("getpeername()", Errno::NOTCONN))?;
    SocketAddr::try_from(address).map_err(|e| failed("getpeername()", e))
}

/// Takes a connection that waits; the error is a number.
pub(crate) fn accept(listener: impl AsFd) -> Result<OwnedFd, i32> {
    rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).map_err(Errno::raw_os_error)
}

/// Begins or goes on to connect; `true` when that is done. The error is a number.
///
/// Within one host the answer is there when the first call returns, only not in its result: the kernel looks at what
/// came in while it held the socket after it has decided what to return. So it is asked a second time.
pub(crate) fn connect(socket: impl AsFd, address: SocketAddr) -> Result<bool, i32> {
    let socket = socket.as_fd();
    let mut result = rustix::net::connect(socket, &address);
    if result == Err(Errno::INPROGRESS) {
        result = rustix::net::connect(socket, &address);
    }
    match result {
        Ok(()) => Ok(true),
        Err(Errno::INPROGRESS | Errno::ALREADY) => Ok(false),
        Err(e) => Err(e.raw_os_error()),
    }
}

/// Begins to connect a fresh TCP socket and says something at once; how much of it could be said, or `None` when the
/// connection is not there yet. The error is a number.
///
/// The last word of the handshake is left to go with the first bytes: the server is woken once, and finds something to
/// read.
pub(crate) fn connect_saying(socket: impl AsFd, address: SocketAddr, words: &[u8]) -> Result<Option<usize>, i32> {
    let socket = socket.as_fd();
    // Without it there is only one packet more.
    let _ = sockopt::set_tcp_quickack(socket, false);
    match rustix::net::connect(socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => match send(socket, words) {
            Outcome::Moved(bytes) => Ok(Some(bytes)),
            Outcome::NotNow => Ok(None),
            Outcome::Failed(errno) => Err(errno),
        },
        Err(e) => Err(e.raw_os_error()),
    }
}

/// Sends small pieces at once.
pub(crate) fn set_no_delay(socket: impl AsFd) {
    // Speed alone hangs on it, and a TCP socket does not refuse it.
    let _ = sockopt::set_tcp_nodelay(socket, true);
}

/// Makes closing the socket abort the connection: the peer sees a reset, not an orderly end.
pub(crate) fn reset_on_close(socket: impl AsFd) {
    // When it fails the peer sees an end instead; nothing better can be done.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

/// Tells the peer that nothing more comes. An error means that the connection is gone, which the next read says too.
pub(crate) fn shutdown_write(socket: impl AsFd) {
    let _ = rustix::net::shutdown(socket, Shutdown::Write);
}

/// Reads what is there.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Outcome {
    let socket = socket.as_fd();
    outcome(|| rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT).map(|(bytes, _)| bytes))
}

/// Writes as much as there is room for.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8]) -> Outcome {
    let socket = socket.as_fd();
    outcome(|| rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL))
}

/// Writes as much as there is room for, of what is the last before an end that is said in the next call: both may travel
/// together.
pub(crate) fn send_last(socket: impl AsFd, bytes: &[u8]) -> Outcome {
    let socket = socket.as_fd();
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL | SendFlags::MORE;
    outcome(|| rustix::net::send(socket, bytes, flags))
}

/// A pipe that carries data between two sockets without copying it to the process and back.
#[derive(Debug)]
pub(crate) struct Pipe {
    output: OwnedFd,
    input: OwnedFd,
    capacity: usize,
}

impl Pipe {
    /// Makes one of about `bytes` bytes, or less where the user's limit for pipes is reached.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        let (output, input) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|e| failed("pipe2(O_NONBLOCK)", e))?;
        let capacity = rustix::pipe::fcntl_setpipe_size(&input, bytes)
            .or_else(|_| rustix::pipe::fcntl_getpipe_size(&input))
            .map_err(|e| failed("fcntl(F_GETPIPE_SZ)", e))?;
        Ok(Self { output, input, capacity })
    }

    /// Moves what a socket received into the pipe; 0 is the socket's end. Not to be called when the pipe holds something:
    /// it could not be told which of the two is not ready.
    pub(crate) fn fill(&self, socket: impl AsFd) -> Outcome {
        let socket = socket.as_fd();
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        outcome(|| rustix::pipe::splice(socket, None, &self.input, None, self.capacity, flags))
    }

    /// Moves up to `bytes` bytes from the pipe to a socket.
    pub(crate) fn drain(&self, socket: impl AsFd, bytes: usize) -> Outcome {
        let socket = socket.as_fd();
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        outcome(|| rustix::pipe::splice(&self.output, None, socket, None, bytes, flags))
    }
}

/// Waits until the socket can be written, or the time is over: `false`.
pub(crate) fn wait_writable(socket: impl AsFd, timeout: Option<Duration>) -> Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let deadline = timeout.map(|time| std::time::Instant::now() + time);
    loop {
        let left = deadline.map(|end| end.saturating_duration_since(std::time::Instant::now()));
        let left = left.map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        match poll(&mut [PollFd::new(&socket, PollFlags::OUT)], left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(failed("poll(POLLOUT)", e)),
        }
    }
}

/// Whether it is a TCP socket of IPv4 or IPv6 that takes connections.
pub(crate) fn is_tcp_listener(socket: impl AsFd) -> bool {
    let socket = socket.as_fd();
    let tcp = sockopt::socket_type(socket).is_ok_and(|kind| kind == SocketType::STREAM)
        && sockopt::socket_domain(socket).is_ok_and(|it| matches!(it, AddressFamily::INET | AddressFamily::INET6));
    tcp && sockopt::socket_acceptconn(socket).unwrap_or(false)
}

/// Lets the socket take connections; the kernel cuts the queue to `net.core.somaxconn`. The error is a number.
pub(crate) fn start_listening(socket: impl AsFd) -> Result<(), i32> {
    rustix::net::listen(socket, 4096).map_err(Errno::raw_os_error)
}

/// Makes calls on the socket never wait.
pub(crate) fn set_nonblocking(socket: impl AsFd) -> Result<()> {
    rustix::io::ioctl_fionbio(socket, true).map_err(|e| failed("ioctl(FIONBIO)", e))
}

/// Makes calls on the socket wait again.
pub(crate) fn set_blocking(socket: impl AsFd) -> Result<()> {
    rustix::io::ioctl_fionbio(socket, false).map_err(|e| failed("ioctl(FIONBIO)", e))
}

/// The error that the socket has met since it was last asked, which is forgotten now.
pub(crate) fn take_error(socket: impl AsFd) -> Option<i32> {
    sockopt::socket_error(socket).ok()?.err().map(Errno::raw_os_error)
}

/// How many descriptors this process may have, and about how many it has.
pub(crate) fn descriptors() -> (u64, u64) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let open = super::fs::read_dir(std::path::Path::new("/proc/self/fd")).map_or(0, |open| open.len());
    (limit, open as u64)
}

/// The error of `call` for an error number.
pub(crate) fn error(call: impl std::fmt::Display, errno: i32) -> Error {
    Error::from_errno(call, errno)
}
