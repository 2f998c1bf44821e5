//! The file systems of the kernel's that every container has: `/proc`, `/dev`, `/sys`, and its view of control groups.

use super::{Compiler, EVERYTHING_NO, made};
use crate::error::Result;
use crate::sandbox::plan::{Device, Masked};
use crate::sys::calls::{At, Attributes, Travel};
use crate::sys::program::Argument;

impl Compiler<'_, '_> {
    pub(super) fn proc(&mut self, masked: &[Masked], read_only: &[String]) -> Result<()> {
        self.directories("/proc")?;
        let proc = made(self.proc)?;
        self.program.move_mount(proc, At::Cwd, "/proc")?;
        for path in read_only {
            let tree = self.program.clone_tree_if_there(At::from(proc), path)?;
            let absent = self.program.unless_failed(tree);
            let attributes = Attributes { read_only: true, ..EVERYTHING_NO };
            self.program.set_attributes(tree, attributes, None, true)?;
            self.program.move_mount(tree, At::from(proc), path)?;
            self.program.land(absent);
        }
        self.mask(proc, masked)
    }

    /// Hides paths of a mount of ours by descriptor: no link of an image is ever on the way.
    pub(super) fn mask(&mut self, mount: impl Into<Argument>, masked: &[Masked]) -> Result<()> {
        let mount = mount.into();
        // One empty directory serves for all: what is seen of it is the same, and one is given back faster than many.
        let mut empty: Option<&str> = None;
        for path in masked {
            let cover = match (path.directory, empty) {
                (false, _) => self.program.clone_tree(At::Cwd, "/dev/null", false)?,
                (true, Some(first)) => self.program.clone_tree_if_there(At::Open(mount), first)?,
                (true, None) => {
                    let context = self.program.fsopen("tmpfs")?;
                    self.program.fsconfig_string(context, "size", "0")?;
                    empty = Some(&path.path);
                    self.program.fsmount(context, Attributes { read_only: true, ..EVERYTHING_NO })?
                }
            };
            self.program.move_mount_if_there(cover, At::Open(mount), &path.path)?;
        }
        Ok(())
    }

    pub(super) fn dev(&mut self, devices: &[Device], shm_bytes: u64, terminal_group: Option<u32>) -> Result<()> {
        self.directories("/dev")?;
        let program = &mut self.program;
        let context = program.fsopen("tmpfs")?;
        program.fsconfig_string(context, "mode", "0755")?;
        program.fsconfig_string(context, "size", "65536k")?;
        let attributes = Attributes { no_suid: true, no_execute: true, ..Attributes::default() };
        let dev = program.fsmount(context, attributes)?;
        program.move_mount(dev, At::Cwd, "/dev")?;
        for device in devices {
            self.node(device)?;
        }
        let program = &mut self.program;
        for (target, name) in [
            ("/proc/self/fd", "fd"),
            ("/proc/self/fd/0", "stdin"),
            ("/proc/self/fd/1", "stdout"),
            ("/proc/self/fd/2", "stderr"),
            ("pts/ptmx", "ptmx"),
        ] {
            program.symlink(target, At::from(dev), name)?;
        }
        for name in ["pts", "shm", "mqueue"] {
            program.mkdir(At::from(dev), name, 0o755)?;
        }
        let group = terminal_group.map_or_else(String::new, |group| format!(",gid={group}"));
        let pts = Attributes { no_suid: true, no_execute: true, ..Attributes::default() };
        program.mount("devpts", "/dev/pts", pts, format!("newinstance,ptmxmode=0666,mode=0620{group}"))?;
        program.mount("tmpfs", "/dev/shm", EVERYTHING_NO, format!("mode=1777,size={shm_bytes}"))?;
        program.mount("mqueue", "/dev/mqueue", EVERYTHING_NO, "")
    }

    pub(super) fn node(&mut self, device: &Device) -> Result<()> {
        self.parents(&device.path)?;
        if let Some(source) = device.bound {
            let tree = self.source(source)?;
            // It is the host's own node: a read-only mount keeps its mode and owner as they are, and does not keep
            // anybody from writing to the device.
            let attributes = Attributes { read_only: true, no_suid: true, no_execute: true, no_devices: false };
            self.program.set_attributes(tree, attributes, Some(Travel::Private), false)?;
            return self.cover(tree, &device.path, false);
        }
        self.program.mknod(At::Cwd, &device.path, device.block, device.mode, (device.major, device.minor))?;
        match device.owner {
            Some((user, group)) => self.program.chown(At::Cwd, &device.path, user, group),
            None => Ok(()),
        }
    }

    pub(super) fn sys(&mut self, masked: &[Masked], bound: Option<usize>) -> Result<()> {
        self.directories("/sys")?;
        let sys = match bound {
            Some(source) => {
                let tree = self.source(source)?;
                let attributes = Attributes { read_only: true, ..EVERYTHING_NO };
                self.program.set_attributes(tree, attributes, None, true)?;
                tree
            }
            None => made(self.sys)?.into(),
        };
        self.program.move_mount(sys, At::Cwd, "/sys")?;
        self.mask(sys, masked)
    }

    pub(super) fn cgroup_view(&mut self, version2: bool, controllers: &[String]) -> Result<()> {
        let attributes = Attributes { read_only: true, ..EVERYTHING_NO };
        if version2 {
            // Where `/sys` is the host's, the same hierarchy is mounted there already; mount(2) refuses to mount
            // it once more on itself, move_mount(2) does not.
            let context = self.program.fsopen("cgroup2")?;
            let mount = self.program.fsmount(context, attributes)?;
            return self.program.move_mount(mount, At::Cwd, "/sys/fs/cgroup");
        }
        let context = self.program.fsopen("tmpfs")?;
        self.program.fsconfig_string(context, "mode", "0755")?;
        let mount = self.program.fsmount(context, EVERYTHING_NO)?;
        self.program.move_mount(mount, At::Cwd, "/sys/fs/cgroup")?;
        for controllers in controllers {
            let target = format!("/sys/fs/cgroup/{controllers}");
            self.program.mkdir(At::Cwd, &target, 0o755)?;
            self.program.mount("cgroup", &target, attributes, controllers)?;
        }
        let set = Attributes { read_only: true, ..EVERYTHING_NO };
        self.program.set_attributes(mount, set, None, false)
    }
}
