//! What a published port costs: the same server on the host, and in containers whose port is handed over, injected and
//! relayed. Prints medians of the CPU time of client, server and relay, and the ratios to the host's.
//!
//! Needs `cc`, and root where the kernel lets only root lock sockets.

use gpucontainer::Sandbox;
use gpucontainer::net::{PortMapping, PortMode};
use gpucontainer::sandbox::Stdio;
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROUNDS: usize = 21;
const CONNECTIONS: u32 = 3000;
const MEBIBYTES: u8 = 255;

/// A server somewhere, and where clients find it.
struct Contender {
    name: &'static str,
    address: SocketAddr,
    pid: u32,
    process: Process,
    samples: [Vec<f64>; 3],
}

enum Process {
    Host(Child),
    Sandbox(Box<Sandbox>),
}

fn main() -> Result<()> {
    let directory = std::env::temp_dir().join(format!("gpuc-ports-{}", std::process::id()));
    let root = directory.join("root");
    std::fs::create_dir_all(&root)?;
    let result = compile(&root).and_then(|()| compare(&root));
    std::fs::remove_dir_all(&directory)?;
    result
}

fn compile(root: &Path) -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("floor/server.c");
    let status = Command::new("cc").args(["-O2", "-static", "-o"]).arg(root.join("server")).arg(source).status()?;
    if status.success() { Ok(()) } else { Err("the server does not compile".into()) }
}

fn compare(root: &Path) -> Result<()> {
    let mut all = vec![on_host(root)?];
    for (name, mode) in [("hand over", PortMode::HandOver), ("inject", PortMode::Inject), ("relay", PortMode::Relay)] {
        all.push(in_sandbox(root, name, mode)?);
    }
    let work = [one_byte as fn(SocketAddr) -> Result<f64>, inward, outward];
    for round in 0..=ROUNDS {
        for turn in 0..all.len() {
            let at = (round + turn) % all.len();
            let contender = &mut all[at];
            for (number, work) in work.iter().enumerate() {
                let before = contender.cpu()?;
                let amount = work(contender.address)?;
                // What the kernel does after the last byte belongs to it.
                std::thread::sleep(Duration::from_millis(2));
                let used = contender.cpu()? - before;
                // The first round warms up.
                if round > 0 {
                    contender.samples[number].push(used / amount);
                }
            }
        }
    }
    println!("CPU time of client, server and relay; medians of {ROUNDS} rounds in turn");
    println!("{:10} {:>22} {:>22} {:>22}", "", "µs a connection", "s a GB inward", "s a GB outward");
    let floor = all[0].medians();
    for contender in &mut all {
        let medians = contender.medians();
        print!("{:10}", contender.name);
        for (number, (median, floor)) in medians.iter().zip(floor).enumerate() {
            let shown = if number == 0 { median * 1e6 } else { *median };
            print!(" {shown:12.3} ({:5.2} x)", median / floor);
        }
        println!();
    }
    for contender in all {
        match contender.process {
            Process::Host(mut child) => {
                child.kill()?;
                child.wait()?;
            }
            Process::Sandbox(sandbox) => sandbox.close()?,
        }
    }
    Ok(())
}

impl Contender {
    /// Seconds of processor time of this process, in which are the client and the relay, and of the server.
    fn cpu(&self) -> Result<f64> {
        Ok(own_cpu()? + cpu_of(&format!("/proc/{}/schedstat", self.pid))?)
    }

    fn medians(&mut self) -> [f64; 3] {
        self.samples.each_mut().map(|samples| {
            samples.sort_by(f64::total_cmp);
            samples[samples.len() / 2]
        })
    }
}

/// Of all threads.
fn own_cpu() -> Result<f64> {
    let mut sum = 0.0;
    for task in std::fs::read_dir("/proc/self/task")? {
        sum += cpu_of(&format!("{}/schedstat", task?.path().display()))?;
    }
    Ok(sum)
}

/// The first number of such a file is nanoseconds on a processor.
fn cpu_of(path: &str) -> Result<f64> {
    let text = std::fs::read_to_string(path)?;
    let nanoseconds: u64 = text.split_whitespace().next().ok_or("an empty schedstat")?.parse()?;
    Ok(nanoseconds as f64 / 1e9)
}

fn on_host(root: &Path) -> Result<Contender> {
    let free = TcpListener::bind("127.0.0.1:0")?;
    let address = free.local_addr()?;
    drop(free);
    let mut child = Command::new(root.join("server"))
        .arg(address.port().to_string())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    listens(child.stdout.take().ok_or("no output")?)?;
    let pid = child.id();
    Ok(Contender { name: "host", address, pid, process: Process::Host(child), samples: Default::default() })
}

fn in_sandbox(root: &Path, name: &'static str, mode: PortMode) -> Result<Contender> {
    let mapping = PortMapping::tcp(8000, 0).address(Ipv4Addr::LOCALHOST.into()).mode(mode);
    let sandbox = Sandbox::from_directory(root)
        .command(["/server", "8000"])
        .publish_port(mapping)
        .stdin(Stdio::Null)
        .stdout(Stdio::Piped)
        .spawn()?;
    listens(std::fs::File::from(sandbox.take_stdout().ok_or("no output")?))?;
    let (address, pid) = (sandbox.ports()[0].host(), u32::try_from(sandbox.pid())?);
    let process = Process::Sandbox(Box::new(sandbox));
    Ok(Contender { name, address, pid, process, samples: Default::default() })
}

fn listens(output: impl Read) -> Result<()> {
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    if line.trim() == "listening" { Ok(()) } else { Err("the server does not listen".into()) }
}

/// Connections with one byte each way; how many.
fn one_byte(address: SocketAddr) -> Result<f64> {
    let mut byte = [0];
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"c")?;
        stream.read_exact(&mut byte)?;
    }
    Ok(CONNECTIONS.into())
}

/// Much into the server; gigabytes.
fn inward(address: SocketAddr) -> Result<f64> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"i")?;
    let chunk = vec![0; 128 << 10];
    for _ in 0..u32::from(MEBIBYTES) * 8 {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok(gigabytes())
}

/// Much out of the server; gigabytes.
fn outward(address: SocketAddr) -> Result<f64> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&[b'o', MEBIBYTES])?;
    let mut chunk = vec![0; 128 << 10];
    while stream.read(&mut chunk)? > 0 {}
    Ok(gigabytes())
}

fn gigabytes() -> f64 {
    f64::from(u32::from(MEBIBYTES) << 20) / 1e9
}
