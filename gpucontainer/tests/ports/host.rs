//! What relays do to the process that they are in, and what they need of it.

use crate::common::{self, Leaks};
use crate::container::{self, Container};
use crate::{SHORT, connect, may_run, publish};
use gpucontainer::ErrorKind;
use gpucontainer::net::{PortMapper, PortMapping};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

fn status_line(name: &str) -> String {
    let text = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    text.lines().find(|line| line.starts_with(name)).unwrap().to_owned()
}

#[test]
fn the_host_process_notices_nothing() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let server = container.serve("127.0.0.1:8888");
    let watched = ["SigBlk", "SigPnd", "ShdPnd", "Uid", "Gid", "CapEff", "CapPrm", "Umask", "NoNewPrivs"];
    let state = || {
        let lines: Vec<String> = watched.iter().map(|name| status_line(name)).collect();
        let links =
            ["net", "user", "mnt"].map(|kind| std::fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap());
        (lines, links, rustix::process::dumpable_behavior().unwrap(), std::env::current_dir().unwrap())
    };
    let before = state();
    let namespace = container.namespace();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    drop(namespace.dial(8888, Some(SHORT)).unwrap());
                }
            });
        }
        // A host that waits for any child of its own sees none of the library's.
        for _ in 0..400 {
            assert!(namespace.dial(8888, Some(SHORT)).is_ok());
            let options = rustix::process::WaitIdOptions::EXITED
                | rustix::process::WaitIdOptions::NOWAIT
                | rustix::process::WaitIdOptions::NOHANG;
            assert!(rustix::process::waitid(rustix::process::WaitId::All, options).unwrap().is_none());
        }
    });
    assert_eq!(state(), before);
    drop((server, container, namespace));
    leaks.check();
}

/// The suite once more as a user without any privilege, in case this run is root's.
#[test]
fn everything_works_without_privilege() {
    if !common::is_root() || std::env::var_os("GPUC_TEST_SERVE").is_some() {
        return;
    }
    let leaks = Leaks::watch();
    if !common::tools("rootless", &["setpriv", "unshare"]) {
        return;
    }
    let directory = tempfile::Builder::new().prefix("gpuc-ports-").tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = directory.path().join("ports");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
        .arg(&program)
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("ports_can_be_dialled_without_being_published ... ok"), "{text}");
    drop(directory);
    leaks.check();
}

#[test]
fn a_privileged_port_is_named() {
    if common::is_root() {
        return;
    }
    let start: u16 =
        std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap().trim().parse().unwrap();
    if start <= 1 {
        common::skip("rootless", "no port of this host is privileged");
        return;
    }
    let error = PortMapper::new().reserve(&[PortMapping::tcp(80, start - 1)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(error.to_string().contains(&format!("port {} is privileged", start - 1)), "{error}");
}

#[test]
fn clients_wait_while_descriptors_are_short() {
    let leaks = Leaks::watch();
    if !may_run() || !common::tools("root", &["prlimit"]) {
        return;
    }
    let container = Container::start();
    let server = container.serve("127.0.0.1:8888");
    let mut apart = container.relay_apart(8888, 40);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, container::said(&mut apart).parse::<u16>().unwrap()));
    let mut clients: Vec<TcpStream> = (0..60).map(|_| connect(address)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        write!(client, "E{number:02}").unwrap();
    }
    let mut echo = [0; 2];
    clients[0].read_exact(&mut echo).unwrap();
    // Some are served, the others neither refused nor waited for in a circle.
    let served = |client: &TcpStream| client.peek(&mut [0]).is_ok();
    for client in &clients {
        client.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    }
    let first = clients.iter().skip(1).filter(|client| served(client)).count();
    assert!((5..20).contains(&first), "{first} of 60 were served with 40 descriptors");
    let before = container::cpu_ticks(&apart);
    std::thread::sleep(Duration::from_millis(500));
    let used = container::cpu_ticks(&apart) - before;
    assert!(used < 15, "{used} hundredths of a second of half a second were spent on waiting");
    for (number, mut client) in clients.into_iter().enumerate().skip(1) {
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        client.read_exact(&mut echo).unwrap();
        assert_eq!(echo, *format!("{number:02}").as_bytes());
    }
    drop(apart.stdin.take());
    let status = container::said(&mut apart);
    assert!(status.contains("accepted: 60") && status.contains("refused: 0"), "{status}");
    assert!(status.contains("EMFILE"), "{status}");
    apart.wait().unwrap();
    drop((apart, server, container));
    leaks.check();
}

#[test]
fn the_thread_takes_no_signals() {
    let leaks = Leaks::watch();
    if !may_run() {
        return;
    }
    let container = Container::start();
    let published = publish(&container, 8888);
    let mut masks = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let text = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
        if text.contains("gpuc-relay") {
            let mask = text.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
            masks.push(u64::from_str_radix(mask.trim(), 16).unwrap());
        }
    }
    assert_eq!(masks.len(), 1);
    for signal in (1..=31).filter(|signal| ![9, 19].contains(signal)) {
        assert_ne!(masks[0] & (1 << (signal - 1)), 0, "signal {signal} is not blocked");
    }
    drop((published, container));
    leaks.check();
}

#[test]
fn descriptors_are_closed_on_exec() {
    let leaks = Leaks::watch();
    let reservation = PortMapper::new().reserve(&[PortMapping::tcp(80, 0)]).unwrap();
    for (_, socket) in reservation.into_sockets() {
        let flags = rustix::io::fcntl_getfd(socket.as_fd()).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
    leaks.check();
}
