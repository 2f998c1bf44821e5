//! Blobs and manifests on their way to a registry; what broke off is resumed.

use super::transport::{Answer, Content, PAUSE};
use super::{Client, Failure, url::Url};
use crate::digest::{self, Digest};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::manifest::Blob;
use std::io::Read;
use std::sync::atomic::Ordering;
use ureq::http::Method;

/// Breaks in a row that are mended. One that comes after much progress does not count.
const BREAKS: u32 = 5;

/// Progress that makes earlier breaks forgotten.
const PROGRESS: u64 = 1 << 20;

/// Opens what is sent from an offset on.
pub(in crate::image) type Open<'a> = dyn Fn(u64) -> Result<Box<dyn Read + 'a>> + 'a;

/// An upload that the registry waits for.
#[derive(Debug)]
pub(in crate::image) struct Session(Url);

/// What became of a wish for a blob of another repository.
#[derive(Debug)]
pub(in crate::image) enum Mounted {
    There,
    /// It has to be sent, by the session if the registry waits already.
    Not(Option<Session>),
}

/// How far an upload is.
#[derive(Debug, Default)]
struct Standing {
    /// Where it goes on; nowhere before the registry waits for one.
    at: Option<Url>,
    offset: u64,
}

impl Client<'_> {
    /// Whether the repository has the blob.
    pub(in crate::image) fn has(&self, digest: &Digest) -> Result<bool> {
        let url = self.base.with_path(&format!("/v2/{}/blobs/{digest}", self.repository));
        let result = self.insistent(|| {
            let mut answer = self.request(&Method::HEAD, &url, &[], &Content::Nothing)?;
            match answer.status {
                200 => Ok(true),
                404 => Ok(false),
                _ => Err(answer.failure(ErrorKind::Registry, &self.login)),
            }
        });
        result.with_context(|| format!("HEAD {url}"))
    }

    /// Has the registry take the blob from its repository `from`. If it does not, as when the user must not read there, it
    /// waits for an upload, now or later.
    pub(in crate::image) fn mount(&self, digest: &Digest, from: &str) -> Result<Mounted> {
        if self.refused.load(Ordering::Relaxed) {
            return Ok(Mounted::Not(None));
        }
        match self.begin(&[("mount", &digest.to_string()), ("from", from)]) {
            Ok(session) => Ok(session.map_or(Mounted::There, |session| Mounted::Not(Some(session)))),
            Err(error) if matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::Network) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "no blobs of {from}");
                Ok(Mounted::Not(None))
            }
        }
    }

    fn begin(&self, query: &[(&str, &str)]) -> Result<Option<Session>> {
        let url = self.base.with_path(&format!("/v2/{}/blobs/uploads/", self.repository));
        let whole = if query.is_empty() { url.clone() } else { url.with_query(query) };
        let result = self.insistent(|| {
            let mut answer = self.request(&Method::POST, &whole, &[], &Content::Bytes(&[]))?;
            match answer.status {
                201 if !query.is_empty() => Ok(None),
                202 => Ok(Some(Session(answer.location()?))),
                _ => Err(answer.failure(ErrorKind::Registry, &self.login)),
            }
        });
        result.with_context(|| format!("POST {url}"))
    }

    /// Sends a blob, by the session if there is one already. `open` is asked for as much of it as is still to be sent.
    pub(in crate::image) fn upload<'b>(&self, blob: &Blob, session: Option<Session>, open: &'b Open<'b>) -> Result<()> {
        let mut standing = Standing { at: session.map(|Session(at)| at), offset: 0 };
        let (mut breaks, mut furthest, mut broken) = (0, 0, false);
        loop {
            let step = match broken {
                // The answer may be what was lost.
                true => self.look(blob, &mut standing),
                false => self.go_on(blob, &mut standing, open).map(|()| true),
            };
            match step {
                Ok(true) => return Ok(()),
                Ok(false) => broken = false,
                Err(failure) => {
                    self.cancel.check()?;
                    breaks += 1;
                    let Some(pause) = failure.again.filter(|_| breaks <= BREAKS) else { return Err(failure.error) };
                    tracing::debug!(error = %failure.error, breaks, "resuming");
                    self.pause(pause * breaks)?;
                    broken = true;
                }
            }
            if standing.offset >= furthest + PROGRESS {
                (furthest, breaks) = (standing.offset, 0);
            }
        }
    }

    /// Sends what is left, and says that it was all.
    fn go_on<'b>(&self, blob: &Blob, standing: &mut Standing, open: &'b Open<'b>) -> Result<(), Failure> {
        let at = match standing.at.take() {
            Some(at) => at,
            None => {
                standing.offset = 0;
                let none = || Error::new(ErrorKind::Registry, "the registry begins no upload");
                self.begin(&[]).and_then(|session| session.ok_or_else(none)).map_err(perhaps_later)?.0
            }
        };
        let at = standing.at.insert(at);
        if standing.offset < blob.size {
            *at = self.send(blob, at, standing.offset, open)?;
            standing.offset = blob.size;
        }
        self.end(blob, at)
    }

    /// Whether the registry has all of a blob after all. If not, how far it is.
    fn look(&self, blob: &Blob, standing: &mut Standing) -> Result<bool, Failure> {
        if self.has(&blob.digest).map_err(perhaps_later)? {
            return Ok(true);
        }
        if let Some(at) = standing.at.take() {
            let found = self.insistent(|| self.resume(&at, blob.size));
            // It is asked again where it was.
            standing.at = Some(at);
            *standing = found.map_err(perhaps_later)?;
        }
        Ok(false)
    }

    /// Sends what is left; returns where the upload goes on.
    fn send<'b>(&self, blob: &Blob, at: &Url, offset: u64, open: &'b Open<'b>) -> Result<Url, Failure> {
        let range = format!("{offset}-{}", blob.size - 1);
        let mut headers = vec![("Content-Type", "application/octet-stream")];
        // Registries that know no pieces have no objection to one that is not called so.
        headers.extend((offset > 0).then_some(("Content-Range", range.as_str())));
        let open = || open(offset);
        let content = Content::Stream { open: &open, length: blob.size - offset };
        let mut answer = self.request(&Method::PATCH, at, &headers, &content)?;
        match answer.status {
            202 => Ok(answer.location()?),
            _ => Err(self.lost(&mut answer).context(format!("PATCH {at}"))),
        }
    }

    /// The failure of a step of an upload.
    fn lost(&self, answer: &mut Answer) -> Failure {
        let failure = answer.failure(ErrorKind::Registry, &self.login);
        match answer.status {
            // It is not the piece that the registry waits for, or the upload is forgotten.
            404 | 416 => Failure { again: Some(PAUSE), ..failure },
            _ => failure,
        }
    }

    /// Says that all was sent.
    fn end(&self, blob: &Blob, at: &Url) -> Result<(), Failure> {
        let whole = at.with_query(&[("digest", &blob.digest.to_string())]);
        let mut answer = self.request(&Method::PUT, &whole, &[], &Content::End(blob.size))?;
        match answer.status {
            201 | 204 => Ok(()),
            _ => Err(self.lost(&mut answer).context(format!("PUT {at}"))),
        }
    }

    /// What the registry has of an upload that broke off; nothing if it has forgotten it.
    fn resume(&self, at: &Url, size: u64) -> Result<Standing, Failure> {
        let mut answer = self.request(&Method::GET, at, &[], &Content::Nothing)?;
        if matches!(answer.status, 429 | 500 | 502..=504) {
            return Err(answer.failure(ErrorKind::Registry, &self.login).context(format!("GET {at}")));
        }
        // `0-0` is said of one byte and of none; to send one again costs nothing.
        let end = answer.header("range").and_then(|range| range.trim_start_matches("bytes=").strip_prefix("0-"));
        let end = end.and_then(|end| end.parse().ok()).filter(|end| *end > 0);
        let offset = end.and_then(|end: u64| end.checked_add(1)).unwrap_or_default();
        Ok(match answer.location() {
            Ok(next) if answer.status == 204 && (1..=size).contains(&offset) => Standing { at: Some(next), offset },
            _ => Standing::default(),
        })
    }

    /// Puts a manifest under a tag.
    pub(in crate::image) fn put_manifest(&self, tag: &str, media_type: &str, bytes: &[u8]) -> Result<Digest> {
        let url = self.base.with_path(&format!("/v2/{}/manifests/{tag}", self.repository));
        let digest = Digest::of(bytes);
        let result = self.insistent(|| {
            let headers = [("Content-Type", media_type)];
            let mut answer = self.request(&Method::PUT, &url, &headers, &Content::Bytes(bytes))?;
            if !matches!(answer.status, 200..=202) {
                return Err(answer.failure(ErrorKind::Registry, &self.login));
            }
            match answer.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok()) {
                Some(said) if said != digest => Err(digest::mismatch("manifest", &digest, &said).into()),
                _ => Ok(digest),
            }
        });
        result.with_context(|| format!("PUT {url}"))
    }
}

/// The same failure, which may pass if it was one of the network: the registry may be starting again.
fn perhaps_later(error: Error) -> Failure {
    Failure { again: (error.kind() == ErrorKind::Network).then_some(PAUSE), error }
}
