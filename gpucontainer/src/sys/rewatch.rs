//! Epoll instances of other processes that get another file to watch under the number of the first.
//!
//! An instance knows what it watches by file and number together, the number that the file had in the process that added
//! it. So whoever adds a file for another process must have it at the same number. A thread with a table of descriptors of
//! its own puts it there; the caller's table stays as it is.

#![allow(unsafe_code, reason = "the code of a thread")]

use super::peer::Watched;
use super::thread::{self, Chosen, Descriptors, system_call};
use crate::error::{Error, Result};
use std::ffi::{c_int, c_long, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};

/// What the thread is told; it reads and writes nothing else.
#[repr(C)]
struct Request {
    number: c_int,
    /// `struct epoll_event`.
    event: libc::epoll_event,
    result: c_long,
}

/// Makes `instance`, a copy of the descriptor in `watched`, watch `new` instead of `old`. That it did not watch `old` any
/// more is no error.
pub(crate) fn rewatch(
    instance: BorrowedFd<'_>,
    watched: Watched,
    old: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
) -> Result<()> {
    let mut request = Request {
        number: watched.socket,
        event: libc::epoll_event { events: watched.events, u64: watched.data },
        result: 0,
    };
    // Above the number that is wanted.
    let of_process = &[instance.as_raw_fd(), old.as_raw_fd(), new.as_raw_fd()];
    let chosen = Chosen { of_process, first: watched.socket.saturating_add(1), standard: None };
    thread::run(watch, (&raw mut request).cast(), Descriptors::Chosen(chosen))?;
    match c_int::try_from(request.result) {
        Ok(0) => Ok(()),
        result => Err(Error::from_errno("epoll_ctl() of the container's", -result.unwrap_or(-libc::EIO))),
    }
}

/// The thread: nothing but system calls and plain arithmetic.
extern "C" fn watch(argument: *mut c_void) {
    // SAFETY: the caller passes an exclusive reference to a `Request` and stands still until this function has ended.
    let request = unsafe { &mut *argument.cast::<Request>() };
    let number = c_long::from(request.number);
    let [instance, old, new] = [number + 1, number + 2, number + 3];
    let event = (&raw const request.event) as c_long;
    for (file, operation) in [(old, libc::EPOLL_CTL_DEL), (new, libc::EPOLL_CTL_ADD)] {
        let mut result = system_call(libc::SYS_dup3, [file, number, 0, 0, 0]);
        if result >= 0 {
            result = system_call(libc::SYS_epoll_ctl, [instance, operation.into(), number, event, 0]);
        }
        if result < 0 {
            // It watched another file of that number, or none any more: then there is nothing to add either.
            let gone = operation == libc::EPOLL_CTL_DEL && result == -c_long::from(libc::ENOENT);
            request.result = if gone { 0 } else { result };
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn an_instance_watches_another_file_under_the_same_number() {
        let instance = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        let (old, _old_peer) = UnixStream::pair().unwrap();
        let (new, mut new_peer) = UnixStream::pair().unwrap();
        let data = rustix::event::epoll::EventData::new_u64(77);
        let events = rustix::event::epoll::EventFlags::IN;
        rustix::event::epoll::add(&instance, &old, data, events).unwrap();
        let watched = Watched { instance: 0, socket: old.as_raw_fd(), events: events.bits(), data: 77 };
        rewatch(instance.as_fd(), watched, old.as_fd(), new.as_fd()).unwrap();
        // It does not watch the old one any more: asked again, nothing is to be done.
        rewatch(instance.as_fd(), watched, old.as_fd(), new.as_fd()).unwrap();
        new_peer.write_all(b"x").unwrap();
        let mut ready = [const { std::mem::MaybeUninit::uninit() }; 4];
        let (ready, _) = rustix::event::epoll::wait(&instance, &mut ready, None).unwrap();
        assert_eq!(
            ready
                .iter()
                .map(|event| {
                    let data = event.data;
                    data.u64()
                })
                .collect::<Vec<_>>(),
            [77]
        );
        // With the new file at that number, its process can change and remove what is watched.
        let number = old.as_raw_fd();
        // SAFETY: the number is of `old`, which is open and stays so.
        assert!(unsafe { libc::dup2(new.as_raw_fd(), number) } == number);
        rustix::event::epoll::delete(&instance, &old).unwrap();
    }
}
