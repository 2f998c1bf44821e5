//! Talking to a daemon, by the program that the driver has for it.
//!
//! What the daemon's sockets expect is NVIDIA's own affair. The program without arguments reads commands, a line each,
//! and prints the answers.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::allocator::mps::keeper::Executable;
use crate::sys::launch::{CloneOptions, start, wait};
use crate::sys::process;
use crate::sys::program::Program;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

/// Gives the daemon `commands`, and returns what it answers; `None` if it does not within `limit`.
pub(super) fn ask(interface: &Executable, commands: &str, limit: Duration) -> Result<Option<String>> {
    let (far_input, input) = process::pipe()?;
    let (output, far_output) = process::pipe()?;
    // A few lines, which the pipe holds, and now somebody can read them: no signal comes for want of a reader.
    File::from(input).write_all(commands.as_bytes()).map_err(|e| Error::from_io("write(commands)", e))?;
    let mut program = Program::new();
    let stdin = program.descriptor(far_input.as_fd())?;
    let stdout = program.descriptor(far_output.as_fd())?;
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
    drop((far_input, far_output));
    let answer = process::exchange([None, Some(output), None], b"", Some(limit));
    // One that has answered has nothing more to do, and one that has not is stuck.
    let ended = process::send_signal(&child.pidfd, 9).and_then(|()| wait(&child.pidfd));
    let answer = answer.context("talk to the MPS daemon")?;
    ended?;
    if let Some(failure) = report.failure()? {
        let words = format!("execute {}", interface.path.display());
        return Err(Error::from_errno(words, failure.errno).with_kind(ErrorKind::GpuUnavailable));
    }
    Ok(answer.map(|(stdout, _)| String::from_utf8_lossy(&stdout).into_owned()))
}
