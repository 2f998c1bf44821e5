//! Talking to a daemon, by the program that the driver has for it.
//!
//! What the daemon's sockets expect is NVIDIA's own affair. The program without arguments reads commands, a line each,
//! and prints the answers.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::allocator::mps::keeper::Executable;
use crate::sys::launch::{CloneOptions, start, wait};
use crate::sys::process;
use crate::sys::program::Program;

use std::os::fd::AsFd;
use std::time::Duration;

/// Gives the daemon `commands`, and returns what it answers; `None` if it does not within `limit`.
pub(super) fn ask(interface: &Executable, commands: &str, limit: Duration) -> Result<Option<String>> {
    // It reads to the end, which a pipe has not as long as somebody whom this process has just forked has a copy.
    let input = process::memory_file(commands.as_bytes())?;
    let (output, far_output) = process::pipe()?;
    let mut program = Program::new();
    let stdin = program.descriptor(input.as_fd());
    let stdout = program.descriptor(far_output.as_fd());
    program.default_signals();
    program.setsid();
    program.unblock_signals();
    program.chdir(&interface.working_directory)?;
    program.close_on_exec_all();
    program.duplicate(stdin, 0);
    program.duplicate(stdout, 1);
    program.duplicate(stdout, 2);
    let path = interface.path.to_string_lossy().into_owned();
    program.execute(&[path], &interface.arguments, &interface.environment)?;
    let program = program.finish()?;
    let child = start(&program, &CloneOptions::default())?;
    let report = program.into_report();
    drop(far_output);
    // Not until the end of the pipe, for the same reason; it holds the few words.
    let answered = process::await_readable(&child.pidfd, Some(limit));
    // One that has answered has nothing more to do, and one that has not is stuck.
    let ended = process::send_signal(&child.pidfd, 9).and_then(|()| wait(&child.pidfd));
    let answered = answered.context("talk to the MPS daemon")?;
    ended?;
    if let Some(failure) = report.failure()? {
        let words = format!("execute {}", interface.path.display());
        return Err(Error::from_errno(words, failure.errno).with_kind(ErrorKind::GpuUnavailable));
    }
    if !answered {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&process::read_now(&output)?).into_owned()))
}
