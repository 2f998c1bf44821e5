//! Requests that name devices of specifications.

use crate::error::Result;
use crate::gpu::cdi::catalogue::Catalogue;
use crate::gpu::cdi::hooks::VendorHooks;
use crate::gpu::cdi::names::DeviceName;
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::grant::GpuGrant;
use crate::gpu::request::{GpuName, GpuRequest, Which};

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How a request wants specifications to be read.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Reading {
    /// The usual ones if `None`.
    directories: Option<Vec<PathBuf>>,
    vendor_hooks: VendorHooks,
}

impl GpuRequest {
    /// Looks for CDI specifications in these directories, a later one over an earlier one, in place of
    /// `/etc/cdi` and `/var/run/cdi`.
    pub fn cdi_directories<P: Into<PathBuf>>(mut self, directories: impl IntoIterator<Item = P>) -> Self {
        self.reading.directories = Some(directories.into_iter().map(Into::into).collect());
        self
    }

    /// Says what becomes of programs that CDI specifications of other vendors than NVIDIA want to be run on the host.
    /// By default a device with such a program is refused.
    pub fn vendor_hooks(mut self, hooks: VendorHooks) -> Self {
        self.reading.vendor_hooks = hooks;
        self
    }

    /// The devices of specifications that are named, and what else is asked for, if anything is.
    pub(crate) fn split(&self) -> (Vec<DeviceName>, Option<Self>) {
        let Which::Named(names) = self.which() else { return (Vec::new(), Some(self.clone())) };
        let (mut described, mut others) = (Vec::new(), Vec::new());
        for name in names {
            match name {
                GpuName::Cdi(name) => described.push(name.clone()),
                other => others.push(other.clone()),
            }
        }
        let rest = (!others.is_empty()).then(|| self.clone().only(others));
        (described, rest)
    }

    /// Whether anything but devices of specifications is named.
    pub(crate) fn needs_inventory(&self) -> bool {
        self.split().1.is_some()
    }

    /// The grant for devices of specifications.
    pub(crate) fn grant_described(&self, names: &[DeviceName], driver_root: &DriverRoot) -> Result<GpuGrant> {
        self.catalogue().grant(names, self.reading.vendor_hooks, driver_root)
    }

    /// The specifications that count for this request, as they are now.
    pub(crate) fn catalogue(&self) -> Catalogue {
        match &self.reading.directories {
            Some(directories) => Catalogue::read_from(directories),
            None => Catalogue::read(),
        }
    }
}
