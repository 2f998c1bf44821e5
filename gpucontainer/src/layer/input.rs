//! The bytes of an archive, through one large buffer: read once, counted, limited, cancellable.

use super::record::Record;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;
use std::io::Read;

/// Large enough that the cost of a system call disappears; file contents are written straight from it.
const CAPACITY: usize = 256 << 10;

/// A reader of whole blocks from a stream.
pub(super) struct Input<'a> {
    source: &'a mut dyn Read,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes taken from the source so far.
    taken: u64,
    limit: u64,
    cancel: Cancel,
    /// What passes is noted here.
    record: Option<Record>,
}

impl std::fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").field("taken", &self.taken).field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<'a> Input<'a> {
    pub(super) fn new(source: &'a mut dyn Read, limit: u64, cancel: Cancel, record: Option<Record>) -> Self {
        Self { source, buffer: vec![0; CAPACITY], start: 0, end: 0, taken: 0, limit, cancel, record }
    }

    /// Bytes that the caller has consumed so far.
    pub(super) fn consumed(&self) -> u64 {
        self.taken - (self.end - self.start) as u64
    }

    /// Makes at least `wanted` bytes available, fewer only at the end of the stream.
    fn fill(&mut self, wanted: usize) -> Result<()> {
        let wanted = wanted.min(CAPACITY);
        if self.end - self.start >= wanted {
            return Ok(());
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < wanted {
            self.cancel.check()?;
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(count) => {
                    self.end += count;
                    self.taken += count as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(unreadable(e)),
            }
            if self.taken > self.limit {
                let text = format!("the archive is larger than the allowed {} bytes", self.limit);
                return Err(Error::new(ErrorKind::InvalidLayer, text));
            }
        }
        Ok(())
    }

    /// The next bytes, at most `most` and at least one; an error at the end of the stream. Not yet consumed.
    pub(super) fn peek(&mut self, most: u64) -> Result<&[u8]> {
        let most = usize::try_from(most).unwrap_or(CAPACITY).min(CAPACITY);
        self.fill(most)?;
        let available = most.min(self.end - self.start);
        if available == 0 { Err(truncated(self.taken)) } else { Ok(&self.buffer[self.start..self.start + available]) }
    }

    /// Whether the stream has ended.
    pub(super) fn at_end(&mut self) -> Result<bool> {
        self.fill(1)?;
        Ok(self.start == self.end)
    }

    /// Marks `count` of the bytes that [`Input::peek`] showed as used.
    pub(super) fn consume(&mut self, count: usize) -> Result<()> {
        let end = (self.start + count).min(self.end);
        if let Some(record) = &mut self.record {
            record.bytes(&self.buffer[self.start..end])?;
        }
        self.start = end;
        Ok(())
    }

    /// The same for bytes that the record finds in a file; the caller notes which.
    pub(super) fn consume_kept(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// The record of what passes, if there is one.
    pub(super) fn record(&mut self) -> Option<&mut Record> {
        self.record.as_mut()
    }

    /// Ends the record.
    pub(super) fn finish(self) -> Result<()> {
        self.record.map_or(Ok(()), Record::finish)
    }

    /// Fills `block`, or returns `false` if the stream ended before it.
    pub(super) fn block(&mut self, block: &mut [u8]) -> Result<bool> {
        self.fill(block.len())?;
        match self.end - self.start {
            0 => Ok(false),
            available if available < block.len() => Err(truncated(self.taken)),
            _ => {
                block.copy_from_slice(&self.buffer[self.start..self.start + block.len()]);
                self.consume(block.len())?;
                Ok(true)
            }
        }
    }

    /// Passes over `count` bytes.
    pub(super) fn skip(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            let shown = self.peek(count)?.len();
            self.consume(shown)?;
            count -= shown as u64;
        }
        Ok(())
    }

    /// Reads what is left, to the end of the stream.
    pub(super) fn drain(&mut self) -> Result<()> {
        loop {
            self.consume(self.end - self.start)?;
            self.fill(CAPACITY)?;
            if self.start == self.end {
                return Ok(());
            }
        }
    }
}

fn truncated(taken: u64) -> Error {
    Error::new(ErrorKind::InvalidLayer, format!("the archive is truncated after {taken} bytes"))
}

/// An error of the kernel, or of a reader of ours, is passed on; any other is a decoder's word on bad data.
fn unreadable(cause: std::io::Error) -> Error {
    let foreign = cause.raw_os_error().is_none() && !cause.get_ref().is_some_and(|inner| inner.is::<Error>());
    let error = Error::from_io("read the archive", cause);
    if foreign { error.with_kind(ErrorKind::InvalidLayer) } else { error }
}
