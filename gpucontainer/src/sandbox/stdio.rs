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
    inside: [OwnedFd; 3],
    pub(crate) host: [Option<OwnedFd>; 3],
}

impl Streams {
    /// Opens what is needed.
    pub(crate) fn open(wanted: [&Stdio; 3]) -> Result<Self> {
        let (stdin, stdin_host) = open(wanted[0], 0)?;
        let (stdout, stdout_host) = open(wanted[1], 1)?;
        let (stderr, stderr_host) = open(wanted[2], 2)?;
        Ok(Self { inside: [stdin, stdout, stderr], host: [stdin_host, stdout_host, stderr_host] })
    }

    /// The application's ends.
    pub(crate) fn inside(&self) -> [BorrowedFd<'_>; 3] {
        [self.inside[0].as_fd(), self.inside[1].as_fd(), self.inside[2].as_fd()]
    }
}

fn open(wanted: &Stdio, number: usize) -> Result<(OwnedFd, Option<OwnedFd>)> {
    match wanted {
        Stdio::Inherit => {
            let own = match number {
                0 => duplicate(std::io::stdin()),
                1 => duplicate(std::io::stdout()),
                _ => duplicate(std::io::stderr()),
            };
            match own {
                Ok(own) => Ok((own, None)),
                // The host has closed its own; the application gets something that works.
                Err(_) => Ok((null()?, None)),
            }
        }
        Stdio::Null => Ok((null()?, None)),
        Stdio::File(file) => Ok((duplicate(file)?, None)),
        Stdio::Piped => {
            let (reader, writer) = pipe()?;
            Ok(if number == 0 { (reader, Some(writer)) } else { (writer, Some(reader)) })
        }
    }
}

fn null() -> Result<OwnedFd> {
    fs::open_read_write(Path::new("/dev/null"))
}
