//! The names of devices: `vendor.com/class=name`.

use crate::error::{Error, ErrorKind, Result};

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// No name of a device is longer, in bytes; the specification sets no limit.
const LONGEST: usize = 512;

/// The full name of a device: `nvidia.com/gpu=0`, `amd.com/gpu=1`, `vendor.com/class=name`.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName {
    vendor: String,
    class: String,
    name: String,
}

impl DeviceName {
    /// Who made the specification, as in `nvidia.com`.
    pub fn vendor(&self) -> &str {
        &self.vendor
    }

    /// What kind of device, as in `gpu`.
    pub fn class(&self) -> &str {
        &self.class
    }

    /// Vendor and class: `nvidia.com/gpu`.
    pub fn kind(&self) -> String {
        format!("{}/{}", self.vendor, self.class)
    }

    /// Which one of its kind, as in `0`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}={}", self.vendor, self.class, self.name)
    }
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| Error::new(ErrorKind::InvalidArgument, format!("device name {text:?}: {why}"));
        if text.len() > LONGEST {
            return Err(refuse("longer than 512 bytes"));
        }
        let (kind, name) = text.split_once('=').ok_or_else(|| refuse("it is not vendor.com/class=name"))?;
        let (vendor, class) = parse_kind(kind).map_err(|why| refuse(&why))?;
        check_device(name).map_err(|why| refuse(&why))?;
        Ok(Self { vendor: vendor.to_owned(), class: class.to_owned(), name: name.to_owned() })
    }
}

impl TryFrom<String> for DeviceName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.to_string()
    }
}

/// Vendor and class of `vendor.com/class`, or what is wrong with it.
pub(crate) fn parse_kind(kind: &str) -> Result<(&str, &str), String> {
    let (vendor, class) = kind.split_once('/').ok_or_else(|| format!("{kind:?} is not vendor.com/class"))?;
    for (what, part) in [("vendor", vendor), ("class", class)] {
        if !part.starts_with(|first: char| first.is_ascii_alphabetic()) || !is_word(part, b"_-.") {
            return Err(format!(
                "{what} {part:?} is not a letter, then letters, digits, '_', '-' and '.', a letter or digit at the end"
            ));
        }
    }
    Ok((vendor, class))
}

/// What is wrong with the name of a device within its kind, if something is.
pub(crate) fn check_device(name: &str) -> Result<(), String> {
    if is_word(name, b"_-.:") {
        return Ok(());
    }
    Err(format!("{name:?} is not letters, digits, '_', '-', '.' and ':', a letter or digit first and last"))
}

/// Letters and digits, between them also those of `others`.
fn is_word(text: &str, others: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let ends =
        bytes.first().zip(bytes.last()).is_some_and(|(a, b)| a.is_ascii_alphanumeric() && b.is_ascii_alphanumeric());
    ends && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || others.contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_names_are_taken_apart() {
        for text in ["nvidia.com/gpu=0", "nvidia.com/gpu=0:1", "amd.com/gpu=GPU-1f2e", "a/b=c", "v.io/a.b_c-d=x.y-z"] {
            let name: DeviceName = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
            assert_eq!(format!("{}={}", name.kind(), name.name()), text);
            assert_eq!(serde_json::from_str::<DeviceName>(&serde_json::to_string(&name).unwrap()).unwrap(), name);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = format!("a/b={}", "c".repeat(LONGEST));
        let table = [
            "", "=", "a/b", "a/b=", "/b=c", "a/=c", "a=c", "1a/b=c", "a/1b=c", "a-/b=c", "a/b.=c", "a/b=:c", "a/b=c:",
            "a/b=c d", "a/b=c/d", "a b/c=d", "a/b/c=d", "a/b=c=d", "ä/b=c", "a/b=ü", &long,
        ];
        for text in table {
            assert_eq!(text.parse::<DeviceName>().unwrap_err().kind(), ErrorKind::InvalidArgument, "{text:?}");
        }
        assert!(serde_json::from_str::<DeviceName>("\"a\"").is_err());
    }
}
