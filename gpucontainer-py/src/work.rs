//! Long work: it honours Ctrl-C, reports progress to a Python callable, and ends early if that raises.

use crate::error::raise;
use gpucontainer::{Phase, Result};
use pyo3::prelude::*;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often Python is asked whether a signal came: often enough for a person who presses Ctrl-C.
pub(crate) const SIGNALS: Duration = Duration::from_millis(50);

/// `EINTR`: a signal came, which Python is asked about.
const INTERRUPTED: i32 = 4;

/// A switch that ends long work early with CancelledError. Any number of threads may use it at once.
#[pyclass(frozen, module = "gpucontainer")]
#[derive(Debug, Default)]
pub(crate) struct Cancel(pub(crate) gpucontainer::Cancel);

#[pymethods]
impl Cancel {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Ends the work that was given this switch.
    fn cancel(&self) {
        self.0.cancel();
    }

    /// Whether it was switched.
    #[getter]
    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// One report of long work.
#[pyclass(frozen, get_all, module = "gpucontainer")]
#[derive(Debug)]
pub(crate) struct Progress {
    /// What is being worked on, for example a layer's digest.
    item: String,
    /// What is being done with it.
    phase: &'static str,
    /// Bytes done so far.
    bytes: u64,
    /// Bytes in all, where known.
    total: Option<u64>,
}

#[pymethods]
impl Progress {
    fn __repr__(&self) -> String {
        let total = self.total.map_or("None".to_owned(), |total| total.to_string());
        format!("Progress(item={:?}, phase={:?}, bytes={}, total={total})", self.item, self.phase, self.bytes)
    }
}

impl From<gpucontainer::Progress> for Progress {
    fn from(progress: gpucontainer::Progress) -> Self {
        let phase = match progress.phase {
            Phase::Waiting => "waiting",
            Phase::Pulling => "pulling",
            Phase::Importing => "importing",
            Phase::Compressing => "compressing",
            Phase::Pushing => "pushing",
            Phase::Done => "done",
            Phase::Present => "present",
            _ => "unknown",
        };
        Self { item: progress.item, phase, bytes: progress.bytes, total: progress.total }
    }
}

/// A callable of Python that is told of progress.
pub(crate) struct Callback {
    function: Option<Py<PyAny>>,
    cancel: gpucontainer::Cancel,
    /// A switch of the caller's that ends the work, too, and that nothing here turns.
    heeded: Option<gpucontainer::Cancel>,
    raised: Mutex<Option<PyErr>>,
}

impl Callback {
    /// Without a callable; the work's own switch is turned when the caller's is, and not the other way round.
    pub(crate) fn heeding(cancel: Option<&Cancel>) -> Self {
        Self { heeded: cancel.map(|cancel| cancel.0.clone()), ..Self::new(None, None) }
    }

    pub(crate) fn new(function: Option<Py<PyAny>>, cancel: Option<&Cancel>) -> Self {
        let cancel = cancel.map(|cancel| cancel.0.clone()).unwrap_or_default();
        Self { function, cancel, heeded: None, raised: Mutex::new(None) }
    }

    /// The switch that the work must be given: an exception of the callable turns it.
    pub(crate) fn cancel(&self) -> gpucontainer::Cancel {
        self.cancel.clone()
    }

    /// Calls the callable, from whatever thread.
    pub(crate) fn report(&self, progress: gpucontainer::Progress) {
        let Some(function) = &self.function else { return };
        // What was reported before another report's exception was seen is of no interest any more.
        if self.cancel.is_cancelled() {
            return;
        }
        if let Err(error) = Python::attach(|py| function.call1(py, (Progress::from(progress),))) {
            self.cancel.cancel();
            self.raised.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }

    /// Does the work on a thread of its own, while this one looks for signals.
    pub(crate) fn run<T: Send>(&self, py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // The receiver waits until this is done.
                let _ = sender.send(work());
            });
            let receiver = Mutex::new(receiver);
            let mut interrupted = None;
            loop {
                if self.heeded.as_ref().is_some_and(gpucontainer::Cancel::is_cancelled) {
                    self.cancel.cancel();
                }
                let wait = || receiver.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(SIGNALS);
                match py.detach(wait) {
                    Ok(_) if interrupted.is_some() => break,
                    Ok(result) => {
                        let raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner).take();
                        return raised.map_or_else(|| result.map_err(|error| raise(&error)), Err);
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        if let (None, Err(error)) = (&interrupted, py.check_signals()) {
                            self.cancel.cancel();
                            interrupted = Some(error);
                        }
                    }
                    // The work panicked; the scope hands the panic on.
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            Err(interrupted.unwrap_or_else(|| pyo3::exceptions::PyRuntimeError::new_err("the library failed inside")))
        })
    }
}

/// Waits in turns of `most` time, between which this thread looks for signals: for what keeps its place between two waits, and needs no
/// switch to be ended early. None is for ever.
pub(crate) fn in_turns<T: Send>(
    py: Python<'_>,
    timeout: Option<Duration>,
    most: Duration,
    mut turn: impl FnMut(Duration) -> Result<Option<T>> + Send,
) -> PyResult<Option<T>> {
    let start = Instant::now();
    loop {
        let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
        let now = left.map_or(most, |left| left.min(most));
        match py.detach(|| turn(now)) {
            Ok(None) => {}
            Ok(found) => return Ok(found),
            Err(error) if error.errno() == Some(INTERRUPTED) => {}
            Err(error) => return Err(raise(&error)),
        }
        py.check_signals()?;
        if left == Some(Duration::ZERO) {
            return Ok(None);
        }
    }
}
