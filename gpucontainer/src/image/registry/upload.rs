//! Blobs and manifests on their way to a registry; what broke off is resumed.

use super::transport::{Content, PAUSE};
use super::{Client, Failure, url::Url};
use crate::digest::{self, Digest};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::image::manifest::Blob;
use std::io::Read;
use ureq::http::Method;

/// Breaks that are mended.
const BREAKS: u32 = 5;

/// Opens what is sent from an offset on.
pub(in crate::image) type Open<'a> = dyn Fn(u64) -> Result<Box<dyn Read + 'a>> + 'a;

/// An upload that the registry waits for.
#[derive(Debug)]
pub(in crate::image) struct Session(Url);

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

    /// Has the registry take the blob from its repository `from`. If it does not, it waits for an upload.
    pub(in crate::image) fn mount(&self, digest: &Digest, from: &str) -> Result<Option<Session>> {
        self.begin(&[("mount", &digest.to_string()), ("from", from)])
    }

    fn begin(&self, query: &[(&str, &str)]) -> Result<Option<Session>> {
        let url = self.base.with_path(&format!("/v2/{}/blobs/uploads/", self.repository));
        let whole = if query.is_empty() { url.clone() } else { url.with_query(query) };
        let result = self.insistent(|| {
            let mut answer = self.request(&Method::POST, &whole, &[], &Content::Bytes(&[]))?;
            match answer.status {
                201 if !query.is_empty() => Ok(None),
                202 => Ok(Some(Session(answer.location(&whole)?))),
                _ => Err(answer.failure(ErrorKind::Registry, &self.login)),
            }
        });
        result.with_context(|| format!("POST {url}"))
    }

    /// Sends a blob, by the session if there is one already. `open` is asked for as much of it as is still to be sent.
    pub(in crate::image) fn upload<'b>(&self, blob: &Blob, session: Option<Session>, open: &'b Open<'b>) -> Result<()> {
        let mut session = session;
        let (mut offset, mut breaks) = (0, 0);
        loop {
            let Session(at) = match session.take() {
                Some(session) => session,
                None => {
                    offset = 0;
                    let none = || Error::new(ErrorKind::Registry, "the registry begins no upload");
                    self.begin(&[])?.ok_or_else(none)?
                }
            };
            let failure = match self.send(blob, &at, offset, open).and_then(|next| self.end(blob, &next)) {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            self.cancel.check()?;
            breaks += 1;
            let Some(pause) = failure.again.filter(|_| breaks <= BREAKS) else { return Err(failure.error) };
            tracing::debug!(error = %failure.error, breaks, "resuming");
            self.pause(pause * breaks)?;
            // The answer may be what was lost.
            if self.has(&blob.digest)? {
                return Ok(());
            }
            (session, offset) = self.resume(&at, blob.size);
        }
    }

    /// Sends what is left; returns where the upload goes on.
    fn send<'b>(&self, blob: &Blob, at: &Url, offset: u64, open: &'b Open<'b>) -> Result<Url, Failure> {
        if offset == blob.size {
            return Ok(at.clone());
        }
        let range = format!("{offset}-{}", blob.size - 1);
        let mut headers = vec![("Content-Type", "application/octet-stream")];
        // Registries that know no pieces have no objection to one that is not called so.
        headers.extend((offset > 0).then_some(("Content-Range", range.as_str())));
        let open = || open(offset);
        let content = Content::Stream { open: &open, length: blob.size - offset };
        let mut answer = self.request(&Method::PATCH, at, &headers, &content)?;
        match answer.status {
            202 => Ok(answer.location(at)?),
            // It is not the piece that the registry waits for, or the upload is forgotten.
            404 | 416 => {
                let failure = answer.failure(ErrorKind::Registry, &self.login);
                Err(Failure { again: Some(PAUSE), ..failure }.context(format!("PATCH {at}")))
            }
            _ => Err(answer.failure(ErrorKind::Registry, &self.login).context(format!("PATCH {at}"))),
        }
    }

    /// Says that all was sent.
    fn end(&self, blob: &Blob, at: &Url) -> Result<(), Failure> {
        let whole = at.with_query(&[("digest", &blob.digest.to_string())]);
        let mut answer = self.request(&Method::PUT, &whole, &[], &Content::Bytes(&[]))?;
        match answer.status {
            201 | 204 => Ok(()),
            _ => Err(answer.failure(ErrorKind::Registry, &self.login).context(format!("PUT {at}"))),
        }
    }

    /// What the registry has of an upload that broke off; nothing if it has forgotten it.
    fn resume(&self, at: &Url, size: u64) -> (Option<Session>, u64) {
        let Ok(answer) = self.request(&Method::GET, at, &[], &Content::Nothing) else { return (None, 0) };
        // `0-0` is said of one byte and of none; to send one again costs nothing.
        let end = answer.header("range").and_then(|range| range.trim_start_matches("bytes=").strip_prefix("0-"));
        let offset = end.and_then(|end| end.parse().ok()).map_or(0, |end: u64| if end == 0 { 0 } else { end + 1 });
        match answer.location(at) {
            Ok(next) if answer.status == 204 && (1..=size).contains(&offset) => (Some(Session(next)), offset),
            _ => (None, 0),
        }
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
