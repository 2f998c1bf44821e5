//! Things done inside another network namespace, or in a new one, by a thread for a moment.
//!
//! What is done is a list of system calls, each of which can use what earlier ones returned. Descriptors that the thread
//! opens are the caller's. Its credentials are the caller's, so the caller must be privileged over the namespace.

#![allow(unsafe_code, reason = "descriptors made by the thread")]

use super::super::fs::mount;
use super::super::netlink::{Netlink, Protocol};
use super::super::thread::{self, Descriptors, errno, system_call};
use crate::error::{Context, Error, ErrorKind, Result};
use std::ffi::{CString, c_int, c_long, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// An argument of a call.
#[derive(Clone, Copy, Debug)]
enum Value {
    Plain(c_long),
    /// What the call of that number returned.
    Result(usize),
}

/// One call and what became of it.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: c_long,
    arguments: [Value; 5],
    /// Whether an error number may be returned without ending the errand: that of a thing that is not there.
    optional: bool,
    result: c_long,
}

/// What is done, call after call, until one fails.
#[derive(Debug, Default)]
struct Errand {
    calls: Vec<Call>,
    /// What the calls are called in errors.
    names: Vec<String>,
    /// What the calls' arguments point to.
    texts: Vec<CString>,
}

/// A network namespace, by a netlink socket that keeps it alive.
#[derive(Debug)]
pub(crate) struct NewNetwork {
    /// For its interfaces, addresses and routes.
    pub(crate) route: Netlink,
    /// The namespace itself.
    pub(crate) namespace: OwnedFd,
}

/// Makes a network namespace, which belongs to the caller's user namespace, and writes `settings` (as `net.ipv4.…`) in it.
/// A setting that the kernel does not have is left out.
///
/// # Errors
/// [`PermissionDenied`](ErrorKind::PermissionDenied) for a caller who may not.
pub(crate) fn new_network(settings: &[(String, String)]) -> Result<NewNetwork> {
    let mut errand = Errand::default();
    errand.call(
        "unshare(CLONE_NEWNET)",
        libc::SYS_unshare,
        [Value::Plain(libc::CLONE_NEWNET.into()), NOTHING, NOTHING, NOTHING, NOTHING],
    );
    let route = errand.netlink(Protocol::Route);
    for (name, value) in settings {
        errand.setting(name, value, true)?;
    }
    errand.run().context("make a network namespace")?;
    let route = Netlink::adopt(errand.take(route))?;
    let namespace = route.namespace()?;
    Ok(NewNetwork { route, namespace })
}

/// A netlink socket of a network namespace.
///
/// # Errors
/// [`PermissionDenied`](ErrorKind::PermissionDenied) for a caller who is not privileged over it.
pub(crate) fn netlink(network: BorrowedFd<'_>, protocol: Protocol) -> Result<Netlink> {
    let mut errand = Errand::entering(network);
    let socket = errand.netlink(protocol);
    errand.run().context("make a netlink socket in a network namespace")?;
    Netlink::adopt(errand.take(socket))
}

/// Writes settings (as `net.ipv4.…`) of a network namespace.
///
/// # Errors
/// That of the first that the kernel does not have or refuses.
pub(crate) fn configure(network: BorrowedFd<'_>, settings: &[(String, String)]) -> Result<()> {
    if settings.is_empty() {
        return Ok(());
    }
    let mut errand = Errand::entering(network);
    for (name, value) in settings {
        errand.setting(name, value, false)?;
    }
    errand.run().context("set what a network namespace does")
}

/// A detached, read-only mount of `/sys` that shows the devices of a network namespace.
pub(crate) fn sysfs(network: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut errand = Errand::entering(network);
    let context = errand.next();
    let name = errand.text("sysfs")?;
    errand.call("fsopen(sysfs)", libc::SYS_fsopen, [name, Value::Plain(FSOPEN_CLOEXEC), NOTHING, NOTHING, NOTHING]);
    errand.run().context("mount sysfs of a network namespace")?;
    // Whose devices it shows was settled when it was opened.
    let context = mount::Context::adopt(errand.take(context), "sysfs");
    context.create()?;
    context.mount_bare()
}

const FSOPEN_CLOEXEC: c_long = 1;
const NOTHING: Value = Value::Plain(0);
/// What a call that was not made has returned.
const NOT_MADE: c_long = c_long::MIN;

impl Errand {
    fn entering(network: BorrowedFd<'_>) -> Self {
        let mut errand = Self::default();
        let network = Value::Plain(network.as_raw_fd().into());
        let arguments = [network, Value::Plain(libc::CLONE_NEWNET.into()), NOTHING, NOTHING, NOTHING];
        errand.call("setns(network namespace)", libc::SYS_setns, arguments);
        errand
    }

    /// The number that the next call gets.
    fn next(&self) -> usize {
        self.calls.len()
    }

    fn call(&mut self, name: impl Into<String>, number: c_long, arguments: [Value; 5]) {
        self.calls.push(Call { number, arguments, optional: false, result: NOT_MADE });
        self.names.push(name.into());
    }

    fn text(&mut self, text: &str) -> Result<Value> {
        let text = CString::new(text)
            .map_err(|_| Error::new(ErrorKind::InvalidArgument, format!("{text:?} has a zero byte in it")))?;
        // The bytes stay where they are when the list moves.
        let at = text.as_ptr() as c_long;
        self.texts.push(text);
        Ok(Value::Plain(at))
    }

    fn netlink(&mut self, protocol: Protocol) -> usize {
        let at = self.next();
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        let arguments = [libc::AF_NETLINK, kind, protocol.number(), 0, 0].map(|value| Value::Plain(value.into()));
        self.call(format!("socket(AF_NETLINK, {protocol:?})"), libc::SYS_socket, arguments);
        at
    }

    /// Writes one file below `/proc/sys`, which shows the network namespace of whoever opens it.
    fn setting(&mut self, name: &str, value: &str, optional: bool) -> Result<()> {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        let opened = self.next();
        let (at, bytes) = (self.text(&path)?, self.text(value)?);
        let flags = Value::Plain((libc::O_WRONLY | libc::O_CLOEXEC).into());
        self.call(
            format!("open({path:?})"),
            libc::SYS_openat,
            [Value::Plain(libc::AT_FDCWD.into()), at, flags, NOTHING, NOTHING],
        );
        let length = Value::Plain(c_long::try_from(value.len()).unwrap_or_default());
        let write = [Value::Result(opened), bytes, length, NOTHING, NOTHING];
        self.call(format!("write({path:?}, {value:?})"), libc::SYS_write, write);
        self.call(
            format!("close({path:?})"),
            libc::SYS_close,
            [Value::Result(opened), NOTHING, NOTHING, NOTHING, NOTHING],
        );
        for call in self.calls.iter_mut().skip(opened) {
            call.optional = optional;
        }
        Ok(())
    }

    fn result(&self, call: usize) -> c_long {
        self.calls.get(call).map_or(NOT_MADE, |call| call.result)
    }

    /// The descriptor that a call returned, which is taken once.
    fn take(&mut self, call: usize) -> OwnedFd {
        let fd = c_int::try_from(self.result(call)).unwrap_or(-1);
        debug_assert!(fd >= 0);
        // SAFETY: the thread opened it in the table that it shares with us, nobody else was told of it, and the errand
        // has succeeded as far as this call.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    fn run(&mut self) -> Result<()> {
        let mut list = List { calls: self.calls.as_mut_ptr(), count: self.calls.len() };
        thread::run(carry_out, std::ptr::from_mut(&mut list).cast(), Descriptors::Shared)?;
        let failed = self.calls.iter().position(|call| call.result < 0 && !call.forgiven());
        let Some(at) = failed else { return Ok(()) };
        let call = self.names.get(at).cloned().unwrap_or_default();
        let result = self.result(at);
        self.close_opened();
        Err(Error::from_errno(call, errno(result)))
    }

    /// Closes what an errand that failed half-way has open.
    fn close_opened(&mut self) {
        const OPENING: [c_long; 3] = [libc::SYS_socket, libc::SYS_openat, libc::SYS_fsopen];
        for at in 0..self.calls.len() {
            let opened = self.calls.get(at).is_some_and(|call| OPENING.contains(&call.number) && call.result >= 0);
            let closes = |call: &Call| {
                let it = matches!(call.arguments[0], Value::Result(of) if of == at);
                call.number == libc::SYS_close && call.result >= 0 && it
            };
            if opened && !self.calls.iter().any(closes) {
                drop(self.take(at));
            }
        }
    }
}

impl Call {
    /// Whether the errand goes on after this result.
    fn forgiven(&self) -> bool {
        let absent = [libc::ENOENT, libc::EBADF].contains(&errno(self.result));
        self.optional && self.result != NOT_MADE && absent
    }
}

/// What the thread is told.
#[repr(C)]
struct List {
    calls: *mut Call,
    count: usize,
}

/// The thread: nothing but system calls and plain arithmetic.
extern "C" fn carry_out(argument: *mut c_void) {
    // SAFETY: the caller passes an exclusive reference to a `List` and stands still until this function has ended.
    let list = unsafe { &*argument.cast::<List>() };
    // SAFETY: as above; the list describes the caller's vector, which does not move meanwhile.
    let calls = unsafe { std::slice::from_raw_parts_mut(list.calls, list.count) };
    let mut at = 0;
    while at < calls.len() {
        let mut arguments = [0; 5];
        let Some(call) = calls.get(at) else { return };
        let mut argument = 0;
        while argument < 5 {
            arguments[argument] = match call.arguments[argument] {
                Value::Plain(value) => value,
                Value::Result(earlier) => match calls.get(earlier) {
                    Some(earlier) => earlier.result,
                    None => return,
                },
            };
            argument += 1;
        }
        let result = system_call(call.number, arguments);
        let Some(call) = calls.get_mut(at) else { return };
        call.result = result;
        if result < 0 && !call.forgiven() {
            return;
        }
        at += 1;
    }
}
