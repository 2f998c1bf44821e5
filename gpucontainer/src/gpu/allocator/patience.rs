//! How long a request bears with somebody who holds what it needs for a moment.

use crate::error::Result;
use crate::progress::Cancel;

use std::time::Instant;

/// What ends a wait for a lock early.
pub(super) struct Patience<'a> {
    pub(super) cancel: &'a Cancel,
    /// Whether there still is somebody to wait for; its error ends the wait.
    pub(super) alive: Option<&'a dyn Fn() -> Result<()>>,
    /// When it ends; `None` for as long as nobody can be but stuck.
    pub(super) until: Option<Instant>,
}

impl<'a> Patience<'a> {
    /// That of somebody who has no limit but a switch.
    pub(super) fn of(cancel: &'a Cancel) -> Self {
        Self { cancel, alive: None, until: None }
    }

    /// Fails if the wait was ended.
    pub(super) fn check(&self) -> Result<()> {
        self.cancel.check()?;
        self.alive.map_or(Ok(()), |alive| alive())
    }

    /// Whether the time has passed.
    pub(super) fn is_over(&self) -> bool {
        self.until.is_some_and(|until| until <= Instant::now())
    }
}
