//! The description of a machine.
//!
//! ```json
//! {
//!   "driver_version": "550.163.01", "nvml_version": "12.550.163.01", "cuda_version": 12040,
//!   "defaults": { "name": "NVIDIA T4" },
//!   "gpus": [ { "uuid": "GPU-…", "minor": 0, "pci_bus_id": "0000:3b:00.0" } ],
//!   "errors": { "nvmlInit_v2": 9 }
//! }
//! ```
//!
//! `defaults` are the fields that a GPU does not give. `errors` make a function fail with a code of
//! NVML's, for the whole machine or, within a GPU, for that GPU.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Machine {
    /// The driver root whose files follow what is made and destroyed.
    pub(crate) root: Option<PathBuf>,
    /// How often the machine was changed by a call.
    pub(crate) changes: u64,
    pub(crate) driver_version: String,
    pub(crate) nvml_version: String,
    /// 1000 × major + 10 × minor.
    pub(crate) cuda_version: i32,
    /// What the count says, if it lies.
    pub(crate) gpu_count: Option<u32>,
    pub(crate) gpus: Vec<Gpu>,
    pub(crate) errors: HashMap<String, u32>,
    pub(crate) topology: Topology,
    /// Events in the order in which a wait finds them.
    pub(crate) events: Vec<Event>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Gpu {
    pub(crate) uuid: String,
    pub(crate) name: String,
    /// Replaces the name by bytes that need not be UTF-8.
    pub(crate) name_bytes: Option<Vec<u8>>,
    pub(crate) minor: u32,
    pub(crate) pci_bus_id: String,
    pub(crate) pci_device_id: u32,
    pub(crate) memory: Memory,
    pub(crate) compute_capability: (i32, i32),
    /// A number of NVML's: 2 is Tesla, 14 NVIDIA.
    pub(crate) brand: Option<u32>,
    /// First and last, inclusive.
    pub(crate) cpus: Vec<(u32, u32)>,
    /// The NUMA nodes of near memory; the first one is the GPU's own.
    pub(crate) memory_nodes: Vec<u32>,
    pub(crate) compute_processes: Vec<Process>,
    pub(crate) graphics_processes: Vec<Process>,
    /// Clients of the MPS server.
    pub(crate) mps_processes: Vec<Process>,
    /// What the count of processes says, if it lies.
    pub(crate) process_count: Option<u32>,
    pub(crate) mig: Option<Mig>,
    /// Whether it fell off the bus.
    pub(crate) lost: bool,
    /// The remote end of each link: the bus address of a GPU or of a switch.
    pub(crate) nvlinks: Vec<String>,
    pub(crate) fabric: Option<Fabric>,
    pub(crate) health: Health,
    pub(crate) errors: HashMap<String, u32>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Fabric {
    /// 32 hexadecimal digits.
    pub(crate) cluster: String,
    pub(crate) clique: u32,
    /// 3 is complete.
    pub(crate) state: u8,
    /// A code of NVML's, once it is complete.
    pub(crate) status: u32,
}

/// What is left out is not supported by the model.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Health {
    pub(crate) uncorrectable_errors: Option<u64>,
    pub(crate) lifetime_uncorrectable_errors: Option<u64>,
    pub(crate) retired_single: Option<u32>,
    pub(crate) retired_double: Option<u32>,
    pub(crate) retirement_pending: Option<bool>,
    pub(crate) remapped_rows: Option<RemappedRows>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RemappedRows {
    pub(crate) correctable: u32,
    pub(crate) uncorrectable: u32,
    pub(crate) pending: bool,
    pub(crate) failed: bool,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) reserved: u64,
    pub(crate) used: u64,
    /// What is said to be free, if it is not the rest.
    pub(crate) free: Option<u64>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    #[serde(default)]
    pub(crate) memory: u64,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Mig {
    pub(crate) enabled: bool,
    /// Whether a change of the mode takes a reset of the GPU first, as on the A100.
    pub(crate) needs_reset: bool,
    /// Whether the other mode was asked for, and waits for a reset.
    pub(crate) pending: bool,
    /// Places for slices; 7 on the GPUs of this time.
    pub(crate) places: u32,
    /// What GPU instances can be made.
    pub(crate) profiles: Vec<Profile>,
    /// The GPU instances that are there.
    pub(crate) gpu_instances: Vec<GpuInstance>,
    pub(crate) devices: Vec<Slice>,
    /// How many compute instances were ever made.
    pub(crate) made: u64,
    /// Whether a device has the identifier of the one that was at its place before.
    pub(crate) same_uuids: bool,
}

/// A kind of GPU instance.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Profile {
    /// Its place in NVML's list of all profiles there are.
    pub(crate) number: u32,
    pub(crate) id: u32,
    /// As in `1g.10gb`.
    pub(crate) name: String,
    pub(crate) slices: u32,
    pub(crate) instances: u32,
    pub(crate) multiprocessors: u32,
    pub(crate) memory_mib: u64,
    /// How many places it takes, and where it may start.
    pub(crate) size: u32,
    pub(crate) starts: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct GpuInstance {
    pub(crate) id: u32,
    /// The identifier of its profile.
    pub(crate) profile: u32,
    pub(crate) start: u32,
    pub(crate) size: u32,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Slice {
    pub(crate) uuid: String,
    /// As in `1g.10gb`.
    pub(crate) profile: String,
    /// Which of the places it takes.
    pub(crate) place: u32,
    pub(crate) gpu_instance: u32,
    pub(crate) compute_instance: u32,
    pub(crate) memory: Memory,
    pub(crate) multiprocessors: u32,
    pub(crate) gpu_slices: u32,
    pub(crate) compute_processes: Vec<Process>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Topology {
    /// The level of pairs that are not listed; 50 is different NUMA nodes.
    pub(crate) default: u32,
    /// Whether GPUs with links reach each other over them; left out, the driver does not say.
    pub(crate) nvlink: Option<bool>,
    /// Two indices and the level of their common ancestor.
    pub(crate) pairs: Vec<(u32, u32, u32)>,
}

impl Default for Topology {
    fn default() -> Self {
        Self { default: 50, nvlink: None, pairs: Vec::new() }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Event {
    pub(crate) gpu: u32,
    /// A type of NVML's: 8 is a critical XID.
    pub(crate) kind: u64,
    pub(crate) data: u64,
}

/// Reads the description of a machine.
pub(crate) fn parse(text: &str) -> Result<Machine, serde_json::Error> {
    let mut value: Value = serde_json::from_str(text)?;
    let defaults = value.as_object_mut().and_then(|machine| machine.remove("defaults"));
    if let (Some(Value::Object(defaults)), Some(Value::Array(gpus))) = (defaults, value.get_mut("gpus")) {
        for gpu in gpus.iter_mut().filter_map(Value::as_object_mut) {
            for (name, default) in &defaults {
                gpu.entry(name.clone()).or_insert_with(|| default.clone());
            }
        }
    }
    serde_json::from_value(value)
}
