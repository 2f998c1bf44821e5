//! The records of a PAX extended header: `LENGTH KEY=VALUE\n`, the length in decimal and of the whole record.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::fs::tree::Moment;

/// Splits `bytes` into keys and values, which may contain any byte.
///
/// Strict: two readers that disagree on where a record ends see two different archives.
pub(super) fn records(bytes: &[u8]) -> Result<Vec<(&[u8], &[u8])>> {
    let malformed = |what: &str| Error::new(ErrorKind::InvalidLayer, format!("malformed PAX record: {what}"));
    let mut found = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        // Some writers pad with NULs up to the block.
        if rest.iter().all(|byte| *byte == 0) {
            break;
        }
        let space = rest.iter().take(20).position(|b| *b == b' ').ok_or_else(|| malformed("no length"))?;
        let length = decimal(&rest[..space]).and_then(|n| usize::try_from(n).ok());
        let length = length.ok_or_else(|| malformed("the length is no number"))?;
        if length <= space + 1 || length > rest.len() {
            return Err(malformed("the length is not the record's"));
        }
        let (record, after) = rest.split_at(length);
        let [body @ .., b'\n'] = &record[space + 1..] else {
            return Err(malformed("it does not end where its length says"));
        };
        let equals = body.iter().position(|b| *b == b'=').ok_or_else(|| malformed("no `=`"))?;
        if equals == 0 {
            return Err(malformed("an empty key"));
        }
        found.push((&body[..equals], &body[equals + 1..]));
        rest = after;
    }
    Ok(found)
}

/// A decimal number without sign or spaces.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds since 1970 with an optional sign and fraction, of which nine digits count.
pub(super) fn moment(text: &[u8]) -> Option<Moment> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|b| *b == b'.') {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &[][..]),
    };
    let mut seconds = i64::try_from(decimal(whole)?).ok()?;
    let mut nanoseconds = 0_u32;
    for place in 0..9 {
        let digit = match fraction.get(place) {
            Some(digit) if digit.is_ascii_digit() => u32::from(digit - b'0'),
            Some(_) => return None,
            None => 0,
        };
        nanoseconds = nanoseconds * 10 + digit;
    }
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    if negative {
        seconds = -seconds;
        if nanoseconds > 0 {
            seconds -= 1;
            nanoseconds = 1_000_000_000 - nanoseconds;
        }
    }
    Some(Moment { seconds, nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_apart_to_the_byte() {
        let found = records(b"11 path=a/b\n").map(|f| f.len());
        assert!(found.is_err(), "one byte short");
        assert_eq!(records(b"12 path=a/b\n").unwrap(), [(&b"path"[..], &b"a/b"[..])]);
        assert_eq!(records(b"9 k=\0\n==\n5 a=\n").unwrap(), [(&b"k"[..], &b"\0\n=="[..]), (&b"a"[..], &b""[..])]);
        assert!(records(b"").unwrap().is_empty());
        for bad in
            [&b"x"[..], b"5 =a\n", b"99999999999999999999999 a=b\n", b"-6 a=b\n", b"6 a=bc", b"4 ab\n", b"0 a=b\n"]
        {
            assert!(records(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn moments_before_and_after_1970() {
        let at = |seconds, nanoseconds| Some(Moment { seconds, nanoseconds });
        assert_eq!(moment(b"1700000000"), at(1_700_000_000, 0));
        assert_eq!(moment(b"1.5"), at(1, 500_000_000));
        assert_eq!(moment(b"1.0000000019"), at(1, 1));
        assert_eq!(moment(b"-0.25"), at(-1, 750_000_000));
        assert_eq!(moment(b"-2"), at(-2, 0));
        for bad in [&b""[..], b"-", b"1.x", b"1e5", b"99999999999999999999", b".5", b"1.0000000000x"] {
            assert_eq!(moment(bad), None, "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
