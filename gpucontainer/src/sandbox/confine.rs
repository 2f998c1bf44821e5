//! The control group of a sandbox, and the devices that it lets through.

use crate::cgroup::{Cgroup, DeviceKind, DeviceRule};
use crate::error::{Error, ErrorKind, Result};
use crate::gpu::{DeviceNode, GpuGrant};
use crate::sandbox::config::SandboxBuilder;
use crate::sandbox::prepare::{CgroupFacts, Prepared};
use crate::sandbox::privileges::Capability;
use std::path::PathBuf;

/// The control group, or none where it is not needed and not possible.
pub(super) fn cgroup(builder: &SandboxBuilder, name: &str) -> Result<Option<Cgroup>> {
    if !builder.cgroup && builder.limits.is_empty() {
        return Ok(None);
    }
    match Cgroup::create(name, &builder.limits) {
        Ok(cgroup) => Ok(Some(cgroup)),
        Err(e)
            if builder.limits.is_empty()
                && matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) =>
        {
            tracing::debug!(error = %e, "a sandbox without a control group");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

pub(super) fn cgroup_facts(cgroup: Option<&Cgroup>) -> CgroupFacts {
    let Some(entry) = cgroup.map(Cgroup::entry) else { return CgroupFacts::default() };
    // The name of a hierarchy of version 1 below the usual place is its controllers, as `mount(8)` wants them.
    let hierarchy = |path: &PathBuf| {
        let below = path.strip_prefix("/sys/fs/cgroup").ok()?;
        below.components().next().map(|name| name.as_os_str().to_string_lossy().into_owned())
    };
    let tasks = entry.tasks().count();
    let paths = cgroup.map(Cgroup::paths).unwrap_or_default();
    let controllers = if tasks > 0 { paths.iter().filter_map(hierarchy).collect() } else { Vec::new() };
    CgroupFacts { tasks, controllers, version2: entry.directory().is_some() }
}

/// Keeps all devices but the usual and the granted ones away, also if a node of another appears inside.
///
/// Without the capability to make nodes, and with roots and mounts on which nodes of images do not work, none can
/// appear; the rules are made where that is not so, and with GPUs, whose neighbours are next to them.
pub(super) fn restrict_devices(
    builder: &SandboxBuilder,
    cgroup: Option<&Cgroup>,
    prepared: &Prepared,
) -> Result<Option<Vec<DeviceRule>>> {
    let makes_nodes = builder.capabilities & (Capability::Mknod.bit() | Capability::SysAdmin.bit()) != 0;
    if prepared.id_maps.is_some() || (prepared.grant.is_none() && !makes_nodes) {
        return Ok(None);
    }
    let Some(cgroup) = cgroup else {
        if !makes_nodes {
            return Ok(None);
        }
        let message = "CAP_MKNOD and CAP_SYS_ADMIN need a control group, which keeps the host's devices away";
        return Err(Error::new(ErrorKind::Unsupported, message));
    };
    let rules = device_rules(prepared.grant.iter());
    cgroup.allow_devices(&rules)?;
    Ok(Some(rules))
}

/// The rules of a sandbox with these grants.
pub(super) fn device_rules<'a>(grants: impl Iterator<Item = &'a GpuGrant>) -> Vec<DeviceRule> {
    let granted = grants.flat_map(|grant| &grant.device_nodes).filter_map(device_rule);
    DeviceRule::defaults().into_iter().chain(granted).collect()
}

/// What the device filter must let through for a granted node; nothing if no access to it is granted.
fn device_rule(node: &DeviceNode) -> Option<DeviceRule> {
    let access = node.access;
    let kind = if node.block { DeviceKind::Block } else { DeviceKind::Character };
    let rule = DeviceRule::device(kind, node.major, node.minor);
    (access.read || access.write || access.make).then(|| rule.only(access.read, access.write, access.make))
}
