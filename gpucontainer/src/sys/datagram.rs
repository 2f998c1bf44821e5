//! UDP sockets that serve many clients: each datagram with who sent it and, on a wildcard address, to which of the
//! host's addresses, so that the answer comes from there.

#![allow(unsafe_code, reason = "control messages that no crate has")]

use super::errno::failed;
use crate::error::Result;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::ffi::c_int;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Where a datagram came from, or where it is to go.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Way {
    /// The other side.
    pub(crate) peer: SocketAddr,
    /// The address of this host that it was sent to, and is to be answered from, where the socket has many.
    pub(crate) local: Option<IpAddr>,
}

/// Room for one control message of either family, aligned as one.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Makes the socket tell, with each datagram, which address of the host it was sent to.
pub(crate) fn tell_destination(socket: impl AsFd, v6: bool) -> Result<()> {
    let socket = socket.as_fd();
    // A socket of both families tells of IPv4 in a message of IPv6.
    let (level, option) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO) } else { (libc::IPPROTO_IP, libc::IP_PKTINFO) };
    set(socket, level, option, 1).map_err(|e| failed("setsockopt(PKTINFO)", e))
}

/// Takes away what somebody else has made a socket report beside datagrams: to who does not read that it would be ready
/// for ever.
pub(crate) fn want_data_alone(socket: impl AsFd) {
    let socket = socket.as_fd();
    let reports = [
        (libc::IPPROTO_IP, libc::IP_RECVERR),
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
        (libc::SOL_SOCKET, libc::SO_TIMESTAMPING),
    ];
    for (level, option) in reports {
        // A socket of the other family has no such option.
        let _ = set(socket, level, option, 0);
    }
    // What has been reported already.
    while rustix::net::recv(socket, &mut [0_u8; 1][..], RecvFlags::ERRQUEUE | RecvFlags::DONTWAIT).is_ok() {}
}

fn set(socket: BorrowedFd<'_>, level: c_int, option: c_int, value: c_int) -> std::result::Result<(), Errno> {
    let length = libc::socklen_t::try_from(size_of::<c_int>()).unwrap_or_default();
    // SAFETY: the kernel reads an `int`, which outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(last()) }
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Takes a datagram that waits, if one does: its length and its way. The error is a number.
pub(crate) fn receive_from(socket: impl AsFd, buffer: &mut [u8]) -> Result<Option<(usize, Way)>, i32> {
    let mut name = std::mem::MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control([0; 64]);
    // SAFETY: a `msghdr` of zeros is one that points to nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = libc::socklen_t::try_from(size_of::<libc::sockaddr_storage>()).unwrap_or_default();
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    let bytes = loop {
        // SAFETY: all that `message` points to outlives the call and is as long as it says.
        let received = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        match usize::try_from(received) {
            Ok(bytes) => break bytes,
            Err(_) => match last() {
                Errno::INTR => {}
                Errno::AGAIN => return Ok(None),
                errno => return Err(errno.raw_os_error()),
            },
        }
    };
    // SAFETY: zeros, or what the kernel wrote, are a `sockaddr_storage`.
    let peer = address(unsafe { name.assume_init_ref() }).ok_or(libc::EAFNOSUPPORT)?;
    Ok(Some((bytes, Way { peer, local: destination(&message) })))
}

/// Sends one datagram. The error is a number; `EAGAIN` when there is no room now.
pub(crate) fn send_to(socket: BorrowedFd<'_>, bytes: &[u8], way: Way) -> Result<(), i32> {
    let (name, length) = name(way.peer);
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; 64]);
    // SAFETY: a `msghdr` of zeros is one that points to nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw const name).cast_mut().cast();
    message.msg_namelen = length;
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    if let Some(local) = way.local {
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len();
        message.msg_controllen = set_origin(&message, local, way.peer.is_ipv6());
    }
    loop {
        // SAFETY: all that `message` points to outlives the call and is as long as it says; the kernel writes none of it.
        let sent =
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        if sent >= 0 {
            return Ok(());
        }
        match last() {
            Errno::INTR => {}
            errno => return Err(errno.raw_os_error()),
        }
    }
}

/// An address as the kernel wrote it.
fn address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let place = std::ptr::from_ref(storage);
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: a `sockaddr_storage` of this family begins with a `sockaddr_in`, and is aligned for all.
            let v4 = unsafe { *place.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: the same for a `sockaddr_in6`.
            let v6 = unsafe { *place.cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddr::V6(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), v6.sin6_flowinfo, v6.sin6_scope_id)))
        }
        _ => None,
    }
}

/// An address for the kernel to read, and its length.
fn name(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: zeros are a `sockaddr_storage` of no family.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let place = &raw mut storage;
    let length = match address {
        SocketAddr::V4(v4) => {
            // SAFETY: zeros are a `sockaddr_in`.
            let mut raw: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            raw.sin_family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default();
            raw.sin_port = v4.port().to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            // SAFETY: a `sockaddr_storage` has room for every kind of address, and is aligned for all.
            unsafe { place.cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            // SAFETY: zeros are a `sockaddr_in6`.
            let mut raw: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
            raw.sin6_family = libc::sa_family_t::try_from(libc::AF_INET6).unwrap_or_default();
            raw.sin6_port = v6.port().to_be();
            raw.sin6_addr.s6_addr = v6.ip().octets();
            raw.sin6_scope_id = v6.scope_id();
            // SAFETY: as above.
            unsafe { place.cast::<libc::sockaddr_in6>().write(raw) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, libc::socklen_t::try_from(length).unwrap_or_default())
}

/// Which address of the host the datagram was sent to, when the socket tells.
fn destination(message: &libc::msghdr) -> Option<IpAddr> {
    // SAFETY: the kernel has said how much of the control buffer it filled, with whole messages.
    let header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: null, or a whole message in that buffer, which is aligned as one.
    let header = unsafe { header.as_ref() }?;
    // SAFETY: the data of a message that is there.
    let data = unsafe { libc::CMSG_DATA(header) };
    match (header.cmsg_level, header.cmsg_type) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            // SAFETY: the kernel puts an `in_pktinfo` into a message of this type; it need not be aligned.
            let info = unsafe { data.cast::<libc::in_pktinfo>().read_unaligned() };
            Some(IpAddr::V4(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes())))
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            // SAFETY: likewise an `in6_pktinfo`.
            let info = unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
            Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)))
        }
        _ => None,
    }
}

/// Writes the message that makes the datagram come from `local`; how long it is.
fn set_origin(message: &libc::msghdr, local: IpAddr, v6: bool) -> usize {
    // SAFETY: the control buffer has room for a message, so there is a first one.
    let header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: the buffer is zeroed, aligned as a message, and longer than either kind.
    let Some(first) = (unsafe { header.as_mut() }) else { return 0 };
    // SAFETY: the data of that message.
    let data = unsafe { libc::CMSG_DATA(header) };
    let bytes = match local {
        IpAddr::V4(ip) if !v6 => {
            let address = libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
            let info =
                libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: libc::in_addr { s_addr: 0 } };
            (first.cmsg_level, first.cmsg_type) = (libc::IPPROTO_IP, libc::IP_PKTINFO);
            // SAFETY: there is room for it, and it need not be aligned.
            unsafe { data.cast::<libc::in_pktinfo>().write_unaligned(info) };
            size_of::<libc::in_pktinfo>()
        }
        local => {
            let ip = match local {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: 0 };
            (first.cmsg_level, first.cmsg_type) = (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO);
            // SAFETY: as above.
            unsafe { data.cast::<libc::in6_pktinfo>().write_unaligned(info) };
            size_of::<libc::in6_pktinfo>()
        }
    };
    let bytes = u32::try_from(bytes).unwrap_or_default();
    // SAFETY: arithmetic alone.
    first.cmsg_len = unsafe { libc::CMSG_LEN(bytes) } as usize;
    // SAFETY: likewise.
    let space = unsafe { libc::CMSG_SPACE(bytes) };
    space as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn an_answer_comes_from_the_address_that_was_asked() {
        for (wildcard, asked) in [("0.0.0.0:0", "127.0.0.3"), ("[::]:0", "127.0.0.3"), ("[::]:0", "::1")] {
            let server = UdpSocket::bind(wildcard).unwrap();
            tell_destination(&server, wildcard.starts_with('[')).unwrap();
            let asked: IpAddr = asked.parse().unwrap();
            let client = UdpSocket::bind(if asked.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }).unwrap();
            let address = SocketAddr::new(asked, server.local_addr().unwrap().port());
            // A connected socket hears that address alone.
            client.connect(address).unwrap();
            client.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
            client.send(b"question").unwrap();
            let mut buffer = vec![0; 65536];
            let (bytes, way) = receive_from(&server, &mut buffer).unwrap().unwrap();
            assert_eq!(&buffer[..bytes], b"question");
            assert_eq!(way.local.map(|local| local.to_canonical()), Some(asked));
            assert_eq!(way.peer.port(), client.local_addr().unwrap().port());
            send_to(server.as_fd(), b"", way).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), 0);
            assert_eq!(receive_from(&server, &mut buffer), Ok(None));
        }
    }
}
