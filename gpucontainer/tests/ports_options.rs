//! What a published port can be told: ranges, addresses, idle times, the PROXY protocol.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod container;

use common::Leaks;
use container::{Container, connect, exchange, hash, may_run};
use gpucontainer::ErrorKind;
use gpucontainer::net::{NetworkNamespace, PortMapper, PortMapping, PortMode, Published, SourceAddress};
use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_secs(10);

fn publish(container: &Container, mapping: PortMapping) -> Published {
    PortMapper::new().reserve(&[mapping]).unwrap().relay(container.namespace()).unwrap()
}

fn on(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

fn allow_descriptors(wanted: u64) -> bool {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let enough = limit.maximum.is_none_or(|maximum| maximum >= wanted);
    let limit =
        rustix::process::Rlimit { current: Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted))), ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    enough
}

#[test]
fn a_port_is_on_both_loopback_addresses_and_no_other() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let server = container.serve("127.0.0.1:80");
    let published = publish(&container, PortMapping::tcp(80, 0));
    let port = published.ports()[0];
    let number = port.host().port();
    assert_eq!(port.hosts(), [on(Ipv4Addr::LOCALHOST, number), on(Ipv6Addr::LOCALHOST, number)]);
    for host in port.hosts() {
        assert_eq!(exchange(connect(host), b"Ehere").unwrap(), b"here");
    }
    assert_eq!(TcpStream::connect(on([127, 0, 0, 2], number)).unwrap_err().kind(), IoErrorKind::ConnectionRefused);
    let status = published.status();
    assert_eq!((status.len(), status[0].accepted, status[0].mode), (1, 2, PortMode::Relay));
    assert_eq!(status[0].why, "asked for");
    // Somebody who has only one of the two keeps the port from us: `localhost` would lead to either.
    let held = TcpListener::bind("[::1]:0").unwrap();
    let busy = held.local_addr().unwrap();
    let error = PortMapper::new().reserve(&[PortMapping::tcp(80, busy.port())]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PortInUse);
    assert!(error.to_string().contains("of ::1 is taken by this process"), "{error}");
    // And what was taken of it first is given back.
    TcpListener::bind(on(Ipv4Addr::LOCALHOST, busy.port())).unwrap();
    drop((held, published, server, container));
    leaks.check();
}

#[test]
fn all_interfaces_take_clients_of_both_families() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let server = container.serve("127.0.0.1:80");
    let published = publish(&container, PortMapping::tcp(80, 0).all_interfaces());
    let port = published.ports()[0];
    assert_eq!(port.hosts(), [on(Ipv6Addr::UNSPECIFIED, port.host().port())]);
    for address in [
        on([127, 0, 0, 1], port.host().port()),
        on([127, 8, 8, 8], port.host().port()),
        on(Ipv6Addr::LOCALHOST, port.host().port()),
    ] {
        assert_eq!(exchange(connect(address), b"Ehere").unwrap(), b"here");
    }
    drop((published, server, container));
    leaks.check();
}

#[test]
fn a_range_is_one_port_of_many_numbers() {
    let leaks = Leaks::watch_for(SHORT);
    if !may_run() {
        return;
    }
    if !allow_descriptors(8192) {
        return common::skip("root", "a limit of 8192 descriptors");
    }
    const COUNT: u16 = 1000;
    let container = Container::start();
    let servers = [container.serve("127.0.0.1:2000"), container.serve("127.0.0.1:2999")];
    let published = publish(&container, PortMapping::tcp_range(2000, 0, COUNT));
    let port = published.ports()[0];
    assert_eq!((published.ports().len(), port.count(), port.container_port()), (1, COUNT, 2000));
    let first = port.host().port();
    for (offset, wanted) in [(0, &b"Efirst"[..]), (COUNT - 1, b"Elast")] {
        for host in port.hosts() {
            assert_eq!(exchange(connect(on(host.ip(), first + offset)), wanted).unwrap(), wanted[1..]);
        }
    }
    let mut refused = connect(on(Ipv4Addr::LOCALHOST, first + 1));
    assert_eq!(refused.read(&mut [0]).unwrap_err().kind(), IoErrorKind::ConnectionReset);
    let status = published.status();
    assert_eq!((status.len(), status[0].accepted, status[0].refused), (1, 5, 1), "{status:?}");
    // Any of its ports keeps others off, and all are free when it closes.
    let overlapping = PortMapper::new().reserve(&[PortMapping::tcp(80, first + 500)]).unwrap_err();
    assert_eq!(overlapping.kind(), ErrorKind::PortInUse);
    published.close();
    let again = PortMapper::new().reserve(&[PortMapping::tcp_range(1, first, COUNT)]).unwrap();
    assert_eq!(again.ports()[0].to_string(), format!("127.0.0.1:{first}-{} -> 1-1000/tcp", first + COUNT - 1));
    drop((again, servers, container, refused));
    leaks.check();
}

#[test]
fn ten_thousand_ports_take_one_thread_and_little_time() {
    let leaks = Leaks::watch_for(SHORT);
    if !may_run() {
        return;
    }
    if !allow_descriptors(16384) {
        return common::skip("root", "a limit of 16384 descriptors");
    }
    let container = Container::start();
    let server = container.serve("udp 127.0.0.1:10123");
    let start = Instant::now();
    let mapping = PortMapping::udp_range(10_000, 20_000, 10_000).address(Ipv4Addr::LOCALHOST.into());
    let published = publish(&container, mapping);
    let took = start.elapsed();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(SHORT)).unwrap();
    client.send_to(b"far in", "127.0.0.1:20123").unwrap();
    let mut answer = [0; 64];
    let (bytes, from) = client.recv_from(&mut answer).unwrap();
    assert_eq!((&answer[2..bytes], from.port()), (&b"far in"[..], 20123));
    // Some 60 microseconds a port here, in a debug build on a busy machine; a process a port would take minutes.
    assert!(took < Duration::from_secs(10), "{took:?}");
    drop((client, published, server, container));
    leaks.check();
}

#[test]
fn too_few_descriptors_are_an_error_before_anything_is_taken() {
    let leaks = Leaks::watch();
    allow_descriptors(512);
    let mapper = PortMapper::new();
    let error = mapper.reserve(&[PortMapping::tcp_range(1, 20_000, 10_000)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SystemCall);
    let text = error.to_string();
    for word in ["20000 sockets are needed", "of 512 descriptors (RLIMIT_NOFILE)", "127.0.0.1:20000-29999"] {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
    drop(TcpListener::bind("127.0.0.1:20000").unwrap());
    leaks.check();
}

#[test]
fn a_range_whose_middle_is_taken_leaves_nothing_taken() {
    let leaks = Leaks::watch();
    let mapper = PortMapper::new();
    let free = mapper.reserve(&[PortMapping::udp_range(1, 0, 9)]).unwrap();
    let first = free.ports()[0].host().port();
    drop(free);
    let held = UdpSocket::bind(on(Ipv4Addr::LOCALHOST, first + 4)).unwrap();
    let error = mapper.reserve(&[PortMapping::udp_range(1, first, 9)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PortInUse);
    assert!(
        error.to_string().contains(&format!("port {} of 127.0.0.1 is taken by this process", first + 4)),
        "{error}"
    );
    UdpSocket::bind(on(Ipv4Addr::LOCALHOST, first)).unwrap();
    drop(held);
    drop(mapper.reserve(&[PortMapping::udp_range(1, first, 9)]).unwrap());
    leaks.check();
}

#[test]
fn idle_connections_are_reset_and_busy_ones_are_not() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let server = container.serve("127.0.0.1:80");
    let published = publish(&container, PortMapping::tcp(80, 0).idle_timeout(Duration::from_millis(500)));
    let host = published.ports()[0].host();
    let mut idle = connect(host);
    let mut busy = connect(host);
    busy.write_all(b"E").unwrap();
    // Goes on for longer than the time, but never rests for so long.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1500) {
        busy.write_all(b"x").unwrap();
        busy.read_exact(&mut [0]).unwrap();
    }
    assert_eq!(idle.read(&mut [0]).unwrap_err().kind(), IoErrorKind::ConnectionReset);
    assert_eq!(published.status()[0].open, 1);
    assert_eq!(busy.read(&mut [0]).unwrap_err().kind(), IoErrorKind::ConnectionReset);
    assert_eq!(published.status()[0].open, 0);
    drop((idle, busy, published, server, container));
    leaks.check();
}

#[test]
fn the_proxy_protocol_says_who_the_client_is() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let server = container.serve("proxy 127.0.0.1:80");
    let mapping = PortMapping::tcp(80, 0).source(SourceAddress::ProxyV2);
    let published = publish(&container, mapping.all_interfaces());
    let port = published.ports()[0].host().port();
    for address in [on([127, 0, 0, 5], port), on(Ipv6Addr::LOCALHOST, port)] {
        let mut stream = connect(address);
        let own = stream.local_addr().unwrap();
        stream.write_all(b"Ewords").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("{own} to {address}: words"));
    }
    // Much at once follows the header whole.
    let data = container::pattern(5, 8 << 20);
    let mut stream = connect(on(Ipv4Addr::LOCALHOST, port));
    stream.write_all(b"H").unwrap();
    stream.write_all(&data).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.ends_with(&hash(&data)), "{:?}", String::from_utf8_lossy(&answer));
    drop((stream, published, server, container));
    leaks.check();
}

/// Connects from an address of this host's.
fn connect_from(source: SocketAddr, address: SocketAddr) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType};
    let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &source).unwrap();
    rustix::net::connect(&socket, &address).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

#[test]
fn clients_can_keep_their_own_addresses() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let servers = [container.serve("127.0.0.1:80"), container.serve("[::1]:80"), container.serve("127.0.0.1:81")];
    let keep = |port| PortMapping::tcp(port, 0).source(SourceAddress::Keep).all_interfaces();
    // Once more changes nothing.
    for namespace in [container.namespace(), container.namespace_by_fds()] {
        let published = PortMapper::new().reserve(&[keep(80), keep(81)]).unwrap().relay(namespace).unwrap();
        let [both, four] = [0, 1].map(|index| published.ports()[index].host().port());
        let mut sources = vec![on([127, 0, 0, 1], 0), on([127, 0, 0, 77], 0), on(Ipv6Addr::LOCALHOST, 0)];
        // An address that is not loopback's, where this host has one: no packet needs to leave for that to be known.
        let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
        sources.extend(probe.connect("192.0.2.1:9").ok().map(|()| on(probe.local_addr().unwrap().ip(), 0)));
        for source in sources {
            let to = if source.ip().is_loopback() { source.ip() } else { Ipv4Addr::LOCALHOST.into() };
            for _ in 0..3 {
                let mut stream = connect_from(source, on(to, both));
                let own = stream.local_addr().unwrap();
                stream.write_all(b"W").unwrap();
                let mut seen = String::new();
                stream.read_to_string(&mut seen).unwrap();
                assert_eq!(seen, own.to_string());
            }
        }
        // Much at once, and an end that is half.
        let data = container::pattern(9, 8 << 20);
        let mut stream = connect_from(on([127, 0, 0, 78], 0), on(Ipv4Addr::LOCALHOST, both));
        stream.write_all(b"H").unwrap();
        stream.write_all(&data).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, hash(&data));
        // Nobody is at the loopback address of the client's family: it is not led to the other as somebody local.
        assert_eq!(exchange(connect(on([127, 0, 0, 1], four)), b"Ehere").unwrap(), b"here");
        let refused = match TcpStream::connect(on(Ipv6Addr::LOCALHOST, four)) {
            Ok(mut stream) => stream.read(&mut [0]).unwrap_err().kind(),
            Err(error) => error.kind(),
        };
        assert_eq!(refused, IoErrorKind::ConnectionReset);
        assert_eq!(published.status()[1].refused, 1);
        drop((stream, probe, published));
    }
    drop((servers, container));
    leaks.check();
}

#[test]
fn ten_thousand_half_open_connections_keep_nobody_out() {
    let leaks = Leaks::watch_for(SHORT);
    // Newer kernels let only root attach filters to sockets.
    if !may_run() || !common::tier("root") || !common::tools("root", &["python3"]) {
        return;
    }
    if !allow_descriptors(10_500) {
        return common::skip("root", "a limit of 10500 descriptors");
    }
    let container = Container::start();
    let server = container.serve("127.0.0.1:80");
    let published = publish(&container, PortMapping::tcp(80, 0));
    let host = published.ports()[0].host();
    let mut flood = Command::new("python3")
        .args(["-c", HALF_OPEN, &host.port().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(container::first_line(&mut flood), "begun");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = format!(":{:04X} ", host.port());
    // What the queue has no room for is answered by cookies and is not in the table.
    let half_open = table.lines().filter(|line| line.contains(&port) && line.contains(" 03 ")).count();
    assert!(half_open > 500, "{half_open}");
    for _ in 0..20 {
        assert_eq!(exchange(connect(host), b"Estill here").unwrap(), b"still here");
    }
    let status = &published.status()[0];
    assert_eq!((status.accepted, status.refused), (20, 0), "{status:?}");
    drop(flood.stdin.take());
    flood.wait().unwrap();
    drop((flood, published, server, container));
    leaks.check();
}

/// Begins 10,000 handshakes that it never finishes: filters keep the answers from its sockets.
const HALF_OPEN: &str = r"
import ctypes, socket, struct, sys
port = int(sys.argv[1])
nothing = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0))
program = struct.pack('HL', 1, ctypes.addressof(nothing))
sockets = []
for number in range(10000):
    one = socket.socket()
    one.setblocking(False)
    one.setsockopt(socket.SOL_SOCKET, 26, program)
    one.connect_ex(('127.0.0.1', port))
    sockets.append(one)
print('begun', flush=True)
sys.stdin.read()
";

#[test]
fn a_kill_with_traffic_frees_every_port_at_once() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let servers = [container.serve("127.0.0.1:80"), container.serve("udp 127.0.0.1:80")];
    for round in 0..40 {
        let mut apart = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "publish_apart", "--ignored", "--nocapture"])
            .env("GPUC_TEST_PUBLISH", container.pid().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let port: u16 = container::said(&mut apart).parse().unwrap();
        let host = on(Ipv4Addr::LOCALHOST, port);
        // Bytes in both directions, and datagrams, while the process is killed.
        let mut stream = connect(host);
        stream.write_all(b"E").unwrap();
        let writer = stream.try_clone().unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| while (&writer).write_all(&[7; 4096]).is_ok() {});
            let reader = scope.spawn(|| std::io::copy(&mut &stream, &mut std::io::sink()));
            let newcomers = scope.spawn(|| {
                // Each needs a fresh socket inside, so that the process is killed while some are made.
                while !over.load(Ordering::Relaxed) {
                    let _ = TcpStream::connect(host);
                    let _ = UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"more", host);
                }
            });
            std::thread::sleep(Duration::from_micros(500 * round));
            apart.kill().unwrap();
            apart.wait().unwrap();
            // No waiting: what has been waited for holds nothing.
            let free = (TcpListener::bind(host).map(drop), UdpSocket::bind(host).map(drop));
            over.store(true, Ordering::Relaxed);
            assert!(matches!(free, (Ok(()), Ok(()))), "round {round}: {free:?}");
            // The client learns of it, by an end or a reset.
            let _ = reader.join().unwrap();
            newcomers.join().unwrap();
        });
        drop((apart, stream, writer));
    }
    drop((servers, container));
    leaks.check();
}

/// Not a test: ports in a process of its own, until its input ends.
#[test]
#[ignore = "the tests start it themselves"]
fn publish_apart() {
    let Ok(pid) = std::env::var("GPUC_TEST_PUBLISH") else { return };
    let namespace = NetworkNamespace::of_process(container::pidfd(pid.parse().unwrap()));
    let tcp = PortMapper::new().reserve(&[PortMapping::tcp(80, 0)]).unwrap();
    let port = tcp.ports()[0].host().port();
    let udp = PortMapper::new().reserve(&[PortMapping::udp(80, port)]).unwrap();
    let published = [tcp.relay(namespace.clone()).unwrap(), udp.relay(namespace).unwrap()];
    container::say(&port.to_string());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(published);
}

/// Not a test: the server that the tests start in containers, from this very program.
#[test]
#[ignore = "the tests start it themselves"]
fn serve() {
    if let Some(address) = std::env::var_os("GPUC_TEST_SERVE") {
        container::serve_forever(address.to_str().unwrap());
    }
}
