//! Private networks on the running kernel: members that reach each other and the outside, and what they do not reach.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
#[path = "private_network/crash.rs"]
mod crash;
#[path = "private_network/world.rs"]
mod world;

use common::{Leaks, Ordinary};
use gpucontainer::ErrorKind;
use gpucontainer::net::PrivateNetwork;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use world::{HOST, HOST6, LONG, OUTSIDE, OUTSIDE6, SHORT, ask, ask_from, ask_udp, on_a_host, reaches, run, serve};
use world::{serve_udp, within};

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

#[test]
fn members_reach_each_other_and_the_outside() {
    let leaks = Leaks::watch();
    on_a_host(|world| {
        let network = PrivateNetwork::named("default");
        let (web, db) = (network.join("web").unwrap(), network.join("db").unwrap());
        assert_eq!((web.name(), web.addresses().len(), web.gateways().len()), ("web", 2, 2));
        for number in 0..2 {
            let (own, other) = (web.addresses()[number], db.addresses()[number]);
            let server = within(&db, move || serve(other));
            assert_eq!(ask_from(&web, server), own.to_string());
            let server = within(&db, move || serve_udp(other));
            assert_eq!(within(&web, move || ask_udp(server, LONG)).unwrap(), own.to_string());
            // The host reaches its members, from the gateway's address.
            assert_eq!(ask_udp(server, LONG).unwrap(), web.gateways()[number].to_string());
        }
        for (outside, host) in [(OUTSIDE, HOST), (OUTSIDE6, HOST6)] {
            let address: IpAddr = outside.parse().unwrap();
            let (tcp, udp) = world.outside(move || (serve(address), serve_udp(address)));
            assert_eq!(ask_from(&db, tcp), host);
            assert_eq!(within(&db, move || ask_udp(udp, LONG)).unwrap(), host);
        }
        // Low ports are everybody's in a network of one's own.
        let low = within(&web, || std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap());
        assert_eq!(low, "0\n");
        drop((web, db));
        let clean = || {
            let links = run("ip -o link");
            !links.contains("gpuc") && run("nft list ruleset").is_empty() && !run("ip route").contains("10.88.")
        };
        common::until("the kernel has taken everything away", LONG, clean);
    });
    leaks.check();
}

#[test]
fn members_are_kept_from_the_host_and_from_other_networks() {
    let leaks = Leaks::watch();
    on_a_host(|world| {
        let everywhere = serve([0; 4]).port();
        let loopback = serve([127, 0, 0, 1]).port();
        let six = serve([0_u16; 8]).port();
        let (one, other) = (PrivateNetwork::named("one"), PrivateNetwork::named("other"));
        let (member, stranger) = (one.join("member").unwrap(), other.join("member").unwrap());
        let gateway = member.gateways()[0].to_string();
        let foreign_gateway = stranger.gateways()[0].to_string();
        let mut refused = vec![at(&gateway, everywhere), at(HOST, everywhere), at(&gateway, loopback)];
        refused.extend([at(&foreign_gateway, everywhere), at(HOST6, six), at(&member.gateways()[1].to_string(), six)]);
        for number in 0..2 {
            let address = stranger.addresses()[number];
            refused.push(within(&stranger, move || serve(address)));
        }
        for address in &refused {
            assert!(!reaches(&member, *address), "{address} can be reached");
        }
        // With an address of loopback as the packet's target, past the member's own loopback.
        within(&member, || std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap());
        let via = format!(
            "--net=/proc/{}/fd/{}",
            std::process::id(),
            std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&member))
        );
        run(&format!("nsenter {via} ip addr del 127.0.0.1/8 dev lo"));
        run(&format!("nsenter {via} ip route add 127.0.0.1/32 via {gateway}"));
        assert!(!reaches(&member, at("127.0.0.1", loopback)));
        // With the address of a host that the network is not for.
        run(&format!("nsenter {via} ip addr add 192.0.2.77/32 dev eth0"));
        let outside = world.outside(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
        outside.set_read_timeout(Some(SHORT)).unwrap();
        let target = at(OUTSIDE, outside.local_addr().unwrap().port());
        for (source, arrives) in [("0.0.0.0:0", true), ("192.0.2.77:0", false)] {
            let send = move || std::net::UdpSocket::bind(source).unwrap().send_to(b"?", target).unwrap();
            within(&member, send);
            assert_eq!(outside.recv(&mut [0; 16]).is_ok(), arrives, "{source}");
        }

        // Who asks for access to the host has it, to all but loopback.
        let trusted = PrivateNetwork::named("trusted").host_access(true).join("member").unwrap();
        assert_eq!(ask_from(&trusted, at(HOST, everywhere)), trusted.addresses()[0].to_string());
        assert_eq!(
            ask_from(&trusted, at(&trusted.gateways()[0].to_string(), everywhere)),
            trusted.addresses()[0].to_string()
        );
        assert_eq!(ask_from(&trusted, at(HOST6, six)), trusted.addresses()[1].to_string());
        assert!(!reaches(&trusted, at(&trusted.gateways()[0].to_string(), loopback)));
        assert!(!reaches(&trusted, refused[6]));

        // From outside nobody begins a conversation, even where the way is known.
        let address = member.addresses()[0];
        let server = within(&member, move || serve(address));
        assert!(ask(server, LONG).is_ok(), "the host itself reaches it");
        world.run_outside(&format!("ip route add {address} via {HOST}"));
        assert!(world.outside(move || ask(server, SHORT)).is_err());
    });
    leaks.check();
}

#[test]
fn a_network_that_leads_nowhere_leaves_no_trace_on_the_host() {
    on_a_host(|world| {
        let network = PrivateNetwork::named("inner").outbound(false);
        let (one, other) = (network.join("one").unwrap(), network.join("other").unwrap());
        assert!(one.gateways().is_empty());
        assert!(!run("ip -o link").contains("gpuc"));
        assert_eq!(run("nft list ruleset"), "");
        let address = one.addresses()[0];
        let server = within(&one, move || serve(address));
        assert_eq!(ask_from(&other, server), other.addresses()[0].to_string());
        let outside = world.outside(|| serve(OUTSIDE.parse::<Ipv4Addr>().unwrap()));
        assert!(!reaches(&other, outside));
        // Access to the host alone is no way out.
        let near = PrivateNetwork::named("near").outbound(false).host_access(true).join("x").unwrap();
        assert!(!reaches(&near, outside));
        assert_eq!(ask_from(&near, at(HOST, serve([0; 4]).port())), near.addresses()[0].to_string());
    });
}

#[test]
fn a_host_that_forwards_nothing_does_so_for_its_networks_alone() {
    on_a_host(|_world| {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap();
        // A namespace begins with what the first one has.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        run("ip link add idle type veth peer name other");
        let member = PrivateNetwork::named("default").join("one").unwrap();
        assert_eq!((read("ip_forward"), read("conf/wan/forwarding")), ("0\n".into(), "1\n".into()));
        assert_eq!(read("conf/idle/forwarding"), "0\n");
        drop(member);
    });
}

#[test]
fn names_and_addresses_come_and_go() {
    let leaks = Leaks::watch();
    on_a_host(|_world| {
        let network = PrivateNetwork::named("names").ipv4(Ipv4Addr::new(10, 9, 8, 99), 29).ipv6(false);
        let one = network.join("one").unwrap();
        let two = network.join("two").unwrap();
        assert_eq!(one.addresses(), ["10.9.8.98".parse::<IpAddr>().unwrap()]);
        assert_eq!(two.addresses(), ["10.9.8.99".parse::<IpAddr>().unwrap()]);
        let hosts = one.hosts_file().to_owned();
        let mounted = std::fs::File::open(&hosts).unwrap();
        let names = || std::fs::read_to_string(&hosts).unwrap();
        let local = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        assert_eq!(names(), format!("{local}10.9.8.98\tone\n10.9.8.99\ttwo\n"));
        assert_eq!(network.join("two").unwrap_err().kind(), ErrorKind::AlreadyExists);
        drop(one);
        assert_eq!(names(), format!("{local}10.9.8.99\ttwo\n"));
        // The lowest that is free; and the file is the same one, for those who have it mounted.
        let three = network.join("three").unwrap();
        assert_eq!(three.addresses(), ["10.9.8.98".parse::<IpAddr>().unwrap()]);
        let same = std::os::unix::fs::MetadataExt::ino(&mounted.metadata().unwrap());
        assert_eq!(same, std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&hosts).unwrap()));
        assert_eq!(names(), format!("{local}10.9.8.98\tthree\n10.9.8.99\ttwo\n"));
        let more: Vec<_> = (0..3).map(|number| network.join(&format!("m{number}")).unwrap()).collect();
        assert_eq!(network.join("late").unwrap_err().kind(), ErrorKind::NoSpace);
        let other = network.clone().host_access(true).join("other");
        assert_eq!(other.unwrap_err().kind(), ErrorKind::InvalidArgument);
        drop(more);
        two.leave().unwrap();
        drop(three);
        assert!(!hosts.exists());
    });
    leaks.check();
}

#[test]
fn many_join_at_once() {
    let leaks = Leaks::watch();
    on_a_host(|_world| {
        let host = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let host = host.try_clone().unwrap();
                std::thread::spawn(move || {
                    within(&host, move || {
                        let join =
                            |number| PrivateNetwork::named("crowd").join(&format!("m{thread}-{number}")).unwrap();
                        (0..5).map(join).collect::<Vec<_>>()
                    })
                })
            })
            .collect();
        let members: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let addresses: std::collections::BTreeSet<_> = members.iter().map(|member| member.addresses()[0]).collect();
        assert_eq!(addresses.len(), 40);
        let address = members[0].addresses()[0];
        let server = within(&members[0], move || serve(address));
        assert!(members[1..].iter().all(|member| reaches(member, server)));
        // From the host's namespace, in which they joined.
        drop(members);
    });
    leaks.check();
}

#[test]
fn addresses_of_the_host_are_not_taken() {
    on_a_host(|_world| {
        let error = PrivateNetwork::named("x").ipv4(Ipv4Addr::new(198, 51, 0, 0), 16).join("a").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        run("ip route add 10.0.0.0/8 via 198.51.100.2");
        let member = PrivateNetwork::named("x").join("a").unwrap();
        assert!(member.addresses()[0].to_string().starts_with("172.2"), "{member:?}");
    });
}

#[test]
fn bad_input_is_refused_before_anything_is_made() {
    let leaks = Leaks::watch();
    let refused = |network: PrivateNetwork, member: &str| {
        let error = network.join(member).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    };
    for name in ["", "a/b", "..", "a b", "a@1", &"x".repeat(33)] {
        refused(PrivateNetwork::named(name), "member");
    }
    for member in ["", "a b", "-a", ".a", "a\n", "localhost", &"x".repeat(64)] {
        refused(PrivateNetwork::named("net"), member);
    }
    for (address, prefix) in [([10, 0, 0, 0], 30), ([10, 0, 0, 0], 7), ([127, 0, 0, 0], 24), ([10, 0, 0, 0], 255)] {
        refused(PrivateNetwork::named("net").ipv4(address.into(), prefix), "member");
    }
    leaks.check();
}

/// The other test runs this one as another user.
#[test]
fn refused_without_privilege() {
    if !common::tier("rootless") {
        return;
    }
    let error = PrivateNetwork::named("net").join("member").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
}

#[test]
fn without_privilege_it_is_refused() {
    if common::tier("root") {
        Ordinary::nobody().run("refused_without_privilege", &[]);
    }
}
