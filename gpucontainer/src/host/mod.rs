//! What this host can do.
//!
//! Nothing is changed by asking: no process is forked, nothing mounted, no module loaded.

mod facts;
mod kernel;

use crate::gpu::Inventory;
use crate::image::ImageStore;

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// Something that the host has or lacks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Capability {
    /// A name that stays the same in later versions, as in `user-namespaces`.
    pub name: String,
    /// Whether the host has it, for this user.
    pub available: bool,
    /// How it has it, or why it lacks it.
    pub detail: String,
}

/// What this host can do, for the user who asks; a snapshot.
///
/// ```
/// let host = gpucontainer::Host::probe();
/// println!("{host}");
/// if !host.has("user-namespaces") {
///     println!("containers need root here");
/// }
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Host {
    version: String,
    kernel: String,
    architecture: String,
    user: u32,
    store: Option<PathBuf>,
    capabilities: Vec<Capability>,
    gpus: Inventory,
}

impl Host {
    /// Looks at everything that matters to a container.
    ///
    /// Takes about a millisecond, and as long as [`Inventory::discover`] takes.
    /// What cannot be found out is reported as not available, with the reason.
    pub fn probe() -> Self {
        let gpus = Inventory::discover();
        let store = ImageStore::default_path();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: crate::sys::probe::kernel_release(),
            architecture: std::env::consts::ARCH.to_owned(),
            user: crate::sys::probe::effective_user(),
            capabilities: facts::capabilities(store.as_deref(), &gpus),
            store: store.ok(),
            gpus,
        }
    }

    /// The version of this library.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The kernel's release, as in `6.12.5-amd64`.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// The machine's architecture, as in `x86_64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The effective user of this process.
    pub fn user(&self) -> u32 {
        self.user
    }

    /// Whether this process is the superuser's; if not, containers are made without root.
    pub fn is_root(&self) -> bool {
        self.user == 0
    }

    /// The directory of the user's images; it need not exist. `None` if the environment names none.
    pub fn store(&self) -> Option<&Path> {
        self.store.as_deref()
    }

    /// Everything that was looked for, in a fixed order.
    pub fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }

    /// The capability of that name, if it is one that is looked for.
    pub fn capability(&self, name: &str) -> Option<&Capability> {
        self.capabilities.iter().find(|capability| capability.name == name)
    }

    /// Whether the host has the capability of that name.
    pub fn has(&self, name: &str) -> bool {
        self.capability(name).is_some_and(|capability| capability.available)
    }

    /// The GPUs, and why there are none.
    pub fn gpus(&self) -> &Inventory {
        &self.gpus
    }
}

impl fmt::Display for Host {
    /// A table for people: one line for each capability and each GPU.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = if self.is_root() { "root".to_owned() } else { format!("user {}", self.user) };
        writeln!(f, "gpucontainer {} on Linux {} {}, as {user}", self.version, self.kernel, self.architecture)?;
        let width = self.capabilities.iter().map(|capability| capability.name.len()).max().unwrap_or(0);
        for Capability { name, available, detail } in &self.capabilities {
            let available = if *available { "yes" } else { "no" };
            writeln!(f, "  {available:<4}{name:<width$}  {detail}")?;
        }
        for gpu in self.gpus.gpus() {
            let memory = gpu
                .memory
                .map_or(String::new(), |memory| format!(", {} of {} MiB free", memory.free >> 20, memory.total >> 20));
            writeln!(f, "  {} GPU {}: {}{memory}, {}", gpu.vendor, gpu.index, gpu.name, gpu.uuid)?;
            for slice in &gpu.mig_devices {
                writeln!(f, "    {}:{}: {}, {}", gpu.index, slice.index, slice.profile, slice.uuid)?;
            }
        }
        for problem in self.gpus.problems() {
            writeln!(f, "  problem: {problem}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_has_a_name_of_its_own_and_a_detail() {
        let host = Host::probe();
        for (place, Capability { name, detail, .. }) in host.capabilities().iter().enumerate() {
            assert!(
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
                "{name}"
            );
            assert!(!detail.is_empty() && !detail.contains('\n'), "{name}: {detail:?}");
            let others = host.capabilities().iter().skip(place + 1);
            assert!(others.into_iter().all(|other| other.name != *name), "{name} comes twice");
        }
        let table = host.to_string();
        assert!(host.capabilities().iter().all(|capability| table.contains(&capability.name)), "{table}");
        let text = serde_json::to_string(&host).unwrap();
        assert_eq!(serde_json::from_str::<Host>(&text).unwrap(), host);
        assert!(!host.has("no-such-thing"));
    }
}
