//! Contenders that live in a process of their own and answer "do it again" on a pipe.

use crate::Result;
use crate::contender::{Contender, Sample};
use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

/// A process that answers each line with `WALL CPU` in nanoseconds, or `error: WHAT`.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Worker {
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{:?}: {e}", command.get_program()))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes".to_owned());
        };
        Ok(Self { child, input: Some(input), output: BufReader::new(output) })
    }

    /// Asks for `what` and waits for the answer.
    pub fn ask(&mut self, what: &str) -> Result<Sample> {
        let mut answer = String::new();
        let asked = self.input.as_mut().map(|input| writeln!(input, "{what}"));
        asked.ok_or("no pipe")?.map_err(|e| format!("worker: {e}"))?;
        self.output.read_line(&mut answer).map_err(|e| format!("worker: {e}"))?;
        let numbers: Vec<u64> = answer.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        match numbers[..] {
            [wall, cpu] => Ok(Sample { wall: Duration::from_nanos(wall), cpu: Duration::from_nanos(cpu) }),
            _ if answer.is_empty() => Err("the worker died".to_owned()),
            _ => Err(answer.trim().to_owned()),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It ends when there is no more to read.
        self.input = None;
        let _ = self.child.wait();
    }
}

/// One of the things that a worker can do, as a contender.
pub struct Asked {
    pub name: String,
    pub version: String,
    pub command: String,
    pub what: String,
    pub worker: Rc<RefCell<Worker>>,
}

impl Contender for Asked {
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
        self.worker.borrow_mut().ask(&self.what)
    }
}
