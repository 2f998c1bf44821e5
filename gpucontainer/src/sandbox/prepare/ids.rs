//! Which ids a sandbox has: those of the host, of a user namespace of its own, or of one that it shares.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::net::NetworkNamespace;
use crate::sandbox::config::{Network, SandboxBuilder, UserNamespace};
use crate::sandbox::identity::IdMaps;
use crate::sys::process::is_privileged;

/// The ids of a sandbox.
#[derive(Debug)]
pub(super) struct Ids {
    /// The maps of its user namespace, `None` without one.
    pub(super) maps: Option<IdMaps>,
    /// Whether that is there already: the one that owns the network which the sandbox joins.
    pub(super) shared: bool,
}

impl Ids {
    /// Those that `builder` wants.
    ///
    /// # Errors
    /// [`PermissionDenied`](ErrorKind::PermissionDenied) for what needs privilege, a range that is none, files without
    /// ids for the caller, and what looking at the user namespace of a network to join meets.
    pub(super) fn of(builder: &SandboxBuilder) -> Result<Self> {
        let own = own(builder.user_namespace)?;
        match &builder.network {
            // Only its owner may be in it, who is whoever is privileged in its user namespace.
            Network::Join(network) if !is_privileged() => {
                let theirs = maps_of(network).context("share the user namespace of a network")?;
                let wanted = builder.user_namespace != UserNamespace::Auto;
                if wanted && own.as_ref().is_some_and(|own| !own.same_ids(&theirs)) {
                    let message = format!(
                        "user namespace {:?} has other ids than that of the network to join, which an ordinary user \
                         can only share",
                        builder.user_namespace
                    );
                    return Err(Error::new(ErrorKind::InvalidArgument, message));
                }
                Ok(Self { maps: Some(theirs), shared: true })
            }
            _ => Ok(Self { maps: own, shared: false }),
        }
    }
}

fn own(wanted: UserNamespace) -> Result<Option<IdMaps>> {
    let privileged = is_privileged();
    match wanted {
        UserNamespace::Auto if privileged => Ok(None),
        UserNamespace::Auto | UserNamespace::Oneself => Ok(Some(IdMaps::oneself())),
        UserNamespace::Host if privileged => Ok(None),
        UserNamespace::Shifted { first, count } if privileged => {
            if count == 0 || first.checked_add(count).is_none() {
                let message = format!("{count} ids from {first} on are no range of ids");
                return Err(Error::new(ErrorKind::InvalidArgument, message));
            }
            Ok(Some(IdMaps::shifted(first, count)))
        }
        UserNamespace::Subordinate => Ok(Some(IdMaps::subordinate()?)),
        UserNamespace::Host | UserNamespace::Shifted { .. } => {
            let message = format!("user namespace {wanted:?} needs CAP_SYS_ADMIN, which this process lacks");
            Err(Error::new(ErrorKind::PermissionDenied, message))
        }
    }
}

/// The maps of the user namespace that owns `network`.
fn maps_of(network: &NetworkNamespace) -> Result<IdMaps> {
    IdMaps::read(network.process_of_owner()?)
}
