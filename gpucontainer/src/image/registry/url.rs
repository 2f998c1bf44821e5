//! Addresses of registries, token servers, and of what they redirect to.

use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use ureq::http::Uri;

/// An absolute `http` or `https` address without user information.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Url {
    secure: bool,
    /// Host and, if it is not the scheme's own, port.
    authority: String,
    /// Path and query, with the leading slash.
    path: String,
}

impl Url {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::new(ErrorKind::Registry, format!("address {text:?}: {why}"));
        let uri: Uri = text.parse().map_err(|e: ureq::http::uri::InvalidUri| bad(&e.to_string()))?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad("neither http nor https")),
        };
        let authority = uri.authority().ok_or_else(|| bad("no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("it has a user in it"));
        }
        let own_port = if secure { ":443" } else { ":80" };
        let authority = authority.as_str().to_ascii_lowercase();
        let authority = authority.strip_suffix(own_port).unwrap_or(&authority).to_owned();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        Ok(Self { secure, authority, path })
    }

    pub(super) fn is_secure(&self) -> bool {
        self.secure
    }

    /// Whether it is a server of this machine.
    pub(super) fn is_loopback(&self) -> bool {
        is_loopback(&self.authority)
    }

    /// Whether both are the same server for the purpose of credentials.
    pub(super) fn same_origin(&self, other: &Self) -> bool {
        (self.secure, &self.authority) == (other.secure, &other.authority)
    }

    /// Another path of the same server.
    pub(super) fn with_path(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }

    /// The same with these added to its query.
    pub(super) fn with_query(&self, query: &[(&str, &str)]) -> Self {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        self.with_path(&format!("{}{separator}{}", self.path, form(query)))
    }

    /// Where a `Location` leads from here.
    pub(super) fn join(&self, location: &str) -> Result<Self> {
        let scheme = if self.secure { "https" } else { "http" };
        let location = location.split('#').next().unwrap_or_default();
        if location.starts_with("//") {
            Self::parse(&format!("{scheme}:{location}"))
        } else if location.starts_with('/') {
            Ok(self.with_path(location))
        } else if location.contains("://") {
            Self::parse(location)
        } else {
            let path = self.path.split('?').next().unwrap_or_default();
            let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
            Ok(self.with_path(&format!("{directory}/{location}")))
        }
    }
}

impl fmt::Display for Url {
    /// Without the query, which may hold a signature that is as good as a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.split('?').next().unwrap_or_default();
        write!(f, "{}://{}{path}", if self.secure { "https" } else { "http" }, self.authority)
    }
}

impl Url {
    /// The whole address.
    pub(super) fn whole(&self) -> String {
        format!("{}://{}{}", if self.secure { "https" } else { "http" }, self.authority, self.path)
    }
}

/// `name=value&…`, percent-encoded.
pub(super) fn form(query: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in query {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
                _ => text.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    text
}

/// Whether a host, with or without port, is this machine: there, what is sent unencrypted is seen by nobody.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let url = Url::parse("https://Registry.example:443/v2/a/blobs/x?y=1").unwrap();
        assert_eq!(url.to_string(), "https://registry.example/v2/a/blobs/x");
        let table = [
            ("https://cdn.example/b?sig=2", "https://cdn.example/b?sig=2", false),
            ("//cdn.example/b", "https://cdn.example/b", false),
            ("/other?z", "https://registry.example/other?z", true),
            ("next#part", "https://registry.example/v2/a/blobs/next", true),
            ("https://registry.example:443/b", "https://registry.example/b", true),
            ("https://registry.example:444/b", "https://registry.example:444/b", false),
            ("http://registry.example/b", "http://registry.example/b", false),
        ];
        for (location, whole, same) in table {
            let joined = url.join(location).unwrap();
            assert_eq!((joined.whole().as_str(), joined.same_origin(&url)), (whole, same), "{location}");
        }
        for bad in ["ftp://x/y", "https://user@x/y", "https://", "http:// /"] {
            assert_eq!(url.join(bad).unwrap_err().kind(), ErrorKind::Registry, "{bad}");
        }
    }

    #[test]
    fn only_this_machine_is_trusted_without_encryption() {
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.9.9.9:1", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "128.0.0.1", "10.0.0.1:5000", "[::2]", "127.0.0.1.example", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn queries_are_encoded() {
        let url = Url::parse("https://x/token?a=b").unwrap().with_query(&[("scope", "repository:a/b:pull")]);
        assert_eq!(url.whole(), "https://x/token?a=b&scope=repository%3Aa%2Fb%3Apull");
    }
}
