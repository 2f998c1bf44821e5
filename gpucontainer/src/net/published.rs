//! Ports of containers that can be reached now.

use super::mapping::PublishedPort;
use super::namespace::NetworkNamespace;
use super::relay::{Counters, Link, Relay};
use crate::error::Result;
use crate::sys::netns::Family;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Published ports of one container. Dropping it closes them and every connection through them, before drop returns.
///
/// In a process forked from the one that published, it does nothing.
#[derive(Debug)]
pub struct Published {
    ports: Vec<(PublishedPort, Arc<Counters>)>,
    link: Option<Link>,
}

impl Published {
    pub(super) fn start(sockets: Vec<(PublishedPort, OwnedFd)>, namespace: NetworkNamespace) -> Result<Self> {
        if sockets.is_empty() {
            return Ok(Self { ports: Vec::new(), link: None });
        }
        // Says now, not with the first client, that the namespace cannot be entered.
        drop(namespace.open_sockets(Family::V4, 1)?);
        let sockets: Vec<_> =
            sockets.into_iter().map(|(port, listener)| (port, listener, Arc::new(Counters::default()))).collect();
        let ports = sockets.iter().map(|(port, _, counters)| (*port, Arc::clone(counters))).collect();
        let link = Some(Relay::of_this_process()?.publish(sockets, namespace)?);
        Ok(Self { ports, link })
    }

    /// The ports with their real numbers, in the order in which they were asked for.
    pub fn ports(&self) -> Vec<PublishedPort> {
        self.ports.iter().map(|(port, _)| *port).collect()
    }

    /// What went through each port so far, in the order of [`Published::ports`].
    pub fn status(&self) -> Vec<PortStatus> {
        self.ports.iter().map(|(port, counters)| counters.status(*port)).collect()
    }

    /// Closes the ports and every connection through them, like dropping.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            link.close();
        }
    }
}

/// What went through one published port.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PortStatus {
    /// The port.
    pub port: PublishedPort,
    /// Connections taken from clients since the port was published.
    pub accepted: u64,
    /// Connections that exist now.
    pub open: u64,
    /// Connections reset because nothing in the container took them.
    pub refused: u64,
    /// Bytes that went into the container.
    pub bytes_in: u64,
    /// Bytes that came out of the container.
    pub bytes_out: u64,
    /// Why the last connection that was reset was, or why none can be taken at the moment.
    pub last_error: Option<String>,
}
