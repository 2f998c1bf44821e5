//! The table for people and the file for programs.

use crate::Result;
use crate::machine::Description;
use crate::measure::{Effort, Figures, Row};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;

#[derive(Serialize)]
struct File<'a> {
    row: &'a str,
    title: &'a str,
    batch: u32,
    warm_ups: usize,
    samples: usize,
    machine: &'a Description,
    contenders: &'a [Figures],
}

/// Writes `<directory>/<row>.json`.
pub fn save(directory: &Path, row: &Row, effort: Effort, machine: &Description, contenders: &[Figures]) -> Result<()> {
    std::fs::create_dir_all(directory).map_err(|e| format!("{directory:?}: {e}"))?;
    let Effort { warm_ups, samples } = effort;
    let file = File { row: row.key, title: &row.title, batch: row.batch, warm_ups, samples, machine, contenders };
    let text = serde_json::to_vec_pretty(&file).map_err(|e| e.to_string())?;
    crate::machine::write(&directory.join(format!("{}.json", row.key)), &text)
}

/// The table of a row. Ratios are to the first contender that ran.
pub fn table(row: &Row, contenders: &[Figures]) -> String {
    let mut text = format!("\n{}\n", row.title);
    let base = contenders.iter().find(|figures| figures.failure.is_none());
    let _ = writeln!(
        text,
        "  {:<34} {:>9} {:>9} {:>9} {:>9}   {:>7} {:>7} {:>7}{}",
        "",
        "min ms",
        "median",
        "p99",
        "CPU",
        "×min",
        "×median",
        "×CPU",
        if row.batch > 1 { "  per second" } else { "" }
    );
    for figures in contenders {
        if let Some(why) = &figures.failure {
            let _ = writeln!(text, "  {:<34} did not run: {why}", figures.name);
            continue;
        }
        let milliseconds = |value: u64| value as f64 / 1e6;
        let ratio = |value: u64, base: u64| if base == 0 { 0.0 } else { value as f64 / base as f64 };
        let _ = write!(
            text,
            "  {:<34} {:>9.3} {:>9.3} {:>9.3} {:>9.3}",
            figures.name,
            milliseconds(figures.wall.minimum),
            milliseconds(figures.wall.median),
            milliseconds(figures.wall.p99),
            milliseconds(figures.cpu.median),
        );
        if let Some(base) = base {
            let _ = write!(
                text,
                "   {:>7.2} {:>7.2} {:>7.2}",
                ratio(figures.wall.minimum, base.wall.minimum),
                ratio(figures.wall.median, base.wall.median),
                ratio(figures.cpu.median, base.cpu.median),
            );
        }
        if row.batch > 1 {
            let _ = write!(text, "  {:>10.1}", f64::from(row.batch) * 1e9 / figures.wall.median.max(1) as f64);
        }
        text.push('\n');
    }
    text
}

/// Who took part, and how to run each by hand.
pub fn commands(contenders: &[Figures]) -> String {
    let mut text = String::new();
    for figures in contenders.iter().filter(|figures| figures.failure.is_none()) {
        let _ = writeln!(text, "    {} [{}]: {}", figures.name, figures.version, figures.command);
    }
    text
}
