//! Members of a tar archive, one after the other: ustar, GNU and PAX, long names, extended attributes, sparse files.
//!
//! The fields of a header block are read by the `tar` crate. What goes beyond one block is done here, because
//! here every length is limited and holes stay holes. Where readers are known to disagree, this one does as
//! container engines do (archives are made with them in mind), or refuses.

use super::input::Input;
use super::pax;
use super::record::Record;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::fs::tree::{Kind, Moment};
use tar::Header;

const BLOCK: usize = 512;

/// Long names, extended headers: far more than any path or attribute that a kernel takes.
const EXTENSION_LIMIT: u64 = 1 << 20;

/// Pieces of one sparse file.
pub(super) const SEGMENT_LIMIT: usize = 1 << 20;

/// One member of an archive.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// As it stands in the archive: any bytes, perhaps hostile.
    pub(super) name: Vec<u8>,
    pub(super) what: What,
    pub(super) mode: u32,
    pub(super) owner: u32,
    pub(super) group: u32,
    pub(super) modified: Moment,
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a member is.
#[derive(Clone, Debug)]
pub(super) enum What {
    File {
        /// With the holes.
        size: u64,
        /// Where the bytes in the archive belong, in order; the rest are holes. `None`: one piece, no holes.
        segments: Option<Vec<Segment>>,
    },
    Directory,
    HardLink {
        target: Vec<u8>,
    },
    Link {
        target: Vec<u8>,
    },
    Node(Kind),
}

/// A piece of a sparse file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// An archive that is being read.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    input: Input<'a>,
    /// Bytes of the current member that were not read yet.
    remaining: u64,
    /// Zeros between them and the next header.
    padding: u64,
}

/// What the headers before a member say about it.
#[derive(Debug, Default)]
struct Extensions {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidLayer, text)
}

impl<'a> Archive<'a> {
    pub(super) fn new(input: Input<'a>) -> Self {
        Self { input, remaining: 0, padding: 0 }
    }

    /// Bytes of the archive read so far.
    pub(super) fn consumed(&self) -> u64 {
        self.input.consumed()
    }

    /// The next member, `None` after the last; then the stream has been read to its end.
    pub(super) fn next(&mut self) -> Result<Option<Member>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let position = self.input.consumed();
            let Some(header) = self.header()? else {
                let dangling = extensions.long_name.is_some() || extensions.pax.is_some();
                if dangling || extensions.long_link.is_some() {
                    return Err(invalid("the archive ends with an extended header that describes no member"));
                }
                self.input.drain()?;
                return Ok(None);
            };
            let at = || format!("header at byte {position}");
            self.expect(number(header.entry_size(), &header.as_old().size).with_context(at)?);
            match header.as_old().linkflag[0] {
                b'L' => self.extension(&mut extensions.long_name).with_context(at)?,
                b'K' => self.extension(&mut extensions.long_link).with_context(at)?,
                b'x' => self.extension(&mut extensions.pax).with_context(at)?,
                // Global headers carry comments; container engines ignore them.
                b'g' => {}
                _ => return self.member(&header, extensions).map(Some).with_context(at),
            }
        }
    }

    /// Shows the next bytes of the current member, at most `most`; see [`Archive::consume`].
    pub(super) fn peek(&mut self, most: u64) -> Result<&[u8]> {
        self.input.peek(most.min(self.remaining))
    }

    /// Marks bytes that [`Archive::peek`] showed as used.
    pub(super) fn consume(&mut self, count: usize) -> Result<()> {
        self.remaining = self.remaining.saturating_sub(count as u64);
        self.input.consume(count)
    }

    /// The same for bytes that the record finds in a file; the caller notes which.
    pub(super) fn consume_kept(&mut self, count: usize) {
        self.remaining = self.remaining.saturating_sub(count as u64);
        self.input.consume_kept(count);
    }

    /// The record of how the archive is written, if there is one.
    pub(super) fn record(&mut self) -> Option<&mut Record> {
        self.input.record()
    }

    /// Ends the record.
    pub(super) fn finish(self) -> Result<()> {
        self.input.finish()
    }

    fn expect(&mut self, size: u64) {
        self.remaining = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn skip_rest(&mut self) -> Result<()> {
        self.input.skip(self.remaining)?;
        self.remaining = 0;
        // A last member without its padding is seen in the wild.
        if self.padding > 0 && !self.input.at_end()? {
            self.input.skip(self.padding)?;
        }
        self.padding = 0;
        Ok(())
    }

    /// The next header block, `None` at the mark that ends an archive or at the end of the stream.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut header = Header::new_old();
        if !self.input.block(header.as_mut_bytes())? {
            return Ok(None);
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            // The mark is two blocks; what comes after them is padding, but a lone one is no end.
            let mut second = [0; BLOCK];
            if self.input.block(&mut second)? && second.iter().any(|byte| *byte != 0) {
                return Err(invalid("a block of zeros in the middle of the archive"));
            }
            return Ok(None);
        }
        let (before, after) = (&header.as_bytes()[..148], &header.as_bytes()[156..]);
        let sum = before.iter().chain(after).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
        match header.cksum() {
            Ok(stated) if stated == sum => Ok(Some(header)),
            _ => Err(invalid(format!("no tar header at byte {}", self.input.consumed() - BLOCK as u64))),
        }
    }

    /// Reads the current member as an extended header of the next.
    fn extension(&mut self, into: &mut Option<Vec<u8>>) -> Result<()> {
        if into.is_some() {
            return Err(invalid("two extended headers of one kind for one member"));
        }
        *into = Some(self.read_all(EXTENSION_LIMIT)?);
        Ok(())
    }

    fn read_all(&mut self, limit: u64) -> Result<Vec<u8>> {
        if self.remaining > limit {
            return Err(invalid(format!("an extended header of {} bytes; at most {limit} are read", self.remaining)));
        }
        let mut bytes = Vec::new();
        while self.remaining > 0 {
            let shown = self.peek(u64::MAX)?;
            bytes.extend_from_slice(shown);
            let count = shown.len();
            self.consume(count)?;
        }
        Ok(bytes)
    }

    fn member(&mut self, header: &Header, extensions: Extensions) -> Result<Member> {
        let old = header.as_old();
        let mut name = header.path_bytes().into_owned();
        let mut link = header.link_name_bytes().unwrap_or_default().into_owned();
        let mut owner = number(header.uid(), &old.uid)?;
        let mut group = number(header.gid(), &old.gid)?;
        // Binary fields hold two's complement; times before 1970 come that way.
        let seconds = i64::from_ne_bytes(number(header.mtime(), &old.mtime)?.to_ne_bytes());
        let mut modified = Moment { seconds, nanoseconds: 0 };
        let mut attributes = Vec::new();
        let mut sparse = PaxSparse::default();
        for (key, value) in pax::records(extensions.pax.as_deref().unwrap_or_default())? {
            // An empty value takes a record back, except for attributes, which may be empty.
            if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
                attributes.push((attribute.to_vec(), value.to_vec()));
                continue;
            }
            if value.is_empty() {
                continue;
            }
            let malformed = || {
                let (key, value) = (String::from_utf8_lossy(key), String::from_utf8_lossy(value));
                invalid(format!("malformed PAX value {key}={value:?}"))
            };
            let decimal = || pax::decimal(value).ok_or_else(malformed);
            match key {
                b"path" => name = value.to_vec(),
                b"linkpath" => link = value.to_vec(),
                b"size" => self.expect(decimal()?),
                b"uid" => owner = decimal()?,
                b"gid" => group = decimal()?,
                b"mtime" => modified = pax::moment(value).ok_or_else(malformed)?,
                _ if key.starts_with(b"GNU.sparse.") => {
                    sparse.take(&key[b"GNU.sparse.".len()..], value).map_err(|()| malformed())?;
                }
                _ => {}
            }
        }
        if let Some(sparse_name) = &sparse.name {
            name.clone_from(sparse_name);
        }
        name = extensions.long_name.map_or(name, until_nul);
        link = extensions.long_link.map_or(link, until_nul);
        let named = |error: Error| error.context(format!("entry {:?}", String::from_utf8_lossy(&name)));
        let what = self.what(header, link, &name, sparse).map_err(named)?;
        if !matches!(what, What::File { .. }) {
            // Whatever size such a header states, engines take it to have no contents.
            self.expect(0);
        }
        let identity = |id: u64, of: &str| match u32::try_from(id) {
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(named(invalid(format!("{of} {id} does not exist on Linux")))),
        };
        Ok(Member {
            mode: u32::try_from(number(header.mode().map(u64::from), &old.mode)? & 0o7777).unwrap_or_default(),
            owner: identity(owner, "user id")?,
            group: identity(group, "group id")?,
            modified,
            attributes,
            what,
            name,
        })
    }

    fn what(&mut self, header: &Header, link: Vec<u8>, name: &[u8], sparse: PaxSparse) -> Result<What> {
        let device = || -> Result<(u32, u32)> {
            let field = |value: std::io::Result<Option<u32>>| {
                value.map(Option::unwrap_or_default).map_err(|e| invalid(format!("device number: {e}")))
            };
            Ok((field(header.device_major())?, field(header.device_minor())?))
        };
        Ok(match header.as_old().linkflag[0] {
            b'\0' if name.ends_with(b"/") => What::Directory,
            b'\0' | b'0' | b'7' => match self.pax_segments(sparse)? {
                Some((size, segments)) => What::File { size, segments: Some(segments) },
                None => What::File { size: self.remaining, segments: None },
            },
            b'S' => {
                let (size, segments) = self.gnu_segments(header)?;
                What::File { size, segments: Some(segments) }
            }
            b'1' => What::HardLink { target: link },
            b'2' => What::Link { target: link },
            b'3' => {
                let (major, minor) = device()?;
                What::Node(Kind::Character { major, minor })
            }
            b'4' => {
                let (major, minor) = device()?;
                What::Node(Kind::Block { major, minor })
            }
            b'5' => What::Directory,
            b'6' => What::Node(Kind::Fifo),
            other => return Err(invalid(format!("members of type {:?} are not known", char::from(other)))),
        })
    }

    /// The map of an old GNU sparse file: four pieces in the header, more in blocks after it.
    fn gnu_segments(&mut self, header: &Header) -> Result<(u64, Vec<Segment>)> {
        let gnu = header.as_gnu().ok_or_else(|| invalid("a sparse file without a GNU header"))?;
        let wrap = |e: std::io::Error| invalid(format!("sparse map: {e}"));
        let size = gnu.real_size().map_err(wrap)?;
        let mut segments = Vec::new();
        let mut add = |pieces: &[tar::GnuSparseHeader]| -> Result<()> {
            for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
                let segment = Segment { offset: piece.offset().map_err(wrap)?, length: piece.length().map_err(wrap)? };
                segments.push(segment);
            }
            if segments.len() > SEGMENT_LIMIT { Err(too_many_segments()) } else { Ok(()) }
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            // These blocks lie between the header and the contents, and the stated size does not count them.
            let mut block = tar::GnuExtSparseHeader::new();
            if !self.input.block(block.as_mut_bytes())? {
                return Err(invalid("the archive is truncated in a sparse map"));
            }
            add(block.sparse())?;
            more = block.is_extended();
        }
        check_segments(&segments, size, self.remaining)?;
        Ok((size, segments))
    }

    /// The map of a sparse file in one of the three PAX ways, `None` if it is not sparse.
    fn pax_segments(&mut self, sparse: PaxSparse) -> Result<Option<(u64, Vec<Segment>)>> {
        let numbers = match (sparse.major, sparse.minor) {
            (Some(1), Some(0)) => self.map_before_contents()?,
            (None | Some(0), _) if !sparse.numbers.is_empty() || sparse.size.is_some() => sparse.numbers,
            (None, None) => return Ok(None),
            (major, minor) => return Err(invalid(format!("sparse format {major:?}.{minor:?} is not known"))),
        };
        let size = sparse.size.ok_or_else(|| invalid("a sparse file without its size"))?;
        if numbers.len() % 2 != 0 {
            return Err(invalid("an odd count of numbers in a sparse map"));
        }
        let segments: Vec<_> =
            numbers.chunks_exact(2).map(|pair| Segment { offset: pair[0], length: pair[1] }).collect();
        check_segments(&segments, size, self.remaining)?;
        Ok(Some((size, segments)))
    }

    /// PAX sparse format 1.0: count, then offsets and lengths, a number a line, padded to whole blocks.
    fn map_before_contents(&mut self) -> Result<Vec<u64>> {
        let mut numbers = Vec::new();
        let mut wanted = None;
        let mut digits = Vec::new();
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            let mut block = [0; BLOCK];
            if self.remaining < BLOCK as u64 || !self.input.block(&mut block)? {
                return Err(invalid("a sparse map that does not end within its member"));
            }
            self.remaining -= BLOCK as u64;
            for byte in block {
                if wanted.is_some_and(|wanted| numbers.len() == wanted) {
                    break;
                }
                if byte != b'\n' {
                    digits.push(byte);
                    continue;
                }
                let number = pax::decimal(&digits).ok_or_else(|| invalid("a sparse map with something but numbers"))?;
                digits.clear();
                if wanted.is_some() {
                    numbers.push(number);
                } else {
                    let count = usize::try_from(number).unwrap_or(usize::MAX);
                    if count > SEGMENT_LIMIT {
                        return Err(too_many_segments());
                    }
                    wanted = Some(2 * count);
                }
            }
            if digits.len() > 20 {
                return Err(invalid("a sparse map with something but numbers"));
            }
        }
        Ok(numbers)
    }
}

/// What the PAX records say of a sparse file.
#[derive(Debug, Default)]
struct PaxSparse {
    major: Option<u64>,
    minor: Option<u64>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Offset, length, offset, length…
    numbers: Vec<u64>,
}

impl PaxSparse {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), ()> {
        let decimal = || pax::decimal(value).ok_or(());
        match key {
            b"major" => self.major = Some(decimal()?),
            b"minor" => self.minor = Some(decimal()?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal()?),
            b"offset" | b"numbytes" => self.numbers.push(decimal()?),
            b"map" => {
                for number in value.split(|b| *b == b',') {
                    self.numbers.push(pax::decimal(number).ok_or(())?);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn too_many_segments() -> Error {
    invalid(format!("a sparse file of more than {SEGMENT_LIMIT} pieces"))
}

/// Pieces must be in order, within the file, and be exactly the bytes that the archive has.
fn check_segments(segments: &[Segment], size: u64, stored: u64) -> Result<()> {
    let mut end = 0_u64;
    let mut total = 0_u64;
    for segment in segments {
        if segment.offset < end {
            return Err(invalid("pieces of a sparse file overlap or are out of order"));
        }
        end = segment.offset.checked_add(segment.length).filter(|end| *end <= size).ok_or_else(|| {
            invalid(format!("a piece of a sparse file at {} ends beyond its {size} bytes", segment.offset))
        })?;
        total += segment.length;
    }
    if total == stored {
        Ok(())
    } else {
        Err(invalid(format!("the pieces of a sparse file have {total} bytes, the archive has {stored}")))
    }
}

/// A number of a header; blank fields, which some writers leave, count as 0.
fn number(parsed: std::io::Result<u64>, field: &[u8]) -> Result<u64> {
    match parsed {
        Ok(value) => Ok(value),
        Err(_) if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(0),
        Err(e) => Err(invalid(format!("tar header: {e}"))),
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}
