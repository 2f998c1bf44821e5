//! One error for the whole library: what was wanted, which call failed, on what, and why.

use std::fmt;
use std::path::{Path, PathBuf};

/// What every fallible call of the library returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in one word that a program can act on.
///
/// The words of [`Error`] are for people; this is for `match`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A value given by the caller cannot be used; nothing was changed.
    InvalidArgument,
    /// An image reference that does not follow the grammar `[host[:port]/]name[:tag][@digest]`.
    InvalidReference,
    /// No such image, here or in its registry.
    ImageNotFound,
    /// An image's manifest, index or configuration is malformed or not for this platform.
    InvalidImage,
    /// A layer whose archive is malformed, truncated, too large, or tries to leave its directory.
    InvalidLayer,
    /// Bytes that do not have the digest or the size that was promised for them.
    DigestMismatch,
    /// The registry refused the credentials, or wants some.
    Authentication,
    /// The registry could not be reached, or the connection broke.
    Network,
    /// The registry answered something that its protocol does not allow.
    Registry,
    /// The command does not exist inside the container, or is no executable file there.
    CommandNotFound,
    /// The user or group does not exist inside the container.
    UserNotFound,
    /// The working directory does not exist inside the container, or leads outside of it.
    WorkingDirectoryNotFound,
    /// Something else that was named does not exist.
    NotFound,
    /// Something of that name exists already.
    AlreadyExists,
    /// A resource limit could not be applied.
    LimitNotApplied,
    /// The host port is taken.
    PortInUse,
    /// No GPU, or not the GPUs that were asked for; the text says why.
    GpuUnavailable,
    /// The process lacks a privilege.
    PermissionDenied,
    /// The file system or a quota is full.
    NoSpace,
    /// This host, its kernel or its configuration lacks something; the text names it.
    Unsupported,
    /// The thing is in use.
    Busy,
    /// The thing has ended already, or was closed.
    Closed,
    /// The caller cancelled the work.
    Cancelled,
    /// The time that the caller allowed has passed.
    TimedOut,
    /// Data of the library's own (a store, a lease table) is damaged.
    Corrupt,
    /// A system call failed for a reason that no other kind names; see [`Error::errno`].
    SystemCall,
}

/// An error of the library: one word wide, `Send` and `Sync`.
///
/// `Display` prints the whole chain, outermost wish first, for example
/// `start sandbox s1: mount root: move_mount("/"): No such file or directory (ENOENT)`.
pub struct Error(Box<Repr>);

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Repr {
    kind: ErrorKind,
    /// Outermost last.
    wanted: Vec<String>,
    message: String,
    path: Option<PathBuf>,
    errno: Option<i32>,
    #[source]
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Makes an error of `kind` whose innermost words are `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Repr { kind, wanted: Vec::new(), message: message.into(), path: None, errno: None, cause: None }))
    }

    /// Makes an error of a failed system call: `call` is the call with what it was called on,
    /// as in `mkdirat("/run/gpucontainer")`, `errno` the raw error number.
    ///
    /// The kind follows from the number: `EACCES`, `EPERM` and `EROFS` are
    /// [`PermissionDenied`](ErrorKind::PermissionDenied), `ENOSPC` and `EDQUOT`
    /// [`NoSpace`](ErrorKind::NoSpace), `ENOENT` [`NotFound`](ErrorKind::NotFound), and so on;
    /// all others are [`SystemCall`](ErrorKind::SystemCall).
    pub fn from_errno(call: impl fmt::Display, errno: i32) -> Self {
        let cause = std::io::Error::from_raw_os_error(errno);
        let mut error = Self::new(crate::sys::errno::kind(errno), crate::sys::errno::describe(&call, errno));
        error.0.errno = Some(errno);
        error.0.cause = Some(Box::new(cause));
        error
    }

    /// Makes an error of a failed call of the standard library; see [`Error::from_errno`].
    pub fn from_io(call: impl fmt::Display, cause: std::io::Error) -> Self {
        if let Some(errno) = cause.raw_os_error() {
            return Self::from_errno(call, errno);
        }
        // A reader of ours (a digest check, a cancel) may have passed its own error through `io`.
        match cause.downcast::<Error>() {
            Ok(own) => own.context(call.to_string()),
            Err(cause) => Self::new(ErrorKind::SystemCall, format!("{call}: {cause}")).with_cause(cause),
        }
    }

    /// Keeps `cause`, which `source()` then returns.
    #[must_use]
    pub fn with_cause(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// Says which file the error is about.
    #[must_use]
    pub fn with_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.path = Some(path.into());
        self
    }

    /// Says what the error means for the caller, where the number of a system call alone does not.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Puts what was wanted before the words that are there.
    #[must_use]
    pub fn context(mut self, wanted: impl Into<String>) -> Self {
        self.0.wanted.push(wanted.into());
        self
    }

    /// What went wrong, to act on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The error number of the system call that failed, if one did.
    pub fn errno(&self) -> Option<i32> {
        self.0.errno
    }

    /// The file that the error is about, if it is about one.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for wanted in self.0.wanted.iter().rev() {
            write!(f, "{wanted}: ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&*self.0)
    }
}

impl From<std::convert::Infallible> for Error {
    /// Never called: it lets a conversion that cannot fail stand where one may.
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

impl From<Error> for std::io::Error {
    /// Lets an error of ours pass through `std::io` traits; [`Error::from_io`] takes it out again.
    fn from(error: Error) -> Self {
        match error.errno() {
            _ if error.kind() == ErrorKind::Cancelled => std::io::Error::other(error),
            Some(errno) => std::io::Error::new(std::io::Error::from_raw_os_error(errno).kind(), error),
            None => std::io::Error::other(error),
        }
    }
}

/// Adds what was wanted to the error of a result.
pub trait Context<T> {
    /// Adds `wanted` before the words of the error.
    fn context(self, wanted: impl Into<String>) -> Result<T>;
    /// The same, made only when there is an error.
    fn with_context<S: Into<String>>(self, wanted: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context(self, wanted: impl Into<String>) -> Result<T> {
        self.map_err(|error| error.context(wanted))
    }

    fn with_context<S: Into<String>>(self, wanted: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.context(wanted()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_chain_is_printed_outermost_first() {
        let error = Error::from_errno("openat(\"/x\")", 2).context("read config").context("start s1");
        assert_eq!(error.to_string(), "start s1: read config: openat(\"/x\"): No such file or directory (ENOENT)");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.errno(), Some(2));
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn an_error_survives_a_trip_through_io() {
        let io: std::io::Error = Error::new(ErrorKind::DigestMismatch, "sha256:1 is not sha256:2").into();
        let back = Error::from_io("read(blob)", io);
        assert_eq!(back.kind(), ErrorKind::DigestMismatch);
        assert_eq!(back.to_string(), "read(blob): sha256:1 is not sha256:2");
    }
}
