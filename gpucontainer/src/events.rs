//! Events for programs without a subscriber of `tracing`: what the library has to say beside results and errors.
//!
//! The library says everything through the crate `tracing`, and a program in Rust that collects events of that has them
//! already. [`listen`] is for the others: one listener in the process gets each event as a line of text.

use crate::error::{Error, ErrorKind, Result};
use std::cell::Cell;
use std::fmt::Write;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

/// How much an event matters, and up to which events are wanted.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Level {
    /// Something does not work any more.
    Error,
    /// Something went wrong that no call could return, as in a drop.
    Warn,
    /// What a person who runs the program wants to know.
    Info,
    /// What a person wants to know who looks for a fault.
    Debug,
    /// All.
    Trace,
}

impl Level {
    fn of(level: tracing::Level) -> Self {
        match level {
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warn,
            tracing::Level::INFO => Self::Info,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::TRACE => Self::Trace,
        }
    }

    /// 1 for the first; 0 is none at all.
    fn number(self) -> u8 {
        self as u8 + 1
    }
}

type Listener = Box<dyn Fn(Level, &str) + Send + Sync>;

/// Up to which level somebody listens.
static WANTED: AtomicU8 = AtomicU8::new(0);
static LISTENER: RwLock<Option<Listener>> = RwLock::new(None);
/// Whether the events come here; another subscriber of the process may have been first.
static SUBSCRIBED: OnceLock<bool> = OnceLock::new();

thread_local! {
    /// Whether this thread is in the listener, which hears of nothing that it causes itself.
    static LISTENING: Cell<bool> = const { Cell::new(false) };
}

/// Gives every event up to `level` to `listener`, in the place of the one before. No other thread is made for that: it is
/// called by the thread to which it happens, which may be the library's own (`gpuc-relay`), and should return soon.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] if the process has a subscriber of `tracing` already, which gets the events then;
/// [`ErrorKind::InvalidArgument`] from inside a listener.
#[doc(alias = "gpuc_set_log")]
pub fn listen(level: Level, listener: impl Fn(Level, &str) + Send + Sync + 'static) -> Result<()> {
    change(Some(Box::new(listener)), level.number())
}

/// Gives events to nobody any more. When this returns, the listener is not being called and was dropped.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] from inside a listener.
pub fn silence() -> Result<()> {
    change(None, 0)
}

fn change(listener: Option<Listener>, wanted: u8) -> Result<()> {
    if LISTENING.get() {
        return Err(Error::new(ErrorKind::InvalidArgument, "a listener of events cannot be changed from inside it"));
    }
    if listener.is_some() && !*SUBSCRIBED.get_or_init(|| tracing::subscriber::set_global_default(Hearer).is_ok()) {
        let message = "listen to events: the process has a subscriber of tracing, which gets them";
        return Err(Error::new(ErrorKind::AlreadyExists, message));
    }
    WANTED.store(0, Ordering::Relaxed);
    let mut place = LISTENER.write().unwrap_or_else(PoisonError::into_inner);
    let before = std::mem::replace(&mut *place, listener);
    drop(place);
    WANTED.store(wanted, Ordering::Relaxed);
    // Not under the lock: dropping it may run anything.
    drop(before);
    Ok(())
}

/// The subscriber of the process.
struct Hearer;

impl Subscriber for Hearer {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // Who listens changes.
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target() == "gpucontainer" || metadata.target().starts_with("gpucontainer::");
        ours && metadata.is_event() && Level::of(*metadata.level()).number() <= WANTED.load(Ordering::Relaxed)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        if LISTENING.replace(true) {
            return;
        }
        let mut words = Words::default();
        event.record(&mut words);
        let listener = LISTENER.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = &*listener {
            // A listener that panics must not reach whoever did what the event is about.
            let call = || listener(Level::of(*event.metadata().level()), &words.finish());
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
        }
        drop(listener);
        LISTENING.set(false);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The message of an event, and its fields as `name=value`.
#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Words {
    fn finish(self) -> String {
        self.message + &self.fields
    }
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // A text takes whatever is written to it.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn one_listener_hears_what_it_wants() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let own = std::thread::current().id();
        let into = |heard: &Arc<Mutex<Vec<(Level, String)>>>| {
            let heard = Arc::clone(heard);
            move |level: Level, text: &str| {
                // Other tests of this program do things meanwhile.
                if std::thread::current().id() == own {
                    heard.lock().unwrap().push((level, text.to_owned()));
                    tracing::warn!("not heard: the listener is at work");
                    assert_eq!(silence().unwrap_err().kind(), ErrorKind::InvalidArgument);
                }
            }
        };
        tracing::warn!("before anybody listens");
        listen(Level::Info, into(&heard)).unwrap();
        tracing::info!(port = 80, name = %"web", "served");
        tracing::debug!("not wanted");
        tracing::error!(target: "somebody_else", "not ours");
        listen(Level::Debug, into(&heard)).unwrap();
        tracing::debug!("wanted now");
        silence().unwrap();
        tracing::error!("nobody listens");
        assert_eq!(Arc::strong_count(&heard), 1, "the listener was dropped");
        let expected = [(Level::Info, "served port=80 name=web"), (Level::Debug, "wanted now")];
        let expected: Vec<_> = expected.iter().map(|(level, text)| (*level, (*text).to_owned())).collect();
        assert_eq!(*heard.lock().unwrap(), expected);
    }

    #[test]
    fn words_and_levels() {
        let words = Words { message: "a".to_owned(), fields: " b=1".to_owned() };
        assert_eq!(words.finish(), "a b=1");
        assert!(Level::Error < Level::Trace);
        assert_eq!([Level::Error.number(), Level::Trace.number()], [1, 5]);
    }
}
