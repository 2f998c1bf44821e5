//! What must hold of a configuration by itself, before anything is looked at or made.

use crate::error::{Error, ErrorKind, Result};
use crate::net::PortMode;
use crate::rootfs::Writable;
use crate::sandbox::config::{Network, SandboxBuilder, UserNamespace};
use crate::sandbox::defaults;

/// Checks the values that need nothing but themselves.
pub(crate) fn check(builder: &SandboxBuilder) -> Result<()> {
    let bad = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
    builder.mounts.iter().try_for_each(crate::sandbox::mount::Mount::check)?;
    builder.limits.check()?;
    if let Some(name) = &builder.name {
        if !crate::sandbox::is_name(name) {
            return bad(format!("sandbox name {name:?} is not 1 to 64 letters, digits, '.', '_' and '-'"));
        }
    }
    for (name, value) in &builder.process.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return bad(format!("environment variable {name:?} cannot be set"));
        }
    }
    let handed = builder.ports.iter().filter(|port| port.wanted_mode() == PortMode::HandOver);
    // One of each family, at most.
    let handed: usize = handed.map(|port| 2 * usize::from(port.count())).sum();
    builder.process.check_passed(3 + handed)?;
    if let Some(path) = &builder.process.working_dir {
        if !path.starts_with('/') {
            return bad(format!("working directory {path:?} is not an absolute path"));
        }
    }
    if let Some(hostname) = &builder.hostname {
        if hostname.is_empty() || hostname.len() > 64 || hostname.contains(['\0', '\n', ' ']) {
            return bad(format!("host name {hostname:?} is not 1 to 64 bytes without spaces"));
        }
    }
    if let Some(pid) = builder.application_pid {
        // The kernel's own highest is one less than the number of ids that a system of 64 bits may have.
        if !(2..1 << 22).contains(&pid) {
            return bad(format!("the application's process id {pid} is not within 2 to 4194303"));
        }
        let limit = crate::sys::fs::read_to_string("/proc/sys/kernel/pid_max".as_ref())?;
        if limit.trim().parse().is_ok_and(|limit: u32| pid >= limit) {
            return bad(format!(
                "the application's process id {pid} is not below the host's limit of {}",
                limit.trim()
            ));
        }
        if !builder.init {
            return bad(format!("the application's process id cannot be {pid}: without init it is process 1"));
        }
    }
    if builder.oom_score.is_some_and(|score| !(-1000..=1000).contains(&score)) {
        return bad("the out-of-memory score adjustment is not within -1000 to 1000".to_owned());
    }
    for (name, _) in &builder.sysctls {
        defaults::check_sysctl(name, matches!(builder.network, Network::Host | Network::Join(_)))?;
    }
    if let Network::Private(network) = &builder.network {
        network.check(&crate::sandbox::network::names(builder, builder.name.as_deref()))?;
    }
    if builder.user_namespace == UserNamespace::Subordinate && builder.writable == Some(Writable::Disk) {
        return bad(
            "writes of subordinate ids to disk could not be removed afterwards; let them go to memory".to_owned()
        );
    }
    if builder.network.is_host() && !builder.ports.is_empty() {
        return bad(
            "ports are published from a network of the sandbox's own; with the host's there is nothing to publish"
                .to_owned(),
        );
    }
    let translated = builder.ports.iter().find(|port| port.wanted_mode() == PortMode::Nat);
    if let (Some(mapping), Network::None | Network::Outbound) = (translated, &builder.network) {
        return bad(format!("publish {mapping}: nat: without a private network the host has no route to the sandbox"));
    }
    if builder.network.is_host() && !builder.services.is_empty() {
        return bad("every service of the host is there with the host's network; there is nothing to expose".to_owned());
    }
    for (limit, soft, hard) in &builder.resource_limits {
        if soft > hard {
            return bad(format!("the soft limit {soft} of {} is above the hard limit {hard}", limit.kernel().0));
        }
    }
    Ok(())
}
