//! What the injection of a driver adds to a start: `/bin/true` with and without the user space of a driver of 60
//! libraries, in turn.
//!
//! The driver is a directory of small shared objects that are compiled for the occasion; there is no GPU, so the time
//! that the management library takes to answer is not in it. The image has the loader's cache of this host.
//!
//! ```text
//! injection [SAMPLES]
//! ```

use gpucontainer::gpu::{DriverCapability, DriverRoot};
use gpucontainer::image::ImageStore;
use gpucontainer::sandbox::{SandboxBuilder, Stdio};
use gpucontainer::{GpuRequest, Sandbox};
use gpucontainer_benches::Result;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

const VERSION: &str = "550.163.01";
const LIBRARIES: usize = 60;

fn main() -> ExitCode {
    let samples = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(200);
    match compare(samples) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("injection: {why}");
            ExitCode::FAILURE
        }
    }
}

fn compare(samples: usize) -> Result<()> {
    let directory = PathBuf::from(format!("/var/tmp/gpuc-injection-{}", std::process::id()));
    let result = measure(&directory, samples);
    std::fs::remove_dir_all(&directory).map_err(|e| format!("{directory:?}: {e}"))?;
    result
}

fn measure(directory: &Path, samples: usize) -> Result<()> {
    let words = |e: gpucontainer::Error| e.to_string();
    let driver = driver(&directory.join("driver"))?;
    let store = ImageStore::open(directory.join("store")).map_err(words)?;
    let mut image = store
        .build()
        .copy_following_links("/bin/busybox", "/bin/true")
        .file("/etc/debian_version", "13\n", 0o644)
        .directory("/usr/lib/x86_64-linux-gnu", 0o755);
    if Path::new("/etc/ld.so.cache").exists() {
        image = image.copy("/etc/ld.so.cache", "/etc/ld.so.cache");
    }
    let image = image.commit("bench").map_err(words)?;
    let plain = || -> SandboxBuilder {
        let builder = Sandbox::from_image(&image).store(&store).command(["/bin/true"]);
        builder.stdin(Stdio::Null).stdout(Stdio::Null).stderr(Stdio::Null)
    };
    let request: GpuRequest = "none".parse().map_err(words)?;
    let request = request.capabilities(DriverCapability::ALL);
    let root = DriverRoot::new(driver);
    let injected = || plain().driver_root(root.clone()).gpus(request.clone());
    let steps = |builder: SandboxBuilder| Ok::<_, String>(builder.plan().map_err(words)?.explain().lines().count());
    println!("{} steps without, {} with {LIBRARIES} libraries", steps(plain())?, steps(injected())?);
    let mut times = [Vec::new(), Vec::new()];
    // The phases of the starts, without and with.
    let mut phases: [Vec<(&'static str, Vec<Duration>)>; 2] = Default::default();
    for number in 0..samples + 10 {
        for ((row, phases), builder) in times.iter_mut().zip(&mut phases).zip([plain(), injected()]) {
            let start = Instant::now();
            let sandbox = builder.spawn().map_err(words)?;
            let spawned = start.elapsed();
            let timeline = sandbox.timeline().to_vec();
            let status = sandbox.wait().map_err(words)?;
            sandbox.close().map_err(words)?;
            if !status.success() {
                return Err(format!("/bin/true: {status}"));
            }
            if number >= 10 {
                row.push((spawned, start.elapsed()));
                for phase in timeline {
                    match phases.iter_mut().find(|(name, _)| *name == phase.name) {
                        Some((_, durations)) => durations.push(phase.duration),
                        None => phases.push((phase.name, vec![phase.duration])),
                    }
                }
            }
        }
    }
    println!("{samples} samples each, in turn: until it runs, and until everything is given back");
    let mut medians = Vec::new();
    for (name, row) in ["without", "with"].iter().zip(&times) {
        let spawned = sorted(row.iter().map(|(spawned, _)| *spawned));
        let whole = sorted(row.iter().map(|(_, whole)| *whole));
        println!(
            "{name:8} running: minimum {:?}, median {:?}; whole: minimum {:?}, median {:?}",
            spawned[0],
            spawned[samples / 2],
            whole[0],
            whole[samples / 2]
        );
        medians.push((spawned[samples / 2], whole[samples / 2]));
    }
    for (name, durations) in &phases[1] {
        let median = |durations: &[Duration]| sorted(durations.iter().copied())[durations.len() / 2];
        let without = phases[0].iter().find(|(other, _)| other == name);
        let without = without.map_or(Duration::ZERO, |(_, durations)| median(durations));
        println!("  {name:10} {without:?} without, {:?} with", median(durations));
    }
    println!(
        "injection adds {:?} until it runs, {:?} to the whole",
        medians[1].0.saturating_sub(medians[0].0),
        medians[1].1.saturating_sub(medians[0].1)
    );
    Ok(())
}

fn sorted(times: impl Iterator<Item = Duration>) -> Vec<Duration> {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    times
}

/// A driver root: real shared objects, each with a name of its own to be found by.
fn driver(root: &Path) -> Result<PathBuf> {
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let failed = |e: std::io::Error| format!("{}: {e}", root.display());
    std::fs::create_dir_all(&libraries).map_err(failed)?;
    let source = root.join("empty.c");
    std::fs::write(&source, "int version(void) { return 550; }\n").map_err(failed)?;
    let known =
        ["cuda", "nvidia-ml", "nvidia-ptxjitcompiler", "GLX_nvidia", "EGL_nvidia", "nvcuvid"].map(str::to_owned);
    for name in known.into_iter().chain((0..).map(|number| format!("nvidia-part{number}"))).take(LIBRARIES) {
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-nostdlib", &format!("-Wl,-soname,lib{name}.so.1"), "-o"]);
        let status = cc.arg(libraries.join(format!("lib{name}.so.{VERSION}"))).arg(&source).status();
        if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
            return Err(format!("cc: {status:?}"));
        }
    }
    Ok(root.to_owned())
}
