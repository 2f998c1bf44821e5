//! A client for the OCI distribution protocol: as much of it as pulling and pushing need.

mod base64;
mod blob;
mod challenge;
mod credentials;
mod transport;
mod upload;
mod url;

pub use credentials::Credentials;
pub(super) use upload::{Mounted, Session};

use super::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_MAX, OCI_INDEX, OCI_MANIFEST};
use super::reference::Reference;
use crate::digest::{self, Digest};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::progress::Cancel;
use challenge::Challenge;
use credentials::{Login, Secret};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use transport::{Answer, Content, Transport};
use ureq::http::Method;
use url::Url;

/// How the registry is reached.
#[derive(Clone, Debug, Default)]
pub(super) struct Access {
    pub(super) credentials: Option<Credentials>,
    pub(super) plain_http: Option<bool>,
    pub(super) authorities: Vec<Vec<u8>>,
    pub(super) timeout: Option<Duration>,
}

impl Access {
    /// Finds what cannot be used before anything is changed.
    pub(super) fn check(&self) -> Result<()> {
        if self.timeout.is_some_and(|timeout| timeout < Duration::from_millis(1)) {
            return Err(Error::new(ErrorKind::InvalidArgument, "timeout must be at least one millisecond"));
        }
        Ok(())
    }
}

/// Attempts for one request, the first included.
const ATTEMPTS: u32 = 4;

/// Redirects that are followed for one request.
const REDIRECTS: u32 = 8;

/// Largest answer of a token server, and as much as is read of an error's text.
const TEXT_MAX: u64 = 256 << 10;

/// One repository of one registry.
#[derive(Debug)]
pub(super) struct Client<'a> {
    transport: Transport,
    base: Url,
    repository: String,
    /// What a token must be for besides what the registry asks for, which at first is reading alone.
    scopes: Vec<String>,
    /// What a token shall be for besides, if the user has the right to it.
    wish: Option<String>,
    /// Whether the token server refuses the wish.
    refused: AtomicBool,
    login: Login,
    /// The `Authorization` header that worked last.
    authorization: Mutex<Option<String>>,
    cancel: &'a Cancel,
}

impl<'a> Client<'a> {
    /// Prepares for reading the repository of `reference`; nothing is sent yet.
    pub(super) fn new(reference: &Reference, access: &Access, cancel: &'a Cancel) -> Result<Self> {
        Self::with_scopes(reference, access, cancel, Vec::new(), None)
    }

    /// Prepares for writing to the repository of `reference`, also what another repository of the registry has.
    pub(super) fn for_push(
        reference: &Reference,
        from: Option<&str>,
        access: &Access,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        let scopes = vec![format!("repository:{}:pull,push", reference.repository())];
        Self::with_scopes(reference, access, cancel, scopes, from.map(|from| format!("repository:{from}:pull")))
    }

    fn with_scopes(
        reference: &Reference,
        access: &Access,
        cancel: &'a Cancel,
        scopes: Vec<String>,
        wish: Option<String>,
    ) -> Result<Self> {
        let host = match reference.registry() {
            // The name and the address of Docker's own registry differ.
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let plain = access.plain_http.unwrap_or_else(|| url::is_loopback(host));
        let base = Url::parse(&format!("{}://{host}", if plain { "http" } else { "https" }))?;
        let login = match &access.credentials {
            Some(credentials) => Login::Given(credentials.clone()),
            None => credentials::find(reference)?,
        };
        Ok(Self {
            transport: Transport::new(&access.authorities, access.timeout, cancel)?,
            base,
            repository: reference.repository().to_owned(),
            scopes,
            wish,
            refused: AtomicBool::new(false),
            login,
            authorization: Mutex::new(None),
            cancel,
        })
    }

    /// Does `work`, and closes all connections when the pull is cancelled: see [`Transport::watched`].
    pub(super) fn watched<T>(&self, work: impl FnOnce() -> T) -> T {
        self.transport.watched(work)
    }

    /// Gets a manifest or an index by tag or digest: its bytes and its digest.
    pub(super) fn manifest(&self, tag_or_digest: &str) -> Result<(Vec<u8>, Digest)> {
        let url = self.base.with_path(&format!("/v2/{}/manifests/{tag_or_digest}", self.repository));
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let result = self.insistent(|| self.fetch_manifest(&url, &accept));
        result.with_context(|| format!("manifest {tag_or_digest} of {}{}", self.base, self.repository))
    }

    fn fetch_manifest(&self, url: &Url, accept: &str) -> Result<(Vec<u8>, Digest), Failure> {
        let mut answer = self.get(url, &[("Accept", accept)])?;
        if answer.status != 200 {
            let missing = if answer.status == 404 { ErrorKind::ImageNotFound } else { ErrorKind::Registry };
            return Err(answer.failure(missing, &self.login));
        }
        let bytes = answer.body(MANIFEST_MAX)?.ok_or_else(|| {
            Error::new(ErrorKind::InvalidImage, format!("it is larger than the limit of {MANIFEST_MAX} bytes"))
        })?;
        let found = Digest::of(&bytes);
        // Registries may say digests of other algorithms here; those say nothing to us.
        if let Some(said) = answer.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok()) {
            if said != found {
                return Err(digest::mismatch("manifest", &said, &found).into());
            }
        }
        Ok((bytes, found))
    }

    /// Repeats what may go better the next time: broken connections, servers that are too busy.
    fn insistent<T>(&self, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T> {
        let mut tries = 1;
        loop {
            self.cancel.check()?;
            match attempt() {
                Ok(done) => return Ok(done),
                Err(Failure { error, again: Some(pause) }) if tries < ATTEMPTS => {
                    tracing::debug!(%error, tries, "trying again");
                    self.pause(pause * 2_u32.pow(tries - 1))?;
                    tries += 1;
                }
                Err(failure) => {
                    self.cancel.check()?;
                    return Err(failure.error);
                }
            }
        }
    }

    /// Lets a registry have its time before it is asked again, and hears cancel. A cancel can be switched in a signal
    /// handler, which can wake nobody, so it is looked at.
    fn pause(&self, time: Duration) -> Result<()> {
        let end = std::time::Instant::now() + time;
        loop {
            self.cancel.check()?;
            let left = end.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
    }

    /// One GET with authentication, redirects followed.
    fn get(&self, url: &Url, headers: &[(&str, &str)]) -> Result<Answer, Failure> {
        self.request(&Method::GET, url, headers, &Content::Nothing)
    }

    /// One request with authentication, redirects followed.
    fn request(
        &self,
        method: &Method,
        url: &Url,
        headers: &[(&str, &str)],
        content: &Content<'_>,
    ) -> Result<Answer, Failure> {
        let used = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let answer = self.follow(method, url, headers, content, used.as_deref())?;
        // Who else we were sent to could name a token server of its own, which would get the credentials.
        if answer.status != 401 || !answer.by.same_origin(&self.base) {
            return Ok(answer);
        }
        let authorization = self.authorize(&answer, used)?;
        self.follow(method, url, headers, content, authorization.as_deref())
    }

    fn follow(
        &self,
        method: &Method,
        url: &Url,
        headers: &[(&str, &str)],
        content: &Content<'_>,
        authorization: Option<&str>,
    ) -> Result<Answer, Failure> {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let mut at = url.clone();
        for _ in 0..=REDIRECTS {
            let mut all = headers.to_vec();
            // What proves who we are is for the registry alone, not for where it sends us.
            if let Some(authorization) = authorization.filter(|_| at.same_origin(&self.base)) {
                all.push(("Authorization", authorization));
            }
            let answer = self.transport.send(method.clone(), &at, &all, content)?;
            // The other three would have the request become a GET.
            let leads_on = matches!(answer.status, 307 | 308) || reads && matches!(answer.status, 301..=303);
            if !leads_on {
                return Ok(answer);
            }
            at = answer.location()?;
        }
        Err(Error::new(ErrorKind::Registry, format!("{url}: more than {REDIRECTS} redirects")).into())
    }

    /// Answers a challenge: the header to try next, or the reason why there is none.
    fn authorize(&self, refusal: &Answer, used: Option<String>) -> Result<Option<String>, Failure> {
        let mut current = self.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread answered the same challenge meanwhile.
        if *current != used {
            return Ok(current.clone());
        }
        let challenges: Vec<Challenge> = refusal.headers("www-authenticate").flat_map(challenge::parse).collect();
        let bearer = challenges.iter().find(|challenge| challenge.is("bearer"));
        let authorization = match bearer {
            Some(challenge) => Some(format!("Bearer {}", self.token(challenge)?)),
            None if challenges.iter().any(|challenge| challenge.is("basic")) => self.login.basic(),
            None => None,
        };
        // The same answer again would only get the same refusal.
        *current = authorization.filter(|authorization| used.as_ref() != Some(authorization));
        Ok(current.clone())
    }

    /// Gets a token from the server that the registry trusts.
    fn token(&self, challenge: &Challenge) -> Result<String, Failure> {
        let registry = |why: String| Error::new(ErrorKind::Registry, why);
        let realm = challenge.get("realm").ok_or_else(|| registry("the registry names no token server".to_owned()))?;
        let realm = Url::parse(realm)?;
        if self.base.is_secure() && !realm.is_secure() {
            return Err(registry(format!("the token server {realm} would get the credentials unencrypted")).into());
        }
        let mut answer = self.ask_for_token(&realm, challenge)?;
        if matches!(answer.status, 400..=404) && self.wish.is_some() && !self.refused.swap(true, Ordering::Relaxed) {
            // Perhaps for what was only wished for.
            answer = self.ask_for_token(&realm, challenge)?;
        }
        if answer.status != 200 {
            let kind = if matches!(answer.status, 400..=404) { ErrorKind::Authentication } else { ErrorKind::Registry };
            return Err(answer.failure(kind, &self.login).context(format!("token server {realm}")));
        }
        #[derive(serde::Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let bytes = answer.body(TEXT_MAX)?.unwrap_or_default();
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|e| registry(format!("token server {realm}: its answer is no token: {e}")))?;
        let token = token.token.or(token.access_token).filter(|token| !token.is_empty());
        // Control characters would end the header and start another.
        let token = token.filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()));
        Ok(token.ok_or_else(|| registry(format!("token server {realm}: its answer has no token")))?)
    }

    fn ask_for_token(&self, realm: &Url, challenge: &Challenge) -> Result<Answer, Failure> {
        let reading = format!("repository:{}:pull", self.repository);
        let asked = challenge.get("scope").or_else(|| self.scopes.is_empty().then_some(&reading));
        let wish = self.wish.iter().filter(|_| !self.refused.load(Ordering::Relaxed));
        let besides = self.scopes.iter().chain(wish).map(String::as_str).filter(|scope| asked != Some(scope));
        let mut query: Vec<_> = asked.into_iter().chain(besides).map(|scope| ("scope", scope)).collect();
        query.extend(challenge.get("service").map(|service| ("service", service)));
        match self.login.secret() {
            Some(Secret::IdentityToken(token)) => {
                query.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "gpucontainer"),
                    ("refresh_token", token),
                ]);
                self.transport.post_form(realm, &url::form(&query))
            }
            Some(Secret::Password { user, .. }) => {
                query.push(("account", user));
                let basic = self.login.basic().unwrap_or_default();
                self.transport.get(&realm.with_query(&query), &[("Authorization", &basic)])
            }
            None => self.transport.get(&realm.with_query(&query), &[]),
        }
    }
}

/// Why one attempt failed, and how long to wait before another if that may help.
#[derive(Debug)]
struct Failure {
    error: Error,
    again: Option<Duration>,
}

impl Failure {
    fn context(mut self, wanted: String) -> Self {
        self.error = self.error.context(wanted);
        self
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, again: None }
    }
}

impl Answer {
    /// Where it leads.
    fn location(&self) -> Result<Url> {
        let from = &self.by;
        let lost = || Error::new(ErrorKind::Registry, format!("{from}: a redirect to nowhere"));
        let next = from.join(self.header("location").ok_or_else(lost)?)?;
        if from.is_secure() && !next.is_secure() {
            return Err(Error::new(ErrorKind::Registry, format!("{from}: a redirect from HTTPS to {next}")));
        }
        Ok(next)
    }

    /// The error of an answer that is not what was hoped for; `kind` unless the status says otherwise.
    fn failure(&mut self, kind: ErrorKind, login: &Login) -> Failure {
        let kind = match self.status {
            401 | 403 => ErrorKind::Authentication,
            _ => kind,
        };
        let said = self.complaint();
        let hint = if kind == ErrorKind::Authentication { format!(" ({})", login.hint()) } else { String::new() };
        let error = Error::new(kind, format!("HTTP status {}{said}{hint}", self.status));
        let again = match self.status {
            429 => {
                let seconds = self.header("retry-after").and_then(|text| text.parse().ok()).unwrap_or(1);
                Some(Duration::from_secs(u64::min(seconds, 10)))
            }
            500 | 502..=504 => Some(Duration::from_millis(200)),
            _ => None,
        };
        Failure { error, again }
    }

    /// What the registry says about it in its own words, if it follows the specification there.
    fn complaint(&mut self) -> String {
        #[derive(serde::Deserialize)]
        struct Complaints {
            errors: Vec<Complaint>,
        }
        #[derive(serde::Deserialize)]
        struct Complaint {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let mut bytes = Vec::new();
        // A broken error text is no reason to hide the error.
        let _ = (&mut self.reader).take(TEXT_MAX).read_to_end(&mut bytes);
        let complaints: Complaints = match serde_json::from_slice(&bytes) {
            Ok(complaints) => complaints,
            Err(_) => return String::new(),
        };
        let texts: Vec<String> = complaints.errors.iter().map(|e| format!("{} {}", e.code, e.message)).collect();
        let text: String = texts.join("; ").chars().filter(|c| !c.is_control()).take(500).collect();
        format!(": {text}")
    }
}
