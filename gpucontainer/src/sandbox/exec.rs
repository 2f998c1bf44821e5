//! Further processes in a running sandbox.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::sandbox::Sandbox;
use crate::sandbox::identity::resolve;
use crate::sandbox::launch::{Inputs, launch};
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
    env: Vec<(String, String)>,
    working_dir: Option<String>,
    user: Option<String>,
    terminal: Option<(u16, u16)>,
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
}

impl<'a> ExecBuilder<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox, command: Vec<String>) -> Self {
        Self {
            sandbox,
            command,
            env: Vec::new(),
            working_dir: None,
            user: None,
            terminal: None,
            stdin: Stdio::Inherit,
            stdout: Stdio::Inherit,
            stderr: Stdio::Inherit,
        }
    }

    /// Sets an environment variable, over that of the sandbox.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the working directory. By default the sandbox's.
    pub fn working_dir(mut self, path: impl Into<String>) -> Self {
        self.working_dir = Some(path.into());
        self
    }

    /// Runs as `user[:group]` of the image. By default as the sandbox's application.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Gives the process a terminal of `rows` and `columns`.
    pub fn terminal(mut self, rows: u16, columns: u16) -> Self {
        self.terminal = Some((rows, columns));
        self
    }

    /// Says what standard input is. The host's by default.
    pub fn stdin(mut self, stdin: Stdio) -> Self {
        self.stdin = stdin;
        self
    }

    /// Says what standard output is. The host's by default.
    pub fn stdout(mut self, stdout: Stdio) -> Self {
        self.stdout = stdout;
        self
    }

    /// Says what standard error is. The host's by default.
    pub fn stderr(mut self, stderr: Stdio) -> Self {
        self.stderr = stderr;
        self
    }

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
        let context = &sandbox.context;
        let identity = match &self.user {
            Some(user) => resolve(user, &context.passwd, &context.group)?,
            None => context.identity.clone(),
        };
        let mut env = context.env.clone();
        if self.user.is_some() {
            set(&mut env, "HOME", &identity.home);
        }
        for (name, value) in &self.env {
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
        match self.terminal {
            Some((rows, columns)) => steps.push(Step::Terminal { rows, columns }),
            None => steps.push(Step::Stdio),
        }
        let working_dir = self.working_dir.as_deref().unwrap_or(&context.working_dir);
        steps.extend(application(context, &identity, working_dir, context.set_groups, 0o022));
        let candidates = candidates(&self.command, &env);
        let envp = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        steps.push(Step::Execute { candidates, argv: self.command.clone(), envp });
        let plan = Plan { name: sandbox.name().to_owned(), namespaces: Vec::new(), init: true, steps };

        let streams = match self.terminal {
            Some(_) => None,
            None => Some(Streams::open([&self.stdin, &self.stdout, &self.stderr])?),
        };
        let inputs = Inputs {
            cgroup: entry.as_ref().and_then(crate::cgroup::Entry::directory),
            cgroup_tasks,
            stdio: streams.as_ref().map(Streams::inside),
            target: Some(sandbox.handle.application()),
            ..Inputs::default()
        };
        let running = launch(&plan, &inputs).with_context(|| format!("execute in sandbox {}", sandbox.name()))?;
        let host = streams.map_or([None, None, None], |streams| streams.host);
        Ok(Process { handle: Handle::new(running, host)? })
    }
}

fn set(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => value.clone_into(old),
        None => env.push((name.to_owned(), value.to_owned())),
    }
}
