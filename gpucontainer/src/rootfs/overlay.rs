//! What is to be mounted, as plain data.

use super::{Rootfs, Scratch, Source, Writable, unusable};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::sys::fs;
use crate::sys::fs::mount::{OPTIONS_LIMIT, SETTING_LIMIT};
use crate::sys::fs::tree;
use serde::Serialize;
use std::collections::HashSet;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What every kernel with overlayfs takes at most; also one more than anybody should need.
const LAYER_LIMIT: usize = 500;

/// The attributes by which a directory hides what is below it.
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// What a container's root is mounted from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum RootMount {
    /// The directory itself.
    Bind { directory: PathBuf, read_only: bool },
    /// Layers over each other.
    Overlay(OverlayMount),
}

/// A mount of overlayfs.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(crate) struct OverlayMount {
    /// Absolute, without links; the top one first. Each only once.
    pub(crate) lower: Vec<PathBuf>,
    pub(crate) writes: Writes,
    /// `user.overlay.…` attributes instead of `trusted.overlay.…`, as a mount in a user namespace needs.
    pub(crate) userxattr: bool,
}

/// Where an overlay's writes go.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Writes {
    /// It is read-only.
    Nowhere,
    Disk {
        upper: PathBuf,
        work: PathBuf,
        volatile: bool,
    },
    /// To directories in a new tmpfs of at most `bytes`. Its upper directory is the root that the container sees,
    /// so it takes the mode and owner of the top layer's root.
    Memory {
        bytes: Option<u64>,
        mode: u32,
        owner: u32,
        group: u32,
    },
}

/// One setting of a file system.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Setting {
    Flag(&'static str),
    Text(&'static str, OsString),
}

impl OverlayMount {
    /// All settings, layers one by one, in the order in which `fsconfig(2)` wants them (`lowerdir+`, Linux 6.5).
    ///
    /// `memory` says where the upper and the work directory of [`Writes::Memory`] are. Paths for which
    /// [`needs_other_path`] is true cannot be given to the kernel as they are.
    pub(crate) fn settings(&self, memory: Option<(&Path, &Path)>) -> Result<Vec<Setting>> {
        // What mountinfo shows as the mount's source.
        let mut settings = vec![Setting::Text("source", "overlay".into())];
        settings.extend(self.lower.iter().map(|path| Setting::Text("lowerdir+", path.clone().into())));
        settings.extend(self.other_settings(memory)?);
        Ok(settings)
    }

    /// The options of `mount(2)` for kernels without `lowerdir+`, in which `shorten` replaces the paths.
    ///
    /// # Errors
    /// `Unsupported` if they do not fit the page that the kernel takes.
    pub(crate) fn options(
        &self,
        memory: Option<(&Path, &Path)>,
        shorten: &mut dyn FnMut(&Path) -> Result<PathBuf>,
    ) -> Result<CString> {
        let mut bytes = b"lowerdir=".to_vec();
        for (index, path) in self.lower.iter().enumerate() {
            if index > 0 {
                bytes.push(b':');
            }
            escape(shorten(path)?.as_os_str(), b":,\\", &mut bytes);
        }
        for setting in self.other_settings(memory)? {
            bytes.push(b',');
            match setting {
                Setting::Flag(key) => bytes.extend_from_slice(key.as_bytes()),
                Setting::Text(key, value) => {
                    bytes.extend_from_slice(format!("{key}=").as_bytes());
                    let is_path = matches!(key, "upperdir" | "workdir");
                    let value = if is_path { shorten(Path::new(&value))?.into() } else { value };
                    escape(&value, b",\\", &mut bytes);
                }
            }
        }
        if bytes.len() > OPTIONS_LIMIT {
            let text = format!(
                "{} layers make {} bytes of mount options; kernels before Linux 6.5 take {OPTIONS_LIMIT}",
                self.lower.len(),
                bytes.len()
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        CString::new(bytes).map_err(|e| unusable("a path with a NUL in it").with_cause(e))
    }

    fn other_settings(&self, memory: Option<(&Path, &Path)>) -> Result<Vec<Setting>> {
        let mut settings = Vec::new();
        let (places, volatile) = match (&self.writes, memory) {
            (Writes::Nowhere, _) => (None, false),
            (Writes::Disk { upper, work, volatile }, _) => (Some((upper.as_path(), work.as_path())), *volatile),
            // Memory forgets anyway, and its sync costs nothing.
            (Writes::Memory { .. }, Some(places)) => (Some(places), false),
            (Writes::Memory { .. }, None) => return Err(unusable("writes to memory without a place in it")),
        };
        if let Some((upper, work)) = places {
            settings.push(Setting::Text("upperdir", upper.into()));
            settings.push(Setting::Text("workdir", work.into()));
        }
        // Stated, because the defaults are the kernel builder's; see the room's documentation.
        settings.push(Setting::Text("redirect_dir", "nofollow".into()));
        settings.push(Setting::Text("metacopy", "off".into()));
        settings.push(Setting::Text("index", "off".into()));
        settings.extend(volatile.then_some(Setting::Flag("volatile")));
        settings.extend(self.userxattr.then_some(Setting::Flag("userxattr")));
        Ok(settings)
    }
}

/// Whether `fsconfig(2)` does not take a path as it is: it is too long, or has a backslash in it, which the kernel
/// takes for an escape in some settings and not in others. A path by way of `/proc/self/fd` serves.
pub(crate) fn needs_other_path(path: &OsStr) -> bool {
    path.len() > SETTING_LIMIT || path.as_bytes().contains(&b'\\')
}

fn escape(text: &OsStr, special: &[u8], into: &mut Vec<u8>) {
    for byte in text.as_bytes() {
        if special.contains(byte) {
            into.push(b'\\');
        }
        into.push(*byte);
    }
}

pub(super) fn plan(rootfs: &Rootfs, scratch: Option<&Scratch>, userxattr: bool) -> Result<RootMount> {
    let lower = match (&rootfs.source, rootfs.writable) {
        (Source::Directory(path), Writable::InPlace | Writable::ReadOnly) => {
            let directory = existing(path)?;
            return Ok(RootMount::Bind { directory, read_only: rootfs.writable == Writable::ReadOnly });
        }
        (Source::Layers(_), Writable::InPlace) => {
            return Err(unusable("layers are shared and cannot be written to in place"));
        }
        (Source::Directory(path), _) => vec![existing(path)?],
        (Source::Layers(layers), _) => {
            let paths: Vec<&Path> = layers.iter().rev().map(|layer| layer.directory()).collect();
            visible(&paths)?
        }
    };
    let [top, ..] = &lower[..] else { return Err(unusable("a root file system of no layers")) };
    if lower.len() > LAYER_LIMIT {
        let text = format!("{} layers; the kernel's overlayfs takes {LAYER_LIMIT}", lower.len());
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let writes = match rootfs.writable {
        Writable::Disk => {
            let scratch = scratch.ok_or_else(|| unusable("writes to disk without a scratch directory"))?;
            scratch.describe_like(top)?;
            Writes::Disk { upper: scratch.upper(), work: scratch.work(), volatile: rootfs.volatile }
        }
        Writable::Memory => {
            use std::os::unix::fs::MetadataExt;
            let described = fs::metadata(top)?;
            let mode = described.mode() & 0o7777;
            Writes::Memory { bytes: rootfs.memory_max, mode, owner: described.uid(), group: described.gid() }
        }
        // The kernel makes no overlay of one read-only layer; nothing is below it that it could hide.
        Writable::ReadOnly | Writable::InPlace if lower.len() == 1 => {
            return Ok(RootMount::Bind { directory: top.clone(), read_only: true });
        }
        Writable::ReadOnly | Writable::InPlace => Writes::Nowhere,
    };
    Ok(RootMount::Overlay(OverlayMount { lower, writes, userxattr }))
}

/// The layers that can be seen at all, given and returned the top one first.
///
/// A layer whose root is opaque hides all below; overlayfs itself does not look at the roots. A layer that an image
/// has twice counts once, where it is higher (there it says all that it says below); overlayfs refuses doubles.
fn visible(layers: &[&Path]) -> Result<Vec<PathBuf>> {
    let mut seen = HashSet::new();
    let mut visible = Vec::new();
    for layer in layers {
        let path = existing(layer)?;
        let opaque = is_opaque(&path)?;
        if seen.insert(path.clone()) {
            visible.push(path);
        }
        if opaque {
            break;
        }
    }
    Ok(visible)
}

fn is_opaque(directory: &Path) -> Result<bool> {
    let open = fs::open_dir(directory)?;
    for name in OPAQUE {
        let value = tree::attribute(open.as_fd(), OsStr::new(name)).with_context(|| format!("layer {directory:?}"))?;
        if value.as_deref() == Some(b"y") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The path without links, of a directory that is there.
fn existing(path: &Path) -> Result<PathBuf> {
    let wanted = || format!("layer {path:?}");
    let whole = fs::canonicalize(path).with_context(wanted)?;
    if fs::metadata(&whole).with_context(wanted)?.is_dir() {
        Ok(whole)
    } else {
        Err(unusable(format!("layer {path:?} is no directory")).with_path(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(count: usize) -> OverlayMount {
        let lower = (0..count).map(|n| PathBuf::from(format!("/l/{n}"))).collect();
        let writes = Writes::Disk { upper: "/s/a,b/upper".into(), work: "/s/a,b/work".into(), volatile: true };
        OverlayMount { lower, writes, userxattr: true }
    }

    #[test]
    fn settings_state_everything() {
        let text = |key, value: &str| Setting::Text(key, value.into());
        let expected = [
            text("source", "overlay"),
            text("lowerdir+", "/l/0"),
            text("lowerdir+", "/l/1"),
            text("upperdir", "/s/a,b/upper"),
            text("workdir", "/s/a,b/work"),
            text("redirect_dir", "nofollow"),
            text("metacopy", "off"),
            text("index", "off"),
            Setting::Flag("volatile"),
            Setting::Flag("userxattr"),
        ];
        assert_eq!(overlay(2).settings(None).unwrap(), expected);
    }

    #[test]
    fn options_fit_a_page_or_say_so() {
        let same = &mut |path: &Path| Ok(path.to_owned());
        let options = overlay(2).options(None, same).unwrap();
        assert_eq!(
            options.to_str().unwrap(),
            "lowerdir=/l/0:/l/1,upperdir=/s/a\\,b/upper,workdir=/s/a\\,b/work,redirect_dir=nofollow,metacopy=off,\
             index=off,volatile,userxattr"
        );
        let odd = &mut |_: &Path| Ok(PathBuf::from("/a:b,c\\d"));
        assert!(overlay(1).options(None, odd).unwrap().to_bytes().starts_with(b"lowerdir=/a\\:b\\,c\\\\d,"));
        let error = overlay(1000).options(None, same).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
