//! Several layers at a time.

use crate::error::{Error, ErrorKind, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Does `work` for all items, in their order, in at most so many threads, of which the caller's is one. After the first
/// error no further one is begun, and the flag tells those under way to end. The first error is the result.
pub(super) fn each<T: Sync>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T, &AtomicBool) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let abandoned = AtomicBool::new(false);
    let first_error = Mutex::new(None);
    let run = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if abandoned.load(Ordering::Relaxed) {
                return;
            }
            if let Err(e) = work(item, &abandoned) {
                // In this order: those who are made to stop must not be taken for the cause.
                if let Ok(mut first) = first_error.lock() {
                    first.get_or_insert(e);
                }
                abandoned.store(true, Ordering::Relaxed);
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(items.len()) {
            // Fewer do the same work, where the kernel allows no more.
            if std::thread::Builder::new().spawn_scoped(scope, run).is_err() {
                break;
            }
        }
        run();
    });
    match first_error.into_inner() {
        Ok(None) => Ok(()),
        Ok(Some(error)) => Err(error),
        Err(_) => Err(Error::new(ErrorKind::SystemCall, "a thread that worked on a layer panicked")),
    }
}
