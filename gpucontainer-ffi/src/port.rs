//! Published ports in all detail, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::boundary::{Fault, bad, call, catch, given, text};
use crate::config::Config;
use crate::error::Error;
use crate::sandbox::Sandbox;
use crate::stdio::duplicate;
use gpucontainer::net::{PortMapper, PortMapping, PortMode, Protocol, SourceAddress, activated};
use gpucontainer::{ErrorKind, Result};
use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;
use std::os::fd::IntoRawFd;
use std::time::Duration;

/// The transport protocol of a port.
#[allow(non_camel_case_types, reason = "the names are those of C, so that one search finds both")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub enum gpuc_protocol_t {
    /// Streams.
    GPUC_PROTOCOL_TCP = 0,
    /// Datagrams.
    GPUC_PROTOCOL_UDP = 1,
}

/// How clients of a published port reach the program in the container.
#[allow(non_camel_case_types, reason = "the names are those of C, so that one search finds both")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub enum gpuc_port_mode_t {
    /// Whatever costs least.
    GPUC_PORT_MODE_AUTO = 0,
    /// The program finds the host's socket among its descriptors, as LISTEN_FDS says.
    GPUC_PORT_MODE_HAND_OVER = 1,
    /// The program's bind() is answered with a socket of the host.
    GPUC_PORT_MODE_INJECT = 2,
    /// One thread of this process passes everything on.
    GPUC_PORT_MODE_RELAY = 3,
    /// The kernel rewrites addresses on their way; for root, and containers in a network that the host has a route to, such
    /// as a private one. The program listens on its address there. Clients on loopback addresses are relayed. Rules of the
    /// host's for its own services do not apply.
    GPUC_PORT_MODE_NAT = 4,
}

/// How a program learns who its clients are, when they are relayed.
#[allow(non_camel_case_types, reason = "the names are those of C, so that one search finds both")]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub enum gpuc_source_address_t {
    /// Not at all: they come from the container's own loopback address.
    GPUC_SOURCE_ADDRESS_LOOPBACK = 0,
    /// They come from their own addresses.
    GPUC_SOURCE_ADDRESS_KEEP = 1,
    /// Each connection begins with a header of the PROXY protocol, version 2.
    GPUC_SOURCE_ADDRESS_PROXY_V2 = 2,
}

/// A port of a container that is wanted on the host, or as many consecutive ones.
#[derive(Debug)]
pub struct Mapping {
    mapping: PortMapping,
    fault: Fault,
}

impl Mapping {
    fn update(this: Option<&mut Self>, change: impl FnOnce(PortMapping) -> Result<PortMapping>) {
        let Some(this) = this else { return };
        let changed = catch(|| change(this.mapping.clone()));
        if let Some(changed) = this.fault.keep(changed) {
            this.mapping = changed;
        }
    }

    pub(crate) fn ready(this: Option<&Self>) -> Result<PortMapping> {
        let this = given(this, "mapping")?;
        this.fault.check()?;
        Ok(this.mapping.clone())
    }
}

pub(crate) fn protocol(number: u32) -> Result<Protocol> {
    match number {
        0 => Ok(Protocol::Tcp),
        1 => Ok(Protocol::Udp),
        other => Err(bad(format!("{other} is no protocol"))),
    }
}

/// Wants consecutive ports of a container on as many of the host's loopback addresses, 127.0.0.1 and ::1.
///
/// @param protocol   of gpuc_protocol_t
/// @param host_port  0 for any free ones
/// @param count      how many, from both ports on
/// @return the caller's, freed with gpuc_port_mapping_free
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_port_mapping_new(
    protocol: u32,
    container_port: u16,
    host_port: u16,
    count: u16,
) -> Option<Box<Mapping>> {
    let mut fault = Fault::default();
    let known = fault.keep(self::protocol(protocol)).unwrap_or_default();
    let mapping = match known {
        Protocol::Udp => PortMapping::udp_range(container_port, host_port, count),
        _ => PortMapping::tcp_range(container_port, host_port, count),
    };
    Some(Box::new(Mapping { mapping, fault }))
}

/// Uses one other address of the host, as in "0.0.0.0" or "::1".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_port_mapping_set_address(mapping: Option<&mut Mapping>, address: *const c_char) {
    Mapping::update(mapping, |mapping| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let address = unsafe { text(address, "address") }?;
        Ok(mapping.address(address.parse().map_err(|e| bad(format!("address {address:?}: {e}")))?))
    });
}

/// Uses every address of the host, IPv4 and IPv6.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_port_mapping_set_all_interfaces(mapping: Option<&mut Mapping>) {
    Mapping::update(mapping, |mapping| Ok(mapping.all_interfaces()));
}

/// Chooses how clients reach the program.
///
/// @param mode  of gpuc_port_mode_t
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_port_mapping_set_mode(mapping: Option<&mut Mapping>, mode: u32) {
    Mapping::update(mapping, |mapping| {
        let mode = match mode {
            0 => PortMode::Auto,
            1 => PortMode::HandOver,
            2 => PortMode::Inject,
            3 => PortMode::Relay,
            4 => PortMode::Nat,
            other => return Err(bad(format!("{other} is no mode of a port"))),
        };
        Ok(mapping.mode(mode))
    });
}

/// Chooses how the program learns who its clients are.
///
/// @param source  of gpuc_source_address_t
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_port_mapping_set_source(mapping: Option<&mut Mapping>, source: u32) {
    Mapping::update(mapping, |mapping| {
        let source = match source {
            0 => SourceAddress::Loopback,
            1 => SourceAddress::Keep,
            2 => SourceAddress::ProxyV2,
            other => return Err(bad(format!("{other} is no kind of source address"))),
        };
        Ok(mapping.source(source))
    });
}

/// Ends what is relayed when nothing has passed for so long. No time for TCP by default, 90 seconds for UDP.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_port_mapping_set_idle_timeout(mapping: Option<&mut Mapping>, milliseconds: u64) {
    Mapping::update(mapping, |mapping| Ok(mapping.idle_timeout(Duration::from_millis(milliseconds))));
}

/// Names the port in LISTEN_FDNAMES.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_port_mapping_set_name(mapping: Option<&mut Mapping>, name: *const c_char) {
    // SAFETY: the header asks for NULL or a string that ends with a zero byte.
    Mapping::update(mapping, |mapping| Ok(mapping.name(unsafe { text(name, "name") }?)));
}

/// Trusts the container with sockets of the host that are not locked to the port, which an ordinary user cannot lock on
/// newer kernels.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_port_mapping_set_unlocked(mapping: Option<&mut Mapping>, unlocked: bool) {
    Mapping::update(mapping, |mapping| Ok(mapping.unlocked(unlocked)));
}

/// Frees a mapping.
///
/// @param mapping  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_port_mapping_free(mapping: Option<Box<Mapping>>) {
    drop(mapping);
}

/// A listening socket that this process was started with, as sd_listen_fds(3) has it.
///
/// @param name   of LISTEN_FDNAMES; NULL is the first one there is
/// @param error  may be NULL
/// @return a descriptor that the caller closes; -1 on failure, and if there is none (GPUC_ERROR_NOT_FOUND)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_activated_socket(
    name: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let name = if name.is_null() { None } else { Some(unsafe { text(name, "name") }?) };
        let found = activated()?.into_iter().find(|one| name.as_ref().is_none_or(|name| one.name == *name));
        let missing = || gpucontainer::Error::new(ErrorKind::NotFound, "this process was started with no such socket");
        Ok(found.ok_or_else(missing)?.socket.into_raw_fd())
    })
}

/// Leads the clients of a listening TCP socket to a port of a running sandbox, until that is unpublished.
///
/// @param socket  stays the caller's
/// @param error   may be NULL
/// @return the host's port; 0 on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_sandbox_publish_socket(
    sandbox: Option<&Sandbox>,
    socket: c_int,
    container_port: u16,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> u16 {
    call(error, 0, || {
        // SAFETY: the header asks for a descriptor that is open during the call.
        let socket = unsafe { duplicate(socket) }?;
        let reservation = PortMapper::new().adopt(container_port, socket)?;
        let ports = given(sandbox, "sandbox")?.sandbox.publish_reserved(reservation)?;
        Ok(ports.first().map_or(0, |port| port.host().port()))
    })
}

/// Publishes ports with the start.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_publish_mapping(config: Option<&mut Config>, mapping: Option<&Mapping>) {
    Config::update(config, |builder| Ok(builder.publish_port(Mapping::ready(mapping)?)));
}

/// Publishes ports of a running sandbox.
///
/// @param error  may be NULL
/// @return the host's port, the first of a range; 0 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_publish_mapping(
    sandbox: Option<&Sandbox>,
    mapping: Option<&Mapping>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> u16 {
    call(error, 0, || {
        let ports = given(sandbox, "sandbox")?.sandbox.publish(&[Mapping::ready(mapping)?])?;
        Ok(ports.first().map_or(0, |port| port.host().port()))
    })
}
