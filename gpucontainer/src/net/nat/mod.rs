//! Ports that the kernel serves by rewriting addresses on their way.
//!
//! ```text
//! container  where the container is to be reached, and by which wire
//! table      the table of nf_tables: sets of ports, and the rules that look them up
//! entry      what of the sets is one port's, or one range's
//! flows      connections that go on while their port does not
//!
//! client ── host's address:port ──► prerouting, output: looked up, led to the container's address:port ──► container
//!                                    postrouting: the host's address for who would not be answered through the host
//! ```
//! The table belongs to a socket of this process, and there is one for each network namespace that ports are published in.
//! When the process ends, however it does, the kernel takes the table away; `nft flush ruleset` of somebody else, and thus a
//! firewall that starts anew, does not.
//!
//! The host's socket stays bound and listens, and is the reservation. The relay serves it: whoever is not led elsewhere by
//! the kernel arrives there. Those are clients on loopback addresses, and of a family that the container has no address of.
//! To rewrite 127.0.0.1 the kernel would have to take packets for 127.0.0.0/8 from the container's wire
//! (`route_localnet`), which would outlive this process and its rules, and lead neighbours to whatever else listens there
//! (CVE-2020-8558); `::1` cannot be rewritten at all.

mod container;
mod entry;
mod flows;
mod table;

use self::container::{Container, Way};
use self::entry::Entry;
use super::mapping::Protocol;
use super::namespace::NetworkNamespace;
use super::netlink::nf_tables::set::{Count, Element, read_counts};
use super::netlink::{Batch, carry_out};
use super::port::PublishedPort;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::netlink::{self, Netlink, TableOwner};
use crate::sys::{fs, process};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The tables that this process has, by the network namespace that they are in. They are the process's, not a mapper's:
/// rules cost the host per packet, however few ports they are for.
static TABLES: Mutex<Vec<Weak<Nat>>> = Mutex::new(Vec::new());

/// Takes a lock whose data no panic can leave half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses who may not make rules.
pub(super) fn check_privilege() -> Result<()> {
    if process::may_administer_network() {
        return Ok(());
    }
    let message = "nat: only root (CAP_NET_ADMIN) may have the kernel rewrite addresses";
    Err(Error::new(ErrorKind::PermissionDenied, message))
}

/// One table, and the socket that owns it.
#[derive(Debug)]
struct Nat {
    process: u32,
    /// Of the network namespace.
    cookie: u64,
    name: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    socket: TableOwner,
    /// How many ports need an element that is for several: that of a container.
    shared: HashMap<(&'static str, Vec<u8>), usize>,
    /// Of the last range whose ports inside are others than on the host.
    number: u32,
}

impl Nat {
    /// That of the caller's network namespace, made if there is none.
    fn of_this_namespace() -> Result<Arc<Self>> {
        // To close one of the packet filter's waits for whatever else is being taken out of that.
        let (cookie, process) = (Netlink::open(netlink::Protocol::Route)?.namespace_cookie()?, process::own_pid());
        let mut tables = lock(&TABLES);
        tables.retain(|table| table.strong_count() > 0);
        // A forked child inherits the static, but is not the one that the table dies with.
        let known = tables.iter().filter_map(Weak::upgrade).find(|nat| nat.cookie == cookie && nat.process == process);
        if let Some(nat) = known {
            return Ok(nat);
        }
        let name = format!("gpuc-ports-{}", &fs::unique()[..8]);
        let socket = Netlink::open(netlink::Protocol::Netfilter)?;
        carry_out(&socket, &table::make(&name)).map_err(explain).context("make a table of published ports")?;
        let state = State { socket: socket.into(), shared: HashMap::new(), number: 0 };
        let nat = Arc::new(Self { process, cookie, name, state: Mutex::new(state) });
        tables.push(Arc::downgrade(&nat));
        Ok(nat)
    }
}

/// Says which kernel it takes.
fn explain(error: Error) -> Error {
    if error.kind() == ErrorKind::PermissionDenied {
        return error.context("only root (CAP_NET_ADMIN) may have the kernel rewrite addresses");
    }
    error.context("nf_tables with tables that belong to a socket is needed (Linux 5.12)")
}

/// A port of the host for the kernel to serve.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) port: PublishedPort,
    /// Whether an address of IPv4 is in it by a wildcard of IPv6.
    pub(super) both_families: bool,
    /// Whether clients are to be seen with their own addresses, or else not served.
    pub(super) keep_source: bool,
}

/// What the kernel does for one wish, in words, and where the relay is to lead the rest.
#[derive(Clone, Debug)]
pub(super) struct Served {
    /// Whether the kernel serves any of its addresses.
    pub(super) by_kernel: bool,
    pub(super) why: String,
    /// The container's address, for each family of which it has one; at least one of the two.
    targets: [Option<IpAddr>; 2],
}

impl Served {
    /// Where the relay leads clients of one port: `v4` is whether its socket is of IPv4.
    pub(super) fn target(&self, v4: bool, port: u16) -> Option<SocketAddr> {
        let [first, second] = if v4 { self.targets } else { [self.targets[1], self.targets[0]] };
        first.or(second).map(|address| SocketAddr::new(address, port))
    }
}

/// Ports of one container in the table. Dropping it takes them out, and ends their connections.
#[derive(Debug)]
pub(super) struct Link {
    nat: Arc<Nat>,
    /// By the number of the wish.
    entries: Vec<(usize, Entry)>,
    shared: Vec<(&'static str, Vec<u8>)>,
    /// Whether it was taken out.
    out: bool,
}

/// Has the kernel serve all wishes: one change of its rules, or none.
pub(super) fn publish(wishes: &[Wish], namespace: &NetworkNamespace) -> Result<(Vec<Served>, Option<Link>)> {
    check_privilege()?;
    let container = Container::find(namespace)?;
    let mut served = Vec::with_capacity(wishes.len());
    let mut wanted = Vec::new();
    for (number, wish) in wishes.iter().enumerate() {
        let (serve, entries) = plan(wish, &container).with_context(|| format!("publish {}", wish.port))?;
        served.push(serve);
        wanted.extend(entries.into_iter().map(|(entry, way)| (number, entry, way)));
    }
    let link = if wanted.is_empty() { None } else { Some(Link::make(Nat::of_this_namespace()?, wanted)?) };
    Ok((served, link))
}

/// What of a wish the kernel can serve.
fn plan<'a>(wish: &Wish, container: &'a Container) -> Result<(Served, Vec<(Entry, &'a Way)>)> {
    let (mut entries, mut words, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    let mut loopback = false;
    for host in wish.port.hosts() {
        let address = host.ip();
        let families: &[bool] = if wish.both_families { &[true, false] } else { &[address.is_ipv4()] };
        loopback |= address.is_loopback() || address.is_unspecified();
        if address.is_loopback() {
            continue;
        }
        for v4 in families {
            match container.way(*v4) {
                Ok(way) if wish.keep_source && !way.leads_out => {
                    faults.push(format!("{} has no default route by which it would answer its clients", way.address));
                }
                Ok(way) => {
                    let sources = if way.leads_out { "" } else { ", where all clients have the host's address" };
                    words.push(format!("the kernel leads IPv{} to {}{sources}", if *v4 { 4 } else { 6 }, way.address));
                    entries.push((Entry::new(&wish.port, address, way.address), way));
                }
                Err(why) => faults.push(why.clone()),
            }
        }
    }
    if entries.is_empty() {
        if let Some(fault) = faults.first() {
            return Err(Error::new(ErrorKind::Unsupported, format!("nat: {fault}")));
        }
    }
    let targets = [true, false].map(|v4| container.way(v4).ok().map(|way| way.address));
    if targets == [None, None] {
        let why = container.way(true).err().cloned().unwrap_or_default();
        return Err(Error::new(ErrorKind::Unsupported, format!("nat: {why}")));
    }
    words.extend(faults.into_iter().map(|fault| format!("relayed is what {fault}")));
    if loopback {
        words.push("clients on loopback addresses are relayed".to_owned());
    }
    let why = format!("asked for; {}", words.join("; "));
    Ok((Served { by_kernel: !entries.is_empty(), why, targets }, entries))
}

/// What the kernel counted for one wish.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Counts {
    pub(super) accepted: u64,
    pub(super) open: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
}

impl Link {
    fn make(nat: Arc<Nat>, wanted: Vec<(usize, Entry, &Way)>) -> Result<Self> {
        let mut state = lock(&nat.state);
        let mut batch = Batch::begin();
        let place = (table::FAMILY, nat.name.as_str());
        let (mut entries, mut shared) = (Vec::with_capacity(wanted.len()), Vec::new());
        let mut elements: Vec<(&'static str, Vec<Element>)> = Vec::new();
        for (number, mut entry, way) in wanted {
            if entry.is_shifted() {
                state.number = state.number.wrapping_add(1);
                entry.number = state.number;
            }
            entry.elements(&mut elements);
            shared.extend(way.elements());
            entries.push((number, entry));
        }
        for (set, key) in &shared {
            let element = Element { key: key.clone(), ..Element::default() };
            entry::add(&mut elements, set, element);
        }
        // One after the other each would be found in a set of its own size anyway; together they are one change.
        for (set, elements) in &elements {
            batch.new_elements(place, set, elements);
        }
        batch.end();
        carry_out(&state.socket, &batch)?;
        for one in &shared {
            *state.shared.entry(one.clone()).or_default() += 1;
        }
        drop(state);
        let link = Self { nat, entries, shared, out: false };
        // Who sends something from now on is led to the container, and who did before is to be.
        let all: Vec<&Entry> = link.entries.iter().map(|(_, entry)| entry).collect();
        let ended = flows::end_of_others(&all, &lock(&link.nat.state).socket);
        if let Err(error) = ended {
            tracing::warn!(%error, "older connections to a published port may be led elsewhere");
        }
        Ok(link)
    }

    /// What was counted for so many wishes, by their numbers.
    ///
    /// # Errors
    /// The kernel does not say.
    pub(super) fn counts(&self, wishes: usize) -> Result<Vec<Counts>> {
        let mut all = vec![Counts::default(); wishes];
        if self.nat.process != process::own_pid() {
            return Ok(all);
        }
        let state = lock(&self.nat.state);
        let mut used = Vec::new();
        for (number, entry) in &self.entries {
            let Some(counts) = all.get_mut(*number) else { continue };
            let [accepted, inward, outward] = entry.counted().map(|(set, key)| self.count(&state.socket, set, key));
            let accepted = accepted?.packets;
            counts.accepted += accepted;
            counts.bytes_in += inward?.bytes;
            counts.bytes_out += outward?.bytes;
            if accepted > 0 {
                used.push((*number, entry));
            }
        }
        let entries: Vec<&Entry> = used.iter().map(|(_, entry)| *entry).collect();
        for (at, flow) in flows::of(&entries, &state.socket)? {
            let number = used.get(at).map_or(usize::MAX, |(number, _)| *number);
            if let Some(counts) = all.get_mut(number) {
                counts.open += u64::from(flow.open);
            }
        }
        Ok(all)
    }

    fn count(&self, socket: &Netlink, set: &str, key: Element) -> Result<Count> {
        let mut batch = Batch::new();
        batch.get_elements((table::FAMILY, &self.nat.name), set, &[key]);
        let mut sum = Count::default();
        let asked = socket.query(batch.bytes(), |kind, body| sum = read_counts(kind, body));
        asked.map(|()| sum).map_err(|refusal| refusal.into_error(batch.what(1)))
    }

    /// Takes the ports out of the table, and ends their connections.
    ///
    /// # Errors
    /// The kernel refuses, as to a process that has given its privileges up: then all is as it was. If something of what
    /// comes after that fails, the rest is done.
    pub(super) fn take_out(&mut self) -> Result<()> {
        if self.out || self.nat.process != process::own_pid() {
            return Ok(());
        }
        let mut state = lock(&self.nat.state);
        let mut elements = Vec::new();
        for (_, entry) in &self.entries {
            entry.elements(&mut elements);
        }
        // Several entries of one container name the same.
        let mut left = state.shared.clone();
        for one in &self.shared {
            let Some(count) = left.get_mut(one) else { continue };
            *count = count.saturating_sub(1);
            if *count == 0 {
                left.remove(one);
                entry::add(&mut elements, one.0, Element { key: one.1.clone(), ..Element::default() });
            }
        }
        // First what connections are begun by. What counts their bytes has counted the first packet of each by then.
        let (counting, leading): (Vec<_>, Vec<_>) = elements.into_iter().partition(|(set, _)| table::counts_bytes(set));
        self.delete(&state.socket, &leading)?;
        state.shared = left;
        self.out = true;
        let is_used = |entry: &Entry| {
            let [_, (set, key), _] = entry.counted();
            self.count(&state.socket, set, key).map_or(true, |count| count.packets > 0)
        };
        let used: Vec<&Entry> = self.entries.iter().map(|(_, entry)| entry).filter(|entry| is_used(entry)).collect();
        // What can be done is done, whatever else fails.
        let counted = self.delete(&state.socket, &counting);
        counted.and(flows::end(&used, &state.socket))
    }

    /// Whether nobody is led by it any more.
    pub(super) fn is_out(&self) -> bool {
        self.out
    }

    fn delete(&self, socket: &Netlink, elements: &[(&'static str, Vec<Element>)]) -> Result<()> {
        let mut batch = Batch::begin();
        for (set, elements) in elements {
            batch.delete_elements((table::FAMILY, &self.nat.name), set, elements);
        }
        batch.end();
        carry_out(socket, &batch)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Err(error) = self.take_out() {
            tracing::warn!(%error, "published ports could not be taken from the kernel in order");
        }
    }
}

/// As in the IP header.
fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}
