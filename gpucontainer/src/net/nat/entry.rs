//! What of the sets is one port's, or one range's, on one address of the host.
//!
//! ```text
//! ports4    tcp . 192.0.2.1 . 8080                       : 10.88.0.2 . 80       one port
//! ranges4   udp . 0.0.0.0-255.255.255.255 . 5000-14999   : 10.88.0.2            as many, with the same numbers inside
//! shifts4   tcp . 192.0.2.1 . 8000-8009                  : 10.88.0.2 . 1        as many, with others:
//! shifted   1 . 8000                                     : 80                   …each by itself
//! in4, out4, in-ranges4, out-ranges4                                            count bytes, by the same keys
//! ```
//! The kernel can shift a range of ports by itself, but goes on to the next port where a client uses one of its own twice,
//! be it a port that is not published. So each is written down.

use super::super::netlink::nf_tables::set::{Element, field, octets};
use super::super::port::PublishedPort;
use super::{protocol_number, table};
use crate::net::mapping::Protocol;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Consecutive ports of one address of the host, or of all of one family.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    protocol: Protocol,
    /// Of the family of `to`; the unspecified one is all of them.
    host: IpAddr,
    first: u16,
    count: u16,
    pub(super) to: IpAddr,
    to_first: u16,
    /// Names a range with other numbers inside.
    pub(super) number: u32,
}

impl Entry {
    pub(super) fn new(port: &PublishedPort, host: IpAddr, to: IpAddr) -> Self {
        let host = match to {
            IpAddr::V4(_) if host.is_unspecified() => Ipv4Addr::UNSPECIFIED.into(),
            _ => host,
        };
        let (first, count, to_first) = (port.host().port(), port.count(), port.container_port());
        Self { protocol: port.protocol(), host, first, count, to, to_first, number: 0 }
    }

    /// Whether it is a range with other numbers inside.
    pub(super) fn is_shifted(&self) -> bool {
        self.count > 1 && self.first != self.to_first
    }

    pub(super) fn protocol(&self) -> u8 {
        protocol_number(self.protocol)
    }

    /// Whether a connection that was begun to this address and port is one of it.
    pub(super) fn is_for(&self, (address, port): (IpAddr, u16)) -> bool {
        let ours = port.checked_sub(self.first).is_some_and(|offset| offset < self.count);
        ours && (self.host.is_unspecified() || self.host == address)
    }

    /// Whether it is for all addresses of the host.
    pub(super) fn is_everywhere(&self) -> bool {
        self.host.is_unspecified()
    }

    /// Whether a connection that is one of it was led where it leads.
    pub(super) fn leads(&self, destination: u16, (address, port): (IpAddr, u16)) -> bool {
        let offset = destination.wrapping_sub(self.first);
        address == self.to && port == self.to_first.wrapping_add(offset)
    }

    fn key(&self, address: IpAddr, port: u16) -> Vec<u8> {
        let mut key = Vec::with_capacity(24);
        field(&mut key, &[self.protocol()]);
        field(&mut key, &octets(address));
        field(&mut key, &port.to_be_bytes());
        key
    }

    /// Its key among single ports, or the first and the last one among ranges.
    fn element(&self) -> Element {
        let first = self.key(self.host, self.first);
        if self.count == 1 {
            return Element { key: first, ..Element::default() };
        }
        let last = match self.host {
            IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::BROADCAST.into(),
            IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::from(u128::MAX).into(),
            one => one,
        };
        let last = self.key(last, self.first.saturating_add(self.count - 1));
        Element { key: first, last: Some(last), data: None }
    }

    /// Adds all that is its own, by set.
    pub(super) fn elements(&self, all: &mut Vec<(&'static str, Vec<Element>)>) {
        let names = table::names(self.to.is_ipv4());
        let element = self.element();
        let mut data = Vec::with_capacity(20);
        field(&mut data, &octets(self.to));
        let (set, bytes) = match (self.count, self.is_shifted()) {
            (1, _) => {
                field(&mut data, &self.to_first.to_be_bytes());
                (names.ports, [names.bytes_in, names.bytes_out])
            }
            (_, false) => (names.ranges, [names.range_bytes_in, names.range_bytes_out]),
            (_, true) => {
                field(&mut data, &self.number.to_ne_bytes());
                (names.shifts, [names.range_bytes_in, names.range_bytes_out])
            }
        };
        for set in bytes {
            add(all, set, element.clone());
        }
        add(all, set, Element { data: Some(data), ..element });
        if self.is_shifted() {
            for offset in 0..self.count {
                let mut key = Vec::with_capacity(8);
                field(&mut key, &self.number.to_ne_bytes());
                field(&mut key, &self.first.saturating_add(offset).to_be_bytes());
                let port = self.to_first.saturating_add(offset).to_be_bytes().to_vec();
                add(all, table::SHIFTED, Element { key, last: None, data: Some(port) });
            }
        }
    }

    /// Where its connections are counted, and its bytes in and out.
    pub(super) fn counted(&self) -> [(&'static str, Element); 3] {
        let names = table::names(self.to.is_ipv4());
        let element = self.element();
        let sets = match (self.count, self.is_shifted()) {
            (1, _) => [names.ports, names.bytes_in, names.bytes_out],
            (_, false) => [names.ranges, names.range_bytes_in, names.range_bytes_out],
            (_, true) => [names.shifts, names.range_bytes_in, names.range_bytes_out],
        };
        sets.map(|set| (set, element.clone()))
    }
}

/// Adds an element to those of its set.
pub(super) fn add(all: &mut Vec<(&'static str, Vec<Element>)>, set: &'static str, element: Element) {
    match all.iter_mut().find(|(name, _)| *name == set) {
        Some((_, elements)) => elements.push(element),
        None => all.push((set, vec![element])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::mapping::PortMapping;

    fn entry(mapping: &PortMapping, host: &str, to: &str) -> Entry {
        let host: IpAddr = host.parse().unwrap();
        let port = PublishedPort::new(mapping, (host, mapping.host().port()).into(), None);
        Entry::new(&port, host, to.parse().unwrap())
    }

    fn elements(entry: &Entry) -> Vec<(&'static str, Vec<Element>)> {
        let mut all = Vec::new();
        entry.elements(&mut all);
        all
    }

    #[test]
    fn a_port_is_one_element_and_two_that_count() {
        let all = elements(&entry(&PortMapping::tcp(80, 8080), "192.0.2.1", "10.0.0.2"));
        let sets: Vec<_> = all.iter().map(|(set, elements)| (*set, elements.len())).collect();
        assert_eq!(sets, [("in4", 1), ("out4", 1), ("ports4", 1)]);
        let element = &all[2].1[0];
        assert_eq!(element.key, [6, 0, 0, 0, 192, 0, 2, 1, 0x1F, 0x90, 0, 0]);
        assert_eq!(element.data, Some(vec![10, 0, 0, 2, 0, 80, 0, 0]));
    }

    #[test]
    fn a_range_is_one_element_whatever_its_length() {
        let range = entry(&PortMapping::udp_range(5000, 5000, 10_000), "::", "10.0.0.2");
        let all = elements(&range);
        assert_eq!(all.iter().map(|(_, elements)| elements.len()).sum::<usize>(), 3);
        let element = &all[2].1[0];
        assert_eq!(element.key, [17, 0, 0, 0, 0, 0, 0, 0, 0x13, 0x88, 0, 0]);
        assert_eq!(element.last, Some(vec![17, 0, 0, 0, 255, 255, 255, 255, 0x3A, 0x97, 0, 0]));
        for (port, expected) in [(4999, false), (5000, true), (14_999, true), (15_000, false)] {
            assert_eq!(range.is_for(("192.0.2.1".parse().unwrap(), port)), expected, "{port}");
        }
    }

    #[test]
    fn other_numbers_inside_are_written_down_each() {
        let mut range = entry(&PortMapping::tcp_range(80, 8000, 10), "2001:db8::1", "fd00::2");
        range.number = 7;
        let all = elements(&range);
        let shifted = &all.iter().find(|(set, _)| *set == table::SHIFTED).unwrap().1;
        assert_eq!(shifted.len(), 10);
        assert_eq!(shifted[9].data, Some(vec![0, 89]));
        assert_eq!(shifted[9].key[4..6], 8009_u16.to_be_bytes());
        assert!(!range.is_for(("2001:db8::2".parse().unwrap(), 8000)));
    }
}
