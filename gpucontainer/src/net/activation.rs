//! Sockets that this process was started with, by the protocol of `sd_listen_fds(3)`.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::activation::{duplicate_inherited, own_pid};
use std::os::fd::OwnedFd;

/// A socket that a service manager, or whoever else started this process, has opened for it.
#[derive(Debug)]
#[non_exhaustive]
pub struct ActivatedSocket {
    /// Its name in `LISTEN_FDNAMES`; `unknown` where that is not set.
    pub name: String,
    /// A descriptor of it, closed on exec. The one that this process was started with stays open besides.
    pub socket: OwnedFd,
}

/// The sockets that this process was started with, in their order; none if it was not started so.
///
/// Reads `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` and changes nothing of them: variables that name another process
/// are another's. The descriptors that were inherited stay as they are but for being closed on exec, so this can be asked
/// any number of times. [`PortMapper::adopt`](super::PortMapper::adopt) leads a socket to a container.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for variables that are no numbers, or as many names as there are not sockets, and the
/// system's error for descriptors that are not open.
pub fn activated() -> Result<Vec<ActivatedSocket>> {
    let variable = |name: &str| std::env::var(name).ok();
    let names = parse(
        own_pid(),
        variable("LISTEN_PID").as_deref(),
        variable("LISTEN_FDS").as_deref(),
        variable("LISTEN_FDNAMES").as_deref(),
    )?;
    let socket = |(number, name)| Ok(ActivatedSocket { name, socket: duplicate_inherited(number)? });
    (FIRST..).zip(names).map(socket).collect()
}

/// `SD_LISTEN_FDS_START`.
const FIRST: i32 = 3;
/// More than any process has.
const MAX: usize = 1 << 20;

/// The names of as many sockets as there are.
fn parse(own: u32, pid: Option<&str>, count: Option<&str>, names: Option<&str>) -> Result<Vec<String>> {
    let bad = |name: &str, value: &str| {
        Error::new(
            ErrorKind::InvalidArgument,
            format!("take the sockets that this process was started with: {name}={value:?}"),
        )
    };
    let (Some(pid), Some(count)) = (pid, count) else { return Ok(Vec::new()) };
    if pid.parse::<u32>().map_err(|_| bad("LISTEN_PID", pid))? != own {
        return Ok(Vec::new());
    }
    let number = count.parse().ok().filter(|number| *number <= MAX).ok_or_else(|| bad("LISTEN_FDS", count))?;
    let Some(names) = names else { return Ok(vec!["unknown".to_owned(); number]) };
    let list: Vec<String> =
        if number == 0 && names.is_empty() { Vec::new() } else { names.split(':').map(str::to_owned).collect() };
    if list.len() != number {
        return Err(bad("LISTEN_FDNAMES", names));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_say_which_sockets_there_are() {
        type Case<'a> = ([Option<&'a str>; 3], Option<&'a [&'a str]>);
        let cases: [Case<'_>; 10] = [
            ([None, None, None], Some(&[])),
            ([Some("7"), None, None], Some(&[])),
            ([Some("8"), Some("2"), None], Some(&[])),
            ([Some("7"), Some("2"), None], Some(&["unknown", "unknown"])),
            ([Some("7"), Some("2"), Some("a:b")], Some(&["a", "b"])),
            ([Some("7"), Some("0"), Some("")], Some(&[])),
            ([Some("7"), Some("1"), Some("a:b")], None),
            ([Some("x"), Some("1"), None], None),
            ([Some("7"), Some("-1"), None], None),
            ([Some("7"), Some("99999999"), None], None),
        ];
        for ([pid, count, names], expected) in cases {
            let parsed = parse(7, pid, count, names).ok();
            let expected = expected.map(|names| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
            assert_eq!(parsed, expected, "{pid:?} {count:?} {names:?}");
        }
    }
}
