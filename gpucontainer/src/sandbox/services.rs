//! Services of the host that a sandbox can reach, from its start on or while it runs.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::net::{ExposedServices, HostService, NetworkNamespace, Protocol, ServiceStatus};
use crate::sandbox::config::SandboxBuilder;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Each service is exposed for itself, so that each can be closed for itself.
#[derive(Debug)]
pub(crate) struct Services {
    own_network: bool,
    exposed: Mutex<Vec<ExposedServices>>,
}

impl Services {
    /// None yet.
    pub(crate) fn of(builder: &SandboxBuilder) -> Self {
        Self { own_network: !builder.network.is_host(), exposed: Mutex::default() }
    }

    /// Exposes more, all or none; the services with their real ports.
    pub(crate) fn add(&self, services: &[HostService], network: &NetworkNamespace) -> Result<Vec<HostService>> {
        if !self.own_network {
            let message = "its network is the host's; every service of the host is there";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let exposed = services.iter().map(|service| ExposedServices::new(&[*service], network.clone()));
        // An error closes those before it.
        let exposed: Vec<_> = exposed.collect::<Result<_>>()?;
        let services = exposed.iter().flat_map(ExposedServices::services).collect();
        self.lock().extend(exposed);
        Ok(services)
    }

    /// Closes the services on a port, of which there may be some on several addresses, and their connections.
    pub(crate) fn remove(&self, port: u16, protocol: Protocol) -> Result<()> {
        let mut all = self.lock();
        let is_it = |service: &HostService| service.port() == port && service.protocol() == protocol;
        let (closing, staying) =
            std::mem::take(&mut *all).into_iter().partition(|one| one.services().iter().any(is_it));
        let closing: Vec<ExposedServices> = closing;
        *all = staying;
        drop(all);
        if closing.is_empty() {
            let message = format!("no service of the host is on port {port}/{protocol} inside");
            return Err(Error::new(ErrorKind::NotFound, message)).context("close a service of the host");
        }
        // Waits for the relay; nobody needs to wait for that with us.
        drop(closing);
        Ok(())
    }

    /// The services with their counters.
    pub(crate) fn status(&self) -> Vec<ServiceStatus> {
        self.lock().iter().flat_map(ExposedServices::status).collect()
    }

    /// Closes all of them.
    pub(crate) fn close(&self) {
        let all = std::mem::take(&mut *self.lock());
        drop(all);
    }

    /// Forgets them in a forked child of the host, where no thread serves them.
    pub(crate) fn forget(&mut self) {
        // Not locked: another thread of the host may have held the lock at the fork, for ever.
        let exposed = self.exposed.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::forget(std::mem::take(exposed));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<ExposedServices>> {
        // A list is whole after every step on it.
        self.exposed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
