//! Further processes in a running sandbox.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::sandbox::Sandbox;
use crate::sandbox::identity::resolve;
use crate::sandbox::launch::{Inputs, launch};
use crate::sandbox::options::{ProcessOptions, process_setters};
use crate::sandbox::plan::{Namespace, Plan, Step};
use crate::sandbox::prepare::{application, candidates};
use crate::sandbox::process::{Handle, Process};
use crate::sandbox::stdio::{Stdio, Streams};

/// Describes a further process in a sandbox; made by [`Sandbox::exec`].
#[derive(Debug)]
#[must_use]
pub struct ExecBuilder<'a> {
    sandbox: &'a Sandbox,
    command: Vec<String>,
    process: ProcessOptions,
}

impl<'a> ExecBuilder<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox, command: Vec<String>) -> Self {
        Self { sandbox, command, process: ProcessOptions::default() }
    }

    process_setters!();

    /// Starts the process with the privileges, filter and limits of the sandbox.
    ///
    /// # Errors
    /// As for [`SandboxBuilder::spawn`](crate::sandbox::SandboxBuilder::spawn); [`ErrorKind::Closed`] if the sandbox
    /// has ended.
    pub fn spawn(self) -> Result<Process> {
        let sandbox = self.sandbox;
        if sandbox.poll()?.is_some() {
            return Err(Error::new(ErrorKind::Closed, format!("sandbox {} has ended", sandbox.name())));
        }
        self.process.check_passed(0)?;
        let context = &sandbox.context;
        let (attached, groups) = sandbox.attachments().for_processes();
        let mut identity = match &self.process.user {
            Some(user) => resolve(user, &context.passwd, &context.group)?,
            None => context.identity.clone(),
        };
        identity.groups.extend(groups);
        let mut env = context.env.clone();
        for (name, value) in &attached {
            set(&mut env, name, value);
        }
        if self.process.user.is_some() {
            set(&mut env, "HOME", &identity.home);
        }
        for (name, value) in &self.process.env {
            set(&mut env, name, value);
        }
        if self.command.first().is_none_or(String::is_empty) {
            return Err(Error::new(ErrorKind::CommandNotFound, "no command was given"));
        }
        let entry = sandbox.cgroup.as_ref().map(crate::cgroup::Cgroup::entry);
        let cgroup_tasks: Vec<_> = entry.iter().flat_map(crate::cgroup::Entry::tasks).collect();
        let mut steps = Vec::new();
        if !cgroup_tasks.is_empty() {
            steps.push(Step::JoinCgroups { count: cgroup_tasks.len() });
        }
        steps.push(Step::EnterNamespaces { namespaces: context.namespaces.clone() });
        if context.namespaces.contains(&Namespace::User) {
            steps.push(Step::BecomeNamespaceRoot);
        }
        steps.extend([Step::Fork, Step::NewSession]);
        match self.process.terminal {
            Some((rows, columns)) => steps.push(Step::Terminal { rows, columns }),
            None => steps.push(Step::Stdio),
        }
        let working_dir = self.process.working_dir.as_deref().unwrap_or(&context.working_dir);
        steps.extend(application(context, &identity, working_dir, context.set_groups, 0o022)?);
        steps.extend(self.process.pass_step());
        let candidates = candidates(&self.command, &env);
        let envp = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        steps.push(Step::Execute { candidates, argv: self.command.clone(), envp });
        let plan = Plan { name: sandbox.name().to_owned(), namespaces: Vec::new(), init: true, steps };

        let streams = self.process.streams()?;
        let inputs = Inputs {
            cgroup: entry.as_ref().and_then(crate::cgroup::Entry::directory),
            cgroup_tasks,
            stdio: streams.as_ref().map(Streams::inside),
            target: Some(sandbox.handle.application()),
            passed: self.process.passed(),
            ..Inputs::default()
        };
        let wanted = || format!("execute in sandbox {}", sandbox.name());
        let mut running = launch(&plan, &inputs).with_context(wanted)?;
        let binds = running.binds.take();
        let host = streams.map_or([None, None, None], |streams| streams.host);
        let process = Process { handle: Handle::new(running, host)? };
        binds.map_or(Ok(()), |listener| sandbox.ports.hear(listener)).with_context(wanted)?;
        Ok(process)
    }
}

fn set(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => value.clone_into(old),
        None => env.push((name.to_owned(), value.to_owned())),
    }
}
