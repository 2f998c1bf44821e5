//! nf_tables: tables, chains, rules, maps. A batch is carried out as a whole or not at all.
//!
//! ```text
//! mod   tables, chains and rules
//! rule  the expressions of rules
//! set   sets and maps, their elements and the counters of these
//! ```

mod rule;
pub(crate) mod set;

pub(crate) use rule::{Base, End, Meta, Original, Rule, Translation, Verdict, state, status};

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

/// What a chain does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ChainType {
    /// Says which packets may pass.
    Filter,
    /// Rewrites the addresses of connections.
    Nat,
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
            batch.nest(4, |batch| expressions(&mut Rule::new(batch))); // NFTA_RULE_EXPRESSIONS
        });
    }
}
