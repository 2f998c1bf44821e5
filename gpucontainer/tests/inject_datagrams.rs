//! Ports of UDP whose sockets a trusted container has itself: by its own bind, or from its start on.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod fixture;
#[path = "inject/scene.rs"]
mod scene;

use common::Leaks;
use gpucontainer::ErrorKind;
use gpucontainer::net::{PortMapping, PortMode};
use gpucontainer::sandbox::Stdio;
use scene::{Scene, has_python};
use std::io::ErrorKind as IoErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

/// Servers that answer datagrams in capital letters.
const SERVE: &str = "
import errno, os, socket, sys, threading
def say(*words): print(*words, flush=True)
def bound(address, port, family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_DGRAM); s.bind((address, port)); return s
def shared(address, port, family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind((address, port)); return s
def serve(s):
    while True:
        word, client = s.recvfrom(99)
        if not word: return
        s.sendto(word.upper(), client)
";

fn udp(container: u16) -> PortMapping {
    PortMapping::udp(container, 0).unlocked(true)
}

/// A client; a datagram to a port that nobody serves is an error of its next call.
fn client(address: SocketAddr) -> UdpSocket {
    let local =
        SocketAddr::new(if address.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }, 0);
    let socket = UdpSocket::bind(local).unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket
}

fn ask(address: SocketAddr, word: &str) -> String {
    let client = client(address);
    client.send(word.as_bytes()).unwrap();
    let mut answer = [0; 99];
    let bytes = client.recv(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..bytes]).into_owned()
}

fn is_refused(address: SocketAddr) -> bool {
    let client = client(address);
    client.send(b"?").unwrap();
    client.recv(&mut [0]).is_err_and(|e| e.kind() == IoErrorKind::ConnectionRefused)
}

#[test]
fn a_program_binds_its_port_of_udp_and_has_that_of_the_host() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let script = format!(
        "{SERVE}
sys.stdin.readline()
s = bound('0.0.0.0', 53); threading.Thread(target=serve, args=(s,)).start()
try: bound('127.0.0.1', 53); say('two')
except OSError as e: say(errno.errorcode[e.errno])
c = bound('127.0.0.1', 0); c.sendto(b'inside', ('127.0.0.1', 53)); say(c.recv(99).decode())
sys.stdin.readline(); os._exit(0)
"
    );
    let mut scene = Scene::python(&script, |b| b.publish_port(udp(53).mode(PortMode::Inject)).stdin(Stdio::Piped));
    let hosts = scene.sandbox.ports()[0].hosts();
    // Closed, and not silent, as long as nobody has bound it.
    assert!(hosts.iter().all(|host| is_refused(*host)));
    scene.say("bind");
    assert_eq!(scene.line(), "EADDRINUSE");
    assert_eq!(scene.line(), "INSIDE");
    for _ in 0..20 {
        assert_eq!(ask(hosts[0], "outside"), "OUTSIDE");
    }
    let status = &scene.sandbox.port_status()[0];
    // Those of outside are the kernel's and the program's alone; the one inside was led there.
    let facts = (status.mode, status.accepted, status.bytes_in, status.bytes_out, status.last_error.as_deref());
    assert_eq!(facts, (PortMode::Inject, 1, 6, 6, None), "{status:?}");
    scene.say("end");
    scene.close();
    assert!(UdpSocket::bind(hosts[0]).is_ok(), "it is free again");
    leaks.check();
}

#[test]
fn sockets_of_either_family_serve_what_suits_them() {
    let leaks = Leaks::watch();
    if !has_python() || UdpSocket::bind("[::1]:0").is_err() {
        return;
    }
    // Of both families, of the second alone, and of the first for all addresses of the host.
    for (server, place, served) in [
        ("bound('::', 53, socket.AF_INET6)", udp(53), &["127.0.0.1"][..]),
        ("bound('::1', 53, socket.AF_INET6)", udp(53).address(Ipv6Addr::LOCALHOST.into()), &["::1"]),
        ("bound('0.0.0.0', 53)", udp(53).all_interfaces(), &["127.0.0.1"]),
        ("bound('::', 53, socket.AF_INET6)", udp(53).all_interfaces(), &["127.0.0.1", "::1"]),
        ("shared('::', 53, socket.AF_INET6)", udp(53).all_interfaces(), &["127.0.0.1", "::1"]),
        ("shared('0.0.0.0', 53)", udp(53).all_interfaces(), &["127.0.0.1"]),
        ("shared('::', 53, socket.AF_INET6)", udp(53), &["127.0.0.1"]),
    ] {
        let script = format!("{SERVE}\ns = {server}; say('bound'); serve(s)");
        let mut scene = Scene::python(&script, |b| b.publish_port(place.mode(PortMode::Inject)));
        assert_eq!(scene.line(), "bound");
        let port = scene.address(0).port();
        for address in served {
            let address = SocketAddr::new(address.parse().unwrap(), port);
            assert_eq!(ask(address, "word"), "WORD", "{server} {address}");
        }
        assert_eq!(scene.sandbox.port_status()[0].mode, PortMode::Inject);
        scene.close();
    }
    leaks.check();
}

#[test]
fn servers_of_udp_come_and_go() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let script = format!(
        "{SERVE}
for n in range(3):
    s = bound('0.0.0.0', 53); say('bound')
    s.sendto(*(lambda word, client: (word.upper() + b' %d' % n, client))(*s.recvfrom(99)))
    c = bound('127.0.0.1', 0); c.sendto(b'x', ('127.0.0.1', 53)); s.recvfrom(9); c.close()
    s.close(); say('closed'); sys.stdin.readline()
"
    );
    let one = udp(53).address(Ipv4Addr::LOCALHOST.into()).mode(PortMode::Inject);
    let mut scene = Scene::python(&script, |b| b.publish_port(one).stdin(Stdio::Piped));
    for number in 0..3 {
        assert_eq!(scene.line(), "bound");
        assert_eq!(ask(scene.address(0), "a"), format!("A {number}"));
        assert_eq!(scene.line(), "closed");
        assert!(is_refused(scene.address(0)));
        scene.say("again");
    }
    scene.close();
    leaks.check();
}

/// How long the relay's thread has run, in ticks of the clock.
fn relay_ticks() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let stat = |path: std::path::PathBuf| std::fs::read_to_string(path.join("stat")).unwrap_or_default();
    let relay = tasks.map(stat).find(|stat| stat.contains("(gpuc-relay)")).unwrap();
    let fields: Vec<&str> = relay.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn no_socket_of_a_container_keeps_the_relay_busy() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    // One that wants to know of errors, of which there are some; and one whose copy is shut down.
    let script = format!(
        "{SERVE}
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(0, 11, 1); s.bind(('0.0.0.0', 53))
threading.Thread(target=serve, args=(s,)).start()
for n in range(3): c = bound('127.0.0.1', 0); c.sendto(b'x', ('127.0.0.1', 53)); c.close()
t = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); copy = t.dup(); t.bind(('0.0.0.0', 54))
try: copy.shutdown(socket.SHUT_RD)
except OSError as e: say(errno.errorcode[e.errno])
sys.stdin.readline()
"
    );
    let one = |port| udp(port).address(Ipv4Addr::LOCALHOST.into()).mode(PortMode::Inject);
    let mut scene = Scene::python(&script, |b| b.publish_port(one(53)).publish_port(one(54)).stdin(Stdio::Piped));
    assert_eq!(scene.line(), "ENOTCONN");
    let (before, start) = (relay_ticks(), std::time::Instant::now());
    // Others are served by the same thread meanwhile.
    while start.elapsed() < Duration::from_secs(1) {
        assert_eq!(ask(scene.address(0), "word"), "WORD");
    }
    // Of some hundred in a second, at the usual 100 a second or more.
    assert!(relay_ticks() - before < 20, "{} ticks", relay_ticks() - before);
    scene.close();
    leaks.check();
}

#[test]
fn a_port_of_udp_that_is_taken_away_hears_nothing() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let script = format!(
        "{SERVE}
import select
s = bound('0.0.0.0', 53); say('bound')
s.sendto(*(lambda word, client: (word.upper(), client))(*s.recvfrom(99))); sys.stdin.readline()
p = select.poll(); p.register(s, select.POLLIN); say(p.poll(500))
s.close(); say('closed'); sys.stdin.readline()
"
    );
    let one = udp(53).address(Ipv4Addr::LOCALHOST.into()).mode(PortMode::Inject);
    let mut scene = Scene::python(&script, |b| b.publish_port(one).stdin(Stdio::Piped));
    assert_eq!(scene.line(), "bound");
    let address = scene.address(0);
    assert_eq!(ask(address, "word"), "WORD");
    scene.sandbox.unpublish(address).unwrap();
    client(address).send(b"too late").unwrap();
    scene.say("poll");
    assert_eq!(scene.line(), "[]", "it rests, and hears nothing");
    assert_eq!(scene.line(), "closed");
    assert!(UdpSocket::bind(address).is_ok(), "it is free when the program has closed it");
    scene.close();
    leaks.check();
}

#[test]
fn a_program_is_given_its_ports_of_udp() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let script = format!(
        "{SERVE}
s = socket.socket(fileno=3); say(os.environ['LISTEN_FDNAMES'], s.type == socket.SOCK_DGRAM); serve(s)
"
    );
    let one = udp(53).address(Ipv4Addr::LOCALHOST.into()).mode(PortMode::HandOver);
    let mut scene = Scene::python(&script, |b| b.publish_port(one));
    assert_eq!(scene.line(), "udp-53 True");
    assert_eq!(ask(scene.address(0), "given"), "GIVEN");
    assert_eq!(scene.sandbox.port_status()[0].mode, PortMode::HandOver);
    let address = scene.address(0);
    scene.close();
    assert!(is_refused(address));
    leaks.check();
}

#[test]
fn a_container_that_is_not_trusted_gets_no_socket_of_udp() {
    let leaks = Leaks::watch();
    let fixture = fixture::Fixture::new();
    for mode in [PortMode::Inject, PortMode::HandOver] {
        let builder = fixture.builder().command(["/bin/true"]);
        let error = builder.publish_port(PortMapping::udp(53, 0).mode(mode)).spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert!(error.to_string().contains("could send to whatever the host can"), "{error}");
    }
    drop(fixture);
    leaks.check();
}
