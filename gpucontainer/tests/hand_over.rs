//! Sockets that a program finds when it starts: those that sandboxes are given, and those that this process was given.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod fixture;
#[path = "inject/scene.rs"]
mod scene;

use common::Leaks;
use gpucontainer::ErrorKind;
use gpucontainer::net::{PortMapper, PortMapping, PortMode, activated};
use scene::{SERVE, Scene, has_python, port};
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

/// What programs that know of sockets which they are given begin with.
const GIVEN: &str = "
assert os.environ['LISTEN_PID'] == str(os.getpid()), os.environ
names = os.environ['LISTEN_FDNAMES'].split(':'); assert len(names) == int(os.environ['LISTEN_FDS'])
given = [socket.socket(fileno=3 + n) for n in range(len(names))]
say(names, [s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for s in given], sorted(os.listdir('/proc/self/fd')))
";

#[test]
fn a_program_finds_the_sockets_of_its_ports() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    for init in [true, false] {
        let script = format!(
            "{SERVE}{GIVEN}
for s in given: threading.Thread(target=serve, args=(s,)).start()
"
        );
        // More of them than this process has other descriptors, among which they are put.
        let count = if init { 2 } else { 40 };
        let mut scene = Scene::python(&script, |b| {
            let hand = |b: gpucontainer::sandbox::SandboxBuilder, n: u16| {
                let mapping = port(n).mode(PortMode::HandOver);
                b.publish_port(if n == 1 { mapping.name("web") } else { mapping })
            };
            (1..=count).fold(b, hand).init(init)
        });
        let mut names: Vec<String> = (1..=count).map(|n| format!("'tcp-{n}'")).collect();
        names[0] = "'web'".to_owned();
        let numbers: Vec<String> = (0..=3 + count).map(|n| format!("'{n}'")).collect();
        let line = scene.line();
        assert!(
            line.starts_with(&format!("[{}] [{}]", names.join(", "), vec!["1"; count.into()].join(", "))),
            "{line}"
        );
        // The last of them is of the listing itself.
        let mut numbers = numbers;
        numbers.sort();
        assert!(line.ends_with(&format!("[{}]", numbers.join(", "))), "{line}");
        for n in 0..usize::from(count) {
            assert_eq!(scene.ask(scene.address(n), "x"), "X");
        }
        let status = &scene.sandbox.port_status()[0];
        assert_eq!(status.mode, PortMode::HandOver, "{status:?}");
        scene.sandbox.unpublish(scene.address(0)).unwrap();
        let address = scene.address(0);
        scene.close();
        assert!(scene::is_refused(address));
    }
    leaks.check();
}

#[test]
fn a_socket_that_is_handed_over_is_locked() {
    let leaks = Leaks::watch();
    if !has_python() || !scene::may_lock() {
        return;
    }
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = service.local_addr().unwrap();
    service.set_nonblocking(true).unwrap();
    let script = format!(
        "{SERVE}{GIVEN}
import ctypes; libc = ctypes.CDLL(None)
c = given[0].accept()[0]
for s in c, given[0]:
    libc.connect(s.fileno(), bytes(16), 16); s.setblocking(False)
    begun = s.connect_ex(('127.0.0.1', {port}))
    p = select.poll(); p.register(s, select.POLLIN | select.POLLOUT); say(errno.errorcode[begun], p.poll(600))
sys.stdin.readline()
",
        port = there.port()
    );
    let mut scene = Scene::python(&script, |b| b.publish_port(port(80).mode(PortMode::HandOver)));
    scene.line();
    // The program may have disconnected it by the time that this returns.
    let client = TcpStream::connect(scene.address(0));
    for _ in 0..2 {
        assert_eq!(scene.line(), "EINPROGRESS []");
    }
    assert!(service.accept().is_err(), "somebody came");
    drop((client, service));
    scene.close();
    leaks.check();
}

#[test]
fn sockets_are_handed_over_at_the_start_alone() {
    let leaks = Leaks::watch();
    let scene = Scene::command(["/bin/sleep", "1000"], |b| b);
    let error = scene.sandbox.publish(&[port(80).mode(PortMode::HandOver)]).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidArgument && error.to_string().contains("starts"), "{error}");
    scene.close();
    for (socket, port) in [
        (OwnedFd::from(std::fs::File::open("/dev/null").unwrap()), 80),
        (std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into(), 80),
        (TcpListener::bind("127.0.0.1:0").unwrap().into(), 0),
    ] {
        let error = PortMapper::new().adopt(port, socket).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    leaks.check();
}

#[test]
fn a_socket_that_this_process_was_started_with_leads_inside() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let script = "export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web:same; exec \"$0\" \"$@\" 3<&0 4<&0 </dev/null";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "started_with_sockets", "--ignored", "--nocapture"])
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with("it serves")));
    assert_eq!(scene::ask(address, "through"), "THROUGH");
    assert!(child.wait().unwrap().success());
    assert!(scene::is_refused(address));
    drop(lines);
    leaks.check();
}

/// The process that was started with a socket.
#[test]
#[ignore = "a part of the test above"]
fn started_with_sockets() {
    for _ in 0..2 {
        let names: Vec<_> = activated().unwrap().into_iter().map(|one| one.name).collect();
        assert_eq!(names, ["web", "same"]);
    }
    let socket = activated().unwrap().remove(0).socket;
    let script = format!("{SERVE}\nserve_one(bound('0.0.0.0', 80))");
    let mut scene = Scene::python(&script, |b| b);
    assert_eq!(scene.line(), "bound");
    let reservation = PortMapper::new().adopt(80, socket).unwrap();
    let ports = scene.sandbox.publish_reserved(reservation).unwrap();
    assert_eq!(ports[0].container_port(), 80);
    let status = &scene.sandbox.port_status()[0];
    assert!(status.mode == PortMode::Relay && status.why.contains("alone"), "{status:?}");
    println!("\nit serves");
    assert!(scene.sandbox.wait().unwrap().success());
    scene.close();
}

#[test]
fn names_are_checked() {
    let bad = PortMapping::tcp(80, 0).mode(PortMode::HandOver).name("a:b");
    assert_eq!(PortMapper::new().reserve(&[bad]).unwrap_err().kind(), ErrorKind::InvalidArgument);
}
