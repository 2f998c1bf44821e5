//! Published ports, end to end: real network namespaces, real servers in them, real clients.
//!
//! As root the namespaces are plain ones; as another user each has a user namespace of its own.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod container;
#[path = "ports/host.rs"]
mod host;

use common::Leaks;
use container::{Container, Server, connect, exchange, hash, may_run, pattern};
use gpucontainer::ErrorKind;
use gpucontainer::net::{NetworkNamespace, PortMapper, PortMapping, Published};
use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_secs(10);

/// A container with a server on a port, published on a free port of the host.
struct Scene {
    _server: Server,
    container: Container,
    published: Published,
}

impl Scene {
    fn new(address: &str, container_port: u16) -> Self {
        let container = Container::start();
        let server = container.serve(&format!("{address}:{container_port}"));
        let published = publish(&container, container_port);
        Self { _server: server, container, published }
    }

    fn address(&self) -> SocketAddr {
        self.published.ports()[0].host()
    }

    fn connect(&self) -> TcpStream {
        connect(self.address())
    }
}

fn publish(container: &Container, container_port: u16) -> Published {
    let reservation = PortMapper::new().reserve(&[PortMapping::tcp(container_port, 0)]).unwrap();
    reservation.relay(container.namespace()).unwrap()
}

fn relay_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .filter(|name| name.trim() == "gpuc-relay")
        .count()
}

/// A thread that was joined is still listed until the kernel has taken it apart.
fn no_relay_thread_is_left() {
    let start = std::time::Instant::now();
    while relay_threads() > 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "a relay goes on");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_server_in_a_container_answers_on_the_host() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let scene = Scene::new("127.0.0.1", 8888);
    assert_eq!(relay_threads(), 1);
    // The server answers after the client's end: half-closed connections pass through.
    assert_eq!(exchange(scene.connect(), b"Hhello").unwrap(), hash(b"hello"));
    assert_eq!(exchange(scene.connect(), b"Eecho this").unwrap(), b"echo this");
    // A server that speaks and ends first, while the client goes on writing later.
    let mut stream = scene.connect();
    stream.write_all(b"G").unwrap();
    let mut greeting = Vec::new();
    stream.read_to_end(&mut greeting).unwrap();
    assert_eq!(greeting, b"greeting");
    drop(stream);

    let status = scene.published.status();
    assert_eq!(status.len(), 1);
    assert_eq!((status[0].accepted, status[0].refused), (3, 0));
    assert_eq!(status[0].bytes_in, 6 + 10 + 1);
    assert_eq!(status[0].bytes_out, 16 + 9 + 8);
    drop(scene);
    no_relay_thread_is_left();
    leaks.check();
}

#[test]
fn a_server_on_the_other_loopback_address_answers_too() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let scene = Scene::new("[::1]", 80);
    for _ in 0..3 {
        assert_eq!(exchange(scene.connect(), b"Esix").unwrap(), b"six");
    }
    assert_eq!(scene.published.status()[0].refused, 0);
    drop(scene);
    leaks.check();
}

#[test]
fn instances_of_one_image_run_side_by_side() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let scenes: Vec<Scene> = (0..3).map(|_| Scene::new("127.0.0.1", 8888)).collect();
    let ports: std::collections::HashSet<u16> = scenes.iter().map(|scene| scene.address().port()).collect();
    assert_eq!(ports.len(), 3);
    assert!(!ports.contains(&0));
    let names: std::collections::HashSet<Vec<u8>> =
        scenes.iter().map(|scene| exchange(scene.connect(), b"N").unwrap()).collect();
    assert_eq!(names.len(), 3, "every port leads to a server of its own: {names:?}");
    assert_eq!(relay_threads(), 1, "one thread serves them all");
    drop(scenes);
    no_relay_thread_is_left();
    leaks.check();
}

#[test]
fn what_cannot_be_reserved_says_why() {
    let leaks = Leaks::watch();
    let mapper = PortMapper::new();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let elsewhere = "192.0.2.1".parse().unwrap();
    let everywhere = Ipv4Addr::UNSPECIFIED.into();
    let cases = [
        (vec![PortMapping::tcp(80, port)], ErrorKind::PortInUse, vec![format!("port {port}"), "this process".into()]),
        (vec![PortMapping::tcp(80, port).address(everywhere)], ErrorKind::PortInUse, vec![format!("port {port}")]),
        (vec![PortMapping::tcp(0, 0)], ErrorKind::InvalidArgument, vec!["0 names none".into()]),
        (vec![PortMapping::tcp(80, 5), PortMapping::tcp(81, 5)], ErrorKind::InvalidArgument, vec!["port 5".into()]),
        (vec![PortMapping::tcp(80, 0).address(elsewhere)], ErrorKind::InvalidArgument, vec!["192.0.2.1".into()]),
    ];
    for (mappings, kind, words) in cases {
        // The good one before must not stay taken when the bad one fails.
        let mut mappings = mappings;
        mappings.insert(0, PortMapping::tcp(1, 0));
        let error = mapper.reserve(&mappings).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        for word in words {
            assert!(error.to_string().contains(&word), "{word:?} is not in: {error}");
        }
    }
    drop(held);
    leaks.check();
}

#[test]
fn the_program_that_holds_a_port_is_named() {
    let leaks = Leaks::watch();
    if !common::tools("root", &["python3"]) {
        return;
    }
    let code = "import socket,sys; s=socket.create_server(('127.0.0.1',0)); print(s.getsockname()[1],flush=True); sys.stdin.read()";
    let mut other =
        Command::new("python3").args(["-c", code]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let port: u16 = container::first_line(&mut other).parse().unwrap();
    let error = PortMapper::new().reserve(&[PortMapping::tcp(80, port)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PortInUse);
    let text = error.to_string();
    assert!(text.contains(&format!("port {port} of 127.0.0.1 is taken by process {} (python3", other.id())), "{text}");
    drop(other.stdin.take());
    other.wait().unwrap();
    drop(other);
    let reservation = PortMapper::new().reserve(&[PortMapping::tcp(80, port)]).unwrap();
    assert_eq!(reservation.ports()[0].host().port(), port);
    drop(reservation);
    leaks.check();
}

#[test]
fn a_reservation_keeps_the_port_until_it_is_dropped() {
    let leaks = Leaks::watch();
    let mapper = PortMapper::new();
    let first = mapper.reserve(&[PortMapping::tcp(80, 0), PortMapping::tcp(81, 0)]).unwrap();
    let address = first.ports()[1].host();
    assert_eq!(first.ports()[1].container_port(), 81);
    assert_ne!(address.port(), 0);
    assert_eq!(mapper.reserve(&[PortMapping::tcp(80, address.port())]).unwrap_err().kind(), ErrorKind::PortInUse);
    assert_eq!(TcpListener::bind(address).unwrap_err().kind(), IoErrorKind::AddrInUse);
    drop(first);
    TcpListener::bind(address).unwrap();
    // IPv6, beside IPv4 on the same port.
    let both = mapper
        .reserve(&[
            PortMapping::tcp(80, address.port()).address(Ipv4Addr::LOCALHOST.into()),
            PortMapping::tcp(80, address.port()).address(Ipv6Addr::LOCALHOST.into()),
        ])
        .unwrap();
    assert!(both.ports()[1].host().is_ipv6());
    let sockets = both.into_sockets();
    assert_eq!(sockets.len(), 2);
    drop(sockets);
    leaks.check();
}

#[test]
fn much_data_arrives_whole_both_ways_at_once() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let scene = Scene::new("127.0.0.1", 8888);
    const BYTES: usize = 64 << 20;
    let data = pattern(7, BYTES);
    // Into the container alone, out of it alone, and both at once.
    let mut request = b"H".to_vec();
    request.extend_from_slice(&data);
    assert_eq!(exchange(scene.connect(), &request).unwrap(), hash(&data));
    let mut request = b"S".to_vec();
    request.extend_from_slice(&(BYTES as u64).to_le_bytes());
    assert_eq!(hash(&exchange(scene.connect(), &request).unwrap()), hash(&data));
    let stream = scene.connect();
    let mut writer = stream.try_clone().unwrap();
    let echoed = std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(b"E").unwrap();
            writer.write_all(&data).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut answer = Vec::with_capacity(BYTES);
        (&stream).read_to_end(&mut answer).unwrap();
        answer
    });
    assert_eq!(hash(&echoed), hash(&data));
    drop((stream, writer, scene));
    leaks.check();
}

#[test]
fn five_hundred_clients_at_once() {
    let leaks = Leaks::watch_for(SHORT);
    if !may_run() {
        return;
    }
    // Three descriptors a client: its own, and the relay's two.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = rustix::process::Rlimit { current: limit.maximum.map(|maximum| maximum.min(4096)), ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted).unwrap();
    let scene = Scene::new("127.0.0.1", 8888);
    let mut clients: Vec<TcpStream> = (0..500).map(|_| scene.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        write!(client, "E{number}").unwrap();
    }
    assert!(scene.published.status()[0].open >= 1);
    for (number, mut client) in clients.into_iter().enumerate().rev() {
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, number.to_string());
    }
    let status = &scene.published.status()[0];
    assert_eq!((status.accepted, status.refused), (500, 0), "{status:?}");
    drop(scene);
    leaks.check();
}

#[test]
fn silent_and_slow_clients_block_nobody() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let scene = Scene::new("127.0.0.1", 8888);
    let silent: Vec<TcpStream> = (0..20).map(|_| scene.connect()).collect();
    // Wants 64 MiB and reads none of it: what the relay holds for it is bounded.
    let mut stuck = scene.connect();
    stuck.write_all(b"S").unwrap();
    stuck.write_all(&(64_u64 << 20).to_le_bytes()).unwrap();
    let start = Instant::now();
    for _ in 0..50 {
        assert_eq!(exchange(scene.connect(), b"Equick").unwrap(), b"quick");
    }
    assert!(start.elapsed() < SHORT, "{:?}", start.elapsed());
    assert!(scene.published.status()[0].bytes_out < 48 << 20, "nobody read that: {:?}", scene.published.status());
    // The slow one gets everything in the end.
    let mut answer = Vec::new();
    stuck.read_to_end(&mut answer).unwrap();
    assert_eq!(hash(&answer), hash(&pattern(7, 64 << 20)));
    drop((silent, stuck, scene));
    leaks.check();
}

/// Reads until the connection is over; `true` when that was a reset.
fn ends_in_reset(mut stream: TcpStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => false,
        Err(error) if error.kind() == IoErrorKind::ConnectionReset => true,
        Err(error) => panic!("{error}"),
    }
}

/// Whether a new connection is reset, which may be before the client has learnt that it was accepted.
fn is_reset(address: SocketAddr) -> bool {
    match TcpStream::connect(address) {
        Err(error) => error.kind() == IoErrorKind::ConnectionReset,
        Ok(stream) => {
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            ends_in_reset(stream)
        }
    }
}

#[test]
fn a_server_may_come_late_die_and_come_back() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let published = publish(&container, 8888);
    let address = published.ports()[0].host();
    assert!(is_reset(address), "nobody listens yet");
    let status = &published.status()[0];
    assert_eq!((status.accepted, status.refused), (1, 1));
    assert!(status.last_error.as_ref().unwrap().contains("127.0.0.1:8888"), "{status:?}");
    for _ in 0..2 {
        let server = container.serve("127.0.0.1:8888");
        assert_eq!(exchange(connect(address), b"Ehere").unwrap(), b"here");
        let mut open = connect(address);
        open.write_all(b"Estay").unwrap();
        let mut echo = [0; 4];
        open.read_exact(&mut echo).unwrap();
        // The kernel ends or resets what the dead server had; the client must learn of it.
        drop(server);
        ends_in_reset(open);
        assert!(is_reset(address));
    }
    drop((published, container));
    leaks.check();
}

#[test]
fn a_server_that_resets_resets_its_client() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let scene = Scene::new("127.0.0.1", 8888);
    let mut stream = scene.connect();
    stream.write_all(b"R").unwrap();
    assert!(ends_in_reset(stream));
    drop(scene);
    leaks.check();
}

#[test]
fn dropping_closes_everything_at_once() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let scene = Scene::new("127.0.0.1", 8888);
    let other = publish(&scene.container, 8888);
    let address = scene.address();
    let mut open = scene.connect();
    open.write_all(b"Estay").unwrap();
    let mut echo = [0; 4];
    open.read_exact(&mut echo).unwrap();
    let Scene { _server, container, published } = scene;
    published.close();
    // No waiting: the port is free when the call returns, in spite of the connection that there was.
    let listener = TcpListener::bind(address).unwrap();
    assert!(ends_in_reset(open));
    // What else is published goes on.
    assert_eq!(exchange(connect(other.ports()[0].host()), b"Eon").unwrap(), b"on");
    drop((listener, other, container, _server));
    no_relay_thread_is_left();
    leaks.check();
}

#[test]
fn clients_wait_in_a_reservation() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let server = container.serve("127.0.0.1:8888");
    let reservation = PortMapper::new().reserve(&[PortMapping::tcp(8888, 0)]).unwrap();
    let early = connect(reservation.ports()[0].host());
    let published = reservation.relay(container.namespace()).unwrap();
    assert_eq!(exchange(early, b"Eearly").unwrap(), b"early");
    drop((published, server, container));
    leaks.check();
}

#[test]
fn ports_can_be_dialled_without_being_published() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let server = container.serve("127.0.0.1:8888");
    let six = container.serve("[::1]:9999");
    for namespace in [container.namespace(), container.namespace_by_fds()] {
        for port in [8888, 9999] {
            let stream = namespace.dial(port, Some(SHORT)).unwrap();
            assert_eq!(exchange(stream, b"Einside").unwrap(), b"inside");
        }
        let error = namespace.dial(7777, None).unwrap_err();
        assert!(error.to_string().contains("127.0.0.1:7777"), "{error}");
        assert_eq!(namespace.dial(0, None).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    drop((server, six, container));
    leaks.check();
}

#[test]
fn a_namespace_that_cannot_be_entered_is_an_error_before_anything_listens() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let mut ended = Command::new("true").spawn().unwrap();
    let pidfd = container::pidfd(ended.id());
    ended.wait().unwrap();
    let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    for namespace in [NetworkNamespace::of_process(pidfd), NetworkNamespace::from_fds(file, None)] {
        let reservation = PortMapper::new().reserve(&[PortMapping::tcp(80, 0)]).unwrap();
        let address = reservation.ports()[0].host();
        let error = reservation.relay(namespace).unwrap_err();
        assert!(error.to_string().contains("network namespace"), "{error}");
        TcpListener::bind(address).unwrap();
    }
    no_relay_thread_is_left();
    leaks.check();
}

/// Not a test: a relay in a process of its own, until its input ends.
#[test]
#[ignore = "the tests start it themselves"]
fn relay_apart() {
    let Ok(wanted) = std::env::var("GPUC_TEST_RELAY") else { return };
    let (pid, port) = wanted.split_once(' ').unwrap();
    let namespace = NetworkNamespace::of_process(container::pidfd(pid.parse().unwrap()));
    let reservation = PortMapper::new().reserve(&[PortMapping::tcp(port.parse().unwrap(), 0)]).unwrap();
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
