//! Device rules on version 1: lines that the kernel takes one by one, of which all are written or none.

use super::devices::DeviceRule;
use super::leaf::Leaf;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::cgroup as files;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// What a line does.
#[derive(Clone, Copy, Debug)]
enum Change {
    Deny(DeviceRule),
    Allow(DeviceRule),
}

/// Lines that were written, in order.
#[derive(Debug)]
pub(super) struct Changes(Vec<Change>);

impl Changes {
    /// Allows `rules` in place of what the group allows, which the kernel knows best. Only what differs is written:
    /// whoever runs keeps the use of what stays.
    ///
    /// # Errors
    /// Those of the write that failed; those before it were undone, or the error says which could not be.
    pub(super) fn make(leaf: &Leaf, rules: &[DeviceRule]) -> Result<Self> {
        let list = leaf.read("devices.list")?;
        let parse = |line: &str| {
            let unknown =
                || Error::new(ErrorKind::Corrupt, format!("{:?} says {line:?}", leaf.path.join("devices.list")));
            DeviceRule::parse(line).ok_or_else(unknown)
        };
        let before: Vec<DeviceRule> = list.lines().map(parse).collect::<Result<_>>()?;
        let denied = before.iter().filter(|rule| !rules.contains(rule)).copied().map(Change::Deny);
        let allowed = rules.iter().filter(|rule| !before.contains(rule)).copied().map(Change::Allow);
        let files = Files::open(leaf)?;
        let mut done = Self(Vec::new());
        for change in denied.chain(allowed) {
            if let Err(error) = files.write(change) {
                return done.undo(leaf, error).map(|()| Self(Vec::new()));
            }
            done.0.push(change);
        }
        Ok(done)
    }

    /// Sets back what was changed, all that can be; `error` is why.
    ///
    /// # Errors
    /// `error`, with what could not be set back.
    pub(super) fn undo(&self, leaf: &Leaf, error: Error) -> Result<()> {
        if self.0.is_empty() {
            return Err(error);
        }
        let opposite = |change: &Change| match *change {
            Change::Deny(rule) => Change::Allow(rule),
            Change::Allow(rule) => Change::Deny(rule),
        };
        let files = match Files::open(leaf) {
            Ok(files) => files,
            Err(other) => return Err(error.context(format!("the device rules could not be set back: {other}"))),
        };
        let back = self.0.iter().rev().map(opposite);
        let failures: Vec<String> =
            back.filter_map(|change| files.write(change).err()).map(|e| e.to_string()).collect();
        if failures.is_empty() {
            return Err(error);
        }
        Err(error.context(format!("not all device rules could be set back: {}", failures.join("; "))))
    }
}

/// The files for lines, open.
#[derive(Debug)]
struct Files {
    allow: (PathBuf, OwnedFd),
    deny: (PathBuf, OwnedFd),
}

impl Files {
    fn open(leaf: &Leaf) -> Result<Self> {
        let open = |name: &str| -> Result<(PathBuf, OwnedFd)> {
            let path = leaf.path.join(name);
            let file = files::open_for_writing(&path)?;
            Ok((path, file))
        };
        Ok(Self { allow: open("devices.allow")?, deny: open("devices.deny")? })
    }

    fn write(&self, change: Change) -> Result<()> {
        let ((path, file), rule, verb) = match change {
            Change::Deny(rule) => (&self.deny, rule, "deny"),
            Change::Allow(rule) => (&self.allow, rule, "allow"),
        };
        files::write_open(file, path, &rule.to_string()).with_context(|| format!("{verb} {rule}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::devices::DeviceKind::Character;
    use super::super::layout::{Hierarchy, Layout, Version};
    use super::super::{Cgroup, Limits, Options};
    use super::*;
    use std::path::Path;

    /// A group of version 1 between the top and the groups of tests; `None` where none can be made.
    struct Above {
        name: String,
        path: PathBuf,
        layout: Layout,
        claims: tempfile::TempDir,
    }

    impl Above {
        fn make(test: &str) -> Option<Self> {
            let mut layout = Layout::detect().unwrap();
            // A group is made where its processes can be counted; devices come later.
            let wanted = |hierarchy: &Hierarchy| hierarchy.has("devices") || hierarchy.has("pids");
            layout.hierarchies.retain(|hierarchy| hierarchy.version == Version::V1 && wanted(hierarchy));
            let devices = layout.hierarchies.iter_mut().find(|hierarchy| hierarchy.has("devices"));
            let why = match devices.map(|hierarchy| (hierarchy.parent(&["devices"]), hierarchy)) {
                Some((Ok(parent), hierarchy)) => {
                    let name = format!("unit-{test}-{}", std::process::id());
                    let path = parent.join(&name);
                    std::fs::create_dir(&path).unwrap();
                    hierarchy.mount.clone_from(&path);
                    return Some(Self { name, path, layout, claims: tempfile::tempdir().unwrap() });
                }
                Some((Err(why), _)) => why,
                None => "no hierarchy of version 1 has devices".to_owned(),
            };
            eprintln!("SKIP {test}: {why}");
            None
        }

        fn write(&self, file: &str, line: &str) {
            std::fs::write(self.path.join(file), line).unwrap();
        }

        fn group(&self) -> Cgroup {
            Cgroup::create_in(&self.layout, self.claims.path(), &self.name, &Limits::new(), &Options::new()).unwrap()
        }

        /// What a group may use.
        fn list(&self, group: &Cgroup) -> Vec<String> {
            list(&group.paths().into_iter().find(|path| path.starts_with(&self.path)).unwrap())
        }
    }

    impl Drop for Above {
        fn drop(&mut self) {
            std::fs::remove_dir(&self.path).unwrap();
        }
    }

    fn list(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path.join("devices.list")).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    fn device(minor: u32) -> DeviceRule {
        DeviceRule::device(Character, 1, minor)
    }

    #[test]
    fn all_rules_are_changed_or_none() {
        let Some(above) = Above::make("all_rules_are_changed_or_none") else { return };
        above.write("devices.deny", "a");
        for line in ["c 1:3 rwm", "c 1:5 rw", "c 1:7 rwm", "c 1:8 rwm"] {
            above.write("devices.allow", line);
        }
        let group = above.group();
        // The group above lacks the last device, and of another one the right to make nodes.
        let (missing, narrow) = (device(9), device(5));
        let lacking = [vec![device(8), missing], vec![device(8), narrow], vec![missing, device(8)]];
        let mut former = list(&above.path);
        for rules in [vec![device(3), device(7)], vec![device(3), device(7).only(true, false, false)], vec![]] {
            for more in &lacking {
                // Some go, some stay, some come, and one cannot.
                let wanted: Vec<DeviceRule> = rules.iter().take(1).chain(more).copied().collect();
                let error = group.allow_devices(&wanted).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
                assert!(error.to_string().contains("allow c 1:") && !error.to_string().contains("set back"), "{error}");
                assert_eq!(above.list(&group), former, "{wanted:?}");
            }
            group.allow_devices(&rules).unwrap();
            former = rules.iter().map(DeviceRule::to_string).collect();
            former.sort();
            assert_eq!(above.list(&group), former);
        }
    }

    #[test]
    fn a_group_that_may_everything_may_so_again() {
        let Some(above) = Above::make("a_group_that_may_everything_may_so_again") else { return };
        let group = above.group();
        group.allow_devices(&[device(3)]).unwrap();
        assert_eq!(above.list(&group), ["c 1:3 rwm"]);
        group.allow_devices(&[DeviceRule::everything()]).unwrap();
        assert_eq!(above.list(&group), ["a *:* rwm"]);
        // One device less above, of which its list says nothing.
        drop(group);
        above.write("devices.deny", "c 1:9 rwm");
        let group = above.group();
        let error = group.allow_devices(&[device(3), device(9)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert_eq!(above.list(&group), ["a *:* rwm"]);
    }

    #[test]
    fn what_cannot_be_set_back_is_said() {
        let Some(above) = Above::make("what_cannot_be_set_back_is_said") else { return };
        let group = above.group();
        group.allow_devices(&[device(3)]).unwrap();
        let leaf = group.make_late("devices").unwrap();
        let changes = Changes::make(&leaf, &[device(7)]).unwrap();
        // Meanwhile somebody takes the former device away above: the way back is closed.
        above.write("devices.deny", "c 1:3 rwm");
        let error = changes.undo(&leaf, Error::new(ErrorKind::Busy, "it was too late")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        let text = error.to_string();
        assert!(text.contains("not all device rules could be set back: allow c 1:3 rwm"), "{text}");
        assert!(text.contains("it was too late"), "{text}");
        assert_eq!(above.list(&group), [""; 0], "what can be set back is");
    }
}
