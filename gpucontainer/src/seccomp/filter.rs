//! The compiled filter: plain data.

use crate::error::Result;
use crate::seccomp::profile::Action;
use crate::sys::seccomp as sys;
use crate::sys::seccomp::Instruction;
use serde::{Deserialize, Serialize};

/// How a filter is loaded, besides its instructions.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct FilterFlags {
    /// Every action but [`Action::Allow`] may be written to the audit log.
    pub log: bool,
    /// The process does without the speculation barrier that kernels before 5.16 give filtered processes,
    /// at a high price, unless told otherwise.
    pub allow_speculation: bool,
    /// While a call waits for the filter's listener, only a fatal signal ends it (kernel 5.19).
    pub wait_killable: bool,
}

/// A compiled profile.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Filter {
    pub(super) instructions: Vec<Instruction>,
    pub(super) flags: FilterFlags,
}

impl Filter {
    /// The program, at most 4,096 instructions.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// How the program is loaded.
    pub fn flags(&self) -> FilterFlags {
        self.flags
    }

    /// The flags as the argument of `seccomp(SECCOMP_SET_MODE_FILTER)`.
    ///
    /// If the filter [needs a listener](Self::needs_listener) this asks for one.
    pub fn flag_bits(&self) -> u32 {
        let mut bits = 0;
        for (set, bit) in [
            (self.flags.log, sys::FLAG_LOG),
            (self.flags.allow_speculation, sys::FLAG_SPEC_ALLOW),
            (self.needs_listener(), sys::FLAG_NEW_LISTENER),
            // The kernel takes this one only together with a listener.
            (self.flags.wait_killable && self.needs_listener(), sys::FLAG_WAIT_KILLABLE_RECV),
        ] {
            if set {
                bits |= bit;
            }
        }
        bits
    }

    /// Whether loading it would change nothing.
    pub fn allows_everything(&self) -> bool {
        self.returns().all(|value| value == value_of(Action::Allow))
    }

    /// Whether some calls are answered by a listener, which whoever loads the filter gets and must serve.
    pub fn needs_listener(&self) -> bool {
        self.returns().any(|value| value == value_of(Action::Notify))
    }

    /// The program as the kernel reads it from memory, 8 bytes an instruction in this machine's byte order.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.instructions.len() * 8);
        for instruction in &self.instructions {
            bytes.extend_from_slice(&instruction.code.to_ne_bytes());
            bytes.push(instruction.jt);
            bytes.push(instruction.jf);
            bytes.extend_from_slice(&instruction.k.to_ne_bytes());
        }
        bytes
    }

    /// Puts the calling thread under the filter, for ever, and all threads and processes that it starts.
    ///
    /// Sets the thread's `no_new_privs` first, without which the kernel takes filters only from the
    /// privileged. Sandboxes load their filter by themselves; this is for a program that wants to confine
    /// itself.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if the filter needs a listener, and the
    /// kernel's error if it does not take the filter.
    pub fn apply_to_current_thread(&self) -> Result<()> {
        sys::apply_to_current_thread(&self.instructions, self.flag_bits())
    }

    fn returns(&self) -> impl Iterator<Item = u32> + '_ {
        self.instructions.iter().filter(|instruction| instruction.code == sys::RETURN).map(|instruction| instruction.k)
    }
}

/// What a filter returns to the kernel for `action`.
pub(super) fn value_of(action: Action) -> u32 {
    match action {
        Action::Allow => sys::ALLOW,
        Action::Log => sys::LOG,
        Action::Errno(number) => sys::ERRNO | u32::from(number),
        Action::Trap => sys::TRAP,
        Action::Trace(number) => sys::TRACE | u32::from(number),
        Action::Notify => sys::NOTIFY,
        Action::KillThread => sys::KILL_THREAD,
        Action::KillProcess => sys::KILL_PROCESS,
    }
}
