//! Handles that Python can close.

use gpucontainer::{Error, ErrorKind, Result};
use std::sync::{PoisonError, RwLock};

/// A handle that can be given up while other threads use it.
pub(crate) struct Slot<T>(RwLock<Option<T>>, &'static str);

impl<T> Slot<T> {
    pub(crate) fn new(value: T, what: &'static str) -> Self {
        Self(RwLock::new(Some(value)), what)
    }

    pub(crate) fn with<R>(&self, work: impl FnOnce(&T) -> Result<R>) -> Result<R> {
        let guard = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match guard.as_ref() {
            Some(value) => work(value),
            None => Err(Error::new(ErrorKind::Closed, format!("the {} was closed", self.1))),
        }
    }

    pub(crate) fn take(&self) -> Option<T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).take()
    }
}
