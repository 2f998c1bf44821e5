//! Who holds a port of the host, as far as `/proc` says.

use super::mapping::{Protocol, overlap};
use crate::sys::fs;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// A process that has a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Holder {
    pid: u32,
    name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == std::process::id() {
            return f.write_str("this process");
        }
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// A socket that keeps others off its port, as `/proc/net/tcp` and `/proc/net/udp` show it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Listener {
    address: SocketAddr,
    inode: u64,
}

/// The process that has the port of `address`; `None` where it cannot be found out: another user's, or in another
/// pid namespace, or gone by now.
pub(super) fn find(protocol: Protocol, address: SocketAddr) -> Option<Holder> {
    let mut listeners = Vec::new();
    for (version, parse) in [("", parse_v4 as fn(&str) -> Option<IpAddr>), ("6", parse_v6)] {
        let table = format!("/proc/net/{protocol}{version}");
        let text = fs::read_to_string(Path::new(&table)).unwrap_or_default();
        listeners.extend(text.lines().skip(1).filter_map(|line| parse_line(protocol, line, parse)));
    }
    listeners.retain(|listener| listener.address.port() == address.port());
    // An IPv6 socket on `[::]` may take IPv4 too, which the table does not say: it comes last.
    listeners.retain(|listener| overlap(listener.address.ip(), address.ip()) || listener.address.ip().is_unspecified());
    listeners.sort_by_key(|listener| !overlap(listener.address.ip(), address.ip()));
    listeners.iter().find_map(|listener| owner(listener.inode))
}

/// One line of such a table, when it is of a socket that listens, or of UDP that is not connected.
fn parse_line(protocol: Protocol, line: &str, parse_address: fn(&str) -> Option<IpAddr>) -> Option<Listener> {
    let listens = match protocol {
        Protocol::Tcp => "0A",
        Protocol::Udp => "07",
    };
    let mut fields = line.split_ascii_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    if state != listens {
        return None;
    }
    let address = SocketAddr::new(parse_address(address)?, u16::from_str_radix(port, 16).ok()?);
    Some(Listener { address, inode })
}

/// The kernel prints the address's bytes as numbers of 32 bits in the byte order of the machine.
fn parse_word(hexadecimal: &str) -> Option<[u8; 4]> {
    u32::from_str_radix(hexadecimal, 16).ok().map(u32::to_ne_bytes)
}

fn parse_v4(text: &str) -> Option<IpAddr> {
    parse_word(text).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)))
}

fn parse_v6(text: &str) -> Option<IpAddr> {
    let mut bytes = [0; 16];
    for (index, four) in bytes.chunks_exact_mut(4).enumerate() {
        four.copy_from_slice(&parse_word(text.get(index * 8..index * 8 + 8)?)?);
    }
    Some(IpAddr::V6(Ipv6Addr::from(bytes)))
}

/// The first process that has the socket among its descriptors.
fn owner(inode: u64) -> Option<Holder> {
    let wanted = PathBuf::from(format!("socket:[{inode}]"));
    for process in fs::read_dir(Path::new("/proc")).ok()? {
        let Some(pid) = process.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        // Other users' processes, and those that have just ended, cannot be looked into.
        let Ok(descriptors) = fs::read_dir(&process.join("fd")) else { continue };
        if descriptors.iter().any(|descriptor| fs::read_link(descriptor).is_ok_and(|to| to == wanted)) {
            let name = fs::read_to_string(&process.join("comm")).unwrap_or_default();
            return Some(Holder { pid, name: name.trim_end().to_owned() });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_of_the_kernel_are_read() {
        let v4 = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0";
        let v6 =
            "   1: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 815 1";
        let established = v4.replace(" 0A ", " 01 ");
        let listener = |address: &str, inode| Some(Listener { address: address.parse().unwrap(), inode });
        assert_eq!(parse_line(Protocol::Tcp, v4, parse_v4), listener("127.0.0.1:8080", 4711));
        assert_eq!(parse_line(Protocol::Tcp, v6, parse_v6), listener("[::1]:22", 815));
        for nothing in [established.as_str(), "", "0: x:y z 0A", "a b c d e f g h i j k"] {
            assert_eq!(parse_line(Protocol::Tcp, nothing, parse_v4), None);
        }
    }

    #[test]
    fn our_own_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(find(Protocol::Tcp, listener.local_addr().unwrap()).unwrap().to_string(), "this process");
        let socket = std::net::UdpSocket::bind("[::1]:0").unwrap();
        assert_eq!(find(Protocol::Udp, socket.local_addr().unwrap()).unwrap().to_string(), "this process");
    }
}
