//! Sockets in a network namespace that speak from addresses which are not the namespace's.
//!
//! ```text
//! socket made inside, bound to the client's address, marked ── 127.0.0.1:port ── server's socket, inherits the mark
//!          ▲                                                                              │
//!          └── lo ◄── table: all addresses are local ◄── rule: whatever has the mark ◄────┘ answers
//! ```
//! The mark is on these connections alone, so nothing else in the namespace is routed otherwise than before. The rule and
//! the table are made by [`net::relay`](crate::net).

#![allow(unsafe_code, reason = "socket options that no crate has")]

use rustix::io::Errno;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Of the connections, and the number of the table: "gpuc". Large, so that it is nobody else's.
pub(crate) const MARK: u32 = 0x6770_7563;
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
