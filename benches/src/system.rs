//! The few calls that the standard library lacks.

use crate::Result;
use std::ffi::CString;
use std::path::Path;
use std::time::Duration;

/// User and system time so far, of this process and of the children that it waited for.
pub fn cpu_time() -> Duration {
    usage(libc::RUSAGE_SELF) + usage(libc::RUSAGE_CHILDREN)
}

fn usage(who: libc::c_int) -> Duration {
    // SAFETY: the structure is plain numbers, for which zeros are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid place for the answer.
    if unsafe { libc::getrusage(who, &mut usage) } != 0 {
        return Duration::ZERO;
    }
    let duration = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    duration(usage.ru_utime) + duration(usage.ru_stime)
}

/// Gives this process a mount namespace of its own, so that nothing mounted here is seen outside or stays.
pub fn private_mounts() -> Result<()> {
    // SAFETY: takes a number.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(last("unshare(CLONE_NEWNS)"));
    }
    call_mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_PRIVATE, "")
}

/// Mounts a file system.
pub fn mount(source: &str, target: &Path, kind: &str, options: &str) -> Result<()> {
    call_mount(Some(source), target, Some(kind), 0, options)
}

fn call_mount(
    source: Option<&str>,
    target: &Path,
    kind: Option<&str>,
    flags: libc::c_ulong,
    options: &str,
) -> Result<()> {
    let string = |text: &str| CString::new(text).map_err(|e| e.to_string());
    let (source, kind) = (source.map(string).transpose()?, kind.map(string).transpose()?);
    let (target_string, options) = (string(&target.to_string_lossy())?, string(options)?);
    let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: all strings live until the call returns.
    let result = unsafe {
        libc::mount(pointer(&source), target_string.as_ptr(), pointer(&kind), flags, options.as_ptr().cast())
    };
    if result != 0 {
        return Err(last(&format!("mount({target:?})")));
    }
    Ok(())
}

/// Unmounts what is at `target`.
pub fn unmount(target: &Path) -> Result<()> {
    let path = CString::new(target.to_string_lossy().as_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: `path` lives until the call returns.
    if unsafe { libc::umount2(path.as_ptr(), 0) } != 0 {
        return Err(last(&format!("umount2({target:?})")));
    }
    Ok(())
}

/// Memory that is touched, page by page, in small pages: what a fork would have to copy the tables of.
pub fn touch(bytes: usize) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at a place that the kernel chooses; it stays until the process ends.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(last("mmap"));
    }
    // SAFETY: the range is the mapping just made.
    unsafe { libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE) };
    for offset in (0..bytes).step_by(4096) {
        // SAFETY: the offset is within the mapping.
        let byte = unsafe { start.cast::<u8>().add(offset) };
        // SAFETY: the byte is within the mapping, to which nothing else refers.
        unsafe { byte.write_volatile(1) };
    }
    Ok(())
}

fn last(call: &str) -> String {
    format!("{call}: {}", std::io::Error::last_os_error())
}

/// Makes the standard library fork to start `command`, as it does when there is work for the child.
pub fn force_fork(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: the closure does nothing at all.
    unsafe { command.pre_exec(|| Ok(())) };
}

/// A file without a name.
pub fn memory_file() -> Result<std::fs::File> {
    use std::os::fd::FromRawFd;
    // SAFETY: the name is a string that ends with a zero.
    let fd = unsafe { libc::memfd_create(c"errors".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(last("memfd_create"));
    }
    // SAFETY: the descriptor was just made and nothing else has it.
    Ok(unsafe { std::fs::File::from_raw_fd(fd) })
}

/// Has the kernel kill the process of `command` when the thread that starts it ends.
pub fn die_with_parent(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let ask = || {
        // SAFETY: takes numbers, and is a system call alone, as a child of a fork may make.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(ask) };
}

/// Raises the limit on open files of this process as far as it may; how many those are.
pub fn raise_open_files() -> Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(last("getrlimit(RLIMIT_NOFILE)"));
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: reads `limit`, which is valid.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(last("setrlimit(RLIMIT_NOFILE)"));
    }
    Ok(limit.rlim_cur)
}
