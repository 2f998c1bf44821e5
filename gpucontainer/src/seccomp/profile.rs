//! The profile: rules about system calls, in words.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::seccomp::{compile, default, filter, oci, tables};
use crate::sys::fs;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::path::Path;

/// The error number of an operation that is not permitted; the same on every architecture here.
pub(super) const EPERM: u16 = 1;
/// The error number of a call that does not exist; the same on every architecture here.
pub(super) const ENOSYS: u16 = 38;

/// How a system call is answered.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Action {
    /// The call happens.
    Allow,
    /// The call happens and the kernel writes it to its audit log.
    Log,
    /// The call does not happen and fails with this error number, 0 to 4,095.
    Errno(u16),
    /// The call does not happen and the thread gets `SIGSYS`, which it can handle.
    Trap,
    /// A tracer decides, and is told this number; without one the call fails with `ENOSYS`.
    Trace(u16),
    /// The holder of the filter's listener decides. The filter must be loaded with a listener.
    Notify,
    /// The thread is killed.
    KillThread,
    /// The process is killed, as if by `SIGSYS`.
    KillProcess,
}

/// A system call interface; a 64-bit kernel has one for 32-bit programs besides its own.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Architecture {
    /// 64-bit x86, without the x32 interface.
    X86_64,
    /// 32-bit x86, also called i386.
    X86,
    /// 64-bit ARM.
    Aarch64,
}

impl Architecture {
    pub(super) const ALL: [Self; 3] = [Self::X86_64, Self::X86, Self::Aarch64];

    /// The interface that this library was compiled for, if its numbers are known here.
    pub const NATIVE: Option<Self> = if cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
        Some(Self::X86_64)
    } else if cfg!(target_arch = "x86") {
        Some(Self::X86)
    } else if cfg!(target_arch = "aarch64") {
        Some(Self::Aarch64)
    } else {
        None
    };

    /// The value by which the kernel tells a filter that a call came through this interface.
    pub fn audit_value(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
        }
    }

    /// The number of the system call `name` here, if there is such a call.
    pub fn number(self, name: &str) -> Option<u32> {
        tables::number(self, name)
    }
}

/// How an argument is compared; all comparisons are of unsigned 64-bit numbers.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Operator {
    /// The argument is the value.
    Equal,
    /// The argument is not the value.
    NotEqual,
    /// The argument is less than the value.
    Less,
    /// The argument is the value or less.
    LessOrEqual,
    /// The argument is greater than the value.
    Greater,
    /// The argument is the value or greater.
    GreaterOrEqual,
    /// The argument's bits that are set in the mask are the value.
    MaskedEqual(u64),
}

/// A condition on one argument of a system call.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    pub(super) argument: u8,
    pub(super) operator: Operator,
    pub(super) value: u64,
}

impl Condition {
    /// Compares argument number `argument` (0 to 5) with `value`.
    ///
    /// The kernel passes whole registers. A call whose argument is an `int` ignores the upper half, which
    /// a hostile caller may fill: compare such an argument with [`Condition::int`].
    pub fn new(argument: u8, operator: Operator, value: u64) -> Self {
        Self { argument, operator, value }
    }

    /// Holds if the lower half of argument number `argument` (0 to 5) is `value`.
    pub fn int(argument: u8, value: u32) -> Self {
        Self::new(argument, Operator::MaskedEqual(0xffff_ffff), value.into())
    }

    pub(super) fn holds(&self, arguments: &[u64; 6]) -> bool {
        let Some(&argument) = arguments.get(usize::from(self.argument)) else { return false };
        match self.operator {
            Operator::Equal => argument == self.value,
            Operator::NotEqual => argument != self.value,
            Operator::Less => argument < self.value,
            Operator::LessOrEqual => argument <= self.value,
            Operator::Greater => argument > self.value,
            Operator::GreaterOrEqual => argument >= self.value,
            Operator::MaskedEqual(mask) => argument & mask == self.value,
        }
    }
}

/// What happens to some system calls, always or under conditions.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub(super) action: Action,
    pub(super) names: Vec<Cow<'static, str>>,
    /// All must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) conditions: Vec<Condition>,
}

impl Rule {
    /// Answers the system calls `names` with `action`.
    ///
    /// A name that only another architecture has is passed over; one that none has makes
    /// [`Profile::compile`] fail.
    pub fn new<N: Into<Cow<'static, str>>>(action: Action, names: impl IntoIterator<Item = N>) -> Self {
        Self { action, names: names.into_iter().map(Into::into).collect(), conditions: Vec::new() }
    }

    /// Narrows the rule to calls for which `condition` holds, and all others given before.
    #[must_use]
    pub fn when(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }
}

/// Which system calls a container may make; see the [room](crate::seccomp) for how rules are read.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    pub(super) default_action: Action,
    #[serde(default)]
    pub(super) unknown_action: Option<Action>,
    #[serde(default = "kill")]
    pub(super) foreign_action: Action,
    pub(super) architectures: Vec<Architecture>,
    #[serde(default)]
    pub(super) flags: filter::FilterFlags,
    pub(super) rules: Vec<Rule>,
}

fn kill() -> Action {
    Action::KillProcess
}

impl Profile {
    /// A profile without rules: every call of the native architecture gets `default_action`, calls of
    /// other architectures kill the process, and no call is taken for unknown.
    pub fn new(default_action: Action) -> Self {
        Self {
            default_action,
            unknown_action: None,
            foreign_action: kill(),
            architectures: Architecture::NATIVE.into_iter().collect(),
            flags: filter::FilterFlags::default(),
            rules: Vec::new(),
        }
    }

    /// A profile that allows everything. Its filter need not be loaded: [`Filter::allows_everything`].
    ///
    /// [`Filter::allows_everything`]: crate::seccomp::Filter::allows_everything
    pub fn allow_all() -> Self {
        let mut profile = Self::new(Action::Allow);
        profile.foreign_action = Action::Allow;
        profile
    }

    /// The profile of a sandbox that holds `capabilities`: bit n stands for capability number n, as in the
    /// kernel's own masks.
    ///
    /// An allow-list of what ordinary programs need, language runtimes, package managers, debuggers and
    /// CUDA included; all else fails with `EPERM`. Not on it, unless the capability in brackets is granted:
    /// mounting, namespaces, `fanotify_init` and quotas (`CAP_SYS_ADMIN`), `bpf` (`CAP_BPF`),
    /// `perf_event_open` (`CAP_PERFMON`), kernel modules (`CAP_SYS_MODULE`), `chroot` (`CAP_SYS_CHROOT`),
    /// setting clocks (`CAP_SYS_TIME`), `open_by_handle_at` (`CAP_DAC_READ_SEARCH`), I/O ports
    /// (`CAP_SYS_RAWIO`), `reboot` (`CAP_SYS_BOOT`), `acct` (`CAP_SYS_PACCT`), `syslog` (`CAP_SYSLOG`),
    /// `vhangup` (`CAP_SYS_TTY_CONFIG`), moving other processes' pages (`CAP_SYS_NICE`), `userfaultfd`,
    /// `kcmp` and `pidfd_getfd` (`CAP_SYS_PTRACE`). Never on it, since they are not confined to a
    /// container or have a history of holes: kernel keyrings, `kexec_load`, swap and `io_uring`.
    ///
    /// `clone` is refused with flags that make namespaces, and `clone3`, whose flags a filter cannot read,
    /// fails with `ENOSYS` so that C libraries fall back to `clone`. `AF_VSOCK` and `AF_ALG` sockets are
    /// refused (hypervisor and kernel crypto surface), `personality` takes only harmless values, and
    /// pushing input into a terminal (`TIOCSTI`, `TIOCLINUX`) is refused.
    ///
    /// Two differences from what container engines commonly allow are on purpose: memory policies
    /// (`mbind` and its kind) are allowed, as CUDA libraries place memory with them, and 32-bit programs
    /// are not.
    pub fn default_for(capabilities: u64) -> Self {
        default::profile(capabilities)
    }

    /// Reads the profile of a runtime bundle.
    ///
    /// Rules are read as container engines do: a rule without conditions goes before those with some, a
    /// rule that repeats the default action says nothing, two conditions on the same argument are
    /// alternatives, names that no architecture here knows are passed over, and so are architectures
    /// without a table here: their calls are refused.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for an argument number above 5 or
    /// an error number above 4,095, and [`ErrorKind::Unsupported`] if this
    /// machine's architecture has no table.
    pub fn from_oci(profile: &oci_spec::runtime::LinuxSeccomp) -> Result<Self> {
        oci::profile(profile)
    }

    /// Reads the JSON text of the profile of a runtime bundle, its `seccomp` object; see [`Profile::from_oci`].
    ///
    /// Docker's own form of it, in which rules depend on the container's capabilities, is refused: without the
    /// capabilities such a rule could only be read as more than it says.
    ///
    /// # Errors
    /// Those of [`Profile::from_oci`]; [`ErrorKind::InvalidArgument`] for text
    /// that is no such profile, and [`ErrorKind::Unsupported`] for Docker's form.
    pub fn from_json(json: &str) -> Result<Self> {
        oci::profile(&oci::parse(json)?)
    }

    /// Reads a profile, as [`Profile::from_json`], from a file of the host of at most 1 MiB.
    ///
    /// # Errors
    /// Those of [`Profile::from_json`], and what reading the file gives.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let wanted = || format!("seccomp profile {}", path.display());
        let bytes = fs::read_small(path).with_context(wanted)?;
        let text = String::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::InvalidArgument, "it is not UTF-8"));
        text.and_then(|text| Self::from_json(&text)).with_context(wanted)
    }

    /// Puts `rule` before all rules that are there.
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.insert(0, rule);
        self
    }

    /// Puts `rule` after all rules that are there.
    #[must_use]
    pub fn rule_after(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Lets the rules hold for calls of `architecture` too.
    #[must_use]
    pub fn architecture(mut self, architecture: Architecture) -> Self {
        if !self.architectures.contains(&architecture) {
            self.architectures.push(architecture);
        }
        self
    }

    /// Sets what happens to calls that no rule could have meant; `None` gives them the default action.
    #[must_use]
    pub fn unknown_action(mut self, action: Option<Action>) -> Self {
        self.unknown_action = action;
        self
    }

    /// Sets what happens to calls of architectures that are not listed. The process is killed by default.
    #[must_use]
    pub fn foreign_action(mut self, action: Action) -> Self {
        self.foreign_action = action;
        self
    }

    /// Sets the flags that the filter is loaded with.
    #[must_use]
    pub fn flags(mut self, flags: filter::FilterFlags) -> Self {
        self.flags = flags;
        self
    }

    /// What happens to a call: the meaning of a profile, which the compiled filter shares.
    pub fn decide(&self, architecture: Architecture, number: u32, arguments: &[u64; 6]) -> Action {
        if self.is_allow_all() {
            return Action::Allow;
        }
        if !self.architectures.contains(&architecture) {
            return self.foreign_action;
        }
        if architecture == Architecture::X86_64 && number >= compile::X32_BIT {
            return Action::Errno(ENOSYS);
        }
        let table = tables::table(architecture);
        let name = table.iter().find(|entry| entry.1 == number).map(|entry| entry.0);
        let names = || self.rules.iter().flat_map(|rule| &rule.names);
        let newest = names().filter_map(|name| architecture.number(name)).max();
        if let (Some(action), true) = (self.unknown_action, name.is_none() || newest.is_none_or(|n| number > n)) {
            return action;
        }
        let matching = |rule: &&Rule| {
            rule.names.iter().any(|known| Some(known.as_ref()) == name)
                && rule.conditions.iter().all(|condition| condition.holds(arguments))
        };
        self.rules.iter().find(matching).map_or(self.default_action, |rule| rule.action)
    }

    /// Turns the profile into the program that the kernel runs at every call.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a call that no architecture
    /// has, an argument number above 5, an error number above 4,095, or a profile whose program exceeds the
    /// kernel's 4,096 instructions.
    pub fn compile(&self) -> Result<filter::Filter> {
        compile::compile(self)
    }

    pub(super) fn is_allow_all(&self) -> bool {
        let allow = |action| action == Action::Allow;
        allow(self.default_action)
            && allow(self.foreign_action)
            && self.unknown_action.is_none_or(allow)
            && self.rules.iter().all(|rule| allow(rule.action))
    }
}
