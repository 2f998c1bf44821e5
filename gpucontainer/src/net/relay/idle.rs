//! The end of what has been idle for too long.

use super::engine::{Engine, Entry};
use std::time::{Duration, Instant};

/// How long something may be idle, and since when it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idle {
    pub(super) limit: Duration,
    pub(super) since: Instant,
}

/// Everything is looked at whenever something may have been idle for too long; so often in the time that is allowed, at
/// most.
const LOOKS: u32 = 16;
/// Longer than anything runs.
const FOR_EVER: Duration = Duration::from_secs(1 << 32);

impl Idle {
    /// When it will have been idle for too long.
    pub(super) fn end(&self) -> Instant {
        let limit = self.limit.min(FOR_EVER);
        self.since + limit
    }

    /// When to look again; `None` when its time is over.
    fn look_again(&self, now: Instant) -> Option<Instant> {
        let end = self.end();
        (end > now).then(|| end.max(now + self.limit.min(FOR_EVER) / LOOKS))
    }
}

impl Engine {
    /// Ends what has been idle for too long; says when to come again.
    pub(super) fn end_idle(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for index in 0..self.slots.len() {
            let idle = match self.slots.get(index).and_then(|slot| slot.entry.as_ref()) {
                Some(Entry::Connection(connection)) => connection.idle,
                Some(Entry::Flow(flow)) => flow.idle,
                _ => None,
            };
            let Some(idle) = idle else { continue };
            match idle.look_again(now) {
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => self.end(index),
            }
        }
        next
    }

    fn end(&mut self, index: usize) {
        match self.slots.get(index).and_then(|slot| slot.entry.as_ref()) {
            Some(Entry::Connection(connection)) => {
                connection.abort();
                self.remove(index);
            }
            Some(Entry::Flow(_)) => self.forget_client(index),
            _ => {}
        }
    }
}
