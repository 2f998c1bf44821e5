//! UDP: each client of a port has a socket of its own towards the server, by which answers find back to it.
//!
//! ```text
//! client A ─┐                                     ┌─ flow A ─┐
//!           ├─ socket of the host ── gpuc-relay ──┤          ├─ server
//! client B ─┘                                     └─ flow B ─┘
//! ```
//! A client is known until it has been idle for its time, and a port has so many at most: then the one that has been idle
//! the longest is forgotten. What cannot be passed on now is lost, as datagrams may be.

use super::clients::is_shortage;
use super::dial::{family_of, other};
use super::engine::{Engine, Entry, Which};
use super::idle::Idle;
use super::{Counters, Offer, Partner, ended};
use crate::error::{Error, ErrorKind, Result};
use crate::net::namespace::is_not_there;
use crate::net::port::PublishedPort;
use crate::sys::datagram::{self, Way};
use crate::sys::netns::Family;
use crate::sys::socket::{self, Outcome, number};
use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How many clients give way to a new one at most where descriptors are short: a child that makes sockets has several more
/// for a moment, and a shortage that is not of this process's making is not cured by it.
const GIVE_WAY: usize = 16;
/// Datagrams passed on before the others have their turn.
const DATAGRAM_TURN: usize = 64;
/// How often a socket may wake the relay for nothing before it is watched no more: a container can have its own do that.
const FRUITLESS: u8 = 16;
/// Clients that a port knows at most; each takes a descriptor.
const CLIENTS_MAX: usize = 1024;

/// A port of UDP on one address of the host.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: Arc<OwnedFd>,
    port: PublishedPort,
    pub(super) publication: u64,
    counters: Arc<Counters>,
    to: Partner,
    idle: Option<Duration>,
    /// The loopback address where a server was last, tried first.
    family: Family,
    /// The slots of the clients that are known.
    clients: HashMap<Way, usize>,
    /// How often in a row it was ready without a datagram.
    fruitless: u8,
}

/// One client of a port, and the socket by which the server sees it.
#[derive(Debug)]
pub(super) struct Flow {
    socket: OwnedFd,
    /// The socket of the host, for answers.
    host: Arc<OwnedFd>,
    /// The slot of its port.
    port: usize,
    client: Way,
    pub(super) publication: u64,
    counters: Arc<Counters>,
    pub(super) idle: Option<Idle>,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.counters.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Datagrams {
    fn address(&self, family: Family) -> SocketAddr {
        match (self.to, family) {
            (Partner::Host(address), _) => address,
            (Partner::Inside, Family::V4) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.port.container_port()),
            (Partner::Inside, Family::V6) => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), self.port.container_port()),
        }
    }
}

impl Engine {
    /// Serves the clients of a port; its slot.
    pub(super) fn add_datagrams(&mut self, publication: u64, offer: Offer) -> Result<usize> {
        let index = self.reserve_slot();
        let added = self.epoll.add_level(&offer.socket, self.token(index, Which::First));
        let family = match offer.to {
            Partner::Host(address) => family_of(address),
            Partner::Inside => Family::V4,
        };
        self.put(
            index,
            Entry::Datagrams(Box::new(Datagrams {
                socket: Arc::new(offer.socket),
                port: offer.port,
                publication,
                counters: offer.counters,
                to: offer.to,
                idle: offer.idle,
                family,
                clients: HashMap::new(),
                fruitless: 0,
            })),
        );
        if added.is_err() {
            self.remove(index);
        }
        added.map(|()| index)
    }

    /// Forgets all clients of a port, if there is one of UDP.
    pub(super) fn forget_clients(&mut self, index: usize) {
        if let Some(Entry::Datagrams(port)) = self.slots.get_mut(index).and_then(|slot| slot.entry.as_mut()) {
            let clients = std::mem::take(&mut port.clients);
            clients.into_values().for_each(|client| self.remove(client));
        }
    }

    /// Passes on what clients have sent to a port.
    pub(super) fn take_datagrams(&mut self, index: usize) {
        let Some(Entry::Datagrams(mut port)) = self.slots.get_mut(index).and_then(|slot| slot.entry.take()) else {
            return;
        };
        // Out of its place meanwhile, so that nothing else may end it; clients that give way are taken out of it here.
        let mut buffer = std::mem::take(self.bench.buffer());
        let mut fruitless = port.fruitless.saturating_add(1);
        for _ in 0..DATAGRAM_TURN {
            match datagram::receive_from(&*port.socket, &mut buffer) {
                Ok(Some((bytes, way))) => {
                    fruitless = 0;
                    let bytes = buffer.get(..bytes).unwrap_or_default();
                    self.pass_on(index, &mut port, way, bytes);
                }
                Ok(None) => break,
                // The error of a datagram that was sent before, as of a client that is gone.
                Err(errno) if is_passing(errno) => {}
                Err(errno) => {
                    port.counters.note(&socket::error(format!("recvmsg({})", port.port.host()), errno));
                    break;
                }
            }
        }
        *self.bench.buffer() = buffer;
        port.fruitless = fruitless;
        if fruitless == FRUITLESS {
            // Everything else is served by the same thread.
            let _ = self.epoll.remove(&*port.socket);
            let words = format!("datagrams for {} are passed on no more: its socket is ready and has none", port.port);
            port.counters.note(&Error::new(ErrorKind::SystemCall, words));
        }
        self.put(index, Entry::Datagrams(port));
    }

    /// Passes one datagram on, as its client's first or its next.
    fn pass_on(&mut self, index: usize, port: &mut Datagrams, client: Way, bytes: &[u8]) {
        let known = port.clients.get(&client).copied();
        let Some(slot) = known.or_else(|| self.admit_client(index, port, client)) else { return };
        let now = self.now;
        let Some(Entry::Flow(flow)) = self.slots.get_mut(slot).and_then(|slot| slot.entry.as_mut()) else { return };
        if let Some(idle) = &mut flow.idle {
            idle.since = now;
        }
        let sent = socket::send(&flow.socket, bytes);
        // Within one host the answer that nobody is there has come by the time that the call returns.
        let fault = match (sent, known) {
            (Outcome::Moved(_), Some(_)) => None,
            (Outcome::Moved(_), None) => socket::take_error(&flow.socket),
            // There is no room; datagrams may be lost.
            (Outcome::NotNow, _) => return,
            (Outcome::Failed(errno), _) => Some(errno),
        };
        let Some(errno) = fault else {
            port.counters.bytes_in.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            return;
        };
        self.drop_client(port, client);
        let both = port.to == Partner::Inside && is_not_there(Some(errno));
        let retried = both.then(|| self.try_other(index, port, client, bytes)).flatten();
        if retried.is_none() {
            let failed = format!("send({}) for a client of {}", port.address(port.family), port.port);
            port.counters.refuse(&socket::error(failed, errno));
        }
    }

    /// Tries whether a server is at the other loopback address.
    fn try_other(&mut self, index: usize, port: &mut Datagrams, client: Way, bytes: &[u8]) -> Option<()> {
        let before = port.family;
        port.family = other(before);
        let slot = self.admit_client(index, port, client);
        let there = slot.is_some_and(|slot| match self.slots.get(slot).and_then(|slot| slot.entry.as_ref()) {
            Some(Entry::Flow(flow)) => {
                matches!(socket::send(&flow.socket, bytes), Outcome::Moved(_))
                    && socket::take_error(&flow.socket).is_none()
            }
            _ => false,
        });
        if there {
            port.counters.bytes_in.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            return Some(());
        }
        self.drop_client(port, client);
        port.family = before;
        None
    }

    /// Makes a client known; its slot.
    fn admit_client(&mut self, index: usize, port: &mut Datagrams, client: Way) -> Option<usize> {
        if port.clients.len() >= CLIENTS_MAX {
            self.drop_longest_idle(port);
        }
        let mut made = self.flow_socket(port);
        let short = |made: &Result<OwnedFd>| made.as_ref().is_err_and(|error| error.errno().is_some_and(is_shortage));
        for _ in 0..GIVE_WAY {
            if !(short(&made) && self.drop_longest_idle(port)) {
                break;
            }
            made = self.flow_socket(port);
        }
        let slot = self.reserve_slot();
        let watched = made.and_then(|socket| {
            socket::connect(&socket, port.address(port.family)).map_err(|errno| {
                socket::error(format!("connect({}) in the container", port.address(port.family)), errno)
            })?;
            self.epoll.add_level(&socket, self.token(slot, Which::First))?;
            Ok(socket)
        });
        let socket = match watched {
            Ok(socket) => socket,
            Err(error) => {
                port.counters.refuse(&error);
                self.release_slot(slot);
                return None;
            }
        };
        let idle = port.idle.map(|limit| Idle { limit, since: self.now });
        if let Some(idle) = idle {
            self.wake_at(idle.end());
        }
        port.counters.accepted.fetch_add(1, Ordering::Relaxed);
        port.counters.open.fetch_add(1, Ordering::Relaxed);
        let flow = Flow {
            socket,
            host: Arc::clone(&port.socket),
            port: index,
            client,
            publication: port.publication,
            counters: Arc::clone(&port.counters),
            idle,
        };
        self.put(slot, Entry::Flow(Box::new(flow)));
        port.clients.insert(client, slot);
        Some(slot)
    }

    fn flow_socket(&mut self, port: &Datagrams) -> Result<OwnedFd> {
        match port.to {
            Partner::Host(address) => socket::open_datagrams(address),
            Partner::Inside => {
                let inside = self.insides.get_mut(&port.publication).ok_or_else(ended)?;
                let socket = inside.datagram_socket(port.family);
                self.wake_at(self.now + super::pool::KEEP);
                socket
            }
        }
    }

    /// Passes on what the server has sent to a client.
    pub(super) fn answer_client(&mut self, index: usize) {
        let now = self.now;
        let mut buffer = std::mem::take(self.bench.buffer());
        let mut gone = None;
        if let Some(Entry::Flow(flow)) = self.slots.get_mut(index).and_then(|slot| slot.entry.as_mut()) {
            for _ in 0..DATAGRAM_TURN {
                match socket::receive(&flow.socket, &mut buffer) {
                    Outcome::Moved(bytes) => {
                        if let Some(idle) = &mut flow.idle {
                            idle.since = now;
                        }
                        let bytes = buffer.get(..bytes).unwrap_or_default();
                        let total = &flow.counters.bytes_out;
                        // Before it is sent, so that whoever has it finds it counted.
                        total.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        // No room, or a client that cannot be reached: datagrams may be lost.
                        if datagram::send_to(flow.host.as_fd(), bytes, flow.client).is_err() {
                            total.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
                        }
                    }
                    Outcome::NotNow => break,
                    Outcome::Failed(errno) => {
                        gone = Some(errno);
                        break;
                    }
                }
            }
            if let Some(errno) = gone {
                flow.counters.refuse(&socket::error("recv() from the server", errno));
            }
        }
        *self.bench.buffer() = buffer;
        if gone.is_some() {
            // The next datagram of the client looks for the server anew.
            self.forget_client(index);
        }
    }

    /// Forgets a client.
    pub(super) fn forget_client(&mut self, index: usize) {
        let Some(Entry::Flow(flow)) = self.slots.get(index).and_then(|slot| slot.entry.as_ref()) else { return };
        let (port, client) = (flow.port, flow.client);
        if let Some(Entry::Datagrams(port)) = self.slots.get_mut(port).and_then(|slot| slot.entry.as_mut()) {
            if port.clients.get(&client) == Some(&index) {
                port.clients.remove(&client);
            }
        }
        self.remove(index);
    }

    fn drop_client(&mut self, port: &mut Datagrams, client: Way) {
        if let Some(slot) = port.clients.remove(&client) {
            self.remove(slot);
        }
    }

    /// Makes room for another client; whether that was possible.
    fn drop_longest_idle(&mut self, port: &mut Datagrams) -> bool {
        let since = |slot: &usize| match self.slots.get(*slot).and_then(|slot| slot.entry.as_ref()) {
            Some(Entry::Flow(flow)) => flow.idle.map(|idle| idle.since),
            _ => None,
        };
        let longest = port.clients.iter().min_by_key(|(_, slot)| since(slot)).map(|(client, _)| *client);
        longest.is_some_and(|client| {
            self.drop_client(port, client);
            true
        })
    }
}

/// Errors of earlier datagrams, which the socket reports once.
fn is_passing(errno: i32) -> bool {
    use number::{ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETUNREACH};
    matches!(errno, ECONNREFUSED | EHOSTDOWN | EHOSTUNREACH | ENETDOWN | ENETUNREACH)
}
