//! Containers as function calls: builds an image, runs it several times side by side, talks to it.
//!
//! ```console
//! $ cargo run --release --example quickstart
//! $ cargo run --release --example quickstart -- docker.io/library/debian:13 cat /etc/os-release
//! ```
//!
//! Without arguments it needs nothing but this machine: no root, no network, no registry, no GPU. What the
//! machine cannot give it says, and goes on without. With arguments it pulls an image and runs it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a program for people")]

use gpucontainer::cgroup::Cgroup;
use gpucontainer::gpu::Gpu;
use gpucontainer::image::PullOptions;
use gpucontainer::sandbox::{SandboxBuilder, Stdio};
use gpucontainer::{ErrorKind, GpuRequest, Host, Image, ImageStore, Progress, Sandbox};
use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How many instances of the image run side by side.
const INSTANCES: usize = 3;
/// The port that the server listens on, in every instance: each has a network of its own.
const PORT: u16 = 8000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [] => demonstrate().map(|()| ExitCode::SUCCESS),
        [serve] if serve == "--serve" => serve_page().map(|()| ExitCode::SUCCESS),
        [image, command @ ..] => run(image, command),
    };
    result.unwrap_or_else(|error| {
        eprintln!("quickstart: {error}");
        ExitCode::FAILURE
    })
}

/// Pulls an image, unless it is there already, runs it on this terminal, and ends as it ends.
fn run(reference: &str, command: &[String]) -> Result<ExitCode> {
    let store = ImageStore::open_default()?;
    let image = match store.get(reference)? {
        Some(image) => image,
        None => {
            let mut layers = HashMap::new();
            let show = |progress: Progress| {
                layers.insert(progress.item, (progress.bytes, progress.total.unwrap_or(0)));
                let (bytes, total) = layers.values().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
                eprint!("\rpulling {reference}: {} of {} MiB ", bytes >> 20, total >> 20);
            };
            let image = store.pull(reference, PullOptions::new().progress(show));
            eprintln!();
            image?
        }
    };
    let mut builder = Sandbox::from_image(&image).store(&store);
    if !command.is_empty() {
        builder = builder.command(command);
    }
    let status = builder.spawn()?.wait()?;
    // As shells have it: 128 and the signal's number for a program that was killed.
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code)?))
}

/// The demonstration: an image from files of this machine, several instances, a page from each.
fn demonstrate() -> Result<()> {
    let host = Host::probe();
    let user = if host.is_root() { "root" } else { "an ordinary user" };
    println!("gpucontainer {} on Linux {}, as {user}\n", host.version(), host.kernel());

    // A store of its own, which goes when this function ends.
    let directory = tempfile::tempdir()?;
    let store = ImageStore::open(directory.path().join("store"))?;
    let started = Instant::now();
    let (image, server) = build(&store)?;
    println!("image     a shell and {server}, built in {:.0} ms", milliseconds(started.elapsed()));

    println!("limits    {}", limits(Sandbox::from_image(&image))?.1);
    let gpus = host.gpus().gpus();
    match host.gpus().unavailable() {
        Some(reason) => println!("GPUs      none: {reason}"),
        None => println!("GPUs      {}, one for each instance as far as they go", gpus.len()),
    }

    // All run at the same time, each with a port of the host that the kernel chose.
    let mut sandboxes = Vec::new();
    for number in 1..=INSTANCES {
        let (builder, _) = limits(Sandbox::from_image(&image))?;
        let builder = builder.store(&store).env("INSTANCE", number.to_string()).publish(PORT, 0);
        let builder = builder.stdin(Stdio::Null).stdout(Stdio::Null).stderr(Stdio::Piped);
        sandboxes.push(match gpus.get(number - 1) {
            Some(gpu) => spawn_with_gpu(builder, gpu)?,
            None => builder.spawn()?,
        });
    }

    println!();
    // A row for each phase, a column for each instance.
    let mut timeline: Vec<(&str, Vec<Duration>)> = Vec::new();
    let mut add = |phase, duration| match timeline.iter_mut().find(|(known, _)| *known == phase) {
        Some((_, durations)) => durations.push(duration),
        None => timeline.push((phase, vec![duration])),
    };
    for sandbox in &sandboxes {
        sandbox.timeline().iter().for_each(|phase| add(phase.name, phase.duration));
        add("all of start", sandbox.timeline().iter().map(|phase| phase.duration).sum());
        let started = Instant::now();
        await_server(sandbox)?;
        add("listening", started.elapsed());
        let started = Instant::now();
        let address = sandbox.ports()[0].host();
        println!("http://{address}  {}", fetch(address)?);
        add("page", started.elapsed());
    }
    for sandbox in sandboxes {
        let started = Instant::now();
        // Dropping it does the same; this also says if something could not be given back.
        sandbox.close()?;
        add("clean-up", started.elapsed());
    }
    println!("\nmilliseconds, one column for each instance");
    for (phase, durations) in timeline {
        let columns: String = durations.iter().map(|one| format!("{:9.2}", milliseconds(*one))).collect();
        println!("  {phase:<16}{columns}");
    }
    directory.close()?;
    println!("\nNothing is left behind.");
    Ok(())
}

/// Builds an image of a shell and a web server, Python's or else this very program, with what they need.
fn build(store: &ImageStore) -> Result<(Image, String)> {
    let shell = PathBuf::from("/bin/sh");
    let (server, arguments, mut files) = match python() {
        Some((program, library)) => (program, format!("-m http.server {PORT} --directory /srv"), library),
        None => (std::env::current_exe()?, "--serve".to_owned(), Vec::new()),
    };
    let modules = files.iter().filter(|path| path.ends_with("lib-dynload")).filter_map(|path| path.read_dir().ok());
    let modules: Vec<_> = modules.flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.extend(libraries([&shell, &server].into_iter().chain(&modules))?);
    files.extend([shell, server.clone()]);
    // What the image does: write a page about what there is inside, and serve it.
    let script = r#"for node in /dev/nvidia[0-9]* /dev/dri/render*; do [ -e "$node" ] && gpus="$gpus $node"; done
        echo "instance $INSTANCE, process $$, GPUs:${gpus:- none}" >/srv/index.html"#;
    let script = format!("{script}\nexec {} {arguments}", server.display());
    let builder = store.build().directory("/srv", 0o755).directory("/tmp", 0o1777).expose(PORT);
    let builder = files.iter().fold(builder, |builder, path| builder.copy(path, path));
    let image = builder.command(["/bin/sh", "-c", &script]).commit("quickstart:latest")?;
    Ok((image, server.display().to_string()))
}

/// The Python 3 of this machine, if there is one: its program, and the files of its standard library.
fn python() -> Option<(PathBuf, Vec<PathBuf>)> {
    let question = "import os, sys, sysconfig; print(os.path.realpath(sys.executable), sysconfig.get_path('stdlib'))";
    let answer = Command::new("python3").args(["-I", "-c", question]).output().ok()?;
    let answer = String::from_utf8(answer.stdout).ok()?;
    let (program, library) = answer.trim().split_once(' ')?;
    // Large, and of no use here.
    let dropped = ["config-", "dist-packages", "ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tkinter"];
    let is_wanted = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        !dropped.iter().any(|prefix| name.starts_with(prefix))
    };
    let entries = Path::new(library).read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    Some((program.into(), entries.filter(is_wanted).collect()))
}

/// The shared libraries that programs and libraries are linked with, as the loader finds them.
fn libraries<'a>(programs: impl IntoIterator<Item = &'a PathBuf>) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").args(programs).output().map_err(|error| format!("cannot run ldd: {error}"))?;
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f…)`: the words that are files.
    let words = String::from_utf8(output.stdout)?;
    let paths: BTreeSet<_> = words.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect();
    Ok(paths.into_iter().filter(|path| path.is_file()).collect())
}

/// Adds the limits that this user can set on this machine, and says which they are and why not all.
fn limits(mut builder: SandboxBuilder) -> Result<(SandboxBuilder, String)> {
    type Limit = fn(SandboxBuilder) -> SandboxBuilder;
    let support = Cgroup::support()?;
    let wanted: [(&str, &str, Limit); 3] = [
        ("memory", "256 MiB of memory", |builder| builder.memory_max(256 << 20)),
        ("cpu", "1.5 processors", |builder| builder.cpus(1.5)),
        ("pids", "64 processes", |builder| builder.pids_max(64)),
    ];
    let (mut given, mut missing, mut reason) = (Vec::new(), Vec::new(), String::new());
    for (controller, what, add) in wanted {
        match support.controller(controller) {
            Ok(_) => {
                builder = add(builder);
                given.push(what.to_owned());
            }
            Err(why) => {
                missing.push(controller);
                reason = why;
            }
        }
    }
    if !missing.is_empty() {
        given.push(format!("none of {}: {reason}", missing.join(", ")));
    }
    Ok((builder, given.join(", ")))
}

/// Starts with a GPU, or without it where its driver's files are not all there.
fn spawn_with_gpu(builder: SandboxBuilder, gpu: &Gpu) -> Result<Sandbox> {
    let request = GpuRequest::uuids([&gpu.uuid])?.vendor(gpu.vendor);
    match builder.clone().gpus(request).spawn() {
        Err(error) if error.kind() == ErrorKind::GpuUnavailable => {
            println!("          not {}: {error}", gpu.name);
            Ok(builder.spawn()?)
        }
        other => Ok(other?),
    }
}

/// Waits until the server inside listens.
fn await_server(sandbox: &Sandbox) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(error) = sandbox.dial(PORT, Some(Duration::from_secs(1))) {
        // Not yet; or never, if it has ended.
        if sandbox.wait_timeout(Duration::from_millis(5))?.is_some() {
            let output = sandbox.communicate(b"", None)?;
            return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
        }
        if Instant::now() > deadline {
            return Err(error.into());
        }
    }
    Ok(())
}

/// Fetches a page over HTTP.
fn fetch(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, page)) if head.contains(" 200 ") => Ok(page.trim().to_owned()),
        _ => Err(format!("{address} answered {answer:?}").into()),
    }
}

/// The server inside, where there is no Python: gives everybody the same page.
fn serve_page() -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    loop {
        let (mut stream, _) = listener.accept()?;
        // Until the request's empty line; whoever only knocks sends none.
        let request = BufReader::new(stream.try_clone()?).lines();
        if request.map_while(std::io::Result::ok).any(|line| line.is_empty()) {
            write!(stream, "HTTP/1.0 200 OK\r\n\r\n{}", std::fs::read_to_string("/srv/index.html")?)?;
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
