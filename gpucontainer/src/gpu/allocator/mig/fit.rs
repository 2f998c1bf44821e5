//! Where on split GPUs a new GPU instance does the least harm.

use crate::sys::mig::Span;

/// A kind of GPU instance that a GPU offers.
#[derive(Clone, Debug)]
pub(crate) struct Kind {
    pub(crate) id: u32,
    /// As in `1g.10gb`.
    pub(crate) name: String,
    pub(crate) slices: u32,
    /// How many may exist at a time, beside what is there.
    pub(crate) instances: u32,
    /// How many may exist if nothing else does.
    pub(crate) most: u32,
    /// The memory of each, in bytes.
    pub(crate) memory: u64,
    /// Where they may lie.
    pub(crate) spans: Vec<Span>,
}

/// A GPU in MIG mode.
#[derive(Clone, Debug)]
pub(crate) struct SplitGpu {
    pub(crate) kinds: Vec<Kind>,
    /// What is there: the identifier of its kind, and its place.
    pub(crate) taken: Vec<(u32, Span)>,
    /// The places of those that go when their leases end.
    pub(crate) temporary: Vec<Span>,
}

/// A place on one of the GPUs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Fit {
    /// Which of the GPUs.
    pub(crate) gpu: usize,
    pub(crate) kind: u32,
    pub(crate) span: Span,
}

/// The place for an instance called `name` after which the most large instances are still possible, then the most of
/// the next size, and so on. Of equal places the first GPU's, and on it the first.
pub(crate) fn best(gpus: &[SplitGpu], name: &str) -> Option<Fit> {
    let mut best: Option<(Vec<u32>, Fit)> = None;
    for (index, gpu) in gpus.iter().enumerate() {
        let Some(kind) = gpu.kind(name) else { continue };
        let room = gpu.room();
        for span in gpu.free(kind) {
            let mut after = gpu.clone();
            after.taken.push((kind.id, span));
            let loss = room.iter().zip(after.room()).map(|(before, after)| before.saturating_sub(after)).collect();
            if best.as_ref().is_none_or(|(least, _)| loss < *least) {
                best = Some((loss, Fit { gpu: index, kind: kind.id, span }));
            }
        }
    }
    best.map(|(_, fit)| fit)
}

impl SplitGpu {
    /// The kind called `name`, upper and lower case alike.
    pub(crate) fn kind(&self, name: &str) -> Option<&Kind> {
        self.kinds.iter().find(|kind| kind.name.eq_ignore_ascii_case(name))
    }

    /// How many more instances of the kind can be made now.
    pub(crate) fn now(&self, name: &str) -> u32 {
        self.kind(name).map_or(0, |kind| self.disjoint(kind))
    }

    /// How many more instances of the kind can be there at once when those of leases are gone.
    pub(crate) fn ever(&self, name: &str) -> u32 {
        let mut lasting = self.clone();
        lasting.taken.retain(|(_, span)| !self.temporary.contains(span));
        for kind in &mut lasting.kinds {
            kind.instances = kind.most;
        }
        lasting.kind(name).map_or(0, |kind| lasting.disjoint(kind))
    }

    /// Where another instance of the kind can be made.
    fn free(&self, kind: &Kind) -> Vec<Span> {
        if self.left(kind) == 0 {
            return Vec::new();
        }
        let free = |span: &Span| self.taken.iter().all(|(_, other)| !overlap(*span, *other));
        let mut spans: Vec<Span> = kind.spans.iter().copied().filter(free).collect();
        spans.sort_by_key(|span| span.start);
        spans
    }

    fn left(&self, kind: &Kind) -> u32 {
        let made = self.taken.iter().filter(|(id, _)| *id == kind.id).count();
        kind.instances.saturating_sub(u32::try_from(made).unwrap_or(u32::MAX))
    }

    /// How many instances of each kind could be made if nothing else were, the largest kind first.
    fn room(&self) -> Vec<u32> {
        let mut kinds: Vec<&Kind> = self.kinds.iter().collect();
        let size = |kind: &Kind| kind.spans.iter().map(|span| span.size).max();
        kinds.sort_by_key(|kind| std::cmp::Reverse((size(kind), kind.slices, kind.id)));
        kinds.into_iter().map(|kind| self.disjoint(kind)).collect()
    }

    /// Taking what ends first is exact for intervals.
    fn disjoint(&self, kind: &Kind) -> u32 {
        let mut spans = self.free(kind);
        spans.sort_by_key(|span| (end(*span), span.start));
        let (mut number, mut next) = (0, 0);
        for span in spans {
            if span.start >= next {
                (number, next) = (number + 1, end(span));
            }
        }
        number.min(self.left(kind))
    }
}

fn end(span: Span) -> u32 {
    span.start.saturating_add(span.size)
}

fn overlap(one: Span, other: Span) -> bool {
    one.start < end(other) && other.start < end(one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn gpu(model: &str) -> SplitGpu {
        let text = include_str!("../../../../../tests/fake-nvml/profiles/mig-profiles.json");
        let all: Value = serde_json::from_str(text).unwrap();
        let number = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
        let kind = |kind: &Value| Kind {
            id: number(&kind["id"]),
            name: kind["name"].as_str().unwrap().to_owned(),
            slices: number(&kind["slices"]),
            instances: number(&kind["instances"]),
            most: number(&kind["instances"]),
            memory: kind["memory_mib"].as_u64().unwrap() << 20,
            spans: kind["starts"]
                .as_array()
                .unwrap()
                .iter()
                .map(|start| Span { start: number(start), size: number(&kind["size"]) })
                .collect(),
        };
        let kinds = all[model].as_array().unwrap().iter().map(kind).collect();
        SplitGpu { kinds, taken: Vec::new(), temporary: Vec::new() }
    }

    /// Makes instances one after the other; where they start, with `None` for one that does not fit.
    fn starts(gpus: &mut [SplitGpu], names: &[&str]) -> Vec<Option<(usize, u32)>> {
        let mut place = |name: &&str| {
            let fit = best(gpus, name)?;
            gpus[fit.gpu].taken.push((fit.kind, fit.span));
            Some((fit.gpu, fit.span.start))
        };
        names.iter().map(&mut place).collect()
    }

    #[test]
    fn small_instances_leave_room_for_large_ones() {
        let mut one = [gpu("a100-40gb")];
        // The seventh slice first: no half and no pair is broken for it. Then the half is used up that is broken.
        let small = starts(&mut one, &["1g.5gb", "1g.5gb", "1g.5gb", "4g.20gb"]);
        assert_eq!(small, [Some((0, 6)), Some((0, 4)), Some((0, 5)), Some((0, 0))]);
        let mut one = [gpu("h100-80gb")];
        let mixed = starts(&mut one, &["3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb"]);
        assert_eq!(mixed, [Some((0, 4)), Some((0, 0)), Some((0, 2)), Some((0, 3)), None, None]);
    }

    #[test]
    fn every_model_holds_what_its_maker_says() {
        for (model, small, whole, most) in [
            ("a100-40gb", "1g.5gb", "7g.40gb", 7),
            ("a100-80gb", "1g.10gb", "7g.80gb", 7),
            ("h100-80gb", "1g.10gb", "7g.80gb", 7),
            ("h200-141gb", "1g.18gb", "7g.141gb", 7),
            ("b200-180gb", "1g.23gb", "7g.180gb", 7),
            ("a30", "1g.6gb", "4g.24gb", 4),
        ] {
            let mut one = [gpu(model)];
            let made = starts(&mut one, &[small; 8]).into_iter().flatten().count();
            assert_eq!(made, most, "{model}");
            assert_eq!(starts(&mut [gpu(model)], &[whole, whole]), [Some((0, 0)), None], "{model}");
        }
        let mut one = [gpu("a100-40gb")];
        let media = starts(&mut one, &["1g.5gb+me", "1g.5gb+me"]);
        assert_eq!(media, [Some((0, 6)), None], "one with the media engines");
    }

    /// Of each kind by itself as many as its maker says, and what is mixed as its maker's tables have it.
    #[test]
    fn every_kind_of_every_model_fits_as_often_as_it_can() {
        for model in ["a100-40gb", "a100-80gb", "h100-80gb", "h200-141gb", "b200-180gb", "a30"] {
            for kind in gpu(model).kinds {
                let mut one = [gpu(model)];
                let most = usize::try_from(kind.instances).unwrap();
                assert_eq!(one[0].now(&kind.name), kind.instances, "{model} {}", kind.name);
                let made = starts(&mut one, &vec![kind.name.as_str(); most + 1]);
                assert_eq!(made.iter().flatten().count(), most, "{model} {}: {made:?}", kind.name);
                assert_eq!((one[0].now(&kind.name), one[0].ever(&kind.name)), (0, 0), "{model} {}", kind.name);
                // What leases made goes with them.
                one[0].temporary = one[0].taken.iter().map(|(_, span)| *span).collect();
                assert_eq!(one[0].ever(&kind.name), kind.instances, "{model} {}", kind.name);
            }
        }
        let seven = |small, pair, half, most| {
            [vec![most, half], vec![half, pair, small, small], vec![pair, pair, pair, small], vec![half, half]]
        };
        for (model, mixes) in [
            ("a100-40gb", seven("1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb")),
            ("a100-80gb", seven("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb")),
            ("h100-80gb", seven("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb")),
            ("h200-141gb", seven("1g.18gb", "2g.35gb", "3g.71gb", "4g.71gb")),
            ("b200-180gb", seven("1g.23gb", "2g.45gb", "3g.90gb", "4g.90gb")),
        ] {
            for mix in mixes {
                // The large ones first: who comes later is not known.
                let made = starts(&mut [gpu(model)], &mix);
                assert!(made.iter().all(Option::is_some), "{model} {mix:?}: {made:?}");
            }
        }
        for mix in [["2g.12gb", "1g.6gb", "1g.6gb"], ["1g.6gb", "1g.6gb", "2g.12gb"]] {
            assert!(starts(&mut [gpu("a30")], &mix).iter().all(Option::is_some), "{mix:?}");
        }
        let memory = |model: &str, name: &str| gpu(model).kind(name).unwrap().memory >> 30;
        assert_eq!((memory("h100-80gb", "3G.40GB"), memory("a30", "4g.24gb")), (39, 22));
    }

    #[test]
    fn places_of_any_size_are_understood() {
        // As a driver might have it whose halves have three places instead of four.
        let mut one = gpu("h100-80gb");
        for kind in &mut one.kinds {
            for span in &mut kind.spans {
                span.size = if span.size == 8 { 7 } else { kind.slices };
            }
        }
        let made = starts(&mut [one], &["3g.40gb", "3g.40gb", "1g.10gb", "1g.10gb"]);
        assert_eq!(made.iter().flatten().count(), 3, "{made:?}");
    }

    #[test]
    fn a_gpu_that_is_broken_already_is_used_up_first() {
        let mut two = [gpu("a100-40gb"), gpu("a100-40gb")];
        two[1].taken.push((19, Span { start: 0, size: 1 }));
        assert_eq!(starts(&mut two, &["3g.20gb", "1g.5gb", "7g.40gb"]), [Some((1, 4)), Some((1, 1)), Some((0, 0))]);
        assert_eq!(best(&two, "9g.90gb"), None);
        assert_eq!(best(&[], "1g.5gb"), None);
    }
}
