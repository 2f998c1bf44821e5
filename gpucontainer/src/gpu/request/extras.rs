//! Parts of NVIDIA's software beside the driver that containers may be given.

use crate::error::{Error, ErrorKind, Result};

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::str::FromStr;

/// A part of NVIDIA's software that has devices of its own, or a right that a device stands for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DriverExtra {
    /// GPUDirect Storage: `/dev/nvidia-fs*`, with `/run/udev` and `/etc/cufile.json`.
    Gds,
    /// The network cards of GPUDirect RDMA: `/dev/infiniband/uverbs*` and `rdma_cm`.
    Mofed,
    /// Copies by the processor into a GPU's memory: `/dev/gdrdrv`.
    GdrCopy,
    /// The switches between GPUs: `/dev/nvidia-nvswitch*`.
    NvSwitch,
    /// The right to make and destroy MIG devices, of every GPU that the container has a node of, whoever uses them: the
    /// driver's capability `mig/config`. It lets nobody use what it makes; that takes `CAP_SYS_ADMIN`, without which
    /// NVIDIA's own tools refuse it.
    ///
    /// An image does not get it by asking.
    #[serde(rename = "mig-config")]
    MigConfig,
    /// The right to look at MIG devices that the container was not granted: the driver's capability `mig/monitor`.
    ///
    /// An image does not get it by asking.
    #[serde(rename = "mig-monitor")]
    MigMonitor,
}

impl DriverExtra {
    /// Every one, in the order of their declaration.
    pub const ALL: [Self; 6] =
        [Self::Gds, Self::Mofed, Self::GdrCopy, Self::NvSwitch, Self::MigConfig, Self::MigMonitor];

    /// The variable that asks for it: by the value `enabled`, for the rights about MIG devices by `all`.
    pub fn variable(self) -> &'static str {
        match self {
            Self::Gds => "NVIDIA_GDS",
            Self::Mofed => "NVIDIA_MOFED",
            Self::GdrCopy => "NVIDIA_GDRCOPY",
            Self::NvSwitch => "NVIDIA_NVSWITCH",
            Self::MigConfig => "NVIDIA_MIG_CONFIG_DEVICES",
            Self::MigMonitor => "NVIDIA_MIG_MONITOR_DEVICES",
        }
    }

    /// The driver's capability, below `mig`, if it is a right.
    pub(in crate::gpu) fn right(self) -> Option<&'static str> {
        match self {
            Self::MigConfig => Some("config"),
            Self::MigMonitor => Some("monitor"),
            _ => None,
        }
    }
}

impl FromStr for DriverExtra {
    type Err = Error;

    /// Reads `gds`, `mofed`, `gdrcopy`, `nvswitch`, `mig-config` or `mig-monitor`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for anything else.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "gds" => Ok(Self::Gds),
            "mofed" => Ok(Self::Mofed),
            "gdrcopy" => Ok(Self::GdrCopy),
            "nvswitch" => Ok(Self::NvSwitch),
            "mig-config" => Ok(Self::MigConfig),
            "mig-monitor" => Ok(Self::MigMonitor),
            other => Err(Error::new(ErrorKind::InvalidArgument, format!("no extra of the driver is called {other:?}"))),
        }
    }
}

/// The highest channel of IMEX: the kernel's minor numbers have 20 bits, and one beyond would be another's.
pub(in crate::gpu) const MAX_CHANNEL: u32 = (1 << 20) - 1;

/// All that is asked for beside the driver.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(in crate::gpu) struct Extras {
    pub(in crate::gpu) parts: BTreeSet<DriverExtra>,
    pub(in crate::gpu) channels: Channels,
}

/// Channels of IMEX.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::gpu) enum Channels {
    Numbered(BTreeSet<u32>),
    /// Every one that the host has a node of.
    All,
}

impl Default for Channels {
    fn default() -> Self {
        Self::Numbered(BTreeSet::new())
    }
}
