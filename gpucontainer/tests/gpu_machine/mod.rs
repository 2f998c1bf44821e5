//! Images, a driver and a place for sandboxes with GPUs, and a look at the host before and after.
//!
//! A test program that uses it has `mod common;`, `mod driver;` and `mod gpu_machine;`.

#![allow(dead_code, reason = "every test binary uses a part of this")]
#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

use crate::driver::FakeDriver;
use crate::{common, driver};
use gpucontainer::gpu::{DriverRoot, GpuAllocator};
use gpucontainer::image::{Image, ImageBuilder, ImageStore};
use gpucontainer::sandbox::{SandboxBuilder, Stdio};
use gpucontainer::{Result, Sandbox};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

/// Loads each library that is named as programs name it, and prints what its function says.
const LOADER: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
int main(int count, char **names) {
    for (int i = 1; i < count; i++) {
        void *library = dlopen(names[i], RTLD_NOW);
        int (*version)(void) = library ? (int (*)(void))dlsym(library, "fake_version") : NULL;
        if (version) printf("%s %d\n", names[i], version());
        else printf("%s %s\n", names[i], dlerror());
    }
    return 0;
}
"#;

/// A machine with GPUs, a store, and a file of the host that nothing may touch.
pub(crate) struct Fixture {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) driver: FakeDriver,
    pub(crate) store: ImageStore,
    loader: PathBuf,
}

impl Fixture {
    pub(crate) fn new(machine: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path().join("store")).unwrap();
        let victim = directory.path().join("victim");
        std::fs::create_dir(&victim).unwrap();
        std::fs::write(victim.join("file"), "of the host\n").unwrap();
        let loader = driver::compile_loader("loader", LOADER);
        Self { directory, driver: FakeDriver::new(machine), store, loader }
    }

    pub(crate) fn victim(&self) -> PathBuf {
        self.directory.path().join("victim")
    }

    /// An image with merged directories as Debian has them, a shell, and the program that loads libraries.
    pub(crate) fn debian(&self) -> ImageBuilder {
        let mut builder = self.busybox().file("/etc/debian_version", "13.0\n", 0o644);
        for name in ["lib", "lib64"] {
            builder =
                builder.directory(format!("/usr/{name}"), 0o755).symlink(format!("usr/{name}"), format!("/{name}"));
        }
        // As ldd does it.
        let output = Command::new(&self.loader).env("LD_TRACE_LOADED_OBJECTS", "1").output().unwrap();
        for library in String::from_utf8(output.stdout).unwrap().split_whitespace().filter(|word| word.starts_with('/'))
        {
            builder = builder.copy(library, Path::new("/usr").join(library.strip_prefix('/').unwrap()));
        }
        builder.copy(&self.loader, "/bin/loader")
    }

    pub(crate) fn busybox(&self) -> ImageBuilder {
        let busybox = common::which("busybox").unwrap();
        let mut builder = self.store.build().copy_following_links(busybox, "/bin/busybox").directory("/tmp", 0o1777);
        for name in ["sh", "ls", "cat", "mknod", "stat", "readlink", "rm", "mv", "touch", "chmod", "mkdir"] {
            builder = builder.symlink("busybox", format!("/bin/{name}"));
        }
        builder
    }

    pub(crate) fn commit(&self, builder: ImageBuilder) -> Image {
        builder.commit("gpu:1").unwrap()
    }

    pub(crate) fn sandbox(&self, image: &Image, gpus: &str, script: &str) -> SandboxBuilder {
        Sandbox::from_image(image)
            .store(&self.store)
            .driver_root(DriverRoot::new(self.driver.path()))
            .gpu_allocator(&self.allocator())
            .gpus(gpus.parse().unwrap())
            .command(["sh", "-c", script])
            .stdin(Stdio::Null)
            .stdout(Stdio::Piped)
            .stderr(Stdio::Piped)
    }

    /// A sandbox that waits for its standard input to end.
    pub(crate) fn waiting(&self, image: &Image, gpus: &str) -> SandboxBuilder {
        self.sandbox(image, gpus, "while read -r line; do :; done").stdin(Stdio::Piped)
    }

    /// The allocator of this machine, whose leases are nobody else's.
    pub(crate) fn allocator(&self) -> GpuAllocator {
        let allocator = GpuAllocator::at(self.directory.path().join("leases")).unwrap();
        allocator.driver_root(DriverRoot::new(self.driver.path())).respect_outer(false)
    }

    /// Everything of the driver and of the victim: what it is, how it is protected, when it was changed.
    pub(crate) fn host(&self) -> BTreeMap<PathBuf, String> {
        let mut all = BTreeMap::new();
        snapshot(self.driver.path(), &mut all);
        snapshot(&self.victim(), &mut all);
        all
    }

    /// Asserts that the host is as it was; says only what is not.
    pub(crate) fn check(&self, before: &BTreeMap<PathBuf, String>, what: &str) {
        let now = self.host();
        let changed: Vec<_> = now.iter().filter(|(path, facts)| before.get(*path) != Some(facts)).collect();
        let gone: Vec<_> = before.keys().filter(|path| !now.contains_key(*path)).collect();
        assert!(changed.is_empty() && gone.is_empty(), "{what}: changed {changed:?}, gone {gone:?}");
    }
}

pub(crate) fn snapshot(path: &Path, all: &mut BTreeMap<PathBuf, String>) {
    let facts = path.symlink_metadata().unwrap();
    let changed = facts.modified().unwrap().duration_since(UNIX_EPOCH).unwrap();
    let words =
        format!("{:o} {} {} {} {changed:?}", facts.permissions().mode(), facts.uid(), facts.len(), facts.rdev());
    all.insert(path.to_owned(), words);
    if facts.is_dir() {
        path.read_dir().unwrap().for_each(|entry| snapshot(&entry.unwrap().path(), all));
    }
}

/// Runs to the end: what it wrote to both streams.
pub(crate) fn run(builder: SandboxBuilder) -> Result<String> {
    let sandbox = builder.spawn()?;
    let output = sandbox.communicate(b"", Some(Duration::from_secs(60)))?;
    sandbox.close()?;
    Ok([output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat())
}

pub(crate) fn possible(tier: &str) -> bool {
    driver::available() && common::tier(tier) && common::tools(tier, &["busybox"])
}
