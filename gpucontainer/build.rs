//! Builds the stub (see `stub/main.rs`), which the library carries as bytes.

use std::path::PathBuf;
use std::process::Command;

fn main() -> Result<(), String> {
    println!("cargo:rerun-if-changed=stub");
    let variable = |name: &str| std::env::var(name).map_err(|e| format!("{name}: {e}"));
    let output = PathBuf::from(variable("OUT_DIR")?).join("stub");
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc.args(["stub/main.rs", "--crate-name=stub", "--crate-type=bin", "--edition=2024", "--target"]);
    rustc.arg(variable("TARGET")?).arg("-o").arg(&output);
    for option in [
        "opt-level=s",
        "panic=abort",
        "relocation-model=static",
        "strip=symbols",
        "overflow-checks=off",
        "debug-assertions=off",
        "link-args=-nostartfiles -nostdlib -static",
        // No tables that nobody reads.
        "link-args=-Wl,--build-id=none,-z,norelro,-z,noexecstack",
    ] {
        rustc.args(["-C", option]);
    }
    if let Ok(linker) = variable("RUSTC_LINKER") {
        rustc.args(["-C", &format!("linker={linker}")]);
    }
    let result = rustc.output().map_err(|e| format!("cannot run {rustc:?}: {e}"))?;
    if result.status.success() {
        Ok(())
    } else {
        Err(format!("the stub does not build: {}", String::from_utf8_lossy(&result.stderr)))
    }
}
