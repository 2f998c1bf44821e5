//! What the layers of a base show at a path, stacked as an overlay stacks them.

use crate::error::Result;
use crate::layer::Stack;
use crate::sys::fs::look::attributes;
use crate::sys::root::Entry;
use std::path::{Path, PathBuf};

pub(super) use crate::sys::fs::look::Attributes;

/// The layers of a base.
#[derive(Debug)]
pub(super) struct Base(Stack);

/// Something of the base.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Shown {
    Directory(Attributes),
    Link(PathBuf),
    Other,
}

impl Base {
    /// Opens the trees of the layers, the bottom one first.
    pub(super) fn open(trees: &[PathBuf]) -> Result<Self> {
        Stack::open(trees.iter().rev()).map(Self)
    }

    /// What is at `path`, which is absolute and goes through no link.
    pub(super) fn lookup(&self, path: &Path) -> Result<Option<Shown>> {
        let Some((layer, entry)) = self.0.look(path)? else { return Ok(None) };
        Ok(Some(match entry {
            Entry::Directory => Shown::Directory(attributes(layer, path)?),
            Entry::Link(target) => Shown::Link(target),
            _ => Shown::Other,
        }))
    }
}
