//! Ports of containers that can be reached now.

use super::inject::{Binds, may_have, revoke};
use super::mapping::{Place, Protocol};
use super::mode::{PortMode, SourceAddress};
use super::namespace::NetworkNamespace;
use super::nat::{self, Served, Wish};
use super::port::PublishedPort;
use super::relay::{Counters, Link, Offer, Partner, Relay, lead_back};
use super::reserve::{Held, HostSocket, Way};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::hostport;
use crate::sys::netns::{Family, Transport};
use crate::sys::peer::{namespace_cookie, stop_taking};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Published ports of one container. Dropping it closes them and every connection through them, before drop returns.
///
/// In a process forked from the one that published, it does nothing.
#[derive(Debug, Default)]
pub struct Published {
    ports: Vec<(PublishedPort, Arc<Counters>)>,
    /// What the kernel serves, by the numbers of the ports; closed before the relay is.
    translated: Option<nat::Link>,
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
            return Ok(Self::default());
        }
        if binds.is_some() && sockets.iter().all(|held| held.mapping.wanted_mode() == PortMode::Nat) {
            return Self::translate(sockets, namespace);
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
        Ok(Self { ports, translated: None, link, handed })
    }

    /// Has the kernel serve all of them, and the relay what the kernel does not.
    pub(super) fn translate(sockets: Vec<Held>, namespace: NetworkNamespace) -> Result<Self> {
        if sockets.is_empty() {
            return Ok(Self::default());
        }
        if let Some(held) = sockets.iter().find(|held| held.mapping.wanted_source() == SourceAddress::ProxyV2) {
            let message = format!("publish {}: the PROXY protocol is for TCP that is relayed", held.mapping);
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let wishes: Vec<Wish> = sockets.iter().map(wish).collect();
        let (served, translated) = nat::publish(&wishes, &namespace)?;
        let (mut ports, mut offers) = (Vec::with_capacity(sockets.len()), Vec::new());
        for (held, served) in sockets.into_iter().zip(served) {
            ports.push((held.port, offer_rest(held, &served, &mut offers)));
        }
        let link = Relay::of_this_process()?.publish(offers, namespace, None)?;
        Ok(Self { ports, translated, link: Some(link), handed: Vec::new() })
    }

    /// The ports with their real numbers, in the order in which they were asked for.
    pub fn ports(&self) -> Vec<PublishedPort> {
        self.ports.iter().map(|(port, _)| *port).collect()
    }

    /// What went through each port so far, in the order of [`Published::ports`].
    pub fn status(&self) -> Vec<PortStatus> {
        let translated = self.translated.as_ref().map(|link| link.counts(self.ports.len()));
        let status = |(number, (port, counters)): (usize, &(PublishedPort, Arc<Counters>))| {
            let mut status = counters.status(*port);
            match &translated {
                Some(Ok(all)) => {
                    let counts = all.get(number).copied().unwrap_or_default();
                    status.accepted += counts.accepted;
                    status.open += counts.open;
                    status.bytes_in += counts.bytes_in;
                    status.bytes_out += counts.bytes_out;
                }
                Some(Err(error)) => status.last_error = Some(error.to_string()),
                None => {}
            }
            status
        };
        self.ports.iter().enumerate().map(status).collect()
    }

    /// Takes what the kernel serves from it, which is all that closing can fail at.
    ///
    /// # Errors
    /// The kernel refuses; the ports go on as before.
    pub(crate) fn withdraw(&mut self) -> Result<()> {
        let Some(link) = &mut self.translated else { return Ok(()) };
        match link.take_out() {
            Err(error) if link.is_out() => {
                tracing::warn!(%error, "what a published port has left in the kernel could not all be removed");
                Ok(())
            }
            other => other,
        }
    }

    /// Closes the ports and every connection through them, like dropping, and takes clients from sockets that the container
    /// has for them. Connections that these have taken are the container's, and stay.
    pub fn close(mut self) {
        self.handed.iter().for_each(stop_taking);
        drop(self.translated.take());
        if let Some(link) = self.link.take() {
            revoke(&link.close());
        }
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        drop(self.translated.take());
        if let Some(link) = self.link.take() {
            // Whoever has sockets for them is at its end, or was left to itself.
            drop(link.close());
        }
    }
}

/// What the kernel is asked for.
fn wish(held: &Held) -> Wish {
    let both_families = held.mapping.place() == Place::All && held.port.host().is_ipv6();
    let keep_source = held.mapping.wanted_source() == SourceAddress::Keep;
    Wish { port: held.port, both_families, keep_source }
}

/// Offers the relay the sockets of a port that the kernel serves: whoever arrives there is led to the same address.
fn offer_rest(held: Held, served: &Served, offers: &mut Vec<Offer>) -> Arc<Counters> {
    let mode = if served.by_kernel { PortMode::Nat } else { PortMode::Relay };
    let counters = Arc::new(Counters::new(mode, served.why.clone()));
    let idle = held.mapping.idle();
    offers.extend(held.sockets.into_iter().filter_map(|HostSocket { port, socket }| {
        let address = port.host().ip();
        let v4 = address.is_ipv4() || address.is_unspecified();
        let to = Partner::Host(served.target(v4, port.container_port())?);
        let counters = Arc::clone(&counters);
        let source = SourceAddress::Loopback;
        Some(Offer { port, socket, counters, listens: true, inject: None, unlocked: false, to, idle, source })
    }));
    counters
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
            let why =
                "ports of UDP are injected where that is asked for: a client that is relayed would be another one then";
            (false, PortMode::Relay, let_down.unwrap_or(why).to_owned())
        }
        (PortMode::Auto, Some(_)) if held.mapping.wanted_source() == SourceAddress::ProxyV2 => {
            (false, PortMode::Relay, "the relay writes the header of the PROXY protocol".to_owned())
        }
        (PortMode::Nat, Some(_)) => {
            let message = format!("publish {}: nat: published together with ports of other modes", held.mapping);
            return Err(Error::new(ErrorKind::InvalidArgument, message));
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
///
/// Of [`PortMode::Nat`] the kernel counts: connections that it led to the container, whether or not a program took them, and
/// the bytes of packets with their headers, to which what is relayed is added without.
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
    /// Connections reset because nothing in the container took them; for UDP, datagrams. Those that the kernel led to the
    /// container, which then refused them, are not known.
    pub refused: u64,
    /// Bytes that went into the container.
    pub bytes_in: u64,
    /// Bytes that came out of the container.
    pub bytes_out: u64,
    /// Why the last connection that was reset was, or why none can be taken at the moment.
    pub last_error: Option<String>,
}
