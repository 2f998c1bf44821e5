//! Mounting: file systems made, copied, attached, changed, and the root that they become.

use super::{At, EMPTY_PATH, FSCONFIG_CMD_CREATE, FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, RECURSIVE, flags};
use crate::error::Result;
use crate::sys::program::OnError::{AllowAbsent, Fail, GoOn, Log};
use crate::sys::program::{Argument, OnError, Program, Register};

/// Attributes of a mount, as `mount_setattr(2)` names them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize)]
pub(crate) struct Attributes {
    pub(crate) read_only: bool,
    pub(crate) no_suid: bool,
    pub(crate) no_devices: bool,
    pub(crate) no_execute: bool,
}

impl Attributes {
    fn bits(self) -> u64 {
        let mut bits = 0;
        for (set, bit) in [
            (self.read_only, libc::MOUNT_ATTR_RDONLY),
            (self.no_suid, libc::MOUNT_ATTR_NOSUID),
            (self.no_devices, libc::MOUNT_ATTR_NODEV),
            (self.no_execute, libc::MOUNT_ATTR_NOEXEC),
        ] {
            if set {
                bits |= bit;
            }
        }
        bits
    }

    /// The names, as `mount(8)` spells them.
    pub(crate) fn words(self) -> Vec<&'static str> {
        let all =
            [(self.read_only, "ro"), (self.no_suid, "nosuid"), (self.no_devices, "nodev"), (self.no_execute, "noexec")];
        all.iter().filter_map(|(set, word)| set.then_some(*word)).collect()
    }
}

/// How mounts and unmounts travel between a mount and its copies.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Travel {
    Private,
    Slave,
    Shared,
}

impl Program<'_> {
    /// `mount(2)` of a new file system.
    pub(crate) fn mount(
        &mut self,
        fstype: &str,
        target: &str,
        attributes: Attributes,
        data: impl AsRef<[u8]>,
    ) -> Result<()> {
        let mut bits = 0;
        for (set, bit) in [
            (attributes.read_only, libc::MS_RDONLY),
            (attributes.no_suid, libc::MS_NOSUID),
            (attributes.no_devices, libc::MS_NODEV),
            (attributes.no_execute, libc::MS_NOEXEC),
        ] {
            if set {
                bits |= bit;
            }
        }
        let (fstype, target, data) = (self.text(fstype)?, self.text(target)?, self.text(data)?);
        self.call(libc::SYS_mount, Fail, &[fstype.into(), target.into(), fstype.into(), bits.into(), data.into()]);
        Ok(())
    }

    /// Changes how the mounts below `/` travel, all of them.
    pub(crate) fn set_travel_of_all(&mut self, travel: Travel) -> Result<()> {
        let root = self.text("/")?;
        let bits = libc::MS_REC | travel_bits(travel);
        self.call(libc::SYS_mount, Fail, &[0_u64.into(), root.into(), 0_u64.into(), bits.into(), 0_u64.into()]);
        Ok(())
    }

    /// `fsopen(2)`.
    pub(crate) fn fsopen(&mut self, fstype: &str) -> Result<Register> {
        let (context, fstype) = (self.register()?, self.text(fstype)?);
        self.call_into(context, libc::SYS_fsopen, Fail, &[fstype.into(), 1_u64.into()]); // FSOPEN_CLOEXEC
        Ok(context)
    }

    /// `fsconfig(2)` with a string.
    pub(crate) fn fsconfig_string(&mut self, context: Register, key: &str, value: impl AsRef<[u8]>) -> Result<()> {
        let (key, value) = (self.text(key)?, self.text(value)?);
        let arguments = [context.into(), FSCONFIG_SET_STRING.into(), key.into(), value.into(), 0_u64.into()];
        self.call(libc::SYS_fsconfig, Log, &arguments);
        Ok(())
    }

    /// `fsconfig(2)` with a flag.
    pub(crate) fn fsconfig_flag(&mut self, context: Register, key: &str) -> Result<()> {
        let key = self.text(key)?;
        let arguments = [context.into(), FSCONFIG_SET_FLAG.into(), key.into(), 0_u64.into(), 0_u64.into()];
        self.call(libc::SYS_fsconfig, Log, &arguments);
        Ok(())
    }

    /// `fsconfig(2)` that makes the file system, and `fsmount(2)`: the mount, attached to nothing yet.
    pub(crate) fn fsmount(&mut self, context: Register, attributes: Attributes) -> Result<Register> {
        let arguments = [context.into(), FSCONFIG_CMD_CREATE.into(), 0_u64.into(), 0_u64.into(), 0_u64.into()];
        self.call(libc::SYS_fsconfig, Log, &arguments);
        let mount = self.register()?;
        let arguments = [context.into(), 1_u64.into(), attributes.bits().into()]; // FSMOUNT_CLOEXEC
        self.call_into(mount, libc::SYS_fsmount, Log, &arguments);
        Ok(mount)
    }

    /// `move_mount(2)` to a path, whose last part is not followed if it is a link.
    pub(crate) fn move_mount(&mut self, mount: impl Into<Argument>, at: At, path: &str) -> Result<()> {
        self.move_mount_with(mount.into(), at, path, Fail)
    }

    /// The same, when what it covers may not exist.
    pub(crate) fn move_mount_if_there(&mut self, mount: Register, at: At, path: &str) -> Result<()> {
        self.move_mount_with(mount.into(), at, path, AllowAbsent)
    }

    /// The same, with the result in a register.
    pub(crate) fn try_move_mount(&mut self, mount: impl Into<Argument>, at: At, path: &str) -> Result<Register> {
        let (result, empty, path) = (self.register()?, self.text("")?, self.text(path)?);
        let arguments = [mount.into(), empty.into(), at.into(), path.into(), 0x4_u64.into()];
        self.call_into(result, libc::SYS_move_mount, GoOn, &arguments);
        Ok(result)
    }

    fn move_mount_with(&mut self, mount: Argument, at: At, path: &str, on_error: OnError) -> Result<()> {
        let (empty, path) = (self.text("")?, self.text(path)?);
        // MOVE_MOUNT_F_EMPTY_PATH
        let arguments = [mount, empty.into(), at.into(), path.into(), 0x4_u64.into()];
        self.call(libc::SYS_move_mount, on_error, &arguments);
        Ok(())
    }

    /// `move_mount(2)` onto what is open in a register.
    pub(crate) fn move_mount_onto(&mut self, mount: impl Into<Argument>, onto: impl Into<Argument>) -> Result<()> {
        let empty = self.text("")?;
        // MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        let arguments = [mount.into(), empty.into(), onto.into(), empty.into(), 0x44_u64.into()];
        self.call(libc::SYS_move_mount, Fail, &arguments);
        Ok(())
    }

    /// `umount2(2)` of what was mounted over the process's root last: what stays there when another root is entered
    /// is what is unmounted then, and the old root would stay in its place.
    pub(crate) fn uncover_root(&mut self) -> Result<()> {
        let path = self.text("/")?;
        self.call(libc::SYS_umount2, Fail, &[path.into(), flags(libc::MNT_DETACH).into()]);
        Ok(())
    }

    /// `umount2(2)` of what is on top at `path`, in use or not. That there is nothing, or a link, is fine.
    pub(crate) fn unmount(&mut self, path: &str) -> Result<()> {
        let path = self.text(path)?;
        self.call(libc::SYS_umount2, GoOn, &[path.into(), flags(libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW).into()]);
        Ok(())
    }

    /// `open_tree(2)`: a copy of the mount at `path`, attached to nothing.
    pub(crate) fn clone_tree(&mut self, at: At, path: impl AsRef<[u8]>, recursive: bool) -> Result<Register> {
        self.clone_tree_with(at, path, recursive, Fail)
    }

    /// The same, when `path` may not exist; the register is then negative.
    pub(crate) fn clone_tree_if_there(&mut self, at: At, path: &str) -> Result<Register> {
        self.clone_tree_with(at, path, false, AllowAbsent)
    }

    fn clone_tree_with(
        &mut self,
        at: At,
        path: impl AsRef<[u8]>,
        recursive: bool,
        on_error: OnError,
    ) -> Result<Register> {
        let (tree, path) = (self.register()?, self.text(path)?);
        let mut bits = 1 | libc::O_CLOEXEC.cast_unsigned(); // OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
        if recursive {
            bits |= RECURSIVE;
        }
        self.call_into(tree, libc::SYS_open_tree, on_error, &[at.into(), path.into(), bits.into()]);
        Ok(tree)
    }

    /// `mount_setattr(2)`, of the mount in a register.
    pub(crate) fn set_attributes(
        &mut self,
        mount: impl Into<Argument>,
        attributes: Attributes,
        travel: Option<Travel>,
        recursive: bool,
    ) -> Result<()> {
        let empty = self.text("")?;
        let bits = EMPTY_PATH | if recursive { RECURSIVE } else { 0 };
        self.set_attributes_at(At::Open(mount.into()), empty, bits, attributes, travel);
        Ok(())
    }

    /// `mount_setattr(2)`, of the mount at `path`.
    pub(crate) fn set_attributes_of(&mut self, path: &str, attributes: Attributes) -> Result<()> {
        let path = self.text(path)?;
        self.set_attributes_at(At::Cwd, path, 0, attributes, None);
        Ok(())
    }

    /// `mount_setattr(2)`, of the mount at `path` and of all below it.
    pub(crate) fn set_attributes_below(&mut self, path: &str, attributes: Attributes) -> Result<()> {
        let path = self.text(path)?;
        self.set_attributes_at(At::Cwd, path, RECURSIVE, attributes, None);
        Ok(())
    }

    fn set_attributes_at(&mut self, at: At, path: u64, bits: u32, attributes: Attributes, travel: Option<Travel>) {
        // struct mount_attr: attr_set, attr_clr, propagation, userns_fd
        let structure = self.words(&[attributes.bits(), 0, travel.map_or(0, travel_bits), 0]);
        let arguments = [at.into(), path.into(), bits.into(), structure.into(), 32_u64.into()];
        self.call(libc::SYS_mount_setattr, Fail, &arguments);
    }

    /// Makes the mount in a register the root of everything, and lets the old root go.
    pub(crate) fn pivot(&mut self, root: Register) -> Result<()> {
        let (dot, slash) = (self.text(".")?, self.text("/")?);
        self.call(libc::SYS_fchdir, Fail, &[root.into()]);
        self.call(libc::SYS_pivot_root, Fail, &[dot.into(), dot.into()]);
        // The old root now lies on top of the new one; without it nothing of the host has a name here.
        self.call(libc::SYS_umount2, Fail, &[dot.into(), flags(libc::MNT_DETACH).into()]);
        self.call(libc::SYS_chdir, Fail, &[slash.into()]);
        Ok(())
    }
}

fn travel_bits(travel: Travel) -> u64 {
    match travel {
        Travel::Private => libc::MS_PRIVATE,
        Travel::Slave => libc::MS_SLAVE,
        Travel::Shared => libc::MS_SHARED,
    }
}
