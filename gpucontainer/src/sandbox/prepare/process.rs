//! The process: what it runs, with which variables, and what it may do.

use super::ExecContext;
use super::planner::Planner;
use crate::error::{Error, ErrorKind, Result};
use crate::gpu::GpuGrant;
use crate::image::ImageConfig;
use crate::sandbox::config::SandboxBuilder;
use crate::sandbox::defaults;
use crate::sandbox::identity::Identity;
use crate::sandbox::plan::Step;
use std::sync::Arc;

/// The image's environment, then what every container has, then the grant's, then the caller's.
pub(super) fn environment(
    builder: &SandboxBuilder,
    config: &ImageConfig,
    identity: &Identity,
    grant: Option<&GpuGrant>,
) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str, replace: bool| match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) if replace => value.clone_into(old),
        Some(_) => {}
        None => env.push((name.to_owned(), value.to_owned())),
    };
    for line in &config.env {
        if let Some((name, value)) = line.split_once('=') {
            set(name, value, true);
        }
    }
    set("PATH", defaults::PATH, false);
    set("HOME", &identity.home, false);
    if builder.process.terminal.is_some() {
        set("TERM", "xterm", false);
    }
    for (name, value) in grant.iter().flat_map(|grant| &grant.environment) {
        set(name, value, true);
    }
    for (name, value) in &builder.process.env {
        set(name, value, true);
    }
    env
}

/// Entrypoint and command by the rules of image configurations.
pub(super) fn command(builder: &SandboxBuilder, config: &ImageConfig) -> Result<Vec<String>> {
    let entrypoint = builder.entrypoint.as_ref().unwrap_or(&config.entrypoint);
    let command = match (&builder.command, &builder.entrypoint) {
        (Some(command), _) => command.as_slice(),
        // The image's arguments are meant for the image's own entrypoint.
        (None, Some(_)) => &[],
        (None, None) => &config.command,
    };
    let argv: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    match argv.first() {
        Some(first) if !first.is_empty() => Ok(argv),
        _ => Err(Error::new(ErrorKind::CommandNotFound, "no command was given, and the image names none")),
    }
}

/// The places where the command is looked for.
pub(crate) fn candidates(argv: &[String], env: &[(String, String)]) -> Vec<String> {
    let command = argv.first().map_or("", String::as_str);
    if command.contains('/') {
        return vec![command.to_owned()];
    }
    let path = env.iter().find(|(name, _)| name == "PATH").map_or(defaults::PATH, |(_, value)| value);
    path.split(':')
        .filter(|directory| !directory.is_empty())
        .map(|directory| format!("{directory}/{command}"))
        .collect()
}

pub(super) fn filter(builder: &SandboxBuilder) -> Result<Vec<u64>> {
    let filter = match &builder.seccomp {
        Some(profile) => Arc::new(profile.compile()?),
        None => crate::seccomp::default_filter(builder.capabilities)?,
    };
    if filter.needs_listener() {
        return Err(Error::new(ErrorKind::InvalidArgument, "a sandbox's filter cannot ask a listener"));
    }
    if filter.allows_everything() {
        return Ok(Vec::new());
    }
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        u64::from_ne_bytes(word)
    };
    Ok(filter.to_bytes().chunks_exact(8).map(word).collect())
}

impl Planner<'_> {
    pub(super) fn process(&mut self, context: &ExecContext, argv: Vec<String>, names: Vec<String>) -> Result<()> {
        let builder = self.builder;
        for (resource, soft, hard) in &builder.resource_limits {
            let (name, resource) = resource.kernel();
            self.add(Step::ResourceLimit { name, resource, soft: *soft, hard: *hard });
        }
        if let Some(adjustment) = builder.oom_score {
            self.add(Step::OomScore { adjustment });
        }
        match builder.process.terminal {
            Some((rows, columns)) => self.add(Step::Terminal { rows, columns }),
            None => self.add(Step::Stdio),
        }
        let set_groups = context.set_groups;
        self.steps.extend(application(context, &context.identity, &context.working_dir, set_groups, builder.umask)?);
        let candidates = candidates(&argv, &context.env);
        let mut envp: Vec<String> = context.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !names.is_empty() {
            // The supervisor is process 1, if it is inside at all.
            let pid = builder.application_pid.unwrap_or(if builder.init { 2 } else { 1 });
            envp.retain(|line| !line.starts_with("LISTEN_"));
            envp.extend([format!("LISTEN_PID={pid}"), format!("LISTEN_FDS={}", names.len())]);
            envp.push(format!("LISTEN_FDNAMES={}", names.join(":")));
            self.add(Step::HandOver { names });
        }
        self.steps.extend(builder.process.pass_step());
        self.add(Step::Execute { candidates, argv, envp });
        Ok(())
    }
}

/// The steps that make a process an ordinary one of the container, from privileges to working directory.
pub(crate) fn application(
    context: &ExecContext,
    identity: &Identity,
    working_dir: &str,
    set_groups: bool,
    umask: u32,
) -> Result<Vec<Step>> {
    let mut steps = vec![Step::Umask { mask: umask }];
    let last = crate::sys::launch::last_capability()?;
    steps.push(Step::BoundingSet { mask: context.capabilities, last });
    let groups = set_groups.then(|| identity.groups.clone());
    steps.push(Step::User { user: identity.user, group: identity.group, groups });
    // As the kernel has it for a program started by another user: its capabilities are gone.
    steps.push(Step::Capabilities { mask: if identity.user == 0 { context.capabilities } else { 0 } });
    steps.push(Step::WorkingDirectory { path: working_dir.to_owned() });
    if !context.new_privileges {
        steps.push(Step::NoNewPrivileges);
    }
    if context.watch_binds.is_ok() {
        // Before the filter that may forbid what this takes.
        steps.push(Step::WatchBinds);
    }
    if !context.filter.is_empty() {
        steps.push(Step::Seccomp { instructions: context.filter.clone(), length: context.filter.len() });
    }
    Ok(steps)
}
