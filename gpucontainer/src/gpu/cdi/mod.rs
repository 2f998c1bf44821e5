//! The Container Device Interface: descriptions of devices of any vendor, in files.
//!
//! # References
//! <https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>

mod names;

pub use names::DeviceName;
