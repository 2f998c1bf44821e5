//! The way back for connections that come from their clients' own addresses: what has the mark of
//! [`transparent`](crate::sys::transparent) is answered to the loopback device.

use crate::error::{Context, Result};
use crate::net::namespace::NetworkNamespace;
use crate::net::netlink::{Batch, carry_out};
use crate::sys::errno;
use crate::sys::netlink::Netlink;
use crate::sys::netns::{Family, Transport};
use crate::sys::transparent::MARK;

/// Makes answers to clients' own addresses come back to the relay. Once more changes nothing. A namespace without IPv6 does
/// without.
pub(in crate::net) fn lead_back(namespace: &NetworkNamespace) -> Result<()> {
    let lead = || {
        for socket in namespace.open_sockets(Family::V4, Transport::Routing, 1)? {
            let socket = Netlink::adopt(socket)?;
            lead_family(&socket, false)?;
            match lead_family(&socket, true) {
                Err(error) if is_without_v6(error.errno()) => {}
                other => other?,
            }
        }
        Ok(())
    };
    lead().context("keep clients' own addresses")
}

fn lead_family(socket: &Netlink, ipv6: bool) -> Result<()> {
    let (mut rule, mut route) = (Batch::new(), Batch::new());
    rule.new_rule_for_mark(ipv6, MARK, MARK);
    route.new_local_route_for_all(ipv6, MARK);
    [rule, route].iter().try_for_each(|batch| match carry_out(socket, batch) {
        Err(error) if error.errno() == Some(errno::EEXIST) => Ok(()),
        other => other,
    })
}

fn is_without_v6(errno: Option<i32>) -> bool {
    use errno::{EACCES, EAFNOSUPPORT, ENODEV, EOPNOTSUPP, EPERM};
    matches!(errno, Some(EAFNOSUPPORT | EOPNOTSUPP | EACCES | ENODEV | EPERM))
}
