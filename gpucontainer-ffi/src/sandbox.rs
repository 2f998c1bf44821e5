//! Running sandboxes and the processes in them, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::boundary::{bytes, c_string, call, given, release};
use crate::config::{Config, on_address};
use crate::counters::{port_status, service_status};
use crate::error::Error;
use crate::image::ImageStore;
use crate::limits::Limits;
use crate::output::{Collected, gpuc_exit_status_t, hand_over, time, wait};
use gpucontainer::ErrorKind;
use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};

/// A running application in namespaces, a root file system and limits of its own. Any number of threads may
/// use it at once.
#[derive(Debug)]
pub struct Sandbox {
    pub(crate) sandbox: gpucontainer::Sandbox,
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

/// Turns the calling process into the sandbox, as execve(2) turns it into a program: starts the sandbox, and stands for
/// it until it ends. For who was started as a process of its own, as a task of Slurm. Returns only on failure, and then
/// the process is as it was, signals included.
///
/// - Every signal that can be caught and comes to the process reaches the application once, with what sigqueue(3) sent;
///   from the keys of a terminal, its whole process group. One that the process ignores is ignored.
/// - An application that is stopped stops the process, and SIGCONT lets both go on.
/// - The application has the streams of the process, or what the configuration says. The process lets go of them, and of
///   all pipes, terminals and sockets that it has open.
/// - When the application ends, everything is given back, and the process ends as it did: with its exit code, or by the
///   same signal, without a core dump. No handler of atexit(3) is run and nothing that is buffered is written: flush
///   before. SIGKILL to the process kills everything inside.
///
/// The process must have one thread, as a forked child has; otherwise it is GPUC_ERROR_UNSUPPORTED. A piped stream or a
/// terminal of the application's own is GPUC_ERROR_INVALID_ARGUMENT: nobody would be at the other end.
///
/// @param error  may be NULL
/// @return -1
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_enter(config: Option<&Config>, error: Option<&mut MaybeUninit<Option<Box<Error>>>>) -> c_int {
    call(error, -1, || match given(config, "config")?.ready()?.enter()? {})
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
        let input = unsafe { bytes(input, length, "input") }?;
        let output = given(sandbox, "sandbox")?.sandbox.communicate(input, time(milliseconds))?;
        Ok(Some(Box::new(Collected(output))))
    })
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

/// Publishes a TCP port of a running sandbox.
///
/// @param address    an address of the host, as in "0.0.0.0" or "::1"; NULL is 127.0.0.1 and ::1
/// @param host_port  0 for any free one
/// @param error      may be NULL
/// @return the host's port; 0 on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_sandbox_publish(
    sandbox: Option<&Sandbox>,
    address: *const c_char,
    container_port: u16,
    host_port: u16,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> u16 {
    call(error, 0, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let mapping = unsafe { on_address(address, container_port, host_port) }?;
        let ports = given(sandbox, "sandbox")?.sandbox.publish(&[mapping])?;
        Ok(ports.first().map_or(0, |port| port.host().port()))
    })
}

/// Closes what is published on a port of the host, TCP and UDP, with its connections; then the host's port is free.
///
/// @param address  as it was published; NULL is 127.0.0.1
/// @param error    may be NULL
/// @return whether it was closed
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_sandbox_unpublish(
    sandbox: Option<&Sandbox>,
    address: *const c_char,
    host_port: u16,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> bool {
    call(error, false, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let mapping = unsafe { on_address(address, 0, host_port) }?;
        given(sandbox, "sandbox")?.sandbox.unpublish(mapping.host())?;
        Ok(true)
    })
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

/// Waits until something accepts connections at a TCP port inside, published or not, by connecting to it and closing that
/// at once.
///
/// @param milliseconds  how long; negative is as long as the application runs
/// @param error         may be NULL; GPUC_ERROR_CLOSED as soon as the application has ended, GPUC_ERROR_TIMED_OUT when the
///                      time has passed. EINTR when a signal handler ran; calling again goes on
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_wait_ready(
    sandbox: Option<&Sandbox>,
    port: u16,
    milliseconds: i64,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || given(sandbox, "sandbox")?.sandbox.wait_ready(port, time(milliseconds)).map(|()| 0))
}

/// Everything that can be told of a sandbox as one JSON object: name, pid, ports and host_services with
/// their counters, gpus, addresses in a private network, timeline.
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
        let ports: Vec<_> = sandbox.port_status().iter().map(port_status).collect();
        let services: Vec<_> = sandbox.host_services().iter().map(service_status).collect();
        let timeline: Vec<_> = sandbox
            .timeline()
            .iter()
            .map(|phase| serde_json::json!({"name": phase.name, "seconds": phase.duration.as_secs_f64()}))
            .collect();
        let all = serde_json::json!({
            "name": sandbox.name(), "pid": sandbox.pid(), "ports": ports, "host_services": services,
            "gpus": sandbox.gpus(), "addresses": sandbox.addresses(), "timeline": timeline,
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

/// Lets the application live on when this object and this process are gone. Published ports close. Its
/// supervisor stays a child of this process: one that lives on has a zombie of it in the end, until it collects its children,
/// as with waitpid(-1, ...).
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
    release(sandbox);
}

/// Removes what sandboxes of processes that died left, of this user's: control groups, and directories for writes
/// in the store. The first start of a process with a store does this by itself.
///
/// @param error  may be NULL; what could not be removed, after everything was tried
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_collect_abandoned(
    store: Option<&ImageStore>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || gpucontainer::sandbox::collect_abandoned(&given(store, "store")?.store).map(|()| 0))
}
