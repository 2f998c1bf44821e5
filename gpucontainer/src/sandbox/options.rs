//! What can be said of every process in a sandbox: its application and further ones.

use crate::error::{Error, ErrorKind, Result};
use crate::sandbox::plan::Step;
use crate::sandbox::stdio::{Stdio, Streams};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

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
    pub(crate) passed: Vec<(i32, Arc<OwnedFd>)>,
}

/// The highest number that can be passed. What must stay open meanwhile is above it, and below 1,024, the usual limit.
const LAST_PASSED: i32 = 511;

impl ProcessOptions {
    /// The streams, opened; none where a terminal takes their place.
    pub(crate) fn streams(&self) -> Result<Option<Streams>> {
        match self.terminal {
            Some(_) => Ok(None),
            None => Streams::open([&self.stdin, &self.stdout, &self.stderr]).map(Some),
        }
    }

    /// Checks the numbers of what is passed; those below `free` are taken.
    pub(crate) fn check_passed(&self, free: usize) -> Result<()> {
        let bad = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
        for (at, (number, _)) in self.passed.iter().enumerate() {
            if !(3..=LAST_PASSED).contains(number) {
                return bad(format!("passed descriptor {number} is not within 3 to {LAST_PASSED}"));
            }
            if self.passed[..at].iter().any(|(other, _)| other == number) {
                return bad(format!("descriptor {number} is passed twice"));
            }
            if usize::try_from(*number).is_ok_and(|number| number < free) {
                return bad(format!("passed descriptor {number} is that of a socket which is handed over"));
            }
        }
        Ok(())
    }

    /// What is passed.
    pub(crate) fn passed(&self) -> Vec<(i32, BorrowedFd<'_>)> {
        self.passed.iter().map(|(number, fd)| (*number, fd.as_fd())).collect()
    }

    /// The open files in it.
    pub(crate) fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let streams = [&self.stdin, &self.stdout, &self.stderr].into_iter().filter_map(|stream| match stream {
            Stdio::File(file) => Some(file.as_fd()),
            _ => None,
        });
        streams.chain(self.passed.iter().map(|(_, file)| file.as_fd()))
    }

    /// The step that passes it, if there is something.
    pub(crate) fn pass_step(&self) -> Option<Step> {
        let numbers: Vec<i32> = self.passed.iter().map(|(number, _)| *number).collect();
        (!numbers.is_empty()).then_some(Step::Pass { numbers })
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

        /// Lets the process find an open file under `number`, 3 to 511, beside its three streams: a socket of a process
        /// manager, a pipe to be ready on. Nothing is passed by default, whatever this process has open.
        ///
        /// What is passed is a door into the host as wide as the file is: a directory leads to all that is below and
        /// above it. Sockets of ports that are [handed over](crate::net::PortMode::HandOver) have the numbers from 3 on.
        pub fn pass_fd(mut self, number: i32, file: impl Into<std::os::fd::OwnedFd>) -> Self {
            self.process.passed.push((number, std::sync::Arc::new(file.into())));
            self
        }
    };
}

pub(crate) use process_setters;
