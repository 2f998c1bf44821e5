//! What a published port costs: connections, bulk data and datagrams through the relay, through docker-proxy, rootlesskit's
//! builtin driver, slirp4netns and pasta, and to a plain socket of the host as the floor, in turn.
//!
//! Everything runs in namespaces that are made for it: a "host" and a "container" for each forwarder. Processes are in a
//! namespace too, which ends with the benchmark, so that none stays. Processor time is that of client, server and forwarder
//! together, from `/proc/PID/stat`, and in brackets the forwarder's own. Needs root, `ip`, `unshare` and `nsenter`, and
//! Debian's `docker.io`, `rootlesskit`, `slirp4netns` and `passt`: who is not there takes no part.
//!
//! ```text
//! relays [ROUNDS]
//! ```

use gpucontainer::net::{NetworkNamespace, PortMapper, PortMapping};
use gpucontainer_benches::forwarders::{self, Forwarded, Running, words_of};
use gpucontainer_benches::{Result, system};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

const CONNECTIONS: u32 = 10_000;
const DATAGRAMS: u32 = 96_000;
/// Datagrams under way at a time: one alone would measure how two processors wake each other.
const WINDOW: u32 = 32;
const BULK_BYTES: u64 = 1 << 30;
const REQUEST_BYTES: usize = 100;
const ANSWER_BYTES: usize = 1024;
const DOCKER_PROXY: &str = "docker-proxy";
const WORK: [&str; 4] = ["connections", "bulk data inward", "bulk data outward", "datagrams"];

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

/// Runs this program in namespaces of its own, so that nothing of the host's is touched, and no process stays.
fn again(rounds: &str) -> Result<()> {
    let program = std::env::current_exe().map_err(words_of)?;
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]).arg(program);
    system::die_with_parent(&mut command);
    let status = command.args(["inside", rounds]).status().map_err(words_of)?;
    if status.success() { Ok(()) } else { Err(format!("unshare: {status}")) }
}

/// A server: the first byte of a connection says what is wanted; datagrams come back as they are.
fn serve(address: &str) -> Result<()> {
    forwarders::run("ip", &["link", "set", "lo", "up"])?;
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

struct Contender {
    name: &'static str,
    way: Forwarded,
    /// For each work the costs of all rounds; nothing more once it failed.
    results: [Option<Vec<Cost>>; WORK.len()],
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
    fn new(name: &'static str, way: Forwarded) -> Self {
        Self { name, way, results: [const { Some(Vec::new()) }; WORK.len()] }
    }

    fn measure(&self, count: f64, work: impl FnOnce() -> std::io::Result<()>) -> Result<Cost> {
        let used_by = || -> Result<(f64, f64)> {
            let forwarder = self.way.forwarders.iter().map(|one| used(*one)).sum::<Result<f64>>()?;
            Ok((used(std::process::id())? + used(self.way.server)? + forwarder, forwarder))
        };
        let (before, start) = (used_by()?, Instant::now());
        work().map_err(words_of)?;
        let (time, after) = (start.elapsed(), used_by()?);
        Ok(Cost {
            all: (after.0 - before.0) / count,
            forwarder: (after.1 - before.1) / count,
            time: time.as_secs_f64() / count,
        })
    }

    fn ask(&self, kind: u8) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.way.address)?;
        let time = Some(Duration::from_secs(60));
        stream.set_read_timeout(time)?;
        stream.set_write_timeout(time)?;
        let mut request = [kind; REQUEST_BYTES];
        request[1] = b'\n';
        stream.write_all(&request)?;
        Ok(stream)
    }

    /// Does one of the works.
    fn work(&self, work: usize) -> Result<Cost> {
        let mut buffer = vec![0; 256 << 10];
        let gigabytes = BULK_BYTES as f64 / 1e9;
        match work {
            0 => self.measure(f64::from(CONNECTIONS), || {
                let mut answer = Vec::with_capacity(ANSWER_BYTES);
                for _ in 0..CONNECTIONS {
                    answer.clear();
                    self.ask(b'c')?.read_to_end(&mut answer)?;
                    whole(answer.len() as u64, ANSWER_BYTES as u64)?;
                }
                Ok(())
            }),
            1 => self.measure(gigabytes, || {
                let mut stream = self.ask(b'w')?;
                for _ in 0..BULK_BYTES / buffer.len() as u64 {
                    stream.write_all(&buffer)?;
                }
                stream.shutdown(Shutdown::Write)?;
                stream.read_exact(&mut [0; 4])
            }),
            2 => self.measure(gigabytes, || {
                let mut stream = self.ask(b'r')?;
                let mut sum = 0;
                loop {
                    match stream.read(&mut buffer)? {
                        0 => return whole(sum, BULK_BYTES),
                        bytes => sum += bytes as u64,
                    }
                }
            }),
            _ => self.measure(f64::from(DATAGRAMS), || {
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
                socket.connect(self.way.address)?;
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
            }),
        }
    }

    /// All works once; one that fails is left out from then on.
    fn round(&mut self, warm_up: bool) {
        for (work, what) in WORK.iter().enumerate() {
            if self.results[work].is_none() {
                continue;
            }
            match (self.work(work), &mut self.results[work]) {
                (Ok(cost), Some(costs)) if !warm_up => costs.push(cost),
                (Ok(_), _) => {}
                (Err(why), costs) => {
                    println!("{}: {what} left out: {why}", self.name);
                    *costs = None;
                }
            }
        }
    }

    fn median(&self, work: usize, pick: impl Fn(&Cost) -> f64) -> Option<f64> {
        let mut all: Vec<f64> = self.results.get(work)?.as_ref()?.iter().map(pick).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }
}

fn whole(bytes: u64, wanted: u64) -> std::io::Result<()> {
    if bytes == wanted { Ok(()) } else { Err(std::io::Error::other(format!("{bytes} bytes of {wanted}"))) }
}

fn compare(rounds: u32) -> Result<()> {
    forwarders::prepare()?;
    let host_server = Running::start(&[], &["serve", "127.0.0.1:8000"])?;
    let server = forwarders::contained()?;
    let relay = Running::start(&[], &["relay", &server.pid().to_string()])?;
    let mut contenders = vec![
        Contender::new("host socket", Forwarded::new(8000, host_server, Vec::new())),
        Contender::new("relay", Forwarded::new(7000, server, vec![relay])),
    ];
    for (name, way) in [
        (DOCKER_PROXY, forwarders::docker_proxy(9000)),
        ("rootlesskit", forwarders::rootlesskit(9100)),
        ("slirp4netns", forwarders::slirp4netns(9200)),
        ("pasta", forwarders::pasta(9300)),
    ] {
        match way {
            Ok(way) => contenders.push(Contender::new(name, way)),
            Err(why) => println!("{name} takes no part: {why}"),
        }
    }
    let count = contenders.len();
    for round in 0..=rounds {
        // Who begins changes.
        for turn in 0..count {
            if let Some(contender) = contenders.get_mut((turn + round as usize) % count) {
                // The first round warms up.
                contender.round(round == 0);
            }
        }
    }
    report(&contenders, rounds);
    for base in ["host socket", DOCKER_PROXY] {
        if let Some(base) = contenders.iter().find(|contender| contender.name == base) {
            ratios(&contenders, base);
        }
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
            let all = contender.median(work, |cost| cost.all * scale);
            let forwarder = contender.median(work, |cost| cost.forwarder * scale);
            all.zip(forwarder).map_or("-".to_owned(), |(all, one)| format!("{all:.digits$} ({one:.digits$})"))
        };
        let time =
            |work| contender.median(work, |cost| cost.time * 1e6).map_or("-".to_owned(), |time| format!("{time:.0}"));
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

/// The medians as multiples of another's. A forwarder's own time is compared with that of the other's forwarder, or with all
/// of it if there is none.
fn ratios(contenders: &[Contender], base: &Contender) {
    println!("\nprocessor time of all (of the forwarder), as multiples of {}'s", base.name);
    println!("{:<13} {:>22} {:>22} {:>22} {:>22}", "", "a connection", "a GB in", "a GB out", "a datagram, back");
    for contender in contenders {
        let ratio = |work| {
            let all = contender.median(work, |cost| cost.all)? / base.median(work, |cost| cost.all)?;
            let of = |cost: &Cost| if base.way.forwarders.is_empty() { cost.all } else { cost.forwarder };
            let forwarder = contender.median(work, |cost| cost.forwarder)? / base.median(work, of)?;
            Some(format!("{all:.2} ({forwarder:.2})"))
        };
        let [connection, inward, outward, datagram] =
            [0, 1, 2, 3].map(|work| ratio(work).unwrap_or_else(|| "-".to_owned()));
        println!("{:<13} {connection:>22} {inward:>22} {outward:>22} {datagram:>22}", contender.name);
    }
}
