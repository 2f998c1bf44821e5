//! Making, describing and removing what is in a directory, by descriptor.
//!
//! Every function takes an open directory and one name in it, never a path: no link is followed, nothing
//! outside of the directory can be named. The process's umask never matters and is never changed.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::errno::failed;
use crate::sys::root::Root;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RawDir, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// What kind of thing a name stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    File,
    Directory,
    Link,
    Fifo,
    Socket,
    Block { major: u32, minor: u32 },
    Character { major: u32, minor: u32 },
}

impl Kind {
    /// How overlayfs says "the lower layers' entry of this name is gone".
    pub(crate) const WHITEOUT: Self = Self::Character { major: 0, minor: 0 };
}

/// What is known of one name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status {
    pub(crate) kind: Kind,
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl Status {
    fn of(stat: &Stat) -> Self {
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Link,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::BlockDevice => Kind::Block { major, minor },
            FileType::CharacterDevice => Kind::Character { major, minor },
            _ => Kind::File,
        };
        Self { kind, device: stat.st_dev, inode: stat.st_ino }
    }
}

/// A moment: seconds and nanoseconds since 1970, the seconds negative before it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Moment {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

impl Moment {
    fn timestamps(self) -> Timestamps {
        let moment = Timespec { tv_sec: self.seconds, tv_nsec: self.nanoseconds.into() };
        Timestamps { last_access: moment, last_modification: moment }
    }
}

/// `Ok(false)` where the call found something of that name already.
fn made(result: rustix::io::Result<()>, call: &str, name: &OsStr) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(e) => Err(failed(format!("{call}({name:?})"), e)),
    }
}

/// What `name` is, `None` if there is nothing.
pub(crate) fn status(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Status>> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(Status::of(&stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(failed(format!("fstatat({name:?})"), e)),
    }
}

/// What an open file is.
pub(crate) fn status_of(file: BorrowedFd<'_>) -> Result<Status> {
    rustix::fs::fstat(file).map(|stat| Status::of(&stat)).map_err(|e| failed("fstat", e))
}

/// Makes a directory that only its owner may enter; `false` if the name is taken.
pub(crate) fn make_directory(directory: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
    // No umask takes the owner's bits away that matter here: they are set again when all is in.
    made(rustix::fs::mkdirat(directory, name, Mode::RWXU), "mkdirat", name)
}

/// Makes a regular file, open for writing, that only its owner may use; `None` if the name is taken.
pub(crate) fn make_file(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Option<File>> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(Some(fd.into())),
        Err(Errno::EXIST) => Ok(None),
        Err(e) => Err(failed(format!("openat({name:?}, O_CREAT)"), e)),
    }
}

/// Makes a symbolic link that says `target`, whatever that is; `false` if the name is taken.
pub(crate) fn make_link(target: &OsStr, directory: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
    made(rustix::fs::symlinkat(target, directory, name), "symlinkat", name)
}

/// Makes `name` another name of `source` in `from` (of a link itself, not of what it leads to); `false` if taken.
pub(crate) fn make_hard_link(
    from: BorrowedFd<'_>,
    source: &OsStr,
    directory: BorrowedFd<'_>,
    name: &OsStr,
) -> Result<bool> {
    made(rustix::fs::linkat(from, source, directory, name, AtFlags::empty()), "linkat", name)
}

/// Makes a fifo or a device node that nobody may use yet; `false` if the name is taken.
///
/// The kernel lets everybody make a [`Kind::WHITEOUT`], and nobody without `CAP_MKNOD` any other device.
pub(crate) fn make_node(kind: Kind, directory: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
    let (file_type, device) = match kind {
        Kind::Fifo => (FileType::Fifo, 0),
        Kind::Block { major, minor } => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
        Kind::Character { major, minor } => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
        Kind::File | Kind::Directory | Kind::Link | Kind::Socket => {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("mknodat({name:?}): {kind:?} is no node")));
        }
    };
    made(rustix::fs::mknodat(directory, name, file_type, Mode::empty(), device), "mknodat", name)
}

/// Opens a directory in a directory; a link to one is an error.
pub(crate) fn open_directory(directory: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
        .map_err(|e| failed(format!("openat({name:?}, O_DIRECTORY)"), e))
}

/// Opens the directory at `path` inside of a root, whatever links lead to it.
pub(crate) fn open_inside(root: &Root, path: &Path) -> Result<OwnedFd> {
    root.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
}

/// The same for looking at what the directory is like, which needs no right to read it.
pub(crate) fn look_inside(root: &Root, path: &Path) -> Result<OwnedFd> {
    root.open_at(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
}

/// Writes `bytes` at `offset`, all of them.
pub(crate) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset).map_err(|e| Error::from_io("pwrite", e))
}

/// Gives a file its length; what was not written is a hole.
pub(crate) fn set_length(file: &File, length: u64) -> Result<()> {
    rustix::fs::ftruncate(file, length).map_err(|e| failed(format!("ftruncate({length})"), e))
}

/// Changes the owner of an open file or directory. The kernel takes set-uid bits and capabilities away.
pub(crate) fn set_owner(file: BorrowedFd<'_>, owner: u32, group: u32) -> Result<()> {
    rustix::fs::fchown(file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(group)))
        .map_err(|e| failed(format!("fchown({owner}, {group})"), e))
}

/// Changes the owner of a name, of a link itself.
pub(crate) fn set_owner_at(directory: BorrowedFd<'_>, name: &OsStr, owner: u32, group: u32) -> Result<()> {
    let (user, users) = (Some(Uid::from_raw(owner)), Some(Gid::from_raw(group)));
    rustix::fs::chownat(directory, name, user, users, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| failed(format!("fchownat({name:?}, {owner}, {group})"), e))
}

/// Sets the permission bits, with the set-uid, set-gid and sticky bits.
pub(crate) fn set_mode(file: BorrowedFd<'_>, mode: u32) -> Result<()> {
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode)).map_err(|e| failed(format!("fchmod({mode:o})"), e))
}

/// Sets the permission bits of a node that the caller has just made in a directory of its own.
///
/// Not for links: the call would follow them.
pub(crate) fn set_mode_at(directory: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<()> {
    rustix::fs::chmodat(directory, name, Mode::from_raw_mode(mode), AtFlags::empty())
        .map_err(|e| failed(format!("fchmodat({name:?}, {mode:o})"), e))
}

/// Sets the times of an open file or directory.
pub(crate) fn set_times(file: BorrowedFd<'_>, modified: Moment) -> Result<()> {
    rustix::fs::futimens(file, &modified.timestamps()).map_err(|e| failed("futimens", e))
}

/// Sets the times of a name, of a link itself.
pub(crate) fn set_times_at(directory: BorrowedFd<'_>, name: &OsStr, modified: Moment) -> Result<()> {
    rustix::fs::utimensat(directory, name, &modified.timestamps(), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| failed(format!("utimensat({name:?})"), e))
}

/// Sets an extended attribute of an open file or directory.
pub(crate) fn set_attribute(file: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> Result<()> {
    rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()).map_err(|e| failed(format!("fsetxattr({name:?})"), e))
}

/// A short extended attribute (at most 256 bytes) of an open file or directory, `None` if it has none of that name.
pub(crate) fn attribute(file: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0; 256];
    match rustix::fs::fgetxattr(file, name, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        // EPERM: `trusted.*` seen by an ordinary user. EOPNOTSUPP: a file system without such attributes.
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(None),
        Err(e) => Err(failed(format!("fgetxattr({name:?})"), e)),
    }
}

/// The names in an open directory, without `.` and `..`, in the order of the file system;
/// `true` where the name is a directory.
pub(crate) fn entries(directory: BorrowedFd<'_>) -> Result<Vec<(OsString, bool)>> {
    let wrap = |e| failed("getdents64", e);
    rustix::fs::seek(directory, rustix::fs::SeekFrom::Start(0)).map_err(wrap)?;
    let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
    let mut reader = RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = reader.next() {
        let entry = entry.map_err(wrap)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let is_directory = match entry.file_type() {
            FileType::Unknown => status(directory, name)?.is_some_and(|s| s.kind == Kind::Directory),
            file_type => file_type == FileType::Directory,
        };
        names.push((name.to_owned(), is_directory));
    }
    Ok(names)
}

/// Removes `name`, with everything below it if it is a directory; nothing there is fine.
///
/// Copes with trees deeper than the process may open files, and with directories whose permission bits
/// shut their owner out. Goes on after an error, removes what it can, and returns the first error.
pub(crate) fn remove(directory: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(failed(format!("unlinkat({name:?})"), e)),
    }
    match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(e) => return Err(failed(format!("unlinkat({name:?}, AT_REMOVEDIR)"), e)),
    }
    let top = open_for_removal(directory, name)?;
    let mut moved = 0;
    let mut first = None;
    loop {
        let before = moved;
        empty(top.as_fd(), top.as_fd(), DEPTH, &mut moved, &mut first);
        // What was moved up may have been passed already by the reader of `top`.
        if moved == before {
            break;
        }
    }
    match (first, rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)) {
        (Some(error), _) => Err(error),
        (None, Ok(()) | Err(Errno::NOENT)) => Ok(()),
        (None, Err(e)) => Err(failed(format!("unlinkat({name:?}, AT_REMOVEDIR)"), e)),
    }
}

/// Each level holds one descriptor and one stack frame; what lies deeper is moved up first.
const DEPTH: u32 = 48;

fn empty(top: BorrowedFd<'_>, directory: BorrowedFd<'_>, depth: u32, moved: &mut u64, first: &mut Option<Error>) {
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            first.get_or_insert(error);
        }
    };
    let names = match entries(directory) {
        Ok(names) => names,
        Err(error) => return note(Err(error)),
    };
    for (name, is_directory) in names {
        if !is_directory {
            note(match rustix::fs::unlinkat(directory, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(e) => Err(failed(format!("unlinkat({name:?})"), e)),
            });
            continue;
        }
        if matches!(rustix::fs::unlinkat(directory, &name, AtFlags::REMOVEDIR), Ok(()) | Err(Errno::NOENT)) {
            continue;
        }
        let inner = match open_for_removal(directory, &name) {
            Ok(inner) => inner,
            Err(error) => {
                note(Err(error));
                continue;
            }
        };
        if depth == 0 {
            *moved += 1;
            let free = OsString::from_vec(format!(".removed-{}-{}", crate::sys::fs::unique(), *moved).into_bytes());
            if let Err(e) = rustix::fs::renameat(directory, &name, top, &free) {
                // Not counted, or the caller would come back for it without end.
                *moved -= 1;
                note(Err(failed(format!("renameat({name:?})"), e)));
            }
            continue;
        }
        let mut below = None;
        empty(top, inner.as_fd(), depth - 1, moved, &mut below);
        note(match (below, rustix::fs::unlinkat(directory, &name, AtFlags::REMOVEDIR)) {
            (Some(error), _) => Err(error),
            (None, Ok(())) => Ok(()),
            (None, Err(e)) => Err(failed(format!("unlinkat({name:?}, AT_REMOVEDIR)"), e)),
        });
    }
}

/// Opens a directory that is to be emptied, giving its owner the right to do so.
fn open_for_removal(directory: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    // Root needs no right; an ordinary user may have shut itself out, as overlayfs does with its `work/work`.
    if !rustix::process::geteuid().is_root() {
        if let Ok(stat) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && stat.st_mode & 0o700 != 0o700 {
                // If it is not ours, opening it says so.
                let _ = rustix::fs::chmodat(directory, name, Mode::RWXU, AtFlags::empty());
            }
        }
    }
    open_directory(directory, name)
}

/// Whether this process may keep owners, make device nodes and set trusted attributes: root with all
/// its rights outside of any user namespace.
pub(crate) fn privileged() -> bool {
    use rustix::thread::CapabilitySet;
    let wanted = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP
        | CapabilitySet::SYS_ADMIN;
    let holds = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted));
    holds && initial_user_namespace()
}

/// Whether this process's ids are the host's: inside another user namespace capabilities do not reach far.
pub(crate) fn initial_user_namespace() -> bool {
    let Ok(map) = crate::sys::fs::read_to_string(Path::new("/proc/self/uid_map")) else { return false };
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether an error number says that a name, a target or a size given for a tree cannot be, rather than
/// that the host lacks a right or room.
pub(crate) fn blames_the_entry(errno: i32) -> bool {
    let errno = Errno::from_raw_os_error(errno);
    matches!(
        errno,
        Errno::NAMETOOLONG | Errno::LOOP | Errno::NOTDIR | Errno::ISDIR | Errno::NOENT | Errno::FBIG | Errno::MLINK
    ) || matches!(errno, Errno::INVAL | Errno::OVERFLOW | Errno::TOOBIG | Errno::RANGE | Errno::XDEV)
}

/// A name for the kernel; `None` if it has a NUL in it.
pub(crate) fn name(bytes: &[u8]) -> Option<&OsStr> {
    (!bytes.contains(&0)).then(|| OsStr::from_bytes(bytes))
}

/// Gives the link `name` in `to` the times and, where this process may, the owner of the one in `from`.
pub(crate) fn copy_link_description(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| failed(format!("fstatat({name:?})"), e))?;
    match set_owner_at(to, name, stat.st_uid, stat.st_gid) {
        // As with directories.
        Err(e) if !matches!(e.errno(), Some(libc::EPERM | libc::EINVAL)) => return Err(e),
        _ => {}
    }
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    set_times_at(to, name, Moment { seconds: stat.st_mtime, nanoseconds })
}

/// Gives the directory `to` the mode, the times and, where this process may, the owner of the directory `from`.
pub(crate) fn copy_description(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let stat = rustix::fs::fstat(from).map_err(|e| failed("fstat", e))?;
    match rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid))) {
        // An ordinary user's layers belong to that user, whatever their root says.
        Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
        Err(e) => return Err(failed("fchown", e)),
    }
    set_mode(to, stat.st_mode & 0o7777)?;
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    set_times(to, Moment { seconds: stat.st_mtime, nanoseconds })
}
