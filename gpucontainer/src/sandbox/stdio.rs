//! Standard input, output and error of an application.

use crate::error::Result;
use crate::sys::fs;
use crate::sys::process::{duplicate, pipe};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

/// What one of the three is.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Stdio {
    /// That of the host process.
    #[default]
    Inherit,
    /// `/dev/null`.
    Null,
    /// A pipe to the host process.
    Piped,
    /// An open file.
    File(Arc<OwnedFd>),
}

impl From<OwnedFd> for Stdio {
    fn from(file: OwnedFd) -> Self {
        Self::File(Arc::new(file))
    }
}

/// The application's ends, until it runs, and the host's.
#[derive(Debug)]
pub(crate) struct Streams {
    inside: [Arc<OwnedFd>; 3],
    pub(crate) host: [Option<OwnedFd>; 3],
}

impl Streams {
    /// Opens what is needed.
    pub(crate) fn open(wanted: [&Stdio; 3]) -> Result<Self> {
        let mut null = None;
        let (stdin, stdin_host) = open(wanted[0], 0, &mut null)?;
        let (stdout, stdout_host) = open(wanted[1], 1, &mut null)?;
        let (stderr, stderr_host) = open(wanted[2], 2, &mut null)?;
        Ok(Self { inside: [stdin, stdout, stderr], host: [stdin_host, stdout_host, stderr_host] })
    }

    /// The application's ends.
    pub(crate) fn inside(&self) -> [BorrowedFd<'_>; 3] {
        [self.inside[0].as_fd(), self.inside[1].as_fd(), self.inside[2].as_fd()]
    }
}

/// One stream; `null` is what those that lead nowhere have in common.
fn open(wanted: &Stdio, number: usize, null: &mut Option<Arc<OwnedFd>>) -> Result<(Arc<OwnedFd>, Option<OwnedFd>)> {
    let mut nowhere = || match null {
        Some(null) => Ok(Arc::clone(null)),
        None => fs::open_read_write(Path::new("/dev/null")).map(|fd| Arc::clone(null.insert(Arc::new(fd)))),
    };
    match wanted {
        Stdio::Inherit => {
            let own = match number {
                0 => duplicate(std::io::stdin()),
                1 => duplicate(std::io::stdout()),
                _ => duplicate(std::io::stderr()),
            };
            // Where the host has closed its own, the application gets something that works.
            Ok((own.map(Arc::new).or_else(|_| nowhere())?, None))
        }
        Stdio::Null => Ok((nowhere()?, None)),
        Stdio::File(file) => Ok((Arc::clone(file), None)),
        Stdio::Piped => {
            let (reader, writer) = pipe()?;
            let (inside, host) = if number == 0 { (reader, writer) } else { (writer, reader) };
            Ok((Arc::new(inside), Some(host)))
        }
    }
}
