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

mod connection;
mod dial;
mod engine;
mod pool;

use super::mapping::PublishedPort;
use super::namespace::NetworkNamespace;
use super::published::PortStatus;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::epoll::Wake;
use crate::sys::signals::AllBlocked;
use engine::Engine;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

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
}

impl Counters {
    /// Reads them all, each for itself.
    pub(super) fn status(&self, port: PublishedPort) -> PortStatus {
        PortStatus {
            port,
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

/// What the thread is asked to do.
enum Command {
    Publish {
        id: u64,
        sockets: Vec<(PublishedPort, OwnedFd, Arc<Counters>)>,
        namespace: NetworkNamespace,
        done: Sender<Result<()>>,
    },
    Close {
        id: u64,
        done: Sender<()>,
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

    /// Starts to pass on what comes to `sockets`.
    pub(super) fn publish(
        self: Arc<Self>,
        sockets: Vec<(PublishedPort, OwnedFd, Arc<Counters>)>,
        namespace: NetworkNamespace,
    ) -> Result<Link> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (done, answer) = mpsc::channel();
        self.ask(Command::Publish { id, sockets, namespace, done });
        answer.recv().unwrap_or_else(|_| Err(ended()))?;
        Ok(Link { id, relay: self })
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
    /// Closes the ports and their connections and waits until that is done.
    pub(super) fn close(self) {
        if self.relay.process != std::process::id() {
            return;
        }
        let (done, answer): (_, Receiver<()>) = mpsc::channel();
        self.relay.ask(Command::Close { id: self.id, done });
        // An error means that the thread is gone and everything closed with it.
        let _ = answer.recv();
    }
}
