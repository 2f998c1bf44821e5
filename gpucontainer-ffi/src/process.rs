//! Further processes in a sandbox, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::boundary::{Fault, bytes, call, given, release, strings, text};
use crate::error::Error;
use crate::output::{Collected, gpuc_exit_status_t, hand_over, time, wait};
use crate::sandbox::Sandbox;
use crate::stdio::{Streams, duplicate};
use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// A further process in a sandbox, to be. A setter that is given something unusable makes gpuc_exec_spawn fail.
#[derive(Debug, Default)]
pub struct Exec {
    command: Vec<String>,
    env: Vec<(String, String)>,
    working_dir: Option<String>,
    user: Option<String>,
    terminal: Option<(u16, u16)>,
    streams: Streams,
    passed: Vec<(c_int, OwnedFd)>,
    fault: Fault,
}

/// Describes a process.
///
/// @param arguments  strings, and NULL after the last
/// @return the caller's, freed with gpuc_exec_free
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_exec_new(arguments: *const *const c_char) -> Option<Box<Exec>> {
    let mut exec = Box::<Exec>::default();
    // SAFETY: the header asks for NULL or strings with NULL after the last.
    let command = unsafe { strings(arguments, "arguments") };
    exec.command = exec.fault.keep(command).unwrap_or_default();
    Some(exec)
}

/// Sets an environment variable, over that of the sandbox.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_exec_env(exec: Option<&mut Exec>, name: *const c_char, value: *const c_char) {
    let Some(exec) = exec else { return };
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    let name = unsafe { text(name, "name") };
    // SAFETY: likewise.
    let value = unsafe { text(value, "value") };
    let pair = name.and_then(|name| Ok((name.to_owned(), value?.to_owned())));
    exec.env.extend(exec.fault.keep(pair));
}

/// Sets the working directory. By default the sandbox's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_exec_set_working_dir(exec: Option<&mut Exec>, path: *const c_char) {
    let Some(exec) = exec else { return };
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    let path = unsafe { text(path, "path") };
    exec.working_dir = exec.fault.keep(path).map(str::to_owned);
}

/// Runs as this user of the image, and group after a colon. By default as the sandbox's application.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_exec_set_user(exec: Option<&mut Exec>, user: *const c_char) {
    let Some(exec) = exec else { return };
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    let user = unsafe { text(user, "user") };
    exec.user = exec.fault.keep(user).map(str::to_owned);
}

/// Says what standard input (0), output (1) or error (2) is. The host's by default.
///
/// @param kind  of gpuc_stdio_t
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_exec_set_stdio(exec: Option<&mut Exec>, stream: c_int, kind: u32) {
    let Some(exec) = exec else { return };
    let result = exec.streams.set(stream, kind);
    exec.fault.keep(result);
}

/// Makes an open file standard input (0), output (1) or error (2). The descriptor is duplicated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_exec_set_stdio_file(exec: Option<&mut Exec>, stream: c_int, fd: c_int) {
    let Some(exec) = exec else { return };
    // SAFETY: the header asks for an open descriptor.
    let result = unsafe { exec.streams.set_file(stream, fd) };
    exec.fault.keep(result);
}

/// Lets the process find an open file under a number, 3 to 511; see gpuc_config_pass_fd.
///
/// @param number  the number inside
/// @param fd      is duplicated
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_exec_pass_fd(exec: Option<&mut Exec>, number: c_int, fd: c_int) {
    let Some(exec) = exec else { return };
    // SAFETY: the header asks for an open descriptor.
    let file = unsafe { duplicate(fd) };
    exec.passed.extend(exec.fault.keep(file).map(|file| (number, file)));
}

/// Gives the process a terminal of so many rows and columns.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_exec_set_terminal(exec: Option<&mut Exec>, rows: u16, columns: u16) {
    if let Some(exec) = exec {
        exec.terminal = Some((rows, columns));
    }
}

/// Starts the process with the privileges, filter and limits of the sandbox.
///
/// @param exec   can be used again
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_process_free before the sandbox is; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_exec_spawn(
    exec: Option<&Exec>,
    sandbox: Option<&Sandbox>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Process>> {
    call(error, None, || {
        let exec = given(exec, "exec")?;
        exec.fault.check()?;
        let mut builder = given(sandbox, "sandbox")?.sandbox.exec(&exec.command);
        for (name, value) in &exec.env {
            builder = builder.env(name, value);
        }
        if let Some(path) = &exec.working_dir {
            builder = builder.working_dir(path);
        }
        if let Some(user) = &exec.user {
            builder = builder.user(user);
        }
        if let Some((rows, columns)) = exec.terminal {
            builder = builder.terminal(rows, columns);
        }
        for (number, file) in &exec.passed {
            // SAFETY: the object keeps it open.
            builder = builder.pass_fd(*number, unsafe { duplicate(file.as_raw_fd()) }?);
        }
        let [stdin, stdout, stderr] = exec.streams.0.clone();
        let process = builder.stdin(stdin).stdout(stdout).stderr(stderr).spawn()?;
        Ok(Some(Box::new(Process(process))))
    })
}

/// Frees a description.
///
/// @param exec  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_exec_free(exec: Option<Box<Exec>>) {
    drop(exec);
}

/// A further process in a sandbox. Any number of threads may use it at once.
#[derive(Debug)]
pub struct Process(gpucontainer::sandbox::Process);

/// The process id, as the host sees it; 0 if the process had ended before it could be asked.
///
/// @param process  may be NULL, which is 0
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_process_pid(process: Option<&Process>) -> c_int {
    process.map_or(0, |process| process.0.pid())
}

/// A descriptor to poll: it becomes readable once the process has ended.
///
/// @param process  may be NULL, which is -1
/// @return the object's, never closed by the caller
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_process_fd(process: Option<&Process>) -> c_int {
    process.map_or(-1, |process| process.0.as_fd().as_raw_fd())
}

/// Waits until the process has ended; see gpuc_sandbox_wait.
///
/// @return 1 if it has ended, 0 if the time has passed, -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_process_wait(
    process: Option<&Process>,
    milliseconds: i64,
    status: Option<&mut MaybeUninit<gpuc_exit_status_t>>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        let process = &given(process, "process")?.0;
        wait(milliseconds, status, |timeout| process.wait_timeout(timeout))
    })
}

/// Sends a signal, 1 to 64. A process that has ended already is no error.
///
/// @param error  may be NULL
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_process_kill(
    process: Option<&Process>,
    signal: c_int,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || given(process, "process")?.0.kill(signal).map(|()| 0))
}

/// Takes the host's end of a piped stream; see gpuc_sandbox_take_stream.
///
/// @return a descriptor that the caller closes; -1 if the stream is not piped or was taken before
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_process_take_stream(process: Option<&Process>, stream: c_int) -> c_int {
    let Some(Process(process)) = process else { return -1 };
    hand_over(match stream {
        0 => process.take_stdin(),
        1 => process.take_stdout(),
        2 => process.take_stderr(),
        _ => None,
    })
}

/// Takes the master of the terminal; see gpuc_sandbox_take_terminal.
///
/// @return a descriptor that the caller closes; -1 if none was asked for or it was taken before
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_process_take_terminal(process: Option<&Process>) -> c_int {
    hand_over(process.and_then(|process| process.0.take_terminal()))
}

/// Writes input, collects output and waits; see gpuc_sandbox_communicate.
///
/// @return the caller's, freed with gpuc_output_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_process_communicate(
    process: Option<&Process>,
    input: *const c_void,
    length: usize,
    milliseconds: i64,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Collected>> {
    call(error, None, || {
        // SAFETY: the header asks for that many bytes.
        let input = unsafe { bytes(input, length, "input") }?;
        let output = given(process, "process")?.0.communicate(input, time(milliseconds))?;
        Ok(Some(Box::new(Collected(output))))
    })
}

/// Kills the process, if it still runs, and frees the object.
///
/// @param process  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_process_free(process: Option<Box<Process>>) {
    release(process);
}
