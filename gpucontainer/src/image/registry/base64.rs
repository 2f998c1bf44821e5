//! Base64 with the standard alphabet: what `Authorization: Basic` and configuration files use.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Encodes with padding.
pub(super) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut group = 0_usize;
        for index in 0..3 {
            group = group << 8 | usize::from(chunk.get(index).copied().unwrap_or_default());
        }
        for index in 0..4 {
            if index <= chunk.len() {
                text.push(char::from(ALPHABET[group >> (18 - 6 * index) & 63]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// Decodes; padding may be missing, anything else that is wrong gives `None`.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.trim().trim_end_matches('=');
    let (mut group, mut bits) = (0_u32, 0);
    let mut bytes = Vec::new();
    for symbol in text.bytes() {
        let value = ALPHABET.iter().position(|&letter| letter == symbol)?;
        group = group << 6 | u32::try_from(value).ok()?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(group >> bits & 0xff).ok()?);
        }
        group &= (1 << bits) - 1;
    }
    // A lone symbol is no byte, and what is left over must be nothing.
    (text.len() % 4 != 1 && group == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_standard_go_both_ways() {
        let table =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")];
        for (plain, encoded) in table {
            assert_eq!(encode(plain.as_bytes()), encoded);
            assert_eq!(decode(encoded).unwrap(), plain.as_bytes());
        }
        assert_eq!(encode(&[0xfb, 0xff, 0xfe]), "+//+");
        for bad in ["A", "Zh==", "Z*==", "Zm9v=Zg"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
