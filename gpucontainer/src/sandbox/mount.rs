//! Mounts of a sandbox: directories and files of the host, memory, volumes.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::calls::Travel;
use std::path::PathBuf;

/// How mounts and unmounts travel between host and sandbox, as in `mount_namespaces(7)`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// From the host into the sandbox.
    Slave,
    /// Both ways.
    Shared,
}

impl Propagation {
    pub(crate) fn travel(self) -> Travel {
        match self {
            Self::Private => Travel::Private,
            Self::Slave => Travel::Slave,
            Self::Shared => Travel::Shared,
        }
    }
}

/// One mount.
#[derive(Clone, Debug)]
#[must_use]
pub struct Mount {
    pub(crate) kind: Kind,
    pub(crate) target: String,
    pub(crate) read_only: bool,
    pub(crate) recursive: bool,
    pub(crate) propagation: Propagation,
    pub(crate) executable: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Bind(PathBuf),
    Volume(String),
    Tmpfs { bytes: Option<u64>, mode: u32 },
}

impl Mount {
    fn new(kind: Kind, target: impl Into<String>) -> Self {
        Self {
            kind,
            target: target.into(),
            read_only: false,
            recursive: true,
            propagation: Propagation::Private,
            executable: true,
        }
    }

    /// Shows a file or directory of the host, with what is mounted below it, at the absolute path `target`.
    pub fn bind(source: impl Into<PathBuf>, target: impl Into<String>) -> Self {
        Self::new(Kind::Bind(source.into()), target)
    }

    /// Shows a directory of the image store that outlives sandboxes, made when first named.
    pub fn volume(name: impl Into<String>, target: impl Into<String>) -> Self {
        Self::new(Kind::Volume(name.into()), target)
    }

    /// Makes an empty file system in memory, which counts as the sandbox's memory.
    pub fn tmpfs(target: impl Into<String>) -> Self {
        Self::new(Kind::Tmpfs { bytes: None, mode: 0o1777 }, target)
    }

    /// Caps a file system in memory at `bytes`. By default half of the host's memory, the kernel's own limit.
    pub fn size(mut self, bytes: u64) -> Self {
        if let Kind::Tmpfs { bytes: size, .. } = &mut self.kind {
            *size = Some(bytes);
        }
        self
    }

    /// Makes it read-only, and with it everything mounted below it.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Whether what is mounted below the source is shown too. Yes by default.
    pub fn recursive(mut self, recursive: bool) -> Self {
        self.recursive = recursive;
        self
    }

    /// Says how later mounts travel. [`Propagation::Private`] by default.
    pub fn propagation(mut self, propagation: Propagation) -> Self {
        self.propagation = propagation;
        self
    }

    /// Forbids executing files of it.
    pub fn no_execute(mut self) -> Self {
        self.executable = false;
        self
    }

    /// Checks what can be known before a start.
    pub(crate) fn check(&self) -> Result<()> {
        let bad = |why: &str| {
            let message = format!("mount target {:?} {why}", self.target);
            Err(Error::new(ErrorKind::InvalidArgument, message).with_path(&self.target))
        };
        if !self.target.starts_with('/') {
            return bad("is not an absolute path");
        }
        if self.target.split('/').any(|part| part == "..") {
            return bad("has \"..\" in it");
        }
        if self.target.trim_matches('/').is_empty() {
            return bad("is the root itself");
        }
        match &self.kind {
            Kind::Bind(source) if !source.is_absolute() => {
                Err(Error::new(ErrorKind::InvalidArgument, format!("mount source {source:?} is not an absolute path"))
                    .with_path(source))
            }
            Kind::Volume(name) if !crate::sandbox::is_name(name) => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("volume name {name:?} is not made of letters, digits, '.', '_' and '-'"),
            )),
            _ => Ok(()),
        }
    }
}
