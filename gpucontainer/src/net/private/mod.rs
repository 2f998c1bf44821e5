//! Private networks: addresses, a bridge and a way out for containers of one host.
//!
//! ```text
//! directory  who is in which network: claims, a lock, what members tell those who come later
//! subnet     which addresses a network takes
//! switch     the bridge and the wire to the host; found with a living member, or made
//! rules      what the host lets pass
//! names      /etc/hosts and /etc/resolv.conf
//! ```

mod directory;
mod names;
mod rules;
mod subnet;
mod switch;

pub(crate) use names::resolver;

use self::directory::{Directory, Holder, Living};
use self::subnet::Subnet;
use self::switch::{BRIDGE, Description, Switch};
use super::namespace::NetworkNamespace;
use super::netlink::route::{LOOPBACK, Peer, Route};
use super::netlink::{Batch, carry_out};
use crate::claim::Claim;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::netlink::TableOwner;
use crate::sys::netns::NewNetwork;
use crate::sys::{errno, netns, process};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A network of containers of one host, which reach each other by address and by name, and the outside through the
/// host's addresses.
///
/// It exists as long as somebody is in it, and is one for all processes of the user that name it. Nothing of it is left
/// when the last member is gone, however that came: interfaces, addresses and rules go with the descriptors that the
/// members hold.
///
/// A host whose firewall drops forwarded packets by default, as Docker has it, must let those of the interfaces `gpuc*`
/// pass for members to get out: rules of this library drop packets, and cannot save them from the rules of others.
///
/// Its members cannot reach services of the host, neither on loopback nor on other addresses of it, nor members of other
/// private networks; and nobody outside can begin a connection to a member. Publish ports for that.
///
/// The caller needs `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` where its own network belongs to; in a user namespace with a
/// network of its own these are there.
///
/// ```no_run
/// use gpucontainer::net::PrivateNetwork;
///
/// # fn main() -> gpucontainer::Result<()> {
/// let member = PrivateNetwork::named("default").join("web")?;
/// println!("{} has {:?}", member.name(), member.addresses());
/// let stream = member.namespace()?.dial(8080, None)?;
/// # drop(stream);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
#[must_use]
pub struct PrivateNetwork {
    name: String,
    ipv4: Option<Subnet>,
    ipv6: bool,
    outbound: bool,
    host_access: bool,
}

impl PrivateNetwork {
    /// The network of that name: 1 to 32 letters, digits, '_' and '-', or joining it fails.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ipv4: None, ipv6: true, outbound: true, host_access: false }
    }

    /// The IPv4 network with the first `prefix` bits of `address`: 8 to 29. By default 1,022 addresses below 10.88.0.0 or
    /// 172.28.0.0 to which the host has no route, as a rule the same ones for the same name.
    pub fn ipv4(mut self, address: Ipv4Addr, prefix: u8) -> Self {
        self.ipv4 = Some(Subnet::new(address, prefix.min(32)));
        self
    }

    /// Whether members have IPv6 addresses too, of a unique local network that follows from the name and the machine.
    /// On by default, where the kernel has IPv6.
    pub fn ipv6(mut self, on: bool) -> Self {
        self.ipv6 = on;
        self
    }

    /// Whether members reach what the host reaches, from the host's addresses. On by default.
    ///
    /// A host that forwards no packets (`net.ipv4.ip_forward=0`) is made to do so for the interfaces to which it has
    /// routes, one by one, and stays so. By IPv6 members get out where the host has a default route and either forwards
    /// IPv6 already or can do so for single interfaces (Linux 6.17).
    pub fn outbound(mut self, on: bool) -> Self {
        self.outbound = on;
        self
    }

    /// Whether members reach services of the host, on the gateway's and every other address of it but loopback. Off by
    /// default.
    pub fn host_access(mut self, on: bool) -> Self {
        self.host_access = on;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the hosts file of the network is as long as it lives.
    pub(crate) fn hosts_file(&self) -> Result<PathBuf> {
        Ok(Directory::path_of(&self.name)?.join(directory::HOSTS))
    }

    /// Whether members reach what the host reaches.
    pub(crate) fn leads_out(&self) -> bool {
        self.outbound
    }

    /// Comes into the network with a new network namespace, as `name`: 1 to 63 letters, digits, '.', '_' and '-'.
    ///
    /// # Errors
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) if a member has that name, or the host already has a route to the
    /// addresses; [`InvalidArgument`](ErrorKind::InvalidArgument) for a bad name or address, and if the network lives with
    /// other settings; [`NoSpace`](ErrorKind::NoSpace) if it is full;
    /// [`PermissionDenied`](ErrorKind::PermissionDenied) without the capabilities;
    /// [`Busy`](ErrorKind::Busy) if its members are processes that this one cannot see.
    pub fn join(&self, name: &str) -> Result<NetworkMember> {
        self.join_as(&[name.to_owned()], &[])
    }

    /// The same with further names, and with settings (`net.…`) of the member's namespace.
    pub(crate) fn join_as(&self, names: &[String], settings: &[(String, String)]) -> Result<NetworkMember> {
        let wanted = || {
            let member = names.first().map_or("", String::as_str);
            format!("join private network {} as {member}", self.name)
        };
        self.check(names).and_then(|()| self.enter(names, settings)).with_context(wanted)
    }

    /// Checks what needs nothing but itself.
    pub(crate) fn check(&self, names: &[String]) -> Result<()> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        let bad = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
        if !(1..=32).contains(&self.name.len()) || !self.name.bytes().all(good) {
            return bad(format!("{:?} is not 1 to 32 letters, digits, '_' and '-'", self.name));
        }
        self.ipv4.map_or(Ok(()), Subnet::check)?;
        for name in names {
            let good = (1..=63).contains(&name.len()) && name.bytes().all(|byte| good(byte) || byte == b'.');
            if !good || name.starts_with(['.', '-']) || name == "localhost" {
                return bad(format!("{name:?} is no name for a member: 1 to 63 letters, digits, '.', '_' and '-'"));
            }
        }
        Ok(())
    }

    fn enter(&self, names: &[String], settings: &[(String, String)]) -> Result<NetworkMember> {
        // Outside of the lock: this is most of the work.
        let own = netns::new_network(&defaults(self.ipv6))?;
        netns::configure(own.namespace.as_fd(), settings)?;
        let directory = Directory::enter(&self.name)?;
        let joined = self.wire(&directory, own, names);
        let left = match &joined {
            Err(_) if directory.living().is_ok_and(|living| living.is_empty()) => directory.remove(),
            _ => directory.leave(),
        };
        // The first error is the one to report.
        joined.and_then(|member| left.map(|()| member))
    }

    fn wire(&self, directory: &Directory, own: NewNetwork, names: &[String]) -> Result<NetworkMember> {
        let (mut living, switch, description) = self.find_or_make(directory)?;
        if let Some(name) = names.iter().find(|name| living.iter().any(|member| member.names.contains(name))) {
            let message = format!("a member is called {name} already");
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        let used = |number: &u32| living.iter().any(|member| member.number == *number);
        let Some(number) = description.ipv4.members().find(|number| !used(number)) else {
            let message = format!("all addresses of {} are in use", description.ipv4);
            return Err(Error::new(ErrorKind::NoSpace, message));
        };
        let address = description.ipv4.address(number);
        let address6 = description.ipv6.map(|network| subnet::address6(network, number));
        let holder = holder(process::own_pid(), &switch, |own| own.as_raw_fd());
        let member = Living {
            number,
            names: names.to_vec(),
            addresses: [Some(address.into()), address6.map(IpAddr::V6)].into_iter().flatten().collect(),
            holders: vec![holder],
        };
        let claim = directory.claim(&member)?;
        let addresses = member.addresses.clone();
        living.push(member);
        living.sort_by_key(|member| member.number);
        let connected = connect(&switch, &description, &own, (number, address, address6))
            .and_then(|()| directory.set_hosts(&names::hosts(&living)));
        if let Err(error) = connected {
            // The error to report is the first.
            let _ = claim.release();
            return Err(error);
        }
        let (gateway4, gateway6) = description.gateways();
        Ok(NetworkMember {
            network: self.clone(),
            names: names.to_vec(),
            addresses,
            gateways: [gateway4.map(IpAddr::V4), gateway6.map(IpAddr::V6)].into_iter().flatten().collect(),
            namespace: own.namespace,
            switch,
            claim: Some(claim),
            directory: directory.path().to_owned(),
            hosts: directory.hosts(),
            process: process::own_pid(),
        })
    }

    /// The members, and what keeps the network: from one of them, or made where nobody is in it.
    fn find_or_make(&self, directory: &Directory) -> Result<(Vec<Living>, Switch, Description)> {
        let start = Instant::now();
        loop {
            let living = directory.living()?;
            if living.is_empty() {
                let alone = directory.making()?;
                directory.sweep()?;
                let (switch, description) = switch::make(self)?;
                directory.set_network(&description.to_string())?;
                // Nobody needs it again soon.
                alone.remove()?;
                return Ok((living, switch, description));
            }
            let description = Description::parse(&directory.network()?)
                .ok_or_else(|| Error::new(ErrorKind::Busy, "what the network is was not written by this library"))?;
            match directory.find(&living, description.cookies) {
                Ok(switch) => {
                    self.compare(&description)?;
                    return Ok((living, switch, description));
                }
                // Its last process may be just ending: the kernel closes one descriptor after the other.
                Err(_) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(1)),
                Err(e) => return Err(e),
            }
        }
    }

    fn compare(&self, living: &Description) -> Result<()> {
        let different = self.ipv4.is_some_and(|subnet| subnet != living.ipv4)
            || self.outbound != living.outbound
            || self.host_access != living.host_access
            || !self.ipv6 && living.ipv6.is_some();
        if !different {
            return Ok(());
        }
        let message = format!(
            "it lives with other settings: {}, outbound {}, host access {}, IPv6 {}",
            living.ipv4,
            living.outbound,
            living.host_access,
            living.ipv6.is_some()
        );
        Err(Error::new(ErrorKind::InvalidArgument, message))
    }
}

/// How long a network may take to be found with its members.
const PATIENCE: Duration = Duration::from_secs(1);
/// The index of a member's interface.
const OWN: u32 = 2;
const IPV6_BITS: u8 = 64;

/// What holds in a member's namespace: all ports and echo requests are everybody's, and neighbours do not say where to
/// send packets.
fn defaults(ipv6: bool) -> Vec<(String, String)> {
    let mut settings = vec![
        ("net.ipv4.ip_unprivileged_port_start", "0"),
        ("net.ipv4.ping_group_range", "0 2147483647"),
        ("net.ipv6.conf.default.accept_ra", "0"),
        ("net.ipv6.conf.default.accept_dad", "0"),
    ];
    if !ipv6 {
        settings.push(("net.ipv6.conf.default.disable_ipv6", "1"));
    }
    settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// A process that has the sockets of a network, whose numbers there `number` knows.
fn holder(pid: u32, switch: &Switch, number: impl Fn(BorrowedFd<'_>) -> i32) -> Holder {
    Holder {
        pid,
        switch: number(switch.route.as_fd()),
        rules: switch.rules.as_ref().map(|rules| number(rules.as_fd())),
    }
}

/// Lays the wire from a member to the bridge, and gives it its addresses.
fn connect(
    switch: &Switch,
    description: &Description,
    own: &NewNetwork,
    (number, address, address6): (u32, Ipv4Addr, Option<Ipv6Addr>),
) -> Result<()> {
    let peer =
        Peer { name: "eth0", index: OWN, hardware: Some(subnet::hardware(address)), namespace: own.namespace.as_fd() };
    let port = format!("m{number}");
    let lay = || {
        let mut batch = Batch::new();
        batch.new_pair((&port, switch::port_index()), BRIDGE, &peer);
        carry_out(&switch.route, &batch)
    };
    match lay() {
        // The namespace of a dead member with the address is not taken apart yet, and still talks.
        Err(error) if error.errno() == Some(errno::EEXIST) => {
            let mut batch = Batch::new();
            batch.delete(&port);
            match carry_out(&switch.route, &batch) {
                Err(error) if error.errno() != Some(errno::ENODEV) => return Err(error),
                _ => lay()?,
            }
        }
        made => made?,
    }

    let (gateway4, gateway6) = description.gateways();
    let mut batch = Batch::new();
    batch.up(LOOPBACK);
    batch.up(OWN);
    let on = |destination: (IpAddr, u8), gateway: Option<IpAddr>| Route {
        destination,
        interface: OWN,
        gateway,
        source: None,
        priority: 0,
    };
    let subnet = description.ipv4;
    batch.new_address(OWN, address.into(), subnet.prefix());
    batch.new_route(&on((subnet.network().into(), subnet.prefix()), None));
    if let Some(gateway) = gateway4 {
        batch.new_route(&on((Ipv4Addr::UNSPECIFIED.into(), 0), Some(gateway.into())));
    }
    if let (Some(address), Some(network)) = (address6, description.ipv6) {
        batch.new_address(OWN, address.into(), IPV6_BITS);
        batch.new_route(&on((network.into(), IPV6_BITS), None));
    }
    if let Some(gateway) = gateway6 {
        batch.new_route(&on((Ipv6Addr::UNSPECIFIED.into(), 0), Some(gateway.into())));
    }
    carry_out(&own.route, &batch)
}

/// A network namespace in a private network. Dropping it gives its addresses and its name back.
///
/// What runs in the namespace goes on, and so does the network as long as anything holds the namespace, but the address
/// may become somebody else's. In a process forked from the one that joined, dropping does nothing.
#[derive(Debug)]
pub struct NetworkMember {
    network: PrivateNetwork,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    gateways: Vec<IpAddr>,
    namespace: OwnedFd,
    switch: Switch,
    claim: Option<Claim>,
    directory: PathBuf,
    hosts: PathBuf,
    process: u32,
}

impl NetworkMember {
    /// What it is called in the network.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// Its addresses: IPv4 first, then IPv6 if it has one.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The gateway's addresses: none for a network that leads nowhere.
    pub fn gateways(&self) -> &[IpAddr] {
        &self.gateways
    }

    /// Its network namespace, to dial into or to publish ports of.
    ///
    /// # Errors
    /// No descriptor is left (`EMFILE`).
    pub fn namespace(&self) -> Result<NetworkNamespace> {
        Ok(NetworkNamespace::from_fds(process::duplicate(&self.namespace)?, None))
    }

    /// A file with the names and addresses of all members, in the format of `/etc/hosts`. It is rewritten in place as
    /// members come and go, so it can be mounted.
    pub fn hosts_file(&self) -> &Path {
        &self.hosts
    }

    /// Leaves the network, like dropping.
    ///
    /// # Errors
    /// Those of files in `/run`; the next one to come cleans up then.
    pub fn leave(mut self) -> Result<()> {
        self.give_back()
    }

    /// What keeps the network and the address: a process that holds copies is a member too.
    pub(crate) fn holders(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let sockets = [Some(self.switch.route.as_fd()), self.switch.rules.as_ref().map(AsFd::as_fd)];
        sockets.into_iter().flatten().chain(self.claim.as_ref().map(AsFd::as_fd))
    }

    /// Writes down that a process holds copies, whose numbers there `number` knows.
    pub(crate) fn add_holder(&self, pid: u32, number: impl Fn(BorrowedFd<'_>) -> i32) -> Result<()> {
        let text = holder(pid, &self.switch, number).to_string();
        self.claim.as_ref().map_or(Ok(()), |claim| claim.append(text.as_bytes()))
    }

    /// Leaves all of it to the other processes that hold copies.
    pub(crate) fn forget(&mut self) {
        self.claim = None;
    }

    fn give_back(&mut self) -> Result<()> {
        let Some(claim) = self.claim.take() else { return Ok(()) };
        if self.process != process::own_pid() {
            return Ok(());
        }
        let directory = Directory::at(self.directory.clone()).context("leave a private network")?;
        claim.release()?;
        let living = directory.living()?;
        if living.is_empty() {
            // Copies in processes that are gone by now are none, so this is the last.
            drop(self.switch.rules.take().map(TableOwner::from));
            return directory.remove();
        }
        directory.set_hosts(&names::hosts(&living))?;
        directory.leave()
    }
}

impl AsFd for NetworkMember {
    /// The network namespace, as `setns(2)` takes it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

impl Drop for NetworkMember {
    fn drop(&mut self) {
        if let Err(error) = self.give_back() {
            tracing::warn!(%error, network = self.network.name, "a private network could not be left in order");
        }
    }
}
