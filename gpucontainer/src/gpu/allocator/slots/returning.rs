//! Memory that comes back after a lease: how much was free before it is written down with it, and looked for by the next.
//!
//! ```text
//! lease ──► record: free before ──► given up or dead: the slot stays ──► next look ──┬─► as much is free: removed
//!                                                                                    ├─► less: held back
//!                                                                                    └─► less for too long: removed
//! ```

use crate::error::Result;
use crate::gpu::allocator::GpuAllocator;
use crate::gpu::allocator::choice::decide::held;
use crate::gpu::allocator::slots::record::{LeaseRecord, Owner};
use crate::gpu::allocator::slots::table::{Over, Scan};
use crate::gpu::driver::platform::Platform;
use crate::gpu::inventory::Inventory;
use crate::gpu::request::GpuRequest;
use crate::gpu::select::Choice;
use crate::sys::process::since_boot;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Less memory than this is missing after a lease without anybody noticing: what a driver keeps varies.
const SLACK: u64 = 64 << 20;

impl GpuAllocator {
    /// What a lease says of itself.
    pub(in crate::gpu::allocator) fn record(
        &self,
        chosen: &[Choice<'_>],
        request: &GpuRequest,
        owner: Owner,
        scan: &Scan,
    ) -> LeaseRecord {
        // Who joins others found their memory used.
        let known = |device: &str| scan.live.iter().filter_map(|live| live.free_before.get(device)).copied().max();
        let before = |choice: &Choice<'_>| {
            let free = choice.memory()?.free;
            Some((choice.uuid().to_owned(), known(choice.uuid()).map_or(free, |known| known.max(free))))
        };
        // The memory of a GPU in a processor is everybody's, and that of WSL's is Windows', too.
        let own = |choice: &&Choice<'_>| !choice.gpu().is_integrated();
        let shown = Platform::of(&self.root) != Platform::Wsl;
        LeaseRecord {
            owner,
            held: chosen.iter().map(|choice| held(*choice, request.wishes.sharing)).collect(),
            free_before: chosen.iter().filter(own).filter_map(before).filter(|_| shown).collect(),
        }
    }

    /// Removes what is over of leases and of places in the queue, as far as the caller may and nobody is just at work.
    pub(in crate::gpu::allocator) fn collect(&self, inventory: &Inventory) -> Result<()> {
        if !self.table.scan(inventory)?.has_remains() {
            return Ok(());
        }
        let Some(locked) = self.table.try_lock()? else { return Ok(()) };
        let scan = self.table.scan(inventory)?;
        let (_, leases) = self.returning(&scan, inventory);
        locked.collect(&scan, &leases)
    }

    /// The devices whose memory is not back from a lease that is over, and the identifiers of such leases.
    pub(in crate::gpu::allocator) fn returning(
        &self,
        scan: &Scan,
        inventory: &Inventory,
    ) -> (BTreeSet<String>, BTreeSet<String>) {
        let now = since_boot();
        let mut free: BTreeMap<&str, u64> = BTreeMap::new();
        for gpu in inventory.gpus() {
            free.extend(gpu.memory.map(|memory| (gpu.uuid.as_str(), memory.free)));
            let slices = gpu.mig_devices.iter();
            free.extend(slices.filter_map(|slice| Some((slice.uuid.as_str(), slice.memory?.free))));
        }
        let held: BTreeSet<&str> =
            scan.live.iter().flat_map(|live| &live.held).map(|held| held.device.as_str()).collect();
        let missing = |over: &Over| -> Vec<String> {
            // A time to come is no time of this clock, and must not make the wait longer than any other.
            let waited = |since: Duration| now.checked_sub(since).unwrap_or(Duration::MAX);
            let late = over.noticed.is_some_and(|since| waited(since) > self.memory_return);
            let Some(record) = over.record.as_ref().filter(|_| !late) else { return Vec::new() };
            let before = record.free_before.iter().filter(|(device, _)| !held.contains(device.as_str()));
            let gone = before.filter(|(device, before)| {
                free.get(device.as_str()).is_some_and(|free| free.saturating_add(SLACK) < **before)
            });
            gone.map(|(device, _)| device.clone()).collect()
        };
        let mut devices = BTreeSet::new();
        let mut leases = BTreeSet::new();
        for over in &scan.over {
            let missing = missing(over);
            if !missing.is_empty() {
                leases.insert(over.id.clone());
                devices.extend(missing);
            }
        }
        (devices, leases)
    }
}
