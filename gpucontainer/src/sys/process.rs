//! Processes by descriptor, and the channels to a started one.

#![allow(unsafe_code, reason = "descriptors that arrive in messages, and an ioctl that no crate has")]

use super::errno::{failed, failed_nix};
use crate::error::{Error, ErrorKind, Result};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// A pidfd of the calling process.
pub(crate) fn own_pidfd() -> Result<OwnedFd> {
    pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).map_err(|e| failed("pidfd_open(own process)", e))
}

/// The calling process's id, which a fork changes.
pub(crate) fn own_pid() -> u32 {
    std::process::id()
}

/// The time since the system started, suspended or not: no setting of the clock changes it, and no time namespace.
pub(crate) fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let nanoseconds = i128::from(now.tv_sec) * SECOND + i128::from(now.tv_nsec) - boot_offset();
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or_default())
}

const SECOND: i128 = 1_000_000_000;

/// How far the time namespace of this process has moved its clock away from the host's, in nanoseconds.
fn boot_offset() -> i128 {
    use super::fs::{read_link, read_to_string};
    let link = |name: &str| read_link(format!("/proc/self/ns/{name}").as_ref()).ok();
    let offset = parse_boot_offset(&read_to_string("/proc/self/timens_offsets".as_ref()).unwrap_or_default());
    // The file is about the namespace of children to come, which may be another one.
    if offset == 0 || link("time") != link("time_for_children") { 0 } else { offset }
}

/// From lines of a clock's name, seconds and nanoseconds.
fn parse_boot_offset(text: &str) -> i128 {
    let offset = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("boottime")).then_some(())?;
        let mut number = || words.next()?.parse::<i64>().ok();
        Some(i128::from(number()?) * SECOND + i128::from(number()?))
    };
    text.lines().find_map(offset).unwrap_or_default()
}

/// Two connected sockets that keep message boundaries.
pub(crate) fn socket_pair() -> Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|e| failed("socketpair", e))
}

/// A pipe: reading end, writing end.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed("pipe2", e))
}

/// A file in memory to be read from its beginning. Who reads it needs nobody to close anything.
pub(crate) fn memory_file(bytes: &[u8]) -> Result<OwnedFd> {
    use std::os::unix::fs::FileExt;
    let file = rustix::fs::memfd_create("gpucontainer-input", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|e| failed("memfd_create(input)", e))?;
    let file = std::fs::File::from(file);
    file.write_all_at(bytes, 0).map_err(|e| Error::from_io("write(input)", e))?;
    Ok(file.into())
}

/// What somebody has written to a file in memory, from its beginning.
pub(crate) fn memory_text(file: &OwnedFd) -> Result<String> {
    let mut bytes = vec![0_u8; 4096];
    let length = rustix::io::pread(file, &mut bytes[..], 0).map_err(|e| failed("pread(memory file)", e))?;
    bytes.truncate(length);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What is in a pipe now, whoever may write more.
pub(crate) fn read_now(pipe: &OwnedFd) -> Result<Vec<u8>> {
    rustix::io::ioctl_fionbio(pipe, true).map_err(|e| failed("ioctl(pipe, FIONBIO)", e))?;
    let (mut bytes, mut buffer) = (Vec::new(), [0_u8; 4096]);
    loop {
        match rustix::io::read(pipe, &mut buffer[..]) {
            Ok(0) | Err(Errno::AGAIN) => return Ok(bytes),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(Errno::INTR) => {}
            Err(e) => return Err(failed("read(pipe)", e)),
        }
    }
}

/// Another descriptor of the same open file.
pub(crate) fn duplicate(fd: impl AsFd) -> Result<OwnedFd> {
    duplicate_above(fd, 3)
}

/// Another descriptor of the same open file, whose number is `lowest` or higher.
pub(crate) fn duplicate_above(fd: impl AsFd, lowest: i32) -> Result<OwnedFd> {
    let fd = fd.as_fd();
    rustix::io::fcntl_dupfd_cloexec(fd, lowest)
        .map_err(|e| failed(format!("fcntl({}, F_DUPFD_CLOEXEC)", fd.as_raw_fd()), e))
}

/// A copy of what another process has open under a number. Needs the right to trace that process.
pub(crate) fn take_descriptor(pid: u32, number: i32) -> Result<OwnedFd> {
    use rustix::process::{ForeignRawFd, Pid, PidfdGetfdFlags, pidfd_getfd};
    let named = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let named = named.ok_or_else(|| Error::from_errno(format!("pidfd_open({pid})"), libc::ESRCH))?;
    let pidfd = pidfd_open(named, PidfdFlags::empty()).map_err(|e| failed(format!("pidfd_open({pid})"), e))?;
    let number: ForeignRawFd = number;
    pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty())
        .map_err(|e| failed(format!("pidfd_getfd({pid}, {number})"), e))
}

/// Writes one message to a socket. A peer that is gone is no error: it needs no word any more.
pub(crate) fn tell(socket: impl AsFd, message: &[u8]) -> Result<()> {
    loop {
        match rustix::net::send(&socket, message, rustix::net::SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(failed("send(control)", e)),
        }
    }
}

/// Writes one message to a socket, with a copy of a descriptor if one is given, without waiting for a peer that has let
/// many lie. A peer that is gone is no error.
pub(crate) fn hand(socket: impl AsFd, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<()> {
    use nix::errno::Errno;
    let number = descriptor.map(|descriptor| [descriptor.as_raw_fd()]);
    let rights: Vec<ControlMessage<'_>> = number.iter().map(|number| ControlMessage::ScmRights(number)).collect();
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    loop {
        match sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(message)], &rights, flags, None) {
            Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(failed_nix("sendmsg(control)", e)),
        }
    }
}

/// Receives one message of one byte with a descriptor; `None` when the other end is closed.
pub(crate) fn receive_descriptor(socket: impl AsFd) -> Result<Option<(u8, OwnedFd)>> {
    let mut tag = [0_u8; 1];
    let mut iov = [IoSliceMut::new(&mut tag)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let number = socket.as_fd().as_raw_fd();
    let received = loop {
        match recvmsg::<()>(number, &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::ECONNRESET) => return Ok(None),
            other => break other.map_err(|e| failed_nix("recvmsg(control)", e))?,
        }
    };
    let mut descriptor = None;
    for message in received.cmsgs().map_err(|e| failed_nix("recvmsg(control)", e))? {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            // SAFETY: the kernel made these descriptors for this message, and nobody else has seen them yet.
            descriptor = numbers.first().map(|number| unsafe { OwnedFd::from_raw_fd(*number) });
        }
    }
    Ok(descriptor.map(|fd| (tag[0], fd)))
}

/// Takes one short message from a socket; one whose other end is closed has none.
pub(crate) fn receive_word(socket: impl AsFd) -> Result<()> {
    loop {
        match rustix::net::recv(&socket, &mut [0_u8; 8], rustix::net::RecvFlags::empty()) {
            Ok(_) | Err(Errno::CONNRESET) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(failed("recv(word)", e)),
        }
    }
}

/// The byte that waits in a socket, or nothing.
pub(crate) fn word_now(socket: impl AsFd) -> Result<Option<u8>> {
    let mut word = [0_u8; 1];
    loop {
        match rustix::net::recv(&socket, &mut word, rustix::net::RecvFlags::DONTWAIT) {
            Ok((0, _)) | Err(Errno::AGAIN | Errno::CONNRESET) => return Ok(None),
            Ok(_) => return Ok(Some(word[0])),
            Err(Errno::INTR) => {}
            Err(e) => return Err(failed("recv(control)", e)),
        }
    }
}

/// Whether the other end of a socket is closed and nothing waits.
pub(crate) fn is_at_end(socket: impl AsFd) -> bool {
    use rustix::net::RecvFlags;
    !matches!(
        rustix::net::recv(&socket, &mut [0_u8; 1], RecvFlags::DONTWAIT | RecvFlags::PEEK),
        Ok((1.., _)) | Err(Errno::AGAIN | Errno::INTR)
    )
}

/// Waits until the writing ends of a pipe are all closed.
pub(crate) fn await_end(pipe: impl AsFd) -> Result<()> {
    let mut byte = [0_u8; 1];
    loop {
        match rustix::io::read(&pipe, &mut byte[..]) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(failed("read(start pipe)", e)),
        }
    }
}

/// Waits until `fd` is readable, or `timeout` has passed (`None`: for ever); whether it is readable.
///
/// # Errors
/// `EINTR` is passed on, so that an interpreter can look after its signals.
pub(crate) fn await_readable(fd: impl AsFd, timeout: Option<Duration>) -> Result<bool> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let left = deadline.map(time_left);
    match poll(&mut [PollFd::new(&fd, PollFlags::IN)], left.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(e) => Err(failed("poll", e)),
    }
}

/// Waits until one of two is readable or at its end, or `deadline` has come: whether each is. Signals do not end it.
pub(crate) fn await_either(first: impl AsFd, second: impl AsFd, deadline: Instant) -> Result<[bool; 2]> {
    loop {
        let mut polled = [PollFd::new(&first, PollFlags::IN), PollFd::new(&second, PollFlags::IN)];
        match poll(&mut polled, Some(&time_left(deadline))) {
            Ok(_) => return Ok(polled.map(|polled| !polled.revents().is_empty())),
            Err(Errno::INTR) => {}
            Err(e) => return Err(failed("poll", e)),
        }
    }
}

fn time_left(deadline: Instant) -> rustix::event::Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    rustix::event::Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    }
}

/// Sends signal number `signal` to the process; one that has ended already is no error.
///
/// # Errors
/// `InvalidArgument` for a number outside of 1 to 64.
pub(crate) fn send_signal(pidfd: impl AsFd, signal: i32) -> Result<()> {
    if !(1..=64).contains(&signal) {
        return Err(Error::new(ErrorKind::InvalidArgument, format!("{signal} is no signal number (1 to 64)")));
    }
    // SAFETY: the number is within the kernel's range; nothing is installed for it here.
    let named = unsafe { Signal::from_raw_unchecked(signal) };
    match pidfd_send_signal(&pidfd, named) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(e) => Err(failed(format!("pidfd_send_signal({signal})"), e)),
    }
}

/// `struct pidfd_info` of Linux 6.13, the first 64 bytes.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    pid: u32,
    rest: [u32; 11],
}

/// `_IOWR(0xFF, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::Ioctl = 0xC040_FF0B_u32 as libc::Ioctl;

/// The pid of a process as the caller sees it; `None` once it was collected.
pub(crate) fn pid_of(pidfd: impl AsFd) -> Result<Option<i32>> {
    // The pid is given whatever is asked for.
    let mut info = PidfdInfo::default();
    // SAFETY: the kernel writes at most the 64 bytes whose size is in the request's number.
    let known = unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    if known == 0 && info.pid != 0 {
        return Ok(i32::try_from(info.pid).ok());
    }
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd());
    let text = super::fs::read_to_string(std::path::Path::new(&path))?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")).and_then(|pid| pid.trim().parse().ok());
    Ok(pid.filter(|pid| *pid > 0))
}

/// A process that is in a user namespace and that the caller may look at; one of them, if there are several.
pub(crate) fn in_user_namespace(namespace: impl AsFd) -> Result<Option<i32>> {
    let inode = rustix::fs::fstat(namespace).map_err(|e| failed("fstat(user namespace)", e))?.st_ino;
    let wanted = format!("user:[{inode}]");
    let all = super::fs::read_dir(std::path::Path::new("/proc"))?;
    let mut found = all.iter().filter(|process| {
        // Who ends meanwhile, or is somebody else's, is not in it as far as the caller knows.
        super::fs::read_link(&process.join("ns/user")).is_ok_and(|link| link.as_os_str() == wanted.as_str())
    });
    Ok(found.find_map(|process| process.file_name()?.to_str()?.parse().ok()))
}

/// The caller's effective user and group.
pub(crate) fn own_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Whether the caller has `CAP_SYS_ADMIN` where it runs, and may thus make namespaces without a user namespace.
pub(crate) fn is_privileged() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN))
}

/// Whether the caller has `CAP_NET_ADMIN` where it runs.
pub(crate) fn may_administer_network() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::NET_ADMIN))
}

/// The name of the caller's effective user, if the system knows one.
pub(crate) fn own_user_name() -> Option<String> {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name)
}

/// Writes `input` to the first stream while reading the other two to their ends; `None` when `timeout` passed before.
pub(crate) fn exchange(
    streams: [Option<OwnedFd>; 3],
    mut input: &[u8],
    timeout: Option<Duration>,
) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let [mut stdin, stdout, stderr] = streams;
    let mut sources = [(stdout, Vec::new()), (stderr, Vec::new())];
    let mut buffer = vec![0_u8; 64 * 1024];
    if let Some(stdin) = &stdin {
        rustix::io::ioctl_fionbio(stdin, true).map_err(|e| failed("ioctl(stdin, FIONBIO)", e))?;
    }
    loop {
        if input.is_empty() {
            stdin = None;
        }
        if stdin.is_none() && sources.iter().all(|(source, _)| source.is_none()) {
            let [(_, stdout), (_, stderr)] = sources;
            return Ok(Some((stdout, stderr)));
        }
        let left = deadline.map(time_left);
        let ready: Vec<bool> = {
            let mut polled: Vec<PollFd<'_>> = Vec::new();
            polled.extend(stdin.iter().map(|fd| PollFd::new(fd, PollFlags::OUT)));
            polled.extend(sources.iter().filter_map(|(fd, _)| fd.as_ref()).map(|fd| PollFd::new(fd, PollFlags::IN)));
            match poll(&mut polled, left.as_ref()) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(e) => return Err(failed("poll(streams)", e)),
            }
            polled.iter().map(|fd| !fd.revents().is_empty()).collect()
        };
        let mut ready = ready.into_iter();
        if stdin.is_some() && ready.next() == Some(true) {
            match stdin.as_ref().map(|fd| rustix::io::write(fd, input)) {
                Some(Ok(count)) => input = &input[count..],
                // The application does not want to read any more.
                Some(Err(Errno::PIPE)) => input = &[],
                Some(Err(Errno::AGAIN | Errno::INTR)) | None => {}
                Some(Err(e)) => return Err(failed("write(stdin)", e)),
            }
        }
        for (source, collected) in &mut sources {
            let Some(fd) = source else { continue };
            if ready.next() != Some(true) {
                continue;
            }
            match rustix::io::read(&*fd, &mut buffer[..]) {
                Ok(0) => *source = None,
                Ok(count) => collected.extend_from_slice(&buffer[..count]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(e) => return Err(failed("read(application)", e)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_of_a_time_namespace_is_read() {
        let table = [
            ("monotonic           0         0\nboottime            0         0\n", 0),
            ("monotonic 7 0\nboottime        36000 5\n", 36_000 * SECOND + 5),
            ("boottime -2 500000000\n", -3 * SECOND / 2),
            ("boottime 9223372036854775807 999999999\n", i128::from(i64::MAX) * SECOND + 999_999_999),
            ("boottime x 0\n", 0),
            ("boottime 1\n", 0),
            ("", 0),
        ];
        for (text, expected) in table {
            assert_eq!(parse_boot_offset(text), expected, "{text:?}");
        }
    }
}
