//! The calling thread's signal mask.

#![allow(unsafe_code, reason = "signals that libc keeps for itself")]

use super::errno::failed_nix;
use crate::error::Result;
use nix::sys::signal::{SigSet, SigmaskHow};

/// Keeps every signal that can be blocked from the calling thread until dropped there.
#[derive(Debug)]
pub(crate) struct AllBlocked {
    before: SigSet,
    /// The mask is the thread's own, so the guard must not leave it.
    _thread: std::marker::PhantomData<*const ()>,
}

impl AllBlocked {
    /// Blocks them. Threads started meanwhile inherit that.
    pub(crate) fn enter() -> Result<Self> {
        let before = SigSet::all()
            .thread_swap_mask(SigmaskHow::SIG_SETMASK)
            .map_err(|e| failed_nix("pthread_sigmask(SIG_SETMASK, all)", e))?;
        Ok(Self { before, _thread: std::marker::PhantomData })
    }
}

impl Drop for AllBlocked {
    fn drop(&mut self) {
        // Cannot fail: the only errors of the call are wrong arguments.
        let restored = self.before.thread_set_mask();
        debug_assert_eq!(restored, Ok(()));
    }
}

/// As [`AllBlocked`], and those that libc keeps for itself too. Not for code that may start a thread, which would inherit it
/// and never hear of what libc wants of all threads.
#[derive(Debug)]
pub(super) struct Everything {
    before: u64,
    _thread: std::marker::PhantomData<*const ()>,
}

impl Everything {
    /// Blocks them.
    pub(super) fn block() -> Self {
        let all = u64::MAX;
        let mut before = 0_u64;
        // SAFETY: both addresses are of 8 bytes, which is the size that is given.
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, &raw mut before, 8) };
        Self { before, _thread: std::marker::PhantomData }
    }
}

impl Drop for Everything {
    fn drop(&mut self) {
        let (before, none) = (&raw const self.before, std::ptr::null_mut::<u64>());
        // SAFETY: the address is of 8 bytes, which is the size that is given.
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, before, none, 8) };
    }
}
