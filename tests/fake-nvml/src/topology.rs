//! How devices are connected.

use crate::abi::{self, Handle, INVALID_ARGUMENT, Return, count, place, put, target};
use crate::pci::{self, Address, PciInfo};

use std::ffi::c_uint;

/// Kinds of remote ends of a link.
const REMOTE_GPU: c_uint = 0;
const REMOTE_SWITCH: c_uint = 2;

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTopologyCommonAncestor(one: Handle, other: Handle, level: *mut c_uint) -> Return {
    abi::machine("nvmlDeviceGetTopologyCommonAncestor", |machine| {
        let (Some(one), Some(other)) = (target(machine, one), target(machine, other)) else { return INVALID_ARGUMENT };
        let (one, other) = (count(one.index), count(other.index));
        let listed =
            machine.topology.pairs.iter().find(|(a, b, _)| (*a, *b) == (one, other) || (*b, *a) == (one, other));
        let known = if one == other { 0 } else { listed.map_or(machine.topology.default, |(_, _, level)| *level) };
        put(level, known)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNvLinkState(device: Handle, link: c_uint, active: *mut c_uint) -> Return {
    abi::device("nvmlDeviceGetNvLinkState", device, |target| match target.gpu.nvlinks.get(place(link)) {
        Some(remote) => put(active, c_uint::from(!remote.is_empty())),
        None => INVALID_ARGUMENT,
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNvLinkRemotePciInfo_v2(device: Handle, link: c_uint, info: *mut PciInfo) -> Return {
    abi::device("nvmlDeviceGetNvLinkRemotePciInfo_v2", device, |target| match target.gpu.nvlinks.get(place(link)) {
        Some(remote) if !remote.is_empty() => put(info, pci::info(remote, 0)),
        _ => INVALID_ARGUMENT,
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNvLinkRemoteDeviceType(device: Handle, link: c_uint, kind: *mut c_uint) -> Return {
    abi::device("nvmlDeviceGetNvLinkRemoteDeviceType", device, |target| match target.gpu.nvlinks.get(place(link)) {
        Some(remote) if !remote.is_empty() => {
            let address = Address::parse(remote);
            let gpu = target.machine.gpus.iter().any(|gpu| Address::parse(&gpu.pci_bus_id) == address);
            put(kind, if gpu { REMOTE_GPU } else { REMOTE_SWITCH })
        }
        _ => INVALID_ARGUMENT,
    })
}
