//! Private networks, as Python sees them. The classes that people use are written in Python, in `gpucontainer.network`.

use crate::describe::ours;
use crate::image::seconds;
use crate::slot::Slot;
use gpucontainer::net::{NetworkMember, PrivateNetwork};
use pyo3::prelude::*;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;

/// Name, addresses and their prefix, IPv6, outbound, host access.
pub(crate) type NetworkFields = (String, Option<(u32, u8)>, bool, bool, bool);

/// The network that the fields describe.
pub(crate) fn network((name, ipv4, ipv6, outbound, host_access): NetworkFields) -> PrivateNetwork {
    let network = PrivateNetwork::named(name).ipv6(ipv6).outbound(outbound).host_access(host_access);
    match ipv4 {
        Some((address, prefix)) => network.ipv4(Ipv4Addr::from(address), prefix),
        None => network,
    }
}

/// The handle of a member of a private network.
#[pyclass(frozen, name = "_NetworkMember", module = "gpucontainer._native")]
pub(crate) struct MemberHandle(Slot<NetworkMember>);

#[pymethods]
impl MemberHandle {
    #[new]
    fn new(py: Python<'_>, fields: NetworkFields, name: &str) -> PyResult<Self> {
        let network = network(fields);
        let member = ours(py.detach(|| network.join(name)))?;
        Ok(Self(Slot::new(member, "member of a private network")))
    }

    fn addresses(&self) -> PyResult<(Vec<IpAddr>, Vec<IpAddr>)> {
        ours(self.0.with(|member| Ok((member.addresses().to_vec(), member.gateways().to_vec()))))
    }

    fn hosts_file(&self) -> PyResult<PathBuf> {
        ours(self.0.with(|member| Ok(member.hosts_file().to_owned())))
    }

    fn fileno(&self) -> PyResult<i32> {
        ours(self.0.with(|member| Ok(member.as_fd().as_raw_fd())))
    }

    fn dial(&self, py: Python<'_>, port: u16, timeout: Option<f64>) -> PyResult<i32> {
        let timeout = timeout.map(|timeout| seconds("timeout", timeout)).transpose()?;
        let dial = |member: &NetworkMember| Ok(OwnedFd::from(member.namespace()?.dial(port, timeout)?).into_raw_fd());
        ours(py.detach(|| self.0.with(dial)))
    }

    fn leave(&self, py: Python<'_>) -> PyResult<()> {
        ours(py.detach(|| self.0.take().map_or(Ok(()), NetworkMember::leave)))
    }
}
