//! Names and numbers of system calls.

mod aarch64;
mod x86;
mod x86_64;

use crate::seccomp::profile::Architecture;

/// All calls of `architecture`, sorted by name.
pub(super) fn table(architecture: Architecture) -> &'static [(&'static str, u32)] {
    match architecture {
        Architecture::X86_64 => x86_64::TABLE,
        Architecture::X86 => x86::TABLE,
        Architecture::Aarch64 => aarch64::TABLE,
    }
}

/// The number of the call `name`, if `architecture` has it.
pub(super) fn number(architecture: Architecture, name: &str) -> Option<u32> {
    let table = table(architecture);
    let at = table.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
    table.get(at).map(|&(_, number)| number)
}

/// Whether `name` is a call of any architecture known here.
pub(super) fn known(name: &str) -> bool {
    Architecture::ALL.into_iter().any(|architecture| number(architecture, name).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_sorted_and_numbers_are_unique() {
        for architecture in Architecture::ALL {
            let table = table(architecture);
            assert!(table.windows(2).all(|pair| pair[0].0 < pair[1].0), "{architecture:?}");
            assert_eq!(table.iter().map(|entry| entry.1).collect::<HashSet<_>>().len(), table.len());
        }
    }

    /// Facts that differ between the tables, so that no two of them can have been swapped.
    #[test]
    fn well_known_numbers() {
        for (name, x86_64, x86, aarch64) in [
            ("read", Some(0), Some(3), Some(63)),
            ("clone", Some(56), Some(120), Some(220)),
            ("socket", Some(41), Some(359), Some(198)),
            ("open", Some(2), Some(5), None),
            ("socketcall", None, Some(102), None),
            ("mseal", Some(462), Some(462), Some(462)),
            ("clock_gettime64", None, Some(403), None),
            ("arch_prctl", Some(158), Some(384), None),
        ] {
            assert_eq!(number(Architecture::X86_64, name), x86_64, "{name}");
            assert_eq!(number(Architecture::X86, name), x86, "{name}");
            assert_eq!(number(Architecture::Aarch64, name), aarch64, "{name}");
        }
        assert!(!known("no_such_call"));
    }
}
