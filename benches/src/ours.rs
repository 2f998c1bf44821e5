//! The library itself.

use crate::Result;
use crate::contender::{Contender, InProcess};
use crate::machine::{MEMORY_BYTES, Machine, PIDS};
use crate::peers::Kind;
use gpucontainer::sandbox::{ResourceLimit, SandboxBuilder, Stdio, UserNamespace};
use gpucontainer::{Image, ImageStore, Sandbox};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What stands for the version; the commit is in the description of the machine.
pub const VERSION: &str = "this working tree";

/// How a sandbox differs from the plain one.
#[derive(Clone, Debug)]
pub struct Ours {
    root: PathBuf,
    image: Option<(ImageStore, Image)>,
    user_namespace: bool,
    init: bool,
}

impl Ours {
    /// A sandbox on the directory that all contenders use, with the init that sandboxes have unless told otherwise.
    pub fn plain(root: &Path) -> Self {
        Self { root: root.to_owned(), image: None, user_namespace: false, init: true }
    }

    /// The sandbox that is compared at `kind`.
    pub fn of(machine: &Machine, kind: Kind) -> Result<Self> {
        let mut ours = Self::plain(&machine.root);
        ours.user_namespace = kind == Kind::User;
        if kind == Kind::Overlay {
            let store = ImageStore::open(machine.scratch("store")?).map_err(|e| e.to_string())?;
            let image = store.build().copy(&machine.root, "/").commit("bench").map_err(|e| e.to_string())?;
            ours.image = Some((store, image));
        }
        Ok(ours)
    }

    /// The application as process 1, as peers have it. A supervisor is there all the same, outside.
    pub fn without_init(mut self) -> Self {
        self.init = false;
        self
    }

    /// Describes the sandbox: what the bundle of the engines says.
    pub fn builder(&self) -> SandboxBuilder {
        let builder = match &self.image {
            Some((store, image)) => Sandbox::from_image(image).store(store),
            None => Sandbox::from_directory(&self.root),
        };
        let user_namespace = if self.user_namespace {
            UserNamespace::Shifted { first: 1_000_000, count: 65_536 }
        } else {
            UserNamespace::Host
        };
        builder
            .command(["/bin/true"])
            .init(self.init)
            .memory_max(MEMORY_BYTES)
            .cpus(1.0)
            .pids_max(PIDS.unsigned_abs())
            .resource_limit(ResourceLimit::Nofile, 1024, 4096)
            .user_namespace(user_namespace)
            .stdin(Stdio::Null)
            .stdout(Stdio::Null)
            .stderr(Stdio::Null)
    }

    /// From the call to everything given back.
    pub fn once(&self) -> Result<()> {
        let run = || {
            let sandbox = self.builder().spawn()?;
            let status = sandbox.wait()?;
            sandbox.close()?;
            Ok(status)
        };
        let status = run().map_err(|error: gpucontainer::Error| error.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("gpucontainer: {status}")) }
    }

    /// As a contender.
    pub fn contender(self) -> Box<dyn Contender> {
        let name = format!("gpucontainer{}", if self.init { "" } else { ", without init" });
        let command = format!(
            "Sandbox::{}(…).command([\"/bin/true\"]).memory_max(…).cpus(1.0).pids_max(…).init({}).spawn(), wait(), close()",
            if self.image.is_some() { "from_image" } else { "from_directory" },
            self.init
        );
        let work = move || self.once().map(|()| Duration::ZERO);
        Box::new(InProcess { name, version: VERSION.to_owned(), command, work })
    }
}

/// A program more in a sandbox that runs.
pub fn exec(machine: &Machine) -> Result<Box<dyn Contender>> {
    let sandbox = Ours::plain(&machine.root)
        .builder()
        .command(["/bin/sleep", "100000"])
        .spawn()
        .map_err(|error| error.to_string())?;
    let work = move || {
        let run = || {
            let exec = sandbox.exec(["/bin/true"]).stdin(Stdio::Null).stdout(Stdio::Null).stderr(Stdio::Null);
            exec.spawn()?.wait()
        };
        let status = run().map_err(|error: gpucontainer::Error| error.to_string())?;
        if status.success() { Ok(Duration::ZERO) } else { Err(format!("gpucontainer exec: {status}")) }
    };
    let command = "sandbox.exec([\"/bin/true\"]).spawn(), wait()".to_owned();
    Ok(Box::new(InProcess { name: "gpucontainer exec".to_owned(), version: VERSION.to_owned(), command, work }))
}
