//! What a published port costs: connections, bulk data and datagrams through the relay, through docker-proxy, and to a
//! plain socket of the host as the floor, in turn.
//!
//! Everything runs in network namespaces that are made for it: a "host" and a "container", with a veth pair between them
//! for docker-proxy, which needs one. Processor time is that of client, server and forwarder together, from
//! `/proc/PID/stat`, and in brackets the forwarder's own. Needs root, `ip`, `unshare`, `nsenter` and Debian's `docker.io`.
//!
//! ```text
//! relays [ROUNDS]
//! ```

use gpucontainer::net::{NetworkNamespace, PortMapper, PortMapping};
use gpucontainer_benches::Result;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const CONNECTIONS: u32 = 10_000;
const DATAGRAMS: u32 = 96_000;
/// Datagrams under way at a time: one alone would measure how two processors wake each other.
const WINDOW: u32 = 32;
const BULK_BYTES: u64 = 1 << 30;
const REQUEST_BYTES: usize = 100;
const ANSWER_BYTES: usize = 1024;
const DOCKER_PROXY: &str = "/usr/sbin/docker-proxy";
const CONTAINER: &str = "10.99.0.2";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["serve", address] => serve(address),
        ["relay", pid] => relay(pid),
        ["inside", rounds] => rounds.parse().map_err(words_of).and_then(compare),
        [] => again("5"),
        [rounds] => again(rounds),
        _ => Err("relays [ROUNDS]".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("relays: {why}");
            ExitCode::FAILURE
        }
    }
}

fn words_of(error: impl Display) -> String {
    error.to_string()
}

/// Runs this program in a network namespace of its own, so that nothing of the host's is touched.
fn again(rounds: &str) -> Result<()> {
    let program = std::env::current_exe().map_err(words_of)?;
    let status = Command::new("unshare").arg("-n").arg(program).args(["inside", rounds]).status().map_err(words_of)?;
    if status.success() { Ok(()) } else { Err(format!("unshare -n: {status}")) }
}

/// A server: the first byte of a connection says what is wanted; datagrams come back as they are.
fn serve(address: &str) -> Result<()> {
    run("ip", &["link", "set", "lo", "up"])?;
    let address: SocketAddr = address.parse().map_err(words_of)?;
    let datagrams = UdpSocket::bind(address).map_err(words_of)?;
    let listener = TcpListener::bind(address).map_err(words_of)?;
    println!("listening");
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((bytes, client)) = datagrams.recv_from(&mut buffer) {
            let _ = datagrams.send_to(buffer.get(..bytes).unwrap_or_default(), client);
        }
    });
    let mut buffer = vec![0; 256 << 10];
    for stream in listener.incoming() {
        // A client that is gone is no concern of the server.
        let _ = stream.and_then(|stream| answer(stream, &mut buffer));
    }
    Ok(())
}

fn answer(mut stream: TcpStream, buffer: &mut [u8]) -> std::io::Result<()> {
    let mut request = [0; REQUEST_BYTES];
    stream.read_exact(&mut request)?;
    match request[0] {
        b'c' => stream.write_all(&[b'a'; ANSWER_BYTES]),
        b'w' => {
            while stream.read(buffer)? > 0 {}
            stream.write_all(b"done")
        }
        _ => {
            let mut left = BULK_BYTES;
            while left > 0 {
                let bytes = left.min(buffer.len() as u64);
                stream.write_all(buffer.get(..usize::try_from(bytes).unwrap_or_default()).unwrap_or_default())?;
                left -= bytes;
            }
            Ok(())
        }
    }
}

/// Publishes ports of a process's network namespace until its input ends.
fn relay(pid: &str) -> Result<()> {
    let open = |kind| std::fs::File::open(format!("/proc/{pid}/ns/{kind}")).map(OwnedFd::from).map_err(words_of);
    let namespace = NetworkNamespace::from_fds(open("net")?, None);
    let mappings = [PortMapping::tcp(80, 7000), PortMapping::udp(80, 7000)];
    let published = PortMapper::new().reserve(&mappings).map_err(words_of)?.relay(namespace).map_err(words_of)?;
    println!("listening");
    std::io::stdin().read_to_end(&mut Vec::new()).map_err(words_of)?;
    drop(published);
    Ok(())
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status().map_err(|e| format!("{program}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{program} {arguments:?}: {status}")) }
}

/// A process that ends with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts this program, perhaps through another one, and waits until it says that it listens.
    fn start(through: &[&str], arguments: &[&str]) -> Result<Self> {
        let program = std::env::current_exe().map_err(words_of)?;
        let mut command = match through {
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            [] => Command::new(program),
        };
        let child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(words_of)?;
        let mut running = Self(child);
        let mut line = String::new();
        if let Some(output) = running.0.stdout.as_mut() {
            BufReader::new(output).read_line(&mut line).map_err(words_of)?;
        }
        if line.trim() == "listening" { Ok(running) } else { Err(format!("{arguments:?} does not listen")) }
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

struct Contender {
    name: &'static str,
    tcp: SocketAddr,
    udp: SocketAddr,
    server: u32,
    forwarders: Vec<Running>,
    results: Vec<[Cost; 4]>,
}

/// What one thing of a kind cost.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// Seconds of processor time, of everybody and of the forwarder alone.
    all: f64,
    forwarder: f64,
    /// Seconds.
    time: f64,
}

/// Seconds of processor time that a process has used.
fn used(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let fields = text.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).ok_or("no stat")?;
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    // Hundredths of a second on every architecture that matters.
    Ok(ticks as f64 / 100.0)
}

impl Contender {
    fn measure(&self, count: f64, work: impl FnOnce() -> std::io::Result<()>) -> Result<Cost> {
        let used_by = || -> Result<(f64, f64)> {
            let forwarder = self.forwarders.iter().map(|one| used(one.pid())).sum::<Result<f64>>()?;
            Ok((used(std::process::id())? + used(self.server)? + forwarder, forwarder))
        };
        let (before, start) = (used_by()?, Instant::now());
        work().map_err(|e| format!("{}: {e}", self.name))?;
        let (time, after) = (start.elapsed(), used_by()?);
        Ok(Cost {
            all: (after.0 - before.0) / count,
            forwarder: (after.1 - before.1) / count,
            time: time.as_secs_f64() / count,
        })
    }

    fn round(&mut self) -> Result<()> {
        let ask = |kind: u8| -> std::io::Result<TcpStream> {
            let mut stream = TcpStream::connect(self.tcp)?;
            let mut request = [kind; REQUEST_BYTES];
            request[1] = b'\n';
            stream.write_all(&request)?;
            Ok(stream)
        };
        let mut buffer = vec![0; 256 << 10];
        let connections = self.measure(f64::from(CONNECTIONS), || {
            let mut answer = Vec::with_capacity(ANSWER_BYTES);
            for _ in 0..CONNECTIONS {
                answer.clear();
                ask(b'c')?.read_to_end(&mut answer)?;
                assert_eq!(answer.len(), ANSWER_BYTES, "an answer is whole");
            }
            Ok(())
        })?;
        let gigabytes = BULK_BYTES as f64 / 1e9;
        let inward = self.measure(gigabytes, || {
            let mut stream = ask(b'w')?;
            for _ in 0..BULK_BYTES / buffer.len() as u64 {
                stream.write_all(&buffer)?;
            }
            stream.shutdown(Shutdown::Write)?;
            stream.read_exact(&mut [0; 4])
        })?;
        let outward = self.measure(gigabytes, || {
            let mut stream = ask(b'r')?;
            while stream.read(&mut buffer)? > 0 {}
            Ok(())
        })?;
        let datagrams = self.measure(f64::from(DATAGRAMS), || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.connect(self.udp)?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            for _ in 0..DATAGRAMS / WINDOW {
                for _ in 0..WINDOW {
                    socket.send(&[b'd'; REQUEST_BYTES])?;
                }
                for _ in 0..WINDOW {
                    socket.recv(&mut [0; REQUEST_BYTES])?;
                }
            }
            Ok(())
        })?;
        self.results.push([connections, inward, outward, datagrams]);
        Ok(())
    }

    fn median(&self, work: usize, pick: impl Fn(&Cost) -> f64) -> f64 {
        let mut all: Vec<f64> = self.results.iter().filter_map(|round| round.get(work)).map(pick).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or_default()
    }
}

fn compare(rounds: u32) -> Result<()> {
    run("ip", &["link", "set", "lo", "up"])?;
    let host_server = Running::start(&[], &["serve", "127.0.0.1:8000"])?;
    let server = Running::start(&["unshare", "-n"], &["serve", "0.0.0.0:80"])?;
    let pid = server.pid().to_string();
    run("ip", &["link", "add", "bench0", "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
    run("ip", &["address", "add", "10.99.0.1/24", "dev", "bench0"])?;
    run("ip", &["link", "set", "bench0", "up"])?;
    run("nsenter", &["-n", "-t", &pid, "ip", "address", "add", "10.99.0.2/24", "dev", "eth0"])?;
    run("nsenter", &["-n", "-t", &pid, "ip", "link", "set", "eth0", "up"])?;

    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let contender = |name, port, server, forwarders| {
        let (tcp, udp) = (at(port), at(port));
        Contender { name, tcp, udp, server, forwarders, results: Vec::new() }
    };
    let relay = Running::start(&[], &["relay", &pid])?;
    let mut contenders = vec![
        contender("host socket", 8000, host_server.pid(), Vec::new()),
        contender("relay", 7000, server.pid(), vec![relay]),
    ];
    if Path::new(DOCKER_PROXY).exists() {
        let proxies = ["tcp", "udp"].map(|protocol| docker_proxy(protocol, 9000));
        contenders.push(contender("docker-proxy", 9000, server.pid(), proxies.into_iter().collect::<Result<_>>()?));
        wait_for(at(9000))?;
    } else {
        println!("docker-proxy takes no part: there is no {DOCKER_PROXY}");
    }
    for round in 0..=rounds {
        // Who begins changes.
        let count = contenders.len();
        for turn in 0..count {
            let Some(contender) = contenders.get_mut((turn + round as usize) % count) else { continue };
            contender.round()?;
            if round == 0 {
                // To warm up.
                contender.results.clear();
            }
        }
    }
    report(&contenders, rounds);
    Ok(())
}

fn docker_proxy(protocol: &str, port: u16) -> Result<Running> {
    // It reports to descriptor 3.
    let command = format!(
        "exec {DOCKER_PROXY} -proto {protocol} -host-ip 127.0.0.1 -host-port {port} -container-ip {CONTAINER} \
         -container-port 80 3>/dev/null"
    );
    Command::new("sh").args(["-c", &command]).spawn().map(Running).map_err(words_of)
}

fn wait_for(address: SocketAddr) -> Result<()> {
    let start = Instant::now();
    while TcpStream::connect(address).is_err() {
        if start.elapsed() > Duration::from_secs(10) {
            return Err(format!("nobody listens on {address}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn report(contenders: &[Contender], rounds: u32) {
    println!("medians of {rounds} rounds; processor time of all (of the forwarder)");
    println!(
        "{:<13} {:>22} {:>10} {:>20} {:>20} {:>22} {:>10}",
        "", "us a connection", "us each", "s/GB in", "s/GB out", "us a datagram, back", "us each"
    );
    for contender in contenders {
        let cost = |work, scale: f64, digits: usize| {
            let all = contender.median(work, |cost| cost.all) * scale;
            let forwarder = contender.median(work, |cost| cost.forwarder) * scale;
            format!("{all:.digits$} ({forwarder:.digits$})")
        };
        let time = |work| format!("{:.0}", contender.median(work, |cost| cost.time) * 1e6);
        println!(
            "{:<13} {:>22} {:>10} {:>20} {:>20} {:>22} {:>10}",
            contender.name,
            cost(0, 1e6, 0),
            time(0),
            cost(1, 1.0, 2),
            cost(2, 1.0, 2),
            cost(3, 1e6, 1),
            time(3),
        );
    }
}
