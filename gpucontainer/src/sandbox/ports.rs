//! The published ports of a sandbox, before its start and while it runs.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::net::{NetworkNamespace, PortMapper, PortMapping, PortStatus, Published, PublishedPort, Reservation};
use crate::sandbox::config::SandboxBuilder;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Each port is published for itself, so that each can be closed for itself.
#[derive(Debug)]
pub(crate) struct Ports {
    own_network: bool,
    published: Mutex<Vec<Published>>,
}

impl Ports {
    /// Takes the host's side of the ports that `builder` wants, before anything is started.
    pub(crate) fn reserve(builder: &SandboxBuilder) -> Result<Vec<Reservation>> {
        PortMapper::new().reserve(&builder.ports).map(Reservation::each)
    }

    /// None yet.
    pub(crate) fn of(builder: &SandboxBuilder) -> Self {
        Self { own_network: !builder.network.is_host(), published: Mutex::default() }
    }

    /// Publishes more; all or none.
    pub(crate) fn add(&self, mappings: &[PortMapping], network: NetworkNamespace) -> Result<Vec<PublishedPort>> {
        if !self.own_network {
            let message = "its network is the host's; there is nothing to publish";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let reserved = PortMapper::new().reserve(mappings)?.each();
        let ports = reserved.iter().flat_map(Reservation::ports).collect();
        self.relay(reserved, network)?;
        Ok(ports)
    }

    /// Joins what was reserved to the sandbox's network; all or none.
    pub(crate) fn relay(&self, reserved: Vec<Reservation>, network: NetworkNamespace) -> Result<()> {
        let published = reserved.into_iter().map(|one| one.relay(network.clone()));
        // An error closes those before it.
        let published: Vec<_> = published.collect::<Result<_>>()?;
        self.lock().extend(published);
        Ok(())
    }

    /// Closes a port and its connections.
    pub(crate) fn remove(&self, host: SocketAddr) -> Result<()> {
        let mut all = self.lock();
        let at = all.iter().position(|one| one.ports().iter().any(|port| port.host() == host));
        let Some(at) = at else {
            let message = format!("no port of it is published on {host}");
            return Err(Error::new(ErrorKind::NotFound, message)).context("close a published port");
        };
        let closing = all.remove(at);
        drop(all);
        // Waits for the relay; nobody needs to wait for that with us.
        closing.close();
        Ok(())
    }

    /// The ports.
    pub(crate) fn list(&self) -> Vec<PublishedPort> {
        self.lock().iter().flat_map(Published::ports).collect()
    }

    /// The ports with their counters.
    pub(crate) fn status(&self) -> Vec<PortStatus> {
        self.lock().iter().flat_map(Published::status).collect()
    }

    /// Closes all of them.
    pub(crate) fn close(&self) {
        let all = std::mem::take(&mut *self.lock());
        drop(all);
    }

    /// Forgets them in a forked child of the host, where no thread serves them.
    pub(crate) fn forget(&mut self) {
        // Not locked: another thread of the host may have held the lock at the fork, for ever.
        let published = self.published.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::forget(std::mem::take(published));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Published>> {
        // A list is whole after every step on it.
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
