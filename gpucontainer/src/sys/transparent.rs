//! Sockets in a network namespace that speak from addresses which are not the namespace's.
//!
//! ```text
//! socket made inside, bound to the client's address, marked ── 127.0.0.1:port ── server's socket, inherits the mark
//!          ▲                                                                              │
//!          └── lo ◄── table: all addresses are local ◄── rule: whatever has the mark ◄────┘ answers
//! ```
//! The mark is on these connections alone, so nothing else in the namespace is routed otherwise than before.

#![allow(unsafe_code, reason = "socket options that no crate has")]

use super::errno::failed;
use crate::error::{Error, Result};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Of the connections, and the number of the table: "gpuc". Large, so that it is nobody else's.
const MARK: u32 = 0x6770_7563;
/// The loopback device is the first of every network namespace.
const LOOPBACK_INDEX: u32 = 1;

// From <linux/fib_rules.h>.
const FR_ACT_TO_TBL: u8 = 1;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;

/// Makes answers to marked connections come back, by a socket of netlink that was made in the namespace. Once more changes
/// nothing. A namespace without IPv6 does without.
pub(crate) fn lead_back(netlink: &OwnedFd) -> Result<()> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).unwrap_or_default();
        let asked = ask(netlink, libc::RTM_NEWRULE, &rule(family))
            .and_then(|()| ask(netlink, libc::RTM_NEWROUTE, &route(family)));
        match asked {
            Err(error) if i32::from(family) == libc::AF_INET6 && is_without_v6(error.errno()) => {}
            other => other?,
        }
    }
    Ok(())
}

fn is_without_v6(errno: Option<i32>) -> bool {
    matches!(errno, Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EACCES | libc::ENODEV | libc::EPERM))
}

/// `struct fib_rule_hdr` and what the rule is about: what has the mark looks into the table.
fn rule(family: u8) -> Vec<u8> {
    let mut body = vec![family, 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
    attribute(&mut body, FRA_FWMARK, MARK);
    attribute(&mut body, FRA_FWMASK, u32::MAX);
    attribute(&mut body, FRA_TABLE, MARK);
    body
}

/// `struct rtmsg` and where it leads: every address is the loopback device's.
fn route(family: u8) -> Vec<u8> {
    let (protocol, scope, kind) = (libc::RTPROT_STATIC, libc::RT_SCOPE_HOST, libc::RTN_LOCAL);
    let mut body = vec![family, 0, 0, 0, 0, protocol, scope, kind, 0, 0, 0, 0];
    attribute(&mut body, libc::RTA_OIF, LOOPBACK_INDEX);
    attribute(&mut body, libc::RTA_TABLE, MARK);
    body
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: u32) {
    body.extend_from_slice(&8_u16.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(&value.to_ne_bytes());
}

/// Sends a request and takes the answer, which is there when the call returns. What exists already is fine.
fn ask(netlink: &OwnedFd, kind: u16, body: &[u8]) -> Result<()> {
    let what = || format!("netlink request {kind} in the network namespace");
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend_from_slice(&u32::try_from(16 + body.len()).unwrap_or_default().to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&u16::try_from(flags).unwrap_or_default().to_ne_bytes());
    // Sequence and port: one question at a time, of this socket.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    rustix::net::send(netlink, &message, SendFlags::empty()).map_err(|e| failed(what(), e))?;
    let mut answer = [0_u8; 256];
    rustix::net::recv(netlink, &mut answer, RecvFlags::empty()).map_err(|e| failed(what(), e))?;
    // `struct nlmsghdr` and then the negative error number.
    let number = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    match number.wrapping_neg() {
        0 | libc::EEXIST => Ok(()),
        errno => Err(Error::from_errno(what(), errno)),
    }
}

/// Lets a fresh socket in the namespace be bound to any address, and marks what it sends. The error is a number.
pub(crate) fn speak_for_others(socket: impl AsFd, v6: bool) -> Result<(), i32> {
    let socket = socket.as_fd();
    let (level, option) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT) } else { (libc::IPPROTO_IP, libc::IP_TRANSPARENT) };
    set(socket, level, option, 1)?;
    set(socket, libc::SOL_SOCKET, libc::SO_MARK, MARK)?;
    set(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
}

fn set(socket: BorrowedFd<'_>, level: i32, option: i32, value: u32) -> Result<(), i32> {
    let length = libc::socklen_t::try_from(size_of::<u32>()).unwrap_or_default();
    // SAFETY: the kernel reads 32 bits, which outlive the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO).raw_os_error())
}
