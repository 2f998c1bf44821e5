//! The part of the loop that answers calls of `bind(2)`; see [`inject`](crate::net::inject).

use super::engine::{Engine, Entry, Listener, Which};
use super::{Counters, Offer, Partner};
use crate::error::Result;
use crate::net::inject::{Wanted, Wish, examine};
use crate::net::mapping::Protocol;
use crate::net::mode::{PortMode, SourceAddress};
use crate::sys::datagram;
use crate::sys::hostport::{Kind, listen_beside, stop_listening};
use crate::sys::notify::{self, Bind, Next};
use crate::sys::peer::{self, copy_options, namespace_cookie};
use crate::sys::rewatch::rewatch;
use crate::sys::socket::{self, number};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Calls answered before the others have their turn.
const BIND_TURN: usize = 16;

/// Of how many sockets that a container was given is remembered which they are; the oldest are closed by now, unless it
/// has more workers than that.
const GIVEN_MAX: usize = 1024;

/// How long a published port that is taken is tried again. The socket of a server that has just ended may have a copy in a
/// child that the host has just forked, until that executes something.
const PATIENCE: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_millis(1);
/// How many binds of a container wait so at once; more are answered.
const LATE_MAX: usize = 4;

/// A listener of a filter.
#[derive(Debug)]
pub(super) struct Watch {
    watch: u64,
    listener: Arc<OwnedFd>,
    /// Calls that are tried again, and until when.
    late: Vec<(Bind, Instant)>,
}

/// What a bind is answered with.
enum Choice {
    /// The port of that slot, which is relayed so far.
    Relayed(usize),
    /// The port of that slot, and the socket made for it.
    Made(usize, OwnedFd),
    /// Nothing of the host's.
    Nothing,
}

impl Engine {
    pub(super) fn watch(&mut self, watch: u64, listener: OwnedFd) -> Result<()> {
        let index = self.reserve_slot();
        self.epoll.add_level(&listener, self.token(index, Which::First))?;
        self.put(index, Entry::Binds(Watch { watch, listener: Arc::new(listener), late: Vec::new() }));
        Ok(())
    }

    pub(super) fn unwatch(&mut self, watch: u64) -> Vec<OwnedFd> {
        let mut given_back = Vec::new();
        for index in 0..self.slots.len() {
            let Some(Entry::Binds(watched)) = self.slots.get_mut(index).and_then(|slot| slot.entry.as_mut()) else {
                continue;
            };
            if watched.watch == watch {
                let listener = Arc::clone(&watched.listener);
                // Nobody else hears of what was heard already.
                std::mem::take(&mut watched.late).into_iter().for_each(|(bind, _)| {
                    bind.answer(&*listener, number::EADDRINUSE);
                });
                // It may live on elsewhere, and be reported for ever.
                let _ = self.epoll.remove(&*listener);
                self.remove(index);
                given_back.extend(Arc::into_inner(listener));
            }
        }
        given_back
    }

    pub(super) fn answer_binds(&mut self, index: usize) {
        let Some(Entry::Binds(watched)) = self.slots.get(index).and_then(|slot| slot.entry.as_ref()) else { return };
        let (watch, listener) = (watched.watch, Arc::clone(&watched.listener));
        for _ in 0..BIND_TURN {
            match notify::next(&*listener) {
                Ok(Next::Bind(bind)) => self.answer(index, watch, &listener, bind, None),
                Ok(Next::Nothing) => return,
                Ok(Next::Over) => return self.remove(index),
                Err(error) => {
                    tracing::error!("binds of a container are answered no more: {error}");
                    return self.remove(index);
                }
            }
        }
    }

    /// Tries those again that found their port taken.
    pub(super) fn answer_late(&mut self) {
        for index in 0..self.slots.len() {
            let entry = self.slots.get_mut(index).and_then(|slot| slot.entry.as_mut());
            let Some(Entry::Binds(watched)) = entry else { continue };
            let (watch, listener) = (watched.watch, Arc::clone(&watched.listener));
            for (bind, until) in std::mem::take(&mut watched.late) {
                self.answer(index, watch, &listener, bind, Some(until));
            }
        }
    }

    fn answer(&mut self, index: usize, watch: u64, listener: &OwnedFd, bind: Bind, until: Option<Instant>) {
        match examine(&bind, listener, self.host_namespace()) {
            Wish::GoOn => bind.go_on(listener),
            Wish::Fail(errno) => bind.answer(listener, errno),
            Wish::Bind(wanted) => {
                let ports = if peer::is_bound(&wanted.socket) { Vec::new() } else { self.ports_for(watch, &wanted) };
                let result = self.bind(&ports, listener, bind, wanted);
                let taken = result == Err(number::EADDRINUSE) && !ports.is_empty();
                if !(taken && self.try_again(index, bind, until)) {
                    bind.answer(listener, result.err().unwrap_or(0));
                }
            }
        }
    }

    /// Whether the call is to wait a little for its port.
    fn try_again(&mut self, index: usize, bind: Bind, until: Option<Instant>) -> bool {
        let now = Instant::now();
        let until = until.unwrap_or(now + PATIENCE);
        let entry = self.slots.get_mut(index).and_then(|slot| slot.entry.as_mut());
        let Some(Entry::Binds(watched)) = entry else { return false };
        if now >= until || watched.late.len() >= LATE_MAX {
            return false;
        }
        watched.late.push((bind, until));
        self.wake_at(now + RETRY);
        true
    }

    fn host_namespace(&mut self) -> u64 {
        if let Some(known) = self.host_namespace {
            return known;
        }
        let socket = socket::open(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
        let name = socket.map(|socket| namespace_cookie(&socket)).unwrap_or_default();
        if name != 0 {
            self.host_namespace = Some(name);
        }
        name
    }

    /// Binds the container's socket where it wants, and puts one of the host's in its place if the port is published.
    fn bind(&mut self, ports: &[usize], listener: &OwnedFd, bind: Bind, wanted: Wanted) -> Result<(), i32> {
        let kind = Kind { v6: wanted.kind.v6, shared: wanted.shared, locked: true };
        let vacated = self.close_stale(ports);
        let _over = vacated.then(|| socket::BoundOver::prepare(&wanted.socket));
        let choice = self.choose(ports, kind);
        let bound = peer::bind(&wanted.socket, wanted.address);
        let (index, made) = match choice {
            Choice::Nothing => return bound,
            Choice::Made(index, made) => (index, made),
            Choice::Relayed(index) => match bound.map(|()| self.take_over(index, kind))? {
                Some(made) => (index, made),
                None => return Ok(()),
            },
        };
        let given = bound.and_then(|()| self.give(index, listener, bind, wanted, &made));
        if given.is_err() {
            socket::vacate(&made);
        }
        given
    }

    /// The slots of the ports that the socket could serve, the best first.
    fn ports_for(&self, watch: u64, wanted: &Wanted) -> Vec<usize> {
        let mapped = matches!(wanted.address.ip(), IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
        let mut found = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let Some(Entry::Listener(listener)) = &slot.entry else { continue };
            let Some(inject) = &listener.inject else { continue };
            let same = inject.watch == watch && listener.port.container_port() == wanted.address.port();
            let (v6, udp) = (listener.port.host().is_ipv6(), listener.port.protocol() == Protocol::Udp);
            // A program with a socket of IPv4 does not understand addresses of IPv6.
            let understood = !v6 || (wanted.kind.v6 && !mapped) || (udp && listener.port.host().ip().is_unspecified());
            let fits = understood && if udp { wanted.kind.udp } else { wanted.kind.tcp };
            if same && fits && wanted.kind.namespace == inject.namespace {
                found.push((v6 != wanted.only_v6, index));
            }
        }
        found.sort_unstable();
        found.into_iter().map(|(_, index)| index).collect()
    }

    fn port(&self, index: usize) -> Option<&Listener> {
        match self.slots.get(index)?.entry.as_ref()? {
            Entry::Listener(listener) => Some(listener),
            _ => None,
        }
    }

    fn port_mut(&mut self, index: usize) -> Option<&mut Listener> {
        match self.slots.get_mut(index)?.entry.as_mut()? {
            Entry::Listener(listener) => Some(listener),
            _ => None,
        }
    }

    fn choose(&self, ports: &[usize], kind: Kind) -> Choice {
        for &index in ports {
            match self.port(index) {
                Some(port) if port.listens => return Choice::Relayed(index),
                // That another one listens is not yet an error: inside it may be bound to another address.
                Some(port) => match listen_beside(&port.socket, port.suit(kind)) {
                    Ok(made) => return Choice::Made(index, made),
                    Err(errno) if errno == number::EADDRINUSE => {}
                    Err(errno) => port.counters.note(&socket::error("make a socket of the host", errno)),
                },
                None => {}
            }
        }
        Choice::Nothing
    }

    /// Closes the listener inside of a port.
    fn close_inside(&mut self, index: usize) {
        let inside = self.port_mut(index).and_then(|port| port.inject.as_mut()?.inside.take());
        if let Some(inside) = inside {
            self.forget_clients(inside);
            if self.port(inside).is_some() {
                // Who has connected already is not to be lost with it.
                self.accept_all(inside);
            }
            if let Some(port) = self.port(inside) {
                socket::vacate(&port.socket);
            }
            self.remove(inside);
        }
    }

    /// Closes the listeners inside of ports whose servers are gone: they would keep the next ones from their address.
    /// Whether there were any.
    fn close_stale(&mut self, ports: &[usize]) -> bool {
        let mut closed = false;
        for &index in ports {
            let has_inside = |port: &&Listener| port.inject.as_ref().is_some_and(|inject| inject.inside.is_some());
            let port = self.port(index).filter(has_inside);
            // Only beside none that listens another one can be made.
            let alone = |port: &Listener| Kind { v6: port.port.host().is_ipv6(), shared: false, locked: false };
            // A child that the host forks now has a copy of it, which is not to be in the next one's way.
            let probe = |port: &Listener| listen_beside(&port.socket, alone(port)).map(socket::vacate);
            if port.is_some_and(|port| probe(port).is_ok()) {
                self.close_inside(index);
                closed = true;
            }
        }
        closed
    }

    /// Relays a port no more, and makes the first socket that serves it. `None` goes on as before.
    fn take_over(&mut self, index: usize, kind: Kind) -> Option<OwnedFd> {
        // Those that have connected already are served as they would have been.
        self.accept_all(index);
        if self.port(index).is_some_and(|port| port.resting_until.is_some()) {
            // There is no room for them now.
            return None;
        }
        let token = self.token(index, Which::First);
        let listener = match self.slots.get_mut(index)?.entry.take()? {
            Entry::Listener(listener) => listener,
            other => {
                self.put(index, other);
                return None;
            }
        };
        let kind = listener.suit(kind);
        let unwatched = self.epoll.remove(&listener.socket);
        let made = unwatched.and_then(|()| stop_listening(&listener.socket)).and_then(|()| {
            listen_beside(&listener.socket, kind).map_err(|errno| socket::error("make a socket of the host", errno))
        });
        let listens = match &made {
            Ok(_) => false,
            Err(error) => {
                listener.counters.turn_to(PortMode::Relay, error.to_string());
                let again = socket::start_listening(&listener.socket);
                again.is_ok() && self.epoll.add_level(&listener.socket, token).is_ok()
            }
        };
        self.put(index, Entry::Listener(Listener { listens, ..listener }));
        made.ok()
    }

    /// Puts the socket that was made in the place of the container's, which from now on listens for clients inside.
    fn give(
        &mut self,
        index: usize,
        listener: &OwnedFd,
        bind: Bind,
        wanted: Wanted,
        made: &OwnedFd,
    ) -> Result<(), i32> {
        let Some(port) = self.port(index) else { return Ok(()) };
        let (published, publication, counters) = (port.port, port.publication, Arc::clone(&port.counters));
        let errno_of = |error: crate::error::Error| error.errno().unwrap_or(number::EINVAL);
        copy_options(&wanted.socket, made).map_err(errno_of)?;
        self.bring_to_watchers(bind, &wanted, made, &counters);
        let close_on_exec = wanted.peer.closes_on_exec(bind.descriptor);
        socket::set_nonblocking(&wanted.socket).map_err(errno_of)?;
        let on_host = reachable(published.host());
        let inside = if wanted.kind.udp {
            self.lead_datagrams_to(on_host, wanted, index)
        } else {
            socket::start_listening(&wanted.socket)?;
            let inside = Listener::new(wanted.socket, published, publication, Arc::clone(&counters));
            self.add_listener(Listener { on_host: Some(on_host), ..inside })
        };
        let inside = inside.map_err(errno_of)?;
        if let Err(errno) = bind.replace(listener, made, close_on_exec) {
            self.forget_clients(inside);
            self.remove(inside);
            return Err(errno);
        }
        self.close_inside(index);
        let inject = self.port_mut(index).and_then(|port| port.inject.as_mut());
        let Some(inject) = inject else { return Ok(()) };
        inject.inside = Some(inside);
        if inject.given.len() >= GIVEN_MAX {
            inject.given.remove(0);
        }
        inject.given.extend(peer::inode(made));
        let watch = inject.watch;
        counters.turn_to(PortMode::Inject, "the program bound it and has a socket of the host");
        for slot in &mut self.slots {
            let Some(Entry::Listener(other)) = &mut slot.entry else { continue };
            let same = other.inject.as_ref().is_some_and(|inject| inject.watch == watch);
            if same && other.listens && other.port.container_port() == published.container_port() {
                other.on_host = Some(on_host);
                if Arc::ptr_eq(&other.counters, &counters) {
                    // Another address of the same port.
                    continue;
                }
                other.counters.turn_to(PortMode::Relay, format!("the program has the socket of {}", published.host()));
            }
        }
        Ok(())
    }

    /// Leads clients inside from the socket that the container has bound to an address of the host.
    fn lead_datagrams_to(&mut self, on_host: SocketAddr, wanted: Wanted, index: usize) -> Result<usize> {
        let Some(port) = self.port(index) else { return Err(super::ended()) };
        datagram::want_data_alone(&wanted.socket);
        if wanted.address.ip().is_unspecified() {
            datagram::tell_destination(&wanted.socket, wanted.address.is_ipv6())?;
        }
        let (publication, idle) = (port.publication, port.idle);
        let offer = Offer {
            port: port.port,
            socket: wanted.socket,
            counters: Arc::clone(&port.counters),
            listens: true,
            inject: None,
            unlocked: false,
            to: Partner::Host(on_host),
            idle,
            source: SourceAddress::Loopback,
        };
        self.add_datagrams(publication, offer)
    }

    /// Makes epoll instances that watch the container's socket already watch the host's.
    fn bring_to_watchers(&self, bind: Bind, wanted: &Wanted, made: &OwnedFd, counters: &Counters) {
        for watched in wanted.peer.watched(bind.descriptor) {
            let instance = wanted.peer.descriptor(watched.instance);
            let moved = instance
                .map_err(|errno| socket::error("pidfd_getfd(epoll)", errno))
                .and_then(|instance| rewatch(instance.as_fd(), watched, wanted.socket.as_fd(), made.as_fd()));
            if let Err(error) = moved {
                counters.note(&error);
            }
        }
    }
}

/// An address by which a program of the host reaches what listens on `address`.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}
