//! The kernel's table of connections: what is in it, and how an entry is taken out.

use super::Batch;
use crate::sys::netlink::attributes;
use std::net::IpAddr;

const SUBSYSTEM: u16 = 1 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const NLM_F_DUMP: u16 = 0x300;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;

const DESTINATION_CHANGED: u32 = 1 << 5;
/// Which parts of a tuple are compared: the source address and the protocol.
const SOURCE_AND_PROTOCOL: u32 = 0b101;
const PROTOCOL: u32 = 0b100;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A connection that was led elsewhere than it was begun to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Flow {
    /// Where it was begun to.
    pub(crate) destination: (IpAddr, u16),
    /// Where it was led.
    pub(crate) server: (IpAddr, u16),
    /// Whether both sides are still in it, as far as the kernel has seen.
    pub(crate) open: bool,
    /// What names it: attributes of the message that takes it out.
    name: Vec<(u16, Vec<u8>)>,
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

impl Batch {
    /// Asks for all connections of a protocol (its number) that `server` answers.
    pub(crate) fn get_connections(&mut self, server: IpAddr, protocol: u8) {
        let what = format!("IPCTNL_MSG_CT_GET({server})");
        self.request(what, (GET, NLM_F_DUMP), &[family(server), 0, 0, 0], |batch| {
            batch.nest(CTA_TUPLE_REPLY, |batch| {
                // CTA_TUPLE_IP: CTA_IP_V4_SRC or CTA_IP_V6_SRC
                batch.nest(1, |batch| match server {
                    IpAddr::V4(address) => batch.attribute(1, &address.octets()),
                    IpAddr::V6(address) => batch.attribute(3, &address.octets()),
                });
                batch.nest(2, |batch| batch.attribute(1, &[protocol])); // CTA_TUPLE_PROTO: CTA_PROTO_NUM
            });
            batch.nest(CTA_FILTER, |batch| {
                batch.word(1, 0); // CTA_FILTER_ORIG_FLAGS
                batch.word(2, SOURCE_AND_PROTOCOL); // CTA_FILTER_REPLY_FLAGS
            });
        });
    }

    /// Asks for all connections of a protocol (its number) and of IPv4 or IPv6.
    pub(crate) fn get_all_connections(&mut self, v4: bool, protocol: u8) {
        let family = if v4 { AF_INET } else { AF_INET6 };
        self.request("IPCTNL_MSG_CT_GET".to_owned(), (GET, NLM_F_DUMP), &[family, 0, 0, 0], |batch| {
            batch.nest(CTA_TUPLE_ORIG, |batch| {
                batch.nest(2, |batch| batch.attribute(1, &[protocol])); // CTA_TUPLE_PROTO: CTA_PROTO_NUM
            });
            batch.nest(CTA_FILTER, |batch| {
                batch.word(1, PROTOCOL); // CTA_FILTER_ORIG_FLAGS
                batch.word(2, 0); // CTA_FILTER_REPLY_FLAGS
            });
        });
    }

    /// Takes a connection out of the table: what comes of it from then on belongs to none.
    pub(crate) fn delete_connection(&mut self, flow: &Flow) {
        let (address, port) = flow.destination;
        let what = format!("IPCTNL_MSG_CT_DELETE({address} port {port})");
        self.message(what, (DELETE, 0), &[family(address), 0, 0, 0], |batch| {
            for (kind, value) in &flow.name {
                batch.attribute(*kind, value);
            }
        });
    }
}

/// The connection in one message of the answer to such a question, if it was led elsewhere.
pub(crate) fn read_flow(kind: u16, body: &[u8]) -> Option<Flow> {
    if kind != NEW {
        return None;
    }
    let inside = |bytes, kind| attributes(bytes).find(move |(found, _)| *found == kind).map(|(_, value)| value);
    let all = body.get(4..)?;
    let status = u32::from_be_bytes(inside(all, CTA_STATUS)?.try_into().ok()?);
    if status & DESTINATION_CHANGED == 0 {
        return None;
    }
    let end = |tuple, [v4, v6, port]: [u16; 3]| -> Option<(IpAddr, u16)> {
        let tuple = inside(all, tuple)?;
        let (ip, protocol) = (inside(tuple, 1)?, inside(tuple, 2)?);
        let v4 = inside(ip, v4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(IpAddr::from);
        let v6 = || inside(ip, v6).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(IpAddr::from);
        Some((v4.or_else(v6)?, u16::from_be_bytes(inside(protocol, port)?.try_into().ok()?)))
    };
    // CTA_IP_V4_DST, CTA_IP_V6_DST, CTA_PROTO_DST_PORT; CTA_IP_V4_SRC, CTA_IP_V6_SRC, CTA_PROTO_SRC_PORT
    let (destination, server) = (end(CTA_TUPLE_ORIG, [2, 4, 3])?, end(CTA_TUPLE_REPLY, [1, 3, 2])?);
    // CTA_PROTOINFO_TCP: CTA_PROTOINFO_TCP_STATE, of which 2 is that both have spoken, and 6 that both have ended.
    let state = inside(all, CTA_PROTOINFO).and_then(|info| inside(info, 1)).and_then(|tcp| inside(tcp, 1));
    let open = state.and_then(|state| state.first()).is_none_or(|state| (2..=6).contains(state));
    let named = |(kind, _): &(u16, &[u8])| [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE].contains(kind);
    let nested = |kind| if kind == CTA_TUPLE_ORIG { kind | super::batch::NLA_F_NESTED } else { kind };
    let name = attributes(all).filter(named).map(|(kind, value)| (nested(kind), value.to_vec())).collect();
    Some(Flow { destination, server, open, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_read() {
        let mut batch = Batch::new();
        let mut status = DESTINATION_CHANGED;
        let mut write = |status: u32| {
            batch = Batch::new();
            batch.message("", (NEW, 0), &[AF_INET, 0, 0, 0], |batch| {
                batch.nest(CTA_TUPLE_ORIG, |batch| {
                    batch.nest(1, |batch| {
                        batch.attribute(1, &[192, 0, 2, 9]);
                        batch.attribute(2, &[192, 0, 2, 1]);
                    });
                    batch.nest(2, |batch| {
                        batch.attribute(1, &[6]);
                        batch.attribute(3, &8080_u16.to_be_bytes());
                    });
                });
                batch.nest(CTA_TUPLE_REPLY, |batch| {
                    batch.nest(1, |batch| batch.attribute(1, &[10, 0, 0, 2]));
                    batch.nest(2, |batch| batch.attribute(2, &80_u16.to_be_bytes()));
                });
                batch.big_word(CTA_STATUS, status);
                batch.nest(CTA_PROTOINFO, |batch| batch.nest(1, |batch| batch.attribute(1, &[3])));
                batch.big_word(CTA_ID, 77);
            });
            batch.bytes()[16..].to_vec()
        };
        let flow = read_flow(NEW, &write(status)).unwrap();
        assert_eq!((flow.destination, flow.open), (("192.0.2.1".parse().unwrap(), 8080), true));
        assert_eq!(flow.server, ("10.0.0.2".parse().unwrap(), 80));
        assert_eq!(flow.name.iter().map(|(kind, _)| kind & 0xFF).collect::<Vec<_>>(), [CTA_TUPLE_ORIG, CTA_ID]);
        status = 0;
        let other = write(status);
        assert_eq!(read_flow(NEW, &other), None);
        for length in 0..other.len() {
            assert_eq!(read_flow(NEW, &other[..length]), None);
        }
    }
}
