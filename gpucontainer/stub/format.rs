// The layout of a program in memory, shared by the stub and the library that writes programs.
//
// ```text
// memory file, mapped by the stub at BASE, shared
//   0        Header    where the stub reports to its parent
//   ops_at   [Op]      the steps, in order
//   …        bytes     strings, structures and filters that the ops point to, as absolute addresses
// ```

/// Where the stub maps its program: above what a static executable occupies, below every mapping
/// that the kernel chooses by itself on a 64-bit machine.
pub const BASE: u64 = 0x1_0000_0000;

/// How many registers a program has.
pub const REGISTERS: usize = 256;
/// How many moments a program can note.
pub const STAMPS: usize = 16;
/// How much of the kernel's own words about a failed mount is kept.
pub const LOG: usize = 256;

/// What the stub reports; the parent reads it when it sees the start fail, succeed or end.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Header {
    /// Where the ops start, from `BASE`.
    pub ops_at: u32,
    /// How many ops there are.
    pub ops: u32,
    /// 0: nothing failed. Otherwise 1 + the number of the op that failed.
    pub failed: u32,
    /// The error number of the failed op.
    pub errno: u32,
    /// 1 once the application has ended and `status` holds its wait status.
    pub ended: u32,
    /// The wait status of the application, as `wait4` gives it.
    pub status: u32,
    /// Nanoseconds of `CLOCK_MONOTONIC`, as seconds and nanoseconds, per moment.
    pub stamps: [[i64; 2]; STAMPS],
    /// The kernel's words about a failed mount.
    pub log: [u8; LOG],
}

/// One step of a program.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Op {
    /// What to do: one of the `OP_` numbers.
    pub code: u8,
    /// One of the `ON_ERROR_` numbers.
    pub on_error: u8,
    /// The register that takes the result, or `NO_REGISTER`.
    pub out: u8,
    /// Bit n set: argument n is the number of a register.
    pub registers: u8,
    /// The system call, or 0.
    pub number: u32,
    /// The arguments.
    pub arguments: [u64; 6],
}

/// No register takes the result.
pub const NO_REGISTER: u8 = 255;
/// The register that remembers `EACCES` of a search; it is set by `ON_ERROR_SEARCH` alone.
pub const DENIED: u8 = 254;

/// Makes the system call `number`.
pub const OP_CALL: u8 = 0;
/// Clones: arguments are the flags and the address of a pidfd or 0. The child goes on with the next op,
/// the parent with the op whose number is the third argument. The result is the child's pid. If the fourth argument
/// is not 0, both use the same memory, and the parent goes on only when the child has executed or ended.
pub const OP_FORK: u8 = 1;
/// Supervises: arguments are the application's pid, the control socket, the parent's pidfd (or -1),
/// a sum of `FORWARD` and `TELL`, and the descriptor that is held at the first place (or -1). Never returns.
pub const OP_SUPERVISE: u8 = 2;
/// Writes the 32-bit second argument to the address in the first.
pub const OP_STORE: u8 = 3;
/// Fails with `EACCES` if a search met it, else with the error number in the first argument.
pub const OP_FAIL: u8 = 4;
/// Fails with the error number in the third argument unless the byte at the first is the second.
pub const OP_EXPECT: u8 = 5;
/// Sets every signal to its default action.
pub const OP_DEFAULT_SIGNALS: u8 = 6;
/// Goes on with the op in the second argument if the first is negative (as 64-bit number).
pub const OP_IF_NEGATIVE: u8 = 7;
/// Waits until the owners of all files in the directory `members` are gone, below the directory that the first
/// argument has open, and removes them and it. A file has an owner as long as somebody holds its first byte locked.
pub const OP_OUTLIVE: u8 = 8;

/// How many descriptors a supervisor holds for its parent: more than a host has GPUs to give, MIG devices included, and
/// few against the files that a process may have open.
pub const PLACES: usize = 64;

/// Signals that come to the supervisor go to the application.
pub const FORWARD: u64 = 1;
/// The parent is told when the application is stopped, and when it goes on. It hands on signals from outside itself.
pub const TELL: u64 = 2;
/// To the parent, one byte: the application was stopped.
pub const STOPPED: u8 = b'Z';
/// To the parent, one byte: the application goes on.
pub const CONTINUED: u8 = b'C';

/// To a supervisor, one byte: the parent leaves the application to itself.
pub const LEAVE: u8 = b'D';
/// To a supervisor, with the number of a place and a descriptor: hold it there. What was there is closed.
pub const HOLD: u8 = b'H';
/// To a supervisor, with the number of a place: close what is held there.
pub const LET_GO: u8 = b'L';

/// To a supervisor, with a descriptor that hears of calls which wait for an answer: let them go on.
pub const ANSWER: u8 = b'A';
/// How many such descriptors a supervisor takes; those beyond are closed, and then the calls fail.
pub const ANSWERED: usize = 32;

/// An error ends the program.
pub const ON_ERROR_FAIL: u8 = 0;
/// An error is the negative result, and the program goes on.
pub const ON_ERROR_GO_ON: u8 = 1;
/// `EEXIST` is no error.
pub const ON_ERROR_EXISTS: u8 = 2;
/// `ENOENT`, `ENOTDIR` and `EACCES` are no errors: the next place is tried.
pub const ON_ERROR_SEARCH: u8 = 3;
/// An error ends the program, after the kernel's words were read from the mount context in the first argument.
pub const ON_ERROR_LOG: u8 = 4;
/// `ENOENT` is no error.
pub const ON_ERROR_ABSENT: u8 = 5;
