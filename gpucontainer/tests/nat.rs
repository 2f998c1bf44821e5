//! Ports that the kernel serves: real network namespaces, a client on another machine, on the host, and in the container.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
#[path = "nat/firewall.rs"]
mod firewall;
mod fixture;
#[allow(dead_code, reason = "the tests of networks alone use the rest")]
#[path = "private_network/world.rs"]
mod world;

use common::{Leaks, Ordinary, until};
use fixture::Fixture;
use gpucontainer::ErrorKind;
use gpucontainer::net::{
    NetworkMember, NetworkNamespace, PortMapper, PortMapping, PortMode, PrivateNetwork, Published,
};
use gpucontainer::net::{PortStatus, SourceAddress};
use gpucontainer::sandbox::Network;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use world::{HOST, HOST6, LONG, OUTSIDE, OUTSIDE6, SHORT, ask, ask_udp, on_a_host, run, serve, serve_udp, within};

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

fn member(name: &str) -> NetworkMember {
    PrivateNetwork::named("nat").join(name).unwrap()
}

/// Publishes by the kernel.
fn translate(mapping: PortMapping, namespace: NetworkNamespace) -> Published {
    PortMapper::new().reserve(&[mapping.mode(PortMode::Nat)]).unwrap().translate(namespace).unwrap()
}

fn port(published: &Published) -> u16 {
    published.ports()[0].host().port()
}

fn status(published: &Published) -> PortStatus {
    published.status().remove(0)
}

fn no_table_is_left() {
    until("the table is gone", LONG, || !run("nft list tables").contains("gpuc-ports"));
}

/// A container that somebody else gave a wire, in a network namespace of its own: 10.1.1.2 and fd01::2.
fn wired(default_route: bool) -> OwnedFd {
    let mut holder = Command::new("unshare")
        .args(["-n", "sh", "-c", "ip link set lo up && echo ready && exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let pid = holder.id();
    let namespace = OwnedFd::from(std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap());
    run(&format!("ip link add to-box type veth peer name eth0 netns {pid}"));
    for address in ["10.1.1.1/24", "fd01::1/64 nodad"] {
        run(&format!("ip addr add {address} dev to-box"));
    }
    run("ip link set to-box up");
    let inside = format!("nsenter -n -t {pid} ip");
    for address in ["10.1.1.2/24", "fd01::2/64 nodad"] {
        run(&format!("{inside} addr add {address} dev eth0"));
    }
    run(&format!("{inside} link set eth0 up"));
    if default_route {
        run(&format!("{inside} route add default via 10.1.1.1"));
        run(&format!("{inside} -6 route add default via fd01::1"));
    }
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    namespace
}

fn by_fd(namespace: &OwnedFd) -> NetworkNamespace {
    NetworkNamespace::from_fds(namespace.try_clone().unwrap(), None)
}

#[test]
fn clients_from_everywhere_are_led_into_the_container() {
    let leaks = Leaks::watch();
    on_a_host(|world| {
        let namespace = wired(true);
        let (tcp, udp) = within(&namespace, || (serve([0_u16; 8]), serve_udp([0_u16; 8])));
        let stream = translate(PortMapping::tcp(tcp.port(), 0).all_interfaces(), by_fd(&namespace));
        let datagrams = translate(PortMapping::udp(udp.port(), 0).all_interfaces(), by_fd(&namespace));
        let first = status(&stream);
        assert_eq!(first.mode, PortMode::Nat, "{first:?}");
        assert!(first.why.contains("the kernel leads IPv4 to 10.1.1.2"), "{first:?}");
        assert!(first.why.contains("the kernel leads IPv6 to fd01::2"), "{first:?}");
        let mapped = |address: &str| address.strip_prefix("::ffff:").unwrap_or(address).to_owned();
        let mut accepted = 0;
        // Clients elsewhere come from their own addresses, the host from that of its wire to the container.
        for (address, client, host) in [(HOST, OUTSIDE, "10.1.1.1"), (HOST6, OUTSIDE6, "fd01::1")] {
            let (to_tcp, to_udp) = (at(address, port(&stream)), at(address, port(&datagrams)));
            assert_eq!(mapped(&world.outside(move || ask(to_tcp, LONG)).unwrap()), client);
            assert_eq!(mapped(&world.outside(move || ask_udp(to_udp, LONG)).unwrap()), client);
            assert_eq!(mapped(&ask(to_tcp, LONG).unwrap()), host);
            assert_eq!(mapped(&ask_udp(to_udp, LONG).unwrap()), host);
            // The container by the host's address, and so back to itself.
            assert_eq!(mapped(&within(&namespace, move || ask(to_tcp, LONG)).unwrap()), host);
            assert_eq!(mapped(&within(&namespace, move || ask_udp(to_udp, LONG)).unwrap()), host);
            accepted += 3;
        }
        let counted = status(&stream);
        assert_eq!((counted.accepted, counted.refused), (accepted, 0), "{counted:?}");
        // Six handshakes and ends one way, and the answers besides the other.
        assert!(counted.bytes_in > accepted * 100 && counted.bytes_out > accepted * 100, "{counted:?}");
        assert_eq!(status(&datagrams).accepted, accepted);
        // On loopback addresses the relay serves, and adds to the counts.
        for (address, host) in [("127.0.0.1", "10.1.1.1"), ("::1", "fd01::1"), ("127.1.2.3", "10.1.1.1")] {
            let host_or_v4 = |seen: String| assert!([host, "10.1.1.1"].contains(&mapped(&seen).as_str()), "{seen}");
            host_or_v4(ask(at(address, port(&stream)), LONG).unwrap());
            host_or_v4(ask_udp(at(address, port(&datagrams)), LONG).unwrap());
            accepted += 1;
        }
        assert_eq!(status(&stream).accepted, accepted);
        drop((stream, datagrams));
        no_table_is_left();
    });
    leaks.check();
}

#[test]
fn without_a_way_back_clients_have_the_hosts_address() {
    let leaks = Leaks::watch();
    on_a_host(|world| {
        let namespace = wired(false);
        let tcp = within(&namespace, || serve([0; 4]));
        let published = translate(PortMapping::tcp(tcp.port(), 0).address(HOST.parse().unwrap()), by_fd(&namespace));
        let to = at(HOST, port(&published));
        assert_eq!(world.outside(move || ask(to, LONG)).unwrap(), "10.1.1.1");
        assert!(status(&published).why.contains("where all clients have the host's address"));
        let keep = PortMapping::tcp(80, 0).address(HOST.parse().unwrap()).source(SourceAddress::Keep);
        let error = PortMapper::new().reserve(&[keep]).unwrap().translate(by_fd(&namespace)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("10.1.1.2 has no default route"), "{error}");
    });
    leaks.check();
}

#[test]
fn loopback_alone_is_relayed_and_says_so() {
    let leaks = Leaks::watch();
    on_a_host(|_world| {
        let box_ = member("web");
        let server = within(&box_, || serve([0; 4]));
        let published = translate(PortMapping::tcp(server.port(), 0), box_.namespace().unwrap());
        assert_eq!(ask(at("127.0.0.1", port(&published)), LONG).unwrap(), box_.gateways()[0].to_string());
        let status = status(&published);
        assert_eq!((status.mode, status.accepted), (PortMode::Relay, 1));
        assert!(status.why.contains("clients on loopback addresses are relayed"), "{status:?}");
        assert!(!run("nft list tables").contains("gpuc-ports"));
    });
    leaks.check();
}

#[test]
fn ten_thousand_ports_are_one_change() {
    let leaks = Leaks::watch();
    on_a_host(|world| {
        let box_ = member("media");
        let udp = within(&box_, || UdpSocket::bind("0.0.0.0:25999").unwrap());
        let mapping = PortMapping::udp_range(16_000, 16_000, 10_000).address(HOST.parse().unwrap());
        let published = translate(mapping, box_.namespace().unwrap());
        assert_eq!(run("nft list ruleset").matches("16000-25999").count(), 3, "one element, and two that count");
        let shifted = PortMapping::tcp_range(1000, 30_000, 2_000).address(HOST.parse().unwrap());
        let shifted = translate(shifted, box_.namespace().unwrap());
        let last = within(&box_, || TcpListener::bind("0.0.0.0:2999").unwrap());
        let client = world.outside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"last", at(HOST, 25_999)).unwrap();
            TcpStream::connect_timeout(&at(HOST, 31_999), LONG).unwrap().local_addr().unwrap()
        });
        udp.set_read_timeout(Some(LONG)).unwrap();
        let (length, from) = udp.recv_from(&mut [0; 16]).unwrap();
        assert_eq!((length, from.ip()), (4, OUTSIDE.parse::<IpAddr>().unwrap()));
        assert_eq!(last.accept().unwrap().1, client);
        assert_eq!((status(&published).accepted, status(&shifted).accepted), (1, 1));
        assert_eq!(status(&published).bytes_in, 20 + 8 + 4);
        drop(published);
        assert!(!run("nft list ruleset").contains("16000-25999"));
        drop(shifted);
        no_table_is_left();
    });
    leaks.check();
}

#[test]
fn a_port_in_use_names_its_holder() {
    let leaks = Leaks::watch();
    on_a_host(|_world| {
        let held = TcpListener::bind("0.0.0.0:0").unwrap();
        let mapping = PortMapping::tcp(80, held.local_addr().unwrap().port()).address(HOST.parse().unwrap());
        let error = PortMapper::new().reserve(&[mapping.mode(PortMode::Nat)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PortInUse);
        assert!(error.to_string().contains("taken by"), "{error}");
    });
    leaks.check();
}

#[test]
fn what_cannot_be_is_said_before_anything_is_changed() {
    let leaks = Leaks::watch();
    on_a_host(|_world| {
        let rules = run("nft list ruleset");
        let reserve = || PortMapper::new().reserve(&[PortMapping::tcp(80, 0).all_interfaces()]).unwrap();
        let inner = PrivateNetwork::named("inner").outbound(false).join("x").unwrap();
        let own = OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap());
        let empty = wired(true);
        within(&empty, || {
            run("ip link set eth0 down");
            run("ip addr flush dev eth0")
        });
        for (namespace, kind, words) in [
            (inner.namespace().unwrap(), ErrorKind::Unsupported, "the host has no route to the container's address"),
            (by_fd(&own), ErrorKind::InvalidArgument, "the host's own"),
            (by_fd(&empty), ErrorKind::Unsupported, "no IPv4 address but loopback"),
        ] {
            let error = reserve().translate(namespace).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
        assert_eq!(run("nft list ruleset"), rules);
    });
    leaks.check();
}

#[test]
fn neighbours_reach_no_service_of_the_hosts_loopback() {
    let leaks = Leaks::watch();
    on_a_host(|world| {
        let namespace = wired(true);
        let secret = serve([127, 0, 0, 1]);
        let server = within(&namespace, || serve([0; 4]));
        let published = translate(PortMapping::tcp(server.port(), 0).all_interfaces(), by_fd(&namespace));
        for device in ["to-box", "wan"] {
            let setting = format!("/proc/sys/net/ipv4/conf/{device}/route_localnet");
            assert_eq!(std::fs::read_to_string(setting).unwrap(), "0\n");
        }
        // A neighbour that sends packets for 127.0.0.1 by the wire: to a service of the host's, and to the published port.
        let targets = [secret, at("127.0.0.1", port(&published))];
        let attempts = move |gateway: &'static str, device: &'static str| {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{device}/route_localnet"), "1").unwrap();
            run("ip addr del 127.0.0.1/8 dev lo");
            run(&format!("ip route add 127.0.0.1/32 via {gateway}"));
            targets.map(|target| ask(target, SHORT).is_ok())
        };
        assert_eq!(world.outside(move || attempts(HOST, "lan")), [false, false]);
        assert_eq!(within(&namespace, move || attempts("10.1.1.1", "eth0")), [false, false]);
        drop(published);
    });
    leaks.check();
}

#[test]
fn closing_a_port_ends_its_connections_and_no_others() {
    let leaks = Leaks::watch();
    on_a_host(|world| {
        let box_ = member("web");
        let listener = within(&box_, || TcpListener::bind("0.0.0.0:80").unwrap());
        let publish = || translate(PortMapping::tcp(80, 0).address(HOST.parse().unwrap()), box_.namespace().unwrap());
        let (one, other) = (publish(), publish());
        let connect = |published: &Published| {
            let to = at(HOST, port(published));
            let client = world.outside(move || TcpStream::connect_timeout(&to, LONG).unwrap());
            client.set_read_timeout(Some(LONG)).unwrap();
            (client, listener.accept().unwrap().0)
        };
        let (mut client, _server) = connect(&one);
        let (mut other_client, mut other_server) = connect(&other);
        assert_eq!((status(&one).open, status(&other).open), (1, 1));
        one.close();
        client.write_all(b"still there?").unwrap();
        assert!(client.read(&mut [0; 1]).is_err(), "the host answers that there is no such connection");
        other_server.write_all(b"x").unwrap();
        other_client.read_exact(&mut [0; 1]).unwrap();
        drop(other);
        no_table_is_left();
    });
    leaks.check();
}

#[test]
fn ports_come_and_go_while_a_sandbox_runs() {
    let leaks = Leaks::watch();
    on_a_host(|world| {
        let fixture = Fixture::new();
        let network = Network::Private(PrivateNetwork::named("nat"));
        let mapping = || PortMapping::tcp(80, 0).address(HOST.parse().unwrap()).mode(PortMode::Nat);
        let builder = fixture.shell("cd /etc && exec busybox httpd -f -p 80").network(network);
        let sandbox = builder.publish_port(mapping()).spawn().unwrap();
        until("the server listens", LONG, || sandbox.dial(80, Some(LONG)).is_ok());
        let get = |port: u16| {
            world.outside(move || {
                let mut stream = TcpStream::connect_timeout(&at(HOST, port), SHORT)?;
                stream.set_read_timeout(Some(LONG))?;
                stream.write_all(b"GET /inside HTTP/1.0\r\n\r\n")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).map(|_| answer)
            })
        };
        let first = sandbox.ports()[0].host();
        assert!(get(first.port()).unwrap().ends_with("inside\n"));
        let second = sandbox.publish(&[mapping()]).unwrap()[0].host();
        assert!(get(second.port()).unwrap().ends_with("inside\n"));
        // Without the privilege the kernel takes nothing out: that is said, and the port goes on.
        let sets = capabilities(None).unwrap();
        let effective = sets.effective.difference(CapabilitySet::NET_ADMIN);
        set_capabilities(None, CapabilitySets { effective, ..sets }).unwrap();
        let refused = sandbox.unpublish(first).unwrap_err();
        set_capabilities(None, sets).unwrap();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
        assert!(get(first.port()).unwrap().ends_with("inside\n"));
        assert_eq!(sandbox.ports().len(), 2);
        sandbox.unpublish(first).unwrap();
        assert!(get(first.port()).is_err());
        assert!(get(second.port()).unwrap().ends_with("inside\n"));
        let status = sandbox.port_status();
        assert_eq!((status.len(), status[0].mode, status[0].accepted), (1, PortMode::Nat, 2), "{status:?}");
        // Without a network of its own there is nowhere to lead clients to.
        let nowhere = fixture.shell("true").network(Network::None).publish_port(mapping()).spawn().unwrap_err();
        assert_eq!(nowhere.kind(), ErrorKind::InvalidArgument);
        assert!(nowhere.to_string().contains("nat: without a private network"), "{nowhere}");
        drop(sandbox);
        no_table_is_left();
    });
    leaks.check();
}

#[test]
fn private_networks_stay_apart() {
    let leaks = Leaks::watch();
    on_a_host(|_world| {
        let web = member("web");
        let server = within(&web, || serve([0; 4]));
        let published = translate(PortMapping::tcp(server.port(), 0).all_interfaces(), web.namespace().unwrap());
        let to = at(HOST, port(&published));
        // Members of its own network reach it, as they could without; others only if the host is theirs to reach.
        let neighbour = member("neighbour");
        assert!(within(&neighbour, move || ask(to, LONG)).is_ok());
        assert!(within(&web, move || ask(to, LONG)).is_ok());
        let stranger = PrivateNetwork::named("other").join("stranger").unwrap();
        assert!(within(&stranger, move || ask(to, SHORT)).is_err());
        let trusted = PrivateNetwork::named("trusted").host_access(true).join("member").unwrap();
        assert!(within(&trusted, move || ask(to, LONG)).is_ok());
        // And nothing else of the member than what is published.
        let own = web.addresses()[0];
        let hidden = within(&web, move || serve(own));
        assert!(within(&trusted, move || ask(hidden, SHORT)).is_err());
    });
    leaks.check();
}

const ROLE: &str = "GPUC_TEST_NAT_CONTAINER";

#[test]
#[ignore = "the other process of a test"]
fn other_process() {
    let pid = std::env::var(ROLE).unwrap();
    let namespace = OwnedFd::from(std::fs::File::open(pid).unwrap());
    let mappings = [PortMapping::tcp(80, 0), PortMapping::udp_range(5000, 5000, 100)];
    let mappings = mappings.map(|mapping| mapping.address(HOST.parse().unwrap()).mode(PortMode::Nat));
    let published = PortMapper::new().reserve(&mappings).unwrap().translate(by_fd(&namespace)).unwrap();
    std::io::stdout().write_all(format!("\nport {}\n", port(&published)).as_bytes()).unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    std::mem::forget(published);
}

/// Another process, which publishes ports of the network in a file.
fn publish_apart(namespace: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "other_process", "--ignored", "--nocapture"])
        .env(ROLE, namespace)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Its port of TCP, once it has it.
fn port_of(other: &mut Child) -> u16 {
    let mut lines = BufReader::new(other.stdout.as_mut().unwrap()).lines().map(Result::unwrap);
    lines.find_map(|line| line.strip_prefix("port ").map(str::to_owned)).unwrap().parse().unwrap()
}

#[test]
fn killed_with_traffic_nothing_stays() {
    let leaks = Leaks::watch();
    on_a_host(|world| {
        let namespace = wired(true);
        let listener = within(&namespace, || TcpListener::bind("0.0.0.0:80").unwrap());
        let inside = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&namespace));
        for _ in 0..3 {
            let mut other = publish_apart(&inside);
            let port = port_of(&mut other);
            let mut client = world.outside(move || TcpStream::connect_timeout(&at(HOST, port), LONG).unwrap());
            let mut server = listener.accept().unwrap().0;
            // Whether the last reset arrives is not what is tested here.
            client.set_write_timeout(Some(LONG)).unwrap();
            server.set_read_timeout(Some(LONG)).unwrap();
            let traffic = std::thread::spawn(move || while client.write_all(&[0; 4096]).is_ok() {});
            server.read_exact(&mut [0; 100_000]).unwrap();
            other.kill().unwrap();
            other.wait().unwrap();
            assert!(!run("nft list tables").contains("gpuc-ports"));
            let free = [at(HOST, port), at(HOST, 5000)];
            drop((TcpListener::bind(free[0]).unwrap(), UdpSocket::bind(free[1]).unwrap()));
            // No new client comes in, though the container is still there.
            assert!(world.outside(move || TcpStream::connect_timeout(&free[0], SHORT)).is_err());
            drop(server);
            traffic.join().unwrap();
        }
    });
    leaks.check();
}

#[test]
fn a_client_whose_process_was_killed_is_led_anew() {
    on_a_host(|world| {
        let namespace = wired(true);
        let [first, second] = [5000, 6000].map(|port| {
            let socket = within(&namespace, move || UdpSocket::bind(("0.0.0.0", port)).unwrap());
            socket.set_read_timeout(Some(LONG)).unwrap();
            socket
        });
        let inside = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&namespace));
        let mut other = publish_apart(&inside);
        port_of(&mut other);
        let client = world.outside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        let mut word = [0; 8];
        client.send_to(b"before", at(HOST, 5000)).unwrap();
        assert_eq!(first.recv(&mut word).unwrap(), 6);
        other.kill().unwrap();
        other.wait().unwrap();
        // It goes on sending, and thus the kernel goes on remembering.
        client.send_to(b"between", at(HOST, 5000)).unwrap();
        let mapping = PortMapping::udp(6000, 5000).address(HOST.parse().unwrap());
        let published = translate(mapping, by_fd(&namespace));
        client.send_to(b"after", at(HOST, 5000)).unwrap();
        assert_eq!(second.recv(&mut word).unwrap(), 5);
        first.set_nonblocking(true).unwrap();
        assert!(first.recv(&mut word).is_err(), "{word:?}");
        drop(published);
    });
}

/// The other test runs this one as another user.
#[test]
fn refused_without_privilege() {
    if !common::tier("rootless") {
        return;
    }
    let leaks = Leaks::watch();
    let error = PortMapper::new().reserve(&[PortMapping::tcp(80, 0).mode(PortMode::Nat)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert!(error.to_string().contains("only root"), "{error}");
    leaks.check();
}

#[test]
fn without_privilege_it_is_refused() {
    if common::tier("root") {
        Ordinary::nobody().run("refused_without_privilege", &[]);
    }
}
