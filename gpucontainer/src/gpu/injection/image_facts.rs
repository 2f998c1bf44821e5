//! What must be known of an image to put a driver's files where its programs look for them.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The facts of an image on which the places of the driver's files depend.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ImageFacts {
    /// Libraries are in `/usr/lib/<triplet>`, as on Debian and Ubuntu.
    pub debian_like: bool,
    /// There is a directory `/usr/lib64`, as on Fedora, SUSE and Arch.
    pub has_usr_lib64: bool,
    /// There is a directory `/usr/lib32`.
    pub has_usr_lib32: bool,
    /// The C library is musl, whose loader searches `/lib`, `/usr/local/lib` and `/usr/lib` alone.
    pub musl: bool,
}

impl ImageFacts {
    /// Finds the facts by asking whether paths exist in the image.
    ///
    /// `exists` is called with absolute paths of the container, and must resolve links inside its tree.
    pub fn detect(exists: impl Fn(&Path) -> bool) -> Self {
        let there = |path: &str| exists(Path::new(path));
        let loader = format!("/lib/ld-musl-{}.so.1", std::env::consts::ARCH);
        Self {
            // A slimmed image may have lost the version file, but no C library works without its directory.
            debian_like: there("/etc/debian_version") || there(&format!("/usr/lib/{}", triplet())),
            has_usr_lib64: there("/usr/lib64"),
            has_usr_lib32: there("/usr/lib32"),
            musl: there("/etc/alpine-release") || there(&loader),
        }
    }

    /// The directory for native libraries: one that the image's loader searches without being told.
    pub(crate) fn library_directory(&self) -> PathBuf {
        if self.musl {
            "/usr/lib".into()
        } else if self.debian_like {
            Path::new("/usr/lib").join(triplet())
        } else if self.has_usr_lib64 {
            "/usr/lib64".into()
        } else {
            "/usr/lib".into()
        }
    }

    /// The directory for 32-bit libraries.
    pub(crate) fn library_directory_32(&self) -> PathBuf {
        if self.debian_like {
            "/usr/lib/i386-linux-gnu".into()
        } else if self.has_usr_lib32 {
            "/usr/lib32".into()
        } else {
            "/usr/lib".into()
        }
    }
}

/// The name that Debian gives to this architecture's libraries.
pub(crate) fn triplet() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "aarch64-linux-gnu",
        _ => "x86_64-linux-gnu",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory_of(paths: &[&str]) -> PathBuf {
        ImageFacts::detect(|path| paths.iter().any(|there| Path::new(there) == path)).library_directory()
    }

    #[test]
    fn each_family_of_images_gets_its_own_directory() {
        let multiarch = Path::new("/usr/lib").join(triplet());
        let usr_multiarch = multiarch.to_str().unwrap();
        assert_eq!(directory_of(&["/etc/debian_version", "/usr/lib64"]), multiarch);
        assert_eq!(directory_of(&[usr_multiarch]), multiarch, "a distroless image");
        assert_eq!(directory_of(&["/usr/lib64"]), Path::new("/usr/lib64"));
        assert_eq!(directory_of(&["/etc/alpine-release", "/usr/lib64"]), Path::new("/usr/lib"));
        assert_eq!(directory_of(&[]), Path::new("/usr/lib"), "busybox has no directory at all");
    }
}
