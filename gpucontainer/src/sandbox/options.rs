//! What can be said of every process in a sandbox: its application and further ones.

use crate::error::Result;
use crate::sandbox::stdio::{Stdio, Streams};

/// What was said; nothing of it is checked yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProcessOptions {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_dir: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) terminal: Option<(u16, u16)>,
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
}

impl ProcessOptions {
    /// The streams, opened; none where a terminal takes their place.
    pub(crate) fn streams(&self) -> Result<Option<Streams>> {
        match self.terminal {
            Some(_) => Ok(None),
            None => Streams::open([&self.stdin, &self.stdout, &self.stderr]).map(Some),
        }
    }
}

/// The setters, for builders that hold the options as `process`.
macro_rules! process_setters {
    () => {
        /// Sets an environment variable, over that of the image and, for a further process, of the sandbox.
        pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
            self.process.env.push((name.into(), value.into()));
            self
        }

        /// Sets the working directory, an absolute path that exists in the container. By default the image's, or `/`;
        /// for a further process that of the application.
        pub fn working_dir(mut self, path: impl Into<String>) -> Self {
            self.process.working_dir = Some(path.into());
            self
        }

        /// Runs as `user[:group]`: names of the image's `/etc/passwd` and `/etc/group`, or numbers. By default the
        /// image's; for a further process that of the application.
        pub fn user(mut self, user: impl Into<String>) -> Self {
            self.process.user = Some(user.into());
            self
        }

        /// Gives the process a terminal of `rows` and `columns` for its input, output and errors.
        pub fn terminal(mut self, rows: u16, columns: u16) -> Self {
            self.process.terminal = Some((rows, columns));
            self
        }

        /// Says what standard input is. The host's by default.
        pub fn stdin(mut self, stdin: Stdio) -> Self {
            self.process.stdin = stdin;
            self
        }

        /// Says what standard output is. The host's by default.
        pub fn stdout(mut self, stdout: Stdio) -> Self {
            self.process.stdout = stdout;
            self
        }

        /// Says what standard error is. The host's by default.
        pub fn stderr(mut self, stderr: Stdio) -> Self {
            self.process.stderr = stderr;
            self
        }
    };
}

pub(crate) use process_setters;
