//! What the running kernel was built with.

use flate2::read::GzDecoder;
use std::io::Read;
use std::path::Path;

/// A configuration is about 300 KiB; more than this is none.
const MAX_CONFIGURATION: u64 = 8 << 20;

/// The running kernel: its version, its file systems, modules and configuration.
#[derive(Debug)]
pub(crate) struct Kernel {
    release: String,
    filesystems: String,
    configuration: Option<String>,
    modules: Option<String>,
}

/// How the kernel has something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Presence {
    /// It is there now.
    Ready,
    /// It is there once it is used, or the superuser loads its module.
    Module,
    /// It is not there.
    Missing,
    /// The kernel does not tell.
    Unknown,
}

impl Kernel {
    /// Reads what there is to read.
    pub(crate) fn read() -> Self {
        let release = crate::sys::probe::kernel_release();
        let text = |path: &Path| crate::sys::fs::read_to_string(path).ok();
        let configuration = packed_configuration().or_else(|| text(Path::new(&format!("/boot/config-{release}"))));
        let modules = text(Path::new(&format!("/lib/modules/{release}/modules.dep")));
        let filesystems = text(Path::new("/proc/filesystems")).unwrap_or_default();
        Self { release, filesystems, configuration, modules }
    }

    /// Whether the version is at least `major.minor`.
    pub(crate) fn at_least(&self, major: u32, minor: u32) -> bool {
        version(&self.release) >= (major, minor)
    }

    /// Whether the file system of that name can be mounted.
    pub(crate) fn filesystem(&self, name: &str, option: &str) -> Presence {
        if self.filesystems.lines().any(|line| line.split_whitespace().next_back() == Some(name)) {
            return Presence::Ready;
        }
        self.feature(name, option)
    }

    /// Whether the module of that name is loaded, can be loaded, or is built in as `option` says.
    pub(crate) fn feature(&self, module: &str, option: &str) -> Presence {
        if crate::sys::fs::metadata(&Path::new("/sys/module").join(module)).is_ok() {
            return Presence::Ready;
        }
        match self.option(option) {
            Some("y") => return Presence::Ready,
            Some("m") => {}
            _ if self.configuration.is_some() => return Presence::Missing,
            _ => {}
        }
        match &self.modules {
            Some(modules) if lists(modules, module) => Presence::Module,
            Some(_) => Presence::Missing,
            None => Presence::Unknown,
        }
    }

    /// The value of a configuration option, as in `CONFIG_EROFS_FS`.
    fn option(&self, name: &str) -> Option<&str> {
        let lines = self.configuration.as_deref()?.lines();
        lines.into_iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    }
}

fn packed_configuration() -> Option<String> {
    let file = crate::sys::fs::open(Path::new("/proc/config.gz")).ok()?;
    let mut text = String::new();
    GzDecoder::new(file).take(MAX_CONFIGURATION).read_to_string(&mut text).ok()?;
    Some(text)
}

/// `6.12.5-amd64` is `(6, 12)`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether a list of modules, `kernel/fs/erofs/erofs.ko.xz: …`, has this one.
fn lists(modules: &str, name: &str) -> bool {
    modules.lines().filter_map(|line| line.split(':').next()?.rsplit('/').next()).any(|file| {
        let module = file.split(".ko").next().unwrap_or(file);
        // The kernel makes no difference between the two signs.
        module.replace('-', "_") == name.replace('-', "_")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_become_versions() {
        let table =
            [("6.12.5-amd64", (6, 12)), ("5.15", (5, 15)), ("6.18.44-fc-v657", (6, 18)), ("odd", (0, 0)), ("", (0, 0))];
        for (release, expected) in table {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn modules_are_found_by_either_sign() {
        let modules = "kernel/fs/erofs/erofs.ko.xz: kernel/lib/lz4.ko.xz\nkernel/net/netfilter/nf-tables.ko:\n";
        assert!(lists(modules, "erofs") && lists(modules, "nf_tables"));
        assert!(!lists(modules, "lz4"), "what others need is on a line of its own as well");
    }

    #[test]
    fn the_running_kernel_tells() {
        let kernel = Kernel::read();
        assert!(kernel.at_least(5, 15) && !kernel.at_least(99, 0));
        assert_eq!(kernel.filesystem("proc", "CONFIG_PROC_FS"), Presence::Ready);
        assert_ne!(kernel.filesystem("no_such_fs", "CONFIG_NO_SUCH_FS"), Presence::Ready);
    }
}
