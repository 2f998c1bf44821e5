//! The system calls of a container's start, as steps of a program for the stub.
//!
//! Each function says one call with its arguments in the kernel's order; none of them makes the call here.

mod mount;

pub(crate) use mount::{Attributes, Travel};

use super::program::{Argument, Jump, OnError, Program, Register};
use super::seccomp::{FLAG_NEW_LISTENER, FLAG_WAIT_KILLABLE_RECV};
use crate::error::Result;
use std::path::Path;

use OnError::{AllowAbsent, AllowExisting, Fail, GoOn, Search};

/// Where a path starts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At {
    /// The working directory; absolute paths do not care.
    Cwd,
    /// An open directory or mount.
    Open(Argument),
}

impl From<Register> for At {
    fn from(register: Register) -> Self {
        Self::Open(register.into())
    }
}

impl From<At> for Argument {
    fn from(at: At) -> Self {
        match at {
            At::Cwd => libc::AT_FDCWD.into(),
            At::Open(open) => open,
        }
    }
}

/// A prepared `struct msghdr`.
#[derive(Debug)]
pub(crate) struct Message(u64);

const RECURSIVE: u32 = libc::AT_RECURSIVE.cast_unsigned();
const EMPTY_PATH: u32 = libc::AT_EMPTY_PATH.cast_unsigned();
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const RESOLVE_IN_ROOT: u64 = 0x10;
const FLAGS_PATH: i32 = libc::O_PATH | libc::O_CLOEXEC;

fn flags(value: i32) -> u64 {
    value.cast_unsigned().into()
}

impl Program<'_> {
    // Files.

    /// `umask(2)`.
    pub(crate) fn umask(&mut self, mask: u32) {
        self.call(libc::SYS_umask, Fail, &[mask.into()]);
    }

    /// `openat2(2)` with `O_PATH`, resolved inside the directory `at`, links and all.
    pub(crate) fn open_path_in(&mut self, at: At, path: impl AsRef<[u8]>, directory: bool) -> Result<Register> {
        let bits = if directory { FLAGS_PATH | libc::O_DIRECTORY } else { FLAGS_PATH };
        self.open_in(at, path, bits, 0, Fail)
    }

    /// Makes a file inside the directory `at` if it is not there, and opens it for writing.
    pub(crate) fn create_file_in(&mut self, at: At, path: impl AsRef<[u8]>, mode: u32) -> Result<Register> {
        let bits = libc::O_CREAT | libc::O_WRONLY | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
        self.open_in(at, path, bits, mode, Fail)
    }

    /// Opens a file inside the directory `at` for reading and writing.
    pub(crate) fn open_read_write_in(&mut self, at: At, path: &str) -> Result<Register> {
        self.open_in(at, path, libc::O_RDWR | libc::O_CLOEXEC | libc::O_NOFOLLOW, 0, Fail)
    }

    /// `fcntl(2)`, `F_OFD_SETLK`: a write lock on `length` bytes from `start`, as long as a copy of the descriptor is open.
    pub(crate) fn lock(&mut self, file: impl Into<Argument>, (start, length): (u64, u64)) {
        // struct flock: l_type and l_whence (from the beginning) in the first word, l_pid in the last.
        let write = u64::from(libc::F_WRLCK.unsigned_abs());
        let structure = self.words(&[write, start, length, 0]);
        self.call(libc::SYS_fcntl, Fail, &[file.into(), libc::F_OFD_SETLK.into(), structure.into()]);
    }

    /// Makes a file that must not be there yet, and opens it for writing.
    pub(crate) fn create_new_file(&mut self, at: At, path: &str, mode: u32) -> Result<Register> {
        self.open_in(at, path, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_CLOEXEC, mode, Fail)
    }

    fn open_in(&mut self, at: At, path: impl AsRef<[u8]>, bits: i32, mode: u32, on_error: OnError) -> Result<Register> {
        let (file, path) = (self.register()?, self.text(path)?);
        // struct open_how: flags, mode, resolve
        let how = self.words(&[flags(bits), mode.into(), RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS]);
        self.call_into(file, libc::SYS_openat2, on_error, &[at.into(), path.into(), how.into(), 24_u64.into()]);
        Ok(file)
    }

    /// Opens a directory of the host's tree by its path, for later mounts.
    pub(crate) fn open_path(&mut self, path: &Path) -> Result<Register> {
        use std::os::unix::ffi::OsStrExt;
        let (file, path) = (self.register()?, self.text(path.as_os_str().as_bytes())?);
        let arguments = [At::Cwd.into(), path.into(), flags(FLAGS_PATH).into()];
        self.call_into(file, libc::SYS_openat, Fail, &arguments);
        Ok(file)
    }

    /// Writes `bytes` to a file of procfs or sysfs, in one `write(2)`.
    pub(crate) fn write_file(&mut self, at: At, path: &str, bytes: &[u8]) -> Result<()> {
        let (file, path, length) = (self.register()?, self.text(path)?, bytes.len() as u64);
        let arguments = [at.into(), path.into(), flags(libc::O_WRONLY | libc::O_CLOEXEC).into()];
        self.call_into(file, libc::SYS_openat, Fail, &arguments);
        let bytes = self.bytes(bytes);
        self.call(libc::SYS_write, Fail, &[file.into(), bytes.into(), length.into()]);
        self.close(file);
        Ok(())
    }

    /// `write(2)` of all `bytes`, which the kernel takes at once on a file system in memory.
    pub(crate) fn write(&mut self, file: impl Into<Argument>, bytes: &[u8]) {
        let length = bytes.len() as u64;
        let bytes = self.bytes(bytes);
        self.call(libc::SYS_write, Fail, &[file.into(), bytes.into(), length.into()]);
    }

    /// `read(2)` of at most one byte: waits until the other end says something.
    pub(crate) fn await_byte(&mut self, file: Argument) {
        let space = self.space(8);
        self.call(libc::SYS_read, Fail, &[file, space.into(), 1_u64.into()]);
        // Nothing came but the end: the parent is gone. Then there is nobody to start for.
        self.expect(space, b'G', libc::EPIPE);
    }

    /// `close(2)`.
    pub(crate) fn close(&mut self, file: impl Into<Argument>) {
        self.call(libc::SYS_close, Fail, &[file.into()]);
    }

    /// `close(2)` of a number that may not be open.
    pub(crate) fn close_if_open(&mut self, file: i32) {
        self.call(libc::SYS_close, GoOn, &[file.into()]);
    }

    /// `mkdirat(2)`; a directory that is there already is fine.
    pub(crate) fn mkdir(&mut self, at: At, path: impl AsRef<[u8]>, mode: u32) -> Result<()> {
        let path = self.text(path)?;
        self.call(libc::SYS_mkdirat, AllowExisting, &[at.into(), path.into(), mode.into()]);
        Ok(())
    }

    /// `mknodat(2)` of a device.
    pub(crate) fn mknod(&mut self, at: At, path: &str, block: bool, mode: u32, numbers: (u32, u32)) -> Result<()> {
        let path = self.text(path)?;
        let device = libc::makedev(numbers.0, numbers.1);
        let kind = if block { libc::S_IFBLK } else { libc::S_IFCHR };
        self.call(libc::SYS_mknodat, Fail, &[at.into(), path.into(), (kind | mode).into(), device.into()]);
        Ok(())
    }

    /// Makes an empty regular file by `mknodat(2)`; one that is there already is fine.
    pub(crate) fn touch(&mut self, at: At, path: &str, mode: u32) -> Result<()> {
        let path = self.text(path)?;
        let arguments = [at.into(), path.into(), (libc::S_IFREG | mode).into(), 0_u64.into()];
        self.call(libc::SYS_mknodat, AllowExisting, &arguments);
        Ok(())
    }

    /// `fchownat(2)`.
    pub(crate) fn chown(&mut self, at: At, path: &str, user: u32, group: u32) -> Result<()> {
        let path = self.text(path)?;
        self.call(libc::SYS_fchownat, Fail, &[at.into(), path.into(), user.into(), group.into(), 0_u64.into()]);
        Ok(())
    }

    /// `symlinkat(2)`; a name that is there already is left as it is.
    pub(crate) fn symlink(&mut self, target: impl AsRef<[u8]>, at: At, path: impl AsRef<[u8]>) -> Result<()> {
        let (target, path) = (self.text(target)?, self.text(path)?);
        self.call(libc::SYS_symlinkat, AllowExisting, &[target.into(), at.into(), path.into()]);
        Ok(())
    }

    /// `unlinkat(2)`; a name that is not there is fine.
    pub(crate) fn unlink(&mut self, at: At, path: &str) -> Result<()> {
        let path = self.text(path)?;
        self.call(libc::SYS_unlinkat, AllowAbsent, &[at.into(), path.into(), 0_u64.into()]);
        Ok(())
    }

    /// `unlinkat(2)`, whether it succeeds or not.
    pub(crate) fn unlink_if_possible(&mut self, path: &str) -> Result<()> {
        let path = self.text(path)?;
        self.call(libc::SYS_unlinkat, GoOn, &[At::Cwd.into(), path.into(), 0_u64.into()]);
        Ok(())
    }

    /// `chdir(2)`.
    pub(crate) fn chdir(&mut self, path: &str) -> Result<()> {
        let path = self.text(path)?;
        self.call(libc::SYS_chdir, Fail, &[path.into()]);
        Ok(())
    }

    /// Enters a directory through no magic link, and makes sure that it has a name here.
    pub(crate) fn enter_directory(&mut self, path: &str) -> Result<()> {
        let directory = self.open_in(At::Cwd, path, libc::O_PATH | libc::O_CLOEXEC | libc::O_DIRECTORY, 0, Fail)?;
        self.call(libc::SYS_fchdir, Fail, &[directory.into()]);
        let name = self.space(libc::PATH_MAX.unsigned_abs() as usize);
        self.call(libc::SYS_getcwd, Fail, &[name.into(), libc::PATH_MAX.into()]);
        // For a directory outside of the root the kernel says "(unreachable)/…".
        self.expect(name, b'/', libc::ENOENT);
        self.close(directory);
        Ok(())
    }

    // Namespaces and identity.

    /// `unshare(2)`.
    pub(crate) fn unshare(&mut self, namespaces: u64) {
        self.call(libc::SYS_unshare, Fail, &[namespaces.into()]);
    }

    /// `pidfd_open(2)` of a child that has not been collected.
    pub(crate) fn open_process(&mut self, child: Register) -> Result<Register> {
        let process = self.register()?;
        self.call_into(process, libc::SYS_pidfd_open, Fail, &[child.into(), 0_u64.into()]);
        Ok(process)
    }

    /// `setns(2)`.
    pub(crate) fn setns(&mut self, namespace: Argument, kinds: u64) {
        self.call(libc::SYS_setns, Fail, &[namespace, kinds.into()]);
    }

    /// `setsid(2)`.
    pub(crate) fn setsid(&mut self) {
        self.call(libc::SYS_setsid, Fail, &[]);
    }

    /// `sethostname(2)`.
    pub(crate) fn sethostname(&mut self, name: &str) {
        let length = name.len() as u64;
        let name = self.bytes(name.as_bytes());
        self.call(libc::SYS_sethostname, Fail, &[name.into(), length.into()]);
    }

    /// Brings the loopback interface up.
    pub(crate) fn loopback_up(&mut self) -> Result<()> {
        let socket = self.register()?;
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        self.call_into(socket, libc::SYS_socket, Fail, &[libc::AF_INET.into(), kind.into(), 0_u64.into()]);
        // struct ifreq: a name of 16 bytes, then the flags.
        let mut request = [0_u8; 40];
        request[..2].copy_from_slice(b"lo");
        request[16] = 0x41; // IFF_UP | IFF_RUNNING
        let request = self.bytes(&request);
        self.call(libc::SYS_ioctl, Fail, &[socket.into(), libc::SIOCSIFFLAGS.into(), request.into()]);
        self.close(socket);
        Ok(())
    }

    /// `setresgid(2)` and `setresuid(2)`; without `groups` the supplementary groups stay.
    pub(crate) fn become_user(&mut self, user: u32, group: u32, groups: Option<&[u32]>) {
        if let Some(groups) = groups {
            let bytes: Vec<u8> = groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
            let list = self.bytes(&bytes);
            self.call(libc::SYS_setgroups, Fail, &[(groups.len() as u64).into(), list.into()]);
        }
        self.call(libc::SYS_setresgid, Fail, &[group.into(), group.into(), group.into()]);
        self.call(libc::SYS_setresuid, Fail, &[user.into(), user.into(), user.into()]);
    }

    /// Takes every capability out of the bounding set but those in `keep`.
    pub(crate) fn limit_bounding_set(&mut self, keep: u64, last: u32) {
        for capability in 0..=last {
            if keep & (1 << capability) == 0 {
                self.prctl(libc::PR_CAPBSET_DROP, capability.into());
            }
        }
    }

    /// Sets effective and permitted capabilities to `mask`, and the inheritable to none.
    pub(crate) fn set_capabilities(&mut self, mask: u64) {
        let low = mask & 0xffff_ffff;
        let high = mask >> 32;
        let header = self.words(&[0x2008_0522]); // _LINUX_CAPABILITY_VERSION_3, this process
        // effective, permitted, inheritable: of the lower 32, then of the upper
        let data: Vec<u8> = [low, low, 0, high, high, 0]
            .iter()
            .flat_map(|word| u32::try_from(*word).unwrap_or_default().to_ne_bytes())
            .collect();
        let data = self.bytes(&data);
        self.call(libc::SYS_capset, Fail, &[header.into(), data.into()]);
    }

    fn prctl(&mut self, option: i32, value: u64) {
        let zero = 0_u64.into();
        self.call(libc::SYS_prctl, Fail, &[option.into(), value.into(), zero, zero, zero]);
    }

    /// Keeps permitted capabilities over the next change of user.
    pub(crate) fn keep_capabilities(&mut self) {
        self.prctl(libc::PR_SET_KEEPCAPS, 1);
    }

    /// `PR_SET_NO_NEW_PRIVS`.
    pub(crate) fn no_new_privileges(&mut self) {
        self.prctl(libc::PR_SET_NO_NEW_PRIVS, 1);
    }

    /// Nobody without `CAP_SYS_PTRACE` may look into this process.
    pub(crate) fn not_dumpable(&mut self) {
        self.prctl(libc::PR_SET_DUMPABLE, 0);
    }

    /// The name in `ps`.
    pub(crate) fn set_name(&mut self, name: &str) -> Result<()> {
        let name = self.text(name)?;
        self.prctl(libc::PR_SET_NAME, name);
        Ok(())
    }

    /// `prlimit64(2)` on itself; `resource` is a `RLIMIT_` number.
    pub(crate) fn set_resource_limit(&mut self, resource: u32, soft: u64, hard: u64) {
        let limit = self.words(&[soft, hard]);
        self.call(libc::SYS_prlimit64, Fail, &[0_u64.into(), resource.into(), limit.into(), 0_u64.into()]);
    }

    /// Loads a filter: pairs of instruction words as `struct sock_filter` has them.
    pub(crate) fn load_filter(&mut self, instructions: &[u64]) {
        let filter = self.words(instructions);
        let structure = self.words(&[instructions.len() as u64, filter]); // struct sock_fprog
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        self.call(libc::SYS_seccomp, Fail, &[mode.into(), 0_u64.into(), structure.into()]);
    }

    /// `seccomp(2)` with a listener, which is sent over `socket` in a message tagged `tag`. If the kernel gives none, as
    /// when another filter of the process has one, the filter is not loaded and nothing is sent.
    pub(crate) fn load_listened_filter(&mut self, instructions: &[u64], socket: Argument, tag: u8) -> Result<()> {
        let filter = self.words(instructions);
        let structure = self.words(&[instructions.len() as u64, filter]); // struct sock_fprog
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        let listener = self.register()?;
        // Since Linux 5.19 a signal that can be handled does not end the call that waits, which might be answered already.
        let patient = FLAG_NEW_LISTENER | FLAG_WAIT_KILLABLE_RECV;
        self.call_into(listener, libc::SYS_seccomp, GoOn, &[mode.into(), patient.into(), structure.into()]);
        let refused = self.if_failed(listener);
        let loaded = self.jump();
        self.land(refused);
        self.call_into(listener, libc::SYS_seccomp, GoOn, &[mode.into(), FLAG_NEW_LISTENER.into(), structure.into()]);
        let absent = self.if_failed(listener);
        self.land(loaded);
        let (message, slot) = self.descriptor_message(tag);
        self.store(slot, listener);
        self.send(socket, &message);
        self.close(listener);
        self.land(absent);
        self.release(listener);
        Ok(())
    }

    /// Lets every signal through.
    pub(crate) fn unblock_signals(&mut self) {
        let none = self.words(&[0]);
        let arguments = [libc::SIG_SETMASK.into(), none.into(), 0_u64.into(), 8_u64.into()];
        self.call(libc::SYS_rt_sigprocmask, Fail, &arguments);
    }

    // Descriptors and the application.

    /// `dup3(2)`, not close-on-exec; the numbers differ, since inherited ones are never below 3.
    pub(crate) fn duplicate(&mut self, from: impl Into<Argument>, to: i32) {
        self.call(libc::SYS_dup3, Fail, &[from.into(), to.into(), 0_u64.into()]);
    }

    /// A copy of a descriptor that the executed program has too, at a number that it does not expect anything at.
    pub(crate) fn hand_down(&mut self, from: Argument) {
        // Above what a program may close by itself because it was always free so far.
        self.call(libc::SYS_fcntl, Fail, &[from, libc::F_DUPFD.into(), 200_u64.into()]);
    }

    /// Marks every descriptor from 3 up close-on-exec.
    pub(crate) fn close_on_exec_all(&mut self) {
        self.call(libc::SYS_close_range, Fail, &[3_u64.into(), u64::from(u32::MAX).into(), 4_u64.into()]);
    }

    /// A message of one byte and one descriptor, for a Unix socket; the second address is where the descriptor's
    /// number belongs.
    pub(crate) fn descriptor_message(&mut self, tag: u8) -> (Message, u64) {
        let tag = self.bytes(&[tag]);
        let iov = self.words(&[tag, 1]);
        // struct cmsghdr: length 20, SOL_SOCKET, SCM_RIGHTS, then the descriptor.
        let mut control = [0_u8; 24];
        control[0] = 20;
        control[8] = 1;
        control[12] = 1;
        let control = self.bytes(&control);
        // struct msghdr: name, its length, iov, count, control, its length, flags.
        (Message(self.words(&[0, 0, iov, 1, control, 24, 0])), control + 16)
    }

    /// `sendmsg(2)`.
    pub(crate) fn send(&mut self, socket: Argument, message: &Message) {
        self.call(libc::SYS_sendmsg, Fail, &[socket, message.0.into(), flags(libc::MSG_NOSIGNAL).into()]);
    }

    /// Opens a new terminal of the container's devpts; the master and the slave.
    pub(crate) fn open_terminal(&mut self, size: (u16, u16)) -> Result<(Register, Register)> {
        let (master, slave) = (self.register()?, self.register()?);
        let path = self.text("/dev/pts/ptmx")?;
        let bits = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        self.call_into(master, libc::SYS_openat, Fail, &[At::Cwd.into(), path.into(), bits.into()]);
        let unlock = self.words(&[0]);
        self.call(libc::SYS_ioctl, Fail, &[master.into(), 0x4004_5431_u64.into(), unlock.into()]); // TIOCSPTLCK
        let size = self.words(&[u64::from(size.0) | u64::from(size.1) << 16]); // struct winsize: rows, columns
        self.call(libc::SYS_ioctl, Fail, &[master.into(), libc::TIOCSWINSZ.into(), size.into()]);
        self.call_into(slave, libc::SYS_ioctl, Fail, &[master.into(), libc::TIOCGPTPEER.into(), bits.into()]);
        Ok((master, slave))
    }

    /// Makes the terminal in `slave` the session's own.
    pub(crate) fn take_terminal(&mut self, slave: Register) {
        self.call(libc::SYS_ioctl, Fail, &[slave.into(), libc::TIOCSCTTY.into(), 0_u64.into()]);
    }

    /// `execve(2)` of the first of `candidates` that can be executed.
    pub(crate) fn execute(&mut self, candidates: &[String], argv: &[String], envp: &[String]) -> Result<()> {
        let (argv, envp) = (self.texts(argv)?, self.texts(envp)?);
        for candidate in candidates {
            let path = self.text(candidate)?;
            self.call(libc::SYS_execve, Search, &[path.into(), argv.into(), envp.into()]);
        }
        self.fail(libc::ENOENT);
        Ok(())
    }

    /// What follows up to where the jump lands happens only if `register` is no error.
    pub(crate) fn unless_failed(&mut self, register: Register) -> Jump {
        self.if_failed(register)
    }
}

/// The flags of the namespaces, for `clone3`, `unshare` and `setns`.
pub(crate) mod namespace {
    pub(crate) const CGROUP: u64 = 0x0200_0000;
    pub(crate) const IPC: u64 = 0x0800_0000;
    pub(crate) const MOUNT: u64 = 0x0002_0000;
    pub(crate) const NETWORK: u64 = 0x4000_0000;
    pub(crate) const PID: u64 = 0x2000_0000;
    pub(crate) const TIME: u64 = 0x0000_0080;
    pub(crate) const USER: u64 = 0x1000_0000;
    pub(crate) const UTS: u64 = 0x0400_0000;
}
