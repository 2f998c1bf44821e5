//! How the GPUs of a host reach each other, as the driver and the kernel tell it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What is at the other end of an NVLink, with its bus address as the kernel writes it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NvLinkEnd {
    /// Another GPU, directly.
    Gpu(String),
    /// A switch; GPUs that reach the same switches reach each other through them.
    Switch(String),
    /// Something else, or the driver does not say.
    Other,
}

/// A link of a GPU that is up.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct NvLink {
    /// The number of the link on its GPU, from 0.
    pub number: u32,
    /// Where it leads.
    pub end: NvLinkEnd,
}

/// The NVLink fabric that a GPU has joined: GPUs of one cluster and one clique reach each other.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Fabric {
    /// The identifier of the cluster, 32 hexadecimal digits; all zero where the fabric is within one host.
    pub cluster: String,
    /// The number of the clique within the cluster.
    pub clique: u32,
}

/// The way between two GPUs over PCI Express, the shortest first.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PciPath {
    /// Both are on one board.
    Board,
    /// One switch.
    OneSwitch,
    /// Several switches, without the host bridge.
    Switches,
    /// The host bridge of one processor.
    HostBridge,
    /// Several host bridges of one NUMA node.
    NumaNode,
    /// The link between NUMA nodes.
    System,
}

impl PciPath {
    /// The abbreviation that NVIDIA's tools use: `INT`, `PIX`, `PXB`, `PHB`, `NODE` or `SYS`.
    pub fn abbreviation(self) -> &'static str {
        match self {
            Self::Board => "INT",
            Self::OneSwitch => "PIX",
            Self::Switches => "PXB",
            Self::HostBridge => "PHB",
            Self::NumaNode => "NODE",
            Self::System => "SYS",
        }
    }
}

impl fmt::Display for PciPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Board => "one board",
            Self::OneSwitch => "one PCIe switch",
            Self::Switches => "several PCIe switches",
            Self::HostBridge => "one host bridge",
            Self::NumaNode => "one NUMA node",
            Self::System => "the link between NUMA nodes",
        })
    }
}

/// What lies between two GPUs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GpuPair {
    /// The place of one GPU in [`Inventory::gpus`](super::Inventory::gpus).
    pub first: usize,
    /// The place of the other, greater than `first`.
    pub second: usize,
    /// The way over PCI Express; `None` if nobody says.
    pub path: Option<PciPath>,
    /// Whether the driver lets the two read each other's memory over NVLink; `None` if it does not say.
    pub nvlink: Option<bool>,
}
