//! Facts about GPUs whose calls the safe wrapper lacks, or gets wrong.

use nvml_wrapper::error::{NvmlError, nvml_try, nvml_try_count};
use nvml_wrapper::{Device, Nvml};

use std::fmt::Display;

/// Pages retired because of several single-bit errors each.
pub(crate) const SINGLE_BIT_ERRORS: u32 = 0;
/// Pages retired because of one double-bit error each.
pub(crate) const DOUBLE_BIT_ERROR: u32 = 1;

/// The size of the second form of the fabric structure, with the number of the form in the highest byte.
/// It is the oldest form, and every driver that has the call takes it.
const FABRIC_FORM: u32 = 36 | 2 << 24;
/// The GPU has been taken into the fabric, or been refused, as the status says.
const FABRIC_COMPLETED: u8 = 3;

/// What the driver says of the fabric of a GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FabricState {
    pub(crate) cluster: [u8; 16],
    pub(crate) clique: u32,
    pub(crate) joined: bool,
}

/// Counts of replaced rows, and whether some wait or could not be replaced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) correctable: u32,
    pub(crate) uncorrectable: u32,
    pub(crate) pending: bool,
    pub(crate) failed: bool,
}

fn symbol<T: Copy, E: Display>(symbol: &Result<T, E>) -> Result<T, NvmlError> {
    symbol.as_ref().copied().map_err(|e| NvmlError::FailedToLoadSymbol(e.to_string()))
}

/// An empty answer for a call, whose type only the call knows.
fn answer<D, T: Copy>(_call: unsafe extern "C" fn(D, *mut T) -> u32) -> T {
    // SAFETY: the answers of the calls below are structures of numbers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// The fabric that a GPU has joined or is to join.
pub(crate) fn fabric(nvml: &Nvml, device: &Device<'_>) -> Result<FabricState, NvmlError> {
    let call = symbol(&nvml.lib().nvmlDeviceGetGpuFabricInfoV)?;
    // SAFETY: the handle is used while `nvml`, which gave it out and which `device` borrows, is alive.
    let handle = unsafe { device.handle() };
    let mut info = answer(call);
    info.version = FABRIC_FORM;
    // SAFETY: the answer is good for the call, and larger than the form that is asked for.
    nvml_try(unsafe { call(handle, &mut info) })?;
    let joined = info.state == FABRIC_COMPLETED && info.status == 0;
    Ok(FabricState { cluster: info.clusterUuid, clique: info.cliqueId, joined })
}

/// What is at the other end of a link: 0 a GPU, 1 a processor of IBM's, 2 a switch, 255 something unknown.
///
/// The wrapper's own call loses the answer.
pub(crate) fn remote_kind(nvml: &Nvml, device: &Device<'_>, link: u32) -> Result<u32, NvmlError> {
    let call = symbol(&nvml.lib().nvmlDeviceGetNvLinkRemoteDeviceType)?;
    // SAFETY: as in `fabric`.
    let handle = unsafe { device.handle() };
    let mut kind = 255;
    // SAFETY: the pointer is good for the call.
    nvml_try(unsafe { call(handle, link, &mut kind) })?;
    Ok(kind)
}

/// The level of the bus at which two GPUs meet: 0 to 50. The wrapper's own call consumes a handle.
pub(crate) fn common_ancestor(nvml: &Nvml, one: &Device<'_>, other: &Device<'_>) -> Result<u32, NvmlError> {
    let call = symbol(&nvml.lib().nvmlDeviceGetTopologyCommonAncestor)?;
    // SAFETY: as in `fabric`.
    let one = unsafe { one.handle() };
    // SAFETY: as in `fabric`.
    let other = unsafe { other.handle() };
    let mut level = 0;
    // SAFETY: the pointer is good for the call.
    nvml_try(unsafe { call(one, other, &mut level) })?;
    Ok(level)
}

/// The rows of memory that were replaced.
pub(crate) fn remapped_rows(nvml: &Nvml, device: &Device<'_>) -> Result<Rows, NvmlError> {
    let call = symbol(&nvml.lib().nvmlDeviceGetRemappedRows)?;
    // SAFETY: as in `fabric`.
    let handle = unsafe { device.handle() };
    let (mut correctable, mut uncorrectable, mut pending, mut failed) = (0, 0, 0, 0);
    // SAFETY: the four pointers are good for the call.
    nvml_try(unsafe { call(handle, &mut correctable, &mut uncorrectable, &mut pending, &mut failed) })?;
    Ok(Rows { correctable, uncorrectable, pending: pending != 0, failed: failed != 0 })
}

/// How many pages were retired for a cause. The wrapper would list each with its time.
pub(crate) fn retired_pages(nvml: &Nvml, device: &Device<'_>, cause: u32) -> Result<u32, NvmlError> {
    let call = symbol(&nvml.lib().nvmlDeviceGetRetiredPages)?;
    // SAFETY: as in `fabric`.
    let handle = unsafe { device.handle() };
    let (mut count, mut address) = (0, 0);
    // SAFETY: both pointers are good for the call, which writes no address as there is room for none.
    nvml_try_count(unsafe { call(handle, cause, &mut count, &mut address) })?;
    Ok(count)
}

/// The clients of the MPS server on a GPU, at most `room` of them.
///
/// The wrapper's own call believes the library's count of what it wrote.
pub(crate) fn mps_processes(nvml: &Nvml, device: &Device<'_>, room: u32) -> Result<Vec<u32>, NvmlError> {
    let call = symbol(&nvml.lib().nvmlDeviceGetMPSComputeRunningProcesses_v3)?;
    // SAFETY: as in `fabric`.
    let handle = unsafe { device.handle() };
    let mut count = 0;
    // SAFETY: the count is good for the call, which writes no list as there is room for none.
    nvml_try_count(unsafe { call(handle, &mut count, std::ptr::null_mut()) })?;
    if count == 0 {
        return Ok(Vec::new());
    }
    if count > room {
        return Err(NvmlError::InsufficientSize(None));
    }
    // Some may have come since.
    count += 8;
    let size = usize::try_from(count).unwrap_or(0);
    // SAFETY: an entry is a structure of numbers, for which zero is a value.
    let mut list = vec![unsafe { std::mem::zeroed() }; size];
    // SAFETY: the list has room for as many entries as the count says.
    nvml_try(unsafe { call(handle, &mut count, list.as_mut_ptr()) })?;
    let written = usize::try_from(count).unwrap_or(0);
    Ok(list.iter().take(written).map(|process| process.pid).collect())
}
