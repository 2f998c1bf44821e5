//! HTTP itself: connections, encryption, timeouts.

use super::Failure;
use super::url::Url;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;
use crate::sys::fs;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use ureq::http::{HeaderMap, Method, Request};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, AsSendBody, SendBody};

/// A peer that says nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(30);

/// Where distributions keep the authorities that the host trusts. The first that is there counts.
const HOST_AUTHORITIES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// How long to wait before the first repetition.
pub(super) const PAUSE: Duration = Duration::from_millis(200);

/// So many bytes a second a registry looks through, or moves to where they stay, when it has all of a blob.
const COMMITTED: u64 = 10 << 20;

/// How often a cancel is looked for while requests wait for their peer.
const WATCH: Duration = Duration::from_millis(50);

/// The connections to a registry, and to where it sends us.
#[derive(Debug)]
pub(super) struct Transport {
    agent: Agent,
    silence: Duration,
    cancel: Cancel,
}

/// What is sent with a request.
pub(super) enum Content<'a> {
    Nothing,
    Bytes(&'a [u8]),
    /// Nothing, after which the registry has so many bytes to look through before it answers.
    End(u64),
    /// Opened anew for each attempt.
    Stream {
        open: &'a (dyn Fn() -> Result<Box<dyn Read + 'a>> + 'a),
        length: u64,
    },
}

/// What came back.
pub(super) struct Answer {
    /// Who gave it.
    pub(super) by: Url,
    pub(super) status: u16,
    headers: HeaderMap,
    pub(super) reader: Box<dyn Read + Send>,
}

impl Transport {
    pub(super) fn new(authorities: &[Vec<u8>], timeout: Option<Duration>, cancel: &Cancel) -> Result<Self> {
        let silence = timeout.unwrap_or(SILENCE);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(silence))
            .timeout_connect(Some(silence))
            .timeout_recv_response(Some(silence))
            .timeout_per_read(Some(silence))
            .timeout_per_write(Some(silence))
            .user_agent(concat!("gpucontainer/", env!("CARGO_PKG_VERSION")))
            // Layers are compressed themselves, and their digests are of the bytes as they are.
            .accept_encoding("identity")
            .input_buffer_size(256 << 10)
            .tls_config(TlsConfig::builder().root_certs(roots(authorities)?).build())
            .build();
        Ok(Self { agent: Agent::new_with_config(config), silence, cancel: cancel.clone() })
    }

    pub(super) fn get(&self, url: &Url, headers: &[(&str, &str)]) -> Result<Answer, Failure> {
        self.send(Method::GET, url, headers, &Content::Nothing)
    }

    pub(super) fn post_form(&self, url: &Url, form: &str) -> Result<Answer, Failure> {
        let headers = [("Content-Type", "application/x-www-form-urlencoded")];
        self.send(Method::POST, url, &headers, &Content::Bytes(form.as_bytes()))
    }

    /// One request and its answer.
    pub(super) fn send(
        &self,
        method: Method,
        url: &Url,
        headers: &[(&str, &str)],
        content: &Content<'_>,
    ) -> Result<Answer, Failure> {
        self.cancel.check()?;
        let mut request = Request::builder().method(&method).uri(url.whole());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let bad = |e: ureq::http::Error| Error::new(ErrorKind::Registry, format!("{method} {url}: {e}"));
        let result = match content {
            Content::Nothing => self.run(request.body(()).map_err(bad)?, url, None),
            Content::Bytes(bytes) => self.run(request.body(*bytes).map_err(bad)?, url, None),
            Content::End(size) => {
                let patience = self.silence + Duration::from_secs(size / COMMITTED);
                self.run(request.body(&[][..]).map_err(bad)?, url, Some(patience))
            }
            Content::Stream { open, length } => {
                let mut reader = Exactly { inner: open()?, left: *length };
                let body = SendBody::from_reader(&mut reader);
                self.run(request.header("Content-Length", *length).body(body).map_err(bad)?, url, None)
            }
        };
        match result {
            Ok(response) => {
                let (parts, body) = response.into_parts();
                let reader = Box::new(body.into_reader());
                Ok(Answer { by: url.clone(), status: parts.status.as_u16(), headers: parts.headers, reader })
            }
            Err(e) => {
                // A cancel closes the connection; what that looks like from here does not matter.
                self.cancel.check()?;
                let again = may_pass(&e).then_some(PAUSE);
                let own = match &e {
                    ureq::Error::Io(e) => e.get_ref().and_then(|cause| cause.downcast_ref::<Error>()),
                    _ => None,
                };
                // What is sent could not be read.
                if let Some(kind) = own.map(Error::kind) {
                    return Err(Error::new(kind, format!("{method} {url}: {e}")).with_cause(e).into());
                }
                let error = Error::new(ErrorKind::Network, format!("{method} {url}: {e}")).with_cause(e);
                Err(Failure { error, again })
            }
        }
    }

    fn run(
        &self,
        request: Request<impl AsSendBody>,
        url: &Url,
        patience: Option<Duration>,
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let mut request = self.agent.configure_request(request);
        if url.is_loopback() {
            // To another machine it would be another one's, and unencrypted on the way there.
            request = request.proxy(None);
        }
        if patience.is_some() {
            request = request.timeout_recv_response(patience);
        }
        self.agent.run(request.build())
    }

    /// Does `work`, and closes all connections when `cancel` is switched: a blocked read ends at once.
    ///
    /// There is one more thread for as long as it takes; where the kernel allows none, a cancel is heard when something
    /// moves.
    pub(super) fn watched<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Done<'a>(&'a AtomicBool, std::thread::Thread);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Release);
                self.1.unpark();
            }
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watch = || {
                while !done.load(Ordering::Acquire) {
                    if self.cancel.is_cancelled() {
                        return self.agent.clone().shutdown();
                    }
                    std::thread::park_timeout(WATCH);
                }
            };
            let watcher = std::thread::Builder::new().spawn_scoped(scope, watch);
            // Also when the work panics, or the scope would wait for the watcher for ever.
            let _done = watcher.ok().map(|watcher| Done(&done, watcher.thread().clone()));
            work()
        })
    }
}

/// Gives just so many bytes. Whoever sends them would ask for more for ever, if there were fewer.
struct Exactly<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..wanted])?;
        if count == 0 && wanted > 0 {
            let why = format!("what is sent ends {} bytes too early", self.left);
            return Err(Error::new(ErrorKind::Corrupt, why).into());
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Whether the same request may succeed a moment later.
fn may_pass(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(e) => e.kind() != io::ErrorKind::NotConnected,
        ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => true,
        _ => false,
    }
}

/// The host's authorities and those that the caller added; without any, those of Mozilla that are built in.
fn roots(added: &[Vec<u8>]) -> Result<RootCerts> {
    let mut certificates = Vec::new();
    for pem in added {
        let before = certificates.len();
        for item in ureq::tls::parse_pem(pem) {
            match item {
                Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
                Ok(_) => {}
                Err(e) => {
                    let why = format!("certificate authority: {e}");
                    return Err(Error::new(ErrorKind::InvalidArgument, why));
                }
            }
        }
        if certificates.len() == before {
            return Err(Error::new(ErrorKind::InvalidArgument, "certificate authority: no certificate in the PEM"));
        }
    }
    match host_authorities() {
        Some(host) => certificates.extend(host),
        None if certificates.is_empty() => return Ok(RootCerts::WebPki),
        None => {}
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

fn host_authorities() -> Option<Vec<Certificate<'static>>> {
    let named = fs::path_from_environment("SSL_CERT_FILE");
    let known = HOST_AUTHORITIES.iter().map(|path| Path::new(path).to_owned());
    for path in named.into_iter().chain(known) {
        let Ok(pem) = fs::read(&path) else { continue };
        // One unreadable certificate among hundreds must not take the others away.
        let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if !certificates.is_empty() {
            return Some(certificates);
        }
    }
    None
}

impl Answer {
    /// A header's value, its name given in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// All values of a header.
    pub(super) fn headers(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
    }

    /// The whole body; `None` if it is longer than `limit`.
    pub(super) fn body(&mut self, limit: u64) -> Result<Option<Vec<u8>>, Failure> {
        let stated = self.header("content-length").and_then(|text| text.parse::<u64>().ok());
        if stated.is_some_and(|stated| stated > limit) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        match (&mut self.reader).take(limit + 1).read_to_end(&mut bytes) {
            Ok(count) => Ok(u64::try_from(count).is_ok_and(|count| count <= limit).then_some(bytes)),
            Err(e) => Err(Failure {
                error: Error::new(ErrorKind::Network, format!("the answer broke off: {e}")).with_cause(e),
                again: Some(PAUSE),
            }),
        }
    }
}
