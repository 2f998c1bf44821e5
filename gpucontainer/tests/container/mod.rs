//! The containers of the port tests: a network namespace, and servers in it.

#![allow(dead_code, reason = "every test binary uses a part of this")]

use gpucontainer::net::NetworkNamespace;
use std::hash::{DefaultHasher, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Whether the tier of this run is there: root, or another user with user namespaces.
pub(crate) fn may_run() -> bool {
    crate::common::tier(if crate::common::is_root() { "root" } else { "rootless" })
        && crate::common::tools("root", &["unshare", "ip", "nsenter"])
}

/// A client for which a hang is a failure with a place in it.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// Sends a request, ends writing, and reads the answer to its end.
pub(crate) fn exchange(mut stream: TcpStream, request: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(request)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// A process that does nothing in namespaces of its own.
pub(crate) struct Container {
    holder: Child,
}

impl Container {
    pub(crate) fn start() -> Self {
        let kinds = if crate::common::is_root() { "-n" } else { "-Urn" };
        let script = "ip link set lo up && echo ready && exec cat";
        let mut holder = Command::new("unshare")
            .args([kinds, "sh", "-c", script])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(first_line(&mut holder), "ready");
        Self { holder }
    }

    pub(crate) fn namespace(&self) -> NetworkNamespace {
        NetworkNamespace::of_process(pidfd(self.holder.id()))
    }

    pub(crate) fn namespace_by_fds(&self) -> NetworkNamespace {
        let open = |kind| OwnedFd::from(std::fs::File::open(format!("/proc/{}/ns/{kind}", self.holder.id())).unwrap());
        NetworkNamespace::from_fds(open("net"), Some(open("user")))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Starts a server inside and waits until it listens.
    pub(crate) fn serve(&self, address: &str) -> Server {
        let mut child = self.run(address);
        assert_eq!(said(&mut child), "listening");
        Server(child)
    }

    /// Starts this program inside with something for [`serve_forever`].
    pub(crate) fn run(&self, what: &str) -> Child {
        let kinds: &[&str] = if crate::common::is_root() { &["-n"] } else { &["-U", "-n", "--preserve-credentials"] };
        Command::new("nsenter")
            .args(["-t", &self.holder.id().to_string()])
            .args(kinds)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "serve", "--ignored", "--nocapture"])
            .env("GPUC_TEST_SERVE", what)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

impl Container {
    /// A process of its own that publishes a port, with so many descriptors. It prints the host's port, and when its
    /// input ends, the status.
    pub(crate) fn relay_apart(&self, port: u16, descriptors: u32) -> Child {
        Command::new("prlimit")
            .arg(format!("--nofile={descriptors}"))
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "relay_apart", "--ignored", "--nocapture"])
            .env("GPUC_TEST_RELAY", format!("{} {port}", self.holder.id()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// The processor time that a process has used, in hundredths of a second.
pub(crate) fn cpu_ticks(child: &Child) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Prints a line past what the harness keeps.
pub(crate) fn say(line: &str) {
    std::io::stdout().write_all(format!("\nsaid {line}\n").as_bytes()).unwrap();
}

/// The next line that [`say`] printed in the child, among what the harness prints.
pub(crate) fn said(child: &mut Child) -> String {
    loop {
        if let Some(line) = first_line(child).strip_prefix("said ") {
            return line.to_owned();
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.holder.kill().unwrap();
        self.holder.wait().unwrap();
    }
}

/// A server in a container, killed when dropped.
pub(crate) struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

pub(crate) fn pidfd(pid: u32) -> OwnedFd {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
}

/// The next line that a child prints, read byte for byte so that the line after it stays in the pipe.
pub(crate) fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    let output = child.stdout.as_mut().unwrap();
    let read = BufReader::with_capacity(1, output).read_line(&mut line).unwrap();
    assert_ne!(read, 0, "it ended without a word");
    line.trim_end().to_owned()
}

/// Bytes that repeat nowhere soon, the same for the same seed.
pub(crate) fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut data = Vec::with_capacity(bytes + 8);
    while data.len() < bytes {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(bytes);
    data
}

/// 64 bits that depend on every byte and its place, in hexadecimal. Not SHA-256: without optimisation that takes seconds.
pub(crate) fn hash(bytes: &[u8]) -> Vec<u8> {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    format!("{:016x}", hasher.finish()).into_bytes()
}

/// Serves every connection in a thread of its own. The first byte of a connection says what is wanted. `udp ADDRESS` sends
/// every datagram back, with the number of the client's port as the server sees it in front, and `proxy ADDRESS` says first what a header of the
/// PROXY protocol has said. `ask ADDRESS` is a client of UDP: it sends a question and says the answer.
pub(crate) fn serve_forever(address: &str) {
    if let Some(address) = address.strip_prefix("udp ") {
        return send_back(&UdpSocket::bind(address).unwrap());
    }
    if let Some(address) = address.strip_prefix("ask ") {
        return ask_once(address);
    }
    let (proxied, address) = match address.strip_prefix("proxy ") {
        Some(address) => (true, address),
        None => (false, address),
    };
    let listener = TcpListener::bind(address).unwrap();
    // The standard library asks for a queue of 128. Beyond that the kernel drops handshakes, and when a loaded machine
    // lets them wait it resets connections, which no relay can mend.
    rustix::net::listen(&listener, 4096).unwrap();
    say("listening");
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        // A client that is gone is no concern of the server.
        std::thread::spawn(move || drop(serve_one(stream, proxied)));
    }
}

fn ask_once(address: &str) {
    let socket = UdpSocket::bind(if address.starts_with('[') { "[::1]:0" } else { "127.0.0.1:0" }).unwrap();
    socket.connect(address).unwrap();
    socket.send(b"a question").unwrap();
    let mut answer = [0; 64];
    let bytes = socket.recv(&mut answer).unwrap();
    say(std::str::from_utf8(&answer[..bytes]).unwrap());
}

fn send_back(socket: &UdpSocket) {
    say("listening");
    let mut buffer = vec![0; 65536];
    loop {
        let (bytes, client) = socket.recv_from(&mut buffer).unwrap();
        let mut answer = client.port().to_be_bytes().to_vec();
        answer.extend_from_slice(&buffer[..bytes]);
        // The largest datagram has no room for the two bytes more.
        answer.truncate(65507);
        socket.send_to(&answer, client).unwrap();
    }
}

/// Reads a header of the PROXY protocol, version 2, as a server would, and says what is in it.
fn read_header(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut start = [0; 16];
    stream.read_exact(&mut start)?;
    assert_eq!(start[..13], *b"\r\n\r\n\0\r\nQUIT\n\x21");
    let mut rest = vec![0; usize::from(u16::from_be_bytes([start[14], start[15]]))];
    stream.read_exact(&mut rest)?;
    let width = if start[13] == 0x11 { 4 } else { 16 };
    let address = |at: usize| match <[u8; 4]>::try_from(&rest[at..at + width]) {
        Ok(four) => std::net::IpAddr::from(four),
        Err(_) => std::net::IpAddr::from(<[u8; 16]>::try_from(&rest[at..at + width]).unwrap()),
    };
    let port = |at: usize| u16::from_be_bytes([rest[2 * width + at], rest[2 * width + at + 1]]);
    let end = |at: usize, number: usize| std::net::SocketAddr::new(address(at), port(number));
    Ok(format!("{} to {}: ", end(0, 0), end(width, 2)))
}

fn serve_one(mut stream: TcpStream, proxied: bool) -> std::io::Result<()> {
    if proxied {
        let header = read_header(&mut stream)?;
        stream.write_all(header.as_bytes())?;
    }
    let mut wanted = [0];
    stream.read_exact(&mut wanted)?;
    match wanted[0] {
        // Everything back as it comes.
        b'E' => {
            std::io::copy(&mut stream.try_clone()?, &mut stream)?;
        }
        // The hash of everything, after the client's end.
        b'H' => {
            let mut all = Vec::new();
            stream.read_to_end(&mut all)?;
            stream.write_all(&hash(&all))?;
        }
        // So many bytes of the pattern.
        b'S' => {
            let mut bytes = [0; 8];
            stream.read_exact(&mut bytes)?;
            stream.write_all(&pattern(7, usize::try_from(u64::from_le_bytes(bytes)).unwrap()))?;
        }
        // Who it is.
        b'N' => stream.write_all(std::process::id().to_string().as_bytes())?,
        // Who the client is.
        b'W' => {
            let client = stream.peer_addr()?.to_string();
            stream.write_all(client.as_bytes())?;
        }
        // A word, and the end.
        b'G' => stream.write_all(b"greeting")?,
        // A reset.
        b'R' => rustix::net::sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO))?,
        other => panic!("what is {other}?"),
    }
    if wanted[0] != b'R' {
        stream.shutdown(Shutdown::Write)?;
    }
    Ok(())
}
