//! The plain C program that makes the same system calls.

use crate::Result;
use crate::contender::{Contender, version};
use crate::machine::{CAPABILITIES, Machine};
use crate::worker::{Asked, Worker};
use std::cell::RefCell;
use std::process::Command;
use std::rc::Rc;

const NAME: &str = "floor (C)";

/// What the floor does besides the plain start.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Plain,
    Overlay,
    User,
    /// With a process 1 that forks the program and reaps it.
    Init,
}

fn arguments(machine: &Machine, kind: Kind) -> Result<Vec<String>> {
    let mut arguments = vec![
        "start".to_owned(),
        machine.root.display().to_string(),
        machine.filter_file.display().to_string(),
        format!("{CAPABILITIES:x}"),
    ];
    match kind {
        Kind::Plain => {}
        Kind::Overlay => {
            arguments.extend(["overlay".to_owned(), machine.scratch("floor-overlay")?.display().to_string()]);
        }
        Kind::User => arguments.push("user".to_owned()),
        Kind::Init => arguments.push("init".to_owned()),
    }
    Ok(arguments)
}

/// A floor process that starts containers when asked.
pub fn worker(machine: &Machine, kind: Kind) -> Result<Worker> {
    Worker::start(Command::new(&machine.floor).args(arguments(machine, kind)?))
}

/// The floor of a start.
pub fn start(machine: &Machine, kind: Kind) -> Result<Box<dyn Contender>> {
    let command = format!("floor/floor.c {}", arguments(machine, kind)?.join(" "));
    let name = if kind == Kind::Init { "floor (C), with an init" } else { NAME };
    asked(name, command, worker(machine, kind)?)
}

/// The floor of a program more in the container of `pid`, which is in the cgroup `cgroup`.
pub fn exec(machine: &Machine, pid: u32, cgroup: &str) -> Result<Box<dyn Contender>> {
    let arguments = [
        "exec".to_owned(),
        pid.to_string(),
        machine.filter_file.display().to_string(),
        format!("{CAPABILITIES:x}"),
        cgroup.to_owned(),
    ];
    let worker = Worker::start(Command::new(&machine.floor).args(&arguments))?;
    asked(NAME, format!("floor/floor.c {}", arguments.join(" ")), worker)
}

fn asked(name: &str, command: String, worker: Worker) -> Result<Box<dyn Contender>> {
    let worker = Rc::new(RefCell::new(worker));
    let (name, what) = (name.to_owned(), "go".to_owned());
    Ok(Box::new(Asked { name, version: version("cc"), command, what, worker }))
}
