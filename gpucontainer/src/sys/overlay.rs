//! What the kernel's overlayfs can do.

use super::mount::Context;
use std::ffi::OsStr;

/// What the kernel's overlayfs can do, as far as it matters for mounting layers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct OverlayFeatures {
    /// Layers are taken one by one (`lowerdir+`, Linux 6.5), so that there may be 500 of them, instead of in one page.
    pub(crate) lowerdir_add: bool,
    /// The root of a user namespace may mount it (Linux 5.11).
    pub(crate) unprivileged: bool,
    /// Files in memory keep `user.*` attributes (Linux 6.6), which an overlay mounted with `userxattr` needs
    /// of its upper directory.
    pub(crate) tmpfs_user_attributes: bool,
}

/// Finds out by asking the kernel where the caller may, else by the kernel's version.
///
/// Takes microseconds, changes nothing, and may load the kernel's overlay module.
pub(crate) fn overlay_features() -> OverlayFeatures {
    let version = kernel_version(rustix::system::uname().release().to_bytes());
    let asked = Context::open("overlay").ok().map(|context| {
        // Before 6.5 every setting was taken, whatever its name, and only looked at when the mount was made.
        let looks = context.set_flag("no-such-setting").is_err();
        looks && context.set_text("lowerdir+", OsStr::new("/")).is_ok()
    });
    OverlayFeatures {
        lowerdir_add: asked.unwrap_or(version >= (6, 5)),
        unprivileged: version >= (5, 11),
        tmpfs_user_attributes: version >= (6, 6),
    }
}

/// The first two numbers of a release, 0 where there is none.
fn kernel_version(release: &[u8]) -> (u32, u32) {
    let text = String::from_utf8_lossy(release);
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_kinds_of_kernels() {
        for (release, version) in [
            (&b"6.18.44-fc-v657"[..], (6, 18)),
            (b"5.15.0-91-generic", (5, 15)),
            (b"6.1-rc3", (6, 1)),
            (b"7", (7, 0)),
            (b"", (0, 0)),
        ] {
            assert_eq!(kernel_version(release), version);
        }
    }
}
