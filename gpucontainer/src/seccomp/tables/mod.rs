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
///
/// A profile has hundreds of names and every start of a sandbox compiles one, so this is a look into a
/// table made at compile time: a search by comparing names took a tenth of the whole start.
pub(super) fn number(architecture: Architecture, name: &str) -> Option<u32> {
    let (table, slots) = match architecture {
        Architecture::X86_64 => (x86_64::TABLE, &X86_64_SLOTS),
        Architecture::X86 => (x86::TABLE, &X86_SLOTS),
        Architecture::Aarch64 => (aarch64::TABLE, &AARCH64_SLOTS),
    };
    let mut slot = hash(name.as_bytes());
    loop {
        // An empty slot holds a place that no table has.
        let (known, number) = table.get(usize::from(*slots.get(slot)?))?;
        if *known == name {
            return Some(*number);
        }
        slot = (slot + 1) % SLOTS;
    }
}

/// A power of two, twice the largest table, so that few names collide and there is always an empty slot.
const SLOTS: usize = 1024;
const EMPTY: u16 = u16::MAX;

static X86_64_SLOTS: [u16; SLOTS] = slots(x86_64::TABLE);
static X86_SLOTS: [u16; SLOTS] = slots(x86::TABLE);
static AARCH64_SLOTS: [u16; SLOTS] = slots(aarch64::TABLE);

const fn slots(table: &[(&str, u32)]) -> [u16; SLOTS] {
    let mut slots = [EMPTY; SLOTS];
    let mut at = 0;
    while at < table.len() {
        let mut slot = hash(table[at].0.as_bytes());
        while slots[slot] != EMPTY {
            slot = (slot + 1) % SLOTS;
        }
        #[allow(clippy::cast_possible_truncation, reason = "a table has less than 1,024 entries, or there is no slot")]
        {
            slots[slot] = at as u16;
        }
        at += 1;
    }
    slots
}

/// Fowler, Noll and Vo's hash (FNV-1a), folded to a slot.
const fn hash(name: &[u8]) -> usize {
    let mut hash = 0x811c_9dc5_u32;
    let mut at = 0;
    while at < name.len() {
        hash = (hash ^ name[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    ((hash ^ (hash >> 16)) as usize) % SLOTS
}

/// The largest number of a call.
pub(super) fn newest(architecture: Architecture) -> usize {
    table(architecture).iter().map(|entry| entry.1 as usize).max().unwrap_or(0)
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
    fn names_are_found_and_sorted_and_numbers_are_unique() {
        for architecture in Architecture::ALL {
            let table = table(architecture);
            assert!(table.iter().all(|&(name, number)| super::number(architecture, name) == Some(number)));
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
