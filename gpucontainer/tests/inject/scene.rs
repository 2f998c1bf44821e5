//! A sandbox with a server, and clients outside.

#![allow(unsafe_code, reason = "kills what was left to itself, and filters what a socket gets")]
#![allow(dead_code, reason = "every test binary uses a part of this")]

use crate::common;
use crate::fixture::Fixture;
use gpucontainer::Sandbox;
use gpucontainer::net::PortMapping;
use gpucontainer::sandbox::{Mount, SandboxBuilder, Stdio};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// What scripts inside begin with: servers that answer a word in capital letters.
pub(crate) const SERVE: &str = "
import errno, os, select, socket, sys, threading
def say(*words): print(*words, flush=True)
def fresh(version=4, only=None):
    s = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET)
    if only is not None: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
    return s
def bound(address, port):
    s = fresh(6 if ':' in address else 4)
    s.bind((address, port)); s.listen(); say('bound')
    return s
def serve_one(s):
    c, a = s.accept(); c.sendall(c.recv(99).upper()); c.close()
def serve(s):
    while True: serve_one(s)
";

/// Two workers, each with sockets of its own; as an ordinary user one, since nginx would change to other groups.
const NGINX: &str = "
daemon off; pid /tmp/nginx.pid; error_log stderr; user root root; events {}
http {
    access_log off;
    client_body_temp_path /tmp/1; proxy_temp_path /tmp/2; fastcgi_temp_path /tmp/3; uwsgi_temp_path /tmp/4; scgi_temp_path /tmp/5;
    server { listen 80 reuseport; listen [::]:80 reuseport; location / { return 200 \"nginx $pid\"; } }
}
";

/// Whether the host has the Python that is shown inside; if not, says so.
pub(crate) fn has_python() -> bool {
    let there = Path::new("/usr/bin/python3").exists();
    if !there {
        common::skip("python", "/usr/bin/python3 is not installed");
    }
    there
}

/// Whether this user may lock sockets, which attacks on locks are about; if not, says so.
pub(crate) fn may_lock() -> bool {
    let may = can_lock();
    if !may {
        common::skip("root", "this kernel lets only CAP_NET_ADMIN lock sockets");
    }
    may
}

pub(crate) fn can_lock() -> bool {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let all = libc::sock_filter { code: 6, jt: 0, jf: 0, k: u32::MAX };
    let program = libc::sock_fprog { len: 1, filter: (&raw const all).cast_mut() };
    let length = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).unwrap();
    let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    // SAFETY: the kernel reads the program, which outlives the call.
    unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const program).cast(), length) == 0 }
}

/// A port of the container on any of the host's, to be had by whoever runs the test.
pub(crate) fn port(container: u16) -> PortMapping {
    on_loopback(container).address(std::net::Ipv4Addr::LOCALHOST.into())
}

/// The same on both loopback addresses, as ports are by default.
pub(crate) fn on_loopback(container: u16) -> PortMapping {
    PortMapping::tcp(container, 0).unlocked(!can_lock())
}

pub(crate) struct Scene {
    fixture: Fixture,
    pub(crate) sandbox: Sandbox,
    stdout: BufReader<std::fs::File>,
    stdin: Option<std::fs::File>,
}

impl Scene {
    pub(crate) fn python(script: &str, more: impl FnOnce(SandboxBuilder) -> SandboxBuilder) -> Self {
        Self::command(["/usr/bin/python3", "-c", script], more)
    }

    pub(crate) fn command<const N: usize>(
        command: [&str; N],
        more: impl FnOnce(SandboxBuilder) -> SandboxBuilder,
    ) -> Self {
        let fixture = Fixture::with(|image| {
            let image = image.symlink("usr/lib", "/lib").symlink("usr/lib64", "/lib64");
            image.file("/etc/group", "root:x:0:\n", 0o644).file("/etc/nginx.conf", NGINX, 0o644)
        });
        let builder = fixture.builder().command(command).stderr(Stdio::Inherit);
        let builder = builder.mount(Mount::bind("/usr", "/usr").read_only()).mount(Mount::tmpfs("/tmp"));
        let sandbox = more(builder).spawn().unwrap();
        let stdout = BufReader::new(sandbox.take_stdout().unwrap().into());
        let stdin = sandbox.take_stdin().map(Into::into);
        Self { fixture, sandbox, stdout, stdin }
    }

    pub(crate) fn address(&self, number: usize) -> SocketAddr {
        self.sandbox.ports()[number].host()
    }

    /// The next line of the program inside.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "it ended without a word");
        line.trim_end().to_owned()
    }

    /// Tells the program inside.
    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub(crate) fn is_refused(&self, address: SocketAddr) -> bool {
        is_refused(address)
    }

    /// Waits until the port is the program's own.
    pub(crate) fn serves_within(&self, address: SocketAddr) {
        let injected = || {
            let status = self.sandbox.port_status();
            let status = status.iter().find(|status| status.port.host() == address).unwrap();
            status.mode == gpucontainer::net::PortMode::Inject && !self.is_refused(address)
        };
        common::until("the server listens", Duration::from_secs(20), injected);
    }

    /// Says a word, ends, and returns the answer.
    pub(crate) fn ask(&self, address: SocketAddr, word: &str) -> String {
        ask(address, word)
    }

    /// Leaves the program to itself.
    pub(crate) fn detach(self) -> Left {
        let Self { fixture, sandbox, stdout, stdin } = self;
        let pidfd = sandbox.as_fd().try_clone_to_owned().unwrap();
        let pid = sandbox.pid();
        sandbox.detach().unwrap();
        drop((stdout, stdin));
        Left { fixture, pid, pidfd }
    }

    pub(crate) fn http(&self, address: SocketAddr, path: &str) -> String {
        self.ask(address, &format!("GET {path} HTTP/1.0\r\n\r\n"))
    }

    pub(crate) fn close(self) {
        let Self { fixture, sandbox, stdout, stdin } = self;
        sandbox.close().unwrap();
        drop((stdout, stdin, fixture));
    }
}

/// A program that was left to itself.
pub(crate) struct Left {
    fixture: Fixture,
    pid: i32,
    /// Of its supervisor.
    pidfd: OwnedFd,
}

impl Left {
    /// Kills it, and waits until nothing of it is left.
    pub(crate) fn end(self) {
        // SAFETY: the supervisor collects the process only when it has ended, and then ends itself.
        assert_eq!(unsafe { libc::kill(self.pid, libc::SIGKILL) }, 0);
        let all = rustix::process::WaitIdOptions::EXITED;
        rustix::process::waitid(rustix::process::WaitId::PidFd(self.pidfd.as_fd()), all).unwrap();
        gpucontainer::sandbox::collect_abandoned(&self.fixture.store).unwrap();
    }
}

pub(crate) fn is_refused(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
}

pub(crate) fn ask(address: SocketAddr, word: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(word.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
