//! Layers come plain, in gzip or in zstd; the first bytes say which.

use crate::error::{Error, ErrorKind};
use flate2::bufread::MultiGzDecoder;
use std::io::{self, BufRead, BufReader, Read};

/// Small reads cost more than the copying: measured best from this size on.
pub(super) const BUFFER: usize = 256 << 10;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// A plain byte stream out of what may be compressed.
///
/// Errors of the compressed form come out as [`ErrorKind::InvalidLayer`]; the library's own errors, passed
/// through `io::Error` by the reader below, stay what they are.
pub(super) struct Decompress<R: Read> {
    stream: Stream<R>,
}

enum Stream<R: Read> {
    Plain(BufReader<R>),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(zstd::Decoder<'static, BufReader<R>>),
}

impl<R: Read> Decompress<R> {
    /// Looks at the first bytes. The media type is not asked: there are images whose media types lie,
    /// and the digests of both forms are checked anyway.
    pub(super) fn new(reader: R) -> io::Result<Self> {
        let mut reader = BufReader::with_capacity(BUFFER, reader);
        let start = loop {
            match reader.fill_buf() {
                Ok(start) => break start,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        };
        let stream = if start.starts_with(GZIP) {
            Stream::Gzip(Box::new(MultiGzDecoder::new(reader)))
        } else if start.starts_with(ZSTD) {
            Stream::Zstd(zstd::Decoder::with_buffer(reader)?)
        } else {
            Stream::Plain(reader)
        };
        Ok(Self { stream })
    }
}

impl<R: Read> Read for Decompress<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (form, result) = match &mut self.stream {
            Stream::Plain(reader) => return reader.read(buffer),
            Stream::Gzip(decoder) => ("gzip", decoder.read(buffer)),
            Stream::Zstd(decoder) => ("zstd", decoder.read(buffer)),
        };
        result.map_err(|e| {
            let own = e.get_ref().is_some_and(|cause| cause.is::<Error>());
            if own || e.kind() == io::ErrorKind::Interrupted {
                return e;
            }
            let why = match e.kind() {
                io::ErrorKind::UnexpectedEof => "the data ends too early".to_owned(),
                _ => e.to_string(),
            };
            Error::new(ErrorKind::InvalidLayer, format!("{form}: {why}")).with_cause(e).into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn all(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        Decompress::new(bytes)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn every_form_comes_out_plain_with_all_its_members() {
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
        assert_eq!(all(b"").unwrap(), b"");
        assert_eq!(all(b"\x1f").unwrap(), b"\x1f");
        assert_eq!(all(b"plain").unwrap(), b"plain");
        assert_eq!(all(&[gzip(b"one "), gzip(b"two")].concat()).unwrap(), b"one two");
        assert_eq!(all(&[zstd(b"one "), zstd(b"two")].concat()).unwrap(), b"one two");
    }

    #[test]
    fn damage_is_an_invalid_layer() {
        let good = gzip(&[7; 1000]);
        let mut flipped = good.clone();
        let last = flipped.len() - 6;
        flipped[last] ^= 1;
        let zstd = zstd::encode_all(&[7; 1000][..], 3).unwrap();
        for bytes in [&good[..good.len() - 3], &good[..12], &flipped, &zstd[..zstd.len() - 2]] {
            let error = Error::from_io("read", all(bytes).unwrap_err());
            assert_eq!(error.kind(), ErrorKind::InvalidLayer, "{error}");
        }
    }
}
