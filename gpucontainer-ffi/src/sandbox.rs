//! Running sandboxes and the processes in them, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::boundary::{Fault, bad, c_string, call, catch, given, strings, text};
use crate::config::{Config, Limits, Streams};
use crate::error::Error;
use gpucontainer::sandbox::{ExitStatus, Output};
use gpucontainer::{ErrorKind, Result};
use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

/// How a process ended.
#[allow(non_camel_case_types, reason = "the name is that of C, so that one search finds both")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct gpuc_exit_status_t {
    /// The exit code, or -1 if a signal killed it.
    pub code: c_int,
    /// The signal that killed it, or 0.
    pub signal: c_int,
    /// Whether something in the sandbox was killed because it was at its memory limit.
    pub oom_killed: bool,
}

impl From<ExitStatus> for gpuc_exit_status_t {
    fn from(status: ExitStatus) -> Self {
        Self {
            code: status.code().unwrap_or(-1),
            signal: status.signal().unwrap_or(0),
            oom_killed: status.oom_killed(),
        }
    }
}

type StatusSlot<'a> = Option<&'a mut MaybeUninit<gpuc_exit_status_t>>;

/// Negative is for ever.
fn time(milliseconds: i64) -> Option<Duration> {
    u64::try_from(milliseconds).ok().map(Duration::from_millis)
}

/// Waits, going on after signals.
fn wait(
    milliseconds: i64,
    slot: StatusSlot<'_>,
    wait: impl Fn(Duration) -> Result<Option<ExitStatus>>,
) -> Result<c_int> {
    let Some(ended) = wait(time(milliseconds).unwrap_or(Duration::MAX))? else { return Ok(0) };
    if let Some(slot) = slot {
        slot.write(ended.into());
    }
    Ok(1)
}

fn hand_over(stream: Option<OwnedFd>) -> c_int {
    stream.map_or(-1, IntoRawFd::into_raw_fd)
}

/// A running application in namespaces, a root file system and limits of its own. Any number of threads may
/// use it at once.
#[derive(Debug)]
pub struct Sandbox {
    sandbox: gpucontainer::Sandbox,
    name: CString,
}

/// Checks everything, then starts the sandbox, and returns when the application has been executed.
///
/// @param config  can be used again
/// @param error   may be NULL
/// @return the caller's, freed with gpuc_sandbox_free; NULL on failure, and nothing is left behind
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_spawn(
    config: Option<&Config>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Sandbox>> {
    call(error, None, || {
        let sandbox = given(config, "config")?.ready()?.spawn()?;
        Ok(Some(Box::new(Sandbox { name: c_string(sandbox.name().as_bytes()), sandbox })))
    })
}

/// What a start would do, a line a step, without doing it.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_string_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_explain(
    config: Option<&Config>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        let plan = given(config, "config")?.ready()?.plan()?;
        Ok(c_string(plan.explain().as_bytes()).into_raw())
    })
}

/// Frees a string that a function returned without const.
///
/// @param string  may be NULL
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_string_free(string: *mut c_char) {
    if !string.is_null() {
        // SAFETY: the header asks for a string of the library, which made it by `into_raw`.
        drop(unsafe { CString::from_raw(string) });
    }
}

/// The name.
///
/// @param sandbox  may be NULL, which is an empty string
/// @return a string that lives as long as the object
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_name(sandbox: Option<&Sandbox>) -> *const c_char {
    sandbox.map_or(c"", |sandbox| sandbox.name.as_c_str()).as_ptr()
}

/// The application's process id, as the host sees it.
///
/// @param sandbox  may be NULL, which is 0
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_pid(sandbox: Option<&Sandbox>) -> c_int {
    sandbox.map_or(0, |sandbox| sandbox.sandbox.pid())
}

/// A descriptor to poll: it becomes readable once the application has ended.
///
/// @param sandbox  may be NULL, which is -1
/// @return the sandbox's, never closed by the caller
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_fd(sandbox: Option<&Sandbox>) -> c_int {
    sandbox.map_or(-1, |sandbox| sandbox.sandbox.as_fd().as_raw_fd())
}

/// Waits until the application has ended. Fails with EINTR when a signal handler ran; calling again goes on.
///
/// @param milliseconds  how long; negative is for ever, 0 only looks
/// @param status        set when it has ended; may be NULL
/// @param error         may be NULL
/// @return 1 if it has ended, 0 if the time has passed, -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_wait(
    sandbox: Option<&Sandbox>,
    milliseconds: i64,
    status: Option<&mut MaybeUninit<gpuc_exit_status_t>>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        let sandbox = &given(sandbox, "sandbox")?.sandbox;
        wait(milliseconds, status, |timeout| sandbox.wait_timeout(timeout))
    })
}

/// Sends a signal, 1 to 64, to the application. One that has ended already is no error.
///
/// @param error  may be NULL
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_kill(
    sandbox: Option<&Sandbox>,
    signal: c_int,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || given(sandbox, "sandbox")?.sandbox.kill(signal).map(|()| 0))
}

/// Takes the host's end of a piped stream: 0 to write standard input, 1 and 2 to read output and error.
///
/// @return a descriptor that the caller closes; -1 if the stream is not piped or was taken before
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_take_stream(sandbox: Option<&Sandbox>, stream: c_int) -> c_int {
    let Some(Sandbox { sandbox, .. }) = sandbox else { return -1 };
    hand_over(match stream {
        0 => sandbox.take_stdin(),
        1 => sandbox.take_stdout(),
        2 => sandbox.take_stderr(),
        _ => None,
    })
}

/// Takes the master of the terminal.
///
/// @return a descriptor that the caller closes; -1 if none was asked for or it was taken before
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_take_terminal(sandbox: Option<&Sandbox>) -> c_int {
    hand_over(sandbox.and_then(|sandbox| sandbox.sandbox.take_terminal()))
}

/// What a process wrote, and how it ended.
#[derive(Debug)]
pub struct Collected(Output);

/// Writes input to standard input and closes it, collects what comes from piped streams, and waits.
///
/// @param input         may be NULL if length is 0
/// @param milliseconds  how long; negative is for ever. GPUC_ERROR_TIMED_OUT after that; the application still runs
/// @param error         may be NULL
/// @return the caller's, freed with gpuc_output_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_sandbox_communicate(
    sandbox: Option<&Sandbox>,
    input: *const c_void,
    length: usize,
    milliseconds: i64,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Collected>> {
    call(error, None, || {
        // SAFETY: the header asks for that many bytes.
        let input = unsafe { bytes(input, length) }?;
        let output = given(sandbox, "sandbox")?.sandbox.communicate(input, time(milliseconds))?;
        Ok(Some(Box::new(Collected(output))))
    })
}

/// # Safety
/// `length` is 0, or `input` is `NULL` or points to that many bytes that do not change during `'a`.
unsafe fn bytes<'a>(input: *const c_void, length: usize) -> Result<&'a [u8]> {
    if length == 0 {
        return Ok(&[]);
    }
    given((!input.is_null()).then_some(()), "input")?;
    // SAFETY: it is not NULL, and the caller vouches for the rest.
    Ok(unsafe { std::slice::from_raw_parts(input.cast(), length) })
}

/// How the process ended.
///
/// @param output  may be NULL, which is code -1
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_output_status(output: Option<&Collected>) -> gpuc_exit_status_t {
    let nothing = gpuc_exit_status_t { code: -1, signal: 0, oom_killed: false };
    output.map_or(nothing, |output| output.0.status.into())
}

/// What came from standard output (1) or error (2).
///
/// @param output  may be NULL, which is nothing
/// @param length  set to how many bytes; may be NULL
/// @return bytes that live as long as the object; there is no zero byte at their end
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_output_bytes(
    output: Option<&Collected>,
    stream: c_int,
    length: Option<&mut MaybeUninit<usize>>,
) -> *const c_void {
    let bytes: &[u8] = match (output, stream) {
        (Some(output), 1) => &output.0.stdout,
        (Some(output), 2) => &output.0.stderr,
        _ => &[],
    };
    if let Some(length) = length {
        length.write(bytes.len());
    }
    bytes.as_ptr().cast()
}

/// Frees what gpuc_sandbox_communicate or gpuc_process_communicate returned.
///
/// @param output  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_output_free(output: Option<Box<Collected>>) {
    drop(output);
}

/// The host's port that leads to a published port of the container.
///
/// @param sandbox  may be NULL
/// @return 0 if that port is not published
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_host_port(sandbox: Option<&Sandbox>, container_port: u16) -> u16 {
    let ports = sandbox.map(|sandbox| sandbox.sandbox.ports()).unwrap_or_default();
    ports.iter().find(|port| port.container_port() == container_port).map_or(0, |port| port.host().port())
}

/// Connects to a TCP port inside, published or not.
///
/// @param milliseconds  how long to try; negative is for ever
/// @param error         may be NULL
/// @return a socket that the caller closes; -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_dial(
    sandbox: Option<&Sandbox>,
    port: u16,
    milliseconds: i64,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        let stream = given(sandbox, "sandbox")?.sandbox.dial(port, time(milliseconds))?;
        Ok(OwnedFd::from(stream).into_raw_fd())
    })
}

/// Everything that can be told of a sandbox as one JSON object: name, pid, ports with
/// their counters, gpus, timeline.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_string_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_json(
    sandbox: Option<&Sandbox>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        let sandbox = &given(sandbox, "sandbox")?.sandbox;
        let ports: Vec<_> = sandbox
            .port_status()
            .iter()
            .map(|status| {
                serde_json::json!({
                    "container_port": status.port.container_port(), "host": status.port.host().to_string(),
                    "accepted": status.accepted, "open": status.open, "refused": status.refused,
                    "bytes_in": status.bytes_in, "bytes_out": status.bytes_out, "last_error": status.last_error,
                })
            })
            .collect();
        let timeline: Vec<_> = sandbox
            .timeline()
            .iter()
            .map(|phase| serde_json::json!({"name": phase.name, "seconds": phase.duration.as_secs_f64()}))
            .collect();
        let all = serde_json::json!({
            "name": sandbox.name(), "pid": sandbox.pid(), "ports": ports, "gpus": sandbox.gpus(), "timeline": timeline,
        });
        Ok(c_string(all.to_string().as_bytes()).into_raw())
    })
}

/// What the sandbox uses, as one JSON object: memory, cpu, pids, io, hugetlb.
///
/// @param error  may be NULL; GPUC_ERROR_UNSUPPORTED without a control group
/// @return the caller's, freed with gpuc_string_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_stats_json(
    sandbox: Option<&Sandbox>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        let stats = given(sandbox, "sandbox")?.sandbox.stats()?;
        let json = serde_json::to_string(&stats)
            .map_err(|cause| gpucontainer::Error::new(ErrorKind::Corrupt, format!("statistics as JSON: {cause}")))?;
        Ok(c_string(json.as_bytes()).into_raw())
    })
}

/// Stops everything inside, until gpuc_sandbox_resume.
///
/// @param error  may be NULL
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_pause(
    sandbox: Option<&Sandbox>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || given(sandbox, "sandbox")?.sandbox.pause().map(|()| 0))
}

/// Lets everything inside go on.
///
/// @param error  may be NULL
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_resume(
    sandbox: Option<&Sandbox>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || given(sandbox, "sandbox")?.sandbox.resume().map(|()| 0))
}

/// Changes the resource limits; those that are not set stay.
///
/// @param error  may be NULL
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_update(
    sandbox: Option<&Sandbox>,
    limits: Option<&Limits>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        let limits = given(limits, "limits")?;
        limits.fault.check()?;
        given(sandbox, "sandbox")?.sandbox.update(&limits.limits).map(|()| 0)
    })
}

/// Lets the application live on when this object and this process are gone. Published ports close.
///
/// @param sandbox  freed, also on failure
/// @param error    may be NULL
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_detach(
    sandbox: Option<Box<Sandbox>>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || given(sandbox, "sandbox")?.sandbox.detach().map(|()| 0))
}

/// Kills everything inside, gives everything back, and says what went wrong with that.
///
/// @param sandbox  freed, also on failure
/// @param error    may be NULL
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_close(
    sandbox: Option<Box<Sandbox>>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || given(sandbox, "sandbox")?.sandbox.close().map(|()| 0))
}

/// Kills everything inside and gives everything back.
///
/// @param sandbox  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_free(sandbox: Option<Box<Sandbox>>) {
    // A panic while giving back must not reach C.
    let _ = catch(|| {
        drop(sandbox);
        Ok(())
    });
}

/// A further process in a sandbox, to be. A setter that is given something unusable makes gpuc_exec_spawn fail.
#[derive(Debug, Default)]
pub struct Exec {
    command: Vec<String>,
    env: Vec<(String, String)>,
    working_dir: Option<String>,
    user: Option<String>,
    terminal: Option<(u16, u16)>,
    streams: Streams,
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
        if exec.command.is_empty() {
            return Err(bad("a process needs a command".to_owned()));
        }
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
        let input = unsafe { bytes(input, length) }?;
        let output = given(process, "process")?.0.communicate(input, time(milliseconds))?;
        Ok(Some(Box::new(Collected(output))))
    })
}

/// Kills the process, if it still runs, and frees the object.
///
/// @param process  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_process_free(process: Option<Box<Process>>) {
    let _ = catch(|| {
        drop(process);
        Ok(())
    });
}
