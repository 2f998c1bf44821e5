//! The header of the PROXY protocol, version 2: who the client is, said before its first byte.
//!
//! ```text
//! 12 bytes of signature | version and command | family | length, 2 bytes | source, destination address | their ports
//! ```
//! <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>

use crate::sys::socket;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

const SIGNATURE: [u8; 12] = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
/// Version 2; the connection is on behalf of somebody else.
const PROXY: u8 = 0x21;
/// Version 2; nothing is known of the client.
const LOCAL: u8 = 0x20;
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;

/// What a server is told about a client.
pub(super) fn header(client: &OwnedFd) -> Vec<u8> {
    let ends = socket::peer_address(client).and_then(|from| Ok((from, socket::local_address(client)?)));
    // A client that is gone already has no address.
    ends.map_or_else(|_| encode(None), |(from, to)| encode(Some((from, to))))
}

fn encode(ends: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    let Some((from, to)) = ends else {
        header.extend_from_slice(&[LOCAL, 0, 0, 0]);
        return header;
    };
    // A socket of both families calls its clients of IPv4 `::ffff:A.B.C.D`.
    match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.extend_from_slice(&[PROXY, TCP_V4, 0, 12]);
            header.extend_from_slice(&from.octets());
            header.extend_from_slice(&to.octets());
        }
        (from, to) => {
            let bytes = |ip| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            header.extend_from_slice(&[PROXY, TCP_V6, 0, 36]);
            header.extend_from_slice(&bytes(from));
            header.extend_from_slice(&bytes(to));
        }
    }
    header.extend_from_slice(&from.port().to_be_bytes());
    header.extend_from_slice(&to.port().to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_the_protocol_has_them() {
        let ends = |from: &str, to: &str| Some((from.parse().unwrap(), to.parse().unwrap()));
        let v4 = encode(ends("192.0.2.7:4711", "127.0.0.1:80"));
        assert_eq!(v4[..12], *b"\r\n\r\n\0\r\nQUIT\n");
        assert_eq!(v4[12..], [0x21, 0x11, 0, 12, 192, 0, 2, 7, 127, 0, 0, 1, 0x12, 0x67, 0, 80]);
        assert_eq!(encode(ends("[::ffff:192.0.2.7]:4711", "[::ffff:127.0.0.1]:80")), v4);
        let v6 = encode(ends("[2001:db8::1]:1", "[::1]:2"));
        assert_eq!((v6.len(), &v6[12..16]), (52, [0x21, 0x21, 0, 36].as_slice()));
        assert_eq!((&v6[16..20], &v6[48..]), ([0x20, 1, 0x0d, 0xb8].as_slice(), [0, 1, 0, 2].as_slice()));
        assert_eq!(encode(None)[12..], [0x20, 0, 0, 0]);
    }
}
