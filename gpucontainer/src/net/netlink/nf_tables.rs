//! nf_tables: tables, chains, rules, maps. A batch is carried out as a whole or not at all.
//!
//! A rule is a list of expressions that work on registers; [`Rule`] writes those that this library uses, in the order
//! in which they are called.

use super::Batch;

/// Tables for IPv4 and IPv6 together.
pub(crate) const INET: u8 = 1;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;

const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

const NFT_TABLE_F_OWNER: u32 = 0x2;
/// The register that holds one value after another; 16 bytes.
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;

/// Where a chain is on a packet's way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(dead_code, reason = "all five are the kernel's, whichever are used")]
pub(crate) enum Hook {
    /// Before it is decided where a packet goes.
    Prerouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// When it is decided where it goes.
    Postrouting,
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// It is gone.
    Drop,
    /// This chain is done with it; others are not.
    Accept,
}

/// What a chain does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ChainType {
    /// Says which packets may pass.
    Filter,
    /// Rewrites the addresses of connections.
    Nat,
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

impl Batch {
    /// Begins a batch of nf_tables; [`Batch::end`] ends it.
    pub(crate) fn begin() -> Self {
        let mut batch = Self::new();
        // struct nfgenmsg: family, version, and which part of the packet filter, the most significant byte first.
        batch.silent("NFNL_MSG_BATCH_BEGIN", (BATCH_BEGIN, 0), &[0, 0, 0, 10]);
        batch
    }

    /// Ends it.
    pub(crate) fn end(&mut self) {
        self.silent("NFNL_MSG_BATCH_END", (BATCH_END, 0), &[0, 0, 0, 10]);
    }

    /// A table that belongs to the socket and vanishes with it; nobody else can change it.
    pub(crate) fn new_owned_table(&mut self, family: u8, name: &str) {
        self.new_table(family, name, NFT_TABLE_F_OWNER);
    }

    /// A table; `flags` as in `NFT_TABLE_F_…`.
    pub(crate) fn new_table(&mut self, family: u8, name: &str, flags: u32) {
        let what = format!("NFT_MSG_NEWTABLE({name})");
        self.message(what, (NEW_TABLE, NLM_F_CREATE | NLM_F_EXCL), &[family, 0, 0, 0], |batch| {
            batch.text(1, name); // NFTA_TABLE_NAME
            batch.big_word(2, flags); // NFTA_TABLE_FLAGS
        });
    }

    /// A chain on a packet's way, which lets pass what no rule says anything about. Lower priorities come first.
    pub(crate) fn new_chain(
        &mut self,
        (family, table): (u8, &str),
        name: &str,
        kind: ChainType,
        (hook, priority): (Hook, i32),
    ) {
        let what = format!("NFT_MSG_NEWCHAIN({table} {name})");
        self.message(what, (NEW_CHAIN, NLM_F_CREATE | NLM_F_EXCL), &[family, 0, 0, 0], |batch| {
            batch.text(1, table); // NFTA_CHAIN_TABLE
            batch.text(3, name); // NFTA_CHAIN_NAME
            batch.nest(4, |batch| {
                // NFTA_CHAIN_HOOK: its number and priority
                batch.big_word(1, hook as u32);
                batch.big_word(2, priority.cast_unsigned());
            });
            batch.big_word(5, 1); // NFTA_CHAIN_POLICY: accept
            let kind = match kind {
                ChainType::Filter => "filter",
                ChainType::Nat => "nat",
            };
            batch.text(7, kind); // NFTA_CHAIN_TYPE
        });
    }

    /// A rule at the end of a chain.
    pub(crate) fn new_rule(
        &mut self,
        (family, table): (u8, &str),
        chain: &str,
        expressions: impl FnOnce(&mut Rule<'_>),
    ) {
        let what = format!("NFT_MSG_NEWRULE({table} {chain})");
        self.message(what, (NEW_RULE, NLM_F_CREATE | NLM_F_APPEND), &[family, 0, 0, 0], |batch| {
            batch.text(1, table); // NFTA_RULE_TABLE
            batch.text(2, chain); // NFTA_RULE_CHAIN
            batch.nest(4, |batch| expressions(&mut Rule(batch))); // NFTA_RULE_EXPRESSIONS
        });
    }
}

/// The expressions of a rule: each compares, and a comparison that fails ends the rule for the packet.
#[derive(Debug)]
pub(crate) struct Rule<'batch>(&'batch mut Batch);

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
            batch.big_word(1, REGISTER); // NFTA_CMP_SREG
            batch.big_word(2, u32::from(!equal)); // NFTA_CMP_OP: equal, not equal
            batch.nest(3, |batch| batch.attribute(1, value)); // NFTA_CMP_DATA
        })
    }

    /// Goes on if it is so, or is not.
    pub(crate) fn meta(&mut self, key: Meta, equal: bool, value: &[u8]) -> &mut Self {
        let number = match key {
            Meta::InputInterface => 4,
            Meta::OutputInterface => 5,
            Meta::Family => 15,
            Meta::Protocol => 16,
        };
        self.expression("meta", |batch| {
            batch.big_word(2, number); // NFTA_META_KEY
            batch.big_word(1, REGISTER); // NFTA_META_DREG
        })
        .compare(equal, value)
    }

    /// Goes on if the bytes there are these, or are not.
    pub(crate) fn payload(&mut self, base: Base, offset: u32, equal: bool, value: &[u8]) -> &mut Self {
        self.load(base, offset, u32::try_from(value.len()).unwrap_or(u32::MAX)).compare(equal, value)
    }

    /// Goes on if the first `bits` bits there are those of `value`, or are not.
    pub(crate) fn prefix(&mut self, base: Base, offset: u32, equal: bool, value: &[u8], bits: u8) -> &mut Self {
        let mask: Vec<u8> = (0..value.len()).map(|at| mask_byte(bits, at)).collect();
        let wanted: Vec<u8> = value.iter().zip(&mask).map(|(value, mask)| value & mask).collect();
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.load(base, offset, length).mask(&mask).compare(equal, &wanted)
    }

    /// Goes on if the connection is in one of these states.
    pub(crate) fn connection_state(&mut self, states: u32) -> &mut Self {
        self.expression("ct", |batch| {
            batch.big_word(2, 0); // NFTA_CT_KEY: state
            batch.big_word(1, REGISTER); // NFTA_CT_DREG
        })
        .mask(&states.to_ne_bytes())
        .compare(false, &[0; 4])
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

    fn load(&mut self, base: Base, offset: u32, length: u32) -> &mut Self {
        let base = match base {
            Base::Network => 1,
            Base::Transport => 2,
        };
        self.expression("payload", |batch| {
            batch.big_word(1, REGISTER); // NFTA_PAYLOAD_DREG
            batch.big_word(2, base); // NFTA_PAYLOAD_BASE
            batch.big_word(3, offset); // NFTA_PAYLOAD_OFFSET
            batch.big_word(4, length); // NFTA_PAYLOAD_LEN
        })
    }

    fn mask(&mut self, mask: &[u8]) -> &mut Self {
        self.expression("bitwise", |batch| {
            batch.big_word(1, REGISTER); // NFTA_BITWISE_SREG
            batch.big_word(2, REGISTER); // NFTA_BITWISE_DREG
            batch.big_word(3, u32::try_from(mask.len()).unwrap_or(u32::MAX)); // NFTA_BITWISE_LEN
            batch.nest(4, |batch| batch.attribute(1, mask)); // NFTA_BITWISE_MASK
            batch.nest(5, |batch| batch.attribute(1, &vec![0; mask.len()])); // NFTA_BITWISE_XOR
        })
    }
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
