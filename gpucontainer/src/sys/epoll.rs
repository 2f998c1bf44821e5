//! Waiting for many descriptors at once, and being woken from another thread.

use super::errno::failed;
use crate::error::Result;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// What happened to one descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    /// The number that the descriptor was added with.
    pub(crate) token: u64,
    /// There may be something to read, to accept, or an end.
    pub(crate) readable: bool,
    /// There may be room to write.
    pub(crate) writable: bool,
    /// The peer writes no more, or the connection is gone.
    pub(crate) ended: bool,
    /// The connection has failed.
    pub(crate) failed: bool,
    /// Among what is to be read there is something urgent.
    pub(crate) urgent: bool,
}

/// Once for each change.
const READING: EventFlags = EventFlags::IN.union(EventFlags::PRI).union(EventFlags::RDHUP).union(EventFlags::ET);

/// An epoll instance whose events are edge-triggered: one is reported when something changes, not while it lasts.
#[derive(Debug)]
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    /// Makes one that reports up to 128 events a turn.
    pub(crate) fn new() -> Result<Self> {
        epoll::create(CreateFlags::CLOEXEC).map(Self).map_err(|e| failed("epoll_create1()", e))
    }

    /// Reports reading on `source` as `token` until `source` is closed, and writing if `room` says so.
    pub(crate) fn add(&self, source: impl AsFd, token: u64, room: bool) -> Result<()> {
        let interest = if room { READING | EventFlags::OUT } else { READING };
        self.register(source, token, interest)
    }

    /// Reports writing too from now on.
    pub(crate) fn add_room(&self, source: impl AsFd, token: u64) -> Result<()> {
        epoll::modify(&self.0, source, EventData::new_u64(token), READING | EventFlags::OUT)
            .map_err(|e| failed("epoll_ctl(EPOLL_CTL_MOD)", e))
    }

    /// Reports reading on `source`, as long as there is something to read.
    pub(crate) fn add_level(&self, source: impl AsFd, token: u64) -> Result<()> {
        self.register(source, token, EventFlags::IN)
    }

    /// Reports nothing about `source` any more.
    pub(crate) fn remove(&self, source: impl AsFd) -> Result<()> {
        epoll::delete(&self.0, source).map_err(|e| failed("epoll_ctl(EPOLL_CTL_DEL)", e))
    }

    fn register(&self, source: impl AsFd, token: u64, interest: EventFlags) -> Result<()> {
        epoll::add(&self.0, source, EventData::new_u64(token), interest)
            .map_err(|e| failed("epoll_ctl(EPOLL_CTL_ADD)", e))
    }

    /// Waits for events, at most `timeout` long, and appends them to `ready`. A signal ends the wait early.
    pub(crate) fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> Result<()> {
        let timeout = timeout.map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        let mut events = [const { MaybeUninit::uninit() }; 128];
        let events: &mut [epoll::Event] = match epoll::wait(&self.0, &mut events, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(e) => return Err(failed("epoll_wait()", e)),
        };
        for event in events {
            let (flags, data) = (event.flags, event.data);
            let any = |wanted| flags.intersects(wanted);
            ready.push(Ready {
                token: data.u64(),
                readable: any(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR),
                writable: any(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR),
                ended: any(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR),
                failed: any(EventFlags::ERR),
                urgent: any(EventFlags::PRI),
            });
        }
        Ok(())
    }
}

impl AsFd for Epoll {
    /// It can be read, in the words of `poll(2)`, while something that it reports lasts.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Wakes an [`Epoll`] at a time.
#[derive(Debug)]
pub(crate) struct Alarm(OwnedFd);

impl Alarm {
    /// Makes one that does not ring; add it with [`Epoll::add_level`].
    pub(crate) fn new() -> Result<Self> {
        timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .map(Self)
            .map_err(|e| failed("timerfd_create()", e))
    }

    /// Rings in this time, and until it is set anew; not at all for `None`.
    pub(crate) fn set(&self, time: Option<Duration>) -> Result<()> {
        // Nought would be never.
        let time = time.map_or(Duration::ZERO, |time| time.max(Duration::from_nanos(1)));
        let it_value =
            Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)
            .map(drop)
            .map_err(|e| failed("timerfd_settime()", e))
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Wakes an [`Epoll`] from another thread.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    /// Makes one; add it with [`Epoll::add_level`].
    pub(crate) fn new() -> Result<Self> {
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map(Self)
            .map_err(|e| failed("eventfd()", e))
    }

    /// Wakes the waiter, now or when it next waits.
    pub(crate) fn wake(&self) {
        // Full (2^64 - 2 calls unread) is awake enough, and there is no other error.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Makes the next wait sleep again.
    pub(crate) fn clear(&self) {
        // Not woken at all is the only error.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
