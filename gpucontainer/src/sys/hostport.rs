//! Ports of the host that sockets in containers serve: how a port stays taken while nobody listens, and how a socket is
//! kept from being anything but that port.
//!
//! ```text
//! A   bound for as long as the port is published, listens to nobody       the reservation
//! B   bound to the same address for one server of the container, listens   given away
//! ```
//! Two sockets may be bound to one address while both allow it (`SO_REUSEADDR`) and neither listens. So A allows it for
//! the moment in which a B is made. While B listens a second B cannot be made, as a second server could not bind; after
//! the container has closed B, clients are refused, and the next B can be made.
//!
//! A socket of the host in the hands of a container must not lead to services that listen on the host's loopback
//! addresses. Whatever the container does with it (disconnect it and connect it, bind it again, let it listen anew),
//! nothing that comes back reaches it but segments to its own port that open, carry on or end connections of clients: the
//! locked packet filter sees to it, and every connection accepted from the socket inherits it.

#![allow(unsafe_code, reason = "socket options that no crate has")]

use super::errno::failed;
use super::seccomp::{Instruction, JUMP_EQUAL, RETURN};
use crate::error::Result;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The longest queue of clients; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

// Instruction codes, from <linux/bpf_common.h>, beside those that filters of system calls have.
/// Load 32 bits at `k`.
const LOAD_WORD: u16 = 0x20;
/// Load 16 bits at `k`.
const LOAD_HALF: u16 = 0x28;
/// Load 8 bits at `k`.
const LOAD_BYTE: u16 = 0x30;
/// Keep the bits of `k`.
const AND: u16 = 0x54;
/// Any bit of `k` set.
const JUMP_SET: u16 = 0x45;

// Where a TCP header, with which such a filter's view begins, has what.
const DESTINATION: u32 = 2;
const SEQUENCE: u32 = 4;
const FLAGS: u32 = 13;
const SYN: u32 = 0x02;
const RST: u32 = 0x04;
const ACK: u32 = 0x10;

/// Segments that a socket for clients on `port` may get.
fn filter(port: u16) -> [Instruction; 11] {
    let step = |code, k, jt, jf| Instruction { code, jt, jf, k };
    [
        step(LOAD_HALF, DESTINATION, 0, 0),
        step(JUMP_EQUAL, port.into(), 0, 8),
        step(LOAD_BYTE, FLAGS, 0, 0),
        // The answer to a connection that the socket itself opens: never, so none is ever established.
        step(AND, SYN | ACK, 0, 0),
        step(JUMP_EQUAL, SYN | ACK, 5, 0),
        step(LOAD_BYTE, FLAGS, 0, 0),
        step(JUMP_SET, RST, 0, 2),
        // The answer of a closed port, by which closed ports would be told from open ones.
        step(LOAD_WORD, SEQUENCE, 0, 0),
        step(JUMP_EQUAL, 0, 1, 0),
        step(RETURN, u32::MAX, 0, 0),
        step(RETURN, 0, 0, 0),
    ]
}

/// Lets the TCP socket serve clients of `port` and do nothing else, for ever, and all connections accepted from it.
pub(crate) fn lock(socket: impl AsFd, port: u16) -> Result<()> {
    attach(socket.as_fd(), &filter(port))
}

fn attach(socket: BorrowedFd<'_>, program: &[Instruction]) -> Result<()> {
    let len = u16::try_from(program.len()).unwrap_or_default();
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    set(socket, libc::SO_ATTACH_FILTER, &program).map_err(|e| failed("setsockopt(SO_ATTACH_FILTER)", e))?;
    set(socket, libc::SO_LOCK_FILTER, &1_i32).map_err(|e| failed("setsockopt(SO_LOCK_FILTER)", e))
}

/// Whether the caller may [lock] sockets of the host. Some kernels let only those do it who have `CAP_NET_ADMIN`: a user
/// who has not could learn from filters what a connection's other end did not mean to tell.
pub(crate) fn can_lock() -> bool {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
        .is_ok_and(|socket| lock(&socket, 1).is_ok())
}

fn set<T>(socket: BorrowedFd<'_>, option: i32, value: &T) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the kernel reads `length` bytes, the size of `value`, and, for a program of a filter, the instructions that it
    // counts; both live until the call returns.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, length) };
    if result == 0 { Ok(()) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)) }
}

/// Makes a listening socket of [`socket::listen`](super::socket::listen) a reservation: the port stays taken, and clients are refused.
pub(crate) fn stop_listening(reserved: impl AsFd) -> Result<()> {
    let reserved = reserved.as_fd();
    match rustix::net::shutdown(reserved, Shutdown::Read) {
        // It does not listen as it is.
        Ok(()) | Err(Errno::NOTCONN) => {}
        Err(e) => return Err(failed("shutdown(reserved port)", e)),
    }
    sockopt::set_socket_reuseaddr(reserved, false).map_err(|e| failed("setsockopt(SO_REUSEADDR)", e))
}

/// Makes a socket that holds a port of TCP or UDP a reservation: the port stays taken, and whoever comes is refused.
pub(crate) fn make_reservation(reserved: impl AsFd) -> Result<()> {
    let reserved = reserved.as_fd();
    if !is_of_datagrams(reserved) {
        return stop_listening(reserved);
    }
    let own = super::socket::local_address(reserved)?;
    // Connected to itself it hears nobody else. One for all addresses would hold one of them then, so that it stays as it
    // is: what comes is lost until the port is served.
    if !own.ip().is_unspecified() {
        rustix::net::connect(reserved, &own).map_err(|e| failed(format!("connect({own})"), e))?;
    }
    Ok(())
}

pub(super) fn is_of_datagrams(socket: BorrowedFd<'_>) -> bool {
    sockopt::socket_type(socket).is_ok_and(|kind| kind == SocketType::DGRAM)
}

/// Has a socket of UDP get nothing any more, for ever.
pub(crate) fn silence(socket: impl AsFd) -> Result<()> {
    attach(socket.as_fd(), &[Instruction { code: RETURN, jt: 0, jf: 0, k: 0 }])
}

/// What kind of socket serves a port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// An IPv6 socket, which for an IPv4 address sees its clients as `::ffff:A.B.C.D`.
    pub(crate) v6: bool,
    /// Others of the same kind may listen beside it.
    pub(crate) shared: bool,
    /// It is [locked](lock) to its port.
    pub(crate) locked: bool,
}

/// Makes a socket that serves the port beside the reservation of its address.
///
/// The error is a number: `EADDRINUSE` while another one serves it, `EAFNOSUPPORT` for an IPv6 address and a socket of IPv4.
pub(crate) fn listen_beside(reserved: impl AsFd, kind: Kind) -> Result<OwnedFd, i32> {
    beside(reserved.as_fd(), kind).map_err(Errno::raw_os_error)
}

fn beside(reserved: BorrowedFd<'_>, kind: Kind) -> Result<OwnedFd, Errno> {
    let address = SocketAddr::try_from(rustix::net::getsockname(reserved)?)?;
    let datagrams = is_of_datagrams(reserved);
    let (family, address, only) = match (kind.v6, address.ip()) {
        // Of sockets for all addresses that of the client's family hears it.
        (false, IpAddr::V6(ip)) if datagrams && ip.is_unspecified() && !sockopt::ipv6_v6only(reserved)? => {
            (AddressFamily::INET, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()), None)
        }
        (false, IpAddr::V6(_)) => return Err(Errno::AFNOSUPPORT),
        (false, IpAddr::V4(_)) => (AddressFamily::INET, address, None),
        (true, IpAddr::V4(ip)) => {
            (AddressFamily::INET6, SocketAddr::new(IpAddr::V6(ip.to_ipv6_mapped()), address.port()), Some(false))
        }
        (true, IpAddr::V6(_)) => (AddressFamily::INET6, address, Some(sockopt::ipv6_v6only(reserved)?)),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let of = if datagrams { SocketType::DGRAM } else { SocketType::STREAM };
    let socket = rustix::net::socket_with(family, of, flags, None)?;
    if kind.locked {
        lock(&socket, address.port()).map_err(|e| Errno::from_raw_os_error(e.errno().unwrap_or(libc::EINVAL)))?;
    }
    if let Some(only) = only {
        sockopt::set_ipv6_v6only(&socket, only)?;
    }
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Of several sockets of UDP for all addresses of IPv6 the kernel prefers those that do not share, as the reservation.
    let hidden = datagrams && address.is_ipv6() && address.ip().is_unspecified();
    if kind.shared && !hidden {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    let open = Ajar::open(reserved)?;
    rustix::net::bind(&socket, &address)?;
    if datagrams {
        // That it serves the port is what keeps a second one from it.
        sockopt::set_socket_reuseaddr(&socket, false)?;
    } else {
        rustix::net::listen(&socket, BACKLOG)?;
    }
    drop(open);
    Ok(socket)
}

/// A reservation that another socket may be bound beside, until dropped.
struct Ajar<'fd>(BorrowedFd<'fd>);

impl<'fd> Ajar<'fd> {
    fn open(reserved: BorrowedFd<'fd>) -> Result<Self, Errno> {
        sockopt::set_socket_reuseaddr(reserved, true)?;
        Ok(Self(reserved))
    }
}

impl Drop for Ajar<'_> {
    fn drop(&mut self) {
        // A socket does not refuse it.
        let _ = sockopt::set_socket_reuseaddr(self.0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::super::socket::{self, Span};
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Ipv6Addr, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    const V4: Kind = Kind { v6: false, shared: false, locked: false };
    const V6: Kind = Kind { v6: true, shared: false, locked: false };
    const LOCKED: Kind = Kind { locked: true, ..V4 };

    fn may_lock() -> bool {
        let may = can_lock();
        if !may {
            eprintln!("SKIP: this kernel lets only CAP_NET_ADMIN filter what TCP sockets get");
        }
        may
    }

    fn reserve(address: &str) -> (OwnedFd, SocketAddr) {
        let reserved = socket::listen(address.parse().unwrap(), Span::OneFamily).unwrap();
        let address = socket::local_address(&reserved).unwrap();
        stop_listening(&reserved).unwrap();
        (reserved, address)
    }

    fn refused(address: SocketAddr) -> bool {
        TcpStream::connect(address).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
    }

    /// A blocking listener for the standard library.
    fn listener(socket: OwnedFd) -> TcpListener {
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(false).unwrap();
        listener
    }

    fn serve_one(listener: &TcpListener, address: SocketAddr) -> (TcpStream, TcpStream) {
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(b"ask").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut asked = [0; 3];
        server.read_exact(&mut asked).unwrap();
        server.write_all(b"say").unwrap();
        client.read_exact(&mut asked).unwrap();
        assert_eq!(&asked, b"say");
        (client, server)
    }

    #[test]
    fn a_reserved_port_behaves_like_one_whose_server_comes_and_goes() {
        for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
            let kind = if address.starts_with('[') { V6 } else { V4 };
            let (reserved, address) = reserve(address);
            let taken = |e: std::io::Error| e.kind() == std::io::ErrorKind::AddrInUse;
            for _ in 0..3 {
                assert!(refused(address), "nobody serves {address}");
                // The standard library sets SO_REUSEADDR.
                assert!(TcpListener::bind(address).is_err_and(taken), "{address} is taken");
                let server = listener(listen_beside(&reserved, kind).unwrap());
                assert!(TcpListener::bind(address).is_err_and(taken), "{address} is taken");
                assert_eq!(listen_beside(&reserved, kind).unwrap_err(), libc::EADDRINUSE);
                // Connections outlive the listener, and keep nobody from the port.
                let connections = serve_one(&server, address);
                drop(server);
                let again = listener(listen_beside(&reserved, kind).unwrap());
                drop(connections);
                drop(serve_one(&again, address));
            }
            drop(reserved);
            TcpListener::bind(address).unwrap();
        }
    }

    #[test]
    fn workers_share_a_port_when_both_want_it() {
        let (reserved, address) = reserve("127.0.0.1:0");
        let shared = Kind { shared: true, ..V4 };
        let workers: Vec<_> = (0..4).map(|_| listener(listen_beside(&reserved, shared).unwrap())).collect();
        assert_eq!(listen_beside(&reserved, V4).unwrap_err(), libc::EADDRINUSE);
        let clients: Vec<_> = (0..64).map(|_| TcpStream::connect(address).unwrap()).collect();
        let count = |worker: &TcpListener| {
            worker.set_nonblocking(true).unwrap();
            std::iter::from_fn(|| worker.accept().ok()).count()
        };
        let counts: Vec<usize> = workers.iter().map(count).collect();
        assert_eq!(counts.iter().sum::<usize>(), 64, "{counts:?}");
        assert!(counts.iter().filter(|count| **count > 0).count() > 1, "{counts:?}");
        drop((clients, workers));
        assert!(refused(address));
        drop(listen_beside(&reserved, V4).unwrap());
    }

    #[test]
    fn an_ipv6_socket_serves_an_ipv4_address() {
        let (reserved, address) = reserve("127.0.0.1:0");
        let server = listener(listen_beside(&reserved, V6).unwrap());
        let (client, connection) = serve_one(&server, address);
        let mapped = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x7f00, 1);
        assert_eq!(connection.peer_addr().unwrap().ip(), IpAddr::V6(mapped));
        assert_eq!(client.local_addr().unwrap().port(), connection.peer_addr().unwrap().port());
        let (six, _) = reserve("[::1]:0");
        assert_eq!(listen_beside(&six, V4).unwrap_err(), libc::EAFNOSUPPORT);
    }

    /// Disconnects a socket, which then can be connected.
    fn disconnect(socket: &impl AsRawFd) {
        let nothing = libc::sockaddr { sa_family: 0, sa_data: [0; 14] };
        // SAFETY: the address is as long as the call says.
        let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nothing, 16) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// Tries to connect and to say something; whether the service heard it, or whether the socket learned something.
    fn reaches(socket: impl AsFd, service: SocketAddr, listens: bool) -> bool {
        let patience = Duration::from_millis(300);
        rustix::io::ioctl_fionbio(&socket, true).unwrap();
        let start = Instant::now();
        while start.elapsed() < patience {
            let done = socket::connect(&socket, service);
            match done {
                Ok(true) => return true,
                Err(libc::ECONNREFUSED) if !listens => return true,
                _ => {}
            }
            assert_eq!(done, Ok(false));
            if socket::send(&socket, b"x") != socket::Outcome::NotNow {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    #[test]
    fn a_locked_socket_leads_to_no_other_service() {
        if !may_lock() {
            return;
        }
        let service = TcpListener::bind("127.0.0.1:0").unwrap();
        service.set_nonblocking(true).unwrap();
        let there = service.local_addr().unwrap();
        let closed = {
            let closed = TcpListener::bind("127.0.0.1:0").unwrap();
            closed.local_addr().unwrap()
        };
        // That the attempt succeeds with an ordinary socket is what makes its failure worth something.
        let plain = socket::listen("127.0.0.1:0".parse().unwrap(), Span::OneFamily).unwrap();
        disconnect(&plain);
        assert!(reaches(&plain, there, true));
        // The client may know a little before the service does.
        let start = Instant::now();
        while service.accept().is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "nobody came");
            std::thread::yield_now();
        }
        disconnect(&plain);
        assert!(reaches(&plain, closed, false), "a closed port is told from an open one");

        let (reserved, address) = reserve("127.0.0.1:0");
        let server = listener(listen_beside(&reserved, LOCKED).unwrap());
        let (client, connection) = serve_one(&server, address);
        drop(client);
        let (server, connection) = (OwnedFd::from(server), OwnedFd::from(connection));
        for socket in [&server, &connection] {
            for (service, listens) in [(there, true), (closed, false)] {
                disconnect(socket);
                assert!(!reaches(socket, service, listens), "{service}");
            }
        }
        let elsewhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
        assert_eq!(rustix::net::bind(&server, &elsewhere), Err(Errno::INVAL));
        // A connection that is disconnected can be bound anew, but whoever comes there gets no answer.
        disconnect(&connection);
        rustix::net::bind(&connection, &elsewhere).unwrap();
        rustix::net::listen(&connection, 8).unwrap();
        assert!(is_silent(socket::local_address(&connection).unwrap()));
        assert!(service.accept().is_err(), "somebody came");
    }

    #[test]
    fn the_lock_holds_also_where_a_socket_got_another_port() {
        if !may_lock() {
            return;
        }
        // However it came by one, with an option that does not exist yet, say.
        let locked = bound_anywhere();
        lock(&locked, 1).unwrap();
        rustix::net::listen(&locked, 8).unwrap();
        let address = socket::local_address(&locked).unwrap();
        assert!(is_silent(address));
        for (option, value) in [(libc::SO_DETACH_FILTER, 0), (libc::SO_LOCK_FILTER, 0)] {
            assert_eq!(set(locked.as_fd(), option, &value), Err(Errno::PERM));
        }
        assert!(lock(&locked, address.port()).is_err());
    }

    fn is_silent(address: SocketAddr) -> bool {
        let waited = TcpStream::connect_timeout(&address, Duration::from_millis(300));
        waited.is_err_and(|e| e.kind() == std::io::ErrorKind::TimedOut)
    }

    fn bound_anywhere() -> OwnedFd {
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
        rustix::net::bind(&socket, &anywhere).unwrap();
        socket
    }
}
