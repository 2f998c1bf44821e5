//! Networks and published ports.
//!
//! A published port is a socket of the host first: [`PortMapper::reserve`] binds it before anything is started, so a
//! port that is taken is an error with a name in it, port 0 becomes a real port at once, no other program can take the
//! port meanwhile, and the host's firewall treats it like any other. [`Reservation::relay`] then joins it to a port
//! inside a container's network namespace, or [`Reservation::translate`] has the kernel do so.
//!
//! ```no_run
//! use gpucontainer::net::{NetworkNamespace, PortMapper, PortMapping};
//!
//! # fn example(pidfd: std::os::fd::OwnedFd) -> gpucontainer::Result<()> {
//! let reservation = PortMapper::new().reserve(&[PortMapping::tcp(8888, 0)])?;
//! println!("http://{}/", reservation.ports()[0].host());
//! let published = reservation.relay(NetworkNamespace::of_process(pidfd))?;
//! # drop(published);
//! # Ok(())
//! # }
//! ```

mod activation;
mod holder;
mod inject;
mod mapping;
mod mode;
mod namespace;
mod nat;
mod netlink;
pub(crate) mod outbound;
mod port;
mod private;
mod published;
mod relay;
mod reserve;
mod service;

pub use activation::{ActivatedSocket, activated};
pub(crate) use inject::{Binds, NO_LOCK, NO_LOCK_FOR_UDP, bind_filter, may_have};
pub use mapping::{PortMapping, Protocol};
pub use mode::{PortMode, SourceAddress};
pub use namespace::NetworkNamespace;
pub use port::PublishedPort;
pub(crate) use private::resolver;
pub use private::{NetworkMember, PrivateNetwork};
pub use published::{PortStatus, Published};
pub use reserve::{PortMapper, Reservation};
pub use service::{ExposedServices, HostService, ServiceStatus};
