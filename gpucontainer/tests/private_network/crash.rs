//! Members that are killed at any moment, and networks that outlive those who made them.

use crate::common::{Leaks, until};
use crate::world::{LONG, OUTSIDE, ask, ask_from, on_a_host, run, serve, within};
use gpucontainer::net::{NetworkMember, PrivateNetwork};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const ROLE: &str = "GPUC_TEST_MEMBER";

/// Another process on the same host, which joins as its role says and stays until its input ends.
struct Other {
    child: Child,
}

impl Other {
    fn start(role: &str) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::other_process", "--ignored", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }

    /// The address that it got.
    fn address(&mut self) -> IpAddr {
        let output = BufReader::new(self.child.stdout.as_mut().unwrap());
        let line = output.lines().map(Result::unwrap).find_map(|line| line.strip_prefix("joined ").map(str::to_owned));
        line.unwrap().parse().unwrap()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
#[ignore = "the other process of a test"]
fn other_process() {
    let role = std::env::var(ROLE).unwrap();
    if role == "again and again" {
        loop {
            let members: Vec<NetworkMember> =
                ["a", "b"].into_iter().filter_map(|name| PrivateNetwork::named("crash").join(name).ok()).collect();
            drop(members);
        }
    }
    let member = PrivateNetwork::named("crash").join(&role).unwrap();
    std::io::stdout().write_all(format!("\njoined {}\n", member.addresses()[0]).as_bytes()).unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(member);
}

fn network() -> PrivateNetwork {
    PrivateNetwork::named("crash")
}

fn nothing_is_left() {
    until("the kernel has taken everything away", LONG, || {
        !run("ip -o link").contains("gpuc") && run("nft list ruleset").is_empty()
    });
}

#[test]
fn a_network_outlives_the_process_that_made_it() {
    let leaks = Leaks::watch();
    on_a_host(|world| {
        let outside = world.outside(|| serve(OUTSIDE.parse::<Ipv4Addr>().unwrap()));
        let mut maker = Other::start("maker");
        let first = maker.address();
        let mut second = Other::start("second");
        let address = second.address();
        assert_ne!(first, address);
        let member = network().join("mine").unwrap();
        assert!(std::fs::read_to_string(member.hosts_file()).unwrap().contains(&format!("{first}\tmaker")));
        maker.kill();
        // The rules and the bridge are still there, for those who were in it and for those who come.
        assert_eq!(ask_from(&member, outside), "198.51.100.1");
        let late = network().join("late").unwrap();
        assert_eq!(late.addresses()[0], first, "the address of the dead is free");
        assert_eq!(ask_from(&late, outside), "198.51.100.1");
        let own = member.addresses()[0];
        let server = within(&member, move || serve(own));
        assert_eq!(ask_from(&late, server), first.to_string());
        let hosts = std::fs::read_to_string(member.hosts_file()).unwrap();
        assert!(!hosts.contains("maker") && hosts.contains("second"), "{hosts}");
        drop((late, member));
        second.kill();
        nothing_is_left();
        // What files the dead left, the next one removes.
        drop(network().join("last").unwrap());
        nothing_is_left();
    });
    leaks.check();
}

#[test]
fn the_next_network_works_while_the_dead_one_is_taken_apart() {
    on_a_host(|world| {
        let outside = world.outside(|| serve(OUTSIDE.parse::<Ipv4Addr>().unwrap()));
        let mut before = None;
        for round in 0..10 {
            let mut other = Other::start("other");
            let address = other.address();
            assert_eq!(*before.get_or_insert(address), address, "in round {round}");
            other.kill();
            let member = network().join("member").unwrap();
            assert_eq!(member.addresses()[0], address);
            assert_eq!(ask_from(&member, outside), "198.51.100.1", "in round {round}");
            let server = within(&member, move || serve(address));
            // Towards the member too, from the host.
            assert!(ask(server, LONG).is_ok());
            drop(member);
        }
        nothing_is_left();
    });
}

#[test]
fn killed_at_any_moment_nothing_stays() {
    let leaks = Leaks::watch();
    on_a_host(|_world| {
        for round in 0..25_u64 {
            let mut others = [Other::start("again and again"), Other::start("again and again")];
            // Any moment of some twenty joins.
            std::thread::sleep(Duration::from_micros(20_000 + 3_517 * (round * 7 % 25)));
            let living = others.iter_mut().all(|other| other.child.try_wait().unwrap().is_none());
            assert!(living, "it ended by itself");
            let [one, other] = others;
            one.kill();
            let member = network().join("mine").unwrap();
            other.kill();
            drop(member);
        }
        let member = network().join("mine").unwrap();
        let names = std::fs::read_to_string(member.hosts_file()).unwrap();
        assert_eq!(names.matches("\tmine").count(), 2, "{names}");
        assert!(!names.contains("\ta\n") && !names.contains("\tb\n"), "{names}");
        drop(member);
        nothing_is_left();
    });
    leaks.check();
}
