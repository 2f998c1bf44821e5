//! Lists of processors and memory nodes as the kernel writes them: `0-3,8`.

use std::collections::BTreeSet;

/// A list of processors or of memory nodes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct CpuList(BTreeSet<u32>);

/// The kernel is built for at most 8,192 processors; more digits than these are a mistake.
const HIGHEST: u32 = 65_535;

impl CpuList {
    /// Reads a list that names at least one number.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err("an empty list".to_owned());
        }
        let mut numbers = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("{part} runs backwards"));
            }
            numbers.extend(first..=last);
        }
        Ok(Self(numbers))
    }

    /// The first number that `other` lacks.
    pub(super) fn first_beyond(&self, other: &Self) -> Option<u32> {
        self.0.difference(&other.0).next().copied()
    }
}

fn number(text: &str) -> Result<u32, String> {
    // `parse` would take a sign.
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("{text:?} is no number"));
    }
    text.parse().ok().filter(|number| *number <= HIGHEST).ok_or_else(|| format!("{text} is above {HIGHEST}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let list = |text| CpuList::parse(text);
        assert_eq!(list("0-2,8\n").unwrap(), list("8,0,1,2").unwrap());
        assert_eq!(list("0-3").unwrap().first_beyond(&list("0-1").unwrap()), Some(2));
        assert_eq!(list("1").unwrap().first_beyond(&list("0-1").unwrap()), None);
        for wrong in ["", " ", "a", "1-", "-1", "1--2", "2-1", "0,,1", "+1", "99999999999", "0-65536", "1;2"] {
            assert!(list(wrong).is_err(), "{wrong}");
        }
    }
}
