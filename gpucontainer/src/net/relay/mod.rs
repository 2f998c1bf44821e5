//! The relay: one thread that joins sockets of the host to sockets in containers' network namespaces.
//!
//! ```text
//! client ── host listener ── [ accepted socket │ socket made inside ] ── 127.0.0.1:port of the container
//!                                          gpuc-relay
//! ```
//! Nothing blocks in it: every socket is non-blocking and reports changes through one epoll instance. What cannot be
//! written yet is kept in at most 64 KiB a direction, and nothing more is read meanwhile, so a slow peer slows its own
//! partner and nobody else. The first 64 KiB of a direction are copied, which is quickest for the short exchanges that
//! most connections are; what follows moves through a pipe in the kernel.

mod back;
mod binds;
mod clients;
mod connection;
mod datagrams;
mod dial;
mod engine;
mod idle;
mod pool;
mod proxy;

use super::mode::{PortMode, SourceAddress};
use super::namespace::NetworkNamespace;
use super::port::PublishedPort;
use super::published::PortStatus;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::epoll::Wake;
use crate::sys::signals::AllBlocked;
pub(super) use back::lead_back;
use engine::Engine;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

/// The relay that runs, if one does. It is the process's, not a mapper's, because its one thread is: that is what
/// keeps hundreds of published ports at the price of one thread.
static RUNNING: Mutex<Weak<Relay>> = Mutex::new(Weak::new());

/// Takes a lock whose data no panic can leave half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What went through one port.
#[derive(Debug, Default)]
pub(super) struct Counters {
    accepted: AtomicU64,
    open: AtomicU64,
    refused: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    last_error: Mutex<Option<String>>,
    /// How clients are served, and why so.
    mode: Mutex<(PortMode, String)>,
}

impl Counters {
    pub(super) fn new(mode: PortMode, why: String) -> Self {
        Self { mode: Mutex::new((mode, why)), ..Self::default() }
    }

    fn turn_to(&self, mode: PortMode, why: impl Into<String>) {
        *lock(&self.mode) = (mode, why.into());
    }

    /// Reads them all, each for itself.
    pub(super) fn status(&self, port: PublishedPort) -> PortStatus {
        let (mode, why) = lock(&self.mode).clone();
        PortStatus {
            port,
            mode,
            why,
            accepted: self.accepted.load(Ordering::Relaxed),
            open: self.open.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
            last_error: lock(&self.last_error).clone(),
        }
    }

    fn refuse(&self, why: &Error) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.note(why);
    }

    fn note(&self, why: &Error) {
        *lock(&self.last_error) = Some(why.to_string());
    }
}

/// A port of the host for the relay.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) port: PublishedPort,
    /// Bound, and listening if so.
    pub(super) socket: OwnedFd,
    pub(super) counters: Arc<Counters>,
    pub(super) listens: bool,
    /// Whether binds of the container are to be answered with it, in the network namespace that is named so.
    pub(super) inject: Option<u64>,
    /// Whether the container may be trusted with sockets that are not locked to the port.
    pub(super) unlocked: bool,
    pub(super) to: Partner,
    /// How long a connection, or a client of UDP, may be idle.
    pub(super) idle: Option<Duration>,
    /// How the server learns who its clients are.
    pub(super) source: SourceAddress,
}

/// Where clients are led to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Partner {
    /// The container's port, on one of its loopback addresses.
    Inside,
    /// An address of the host.
    Host(SocketAddr),
}

/// What the thread is asked to do.
enum Command {
    Publish {
        id: u64,
        offers: Vec<Offer>,
        namespace: NetworkNamespace,
        /// Which watch hears of the container's binds.
        watch: Option<u64>,
        done: Sender<Result<()>>,
    },
    /// Answers calls of `bind(2)` from now on.
    Watch {
        watch: u64,
        listener: OwnedFd,
        done: Sender<Result<()>>,
    },
    /// Gives the listeners back.
    Unwatch {
        watch: u64,
        done: Sender<Vec<OwnedFd>>,
    },
    /// Closes the ports, and says which sockets the container was given for them.
    Close {
        id: u64,
        done: Sender<Vec<u64>>,
    },
    Stop,
}

/// The thread, seen from outside. It ends when the last holder is gone.
#[derive(Debug)]
pub(super) struct Relay {
    process: u32,
    commands: Sender<Command>,
    wake: Arc<Wake>,
    next_id: AtomicU64,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// The relay that runs in this process, started if there is none.
    pub(super) fn of_this_process() -> Result<Arc<Self>> {
        let mut running = lock(&RUNNING);
        // A forked child inherits the static but not the thread.
        if let Some(relay) = running.upgrade().filter(|relay| relay.process == std::process::id()) {
            return Ok(relay);
        }
        let relay = Arc::new(Self::start()?);
        *running = Arc::downgrade(&relay);
        Ok(relay)
    }

    fn start() -> Result<Self> {
        let wake = Arc::new(Wake::new()?);
        let (commands, receiver) = mpsc::channel();
        let engine = Engine::new(Arc::clone(&wake), receiver)?;
        let blocked = AllBlocked::enter()?;
        let thread = std::thread::Builder::new()
            .name("gpuc-relay".to_owned())
            // The loop is flat; the default of 2 MiB would only be counted against the host's address space.
            .stack_size(256 << 10)
            .spawn(move || engine.run())
            .map_err(|e| Error::from_io("start the thread gpuc-relay", e))?;
        drop(blocked);
        Ok(Self { process: std::process::id(), commands, wake, next_id: AtomicU64::new(0), thread: Some(thread) })
    }

    /// A number that nothing else of this relay has.
    pub(super) fn number(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Starts to serve `offers`.
    pub(super) fn publish(
        self: Arc<Self>,
        offers: Vec<Offer>,
        namespace: NetworkNamespace,
        watch: Option<u64>,
    ) -> Result<Link> {
        let id = self.number();
        let (done, answer) = mpsc::channel();
        self.ask(Command::Publish { id, offers, namespace, watch, done });
        answer.recv().unwrap_or_else(|_| Err(ended()))?;
        Ok(Link { id, relay: self })
    }

    /// Answers the calls of `bind(2)` that `listener` hears of.
    pub(super) fn watch(&self, watch: u64, listener: OwnedFd) -> Result<()> {
        let (done, answer) = mpsc::channel();
        self.ask(Command::Watch { watch, listener, done });
        answer.recv().unwrap_or_else(|_| Err(ended()))
    }

    /// Answers no more; the listeners that were not at their end.
    pub(super) fn unwatch(&self, watch: u64) -> Vec<OwnedFd> {
        if self.process != std::process::id() {
            return Vec::new();
        }
        let (done, answer) = mpsc::channel();
        self.ask(Command::Unwatch { watch, done });
        answer.recv().unwrap_or_default()
    }

    fn ask(&self, command: Command) {
        // A thread that has ended closed everything; whoever waits for its answer notices.
        if self.commands.send(command).is_ok() {
            self.wake.wake();
        }
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Closed, "the thread gpuc-relay has ended")
}

impl Drop for Relay {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if self.process != std::process::id() {
            // In a forked child there is no such thread to wait for.
            std::mem::forget(thread);
            return;
        }
        self.ask(Command::Stop);
        if thread.join().is_err() {
            tracing::error!("the thread gpuc-relay panicked");
        }
    }
}

/// The ports of one container at the relay.
#[derive(Debug)]
pub(super) struct Link {
    id: u64,
    relay: Arc<Relay>,
}

impl Link {
    /// Closes the ports and their connections and waits until that is done; the inodes of the sockets that the container
    /// was given for them, and may still have.
    pub(super) fn close(self) -> Vec<u64> {
        if self.relay.process != std::process::id() {
            return Vec::new();
        }
        let (done, answer): (_, Receiver<Vec<u64>>) = mpsc::channel();
        self.relay.ask(Command::Close { id: self.id, done });
        // An error means that the thread is gone and everything closed with it.
        answer.recv().unwrap_or_default()
    }
}
