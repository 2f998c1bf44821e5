//! SHA-256 digests, and readers that check them while the bytes pass by.

use crate::error::{Error, ErrorKind, Result};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io::Read;
use std::str::FromStr;

/// The SHA-256 of some bytes, written `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 64 hexadecimal digits alone: a name for files.
    pub fn hex(&self) -> String {
        use fmt::Write;
        self.0.iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Reads what [`Digest::hex`] gives out.
    pub(crate) fn from_hex(hex: &str) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        if hex.len() != 64 {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(bytes))
    }

    /// Fails unless `bytes` have this digest; `what` names them in the error.
    pub(crate) fn check(&self, what: &str, bytes: &[u8]) -> Result<()> {
        let found = Self::of(bytes);
        if found == *self { Ok(()) } else { Err(mismatch(what, self, &found)) }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    /// # Errors
    /// [`ErrorKind::InvalidArgument`] unless it is `sha256:` and 64 lower-case hexadecimal digits;
    /// [`ErrorKind::Unsupported`] for another algorithm.
    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("sha256", hex)) => Self::from_hex(hex).ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidArgument,
                    format!("digest {text:?}: sha256 takes 64 lower-case hexadecimal digits"),
                )
            }),
            Some((algorithm, _)) if !algorithm.is_empty() => {
                Err(Error::new(ErrorKind::Unsupported, format!("digest {text:?}: only sha256 is supported")))
            }
            _ => Err(Error::new(ErrorKind::InvalidArgument, format!("digest {text:?}: not of the form sha256:HEX"))),
        }
    }
}

/// The error of bytes that are not those that were promised.
pub(crate) fn mismatch(what: &str, wanted: &Digest, found: &Digest) -> Error {
    Error::new(ErrorKind::DigestMismatch, format!("{what}: the bytes have digest {found}, promised was {wanted}"))
}

/// Hashes and counts what is read through it.
#[derive(Debug)]
pub(crate) struct HashingReader<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    /// Bytes read so far.
    pub(crate) fn count(&self) -> u64 {
        self.bytes
    }

    /// The digest of what was read so far.
    pub(crate) fn digest(&self) -> Digest {
        Digest(self.hash.clone().finalize().into())
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += u64::try_from(count).unwrap_or(u64::MAX);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_goes_in_and_out() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
        let bad = [
            ("", ErrorKind::InvalidArgument),
            ("sha256:", ErrorKind::InvalidArgument),
            ("sha256:E3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", ErrorKind::InvalidArgument),
            ("sha256:../../../../etc", ErrorKind::InvalidArgument),
            ("sha512:00", ErrorKind::Unsupported),
            (":00", ErrorKind::InvalidArgument),
        ];
        for (text, kind) in bad {
            assert_eq!(text.parse::<Digest>().unwrap_err().kind(), kind, "{text}");
        }
    }

    #[test]
    fn a_reader_hashes_what_passes() {
        let mut reader = HashingReader::new(&b"abc"[..]);
        assert_eq!(std::io::read_to_string(&mut reader).unwrap(), "abc");
        assert_eq!((reader.count(), reader.digest()), (3, Digest::of(b"abc")));
        assert!(Digest::of(b"abc").check("x", b"abd").is_err());
    }
}
