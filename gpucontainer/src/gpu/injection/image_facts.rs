//! What must be known of an image to put a driver's files where its programs look for them.

use crate::error::Result;
use crate::gpu::driver::elf::CLibrary;
use crate::gpu::driver::loader_cache::LoaderCache;
use crate::gpu::injection::compatibility::Compatibility;
use crate::gpu::injection::image_files::{self, ImageFiles};

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The facts of an image on which the places of the driver's files depend.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
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
    /// The variables that the container will have but for those of the grant: the image's, and the caller's over them.
    ///
    /// They say what the image asks for and what it requires; see [`GpuRequest::for_environment`] and
    /// `NVIDIA_REQUIRE_*`. Empty if nobody said, and then nothing is required.
    ///
    /// [`GpuRequest::for_environment`]: crate::gpu::GpuRequest::for_environment
    pub environment: Vec<(String, String)>,
    /// The version of the image's glibc, if that is its C library and was read.
    pub(crate) glibc: Option<CLibrary>,
    /// What the loader's cache of the image says, or ought to: `None` if the image was not read or its loader has none.
    pub(crate) loader_cache: Option<Arc<LoaderCache>>,
    /// Where the loader of musl searches, if the image says.
    pub(crate) musl_path: Option<String>,
    /// `/usr/lib` is the directory of native libraries, by whatever other names, as on Arch.
    #[serde(default)]
    pub(crate) native_usr_lib: bool,
    /// There is a 32-bit loader of musl.
    #[serde(default)]
    pub(crate) musl_32: bool,
    /// Where that one searches, if the image says.
    #[serde(default)]
    pub(crate) musl_path_32: Option<String>,
    /// The libraries that let a newer CUDA run on an older driver.
    pub(crate) compatibility: Option<Compatibility>,
}

impl ImageFacts {
    /// Finds all facts of the tree in the directory `root`, whose programs will run with `environment`.
    ///
    /// Nothing of the tree is executed, no link of it is followed out of it, and nothing but regular files is opened.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there is no such directory.
    pub fn of_directory(root: &Path, environment: Vec<(String, String)>) -> Result<Self> {
        Ok(Self::read(&crate::sys::root::Root::open(root)?, environment))
    }

    /// Finds all facts of an image.
    pub(crate) fn read(files: &dyn ImageFiles, environment: Vec<(String, String)>) -> Self {
        let mut facts = Self::detect(|path| files.exists(path));
        facts.environment = environment;
        if facts.musl {
            facts.musl_path = image_files::text(files, &musl_path_file(std::env::consts::ARCH));
            facts.musl_path_32 = image_files::text(files, &musl_path_file(narrow_musl()));
        } else {
            image_files::loader(files, &mut facts);
        }
        facts.compatibility = Compatibility::find(files);
        facts
    }

    /// Finds what can be known by asking whether paths exist in the image: where libraries go, and no more.
    ///
    /// `exists` is called with absolute paths of the container, and must resolve links inside its tree.
    pub fn detect(exists: impl Fn(&Path) -> bool) -> Self {
        let there = |path: &str| exists(Path::new(path));
        let loader = |arch: &str| format!("/lib/ld-musl-{arch}.so.1");
        Self {
            // A slimmed image may have lost the version file, but no C library works without its directory.
            debian_like: there("/etc/debian_version") || there(&format!("/usr/lib/{}", triplet())),
            has_usr_lib64: there("/usr/lib64"),
            has_usr_lib32: there("/usr/lib32"),
            musl: there("/etc/alpine-release") || there(&loader(std::env::consts::ARCH)),
            native_usr_lib: there(&format!("/usr/lib/{}", glibc_loader())),
            musl_32: there(&loader(narrow_musl())),
            ..Self::default()
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

    /// The directory for 32-bit libraries, never that of native ones; `None` if no program of the image would find any.
    pub(crate) fn library_directory_32(&self) -> Option<PathBuf> {
        if self.musl {
            // Told to search there, the loader of musl does, and nobody else has anything there.
            return self.musl_32.then(|| "/usr/lib32".into());
        }
        Some(if self.debian_like {
            Path::new("/usr/lib").join(narrow_triplet())
        } else if self.has_usr_lib32 || self.native_usr_lib || !self.has_usr_lib64 {
            "/usr/lib32".into()
        } else {
            "/usr/lib".into()
        })
    }
}

/// The file in which an image with musl says where its loader for programs of `arch` searches.
pub(crate) fn musl_path_file(arch: &str) -> PathBuf {
    format!("/etc/ld-musl-{arch}.path").into()
}

/// What musl calls the twin of 32 bits of this architecture.
pub(crate) fn narrow_musl() -> &'static str {
    if cfg!(target_arch = "aarch64") { "armhf" } else { "i386" }
}

/// The native loader of glibc.
fn glibc_loader() -> &'static str {
    if cfg!(target_arch = "aarch64") { "ld-linux-aarch64.so.1" } else { "ld-linux-x86-64.so.2" }
}

/// The name that Debian gives to this architecture's libraries.
pub(crate) fn triplet() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "aarch64-linux-gnu",
        _ => "x86_64-linux-gnu",
    }
}

/// The name that Debian gives to libraries of 32 bits.
pub(crate) fn narrow_triplet() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm-linux-gnueabihf" } else { "i386-linux-gnu" }
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

    #[test]
    fn libraries_of_32_bits_never_go_among_native_ones() {
        let arch = format!("/usr/lib/{}", glibc_loader());
        let musl = format!("/lib/ld-musl-{}.so.1", narrow_musl());
        let debian = format!("/usr/lib/{}", narrow_triplet());
        let table: [(&[&str], Option<&str>); 8] = [
            (&["/etc/debian_version", "/usr/lib64", "/usr/lib32"], Some(&debian)),
            (&["/usr/lib64"], Some("/usr/lib")),
            (&["/usr/lib64", "/usr/lib32"], Some("/usr/lib32")),
            (&["/usr/lib64", &arch], Some("/usr/lib32")),
            (&["/usr/lib64", "/usr/lib32", &arch], Some("/usr/lib32")),
            (&[], Some("/usr/lib32")),
            (&["/etc/alpine-release"], None),
            (&["/etc/alpine-release", &musl], Some("/usr/lib32")),
        ];
        for (paths, expected) in table {
            let facts = ImageFacts::detect(|path| paths.iter().any(|there| Path::new(there) == path));
            let found = facts.library_directory_32();
            assert_eq!(found.as_deref(), expected.map(Path::new), "{paths:?}");
            assert_ne!(found, Some(facts.library_directory()), "{paths:?}");
        }
    }
}
