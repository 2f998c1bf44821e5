//! Questions to the kernel that change nothing: whether it has a call, and who is asking.
#![allow(unsafe_code, reason = "calls that no crate wraps, made with arguments that the kernel refuses")]

use nix::errno::Errno;

/// A system call whose presence is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    /// `clone3(2)`.
    Clone3,
    /// `fsopen(2)`, and with it the rest of the new mount calls.
    FsOpen,
    /// `mount_setattr(2)`.
    MountSetattr,
    /// `landlock_create_ruleset(2)`; it answers with the version of its interface.
    Landlock,
    /// `fanotify_init(2)` for events that come before a file's contents are read.
    FanotifyPreContent,
}

/// Whether the kernel has the call and lets this process make it; the answer is the call's own number.
///
/// The arguments are such that nothing happens: a null pointer, or a size of 0.
pub(crate) fn answer(call: Call) -> Result<i64, Errno> {
    let (number, arguments): (libc::c_long, [libc::c_long; 3]) = match call {
        Call::Clone3 => (libc::SYS_clone3, [0, 0, 0]),
        Call::FsOpen => (libc::SYS_fsopen, [0, 0, 0]),
        Call::MountSetattr => (libc::SYS_mount_setattr, [-1, 0, 0]),
        // The flag LANDLOCK_CREATE_RULESET_VERSION asks for the version and makes no rule set.
        Call::Landlock => (libc::SYS_landlock_create_ruleset, [0, 0, 1]),
        // An undefined flag beside the class: a kernel that knows the call says so before making anything.
        Call::FanotifyPreContent => (libc::SYS_fanotify_init, [i64::from(libc::FAN_CLASS_PRE_CONTENT) | 1 << 30, 0, 0]),
    };
    let [first, second, third] = arguments;
    // SAFETY: no argument is a valid pointer or a size other than 0, so the kernel reads and writes no memory.
    let answer = unsafe { libc::syscall(number, first, second, third) };
    Errno::result(answer)
}

/// Whether the call is there: it complained of its arguments, or of the lack of a privilege.
pub(crate) fn has(call: Call) -> bool {
    !matches!(answer(call), Err(Errno::ENOSYS))
}

/// The kernel's release, as in `6.12.5-amd64`.
pub(crate) fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The effective user of this process.
pub(crate) fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether a process can be held by a descriptor.
pub(crate) fn has_pidfd() -> bool {
    rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_is_answered_and_makes_nothing() {
        for call in [Call::Clone3, Call::FsOpen, Call::MountSetattr, Call::FanotifyPreContent] {
            assert!(answer(call).is_err(), "{call:?} must not succeed");
        }
        // Every kernel that is supported has these.
        assert!(has(Call::Clone3) && has(Call::FsOpen) && has(Call::MountSetattr));
        assert!(has_pidfd());
    }
}
