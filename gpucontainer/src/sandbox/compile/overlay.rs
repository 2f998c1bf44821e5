//! The root of layers: overlayfs with the new mount interface, with the old one, and with shifted owners.

use crate::error::Result;
use crate::rootfs::{Setting, Writes, needs_other_path};
use crate::sandbox::compile::Compiler;
use crate::sandbox::places::Place;
use crate::sandbox::plan::Overlay;
use crate::sys::calls::{At, Attributes};
use crate::sys::program::{Argument, Register};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The name of the layer of places in the file system in memory.
const PLACES: &str = "places";

impl Compiler<'_, '_> {
    pub(super) fn overlay(&mut self, overlay: &Overlay) -> Result<()> {
        let mut mount = overlay.mount.clone();
        let mut numbers = Vec::new();
        let mut base = overlay.mount_at.clone();
        let in_memory = matches!(mount.writes, Writes::Memory { .. });
        // Whether what is in memory lies on `/`, where it covers no path and is reached by descriptor: in a shifted user
        // namespace nobody may walk the host's paths, and beside writes to disk it would cover their directory.
        let on_root = overlay.shifted || (!in_memory && !overlay.places.is_empty());
        let memory = match &mount.writes {
            Writes::Memory { bytes, .. } => Some(self.memory_at(&base, *bytes, on_root)?),
            _ if on_root => Some(self.memory_at(&base, None, true)?),
            _ => None,
        };
        if let (Some(memory), true) = (memory, on_root) {
            base = self.number(memory, &mut numbers);
        }
        if let (Some(memory), Writes::Memory { mode, owner, group, .. }) = (memory, &mount.writes) {
            self.program.mkdir(At::from(memory), "upper", *mode)?;
            self.program.mkdir(At::from(memory), "work", 0o755)?;
            if !mount.userxattr {
                self.program.chown(At::from(memory), "upper", *owner, *group)?;
            }
        }
        if let (Some(memory), true) = (memory, overlay.shifted) {
            let descriptors = self.descriptors;
            for (at, (layer, path)) in descriptors.layers.iter().zip(&mut mount.lower).enumerate() {
                let name = format!("layer{at}");
                self.program.mkdir(At::from(memory), &name, 0o755)?;
                let layer = self.program.descriptor(*layer);
                self.program.move_mount(layer, At::from(memory), &name)?;
                *path = base.join(name);
            }
            if let (Writes::Disk { upper, work, .. }, Some(writes)) = (&mut mount.writes, descriptors.writes) {
                self.program.mkdir(At::from(memory), "writes", 0o755)?;
                let writes = self.program.descriptor(writes);
                self.program.move_mount(writes, At::from(memory), "writes")?;
                for path in [upper, work] {
                    *path = base.join("writes").join(path.file_name().unwrap_or_default());
                }
            }
        }
        if let (Some(memory), false) = (memory, overlay.places.is_empty()) {
            self.places(memory, &overlay.places)?;
            mount.lower.insert(0, base.join(PLACES));
        }
        let memory = in_memory.then(|| (base.join("upper"), base.join("work")));
        let places = memory.as_ref().map(|(upper, work)| (upper.as_path(), work.as_path()));
        let attributes = Attributes { no_devices: true, ..Attributes::default() };
        let root = if overlay.one_by_one {
            let context = self.program.fsopen("overlay")?;
            for setting in mount.settings(places)? {
                match setting {
                    Setting::Flag(key) => self.program.fsconfig_flag(context, key)?,
                    Setting::Text(key, value) if needs_other_path(&value) => {
                        let path = self.numbered(Path::new(&value), &mut numbers)?;
                        self.program.fsconfig_string(context, key, path.as_os_str().as_bytes())?;
                    }
                    Setting::Text(key, value) => self.program.fsconfig_string(context, key, value.as_bytes())?,
                }
            }
            let root = self.program.fsmount(context, attributes)?;
            if on_root {
                self.program.uncover_root()?;
            }
            self.program.move_mount(root, At::Cwd, "/")?;
            root
        } else {
            // Before Linux 6.5 all layers are in one string of at most a page. Each path is replaced by the number of
            // a descriptor, which is a name in the directory of descriptors.
            self.program.chdir("/proc/self/fd")?;
            let options = mount.options(places, &mut |path| {
                let numbered = self.numbered(path, &mut numbers)?;
                Ok(numbered.file_name().map(PathBuf::from).unwrap_or(numbered))
            })?;
            let target = overlay.mount_at.to_string_lossy();
            self.program.mount("overlay", &target, attributes, options.as_bytes())?;
            if on_root {
                self.program.uncover_root()?;
            }
            self.program.open_path(&overlay.mount_at)?
        };
        for number in numbers {
            self.program.close(number);
        }
        self.root = Some(root);
        Ok(())
    }

    /// Makes the layer of places in a tmpfs.
    fn places(&mut self, memory: Register, places: &[Place]) -> Result<()> {
        let (at, inside) = (At::from(memory), |path: &str| format!("{PLACES}/{path}"));
        self.program.mkdir(at, PLACES, 0o755)?;
        for place in places {
            match place {
                Place::Directory { path, mode, owner } => {
                    self.program.mkdir(at, inside(path), *mode)?;
                    if let Some((user, group)) = owner {
                        self.program.chown(at, &inside(path), *user, *group)?;
                    }
                }
                Place::File { path } => {
                    self.program.touch(at, &inside(path), 0o644)?;
                    self.made.insert(format!("/{path}"));
                }
                Place::Link { path, target } => self.program.symlink(target, at, inside(path))?,
            }
        }
        Ok(())
    }

    /// Mounts a new tmpfs on a directory of the host, in the container's own mount namespace alone.
    fn memory_at(&mut self, base: &Path, bytes: Option<u64>, on_root: bool) -> Result<Register> {
        let context = self.program.fsopen("tmpfs")?;
        self.program.fsconfig_string(context, "mode", "0755")?;
        if let Some(bytes) = bytes {
            self.program.fsconfig_string(context, "size", bytes.to_string())?;
        }
        let memory = self.program.fsmount(context, Attributes::default())?;
        let target = if on_root { "/".into() } else { base.to_string_lossy() };
        self.program.move_mount(memory, At::Cwd, &target)?;
        Ok(memory)
    }

    /// Opens a path of the host under a number above all inherited ones; the name by which that can be given.
    fn numbered(&mut self, path: &Path, numbers: &mut Vec<i32>) -> Result<PathBuf> {
        let open = self.program.open_path(path)?;
        let path = self.number(open, numbers);
        self.program.close(open);
        self.program.release(open);
        Ok(path)
    }

    /// Gives what is open a number that is known now, above all inherited ones; its name in procfs.
    fn number(&mut self, open: impl Into<Argument>, numbers: &mut Vec<i32>) -> PathBuf {
        let taken = i32::try_from(numbers.len()).unwrap_or(i32::MAX);
        let number = self.program.above_descriptors().saturating_add(taken);
        self.program.duplicate(open, number);
        numbers.push(number);
        PathBuf::from(format!("/proc/self/fd/{number}"))
    }
}
