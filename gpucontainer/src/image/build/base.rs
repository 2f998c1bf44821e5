//! What the layers of a base show at a path, stacked as an overlay stacks them.

use crate::error::Result;
use crate::store::LayerHandle;
use crate::sys::fs::look::attributes;
use crate::sys::root::{Entry, Root};
use std::path::{Path, PathBuf};

pub(super) use crate::sys::fs::look::Attributes;

/// The layers of a base, top first.
#[derive(Debug)]
pub(super) struct Base(Vec<Root>);

/// Something of the base.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Shown {
    Directory(Attributes),
    Link(PathBuf),
    Other,
}

impl Base {
    pub(super) fn open(layers: &[LayerHandle]) -> Result<Self> {
        layers.iter().rev().map(|layer| Root::open(layer.path())).collect::<Result<_>>().map(Self)
    }

    /// What is at `path`, which is absolute and goes through no link.
    pub(super) fn lookup(&self, path: &Path) -> Result<Option<Shown>> {
        let mut layers: Vec<&Root> = self.0.iter().collect();
        let mut shown = None;
        let mut prefix = PathBuf::from("/");
        // The root itself too: its mode is that of the topmost layer.
        let components = path.components().filter(|c| matches!(c, std::path::Component::Normal(_)));
        for component in std::iter::once(None).chain(components.map(Some)) {
            if let Some(component) = component {
                prefix.push(component);
            }
            shown = None;
            let mut below = Vec::new();
            for layer in layers {
                match layer.look(&prefix)? {
                    Entry::Missing => {}
                    // Whatever is further down is covered.
                    Entry::Whiteout => break,
                    Entry::Directory => {
                        if shown.is_none() {
                            shown = Some(Shown::Directory(attributes(layer, &prefix)?));
                        }
                        below.push(layer);
                        if layer.is_opaque(&prefix) {
                            break;
                        }
                    }
                    // Below a directory it is covered; on top it is what is shown.
                    Entry::Link(target) => {
                        shown.get_or_insert(Shown::Link(target));
                        break;
                    }
                    Entry::File | Entry::Other => {
                        shown.get_or_insert(Shown::Other);
                        break;
                    }
                }
            }
            layers = below;
            if shown.is_none() {
                return Ok(None);
            }
        }
        Ok(shown)
    }
}
