//! Ports whose binds are answered with sockets of the host: unmodified servers in sandboxes, real clients outside.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod fixture;
#[path = "inject/scene.rs"]
mod scene;

use common::Leaks;
use gpucontainer::ErrorKind;
use gpucontainer::net::PortMode;
use gpucontainer::sandbox::{Capability, Stdio};
use scene::{SERVE, Scene, has_python, on_loopback, port};
use std::net::TcpListener;
use std::time::Duration;

#[test]
fn an_unmodified_server_has_a_socket_of_the_host() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let scene = Scene::command(["/usr/bin/python3", "-u", "-m", "http.server", "8000", "--directory", "/etc"], |b| {
        b.publish_port(on_loopback(8000))
    });
    scene.serves_within(scene.address(0));
    // The second address, which a socket of IPv4 cannot serve, leads to the first.
    for (number, host) in scene.sandbox.ports()[0].hosts().into_iter().enumerate() {
        let answer = scene.http(host, "/inside");
        assert!(answer.starts_with("HTTP/1.0 200 OK") && answer.ends_with("inside\n"), "{answer}");
        let status = &scene.sandbox.port_status()[0];
        let facts = (status.mode, status.accepted, status.last_error.as_deref());
        assert_eq!(facts, (PortMode::Inject, number as u64, None), "{status:?}");
    }
    scene.close();
    leaks.check();
}

#[test]
fn nginx_and_gunicorn_have_sockets_for_their_workers() {
    let leaks = Leaks::watch();
    if !common::tools("servers", &["nginx", "gunicorn"]) || TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let workers = if common::is_root() { "worker_processes 2;" } else { "master_process off;" };
    let nginx = ["/usr/sbin/nginx", "-e", "stderr", "-c", "/etc/nginx.conf", "-g", workers];
    let gunicorn = ["/usr/bin/gunicorn", "-w", "3", "--reuse-port", "-b", "[::]:80", "wsgiref.simple_server:demo_app"];
    for (command, word) in [(nginx, "nginx "), (gunicorn, "Hello world!")] {
        let scene =
            Scene::command(command, |b| b.publish_port(on_loopback(80)).stderr(Stdio::Null).working_dir("/tmp"));
        scene.serves_within(scene.address(0));
        for host in scene.sandbox.ports()[0].hosts() {
            for _ in 0..20 {
                let answer = scene.http(host, "/");
                assert!(answer.contains(" 200 OK") && answer.contains(word), "{answer}");
            }
        }
        assert_eq!(scene.sandbox.port_status()[0].last_error, None);
        scene.close();
    }
    leaks.check();
}

#[test]
fn iperf3_measures_on_a_socket_of_the_host() {
    let leaks = Leaks::watch();
    if !common::tools("servers", &["iperf3"]) {
        return;
    }
    let scene = Scene::command(["/usr/bin/iperf3", "-s", "-B", "127.0.0.1", "-p", "5201"], |b| {
        b.publish_port(port(5201).mode(PortMode::Inject))
    });
    let host = scene.address(0).port().to_string();
    for way in [&[][..], &["-R"], &["-P", "4"], &["--bidir"]] {
        let client = || {
            let arguments = ["-c", "127.0.0.1", "-p", &host, "-n", "32M"];
            std::process::Command::new("iperf3").args(arguments).args(way).output().unwrap()
        };
        let mut output = client();
        common::until("iperf3 serves", Duration::from_secs(20), || {
            if !output.status.success() {
                output = client();
                eprintln!("{way:?} {output:?} {:?}", scene.sandbox.port_status());
            }
            output.status.success()
        });
        assert!(String::from_utf8_lossy(&output.stdout).contains("receiver"), "{way:?}: {output:?}");
    }
    // Not a byte of it went through the relay.
    let status = &scene.sandbox.port_status()[0];
    assert_eq!((status.mode, status.last_error.as_ref()), (PortMode::Inject, None), "{status:?}");
    assert!(status.bytes_in < 1 << 20 && status.bytes_out < 1 << 20, "{status:?}");
    scene.close();
    leaks.check();
}

#[test]
fn a_small_server_in_c_has_one_too() {
    let leaks = Leaks::watch();
    // Each connection is taken by a process of its own, executed with it as standard input and output.
    let scene = Scene::command(["/bin/busybox", "nc", "-ll", "-p", "80", "-e", "/bin/cat"], |b| {
        b.publish_port(port(80).mode(PortMode::Inject))
    });
    scene.serves_within(scene.address(0));
    for _ in 0..3 {
        assert_eq!(scene.ask(scene.address(0), "echo this"), "echo this");
    }
    // A client inside reaches the port under its own number.
    let inside = scene.sandbox.exec(["/bin/busybox", "sh", "-c", "echo inside | busybox nc 127.0.0.1 80"]);
    let inside = inside.stdin(Stdio::Null).stdout(Stdio::Piped).stderr(Stdio::Inherit).spawn().unwrap();
    assert_eq!(inside.communicate(b"", Some(Duration::from_secs(20))).unwrap().stdout, b"inside\n");
    drop(inside);
    scene.close();
    leaks.check();
}

#[test]
fn until_it_is_bound_a_port_is_relayed_or_closed() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let script = format!("{SERVE}\nsay('ready'); sys.stdin.readline()\nserve(bound('0.0.0.0', 80))");
    let mut scene = Scene::python(&script, |b| {
        b.publish_port(port(80)).publish_port(port(80).mode(PortMode::Inject)).stdin(Stdio::Piped)
    });
    assert_eq!(scene.line(), "ready");
    let modes = |scene: &Scene| scene.sandbox.port_status().iter().map(|status| status.mode).collect::<Vec<_>>();
    assert_eq!(modes(&scene), [PortMode::Relay, PortMode::Inject]);
    assert!(scene.is_refused(scene.address(1)));
    scene.say("go");
    assert_eq!(scene.line(), "bound");
    // The first of them is given to the program, the other leads to it.
    assert_eq!(modes(&scene), [PortMode::Inject, PortMode::Inject]);
    assert_eq!(scene.ask(scene.address(0), "a"), "A");
    scene.close();
    leaks.check();
}

#[test]
fn servers_come_and_go_as_with_a_port_of_their_own() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let script = format!(
        "{SERVE}
first = bound('0.0.0.0', 80)
for n in range(3):
    try:
        bound('127.0.0.1', 80); say('two')
    except OSError as e: say(errno.errorcode[e.errno])
    serve_one(first)
    first.close()
    say('closed'); sys.stdin.readline()
    first = bound(['0.0.0.0', '127.0.0.1', '0.0.0.0'][n], 80)
"
    );
    let mut scene = Scene::python(&script, |b| b.publish_port(port(80)).stdin(Stdio::Piped));
    for _ in 0..3 {
        assert_eq!(scene.line(), "bound");
        assert_eq!(scene.line(), "EADDRINUSE");
        assert_eq!(scene.ask(scene.address(0), "again"), "AGAIN");
        assert_eq!(scene.line(), "closed");
        assert!(scene.is_refused(scene.address(0)));
        scene.say("go");
    }
    scene.close();
    leaks.check();
}

#[test]
fn a_socket_may_be_watched_before_it_is_bound() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let script = format!(
        "{SERVE}
s = fresh(); e = select.epoll(); other = select.epoll()
os.dup2(s.fileno(), 200); s = socket.socket(fileno=200)
e.register(s, select.EPOLLIN); other.register(s, select.EPOLLIN | select.EPOLLET)
s.bind(('0.0.0.0', 80)); s.listen(); say('bound')
for n in range(3):
    say([(fd == s.fileno(), kind) for fd, kind in e.poll()], len(other.poll(5)))
    serve_one(s)
e.modify(s, select.EPOLLIN | select.EPOLLONESHOT)
e.poll(); serve_one(s)
e.unregister(s); say('removed'); sys.stdin.readline()
"
    );
    let mut scene = Scene::python(&script, |b| b.publish_port(port(80)).stdin(Stdio::Piped));
    assert_eq!(scene.line(), "bound");
    assert_eq!(scene.sandbox.port_status()[0].mode, PortMode::Inject, "{:?}", scene.sandbox.port_status());
    for _ in 0..3 {
        assert_eq!(scene.ask(scene.address(0), "x"), "X");
        assert_eq!(scene.line(), "[(True, 1)] 1");
    }
    assert_eq!(scene.ask(scene.address(0), "x"), "X");
    assert_eq!(scene.line(), "removed");
    assert_eq!(scene.sandbox.port_status()[0].last_error, None);
    scene.close();
    leaks.check();
}

#[test]
fn workers_that_share_a_port_all_get_clients() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let script = format!(
        "{SERVE}
for n in range(4):
    if os.fork() == 0:
        s = fresh(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        s.bind(('', 80)); s.listen(); say('bound')
        while True:
            c = s.accept()[0]; c.recv(9); c.sendall(str(os.getpid()).encode()); c.close()
os.wait()
"
    );
    let mut scene = Scene::python(&script, |b| b.publish_port(port(80)));
    for _ in 0..4 {
        assert_eq!(scene.line(), "bound");
    }
    let workers: std::collections::BTreeSet<_> = (0..64).map(|_| scene.ask(scene.address(0), "who")).collect();
    assert!(workers.len() > 1, "{workers:?}");
    assert_eq!(scene.sandbox.port_status()[0].mode, PortMode::Inject);
    scene.close();
    leaks.check();
}

#[test]
fn sockets_of_both_families_serve_both() {
    let leaks = Leaks::watch();
    if !has_python() || TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    // What is bound; for both host addresses, how the client looks to the server.
    let both = "s = fresh(6, 0); s.bind(('::', 80)); s.listen(); ss = [s]";
    let apart = "a = fresh(6, 1); a.bind(('::', 80)); a.listen(); b = fresh(); b.bind(('0.0.0.0', 80)); b.listen(); ss = [a, b]";
    let four = "s = fresh(); s.bind(('127.0.0.1', 80)); s.listen(); ss = [s]";
    for (binds, expected) in [
        (both, ["::ffff:127.0.0.1", "::ffff:127.0.0.1"]),
        (apart, ["127.0.0.1", "::1"]),
        (four, ["127.0.0.1", "127.0.0.1"]),
    ] {
        let script = format!(
            "{SERVE}
{binds}; say('bound')
while True:
    for s in select.select(ss, [], [])[0]:
        c, a = s.accept(); c.recv(9); c.sendall(a[0].encode()); c.close()
"
        );
        let mut scene = Scene::python(&script, |b| b.publish_port(on_loopback(80)));
        assert_eq!(scene.line(), "bound");
        let hosts = scene.sandbox.ports()[0].hosts();
        let seen = [0, 1].map(|n| scene.ask(hosts[n], "who"));
        assert_eq!(seen, expected, "{binds}: {:?}", scene.sandbox.port_status());
        // Inside, by both addresses.
        for address in ["127.0.0.1", "::1"].iter().take(if binds == four { 1 } else { 2 }) {
            let client = format!(
                "import socket\ns = socket.create_connection(('{address}', 80)); s.sendall(b'x'); print(s.recv(99))"
            );
            let client = scene.sandbox.exec(["/usr/bin/python3", "-c", &client]);
            let client = client.stdin(Stdio::Null).stdout(Stdio::Piped).stderr(Stdio::Inherit).spawn().unwrap();
            let output = client.communicate(b"", Some(Duration::from_secs(20))).unwrap();
            assert!(output.status.success(), "{binds}: {address}");
        }
        scene.close();
    }
    leaks.check();
}

#[test]
fn what_a_socket_was_told_before_it_keeps() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let script = format!(
        "{SERVE}
import fcntl
S, T = socket.SOL_SOCKET, socket.IPPROTO_TCP
options = [(S, socket.SO_KEEPALIVE, 1), (T, socket.TCP_NODELAY, 1), (T, socket.TCP_KEEPIDLE, 33),
    (S, socket.SO_RCVBUF, 70000), (S, socket.SO_SNDBUF, 50000), (T, socket.TCP_DEFER_ACCEPT, 1), (T, socket.TCP_FASTOPEN, 5),
    (socket.IPPROTO_IP, socket.IP_TOS, 16)]
def facts(s):
    flags = fcntl.fcntl(s, fcntl.F_GETFL), fcntl.fcntl(s, fcntl.F_GETFD)
    linger = s.getsockopt(S, socket.SO_LINGER, 8)
    return [s.getsockopt(level, name) for level, name, value in options], flags, linger
for blocking, inherit in [(False, False), (True, True)]:
    s = fresh(); s.setblocking(blocking); s.set_inheritable(inherit)
    if inherit: s.settimeout(None)
    else:
        for option in options: s.setsockopt(*option)
        s.setsockopt(S, socket.SO_LINGER, b'\\1\\0\\0\\0\\7\\0\\0\\0')
    before = facts(s); s.bind(('0.0.0.0', 80)); after = facts(s); s.close()
    say(before == after or (before, after))
"
    );
    let mut scene = Scene::python(&script, |b| b.publish_port(port(80)));
    assert_eq!(scene.line(), "True");
    assert_eq!(scene.line(), "True");
    assert_eq!(scene.sandbox.port_status()[0].mode, PortMode::Inject);
    scene.close();
    leaks.check();
}

#[test]
fn other_binds_are_as_ever() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let script = format!(
        "{SERVE}
def attempt(what):
    try: return what()
    except OSError as e: return errno.errorcode[e.errno]
s = fresh(); s.bind(('127.0.0.1', 81)); s.listen(); say(s.getsockname())
say(attempt(lambda: fresh().bind(('127.0.0.1', 81))))
say(attempt(lambda: s.bind(('127.0.0.1', 82))))
say(attempt(lambda: fresh().bind(('192.0.2.1', 80))))
say(attempt(lambda: fresh().bind(('192.0.2.1', 81))))
s = fresh(); s.bind(('127.0.0.1', 0)); say(s.getsockname()[1] > 0)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('0.0.0.0', 80)); say(u.getsockname())
n = socket.socket(socket.AF_UNIX); n.bind('/tmp/a-name-that-is-long-enough'); say(os.path.exists(n.getsockname()))
a = socket.socket(socket.AF_UNIX); a.bind('\\0abstract-and-long-enough'); say(len(a.getsockname()))
k = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); k.bind((0, 0)); say(k.getsockname()[0] > 0)
import ctypes; c = ctypes.CDLL(None, use_errno=True)
s = fresh()
say(c.bind(s.fileno(), ctypes.c_void_p(8), 16), errno.errorcode[ctypes.get_errno()])
say(c.bind(-1, b'x' * 16, 16), errno.errorcode[ctypes.get_errno()])
say(c.bind(0, b'x' * 16, 16), errno.errorcode[ctypes.get_errno()])
"
    );
    let mut scene = Scene::python(&script, |b| b.publish_port(port(80)));
    for expected in [
        "('127.0.0.1', 81)",
        "EADDRINUSE",
        "EINVAL",
        "EADDRNOTAVAIL",
        "EADDRNOTAVAIL",
        "True",
        "('0.0.0.0', 80)",
        "True",
        "25",
        "True",
        "-1 EFAULT",
        "-1 EBADF",
        "-1 ENOTSOCK",
    ] {
        assert_eq!(scene.line(), expected);
    }
    assert_eq!(scene.sandbox.port_status()[0].mode, PortMode::Relay);
    scene.close();
    leaks.check();
}

#[test]
fn what_is_executed_later_is_heard_too() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let scene = Scene::command(["/bin/sleep", "1000"], |b| b.injectable_ports(true));
    let later = scene.sandbox.publish(&[port(80).mode(PortMode::Inject)]).unwrap()[0].host();
    assert!(scene.is_refused(later));
    for round in 0..2 {
        let script = format!("{SERVE}\nserve(bound('0.0.0.0', 80))");
        let server = scene.sandbox.exec(["/usr/bin/python3", "-c", &script]);
        let server = server.stdin(Stdio::Null).stdout(Stdio::Null).stderr(Stdio::Inherit).spawn().unwrap();
        scene.serves_within(later);
        assert_eq!(scene.ask(later, "round"), "ROUND");
        assert_eq!(scene.sandbox.port_status()[0].mode, PortMode::Inject, "{round}");
        drop(server);
        assert!(scene.is_refused(later));
    }
    scene.sandbox.unpublish(later).unwrap();
    TcpListener::bind(later).unwrap();
    scene.close();

    let scene = Scene::command(["/bin/sleep", "1000"], |b| b);
    let error = scene.sandbox.publish(&[port(80).mode(PortMode::Inject)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("injectable_ports"), "{error}");
    let auto = scene.sandbox.publish(&[port(80)]).unwrap();
    assert_eq!(auto.len(), 1);
    let status = &scene.sandbox.port_status()[0];
    assert!(status.mode == PortMode::Relay && status.why.contains("injectable_ports"), "{status:?}");
    scene.close();
    leaks.check();
}

#[test]
fn a_port_can_be_taken_away_from_a_server() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let script = format!("{SERVE}\nserve(bound('0.0.0.0', 80))");
    let mut scene = Scene::python(&script, |b| b.publish_port(port(80)));
    assert_eq!(scene.line(), "bound");
    let address = scene.address(0);
    assert_eq!(scene.ask(address, "x"), "X");
    scene.sandbox.unpublish(address).unwrap();
    assert!(scene.is_refused(address));
    let other = TcpListener::bind(address).unwrap();
    assert_eq!(scene.sandbox.ports(), []);
    drop(other);
    scene.close();
    leaks.check();
}

#[test]
fn a_detached_server_keeps_its_socket_and_binds_like_any_other() {
    let leaks = Leaks::watch();
    if !has_python() {
        return;
    }
    let script = format!(
        "{SERVE}
first = bound('0.0.0.0', 80)
while True:
    serve_one(first)
    s = fresh(); s.bind(('127.0.0.1', 0)); n = socket.socket(socket.AF_UNIX); n.bind('\\0some-abstract-name'); n.close()
    try: fresh().bind(('0.0.0.0', 80))
    except OSError as e: assert e.errno == errno.EADDRINUSE, e
"
    );
    let mut scene = Scene::python(&script, |b| b.publish_port(port(80)).cgroup(false));
    assert_eq!(scene.line(), "bound");
    let address = scene.address(0);
    assert_eq!(scene.ask(address, "x"), "X");
    let left = scene.detach();
    for _ in 0..5 {
        assert_eq!(scene::ask(address, "left"), "LEFT");
    }
    left.end();
    assert!(scene::is_refused(address));
    leaks.check();
}

#[test]
fn an_ordinary_user_is_told_why_its_ports_are_relayed() {
    let leaks = Leaks::watch();
    if scene::can_lock() {
        return;
    }
    let plain = gpucontainer::net::PortMapping::tcp(80, 0);
    let scene = Scene::command(["/bin/sleep", "1000"], |b| b.publish_port(plain.clone()));
    let status = &scene.sandbox.port_status()[0];
    assert!(status.mode == PortMode::Relay && status.why.contains("CAP_NET_ADMIN"), "{status:?}");
    scene.close();
    let scene = Scene::command(["/bin/sleep", "1000"], |b| b.injectable_ports(true));
    let error = scene.sandbox.publish(&[plain.mode(PortMode::Inject)]).unwrap_err();
    assert!(error.kind() == ErrorKind::PermissionDenied && error.to_string().contains("unlocked"), "{error}");
    scene.close();
    leaks.check();
}

#[test]
fn power_over_networks_and_sockets_of_the_host_do_not_go_together() {
    let leaks = Leaks::watch();
    if !common::tier("root") {
        return;
    }
    let scene =
        Scene::command(["/bin/sleep", "1000"], |b| b.publish_port(port(80)).add_capability(Capability::NetAdmin));
    let status = &scene.sandbox.port_status()[0];
    assert!(status.mode == PortMode::Relay && status.why.contains("CAP_NET_ADMIN"), "{status:?}");
    scene.close();
    let fixture = fixture::Fixture::new();
    let wanted = fixture.shell("true").publish_port(port(80).mode(PortMode::Inject));
    let error = wanted.add_capability(Capability::NetAdmin).spawn().unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidArgument && error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    drop(fixture);
    leaks.check();
}
