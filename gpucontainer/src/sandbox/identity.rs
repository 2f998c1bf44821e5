//! Users and groups: names of the image's own files, and the maps of a user namespace.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::fs;
use crate::sys::process::{own_ids, own_user_name};
use serde::Serialize;
use std::path::Path;
use std::process::Command;

/// Who the application runs as, in ids of the container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Identity {
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Resolves `user[:group]`, names or numbers, by the text of `/etc/passwd` and `/etc/group` of the image.
///
/// The empty text is root. A number need not be in the files; its group is then 0 and its home `/`.
pub(crate) fn resolve(wanted: &str, passwd: &str, group: &str) -> Result<Identity> {
    let (user_text, group_text) = wanted.split_once(':').map_or((wanted, None), |(user, group)| (user, Some(group)));
    let user_text = if user_text.is_empty() { "0" } else { user_text };
    let number: Option<u32> = user_text.parse().ok();
    // name:password:uid:gid:comment:home:shell
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 6
            && (fields[0] == user_text || number.is_some() && fields[2].parse() == Ok(number.unwrap_or(0)))
    });
    let mut identity = match (&entry, number) {
        (Some(fields), _) => Identity {
            user: id(fields[2], "user", fields[0])?,
            group: id(fields[3], "group", fields[0])?,
            groups: Vec::new(),
            home: if fields[5].is_empty() { "/".to_owned() } else { fields[5].to_owned() },
        },
        (None, Some(user)) => Identity { user, group: 0, groups: Vec::new(), home: default_home(user) },
        (None, None) => {
            let message = format!("user {user_text:?} is not in the image's /etc/passwd");
            return Err(Error::new(ErrorKind::UserNotFound, message).with_path("/etc/passwd"));
        }
    };
    // name:password:gid:members
    let groups: Vec<Vec<&str>> = group.lines().map(|line| line.split(':').collect()).collect();
    if let Some(group_text) = group_text {
        let by_name = groups.iter().find(|fields| fields.len() >= 3 && fields[0] == group_text);
        identity.group = match (by_name, group_text.parse()) {
            (Some(fields), _) => id(fields[2], "group", group_text)?,
            (None, Ok(number)) => number,
            (None, Err(_)) => {
                let message = format!("group {group_text:?} is not in the image's /etc/group");
                return Err(Error::new(ErrorKind::UserNotFound, message).with_path("/etc/group"));
            }
        };
    } else if let Some(fields) = entry {
        let lists = |members: &str| members.split(',').any(|member| member == fields[0]);
        for group in groups.iter().filter(|group| group.len() >= 4 && lists(group[3])) {
            identity.groups.push(id(group[2], "group", group[0])?);
        }
    }
    Ok(identity)
}

fn default_home(user: u32) -> String {
    if user == 0 { "/root".to_owned() } else { "/".to_owned() }
}

fn id(text: &str, kind: &str, name: &str) -> Result<u32> {
    text.parse().map_err(|_| {
        Error::new(
            ErrorKind::UserNotFound,
            format!("the image gives {kind} {name:?} the id {text:?}, which is no number"),
        )
    })
}

/// One range of a map: ids from `inside` on are those from `outside` on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct IdRange {
    /// The first id in the container.
    pub(crate) inside: u32,
    /// The first id outside of it.
    pub(crate) outside: u32,
    /// How many ids.
    pub(crate) count: u32,
}

/// The maps of a new user namespace.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct IdMaps {
    pub(crate) users: Vec<IdRange>,
    pub(crate) groups: Vec<IdRange>,
    pub(crate) author: Author,
}

/// Who may write the maps.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub(crate) enum Author {
    /// This process has the capabilities.
    Privileged,
    /// An ordinary process, which may map itself alone, and no supplementary groups.
    Oneself,
    /// The set-user-id programs `newuidmap` and `newgidmap`, which allow the subordinate ids.
    Helpers,
}

impl IdMaps {
    /// Root inside is the caller outside; nobody else exists.
    pub(crate) fn oneself() -> Self {
        let (user, group) = own_ids();
        let one = |outside| vec![IdRange { inside: 0, outside, count: 1 }];
        Self { users: one(user), groups: one(group), author: Author::Oneself }
    }

    /// The ids from 0 to `count` are those from `first` on.
    pub(crate) fn shifted(first: u32, count: u32) -> Self {
        let range = vec![IdRange { inside: 0, outside: first, count }];
        Self { users: range.clone(), groups: range, author: Author::Privileged }
    }

    /// Root inside is the caller outside, and the others are its subordinate ids of `/etc/subuid` and `/etc/subgid`.
    pub(crate) fn subordinate() -> Result<Self> {
        let (user, group) = own_ids();
        let name = own_user_name();
        let map = |file: &str, own| -> Result<Vec<IdRange>> {
            let text = fs::read_to_string(Path::new(file))?;
            let mut ranges = vec![IdRange { inside: 0, outside: own, count: 1 }];
            let mut next = 1_u32;
            for (outside, count) in subordinate_ranges(&text, name.as_deref(), user) {
                ranges.push(IdRange { inside: next, outside, count });
                next = next.saturating_add(count);
            }
            if ranges.len() > 1 {
                return Ok(ranges);
            }
            let message = format!("{file} has no ids for user {user}");
            Err(Error::new(ErrorKind::Unsupported, message).with_path(file))
        };
        Ok(Self { users: map("/etc/subuid", user)?, groups: map("/etc/subgid", group)?, author: Author::Helpers })
    }

    /// Those of the user namespace of the process `pid`.
    pub(crate) fn read(pid: i32) -> Result<Self> {
        let text = |name: &str| fs::read_to_string(Path::new(&format!("/proc/{pid}/{name}")));
        let ranges = |name: &str| -> Result<Vec<IdRange>> {
            let text = text(name)?;
            let ranges: Vec<_> = text.lines().filter_map(range).collect();
            let whole = !ranges.is_empty() && ranges.len() == text.lines().count();
            let strange = || Error::new(ErrorKind::Unsupported, format!("/proc/{pid}/{name} maps no ids: {text:?}"));
            whole.then_some(ranges).ok_or_else(strange)
        };
        let author = if text("setgroups")?.trim() == "deny" { Author::Oneself } else { Author::Helpers };
        Ok(Self { users: ranges("uid_map")?, groups: ranges("gid_map")?, author })
    }

    /// Whether the same ids mean the same.
    pub(crate) fn same_ids(&self, other: &Self) -> bool {
        let sorted = |ranges: &[IdRange]| {
            let mut ranges = ranges.to_vec();
            ranges.sort_unstable_by_key(|range| range.inside);
            ranges
        };
        sorted(&self.users) == sorted(&other.users) && sorted(&self.groups) == sorted(&other.groups)
    }

    /// Whether files of the host belong to other ids inside than a mount of their layer would show.
    pub(crate) fn is_shifted(&self) -> bool {
        self.author == Author::Privileged
    }

    /// Whether both ids exist inside.
    pub(crate) fn has(&self, user: u32, group: u32) -> bool {
        let within = |ranges: &[IdRange], id: u32| {
            ranges.iter().any(|range| id >= range.inside && id - range.inside < range.count)
        };
        within(&self.users, user) && within(&self.groups, group)
    }

    /// As whom the owner of a file in a layer is known inside; `None` for somebody who does not exist there.
    pub(crate) fn of_layer(&self, user: u32, group: u32) -> Option<(u32, u32)> {
        if self.is_shifted() {
            return self.has(user, group).then_some((user, group));
        }
        let inside = |ranges: &[IdRange], id: u32| {
            let range = ranges.iter().find(|range| id >= range.outside && id - range.outside < range.count)?;
            Some(range.inside + (id - range.outside))
        };
        inside(&self.users, user).zip(inside(&self.groups, group))
    }

    /// Whether the container may set supplementary groups.
    pub(crate) fn allows_groups(&self) -> bool {
        self.author != Author::Oneself
    }

    /// Writes the maps of `pid`, which is in a new user namespace.
    pub(crate) fn write(&self, pid: i32) -> Result<()> {
        if self.author == Author::Helpers {
            run_helper("newuidmap", pid, &self.users)?;
            return run_helper("newgidmap", pid, &self.groups);
        }
        let lines = |ranges: &[IdRange]| -> String {
            ranges.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count)).collect()
        };
        if self.author == Author::Oneself {
            // The kernel's condition for mapping one's own group without privileges.
            fs::write(Path::new(&format!("/proc/{pid}/setgroups")), b"deny")?;
        }
        fs::write(Path::new(&format!("/proc/{pid}/uid_map")), lines(&self.users).as_bytes())?;
        fs::write(Path::new(&format!("/proc/{pid}/gid_map")), lines(&self.groups).as_bytes())
    }
}

/// A line of `uid_map` or `gid_map` of procfs.
fn range(line: &str) -> Option<IdRange> {
    let mut numbers = line.split_ascii_whitespace().map(str::parse);
    let mut number = || numbers.next()?.ok();
    Some(IdRange { inside: number()?, outside: number()?, count: number()? })
}

/// The ranges of a user in the text of `/etc/subuid` or `/etc/subgid`: `name-or-uid:first:count`.
fn subordinate_ranges(text: &str, name: Option<&str>, user: u32) -> Vec<(u32, u32)> {
    let mut ranges = Vec::new();
    for line in text.lines() {
        let fields: Vec<_> = line.split(':').collect();
        let [owner, first, count] = fields[..] else { continue };
        let ours = Some(owner) == name || owner.parse() == Ok(user);
        if let (true, Ok(first), Ok(count)) = (ours, first.parse(), count.parse()) {
            if count > 0 {
                ranges.push((first, count));
            }
        }
    }
    ranges
}

fn run_helper(program: &str, pid: i32, ranges: &[IdRange]) -> Result<()> {
    let mut command = Command::new(program);
    command.arg(pid.to_string());
    for range in ranges {
        command.args([range.inside, range.outside, range.count].map(|number| number.to_string()));
    }
    let output = command.output().map_err(|e| Error::from_io(format!("execute {program}"), e).with_path(program))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::new(ErrorKind::PermissionDenied, format!("{program}: {words}")).with_path(program))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv/web:/bin/sh\nbroken:x:a:b:::\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nvideo:x:44:web,other\nrender:x:105:web\n";

    #[test]
    fn users_are_found_as_the_image_knows_them() {
        let table = [
            ("", (0, 0, vec![], "/root")),
            ("root", (0, 0, vec![], "/root")),
            ("web", (33, 34, vec![44, 105], "/srv/web")),
            ("33", (33, 34, vec![44, 105], "/srv/web")),
            ("web:video", (33, 44, vec![], "/srv/web")),
            ("web:7", (33, 7, vec![], "/srv/web")),
            ("1000", (1000, 0, vec![], "/")),
            ("1000:1000", (1000, 1000, vec![], "/")),
        ];
        for (wanted, (user, group, groups, home)) in table {
            let expected = Identity { user, group, groups, home: home.to_owned() };
            assert_eq!(resolve(wanted, PASSWD, GROUP).unwrap(), expected, "{wanted}");
        }
        for wanted in ["nobody", "web:nogroup", "broken", "4294967296"] {
            assert_eq!(resolve(wanted, PASSWD, GROUP).unwrap_err().kind(), ErrorKind::UserNotFound, "{wanted}");
        }
    }

    #[test]
    fn subordinate_ids_belong_to_the_name_or_the_number() {
        let text = "alice:100000:65536\n1000:300000:10\nbob:1:1\nalice:bad:1\nshort:1\n";
        assert_eq!(subordinate_ranges(text, Some("alice"), 1000), [(100_000, 65536), (300_000, 10)]);
        assert_eq!(subordinate_ranges(text, None, 7), []);
    }
}
