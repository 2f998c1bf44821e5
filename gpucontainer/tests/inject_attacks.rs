//! What a hostile container can make of sockets of the host that it was given.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod fixture;
#[path = "inject/scene.rs"]
mod scene;

use common::Leaks;
use gpucontainer::net::PortMode;
use gpucontainer::sandbox::Stdio;
use scene::{SERVE, Scene, has_python, may_lock, port};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// What attackers begin with.
const ATTACK: &str = "
import ctypes, fcntl, struct
libc = ctypes.CDLL(None, use_errno=True)
def told(result): return errno.errorcode[ctypes.get_errno()] if result < 0 else result
def attempt(what):
    try: return what()
    except OSError as e: return errno.errorcode[e.errno]
def disconnect(s):
    return told(libc.connect(s.fileno(), bytes(16), 16))
# Connects, and tells everything that can be learned within a while.
def reach(s, address):
    s.setblocking(False)
    begun = s.connect_ex(address)
    p = select.poll(); p.register(s, select.POLLIN | select.POLLOUT)
    return errno.errorcode.get(begun, begun), p.poll(600), s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), attempt(lambda: s.send(b'x'))
";

/// What [`reach`] tells when it learned nothing.
const NOTHING: &str = "('EINPROGRESS', [], 0, 'EAGAIN')";

fn attacker(script: &str) -> Scene {
    let script = format!("{SERVE}{ATTACK}{script}\nsay('over'); sys.stdin.readline()");
    let scene = Scene::python(&script, |b| b.publish_port(port(80)).stdin(Stdio::Piped));
    scene.serves_within(scene.address(0));
    scene
}

/// A service of the host's that nobody may reach.
fn service() -> (TcpListener, SocketAddr) {
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = service.local_addr().unwrap();
    // That it can be reached from the host makes it worth something that it cannot from inside.
    drop(TcpStream::connect(address).unwrap());
    drop(service.accept().unwrap());
    service.set_nonblocking(true).unwrap();
    (service, address)
}

fn is_silent(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_millis(400))
        .is_err_and(|e| e.kind() == std::io::ErrorKind::TimedOut)
}

#[test]
fn services_of_the_host_are_out_of_reach() {
    let leaks = Leaks::watch();
    if !has_python() || !may_lock() {
        return;
    }
    let (listening, there) = service();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = closed.local_addr().unwrap();
    drop(closed);
    let mut scene = attacker(
        "
s = bound('0.0.0.0', 80); probe = s.accept()
service, nobody = [('127.0.0.1', int(n)) for n in sys.stdin.readline().split()]
c = s.accept()[0]
# A connection that a client opened, and the listener itself.
for socket_of_host in c, s:
    for address in service, nobody:
        say(disconnect(socket_of_host)); say(reach(socket_of_host, address))
# Data with the opening segment, as TCP fast open has it.
c = c.dup(); disconnect(c); c.setblocking(False)
say(attempt(lambda: c.sendto(b'x', 0x20000000, service)))
",
    );
    scene.say(&format!("{} {}", there.port(), nobody.port()));
    assert_eq!(scene.line(), "bound");
    // The program may have disconnected it by the time that this returns.
    let client = TcpStream::connect(scene.address(0));
    for _ in 0..4 {
        assert_eq!(scene.line(), "0");
        assert_eq!(scene.line(), NOTHING);
    }
    assert_eq!(scene.line(), "EINPROGRESS");
    assert_eq!(scene.line(), "over");
    assert!(listening.accept().is_err(), "somebody came");
    drop(listening);
    drop(client);
    scene.close();
    leaks.check();
}

#[test]
fn no_other_port_of_the_host_can_be_served() {
    let leaks = Leaks::watch();
    if !has_python() || !may_lock() {
        return;
    }
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let wanted = free.local_addr().unwrap();
    drop(free);
    let mut scene = attacker(
        "
s = bound('0.0.0.0', 80); probe = s.accept()
port = int(sys.stdin.readline())
# In a namespace of its own that port is the container's to bind, and nobody's concern.
own = bound('0.0.0.0', port)
c = s.accept()[0]; disconnect(c)
for address in ('127.0.0.1', port), ('0.0.0.0', 80), ('127.0.0.1', 0):
    say(attempt(lambda: c.bind(address)))
say(attempt(lambda: s.bind(('127.0.0.1', port))))
# Without a bind the kernel chooses a port.
c.listen(); say(c.getsockname()[1])
# The listener anew, on its own port.
disconnect(s); say(attempt(lambda: s.bind(('127.0.0.1', port)))); say(s.getsockname()[1])
",
    );
    scene.say(&wanted.port().to_string());
    assert_eq!(scene.line(), "bound");
    assert_eq!(scene.line(), "bound");
    // The program may have disconnected it by the time that this returns.
    let client = TcpStream::connect(scene.address(0));
    for _ in 0..4 {
        assert_eq!(scene.line(), "EINVAL");
    }
    let chosen: u16 = scene.line().parse().unwrap();
    assert!(is_silent(SocketAddr::new(wanted.ip(), chosen)));
    assert_eq!(scene.line(), "EINVAL");
    assert_eq!(scene.line(), scene.address(0).port().to_string());
    assert!(scene.is_refused(wanted));
    TcpListener::bind(wanted).unwrap();
    assert_eq!(scene.line(), "over");
    drop(client);
    scene.close();
    leaks.check();
}

#[test]
fn the_lock_cannot_be_opened_nor_the_network_entered() {
    let leaks = Leaks::watch();
    if !has_python() || !may_lock() {
        return;
    }
    let mut scene = attacker(
        "
s = bound('0.0.0.0', 80); probe = s.accept(); c = probe[0]
program = (ctypes.c_ubyte * 8)(6, 0, 0, 0, 255, 255, 255, 255)
fprog = struct.pack('HxxxxxxQ', 1, ctypes.addressof(program))
S = socket.SOL_SOCKET
for one in s, c:
    # SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_LOCK_FILTER, SO_ATTACH_REUSEPORT_CBPF
    for option, value in (26, fprog), (27, b'0000'), (44, bytes(4)), (51, fprog):
        say(attempt(lambda: one.setsockopt(S, option, value)))
    say(attempt(lambda: fcntl.ioctl(one, 0x894C)))                                    # SIOCGSKNS
    say(attempt(lambda: fcntl.ioctl(one, 0x8914, struct.pack('16sh22x', b'lo', 0))))  # SIOCSIFFLAGS
    say(attempt(lambda: one.setsockopt(socket.IPPROTO_TCP, 19, 1)))                   # TCP_REPAIR
    say(attempt(lambda: one.setsockopt(S, 36, 1)))                                    # SO_MARK
    say(attempt(lambda: one.setsockopt(socket.IPPROTO_IP, 19, 1)))                    # IP_TRANSPARENT
",
    );
    assert_eq!(scene.line(), "bound");
    for socket in ["listener", "connection"] {
        for attack in
            ["attach", "detach", "unlock", "attach to a group", "namespace", "flags", "repair", "mark", "transparent"]
        {
            let line = scene.line();
            assert!(["EPERM", "EACCES"].contains(&line.as_str()), "{socket}: {attack}: {line}");
        }
    }
    assert_eq!(scene.line(), "over");
    scene.close();
    leaks.check();
}

#[test]
fn ports_that_are_not_published_stay_inside() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let mut scene = attacker(
        "
s = bound('0.0.0.0', 80); probe = s.accept()
# Another namespace of its own, where it may, is not the one whose port is published.
if libc.unshare(0x40000000) == 0:
    say(fresh().connect_ex(('127.0.0.1', 80)) != 0)
    s.close(); n = fresh(); n.bind(('0.0.0.0', 80)); say(n.getsockname())
else: say(True); say(('0.0.0.0', 80))
for port in 81, 8080, 65535:
    n = fresh(); n.bind(('0.0.0.0', port)); n.listen(); say(n.getsockname())
",
    );
    for expected in ["bound", "True", "('0.0.0.0', 80)", "('0.0.0.0', 81)", "('0.0.0.0', 8080)", "('0.0.0.0', 65535)"] {
        assert_eq!(scene.line(), expected);
    }
    assert_eq!(scene.line(), "over");
    assert!(scene.is_refused("127.0.0.1:65535".parse().unwrap()));
    scene.close();
    leaks.check();
}

#[test]
fn binds_without_end_and_a_kill_disturb_nobody_else() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let script = format!("{SERVE}\nserve(bound('0.0.0.0', 80))");
    let mut quiet = Scene::python(&script, |b| b.publish_port(port(80)));
    assert_eq!(quiet.line(), "bound");
    for _ in 0..3 {
        let mut loud = attacker(
            "
import signal
s = bound('0.0.0.0', 80); probe = s.accept(); say('go')
signal.signal(signal.SIGALRM, lambda *a: None); signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
def spin(n):
    while True:
        one = fresh(); one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try: one.bind(('0.0.0.0', [80, 81, 0][n % 3])); one.listen()
        # A signal that comes before anybody has heard of the call ends it.
        except OSError as e: assert e.errno in (errno.EADDRINUSE, errno.EINTR), e
        one.close()
for n in range(6):
    if os.fork() == 0: spin(n)
for n in range(3): threading.Thread(target=spin, args=(n,), daemon=True).start()
spin(0)
",
        );
        assert_eq!(loud.line(), "bound");
        assert_eq!(loud.line(), "go");
        for _ in 0..50 {
            assert_eq!(quiet.ask(quiet.address(0), "calm"), "CALM");
        }
        // While many wait for an answer.
        loud.close();
    }
    assert_eq!(quiet.sandbox.port_status()[0].mode, PortMode::Inject);
    assert_eq!(quiet.ask(quiet.address(0), "calm"), "CALM");
    quiet.close();
    leaks.check();
}
