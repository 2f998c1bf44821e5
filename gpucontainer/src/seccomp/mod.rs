//! System call filters: the profile and the program made of it.
//!
//! A [`Profile`] says in words which system calls are answered how; [`Profile::compile`] turns it into
//! a [`Filter`], plain data that the launcher puts into its program. [`Profile::default_for`] is the
//! profile that a sandbox gets unless it asks for another; [`Profile::from_oci`] reads that of a bundle.
//!
//! ```
//! use gpucontainer::seccomp::{Action, Condition, Profile, Rule};
//!
//! // The default profile of a sandbox without capabilities, which may use io_uring besides.
//! let profile = Profile::default_for(0)
//!     .rule(Rule::new(Action::Allow, ["io_uring_setup", "io_uring_enter", "io_uring_register"]));
//! let filter = profile.compile()?;
//! assert!(filter.instructions().len() < 200);
//! # Ok::<(), gpucontainer::Error>(())
//! ```
//!
//! # Why a compiler of our own
//! When a filter is loaded, the kernel runs it once for every system call number to learn which numbers
//! are always allowed. A filter that compares number after number, as a list of rules naturally becomes
//! and as the crates at hand emit it, makes that quadratic: 0.9 ms for 400 rules on the machine this was
//! measured on, which is a third of everything else that a container start costs. The C library that
//! container engines use needs 2 to 38 ms to build its filter besides. Here neighbouring numbers with the
//! same answer become one range, and the ranges a balanced search tree: some 100 instructions, made in
//! some ten microseconds, loaded in under 0.1 ms.
//!
//! # Which calls reach which rule
//! * Calls of an architecture that the profile does not list get [`Profile::foreign_action`]. The
//!   default profile lists the native architecture only: 32-bit programs are killed. The 32-bit entry of
//!   an x86-64 kernel is attack surface that next to nobody in a container needs;
//!   [`Profile::architecture`] opens it, with its own table of numbers.
//! * Numbers of the x32 interface (bit 30 set on x86-64) get `ENOSYS` whatever the profile says: few
//!   kernels have it, and it would be a second door to every call.
//! * Numbers that no rule could have meant, because they are newer than every call that the profile
//!   names or belong to no call at all, get [`Profile::unknown_action`]: `ENOSYS`, upon which the C
//!   library of a newer system falls back to the older call. `EPERM` would make it fail.
//! * All other calls get the first rule that names them and whose conditions hold, or the default action.

mod compile;
mod default;
mod filter;
mod oci;
mod profile;
mod tables;

#[cfg(test)]
mod tests;

pub use crate::sys::seccomp::Instruction;
pub use filter::{Filter, FilterFlags};
pub use profile::{Action, Architecture, Condition, Operator, Profile, Rule};

use crate::error::Result;
use std::sync::{Arc, Mutex};

/// The default filter that was compiled last, with the capabilities that it is for: what it comes to depends on
/// nothing else, and compiling it costs as much as a dozen system calls.
static COMPILED: Mutex<Option<(u64, Arc<Filter>)>> = Mutex::new(None);

/// [`Profile::default_for`] these capabilities, compiled.
pub(crate) fn default_filter(capabilities: u64) -> Result<Arc<Filter>> {
    // Whoever finds it locked, as a forked child may for ever, compiles for itself.
    if let Ok(compiled) = COMPILED.try_lock()
        && let Some((known, filter)) = &*compiled
        && *known == capabilities
    {
        return Ok(filter.clone());
    }
    let filter = Arc::new(Profile::default_for(capabilities).compile()?);
    if let Ok(mut compiled) = COMPILED.try_lock() {
        *compiled = Some((capabilities, filter.clone()));
    }
    Ok(filter)
}
