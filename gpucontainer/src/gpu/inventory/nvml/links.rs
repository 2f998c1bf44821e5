//! What NVML says of the ways between GPUs.

use super::{Fault, kernel_bus_id};
use crate::gpu::inventory::{Fabric, Gpu, GpuPair, NvLink, NvLinkEnd, PciPath};
use crate::sys::nvml::facts;

use nvml_wrapper::enum_wrappers::device::{P2pCapabilitiesIndex, P2pStatus};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

/// NVML's own bound is 18; the rest is room for what comes.
const MAX_LINKS: u32 = 64;

/// The kinds of remote ends that have a name.
const GPU: u32 = 0;
const SWITCH: u32 = 2;

/// The links of a GPU that are up.
pub(super) fn nvlinks(nvml: &Nvml, device: &Device<'_>, note: &mut impl FnMut(&str, Fault)) -> Vec<NvLink> {
    let mut links = Vec::new();
    for number in 0..MAX_LINKS {
        match device.link_wrapper_for(number).is_active() {
            Ok(true) => links.push(NvLink { number, end: end(nvml, device, number, note) }),
            Ok(false) => {}
            // The first number that the model does not have ends the list.
            Err(NvmlError::InvalidArg) => break,
            Err(e) => {
                note("nvmlDeviceGetNvLinkState", e.into());
                break;
            }
        }
    }
    links
}

fn end(nvml: &Nvml, device: &Device<'_>, number: u32, note: &mut impl FnMut(&str, Fault)) -> NvLinkEnd {
    let bus_id = match device.link_wrapper_for(number).remote_pci_info() {
        Ok(info) => kernel_bus_id(&info.bus_id),
        Err(e) => {
            note("nvmlDeviceGetNvLinkRemotePciInfo", e.into());
            None
        }
    };
    match (facts::remote_kind(nvml, device, number), bus_id) {
        (Ok(GPU), Some(bus_id)) => NvLinkEnd::Gpu(bus_id),
        (Ok(SWITCH), Some(bus_id)) => NvLinkEnd::Switch(bus_id),
        (Ok(_), _) => NvLinkEnd::Other,
        // Drivers before version 455 have no such call; a GPU is known by its address: see `name_ends`.
        (Err(e), bus_id) => {
            note("nvmlDeviceGetNvLinkRemoteDeviceType", e.into());
            bus_id.map_or(NvLinkEnd::Other, NvLinkEnd::Switch)
        }
    }
}

/// Calls the ends that are GPUs of this host by that name, where the driver did not.
pub(super) fn name_ends(gpus: &mut [Gpu]) {
    let addresses: Vec<String> = gpus.iter().map(|gpu| gpu.pci_bus_id.clone()).collect();
    for link in gpus.iter_mut().flat_map(|gpu| &mut gpu.nvlinks) {
        if let NvLinkEnd::Switch(address) = &link.end {
            if addresses.contains(address) {
                link.end = NvLinkEnd::Gpu(address.clone());
            }
        }
    }
}

/// The fabric that a GPU has joined.
pub(super) fn fabric(nvml: &Nvml, device: &Device<'_>, note: &mut impl FnMut(&str, Fault)) -> Option<Fabric> {
    match facts::fabric(nvml, device) {
        Ok(state) if state.joined => {
            let cluster = state.cluster.iter().map(|byte| format!("{byte:02x}")).collect();
            Some(Fabric { cluster, clique: state.clique })
        }
        Ok(_) => None,
        Err(e) => {
            note("nvmlDeviceGetGpuFabricInfoV", e.into());
            None
        }
    }
}

/// What lies between each two of the GPUs, of which each comes with its handle.
pub(super) fn pairs(nvml: &Nvml, gpus: &[(&Gpu, Device<'_>)], problems: &mut Vec<String>) -> Vec<GpuPair> {
    let mut pairs = Vec::new();
    for (first, (one, device)) in gpus.iter().enumerate() {
        for (second, (other, other_device)) in gpus.iter().enumerate().skip(first + 1) {
            let mut note = |call: &str, e: NvmlError| {
                if !matches!(e, NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) {
                    problems.push(format!("GPU {} and {}: {call}: {e}", one.index, other.index));
                }
            };
            let level = facts::common_ancestor(nvml, device, other_device);
            let level = level.map_err(|e| note("nvmlDeviceGetTopologyCommonAncestor", e)).ok();
            let status = device.p2p_status(other_device, P2pCapabilitiesIndex::NvLink);
            let nvlink = match status {
                Ok(P2pStatus::Ok) => Some(true),
                Ok(P2pStatus::Unknown) => None,
                Ok(_) => Some(false),
                Err(e) => {
                    note("nvmlDeviceGetP2PStatus", e);
                    None
                }
            };
            pairs.push(GpuPair { first, second, path: level.and_then(path), nvlink });
        }
    }
    pairs
}

fn path(level: u32) -> Option<PciPath> {
    Some(match level {
        0 => PciPath::Board,
        10 => PciPath::OneSwitch,
        20 => PciPath::Switches,
        30 => PciPath::HostBridge,
        40 => PciPath::NumaNode,
        50 => PciPath::System,
        _ => return None,
    })
}
