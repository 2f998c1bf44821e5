//! The messages against the running kernel, in network namespaces of threads of their own; what became of it is read
//! with the tools that everybody uses.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

use super::nf_tables::set::{Count, Element, Field, Set, field, read_counts};
use super::nf_tables::{Base, ChainType, Hook, INET, Meta, Verdict, state};
use super::route::{LOOPBACK, Peer, Route, read_route};
use super::{Batch, carry_out};
use crate::sys::netlink::{Netlink, Protocol};
use std::os::fd::AsFd;
use std::process::Command;

/// Runs `test` in a network namespace that nobody else is in.
fn alone(test: impl FnOnce() + Send + 'static) {
    if !(crate::common::tier("root") && crate::common::tools("root", &["ip", "nft"])) {
        return;
    }
    let thread = std::thread::spawn(|| {
        // Of this thread alone, which ends after the test.
        #[allow(deprecated, reason = "the other function is for namespaces that leave other threads in doubt")]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).unwrap();
        test();
    });
    thread.join().unwrap();
}

fn output(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn interfaces_addresses_and_routes_are_made() {
    alone(|| {
        let socket = Netlink::open(Protocol::Route).unwrap();
        let namespace = socket.namespace().unwrap();
        let mut batch = Batch::new();
        batch.up(LOOPBACK);
        batch.new_bridge("br0", 5);
        let peer =
            Peer { name: "eth0", index: 7, hardware: Some([2, 0x67, 10, 88, 0, 2]), namespace: namespace.as_fd() };
        batch.new_pair(("port", 1 << 29), 5, &peer);
        carry_out(&socket, &batch).unwrap();
        let mut batch = Batch::new();
        batch.up(7);
        batch.new_address(7, "10.88.0.2".parse().unwrap(), 22);
        batch.new_address(7, "fd12::2".parse().unwrap(), 64);
        let own = Route {
            destination: ("10.88.0.0".parse().unwrap(), 22),
            interface: 7,
            gateway: None,
            source: Some("10.88.0.2".parse().unwrap()),
            priority: 77,
        };
        let default = Route {
            destination: ("0.0.0.0".parse().unwrap(), 0),
            gateway: Some("10.88.0.1".parse().unwrap()),
            source: None,
            priority: 0,
            ..own
        };
        let six = Route { destination: ("fd12::".parse().unwrap(), 64), source: None, priority: 0, ..own };
        // The second of the same replaces the first.
        for route in [own, default, own, six] {
            batch.new_route(&route);
        }
        carry_out(&socket, &batch).unwrap();

        let addresses = output("ip", "-br addr show eth0");
        assert!(addresses.contains("eth0@port UP") && addresses.contains("10.88.0.2/22 fd12::2/64"), "{addresses}");
        assert!(output("ip", "-d link show port").contains("state forwarding"));
        assert!(output("ip", "link show eth0").contains("02:67:0a:58:00:02"));
        let routes = output("ip", "route");
        let expected = "default via 10.88.0.1 dev eth0 proto static 10.88.0.0/22 dev eth0 proto static scope link src \
                        10.88.0.2 metric 77";
        assert_eq!(routes, expected);
        assert!(output("ip", "-6 route").contains("fd12::/64 dev eth0 proto static"));

        let mut batch = Batch::new();
        batch.get_routes(false);
        let mut found = Vec::new();
        socket.dump(batch.bytes(), |kind, body| found.extend(read_route(kind, body))).unwrap();
        assert_eq!(found, [default, own]);
    });
}

#[test]
fn a_refusal_says_what_was_refused() {
    alone(|| {
        let socket = Netlink::open(Protocol::Route).unwrap();
        let mut batch = Batch::new();
        batch.new_bridge("br0", 5);
        batch.new_bridge("br0", 6);
        let error = carry_out(&socket, &batch).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::AlreadyExists);
        assert!(error.to_string().contains("RTM_NEWLINK(bridge br0)"), "{error}");
        let mut batch = Batch::new();
        batch.new_address(99, "10.88.0.2".parse().unwrap(), 22);
        let error = carry_out(&socket, &batch).unwrap_err();
        assert!(error.to_string().contains("RTM_NEWADDR(10.88.0.2/22)"), "{error}");
    });
}

#[test]
fn a_table_of_rules_lives_as_long_as_its_socket() {
    alone(|| {
        let socket = Netlink::open(Protocol::Netfilter).unwrap();
        let table = (INET, "gpuc-test");
        let mut batch = Batch::begin();
        batch.new_owned_table(table.0, table.1);
        batch.new_chain(table, "out", ChainType::Nat, (Hook::Postrouting, 100));
        batch.new_rule(table, "out", |rule| {
            rule.meta(Meta::Family, true, &[2])
                .prefix(Base::Network, 12, true, &[10, 88, 4, 0], 22)
                .meta(Meta::OutputInterface, false, &1_u32.to_ne_bytes())
                .masquerade();
        });
        batch.new_chain(table, "in", ChainType::Filter, (Hook::Input, -10));
        batch.new_rule(table, "in", |rule| {
            rule.meta(Meta::InputInterface, true, &1_u32.to_ne_bytes())
                .connection_state(state::ESTABLISHED | state::RELATED)
                .verdict(Verdict::Accept);
        });
        batch.new_rule(table, "in", |rule| {
            rule.meta(Meta::Protocol, true, &[58]).payload(Base::Transport, 0, true, &[135]).verdict(Verdict::Drop);
        });
        batch.end();
        carry_out(&socket, &batch).unwrap();
        let listed = output("nft", "list ruleset");
        for part in [
            "table inet gpuc-test { # progname",
            "flags owner",
            "chain out { type nat hook postrouting priority srcnat; policy accept; ip saddr 10.88.4.0/22 oif != \"lo\" \
             masquerade }",
            "chain in { type filter hook input priority filter - 10; policy accept; iif \"lo\" ct state \
             established,related accept",
            "icmpv6 type nd-neighbor-solicit drop",
        ] {
            assert!(listed.contains(part), "{part}\n{listed}");
        }
        output("nft", "flush ruleset");
        assert!(output("nft", "list ruleset").contains("gpuc-test"));
        let mut twice = Batch::begin();
        twice.new_table(table.0, table.1, 0);
        twice.end();
        let error = carry_out(&socket, &twice).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::AlreadyExists);
        assert!(error.to_string().contains("NFT_MSG_NEWTABLE(gpuc-test)"), "{error}");
        drop(socket);
        assert_eq!(output("nft", "list ruleset"), "");
    });
}

#[test]
fn elements_of_sets_are_found_and_count() {
    alone(|| {
        let (socket, route) = (Netlink::open(Protocol::Netfilter).unwrap(), Netlink::open(Protocol::Route).unwrap());
        let mut batch = Batch::new();
        batch.up(LOOPBACK);
        carry_out(&route, &batch).unwrap();
        let table = (INET, "gpuc-test");
        let key = [Field::Protocol, Field::Address4, Field::Port];
        let set = Set { name: "ranges", id: 1, key: &key, data: &[], ranges: true, counts: true };
        let mut batch = Batch::begin();
        batch.new_owned_table(table.0, table.1);
        batch.new_set(table, &set);
        batch.new_chain(table, "out", ChainType::Filter, (Hook::Output, 0));
        batch.new_rule(table, "out", |rule| {
            rule.meta(Meta::Family, true, &[2]).load_meta(Meta::Protocol, 0);
            rule.load((Base::Network, 16, 4), 1).load((Base::Transport, 2, 2), 2).is_in(("ranges", 1), 0);
        });
        let of = |address: [u8; 4], port: u16| {
            let mut key = Vec::new();
            field(&mut key, &[17]);
            field(&mut key, &address);
            field(&mut key, &port.to_be_bytes());
            key
        };
        let element = Element { key: of([0; 4], 5000), last: Some(of([255; 4], 5999)), data: None };
        batch.new_elements(table, "ranges", std::slice::from_ref(&element));
        batch.end();
        carry_out(&socket, &batch).unwrap();
        let listed = output("nft", "list ruleset");
        // The protocol's name is that of /etc/protocols, if there is one.
        assert!(listed.contains(" . 0.0.0.0/0 . 5000-5999 counter packets 0 bytes 0"), "{listed}");
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for port in [4999, 5000, 5500, 5999, 6000] {
            let _ = client.send_to(b"1234", ("127.0.0.1", port));
        }
        let mut batch = Batch::new();
        batch.get_elements(table, "ranges", std::slice::from_ref(&element));
        let mut count = Count::default();
        socket.query(batch.bytes(), |kind, body| count = read_counts(kind, body)).unwrap();
        assert_eq!(count, Count { packets: 3, bytes: 3 * (20 + 8 + 4) });
        let mut batch = Batch::begin();
        batch.delete_elements(table, "ranges", &[element]);
        batch.end();
        carry_out(&socket, &batch).unwrap();
        assert!(!output("nft", "list ruleset").contains("5000"));
    });
}
