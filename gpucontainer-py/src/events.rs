//! Events of the library, for a callable of Python.

use crate::describe::{ours, refuse};
use gpucontainer::events::{self, Level};
use pyo3::prelude::*;

const LEVELS: [(Level, &str); 5] = [
    (Level::Error, "error"),
    (Level::Warn, "warning"),
    (Level::Info, "info"),
    (Level::Debug, "debug"),
    (Level::Trace, "trace"),
];

/// Gives every event up to a level to a callable, as the name of its level and a line of text; None is nobody.
#[pyfunction]
pub(crate) fn listen(py: Python<'_>, level: &str, listener: Option<Py<PyAny>>) -> PyResult<()> {
    let Some(listener) = listener else { return ours(py.detach(events::silence)) };
    let Some((level, _)) = LEVELS.iter().find(|(_, name)| *name == level) else {
        return refuse(format!("no level of events is called {level:?}"));
    };
    let hear = move |level: Level, text: &str| {
        let name = LEVELS.iter().find(|(known, _)| *known == level).map_or("trace", |(_, name)| name);
        // A thread of the library may come here when the interpreter has ended.
        Python::try_attach(|py| {
            if let Err(error) = listener.call1(py, (name, text)) {
                error.write_unraisable(py, None);
            }
        });
    };
    // Detached: a thread that is in the listener may wait for the interpreter.
    ours(py.detach(|| events::listen(*level, hear)))
}
