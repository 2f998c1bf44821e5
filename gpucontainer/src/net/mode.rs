//! How a port of a container comes to be on the host.

use std::fmt;

/// How clients of a published port reach the program in the container.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum PortMode {
    /// Whatever costs least: relayed until the program binds the port and [injected](Self::Inject) from then on, where
    /// that is possible. [`PortStatus::why`](super::PortStatus::why) says what it came to. The default.
    #[default]
    Auto,
    /// The program finds the host's listening socket among its descriptors, as `LISTEN_FDS` says, and takes clients
    /// from it at the speed of the host. For programs that know socket activation.
    HandOver,
    /// The program's `bind(2)` is answered with a socket of the host, which then takes clients at the speed of the host.
    /// The program need not know; one that asks its socket for its address is told the host's.
    Inject,
    /// One thread of this process passes everything on.
    Relay,
}

impl fmt::Display for PortMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::HandOver => "hand over",
            Self::Inject => "inject",
            Self::Relay => "relay",
        })
    }
}
