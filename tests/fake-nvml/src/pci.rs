//! Where devices are on the bus.

use crate::abi::{self, Handle, Return, UNKNOWN, put};

use std::ffi::{c_char, c_uint};

/// A bus address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Address {
    pub(crate) domain: u32,
    pub(crate) bus: u32,
    pub(crate) device: u32,
}

impl Address {
    /// Reads `0000:07:00.0`, or the same with a domain of eight digits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let number = |digits: &str| u32::from_str_radix(digits, 16).ok();
        let (domain, bus) = (number(parts.next()?)?, number(parts.next()?)?);
        let device = number(parts.next()?.split('.').next()?)?;
        Some(Self { domain, bus, device })
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct PciInfo {
    legacy_bus_id: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    device_id: c_uint,
    subsystem_id: c_uint,
    bus_id: [c_char; 32],
}

fn text<const N: usize>(text: &str) -> [c_char; N] {
    let mut bytes = [0; N];
    for (place, byte) in bytes.iter_mut().take(N - 1).zip(text.bytes()) {
        *place = c_char::from_ne_bytes([byte]);
    }
    bytes
}

/// What NVML tells of a bus address; one that is none is passed on as it stands.
pub(crate) fn info(bus_id: &str, device_id: u32) -> PciInfo {
    let (address, long) = match Address::parse(bus_id) {
        Some(address @ Address { domain, bus, device }) => (address, format!("{domain:08X}:{bus:02X}:{device:02X}.0")),
        None => (Address { domain: 0, bus: 0, device: 0 }, bus_id.to_owned()),
    };
    PciInfo {
        legacy_bus_id: text(bus_id),
        domain: address.domain,
        bus: address.bus,
        device: address.device,
        device_id,
        subsystem_id: 0,
        bus_id: text(&long),
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPciInfo_v3(device: Handle, pci: *mut PciInfo) -> Return {
    abi::device("nvmlDeviceGetPciInfo_v3", device, |target| {
        if target.slice.is_some() {
            return UNKNOWN;
        }
        put(pci, info(&target.gpu.pci_bus_id, target.gpu.pci_device_id))
    })
}
