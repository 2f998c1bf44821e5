//! Platforms: which of an index's images is meant.

use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::str::FromStr;

/// What an image runs on: `os/architecture[/variant]` in the words of the OCI image specification.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// Linux on this process's own architecture. The default wherever a platform can be given.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", Some("v8")),
            "x86" => ("386", None),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => (if cfg!(target_endian = "little") { "ppc64le" } else { "ppc64" }, None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// Makes a platform of any parts; `None` for an architecture without variants, or any of them.
    pub fn new(os: impl Into<String>, architecture: impl Into<String>, variant: Option<&str>) -> Self {
        Self { os: os.into(), architecture: architecture.into(), variant: variant.map(str::to_owned) }
    }

    /// The operating system: `linux`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The architecture: `amd64`, `arm64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The variant of the architecture: `v8`.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// How well an image for `offered` serves: the smaller the better, `None` not at all.
    pub(crate) fn distance(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let level = |variant: &Option<String>| variant.as_deref()?.strip_prefix('v')?.parse::<u32>().ok();
        match (level(&self.variant), level(&offered.variant)) {
            _ if self.variant == offered.variant => Some(0),
            // arm64 has one variant, which most images do not write down.
            _ if self.architecture == "arm64" && (self.variant.is_none() || offered.variant.is_none()) => Some(0),
            // What was made for a lower level runs on a higher one.
            (Some(own), Some(other)) => own.checked_sub(other),
            // The baseline serves everybody.
            _ if offered.variant.is_none() => Some(100),
            // Asked for without a variant: the lowest is the safest.
            (None, Some(other)) if self.variant.is_none() => Some(200 + other),
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// # Errors
    /// [`ErrorKind::InvalidArgument`] unless it is `os/architecture` or `os/architecture/variant`.
    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            [os, architecture] if !os.is_empty() && !architecture.is_empty() => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] if !os.is_empty() && !architecture.is_empty() && !variant.is_empty() => {
                Ok(Self::new(os, architecture, Some(variant)))
            }
            _ => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("platform {text:?}: not of the form os/architecture[/variant]"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_variant_wins() {
        let distance = |wanted: &str, offered: &str| {
            wanted.parse::<Platform>().unwrap().distance(&offered.parse::<Platform>().unwrap())
        };
        assert_eq!(distance("linux/amd64", "linux/amd64"), Some(0));
        assert_eq!(distance("linux/amd64", "linux/arm64"), None);
        assert_eq!(distance("linux/amd64", "windows/amd64"), None);
        assert_eq!(distance("linux/arm64/v8", "linux/arm64"), Some(0));
        assert_eq!(distance("linux/arm64", "linux/arm64/v8"), Some(0));
        assert_eq!(distance("linux/arm/v7", "linux/arm/v6"), Some(1));
        assert_eq!(distance("linux/arm/v6", "linux/arm/v7"), None);
        assert!(distance("linux/amd64", "linux/amd64/v3") > distance("linux/amd64", "linux/amd64/v2"));
        assert!(distance("linux/amd64", "linux/amd64/v2") > distance("linux/amd64", "linux/amd64"));
        for bad in ["", "linux", "linux/", "/amd64", "a/b/", "a/b/c/d"] {
            assert_eq!(bad.parse::<Platform>().unwrap_err().kind(), ErrorKind::InvalidArgument, "{bad}");
        }
    }
}
