//! What a group has used, and what has happened to it.

use super::layout::Version;
use super::leaf::{self, Leaf};
use super::{Cgroup, foreign};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::fs;
use cgroups_rs::cpu::CpuController;
use cgroups_rs::cpuacct::CpuAcctController;
use cgroups_rs::hugetlb::HugeTlbController;
use cgroups_rs::memory::MemController;
use cgroups_rs::pid::PidController;
use cgroups_rs::{Controller as _, MaxValue};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// What a group has used so far. A part is `None` where no controller counts it for this group.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Memory.
    pub memory: Option<MemoryStats>,
    /// Processor time.
    pub cpu: Option<CpuStats>,
    /// Processes and threads.
    pub pids: Option<PidsStats>,
    /// Block devices that were used, in the order of their numbers.
    pub io: Vec<IoStats>,
    /// Huge pages, one entry for each size that this machine has.
    pub hugetlb: Vec<HugetlbStats>,
}

/// Memory used by a group, in bytes.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MemoryStats {
    /// In use now, with page cache and what the kernel keeps for the processes.
    pub current: u64,
    /// The most that was ever in use. `None` before Linux 5.19 on version 2.
    pub peak: Option<u64>,
    /// The limit of the group itself. `None` if it has none.
    pub limit: Option<u64>,
    /// In swap now. `None` if the kernel does not count it.
    pub swap: Option<u64>,
    /// Of `current`, what belongs to no file: heaps, stacks.
    pub anonymous: u64,
    /// Of `current`, page cache, shared memory and tmpfs.
    pub file: u64,
    /// How many processes were killed because the limit, or the machine's memory, was reached.
    pub oom_kills: u64,
    /// How often the limit was reached and something had to be given back. On version 1 with a limit of swap,
    /// newer kernels do not count it.
    pub limit_hits: u64,
}

/// Processor time used by a group.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CpuStats {
    /// In all. `None` on version 1 without accounting; see [`Options::accounting`](super::Options::accounting).
    pub usage: Option<Duration>,
    /// Of it, in the programs.
    pub user: Option<Duration>,
    /// Of it, in the kernel.
    pub system: Option<Duration>,
    /// Periods of 100 ms in which something wanted to run. 0 without a limit.
    pub periods: u64,
    /// Of them, those in which the limit was reached.
    pub throttled_periods: u64,
    /// How long processes had to wait because of the limit, summed over processors.
    pub throttled: Duration,
}

/// Processes and threads of a group.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PidsStats {
    /// Alive now.
    pub current: u64,
    /// The limit of the group itself. `None` if it has none.
    pub limit: Option<u64>,
    /// How often a new one was refused because of the limit.
    pub limit_hits: u64,
}

/// Use of one block device by a group.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct IoStats {
    /// The device's major number.
    pub major: u32,
    /// The device's minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads done.
    pub reads: u64,
    /// Writes done.
    pub writes: u64,
}

/// Huge pages of one size that a group uses.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HugetlbStats {
    /// The size as the kernel names it, for example `2MB`.
    pub page_size: String,
    /// Bytes in use now.
    pub current: u64,
    /// How often the limit was reached.
    pub limit_hits: u64,
}

impl Cgroup {
    /// What the group, with those inside it, has used so far.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] if the group was removed.
    pub fn stats(&self) -> Result<Stats> {
        self.gather().with_context(|| format!("read statistics of control group {:?}", self.name()))
    }

    /// How many processes in the group, and in those inside it, were killed because memory ran out. 0 where
    /// memory is not counted.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] if the group was removed.
    pub fn oom_kills(&self) -> Result<u64> {
        let wanted = || format!("read events of control group {:?}", self.name());
        match self.leaf("memory") {
            Some(leaf) => oom_kills(&leaf).with_context(wanted),
            None => Ok(0),
        }
    }

    fn gather(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        let leaves = self.entry().0;
        if leaves.is_empty() {
            return Err(Error::new(ErrorKind::Closed, "it was removed"));
        }
        for leaf in &leaves {
            // The readers of `cgroups-rs` below give 0 for a file that is not there.
            leaf.read("cgroup.procs")?;
        }
        if let Some(leaf) =
            self.leaf("memory").filter(|leaf| has_any(leaf, &["memory.current", "memory.usage_in_bytes"]))
        {
            stats.memory = Some(memory(&leaf)?);
        }
        stats.cpu = self.cpu()?;
        if let Some(leaf) = self.leaf("pids").filter(|leaf| has_any(leaf, &["pids.current"])) {
            stats.pids = Some(pids(&leaf)?);
        }
        if let Some(leaf) = self.leaf("io") {
            stats.io = match leaf.version {
                Version::V2 if has_any(&leaf, &["io.stat"]) => parse_io(&leaf.read("io.stat")?),
                Version::V2 => Vec::new(),
                Version::V1 => parse_blkio(
                    &leaf.read("blkio.throttle.io_service_bytes_recursive")?,
                    &leaf.read("blkio.throttle.io_serviced_recursive")?,
                ),
            };
        }
        if let Some(leaf) = self.leaf("hugetlb") {
            stats.hugetlb = hugetlb(&leaf)?;
        }
        Ok(stats)
    }

    fn cpu(&self) -> Result<Option<CpuStats>> {
        let mut stats = CpuStats::default();
        let mut counted = false;
        // Every group of version 2 counts time, with or without the controller.
        let unified = self.leaf("");
        if let Some(leaf) = self.leaf("cpu").filter(|leaf| leaf.version == Version::V1) {
            let text = CpuController::new(leaf.path.clone(), false).cpu().stat;
            stats.periods = field(&text, "nr_periods").unwrap_or(0);
            stats.throttled_periods = field(&text, "nr_throttled").unwrap_or(0);
            stats.throttled = Duration::from_nanos(field(&text, "throttled_time").unwrap_or(0));
            counted = true;
        }
        if let Some(leaf) = self.leaf("cpuacct") {
            let account = CpuAcctController::new(leaf.path.clone()).cpuacct();
            stats.usage = Some(Duration::from_nanos(account.usage));
            stats.user = Some(Duration::from_nanos(account.usage_user));
            stats.system = Some(Duration::from_nanos(account.usage_sys));
            counted = true;
        } else if let Some(leaf) = unified {
            let text = CpuController::new(leaf.path.clone(), true).cpu().stat;
            let time = |name| field(&text, name).map(Duration::from_micros);
            (stats.usage, stats.user, stats.system) = (time("usage_usec"), time("user_usec"), time("system_usec"));
            if let Some(periods) = field(&text, "nr_periods") {
                stats.periods = periods;
                stats.throttled_periods = field(&text, "nr_throttled").unwrap_or(0);
                stats.throttled = time("throttled_usec").unwrap_or_default();
            }
            counted |= stats.usage.is_some();
        }
        Ok(counted.then_some(stats))
    }
}

fn has_any(leaf: &Leaf, files: &[&str]) -> bool {
    files.iter().any(|file| fs::metadata(&leaf.path.join(file)).is_ok())
}

fn memory(leaf: &Leaf) -> Result<MemoryStats> {
    let detail = leaf.read("memory.stat")?;
    let sum = |names: [&str; 2]| names.into_iter().find_map(|name| field(&detail, name)).unwrap_or(0);
    let number = |file: &str| -> Result<u64> { parse_number(&leaf.read(file)?) };
    let optional = |file: &str| if has_any(leaf, &[file]) { number(file).map(Some) } else { Ok(None) };
    let mut stats = MemoryStats {
        anonymous: sum(["anon", "total_rss"]),
        file: sum(["file", "total_cache"]),
        oom_kills: oom_kills(leaf)?,
        ..MemoryStats::default()
    };
    match leaf.version {
        Version::V2 => {
            stats.current = number("memory.current")?;
            stats.peak = optional("memory.peak")?;
            stats.limit = parse_limit(&leaf.read("memory.max")?)?;
            stats.swap = optional("memory.swap.current")?;
            stats.limit_hits = field(&leaf.read("memory.events")?, "max").unwrap_or(0);
        }
        Version::V1 => {
            stats.current = number("memory.usage_in_bytes")?;
            stats.peak = optional("memory.max_usage_in_bytes")?;
            stats.limit = parse_limit(&leaf.read("memory.limit_in_bytes")?)?;
            stats.swap = field(&detail, "total_swap");
            // Where the limit of memory and swap together is as low, it is that one that is hit first. A kernel
            // that does not count swap has no such limit, for which `cgroups-rs` gives 0: right here.
            let both = MemController::new(leaf.path.clone(), false).memswap().fail_cnt;
            stats.limit_hits = number("memory.failcnt")?.saturating_add(both);
        }
    }
    Ok(stats)
}

fn oom_kills(leaf: &Leaf) -> Result<u64> {
    if leaf.version == Version::V2 {
        // Without the controller there is no such file, and nothing that could have been counted.
        return match leaf.read("memory.events") {
            Ok(text) => Ok(field(&text, "oom_kill").unwrap_or(0)),
            Err(e) if e.kind() == ErrorKind::NotFound && leaf.read("cgroup.procs").is_ok() => Ok(0),
            Err(e) => Err(e),
        };
    }
    // Version 1 counts in each group by itself.
    let mut kills = 0;
    for (at, group) in leaf::groups(&leaf.path)?.iter().enumerate() {
        match fs::read_to_string(&group.join("memory.oom_control")) {
            Ok(text) => kills += field(&text, "oom_kill").unwrap_or(0),
            Err(e) if at > 0 && e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(kills)
}

fn pids(leaf: &Leaf) -> Result<PidsStats> {
    let controller = PidController::new(leaf.path.clone(), leaf.version == Version::V2);
    let limit = match controller.get_pid_max().map_err(|e| foreign::error("read pids.max", e))? {
        MaxValue::Max => None,
        MaxValue::Value(value) => u64::try_from(value).ok(),
    };
    Ok(PidsStats {
        current: controller.get_pid_current().map_err(|e| foreign::error("read pids.current", e))?,
        limit,
        limit_hits: controller.get_pid_events().map_err(|e| foreign::error("read pids.events", e))?,
    })
}

fn hugetlb(leaf: &Leaf) -> Result<Vec<HugetlbStats>> {
    let controller = HugeTlbController::new(leaf.path.clone(), leaf.version == Version::V2);
    let mut all = Vec::new();
    for page_size in controller.get_sizes() {
        let files = [format!("hugetlb.{page_size}.current"), format!("hugetlb.{page_size}.usage_in_bytes")];
        if !files.iter().any(|file| controller.path().join(file).exists()) {
            continue;
        }
        let failed = |e| foreign::error(&format!("read huge pages of {page_size}"), e);
        let current = controller.usage_in_bytes(&page_size).map_err(failed)?;
        let limit_hits = controller.failcnt(&page_size).map_err(failed)?;
        all.push(HugetlbStats { page_size, current, limit_hits });
    }
    Ok(all)
}

/// The number behind `name` in a file of lines `name number`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn parse_number(text: &str) -> Result<u64> {
    text.trim().parse().map_err(|e| {
        Error::new(ErrorKind::Unsupported, format!("the kernel gives {text:?} where a number belongs")).with_cause(e)
    })
}

/// A limit of memory; both versions have their own way to say that there is none.
fn parse_limit(text: &str) -> Result<Option<u64>> {
    if text.trim() == "max" {
        return Ok(None);
    }
    // Version 1 has the largest number of whole pages instead of a word. No machine has half of it.
    Ok(Some(parse_number(text)?).filter(|limit| *limit < 1 << 62))
}

/// Reads `io.stat` of version 2: lines as `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`, in which a
/// device that was not used may stand alone, or share its line with others like it.
fn parse_io(text: &str) -> Vec<IoStats> {
    let mut all = Vec::new();
    for line in text.lines() {
        let mut current: Option<IoStats> = None;
        for word in line.split_whitespace() {
            if let Some((name, value)) = word.split_once('=') {
                if let (Some(stats), Ok(value)) = (&mut current, value.parse()) {
                    match name {
                        "rbytes" => stats.read_bytes = value,
                        "wbytes" => stats.written_bytes = value,
                        "rios" => stats.reads = value,
                        "wios" => stats.writes = value,
                        _ => {}
                    }
                }
            } else if let Some((major, minor)) = device(word) {
                all.extend(current.take());
                current = Some(IoStats { major, minor, ..IoStats::default() });
            }
        }
        all.extend(current);
    }
    finish(all)
}

/// Reads two files of version 1: lines as `8:0 Read 4096`, with other operations that do not matter here.
fn parse_blkio(bytes: &str, operations: &str) -> Vec<IoStats> {
    let mut all: Vec<IoStats> = Vec::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(numbers), Some(operation), Some(value)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let (Some((major, minor)), Ok(value)) = (device(numbers), value.parse()) else { continue };
            let known = all.iter().position(|stats| (stats.major, stats.minor) == (major, minor));
            let at = known.unwrap_or_else(|| {
                all.push(IoStats { major, minor, ..IoStats::default() });
                all.len() - 1
            });
            match (operation, is_bytes) {
                ("Read", true) => all[at].read_bytes = value,
                ("Write", true) => all[at].written_bytes = value,
                ("Read", false) => all[at].reads = value,
                ("Write", false) => all[at].writes = value,
                _ => {}
            }
        }
    }
    finish(all)
}

fn finish(mut all: Vec<IoStats>) -> Vec<IoStats> {
    all.retain(|stats| stats.reads + stats.writes + stats.read_bytes + stats.written_bytes > 0);
    all.sort_by_key(|stats| (stats.major, stats.minor));
    all
}

fn device(word: &str) -> Option<(u32, u32)> {
    let (major, minor) = word.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Whether a file of a group exists, for messages of other parts of the room.
pub(super) fn exists(path: &Path) -> bool {
    fs::metadata(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "oom_kill_disable 0\nunder_oom 1\noom_kill 7\ntotal_rss_huge 1\ntotal_rss 2\n";
        for (name, expected) in [("oom_kill", Some(7)), ("total_rss", Some(2)), ("rss", None), ("oom", None)] {
            assert_eq!(field(text, name), expected, "{name}");
        }
        assert_eq!(field("max\n", "max"), None);
    }

    #[test]
    fn limits_that_are_none_are_known_in_both_versions() {
        for (text, expected) in
            [("max\n", None), ("9223372036854771712\n", None), ("4096\n", Some(4096)), ("0", Some(0))]
        {
            assert_eq!(parse_limit(text).unwrap(), expected);
        }
        assert!(parse_limit("").is_err());
    }

    #[test]
    fn io_of_version_2_is_read() {
        let text = "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n\
                    7:7 7:6 7:5 rbytes=10 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n259:0\nnonsense\n";
        let all = parse_io(text);
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].major, all[0].minor, all[0].read_bytes, all[0].reads), (7, 5, 10, 1));
        assert_eq!(
            (all[1].read_bytes, all[1].written_bytes, all[1].reads, all[1].writes),
            (1_459_200, 314_773_504, 192, 353)
        );
    }

    #[test]
    fn io_of_version_1_is_read() {
        let bytes = "8:0 Read 4096\n8:0 Write 0\n8:0 Sync 4096\n8:0 Total 4096\n253:40000 Write 7\nTotal 4103\n";
        let operations = "8:0 Read 1\n253:40000 Write 2\nTotal 3\n";
        let all = parse_blkio(bytes, operations);
        let short: Vec<_> =
            all.iter().map(|s| (s.major, s.minor, s.read_bytes, s.written_bytes, s.reads, s.writes)).collect();
        assert_eq!(short, [(8, 0, 4096, 0, 1, 0), (253, 40000, 0, 7, 0, 2)]);
        assert_eq!(parse_blkio("Total 0\n", "Total 0\n"), []);
    }
}
