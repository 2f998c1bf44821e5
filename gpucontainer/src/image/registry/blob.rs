//! Blobs: streamed, and resumed where the connection broke.

use super::{Client, Failure, url::Url};
use crate::error::{Error, ErrorKind, Result};
use crate::image::ingest::Source;
use crate::image::manifest::Blob;
use std::io::{self, Read};

/// Breaks in a row that are mended. One that comes after much progress does not count.
const BREAKS: u32 = 5;

/// Progress that makes earlier breaks forgotten.
const PROGRESS: u64 = 1 << 20;

/// Downloads a blob; a broken connection is resumed by `Range`.
struct Download<'a> {
    client: &'a Client<'a>,
    url: Url,
    size: u64,
    /// Bytes given out.
    offset: u64,
    reader: Option<Box<dyn Read + Send>>,
    breaks: u32,
    /// Where it broke last.
    broke_at: u64,
}

impl Source for Client<'_> {
    fn open(&self, blob: &Blob) -> Result<Box<dyn Read + Send + '_>> {
        let path = format!("/v2/{}/blobs/{}", self.repository, blob.digest);
        let mut download = Download {
            client: self,
            url: self.base.with_path(&path),
            size: blob.size,
            offset: 0,
            reader: None,
            breaks: 0,
            broke_at: 0,
        };
        download.connect()?;
        Ok(Box::new(download))
    }
}

impl Download<'_> {
    /// Asks for the rest.
    fn connect(&mut self) -> Result<()> {
        let client = self.client;
        let reader = client.insistent(|| self.request())?;
        self.reader = Some(reader);
        Ok(())
    }

    fn request(&self) -> Result<Box<dyn Read + Send>, Failure> {
        let range = format!("bytes={}-", self.offset);
        let headers: &[(&str, &str)] = if self.offset > 0 { &[("Range", &range)] } else { &[] };
        let mut answer = self.client.get(&self.url, headers)?;
        match answer.status {
            200 => {
                let stated = answer.header("content-length").and_then(|text| text.parse::<u64>().ok());
                if let Some(stated) = stated.filter(|stated| *stated != self.size) {
                    let why = format!("{}: {stated} bytes are offered, {} were promised", self.url, self.size);
                    return Err(Error::new(ErrorKind::DigestMismatch, why).into());
                }
                let mut reader = answer.reader;
                // A server that knows no ranges starts over.
                let skipped = io::copy(&mut (&mut reader).take(self.offset), &mut io::sink());
                skipped.map_err(|e| Failure { error: self.broken(&e), again: None })?;
                Ok(reader)
            }
            206 if self.offset > 0 => {
                let start = format!("bytes {}-", self.offset);
                if answer.header("content-range").is_some_and(|range| range.starts_with(&start)) {
                    Ok(answer.reader)
                } else {
                    let why = format!("{}: another range than the one asked for", self.url);
                    Err(Error::new(ErrorKind::Registry, why).into())
                }
            }
            _ => {
                let failure = answer.failure(ErrorKind::Registry, &self.client.login);
                Err(failure.context(format!("GET {}", self.url)))
            }
        }
    }

    fn broken(&self, why: &dyn std::fmt::Display) -> Error {
        let words = format!("GET {}: broke off after {} of {} bytes: {why}", self.url, self.offset, self.size);
        Error::new(ErrorKind::Network, words)
    }

    /// Gets over a break, if there were not too many.
    fn mend(&mut self, why: &dyn std::fmt::Display) -> Result<()> {
        self.reader = None;
        self.client.cancel.check()?;
        if self.offset - self.broke_at >= PROGRESS {
            self.breaks = 0;
        }
        self.breaks += 1;
        self.broke_at = self.offset;
        let error = self.broken(why);
        if self.breaks > BREAKS {
            return Err(error);
        }
        tracing::debug!(%error, "resuming");
        self.client.pause(super::transport::PAUSE * self.breaks)?;
        self.connect()
    }
}

impl Read for Download<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.offset >= self.size {
            return Ok(0);
        }
        loop {
            let Some(reader) = &mut self.reader else {
                return Err(self.broken(&"it was given up").into());
            };
            match reader.read(buffer) {
                Ok(0) => self.mend(&"the connection was closed")?,
                Ok(count) => {
                    self.offset += u64::try_from(count).unwrap_or(u64::MAX);
                    return Ok(count);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => self.mend(&e)?,
            }
        }
    }
}
