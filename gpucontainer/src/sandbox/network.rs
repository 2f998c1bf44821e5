//! What a sandbox has of networks that are there before it.

use crate::error::{Context, Result};
use crate::net::outbound::Outbound;
use crate::net::{NetworkMember, NetworkNamespace};
use crate::sandbox::config::{Network, SandboxBuilder};
use crate::sandbox::launch::Running;
use crate::sandbox::plan::{Plan, Step};
use crate::sys::{netns, process};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The network of a start.
#[derive(Debug)]
pub(crate) enum Joined {
    /// One of its own or the host's: the start makes it, or nothing is to be done.
    Nothing,
    /// One of its own, with a way out.
    Outbound(Outbound),
    /// A private network.
    Member(Box<NetworkMember>),
    /// Somebody else's.
    Namespace(NetworkNamespace),
}

/// What a sandbox called `name` is called in a private network.
pub(crate) fn names(builder: &SandboxBuilder, name: Option<&str>) -> Vec<String> {
    let mut names: Vec<String> = name.map(str::to_owned).into_iter().collect();
    names.extend(builder.hostname.iter().filter(|hostname| Some(hostname.as_str()) != name).cloned());
    names
}

impl Joined {
    /// Comes into the network that `builder` wants.
    pub(crate) fn join(builder: &SandboxBuilder, name: &str) -> Result<Self> {
        match &builder.network {
            Network::Private(network) => {
                let of_network = |(name, _): &&(String, String)| name.starts_with("net.");
                let settings: Vec<_> = builder.sysctls.iter().filter(of_network).cloned().collect();
                let member = network.join_as(&names(builder, Some(name)), &settings)?;
                Ok(Self::Member(Box::new(member)))
            }
            Network::Join(namespace) => Ok(Self::Namespace(namespace.clone())),
            Network::Outbound => Ok(Self::Outbound(Outbound::prepare()?)),
            Network::None | Network::Host => Ok(Self::Nothing),
        }
    }

    /// The namespace to start in, as `setns(2)` takes it.
    pub(crate) fn entrance(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Nothing | Self::Outbound(_) => None,
            Self::Member(member) => Some(member.as_fd()),
            Self::Namespace(namespace) => Some(namespace.entrance()),
        }
    }

    /// The namespaces to enter one after the other where the network is shared together with the user namespace that
    /// owns it, each with its kind, as `setns(2)` takes them.
    pub(crate) fn shared(&self, plan: &Plan) -> Vec<(BorrowedFd<'_>, u64)> {
        let shares = plan.steps.iter().any(|step| matches!(step, Step::ShareNetwork { .. }));
        match self {
            Self::Namespace(network) if shares => network.entrances(),
            _ => Vec::new(),
        }
    }

    /// What the supervisor holds, so that the network lives as long as it.
    pub(crate) fn holders(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let (member, claim) = match self {
            Self::Member(member) => (Some(member), None),
            Self::Outbound(outbound) => (None, outbound.claim()),
            Self::Nothing | Self::Namespace(_) => (None, None),
        };
        member.into_iter().flat_map(|member| member.holders()).chain(claim)
    }

    /// What gives the network a way out once it is there.
    pub(crate) fn outbound(&self) -> Option<&Outbound> {
        match self {
            Self::Outbound(outbound) => Some(outbound),
            _ => None,
        }
    }

    /// `/sys` with the devices of the network, and the number of the source that it is in `plan`; `None` where the
    /// sandbox mounts its own or the host's.
    pub(crate) fn sys(&self, plan: &Plan) -> Result<Option<(usize, OwnedFd)>> {
        let bound = plan.steps.iter().find_map(|step| match step {
            Step::Sys { bound, .. } => *bound,
            _ => None,
        });
        let (Some(source), Some(network)) = (bound, self.entrance()) else { return Ok(None) };
        Ok(Some((source, netns::sysfs(network)?)))
    }

    /// Tells others who look for the network that the supervisor has it.
    pub(crate) fn held_by(&self, running: &Running) -> Result<()> {
        let Self::Member(member) = self else { return Ok(()) };
        let pid = process::pid_of(&running.supervisor)?.and_then(|pid| u32::try_from(pid).ok());
        let number = |fd: BorrowedFd<'_>| {
            let claim = running.claims.iter().find(|(own, _)| *own == fd.as_raw_fd());
            claim.map_or(-1, |(_, theirs)| *theirs)
        };
        pid.map_or(Ok(()), |pid| member.add_holder(pid, number)).context("tell who is in a private network")
    }

    /// Leaves it to the supervisor.
    pub(crate) fn forget(&mut self) {
        match self {
            Self::Member(member) => member.forget(),
            Self::Outbound(outbound) => outbound.forget(),
            Self::Nothing | Self::Namespace(_) => {}
        }
    }

    /// Gives the address and the names back.
    pub(crate) fn leave(self) -> Result<()> {
        match self {
            Self::Member(member) => member.leave(),
            Self::Nothing | Self::Outbound(_) | Self::Namespace(_) => Ok(()),
        }
    }
}
