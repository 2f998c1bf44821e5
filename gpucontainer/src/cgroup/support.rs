//! What this host and the caller's rights allow.

use super::Cgroup;
use super::layout::{Hierarchy, Layout, Version};
use crate::error::Result;
use crate::sys::bpf;
use serde::Serialize;
use std::path::PathBuf;

/// What control groups can do here, for the calling process.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Support {
    /// Every hierarchy that is mounted, version 1 first.
    pub hierarchies: Vec<HierarchySupport>,
    /// `None` if a group's devices can be filtered, else why not.
    pub no_devices: Option<String>,
}

/// One hierarchy, as far as the caller can use it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HierarchySupport {
    /// Its version.
    pub version: Version,
    /// Its controllers by their names in version 2. Empty for one that can only group, freeze and kill.
    pub controllers: Vec<String>,
    /// Those of them that the caller can set limits with.
    pub usable: Vec<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Under which directory groups are made; `None` if the caller may make none.
    pub parent: Option<PathBuf>,
    /// Why the caller may make no groups, or cannot use some controllers.
    pub reason: Option<String>,
}

/// How the controllers are mounted.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
pub enum Mode {
    /// None is.
    Missing,
    /// Each in a hierarchy of version 1.
    Legacy,
    /// Some in hierarchies of version 1, beside one of version 2.
    Hybrid,
    /// All in the one hierarchy of version 2.
    Unified,
}

impl Cgroup {
    /// What this host and the caller's rights allow. Nothing is changed by asking.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn support() -> Result<Support> {
        Ok(Support::of(&Layout::detect()?))
    }
}

impl Support {
    fn of(layout: &Layout) -> Self {
        let mut hierarchies: Vec<_> = layout.hierarchies.iter().map(HierarchySupport::of).collect();
        hierarchies.sort_by_key(|hierarchy| hierarchy.version == Version::V2);
        let mut support = Self { hierarchies, no_devices: None };
        support.no_devices = match support.find("devices") {
            Some(HierarchySupport { parent: Some(_), .. }) => None,
            Some(hierarchy) => hierarchy.reason.clone(),
            None => match support.hierarchies.iter().find(|found| found.version == Version::V2) {
                Some(unified) if unified.parent.is_some() => bpf::can_filter_devices().err().map(|e| e.to_string()),
                Some(unified) => unified.reason.clone(),
                None => Some("this host has no controller for devices".to_owned()),
            },
        };
        support
    }

    /// How the controllers are mounted.
    pub fn mode(&self) -> Mode {
        let has = |version| self.hierarchies.iter().any(|hierarchy| hierarchy.version == version);
        match (has(Version::V1), has(Version::V2)) {
            (false, false) => Mode::Missing,
            (true, false) => Mode::Legacy,
            (true, true) => Mode::Hybrid,
            (false, true) => Mode::Unified,
        }
    }

    /// Whether the caller can make groups at all.
    pub fn usable(&self) -> bool {
        self.hierarchies.iter().any(|hierarchy| hierarchy.parent.is_some())
    }

    /// Whether limits of `controller` (`memory`, `cpu`, `cpuset`, `pids`, `io`, `hugetlb`) can be set, or why not.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn controller(&self, controller: &str) -> Result<Version, String> {
        let Some(hierarchy) = self.find(controller) else {
            return Err(format!("this host has no controller {controller}"));
        };
        if hierarchy.usable.iter().any(|name| name == controller) {
            return Ok(hierarchy.version);
        }
        Err(hierarchy.reason.clone().unwrap_or_default())
    }

    fn find(&self, controller: &str) -> Option<&HierarchySupport> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
    }
}

impl HierarchySupport {
    fn of(hierarchy: &Hierarchy) -> Self {
        let (mut usable, mut reason) = (Vec::new(), None);
        for controller in &hierarchy.controllers {
            match hierarchy.parent(&[controller]) {
                Ok(_) => usable.push(controller.clone()),
                Err(why) => reason = reason.or(Some(why)),
            }
        }
        let all: Vec<&str> = usable.iter().map(String::as_str).collect();
        let parent = hierarchy.parent(&all).or_else(|_| hierarchy.parent(&[]));
        Self {
            version: hierarchy.version,
            controllers: hierarchy.controllers.clone(),
            usable,
            mount: hierarchy.mount.clone(),
            reason: reason.or_else(|| parent.clone().err()),
            parent: parent.ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_follows_from_the_versions() {
        let one = |version| HierarchySupport {
            version,
            controllers: vec!["memory".to_owned()],
            usable: Vec::new(),
            mount: PathBuf::new(),
            parent: None,
            reason: Some("not delegated".to_owned()),
        };
        let table: [(&[Version], Mode); 4] = [
            (&[], Mode::Missing),
            (&[Version::V1], Mode::Legacy),
            (&[Version::V1, Version::V2], Mode::Hybrid),
            (&[Version::V2], Mode::Unified),
        ];
        for (versions, mode) in table {
            let hierarchies = versions.iter().copied().map(one).collect();
            let support = Support { hierarchies, no_devices: None };
            assert_eq!(support.mode(), mode);
            assert!(!support.usable());
            if mode != Mode::Missing {
                assert_eq!(support.controller("memory").unwrap_err(), "not delegated");
            }
        }
    }
}
