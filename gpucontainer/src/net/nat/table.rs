//! The table: sets of ports, and the rules that look them up.
//!
//! ```text
//! to        prerouting, output   leads connections to an address of the host where a set says so
//! source    postrouting          the host's address for clients that would not be answered through the host
//! count     prerouting, output   bytes of connections that were led elsewhere, either way
//! ```
//! The rules are the same however many ports there are.

use super::super::netlink::Batch;
use super::super::netlink::nf_tables::set::{Field, Set};
use super::super::netlink::nf_tables::status;
use super::super::netlink::nf_tables::{Base, ChainType, End, Hook, INET, Meta, Original, Rule, Translation, Verdict};

pub(super) const FAMILY: u8 = INET;
/// What ports of shifted ranges are inside, of both families.
pub(super) const SHIFTED: &str = "shifted";

/// The sets of one family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    /// Single ports.
    pub(super) ports: &'static str,
    /// Ranges with the same numbers inside.
    pub(super) ranges: &'static str,
    /// Ranges with others.
    pub(super) shifts: &'static str,
    pub(super) bytes_in: &'static str,
    pub(super) bytes_out: &'static str,
    pub(super) range_bytes_in: &'static str,
    pub(super) range_bytes_out: &'static str,
    /// Addresses of containers.
    pub(super) containers: &'static str,
    /// The same with the host's interface towards them.
    pub(super) same_wire: &'static str,
    /// Those that have no default route.
    pub(super) no_way_back: &'static str,
}

/// Those of IPv4 or IPv6.
pub(super) fn names(v4: bool) -> &'static Names {
    if v4 { &NAMES4 } else { &NAMES6 }
}

/// Whether a set of that name counts bytes.
pub(super) fn counts_bytes(set: &str) -> bool {
    let counting = |names: &Names| [names.bytes_in, names.bytes_out, names.range_bytes_in, names.range_bytes_out];
    counting(&NAMES4).contains(&set) || counting(&NAMES6).contains(&set)
}

const NAMES4: Names = Names {
    ports: "ports4",
    ranges: "ranges4",
    shifts: "shifts4",
    bytes_in: "in4",
    bytes_out: "out4",
    range_bytes_in: "in-ranges4",
    range_bytes_out: "out-ranges4",
    containers: "containers4",
    same_wire: "same-wire4",
    no_way_back: "no-way-back4",
};
const NAMES6: Names = Names {
    ports: "ports6",
    ranges: "ranges6",
    shifts: "shifts6",
    bytes_in: "in6",
    bytes_out: "out6",
    range_bytes_in: "in-ranges6",
    range_bytes_out: "out-ranges6",
    containers: "containers6",
    same_wire: "same-wire6",
    no_way_back: "no-way-back6",
};

/// One family and what of it the rules need.
#[derive(Clone, Copy, Debug)]
struct Family {
    v4: bool,
    names: &'static Names,
    /// Registers that an address takes.
    width: u32,
    /// Where the destination is in the IP header, and how long it is.
    destination: (Base, u32, u32),
    /// As `meta` names it.
    number: u8,
}

const FAMILIES: [Family; 2] = [
    Family { v4: true, names: &NAMES4, width: 1, destination: (Base::Network, 16, 4), number: 2 },
    Family { v4: false, names: &NAMES6, width: 4, destination: (Base::Network, 24, 16), number: 10 },
];

/// Where the port of the destination is in a header of TCP or UDP.
const PORT: (Base, u32, u32) = (Base::Transport, 2, 2);
/// When addresses are rewritten on the way in, and on the way out.
const DESTINATION_PRIORITY: i32 = -100;
const SOURCE_PRIORITY: i32 = 100;
/// After the former.
const COUNT_PRIORITY: i32 = -50;

/// Makes the table of that name, for whoever sends it.
pub(super) fn make(name: &str) -> Batch {
    let table = (FAMILY, name);
    let mut batch = Batch::begin();
    batch.new_owned_table(FAMILY, name);
    let sets = sets();
    for set in &sets {
        batch.new_set(table, set);
    }
    let id = |name: &'static str| (name, sets.iter().find(|set| set.name == name).map_or(0, |set| set.id));

    for (chain, hook) in [("to", Hook::Prerouting), ("to-own", Hook::Output)] {
        batch.new_chain(table, chain, ChainType::Nat, (hook, DESTINATION_PRIORITY));
        for family in FAMILIES {
            lead(&mut batch, table, chain, family, &id);
        }
    }
    batch.new_chain(table, "source", ChainType::Nat, (Hook::Postrouting, SOURCE_PRIORITY));
    for family in FAMILIES {
        masquerade(&mut batch, table, family, &id);
    }
    for (chain, hook) in [("count", Hook::Prerouting), ("count-own", Hook::Output)] {
        batch.new_chain(table, chain, ChainType::Filter, (hook, COUNT_PRIORITY));
        batch.new_rule(table, chain, |rule| {
            rule.connection_status_is_not(status::DESTINATION_CHANGED).verdict(Verdict::Accept);
        });
        for family in FAMILIES {
            count(&mut batch, table, chain, family, &id);
        }
    }
    batch.end();
    batch
}

/// All sets, numbered.
fn sets() -> Vec<Set<'static>> {
    let plain = Set { name: SHIFTED, id: 0, key: &[], data: &[], ranges: false, counts: false };
    let mut sets = vec![Set { key: &[Field::Number, Field::Port], data: &[Field::Port], ..plain }];
    for family in FAMILIES {
        let names = family.names;
        let (key, address, with_port, with_number, with_wire): (&[_], &[_], &[_], &[_], &[_]) = if family.v4 {
            (
                &[Field::Protocol, Field::Address4, Field::Port],
                &[Field::Address4],
                &[Field::Address4, Field::Port],
                &[Field::Address4, Field::Number],
                &[Field::Address4, Field::Interface],
            )
        } else {
            (
                &[Field::Protocol, Field::Address6, Field::Port],
                &[Field::Address6],
                &[Field::Address6, Field::Port],
                &[Field::Address6, Field::Number],
                &[Field::Address6, Field::Interface],
            )
        };
        let counted = Set { key, counts: true, ..plain };
        sets.extend([
            Set { name: names.ports, data: with_port, ..counted },
            Set { name: names.ranges, data: address, ranges: true, ..counted },
            Set { name: names.shifts, data: with_number, ranges: true, ..counted },
            Set { name: names.bytes_in, ..counted },
            Set { name: names.bytes_out, ..counted },
            Set { name: names.range_bytes_in, ranges: true, ..counted },
            Set { name: names.range_bytes_out, ranges: true, ..counted },
            Set { name: names.containers, key: address, ..plain },
            Set { name: names.same_wire, key: with_wire, ..plain },
            Set { name: names.no_way_back, key: address, ..plain },
        ]);
    }
    for (id, set) in (1..).zip(&mut sets) {
        set.id = id;
    }
    sets
}

type Id<'a> = &'a dyn Fn(&'static str) -> (&'static str, u32);

/// Leads a connection where the first of the sets says that has its protocol, address and port.
fn lead(batch: &mut Batch, table: (u8, &str), chain: &str, family: Family, id: Id<'_>) {
    let (names, width) = (family.names, family.width);
    // Only what is for an address of this host, and not for loopback, which is not to be had from elsewhere.
    let begin = |rule: &mut Rule<'_>| {
        rule.meta(Meta::Family, true, &[family.number]);
        if family.v4 {
            rule.prefix(Base::Network, 16, false, &[127, 0, 0, 0], 8);
        } else {
            let mut loopback = [0; 16];
            loopback[15] = 1;
            rule.payload(Base::Network, 24, false, &loopback);
        }
        rule.local(End::Destination).load_meta(Meta::Protocol, 0);
    };
    let to = |port| Translation { ipv6: !family.v4, address: 0, port };
    batch.new_rule(table, chain, |rule| {
        begin(rule);
        rule.load(family.destination, 1).load(PORT, 1 + width);
        rule.map(id(names.ports), 0, 0).translate(to(Some(width)));
    });
    batch.new_rule(table, chain, |rule| {
        begin(rule);
        rule.load_value(family.unspecified(), 1).load(PORT, 1 + width);
        rule.map(id(names.ports), 0, 0).translate(to(Some(width)));
    });
    batch.new_rule(table, chain, |rule| {
        begin(rule);
        rule.load(family.destination, 1).load(PORT, 1 + width);
        rule.map(id(names.ranges), 0, 0).translate(to(None));
    });
    batch.new_rule(table, chain, |rule| {
        begin(rule);
        rule.load(family.destination, 1).load(PORT, 1 + width);
        rule.map(id(names.shifts), 0, 0).load(PORT, width + 1);
        rule.map(id(SHIFTED), width, width).translate(to(Some(width)));
    });
}

/// Gives clients the host's address where their own would not be answered through the host: the host itself, neighbours
/// of the container on its wire, and everybody where the container has no default route.
fn masquerade(batch: &mut Batch, table: (u8, &str), family: Family, id: Id<'_>) {
    let begin = |rule: &mut Rule<'_>| {
        rule.meta(Meta::Family, true, &[family.number]).connection_status(status::DESTINATION_CHANGED);
    };
    batch.new_rule(table, "source", |rule| {
        begin(rule);
        rule.load(family.destination, 0).load_meta(Meta::InputInterface, family.width);
        rule.is_in(id(family.names.same_wire), 0).masquerade();
    });
    batch.new_rule(table, "source", |rule| {
        begin(rule);
        rule.local(End::Source).load(family.destination, 0).is_in(id(family.names.containers), 0).masquerade();
    });
    batch.new_rule(table, "source", |rule| {
        begin(rule);
        rule.load(family.destination, 0).is_in(id(family.names.no_way_back), 0).masquerade();
    });
}

/// Counts a packet with the port that its connection was begun to.
fn count(batch: &mut Batch, table: (u8, &str), chain: &str, family: Family, id: Id<'_>) {
    let (names, width) = (family.names, family.width);
    let address = if family.v4 { Original::Destination4 } else { Original::Destination6 };
    for (answer, ports, ranges) in
        [(false, names.bytes_in, names.range_bytes_in), (true, names.bytes_out, names.range_bytes_out)]
    {
        for (set, all) in [(ports, false), (ports, true), (ranges, false)] {
            batch.new_rule(table, chain, |rule| {
                rule.meta(Meta::Family, true, &[family.number]).answer(answer).load_meta(Meta::Protocol, 0);
                if all {
                    rule.load_value(family.unspecified(), 1);
                } else {
                    rule.load_original(address, 1);
                }
                rule.load_original(Original::DestinationPort, 1 + width);
                rule.is_in(id(set), 0).verdict(Verdict::Accept);
            });
        }
    }
}

impl Family {
    fn unspecified(self) -> &'static [u8] {
        if self.v4 { &[0; 4] } else { &[0; 16] }
    }
}
