//! What the layers of a base show at a path, stacked as an overlay stacks them.

use crate::error::{ErrorKind, Result};
use crate::store::LayerHandle;
use crate::sys::fs::look::{Kind, look};
use crate::sys::root::Root;
use std::path::{Path, PathBuf};

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

/// What an unchanged directory must keep when it appears in a new layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) user: u32,
    pub(super) group: u32,
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
                let found = match look(layer, &prefix) {
                    Ok(found) => found,
                    Err(e) if e.kind() == ErrorKind::NotFound => continue,
                    Err(e) => return Err(e),
                };
                match found.kind {
                    // Whatever is further down is covered.
                    Kind::Whiteout => break,
                    Kind::Directory { opaque } => {
                        if shown.is_none() {
                            let (mode, user, group) = (found.mode, found.user, found.group);
                            shown = Some(Shown::Directory(Attributes { mode, user, group }));
                        }
                        below.push(layer);
                        if opaque {
                            break;
                        }
                    }
                    // Below a directory it is covered; on top it is what is shown.
                    Kind::Link(target) => {
                        shown.get_or_insert(Shown::Link(target));
                        break;
                    }
                    Kind::Other => {
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
