//! What Python adds to a start, to what goes through pipes, and before anything is done.
//!
//! ```text
//! python [--python PROGRAM] [--rounds N] [--bytes N]
//! ```
//!
//! The program is a Python with the package installed. Rounds of starts in this process and in a Python one follow each
//! other, and who is first alternates.

use gpucontainer::Sandbox;
use gpucontainer::sandbox::Stdio as Stream;
use gpucontainer_benches::{Result, machine};

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Instant;

/// Starts of one side before the other's turn.
const TURN: usize = 20;
const PIPES: usize = 5;
const IMPORTS: usize = 40;

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("python: {why}");
            ExitCode::FAILURE
        }
    }
}

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn start() -> Result<()> {
    let (mut program, mut rounds, mut bytes) = ("python3".to_owned(), 50_usize, 1_usize << 30);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or("usage: python [--python PROGRAM] [--rounds N] [--bytes N]")?;
        match argument.as_str() {
            "--python" => program = value,
            "--rounds" => rounds = value.parse().map_err(words)?,
            "--bytes" => bytes = value.parse().map_err(words)?,
            other => return Err(format!("no option is called {other}")),
        }
    }
    let described = machine::describe();
    println!("{} on {} × {}, load {}", described.kernel, described.processors, described.processor, described.load);
    let root = std::env::temp_dir().join(format!("gpuc-bench-python-{}", std::process::id()));
    let result = measure(&root, &program, rounds.max(1), bytes);
    std::fs::remove_dir_all(&root).map_err(words)?;
    result
}

fn measure(root: &Path, program: &str, rounds: usize, bytes: usize) -> Result<()> {
    machine::make_root(root)?;
    let cat = root.join("bin/cat");
    if !cat.exists() {
        std::fs::copy(root.join("bin/true"), &cat).map_err(words)?;
    }
    let mut python = Python::start(program)?;
    let (mut ours, mut theirs) = (Times::default(), Times::default());
    // The first starts of a process do what is done once.
    rust(root, TURN, &mut Times::default())?;
    python.starts(root, TURN, &mut Times::default())?;
    for round in 0..rounds {
        if round % 2 == 0 {
            rust(root, TURN, &mut ours)?;
            python.starts(root, TURN, &mut theirs)?;
        } else {
            python.starts(root, TURN, &mut theirs)?;
            rust(root, TURN, &mut ours)?;
        }
    }
    println!("\n/bin/true, {} samples each, in turns of {TURN}     Rust, median  Python, median  more", rounds * TURN);
    for (name, ours, theirs) in [
        ("start", &mut ours.starts, &mut theirs.starts),
        ("from start to everything given back", &mut ours.wholes, &mut theirs.wholes),
    ] {
        let (ours, theirs) = (median(ours) / 1e6, median(theirs) / 1e6);
        println!(
            "  {name:44} {ours:7.3} ms      {theirs:7.3} ms  {:+.3} ms, {:+.1} %",
            theirs - ours,
            (theirs / ours - 1.0) * 100.0
        );
    }

    println!("\nimport, {IMPORTS} processes each, in turn");
    let modules =
        ["import subprocess", "import gpucontainer", "import gpucontainer; gpucontainer.Sandbox", "import docker"];
    let mut times = vec![Vec::new(); modules.len()];
    for _ in 0..IMPORTS {
        for (module, times) in modules.iter().zip(&mut times) {
            times.extend(import(program, module));
        }
    }
    for (module, times) in modules.iter().zip(&mut times) {
        match times.is_empty() {
            true => println!("  {module:44} cannot be imported here"),
            false => println!("  {module:44} {:7.2} ms", median(times) * 1e3),
        }
    }

    println!("\n{bytes} bytes through cat and back, {PIPES} times in turn");
    let (mut sandbox, mut subprocess) = (Vec::new(), Vec::new());
    for _ in 0..PIPES {
        let times: Vec<f64> = serde_json::from_str(&python.ask("pipe", root, bytes)?).map_err(words)?;
        sandbox.extend(times.first());
        subprocess.extend(times.get(1));
    }
    let (ours, theirs) = (median(&mut sandbox), median(&mut subprocess));
    println!("  Sandbox.communicate {ours:.2} s, subprocess.run {theirs:.2} s: {:.2} times", ours / theirs);
    python.end()
}

/// Seconds that a fresh process takes for an import, by its own clock.
fn import(program: &str, module: &str) -> Option<f64> {
    let code = format!("import time\nt = time.perf_counter()\n{module}\nprint(time.perf_counter() - t)");
    let output = Command::new(program).args(["-c", &code]).stderr(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

#[derive(Default)]
struct Times {
    starts: Vec<f64>,
    wholes: Vec<f64>,
}

fn rust(root: &Path, count: usize, times: &mut Times) -> Result<()> {
    for _ in 0..count {
        let start = Instant::now();
        let builder = Sandbox::from_directory(root).command(["/bin/true"]);
        let sandbox = builder.stdin(Stream::Null).stdout(Stream::Null).stderr(Stream::Null).spawn().map_err(words)?;
        times.starts.push(nanoseconds(start));
        sandbox.wait().map_err(words)?;
        sandbox.close().map_err(words)?;
        times.wholes.push(nanoseconds(start));
    }
    Ok(())
}

fn nanoseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e9
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A Python process that measures itself.
struct Python {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Python {
    fn start(program: &str) -> Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/measure.py");
        let mut command = Command::new(program);
        let mut child = command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(words)?;
        let (input, output) = (child.stdin.take().ok_or("no pipe")?, child.stdout.take().ok_or("no pipe")?);
        let mut python = Self { child, input, output: BufReader::new(output) };
        println!("gpucontainer {} of {program}", python.line()?.trim());
        Ok(python)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.output.read_line(&mut line).map_err(words)? {
            0 => Err("Python ended; is the package installed?".to_owned()),
            _ => Ok(line),
        }
    }

    fn ask(&mut self, what: &str, root: &Path, count: usize) -> Result<String> {
        writeln!(self.input, "{what} {} {count}", root.display()).map_err(words)?;
        self.line()
    }

    fn starts(&mut self, root: &Path, count: usize, times: &mut Times) -> Result<()> {
        let line = self.ask("start", root, count)?;
        let [starts, wholes]: [Vec<f64>; 2] = serde_json::from_str(&line).map_err(words)?;
        times.starts.extend(starts);
        times.wholes.extend(wholes);
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        drop(self.input);
        self.child.wait().map(|_| ()).map_err(words)
    }
}
