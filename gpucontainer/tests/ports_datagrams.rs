//! Published ports of UDP: real network namespaces, real servers in them, real clients.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod container;

use common::Leaks;
use container::{Container, Server, may_run, pattern};
use gpucontainer::ErrorKind;
use gpucontainer::net::{NetworkNamespace, PortMapper, PortMapping, PortMode, Protocol, Published};
use std::io::Read;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

const SHORT: Duration = Duration::from_secs(10);

fn scene(server: &str, mapping: PortMapping) -> (Container, Server, Published) {
    let container = Container::start();
    let server = container.serve(&format!("udp {server}"));
    let published = PortMapper::new().reserve(&[mapping]).unwrap().relay(container.namespace()).unwrap();
    (container, server, published)
}

/// A client that hears of `address` alone.
fn client(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(if address.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }).unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(SHORT)).unwrap();
    socket
}

/// Sends a datagram and takes the answer: the port from which the server saw it, and the rest.
fn ask(client: &UdpSocket, datagram: &[u8]) -> (u16, Vec<u8>) {
    client.send(datagram).unwrap();
    let mut buffer = vec![0; 65536];
    let bytes = client.recv(&mut buffer).unwrap();
    (u16::from_be_bytes([buffer[0], buffer[1]]), buffer[2..bytes].to_vec())
}

#[test]
fn each_client_has_answers_of_its_own() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let (container, server, published) = scene("127.0.0.1:5353", PortMapping::udp(5353, 0));
    let port = published.ports()[0];
    assert_eq!((port.protocol(), port.hosts().len()), (Protocol::Udp, 2));
    let clients: Vec<_> = (0..20).map(|number| client(port.hosts()[number % 2])).collect();
    let mut ports = std::collections::HashSet::new();
    for round in 0..3 {
        for (number, client) in clients.iter().enumerate() {
            let words = format!("{number} in {round}");
            let (seen, answer) = ask(client, words.as_bytes());
            assert_eq!(answer, words.as_bytes());
            ports.insert(seen);
        }
    }
    assert_eq!(ports.len(), 20, "each client keeps its own socket inside");
    // Nothing at all is a datagram too, and so is the largest that there is.
    assert_eq!(ask(&clients[0], b"").1, b"");
    let most = pattern(3, 65505);
    assert_eq!(ask(&clients[1], &most).1, most);
    let status = &published.status()[0];
    assert_eq!((status.accepted, status.open, status.refused, status.mode), (20, 20, 0, PortMode::Relay), "{status:?}");
    assert!(status.bytes_in > 65505 && status.bytes_out > status.bytes_in, "{status:?}");
    drop((clients, published, server, container));
    leaks.check();
}

#[test]
fn a_server_on_the_other_loopback_address_answers_too() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let (container, server, published) = scene("[::1]:53", PortMapping::udp(53, 0));
    for _ in 0..3 {
        let client = client(published.ports()[0].host());
        assert_eq!(ask(&client, b"six").1, b"six");
    }
    assert_eq!(published.status()[0].refused, 0);
    drop((published, server, container));
    leaks.check();
}

#[test]
fn all_interfaces_answer_from_the_address_that_was_asked() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let (container, server, published) = scene("127.0.0.1:53", PortMapping::udp(53, 0).all_interfaces());
    let port = published.ports()[0].host().port();
    for address in ["127.0.0.1", "127.0.0.9", "::1"] {
        let client = client(SocketAddr::new(address.parse().unwrap(), port));
        assert_eq!(ask(&client, b"here").1, b"here", "{address}");
    }
    drop((published, server, container));
    leaks.check();
}

#[test]
fn a_server_may_come_late_and_come_back() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let published =
        PortMapper::new().reserve(&[PortMapping::udp(53, 0)]).unwrap().relay(container.namespace()).unwrap();
    let client = client(published.ports()[0].host());
    client.send(b"nobody").unwrap();
    common::until("the datagram is refused", SHORT, || published.status()[0].refused == 1);
    assert_eq!(published.status()[0].open, 0);
    for _ in 0..2 {
        let server = container.serve("udp 127.0.0.1:53");
        assert_eq!(ask(&client, b"here").1, b"here");
        drop(server);
        let before = published.status()[0].refused;
        client.send(b"nobody").unwrap();
        common::until("the datagram is refused", SHORT, || published.status()[0].refused > before);
    }
    drop((client, published, container));
    leaks.check();
}

#[test]
fn idle_clients_are_forgotten() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let mapping = PortMapping::udp(53, 0).idle_timeout(Duration::from_millis(200));
    let (container, server, published) = scene("127.0.0.1:53", mapping);
    let client = client(published.ports()[0].host());
    ask(&client, b"once");
    assert_eq!(published.status()[0].open, 1);
    common::until("the client is forgotten", SHORT, || published.status()[0].open == 0);
    // And known again.
    assert_eq!(ask(&client, b"again").1, b"again");
    assert_eq!(published.status()[0].accepted, 2);
    drop((client, published, server, container));
    leaks.check();
}

#[test]
fn a_flood_of_clients_is_bounded_and_harms_nobody() {
    let leaks = Leaks::watch_for(SHORT);
    if !may_run() {
        return;
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = rustix::process::Rlimit { current: limit.maximum.map(|maximum| maximum.min(4096)), ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted).unwrap();
    let (container, server, published) = scene("127.0.0.1:53", PortMapping::udp(53, 0));
    let address = published.ports()[0].host();
    // All kept, so that each has a port of its own.
    let clients: Vec<_> = (0..1500).map(|_| client(address)).collect();
    for client in &clients {
        assert_eq!(ask(client, b"one more").1, b"one more");
    }
    let status = &published.status()[0];
    assert_eq!((status.accepted, status.open, status.refused), (1500, 1024, 0), "{status:?}");
    drop((clients, published, server, container));
    leaks.check();
}

#[test]
fn clients_give_way_where_descriptors_are_short() {
    let leaks = Leaks::watch();
    if !may_run() || !common::tools("root", &["prlimit"]) {
        return;
    }
    let container = Container::start();
    let server = container.serve("udp 127.0.0.1:53");
    let mut apart = container.relay_apart(53, 40);
    let address = SocketAddr::from(([127, 0, 0, 1], container::said(&mut apart).parse::<u16>().unwrap()));
    let clients: Vec<_> = (0..200).map(|_| client(address)).collect();
    for round in 0..3 {
        for client in &clients {
            assert_eq!(ask(client, b"in turn").1, b"in turn", "round {round}");
        }
    }
    drop(apart.stdin.take());
    let status = container::said(&mut apart);
    assert!(status.contains("accepted: 600") && status.contains("refused: 0"), "{status}");
    apart.wait().unwrap();
    drop((clients, apart, server, container));
    leaks.check();
}

#[test]
fn ports_of_both_protocols_share_a_number() {
    let leaks = Leaks::watch();
    let mapper = PortMapper::new();
    let tcp = mapper.reserve(&[PortMapping::tcp(53, 0)]).unwrap();
    let port = tcp.ports()[0].host().port();
    let udp = mapper.reserve(&[PortMapping::udp(53, port)]).unwrap();
    let error = mapper.reserve(&[PortMapping::udp(53, port)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PortInUse);
    assert!(error.to_string().contains("this process"), "{error}");
    drop((tcp, udp));
    // Every socket is bound for itself: what is free again at once can be taken at once.
    drop(mapper.reserve(&[PortMapping::udp(53, port), PortMapping::tcp(53, port)]).unwrap());
    leaks.check();
}

/// Not a test: a relay in a process of its own, until its input ends.
#[test]
#[ignore = "the tests start it themselves"]
fn relay_apart() {
    let Ok(wanted) = std::env::var("GPUC_TEST_RELAY") else { return };
    let (pid, port) = wanted.split_once(' ').unwrap();
    let namespace = NetworkNamespace::of_process(container::pidfd(pid.parse().unwrap()));
    let reservation = PortMapper::new().reserve(&[PortMapping::udp(port.parse().unwrap(), 0)]).unwrap();
    let published = reservation.relay(namespace).unwrap();
    container::say(&published.ports()[0].host().port().to_string());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    container::say(&format!("{:?}", published.status()[0]));
}

/// Not a test: the server that the tests start in containers, from this very program.
#[test]
#[ignore = "the tests start it themselves"]
fn serve() {
    if let Some(address) = std::env::var_os("GPUC_TEST_SERVE") {
        container::serve_forever(address.to_str().unwrap());
    }
}
