//! Private networks, as C sees them.
#![allow(unsafe_code, reason = "exported names could clash with those of another library; C strings are pointers")]

use crate::boundary::{bad, c_string, call, given, release, text};
use crate::config::Config;
use crate::error::Error;
use crate::output::time;
use crate::sandbox::Sandbox;
use crate::stdio::duplicate;
use gpucontainer::Result;
use gpucontainer::net::NetworkNamespace;
use gpucontainer::sandbox::Network;
use std::ffi::{CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// A network of containers of this host, which reach each other by address and by name, and the outside through the
/// host's addresses. It exists as long as somebody is in it. Needs privileges.
#[derive(Debug)]
pub struct PrivateNetwork(gpucontainer::net::PrivateNetwork);

impl PrivateNetwork {
    fn update(
        this: Option<&mut Self>,
        change: impl FnOnce(gpucontainer::net::PrivateNetwork) -> gpucontainer::net::PrivateNetwork,
    ) {
        if let Some(this) = this {
            this.0 = change(this.0.clone());
        }
    }
}

/// A network namespace in a private network.
#[derive(Debug)]
pub struct NetworkMember {
    member: gpucontainer::net::NetworkMember,
    addresses: Vec<CString>,
    gateways: Vec<CString>,
    hosts: CString,
}

/// Describes the private network of that name: 1 to 32 letters, digits, '_' and '-'.
///
/// @param error  may be NULL
/// @return the caller's, freed with gpuc_private_network_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_private_network_new(
    name: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<PrivateNetwork>> {
    call(error, None, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let name = unsafe { text(name, "name") }?;
        Ok(Some(Box::new(PrivateNetwork(gpucontainer::net::PrivateNetwork::named(name)))))
    })
}

/// Chooses its IPv4 addresses, as in "10.9.0.0/24". By default 1,022 addresses to which the host has no route.
///
/// @param error  may be NULL
/// @return 0, or -1 on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_private_network_set_ipv4(
    network: Option<&mut PrivateNetwork>,
    addresses: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        let network = given(network, "network")?;
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let (address, prefix) = subnet(unsafe { text(addresses, "addresses") }?)?;
        PrivateNetwork::update(Some(network), |network| network.ipv4(address, prefix));
        Ok(0)
    })
}

/// Whether members have IPv6 addresses too. On by default, where the kernel has IPv6.
///
/// @param network  may be NULL, which does nothing
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_private_network_set_ipv6(network: Option<&mut PrivateNetwork>, on: bool) {
    PrivateNetwork::update(network, |network| network.ipv6(on));
}

/// Whether members reach what the host reaches, from the host's addresses. On by default. A host that forwards no packets
/// is made to do so for the interfaces to which it has routes.
///
/// @param network  may be NULL, which does nothing
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_private_network_set_outbound(network: Option<&mut PrivateNetwork>, on: bool) {
    PrivateNetwork::update(network, |network| network.outbound(on));
}

/// Whether members reach services of the host, but for those on its loopback. Off by default.
///
/// @param network  may be NULL, which does nothing
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_private_network_set_host_access(network: Option<&mut PrivateNetwork>, on: bool) {
    PrivateNetwork::update(network, |network| network.host_access(on));
}

/// Comes into the network with a new network namespace, without a sandbox.
///
/// @param name   what it is called there: 1 to 63 letters, digits, '.', '_' and '-'
/// @param error  may be NULL; GPUC_ERROR_ALREADY_EXISTS if a member has that name
/// @return the caller's, freed with gpuc_network_member_free; NULL on failure
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_private_network_join(
    network: Option<&PrivateNetwork>,
    name: *const c_char,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> Option<Box<NetworkMember>> {
    call(error, None, || {
        // SAFETY: the header asks for NULL or a string that ends with a zero byte.
        let name = unsafe { text(name, "name") }?;
        let member = given(network, "network")?.0.join(name)?;
        let list = |addresses: &[IpAddr]| -> Vec<CString> {
            addresses.iter().map(|address| c_string(address.to_string().as_bytes())).collect()
        };
        let (addresses, gateways) = (list(member.addresses()), list(member.gateways()));
        let hosts = c_string(member.hosts_file().as_os_str().as_bytes());
        Ok(Some(Box::new(NetworkMember { member, addresses, gateways, hosts })))
    })
}

/// Frees the description. Those who are in the network stay.
///
/// @param network  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_private_network_free(network: Option<Box<PrivateNetwork>>) {
    release(network);
}

/// One of its addresses: IPv4 first, then IPv6 if it has one.
///
/// @return a string that lives as long as the object; NULL if there are not so many
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_network_member_address(member: Option<&NetworkMember>, index: usize) -> *const c_char {
    member.and_then(|member| member.addresses.get(index)).map_or(std::ptr::null(), |address| address.as_ptr())
}

/// One of the gateway's addresses: none in a network that leads nowhere.
///
/// @return a string that lives as long as the object; NULL if there are not so many
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_network_member_gateway(member: Option<&NetworkMember>, index: usize) -> *const c_char {
    member.and_then(|member| member.gateways.get(index)).map_or(std::ptr::null(), |address| address.as_ptr())
}

/// The file with the names and addresses of all members, in the format of /etc/hosts. It is rewritten in place.
///
/// @param member  may be NULL, which is an empty string
/// @return a string that lives as long as the object
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_network_member_hosts_file(member: Option<&NetworkMember>) -> *const c_char {
    member.map_or(c"", |member| member.hosts.as_c_str()).as_ptr()
}

/// The network namespace, as setns takes it.
///
/// @return a descriptor that stays the object's; -1 without one
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_network_member_fd(member: Option<&NetworkMember>) -> c_int {
    member.map_or(-1, |member| member.member.as_fd().as_raw_fd())
}

/// Connects to a TCP port on the loopback of the namespace.
///
/// @param milliseconds  how long to try; negative is for ever
/// @param error         may be NULL
/// @return a socket that the caller closes; -1 on failure
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_network_member_dial(
    member: Option<&NetworkMember>,
    port: u16,
    milliseconds: i64,
    error: Option<&mut MaybeUninit<Option<Box<Error>>>>,
) -> c_int {
    call(error, -1, || {
        let stream = given(member, "member")?.member.namespace()?.dial(port, time(milliseconds))?;
        Ok(OwnedFd::from(stream).into_raw_fd())
    })
}

/// Gives its addresses and its name back.
///
/// @param member  may be NULL
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_network_member_free(member: Option<Box<NetworkMember>>) {
    release(member);
}

/// Starts the sandbox in a private network, in which it is known by its name.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_private_network(config: Option<&mut Config>, network: Option<&PrivateNetwork>) {
    Config::update(config, |builder| Ok(builder.network(Network::Private(given(network, "network")?.0.clone()))));
}

/// Gives the sandbox of an ordinary user a way out through the program pasta, which must be installed.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_set_outbound_network(config: Option<&mut Config>) {
    Config::update(config, |builder| Ok(builder.network(Network::Outbound)));
}

/// Starts the sandbox in the network of another one. Needs privileges.
#[unsafe(no_mangle)]
pub extern "C" fn gpuc_config_join_network(config: Option<&mut Config>, sandbox: Option<&Sandbox>) {
    Config::update(config, |builder| {
        let namespace = given(sandbox, "sandbox")?.sandbox.network_namespace()?;
        Ok(builder.network(Network::Join(namespace)))
    });
}

/// Starts the sandbox in a network namespace, such as /proc/PID/ns/net. Needs privileges over it.
///
/// @param fd  stays the caller's
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gpuc_config_set_network_namespace(config: Option<&mut Config>, fd: c_int) {
    Config::update(config, |builder| {
        // SAFETY: the header asks for a descriptor that is open.
        let own = unsafe { duplicate(fd) }?;
        Ok(builder.network(Network::Join(NetworkNamespace::from_fds(own, None))))
    });
}

fn subnet(text: &str) -> Result<(Ipv4Addr, u8)> {
    let wrong = || bad(format!("{text:?} is no IPv4 network such as 10.9.0.0/24"));
    let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
    Ok((address.parse().map_err(|_| wrong())?, prefix.parse().map_err(|_| wrong())?))
}
