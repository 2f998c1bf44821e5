//! Services of the host in network namespaces that have no other way out.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod container;

use common::Leaks;
use container::{Container, exchange, may_run, said};
use gpucontainer::ErrorKind;
use gpucontainer::net::{ExposedServices, HostService, NetworkNamespace, Protocol};
use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SHORT: Duration = Duration::from_secs(10);

/// A service of the host that sends back what it gets, until dropped.
struct Echo {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Echo {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ending.load(Ordering::SeqCst) {
                    return;
                }
                let mut stream = stream.unwrap();
                let mut all = Vec::new();
                // A client whose process was killed has said nothing, or not all, and hears no answer.
                if stream.read_to_end(&mut all).is_ok() {
                    let _ = stream.write_all(&all);
                }
            }
        });
        Self { address, over, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address).unwrap());
        self.thread.take().unwrap().join().unwrap();
    }
}

fn dial(namespace: &NetworkNamespace, port: u16) -> gpucontainer::Result<TcpStream> {
    let stream = namespace.dial(port, Some(SHORT))?;
    stream.set_read_timeout(Some(SHORT)).unwrap();
    Ok(stream)
}

#[test]
fn a_service_of_the_host_answers_inside() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let echo = Echo::start();
    for namespace in [container.namespace(), container.namespace_by_fds()] {
        // A privileged port of the container is the container's, whoever the host's user is.
        let wanted = [HostService::tcp(80, echo.address), HostService::tcp(0, echo.address)];
        let exposed = ExposedServices::new(&wanted, namespace.clone()).unwrap();
        let services = exposed.services();
        assert_eq!((services[0].port(), services[1].host()), (80, echo.address));
        assert_ne!(services[1].port(), 0);
        for service in services {
            assert_eq!(exchange(dial(&namespace, service.port()).unwrap(), b"to the host").unwrap(), b"to the host");
        }
        let status = &exposed.status()[0];
        assert_eq!((status.accepted, status.bytes_in, status.bytes_out, status.refused), (1, 11, 11, 0), "{status:?}");
        // What is in use inside is an error that leaves nothing.
        let error =
            ExposedServices::new(&[HostService::udp(9, echo.address), wanted[0]], namespace.clone()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PortInUse, "{error}");
        assert!(error.to_string().contains("taken inside"), "{error}");
        drop(exposed);
        assert_eq!(dial(&namespace, 80).unwrap_err().errno(), Some(rustix::io::Errno::CONNREFUSED.raw_os_error()));
    }
    drop((echo, container));
    leaks.check();
}

#[test]
fn a_service_that_is_not_there_resets_its_clients() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let exposed = ExposedServices::new(&[HostService::tcp(80, nobody)], container.namespace()).unwrap();
    let refused = match dial(&container.namespace(), 80) {
        // Only read: writing to what was reset already has errors of its own.
        Ok(mut stream) => stream.read(&mut [0]).unwrap_err().kind(),
        Err(error) => std::io::Error::from_raw_os_error(error.errno().unwrap()).kind(),
    };
    assert_eq!(refused, IoErrorKind::ConnectionReset);
    let status = &exposed.status()[0];
    assert_eq!((status.accepted, status.refused), (1, 1), "{status:?}");
    let error = status.last_error.as_ref().unwrap();
    assert!(error.contains(&nobody.to_string()) && error.contains("on the host"), "{error}");
    drop((exposed, container));
    leaks.check();
}

#[test]
fn datagrams_reach_the_host_from_inside() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let service = UdpSocket::bind("127.0.0.1:0").unwrap();
    service.set_read_timeout(Some(SHORT)).unwrap();
    let wanted = HostService::udp(53, service.local_addr().unwrap());
    let exposed = ExposedServices::new(&[wanted], container.namespace()).unwrap();
    assert_eq!(exposed.services()[0].protocol(), Protocol::Udp);
    for loopback in ["127.0.0.1:53", "[::1]:53"] {
        let mut asker = container.run(&format!("ask {loopback}"));
        let mut question = [0; 64];
        let (bytes, from) = service.recv_from(&mut question).unwrap();
        assert_eq!(&question[..bytes], b"a question");
        service.send_to(b"an answer", from).unwrap();
        assert_eq!(said(&mut asker), "an answer");
        asker.wait().unwrap();
    }
    let status = &exposed.status()[0];
    assert_eq!((status.accepted, status.bytes_in, status.bytes_out), (2, 20, 18), "{status:?}");
    drop((service, exposed, container));
    leaks.check();
}

#[test]
fn a_service_is_found_on_the_address_that_was_asked_for() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let echo = Echo::start();
    let service = UdpSocket::bind("127.0.0.1:0").unwrap();
    service.set_read_timeout(Some(SHORT)).unwrap();
    for (address, asked) in [("127.0.0.2", "127.0.0.2:53"), ("0.0.0.0", "127.0.0.3:53"), ("::", "[::1]:53")] {
        let address = address.parse().unwrap();
        let wanted = [
            HostService::tcp(80, echo.address).address(address),
            HostService::udp(53, service.local_addr().unwrap()).address(address),
        ];
        let _exposed = ExposedServices::new(&wanted, container.namespace()).unwrap();
        // Dialing asks at 127.0.0.1, and then at ::1.
        let reached = dial(&container.namespace(), 80);
        assert_eq!(reached.is_ok(), address.is_unspecified(), "{address}: {reached:?}");
        if let Ok(stream) = reached {
            assert_eq!(exchange(stream, b"word").unwrap(), b"word");
        }
        let mut asker = container.run(&format!("ask {asked}"));
        let mut question = [0; 64];
        let (_, from) = service.recv_from(&mut question).unwrap();
        service.send_to(b"an answer", from).unwrap();
        // From where it asked.
        assert_eq!(said(&mut asker), "an answer", "{address}");
        asker.wait().unwrap();
    }
    let elsewhere = HostService::tcp(80, echo.address).address("192.0.2.77".parse().unwrap());
    let error = ExposedServices::new(&[elsewhere], container.namespace()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(error.to_string().contains("no address of the container"), "{error}");
    drop((service, echo, container));
    leaks.check();
}

#[test]
fn a_killed_host_process_leaves_nothing_inside() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let echo = Echo::start();
    let mut apart = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "expose_apart", "--ignored", "--nocapture"])
        .env("GPUC_TEST_EXPOSE", format!("{} {}", container.pid(), echo.address))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(said(&mut apart), "80");
    let namespace = container.namespace();
    let mut open = dial(&namespace, 80).unwrap();
    open.write_all(b"half a word").unwrap();
    apart.kill().unwrap();
    apart.wait().unwrap();
    // The connection ends with the process, and the port is free inside.
    open.set_read_timeout(Some(SHORT)).unwrap();
    assert!(matches!(open.read(&mut [0]), Ok(0) | Err(_)));
    assert_eq!(dial(&namespace, 80).unwrap_err().errno(), Some(rustix::io::Errno::CONNREFUSED.raw_os_error()));
    let exposed = ExposedServices::new(&[HostService::tcp(80, echo.address)], namespace.clone()).unwrap();
    assert_eq!(exchange(dial(&namespace, 80).unwrap(), b"again").unwrap(), b"again");
    drop((open, apart, exposed, namespace, echo, container));
    leaks.check();
}

/// Not a test: services in a process of its own, until its input ends.
#[test]
#[ignore = "the tests start it themselves"]
fn expose_apart() {
    let Ok(wanted) = std::env::var("GPUC_TEST_EXPOSE") else { return };
    let (pid, address) = wanted.split_once(' ').unwrap();
    let namespace = NetworkNamespace::of_process(container::pidfd(pid.parse().unwrap()));
    let exposed = ExposedServices::new(&[HostService::tcp(80, address.parse().unwrap())], namespace).unwrap();
    container::say(&exposed.services()[0].port().to_string());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Not a test: the server that the tests start in containers, from this very program.
#[test]
#[ignore = "the tests start it themselves"]
fn serve() {
    if let Some(address) = std::env::var_os("GPUC_TEST_SERVE") {
        container::serve_forever(address.to_str().unwrap());
    }
}
