//! What is in a specification, as the format has it.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::cdi::{check, version, yaml};
use crate::sys::fs;

use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// No specification is larger, in bytes: those of hosts with 16 split GPUs have some 100 KiB.
const LARGEST: u64 = 4 << 20;

/// A specification: devices of one vendor and class, and what a container needs to use them.
///
/// Field names that the format does not have are errors, as in the reference implementation.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[non_exhaustive]
pub struct Spec {
    /// The version of the format, `0.3.0` to `1.1.0`.
    pub cdi_version: String,
    /// Vendor and class, as in `nvidia.com/gpu`.
    pub kind: String,
    /// Notes for programs.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The devices.
    #[serde(default, deserialize_with = "or_default")]
    pub devices: Vec<Device>,
    /// What a container gets once if it gets any of the devices.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "ContainerEdits::is_empty")]
    pub container_edits: ContainerEdits,
}

/// One device, or several under one name.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[non_exhaustive]
pub struct Device {
    /// The name, unique among those of its kind.
    pub name: String,
    /// Notes for programs.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What a container gets with it.
    #[serde(default, deserialize_with = "or_default")]
    pub container_edits: ContainerEdits,
}

/// What is changed about a container.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[non_exhaustive]
pub struct ContainerEdits {
    /// Variables, as `NAME=value`.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Device nodes.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub device_nodes: Vec<DeviceNode>,
    /// Network interfaces of the host that move into the container.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub net_devices: Vec<NetDevice>,
    /// Files and directories of the host.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Programs to execute.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// Cache and memory bandwidth of Intel's processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intel_rdt: Option<IntelRdt>,
    /// Further groups of the application.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

impl ContainerEdits {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A device node.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[non_exhaustive]
pub struct DeviceNode {
    /// Where it goes in the container.
    pub path: String,
    /// Where it is on the host, if that is another path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
    /// `c`, `u` (as `c`), `b` or `p`; as the host has it if left out.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The major number; as the host has it if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    /// The minor number; with a major number, 0 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    /// Permission bits, as a number; as the host has them if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    /// What the device filter allows, of `r`, `w` and `m`, or `none`; all of it if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    /// The owner; the application's user if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The group; the application's if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}

/// A network interface of the host that moves into the container.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[non_exhaustive]
pub struct NetDevice {
    /// Its name on the host.
    pub host_interface_name: String,
    /// Its name in the container.
    pub name: String,
}

/// A file or directory of the host.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[non_exhaustive]
pub struct Mount {
    /// What to mount.
    pub host_path: String,
    /// Where it goes.
    pub container_path: String,
    /// Options, as `mount(8)` names them.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// The type of the mount, `bind` if left out.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// A program to execute while a container is made.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[non_exhaustive]
pub struct Hook {
    /// When: `prestart`, `createRuntime`, `createContainer`, `startContainer`, `poststart` or `poststop`.
    pub hook_name: String,
    /// The program.
    pub path: String,
    /// Its arguments, its own name first.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its environment, as `NAME=value`.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// After so many seconds it is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
}

/// Cache and memory bandwidth of Intel's processors.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[non_exhaustive]
pub struct IntelRdt {
    /// The class of service.
    #[serde(default, rename = "closID", skip_serializing_if = "Option::is_none")]
    pub clos_id: Option<String>,
    /// The share of the third-level cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l3_cache_schema: Option<String>,
    /// The share of the memory bandwidth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_bw_schema: Option<String>,
    /// Lines for the class's schemata.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub schemata: Vec<String>,
    /// Whether the class is monitored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_monitoring: Option<bool>,
    /// Whether cache use is monitored; before version 1.1.0.
    #[serde(default, rename = "enableCMT", skip_serializing_if = "Option::is_none")]
    pub enable_cmt: Option<bool>,
    /// Whether bandwidth is monitored; before version 1.1.0.
    #[serde(default, rename = "enableMBM", skip_serializing_if = "Option::is_none")]
    pub enable_mbm: Option<bool>,
}

/// `null` stands for nothing, as in the reference implementation.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Spec {
    /// Reads a specification in JSON and checks all of it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for anything that the format does not allow in the version that it states.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::checked(serde_json::from_str(text).map_err(malformed)?)
    }

    /// Reads a specification in YAML and checks all of it.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn from_yaml(text: &str) -> Result<Self> {
        let value = yaml::parse(text).map_err(malformed)?;
        Self::checked(serde_json::from_value(value).map_err(malformed)?)
    }

    /// Reads a file: JSON if its name ends so, else YAML.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json), and those of reading the file.
    pub fn read(path: &Path) -> Result<Self> {
        let wanted = || format!("read device specification {}", path.display());
        let facts = fs::metadata(path).with_context(wanted)?;
        if !facts.is_file() || facts.len() > LARGEST {
            let why = "it is no regular file of at most 4 MiB";
            return Err(Error::new(ErrorKind::InvalidArgument, why).with_path(path)).with_context(wanted);
        }
        let text = fs::read_to_string(path).with_context(wanted)?;
        let json = path.extension().is_some_and(|extension| extension == "json");
        let spec = if json { Self::from_json(&text) } else { Self::from_yaml(&text) };
        spec.map_err(|error| error.with_path(path)).with_context(wanted)
    }

    /// The specification in JSON, with the lines that people expect.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] if it breaks a rule of the format.
    pub fn to_json(&self) -> Result<String> {
        check::spec(self).map_err(malformed)?;
        let mut text = serde_json::to_string_pretty(self).map_err(malformed)?;
        text.push('\n');
        Ok(text)
    }

    /// Writes the specification in JSON to `path`, whole or not at all; a file that is there is replaced.
    ///
    /// Other engines read the directories `/etc/cdi` and `/var/run/cdi`, and of them names that end in `.json`.
    ///
    /// # Errors
    /// As [`to_json`](Self::to_json), and those of writing the file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let wanted = || format!("write device specification {}", path.display());
        let text = self.to_json().with_context(wanted)?;
        // Readers take no notice of a name with this ending.
        let temporary = path.with_extension(format!("{}.new", fs::unique()));
        fs::write_durable(&temporary, text.as_bytes()).with_context(wanted)?;
        fs::rename(&temporary, path).with_context(wanted)
    }

    /// The lowest version of the format that has all that is used here.
    pub fn minimum_version(&self) -> &'static str {
        version::minimum(self)
    }

    fn checked(self) -> Result<Self> {
        check::spec(&self).map_err(malformed)?;
        Ok(self)
    }
}

fn malformed(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidArgument, why.to_string())
}
