//! From limits to control files: which file gets which value on which version.

use super::layout::{Layout, Version};
use super::limits::Limits;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::cgroup::page_size;

/// One value for one control file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Setting {
    /// The controller by its name in version 2; empty for files of the group itself.
    pub(super) controller: String,
    pub(super) file: String,
    pub(super) value: String,
    /// Files that do the same on kernels without `file`, with the value they take.
    pub(super) instead: Vec<(&'static str, String)>,
}

/// The period that a quota of processor time is counted in, in microseconds: the kernel's default.
pub(super) const CPU_PERIOD: u32 = 100_000;

impl Setting {
    fn new(controller: &str, file: impl Into<String>, value: impl ToString) -> Self {
        Self { controller: controller.to_owned(), file: file.into(), value: value.to_string(), instead: Vec::new() }
    }

    /// The error of a setting that could not be made.
    pub(super) fn not_applied(&self, why: &str) -> Error {
        Error::new(ErrorKind::LimitNotApplied, format!("limit {} = {}: {why}", self.file, self.value))
    }
}

/// What `limits` come to on a host with `layout`, in the order in which to write it.
///
/// # Errors
/// [`ErrorKind::LimitNotApplied`] if the host lacks a controller, or its version lacks the limit.
pub(super) fn settings(limits: &Limits, layout: &Layout) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    let version = |setting: &Setting| match layout.find(&setting.controller) {
        Some(hierarchy) => Ok(hierarchy.version),
        None if setting.controller.is_empty() && layout.unified().is_some() => Ok(Version::V2),
        None if setting.controller.is_empty() => {
            Err(setting.not_applied("this host has no version 2 of control groups"))
        }
        None => Err(setting.not_applied(&format!("this host has no controller {}", setting.controller))),
    };
    // Each limit in both languages; a `None` in the old one is a limit that version 1 does not have.
    let mut add = |new: Setting, old: Option<Setting>| -> Result<()> {
        let setting = match version(&new)? {
            Version::V2 => new,
            Version::V1 => {
                let why = "version 1 of control groups, which has this controller here, has no such limit";
                old.ok_or_else(|| new.not_applied(why))?
            }
        };
        settings.push(setting);
        Ok(())
    };

    // Before the hard limits, which can kill: they give the kernel a gentler way first.
    if let Some(bytes) = limits.memory_low {
        let bytes = whole_pages(bytes);
        let old = Setting::new("memory", "memory.soft_limit_in_bytes", bytes);
        add(Setting::new("memory", "memory.low", bytes), Some(old))?;
    }
    if let Some(bytes) = limits.memory_high {
        add(Setting::new("memory", "memory.high", whole_pages(bytes)), None)?;
    }
    if let Some(bytes) = limits.memory_max {
        let bytes = whole_pages(bytes);
        let old = Setting::new("memory", "memory.limit_in_bytes", bytes);
        add(Setting::new("memory", "memory.max", bytes), Some(old))?;
    }
    if let Some(bytes) = limits.memory_swap_max {
        let bytes = whole_pages(bytes);
        let new = Setting::new("memory", "memory.swap.max", bytes);
        // Version 1 limits the sum, which must not lie below the limit of memory alone: so it comes after.
        let old = match limits.memory_max {
            Some(memory) => Setting::new("memory", "memory.memsw.limit_in_bytes", whole_pages(memory) + bytes),
            None if version(&new)? == Version::V2 => new.clone(),
            None => {
                let why = "version 1 limits memory and swap together, so memory_max is needed too";
                return Err(new.not_applied(why));
            }
        };
        add(new, Some(old))?;
    }
    if let Some(cores) = limits.cpus {
        let quota = format!("{:.0}", cores * f64::from(CPU_PERIOD));
        let new = Setting::new("cpu", "cpu.max", format!("{quota} {CPU_PERIOD}"));
        add(new, Some(Setting::new("cpu", "cpu.cfs_quota_us", quota)))?;
    }
    if let Some(weight) = limits.cpu_weight {
        let old = Setting::new("cpu", "cpu.shares", shares(weight));
        add(Setting::new("cpu", "cpu.weight", weight), Some(old))?;
    }
    for (file, list) in [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)] {
        if let Some(list) = list {
            let setting = Setting::new("cpuset", file, list.trim());
            add(setting.clone(), Some(setting))?;
        }
    }
    if let Some(count) = limits.pids_max {
        let setting = Setting::new("pids", "pids.max", count);
        add(setting.clone(), Some(setting))?;
    }
    for limit in &limits.io {
        let device = format!("{}:{}", limit.major, limit.minor);
        for (old, new, rate) in limit.rates() {
            let old = Setting::new("io", format!("blkio.throttle.{old}"), format!("{device} {rate}"));
            add(Setting::new("io", "io.max", format!("{device} {new}={rate}")), Some(old))?;
        }
    }
    if let Some(weight) = limits.io_weight {
        let mut new = Setting::new("io", "io.weight", weight);
        new.instead.push(("io.bfq.weight", bfq_weight(weight).to_string()));
        let mut old = Setting::new("io", "blkio.bfq.weight", bfq_weight(weight));
        old.instead.push(("blkio.weight", bfq_weight(weight).max(10).to_string()));
        add(new, Some(old))?;
    }
    for &(size, bytes) in &limits.hugetlb {
        let bytes = bytes / size * size;
        let size = page_name(size);
        let old = Setting::new("hugetlb", format!("hugetlb.{size}.limit_in_bytes"), bytes);
        add(Setting::new("hugetlb", format!("hugetlb.{size}.max"), bytes), Some(old))?;
    }
    for (file, value) in &limits.raw {
        let controller = super::layout::modern(file.split('.').next().unwrap_or_default());
        let controller = if controller == "cgroup" { "" } else { controller };
        let setting = Setting::new(controller, file.clone(), value);
        add(setting.clone(), Some(setting))?;
    }
    Ok(settings)
}

/// What the kernel would round down to, so that what is read back is what was written.
fn whole_pages(bytes: u64) -> u64 {
    bytes / page_size() * page_size()
}

/// The version 1 shares that give a group the same load weight as `weight` on version 2.
///
/// The scheduler holds a weight of 100 and shares of 1024 for the same, and is linear in both.
fn shares(weight: u64) -> u64 {
    ((weight * 1024 + 50) / 100).clamp(2, 1 << 18)
}

/// A weight of 1 to 10,000 on the scale of the BFQ scheduler, where the default is 100 too but the end 1,000.
fn bfq_weight(weight: u64) -> u64 {
    if weight <= 100 { weight } else { 100 + (weight - 100) * 900 / 9_900 }
}

/// A size of huge pages as names of files have it: `64KB`, `2MB`, `1GB`.
pub(super) fn page_name(bytes: u64) -> String {
    match bytes {
        _ if bytes >= 1 << 30 => format!("{}GB", bytes >> 30),
        _ if bytes >= 1 << 20 => format!("{}MB", bytes >> 20),
        _ => format!("{}KB", bytes >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::Hierarchy;
    use super::super::limits::IoLimit;
    use super::*;

    fn layout(version: Version) -> Layout {
        let names = ["memory", "cpu", "cpuset", "pids", "io", "hugetlb"];
        let controllers = names.map(str::to_owned).to_vec();
        Layout { hierarchies: vec![Hierarchy { version, controllers, mount: "/none".into(), own: None }] }
    }

    fn lines(limits: &Limits, version: Version) -> Vec<String> {
        let settings = settings(limits, &layout(version)).unwrap();
        settings.iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect()
    }

    #[test]
    fn each_limit_has_its_files() {
        let page = page_size();
        let table: [(Limits, &[&str], &[&str]); 11] = [
            (Limits::new(), &[], &[]),
            (
                Limits::new().memory_max(10 * page + 1),
                &[&format!("memory.max={}", 10 * page)],
                &[&format!("memory.limit_in_bytes={}", 10 * page)],
            ),
            (
                Limits::new().memory_max(1 << 30).memory_swap_max(1 << 20),
                &["memory.max=1073741824", "memory.swap.max=1048576"],
                &["memory.limit_in_bytes=1073741824", "memory.memsw.limit_in_bytes=1074790400"],
            ),
            (Limits::new().memory_low(1 << 20), &["memory.low=1048576"], &["memory.soft_limit_in_bytes=1048576"]),
            (Limits::new().cpus(1.5), &["cpu.max=150000 100000"], &["cpu.cfs_quota_us=150000"]),
            (Limits::new().cpus(0.01), &["cpu.max=1000 100000"], &["cpu.cfs_quota_us=1000"]),
            (Limits::new().cpu_weight(100), &["cpu.weight=100"], &["cpu.shares=1024"]),
            (Limits::new().cpuset_cpus("0-1"), &["cpuset.cpus=0-1"], &["cpuset.cpus=0-1"]),
            (Limits::new().pids_max(7), &["pids.max=7"], &["pids.max=7"]),
            (
                Limits::new().io(IoLimit::new(8, 16).read_bytes(1000).write_operations(5)),
                &["io.max=8:16 rbps=1000", "io.max=8:16 wiops=5"],
                &["blkio.throttle.read_bps_device=8:16 1000", "blkio.throttle.write_iops_device=8:16 5"],
            ),
            (
                Limits::new().hugetlb(2 << 20, (4 << 20) + 1),
                &["hugetlb.2MB.max=4194304"],
                &["hugetlb.2MB.limit_in_bytes=4194304"],
            ),
        ];
        for (limits, new, old) in table {
            assert_eq!(lines(&limits, Version::V2), new);
            assert_eq!(lines(&limits, Version::V1), old);
        }
    }

    #[test]
    fn what_a_version_lacks_is_said_before_anything_is_made() {
        let table = [
            (Limits::new().memory_high(1 << 20), Version::V1, "limit memory.high = 1048576"),
            (Limits::new().memory_swap_max(0), Version::V1, "limit memory.swap.max = 0"),
            (Limits::new().raw("cgroup.max.depth", "1"), Version::V1, "limit cgroup.max.depth = 1"),
            (Limits::new().raw("misc.max", "a 1"), Version::V2, "no controller misc"),
        ];
        for (limits, version, words) in table {
            let error = settings(&limits, &layout(version)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LimitNotApplied);
            assert!(error.to_string().contains(words), "{error}");
        }
        assert_eq!(lines(&Limits::new().memory_swap_max(0), Version::V2), ["memory.swap.max=0"]);
    }

    #[test]
    fn weights_are_converted_at_both_ends_and_the_middle() {
        for (weight, expected) in [(1, 10), (100, 1024), (10_000, 102_400)] {
            assert_eq!(shares(weight), expected);
        }
        for (weight, expected) in [(1, 1), (100, 100), (10_000, 1_000)] {
            assert_eq!(bfq_weight(weight), expected);
        }
    }

    #[test]
    fn sizes_have_the_names_of_the_kernel() {
        for (bytes, name) in
            [(64 << 10, "64KB"), (2 << 20, "2MB"), (512 << 20, "512MB"), (1 << 30, "1GB"), (16 << 30, "16GB")]
        {
            assert_eq!(page_name(bytes), name);
        }
    }
}
