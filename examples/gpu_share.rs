//! One machine, four instances of one image, two GPUs each: the pairs that are connected best, each instance's its own.
//!
//! ```console
//! $ cargo run --release --example gpu_share
//! ```
//!
//! It takes real leases, so it fits in beside whatever else asks an allocator on this machine. Where fewer GPUs are
//! free, the instances that come too late say why there is nothing left for them; without a GPU it says so and ends.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a program for people")]

use gpucontainer::gpu::{GpuAllocator, Inventory, Topology};
use gpucontainer::sandbox::Stdio;
use gpucontainer::{ErrorKind, GpuRequest, Image, ImageStore, Sandbox};
use std::collections::BTreeSet;
use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const INSTANCES: usize = 4;
const GPUS_EACH: u32 = 2;

/// What an instance does: say in one line what it sees, and stay until its input ends.
const SCRIPT: &str = r#"for node in /dev/nvidia[0-9]*; do nodes="$nodes ${node#/dev/}"; done
echo "sees$nodes"
read -r line"#;

fn main() -> ExitCode {
    match share() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpu_share: {error}");
            ExitCode::FAILURE
        }
    }
}

fn share() -> Result<()> {
    let inventory = Inventory::discover();
    if let Some(reason) = inventory.unavailable() {
        println!("There are no GPUs to share here: {reason}");
        return Ok(());
    }
    println!("{}", Topology::of(&inventory));

    // A store of its own, which goes when this function ends.
    let directory = tempfile::tempdir()?;
    let store = ImageStore::open(directory.path().join("store"))?;
    let image = build(&store)?;
    let mut sandboxes = Vec::new();
    for number in 1..=INSTANCES {
        let builder = Sandbox::from_image(&image).store(&store).gpus(GpuRequest::count(GPUS_EACH));
        let sandbox = match builder.stdin(Stdio::Piped).stdout(Stdio::Piped).spawn() {
            Ok(sandbox) => sandbox,
            // All GPUs are somebody's; a start could also wait for them, see `SandboxBuilder::gpu_wait`.
            Err(error) if error.kind() == ErrorKind::GpuUnavailable && number > 1 => {
                println!("instance {number}: {error}");
                break;
            }
            Err(error) => return Err(error.into()),
        };
        let lease = sandbox.gpu_lease().ok_or("a sandbox with GPUs has no lease on them")?;
        println!("instance {number}: {}", lease.describe());
        println!("  is {}, near to CPUs {}", lease.gpus().join(" "), ranges(lease.cpus()));
        let mut said = String::new();
        BufReader::new(File::from(sandbox.take_stdout().ok_or("no pipe")?)).read_line(&mut said)?;
        println!("  {}", said.trim());
        sandboxes.push(sandbox);
    }

    let allocator = GpuAllocator::open()?;
    println!("\n{}", allocator.status()?);
    for sandbox in sandboxes {
        // Dropping it does the same; this also says if something could not be given back.
        sandbox.close()?;
    }
    let own = std::process::id();
    let left = allocator.status()?.leases.iter().filter(|lease| lease.pid == Some(own)).count();
    println!("{left} leases are left.");
    directory.close()?;
    Ok(())
}

/// Builds an image of this machine's shell and the libraries that it is linked with.
fn build(store: &ImageStore) -> Result<Image> {
    let output = Command::new("ldd").arg("/bin/sh").output().map_err(|error| format!("cannot run ldd: {error}"))?;
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f…)`: the words that are files.
    let words = String::from_utf8(output.stdout)?;
    let libraries: BTreeSet<_> = words.split_whitespace().filter(|word| word.starts_with('/')).collect();
    let files = libraries.into_iter().chain(["/bin/sh"]).map(PathBuf::from);
    let builder = files.fold(store.build(), |builder, path| builder.copy_following_links(&path, &path));
    Ok(builder.command(["/bin/sh", "-c", SCRIPT]).commit("gpu-share:latest")?)
}

/// Ascending numbers as the kernel writes them: `0-19,40-59`.
fn ranges(numbers: &[u32]) -> String {
    let runs = numbers.chunk_by(|one, next| one + 1 == *next);
    let words = runs.filter_map(|run| match (run.first()?, run.last()?) {
        (first, last) if first == last => Some(first.to_string()),
        (first, last) => Some(format!("{first}-{last}")),
    });
    words.collect::<Vec<String>>().join(",")
}
