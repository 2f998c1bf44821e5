//! What a call of `bind(2)` in a container is about.

use crate::sys::notify::Bind;
use crate::sys::peer::{Peer, SocketKind, sharing, socket_kind};
use crate::sys::socket::number::EINVAL;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// How a bind is to be answered, as far as it can be known without knowing the ports.
#[derive(Debug)]
pub(in crate::net) enum Wish {
    /// It is nothing of the internet's, or an error that the kernel finds as well.
    GoOn,
    /// It fails.
    Fail(i32),
    /// A socket of the container wants an address.
    Bind(Wanted),
}

/// A socket that wants an address.
#[derive(Debug)]
pub(in crate::net) struct Wanted {
    pub(in crate::net) peer: Peer,
    /// Ours as much as the container's.
    pub(in crate::net) socket: OwnedFd,
    pub(in crate::net) kind: SocketKind,
    pub(in crate::net) address: SocketAddr,
    /// Others may be bound beside it.
    pub(in crate::net) shared: bool,
    /// It takes IPv6 alone.
    pub(in crate::net) only_v6: bool,
}

/// Looks at the process that waits. `host` names the network namespace whose sockets are not the container's to bind.
///
/// To let the kernel go on is to let it look again: at memory and descriptors that other threads of the container may have
/// changed. So nothing that is a socket of the internet's ever goes on.
pub(in crate::net) fn examine(bind: &Bind, listener: &OwnedFd, host: u64) -> Wish {
    let Ok(peer) = Peer::of_thread(bind.thread) else { return Wish::GoOn };
    let Ok(socket) = peer.descriptor(bind.descriptor) else { return Wish::GoOn };
    let Some(kind) = socket_kind(&socket) else { return Wish::GoOn };
    let address = peer.address(bind.address, bind.length);
    // All this was about the right process only if it still waits.
    if !bind.waits(listener) {
        return Wish::GoOn;
    }
    if kind.namespace == 0 {
        // Before Linux 5.14 nothing is injected, so that there is nothing to tell apart.
        return Wish::GoOn;
    }
    if kind.namespace == host {
        // As the kernel says of a socket that is bound, which all of these once were.
        return Wish::Fail(EINVAL);
    }
    match address {
        Ok(Some(address)) => {
            let (shared, only_v6) = sharing(&socket);
            Wish::Bind(Wanted { peer, socket, kind, address, shared, only_v6 })
        }
        Ok(None) => Wish::GoOn,
        Err(errno) => Wish::Fail(errno),
    }
}
