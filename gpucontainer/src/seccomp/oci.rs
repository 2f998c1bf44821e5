//! Reading the profile of a runtime bundle.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::seccomp::filter::FilterFlags;
use crate::seccomp::profile::{Action, Architecture, Condition, ENOSYS, EPERM, Operator, Profile, Rule};
use crate::seccomp::tables;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};

/// The profile that a JSON text holds.
pub(super) fn parse(json: &str) -> Result<LinuxSeccomp> {
    let wrong = |cause| Error::new(ErrorKind::InvalidArgument, format!("seccomp profile: {cause}"));
    let value: serde_json::Value = serde_json::from_str(json).map_err(wrong)?;
    let depends = |rule: &serde_json::Value| {
        let says = |name: &str| rule[name].as_object().is_some_and(|conditions| !conditions.is_empty());
        says("includes") || says("excludes")
    };
    let rules = value["syscalls"].as_array();
    if value.get("archMap").is_some() || rules.is_some_and(|rules| rules.iter().any(depends)) {
        let message =
            "seccomp profile: the form with archMap, includes and excludes is Docker's own, not that of a bundle";
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    serde_json::from_value(value).map_err(wrong)
}

pub(super) fn profile(bundle: &LinuxSeccomp) -> Result<Profile> {
    let Some(native) = Architecture::NATIVE else {
        return Err(Error::new(ErrorKind::Unsupported, "seccomp profile: no system call table for this architecture"));
    };
    let default_action = action(bundle.default_action(), bundle.default_errno_ret())?;
    let mut profile = Profile::new(default_action);
    if matches!(default_action, Action::Errno(_) | Action::KillThread | Action::KillProcess | Action::Trap) {
        profile.unknown_action = Some(Action::Errno(ENOSYS));
    }
    for listed in bundle.architectures().iter().flatten() {
        profile = match listed {
            Arch::ScmpArchX86 if native == Architecture::X86_64 => profile.architecture(Architecture::X86),
            _ => profile,
        };
    }
    profile.flags = match bundle.flags() {
        Some(flags) => FilterFlags {
            log: flags.contains(&LinuxSeccompFilterFlag::SeccompFilterFlagLog),
            allow_speculation: flags.contains(&LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow),
            wait_killable: flags.contains(&LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv),
        },
        None => FilterFlags { allow_speculation: true, ..FilterFlags::default() },
    };

    let mut conditional = Vec::new();
    for syscall in bundle.syscalls().iter().flatten() {
        let wanted = || format!("seccomp rule for {}", syscall.names().join(", "));
        let action = action(syscall.action(), syscall.errno_ret()).with_context(wanted)?;
        if action == default_action {
            continue;
        }
        let names = || syscall.names().iter().filter(|name| tables::known(name)).cloned();
        let rule = || Rule::new(action, names());
        let conditions =
            syscall.args().iter().flatten().map(condition).collect::<Result<Vec<Condition>>>().with_context(wanted)?;
        if conditions.is_empty() {
            profile.rules.push(rule());
        } else if repeated_argument(&conditions) {
            // Nothing could be two values at once: engines have always read this as alternatives.
            conditional.extend(conditions.into_iter().map(|condition| rule().when(condition)));
        } else {
            conditional.push(conditions.into_iter().fold(rule(), Rule::when));
        }
    }
    profile.rules.extend(conditional);
    Ok(profile)
}

fn repeated_argument(conditions: &[Condition]) -> bool {
    conditions
        .iter()
        .enumerate()
        .any(|(at, condition)| conditions.iter().skip(at + 1).any(|other| other.argument == condition.argument))
}

fn action(action: LinuxSeccompAction, number: Option<u32>) -> Result<Action> {
    let number = || {
        let number = number.unwrap_or(EPERM.into());
        u16::try_from(number).ok().filter(|number| *number <= 4095).ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, format!("seccomp profile: error number {number} is above 4095"))
        })
    };
    Ok(match action {
        // The older word means the thread, as for the C library that the format is named after.
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => Action::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => Action::KillProcess,
        LinuxSeccompAction::ScmpActTrap => Action::Trap,
        LinuxSeccompAction::ScmpActErrno => Action::Errno(number()?),
        LinuxSeccompAction::ScmpActNotify => Action::Notify,
        LinuxSeccompAction::ScmpActTrace => Action::Trace(number()?),
        LinuxSeccompAction::ScmpActLog => Action::Log,
        LinuxSeccompAction::ScmpActAllow => Action::Allow,
    })
}

fn condition(argument: &LinuxSeccompArg) -> Result<Condition> {
    let index = u8::try_from(argument.index()).ok().filter(|index| *index <= 5).ok_or_else(|| {
        let message = format!("seccomp profile: system calls have arguments 0 to 5, not {}", argument.index());
        Error::new(ErrorKind::InvalidArgument, message)
    })?;
    let value = argument.value();
    Ok(match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => Condition::new(index, Operator::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => Condition::new(index, Operator::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => Condition::new(index, Operator::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpEq => Condition::new(index, Operator::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => Condition::new(index, Operator::GreaterOrEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => Condition::new(index, Operator::Greater, value),
        // Here the first value is the mask and the second is what the rest must be.
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            Condition::new(index, Operator::MaskedEqual(value), argument.value_two().unwrap_or(0))
        }
    })
}
