//! The part of the loop that takes clients and joins each to a partner.
//!
//! What a client has said by the time it is taken travels with the handshake to its server, so that a short exchange costs
//! few packets and wakes nobody twice.

use super::Counters;
use super::connection::{Connection, Side};
use super::dial::Attempt;
use super::engine::{Engine, Entry, Listener, Which};
use super::idle::Idle;
use super::pool::KEEP;
use super::{ended, proxy};
use crate::error::{Error, Result};
use crate::net::mode::SourceAddress;
use crate::sys::socket::{self, Outcome, number};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Connections taken from a busy listener before the others have their turn.
const ACCEPT_TURN: usize = 64;
/// How long a listener rests when descriptors or memory have run out.
const REST: Duration = Duration::from_millis(50);

impl Engine {
    /// Takes connections from a listener that has some: one, or many if it had some when the loop last woke too. To look
    /// whether there is another one costs as much as to be told.
    pub(super) fn accept_some(&mut self, index: usize) {
        let wakes = self.wakes;
        let Some(Entry::Listener(listener)) = self.slots.get_mut(index).and_then(|slot| slot.entry.as_mut()) else {
            return;
        };
        let busy = listener.busy_at.wrapping_add(1) == wakes;
        listener.busy_at = wakes;
        self.accept(index, if busy { ACCEPT_TURN } else { 1 });
    }

    /// Takes all connections that a listener has.
    pub(super) fn accept_all(&mut self, index: usize) {
        self.accept(index, usize::MAX);
    }

    fn accept(&mut self, index: usize, most: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Some(Entry::Listener(mut listener)) = slot.entry.take() else { return };
        self.accept_from(index, &mut listener, most);
        self.put(index, Entry::Listener(listener));
    }

    fn accept_from(&mut self, index: usize, listener: &mut Listener, most: usize) {
        if !listener.listens || listener.resting_until.is_some_and(|until| until > Instant::now()) {
            return;
        }
        if listener.resting_until.take().is_some() {
            if let Err(error) = self.epoll.add_level(&listener.socket, self.token(index, Which::First)) {
                listener.counters.note(&error);
                let until = Instant::now() + REST;
                listener.resting_until = Some(until);
                return self.wake_at(until);
            }
        }
        self.wake_at(Instant::now() + KEEP);
        for _ in 0..most {
            // The partner first: without one the client is better off in the kernel's queue.
            let Some(inside) = self.insides.get_mut(&listener.publication) else { return };
            let family = listener.family;
            let partner = match listener.on_host {
                Some(address) => socket::open(address),
                None => inside.socket(family),
            };
            if let Err(error) = &partner {
                if error.errno().is_some_and(is_shortage) {
                    return self.rest(listener, error);
                }
            }
            match socket::accept(&listener.socket) {
                Ok(client) => {
                    listener.counters.accepted.fetch_add(1, Ordering::Relaxed);
                    self.admit(listener, client, partner);
                }
                Err(errno) => {
                    let Some(inside) = self.insides.get_mut(&listener.publication) else { return };
                    if let (Ok(partner), None) = (partner, listener.on_host) {
                        inside.put_back(family, partner);
                    }
                    match errno {
                        number::EAGAIN => return,
                        // A spare socket is worth less than a client.
                        errno if is_shortage(errno) && inside.shrink() => {}
                        errno if is_shortage(errno) || !is_passing(errno) => {
                            let error = socket::error(format!("accept({})", listener.port.host()), errno);
                            return self.rest(listener, &error);
                        }
                        // That client is gone; the next may be there.
                        _ => {}
                    }
                }
            }
        }
    }

    /// Joins a client to a partner that is about to be connected.
    fn admit(&mut self, listener: &mut Listener, client: OwnedFd, partner: Result<OwnedFd>) {
        let mut attempt = match listener.on_host {
            Some(address) => Attempt::on_host(listener.port, address),
            None => Attempt::new(listener.port, listener.family),
        };
        let mut words = if listener.source == SourceAddress::ProxyV2 { proxy::header(&client) } else { Vec::new() };
        let header = words.len();
        let buffer = self.bench.buffer();
        let client_ended = match socket::receive(&client, buffer) {
            Outcome::Moved(0) => true,
            Outcome::Moved(bytes) => {
                words.extend_from_slice(buffer.get(..bytes).unwrap_or_default());
                false
            }
            Outcome::NotNow => false,
            // It has gone. The error is said once: later it would look like an orderly end.
            Outcome::Failed(_) => {
                let inside = self.insides.get_mut(&listener.publication).filter(|_| listener.on_host.is_none());
                if let (Some(inside), Ok(partner)) = (inside, partner) {
                    inside.put_back(listener.family, partner);
                }
                return;
            }
        };
        let keep = listener.source == SourceAddress::Keep && listener.on_host.is_none();
        let connected = partner.and_then(|mut server| {
            let inside = self.insides.get_mut(&listener.publication).ok_or_else(ended)?;
            if keep {
                inside.put_back(listener.family, server);
                let (own, family) = inside.socket_of(&client)?;
                (server, attempt) = (own, Attempt::only(listener.port, family));
            }
            let said = inside.connect(&mut attempt, &mut server, &words)?;
            Ok((server, said))
        });
        let (server, said) = match connected {
            Ok(connected) => connected,
            Err(error) => return refuse(&client, &listener.counters, &error),
        };
        let counters = Arc::clone(&listener.counters);
        if said.is_some() && listener.on_host.is_none() {
            listener.family = attempt.family;
        }
        let rest = words.get(said.unwrap_or(0)..).unwrap_or_default();
        // The header is ours.
        let relayed = said.unwrap_or(0).saturating_sub(header);
        counters.bytes_in.fetch_add(relayed as u64, Ordering::Relaxed);
        let index = self.reserve_slot();
        let (mut client, mut server) = (Side::client(client), Side::server(server, said.unwrap_or(0) > 0));
        let added = client.watch(&self.epoll, self.token(index, Which::First), false);
        // Room is how it is told that the connection is there.
        let room = said.is_none() || !rest.is_empty();
        let added = added.and_then(|()| server.watch(&self.epoll, self.token(index, Which::Second), room));
        if let Err(error) = added {
            refuse(&client.socket, &counters, &error);
            return self.release_slot(index);
        }
        let on_its_way = said.is_none().then_some(attempt);
        let mut connection = Connection::new(client, server, on_its_way, listener.publication, counters);
        connection.say_first(rest, client_ended);
        connection.idle = listener.idle.map(|limit| Idle { limit, since: self.now });
        if let Some(idle) = connection.idle {
            self.wake_at(idle.end());
        }
        self.put(index, Entry::Connection(Box::new(connection)));
        if client_ended {
            self.turn(index);
        }
    }

    /// Looks what became of a partner that was not connected at once.
    pub(super) fn finish_connecting(&mut self, index: usize) {
        let token = self.token(index, Which::Second);
        let Some(slot) = self.slots.get_mut(index) else { return };
        let Some(Entry::Connection(connection)) = &mut slot.entry else { return };
        let Some(mut attempt) = connection.on_its_way else { return };
        let family = attempt.family;
        let inside = self.insides.get_mut(&connection.publication).ok_or_else(ended);
        let connected = inside
            .and_then(|inside| inside.connect(&mut attempt, &mut connection.server.socket, &[]))
            .and_then(|said| {
                if attempt.family != family {
                    // Another socket took the place of the one that was watched.
                    connection.server.renew();
                    connection.server.watch(&self.epoll, token, true)?;
                }
                Ok(said)
            });
        match connected {
            Ok(said) => {
                connection.on_its_way = said.is_none().then_some(attempt);
                self.turn(index);
            }
            Err(error) => {
                refuse(&connection.client.socket, &connection.counters, &error);
                self.remove(index);
            }
        }
    }

    /// Lets a listener be until descriptors or memory may be there again; its clients wait in the kernel's queue.
    fn rest(&mut self, listener: &mut Listener, why: &Error) {
        listener.counters.note(why);
        // It has clients all the time.
        let _ = self.epoll.remove(&listener.socket);
        let until = Instant::now() + REST;
        listener.resting_until = Some(until);
        self.wake_at(until);
    }
}

/// Resets a client that cannot be served, as if its connection had reached a closed port.
fn refuse(client: &OwnedFd, counters: &Counters, why: &Error) {
    counters.refuse(why);
    socket::reset_on_close(client);
}

/// Errors that go away when others give something back.
pub(super) fn is_shortage(errno: i32) -> bool {
    use number::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    matches!(errno, EMFILE | ENFILE | ENOBUFS | ENOMEM)
}

/// Errors of `accept(2)` that are about one client alone, among them those of its network.
fn is_passing(errno: i32) -> bool {
    use number::{EAGAIN, ECONNABORTED, EHOSTDOWN, EHOSTUNREACH, EINTR, ENETDOWN, ENETUNREACH, ENOPROTOOPT, EPROTO};
    matches!(
        errno,
        EAGAIN | ECONNABORTED | EHOSTDOWN | EHOSTUNREACH | EINTR | ENETDOWN | ENETUNREACH | ENOPROTOOPT | EPROTO
    )
}
