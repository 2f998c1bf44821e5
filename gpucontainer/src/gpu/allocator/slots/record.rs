//! What a slot says: as ranges of locks, which cannot be damaged, and as text, which describes.
//!
//! ```text
//! lease-<id>                                  a lease: live while byte 0 is locked; then over, until it is collected
//! wait-<id>                                   a place in the queue, the same
//! gone-<id>                                   since when the lease of a dead owner is over whose memory is not back
//!
//! byte 0                                      the owner lives
//! region of a device, 4 GiB long, its place the hash of the device's identifier:
//!   + 0             1 byte                    held alone
//!   + 1 GiB         n bytes                   shared by at most n
//!   + 2 GiB         n bytes                   shared, n MiB of its memory promised
//! ```
//!
//! The text is one line with a check sum, and one with JSON. Who gives a lease up adds two such lines: since when it is
//! over.

use crate::gpu::allocator::choice::wishes::Sharing;
use crate::gpu::request::GpuRequest;
use crate::sys::slot::Range;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub(crate) const ALIVE: Range = (0, 1);

const REGION: u64 = 1 << 32;
const PART: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// A device and how it is held. Of a whole GPU both identifiers are the same.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Held {
    pub(crate) device: String,
    pub(crate) gpu: String,
    pub(crate) sharing: Sharing,
}

/// Who stands behind a slot.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Owner {
    pub(crate) pid: u32,
    /// The process's identifier is one of this namespace.
    pub(crate) pid_namespace: String,
    pub(crate) program: String,
    /// The name of the sandbox that it is for, if a sandbox leases by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox: Option<String>,
    /// Since the system started, in nanoseconds.
    pub(crate) since: u64,
}

/// More than any program's name, any identifier of a GPU or any request in words has.
const LONGEST: usize = 512;

/// What a stranger wrote, for people to read: of such a length, and with nothing in it that a terminal obeys.
pub(crate) fn shown(text: &str) -> String {
    let plain = |sign: char| if sign.is_control() { char::REPLACEMENT_CHARACTER } else { sign };
    text.chars().take(LONGEST).map(plain).collect()
}

impl Owner {
    /// The same, as it may be shown to others.
    fn shown(self) -> Self {
        Self { pid_namespace: shown(&self.pid_namespace), program: shown(&self.program), ..self }
    }
}

/// A lease.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct LeaseRecord {
    pub(crate) owner: Owner,
    pub(crate) held: Vec<Held>,
    /// The free memory of each device before anybody had it who has it together with this lease, in bytes. None of a
    /// device whose memory others use without being seen.
    pub(crate) free_before: BTreeMap<String, u64>,
}

impl LeaseRecord {
    /// The same, as it may be shown to others: no real identifier is changed.
    pub(crate) fn shown(self) -> Self {
        let held =
            self.held.into_iter().map(|held| Held { device: shown(&held.device), gpu: shown(&held.gpu), ..held });
        Self { owner: self.owner.shown(), held: held.collect(), ..self }
    }
}

/// A place in the queue.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct TicketRecord {
    pub(crate) owner: Owner,
    pub(crate) request: GpuRequest,
    /// What an outer scheduler lets the owner use; everything if `None`.
    pub(crate) allowed: Option<Vec<String>>,
    /// Smaller comes first: when it arrived, less what its priority is worth, in nanoseconds.
    pub(crate) order: i128,
    /// Whether the owner can make MIG devices.
    #[serde(default)]
    pub(crate) makes: bool,
}

impl TicketRecord {
    /// The same, with an owner who may be shown to others.
    pub(crate) fn shown(self) -> Self {
        Self { owner: self.owner.shown(), ..self }
    }

    /// Whether whatever serves a request of one who may use and make so much serves this one.
    pub(crate) fn wants_as(&self, (request, allowed, makes): (&GpuRequest, Option<&[String]>, bool)) -> bool {
        (self.allowed.as_deref(), self.makes) == (allowed, makes) && alike(&self.request, request)
    }
}

/// Whether whatever serves one request serves the other.
fn alike(one: &GpuRequest, other: &GpuRequest) -> bool {
    let shape = |request: &GpuRequest| {
        let mut shape = request.clone().priority(0).capabilities([]).multi_process_service(false);
        shape.wishes.mps = None;
        shape
    };
    shape(one) == shape(other)
}

/// Since when a lease is over, in nanoseconds since the system started: as its owner says, or, if that one is dead, as
/// the first says who missed memory.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct GoneRecord {
    pub(crate) since: u64,
}

/// FNV-1a: the same on every machine and in every version, which is all that is wanted of it.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn region(device: &str) -> u64 {
    (1 + hash(device.as_bytes()) % PART) * REGION
}

/// All of the range in which the way a device is held is said.
pub(crate) fn region_of(device: &str) -> Range {
    (region(device), REGION)
}

impl Held {
    /// The range of locks that says this.
    pub(crate) fn range(&self) -> Range {
        let (part, length) = match self.sharing {
            Sharing::Exclusive => (0, 1),
            Sharing::Shared(limit) => (PART, u64::from(limit).clamp(1, PART - 1)),
            Sharing::Fraction(bytes) => (2 * PART, bytes.div_ceil(MIB).clamp(1, PART - 1)),
        };
        (region(&self.device) + part, length)
    }

    /// What a range of locks says of a device.
    pub(crate) fn from_range(device: &str, gpu: &str, (start, length): Range) -> Self {
        let sharing = match (start.saturating_sub(region(device)) / PART, u32::try_from(length)) {
            (1, Ok(limit)) => Sharing::Shared(limit),
            (2, _) => Sharing::Fraction(length.saturating_mul(MIB)),
            _ => Sharing::Exclusive,
        };
        Self { device: device.to_owned(), gpu: gpu.to_owned(), sharing }
    }
}

/// The text of a record.
pub(crate) fn encode(record: &impl Serialize) -> Vec<u8> {
    // Strings, numbers and lists of them always have a JSON form.
    sealed(&serde_json::to_string(record).unwrap_or_default())
}

/// A text with its check sum.
pub(in crate::gpu) fn sealed(body: &str) -> Vec<u8> {
    format!("{:016x}\n{body}\n", hash(body.as_bytes())).into_bytes()
}

/// The record of a text; `None` if it is damaged.
pub(crate) fn decode<T: DeserializeOwned>(text: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(text).ok()?;
    let (sum, body) = text.split_once('\n')?;
    let body = body.strip_suffix('\n')?;
    (u64::from_str_radix(sum, 16).ok()? == hash(body.as_bytes())).then(|| serde_json::from_str(body).ok())?
}

/// The record of the slot of a lease, and since when it is over, if its owner gave it up.
pub(crate) fn decode_lease(text: &[u8]) -> (Option<LeaseRecord>, Option<GoneRecord>) {
    let lines = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    let end = lines.map(|(at, _)| at + 1).nth(1).unwrap_or(text.len());
    let (record, note) = text.split_at(end);
    (decode(record), decode(note))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn locks_say_the_same_as_text() {
        for sharing in [Sharing::Exclusive, Sharing::Shared(3), Sharing::Fraction(40 << 30)] {
            let held = Held { device: "MIG-1".into(), gpu: "GPU-1".into(), sharing };
            assert_eq!(Held::from_range("MIG-1", "GPU-1", held.range()), held);
            let (start, length) = region_of("MIG-1");
            assert!(held.range().0 >= start && held.range().0 + held.range().1 < start + length);
            assert!(i64::try_from(start + length).is_ok());
        }
    }

    #[test]
    fn damage_is_seen() {
        let record = LeaseRecord { owner: Owner { pid: 7, ..Owner::default() }, ..LeaseRecord::default() };
        let text = encode(&record);
        assert_eq!(decode::<LeaseRecord>(&text), Some(record));
        for at in 0..text.len() {
            assert_eq!(decode::<LeaseRecord>(&text[..at]), None, "cut at {at}");
            let mut other = text.clone();
            other[at] ^= 1;
            assert_eq!(decode::<LeaseRecord>(&other), None, "changed at {at}");
        }
    }

    #[test]
    fn a_note_stands_behind_the_record_and_damages_nothing() {
        let record = LeaseRecord { owner: Owner { pid: 7, ..Owner::default() }, ..LeaseRecord::default() };
        let (text, note) = (encode(&record), GoneRecord { since: 5 });
        assert_eq!(decode_lease(&text), (Some(record.clone()), None));
        let both = [text.clone(), encode(&note)].concat();
        assert_eq!(decode_lease(&both), (Some(record.clone()), Some(note)));
        for end in text.len()..both.len() {
            assert_eq!(decode_lease(&both[..end]), (Some(record.clone()), None), "cut at {end}");
        }
    }

    fn lease() -> impl Strategy<Value = LeaseRecord> {
        let sharing = prop_oneof![
            Just(Sharing::Exclusive),
            any::<u32>().prop_map(Sharing::Shared),
            any::<u64>().prop_map(Sharing::Fraction),
        ];
        let held = (".{0,20}", ".{0,20}", sharing).prop_map(|(device, gpu, sharing)| Held { device, gpu, sharing });
        (any::<u32>(), any::<u64>(), ".{0,20}", prop::collection::vec(held, 0..4)).prop_map(
            |(pid, since, program, held)| LeaseRecord {
                owner: Owner { pid, since, program, ..Owner::default() },
                held,
                ..LeaseRecord::default()
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), body in ".{0,80}") {
            let _ = (decode::<LeaseRecord>(&bytes), decode_lease(&bytes));
            prop_assert_eq!(decode::<LeaseRecord>(&sealed(&body)), serde_json::from_str(&body).ok());
        }

        /// The digits of the sum have two forms, so that a change may be none.
        #[test]
        fn a_changed_record_is_never_another(record in lease(), at in any::<prop::sample::Index>(), change in 1_u8..) {
            let mut text = encode(&record);
            prop_assert_eq!(decode::<LeaseRecord>(&text), Some(record.clone()));
            let at = at.index(text.len());
            text[at] ^= change;
            prop_assert!(decode::<LeaseRecord>(&text).is_none_or(|read| read == record));
        }

        #[test]
        fn locks_stay_in_the_region_of_their_device(record in lease(), start in any::<u64>(), length in any::<u64>()) {
            for held in &record.held {
                let ((start, length), (from, size)) = (held.range(), region_of(&held.device));
                prop_assert!(length > 0 && start >= from && start + length <= from + size);
                prop_assert_eq!(Held::from_range(&held.device, &held.gpu, (start, length)).range(), (start, length));
            }
            let _ = Held::from_range("GPU-1", "GPU-1", (start, length));
        }
    }
}
