//! What a group of processes may use at most, as the caller says it.

use super::cpulist::CpuList;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::cgroup::page_size;
use serde::{Deserialize, Serialize};

/// What the processes of a [`Cgroup`](super::Cgroup) may use at most. By default: as much as they like.
///
/// The values are the same for version 1 and 2 of control groups; where version 1 has another scale
/// they are converted. A value is checked when the group is made, before anything changes.
///
/// ```
/// use gpucontainer::cgroup::Limits;
///
/// let limits = Limits::new().memory_max(64 << 20).cpus(1.5).pids_max(100);
/// assert!(limits.check().is_ok());
/// assert!(Limits::new().memory_max(0).check().is_err());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub(super) memory_max: Option<u64>,
    pub(super) memory_swap_max: Option<u64>,
    pub(super) memory_high: Option<u64>,
    pub(super) memory_low: Option<u64>,
    pub(super) cpus: Option<f64>,
    pub(super) cpu_weight: Option<u64>,
    pub(super) cpuset_cpus: Option<String>,
    pub(super) cpuset_mems: Option<String>,
    pub(super) pids_max: Option<u64>,
    pub(super) io: Vec<IoLimit>,
    pub(super) io_weight: Option<u64>,
    pub(super) hugetlb: Vec<(u64, u64)>,
    pub(super) raw: Vec<(String, String)>,
}

/// What processes may do with one block device at most. By default: as much as they like.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoLimit {
    pub(super) major: u32,
    pub(super) minor: u32,
    #[serde(default)]
    pub(super) read_bytes: Option<u64>,
    #[serde(default)]
    pub(super) write_bytes: Option<u64>,
    #[serde(default)]
    pub(super) read_operations: Option<u64>,
    #[serde(default)]
    pub(super) write_operations: Option<u64>,
}

/// The shortest quota that the kernel takes is 1 ms of the period of 100 ms.
const CPUS_MIN: f64 = 0.01;
/// Far above any machine, far below what the kernel's arithmetic can hold.
const CPUS_MAX: f64 = 100_000.0;
/// Above it the kernel takes a limit of memory for none at all.
const BYTES_MAX: u64 = i64::MAX.unsigned_abs();

impl Limits {
    /// No limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Caps memory at `bytes`: what the processes touch, the page cache they fill, and what the
    /// kernel keeps for them. Swap is not counted. No cap by default.
    ///
    /// The kernel rounds down to a page (4,096 bytes on x86-64). When the cap is reached and nothing
    /// can be given back, a process inside is killed; see [`Cgroup::oom_kills`](super::Cgroup::oom_kills).
    ///
    /// # References
    /// `memory.max` in <https://docs.kernel.org/admin-guide/cgroup-v2.html>
    #[must_use]
    pub fn memory_max(mut self, bytes: u64) -> Self {
        self.memory_max = Some(bytes);
        self
    }

    /// Caps swap at `bytes`, memory not counted; 0 forbids swapping. No cap by default.
    ///
    /// Version 1 knows only the sum of memory and swap, so there this needs [`Limits::memory_max`] as well.
    #[must_use]
    pub fn memory_swap_max(mut self, bytes: u64) -> Self {
        self.memory_swap_max = Some(bytes);
        self
    }

    /// Slows processes down and takes memory back from them above `bytes`, without killing any. Version 2 only.
    #[must_use]
    pub fn memory_high(mut self, bytes: u64) -> Self {
        self.memory_high = Some(bytes);
        self
    }

    /// Protects `bytes` of memory from being taken back while others can give some.
    ///
    /// On version 1 this is the soft limit, its closest relative.
    #[must_use]
    pub fn memory_low(mut self, bytes: u64) -> Self {
        self.memory_low = Some(bytes);
        self
    }

    /// Caps processor time at `cores` in each 100 ms, 0.01 to 100,000. No cap by default.
    ///
    /// More than the machine has is no error, and no cap.
    #[must_use]
    pub fn cpus(mut self, cores: f64) -> Self {
        self.cpus = Some(cores);
        self
    }

    /// Weighs processor time against that of sibling groups when they compete, 1 to 10,000; others have 100.
    ///
    /// On version 1 the shares are `weight * 1024 / 100`, as the scheduler itself converts.
    #[must_use]
    pub fn cpu_weight(mut self, weight: u64) -> Self {
        self.cpu_weight = Some(weight);
        self
    }

    /// Keeps processes on these processors, for example `0-3,8`. All of the parent group's by default.
    #[must_use]
    pub fn cpuset_cpus(mut self, list: impl Into<String>) -> Self {
        self.cpuset_cpus = Some(list.into());
        self
    }

    /// Takes memory from these NUMA nodes only, for example `0,1`. All of the parent group's by default.
    #[must_use]
    pub fn cpuset_mems(mut self, list: impl Into<String>) -> Self {
        self.cpuset_mems = Some(list.into());
        self
    }

    /// Caps the number of processes and threads alive at once, at least 1. No cap by default.
    #[must_use]
    pub fn pids_max(mut self, count: u64) -> Self {
        self.pids_max = Some(count);
        self
    }

    /// Caps the use of a block device; may be called once for each.
    #[must_use]
    pub fn io(mut self, limit: IoLimit) -> Self {
        self.io.push(limit);
        self
    }

    /// Weighs the use of block devices against that of sibling groups, 1 to 10,000; others have 100.
    ///
    /// It needs a kernel and a device with weights: the cost model (`io.weight`) or the BFQ scheduler,
    /// whose scale of 1 to 1,000 the weight is then fitted to.
    #[must_use]
    pub fn io_weight(mut self, weight: u64) -> Self {
        self.io_weight = Some(weight);
        self
    }

    /// Caps huge pages of `page_size` bytes (a power of two, as 2 MiB) at `bytes` in all.
    ///
    /// The kernel rounds down to whole huge pages.
    #[must_use]
    pub fn hugetlb(mut self, page_size: u64, bytes: u64) -> Self {
        self.hugetlb.push((page_size, bytes));
        self
    }

    /// Writes `value` into the control file `file` of this host's version, as it stands, for example
    /// `("memory.oom.group", "1")`. What the kernel makes of the value is not checked further.
    ///
    /// The name's part before the first dot says which controller is needed. Files that steer the
    /// group itself (`cgroup.procs` and the like) are not accepted, but for `cgroup.max.depth` and
    /// `cgroup.max.descendants`.
    #[must_use]
    pub fn raw(mut self, file: impl Into<String>, value: impl Into<String>) -> Self {
        self.raw.push((file.into(), value.into()));
        self
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks every value, without regard to what this host can do.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`], naming the limit, the value and what is wrong with it.
    pub fn check(&self) -> Result<()> {
        // Less than a page is rounded down to nothing, which kills whatever enters.
        bytes("memory_max", self.memory_max, page_size())?;
        bytes("memory_swap_max", self.memory_swap_max, 0)?;
        bytes("memory_high", self.memory_high, page_size())?;
        bytes("memory_low", self.memory_low, 0)?;
        if let (Some(memory), Some(swap)) = (self.memory_max, self.memory_swap_max) {
            let fits = memory.checked_add(swap).is_some_and(|sum| sum <= BYTES_MAX);
            require(fits, "memory_swap_max", &swap, "memory and swap together exceed 2^63 bytes")?;
        }
        if let Some(cores) = self.cpus {
            // Written so that what is not a number is refused as well.
            let fits = (CPUS_MIN..=CPUS_MAX).contains(&cores);
            require(fits, "cpus", &cores, "not between 0.01 and 100000 cores")?;
        }
        for (name, weight) in [("cpu_weight", self.cpu_weight), ("io_weight", self.io_weight)] {
            if let Some(weight) = weight {
                require((1..=10_000).contains(&weight), name, &weight, "not between 1 and 10000")?;
            }
        }
        for (name, list) in [("cpuset_cpus", &self.cpuset_cpus), ("cpuset_mems", &self.cpuset_mems)] {
            if let Some(list) = list {
                CpuList::parse(list).map_err(|why| invalid(name, list, &why))?;
            }
        }
        if let Some(count) = self.pids_max {
            // The kernel's own ceiling on process numbers is 2^22.
            require((1..=1 << 22).contains(&count), "pids_max", &count, "not between 1 and 4194304")?;
        }
        for limit in &self.io {
            limit.check()?;
        }
        for &(size, limit) in &self.hugetlb {
            let fits = size.is_power_of_two() && size > page_size();
            require(fits, "hugetlb page size", &size, "no power of two above the size of a normal page")?;
            bytes("hugetlb", Some(limit), 0)?;
        }
        self.raw.iter().try_for_each(|(file, value)| check_raw(file, value))
    }
}

impl IoLimit {
    /// No limits for the block device with these numbers; a whole disk, as the kernel does not limit partitions.
    pub fn new(major: u32, minor: u32) -> Self {
        Self { major, minor, read_bytes: None, write_bytes: None, read_operations: None, write_operations: None }
    }

    /// Caps reading at `bytes` a second, at least 1.
    #[must_use]
    pub fn read_bytes(mut self, bytes: u64) -> Self {
        self.read_bytes = Some(bytes);
        self
    }

    /// Caps writing at `bytes` a second, at least 1.
    #[must_use]
    pub fn write_bytes(mut self, bytes: u64) -> Self {
        self.write_bytes = Some(bytes);
        self
    }

    /// Caps reading at `operations` a second, at least 1.
    #[must_use]
    pub fn read_operations(mut self, operations: u64) -> Self {
        self.read_operations = Some(operations);
        self
    }

    /// Caps writing at `operations` a second, at least 1.
    #[must_use]
    pub fn write_operations(mut self, operations: u64) -> Self {
        self.write_operations = Some(operations);
        self
    }

    /// The limits that are set, by their names in version 1 and in version 2.
    pub(super) fn rates(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        [
            ("read_bps_device", "rbps", self.read_bytes),
            ("write_bps_device", "wbps", self.write_bytes),
            ("read_iops_device", "riops", self.read_operations),
            ("write_iops_device", "wiops", self.write_operations),
        ]
        .into_iter()
        .filter_map(|(old, new, rate)| Some((old, new, rate?)))
    }

    fn check(&self) -> Result<()> {
        let device = format!("{}:{}", self.major, self.minor);
        require(self.rates().next().is_some(), "io", &device, "no rate is given for this device")?;
        for (_, name, rate) in self.rates() {
            let what = format!("io {name} of {device}");
            require(rate > 0, &what, &rate, "0 would stop the device for good")?;
            // Operations are held in 32 bits; a larger number wraps around silently.
            let fits = rate <= if name.ends_with("iops") { u64::from(u32::MAX) - 1 } else { BYTES_MAX };
            require(fits, &what, &rate, "too large")?;
        }
        Ok(())
    }
}

fn bytes(name: &str, value: Option<u64>, least: u64) -> Result<()> {
    let Some(value) = value else { return Ok(()) };
    require(value >= least, name, &value, &format!("less than {least} bytes, one page"))?;
    require(value <= BYTES_MAX, name, &value, "more than 2^63 - 1 bytes")
}

fn check_raw(file: &str, value: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_' || c == '-';
    let shape = file.contains('.') && !file.starts_with('.') && !file.contains("..") && file.chars().all(allowed);
    require(shape, "raw file", &file, "no name of a control file, as memory.high")?;
    let own = file.starts_with("cgroup.") && !matches!(file, "cgroup.max.depth" | "cgroup.max.descendants");
    require(!own, "raw file", &file, "it steers the group itself, which the library does")?;
    require(!value.contains('\0'), &format!("raw value of {file}"), &value, "holds a zero byte")
}

fn require(fits: bool, name: &str, value: &dyn std::fmt::Debug, why: &str) -> Result<()> {
    if fits { Ok(()) } else { Err(invalid(name, value, why)) }
}

fn invalid(name: &str, value: &dyn std::fmt::Debug, why: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("limit {name} = {value:?}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_are_named() {
        let table: [(Limits, &str); 20] = [
            (Limits::new().memory_max(0), "memory_max = 0"),
            (Limits::new().memory_max(4095), "memory_max = 4095"),
            (Limits::new().memory_max(u64::MAX), "memory_max = 18446744073709551615"),
            (Limits::new().memory_max(1 << 62).memory_swap_max(1 << 62), "memory_swap_max"),
            (Limits::new().cpus(0.0), "cpus = 0.0"),
            (Limits::new().cpus(-1.0), "cpus = -1.0"),
            (Limits::new().cpus(f64::NAN), "cpus = NaN"),
            (Limits::new().cpus(f64::INFINITY), "cpus = inf"),
            (Limits::new().cpu_weight(0), "cpu_weight = 0"),
            (Limits::new().cpu_weight(10_001), "cpu_weight = 10001"),
            (Limits::new().cpuset_cpus(""), "cpuset_cpus = \"\""),
            (Limits::new().cpuset_cpus("3-1"), "cpuset_cpus = \"3-1\""),
            (Limits::new().cpuset_mems("x"), "cpuset_mems = \"x\""),
            (Limits::new().pids_max(0), "pids_max = 0"),
            (Limits::new().io(IoLimit::new(8, 0)), "io = \"8:0\""),
            (Limits::new().io(IoLimit::new(8, 0).read_bytes(0)), "io rbps of 8:0 = 0"),
            (Limits::new().io(IoLimit::new(8, 0).write_operations(1 << 33)), "io wiops of 8:0"),
            (Limits::new().hugetlb(3, 0), "hugetlb page size = 3"),
            (Limits::new().raw("../memory.max", "1"), "raw file"),
            (Limits::new().raw("cgroup.procs", "1"), "raw file = \"cgroup.procs\""),
        ];
        for (limits, words) in table {
            let error = limits.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            assert!(error.to_string().contains(words), "{error} does not name {words}");
        }
    }

    #[test]
    fn possible_values_pass() {
        let limits = Limits::new()
            .memory_max(1 << 30)
            .memory_swap_max(0)
            .cpus(0.01)
            .cpu_weight(10_000)
            .cpuset_cpus("0-3,8\n")
            .pids_max(1)
            .io(IoLimit::new(259, 0).read_bytes(1))
            .hugetlb(2 << 20, 0)
            .raw("memory.oom.group", "1")
            .raw("cgroup.max.depth", "3");
        limits.check().unwrap();
        assert!(!limits.is_empty() && Limits::new().is_empty());
    }
}
