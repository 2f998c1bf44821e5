//! Ports and services without sandboxes, as Python sees them. The classes that people use are written in Python, in
//! `gpucontainer.mapper`.

use crate::describe::{MappingFields, ServiceFields, duplicate, mapping, ours, service};
use crate::image::seconds;
use crate::slot::Slot;
use gpucontainer::net::{
    ExposedServices, NetworkNamespace, PortMapper, PortStatus, Published, PublishedPort, Reservation, ServiceStatus,
};
use gpucontainer::{Error, ErrorKind};
use pyo3::prelude::*;
use std::os::fd::{IntoRawFd, OwnedFd};

/// Counters of a port.
type Counts = (u64, u64, u64, u64, u64);

/// A published port: inside, address, outside, its counters; its last error, protocol, count, all addresses, mode, why.
pub(crate) type PortFields = (u16, String, u16, Counts, (Option<String>, String, u16, Vec<String>, String, String));

/// A service of the host: inside, address, outside, its counters; its last error, protocol, address inside.
pub(crate) type ServiceStatusFields = (u16, String, u16, Counts, (Option<String>, String, Option<String>));

/// A reserved port: inside, address, outside, protocol, count, all addresses.
type ReservedFields = (u16, String, u16, String, u16, Vec<String>);

pub(crate) fn port_fields(status: &PortStatus) -> PortFields {
    let (inside, address, outside, protocol, count, hosts) = reserved_fields(&status.port);
    let counts = (status.accepted, status.open, status.refused, status.bytes_in, status.bytes_out);
    let (mode, why) = (status.mode.to_string(), status.why.clone());
    (inside, address, outside, counts, (status.last_error.clone(), protocol, count, hosts, mode, why))
}

pub(crate) fn service_fields(status: &ServiceStatus) -> ServiceStatusFields {
    let (port, host) = (status.service.port(), status.service.host());
    let counts = (status.accepted, status.open, status.refused, status.bytes_in, status.bytes_out);
    let protocol = status.service.protocol().to_string();
    let inside = status.service.inside().map(|ip| ip.to_string());
    (port, host.ip().to_string(), host.port(), counts, (status.last_error.clone(), protocol, inside))
}

fn reserved_fields(port: &PublishedPort) -> ReservedFields {
    let hosts = port.hosts().iter().map(|host| host.ip().to_string()).collect();
    let (host, protocol) = (port.host(), port.protocol().to_string());
    (port.container_port(), host.ip().to_string(), host.port(), protocol, port.count(), hosts)
}

/// The handle of a network namespace.
#[pyclass(frozen, name = "_NetworkNamespace", module = "gpucontainer._native")]
pub(crate) struct NamespaceHandle(pub(crate) NetworkNamespace);

#[pymethods]
impl NamespaceHandle {
    #[staticmethod]
    fn of_process(pidfd: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self(NetworkNamespace::of_process(duplicate(pidfd)?)))
    }

    #[staticmethod]
    fn from_fds(network: &Bound<'_, PyAny>, user: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        Ok(Self(NetworkNamespace::from_fds(duplicate(network)?, user.map(duplicate).transpose()?)))
    }

    fn dial(&self, py: Python<'_>, port: u16, timeout: Option<f64>) -> PyResult<i32> {
        let timeout = timeout.map(|timeout| seconds("timeout", timeout)).transpose()?;
        ours(py.detach(|| self.0.dial(port, timeout))).map(|stream| OwnedFd::from(stream).into_raw_fd())
    }

    fn expose_host(&self, py: Python<'_>, services: Vec<ServiceFields>) -> PyResult<ExposedHandle> {
        let services = services.into_iter().map(service).collect::<PyResult<Vec<_>>>()?;
        let exposed = ours(py.detach(|| ExposedServices::new(&services, self.0.clone())))?;
        Ok(ExposedHandle(Slot::new(exposed, "exposed services")))
    }
}

/// The handle of ports that are taken.
#[pyclass(frozen, name = "_Reservation", module = "gpucontainer._native")]
pub(crate) struct ReservationHandle(Slot<Reservation>);

impl ReservationHandle {
    /// The reservation, for whoever uses it up.
    pub(crate) fn take(&self) -> PyResult<Reservation> {
        ours(self.0.take().ok_or_else(|| Error::new(ErrorKind::Closed, "the reservation was used or closed")))
    }
}

#[pymethods]
impl ReservationHandle {
    #[staticmethod]
    fn reserve(py: Python<'_>, mappings: Vec<MappingFields>) -> PyResult<Self> {
        let mappings = mappings.into_iter().map(mapping).collect::<PyResult<Vec<_>>>()?;
        let reservation = ours(py.detach(|| PortMapper::new().reserve(&mappings)))?;
        Ok(Self(Slot::new(reservation, "reservation")))
    }

    #[staticmethod]
    fn adopt(container_port: u16, socket: &Bound<'_, PyAny>) -> PyResult<Self> {
        let reservation = ours(PortMapper::new().adopt(container_port, duplicate(socket)?))?;
        Ok(Self(Slot::new(reservation, "reservation")))
    }

    fn ports(&self) -> PyResult<Vec<ReservedFields>> {
        ours(self.0.with(|reservation| Ok(reservation.ports().iter().map(reserved_fields).collect())))
    }

    fn relay(&self, py: Python<'_>, namespace: &NamespaceHandle) -> PyResult<PublishedHandle> {
        let reservation = self.take()?;
        let published = ours(py.detach(|| reservation.relay(namespace.0.clone())))?;
        Ok(PublishedHandle(Slot::new(published, "published ports")))
    }

    fn translate(&self, py: Python<'_>, namespace: &NamespaceHandle) -> PyResult<PublishedHandle> {
        let reservation = self.take()?;
        let published = ours(py.detach(|| reservation.translate(namespace.0.clone())))?;
        Ok(PublishedHandle(Slot::new(published, "published ports")))
    }

    fn sockets(&self) -> PyResult<Vec<i32>> {
        Ok(self.take()?.into_sockets().into_iter().map(|(_, socket)| socket.into_raw_fd()).collect())
    }

    fn close(&self) {
        drop(self.0.take());
    }
}

/// The handle of ports that lead into a container.
#[pyclass(frozen, name = "_Published", module = "gpucontainer._native")]
pub(crate) struct PublishedHandle(Slot<Published>);

#[pymethods]
impl PublishedHandle {
    fn ports(&self) -> PyResult<Vec<PortFields>> {
        ours(self.0.with(|published| Ok(published.status().iter().map(port_fields).collect())))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.take().map(Published::close));
    }
}

/// The handle of services of the host.
#[pyclass(frozen, name = "_ExposedServices", module = "gpucontainer._native")]
pub(crate) struct ExposedHandle(Slot<ExposedServices>);

#[pymethods]
impl ExposedHandle {
    fn services(&self) -> PyResult<Vec<ServiceStatusFields>> {
        ours(self.0.with(|exposed| Ok(exposed.status().iter().map(service_fields).collect())))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.0.take()));
    }
}
