//! Sets and maps of nf_tables: what is looked up, and what goes with it.
//!
//! A key is made of fields side by side, each padded to 4 bytes; ranges of keys are given by their first and last one.
//! Elements can count the packets that were found by them.

use super::super::Batch;
use super::{NLM_F_CREATE, NLM_F_EXCL, SUBSYSTEM};
use crate::sys::netlink::attributes;
use std::net::IpAddr;

const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
const GET_ELEMENTS: u16 = SUBSYSTEM | 13;
const DELETE_ELEMENTS: u16 = SUBSYSTEM | 14;

const NFT_SET_INTERVAL: u32 = 0x4;
const NFT_SET_MAP: u32 = 0x8;
const NFT_SET_CONCAT: u32 = 0x80;

const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_EXPR: u16 = 7;
const NFTA_SET_ELEM_KEY_END: u16 = 10;

/// So many elements go into one message: an attribute has 64 KiB at most.
const ELEMENTS_MAX: usize = 256;

/// A part of a key, or of what goes with one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Field {
    /// The protocol above IP.
    Protocol,
    /// An IPv4 address.
    Address4,
    /// An IPv6 address.
    Address6,
    /// A port.
    Port,
    /// The index of an interface.
    Interface,
    /// A number of this library's own.
    Number,
}

impl Field {
    fn bytes(self) -> u32 {
        match self {
            Self::Protocol => 1,
            Self::Port => 2,
            Self::Address4 | Self::Interface | Self::Number => 4,
            Self::Address6 => 16,
        }
    }

    /// What the program `nft` calls it, so that it can show it.
    fn kind(self) -> u32 {
        match self {
            Self::Address4 => 7,
            Self::Address6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Number => 19,
            Self::Interface => 20,
        }
    }
}

/// The type and the length of fields side by side.
fn measure(fields: &[Field]) -> (u32, u32) {
    match fields {
        [one] => (one.kind(), one.bytes()),
        several => several.iter().fold((0, 0), |(kind, length), field| {
            ((kind << 6) | field.kind(), length + field.bytes().next_multiple_of(4))
        }),
    }
}

/// A set, or a map where something goes with each key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set<'a> {
    pub(crate) name: &'a str,
    /// Unlike that of every other set of the batch.
    pub(crate) id: u32,
    pub(crate) key: &'a [Field],
    pub(crate) data: &'a [Field],
    /// Whether elements are ranges of keys.
    pub(crate) ranges: bool,
    /// Whether each element counts.
    pub(crate) counts: bool,
}

/// An element of a set.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    /// The last key of a range.
    pub(crate) last: Option<Vec<u8>>,
    /// What goes with it, in a map.
    pub(crate) data: Option<Vec<u8>>,
}

/// What an element has counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Count {
    pub(crate) packets: u64,
    /// With their IP headers.
    pub(crate) bytes: u64,
}

/// Appends a field to a key.
pub(crate) fn field(key: &mut Vec<u8>, bytes: &[u8]) {
    key.extend(bytes);
    key.resize(key.len().next_multiple_of(4), 0);
}

/// The bytes of an address.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl Batch {
    /// A set without elements.
    pub(crate) fn new_set(&mut self, (family, table): (u8, &str), set: &Set<'_>) {
        let what = format!("NFT_MSG_NEWSET({table} {})", set.name);
        let ((kind, length), several) = (measure(set.key), set.key.len() > 1);
        let mut flags = if set.ranges { NFT_SET_INTERVAL } else { 0 };
        flags |= if set.data.is_empty() { 0 } else { NFT_SET_MAP };
        flags |= if several && set.ranges { NFT_SET_CONCAT } else { 0 };
        self.message(what, (NEW_SET, NLM_F_CREATE | NLM_F_EXCL), &[family, 0, 0, 0], |batch| {
            batch.text(1, table); // NFTA_SET_TABLE
            batch.text(2, set.name); // NFTA_SET_NAME
            batch.big_word(3, flags); // NFTA_SET_FLAGS
            batch.big_word(4, kind); // NFTA_SET_KEY_TYPE
            batch.big_word(5, length); // NFTA_SET_KEY_LEN
            if !set.data.is_empty() {
                let (kind, length) = measure(set.data);
                batch.big_word(6, kind); // NFTA_SET_DATA_TYPE
                batch.big_word(7, length); // NFTA_SET_DATA_LEN
            }
            batch.big_word(10, set.id); // NFTA_SET_ID
            if several && set.ranges {
                // NFTA_SET_DESC: NFTA_SET_DESC_CONCAT: NFTA_LIST_ELEM: NFTA_SET_FIELD_LEN
                batch.nest(9, |batch| {
                    batch.nest(2, |batch| {
                        for field in set.key {
                            batch.nest(1, |batch| batch.big_word(1, field.bytes()));
                        }
                    });
                });
            }
            if set.counts {
                // NFTA_SET_EXPR: NFTA_EXPR_NAME, NFTA_EXPR_DATA
                batch.nest(17, |batch| {
                    batch.text(1, "counter");
                    batch.nest(2, |_| {});
                });
            }
        });
    }

    /// Puts elements in. One that is there with the same data stays; with other data it is an error.
    pub(crate) fn new_elements(&mut self, table: (u8, &str), set: &str, elements: &[Element]) {
        self.elements(("NFT_MSG_NEWSETELEM", NEW_ELEMENTS, NLM_F_CREATE), table, set, elements);
    }

    /// Takes elements out, by their keys.
    pub(crate) fn delete_elements(&mut self, table: (u8, &str), set: &str, elements: &[Element]) {
        self.elements(("NFT_MSG_DELSETELEM", DELETE_ELEMENTS, 0), table, set, elements);
    }

    /// Asks for elements, by their keys; not for a batch that is carried out.
    pub(crate) fn get_elements(&mut self, table: (u8, &str), set: &str, elements: &[Element]) {
        self.elements(("NFT_MSG_GETSETELEM", GET_ELEMENTS, 0), table, set, elements);
    }

    fn elements(
        &mut self,
        (call, kind, flags): (&str, u16, u16),
        (family, table): (u8, &str),
        set: &str,
        elements: &[Element],
    ) {
        for some in elements.chunks(ELEMENTS_MAX) {
            let what = format!("{call}({table} {set})");
            self.message(what, (kind, flags), &[family, 0, 0, 0], |batch| {
                batch.text(1, table); // NFTA_SET_ELEM_LIST_TABLE
                batch.text(2, set); // NFTA_SET_ELEM_LIST_SET
                batch.nest(3, |batch| some.iter().for_each(|element| batch.element(element)));
            });
        }
    }

    fn element(&mut self, element: &Element) {
        // NFTA_LIST_ELEM; each value is an NFTA_DATA_VALUE.
        self.nest(1, |batch| {
            batch.nest(NFTA_SET_ELEM_KEY, |batch| batch.attribute(1, &element.key));
            if let Some(last) = &element.last {
                batch.nest(NFTA_SET_ELEM_KEY_END, |batch| batch.attribute(1, last));
            }
            if let Some(data) = &element.data {
                batch.nest(NFTA_SET_ELEM_DATA, |batch| batch.attribute(1, data));
            }
        });
    }
}

/// What the elements in one message of the answer to [`Batch::get_elements`] have counted together.
pub(crate) fn read_counts(kind: u16, body: &[u8]) -> Count {
    let mut sum = Count::default();
    if kind != NEW_ELEMENTS {
        return sum;
    }
    let inside = |bytes, kind| attributes(bytes).find(move |(found, _)| *found == kind).map(|(_, value)| value);
    let elements = body.get(4..).and_then(|attributes| inside(attributes, 3)).unwrap_or_default();
    for (_, element) in attributes(elements) {
        let data = inside(element, NFTA_SET_ELEM_EXPR).and_then(|expression| inside(expression, 2));
        let number = |kind| {
            let bytes = data.and_then(|data| inside(data, kind)).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_be_bytes)
        };
        // NFTA_COUNTER_BYTES, NFTA_COUNTER_PACKETS
        sum.bytes += number(1);
        sum.packets += number(2);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_measured_as_the_program_nft_does() {
        let fields = [Field::Protocol, Field::Address4, Field::Port];
        assert_eq!(measure(&fields), ((12 << 12) | (7 << 6) | 13, 12));
        assert_eq!(measure(&[Field::Address6]), (8, 16));
        assert_eq!(measure(&[Field::Port]), (13, 2));
        let mut key = Vec::new();
        field(&mut key, &[6]);
        field(&mut key, &[0x1F, 0x90]);
        assert_eq!(key, [6, 0, 0, 0, 0x1F, 0x90, 0, 0]);
    }

    #[test]
    fn what_is_no_answer_counts_nothing() {
        for body in [&[][..], &[2, 0, 0, 0], &[2, 0, 0, 0, 0xFF, 0xFF, 3, 0x80, 1]] {
            assert_eq!(read_counts(NEW_ELEMENTS, body), Count::default());
        }
    }
}
