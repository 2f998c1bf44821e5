//! Us and our peers at the same work, in turn, on the same machine.
//!
//! ```text
//! peers [--samples N] [--warm-ups N] [--out DIRECTORY] [ROW…]
//! ```

use gpucontainer_benches::measure::{Effort, run};
use gpucontainer_benches::ours::Ours;
use gpucontainer_benches::{Result, contender, machine, report, rows, system};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

const USAGE: &str = "usage: peers [--samples N] [--warm-ups N] [--out DIRECTORY] [ROW...]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.first().map(String::as_str) {
        Some("worker") => work(arguments.get(1).and_then(|text| text.parse().ok()).unwrap_or(0)),
        _ => compare(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("peers: {why}");
            ExitCode::FAILURE
        }
    }
}

fn compare(arguments: &[String]) -> Result<()> {
    let mut effort = Effort { warm_ups: 10, samples: 200 };
    let mut directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench"));
    let mut keys = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse().ok()).ok_or(USAGE);
        match argument.as_str() {
            "--samples" => effort.samples = number()?,
            "--warm-ups" => effort.warm_ups = number()?,
            "--out" => directory = arguments.next().ok_or(USAGE)?.into(),
            key if rows::KEYS.contains(&key) => keys.push(key),
            _ => return Err(format!("{USAGE}\nrows: {}", rows::KEYS.join(" "))),
        }
    }
    if keys.is_empty() {
        keys.extend(rows::KEYS);
    }
    let machine = machine::Machine::prepare()?;
    let description = machine::describe();
    println!(
        "{} on {} × {}, cgroups {}, load {}, commit {}",
        description.kernel,
        description.processors,
        description.processor,
        description.cgroups,
        description.load,
        description.commit
    );
    println!("{} samples after {} warm-ups, contenders in turn", effort.samples, effort.warm_ups);
    for key in keys {
        let (mut row, kept) = rows::build(key, &machine)?;
        // A batch is many samples already.
        let few = Effort { warm_ups: 1, samples: (effort.samples / 40).max(3) };
        let effort = if row.batch > 1 { few } else { effort };
        let figures = run(&mut row, effort);
        print!("{}{}", report::table(&row, &figures), report::commands(&figures));
        std::io::stdout().flush().map_err(|e| e.to_string())?;
        report::save(&directory, &row, effort, &description, &figures)?;
        drop(row);
        drop(kept);
    }
    println!("\nwritten to {}", directory.display());
    Ok(())
}

/// A host process of a given size that does what its standard input says.
fn work(bytes: usize) -> Result<()> {
    system::touch(bytes)?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| e.to_string())?;
        let (what, root) = line.split_once(' ').unwrap_or((&line, ""));
        let ours = Ours::plain(Path::new(root));
        let sample = contender::measure(|| match what {
            "sandbox" => ours.once(),
            "spawn" => status(Command::new("/bin/true")),
            "fork" => {
                let mut command = Command::new("/bin/true");
                system::force_fork(&mut command);
                status(command)
            }
            other => Err(format!("no work {other}")),
        });
        match sample {
            Ok(sample) => println!("{} {}", sample.wall.as_nanos(), sample.cpu.as_nanos()),
            Err(why) => println!("error: {why}"),
        }
    }
    Ok(())
}

fn status(mut command: Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().map_err(|e| e.to_string())?;
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}
