//! Sandboxes in private networks and in networks of others, with and without user namespaces.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod fixture;
#[allow(dead_code, reason = "the tests of networks alone use the rest")]
#[path = "private_network/world.rs"]
mod world;

use common::{Leaks, Ordinary, until};
use fixture::{Fixture, role, say};
use gpucontainer::net::{NetworkNamespace, PrivateNetwork};
use gpucontainer::sandbox::{Capability, Network, SandboxBuilder, UserNamespace};
use gpucontainer::{ErrorKind, Sandbox};
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;
use world::{HOST, LONG, OUTSIDE, ask, on_a_host, run, serve, within};

const SERVER: &str = "cd /etc && exec busybox httpd -f -p 80";

fn private() -> Network {
    Network::Private(PrivateNetwork::named("sandboxes"))
}

/// All that a privileged host process can choose.
fn user_namespaces() -> [UserNamespace; 3] {
    [UserNamespace::Host, UserNamespace::Oneself, UserNamespace::Shifted { first: 100_000, count: 65_536 }]
}

/// What a script prints, and that it succeeds.
#[track_caller]
fn output(builder: SandboxBuilder) -> String {
    let sandbox = builder.spawn().unwrap();
    let output = sandbox.communicate(b"", Some(Duration::from_secs(30))).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn serves(sandbox: &Sandbox) {
    until("the server listens", LONG, || sandbox.dial(80, Some(LONG)).is_ok());
}

#[test]
fn sandboxes_of_a_network_find_each_other_by_name() {
    let leaks = Leaks::watch();
    on_a_host(|world| {
        let fixture = Fixture::new();
        for user_namespace in user_namespaces() {
            let web = fixture.shell(SERVER).name("web").hostname("shop.example").network(private());
            let web = web.user_namespace(user_namespace).publish(80, 0).spawn().unwrap();
            serves(&web);
            let client = |script: &str| {
                let builder = fixture.shell(script).name("client").network(private());
                output(builder.user_namespace(user_namespace))
            };
            for name in ["web", "shop.example"] {
                assert_eq!(
                    client(&format!("busybox wget -qO- http://{name}/inside")),
                    "inside\n",
                    "{user_namespace:?}"
                );
            }
            assert_eq!(
                client("hostname; cat /etc/hostname; busybox nslookup client >/dev/null 2>&1; true"),
                "client\nclient\n"
            );
            let hosts = client("cat /etc/hosts");
            let own: Vec<&str> = hosts.lines().filter(|line| line.ends_with("\tclient")).collect();
            assert_eq!(own.len(), 2, "{hosts}");
            assert!(hosts.contains("\tweb shop.example\n"), "{hosts}");
            assert!(client("echo more >> /etc/hosts; echo $?").ends_with("1\n"));
            // What is published, and what another process executes inside, work as in any other network.
            let mut published = std::net::TcpStream::connect(web.ports()[0].host()).unwrap();
            std::io::Write::write_all(&mut published, b"GET /inside HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = String::new();
            published.read_to_string(&mut answer).unwrap();
            assert!(answer.ends_with("inside\n"), "{answer}");
            let inside = web.exec([
                "sh",
                "-c",
                "busybox wget -qO- http://127.0.0.1/inside; cat /sys/class/net/eth0/address; ls /sys/class/net",
            ]);
            let inside = inside
                .stdout(gpucontainer::sandbox::Stdio::Piped)
                .spawn()
                .unwrap()
                .communicate(b"", Some(LONG))
                .unwrap();
            let inside = String::from_utf8(inside.stdout).unwrap();
            let IpAddr::V4(address) = web.addresses()[0] else { panic!("{web:?}") };
            let hardware = address.octets().map(|octet| format!("{octet:02x}")).join(":");
            assert_eq!(inside, format!("inside\n02:67:{hardware}\neth0\nlo\n"), "{user_namespace:?}");
            let outside = world.outside(|| serve(OUTSIDE.parse::<Ipv4Addr>().unwrap()));
            let reached = client(&format!("busybox nc {} {} </dev/null", outside.ip(), outside.port()));
            assert_eq!(reached, HOST, "{user_namespace:?}");
        }
    });
    leaks.check();
}

#[test]
fn names_come_and_go_in_running_sandboxes() {
    on_a_host(|_world| {
        let fixture = Fixture::new();
        let watcher = fixture.shell("sleep 1000").name("watcher").network(private()).spawn().unwrap();
        let hosts = || {
            let process =
                watcher.exec(["cat", "/etc/hosts"]).stdout(gpucontainer::sandbox::Stdio::Piped).spawn().unwrap();
            String::from_utf8(process.communicate(b"", Some(LONG)).unwrap().stdout).unwrap()
        };
        assert!(!hosts().contains("late"));
        let late = fixture.shell("sleep 1000").name("late").network(private()).spawn().unwrap();
        assert!(hosts().contains(&format!("{}\tlate\n", late.addresses()[0])));
        late.close().unwrap();
        assert!(!hosts().contains("late"));
    });
}

#[test]
fn nobody_in_a_user_namespace_changes_the_network() {
    on_a_host(|_world| {
        let fixture = Fixture::new();
        let attempts = "busybox ip addr add 10.88.99.99/32 dev eth0 && exit 1; busybox ip link set eth0 down && exit 2; \
                        busybox ip link set eth0 address 02:00:00:00:00:01 && exit 3; \
                        busybox ip route add 1.2.3.4/32 dev eth0 && exit 4; \
                        echo 1 > /proc/sys/net/ipv4/ip_forward && exit 5; echo done";
        for user_namespace in [UserNamespace::Oneself, UserNamespace::Shifted { first: 100_000, count: 65_536 }] {
            let builder = fixture.shell(attempts).network(private()).user_namespace(user_namespace);
            assert_eq!(output(builder.add_capability(Capability::NetAdmin)), "done\n");
        }
    });
}

#[test]
fn a_sandbox_joins_the_network_of_another() {
    let leaks = Leaks::watch();
    on_a_host(|_world| {
        let fixture = Fixture::new();
        for first in user_namespaces() {
            for network in [Network::None, private()] {
                let server =
                    fixture.shell(SERVER).name("first").network(network).user_namespace(first).spawn().unwrap();
                serves(&server);
                for second in user_namespaces() {
                    let joined = Network::Join(server.network_namespace().unwrap());
                    let script = "busybox wget -qO- http://127.0.0.1/inside; ls /sys/class/net | grep -c .";
                    let builder = fixture.shell(script).network(joined).user_namespace(second);
                    let devices = 1 + server.addresses().len() / 2;
                    assert_eq!(output(builder), format!("inside\n{devices}\n"), "{first:?} {second:?}");
                }
            }
        }
        // A namespace that no sandbox made, and that lives longer than whoever made it.
        let other = within(&std::fs::File::open("/proc/thread-self/ns/net").unwrap(), || {
            world::leave(rustix::thread::UnshareFlags::NEWNET);
            run("ip link set lo up");
            OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap())
        });
        let server = within(&other, || serve([127, 0, 0, 1]));
        let namespace = NetworkNamespace::from_fds(other, None);
        let script = format!("busybox nc 127.0.0.1 {} </dev/null", server.port());
        assert_eq!(output(fixture.shell(&script).network(Network::Join(namespace))), "127.0.0.1");
    });
    leaks.check();
}

/// The other test runs this one as another user. The network of another sandbox comes with its user namespace.
#[test]
fn an_ordinary_user_joins_the_network_of_a_sandbox() {
    if !common::tier("rootless") {
        return;
    }
    let leaks = Leaks::watch();
    let fixture = Fixture::new();
    let server = fixture.shell(SERVER).name("first").publish(80, 0).spawn().unwrap();
    serves(&server);
    let own = |name: &str| std::fs::read_link(format!("/proc/{}/ns/{name}", server.pid())).unwrap();
    let by_files = || {
        let open =
            |name: &str| OwnedFd::from(std::fs::File::open(format!("/proc/{}/ns/{name}", server.pid())).unwrap());
        NetworkNamespace::from_fds(open("net"), Some(open("user")))
    };
    for (init, namespace) in [(true, server.network_namespace().unwrap()), (false, by_files())] {
        let script = "busybox wget -qO- http://127.0.0.1/inside; ls /sys/class/net; busybox id -u; echo $$; echo a >/root/a && \
                      cat /root/a; hostname; for n in user net pid mnt uts ipc; do busybox readlink /proc/self/ns/$n; done";
        let network = Network::Join(namespace);
        let builder = fixture.builder().command(["/bin/busybox", "sh", "-c", script]);
        let text =
            output(builder.hostname("second").network(network).init(init).env("PATH", "/bin").time_offsets(5, 7));
        let mut lines = text.lines();
        let mut next = || lines.next().unwrap_or_default().to_owned();
        assert_eq!([next(), next(), next()], ["inside", "lo", "0"], "{text}");
        assert_eq!(next(), if init { "2" } else { "1" }, "{text}");
        assert_eq!([next(), next()], ["a", "second"], "{text}");
        for name in ["user", "net"] {
            assert_eq!(next(), own(name).to_string_lossy(), "{name}: {text}");
        }
        for name in ["pid", "mnt", "uts", "ipc"] {
            assert_ne!(next(), own(name).to_string_lossy(), "{name}: {text}");
        }
    }
    // What joins is a sandbox like any other: more is executed in it, it publishes, and it outlives the first one.
    let network = Network::Join(server.network_namespace().unwrap());
    let second = fixture.shell("cd /etc && exec busybox httpd -f -p 81").network(network).publish(81, 0);
    let plan = second.plan().unwrap().explain();
    assert!(plan.contains("enter a network that was given and its user namespace"), "{plan}");
    assert!(!plan.contains("new namespaces: user"), "{plan}");
    let second = second.spawn().unwrap();
    let gone = server.network_namespace().unwrap();
    until("the second listens", LONG, || server.dial(81, Some(LONG)).is_ok());
    server.close().unwrap();
    let mut published = std::net::TcpStream::connect(second.ports()[0].host()).unwrap();
    std::io::Write::write_all(&mut published, b"GET /inside HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    published.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("inside\n"), "{answer}");
    let inside = second.exec(["/bin/sh", "-c", "busybox wget -qO- http://127.0.0.1:81/inside"]);
    let inside = inside.stdout(gpucontainer::sandbox::Stdio::Piped).spawn().unwrap();
    assert_eq!(inside.communicate(b"", Some(LONG)).unwrap().stdout, b"inside\n");
    drop((inside, published));
    second.close().unwrap();
    // What cannot be is said, and nothing stays.
    let refused = |network: NetworkNamespace, kind: ErrorKind, words: &str| {
        let error = fixture.shell("true").network(Network::Join(network)).spawn().unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(gone, ErrorKind::Closed, "has ended");
    let file = |name: &str| OwnedFd::from(std::fs::File::open(format!("/proc/self/ns/{name}")).unwrap());
    refused(NetworkNamespace::from_fds(file("net"), None), ErrorKind::PermissionDenied, "user namespace that owns it");
    let host = NetworkNamespace::from_fds(file("net"), Some(file("user")));
    let error = fixture.shell("true").network(Network::Join(host)).spawn().unwrap_err();
    assert!(matches!(error.errno(), Some(1 | 22)), "{error:?}");
    drop(fixture);
    leaks.check();
}

#[test]
fn what_an_ordinary_user_joins_with_has_the_ids_of_the_first() {
    if !common::tier("subordinate") {
        return;
    }
    let fixture = Fixture::new();
    let first = fixture.shell("sleep 1000").user_namespace(UserNamespace::Subordinate).spawn().unwrap();
    let join = || Network::Join(first.network_namespace().unwrap());
    let script = "busybox id -u; busybox id -G; echo x >/tmp/x; busybox stat -c %u:%g /tmp/x /etc/passwd";
    for wanted in [UserNamespace::Auto, UserNamespace::Subordinate] {
        let second = fixture.shell(script).user("web").network(join()).user_namespace(wanted);
        assert_eq!(output(second), "33\n34\n33:34\n0:0\n", "{wanted:?}");
    }
    let other = fixture.shell("true").network(join()).user_namespace(UserNamespace::Oneself).spawn().unwrap_err();
    assert_eq!(other.kind(), ErrorKind::InvalidArgument, "{other}");
    assert!(other.to_string().contains("other ids than that of the network"), "{other}");
}

#[test]
fn an_ordinary_user_who_is_tried_by_root_joins_too() {
    if common::tier("root") {
        Ordinary::nobody().run("an_ordinary_user_joins_the_network_of_a_sandbox", &[]);
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_starts() {
    let leaks = Leaks::watch();
    let fixture = Fixture::new();
    let refused = |builder: SandboxBuilder| {
        let error = builder.spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    };
    refused(fixture.shell("true").network(Network::Private(PrivateNetwork::named("a/b"))));
    refused(fixture.shell("true").hostname("under_score!").network(private()));
    let own = OwnedFd::from(std::fs::File::open("/proc/self/ns/net").unwrap());
    let joined = Network::Join(NetworkNamespace::from_fds(own, None));
    refused(fixture.shell("true").sysctl("net.ipv4.tcp_syncookies", "0").network(joined));
    drop(fixture);
    leaks.check();
}

#[test]
fn parameters_of_the_network_are_set() {
    on_a_host(|_world| {
        let fixture = Fixture::new();
        let script = "cat /proc/sys/net/ipv4/tcp_syncookies /proc/sys/kernel/shmmni";
        for user_namespace in [UserNamespace::Host, UserNamespace::Shifted { first: 100_000, count: 65_536 }] {
            let builder = fixture.shell(script).network(private()).user_namespace(user_namespace);
            let builder = builder.sysctl("net.ipv4.tcp_syncookies", "0").sysctl("kernel.shmmni", "77");
            assert_eq!(output(builder), "0\n77\n");
        }
        let error = fixture.shell(script).network(private()).sysctl("net.ipv4.no_such", "1").spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        let error =
            fixture.shell(script).network(private()).sysctl("net.ipv4.tcp_syncookies", "x").spawn().unwrap_err();
        assert!(error.to_string().contains("tcp_syncookies"), "{error}");
        assert_eq!(open(), before, "nothing of it stays open");
        let plan = fixture.shell(script).network(private()).plan().unwrap().explain();
        assert!(plan.contains("start in private network sandboxes") && !plan.contains("loopback"), "{plan}");
    });
}

#[test]
#[ignore = "the other process of a test"]
fn other_process() {
    let fixture = Fixture::of_parent();
    if role().as_deref() == Some("way out") {
        let _sandbox = fixture.shell("sleep 1000").network(Network::Outbound).spawn().unwrap();
        say("out");
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        return;
    }
    let sandbox = fixture.shell("sleep 1000").name("other").network(private()).spawn().unwrap();
    say(&format!("address {}", sandbox.addresses()[0]));
    if role().as_deref() == Some("detached") {
        sandbox.detach().unwrap();
        say("detached");
        return;
    }
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn a_network_lives_as_long_as_its_sandboxes() {
    let leaks = Leaks::watch();
    on_a_host(|_world| {
        let fixture = Fixture::new();
        for kind in ["killed", "detached"] {
            let mut command = fixture.apart(kind);
            let command = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
            let mut other = command.spawn().unwrap();
            let mut lines = BufReader::new(other.stdout.take().unwrap()).lines().map(Result::unwrap);
            let address = lines.find_map(|line| line.strip_prefix("address ").map(str::to_owned)).unwrap();
            if kind == "killed" {
                other.kill().unwrap();
                other.wait().unwrap();
                until("its address is free", LONG, || {
                    let member = PrivateNetwork::named("sandboxes").join("probe").unwrap();
                    member.addresses()[0].to_string() == address
                });
                continue;
            }
            assert!(lines.any(|line| line == "detached"));
            other.wait().unwrap();
            // The supervisor has the network, and whoever comes finds it there.
            let member = PrivateNetwork::named("sandboxes").join("probe").unwrap();
            assert_ne!(member.addresses()[0].to_string(), address);
            let names = std::fs::read_to_string(member.hosts_file()).unwrap();
            assert!(names.contains(&format!("{address}\tother")), "{names}");
            let at: IpAddr = address.parse().unwrap();
            let refused = within(&member, move || ask(SocketAddr::new(at, 80), LONG)).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "the other one answers");
            let claim = member.hosts_file().with_file_name(format!("{address}.claim"));
            let note = std::fs::read_to_string(claim).unwrap();
            let supervisor = note.lines().rfind(|line| line.starts_with("holder")).unwrap().split(' ').nth(1).unwrap();
            run(&format!("kill -9 {supervisor}"));
            until("its address is free", LONG, || {
                let late = PrivateNetwork::named("sandboxes").join("late").unwrap();
                late.addresses()[0].to_string() == address
            });
        }
        let clean = || !run("ip -o link").contains("gpuc") && run("nft list ruleset").is_empty();
        until("the kernel has taken everything away", LONG, clean);
        gpucontainer::sandbox::collect_abandoned(&fixture.store).unwrap();
    });
    leaks.check();
}

/// The other test runs this one as another user.
#[test]
fn refused_without_privilege() {
    if !common::tier("rootless") {
        return;
    }
    let fixture = Fixture::new();
    let error = fixture.shell("true").network(private()).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
}

#[test]
fn without_privilege_it_is_refused() {
    if common::tier("root") {
        Ordinary::nobody().run("refused_without_privilege", &[]);
    }
}

/// How long the end of what was killed may take.
const SOON: Duration = Duration::from_millis(800);
/// Where the other test's server is.
const SERVER_OUTSIDE: &str = "GPUC_TEST_OUTSIDE";
/// A server on the host's loopback, and on all addresses of the host.
const SERVER_HOST: &str = "GPUC_TEST_HOST";

/// How many living processes of the caller give a way out.
fn running() -> usize {
    let line = |status: &str, name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
    };
    let own = line(&std::fs::read_to_string("/proc/self/status").unwrap(), "Uid:");
    let statuses = std::fs::read_dir("/proc").unwrap().flatten();
    let statuses = statuses.filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok());
    let mine = statuses.filter(|status| {
        let name = line(status, "Name:");
        let called = name.starts_with("pasta") || name.starts_with("passt");
        called && line(status, "Uid:") == own && !line(status, "State:").starts_with('Z')
    });
    mine.count()
}

/// The other test runs this one as another user, on a host of its own.
#[test]
fn way_out() {
    let (Ok(outside), Ok(host)) = (std::env::var(SERVER_OUTSIDE), std::env::var(SERVER_HOST)) else {
        return;
    };
    let fixture = Fixture::new();
    let ask = |address: &str| {
        let script = format!("busybox timeout 5 busybox nc -w 2 {} </dev/null; true", address.replace(':', " "));
        output(fixture.shell(&script).network(Network::Outbound))
    };
    let reaches = || {
        // A slow pasta may say the same data to the container several times over.
        let told = ask(&outside);
        assert!(!told.is_empty() && told.replace(HOST, "").is_empty(), "{told}");
    };
    reaches();
    for address in host.split(',') {
        assert_eq!(ask(address), "", "{address} is reached");
    }
    let server = fixture.shell(SERVER).network(Network::Outbound).publish(80, 0).spawn().unwrap();
    serves(&server);
    let start = std::time::Instant::now();
    while running() != 1 {
        assert!(start.elapsed() < SOON, "{} are running", running());
    }
    let resolver =
        server.exec(["cat", "/etc/resolv.conf"]).stdout(gpucontainer::sandbox::Stdio::Piped).spawn().unwrap();
    let resolver = String::from_utf8(resolver.communicate(b"", Some(LONG)).unwrap().stdout).unwrap();
    assert!(resolver.starts_with("nameserver 169.254.1.1\n"), "{resolver}");
    server.close().unwrap();
    until("pasta has ended", SOON, || running() == 0);
    // Whatever has become of a process that was killed, the next start ends what it had.
    let mut command = fixture.apart("way out");
    let mut other = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "out"));
    other.kill().unwrap();
    other.wait().unwrap();
    let started = std::time::Instant::now();
    loop {
        // The supervisor may live on for a moment.
        reaches();
        let start = std::time::Instant::now();
        while running() > 0 && start.elapsed() < SOON {}
        if running() == 0 {
            break;
        }
        assert!(started.elapsed() < LONG, "it still runs");
    }
    let plan = fixture.shell("true").network(Network::Outbound).plan().unwrap().explain();
    assert!(plan.contains("wait for a way out"), "{plan}");
}

#[test]
fn pasta_gives_ordinary_users_a_way_out() {
    if !common::tools("pasta", &["pasta", "setpriv"]) {
        return;
    }
    let leaks = Leaks::watch();
    on_a_host(|world| {
        // Some hosts let only root make tunnels, and most let everybody.
        world::leave(rustix::thread::UnshareFlags::NEWNS);
        run("mount --make-rprivate /");
        run("mount -t tmpfs none /dev/net");
        run("mknod -m 666 /dev/net/tun c 10 200");
        let outside = world.outside(|| serve(OUTSIDE.parse::<Ipv4Addr>().unwrap())).to_string();
        let (loopback, everywhere) = (serve([127, 0, 0, 1]).port(), serve([0; 4]).port());
        let gateway = "198.51.100.2";
        let targets = [
            format!("127.0.0.1:{loopback}"),
            format!("127.0.0.1:{everywhere}"),
            format!("{HOST}:{everywhere}"),
            format!("{gateway}:{everywhere}"),
            format!("169.254.1.1:{everywhere}"),
        ];
        let environment = [(SERVER_OUTSIDE, outside), (SERVER_HOST, targets.join(","))];
        let environment = environment.each_ref().map(|(name, value)| (*name, std::ffi::OsStr::new(value)));
        Ordinary::nobody().run("way_out", &environment);
    });
    leaks.check();
}

#[test]
fn a_privileged_process_is_told_what_to_choose_instead() {
    if common::tier("root") {
        let error = Fixture::new().shell("true").network(Network::Outbound).spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
}
