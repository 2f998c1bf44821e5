//! Changing the limits of a group that is in use, through the controllers of `cgroups-rs`.

use super::layout::Version;
use super::leaf::Leaf;
use super::limits::Limits;
use super::setting::{self, CPU_PERIOD, Setting};
use super::{Cgroup, check_effective, foreign};
use crate::error::{Context, ErrorKind, Result};
use cgroups_rs::MaxValue;
use cgroups_rs::cpu::CpuController;
use cgroups_rs::cpuset::CpuSetController;
use cgroups_rs::hugetlb::HugeTlbController;
use cgroups_rs::memory::{MemController, SetMemory};
use cgroups_rs::pid::PidController;
use std::sync::Arc;

impl Cgroup {
    /// Changes the limits that `limits` has; the others stay as they are.
    ///
    /// Every value is read back. Where a limit needs a hierarchy that the group was not in, its
    /// processes are moved there, which takes some 10 ms.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] or [`ErrorKind::LimitNotApplied`], as for [`Cgroup::create`];
    /// limits that were changed before the one that failed are set back.
    pub fn update(&self, limits: &Limits) -> Result<()> {
        let wanted = || format!("change limits of control group {:?}", self.name());
        limits.check()?;
        let mut settings = setting::settings(limits, &self.layout).with_context(wanted)?;
        self.order(&mut settings).with_context(wanted)?;
        let mut done: Vec<(Arc<Leaf>, Setting)> = Vec::new();
        for setting in settings {
            let result = self.leaf_for(&setting).and_then(|leaf| {
                // What cannot be read back cannot be set back either: kept out of the way.
                if let Some(old) = current(&leaf, &setting) {
                    done.push((leaf.clone(), old));
                }
                change(&leaf, &setting)
            });
            if let Err(error) = result {
                for (leaf, old) in done.drain(..).rev() {
                    if let Err(second) = change(&leaf, &old) {
                        return Err(error.context(format!("(and then: {second})")).context(wanted()));
                    }
                }
                return Err(error.context(wanted()));
            }
        }
        Ok(())
    }

    fn leaf_for(&self, setting: &Setting) -> Result<Arc<Leaf>> {
        let at_hand = self.leaf(&setting.controller).filter(|leaf| leaf.version == Version::V1);
        if let Some(leaf) = at_hand {
            return Ok(leaf);
        }
        let leaf = self
            .make_late(&setting.controller)
            .map_err(|e| e.context(format!("limit {} = {}", setting.file, setting.value)))?;
        self.move_into(&leaf)?;
        Ok(leaf)
    }

    /// Version 1 keeps the limit of memory alone at or below that of memory and swap together at every
    /// moment: the larger one goes first when they grow.
    fn order(&self, settings: &mut [Setting]) -> Result<()> {
        let position = |file: &str| settings.iter().position(|setting| setting.file == file);
        let (Some(memory), Some(both)) = (position("memory.limit_in_bytes"), position("memory.memsw.limit_in_bytes"))
        else {
            return Ok(());
        };
        if let Some(leaf) = self.leaf("memory") {
            let old = leaf.read("memory.limit_in_bytes")?;
            let number = |text: &str| text.trim().parse::<u64>().unwrap_or(u64::MAX);
            if number(&settings[memory].value) > number(&old) {
                settings.swap(memory, both);
            }
        }
        Ok(())
    }
}

/// The setting that would bring back what is set now.
fn current(leaf: &Leaf, setting: &Setting) -> Option<Setting> {
    let text = leaf.read(&setting.file).ok()?;
    let mut old = setting.clone();
    old.value = match setting.controller.as_str() {
        "io" => {
            let (device, rate) = setting.value.split_once(' ')?;
            let name = rate.split_once('=').map(|(name, _)| name);
            let now = rate_of(&text, device, name);
            match name {
                Some(name) => format!("{device} {name}={}", now.unwrap_or("max")),
                None => format!("{device} {}", now.unwrap_or("0")),
            }
        }
        _ => text.trim().to_owned(),
    };
    Some(old)
}

/// The rate of a device in a file of `8:0 rbps=1 wbps=max …` or `8:0 1`.
fn rate_of<'a>(text: &'a str, device: &str, name: Option<&str>) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(device)?.strip_prefix(' '))?;
    match name {
        Some(name) => line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')),
        None => Some(line.trim()),
    }
}

/// Sets one value, and reads it back.
fn change(leaf: &Leaf, setting: &Setting) -> Result<()> {
    let wanted = || format!("limit {} = {}", setting.file, setting.value);
    if !super::stats::exists(&leaf.path.join(&setting.file)) {
        // `cgroups-rs` would try to make the file; by hand the error is that it is not there, and others are tried.
        return leaf.apply(setting);
    }
    set(leaf, setting).map_err(|e| e.with_kind(ErrorKind::LimitNotApplied)).with_context(wanted)?;
    check_effective(leaf, setting)?;
    check(leaf, setting)
}

/// Hands one value to the controller that it belongs to.
fn set(leaf: &Leaf, setting: &Setting) -> Result<()> {
    let (path, unified) = (leaf.path.clone(), leaf.version == Version::V2);
    // Both versions' words for no limit.
    let number = || match setting.value.as_str() {
        "max" => Ok(-1),
        value => value.parse::<i64>().map_err(|e| setting.not_applied("no number").with_cause(e)),
    };
    let bound = || number().map(|value| if value < 0 { MaxValue::Max } else { MaxValue::Value(value) });
    let memory = || MemController::new(leaf.path.clone(), unified);
    let cpu = || CpuController::new(leaf.path.clone(), unified);
    let result = match setting.file.as_str() {
        "memory.max" | "memory.limit_in_bytes" => memory().set_limit(number()?),
        "memory.swap.max" | "memory.memsw.limit_in_bytes" => memory().set_memswap_limit(number()?),
        "memory.soft_limit_in_bytes" => memory().set_soft_limit(number()?),
        "memory.low" => memory().set_mem(SetMemory { low: Some(bound()?), ..SetMemory::default() }),
        "memory.high" => memory().set_mem(SetMemory { high: Some(bound()?), ..SetMemory::default() }),
        "cpu.cfs_quota_us" => cpu().set_cfs_quota(number()?),
        "cpu.max" => {
            let (quota, period) = setting.value.split_once(' ').unwrap_or((&setting.value, ""));
            let quota = quota.parse::<i64>().unwrap_or(-1);
            cpu().set_cfs_quota_and_period(Some(quota), Some(period.parse().unwrap_or(CPU_PERIOD.into())))
        }
        "cpu.weight" | "cpu.shares" => cpu().set_shares(number()?.unsigned_abs()),
        "cpuset.cpus" => CpuSetController::new(path, unified).set_cpus(&setting.value),
        "cpuset.mems" => CpuSetController::new(path, unified).set_mems(&setting.value),
        "pids.max" => PidController::new(path, unified).set_pid_max(bound()?),
        file if file.starts_with("hugetlb.") && setting.value.parse::<u64>().is_ok() => {
            let size = file.split('.').nth(1).unwrap_or_default();
            HugeTlbController::new(path, unified).set_limit_in_bytes(size, number()?.unsigned_abs())
        }
        // What it has no method for: rates of devices set back to none, and files by name.
        file => return leaf.write(file, &setting.value),
    };
    result.map_err(|e| foreign::error("write", e))
}

/// Whether the kernel made of a value what was asked for.
fn check(leaf: &Leaf, setting: &Setting) -> Result<()> {
    let now = leaf.read(&setting.file)?;
    let (now, asked) = (now.trim(), setting.value.as_str());
    let same = match (setting.controller.as_str(), now.parse::<u64>(), asked.parse::<u64>()) {
        ("cpuset", ..) => true,
        ("io", ..) => match asked.split_once(' ') {
            Some((device, rate)) => {
                let (name, rate) = rate.split_once('=').map_or((None, rate), |(name, rate)| (Some(name), rate));
                matches!((rate_of(now, device, name), rate), (Some(now), rate) if now == rate)
                    || (rate_of(now, device, name).is_none() && matches!(rate, "0" | "max"))
            }
            None => true,
        },
        (_, Ok(now), Ok(asked)) => now == asked,
        // A file by name may be read back in other words than it was written in.
        _ => setting.file != "cpu.max" || now == asked,
    };
    if same { Ok(()) } else { Err(setting.not_applied(&format!("the kernel made {now:?} of it"))) }
}

#[cfg(test)]
mod tests {
    use super::rate_of;

    #[test]
    fn rates_are_found_by_device_and_name() {
        let new = "8:1 rbps=1 wbps=2 riops=max wiops=max\n8:16 rbps=5 wbps=max riops=7 wiops=max\n";
        let old = "8:1 100\n8:16 200\n";
        assert_eq!(rate_of(new, "8:16", Some("rbps")), Some("5"));
        assert_eq!(rate_of(new, "8:1", Some("wiops")), Some("max"));
        assert_eq!(rate_of(new, "8:2", Some("rbps")), None);
        assert_eq!(rate_of(old, "8:16", None), Some("200"));
        assert_eq!(rate_of("", "8:16", None), None);
    }
}
