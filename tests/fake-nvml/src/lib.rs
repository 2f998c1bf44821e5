//! A stand-in for NVIDIA's management library, for tests only.
//!
//! It answers for a machine that a JSON file describes: `fake-nvml.json` beside the library, or else
//! the file that the variable `FAKE_NVML_PROFILE` names. Copies of the library in different
//! directories are different libraries to the loader, so one process can see several machines.
//!
//! The file is the state of the machine, which all processes share: see `state.rs`.
//! It may hold lies and faults: see `profile.rs`. Nothing here is fit for a real host.

#![allow(unsafe_code, reason = "a C interface, whose callers own the memory behind its pointers")]
#![allow(non_snake_case, reason = "the names are those of NVIDIA's interface")]

mod abi;
mod capabilities;
mod device;
mod events;
mod fabric;
mod health;
mod instances;
mod memory;
mod mig;
mod pci;
mod processes;
mod profile;
mod state;
mod system;
mod topology;
