//! Ports and services without sandboxes: for containers that somebody else started, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; descriptors are numbers")]

use crate::boundary::{c_string, call, given, release, slice};
use crate::counters::{port, port_status, service_status};
use crate::error::Error;
use crate::output::time;
use crate::port::Mapping;
use crate::sandbox::Sandbox;
use crate::service::HostService;
use crate::stdio::duplicate;
use gpucontainer::net::{PortMapper, PortMapping};
use serde_json::Value;
use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;
use std::os::fd::{IntoRawFd, OwnedFd};

/// A network namespace to connect into, and to lead ports and services into. The calling process must be privileged over
/// it. Any number of threads may use it at once.
#[derive(Debug)]
pub struct NetworkNamespace(gpucontainer::net::NetworkNamespace);

/// Ports of the host that are taken and not yet joined to a container.
#[derive(Debug)]
pub struct Reservation(gpucontainer::net::Reservation);

/// Ports of the host that lead into a container. Any number of threads may use it at once.
#[derive(Debug)]
pub struct Published(gpucontainer::net::Published);

/// Services of the host that can be reached in a network namespace. Any number of threads may use it at once.
#[derive(Debug)]
pub struct ExposedServices(gpucontainer::net::ExposedServices);

/// The network namespace in which a process lives. It can be entered as long as the process lives.
///
/// @param pidfd  of pidfd_open(2), as gpuc_sandbox_fd is one; stays the caller's
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_network_namespace_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_network_namespace_of_process(
    pidfd: c_int,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<NetworkNamespace>> {
    call(error, None, || {
        // SAFETY: the header asks for a descriptor that is open during the call.
        let pidfd = unsafe { duplicate(pidfd) }?;
        Ok(Some(Box::new(NetworkNamespace(gpucontainer::net::NetworkNamespace::of_process(pidfd)))))
    })
}

/// A network namespace by descriptors, which stay the caller's.
///
/// @param network  of /proc/PID/ns/net, or of a file that it is mounted on
/// @param user     of the user namespace that owns it, as in /proc/PID/ns/user, which callers without privilege need; -1
///                 for none
/// @param error    may be NULL
/// @return the caller's, freed with gpuc_network_namespace_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_network_namespace_from_fds(
    network: c_int,
    user: c_int,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<NetworkNamespace>> {
    call(error, None, || {
        // SAFETY: the header asks for a descriptor that is open during the call.
        let network = unsafe { duplicate(network) }?;
        // SAFETY: as above.
        let user = if user < 0 { None } else { Some(unsafe { duplicate(user) }?) };
        Ok(Some(Box::new(NetworkNamespace(gpucontainer::net::NetworkNamespace::from_fds(network, user)))))
    })
}

/// The network namespace of a sandbox.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_network_namespace_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_network_namespace(
    sandbox: Option<&Sandbox>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<NetworkNamespace>> {
    call(error, None, || {
        let namespace = given(sandbox, "sandbox")?.sandbox.network_namespace()?;
        Ok(Some(Box::new(NetworkNamespace(namespace))))
    })
}

/// Connects to a TCP port on the loopback of the namespace.
///
/// @param milliseconds  how long to try; negative is for ever
/// @param error         may be NULL
/// @return a socket that the caller closes; -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_network_namespace_dial(
    namespace: Option<&NetworkNamespace>,
    port: u16,
    milliseconds: i64,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        let stream = given(namespace, "namespace")?.0.dial(port, time(milliseconds))?;
        Ok(OwnedFd::from(stream).into_raw_fd())
    })
}

/// Frees a namespace's handle. What was led into it stays.
///
/// @param namespace  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_network_namespace_free(namespace: Option<Box<NetworkNamespace>>) {
    release(namespace);
}

/// Takes the host's side of every mapping: binds, and for TCP listens. All or none.
///
/// From then on the ports belong to the reservation: other programs cannot have them, and clients wait until it is
/// relayed.
///
/// @param mappings  count of them, which stay the caller's; may be NULL if count is 0
/// @param error     may be NULL; GPUC_ERROR_PORT_IN_USE if another program has a port
/// @return the caller's, freed with gpuc_reservation_free, which frees the ports; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_port_mapper_reserve(
    mappings: *const *const Mapping,
    count: usize,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Reservation>> {
    call(error, None, || {
        // SAFETY: the header asks for that many pointers.
        let mappings = unsafe { slice(mappings, count, "mappings") }?;
        // SAFETY: the header asks for mappings of this library, or NULL.
        let ready = mappings.iter().map(|mapping| Mapping::ready(unsafe { mapping.as_ref() }));
        let mappings = ready.collect::<gpucontainer::Result<Vec<PortMapping>>>()?;
        Ok(Some(Box::new(Reservation(PortMapper::new().reserve(&mappings)?))))
    })
}

/// Takes a socket that listens already as the host's side of a TCP port.
///
/// @param socket  stays the caller's
/// @param error   may be NULL
/// @return the caller's, freed with gpuc_reservation_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_port_mapper_adopt(
    container_port: u16,
    socket: c_int,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Reservation>> {
    call(error, None, || {
        // SAFETY: the header asks for a descriptor that is open during the call.
        let socket = unsafe { duplicate(socket) }?;
        Ok(Some(Box::new(Reservation(PortMapper::new().adopt(container_port, socket)?))))
    })
}

/// The ports with their real numbers, in the order in which they were asked for, as a JSON array: container_port, host,
/// hosts, count, protocol.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_string_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_reservation_json(
    reservation: Option<&Reservation>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        let ports: Vec<Value> = given(reservation, "reservation")?.0.ports().iter().map(port).collect();
        Ok(c_string(Value::from(ports).to_string().as_bytes()).into_raw())
    })
}

/// Passes everything on to the container ports in a namespace, by one thread for all ports of the process. A program
/// there need not listen yet.
///
/// @param reservation  freed, also on failure
/// @param error        may be NULL
/// @return the caller's, freed with gpuc_published_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_reservation_relay(
    reservation: Option<Box<Reservation>>,
    namespace: Option<&NetworkNamespace>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Published>> {
    call(error, None, || {
        let reservation = given(reservation, "reservation")?.0;
        let published = reservation.relay(given(namespace, "namespace")?.0.clone())?;
        Ok(Some(Box::new(Published(published))))
    })
}

/// Has the kernel rewrite addresses, where it can; the rest is relayed. Needs privileges, and a namespace that the host
/// has a route to.
///
/// @param reservation  freed, also on failure
/// @param error        may be NULL
/// @return the caller's, freed with gpuc_published_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_reservation_translate(
    reservation: Option<Box<Reservation>>,
    namespace: Option<&NetworkNamespace>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<Published>> {
    call(error, None, || {
        let reservation = given(reservation, "reservation")?.0;
        let published = reservation.translate(given(namespace, "namespace")?.0.clone())?;
        Ok(Some(Box::new(Published(published))))
    })
}

/// Publishes what was reserved on a running sandbox, until that is unpublished.
///
/// @param reservation  freed, also on failure
/// @param error        may be NULL
/// @return the host's port, the first of all; 0 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_sandbox_publish_reserved(
    sandbox: Option<&Sandbox>,
    reservation: Option<Box<Reservation>>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> u16 {
    call(error, 0, || {
        let reservation = given(reservation, "reservation")?.0;
        let ports = given(sandbox, "sandbox")?.sandbox.publish_reserved(reservation)?;
        Ok(ports.first().map_or(0, |port| port.host().port()))
    })
}

/// Hands the sockets out, for a program that takes clients itself: one for each port on each address, in order. They are
/// non-blocking and closed on exec; those of TCP listen.
///
/// @param reservation  freed, also on failure
/// @param sockets      set to descriptors that the caller closes; those that do not fit in are closed
/// @param count        for how many there is room
/// @param error        may be NULL
/// @return how many there are; -1 on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_reservation_into_sockets(
    reservation: Option<Box<Reservation>>,
    sockets: *mut c_int,
    count: usize,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        let all = given(reservation, "reservation")?.0.into_sockets();
        let number = c_int::try_from(all.len()).unwrap_or(c_int::MAX);
        given((!sockets.is_null() || count == 0).then_some(()), "sockets")?;
        for (index, (_, socket)) in all.into_iter().take(count).enumerate() {
            // SAFETY: the header asks for room for `count`, of which this is one.
            let place = unsafe { sockets.add(index) };
            // SAFETY: as above.
            unsafe { place.write(socket.into_raw_fd()) };
        }
        Ok(number)
    })
}

/// Frees the ports.
///
/// @param reservation  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_reservation_free(reservation: Option<Box<Reservation>>) {
    release(reservation);
}

/// The ports with their counters, as a JSON array; each as gpuc_sandbox_json has it.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_string_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_published_json(
    published: Option<&Published>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        let ports: Vec<Value> = given(published, "published")?.0.status().iter().map(port_status).collect();
        Ok(c_string(Value::from(ports).to_string().as_bytes()).into_raw())
    })
}

/// Closes the ports and every connection through them.
///
/// @param published  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_published_free(published: Option<Box<Published>>) {
    release(published.map(|published| published.0.close()));
}

/// Makes a service of the host reachable in a namespace.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_exposed_services_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_network_namespace_expose_host(
    namespace: Option<&NetworkNamespace>,
    service: Option<&HostService>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<ExposedServices>> {
    call(error, None, || {
        let wanted = HostService::ready(service)?;
        let namespace = given(namespace, "namespace")?.0.clone();
        Ok(Some(Box::new(ExposedServices(gpucontainer::net::ExposedServices::new(&[wanted], namespace)?))))
    })
}

/// The services with their real ports inside and their counters, as a JSON array; each as gpuc_sandbox_json has it.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_string_free; NULL on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_exposed_services_json(
    services: Option<&ExposedServices>,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> *mut c_char {
    call(error, std::ptr::null_mut(), || {
        let all: Vec<Value> = given(services, "services")?.0.status().iter().map(service_status).collect();
        Ok(c_string(Value::from(all).to_string().as_bytes()).into_raw())
    })
}

/// Closes the services and every connection through them.
///
/// @param services  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_exposed_services_free(services: Option<Box<ExposedServices>>) {
    release(services);
}
