//! Ports and services with their counters, as JSON.

use gpucontainer::net::{PortStatus, PublishedPort, ServiceStatus};
use serde_json::{Value, json};

/// A published port with its counters, as all JSON of this library has it.
pub(crate) fn port_status(status: &PortStatus) -> Value {
    let mut all = port(&status.port);
    all["mode"] = status.mode.to_string().into();
    all["why"] = status.why.clone().into();
    all["accepted"] = status.accepted.into();
    all["open"] = status.open.into();
    all["refused"] = status.refused.into();
    all["bytes_in"] = status.bytes_in.into();
    all["bytes_out"] = status.bytes_out.into();
    all["last_error"] = status.last_error.clone().into();
    all
}

/// The same for a service of the host.
pub(crate) fn service_status(status: &ServiceStatus) -> Value {
    json!({
        "port": status.service.port(), "host": status.service.host().to_string(),
        "protocol": status.service.protocol().to_string(), "address": status.service.inside().map(|ip| ip.to_string()),
        "accepted": status.accepted, "open": status.open, "refused": status.refused,
        "bytes_in": status.bytes_in, "bytes_out": status.bytes_out, "last_error": status.last_error,
    })
}

/// A published port without them.
pub(crate) fn port(port: &PublishedPort) -> Value {
    json!({
        "container_port": port.container_port(), "host": port.host().to_string(),
        "hosts": port.hosts().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "count": port.count(), "protocol": port.protocol().to_string(),
    })
}
