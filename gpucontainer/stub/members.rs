//! Waiting for the end of owners who are known by locks alone.
//!
//! A file's owner holds a write lock on its first byte. It is the kernel that frees it, so that whoever gets a read
//! lock there has outlived the owner, and every process that the owner handed a copy of its descriptor to.

use crate::{EINTR, address, arch, call};

const ENOENT: i64 = 2;
const ENOTEMPTY: i64 = 39;
const F_OFD_SETLKW: u64 = 38;
const O_NONBLOCK: u64 = 0x800;
const O_CLOEXEC: u64 = 0x8_0000;
const AT_REMOVEDIR: u64 = 0x200;
/// Where the length and the name of `struct linux_dirent64` are.
const LENGTH: usize = 16;
const NAME: usize = 19;
/// Enough for a few names, of which one is looked at each time.
const SPACE: usize = 2048;

/// `struct flock`.
#[repr(C)]
struct Lock {
    kind: i16,
    whence: i16,
    start: i64,
    length: i64,
    pid: i32,
}

/// As `OP_OUTLIVE` says. Apart, so that its space is not on the small stack of a child that shares memory.
#[inline(never)]
pub fn outlive(directory: u64) -> i64 {
    let members = c"members".as_ptr() as u64;
    loop {
        let listed = call(arch::OPENAT, [directory, members, arch::O_DIRECTORY | O_CLOEXEC, 0, 0, 0]);
        if listed < 0 {
            return if listed == -ENOENT { 0 } else { listed };
        }
        let result = outlive_first(listed.cast_unsigned());
        call(arch::CLOSE, [listed.cast_unsigned(), 0, 0, 0, 0, 0]);
        if result < 0 {
            return result;
        }
        if result == 0 {
            // Who comes meanwhile makes this fail; who comes later finds nothing to enter.
            let removed = call(arch::UNLINKAT, [directory, members, AT_REMOVEDIR, 0, 0, 0]);
            if removed != -ENOTEMPTY {
                return if removed == -ENOENT { 0 } else { removed };
            }
        }
    }
}

/// Outlives the owner of one of the files: 1. There is none: 0.
fn outlive_first(members: u64) -> i64 {
    let space = [0_u64; SPACE / 8];
    let count = call(arch::GETDENTS64, [members, address(&space), SPACE as u64, 0, 0, 0]);
    if count < 0 {
        return count;
    }
    let bytes = space.as_ptr().cast::<u8>();
    // SAFETY: the kernel filled the array up to `count`, within which it is read; the compiler must not think it zero.
    let byte = |at: usize| unsafe { core::ptr::read_volatile(bytes.add(at)) };
    let mut at = 0;
    while at < count as usize {
        // No member's name begins with a dot.
        if byte(at + NAME) != b'.' {
            let name = address(&space) + (at + NAME) as u64;
            let outlived = outlive_one(members, name);
            if outlived < 0 {
                return outlived;
            }
            call(arch::UNLINKAT, [members, name, 0, 0, 0, 0]);
            return 1;
        }
        at += usize::from(u16::from_ne_bytes([byte(at + LENGTH), byte(at + LENGTH + 1)]));
    }
    0
}

fn outlive_one(members: u64, name: u64) -> i64 {
    let file = call(arch::OPENAT, [members, name, arch::O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0, 0, 0]);
    if file < 0 {
        // Whoever gave it up has removed it.
        return if file == -ENOENT { 0 } else { file };
    }
    let lock = Lock { kind: 0, whence: 0, start: 0, length: 1, pid: 0 };
    loop {
        let locked = call(arch::FCNTL, [file.cast_unsigned(), F_OFD_SETLKW, address(&lock), 0, 0, 0]);
        if locked != -EINTR {
            call(arch::CLOSE, [file.cast_unsigned(), 0, 0, 0, 0, 0]);
            return locked;
        }
    }
}
