//! Errors, as Python sees them. The classes are written in Python, in `gpucontainer.errors`.

use pyo3::prelude::*;

/// Makes the exception that stands for `error`.
pub(crate) fn raise(error: &gpucontainer::Error) -> PyErr {
    Python::attach(|py| {
        let arguments = (format!("{:?}", error.kind()), error.to_string(), error.errno(), error.path());
        match py.import("gpucontainer.errors").and_then(|module| module.call_method1("_from_native", arguments)) {
            Ok(exception) => PyErr::from_value(exception),
            Err(failure) => failure,
        }
    })
}
