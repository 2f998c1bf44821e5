//! Whoever takes part in a row.

use crate::{Result, system};
use std::io::{Read, Seek};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What one run took.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// From the call to everything given back.
    pub wall: Duration,
    /// User and system time, of the caller and of all processes that it waited for.
    pub cpu: Duration,
}

/// Does the work of a row once at a time.
pub trait Contender {
    /// What the table calls it.
    fn name(&self) -> String;
    /// Which one it is, as it says itself.
    fn version(&self) -> String;
    /// What is run, for whoever wants to run it by hand.
    fn command(&self) -> String;
    /// Does the work once.
    fn run(&mut self) -> Result<Sample>;
}

/// Measures `work` in this process and its children.
pub fn measure(work: impl FnOnce() -> Result<()>) -> Result<Sample> {
    let cpu = system::cpu_time();
    let start = Instant::now();
    work()?;
    let wall = start.elapsed();
    Ok(Sample { wall, cpu: system::cpu_time().saturating_sub(cpu) })
}

/// A closure that does the work in this process, and returns the CPU time of those it did not wait for.
pub struct InProcess<F> {
    pub name: String,
    pub version: String,
    pub command: String,
    pub work: F,
}

impl<F: FnMut() -> Result<Duration>> Contender for InProcess<F> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn command(&self) -> String {
        self.command.clone()
    }

    fn run(&mut self) -> Result<Sample> {
        let mut elsewhere = Duration::ZERO;
        let sample = measure(|| {
            elsewhere = (self.work)()?;
            Ok(())
        })?;
        Ok(Sample { cpu: sample.cpu + elsewhere, ..sample })
    }
}

/// A program, started anew each time: its own start is part of the figure, as it is for its users.
pub struct Program {
    pub name: String,
    pub arguments: Vec<String>,
    /// A file for its standard input; nothing if none.
    pub input: Option<std::path::PathBuf>,
}

impl Program {
    pub fn new(name: &str, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        Self { name: name.to_owned(), arguments, input: None }
    }

    /// Runs it once; its standard error is the failure.
    pub fn once(&self) -> Result<()> {
        let (program, arguments) = self.arguments.split_first().ok_or("no program")?;
        let input = match &self.input {
            Some(path) => Stdio::from(std::fs::File::open(path).map_err(|e| format!("{path:?}: {e}"))?),
            None => Stdio::null(),
        };
        // A file, since a pipe would have to be read, which is work that is none of the program's.
        let mut errors = system::memory_file()?;
        let status = Command::new(program)
            .args(arguments)
            .stdin(input)
            .stdout(Stdio::null())
            .stderr(errors.try_clone().map_err(|e| e.to_string())?)
            .status()
            .map_err(|e| format!("{program}: {e}"))?;
        if status.success() {
            return Ok(());
        }
        let mut words = String::new();
        errors.rewind().and_then(|()| errors.read_to_string(&mut words)).map_err(|e| e.to_string())?;
        Err(format!("{program}: {status}: {}", words.trim().replace('\n', "; ")))
    }
}

impl Contender for Program {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn version(&self) -> String {
        self.arguments.first().map(|program| version(program)).unwrap_or_default()
    }

    fn command(&self) -> String {
        let input = self.input.iter().map(|path| format!(" < {}", path.display()));
        self.arguments.join(" ") + &input.collect::<String>()
    }

    fn run(&mut self) -> Result<Sample> {
        measure(|| self.once())
    }
}

/// The first line of `program --version`.
pub fn version(program: &str) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}
