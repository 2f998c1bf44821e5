//! What a machine with an NVIDIA GPU must show: CUDA in containers of several kinds, each with what it was granted and
//! nothing of its neighbours. `tests/real-gpu/run` makes the containers' trees and starts this.
//!
//! ```text
//! real_gpu TREES [--record FILE] [--stand-in]
//! ```
//!
//! Without a GPU it says so, and that is no failure.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a program for people")]
#![allow(clippy::disallowed_methods, reason = "it is outside of the library, whose errors name files")]

use gpucontainer::gpu::{ForeignProcesses, GpuAllocator, Inventory, Sharing, Wait};
use gpucontainer::sandbox::{Mount, SandboxBuilder, Stdio};
use gpucontainer::{ErrorKind, GpuRequest, Sandbox};
use std::error::Error;
use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A driver may take a minute for its first program, and PyTorch as long to be read from a slow disk.
const LIMIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    match start() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("real_gpu: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<bool> {
    let mut words = std::env::args().skip(1);
    let trees = PathBuf::from(words.next().ok_or("where are the trees?")?);
    let (mut record, mut stand_in) = (None, false);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--record" => record = Some(PathBuf::from(words.next().ok_or("where does the record go?")?)),
            "--stand-in" => stand_in = true,
            other => return Err(format!("what is {other:?}?").into()),
        }
    }
    let inventory = Inventory::discover();
    if inventory.gpus().is_empty() {
        let why = inventory.unavailable().unwrap_or("the driver knows none");
        println!("There is no NVIDIA GPU here, so nothing was checked: {why}");
        return Ok(true);
    }
    // A stand-in's leases are nobody's business.
    let allocator = match stand_in {
        true => GpuAllocator::at(trees.join("leases"))?.respect_outer(false),
        false => GpuAllocator::open()?,
    };
    let mut scene = Scene { trees, allocator, text: String::new(), failed: 0 };
    scene.say(&facts(&inventory));
    scene.check("CUDA in a container with a C library and nothing else", |scene| scene.computes("distroless"));
    scene.check("CUDA in a container of Debian", |scene| scene.computes("debian"));
    scene.check("what a container with musl gets", Scene::musl);
    match scene.trees.join("pytorch").is_dir() {
        true => scene.check("PyTorch", Scene::torch),
        false => scene.say("left out PyTorch: no Python with torch is at hand, see REAL_GPU_PYTHON\n"),
    }
    scene.check("nvidia-smi lists what was granted and nothing else", Scene::management);
    scene.check("two containers, each with its own", Scene::apart);
    scene.check("a GPU comes to a running container and goes", Scene::attached);
    scene.check("nothing is left", Scene::left);
    let verdict =
        if scene.failed == 0 { "All of it holds.\n".to_owned() } else { format!("{} failed.\n", scene.failed) };
    scene.say(&verdict);
    if let Some(record) = record {
        std::fs::create_dir_all(record.parent().unwrap_or(Path::new(".")))?;
        let title = record.file_stem().unwrap_or_default().to_string_lossy();
        std::fs::write(&record, format!("# {title}: what a GPU showed\n\n```text\n{}```\n", scene.text))?;
        println!("The record is {}.", record.display());
    }
    Ok(scene.failed == 0)
}

/// The machine, in lines.
fn facts(inventory: &Inventory) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut text = format!("kernel {}", read("/proc/sys/kernel/osrelease"));
    let _ = writeln!(text, "driver {}", read("/proc/driver/nvidia/version").lines().next().unwrap_or("of a stand-in"));
    for gpu in inventory.gpus() {
        let slices: Vec<&str> = gpu.mig_devices.iter().map(|slice| slice.profile.as_str()).collect();
        let _ = writeln!(text, "GPU {}: {} {} {}", gpu.index, gpu.name, gpu.uuid, slices.join(" "));
    }
    text
}

/// The trees of the containers, and what was found so far.
struct Scene {
    trees: PathBuf,
    allocator: GpuAllocator,
    text: String,
    failed: usize,
}

/// One GPU, also one on which somebody has a screen.
fn one() -> GpuRequest {
    GpuRequest::count(1).foreign_processes(ForeignProcesses::Ignore)
}

/// Fails with the words unless it holds.
fn ensure(holds: bool, words: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(words().into()) }
}

impl Scene {
    fn say(&mut self, text: &str) {
        print!("{text}");
        self.text.push_str(text);
    }

    fn check(&mut self, name: &str, check: impl FnOnce(&Self) -> Result<String>) {
        let (head, body) = match check(self) {
            Ok(body) => (format!("ok {name}\n"), body),
            Err(error) => {
                self.failed += 1;
                (format!("FAILED {name}\n"), error.to_string())
            }
        };
        let body: String = body.lines().map(|line| format!("    {line}\n")).collect();
        self.say(&(head + &body));
    }

    /// A container that gets one GPU.
    fn container(&self, tree: &str, command: &[&str]) -> SandboxBuilder {
        Sandbox::from_directory(self.trees.join(tree))
            .gpu_allocator(&self.allocator)
            .gpus(one())
            .gpu_wait(Wait::at_most(LIMIT))
            .command(command.iter().copied())
            .stdin(Stdio::Null)
            .stdout(Stdio::Piped)
            .stderr(Stdio::Piped)
    }

    /// Runs a program to its end: whether it succeeded, and what it said.
    fn run(sandbox: &Sandbox) -> Result<(bool, String)> {
        let output = sandbox.communicate(b"", Some(LIMIT))?;
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        Ok((output.status.success(), said))
    }

    /// The same in a container that runs.
    fn execute(sandbox: &Sandbox, command: &[&str]) -> Result<(bool, String)> {
        let process = sandbox.exec(command.iter().copied()).stdin(Stdio::Null);
        let output = process.stdout(Stdio::Piped).stderr(Stdio::Piped).spawn()?.communicate(b"", Some(LIMIT))?;
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        Ok((output.status.success(), said))
    }

    fn computes(&self, tree: &str) -> Result<String> {
        let sandbox = self.container(tree, &["/vector"]).spawn()?;
        let (good, said) = Self::run(&sandbox)?;
        ensure(good && said.contains("numbers are right"), || said.clone())?;
        ensure(said.contains(", 1 gpus"), || format!("not exactly one GPU: {said}"))?;
        for gpu in sandbox.gpus().iter().filter(|gpu| gpu.starts_with("GPU-")) {
            ensure(said.contains(gpu.as_str()), || format!("granted {gpu}, and it said {said}"))?;
        }
        sandbox.close()?;
        Ok(said)
    }

    /// Nodes and files come to it as to any other; whether its programs can load libraries for glibc is said, not hoped.
    fn musl(&self) -> Result<String> {
        let real = self.trees.join("alpine/vector").exists();
        let command: &[&str] = if real { &["/vector"] } else { &["/bin/sh", "-c", "ls /usr/lib /dev"] };
        let sandbox = self.container("alpine", command).spawn()?;
        let reasons: Vec<String> = sandbox.granted().into_iter().flat_map(|grant| grant.left_out).collect();
        let reasons = reasons.join("\n");
        ensure(reasons.contains("made for glibc, and the image has musl"), || format!("no word of it: {reasons:?}"))?;
        let (good, said) = Self::run(&sandbox)?;
        sandbox.close()?;
        if real {
            // With a layer for glibc's functions it computes; without, the loader says what it misses.
            ensure(good || said.contains("libcuda"), || format!("no reason: {said}"))?;
            let verdict = if good { "a program for musl computes" } else { "a program for musl does not compute" };
            return Ok(format!("{reasons}\n{verdict}:\n{said}"));
        }
        ensure(good && said.contains("libcuda.so.1") && said.contains("nvidiactl"), || said.clone())?;
        Ok(format!("{reasons}\nlibraries and nodes are there; no compiler for musl is at hand, see REAL_GPU_MUSL_CC"))
    }

    fn torch(&self) -> Result<String> {
        let read = |name: &str| std::fs::read_to_string(self.trees.join(name));
        let program = read("program")?;
        let mut builder = self.container("pytorch", &[program.trim(), "/torch_check.py"]);
        builder = builder.env("PYTHONPATH", read("path")?.trim());
        // Gigabytes that are shown and not copied, a directory a line.
        for directory in read("mounts")?.lines() {
            builder = builder.mount(Mount::bind(directory, directory).read_only());
        }
        let sandbox = builder.spawn()?;
        let (good, said) = Self::run(&sandbox)?;
        ensure(good && said.contains("sees 1") && said.contains("computed 1498500"), || said.clone())?;
        sandbox.close()?;
        Ok(said)
    }

    /// The GPUs and MIG devices that the driver's own tool lists inside.
    fn listed(sandbox: &Sandbox) -> Result<(Vec<String>, String)> {
        let (good, said) = Self::execute(sandbox, &["nvidia-smi", "-L"])?;
        ensure(good, || said.clone())?;
        let uuids = said.split("UUID: ").skip(1).filter_map(|rest| rest.split(')').next());
        Ok((uuids.map(str::to_owned).collect(), said))
    }

    fn management(&self) -> Result<String> {
        let sandbox = self.container("debian", &["/bin/sleep", "1000"]).spawn()?;
        let (mut listed, said) = Self::listed(&sandbox)?;
        if sandbox.gpus().iter().any(|gpu| gpu.starts_with("MIG-")) {
            // Their GPU is listed above them.
            listed.retain(|gpu| gpu.starts_with("MIG-"));
        }
        ensure(listed == sandbox.gpus(), || format!("granted {:?}, and it lists {said}", sandbox.gpus()))?;
        sandbox.close()?;
        Ok(said)
    }

    /// One has numbers in the memory of its GPU; the other sees neither them, nor the process, nor the nodes.
    fn apart(&self) -> Result<String> {
        let two = GpuRequest::count(2).foreign_processes(ForeignProcesses::Ignore);
        let single = self.allocator.acquire(&two, Wait::none()).is_err();
        let one = if single { one().sharing(Sharing::Shared(2)) } else { one() };
        let holder = self
            .container("distroless", &["/vector", "hold"])
            .name(format!("holder-{}", std::process::id()))
            .gpus(one.clone());
        let holder = holder.stdin(Stdio::Piped).spawn()?;
        let mut lines = BufReader::new(File::from(holder.take_stdout().ok_or("no pipe")?)).lines();
        let address = loop {
            let line = lines.next().ok_or("the first container ended")??;
            if let Some(address) = line.strip_prefix("holds numbers at ") {
                break address.to_owned();
            }
        };
        let other = self
            .container("debian", &["/bin/sleep", "1000"])
            .name(format!("other-{}", std::process::id()))
            .gpus(one)
            .spawn()?;
        let mut text = format!("holder has {}, other has {}\n", holder.gpus().join(" "), other.gpus().join(" "));
        ensure(single || holder.gpus() != other.gpus(), || text.clone())?;
        let shell = |script: &str| Self::execute(&other, &["/bin/sh", "-c", script]);
        let (_, nodes) = shell("cd /dev && ls -d nvidia[0-9]*")?;
        ensure(nodes.lines().count() == 1, || format!("nodes: {nodes}"))?;
        let (_, names) = shell("cat /proc/[0-9]*/comm")?;
        ensure(names.contains("sleep") && !names.contains("vector"), || format!("processes: {names}"))?;
        let (_, described) = shell("ls /proc/driver/nvidia/gpus 2>/dev/null || true")?;
        ensure(described.lines().count() <= 1, || format!("GPUs in /proc: {described}"))?;
        let (apart, peeked) = Self::execute(&other, &["/vector", "peek", &address])?;
        ensure(apart && peeked.contains("read at"), || format!("memory of the other: {peeked}"))?;
        if !single {
            let (_, said) = Self::listed(&other)?;
            ensure(!holder.gpus().iter().any(|gpu| said.contains(gpu.as_str())), || said.clone())?;
        }
        let status = self.allocator.status()?;
        for name in [holder.name(), other.name()] {
            let lease = status.leases.iter().find(|lease| lease.sandbox.as_deref() == Some(name));
            ensure(lease.is_some_and(|lease| lease.since.is_some()), || format!("no lease of {name}: {status}"))?;
        }
        let taken = self.allocator.acquire(&GpuRequest::uuids(holder.gpus())?, Wait::none());
        let refusal = taken.err().ok_or("a GPU that is somebody's was leased")?;
        ensure(refusal.kind() == ErrorKind::GpuUnavailable, || refusal.to_string())?;
        let _ = write!(text, "the other's nodes: {nodes}{peeked}{status}{refusal}");
        holder.close()?;
        other.close()?;
        Ok(text)
    }

    fn attached(&self) -> Result<String> {
        let sandbox = self.container("debian", &["/bin/sleep", "1000"]).gpus(GpuRequest::none()).spawn()?;
        let (before, said) = Self::execute(&sandbox, &["/vector"])?;
        ensure(!before, || format!("computes without a GPU: {said}"))?;
        let grant = sandbox.attach_gpus(&one(), Wait::at_most(LIMIT))?;
        let (good, said) = Self::execute(&sandbox, &["/vector"])?;
        ensure(good && said.contains("numbers are right"), || said.clone())?;
        ensure(sandbox.gpu_leases().len() == 1, || "no lease of what was attached".to_owned())?;
        sandbox.detach_gpus(&grant, false)?;
        let (after, without) = Self::execute(&sandbox, &["/vector"])?;
        ensure(!after && sandbox.gpu_leases().is_empty(), || format!("computes after it went: {without}"))?;
        sandbox.close()?;
        Ok(format!("{said}then: {without}"))
    }

    fn left(&self) -> Result<String> {
        let own = std::process::id();
        let status = self.allocator.status()?;
        ensure(status.leases.iter().all(|lease| lease.pid != Some(own)), || status.to_string())?;
        // The memory of its GPUs is back, so it can be had again at once.
        drop(self.allocator.acquire(&one(), Wait::at_most(LIMIT))?);
        Ok(status.to_string())
    }
}
