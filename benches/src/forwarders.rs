//! The programs that bring a port of the host into a container: ours is compared with them in `relays`.
//!
//! All of them run in the process namespace of the benchmark, whose end is the end of them, wherever in it they went.

use crate::{Result, peers, system};
use std::fmt::Display;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where their sockets, state and words are: a file system of the benchmark's own.
const SCRATCH: &str = "/mnt";
const DOCKER_PROXY: &str = "/usr/sbin/docker-proxy";
/// What slirp4netns calls the container.
const SLIRP_CONTAINER: &str = "10.0.2.100";
const PATIENCE: Duration = Duration::from_secs(10);

pub fn words_of(error: impl Display) -> String {
    error.to_string()
}

/// A process that ends with the value.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts a program whose words go to a file.
    fn spawn(name: &str, command: &mut Command) -> Result<Self> {
        let words = File::create(words_file(name)).map_err(words_of)?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(words);
        system::die_with_parent(command);
        command.spawn().map(Self).map_err(|e| format!("{name}: {e}"))
    }

    /// Starts this program, perhaps through another one, and waits until it says that it listens.
    pub fn start(through: &[&str], arguments: &[&str]) -> Result<Self> {
        let program = std::env::current_exe().map_err(words_of)?;
        let mut command = match through {
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            [] => Command::new(program),
        };
        system::die_with_parent(&mut command);
        let words = through.first().map_or("relays", |first| *first);
        let errors = File::create(words_file(words)).map_err(words_of)?;
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut running = Self(command.spawn().map_err(|e| format!("{words}: {e}"))?);
        let mut line = String::new();
        if let Some(output) = running.0.stdout.as_mut() {
            BufReader::new(output).read_line(&mut line).map_err(words_of)?;
        }
        if line.trim() == "listening" {
            Ok(running)
        } else {
            Err(format!("{arguments:?} does not listen: {}", said(words)))
        }
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// All processes that it started and they started, itself the first.
    fn family(&self) -> Vec<u32> {
        let mut all = vec![self.pid()];
        let mut at = 0;
        while let Some(pid) = all.get(at) {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
            let found: Vec<u32> = children.flat_map(|text| numbers(&text)).collect();
            all.extend(found);
            at += 1;
        }
        all
    }
}

fn numbers(text: &str) -> Vec<u32> {
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn words_file(name: &str) -> String {
    format!("{SCRATCH}/{name}.words")
}

/// The last of what a program said.
fn said(name: &str) -> String {
    let text = std::fs::read_to_string(words_file(name)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(3)..).unwrap_or_default().join("; ")
}

/// A port of the host, what serves it, and what lies between.
pub struct Forwarded {
    pub address: SocketAddr,
    pub server: u32,
    pub forwarders: Vec<u32>,
    kept: Vec<Running>,
}

impl Forwarded {
    /// By `forwarders`, to a server in a namespace of its own.
    pub fn new(port: u16, server: Running, forwarders: Vec<Running>) -> Self {
        let pids = forwarders.iter().flat_map(Running::family).collect();
        let (address, server_pid) = (local(port), server.pid());
        let mut kept = forwarders;
        kept.push(server);
        Self { address, server: server_pid, forwarders: pids, kept }
    }

    /// How many programs this holds.
    pub fn programs(&self) -> usize {
        self.kept.len()
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Prepares what the forwarders want to find: somewhere to write, and an interface that leads away, which pasta imitates.
pub fn prepare() -> Result<()> {
    system::mount("gpuc-bench", Path::new(SCRATCH), "tmpfs", "mode=0755")?;
    run("ip", &["link", "set", "lo", "up"])?;
    // A pair, since not every kernel has dummy interfaces.
    run("ip", &["link", "add", "away0", "type", "veth", "peer", "name", "away1"])?;
    run("ip", &["link", "set", "away1", "up"])?;
    run("ip", &["address", "add", "10.98.0.1/24", "dev", "away0"])?;
    run("ip", &["link", "set", "away0", "up"])?;
    run("ip", &["route", "add", "default", "via", "10.98.0.254"])
}

pub fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status().map_err(|e| format!("{program}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{program} {arguments:?}: {status}")) }
}

/// The server of the benchmark in a network namespace of its own.
pub fn contained() -> Result<Running> {
    Running::start(&["unshare", "-n"], &["serve", "0.0.0.0:80"])
}

/// Whether the program is there, or which package of Debian's has it.
fn wanted(program: &str, package: &str) -> Result<()> {
    peers::installed(program).map_err(|_| format!("{program} is not installed; Debian's package {package} has it"))
}

/// docker-proxy, over a pair of interfaces, which it needs.
pub fn docker_proxy(port: u16) -> Result<Forwarded> {
    if !Path::new(DOCKER_PROXY).exists() {
        return Err(format!("there is no {DOCKER_PROXY}; Debian's package docker.io has it"));
    }
    let server = contained()?;
    let pid = server.pid().to_string();
    run("ip", &["link", "add", "bench0", "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
    run("ip", &["address", "add", "10.99.0.1/24", "dev", "bench0"])?;
    run("ip", &["link", "set", "bench0", "up"])?;
    run("nsenter", &["-n", "-t", &pid, "ip", "address", "add", "10.99.0.2/24", "dev", "eth0"])?;
    run("nsenter", &["-n", "-t", &pid, "ip", "link", "set", "eth0", "up"])?;
    let proxy = |protocol: &str| {
        // It reports to descriptor 3.
        let command = format!(
            "exec {DOCKER_PROXY} -proto {protocol} -host-ip 127.0.0.1 -host-port {port} -container-ip 10.99.0.2 \
             -container-port 80 3>/dev/null"
        );
        Running::spawn(&format!("docker-proxy-{protocol}"), Command::new("sh").args(["-c", &command]))
    };
    let proxies = vec![proxy("tcp")?, proxy("udp")?];
    wait_for(port, "docker-proxy-tcp")?;
    Ok(Forwarded::new(port, server, proxies))
}

/// rootlesskit's builtin port driver. It makes the namespace itself, and nothing of what is measured passes slirp4netns.
pub fn rootlesskit(port: u16) -> Result<Forwarded> {
    wanted("rootlesskit", "rootlesskit")?;
    wanted("slirp4netns", "slirp4netns")?;
    wanted("newuidmap", "uidmap")?;
    // It wants ids of root's too, which distributions give to ordinary users alone; these files are ours to replace.
    let ids = format!("{SCRATCH}/ids");
    std::fs::write(&ids, "root:524288:65536\n").map_err(words_of)?;
    for file in ["/etc/subuid", "/etc/subgid"] {
        run("mount", &["--bind", &ids, file])?;
    }
    let state = format!("{SCRATCH}/rootlesskit");
    let (tcp, udp) = (format!("127.0.0.1:{port}:80/tcp"), format!("127.0.0.1:{port}:80/udp"));
    let options = ["--net=slirp4netns", "--port-driver=builtin", "--disable-host-loopback", "--state-dir", &state];
    let mut through = vec!["rootlesskit"];
    through.extend(options);
    through.extend(["-p", &tcp, "-p", &udp]);
    let kit = Running::start(&through, &["serve", "0.0.0.0:80"])?;
    wait_for(port, "rootlesskit")?;
    let family = kit.family();
    let own = std::env::current_exe().map_err(words_of)?;
    let serves = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path == own);
    let server = family.iter().copied().find(serves).ok_or("rootlesskit has no server")?;
    let forwarders = family.into_iter().filter(|pid| *pid != server).collect();
    Ok(Forwarded { address: local(port), server, forwarders, kept: vec![kit] })
}

/// slirp4netns, told of the ports through its socket.
pub fn slirp4netns(port: u16) -> Result<Forwarded> {
    wanted("slirp4netns", "slirp4netns")?;
    let server = contained()?;
    let socket = format!("{SCRATCH}/slirp4netns.socket");
    let pid = server.pid().to_string();
    let mut command = Command::new("slirp4netns");
    command.args(["--configure", "--mtu=65520", "--disable-host-loopback", "--api-socket", &socket, &pid, "tap0"]);
    let slirp = Running::spawn("slirp4netns", &mut command)?;
    for protocol in ["tcp", "udp"] {
        let request = format!(
            "{{\"execute\": \"add_hostfwd\", \"arguments\": {{\"proto\": \"{protocol}\", \"host_addr\": \"127.0.0.1\", \
             \"host_port\": {port}, \"guest_addr\": \"{SLIRP_CONTAINER}\", \"guest_port\": 80}}}}"
        );
        let answer = patiently("slirp4netns", || ask(&socket, &request))?;
        if !answer.contains("return") {
            return Err(format!("slirp4netns: {request}: {answer}"));
        }
    }
    wait_for(port, "slirp4netns")?;
    Ok(Forwarded::new(port, server, vec![slirp]))
}

fn ask(socket: &str, request: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(request.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// pasta, which splices what comes from the host's loopback.
pub fn pasta(port: u16) -> Result<Forwarded> {
    wanted("pasta", "passt")?;
    let server = contained()?;
    let ports = format!("127.0.0.1/{port}:80");
    // It gives up what it would take to open a namespace of root's in /proc before it does so.
    let namespace = format!("{SCRATCH}/pasta.namespace");
    File::create(&namespace).map_err(words_of)?;
    run("mount", &["--bind", &format!("/proc/{}/ns/net", server.pid()), &namespace])?;
    let mut command = Command::new("pasta");
    command.args(["--foreground", "--config-net", "--ipv4-only", "--stderr", "--runas", "0", "--netns-only"]);
    command.args(["-t", &ports, "-u", &ports, "-T", "none", "-U", "none", "--netns", &namespace]);
    let pasta = Running::spawn("pasta", &mut command)?;
    wait_for(port, "pasta")?;
    Ok(Forwarded::new(port, server, vec![pasta]))
}

fn wait_for(port: u16, name: &str) -> Result<()> {
    patiently(name, || TcpStream::connect(local(port))).map(drop)
}

/// What a program does once it is ready; its own words if that does not come.
fn patiently<T>(name: &str, mut attempt: impl FnMut() -> std::io::Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(format!("{name} is not ready: {error}: {}", said(name)));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
