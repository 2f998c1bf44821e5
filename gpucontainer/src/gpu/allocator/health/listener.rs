//! A thread that waits for XIDs, so that a descriptor tells of them: the driver's library has none to give.

use crate::error::{Error, Result};
use crate::sys::epoll::Wake;
use crate::sys::errno;
use crate::sys::events::{Events, Failure, Xid};
use crate::sys::process::{await_readable, own_pid};
use crate::sys::signals::AllBlocked;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// So long the thread waits in the driver at once, where nobody can wake it.
const TURN: Duration = Duration::from_millis(250);
/// So many XIDs are kept here; the driver keeps further ones.
const KEPT: usize = 256;
/// It makes flat calls of the driver's library.
const STACK: usize = 512 << 10;

/// What the thread has found, or how the driver failed.
type Found = Result<Xid, Failure>;

/// The thread, which ends with this.
#[derive(Debug)]
pub(super) struct Listener {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    process: u32,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something was taken, or it is over.
    changed: Condvar,
    /// Can be read as long as something is there to be taken.
    news: Wake,
}

#[derive(Debug, Default)]
struct State {
    found: VecDeque<Found>,
    over: bool,
}

impl State {
    /// Whether the thread has to wait until something is taken. A driver that fails may do so at once, again and again.
    fn is_enough(&self) -> bool {
        self.found.len() >= KEPT || self.found.back().is_some_and(Result::is_err)
    }
}

impl Listener {
    /// Starts to wait for what `events` tells of.
    pub(super) fn start(events: Arc<Mutex<Events>>) -> Result<Self> {
        let news = Wake::new()?;
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), news });
        let for_thread = Arc::clone(&shared);
        // Signals are for the host's own threads.
        let blocked = AllBlocked::enter()?;
        let thread = std::thread::Builder::new()
            .name("gpuc-xid".to_owned())
            .stack_size(STACK)
            .spawn(move || for_thread.run(&events))
            .map_err(|e| Error::from_io("start the thread gpuc-xid", e))?;
        drop(blocked);
        Ok(Self { shared, thread: Some(thread), process: own_pid() })
    }

    /// What was found first; `None` when `timeout` has passed.
    pub(super) fn next(&self, timeout: Duration) -> Result<Option<Found>> {
        let start = Instant::now();
        loop {
            if let Some(found) = self.shared.take() {
                return Ok(Some(found));
            }
            match await_readable(&self.shared.news, Some(timeout.saturating_sub(start.elapsed()))) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(e) if e.errno() == Some(errno::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.news.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.process != own_pid() {
            // A forked child has no thread, and its lock may be held for ever.
            return;
        }
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, events: &Mutex<Events>) {
        loop {
            let waiting = |state: &mut State| !state.over && state.is_enough();
            let state = self.changed.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
            if state.over {
                return;
            }
            drop(state);
            let found = events.lock().unwrap_or_else(PoisonError::into_inner).next(TURN).transpose();
            if let Some(found) = found {
                let mut state = self.lock();
                state.found.push_back(found);
                self.news.wake();
            }
        }
    }

    fn take(&self) -> Option<Found> {
        let mut state = self.lock();
        let found = state.found.pop_front()?;
        if state.found.is_empty() {
            self.news.clear();
        }
        self.changed.notify_all();
        Some(found)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // It is whole after every step on it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
