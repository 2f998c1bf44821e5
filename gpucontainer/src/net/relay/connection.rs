//! One client joined to one server: two flows, each with its own end.

use super::Counters;
use super::dial::Attempt;
use super::idle::Idle;
use crate::error::Result;
use crate::sys::epoll::Epoll;
use crate::sys::socket::{self, Outcome, Pipe};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is copied at once, and the most that a flow keeps while its sink is not ready.
const BUFFER_BYTES: usize = 64 << 10;
/// The size of a pipe; the quickest of 64 KiB to 1 MiB where it was measured.
const PIPE_BYTES: usize = 256 << 10;
/// After so many bytes a flow lets the others have their turn.
const TURN_BYTES: usize = 512 << 10;
/// Unused pipes that are kept for the next flow.
const PIPES_KEPT: usize = 4;

/// What all connections of the thread use in turn.
#[derive(Debug)]
pub(super) struct Workbench {
    buffer: Vec<u8>,
    pipes: Vec<Pipe>,
}

impl Workbench {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES], pipes: Vec::new() }
    }

    fn take_pipe(&mut self) -> Option<Pipe> {
        // Without a pipe (no descriptor left) the flow goes on copying.
        self.pipes.pop().or_else(|| Pipe::new(PIPE_BYTES).ok())
    }

    /// Takes an empty pipe back.
    fn put_pipe(&mut self, pipe: Pipe) {
        if self.pipes.len() < PIPES_KEPT {
            self.pipes.push(pipe);
        }
    }

    /// Room for a datagram.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Closes what is kept for later.
    pub(super) fn trim(&mut self) {
        self.pipes = Vec::new();
    }

    /// Whether [`Workbench::trim`] would close something.
    pub(super) fn is_trim(&self) -> bool {
        self.pipes.is_empty()
    }
}

/// One socket of a connection and what is known of it since the last events.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) socket: OwnedFd,
    readable: bool,
    writable: bool,
    /// Its end has been announced, so that reading must go on until it is there.
    ended: bool,
    /// Nothing comes behind what is there to be read, and nothing urgent is in it at which a read would stop.
    whole: bool,
    /// Room to write is reported. Most connections never lack any, and would be woken once for nothing.
    watches_room: bool,
    /// Sends small pieces at once. The first one goes at once all the same.
    hurries: Hurries,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Hurries {
    Yes,
    FromTheSecond,
    FromNowOn,
}

impl Side {
    /// A client, as a listener gave it.
    pub(super) fn client(socket: OwnedFd) -> Self {
        let hurries = Hurries::Yes;
        Self { socket, readable: false, writable: true, ended: false, whole: false, watches_room: false, hurries }
    }

    /// A server, to which nothing or something was said.
    pub(super) fn server(socket: OwnedFd, said: bool) -> Self {
        let hurries = if said { Hurries::FromNowOn } else { Hurries::FromTheSecond };
        Self { hurries, ..Self::client(socket) }
    }

    /// Takes note of an event.
    pub(super) fn note(&mut self, event: crate::sys::epoll::Ready) {
        self.readable |= event.readable;
        self.writable |= event.writable;
        self.ended |= event.ended;
        self.whole = event.ended && !event.failed && !event.urgent;
    }

    /// Reports changes of it from now on.
    pub(super) fn watch(&mut self, epoll: &Epoll, token: u64, room: bool) -> Result<()> {
        self.watches_room = room;
        epoll.add(&self.socket, token, room)
    }

    /// Forgets what was known of the socket that was there before.
    pub(super) fn renew(&mut self) {
        (self.readable, self.writable, self.ended, self.whole) = (false, true, false, false);
    }

    /// Has room reported if there is a want of it.
    fn watch_room(&mut self, epoll: &Epoll, token: u64) -> Result<()> {
        if self.writable || self.watches_room {
            return Ok(());
        }
        self.watches_room = true;
        epoll.add_room(&self.socket, token)
    }

    /// Before something is written.
    fn hurry(&mut self) {
        match self.hurries {
            Hurries::Yes => {}
            Hurries::FromTheSecond => self.hurries = Hurries::FromNowOn,
            Hurries::FromNowOn => {
                socket::set_no_delay(&self.socket);
                self.hurries = Hurries::Yes;
            }
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// Reads and writes.
    Open,
    /// The source has said its last; what is kept is still to be written.
    Ending,
    /// Everything is said, and the sink knows.
    Ended,
    /// The sink takes nothing any more.
    Broken,
}

/// How a turn of a flow ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Turn {
    /// An event must come first.
    Waits,
    /// There is more to do at once, after the others.
    More,
    /// Nothing will ever be to do.
    Over,
    /// The source's connection has failed.
    SourceFailed,
}

/// Bytes on their way from one side to the other.
#[derive(Debug)]
struct Flow {
    state: State,
    /// Read and not yet written: `kept[written..]`.
    kept: Vec<u8>,
    written: usize,
    /// While the source brings much at once.
    pipe: Option<Pipe>,
    in_pipe: usize,
    copied: usize,
}

impl Flow {
    fn new() -> Self {
        Self { state: State::Open, kept: Vec::new(), written: 0, pipe: None, in_pipe: 0, copied: 0 }
    }

    fn is_over(&self) -> bool {
        matches!(self.state, State::Ended | State::Broken)
    }

    /// Moves what can be moved, up to a turn's worth. `alone` if the other flow is over.
    fn turn(
        &mut self,
        (source, sink): (&mut Side, &mut Side),
        bench: &mut Workbench,
        total: &AtomicU64,
        alone: bool,
    ) -> Turn {
        let mut moved = 0;
        let turn = loop {
            if self.is_over() {
                break Turn::Over;
            }
            if self.in_pipe > 0 || self.written < self.kept.len() {
                if !sink.writable {
                    break Turn::Waits;
                }
                match self.write(sink) {
                    Outcome::Moved(bytes) => moved += count(total, bytes),
                    Outcome::NotNow => sink.writable = false,
                    Outcome::Failed(_) => self.state = State::Broken,
                }
                continue;
            }
            if self.state == State::Ending {
                // Else both are closed right after, which says it too.
                if !alone {
                    socket::shutdown_write(&sink.socket);
                }
                self.state = State::Ended;
                continue;
            }
            if !source.readable {
                break Turn::Waits;
            }
            if moved >= TURN_BYTES {
                break Turn::More;
            }
            match self.read(source, sink, bench) {
                (Outcome::Moved(0), _) => self.state = State::Ending,
                (Outcome::Moved(_), written) => moved += count(total, written),
                (Outcome::NotNow, _) => source.readable = false,
                (Outcome::Failed(_), _) => break Turn::SourceFailed,
            }
        };
        if self.is_over() {
            self.kept = Vec::new();
            if let Some(pipe) = self.pipe.take().filter(|_| self.in_pipe == 0) {
                bench.put_pipe(pipe);
            }
        }
        turn
    }

    /// Writes what is kept; one call.
    fn write(&mut self, sink: &mut Side) -> Outcome {
        sink.hurry();
        if let Some(pipe) = self.pipe.as_ref().filter(|_| self.in_pipe > 0) {
            let outcome = pipe.drain(&sink.socket, self.in_pipe);
            if let Outcome::Moved(bytes) = outcome {
                self.in_pipe = self.in_pipe.saturating_sub(bytes);
            }
            return outcome;
        }
        let outcome = socket::send(&sink.socket, self.kept.get(self.written..).unwrap_or_default());
        if let Outcome::Moved(bytes) = outcome {
            self.written += bytes;
            if self.written >= self.kept.len() {
                // An idle connection holds no buffer.
                (self.kept, self.written) = (Vec::new(), 0);
            }
        }
        outcome
    }

    /// Reads, and writes at once what was copied; the second number is how much was written.
    fn read(&mut self, source: &mut Side, sink: &mut Side, bench: &mut Workbench) -> (Outcome, usize) {
        if let Some(pipe) = &self.pipe {
            let outcome = pipe.fill(&source.socket);
            match outcome {
                Outcome::Moved(bytes) => self.in_pipe = bytes,
                // The source has become slow: back to copying.
                Outcome::NotNow => {
                    self.copied = 0;
                    if let Some(pipe) = self.pipe.take() {
                        bench.put_pipe(pipe);
                    }
                }
                Outcome::Failed(_) => {}
            }
            return (outcome, 0);
        }
        let outcome = socket::receive(&source.socket, &mut bench.buffer);
        let Outcome::Moved(bytes @ 1..) = outcome else { return (outcome, 0) };
        let full = bytes == bench.buffer.len();
        // Less than was asked for means that nothing is left, and what comes next is announced by an event of its own.
        source.readable = full || source.ended;
        let last = !full && source.whole;
        if last {
            self.state = State::Ending;
        }
        let mut rest = bench.buffer.get(..bytes).unwrap_or_default();
        let mut written = 0;
        if sink.writable {
            sink.hurry();
            let sent = if last { socket::send_last(&sink.socket, rest) } else { socket::send(&sink.socket, rest) };
            match sent {
                Outcome::Moved(bytes) => {
                    written = bytes;
                    rest = rest.get(bytes..).unwrap_or_default();
                }
                Outcome::NotNow => sink.writable = false,
                Outcome::Failed(_) => {
                    self.state = State::Broken;
                    return (outcome, 0);
                }
            }
        }
        if !rest.is_empty() {
            (self.kept, self.written) = (rest.to_vec(), 0);
        }
        self.copied = if full { self.copied + bytes } else { 0 };
        if self.copied >= BUFFER_BYTES {
            self.pipe = bench.take_pipe();
        }
        (outcome, written)
    }
}

/// Counts at once, so that whoever has seen the end of a stream finds all of it counted.
fn count(total: &AtomicU64, bytes: usize) -> usize {
    total.fetch_add(bytes as u64, Ordering::Relaxed);
    bytes
}

/// What is to become of a connection after its turn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Next {
    /// Wait for events.
    Wait,
    /// Another turn, after the others had theirs.
    Again,
    /// Drop it.
    Close,
}

/// A client of a published port and its partner in the container.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Side,
    pub(super) server: Side,
    /// Until the server has answered.
    pub(super) on_its_way: Option<Attempt>,
    /// Whether it waits for another turn already.
    pub(super) queued: bool,
    pub(super) publication: u64,
    pub(super) counters: Arc<Counters>,
    /// How long it may be idle, and since when it is.
    pub(super) idle: Option<Idle>,
    inward: Flow,
    outward: Flow,
}

impl Connection {
    pub(super) fn new(
        client: Side,
        server: Side,
        on_its_way: Option<Attempt>,
        publication: u64,
        counters: Arc<Counters>,
    ) -> Self {
        counters.open.fetch_add(1, Ordering::Relaxed);
        Self {
            client,
            server,
            on_its_way,
            queued: false,
            publication,
            counters,
            idle: None,
            inward: Flow::new(),
            outward: Flow::new(),
        }
    }

    /// Says something to the server before what is still to be read from the client, who says no more if it has `ended`.
    pub(super) fn say_first(&mut self, words: &[u8], ended: bool) {
        self.inward.kept = words.to_vec();
        if ended {
            self.inward.state = State::Ending;
        }
    }

    /// Has room reported where there is a want of it. Without that the connection would stand still.
    pub(super) fn watch_room(&mut self, epoll: &Epoll, tokens: [u64; 2]) -> Result<()> {
        self.client.watch_room(epoll, tokens[0])?;
        self.server.watch_room(epoll, tokens[1])
    }

    /// Moves what can be moved both ways.
    pub(super) fn turn(&mut self, bench: &mut Workbench) -> Next {
        if self.on_its_way.is_some() {
            return Next::Wait;
        }
        let (client, server) = (&mut self.client, &mut self.server);
        let alone = self.outward.state == State::Ended;
        let inward = self.inward.turn((client, server), bench, &self.counters.bytes_in, alone);
        let alone = self.inward.state == State::Ended;
        let outward = self.outward.turn((server, client), bench, &self.counters.bytes_out, alone);
        match (inward, outward) {
            // What the client said before its connection failed would not have been heard without us either.
            (Turn::SourceFailed, _) | (_, Turn::SourceFailed) => {
                self.abort();
                Next::Close
            }
            (Turn::Over, Turn::Over) => {
                if self.inward.state == State::Broken || self.outward.state == State::Broken {
                    self.abort();
                }
                Next::Close
            }
            // Nobody is there to read any more; the server must not go on for nobody.
            _ if self.outward.state == State::Broken => {
                self.abort();
                Next::Close
            }
            (Turn::More, _) | (_, Turn::More) => Next::Again,
            _ => Next::Wait,
        }
    }

    /// Makes both peers see a reset when the sockets are closed: an orderly end would pass a torn stream off as whole.
    pub(super) fn abort(&self) {
        socket::reset_on_close(&self.client.socket);
        socket::reset_on_close(&self.server.socket);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.counters.open.fetch_sub(1, Ordering::Relaxed);
    }
}
