//! Who we are: given by the caller, or found where `docker login` and `podman login` leave it.

use super::base64;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::reference::Reference;
use crate::sys::fs;
use serde::Deserialize;
use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

/// What proves to a registry who is asking.
#[derive(Clone, Default)]
pub struct Credentials {
    secret: Option<Secret>,
}

#[derive(Clone)]
pub(super) enum Secret {
    Password { user: String, password: String },
    IdentityToken(String),
}

impl Credentials {
    /// None, also where there are some in the user's files.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// A user name and a password, or an access token that serves as one.
    pub fn password(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { secret: Some(Secret::Password { user: user.into(), password: password.into() }) }
    }

    /// An identity token, which a token server exchanges for an access token.
    pub fn identity_token(token: impl Into<String>) -> Self {
        Self { secret: Some(Secret::IdentityToken(token.into())) }
    }
}

impl fmt::Debug for Credentials {
    /// Shows the kind and nothing secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.secret {
            None => f.write_str("Credentials(anonymous)"),
            Some(Secret::Password { user, .. }) => write!(f, "Credentials(user {user:?})"),
            Some(Secret::IdentityToken(_)) => f.write_str("Credentials(identity token)"),
        }
    }
}

/// The credentials in use, and where they are from.
#[derive(Debug)]
pub(super) enum Login {
    Given(Credentials),
    /// From this file.
    Found(Credentials, PathBuf),
    /// This file names a helper program, and nobody said that it may be run.
    Helper(PathBuf),
    None,
}

impl Login {
    pub(super) fn secret(&self) -> Option<&Secret> {
        match self {
            Self::Given(credentials) | Self::Found(credentials, _) => credentials.secret.as_ref(),
            Self::Helper(_) | Self::None => None,
        }
    }

    /// The header for the basic scheme.
    pub(super) fn basic(&self) -> Option<String> {
        match self.secret()? {
            Secret::Password { user, password } => {
                Some(format!("Basic {}", base64::encode(format!("{user}:{password}").as_bytes())))
            }
            Secret::IdentityToken(_) => None,
        }
    }

    /// What to tell a user whose request was refused.
    pub(super) fn hint(&self) -> String {
        match self {
            Self::Given(Credentials { secret: None }) | Self::None => "no credentials were given".to_owned(),
            Self::Given(_) => "with the credentials that were given".to_owned(),
            Self::Found(_, path) => format!("with the credentials in {path:?}"),
            Self::Helper(path) => {
                format!("{path:?} keeps credentials in a helper program, which is not run: give them")
            }
        }
    }
}

/// What of the files of Docker and Podman matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: Option<HashMap<String, Entry>>,
    #[serde(default)]
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: Option<HashMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// Looks in the user's files, in the order that Podman and Docker look: the first that knows the registry counts.
pub(super) fn find(reference: &Reference) -> Result<Login> {
    let mut helper = Login::None;
    for path in files() {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => continue,
            Err(e) => return Err(e),
        };
        match find_in(&text, reference).with_context(|| format!("credentials in {path:?}"))? {
            Some(Found::Here(credentials)) => return Ok(Login::Found(credentials, path)),
            Some(Found::InHelper) if matches!(helper, Login::None) => helper = Login::Helper(path),
            _ => {}
        }
    }
    Ok(helper)
}

fn files() -> Vec<PathBuf> {
    let home = fs::path_from_environment("HOME");
    let under = |variable: &str, fallback: &str| {
        fs::path_from_environment(variable).or_else(|| home.as_ref().map(|home| home.join(fallback)))
    };
    [
        fs::path_from_environment("REGISTRY_AUTH_FILE"),
        fs::path_from_environment("XDG_RUNTIME_DIR").map(|path| path.join("containers/auth.json")),
        under("XDG_CONFIG_HOME", ".config").map(|path| path.join("containers/auth.json")),
        under("DOCKER_CONFIG", ".docker").map(|path| path.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[derive(Debug)]
enum Found {
    Here(Credentials),
    InHelper,
}

fn find_in(text: &str, reference: &Reference) -> Result<Option<Found>> {
    let bad = |why: String| Error::new(ErrorKind::InvalidArgument, why);
    if text.trim().is_empty() {
        return Ok(None);
    }
    let file: File = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
    let auths = file.auths.unwrap_or_default();
    for key in keys(reference) {
        let entry = auths.iter().find(|(name, _)| plain_key(name) == key).map(|(_, entry)| entry);
        if let Some(secret) = entry.map(Entry::secret).transpose()?.flatten() {
            return Ok(Some(Found::Here(Credentials { secret: Some(secret) })));
        }
    }
    let helpers = file.cred_helpers.unwrap_or_default();
    let helped = file.creds_store.is_some_and(|store| !store.is_empty())
        || keys(reference).iter().any(|key| helpers.keys().any(|name| plain_key(name) == *key));
    Ok(helped.then_some(Found::InHelper))
}

/// The keys that may hold the credentials, the most special first: Podman's may name a part of a registry.
fn keys(reference: &Reference) -> Vec<String> {
    let registry = reference.registry();
    let whole = format!("{registry}/{}", reference.repository());
    let mut keys = vec![whole.clone()];
    keys.extend(whole.rmatch_indices('/').map(|(index, _)| whole[..index].to_owned()));
    if registry == "docker.io" {
        keys.extend(["index.docker.io".to_owned(), "registry-1.docker.io".to_owned()]);
    }
    keys
}

/// Docker writes some keys as addresses: `https://index.docker.io/v1/`.
fn plain_key(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key)
}

impl Entry {
    fn secret(&self) -> Result<Option<Secret>> {
        let bad = |why: &str| Error::new(ErrorKind::InvalidArgument, why);
        if let Some(token) = self.identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Some(Secret::IdentityToken(token.clone())));
        }
        let (user, password) = match self.auth.as_ref().filter(|auth| !auth.is_empty()) {
            Some(auth) => {
                let bytes = base64::decode(auth).ok_or_else(|| bad("an `auth` is not base64"))?;
                let text = String::from_utf8(bytes).map_err(|_| bad("an `auth` is not UTF-8"))?;
                let (user, password) = text.split_once(':').ok_or_else(|| bad("an `auth` lacks a colon"))?;
                (user.to_owned(), password.trim_end_matches('\0').to_owned())
            }
            None => match (&self.username, &self.password) {
                (Some(user), Some(password)) => (user.clone(), password.clone()),
                _ => return Ok(None),
            },
        };
        // Docker's way to say that the password is an identity token.
        if user == "<token>" {
            return Ok(Some(Secret::IdentityToken(password)));
        }
        Ok(Some(Secret::Password { user, password }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, reference: &str) -> String {
        match find_in(text, &reference.parse().unwrap()) {
            Ok(None) => "none".to_owned(),
            Ok(Some(Found::InHelper)) => "helper".to_owned(),
            Ok(Some(Found::Here(Credentials { secret }))) => match secret.unwrap() {
                Secret::Password { user, password } => format!("{user}/{password}"),
                Secret::IdentityToken(token) => format!("token {token}"),
            },
            Err(e) => format!("{:?}", e.kind()),
        }
    }

    #[test]
    fn the_most_special_entry_counts() {
        let text = serde_json::json!({"auths": {
            "https://index.docker.io/v1/": {"auth": base64::encode(b"hub:p:w")},
            "quay.io": {"auth": base64::encode(b"all:1")},
            "quay.io/team": {"auth": base64::encode(b"team:2")},
            "https://x.example:5000/v2/": {"username": "u", "password": "p"},
            "identity.example": {"auth": base64::encode(b"<token>:it")},
            "token.example": {"auth": "", "identitytoken": "tt"},
            "empty.example": {},
            "broken.example": {"auth": "***"}
        }})
        .to_string();
        let table = [
            ("python", "hub/p:w"),
            ("quay.io/other/x", "all/1"),
            ("quay.io/team/x", "team/2"),
            ("quay.io/teams/x", "all/1"),
            ("x.example:5000/y", "u/p"),
            ("x.example/y", "none"),
            ("identity.example/y", "token it"),
            ("token.example/y", "token tt"),
            ("empty.example/y", "none"),
            ("broken.example/y", "InvalidArgument"),
        ];
        for (reference, expected) in table {
            assert_eq!(found(&text, reference), expected, "{reference}");
        }
    }

    #[test]
    fn helpers_are_seen_but_secrets_are_not_shown() {
        assert_eq!(found(r#"{"credsStore": "desktop"}"#, "python"), "helper");
        assert_eq!(found(r#"{"credHelpers": {"gcr.io": "gcloud"}}"#, "gcr.io/a/b"), "helper");
        assert_eq!(found(r#"{"credHelpers": {"gcr.io": "gcloud"}}"#, "python"), "none");
        assert_eq!(found("", "python"), "none");
        assert_eq!(found("{", "python"), "InvalidArgument");
        let shown = format!("{:?} {:?}", Credentials::password("u", "secret"), Credentials::identity_token("secret"));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
