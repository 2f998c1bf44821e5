//! The slots of a directory: who holds what, who waits, and what dead owners left.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::allocator::slots::record::{self, GoneRecord, Held, LeaseRecord, Owner, TicketRecord};
use crate::gpu::inventory::Inventory;
use crate::progress::Cancel;
use crate::sys::process::{own_pid, since_boot};
use crate::sys::slot::{self, Range};
use crate::sys::{errno, fs};

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const LEASE: &str = "lease-";
const WAIT: &str = "wait-";
const GONE: &str = "gone-";

/// How long somebody may hold the table, which takes a millisecond, before it is taken for stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// A name is random: that it is taken, or a reader guessed it, does not happen twice.
const ATTEMPTS: usize = 4;

/// A live lease.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) id: String,
    pub(crate) user: u32,
    pub(crate) held: Vec<Held>,
    /// `None` if the text is damaged: then what is held was read from the locks.
    pub(crate) owner: Option<Owner>,
    /// As in the record.
    pub(crate) free_before: BTreeMap<String, u64>,
}

/// A lease that was given up, or whose owner is dead, and whose slot is still there.
#[derive(Clone, Debug)]
pub(crate) struct Over {
    pub(crate) id: String,
    pub(crate) record: Option<LeaseRecord>,
    /// When it was given up or, of a dead owner's, since when its memory has been seen to be missing; since the system
    /// started.
    pub(crate) noticed: Option<Duration>,
}

/// Somebody who waits.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) id: String,
    pub(crate) user: u32,
    pub(crate) record: TicketRecord,
}

/// All slots at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scan {
    pub(crate) live: Vec<Live>,
    pub(crate) over: Vec<Over>,
    /// In the order in which they are served.
    pub(crate) waiting: Vec<Waiting>,
    dead_tickets: Vec<PathBuf>,
    /// Notes about leases that are not there any more.
    strays: Vec<PathBuf>,
}

impl Scan {
    /// Whether there is something to remove.
    pub(crate) fn has_remains(&self) -> bool {
        !(self.over.is_empty() && self.dead_tickets.is_empty() && self.strays.is_empty())
    }
}

/// The table while nobody else changes it.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    table: &'a Table,
    _directory: slot::DirectoryLock,
}

/// A slot that the caller owns.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) id: String,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
}

/// A directory of slots.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    path: PathBuf,
}

impl Table {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the table for a change.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if somebody does not let go of it, such as a process that was stopped just then.
    pub(crate) fn lock(&self, cancel: &Cancel) -> Result<Locked<'_>> {
        let start = Instant::now();
        let mut pause = Duration::from_micros(50);
        loop {
            if let Some(locked) = self.try_lock()? {
                return Ok(locked);
            }
            cancel.check()?;
            if start.elapsed() > PATIENCE {
                let why = format!("somebody has held {} for {PATIENCE:?}: a stopped process?", self.path.display());
                return Err(Error::new(ErrorKind::Busy, why).with_path(&self.path));
            }
            // There is no call that waits for such a lock with a limit.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(2));
        }
    }

    /// Takes the table if nobody has it.
    pub(crate) fn try_lock(&self) -> Result<Option<Locked<'_>>> {
        let directory = slot::try_lock_directory(&self.path)?;
        Ok(directory.map(|directory| Locked { table: self, _directory: directory }))
    }

    /// The path of a waiter's slot.
    pub(crate) fn ticket_path(&self, id: &str) -> PathBuf {
        self.path.join(format!("{WAIT}{id}"))
    }

    /// Whether the end of the slot called `name` may make something free for one who waits behind `ahead`.
    pub(crate) fn frees(name: &str, ahead: &BTreeSet<String>) -> bool {
        name.starts_with(LEASE) || name.strip_prefix(WAIT).is_some_and(|id| ahead.contains(id))
    }

    /// Reads all slots. Without the table locked, a slot that is just being made may be missing.
    ///
    /// What a damaged slot holds is asked for each device of the inventory.
    pub(crate) fn scan(&self, inventory: &Inventory) -> Result<Scan> {
        let mut scan = Scan::default();
        let mut seen = BTreeSet::new();
        let (mut leases, mut notes) = (BTreeSet::new(), Vec::new());
        for path in fs::read_dir(&self.path)? {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let kind = [LEASE, WAIT, GONE].into_iter().find_map(|kind| Some((kind, name.strip_prefix(kind)?)));
            let Some((kind, id)) = kind else { continue };
            if kind == GONE {
                notes.push((id.to_owned(), path));
                continue;
            }
            if kind == LEASE {
                leases.insert(id.to_owned());
            }
            let Some(found) = slot::open(&path)? else { continue };
            // A second name of a file would count its lease twice.
            if !seen.insert(found.identity) {
                continue;
            }
            let alive = slot::held(&found.file, &path, record::ALIVE)?.is_some();
            let text = slot::read(&found.file, &path)?;
            let id = id.to_owned();
            match (kind, alive) {
                (LEASE, true) => scan.live.push(live(id, &found, &path, &text, inventory)?),
                (LEASE, false) => {
                    let (record, given_up) = record::decode_lease(&text);
                    let gone = match given_up {
                        Some(gone) => Some(gone),
                        None => self.read::<GoneRecord>(&format!("{GONE}{id}"))?,
                    };
                    scan.over.push(Over { id, record, noticed: gone.map(|gone| Duration::from_nanos(gone.since)) });
                }
                (_, true) => {
                    // A damaged one keeps nobody waiting; its owner still waits, by what it knows itself.
                    let record: Option<TicketRecord> = record::decode(&text);
                    let record = record.map(TicketRecord::shown);
                    scan.waiting.extend(record.map(|record| Waiting { id, user: found.user, record }));
                }
                (_, false) => scan.dead_tickets.push(path),
            }
        }
        scan.strays.extend(notes.into_iter().filter(|(id, _)| !leases.contains(id)).map(|(_, path)| path));
        scan.waiting.sort_by(|one, other| (one.record.order, &one.id).cmp(&(other.record.order, &other.id)));
        Ok(scan)
    }

    /// Those of the devices that live leases hold, whatever their slots' texts say.
    #[cfg(feature = "nvml")]
    pub(crate) fn held(&self, devices: &BTreeSet<String>) -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        let slots = match fs::read_dir(&self.path) {
            // A directory that is gone has no slots.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(all),
            slots => slots?,
        };
        for path in slots {
            if path.file_name().and_then(|name| name.to_str()).is_none_or(|name| !name.starts_with(LEASE)) {
                continue;
            }
            let Some(found) = slot::open(&path)? else { continue };
            let held = |range| slot::held(&found.file, &path, range);
            if held(record::ALIVE)?.is_none() {
                continue;
            }
            for device in devices {
                if held(record::region_of(device))?.is_some() {
                    all.insert(device.clone());
                }
            }
        }
        Ok(all)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.path.join(name);
        let Some(found) = slot::open(&path)? else { return Ok(None) };
        Ok(record::decode(&slot::read(&found.file, &path)?))
    }
}

/// A live lease as its text says, or as its locks say if the text is damaged.
fn live(id: String, found: &slot::Found, path: &Path, text: &[u8], inventory: &Inventory) -> Result<Live> {
    if let Some(record) = record::decode(text).map(LeaseRecord::shown) {
        let LeaseRecord { owner, held, free_before } = record;
        return Ok(Live { id, user: found.user, held, owner: Some(owner), free_before });
    }
    let mut held = Vec::new();
    for gpu in inventory.gpus() {
        let slices = gpu.mig_devices.iter().map(|slice| &slice.uuid);
        for device in std::iter::once(&gpu.uuid).chain(slices) {
            let range = slot::held(&found.file, path, record::region_of(device))?;
            held.extend(range.map(|range| Held::from_range(device, &gpu.uuid, range)));
        }
    }
    tracing::warn!(?path, ?held, "a GPU slot is damaged; its locks say what it holds");
    Ok(Live { id, user: found.user, held, owner: None, free_before: BTreeMap::new() })
}

impl Locked<'_> {
    /// Removes what the dead and those who gave leases up left, as far as the caller may: in a directory of all users, what is its own.
    ///
    /// Of a lease that is in `returning`, the slot stays, and when that was noticed is written down.
    pub(crate) fn collect(&self, scan: &Scan, returning: &BTreeSet<String>) -> Result<()> {
        // Whether it is gone.
        let remove = |path: &Path| match fs::remove_file(path) {
            Err(e) if e.kind() == ErrorKind::PermissionDenied => Ok(false),
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(true),
        };
        // What stands for nothing is no reason to fail, whatever somebody put there.
        let remove_note = |path: &Path| {
            if fs::symlink_metadata(path).is_ok_and(|found| found.is_file()) {
                let _ = fs::remove_file(path);
            }
        };
        for path in &scan.dead_tickets {
            remove(path)?;
        }
        scan.strays.iter().for_each(|path| remove_note(path));
        let gone = |id: &str| self.table.path.join(format!("{GONE}{id}"));
        let (kept, done): (Vec<_>, Vec<_>) = scan.over.iter().partition(|over| returning.contains(&over.id));
        for over in done {
            // Of a slot that somebody else has to remove, it stays known when its time was up.
            if remove(&self.table.path.join(format!("{LEASE}{}", over.id)))? {
                remove_note(&gone(&over.id));
            }
        }
        // After the removals, which may be what makes room for it.
        for over in kept.into_iter().filter(|over| over.noticed.is_none()) {
            let record = GoneRecord { since: nanoseconds(since_boot()) };
            match slot::create(&gone(&over.id), &[], &record::encode(&record)) {
                Err(e) if !slot::try_again(&e) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the slot of a lease.
    pub(crate) fn lease(&self, record: &LeaseRecord) -> Result<Slot> {
        let ranges: Vec<Range> = std::iter::once(record::ALIVE).chain(record.held.iter().map(Held::range)).collect();
        self.create(LEASE, &ranges, record)
    }

    /// Makes a place in the queue.
    pub(crate) fn ticket(&self, record: &TicketRecord) -> Result<Slot> {
        self.create(WAIT, &[record::ALIVE], record)
    }

    fn create(&self, kind: &str, ranges: &[Range], record: &impl Serialize) -> Result<Slot> {
        let text = record::encode(record);
        let mut attempt = 1;
        loop {
            let id = fs::unique()[..16].to_owned();
            let path = self.table.path.join(format!("{kind}{id}"));
            match slot::create(&path, ranges, &text) {
                Ok(file) => return Ok(Slot { id, path, file }),
                Err(e) if attempt == ATTEMPTS || !slot::try_again(&e) => return Err(e),
                Err(_) => attempt += 1,
            }
        }
    }
}

impl Slot {
    /// Whether the slot of that path is still somebody's.
    pub(crate) fn is_alive(path: &Path) -> Result<bool> {
        match slot::open(path)? {
            Some(found) => Ok(slot::held(&found.file, path, record::ALIVE)?.is_some()),
            None => Ok(false),
        }
    }

    /// Gives the slot of a lease up at once, whoever has copies of its descriptor. It stays, for the next who looks to see
    /// whether the memory is back, and to remove it.
    pub(crate) fn leave(&self) -> Result<()> {
        slot::free(&self.file, &self.path)?;
        let note = GoneRecord { since: nanoseconds(since_boot()) };
        if let Err(error) = slot::append(&self.file, &self.path, &record::encode(&note)) {
            // Then the time counts from when somebody misses the memory, as if the owner had died.
            tracing::debug!(%error, "when a GPU lease was given up is not written down");
        }
        // Who is told finds the locks free, and all of the text.
        slot::announce(&self.path)
    }

    /// Gives the slot up at once, whoever has copies of its descriptor.
    pub(crate) fn free(&self) -> Result<()> {
        // In this order: who is told of the removal finds the locks free.
        slot::free(&self.file, &self.path)?;
        match fs::remove_file(&self.path) {
            // Somebody may have collected it between the two calls.
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

impl Owner {
    /// The calling process.
    pub(crate) fn own() -> Self {
        let text = |path: &str| fs::read_to_string(Path::new(path)).unwrap_or_default().trim().to_owned();
        let namespace = fs::read_link(Path::new("/proc/self/ns/pid")).unwrap_or_default();
        Self {
            pid: own_pid(),
            pid_namespace: namespace.to_string_lossy().into_owned(),
            program: text("/proc/self/comm"),
            sandbox: None,
            since: nanoseconds(since_boot()),
        }
    }
}

/// A time as records have it: good for 584 years.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether the error says that a signal came.
pub(crate) fn is_interrupted(error: &Error) -> bool {
    error.errno() == Some(errno::EINTR)
}
