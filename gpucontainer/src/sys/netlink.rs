//! Netlink sockets: requests whose answers are there when the send returns.
//!
//! The kernel carries out what rtnetlink and nf_tables are asked for inside of `sendmsg(2)`, so nothing here ever waits
//! but for what closing a [`TableOwner`] does, which is another thread's. A socket belongs for life to the network namespace
//! in which it was made, and can be used from any other.

#![allow(unsafe_code, reason = "socket options and a request for a namespace that no crate has")]

use super::errno::failed;
use super::process::own_pid;
use super::signals::Everything;
use crate::error::{Error, Result};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Which part of the kernel a socket talks to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Protocol {
    /// `NETLINK_ROUTE`: interfaces, addresses, routes.
    Route,
    /// `NETLINK_NETFILTER`: the packet filter.
    Netfilter,
}

impl Protocol {
    /// As `socket(2)` takes it.
    pub(super) fn number(self) -> libc::c_int {
        match self {
            Self::Route => libc::NETLINK_ROUTE,
            Self::Netfilter => libc::NETLINK_NETFILTER,
        }
    }
}

/// A netlink socket.
#[derive(Debug)]
pub(crate) struct Netlink(OwnedFd);

/// A socket that tables of nf_tables belong to.
///
/// With its last copy the kernel takes them away, and waits until no processor looks at them any more: some milliseconds,
/// which are not for whoever drops this. A thread that ends with the call has them.
#[derive(Debug)]
pub(crate) struct TableOwner {
    socket: ManuallyDrop<Netlink>,
    process: u32,
}

impl From<Netlink> for TableOwner {
    fn from(socket: Netlink) -> Self {
        Self { socket: ManuallyDrop::new(socket), process: own_pid() }
    }
}

impl Deref for TableOwner {
    type Target = Netlink;

    fn deref(&self) -> &Netlink {
        &self.socket
    }
}

impl Drop for TableOwner {
    fn drop(&mut self) {
        // SAFETY: nobody sees the place after this, and it is emptied here alone.
        let socket = unsafe { ManuallyDrop::take(&mut self.socket) };
        if self.process != own_pid() {
            // A child that was forked has copies, and may not be in a state to make threads.
            return;
        }
        let thread = std::thread::Builder::new().name("gpuc-close".to_owned()).stack_size(CLOSING_STACK);
        // Signals are for the host's own threads.
        let blocked = Everything::block();
        // Without a thread it is closed here, by dropping what it was to do.
        let _ = thread.spawn(move || drop(socket));
        drop(blocked);
    }
}

/// Bytes of stack for a thread that makes one system call.
const CLOSING_STACK: usize = 64 << 10;

/// What the kernel said to a message that it refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Refusal {
    /// The sequence number of the message; 0 if the whole request could not be sent.
    pub(crate) sequence: u32,
    /// Why.
    pub(crate) errno: i32,
    /// The kernel's own words, if it has any.
    pub(crate) words: String,
}

/// So many bytes a socket takes at once wherever it is; `net.core.wmem_default` is 200 KiB and more.
const ORDINARY: usize = 64 * 1024;
/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Set in an answer that carries attributes of its own behind an error number.
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLM_F_CAPPED: u16 = 0x100;
const NLMSGERR_ATTR_MSG: u16 = 1;

impl Netlink {
    /// Makes one in the caller's network namespace.
    pub(crate) fn open(protocol: Protocol) -> Result<Self> {
        // Nought, which is the first protocol, is how no protocol is written.
        let number = std::num::NonZeroU32::new(protocol.number().cast_unsigned()).map(rustix::net::Protocol::from_raw);
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, number)
            .map_err(|e| failed(format!("socket(AF_NETLINK, {protocol:?})"), e))?;
        Self::adopt(fd)
    }

    /// Uses one that was made elsewhere, in another network namespace or process.
    pub(crate) fn adopt(fd: OwnedFd) -> Result<Self> {
        let socket = Self(fd);
        // Answers need not repeat the question, and shall say what was wrong with it.
        for (option, name) in [(libc::NETLINK_CAP_ACK, "NETLINK_CAP_ACK"), (libc::NETLINK_EXT_ACK, "NETLINK_EXT_ACK")] {
            let on: libc::c_int = 1;
            let size = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default();
            let value = (&raw const on).cast();
            // SAFETY: the address is of an `int`, whose size is given.
            let set = unsafe { libc::setsockopt(socket.0.as_raw_fd(), libc::SOL_NETLINK, option, value, size) };
            if set != 0 {
                return Err(Error::from_io(format!("setsockopt({name})"), std::io::Error::last_os_error()));
            }
        }
        Ok(socket)
    }

    /// Sends messages that each ask for an acknowledgement, and reads what the kernel says to all of them.
    ///
    /// # Errors
    /// The first refusal. rtnetlink goes on after one; nf_tables carries out all of a batch or none.
    pub(crate) fn request(&self, messages: &[u8]) -> Result<(), Refusal> {
        self.query(messages, |_, _| {})
    }

    /// Sends requests that are each answered by a message or more and an acknowledgement; calls `each` with the type and the
    /// body of every message of the answers.
    pub(crate) fn query(&self, messages: &[u8], mut each: impl FnMut(u16, &[u8])) -> Result<(), Refusal> {
        self.drain();
        self.send(messages)?;
        let mut first = None;
        let mut buffer = vec![0_u8; 32 * 1024];
        while let Some(length) = self.receive(&mut buffer)? {
            for (kind, flags, sequence, body) in split(buffer.get(..length).unwrap_or_default()) {
                if i32::from(kind) == libc::NLMSG_ERROR {
                    first = first.or_else(|| refusal(flags, sequence, body));
                } else {
                    each(kind, body);
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Sends one request for a list; calls `each` with the type and the body of every message of the answer.
    pub(crate) fn dump(&self, message: &[u8], mut each: impl FnMut(u16, &[u8])) -> Result<(), Refusal> {
        self.drain();
        self.send(message)?;
        let mut buffer = vec![0_u8; 64 * 1024];
        while let Some(length) = self.receive(&mut buffer)? {
            for (kind, flags, sequence, body) in split(buffer.get(..length).unwrap_or_default()) {
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return refusal(flags, sequence, body).map_or(Ok(()), Err),
                    _ => each(kind, body),
                }
            }
        }
        Err(Refusal { sequence: 0, errno: libc::EPROTO, words: "a list without an end".to_owned() })
    }

    /// A descriptor of the network namespace that the socket belongs to. Needs `CAP_NET_ADMIN` over it.
    pub(crate) fn namespace(&self) -> Result<OwnedFd> {
        // SAFETY: the request takes no argument.
        let fd = unsafe { libc::ioctl(self.0.as_raw_fd(), SIOCGSKNS) };
        if fd < 0 {
            return Err(Error::from_io("ioctl(SIOCGSKNS)", std::io::Error::last_os_error()));
        }
        // SAFETY: the kernel made this descriptor for this call.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(fd)
    }

    /// A number that no other socket has, as long as the system runs.
    pub(crate) fn cookie(&self) -> Result<u64> {
        self.option(libc::SO_COOKIE, "SO_COOKIE")
    }

    /// A number of the socket's network namespace that no other one has, as long as the system runs.
    pub(crate) fn namespace_cookie(&self) -> Result<u64> {
        self.option(SO_NETNS_COOKIE, "SO_NETNS_COOKIE")
    }

    fn option(&self, option: libc::c_int, name: &str) -> Result<u64> {
        let mut value = 0_u64;
        let mut size = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
        let at = (&raw mut value).cast();
        // SAFETY: the address is of 8 bytes, whose size is given.
        let got = unsafe { libc::getsockopt(self.0.as_raw_fd(), libc::SOL_SOCKET, option, at, &raw mut size) };
        if got == 0 {
            return Ok(value);
        }
        Err(Error::from_io(format!("getsockopt({name})"), std::io::Error::last_os_error()))
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Refusal> {
        if bytes.len() > ORDINARY {
            self.make_room(bytes.len())?;
        }
        loop {
            match rustix::net::send(&self.0, bytes, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Refusal::of_call("send(netlink)", e)),
            }
        }
    }

    /// Lets one send take so many bytes, and the answers to all that is in it be kept.
    fn make_room(&self, bytes: usize) -> Result<(), Refusal> {
        // The kernel counts what it needs besides too.
        let room = libc::c_int::try_from(bytes + bytes / 4).unwrap_or(libc::c_int::MAX);
        for option in [libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE] {
            let size = libc::socklen_t::try_from(size_of_val(&room)).unwrap_or_default();
            let value = (&raw const room).cast();
            // SAFETY: the address is of an `int`, whose size is given.
            let set = unsafe { libc::setsockopt(self.0.as_raw_fd(), libc::SOL_SOCKET, option, value, size) };
            if set != 0 {
                let error = rustix::io::Errno::from_io_error(&std::io::Error::last_os_error());
                return Err(Refusal::of_call("setsockopt(SO_SNDBUFFORCE)", error.unwrap_or(rustix::io::Errno::IO)));
            }
        }
        Ok(())
    }

    /// The next datagram's length; `None` when there is nothing more.
    fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, Refusal> {
        loop {
            match rustix::net::recv(&self.0, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
                Ok((_, length)) if length > buffer.len() => {
                    return Err(Refusal::of_call("recv(netlink)", rustix::io::Errno::MSGSIZE));
                }
                Ok((_, length)) => return Ok(Some(length)),
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Refusal::of_call("recv(netlink)", e)),
            }
        }
    }

    /// Takes away what somebody left unread who died between a question and its answer.
    fn drain(&self) {
        let mut buffer = [0_u8; 1];
        while let Ok(_) | Err(rustix::io::Errno::INTR | rustix::io::Errno::NOBUFS) =
            rustix::net::recv(&self.0, &mut buffer, RecvFlags::DONTWAIT)
        {}
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Refusal {
    fn of_call(call: &str, errno: rustix::io::Errno) -> Self {
        Self { sequence: 0, errno: errno.raw_os_error(), words: call.to_owned() }
    }

    /// The error of what was asked for.
    pub(crate) fn into_error(self, call: impl std::fmt::Display) -> Error {
        let words = if self.words.is_empty() { String::new() } else { format!(" ({})", self.words) };
        Error::from_errno(format!("{call}{words}"), self.errno)
    }
}

/// What an interface of the caller's network namespace is called; `None` if there is none with that index.
pub(crate) fn interface_name(index: u32) -> Option<String> {
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}

/// `_IO(SIOC…)`: a descriptor of a socket's network namespace.
const SIOCGSKNS: libc::Ioctl = 0x894C;
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The messages in a datagram: type, flags, sequence number and body.
fn split(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(word(bytes, 0)?).ok()?;
        let (kind, flags) = (half(bytes, 4)?, half(bytes, 6)?);
        let sequence = word(bytes, 8)?;
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, flags, sequence, body))
    })
}

/// What an answer of the type for errors says; `None` for an acknowledgement.
fn refusal(flags: u16, sequence: u32, body: &[u8]) -> Option<Refusal> {
    let errno = word(body, 0)?.cast_signed().checked_neg()?;
    if errno == 0 {
        return None;
    }
    let mut words = String::new();
    if flags & NLM_F_ACK_TLVS != 0 {
        // Behind the number comes the header of the message that was refused, and the rest of it unless it was cut.
        let message = usize::try_from(word(body, 4)?).unwrap_or(HEADER);
        let before = 4 + if flags & NLM_F_CAPPED != 0 { HEADER } else { message.next_multiple_of(4) };
        words = attributes(body.get(before..).unwrap_or_default())
            .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
            .map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
            .unwrap_or_default();
    }
    Some(Refusal { sequence, errno, words })
}

/// The attributes of a message, without the flags in their types.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(bytes, 0)?);
        let kind = half(bytes, 2)? & 0x3FFF;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        // An acknowledgement, then a refusal with words.
        let mut bytes = Vec::new();
        let mut answer = |errno: i32, flags: u16, more: &[u8]| {
            let length = u32::try_from(HEADER + 4 + HEADER + more.len()).unwrap();
            bytes.extend(length.to_ne_bytes());
            bytes.extend(2_u16.to_ne_bytes());
            bytes.extend(flags.to_ne_bytes());
            bytes.extend(7_u32.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend((-errno).to_ne_bytes());
            bytes.extend([0; HEADER]);
            bytes.extend(more);
        };
        answer(0, NLM_F_CAPPED, &[]);
        let mut text = vec![8, 0, 1, 0];
        text.extend(b"no!\0");
        answer(17, NLM_F_CAPPED | NLM_F_ACK_TLVS, &text);
        let answers: Vec<_> = split(&bytes).map(|(_, flags, sequence, body)| refusal(flags, sequence, body)).collect();
        assert_eq!(answers, [None, Some(Refusal { sequence: 7, errno: 17, words: "no!".to_owned() })]);
    }

    #[test]
    fn what_is_cut_short_ends_the_list() {
        for length in 0..HEADER {
            assert_eq!(split(&vec![1; length]).count(), 0);
            assert_eq!(attributes(&vec![0xFF; length]).count(), 0);
        }
        // An attribute that claims no length would be found for ever.
        assert_eq!(attributes(&[0, 0, 1, 0, 9, 9, 9, 9]).count(), 0);
        assert_eq!(attributes(&[4, 0, 1, 0, 5, 0, 2, 0x40, 9]).collect::<Vec<_>>(), [(1, &[][..]), (2, &[9][..])]);
    }

    #[test]
    fn a_socket_says_who_it_is() {
        let (one, other) = (Netlink::open(Protocol::Route).unwrap(), Netlink::open(Protocol::Netfilter).unwrap());
        assert_ne!(one.cookie().unwrap(), other.cookie().unwrap());
        assert_eq!(one.namespace_cookie().unwrap(), other.namespace_cookie().unwrap());
    }
}
