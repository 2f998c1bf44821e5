//! Image references: `[host[:port]/]path[:tag][@sha256:hex]`, with Docker's short forms.

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::str::FromStr;

/// The registry that a reference without a host means.
const DEFAULT_REGISTRY: &str = "docker.io";

/// Longest `host/path`; the limit of the distribution specification.
const NAME_MAX: usize = 255;

/// Longest tag; the limit of the distribution specification.
const TAG_MAX: usize = 128;

/// The name of an image, complete: `python` has become `docker.io/library/python:latest`.
///
/// The part before the first slash is a host if it has a dot or a colon or an upper-case letter, or is
/// `localhost`; otherwise the host is `docker.io`, where a path of one component gets `library/` before it.
/// Without tag and digest the tag is `latest`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry's host, with its port if it has one: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path of the image in its registry: `library/python`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. `None` only if there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index. Where there is one, the tag only says what it was called.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }
}

impl fmt::Display for Reference {
    /// The complete form, which parses to the same reference.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;

    /// # Errors
    /// [`ErrorKind::InvalidReference`], saying which part is wrong and why.
    fn from_str(text: &str) -> Result<Self> {
        parse(text).map_err(|why| Error::new(ErrorKind::InvalidReference, format!("image reference {text:?}: {why}")))
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    let (rest, digest) = match text.split_once('@') {
        None => (text, None),
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|e| e.to_string())?)),
    };
    // A colon after the last slash starts a tag; one before it belongs to a port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') && !tag.contains(']') => (name, Some(tag)),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_host(first) => (first, path),
        _ => (DEFAULT_REGISTRY, name),
    };
    check_host(registry)?;
    // Docker's own registry has a second name from its early days.
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    for component in path.split('/') {
        check_component(component)?;
    }
    let repository =
        if registry == DEFAULT_REGISTRY && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    if registry.len() + 1 + repository.len() > NAME_MAX {
        return Err(format!("the name is longer than {NAME_MAX} characters"));
    }
    let tag = match (tag, digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
}

fn is_host(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.contains(|c: char| c.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<(), String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or_else(|| format!("host {host:?} lacks a `]`"))?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| format!("host {host:?} is no IPv6 address"))?;
            match after.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if after.is_empty() => (None, None),
                None => return Err(format!("host {host:?} has {after:?} after its address")),
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    if let Some(port) = port {
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        if !digits || !matches!(port.parse::<u16>(), Ok(1..)) {
            return Err(format!("port {port:?} is not a number from 1 to 65535"));
        }
    }
    for label in name.into_iter().flat_map(|name| name.split('.')) {
        let inside = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if label.is_empty() || !inside || label.starts_with('-') || label.ends_with('-') {
            return Err(format!("host {host:?} is not a host name"));
        }
    }
    Ok(())
}

/// Lower-case letters and digits, separated by `.`, `_`, `__` or any number of `-`.
fn check_component(component: &str) -> Result<(), String> {
    if component.is_empty() {
        return Err("a component of the path is empty".to_owned());
    }
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if let Some(bad) = component.chars().find(|&c| !plain(c) && !matches!(c, '.' | '_' | '-')) {
        return Err(format!("{bad:?} in {component:?}: a path has lower-case letters, digits, `.`, `_` and `-`"));
    }
    if !component.starts_with(plain) || !component.ends_with(plain) {
        return Err(format!("{component:?} must start and end with a lower-case letter or a digit"));
    }
    for separator in component.split(plain).filter(|separator| !separator.is_empty()) {
        if !matches!(separator, "." | "_" | "__") && !separator.bytes().all(|byte| byte == b'-') {
            return Err(format!("{separator:?} in {component:?} is no separator"));
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), String> {
    let inside = tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if tag.is_empty() || tag.len() > TAG_MAX || !inside || tag.starts_with(['.', '-']) {
        return Err(format!(
            "tag {tag:?}: a tag is 1 to {TAG_MAX} letters, digits, `_`, `.` and `-`, not starting with `.` or `-`"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_forms_become_complete() {
        let digest = format!("sha256:{HEX}");
        let table = [
            ("python", "docker.io/library/python:latest".to_owned()),
            ("python:3.12-slim", "docker.io/library/python:3.12-slim".to_owned()),
            ("pytorch/pytorch", "docker.io/pytorch/pytorch:latest".to_owned()),
            ("docker.io/python", "docker.io/library/python:latest".to_owned()),
            ("index.docker.io/a/b", "docker.io/a/b:latest".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("localhost:5000/x", "localhost:5000/x:latest".to_owned()),
            ("localhost:5000/x:y", "localhost:5000/x:y".to_owned()),
            ("[::1]:5000/a/b", "[::1]:5000/a/b:latest".to_owned()),
            ("[::1]/a", "[::1]/a:latest".to_owned()),
            ("nvcr.io/nvidia/cuda:12.4.1-base-ubuntu22.04", "nvcr.io/nvidia/cuda:12.4.1-base-ubuntu22.04".to_owned()),
            ("Host/x", "Host/x:latest".to_owned()),
            ("a__b--c.d_e", "docker.io/library/a__b--c.d_e:latest".to_owned()),
            (&format!("python@{digest}"), format!("docker.io/library/python@{digest}")),
            (&format!("python:3@{digest}"), format!("docker.io/library/python:3@{digest}")),
        ];
        for (short, complete) in table {
            let reference: Reference = short.parse().unwrap();
            assert_eq!(reference.to_string(), complete, "{short}");
            assert_eq!(complete.parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn malformed_references_are_refused() {
        let table = [
            "",
            " ",
            "Python",
            "a b",
            "/a",
            "a/",
            "a//b",
            "a:",
            ":a",
            "a:-x",
            "a:b:c",
            "a@",
            "a@sha256:12",
            "a@md5:00",
            "../a",
            "a/../b",
            ".a",
            "a.",
            "a..b",
            "a___b",
            "a._b",
            "localhost:99999/a",
            "localhost:0/a",
            "localhost:x/a",
            "localhost:/a",
            "[::1/a",
            "[zz]/a",
            "[::1]x/a",
            "-a.b/c",
            "a..b/c",
            "https://a.b/c",
            "user@host/a",
            "a\n",
            "ä",
        ];
        for text in table {
            let error = text.parse::<Reference>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidReference, "{text:?}");
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
        assert!(format!("a:{}", "x".repeat(129)).parse::<Reference>().is_err());
        assert!("x".repeat(256).parse::<Reference>().is_err());
    }

    proptest! {
        #[test]
        fn whatever_parses_prints_to_itself(text in "\\PC{0,40}|[a-z0-9.:/@_\\[\\]-]{0,40}|([a-z]{1,3}[.:/_-]){0,6}[a-z0-9]{1,4}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }

        #[test]
        fn well_formed_ones_parse(
            host in "[a-z][a-z0-9]{0,5}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?/",
            path in "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,4}){0,3}",
            tag in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?",
        ) {
            let reference: Reference = format!("{host}{path}{tag}").parse().unwrap();
            prop_assert!(reference.repository().ends_with(&path));
            prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }
    }
}
