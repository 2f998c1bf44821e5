//! Ports of containers that can be reached now.

use super::inject::{Binds, may_have, revoke};
use super::mapping::Protocol;
use super::mode::{PortMode, SourceAddress};
use super::namespace::NetworkNamespace;
use super::port::PublishedPort;
use super::relay::{Counters, Link, Offer, Partner, Relay};
use super::reserve::{Held, HostSocket, Way};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::hostport;
use crate::sys::netns::{Family, Transport};
use crate::sys::peer::{namespace_cookie, stop_taking};
use crate::sys::transparent;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Published ports of one container. Dropping it closes them and every connection through them, before drop returns.
///
/// In a process forked from the one that published, it does nothing.
#[derive(Debug)]
pub struct Published {
    ports: Vec<(PublishedPort, Arc<Counters>)>,
    link: Option<Link>,
    /// Sockets that the container has as well.
    handed: Vec<OwnedFd>,
}

impl Published {
    /// `binds` is what hears of the container's binds, or why there is none; `None` relays whatever the mappings want.
    pub(super) fn start(
        sockets: Vec<Held>,
        namespace: NetworkNamespace,
        binds: Option<Result<&Binds, &str>>,
    ) -> Result<Self> {
        if sockets.is_empty() {
            return Ok(Self { ports: Vec::new(), link: None, handed: Vec::new() });
        }
        // Says now, not with the first client, that the namespace cannot be entered.
        let inside = namespace.open_sockets(Family::V4, Transport::Stream, 1)?;
        let cookie = inside.first().map(namespace_cookie).unwrap_or_default();
        drop(inside);
        if sockets.iter().any(|held| held.mapping.wanted_source() == SourceAddress::Keep) {
            lead_back(&namespace)?;
        }
        let watch = binds.and_then(Result::ok);
        let (mut ports, mut offers, mut handed) = (Vec::with_capacity(sockets.len()), Vec::new(), Vec::new());
        for held in sockets {
            let port = held.port;
            if held.way == Way::Handed {
                let why = "asked for; the program has the socket of the host".to_owned();
                ports.push((port, Arc::new(Counters::new(PortMode::HandOver, why))));
                handed.extend(held.sockets.into_iter().map(|one| one.socket));
            } else {
                ports.push((port, offer(held, cookie, binds, &mut offers)?));
            }
        }
        let relay = |offers| Relay::of_this_process()?.publish(offers, namespace, watch.map(Binds::id));
        let link = if offers.is_empty() { None } else { Some(relay(offers)?) };
        Ok(Self { ports, link, handed })
    }

    /// The ports with their real numbers, in the order in which they were asked for.
    pub fn ports(&self) -> Vec<PublishedPort> {
        self.ports.iter().map(|(port, _)| *port).collect()
    }

    /// What went through each port so far, in the order of [`Published::ports`].
    pub fn status(&self) -> Vec<PortStatus> {
        self.ports.iter().map(|(port, counters)| counters.status(*port)).collect()
    }

    /// Closes the ports and every connection through them, like dropping, and takes clients from sockets that the container
    /// has for them. Connections that these have taken are the container's, and stay.
    pub fn close(mut self) {
        self.handed.iter().for_each(stop_taking);
        if let Some(link) = self.link.take() {
            revoke(&link.close());
        }
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            // Whoever has sockets for them is at its end, or was left to itself.
            drop(link.close());
        }
    }
}

/// Makes answers to clients' own addresses come back to the relay.
fn lead_back(namespace: &NetworkNamespace) -> Result<()> {
    let made = namespace.open_sockets(Family::V4, Transport::Routing, 1);
    let led = made.and_then(|sockets| sockets.iter().try_for_each(transparent::lead_back));
    led.context("keep clients' own addresses")
}

/// Settles how a port is to be reached, and offers its sockets to the relay.
fn offer(
    held: Held,
    namespace: u64,
    binds: Option<Result<&Binds, &str>>,
    offers: &mut Vec<Offer>,
) -> Result<Arc<Counters>> {
    let bound_by_us = "the program has not bound it yet";
    let unlocked = held.mapping.is_unlocked();
    let let_down = may_have(&held.mapping).err();
    let (inject, mode, why) = match (held.mapping.wanted_mode(), binds) {
        (PortMode::Auto, Some(_)) if held.way == Way::Adopted => {
            (false, PortMode::Relay, "its socket is not this process's alone".to_owned())
        }
        (_, None) | (PortMode::Relay, _) => (false, PortMode::Relay, "asked for".to_owned()),
        (PortMode::Auto, Some(_)) if held.mapping.protocol() == Protocol::Udp => {
            // A client of UDP that is relayed would be another one after the change.
            (false, PortMode::Relay, let_down.unwrap_or("ports of UDP are injected where that is asked for").to_owned())
        }
        (PortMode::Auto, Some(_)) if held.mapping.wanted_source() == SourceAddress::ProxyV2 => {
            (false, PortMode::Relay, "the relay writes the header of the PROXY protocol".to_owned())
        }
        (PortMode::Nat, Some(_)) => {
            let message = format!("publish {}: address translation by nf_tables is not built in", held.mapping);
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        (PortMode::Inject, Some(Err(why))) => {
            let message = format!("publish {}: inject: {why}", held.mapping);
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        (PortMode::HandOver, Some(_)) => {
            let message = format!("publish {}: a socket can be handed over when a sandbox starts", held.mapping);
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        (PortMode::Inject, Some(Ok(_))) if let_down.is_some() => {
            let message = format!("publish {}: inject: {}", held.mapping, let_down.unwrap_or_default());
            return Err(Error::new(ErrorKind::PermissionDenied, message));
        }
        (PortMode::Auto, Some(Ok(_))) if let_down.is_some() => {
            (false, PortMode::Relay, let_down.unwrap_or_default().to_owned())
        }
        (_, Some(_)) if namespace == 0 => {
            (false, PortMode::Relay, "the kernel does not name network namespaces (Linux 5.14)".to_owned())
        }
        (PortMode::Inject, Some(Ok(_))) => {
            held.sockets.iter().try_for_each(|one| hostport::make_reservation(&one.socket))?;
            (true, PortMode::Inject, bound_by_us.to_owned())
        }
        (PortMode::Auto, Some(Ok(_))) => (true, PortMode::Relay, bound_by_us.to_owned()),
        (PortMode::Auto, Some(Err(why))) => (false, PortMode::Relay, why.to_owned()),
    };
    let listens = mode == PortMode::Relay;
    let counters = Arc::new(Counters::new(mode, why));
    let (idle, source) = (held.mapping.idle(), held.mapping.wanted_source());
    offers.extend(held.sockets.into_iter().map(|HostSocket { port, socket }| {
        let (counters, inject) = (Arc::clone(&counters), inject.then_some(namespace));
        Offer { port, socket, counters, listens, inject, unlocked, to: Partner::Inside, idle, source }
    }));
    Ok(counters)
}

/// What went through one published port, as far as this process sees it: clients of a socket that is the container's own
/// are the kernel's and the container's alone, and are not counted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PortStatus {
    /// The port.
    pub port: PublishedPort,
    /// How its clients are served now.
    pub mode: PortMode,
    /// Why so.
    pub why: String,
    /// Connections taken from clients since the port was published; for UDP, clients that were not known or were forgotten.
    pub accepted: u64,
    /// Connections that exist now; for UDP, clients that are known.
    pub open: u64,
    /// Connections reset because nothing in the container took them; for UDP, datagrams.
    pub refused: u64,
    /// Bytes that went into the container.
    pub bytes_in: u64,
    /// Bytes that came out of the container.
    pub bytes_out: u64,
    /// Why the last connection that was reset was, or why none can be taken at the moment.
    pub last_error: Option<String>,
}
