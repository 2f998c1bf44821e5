//! The published ports of a sandbox, before its start and while it runs.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::net::{Binds, NetworkNamespace, PortMapper, PortMapping, PortStatus, Published, PublishedPort, Reservation};
use crate::sandbox::config::SandboxBuilder;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Each port is published for itself, so that each can be closed for itself.
#[derive(Debug)]
pub(crate) struct Ports {
    own_network: bool,
    published: Mutex<Vec<Published>>,
    /// Hears of the container's binds, or why nothing does.
    binds: Mutex<Result<Binds, String>>,
}

impl Ports {
    /// Takes the host's side of the ports that `builder` wants, before anything is started.
    pub(crate) fn reserve(builder: &SandboxBuilder) -> Result<Vec<Reservation>> {
        PortMapper::new().reserve(&builder.ports).map(Reservation::each)
    }

    /// None yet.
    pub(crate) fn of(builder: &SandboxBuilder) -> Self {
        Self {
            own_network: !builder.network.is_host(),
            published: Mutex::default(),
            binds: Mutex::new(Err("binds of the sandbox are not answered".to_owned())),
        }
    }

    /// Ports that are published from now on can be injected.
    pub(crate) fn prepare_to_hear(&self) -> Result<()> {
        *self.binds() = Ok(Binds::new()?);
        Ok(())
    }

    /// Answers the binds of some of its processes.
    pub(crate) fn hear(&self, listener: OwnedFd) -> Result<()> {
        match &*self.binds() {
            Ok(binds) => binds.add(listener),
            Err(why) => Err(Error::new(ErrorKind::Closed, format!("binds of a process cannot be answered: {why}"))),
        }
    }

    /// Says why no binds are answered.
    pub(crate) fn deaf(&self, why: &str) {
        *self.binds() = Err(why.to_owned());
    }

    /// Answers no more; what hears of binds.
    pub(crate) fn take_listeners(&self) -> Vec<OwnedFd> {
        let left = Err("the sandbox was left to itself".to_owned());
        let binds = std::mem::replace(&mut *self.binds(), left);
        binds.map(Binds::into_listeners).unwrap_or_default()
    }

    fn binds(&self) -> MutexGuard<'_, Result<Binds, String>> {
        self.binds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes what was reserved before.
    pub(crate) fn add_reserved(&self, reserved: Reservation, network: NetworkNamespace) -> Result<Vec<PublishedPort>> {
        self.check_own_network()?;
        let ports = reserved.ports();
        self.publish(reserved.each(), network)?;
        Ok(ports)
    }

    fn check_own_network(&self) -> Result<()> {
        if self.own_network {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidArgument, "its network is the host's; there is nothing to publish"))
    }

    /// Publishes more; all or none.
    pub(crate) fn add(&self, mappings: &[PortMapping], network: NetworkNamespace) -> Result<Vec<PublishedPort>> {
        self.check_own_network()?;
        let reserved = PortMapper::new().reserve(mappings)?.each();
        let ports = reserved.iter().flat_map(Reservation::ports).collect();
        self.publish(reserved, network)?;
        Ok(ports)
    }

    /// Joins what was reserved to the sandbox's network; all or none.
    pub(crate) fn publish(&self, reserved: Vec<Reservation>, network: NetworkNamespace) -> Result<()> {
        let binds = self.binds();
        let published =
            reserved.into_iter().map(|one| one.publish(network.clone(), binds.as_ref().map_err(String::as_str)));
        // An error closes those before it.
        let published: Vec<_> = published.collect::<Result<_>>()?;
        drop(binds);
        self.lock().extend(published);
        Ok(())
    }

    /// Closes what is published on an address, with its connections.
    pub(crate) fn remove(&self, host: SocketAddr) -> Result<()> {
        let mut all = self.lock();
        let is_it = |one: &mut Published| one.ports().iter().any(|port| port.hosts().contains(&host));
        let closing: Vec<Published> = all.extract_if(.., is_it).collect();
        drop(all);
        if closing.is_empty() {
            let message = format!("no port of it is published on {host}");
            return Err(Error::new(ErrorKind::NotFound, message)).context("close a published port");
        }
        // Waits for the relay; nobody needs to wait for that with us.
        let mut result = Ok(());
        for mut one in closing {
            match one.withdraw() {
                Ok(()) => one.close(),
                Err(error) => {
                    self.lock().push(one);
                    result = Err(error);
                }
            }
        }
        result
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
        let binds = self.binds.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::forget(std::mem::replace(binds, Err(String::new())));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Published>> {
        // A list is whole after every step on it.
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
