//! A process in a sandbox: waiting, signals, streams.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::sandbox::launch::Running;
use crate::sys::launch::wait;
use crate::sys::process;
use crate::sys::program::{Report, format};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How an application ended.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ExitStatus {
    /// As `wait4(2)` gives it.
    raw: i32,
    oom_killed: bool,
}

impl ExitStatus {
    pub(crate) fn new(raw: i32, oom_killed: bool) -> Self {
        Self { raw, oom_killed }
    }

    pub(crate) fn at_memory_limit(self, oom_killed: bool) -> Self {
        Self { oom_killed, ..self }
    }

    /// Whether it ended by itself with exit code 0.
    pub fn success(self) -> bool {
        self.raw == 0
    }

    /// The exit code, 0 to 255, if it ended by itself.
    pub fn code(self) -> Option<i32> {
        (self.raw & 0x7f == 0).then_some(self.raw >> 8 & 0xff)
    }

    /// The signal that killed it, 1 to 64, if one did.
    pub fn signal(self) -> Option<i32> {
        let signal = self.raw & 0x7f;
        (signal != 0).then_some(signal)
    }

    /// Whether something in the sandbox was killed because it was at its memory limit.
    ///
    /// The kernel chooses what to kill; when it was a child of the application, this is true also if the
    /// application ended by itself.
    pub fn oom_killed(self) -> bool {
        self.oom_killed
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code(), self.signal()) {
            (Some(code), _) => write!(f, "exit code {code}")?,
            (_, Some(signal)) => write!(f, "killed by signal {signal}")?,
            _ => {}
        }
        if self.oom_killed { write!(f, ", at the memory limit") } else { Ok(()) }
    }
}

/// What an application wrote, and how it ended.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output, if that was piped.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error, if that was piped.
    pub stderr: Vec<u8>,
}

/// A started process with its supervisor.
#[derive(Debug)]
pub(crate) struct Handle {
    supervisor: OwnedFd,
    application: OwnedFd,
    control: Mutex<Option<OwnedFd>>,
    report: Report,
    status: Mutex<Option<i32>>,
    streams: Mutex<[Option<OwnedFd>; 3]>,
    terminal: Mutex<Option<OwnedFd>>,
    left: Mutex<bool>,
    pid: i32,
    /// The process that started it; a forked child of it has no say.
    owner: u32,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these hold is whole after every single step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handle {
    pub(crate) fn new(running: Running, streams: [Option<OwnedFd>; 3]) -> Result<Self> {
        let pid = process::pid_of(&running.application)?.unwrap_or(0);
        Ok(Self {
            supervisor: running.supervisor,
            application: running.application,
            control: Mutex::new(Some(running.control)),
            report: running.report,
            status: Mutex::new(None),
            streams: Mutex::new(streams),
            terminal: Mutex::new(running.terminal),
            left: Mutex::new(false),
            pid,
            owner: process::own_pid(),
        })
    }

    /// The pid, as the host sees it.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn application(&self) -> BorrowedFd<'_> {
        self.application.as_fd()
    }

    pub(crate) fn is_owner(&self) -> bool {
        process::own_pid() == self.owner
    }

    /// Whether it was left to itself.
    pub(crate) fn is_left(&self) -> bool {
        *locked(&self.left)
    }

    pub(crate) fn take_stream(&self, number: usize) -> Option<OwnedFd> {
        locked(&self.streams)[number].take()
    }

    pub(crate) fn take_terminal(&self) -> Option<OwnedFd> {
        locked(&self.terminal).take()
    }

    /// The wait status, once the supervisor has ended.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<Option<i32>> {
        if let Some(status) = *locked(&self.status) {
            return Ok(Some(status));
        }
        if !process::await_readable(&self.supervisor, timeout).context("wait for the sandbox")? {
            return Ok(None);
        }
        let mut status = locked(&self.status);
        if status.is_none() {
            wait(&self.supervisor)?;
            // A supervisor that was killed takes everything with it, and can report nothing.
            *status = Some(self.report.status()?.unwrap_or(9));
        }
        Ok(*status)
    }

    /// What the supervisor says in single bytes, for one who asked for that before the launch.
    pub(crate) fn hear_words(&self) -> Option<OwnedFd> {
        locked(&self.control).as_ref().and_then(|control| process::duplicate(control).ok())
    }

    pub(crate) fn send_signal(&self, signal: i32) -> Result<()> {
        process::send_signal(&self.application, signal)
    }

    /// Kills everything the supervisor is responsible for, and waits until it is gone.
    pub(crate) fn end(&self) -> Result<()> {
        // The supervisor, losing its owner, kills the application; so does a kill of the supervisor itself
        // where it is process 1, which also ends one that is stopped.
        locked(&self.control).take();
        process::send_signal(&self.application, 9)?;
        self.wait(None)?;
        Ok(())
    }

    /// Lets the application live on by itself. Its supervisor answers whom `listeners` hear of, as if nobody asked.
    pub(crate) fn leave(&self, listeners: Vec<OwnedFd>) -> Result<()> {
        let control = locked(&self.control).take();
        for listener in &listeners {
            let told = |control| process::hand(control, &[format::ANSWER], Some(listener.as_fd()));
            control.as_ref().map_or(Ok(()), told)?;
        }
        control.map_or(Ok(()), |control| process::tell(control, &[format::LEAVE]))?;
        *locked(&self.left) = true;
        Ok(())
    }

    /// Lets the supervisor hold a descriptor as long as it lives, or until it is to let go of it. A supervisor that is
    /// stopped has it all the same: it is on its way.
    pub(crate) fn hold(&self, place: u8, descriptor: BorrowedFd<'_>) -> Result<()> {
        let control = locked(&self.control);
        let Some(control) = &*control else {
            return Err(Error::new(ErrorKind::Closed, "the sandbox was closed or left to itself"));
        };
        process::hand(control, &[format::HOLD, place], Some(descriptor)).context("hand a lease to the sandbox")
    }

    /// Lets the supervisor close what it holds at a place; one that has ended did so.
    pub(crate) fn let_go(&self, place: u8) -> Result<()> {
        let control = locked(&self.control);
        let told = control.as_ref().map_or(Ok(()), |control| process::hand(control, &[format::LET_GO, place], None));
        told.context("take a lease from the sandbox")
    }

    /// Feeds standard input, collects the output, waits; `None` if `timeout` passed before.
    pub(crate) fn communicate(&self, input: &[u8], timeout: Option<Duration>) -> Result<Option<Output>> {
        let started = Instant::now();
        let streams = [self.take_stream(0), self.take_stream(1), self.take_stream(2)];
        let Some((stdout, stderr)) = process::exchange(streams, input, timeout)? else { return Ok(None) };
        let left = timeout.map(|timeout| timeout.saturating_sub(started.elapsed()));
        let raw = self.wait(left)?;
        Ok(raw.map(|raw| Output { status: ExitStatus::new(raw, false), stdout, stderr }))
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.supervisor.as_fd()
    }
}

/// What can be done with every process, for what holds its `handle` and knows of a raw status what it says.
macro_rules! process_methods {
    () => {
        /// The process id, as the host sees it; 0 if the process had ended before it could be asked.
        pub fn pid(&self) -> i32 {
            self.handle.pid()
        }

        /// Waits until the process has ended.
        ///
        /// # Errors
        /// [`Error::errno`] is `EINTR` when a signal handler of the host ran meanwhile; calling again goes on.
        pub fn wait(&self) -> Result<ExitStatus> {
            loop {
                if let Some(raw) = self.handle.wait(None)? {
                    return self.status(raw);
                }
            }
        }

        /// Waits at most `timeout`; `None` if the process still runs then.
        ///
        /// # Errors
        /// As for waiting without end.
        pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<ExitStatus>> {
            self.handle.wait(Some(timeout))?.map(|raw| self.status(raw)).transpose()
        }

        /// How the process ended, if it has.
        ///
        /// # Errors
        /// As for waiting.
        pub fn poll(&self) -> Result<Option<ExitStatus>> {
            self.wait_timeout(Duration::ZERO)
        }

        /// Sends a signal, 1 to 64, to the process. One that has ended already is no error.
        ///
        /// # Errors
        /// [`ErrorKind::InvalidArgument`] for any other number.
        pub fn kill(&self, signal: i32) -> Result<()> {
            self.handle.send_signal(signal)
        }

        /// The writing end of standard input, if that is piped and was not taken before.
        pub fn take_stdin(&self) -> Option<OwnedFd> {
            self.handle.take_stream(0)
        }

        /// The reading end of standard output, if that is piped and was not taken before.
        pub fn take_stdout(&self) -> Option<OwnedFd> {
            self.handle.take_stream(1)
        }

        /// The reading end of standard error, if that is piped and was not taken before.
        pub fn take_stderr(&self) -> Option<OwnedFd> {
            self.handle.take_stream(2)
        }

        /// The master of the terminal, if one was asked for and was not taken before.
        pub fn take_terminal(&self) -> Option<OwnedFd> {
            self.handle.take_terminal()
        }
    };
}

pub(crate) use process_methods;

/// A further process in a sandbox, started by [`Sandbox::exec`](crate::sandbox::Sandbox::exec).
///
/// Dropping it kills the process; it ends with the sandbox at the latest.
#[derive(Debug)]
pub struct Process {
    pub(crate) handle: Handle,
}

impl Process {
    process_methods!();

    fn status(&self, raw: i32) -> Result<ExitStatus> {
        Ok(ExitStatus::new(raw, false))
    }

    /// Writes `input` to its standard input and closes it, collects what it writes, and waits.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] after `timeout`; the process still runs then.
    pub fn communicate(&self, input: &[u8], timeout: Option<Duration>) -> Result<Output> {
        let late = || Error::new(ErrorKind::TimedOut, "the process did not end in time");
        self.handle.communicate(input, timeout)?.ok_or_else(late)
    }
}

impl AsFd for Process {
    /// Readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.handle.is_owner() {
            if let Err(error) = self.handle.end() {
                tracing::warn!(%error, "a process of a sandbox could not be ended");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_codes_from_signals() {
        let ended = ExitStatus::new(7 << 8, false);
        assert_eq!((ended.code(), ended.signal(), ended.success()), (Some(7), None, false));
        let killed = ExitStatus::new(9, true);
        assert_eq!((killed.code(), killed.signal()), (None, Some(9)));
        assert_eq!(killed.to_string(), "killed by signal 9, at the memory limit");
        assert!(ExitStatus::new(0, false).success());
    }
}
