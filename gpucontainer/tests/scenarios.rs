//! The scenarios of `tests/scenarios/scenarios.json`, as Rust runs them. C and Python run the same
//! (`tests/c/scenarios.c`, `tests/python/test_scenarios.py`), and `tests/scenarios/compare` sees that all say the same.

#![allow(clippy::unwrap_used, reason = "this is test code, outside of a test function")]

mod common;
mod driver;
#[path = "scenarios/options.rs"]
mod options;
#[path = "scenarios/scene.rs"]
mod scene;

use common::Leaks;
use serde_json::Value;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios")
}

/// What of a row this host lacks.
fn missing(row: &Value) -> Option<String> {
    let needs = row.get("needs").map(|needs| needs.as_array().unwrap().as_slice()).unwrap_or_default();
    needs.iter().find_map(|need| match need.as_str().unwrap() {
        "root" => (!common::is_root()).then(|| "not root".to_owned()),
        other => panic!("no need is called {other:?}"),
    })
}

#[test]
fn all_scenarios_say_what_the_table_says() {
    let Ok(table) = std::fs::read_to_string(directory().join("scenarios.json")) else {
        return common::skip("scenarios", "the table is not beside this program");
    };
    if !common::tools("scenarios", &["busybox"]) {
        return;
    }
    if !common::is_root() && !common::tier("rootless") {
        return;
    }
    let table: Value = serde_json::from_str(&table).unwrap();
    let rows = table["rows"].as_array().unwrap();
    assert!(rows.len() >= 60, "{} rows", rows.len());
    let only = std::env::var("GPUC_SCENARIO").ok();
    let (mut ran, mut lines, mut failed) = (0, Vec::new(), Vec::new());
    for row in rows {
        let name = row["name"].as_str().unwrap();
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        ran += 1;
        if let Some(why) = missing(row) {
            common::skip("scenarios", &format!("scenario {name:?}: {why}"));
            lines.push(serde_json::json!([name, "skipped", why]).to_string());
            continue;
        }
        // All rows that fail are seen at once.
        let mut own = Vec::new();
        let done = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let leaks = Leaks::watch();
            scene::run(row, &table["image"], &mut own);
            leaks.check();
        }));
        lines.append(&mut own);
        failed.extend(done.err().map(|_| name));
    }
    assert_eq!(ran, if only.is_some() { 1 } else { rows.len() }, "every row runs or says why not");
    assert!(failed.is_empty(), "failed: {failed:?}");
    if let Some(record) = std::env::var_os("GPUC_SCENARIOS_RECORD") {
        lines.push(String::new());
        std::fs::write(record, lines.join("\n")).unwrap();
    }
}
