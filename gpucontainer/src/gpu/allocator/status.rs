//! Who holds what since when, for people and programs.

use crate::gpu::allocator::choice::wishes::Sharing;
use crate::gpu::allocator::health::quarantine::QuarantinedGpu;
use crate::gpu::allocator::mps::MpsGroup;
use crate::gpu::allocator::slots::directory::Directory;
use crate::gpu::allocator::slots::record::{Owner, shown};
use crate::gpu::allocator::slots::table::Scan;
use crate::gpu::inventory::{Gpu, GpuMemory, Inventory};
use crate::gpu::select::{gibibytes, wish};
use crate::sys::process::since_boot;

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// A lease.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LeaseStatus {
    /// Its name.
    pub id: String,
    /// The user who holds it.
    pub user: u32,
    /// The process that took it, as that process's PID namespace counts; `None` if the slot's text is damaged.
    ///
    /// The lease may have been handed on, to a container or another process, and live longer.
    pub pid: Option<u32>,
    /// The PID namespace, as `/proc/self/ns/pid` names it.
    pub pid_namespace: String,
    /// The name of the program.
    pub program: String,
    /// The name of the sandbox that the process leased for: at its start, or when the GPUs were attached.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// For how long it has been held; `None` if the slot's text is damaged.
    pub age: Option<Duration>,
    /// When it was taken, by the clock as it is set now.
    pub since: Option<SystemTime>,
    /// The GPUs and MIG devices, and how each is shared.
    pub gpus: Vec<HeldGpu>,
}

impl LeaseStatus {
    /// The daemon of NVIDIA's Multi-Process Service that the lease has, if it has one.
    pub fn mps<'a>(&self, status: &'a GpuStatus) -> Option<&'a MpsGroup> {
        status.mps.iter().find(|group| group.leases.contains(&self.id))
    }
}

/// A device of a lease.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HeldGpu {
    /// The identifier of the GPU or MIG device.
    pub uuid: String,
    /// The identifier of the GPU that it is, or is a slice of.
    pub gpu: String,
    /// Who else may have it.
    pub sharing: Sharing,
}

/// Somebody who waits.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TicketStatus {
    /// The user.
    pub user: u32,
    /// The process, as that process's PID namespace counts.
    pub pid: u32,
    /// The name of the program.
    pub program: String,
    /// The name of the sandbox that the GPUs are for, if a sandbox waits for them.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// For how long it has waited.
    pub age: Duration,
    /// What it waits for, in words.
    pub wants: String,
}

/// The leases and the queue of an allocator at one moment. `Display` shows it as a table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GpuStatus {
    /// The directory of the slots.
    pub directory: PathBuf,
    /// Why the account is of this user alone, if it is.
    pub private: Option<String>,
    /// The GPUs of the host.
    pub gpus: Vec<Gpu>,
    /// The leases, the oldest first.
    pub leases: Vec<LeaseStatus>,
    /// Those who wait, in the order in which they are served.
    pub waiting: Vec<TicketStatus>,
    /// GPUs that get no new leases because something is wrong with them.
    #[serde(default)]
    pub quarantined: Vec<QuarantinedGpu>,
    /// The GPUs and MIG devices that nobody holds and whose [memory is not back](crate::gpu::GpuAllocator::memory_return)
    /// from their last lease, by identifier.
    #[serde(default)]
    pub returning: Vec<String>,
    /// The daemons of NVIDIA's Multi-Process Service that leases of the caller have, and for root those of all users.
    /// One that has died is there as long as its leases are.
    #[serde(default)]
    pub mps: Vec<MpsGroup>,
}

fn age(owner: &Owner) -> Duration {
    since_boot().saturating_sub(Duration::from_nanos(owner.since))
}

impl GpuStatus {
    pub(super) fn of(scan: &Scan, inventory: &Inventory, directory: &Directory) -> Self {
        let lease = |live: &crate::gpu::allocator::slots::table::Live| {
            let age = live.owner.as_ref().map(age);
            LeaseStatus {
                id: live.id.clone(),
                user: live.user,
                pid: live.owner.as_ref().map(|owner| owner.pid),
                pid_namespace: live.owner.as_ref().map(|owner| owner.pid_namespace.clone()).unwrap_or_default(),
                program: live.owner.as_ref().map(|owner| owner.program.clone()).unwrap_or_default(),
                sandbox: live.owner.as_ref().and_then(|owner| owner.sandbox.clone()),
                age,
                since: age.and_then(|age| SystemTime::now().checked_sub(age)),
                gpus: live
                    .held
                    .iter()
                    .map(|held| HeldGpu { uuid: held.device.clone(), gpu: held.gpu.clone(), sharing: held.sharing })
                    .collect(),
            }
        };
        let mut leases: Vec<LeaseStatus> = scan.live.iter().map(lease).collect();
        leases.sort_by(|one, other| (other.age, &one.id).cmp(&(one.age, &other.id)));
        let waiting = scan.waiting.iter().map(|waiting| TicketStatus {
            user: waiting.user,
            pid: waiting.record.owner.pid,
            program: waiting.record.owner.program.clone(),
            sandbox: waiting.record.owner.sandbox.clone(),
            age: age(&waiting.record.owner),
            wants: shown(&wish(&waiting.record.request)),
        });
        Self {
            directory: directory.path.clone(),
            private: directory.private.clone(),
            gpus: inventory.gpus().to_vec(),
            leases,
            waiting: waiting.collect(),
            quarantined: Vec::new(),
            returning: Vec::new(),
            mps: Vec::new(),
        }
    }

    /// The leases on a GPU or one of its MIG devices, by the identifier of the GPU.
    pub fn leases_of<'a>(&'a self, gpu: &'a str) -> impl Iterator<Item = (&'a LeaseStatus, &'a HeldGpu)> {
        self.leases
            .iter()
            .flat_map(move |lease| lease.gpus.iter().filter(move |held| held.gpu == gpu).map(move |held| (lease, held)))
    }

    /// The use of one device, in words.
    fn words(&self, uuid: &str, gpu: &Gpu, processes: &[u32]) -> String {
        let mut words: Vec<String> =
            self.leases_of(&gpu.uuid).filter(|(_, held)| held.uuid == uuid).map(|lease| self.said(lease)).collect();
        if words.is_empty() && !processes.is_empty() {
            let pids: Vec<String> = processes.iter().map(u32::to_string).collect();
            words.push(format!("busy with foreign process {}", pids.join(", ")));
        }
        if words.is_empty() && self.returning.iter().any(|device| device == uuid) {
            words.push("memory not back from the last lease".to_owned());
        }
        let kept = self.quarantined.iter().filter(|one| one.gpu == gpu.uuid);
        words.extend(kept.map(|one| format!("in quarantine: {}", one.reason())));
        if words.is_empty() { "free".to_owned() } else { words.join("; ") }
    }
}

impl GpuStatus {
    fn said(&self, (lease, held): (&LeaseStatus, &HeldGpu)) -> String {
        let daemon = match lease.mps(self) {
            Some(group) if group.running => format!(", MPS daemon {}", group.pid),
            Some(_) => ", MPS daemon dead".to_owned(),
            None => String::new(),
        };
        said((lease, held)) + &daemon
    }
}

fn said((lease, held): (&LeaseStatus, &HeldGpu)) -> String {
    let process = match lease.pid {
        Some(pid) => format!("process {pid} ({}, user {})", lease.program, lease.user),
        None => format!("a process of user {}", lease.user),
    };
    let sandbox = of_sandbox(lease.sandbox.as_deref());
    let how = match held.sharing {
        Sharing::Shared(limit) => format!(", shared by {limit} at most"),
        Sharing::Fraction(bytes) => format!(", {} promised", gibibytes(bytes)),
        Sharing::Exclusive => String::new(),
    };
    let age = lease.age.map(|age| format!(" for {}", time(age))).unwrap_or_default();
    format!("{sandbox}{process}{age}{how}")
}

fn of_sandbox(name: Option<&str>) -> String {
    name.map(|name| format!("sandbox {name} of ")).unwrap_or_default()
}

/// A time as people say it, in its two largest units.
fn time(age: Duration) -> String {
    let seconds = age.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, ..) => format!("{days} d {hours} h"),
    }
}

fn memory(memory: Option<GpuMemory>) -> String {
    memory.map_or_else(String::new, |memory| format!("{} of {} free", gibibytes(memory.free), gibibytes(memory.total)))
}

impl fmt::Display for GpuStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = Vec::new();
        for gpu in &self.gpus {
            rows.push([
                gpu.index.to_string(),
                gpu.name.clone(),
                memory(gpu.memory),
                self.words(&gpu.uuid, gpu, &gpu.processes),
            ]);
            for slice in &gpu.mig_devices {
                let use_of = self.words(&slice.uuid, gpu, &slice.processes);
                let place = format!("{}:{}", gpu.index, slice.index);
                rows.push([place, slice.profile.clone(), memory(slice.memory), use_of]);
            }
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let [first, second, third] = [width(0), width(1), width(2)];
        for [place, name, memory, words] in &rows {
            writeln!(f, "{place:first$}  {name:second$}  {memory:third$}  {words}")?;
        }
        for waiting in &self.waiting {
            let TicketStatus { pid, program, user, age, wants, sandbox } = waiting;
            let sandbox = of_sandbox(sandbox.as_deref());
            writeln!(f, "waiting: {sandbox}process {pid} ({program}, user {user}) for {wants}, {}", time(*age))?;
        }
        if let Some(private) = &self.private {
            writeln!(f, "{private}")?;
        }
        Ok(())
    }
}
