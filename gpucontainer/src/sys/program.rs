//! Programs for the stub: flat steps with every string, structure and filter already in place.
//!
//! A program is written in the parent, where allocating and failing are allowed; the stub (`stub/main.rs`) only walks
//! it. What each call means is said by whoever emits it; this file knows the layout, registers and errors.

use super::errno::failed;
use crate::error::{Error, Result};
use format::{BASE, Header, NO_REGISTER, Op};
use rustix::fs::{MemfdFlags, SealFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

#[path = "../../stub/format.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    reason = "shared with the stub, each side uses its part"
)]
pub(crate) mod format;

/// A register of the stub: the result of one call, used by later ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Register(u8);

/// One argument of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument {
    Value(u64),
    Register(Register),
}

impl From<u64> for Argument {
    fn from(value: u64) -> Self {
        Self::Value(value)
    }
}

impl From<u32> for Argument {
    fn from(value: u32) -> Self {
        Self::Value(value.into())
    }
}

impl From<i32> for Argument {
    /// Sign-extended, as system calls take `int`.
    fn from(value: i32) -> Self {
        Self::Value(i64::from(value).cast_unsigned())
    }
}

impl From<Register> for Argument {
    fn from(register: Register) -> Self {
        Self::Register(register)
    }
}

/// What an error of a call means.
#[derive(Clone, Copy, Debug)]
pub(crate) enum OnError {
    /// The start fails.
    Fail,
    /// The result is negative, a later step looks at it.
    GoOn,
    /// It is fine if the thing exists already.
    AllowExisting,
    /// It is fine if the thing does not exist.
    AllowAbsent,
    /// The next place is tried.
    Search,
    /// The start fails, with the kernel's words from the mount context that is the first argument.
    Log,
}

/// A jump whose place is not known yet.
#[derive(Debug)]
#[must_use]
pub(crate) struct Jump {
    op: usize,
    argument: usize,
}

/// A program under construction.
///
/// The lifetime is that of the descriptors it uses, which the stub inherits under their own numbers.
#[derive(Debug)]
pub(crate) struct Program<'fd> {
    ops: Vec<Op>,
    /// For each op the step of the plan that it belongs to.
    steps: Vec<usize>,
    step: usize,
    data: Vec<u8>,
    registers: u8,
    /// Registers whose last reader has been written.
    free: Vec<Register>,
    stamps: Vec<&'static str>,
    keep: Vec<BorrowedFd<'fd>>,
    duplicates: Vec<OwnedFd>,
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "op {} call {} {:x?}", self.code, self.number, self.arguments)
    }
}

const DATA_AT: usize = size_of::<Header>();
const _: () = assert!(DATA_AT.is_multiple_of(8) && size_of::<Op>() == 56);

impl<'fd> Program<'fd> {
    /// An empty program.
    pub(crate) fn new() -> Self {
        Self {
            ops: Vec::with_capacity(192),
            steps: Vec::with_capacity(192),
            step: 0,
            data: Vec::with_capacity(8192),
            registers: 0,
            free: Vec::new(),
            stamps: Vec::new(),
            keep: Vec::new(),
            duplicates: Vec::new(),
        }
    }

    /// The ops that follow belong to step `step` of the plan.
    pub(crate) fn set_step(&mut self, step: usize) {
        self.step = step;
    }

    /// The address that the stub will see `bytes` at, aligned to 8.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> u64 {
        while !self.data.len().is_multiple_of(8) {
            self.data.push(0);
        }
        let address = BASE + (DATA_AT + self.data.len()) as u64;
        self.data.extend_from_slice(bytes);
        address
    }

    /// The address of `count` zero bytes, for the kernel to write to.
    pub(crate) fn space(&mut self, count: usize) -> u64 {
        self.bytes(&vec![0; count])
    }

    /// The address of 64-bit words.
    pub(crate) fn words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.bytes(&bytes)
    }

    /// The address of a string with its NUL.
    ///
    /// # Errors
    /// `InvalidArgument` if the string has a NUL inside.
    pub(crate) fn text(&mut self, text: impl AsRef<[u8]>) -> Result<u64> {
        let text = text.as_ref();
        if text.contains(&0) {
            let message = format!("{:?} has a NUL byte inside", String::from_utf8_lossy(text));
            return Err(Error::new(crate::error::ErrorKind::InvalidArgument, message));
        }
        let address = self.bytes(text);
        self.data.push(0);
        Ok(address)
    }

    /// The address of a NULL-terminated array of strings, as `execve` takes it.
    pub(crate) fn texts(&mut self, texts: &[impl AsRef<[u8]>]) -> Result<u64> {
        let mut pointers = Vec::with_capacity(texts.len() + 1);
        for text in texts {
            pointers.push(self.text(text)?);
        }
        pointers.push(0);
        Ok(self.words(&pointers))
    }

    /// A descriptor of the parent, inherited by the stub.
    ///
    /// # Errors
    /// `EMFILE`, when one of the numbers of standard input, output and error has to be avoided.
    pub(crate) fn descriptor(&mut self, fd: BorrowedFd<'fd>) -> Result<Argument> {
        // The first three numbers are the application's own; a host may have closed its, and we then got them.
        if fd.as_raw_fd() < 3 {
            let copy = rustix::io::fcntl_dupfd_cloexec(fd, 3)
                .map_err(|e| failed(format!("fcntl({}, F_DUPFD_CLOEXEC)", fd.as_raw_fd()), e))?;
            let number = copy.as_raw_fd();
            self.duplicates.push(copy);
            return Ok(number.into());
        }
        if !self.keep.iter().any(|kept| kept.as_raw_fd() == fd.as_raw_fd()) {
            self.keep.push(fd);
        }
        Ok(fd.as_raw_fd().into())
    }

    /// Says that no later call reads `register`.
    pub(crate) fn release(&mut self, register: Register) {
        self.free.push(register);
    }

    /// A register that no later call reads.
    pub(crate) fn register(&mut self) -> Result<Register> {
        if let Some(register) = self.free.pop() {
            return Ok(register);
        }
        if self.registers >= format::DENIED {
            let message = format!("too many mounts and files: a start can hold {} of them open", format::DENIED);
            return Err(Error::new(crate::error::ErrorKind::InvalidArgument, message));
        }
        self.registers += 1;
        Ok(Register(self.registers - 1))
    }

    fn push(
        &mut self,
        code: u8,
        number: u32,
        out: Option<Register>,
        on_error: OnError,
        arguments: &[Argument],
    ) -> usize {
        let mut op = Op {
            code,
            on_error: match on_error {
                OnError::Fail => format::ON_ERROR_FAIL,
                OnError::GoOn => format::ON_ERROR_GO_ON,
                OnError::AllowExisting => format::ON_ERROR_EXISTS,
                OnError::AllowAbsent => format::ON_ERROR_ABSENT,
                OnError::Search => format::ON_ERROR_SEARCH,
                OnError::Log => format::ON_ERROR_LOG,
            },
            out: out.map_or(NO_REGISTER, |register| register.0),
            registers: 0,
            number,
            arguments: [0; 6],
        };
        for (at, argument) in arguments.iter().enumerate() {
            op.arguments[at] = match argument {
                Argument::Value(value) => *value,
                Argument::Register(register) => {
                    op.registers |= 1 << at;
                    register.0.into()
                }
            };
        }
        self.ops.push(op);
        self.steps.push(self.step);
        self.ops.len() - 1
    }

    /// A system call whose result nobody needs.
    pub(crate) fn call(&mut self, number: libc::c_long, on_error: OnError, arguments: &[Argument]) {
        self.push(format::OP_CALL, syscall(number), None, on_error, arguments);
    }

    /// A system call whose result later calls use.
    pub(crate) fn call_into(&mut self, out: Register, number: libc::c_long, on_error: OnError, arguments: &[Argument]) {
        self.push(format::OP_CALL, syscall(number), Some(out), on_error, arguments);
    }

    /// Clones with `flags`. What follows is the child's; the parent goes on where the jump is landed, and if they
    /// share their memory, which is quicker, only when the child has executed or ended.
    pub(crate) fn fork(&mut self, flags: u64, pidfd_at: u64, child: Register, sharing: bool) -> Jump {
        let arguments = [flags.into(), pidfd_at.into(), 0_u64.into(), u64::from(sharing).into()];
        Jump { op: self.push(format::OP_FORK, 0, Some(child), OnError::Fail, &arguments), argument: 2 }
    }

    /// Jumps when `register` holds an error.
    pub(crate) fn if_failed(&mut self, register: Register) -> Jump {
        let arguments = [register.into(), 0_u64.into()];
        Jump { op: self.push(format::OP_IF_NEGATIVE, 0, None, OnError::Fail, &arguments), argument: 1 }
    }

    /// Jumps always.
    pub(crate) fn jump(&mut self) -> Jump {
        let arguments = [(-1_i32).into(), 0_u64.into()];
        Jump { op: self.push(format::OP_IF_NEGATIVE, 0, None, OnError::Fail, &arguments), argument: 1 }
    }

    /// The jump leads here.
    pub(crate) fn land(&mut self, jump: Jump) {
        self.ops[jump.op].arguments[jump.argument] = self.ops.len() as u64;
    }

    /// Supervises `application`; nothing follows. `forward`: signals to the supervisor go to it. `tell`: the control socket
    /// says when it is stopped and goes on.
    pub(crate) fn supervise(
        &mut self,
        application: Register,
        control: Argument,
        owner: Argument,
        first: Option<Argument>,
        (forward, tell): (bool, bool),
    ) {
        let how = if forward { format::FORWARD } else { 0 } | if tell { format::TELL } else { 0 };
        let arguments = [application.into(), control, owner, how.into(), first.unwrap_or_else(|| u64::MAX.into())];
        self.push(format::OP_SUPERVISE, 0, None, OnError::Fail, &arguments);
    }

    /// Waits until the owners of all files in `members` below `directory` are gone, and removes them and it.
    pub(crate) fn outlive(&mut self, directory: Argument) {
        self.push(format::OP_OUTLIVE, 0, None, OnError::Fail, &[directory]);
    }

    /// Writes the 32 bits of `value` to the address `at`.
    pub(crate) fn store(&mut self, at: u64, value: impl Into<Argument>) {
        self.push(format::OP_STORE, 0, None, OnError::Fail, &[at.into(), value.into()]);
    }

    /// Fails with `errno`, or with `EACCES` if a search met it.
    pub(crate) fn fail(&mut self, errno: i32) {
        self.push(format::OP_FAIL, 0, None, OnError::Fail, &[errno.into()]);
    }

    /// Fails with `errno` unless the byte at `at` is `byte`.
    pub(crate) fn expect(&mut self, at: u64, byte: u8, errno: i32) {
        self.push(format::OP_EXPECT, 0, None, OnError::Fail, &[at.into(), u64::from(byte).into(), errno.into()]);
    }

    /// Gives every signal its default action.
    pub(crate) fn default_signals(&mut self) {
        self.push(format::OP_DEFAULT_SIGNALS, 0, None, OnError::Fail, &[]);
    }

    /// Notes the moment at which this place is reached.
    pub(crate) fn stamp(&mut self, name: &'static str) {
        if self.stamps.len() < format::STAMPS {
            let at = BASE + (std::mem::offset_of!(Header, stamps) + self.stamps.len() * 16) as u64;
            let clock = libc::CLOCK_MONOTONIC;
            self.call(libc::SYS_clock_gettime, OnError::Fail, &[clock.into(), at.into()]);
            self.stamps.push(name);
        }
    }

    /// How many ops there are, for measurements.
    pub(crate) fn len(&self) -> usize {
        self.ops.len()
    }

    /// Writes the program to a memory file.
    pub(crate) fn finish(mut self) -> Result<Finished<'fd>> {
        while !self.data.len().is_multiple_of(8) {
            self.data.push(0);
        }
        let count = |n: usize| {
            u32::try_from(n).map_err(|_| {
                Error::new(
                    crate::error::ErrorKind::InvalidArgument,
                    "the sandbox has more settings than a program can hold",
                )
            })
        };
        let ops_at = count(DATA_AT + self.data.len())?;
        let ops = count(self.ops.len())?;
        let mut image = vec![0_u8; DATA_AT];
        image[..4].copy_from_slice(&ops_at.to_ne_bytes());
        image[4..8].copy_from_slice(&ops.to_ne_bytes());
        image.extend_from_slice(&self.data);
        for op in &self.ops {
            image.extend_from_slice(&[op.code, op.on_error, op.out, op.registers]);
            image.extend_from_slice(&op.number.to_ne_bytes());
            for argument in op.arguments {
                image.extend_from_slice(&argument.to_ne_bytes());
            }
        }
        let file = rustix::fs::memfd_create("gpucontainer-program", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(|e| failed("memfd_create(program)", e))?;
        write_all(&file, &image)?;
        // Its size is what the stub maps.
        rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)
            .map_err(|e| failed("fcntl(program, F_ADD_SEALS)", e))?;
        Ok(Finished { file, steps: self.steps, stamps: self.stamps, keep: self.keep, duplicates: self.duplicates })
    }
}

fn syscall(number: libc::c_long) -> u32 {
    // Every number of the supported machines is small and positive.
    u32::try_from(number).unwrap_or(u32::MAX)
}

pub(super) fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(failed("write(memory file)", e)),
        }
    }
    Ok(())
}

/// A program in its memory file.
#[derive(Debug)]
pub(crate) struct Finished<'fd> {
    file: OwnedFd,
    steps: Vec<usize>,
    stamps: Vec<&'static str>,
    keep: Vec<BorrowedFd<'fd>>,
    duplicates: Vec<OwnedFd>,
}

impl<'fd> Finished<'fd> {
    /// The descriptors that the stub inherits, the program's own among them.
    pub(super) fn inherited(&self) -> Vec<i32> {
        let own = std::iter::once(self.file.as_raw_fd());
        own.chain(self.keep.iter().map(AsRawFd::as_raw_fd))
            .chain(self.duplicates.iter().map(AsRawFd::as_raw_fd))
            .collect()
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What is needed to read the stub's reports, without the descriptors.
    pub(crate) fn into_report(self) -> Report {
        Report { file: self.file, steps: self.steps, stamps: self.stamps }
    }
}

/// Reads what the stub reports, at any time.
#[derive(Debug)]
pub(crate) struct Report {
    file: OwnedFd,
    steps: Vec<usize>,
    stamps: Vec<&'static str>,
}

/// Why a start failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The number of the step of the plan.
    pub(crate) step: usize,
    /// The error number.
    pub(crate) errno: i32,
    /// The kernel's own words, if it had any.
    pub(crate) log: String,
}

impl Report {
    fn bytes(&self) -> Result<[u8; DATA_AT]> {
        let mut bytes = [0_u8; DATA_AT];
        let count = rustix::io::pread(&self.file, &mut bytes[..], 0).map_err(|e| failed("pread(program)", e))?;
        debug_assert_eq!(count, DATA_AT);
        Ok(bytes)
    }

    fn number(bytes: &[u8; DATA_AT], at: usize) -> u32 {
        let mut word = [0; 4];
        word.copy_from_slice(&bytes[at..at + 4]);
        u32::from_ne_bytes(word)
    }

    /// The failure, if a step failed.
    pub(crate) fn failure(&self) -> Result<Option<Failure>> {
        let bytes = self.bytes()?;
        let failed = Self::number(&bytes, std::mem::offset_of!(Header, failed)) as usize;
        if failed == 0 {
            return Ok(None);
        }
        let log_at = std::mem::offset_of!(Header, log);
        let log = bytes[log_at..log_at + format::LOG].split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Some(Failure {
            step: self.steps.get(failed - 1).copied().unwrap_or_default(),
            errno: Self::number(&bytes, std::mem::offset_of!(Header, errno)).cast_signed(),
            // Each line begins with a letter for its weight: "e " is an error.
            log: String::from_utf8_lossy(log).trim().trim_start_matches("e ").to_owned(),
        }))
    }

    /// The wait status of the application, once it has ended.
    pub(crate) fn status(&self) -> Result<Option<i32>> {
        let bytes = self.bytes()?;
        let ended = Self::number(&bytes, std::mem::offset_of!(Header, ended)) != 0;
        Ok(ended.then(|| Self::number(&bytes, std::mem::offset_of!(Header, status)).cast_signed()))
    }

    /// The moments noted so far, on the monotonic clock.
    pub(crate) fn stamps(&self) -> Result<Vec<(&'static str, std::time::Duration)>> {
        let bytes = self.bytes()?;
        let mut moments = Vec::new();
        for (n, name) in self.stamps.iter().enumerate() {
            let word = |at: usize| {
                let mut word = [0; 8];
                word.copy_from_slice(&bytes[at..at + 8]);
                u64::from_ne_bytes(word)
            };
            let at = std::mem::offset_of!(Header, stamps) + n * 16;
            if word(at) != 0 {
                let nanoseconds = u32::try_from(word(at + 8)).unwrap_or_default();
                moments.push((*name, std::time::Duration::new(word(at), nanoseconds)));
            }
        }
        Ok(moments)
    }
}

/// The monotonic clock, on which the stamps are.
pub(crate) fn now() -> std::time::Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    std::time::Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}
