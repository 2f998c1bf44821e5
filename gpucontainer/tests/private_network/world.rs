//! A host in a network namespace of a test's own, with a machine beside it that stands for everything outside.

use gpucontainer::net::NetworkMember;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How many hosts are over; servers end with theirs.
static OVER: AtomicUsize = AtomicUsize::new(0);

/// How long something that answers may take.
pub(crate) const LONG: Duration = Duration::from_secs(10);
/// How long something that is dropped is waited for.
pub(crate) const SHORT: Duration = Duration::from_millis(300);
pub(crate) const HOST: &str = "198.51.100.1";
pub(crate) const OUTSIDE: &str = "198.51.100.2";
pub(crate) const HOST6: &str = "2001:db8:99::1";
pub(crate) const OUTSIDE6: &str = "2001:db8:99::2";

/// Runs `test` on a host of its own; nothing where the tier is not there.
pub(crate) fn on_a_host(test: impl FnOnce(&World) + Send + 'static) {
    if !(crate::common::tier("root") && crate::common::tools("root", &["ip", "nft", "nsenter", "unshare"])) {
        return;
    }
    let thread = std::thread::spawn(|| {
        leave(rustix::thread::UnshareFlags::NEWNET);
        test(&World::new());
    });
    let result = thread.join();
    OVER.fetch_add(1, Ordering::SeqCst);
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Leaves a namespace of this thread alone, which ends after the test.
pub(crate) fn leave(kind: rustix::thread::UnshareFlags) {
    #[allow(deprecated, reason = "what is unsafe in its successor is to leave the table of descriptors")]
    rustix::thread::unshare(kind).unwrap();
}

pub(crate) struct World {
    outside: Child,
}

impl World {
    fn new() -> Self {
        let mut outside = Command::new("unshare")
            .args(["-n", "sh", "-c", "ip link set lo up && echo ready && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 6];
        outside.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        let world = Self { outside };
        run("ip link set lo up");
        run(&format!("ip link add wan type veth peer name lan netns {}", world.outside.id()));
        for address in [format!("{HOST}/24"), format!("{HOST6}/64 nodad")] {
            run(&format!("ip addr add {address} dev wan"));
        }
        run("ip link set wan up");
        for address in [format!("{OUTSIDE}/24"), format!("{OUTSIDE6}/64 nodad")] {
            world.run_outside(&format!("ip addr add {address} dev lan"));
        }
        world.run_outside("ip link set lan up");
        run(&format!("ip route add default via {OUTSIDE}"));
        run(&format!("ip -6 route add default via {OUTSIDE6}"));
        // Before Linux 6.17 the library does not make a host forward IPv6.
        let six = std::path::Path::new("/proc/sys/net/ipv6/conf");
        if !six.join("wan/force_forwarding").exists() {
            std::fs::write(six.join("all/forwarding"), "1").unwrap();
        }
        world
    }

    pub(crate) fn run_outside(&self, command: &str) {
        run(&format!("nsenter -n -t {} {command}", self.outside.id()));
    }

    /// Runs `what` in a thread on the machine outside.
    pub(crate) fn outside<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.outside.id())).unwrap();
        within(&namespace, what)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.outside.kill().unwrap();
        self.outside.wait().unwrap();
    }
}

/// Runs a command and asserts that it succeeds; what it prints.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `what` in a thread in a network namespace.
pub(crate) fn within<T: Send + 'static>(namespace: &impl AsFd, what: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = namespace.as_fd().try_clone_to_owned().unwrap();
    let thread = std::thread::spawn(move || {
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
        what()
    });
    thread.join().unwrap()
}

/// Runs a server's step again and again until its host is over.
fn until_over(mut step: impl FnMut() -> std::io::Result<()> + Send + 'static) {
    let begun = OVER.load(Ordering::SeqCst);
    std::thread::spawn(move || {
        while OVER.load(Ordering::SeqCst) == begun {
            match step() {
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
                // A client that is gone is no concern of the server.
                _ => {}
            }
        }
    });
}

/// A server that tells each client the address that it sees. It takes as many as come, until its host is over.
pub(crate) fn serve(address: impl Into<IpAddr>) -> SocketAddr {
    let listener = TcpListener::bind((address.into(), 0)).unwrap();
    let at = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    until_over(move || {
        let (mut stream, peer) = listener.accept()?;
        stream.write_all(peer.ip().to_string().as_bytes())?;
        stream.shutdown(Shutdown::Both)
    });
    at
}

/// The same by UDP.
pub(crate) fn serve_udp(address: impl Into<IpAddr>) -> SocketAddr {
    let socket = UdpSocket::bind((address.into(), 0)).unwrap();
    let at = socket.local_addr().unwrap();
    socket.set_nonblocking(true).unwrap();
    until_over(move || {
        let (_, peer) = socket.recv_from(&mut [0; 16])?;
        socket.send_to(peer.ip().to_string().as_bytes(), peer).map(drop)
    });
    at
}

/// What a server says, or why it does not.
pub(crate) fn ask(address: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(LONG))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The same by UDP.
pub(crate) fn ask_udp(address: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(patience))?;
    socket.send_to(b"?", address)?;
    let mut answer = [0; 64];
    let (length, _) = socket.recv_from(&mut answer)?;
    Ok(String::from_utf8(answer[..length].to_vec()).unwrap())
}

/// What a server says to a member.
pub(crate) fn ask_from(member: &NetworkMember, address: SocketAddr) -> String {
    within(member, move || ask(address, LONG)).unwrap()
}

/// Whether a member gets an answer.
pub(crate) fn reaches(member: &NetworkMember, address: SocketAddr) -> bool {
    within(member, move || ask(address, SHORT)).is_ok()
}
