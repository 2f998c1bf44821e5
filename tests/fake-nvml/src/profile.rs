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

use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Machine {
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

#[derive(Debug, Default, Deserialize)]
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
    /// First and last, inclusive.
    pub(crate) cpus: Vec<(u32, u32)>,
    pub(crate) compute_processes: Vec<Process>,
    pub(crate) graphics_processes: Vec<Process>,
    /// What the count of processes says, if it lies.
    pub(crate) process_count: Option<u32>,
    pub(crate) mig: Option<Mig>,
    /// The remote end of each link: the bus address of a GPU or of a switch.
    pub(crate) nvlinks: Vec<String>,
    pub(crate) errors: HashMap<String, u32>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) reserved: u64,
    pub(crate) used: u64,
    /// What is said to be free, if it is not the rest.
    pub(crate) free: Option<u64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    #[serde(default)]
    pub(crate) memory: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Mig {
    pub(crate) enabled: bool,
    /// Places for slices; 7 on the GPUs of this time.
    pub(crate) places: u32,
    pub(crate) devices: Vec<Slice>,
}

#[derive(Debug, Default, Deserialize)]
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

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Topology {
    /// The level of pairs that are not listed; 50 is different NUMA nodes.
    pub(crate) default: u32,
    /// Two indices and the level of their common ancestor.
    pub(crate) pairs: Vec<(u32, u32, u32)>,
}

impl Default for Topology {
    fn default() -> Self {
        Self { default: 50, pairs: Vec::new() }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Event {
    pub(crate) gpu: u32,
    /// A type of NVML's: 8 is a critical XID.
    pub(crate) kind: u64,
    pub(crate) data: u64,
}

/// Reads the machine's description, or says what is wrong with it.
pub(crate) fn load() -> Result<Machine, String> {
    let path = path().ok_or("neither fake-nvml.json beside the library nor FAKE_NVML_PROFILE")?;
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    parse(&text).map_err(|e| format!("{}: {e}", path.display()))
}

fn parse(text: &str) -> Result<Machine, serde_json::Error> {
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

fn path() -> Option<PathBuf> {
    let beside = own_file().map(|library| library.with_file_name("fake-nvml.json")).filter(|path| path.is_file());
    beside.or_else(|| std::env::var_os("FAKE_NVML_PROFILE").map(PathBuf::from))
}

/// The file that this code was loaded from: the one mapped where this function is.
fn own_file() -> Option<PathBuf> {
    let here = own_file as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (first, last) = line.split(' ').next()?.split_once('-')?;
        let range = usize::from_str_radix(first, 16).ok()?..usize::from_str_radix(last, 16).ok()?;
        let path = line.find('/').map(|start| PathBuf::from(&line[start..]))?;
        range.contains(&here).then_some(path)
    })
}
