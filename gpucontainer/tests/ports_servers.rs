//! Published ports in front of servers, and behind clients, that others wrote: nginx, iperf3, wrk.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod container;

use common::Leaks;
use container::Container;
use gpucontainer::net::{PortMapper, PortMapping, Published, SourceAddress};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

fn may_run(tools: &[&str]) -> bool {
    container::may_run() && common::tools("root", tools)
}

fn publish(container: &Container, mapping: PortMapping) -> (Published, SocketAddr) {
    let mapping = mapping.address(Ipv4Addr::LOCALHOST.into());
    let published = PortMapper::new().reserve(&[mapping]).unwrap().relay(container.namespace()).unwrap();
    let host = published.ports()[0].host();
    (published, host)
}

/// A program in a container's network, killed when dropped.
struct Inside(Child);

impl Inside {
    fn start(container: &Container, program: &str, arguments: &[&str]) -> Self {
        let kinds: &[&str] = if common::is_root() { &["-n"] } else { &["-U", "-n", "--preserve-credentials"] };
        let mut command = Command::new("nsenter");
        command.args(["-t", &container.pid().to_string()]).args(kinds).arg(common::which(program).unwrap());
        Self(command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // nginx ends its workers when it is asked to, and not when it is killed.
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.0.wait().unwrap();
    }
}

/// A web server with four workers that says who its client is. It takes itself for root in either kind of container.
fn nginx(container: &Container, directory: &Path, listen: &str, client: &str) -> Inside {
    let at = directory.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {at}/{kind};"))
        .concat();
    let configuration = format!(
        "user root root; daemon off; worker_processes 4; pid {at}/pid; error_log {at}/error; events {{ worker_connections 256; }}
         http {{ access_log off; {temporary}
           server {{ listen {listen}; location / {{ return 200 \"{client}\"; }} }} }}"
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, configuration).unwrap();
    Inside::start(container, "nginx", &["-e", "/dev/null", "-c", file.to_str().unwrap()])
}

fn get(source: Option<Ipv4Addr>, host: SocketAddr) -> std::io::Result<(SocketAddr, String)> {
    use rustix::net::{AddressFamily, SocketType};
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    if let Some(source) = source {
        rustix::net::bind(&socket, &SocketAddr::new(source.into(), 0))?;
    }
    rustix::net::connect(&socket, &host)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.rsplit_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    Ok((stream.local_addr()?, body))
}

fn answers(host: SocketAddr) {
    common::until("the server answers", SOON, || get(None, host).is_ok_and(|(_, body)| !body.is_empty()));
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn nginx_reads_the_proxy_protocol() {
    let leaks = Leaks::watch();
    if !may_run(&["nginx"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let container = Container::start();
    let client = "$proxy_protocol_addr:$proxy_protocol_port to $proxy_protocol_server_port";
    let server = nginx(&container, directory.path(), "127.0.0.1:8080 proxy_protocol", client);
    let (published, host) = publish(&container, PortMapping::tcp(8080, 0).source(SourceAddress::ProxyV2));
    answers(host);
    for source in [[127, 0, 0, 1], [127, 0, 0, 9]] {
        let (own, seen) = get(Some(source.into()), host).unwrap();
        assert_eq!(seen, format!("{own} to {}", host.port()));
    }
    drop((published, server, container, directory));
    leaks.check();
}

#[test]
fn nginx_sees_addresses_that_are_kept() {
    let leaks = Leaks::watch();
    if !may_run(&["nginx"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let container = Container::start();
    let server = nginx(&container, directory.path(), "8080", "$remote_addr");
    let (published, host) = publish(&container, PortMapping::tcp(8080, 0).source(SourceAddress::Keep));
    answers(host);
    for source in [[127, 0, 0, 1], [127, 0, 0, 9]] {
        assert_eq!(get(Some(source.into()), host).unwrap().1, Ipv4Addr::from(source).to_string());
    }
    drop((published, server, container, directory));
    leaks.check();
}

#[test]
fn wrk_loses_nothing_against_workers_that_share_a_port() {
    let leaks = Leaks::watch();
    if !may_run(&["nginx", "wrk"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let container = Container::start();
    let server = nginx(&container, directory.path(), "127.0.0.1:8080 reuseport", "$pid");
    let (published, host) = publish(&container, PortMapping::tcp(8080, 0));
    answers(host);
    // Before it listened.
    let refused = published.status()[0].refused;
    let url = format!("http://{host}/");
    for header in ["Connection: keep-alive", "Connection: close"] {
        let output = Command::new("wrk").args(["-t2", "-c32", "-d1s", "-H", header, &url]).output().unwrap();
        let said = text(&output);
        assert!(said.contains("requests in") && !said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    }
    let workers: std::collections::HashSet<String> = (0..200).map(|_| get(None, host).unwrap().1).collect();
    assert_eq!(workers.len(), 4, "each worker has its part: {workers:?}");
    assert_eq!(published.status()[0].refused, refused, "{:?}", published.status());
    drop((published, server, container, directory));
    leaks.check();
}

#[test]
fn iperf3_goes_both_ways() {
    let leaks = Leaks::watch();
    if !may_run(&["iperf3"]) {
        return;
    }
    let container = Container::start();
    let server = Inside::start(&container, "iperf3", &["-s", "-B", "127.0.0.1", "-p", "5201"]);
    let (published, host) = publish(&container, PortMapping::tcp(5201, 0));
    let port = host.port().to_string();
    for way in [&[][..], &["-R"], &["-P", "4"]] {
        let client = || {
            let arguments = ["-c", "127.0.0.1", "-p", &port, "-n", "64M"];
            Command::new("iperf3").args(arguments).args(way).output().unwrap()
        };
        let mut output = client();
        common::until("iperf3 serves", SOON, || {
            if !output.status.success() {
                output = client();
            }
            output.status.success()
        });
        assert!(text(&output).contains("receiver"), "{output:?}");
    }
    let status = &published.status()[0];
    assert!(status.bytes_in >= 64 << 20 && status.bytes_out >= 64 << 20, "{status:?}");
    drop((published, server, container));
    leaks.check();
}
