//! The expressions of rules, in the words of what they look at.
//!
//! An expression loads something into registers, compares what is there, or acts. Registers are 4 bytes each and are
//! numbered from 0 here; what is looked up in a set lies in several of them side by side.

use crate::net::netlink::Batch;

const VERDICT_REGISTER: u32 = 0;
/// The first of 16 registers.
const FIRST_REGISTER: u32 = 8;
/// Where what is compared at once lies: the first four of them.
const REGISTER: u32 = 0;

/// What happens to a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// It is gone.
    Drop,
    /// This chain is done with it; others are not.
    Accept,
}

/// What `meta` loads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Meta {
    /// The index of the interface by which a packet came.
    InputInterface,
    /// The index of the interface by which a packet goes.
    OutputInterface,
    /// 2 is IPv4, 10 is IPv6: one byte.
    Family,
    /// The protocol above IP: one byte.
    Protocol,
}

/// A part of a packet's IP header or what follows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Base {
    /// The IP header.
    Network,
    /// TCP, UDP, ICMP.
    Transport,
}

/// Connections as the kernel tracks them, as bits of [`Rule::connection_state`].
pub(crate) mod state {
    /// Answered already.
    pub(crate) const ESTABLISHED: u32 = 1 << 1;
    /// Belongs to another one, such as an error about it.
    pub(crate) const RELATED: u32 = 1 << 2;
}

/// What became of a connection, as bits of [`Rule::connection_status`].
pub(crate) mod status {
    /// It was led to another address or port than it was begun to.
    pub(crate) const DESTINATION_CHANGED: u32 = 1 << 5;
}

/// A part of what a connection looked like to who began it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Original {
    /// The address that it was begun to, IPv4.
    Destination4,
    /// The same, IPv6.
    Destination6,
    /// The port that it was begun to.
    DestinationPort,
}

/// One end of a packet's way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// Where a connection is led to instead, by the registers that hold it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Translation {
    pub(crate) ipv6: bool,
    /// The first register of the address.
    pub(crate) address: u32,
    /// That of the port, which else stays what it is.
    pub(crate) port: Option<u32>,
}

/// The expressions of a rule: each compares, and a comparison that fails ends the rule for the packet.
#[derive(Debug)]
pub(crate) struct Rule<'batch>(&'batch mut Batch);

impl<'batch> Rule<'batch> {
    /// Writes into an attribute that holds expressions.
    pub(super) fn new(batch: &'batch mut Batch) -> Self {
        Self(batch)
    }
}

impl Rule<'_> {
    /// An expression by its name; `data` writes its attributes.
    pub(crate) fn expression(&mut self, name: &str, data: impl FnOnce(&mut Batch)) -> &mut Self {
        // NFTA_LIST_ELEM
        self.0.nest(1, |batch| {
            batch.text(1, name); // NFTA_EXPR_NAME
            batch.nest(2, data); // NFTA_EXPR_DATA
        });
        self
    }

    /// Goes on if what the register holds is these bytes, or is not.
    pub(crate) fn compare(&mut self, equal: bool, value: &[u8]) -> &mut Self {
        self.expression("cmp", |batch| {
            batch.big_word(1, register(REGISTER)); // NFTA_CMP_SREG
            batch.big_word(2, u32::from(!equal)); // NFTA_CMP_OP: equal, not equal
            batch.nest(3, |batch| batch.attribute(1, value)); // NFTA_CMP_DATA
        })
    }

    /// Goes on if it is so, or is not.
    pub(crate) fn meta(&mut self, key: Meta, equal: bool, value: &[u8]) -> &mut Self {
        self.load_meta(key, REGISTER).compare(equal, value)
    }

    /// Loads it into a register.
    pub(crate) fn load_meta(&mut self, key: Meta, into: u32) -> &mut Self {
        let number = match key {
            Meta::InputInterface => 4,
            Meta::OutputInterface => 5,
            Meta::Family => 15,
            Meta::Protocol => 16,
        };
        self.expression("meta", |batch| {
            batch.big_word(2, number); // NFTA_META_KEY
            batch.big_word(1, register(into)); // NFTA_META_DREG
        })
    }

    /// Goes on if the bytes there are these, or are not.
    pub(crate) fn payload(&mut self, base: Base, offset: u32, equal: bool, value: &[u8]) -> &mut Self {
        self.load((base, offset, length(value)), REGISTER).compare(equal, value)
    }

    /// Goes on if the first `bits` bits there are those of `value`, or are not.
    pub(crate) fn prefix(&mut self, base: Base, offset: u32, equal: bool, value: &[u8], bits: u8) -> &mut Self {
        let mask: Vec<u8> = (0..value.len()).map(|at| mask_byte(bits, at)).collect();
        let wanted: Vec<u8> = value.iter().zip(&mask).map(|(value, mask)| value & mask).collect();
        self.load((base, offset, length(value)), REGISTER).mask(&mask).compare(equal, &wanted)
    }

    /// Goes on if the connection is in one of these states.
    pub(crate) fn connection_state(&mut self, states: u32) -> &mut Self {
        self.expression("ct", |batch| {
            batch.big_word(2, 0); // NFTA_CT_KEY: state
            batch.big_word(1, register(REGISTER)); // NFTA_CT_DREG
        })
        .mask(&states.to_ne_bytes())
        .compare(false, &[0; 4])
    }

    /// Goes on if one of these things became of the connection.
    pub(crate) fn connection_status(&mut self, bits: u32) -> &mut Self {
        self.load_status(bits).compare(false, &[0; 4])
    }

    /// Goes on if none of these things became of the connection.
    pub(crate) fn connection_status_is_not(&mut self, bits: u32) -> &mut Self {
        self.load_status(bits).compare(true, &[0; 4])
    }

    fn load_status(&mut self, bits: u32) -> &mut Self {
        self.expression("ct", |batch| {
            batch.big_word(2, 2); // NFTA_CT_KEY: status
            batch.big_word(1, register(REGISTER)); // NFTA_CT_DREG
        })
        .mask(&bits.to_ne_bytes())
    }

    /// Goes on if the packet is one from who was connected to, or else of who began the connection.
    pub(crate) fn answer(&mut self, answer: bool) -> &mut Self {
        self.expression("ct", |batch| {
            batch.big_word(2, 1); // NFTA_CT_KEY: direction
            batch.big_word(1, register(REGISTER)); // NFTA_CT_DREG
        })
        .compare(true, &[u8::from(answer)])
    }

    /// Loads a part of what the connection was begun as.
    pub(crate) fn load_original(&mut self, what: Original, into: u32) -> &mut Self {
        let number = match what {
            Original::DestinationPort => 12,
            Original::Destination4 => 20,
            Original::Destination6 => 22,
        };
        self.expression("ct", |batch| {
            batch.big_word(2, number); // NFTA_CT_KEY
            batch.attribute(3, &[0]); // NFTA_CT_DIRECTION: original
            batch.big_word(1, register(into)); // NFTA_CT_DREG
        })
    }

    /// Loads bytes that are always the same.
    pub(crate) fn load_value(&mut self, value: &[u8], into: u32) -> &mut Self {
        self.expression("immediate", |batch| {
            batch.big_word(1, register(into)); // NFTA_IMMEDIATE_DREG
            batch.nest(2, |batch| batch.attribute(1, value)); // NFTA_IMMEDIATE_DATA: NFTA_DATA_VALUE
        })
    }

    /// Goes on if the address is one of this host.
    pub(crate) fn local(&mut self, end: End) -> &mut Self {
        let flags = match end {
            End::Source => 1,
            End::Destination => 2,
        };
        self.expression("fib", |batch| {
            batch.big_word(3, flags); // NFTA_FIB_FLAGS
            batch.big_word(2, 3); // NFTA_FIB_RESULT: the type of the address
            batch.big_word(1, register(REGISTER)); // NFTA_FIB_DREG
        })
        .compare(true, &2_u32.to_ne_bytes()) // RTN_LOCAL
    }

    /// Goes on if what lies from a register on is in the set.
    pub(crate) fn is_in(&mut self, set: (&str, u32), from: u32) -> &mut Self {
        self.look_up(set, from, None)
    }

    /// Goes on if the map has what lies from a register on, and loads what goes with it from another one on.
    pub(crate) fn map(&mut self, map: (&str, u32), from: u32, into: u32) -> &mut Self {
        self.look_up(map, from, Some(into))
    }

    fn look_up(&mut self, (name, id): (&str, u32), from: u32, into: Option<u32>) -> &mut Self {
        self.expression("lookup", |batch| {
            batch.text(1, name); // NFTA_LOOKUP_SET
            batch.big_word(2, register(from)); // NFTA_LOOKUP_SREG
            into.iter().for_each(|into| batch.big_word(3, register(*into))); // NFTA_LOOKUP_DREG
            batch.big_word(4, id); // NFTA_LOOKUP_SET_ID
        })
    }

    /// Leads the packet's connection elsewhere.
    pub(crate) fn translate(&mut self, to: Translation) -> &mut Self {
        self.expression("nat", |batch| {
            batch.big_word(1, 1); // NFTA_NAT_TYPE: the destination
            batch.big_word(2, if to.ipv6 { 10 } else { 2 }); // NFTA_NAT_FAMILY
            batch.big_word(3, register(to.address)); // NFTA_NAT_REG_ADDR_MIN
            to.port.iter().for_each(|port| batch.big_word(5, register(*port))); // NFTA_NAT_REG_PROTO_MIN
        })
    }

    /// Gives the packet's connection the address of the interface by which it goes.
    pub(crate) fn masquerade(&mut self) -> &mut Self {
        self.expression("masq", |_| {})
    }

    /// Ends the rule.
    pub(crate) fn verdict(&mut self, verdict: Verdict) -> &mut Self {
        let code = match verdict {
            Verdict::Drop => 0,
            Verdict::Accept => 1,
        };
        self.expression("immediate", |batch| {
            batch.big_word(1, VERDICT_REGISTER); // NFTA_IMMEDIATE_DREG
            // NFTA_IMMEDIATE_DATA: NFTA_DATA_VERDICT: NFTA_VERDICT_CODE
            batch.nest(2, |batch| batch.nest(2, |batch| batch.big_word(1, code)));
        })
    }

    /// Loads bytes of the packet: of which header, from where on, how many.
    pub(crate) fn load(&mut self, (base, offset, length): (Base, u32, u32), into: u32) -> &mut Self {
        let base = match base {
            Base::Network => 1,
            Base::Transport => 2,
        };
        self.expression("payload", |batch| {
            batch.big_word(1, register(into)); // NFTA_PAYLOAD_DREG
            batch.big_word(2, base); // NFTA_PAYLOAD_BASE
            batch.big_word(3, offset); // NFTA_PAYLOAD_OFFSET
            batch.big_word(4, length); // NFTA_PAYLOAD_LEN
        })
    }

    fn mask(&mut self, mask: &[u8]) -> &mut Self {
        self.expression("bitwise", |batch| {
            batch.big_word(1, register(REGISTER)); // NFTA_BITWISE_SREG
            batch.big_word(2, register(REGISTER)); // NFTA_BITWISE_DREG
            batch.big_word(3, length(mask)); // NFTA_BITWISE_LEN
            batch.nest(4, |batch| batch.attribute(1, mask)); // NFTA_BITWISE_MASK
            batch.nest(5, |batch| batch.attribute(1, &vec![0; mask.len()])); // NFTA_BITWISE_XOR
        })
    }
}

/// As the kernel numbers it.
fn register(number: u32) -> u32 {
    FIRST_REGISTER + number
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn mask_byte(bits: u8, at: usize) -> u8 {
    let left = usize::from(bits).saturating_sub(8 * at).min(8);
    let zeros = u32::try_from(8 - left).unwrap_or(8);
    0xFF_u8.checked_shl(zeros).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_prefixes() {
        let mask = |bits| [0, 1, 2, 3].map(|at| mask_byte(bits, at));
        assert_eq!(mask(0), [0, 0, 0, 0]);
        assert_eq!(mask(22), [0xFF, 0xFF, 0xFC, 0]);
        assert_eq!(mask(32), [0xFF; 4]);
    }
}
