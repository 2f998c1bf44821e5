//! Several netlink messages for one send.

/// The length of `struct nlmsghdr`: length, type, flags, sequence number, port.
const HEADER: usize = 16;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
/// Marks an attribute that holds attributes.
pub(super) const NLA_F_NESTED: u16 = 0x8000;

/// Messages in the order in which the kernel takes them. Numbers are in the host's byte order unless said otherwise.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// What each message is about, by its sequence number less one.
    what: Vec<String>,
}

impl Batch {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Whether it holds no message.
    pub(crate) fn is_empty(&self) -> bool {
        self.what.is_empty()
    }

    /// The messages as the kernel reads them.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the message with this sequence number is about.
    pub(crate) fn what(&self, sequence: u32) -> &str {
        let at = usize::try_from(sequence).unwrap_or_default().checked_sub(1);
        at.and_then(|at| self.what.get(at)).map_or("netlink request", String::as_str)
    }

    /// Adds a message that asks for an acknowledgement: its type, flags besides, and the fixed part of its body. `what`
    /// is what an error says. `attributes` writes the rest.
    pub(crate) fn message(
        &mut self,
        what: impl Into<String>,
        (kind, flags): (u16, u16),
        body: &[u8],
        attributes: impl FnOnce(&mut Self),
    ) {
        self.add(what.into(), (kind, flags | NLM_F_ACK), body, attributes);
    }

    /// The same without an acknowledgement: only an error is answered, or a list.
    pub(crate) fn silent(&mut self, what: impl Into<String>, (kind, flags): (u16, u16), body: &[u8]) {
        self.add(what.into(), (kind, flags), body, |_| {});
    }

    /// A request with attributes whose answer is a list.
    pub(crate) fn request(
        &mut self,
        what: impl Into<String>,
        (kind, flags): (u16, u16),
        body: &[u8],
        attributes: impl FnOnce(&mut Self),
    ) {
        self.add(what.into(), (kind, flags), body, attributes);
    }

    fn add(&mut self, what: String, (kind, flags): (u16, u16), body: &[u8], attributes: impl FnOnce(&mut Self)) {
        self.what.push(what);
        let sequence = u32::try_from(self.what.len()).unwrap_or(u32::MAX);
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        debug_assert_eq!(self.bytes.len(), start + HEADER);
        self.bytes.extend(body);
        self.pad();
        attributes(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.patch(start, &length.to_ne_bytes());
    }

    /// An attribute with these bytes. None is longer than 64 KiB.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.raw(kind, |batch| batch.bytes.extend(value));
    }

    /// An attribute that is a text with a zero at its end.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        self.raw(kind, |batch| {
            batch.bytes.extend(value.as_bytes());
            batch.bytes.push(0);
        });
    }

    /// An attribute of four bytes.
    pub(crate) fn word(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// An attribute of four bytes, the most significant first, as nf_tables wants them.
    pub(crate) fn big_word(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute that holds what `inside` writes.
    pub(crate) fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        self.raw(kind | NLA_F_NESTED, inside);
    }

    /// Bytes that are no attribute, in the middle of an attribute that begins with a structure.
    pub(crate) fn structure(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.pad();
    }

    fn raw(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        inside(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.patch(start, &length.to_ne_bytes());
        self.pad();
    }

    fn patch(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_padding_are_the_kernels() {
        let mut batch = Batch::new();
        batch.message("one", (16, 0x400), &[1, 2, 3], |batch| {
            batch.text(3, "ab");
            batch.nest(18, |batch| {
                batch.word(1, 0x0403_0201);
                batch.big_word(2, 0x0102_0304);
            });
        });
        batch.silent("two", (17, 0), &[]);
        let word = |value: u32| value.to_ne_bytes().to_vec();
        let half = |value: u16| value.to_ne_bytes().to_vec();
        let expected = [
            [word(16 + 4 + 8 + 20), half(16), half(0x405), word(1), word(0), vec![1, 2, 3, 0]].concat(),
            [half(7), half(3), b"ab\0\0".to_vec()].concat(),
            [half(20), half(18 | NLA_F_NESTED)].concat(),
            [half(8), half(1), word(0x0403_0201), half(8), half(2), vec![1, 2, 3, 4]].concat(),
            [word(16), half(17), half(1), word(2), word(0)].concat(),
        ];
        assert_eq!(batch.bytes(), expected.concat());
        assert_eq!(
            [batch.what(1), batch.what(2), batch.what(0), batch.what(9)],
            ["one", "two", "netlink request", "netlink request"]
        );
    }
}
