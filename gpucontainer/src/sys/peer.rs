//! A process of a container, looked into from outside.

#![allow(unsafe_code, reason = "reading the memory of another process")]

use super::socket;
use super::{fs, hostport};
use crate::error::{Error, Result};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

/// A process by one of its threads.
#[derive(Debug)]
pub(crate) struct Peer {
    thread: i32,
    process: i32,
    pidfd: OwnedFd,
}

/// A descriptor of an epoll instance that watches a socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Watched {
    /// The number of the instance.
    pub(crate) instance: i32,
    /// The number by which the socket was added, which may be one that it had once.
    pub(crate) socket: i32,
    /// What is waited for.
    pub(crate) events: u32,
    /// What the process gets told.
    pub(crate) data: u64,
}

impl Peer {
    /// The process of `thread`. Whoever is asked for by a number may be gone by now: that the thread still waits for its
    /// answer is to be seen after this.
    pub(crate) fn of_thread(thread: i32) -> Result<Self> {
        let status = fs::read_to_string(&PathBuf::from(format!("/proc/{thread}/status")))?;
        let process = field(&status, "Tgid:").and_then(|text| text.parse().ok()).unwrap_or(thread);
        let wanted = || format!("pidfd_open({process})");
        let pid = rustix::process::Pid::from_raw(process).ok_or_else(|| Error::from_errno(wanted(), libc::ESRCH))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| Error::from_errno(wanted(), e.raw_os_error()))?;
        Ok(Self { thread, process, pidfd })
    }

    /// A copy of its descriptor `number`; the error is a number.
    pub(crate) fn descriptor(&self, number: i32) -> Result<OwnedFd, i32> {
        if number < 0 {
            return Err(libc::EBADF);
        }
        pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty()).map_err(Errno::raw_os_error)
    }

    /// The internet address of `length` bytes at `at` in its memory; `None` if that is another kind of address, and an
    /// error number if there is none.
    pub(crate) fn address(&self, at: u64, length: u32) -> Result<Option<SocketAddr>, i32> {
        // `struct sockaddr_in6`, the longer one.
        let mut bytes = [0_u8; 28];
        let count = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
        let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: count };
        let remote = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: count };
        // SAFETY: `local` is of `count` bytes of ours; the other address is of the other process, where nothing is written.
        let read = unsafe { libc::process_vm_readv(self.thread, &raw const local, 1, &raw const remote, 1, 0) };
        match usize::try_from(read) {
            Ok(read) if read == count => Ok(parse_address(&bytes[..count])),
            Ok(_) => Err(libc::EFAULT),
            Err(_) => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EFAULT)),
        }
    }

    /// Whether the descriptor is closed on exec.
    pub(crate) fn closes_on_exec(&self, number: i32) -> bool {
        let flags = self.information(number).as_deref().and_then(|text| field(text, "flags:").map(str::to_owned));
        let flags = flags.and_then(|flags| i32::from_str_radix(&flags, 8).ok());
        flags.is_none_or(|flags| flags & libc::O_CLOEXEC != 0)
    }

    fn information(&self, number: i32) -> Option<String> {
        fs::read_to_string(&PathBuf::from(format!("/proc/{}/fdinfo/{number}", self.process))).ok()
    }

    /// The places at which its epoll instances watch what is at `number`.
    pub(crate) fn watched(&self, number: i32) -> Vec<Watched> {
        let directory = PathBuf::from(format!("/proc/{}/fd", self.process));
        let Ok(descriptors) = fs::read_dir(&directory) else { return Vec::new() };
        let mut found = Vec::new();
        for path in descriptors {
            let is_epoll = fs::read_link(&path).is_ok_and(|to| to.as_os_str() == "anon_inode:[eventpoll]");
            let instance = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            let (true, Some(instance)) = (is_epoll, instance) else { continue };
            let text = self.information(instance).unwrap_or_default();
            found.extend(parse_watched(&text, instance).filter(|watched| watched.socket == number));
        }
        found
    }
}

/// The word after `name` at a line's beginning.
fn field<'text>(text: &'text str, name: &str) -> Option<&'text str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// From lines like `tfd:        5 events:       19 data: ffffffff00000005  pos:0 ino:…`; numbers but the first in
/// hexadecimal.
fn parse_watched(text: &str, instance: i32) -> impl Iterator<Item = Watched> {
    text.lines().filter_map(move |line| {
        let rest = line.strip_prefix("tfd:")?;
        let (socket, rest) = rest.split_once("events:")?;
        let (events, rest) = rest.split_once("data:")?;
        Some(Watched {
            instance,
            socket: socket.trim().parse().ok()?,
            events: u32::from_str_radix(events.trim(), 16).ok()?,
            data: u64::from_str_radix(rest.split_whitespace().next()?, 16).ok()?,
        })
    })
}

/// `struct sockaddr_in` or `struct sockaddr_in6`.
fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
        bytes.get(at..at + N)?.try_into().ok()
    }
    let family = i32::from(u16::from_ne_bytes(part(bytes, 0)?));
    let port = u16::from_be_bytes(part(bytes, 2)?);
    match family {
        libc::AF_INET => Some(SocketAddrV4::new(Ipv4Addr::from(part::<4>(bytes, 4)?), port).into()),
        libc::AF_INET6 => {
            let flow = u32::from_ne_bytes(part(bytes, 4)?);
            let address = Ipv6Addr::from(part::<16>(bytes, 8)?);
            // An old form of the structure lacks the scope.
            let scope = part(bytes, 24).map_or(0, u32::from_ne_bytes);
            Some(SocketAddrV6::new(address, port, flow, scope).into())
        }
        _ => None,
    }
}

/// What kind of socket a descriptor is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SocketKind {
    /// Of IPv6, else of IPv4.
    pub(crate) v6: bool,
    /// TCP; if neither, it is something else of the internet's.
    pub(crate) tcp: bool,
    /// UDP.
    pub(crate) udp: bool,
    /// Which network namespace it belongs to; 0 before Linux 5.14.
    pub(crate) namespace: u64,
}

/// What kind of socket of the internet's it is, if it is one.
pub(crate) fn socket_kind(descriptor: &OwnedFd) -> Option<SocketKind> {
    let number = |option| option_value::<i32>(descriptor, libc::SOL_SOCKET, option);
    let v6 = match number(libc::SO_DOMAIN)? {
        libc::AF_INET => false,
        libc::AF_INET6 => true,
        _ => return None,
    };
    let kind = (number(libc::SO_TYPE)?, number(libc::SO_PROTOCOL)?);
    let (tcp, udp) = (kind == (libc::SOCK_STREAM, libc::IPPROTO_TCP), kind == (libc::SOCK_DGRAM, libc::IPPROTO_UDP));
    Some(SocketKind { v6, tcp, udp, namespace: namespace_cookie(descriptor) })
}

/// Names the network namespace of a socket, for as long as the system runs.
pub(crate) fn namespace_cookie(socket: &OwnedFd) -> u64 {
    const SO_NETNS_COOKIE: i32 = 71;
    option_value(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE).unwrap_or_default()
}

fn option_value<T: Default + Copy>(socket: &OwnedFd, level: i32, option: i32) -> Option<T> {
    let mut value = T::default();
    let mut length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    let place = std::ptr::from_mut(&mut value).cast();
    // SAFETY: the kernel writes at most `length` bytes, the size of `value`, which is of plain numbers.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, place, &raw mut length) };
    (result == 0).then_some(value)
}

fn set_option<T: Copy>(socket: &OwnedFd, level: i32, option: i32, value: T) {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    let place = std::ptr::from_ref(&value).cast();
    // SAFETY: the kernel reads `length` bytes, the size of `value`.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, place, length) };
    if result != 0 {
        tracing::debug!(level, option, "an option of a container's socket cannot be had on the host");
    }
}

/// `struct linger` and `struct timeval`.
type Pair<T> = [T; 2];

/// Options of one number that listening sockets have, and that connections inherit from them; and those of UDP.
const OPTIONS: &[(i32, i32)] = &[
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS),
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
    (libc::IPPROTO_IP, libc::IP_RECVTOS),
    (libc::IPPROTO_IP, libc::IP_RECVTTL),
    (libc::IPPROTO_IP, libc::IP_RECVERR),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    (libc::IPPROTO_UDP, libc::UDP_GRO),
    (libc::IPPROTO_UDP, libc::UDP_SEGMENT),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    (libc::SOL_SOCKET, libc::SO_TIMESTAMP),
    (libc::SOL_SOCKET, libc::SO_INCOMING_CPU),
    (libc::SOL_SOCKET, libc::SO_ZEROCOPY),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_MAXSEG),
    (libc::IPPROTO_TCP, libc::TCP_CORK),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT),
    (libc::IPPROTO_TCP, libc::TCP_LINGER2),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP),
    (libc::IPPROTO_TCP, libc::TCP_QUICKACK),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
];

/// Gives `to` the options of `from` that differ, and its file status flags.
pub(crate) fn copy_options(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    const SO_BUF_LOCK: i32 = 72;
    for &(level, option) in OPTIONS {
        let wanted = option_value::<i32>(from, level, option);
        if let Some(wanted) = wanted.filter(|wanted| option_value(to, level, option) != Some(*wanted)) {
            set_option(to, level, option, wanted);
        }
    }
    for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        let wanted = option_value::<Pair<i64>>(from, libc::SOL_SOCKET, option);
        if let Some(wanted) = wanted.filter(|wanted| *wanted != [0, 0]) {
            set_option(to, libc::SOL_SOCKET, option, wanted);
        }
    }
    if let Some(linger) = option_value::<Pair<i32>>(from, libc::SOL_SOCKET, libc::SO_LINGER).filter(|it| it[0] != 0) {
        set_option(to, libc::SOL_SOCKET, libc::SO_LINGER, linger);
    }
    // The size of a buffer that nobody has set grows with the connection, and says nothing.
    let locked = option_value::<i32>(from, libc::SOL_SOCKET, SO_BUF_LOCK).unwrap_or_default();
    for (bit, option) in [(1, libc::SO_SNDBUF), (2, libc::SO_RCVBUF)] {
        if let Some(bytes) = option_value::<i32>(from, libc::SOL_SOCKET, option).filter(|_| locked & bit != 0) {
            // The kernel says twice what it was told.
            set_option(to, libc::SOL_SOCKET, option, bytes / 2);
        }
    }
    let flags = rustix::fs::fcntl_getfl(from).map_err(|e| super::errno::failed("fcntl(socket, F_GETFL)", e))?;
    rustix::fs::fcntl_setfl(to, flags).map_err(|e| super::errno::failed("fcntl(socket, F_SETFL)", e))
}

/// Whether others of the same kind may be bound beside the socket, and whether an IPv6 socket takes IPv6 alone.
pub(crate) fn sharing(socket: &OwnedFd) -> (bool, bool) {
    let is_set = |level, option| option_value::<i32>(socket, level, option).is_some_and(|value| value != 0);
    (is_set(libc::SOL_SOCKET, libc::SO_REUSEPORT), is_set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY))
}

/// Names a socket among those that exist.
pub(crate) fn inode(socket: &OwnedFd) -> Option<u64> {
    rustix::fs::fstat(socket).ok().map(|facts| facts.st_ino)
}

/// Makes a socket of a port take nobody any more: one that listens listens no more, one of UDP hears nothing.
pub(crate) fn stop_taking(socket: &OwnedFd) {
    // One that is shut down would be ready for ever, and its server never rest.
    if hostport::is_of_datagrams(socket.as_fd()) && hostport::silence(socket).is_ok() {
        return;
    }
    // One that does not listen is what is wanted.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Read);
}

/// Binds a socket; the error is a number.
pub(crate) fn bind(socket: &OwnedFd, address: SocketAddr) -> Result<(), i32> {
    rustix::net::bind(socket, &address).map_err(Errno::raw_os_error)
}

/// Whether the socket has a port already; the error of asking is that it has none.
pub(crate) fn is_bound(socket: &OwnedFd) -> bool {
    socket::local_address(socket).is_ok_and(|address| address.port() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read() {
        let text = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1057\n\
                    tfd:        5 events:       19 data: ffffffff00000005  pos:0 ino:c sdev:9\n\
                    tfd:       17 events: 80002019 data:               11  pos:0 ino:c sdev:9\nnonsense\ntfd: x\n";
        let all: Vec<_> = parse_watched(text, 3).collect();
        let of = |socket, events, data| Watched { instance: 3, socket, events, data };
        assert_eq!(all, [of(5, 0x19, 0xffff_ffff_0000_0005), of(17, 0x8000_2019, 0x11)]);
        assert_eq!(field(text, "flags:"), Some("02000002"));
    }

    #[test]
    fn addresses_are_read() {
        let mut four = vec![0_u8; 16];
        four[..2].copy_from_slice(&u16::try_from(libc::AF_INET).unwrap().to_ne_bytes());
        four[2..8].copy_from_slice(&[0x1f, 0x90, 127, 0, 0, 1]);
        assert_eq!(parse_address(&four), Some("127.0.0.1:8080".parse().unwrap()));
        let mut six = vec![0_u8; 28];
        six[..2].copy_from_slice(&u16::try_from(libc::AF_INET6).unwrap().to_ne_bytes());
        six[2..4].copy_from_slice(&[0, 80]);
        six[23] = 1;
        assert_eq!(parse_address(&six), Some("[::1]:80".parse().unwrap()));
        assert_eq!(parse_address(&six[..24]), Some("[::1]:80".parse().unwrap()));
        assert_eq!(parse_address(&six[..20]), None);
        assert_eq!(parse_address(&[1, 0, 0, 0]), None);
        assert_eq!(parse_address(&[]), None);
    }
}
