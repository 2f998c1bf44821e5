//! The calling process becomes the sandbox: it starts it, stands for it, and ends as the application does.
//!
//! ```text
//! who started the caller ── signals, wait ──► calling process ── signals ──► application
//!                                                  ▲                             │
//!                                                  └── stopped, goes on, ended ──┘  (the supervisor says so)
//! ```

use crate::error::{Error, ErrorKind, Result};
use crate::sandbox::Sandbox;
use crate::sandbox::config::SandboxBuilder;
use crate::sandbox::stdio::Stdio;
use crate::sys::process;
use crate::sys::program::format::{CONTINUED, STOPPED};
use crate::sys::stand_in::{
    Arrived, Channels, SIGCONT, SIGSTOP, STOPPING, Signals, await_any, end_as, hand_on, signal_group, thread_count,
};
use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};

impl SandboxBuilder {
    /// Turns the calling process into the sandbox, as `execve(2)` turns it into a program: starts the sandbox, and
    /// stands for it until it ends. For who is started as a process of its own and must not be another one: a task of
    /// Slurm, a worker of MPI, a prolog, an interpreter that somebody else starts. It returns only if the start fails.
    ///
    /// From then on
    ///
    /// - every signal that can be caught and comes to this process reaches the application once, with what
    ///   `sigqueue(3)` sent; from a terminal's keys, its whole process group. One that this process ignores is ignored.
    /// - an application that is stopped stops this process, and `SIGCONT` lets both go on. `SIGTSTP`, `SIGTTIN` and
    ///   `SIGTTOU` stop an application that does not catch them. `SIGSTOP` to this process stops it alone.
    /// - the application has the streams of this process, or what the configuration says. This process itself lets go of
    ///   them, and of all pipes, terminals and sockets that it has open: who is at their other end hears of the application
    ///   alone.
    /// - when the application ends, everything is given back, and this process ends as it did: with its exit code, or
    ///   killed by the same signal, without a core dump. No handler for the end of the process is run (`_exit(2)`), and
    ///   nothing that is buffered is written: flush before. `SIGKILL` to this process kills everything inside.
    ///
    /// The application is in a session of its own: it cannot push input into the caller's terminal, and has no job
    /// control of its own there; while the caller is in the background, it may read from the terminal. This process keeps
    /// its memory until the end, so one that was forked from a large process holds what that one changes meanwhile.
    /// Other threads cannot go on, so there must be none. A control group of its own is made as always; with
    /// [`cgroup(false)`](Self::cgroup) the application stays in those of this process, under the limits that are set there.
    ///
    /// # Errors
    /// Those of [`spawn`](Self::spawn); [`ErrorKind::Unsupported`] if the process has other threads;
    /// [`ErrorKind::InvalidArgument`] for a stream that is [`Stdio::Piped`], or a [`terminal`](Self::terminal), which
    /// nobody would serve. Then this process is as it was, signals included.
    #[doc(alias = "gpuc_enter")]
    pub fn enter(self) -> Result<Infallible> {
        let wanted = |error: Error| error.context("turn the calling process into a sandbox");
        check(&self).map_err(wanted)?;
        let mut channels = Channels::open_now().map_err(wanted)?;
        let mut signals = None;
        let take = || {
            signals = Some(Signals::take()?);
            Ok(())
        };
        let sandbox = Sandbox::start_with(&self, take, true).map_err(wanted)?;
        // What is passed, and files as streams, are the application's alone, whoever else has this description.
        self.process.files().for_each(|file| channels.add(file));
        drop(self);
        channels.close();
        let Some(signals) = signals else { end_as(ABORTED) };
        signals.take_all();
        stand(&sandbox, &signals);
        let status = sandbox.wait_raw().unwrap_or(KILLED);
        if let Err(error) = sandbox.close() {
            tracing::warn!(%error, "a sandbox left something behind");
        }
        end_as(status)
    }
}

/// Wait statuses, as `wait4(2)` gives them.
const KILLED: i32 = 9;
const ABORTED: i32 = 6;

fn check(builder: &SandboxBuilder) -> Result<()> {
    let threads = thread_count()?;
    if threads != 1 {
        let message = format!("it has {threads} threads, and only a process with one can become a sandbox");
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    let process = &builder.process;
    let streams = [("input", &process.stdin), ("output", &process.stdout), ("error", &process.stderr)];
    if let Some((name, _)) = streams.iter().find(|(_, stream)| matches!(stream, Stdio::Piped)) {
        let message = format!("standard {name} is piped, and nobody would be at the other end");
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    if process.terminal.is_some() {
        let message = "a terminal of the application's own has nobody at its other end";
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    Ok(())
}

/// Stands for the sandbox until its application has ended.
fn stand(sandbox: &Sandbox, signals: &Signals) {
    let mut words = sandbox.handle.hear_words();
    loop {
        let ready = match await_any(signals, sandbox.handle.as_fd(), words.as_ref()) {
            Ok([signals, ended, word]) => (signals, ended, word),
            Err(error) => {
                tracing::error!(%error, "signals do not reach the application any more");
                return;
            }
        };
        if ready.1 {
            return;
        }
        // First, so that a signal to go on that has come meanwhile still waits.
        if ready.2 && words.as_ref().is_some_and(is_stopped) && is_stopped_now(sandbox.handle.pid()) {
            signals.stop();
        } else if ready.2 && words.as_ref().is_some_and(process::is_at_end) {
            words = None;
        }
        if ready.0 {
            while let Ok(Some(arrived)) = signals.next() {
                if let Err(error) = pass_on(sandbox, arrived) {
                    tracing::warn!(%error, signal = arrived.signal, "a signal did not reach the application");
                }
            }
        }
    }
}

/// Whether a process is stopped: it may have been let go on since the word of its stop was sent.
fn is_stopped_now(pid: i32) -> bool {
    let path = format!("/proc/{pid}/stat");
    let stat = crate::sys::fs::read(path.as_ref()).unwrap_or_default();
    // pid (name) state …
    String::from_utf8_lossy(&stat).rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}

/// The last of the words that wait, if that is of a stop.
fn is_stopped(words: &OwnedFd) -> bool {
    let mut stopped = false;
    while let Ok(Some(word)) = process::word_now(words) {
        match word {
            STOPPED => stopped = true,
            CONTINUED => stopped = false,
            _ => {}
        }
    }
    stopped
}

fn pass_on(sandbox: &Sandbox, arrived: Arrived) -> Result<()> {
    let (application, pid) = (sandbox.handle.application(), sandbox.handle.pid());
    if arrived.is_own() {
        return Ok(());
    }
    if STOPPING.contains(&arrived.signal) && !heeds(pid, arrived.signal) {
        // Its process group is an orphan, which such a signal by itself never stops.
        return signal_group(application, pid, SIGSTOP);
    }
    if arrived.signal == SIGCONT || arrived.is_from_terminal() {
        return signal_group(application, pid, arrived.signal);
    }
    hand_on(application, arrived)
}

/// Whether a process does something of its own about a signal, or has said that it ignores it.
fn heeds(pid: i32, signal: i32) -> bool {
    let path = format!("/proc/{pid}/status");
    let status = crate::sys::fs::read(path.as_ref()).unwrap_or_default();
    is_heeded(&String::from_utf8_lossy(&status), signal)
}

/// From lines as `SigCgt:` and a mask in hexadecimal digits.
fn is_heeded(status: &str, signal: i32) -> bool {
    let mask = |name: &str| {
        let digits = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(digits.trim(), 16).ok()
    };
    let set = mask("SigCgt:").unwrap_or_default() | mask("SigIgn:").unwrap_or_default();
    (1..=64).contains(&signal) && set >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_heeds_is_read_from_its_masks() {
        let status = "Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000000001\nSigCgt:\t8000000000080000\n";
        let heeded: Vec<i32> = (0..=65).filter(|signal| is_heeded(status, *signal)).collect();
        assert_eq!(heeded, [1, 20, 64]);
        assert!(!is_heeded("", 20));
        assert!(!is_heeded("SigCgt:\tno number\n", 20));
    }
}
