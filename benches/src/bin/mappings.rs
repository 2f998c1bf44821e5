//! How long it takes to have the kernel serve a port: one, a hundred at once, and a range of 10,000 — the reservation, the
//! change of the kernel's rules, and both back — against the program `nft` doing the same to a table of its own, in turn.
//! As root, in a network namespace of its own in place of the host's.

use gpucontainer::net::{NetworkMember, PortMapper, PortMapping, PortMode, PrivateNetwork};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const WARM_UP: usize = 3;
const HOST: &str = "198.51.100.1";
const RANGE: u16 = 10_000;

fn main() -> Result<()> {
    let samples: usize = std::env::args().nth(1).map_or(Ok(50), |text| text.parse())?;
    // SAFETY: the process has one thread, and nothing of it knows the network that it had.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    allow_descriptors()?;
    let machine = gpucontainer_benches::machine::describe();
    println!("{} on {} × {}, load {}", machine.kernel, machine.processors, machine.processor, machine.load);
    for command in ["ip link set lo up", "ip link add wan type veth peer name lan", "ip link set wan up"] {
        run(command)?;
    }
    run(&format!("ip addr add {HOST}/24 dev wan"))?;
    let member = PrivateNetwork::named("bench").join("member")?;
    let IpAddr::V4(inside) = member.addresses()[0] else { return Err("no address".into()) };
    run("nft add table inet peer")?;
    for (name, data, flags) in [("ports", "ipv4_addr . inet_service", ""), ("ranges", "ipv4_addr", "flags interval;")] {
        nft(&format!(
            "add map inet peer {name} {{ type inet_proto . ipv4_addr . inet_service : {data}; {flags} counter; }}"
        ))?;
    }
    let one = format!("{{ tcp . {HOST} . 2000 : {inside} . 80 }}");
    let range = format!("{{ udp . {HOST} . 16000-25999 : {inside} }}");
    // Keeps the table, as the other ports of a host do.
    let kept = published(&member, &[PortMapping::tcp(81, 1999)], &mut Vec::new())?;
    let mut rows = Rows::default();
    let mappings = |count: u16| (0..count).map(|at| PortMapping::tcp(80, 2000 + at)).collect::<Vec<_>>();
    for sample in 0..WARM_UP + samples {
        for (what, mappings) in [
            ("one port", mappings(1)),
            ("100 ports at once", mappings(100)),
            ("range of 10,000, same numbers inside", vec![PortMapping::udp_range(16_000, 16_000, RANGE)]),
            ("range of 10,000, other numbers inside", vec![PortMapping::udp_range(1000, 16_000, RANGE)]),
        ] {
            let mut times = Vec::new();
            let published = published(&member, &mappings, &mut times)?;
            let start = Instant::now();
            published.close();
            times.push(start.elapsed());
            if sample >= WARM_UP {
                for (step, time) in ["bind", "rules", "close"].into_iter().zip(times) {
                    rows.add(format!("{what}: {step}"), time);
                }
            }
        }
        for (what, map, element) in [("nft: one port", "ports", &one), ("nft: range of 10,000", "ranges", &range)] {
            let start = Instant::now();
            nft(&format!("add element inet peer {map} {element}"))?;
            let took = start.elapsed();
            nft(&format!(
                "delete element inet peer {map} {}",
                element.split(" : ").next().unwrap_or_default().to_owned() + " }"
            ))?;
            if sample >= WARM_UP {
                rows.add(what.to_owned(), took);
            }
        }
    }
    drop(kept);
    rows.print();
    Ok(())
}

/// As many descriptors as this process may have: a range takes one a port.
fn allow_descriptors() -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is of the kind that the call fills.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the structure outlives the call.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    if got == 0 && set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

fn published(
    member: &NetworkMember,
    mappings: &[PortMapping],
    times: &mut Vec<Duration>,
) -> Result<gpucontainer::net::Published> {
    let host: IpAddr = HOST.parse()?;
    let mappings: Vec<_> = mappings.iter().cloned().map(|mapping| mapping.address(host).mode(PortMode::Nat)).collect();
    let namespace = member.namespace()?;
    let start = Instant::now();
    let reservation = PortMapper::new().reserve(&mappings)?;
    times.push(start.elapsed());
    let start = Instant::now();
    let published = reservation.translate(namespace)?;
    times.push(start.elapsed());
    Ok(published)
}

fn run(command: &str) -> Result<()> {
    let mut words = command.split(' ');
    let program = words.next().unwrap_or_default();
    let status = Command::new(program).args(words).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("{command}: {status}").into()) }
}

fn nft(command: &str) -> Result<()> {
    let status = Command::new("nft").arg(command).status()?;
    if status.success() { Ok(()) } else { Err(format!("nft {command}: {status}").into()) }
}

#[derive(Default)]
struct Rows(Vec<(String, Vec<Duration>)>);

impl Rows {
    fn add(&mut self, what: String, took: Duration) {
        match self.0.iter_mut().find(|row| row.0 == what) {
            Some(row) => row.1.push(took),
            None => self.0.push((what, vec![took])),
        }
    }

    fn print(&mut self) {
        println!("{:46} {:>10} {:>10} {:>10}", "microseconds", "minimum", "median", "99 %");
        for (what, times) in &mut self.0 {
            times.sort();
            let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_secs_f64() * 1e6;
            println!("{what:46} {:10.1} {:10.1} {:10.1}", at(0), at(50), at(99));
        }
    }
}
