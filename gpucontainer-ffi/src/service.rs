//! Services of the host that programs inside can reach, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::boundary::{Fault, bad, call, catch, given, text};
use crate::config::Config;
use crate::error::Error;
use crate::port::protocol;
use crate::sandbox::Sandbox;
use gpucontainer::Result;
use gpucontainer::net::Protocol;
use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::time::Duration;

/// A service of the host that is wanted inside.
#[derive(Debug)]
pub struct HostService {
    service: Option<gpucontainer::net::HostService>,
    fault: Fault,
}

impl HostService {
    fn update(
        this: Option<&mut Self>,
        change: impl FnOnce(gpucontainer::net::HostService) -> Result<gpucontainer::net::HostService>,
    ) {
        let Some(this) = this else { return };
        let Some(service) = this.service else { return };
        let changed = catch(|| change(service));
        if let Some(changed) = this.fault.keep(changed) {
            this.service = Some(changed);
        }
    }

    pub(crate) fn ready(this: Option<&Self>) -> Result<gpucontainer::net::HostService> {
        let this = given(this, "service")?;
        this.fault.check()?;
        this.service.ok_or_else(|| bad("the service could not be made".to_owned()))
    }
}

/// Wants a service of the host to be found inside, on a port of the loopback addresses 127.0.0.1 and ::1 there.
///
/// @param protocol  of gpuc_protocol_t
/// @param port      inside; 0 for any free one
/// @param host      the service's address and port, as in "127.0.0.1:5432"; one of IPv6 is in brackets
/// @return the caller's, freed with gpuc_host_service_free
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_host_service_new(
    protocol: u32,
    port: u16,
    host: *const c_char,
) -> Option<Box<HostService>> {
    let mut fault = Fault::default();
    let made = catch(|| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let host = unsafe { text(host, "host") }?;
        let address = host.parse().map_err(|e| bad(format!("host {host:?}: {e}")))?;
        Ok(match self::protocol(protocol)? {
            Protocol::Udp => gpucontainer::net::HostService::udp(port, address),
            _ => gpucontainer::net::HostService::tcp(port, address),
        })
    });
    let service = fault.keep(made);
    Some(Box::new(HostService { service, fault }))
}

/// Has it found inside on this address and no other: one of the container's, or "0.0.0.0" or "::" for all of its family. On
/// an address that others can reach, such as that in a private network, they reach the service too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_host_service_set_address(service: Option<&mut HostService>, address: *const c_char) {
    HostService::update(service, |service| {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let address = unsafe { text(address, "address") }?;
        Ok(service.address(address.parse().map_err(|e| bad(format!("address {address:?}: {e}")))?))
    });
}

/// Ends what nothing has passed through for so long. No time for TCP by default, 90 seconds for UDP.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_host_service_set_idle_timeout(service: Option<&mut HostService>, milliseconds: u64) {
    HostService::update(service, |service| Ok(service.idle_timeout(Duration::from_millis(milliseconds))));
}

/// Frees a wish for a service.
///
/// @param service  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_host_service_free(service: Option<Box<HostService>>) {
    drop(service);
}

/// Makes a service of the host reachable inside from the start on.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_expose_host(config: Option<&mut Config>, service: Option<&HostService>) {
    Config::update(config, |builder| Ok(builder.host_service(HostService::ready(service)?)));
}

/// Makes a service of the host reachable inside a running sandbox.
///
/// @param error  may be NULL
/// @return the port inside; 0 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_expose_host(
    sandbox: Option<&Sandbox>,
    service: Option<&HostService>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> u16 {
    call(error, 0, || {
        let services = given(sandbox, "sandbox")?.sandbox.expose_host(&[HostService::ready(service)?])?;
        Ok(services.first().map_or(0, gpucontainer::net::HostService::port))
    })
}

/// Closes a service of the host inside and its connections.
///
/// @param protocol  of gpuc_protocol_t
/// @param port      inside
/// @param error     may be NULL
/// @return whether it was closed
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_withdraw_host(
    sandbox: Option<&Sandbox>,
    protocol: u32,
    port: u16,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> bool {
    call(error, false, || {
        given(sandbox, "sandbox")?.sandbox.withdraw_host(port, self::protocol(protocol)?)?;
        Ok(true)
    })
}
