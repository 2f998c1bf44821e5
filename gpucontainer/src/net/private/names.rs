//! Who is called what, and who is asked for other names: the contents of `/etc/hosts` and `/etc/resolv.conf`.

use super::directory::Living;
use crate::error::Result;
use crate::sys::fs;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

/// What every hosts file begins with.
const LOCAL: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// The hosts file of a network with these members.
pub(super) fn hosts(members: &[Living]) -> String {
    let mut text = LOCAL.to_owned();
    for member in members {
        let names = member.names.join(" ");
        for address in &member.addresses {
            // A text takes whatever is written to it.
            let _ = writeln!(text, "{address}\t{names}");
        }
    }
    text
}

/// The resolver configuration for a network that reaches what the host reaches.
///
/// A name server on the host's own loopback is out of reach there. `systemd-resolved` says whom it asks itself.
pub(crate) fn resolver() -> Result<String> {
    let read = |path: &str| match fs::read_to_string(Path::new(path)) {
        Err(e) if e.kind() == crate::error::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    };
    let host = read("/etc/resolv.conf")?.unwrap_or_default();
    let text = reachable(&host);
    if has_server(&text) || !has_server(&host) {
        return Ok(text);
    }
    let upstream = read("/run/systemd/resolve/resolv.conf")?.unwrap_or_default();
    let upstream = reachable(&upstream);
    Ok(if has_server(&upstream) { upstream } else { text })
}

/// The lines of a resolver configuration without servers that a network of its own cannot reach.
fn reachable(text: &str) -> String {
    let mut kept = String::new();
    for line in text.lines() {
        let unreachable = server(line).is_some_and(|address| match address.parse::<IpAddr>() {
            Ok(address) => address.is_loopback() || address.is_unspecified(),
            // With the name of an interface of the host behind it.
            Err(_) => true,
        });
        if unreachable {
            kept.push_str("# Out of reach here: ");
        }
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

fn has_server(text: &str) -> bool {
    text.lines().any(|line| server(line).is_some())
}

fn server(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    (words.next() == Some("nameserver")).then(|| words.next()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_out_of_reach_are_left_out() {
        let table = [
            ("nameserver 8.8.8.8\nsearch x\n", "nameserver 8.8.8.8\nsearch x\n"),
            ("nameserver 127.0.0.53\noptions edns0", "# Out of reach here: nameserver 127.0.0.53\noptions edns0\n"),
            ("nameserver ::1\nnameserver fd00::1", "# Out of reach here: nameserver ::1\nnameserver fd00::1\n"),
            ("nameserver fe80::1%eth0", "# Out of reach here: nameserver fe80::1%eth0\n"),
            ("# nameserver 127.0.0.1\n", "# nameserver 127.0.0.1\n"),
            ("", ""),
        ];
        for (text, expected) in table {
            assert_eq!(reachable(text), expected);
        }
        assert!(has_server("search a\nnameserver 1.1.1.1"));
        assert!(!has_server("# Out of reach here: nameserver ::1"));
    }

    #[test]
    fn every_member_has_its_lines() {
        let member = |names: &[&str], addresses: &[&str]| Living {
            number: 2,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            holders: Vec::new(),
        };
        let text = hosts(&[member(&["web", "w"], &["10.88.0.2", "fd00::2"]), member(&["db"], &["10.88.0.3"])]);
        assert_eq!(text, format!("{LOCAL}10.88.0.2\tweb w\nfd00::2\tweb w\n10.88.0.3\tdb\n"));
    }
}
