//! What is known of images whose layers cannot change, so that the next start need not read them.
//!
//! The layers of a store are named by what is in them: facts of the same layers, found once, are facts of every later
//! start. Only what a start brings itself, its variables, is not among them.

use crate::gpu::injection::image_facts::ImageFacts;
use crate::layer::Stack;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// The last used first. A list of some hundred libraries is most of what one takes, about 50 KB.
static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());
const MOST: usize = 16;
/// The largest list that is remembered, in bytes of its strings: more than any image has that is not meant to harm.
const LARGEST: usize = 1 << 20;

struct Known {
    layers: Vec<PathBuf>,
    facts: ImageFacts,
}

/// The facts of the image whose layers lie at `layers`, all of them named by their contents, and are stacked in `tree`.
pub(crate) fn known_facts(layers: Vec<PathBuf>, tree: &Stack, environment: Vec<(String, String)>) -> ImageFacts {
    let all = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = {
        let mut all = all();
        let place = all.iter().position(|known| known.layers == layers);
        place.map(|place| {
            all[..=place].rotate_right(1);
            all[0].facts.clone()
        })
    };
    let mut facts = known.unwrap_or_else(|| {
        let facts = ImageFacts::read(tree, Vec::new());
        // What could not be looked at now may be there the next time.
        if !tree.is_faulty() && facts.loader_cache.as_ref().is_none_or(|cache| cache.size() <= LARGEST) {
            let mut all = all();
            all.truncate(MOST - 1);
            all.insert(0, Known { layers, facts: facts.clone() });
        }
        facts
    });
    facts.environment = environment;
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_read_once_and_few_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let layers = |number: usize| vec![directory.path().join(number.to_string())];
        let facts = |number: usize, variable: &str| {
            let layers = layers(number);
            let tree = Stack::open(&layers).unwrap();
            known_facts(layers, &tree, vec![(variable.to_owned(), String::new())])
        };
        for number in 0..=MOST {
            std::fs::create_dir_all(layers(number)[0].join("etc")).unwrap();
        }
        assert!(!facts(0, "A").musl);
        // No layer of a store changes; this one shows who is asked.
        std::fs::write(layers(0)[0].join("etc/alpine-release"), "").unwrap();
        let again = facts(0, "B");
        assert!(!again.musl && again.environment[0].0 == "B");
        for number in 1..=MOST {
            facts(number, "C");
        }
        assert!(facts(0, "D").musl, "the one that was used the longest ago is gone");
    }
}
