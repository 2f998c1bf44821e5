//! What the host lets pass between a private network and everything else.
//!
//! The rules are in a table that belongs to a socket: whoever is in the network holds it, and with the last of them the
//! table is gone.

use super::subnet::Subnet;
use crate::error::{Context, Result};
use crate::net::netlink::nf_tables::{Base, ChainType, Hook, INET, Meta, Verdict, state, status};
use crate::net::netlink::{Batch, carry_out};
use crate::sys::netlink::{Netlink, Protocol};
use std::net::Ipv6Addr;

/// What rules are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub(super) table: &'a str,
    /// The index of the host's interface to the network.
    pub(super) uplink: u32,
    pub(super) ipv4: Subnet,
    pub(super) ipv6: Option<Ipv6Addr>,
    pub(super) outbound: bool,
    pub(super) host_access: bool,
}

/// Where the source address is in the two IP headers.
const SOURCE4: u32 = 12;
const SOURCE6: u32 = 8;
const FAMILY4: [u8; 1] = [2];
const FAMILY6: [u8; 1] = [10];
const ICMP6: [u8; 1] = [58];
/// The types of neighbour solicitation and advertisement.
const NEIGHBOURS: [[u8; 1]; 2] = [[135], [136]];
const IPV6_BITS: u8 = 64;

impl Rules<'_> {
    /// Puts them in force; the socket is what keeps them.
    pub(super) fn enforce(self) -> Result<Netlink> {
        let socket = Netlink::open(Protocol::Netfilter)?;
        carry_out(&socket, &self.batch()).context("guard a private network")?;
        Ok(socket)
    }

    fn batch(self) -> Batch {
        let table = (INET, self.table);
        let uplink = self.uplink.to_ne_bytes();
        let known = state::ESTABLISHED | state::RELATED;
        let mut batch = Batch::begin();
        batch.new_owned_table(table.0, table.1);

        batch.new_chain(table, "through", ChainType::Filter, (Hook::Forward, 0));
        self.drop_foreign_sources(&mut batch, "through");
        // Ports of members that the host leads here (`PortMode::Nat`): what is answered, what members of this network want
        // of them, and nothing that a member wants of other networks' by the host's addresses, which are not for members.
        batch.new_rule(table, "through", |rule| {
            rule.meta(Meta::InputInterface, true, &uplink)
                .connection_status(status::DESTINATION_CHANGED)
                .answer(true)
                .verdict(Verdict::Accept);
        });
        batch.new_rule(table, "through", |rule| {
            rule.meta(Meta::InputInterface, true, &uplink)
                .meta(Meta::OutputInterface, true, &uplink)
                .connection_status(status::DESTINATION_CHANGED)
                .verdict(Verdict::Accept);
        });
        if !self.host_access {
            batch.new_rule(table, "through", |rule| {
                rule.meta(Meta::InputInterface, true, &uplink)
                    .connection_status(status::DESTINATION_CHANGED)
                    .verdict(Verdict::Drop);
            });
        }
        if !self.outbound {
            batch.new_rule(table, "through", |rule| {
                rule.meta(Meta::InputInterface, true, &uplink).verdict(Verdict::Drop);
            });
        }
        // Nobody begins a conversation with a member: not the host's neighbours, not another private network.
        batch.new_rule(table, "through", |rule| {
            rule.meta(Meta::OutputInterface, true, &uplink).connection_state(known).verdict(Verdict::Accept);
        });
        batch.new_rule(table, "through", |rule| {
            rule.meta(Meta::OutputInterface, true, &uplink)
                .connection_status(status::DESTINATION_CHANGED)
                .verdict(Verdict::Accept);
        });
        batch.new_rule(table, "through", |rule| {
            rule.meta(Meta::OutputInterface, true, &uplink).verdict(Verdict::Drop);
        });

        batch.new_chain(table, "host", ChainType::Filter, (Hook::Input, 0));
        for kind in NEIGHBOURS {
            batch.new_rule(table, "host", |rule| {
                rule.meta(Meta::InputInterface, true, &uplink)
                    .meta(Meta::Family, true, &FAMILY6)
                    .meta(Meta::Protocol, true, &ICMP6)
                    .payload(Base::Transport, 0, true, &kind)
                    .verdict(Verdict::Accept);
            });
        }
        self.drop_foreign_sources(&mut batch, "host");
        batch.new_rule(table, "host", |rule| {
            rule.meta(Meta::InputInterface, true, &uplink).connection_state(known).verdict(Verdict::Accept);
        });
        if !self.host_access {
            batch.new_rule(table, "host", |rule| {
                rule.meta(Meta::InputInterface, true, &uplink).verdict(Verdict::Drop);
            });
        }

        if self.outbound {
            batch.new_chain(table, "out", ChainType::Nat, (Hook::Postrouting, 100));
            batch.new_rule(table, "out", |rule| {
                rule.meta(Meta::Family, true, &FAMILY4)
                    .prefix(Base::Network, SOURCE4, true, &self.ipv4.network().octets(), self.ipv4.prefix())
                    .meta(Meta::OutputInterface, false, &uplink)
                    .masquerade();
            });
            if let Some(network) = self.ipv6 {
                batch.new_rule(table, "out", |rule| {
                    rule.meta(Meta::Family, true, &FAMILY6)
                        .prefix(Base::Network, SOURCE6, true, &network.octets(), IPV6_BITS)
                        .meta(Meta::OutputInterface, false, &uplink)
                        .masquerade();
                });
            }
        }
        batch.end();
        batch
    }

    /// Nothing comes from the network with an address that is not of the network.
    fn drop_foreign_sources(self, batch: &mut Batch, chain: &str) {
        let table = (INET, self.table);
        let uplink = self.uplink.to_ne_bytes();
        batch.new_rule(table, chain, |rule| {
            rule.meta(Meta::InputInterface, true, &uplink)
                .meta(Meta::Family, true, &FAMILY4)
                .prefix(Base::Network, SOURCE4, false, &self.ipv4.network().octets(), self.ipv4.prefix())
                .verdict(Verdict::Drop);
        });
        batch.new_rule(table, chain, |rule| {
            rule.meta(Meta::InputInterface, true, &uplink).meta(Meta::Family, true, &FAMILY6);
            if let Some(network) = self.ipv6 {
                rule.prefix(Base::Network, SOURCE6, false, &network.octets(), IPV6_BITS);
            }
            rule.verdict(Verdict::Drop);
        });
    }
}
