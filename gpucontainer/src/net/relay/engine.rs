//! The loop of the relay's thread.

use super::binds::Watch;
use super::connection::{Connection, Next, Workbench};
use super::datagrams::{Datagrams, Flow};
use super::dial::Inside;
use super::pool::KEEP;
use super::{Command, Counters, Offer, Partner};
use crate::error::Result;
use crate::net::mapping::Protocol;
use crate::net::mode::SourceAddress;
use crate::net::namespace::NetworkNamespace;
use crate::net::port::PublishedPort;
use crate::sys::epoll::{Epoll, Ready, Wake};
use crate::sys::hostport::Kind;
use crate::sys::netns::Family;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

/// Belongs to no slot.
const WAKE_TOKEN: u64 = u64::MAX;

/// One published port.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    pub(super) port: PublishedPort,
    pub(super) publication: u64,
    pub(super) counters: Arc<Counters>,
    /// Its clients are led to this address of the host instead of into the container.
    pub(super) on_host: Option<SocketAddr>,
    /// Whether it takes clients; else it keeps the port for sockets that the container has.
    pub(super) listens: bool,
    pub(super) inject: Option<Inject>,
    /// How long its connections may be idle.
    pub(super) idle: Option<Duration>,
    /// How the server learns who its clients are.
    pub(super) source: SourceAddress,
    /// The loopback address that answered last, tried first.
    pub(super) family: Family,
    pub(super) resting_until: Option<Instant>,
    pub(super) queued: bool,
    /// At which waking of the loop it last had a client.
    pub(super) busy_at: u64,
}

/// What is known of a port that is injected.
#[derive(Clone, Debug)]
pub(super) struct Inject {
    /// Which watch hears of the container's binds.
    pub(super) watch: u64,
    /// The network namespace in which they count.
    pub(super) namespace: u64,
    /// The slot of the listener inside, by which the container reaches its own port.
    pub(super) inside: Option<usize>,
    /// The inodes of sockets that the container was given. Those that it has closed are not told from the others.
    pub(super) given: Vec<u64>,
    /// Whether what it is given may do anything that a socket of the host can.
    pub(super) unlocked: bool,
}

impl Listener {
    /// The kind of socket that a container is given for this port, if it wants one of `kind`.
    pub(super) fn suit(&self, kind: Kind) -> Kind {
        Kind { locked: self.inject.as_ref().is_none_or(|inject| !inject.unlocked), ..kind }
    }

    pub(super) fn new(socket: OwnedFd, port: PublishedPort, publication: u64, counters: Arc<Counters>) -> Self {
        Self {
            socket,
            port,
            publication,
            counters,
            on_host: None,
            listens: true,
            inject: None,
            idle: None,
            source: SourceAddress::Loopback,
            family: Family::V4,
            resting_until: None,
            queued: false,
            busy_at: 0,
        }
    }
}

#[derive(Debug)]
pub(super) enum Entry {
    Listener(Listener),
    Connection(Box<Connection>),
    /// Hears of calls of `bind(2)`.
    Binds(Watch),
    /// A port of UDP.
    Datagrams(Box<Datagrams>),
    /// One client of such a port.
    Flow(Box<Flow>),
}

/// A place for an entry. The generation tells events of the entry from late ones of its predecessor.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) generation: u32,
    pub(super) entry: Option<Entry>,
}

/// Which of the two sockets of a connection an event is about; a listener has the first alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Which {
    First,
    Second,
}

/// What an event carries: 32 bits of generation, 31 of slot, 1 of side.
fn token(index: usize, generation: u32, which: Which) -> u64 {
    (u64::from(generation) << 32) | ((index as u64) << 1) | u64::from(which == Which::Second)
}

fn untoken(token: u64) -> (usize, u32, Which) {
    let index = usize::try_from((token & u64::from(u32::MAX)) >> 1).unwrap_or(usize::MAX);
    let generation = u32::try_from(token >> 32).unwrap_or(u32::MAX);
    (index, generation, if token & 1 == 0 { Which::First } else { Which::Second })
}

/// Everything that the thread owns.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) epoll: Epoll,
    wake: Arc<Wake>,
    commands: Receiver<Command>,
    /// By publication.
    pub(super) insides: HashMap<u64, Inside>,
    pub(super) slots: Vec<Slot>,
    free: Vec<usize>,
    /// Entries that have more to do without an event.
    again: VecDeque<(usize, u32)>,
    pub(super) bench: Workbench,
    /// When something is to be looked after, at the earliest.
    timer: Option<Instant>,
    /// What the time was when the loop last woke.
    pub(super) now: Instant,
    /// How often it woke.
    pub(super) wakes: u64,
    /// Names the host's network namespace, once it was asked for.
    pub(super) host_namespace: Option<u64>,
}

impl Engine {
    pub(super) fn new(wake: Arc<Wake>, commands: Receiver<Command>) -> Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add_level(&*wake, WAKE_TOKEN)?;
        Ok(Self {
            epoll,
            wake,
            commands,
            insides: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            again: VecDeque::new(),
            bench: Workbench::new(),
            timer: None,
            now: Instant::now(),
            wakes: 1,
            host_namespace: None,
        })
    }

    /// Runs until told to stop.
    pub(super) fn run(mut self) {
        let mut ready = Vec::new();
        loop {
            let now = Instant::now();
            let timeout = match self.timer {
                _ if !self.again.is_empty() => Some(Duration::ZERO),
                timer => timer.map(|at| at.saturating_duration_since(now)),
            };
            if let Err(error) = self.epoll.wait(timeout, &mut ready) {
                // Only a damaged descriptor table does that: somebody closed what is not theirs.
                tracing::error!("gpuc-relay ends: {error}");
                return;
            }
            self.now = Instant::now();
            self.wakes = self.wakes.wrapping_add(1);
            let mut woken = false;
            for event in ready.drain(..) {
                if event.token == WAKE_TOKEN {
                    woken = true;
                } else {
                    self.handle(event);
                }
            }
            for _ in 0..self.again.len() {
                if let Some((index, generation)) = self.again.pop_front() {
                    self.go_on(index, generation);
                }
            }
            if self.timer.is_some_and(|at| at <= Instant::now()) {
                self.look_after();
            }
            if woken && !self.obey() {
                return;
            }
        }
    }

    /// Does what was asked for; `false` is the end.
    fn obey(&mut self) -> bool {
        self.wake.clear();
        loop {
            // An answer that nobody waits for any more is no loss.
            match self.commands.try_recv() {
                Ok(Command::Watch { watch, listener, done }) => {
                    let _ = done.send(self.watch(watch, listener));
                }
                Ok(Command::Unwatch { watch, done }) => {
                    let _ = done.send(self.unwatch(watch));
                }
                Ok(Command::Publish { id, offers, namespace, watch, done }) => {
                    let result = self.publish(id, offers, namespace, watch);
                    if result.is_err() {
                        self.close(id);
                    }
                    let _ = done.send(result);
                }
                Ok(Command::Close { id, done }) => {
                    let _ = done.send(self.close(id));
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn publish(&mut self, id: u64, offers: Vec<Offer>, namespace: NetworkNamespace, watch: Option<u64>) -> Result<()> {
        self.insides.insert(id, Inside::new(namespace));
        for offer in offers {
            if offer.port.protocol() == Protocol::Udp && watch.zip(offer.inject).is_none() {
                self.add_datagrams(id, offer)?;
                continue;
            }
            let mut listener = Listener::new(offer.socket, offer.port, id, offer.counters);
            (listener.listens, listener.idle, listener.source) = (offer.listens, offer.idle, offer.source);
            if let Partner::Host(address) = offer.to {
                listener.on_host = Some(address);
            }
            let unlocked = offer.unlocked;
            let inject = |(watch, namespace)| Inject { watch, namespace, inside: None, given: Vec::new(), unlocked };
            listener.inject = watch.zip(offer.inject).map(inject);
            self.add_listener(listener)?;
        }
        Ok(())
    }

    /// Serves the clients of a listener, if it listens; its slot.
    pub(super) fn add_listener(&mut self, listener: Listener) -> Result<usize> {
        let index = self.reserve_slot();
        if listener.listens {
            let added = self.epoll.add_level(&listener.socket, self.token(index, Which::First));
            if added.is_err() {
                self.release_slot(index);
            }
            added?;
        }
        self.put(index, Entry::Listener(listener));
        Ok(index)
    }

    /// Closes the listeners, connections and spare sockets of a publication; the inodes of the sockets that the container
    /// was given.
    fn close(&mut self, id: u64) -> Vec<u64> {
        let mut given = Vec::new();
        for index in 0..self.slots.len() {
            let of_it = match self.slots.get_mut(index).and_then(|slot| slot.entry.as_mut()) {
                Some(Entry::Listener(listener)) if listener.publication == id => {
                    given.extend(listener.inject.take().into_iter().flat_map(|inject| inject.given));
                    true
                }
                Some(Entry::Datagrams(port)) => port.publication == id,
                Some(Entry::Flow(flow)) => flow.publication == id,
                Some(Entry::Connection(connection)) if connection.publication == id => {
                    connection.abort();
                    true
                }
                _ => false,
            };
            if of_it {
                self.remove(index);
            }
        }
        self.insides.remove(&id);
        given
    }

    pub(super) fn reserve_slot(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        })
    }

    /// Gives a slot back that was never filled.
    pub(super) fn release_slot(&mut self, index: usize) {
        self.free.push(index);
    }

    pub(super) fn token(&self, index: usize, which: Which) -> u64 {
        token(index, self.slots.get(index).map_or(0, |slot| slot.generation), which)
    }

    pub(super) fn put(&mut self, index: usize, entry: Entry) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.entry = Some(entry);
        }
    }

    /// Drops an entry, which closes its sockets; events of it that are still to come are void.
    pub(super) fn remove(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.entry = None;
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(index);
        }
    }

    fn handle(&mut self, event: Ready) {
        let (index, generation, which) = untoken(event.token);
        let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.generation == generation) else { return };
        match &mut slot.entry {
            Some(Entry::Listener(_)) => self.accept_some(index),
            Some(Entry::Connection(connection)) => {
                match which {
                    Which::First => connection.client.note(event),
                    Which::Second => connection.server.note(event),
                }
                if which == Which::First && event.failed {
                    connection.abort();
                    self.remove(index);
                } else if which == Which::Second && connection.on_its_way.is_some() {
                    self.finish_connecting(index);
                } else {
                    self.turn(index);
                }
            }
            Some(Entry::Binds(_)) => self.answer_binds(index),
            Some(Entry::Datagrams(_)) => self.take_datagrams(index),
            Some(Entry::Flow(_)) => self.answer_client(index),
            None => {}
        }
    }

    /// Gives an entry the turn that it waits for.
    fn go_on(&mut self, index: usize, generation: u32) {
        let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.generation == generation) else { return };
        match &mut slot.entry {
            Some(Entry::Listener(listener)) => {
                listener.queued = false;
                self.accept_some(index);
            }
            Some(Entry::Connection(connection)) => {
                connection.queued = false;
                self.turn(index);
            }
            Some(Entry::Binds(_) | Entry::Datagrams(_) | Entry::Flow(_)) | None => {}
        }
    }

    pub(super) fn turn(&mut self, index: usize) {
        let tokens = [self.token(index, Which::First), self.token(index, Which::Second)];
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Some(Entry::Connection(connection)) = &mut slot.entry else { return };
        if let Some(idle) = &mut connection.idle {
            idle.since = self.now;
        }
        let mut next = connection.turn(&mut self.bench);
        if next != Next::Close && connection.watch_room(&self.epoll, tokens).is_err() {
            connection.abort();
            next = Next::Close;
        }
        match next {
            Next::Wait => {}
            Next::Again if connection.queued => {}
            Next::Again => {
                connection.queued = true;
                self.again.push_back((index, slot.generation));
            }
            Next::Close => self.remove(index),
        }
        if !self.bench.is_trim() {
            self.wake_at(Instant::now() + KEEP);
        }
    }

    pub(super) fn wake_at(&mut self, at: Instant) {
        self.timer = Some(self.timer.map_or(at, |timer| timer.min(at)));
    }

    /// Wakes listeners that have rested, closes what is kept for nobody, and sets the timer anew.
    fn look_after(&mut self) {
        let now = Instant::now();
        self.timer = None;
        self.bench.trim();
        let mut next = Vec::new();
        next.extend(self.insides.values_mut().filter_map(|inside| inside.trim(now)));
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(Entry::Listener(listener)) = &mut slot.entry else { continue };
            match listener.resting_until {
                Some(until) if until > now => next.push(until),
                Some(_) if !listener.queued => {
                    listener.queued = true;
                    self.again.push_back((index, slot.generation));
                }
                _ => {}
            }
        }
        next.extend(self.end_idle(now));
        self.timer = next.into_iter().min();
        self.answer_late();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back() {
        for (index, generation, which) in [
            (0, 0, Which::First),
            (1, 0, Which::Second),
            (0x7fff_ffff, u32::MAX - 1, Which::First),
            (123_456, 789, Which::Second),
        ] {
            assert_eq!(untoken(token(index, generation, which)), (index, generation, which));
            assert_ne!(token(index, generation, which), WAKE_TOKEN);
        }
    }
}
