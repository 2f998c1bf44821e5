//! The calling thread's signal mask.

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
