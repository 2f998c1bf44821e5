//! The condition of a GPU.

use crate::abi::{
    self, Handle, INSUFFICIENT_SIZE, INVALID_ARGUMENT, NOT_SUPPORTED, Return, SUCCESS, get, place, put, put_list,
};

use std::ffi::{c_uint, c_ulonglong};

/// A kind of memory error, and a period.
const UNCORRECTED: c_uint = 1;
const LIFETIME: c_uint = 1;
/// A cause of retirement.
const SINGLE_BIT: c_uint = 0;

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: Handle,
    kind: c_uint,
    period: c_uint,
    number: *mut c_ulonglong,
) -> Return {
    abi::device("nvmlDeviceGetTotalEccErrors", device, |target| {
        let health = target.gpu.health;
        let known = if period == LIFETIME { health.lifetime_uncorrectable_errors } else { health.uncorrectable_errors };
        known.map_or(NOT_SUPPORTED, |known| put(number, if kind == UNCORRECTED { known } else { 0 }))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetRetiredPages(
    device: Handle,
    cause: c_uint,
    number: *mut c_uint,
    addresses: *mut c_ulonglong,
) -> Return {
    abi::device("nvmlDeviceGetRetiredPages", device, |target| {
        let health = target.gpu.health;
        let Some(known) = (if cause == SINGLE_BIT { health.retired_single } else { health.retired_double }) else {
            return NOT_SUPPORTED;
        };
        let Some(room) = get(number) else { return INVALID_ARGUMENT };
        match put(number, known) {
            SUCCESS if known == 0 => SUCCESS,
            SUCCESS if known > room => INSUFFICIENT_SIZE,
            SUCCESS => put_list(addresses, place(room), &(0..c_ulonglong::from(known)).collect::<Vec<_>>()),
            code => code,
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetRetiredPagesPendingStatus(device: Handle, pending: *mut c_uint) -> Return {
    abi::device("nvmlDeviceGetRetiredPagesPendingStatus", device, |target| {
        target.gpu.health.retirement_pending.map_or(NOT_SUPPORTED, |known| put(pending, known.into()))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetRemappedRows(
    device: Handle,
    correctable: *mut c_uint,
    uncorrectable: *mut c_uint,
    pending: *mut c_uint,
    failed: *mut c_uint,
) -> Return {
    abi::device("nvmlDeviceGetRemappedRows", device, |target| {
        let Some(rows) = target.gpu.health.remapped_rows else { return NOT_SUPPORTED };
        put(correctable, rows.correctable)
            .max(put(uncorrectable, rows.uncorrectable))
            .max(put(pending, rows.pending.into()))
            .max(put(failed, rows.failed.into()))
    })
}
