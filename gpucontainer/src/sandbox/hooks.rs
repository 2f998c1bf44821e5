//! Programs of vendors that prepare a container from outside, where the caller allowed them.
//!
//! A program gets what the OCI runtime specification gives to a hook: the container's state on standard input, and a
//! bundle with the place of the root, as far as this library has them. It runs on the host, whatever its moment.

use crate::error::{Context, Error, ErrorKind, Result};
use crate::gpu::VendorHook;
use crate::sys::cgroup::Process;
use crate::sys::fs;
use crate::sys::process::await_readable;
use serde_json::json;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The version of the runtime specification whose state is handed over.
const OCI_VERSION: &str = "1.2.0";
/// As much as is repeated of what a failed program wrote, in bytes.
const WORDS: usize = 2048;

/// A directory for one run, removed afterwards.
struct Bundle(PathBuf);

impl Bundle {
    fn create() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("gpuc-hook-{}", fs::unique()));
        crate::sys::cgroup::make_private_directory(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_tree(&self.0) {
            tracing::warn!(%error, "the directory of a vendor's program is left");
        }
    }
}

/// Runs `hook` for the container `name`, whose application or its forerunner is the process `pid`, and waits for it.
pub(crate) fn run(hook: &VendorHook, name: &str, pid: i32, status: &str) -> Result<()> {
    execute(hook, name, pid, status).with_context(|| format!("run {} of a device's vendor", hook.path.display()))
}

fn execute(hook: &VendorHook, name: &str, pid: i32, status: &str) -> Result<()> {
    let bundle = Bundle::create()?;
    let config = json!({ "ociVersion": OCI_VERSION, "root": { "path": format!("/proc/{pid}/root") } });
    fs::write(&bundle.0.join("config.json"), config.to_string().as_bytes())?;
    let state = json!({
        "ociVersion": OCI_VERSION, "id": name, "status": status, "pid": pid, "bundle": bundle.0, "annotations": {},
    });
    let (input, words) = (bundle.0.join("state.json"), bundle.0.join("stderr"));
    fs::write(&input, state.to_string().as_bytes())?;
    let mut command = Command::new(&hook.path);
    if let Some((own, arguments)) = hook.args.split_first() {
        command.arg0(own).args(arguments);
    }
    command.env_clear().envs(hook.env.iter().map(|(name, value)| (name, value))).current_dir("/");
    command.stdin(fs::open(&input)?).stdout(Stdio::null()).stderr(fs::create_new(&words)?);
    let failed = |call: &str, error| Error::from_io(format!("{call}({:?})", hook.path), error).with_path(&hook.path);
    let mut child = command.spawn().map_err(|error| failed("execute", error))?;
    if let Some(seconds) = hook.timeout_seconds {
        // Not collected yet, so the number is still the child's.
        let ended = match Process::open(child.id())? {
            Some(process) => await_readable(&process, Some(Duration::from_secs(seconds.into())))?,
            None => true,
        };
        if !ended {
            child.kill().map_err(|error| failed("kill", error))?;
            child.wait().map_err(|error| failed("wait for", error))?;
            let message = format!("it did not end within {seconds} s");
            return Err(Error::new(ErrorKind::TimedOut, message).with_path(&hook.path));
        }
    }
    let status = child.wait().map_err(|error| failed("wait for", error))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::GpuUnavailable, format!("{status}: {}", said(&words))).with_path(&hook.path))
}

/// What a program wrote to standard error, as far as it is repeated.
fn said(path: &Path) -> String {
    let bytes = fs::read_small(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes[..bytes.len().min(WORDS)]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::HookMoment;

    fn hook(script: &str) -> VendorHook {
        let text = json!({
            "moment": HookMoment::CreateRuntime, "path": "/bin/sh", "args": ["sh", "-c", script],
            "env": [["OWN", "value"]], "timeout_seconds": 1,
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_program_gets_the_state_and_its_own_environment_alone() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out");
        let script = format!("cat >{0}; echo \"$OWN $HOME $CARGO\" >>{0}; pwd >>{0}", out.display());
        run(&hook(&script), "s1", 4242, "creating").unwrap();
        let text = std::fs::read_to_string(out).unwrap();
        let (state, rest) = text.split_once("value").unwrap();
        let state: serde_json::Value = serde_json::from_str(state).unwrap();
        assert_eq!((state["id"].as_str(), state["pid"].as_i64()), (Some("s1"), Some(4242)));
        assert!(!Path::new(state["bundle"].as_str().unwrap()).exists(), "nothing is left");
        assert_eq!(rest, "  \n/\n");
    }

    #[test]
    fn a_program_that_fails_or_hangs_is_an_error() {
        let error = run(&hook("echo no such card >&2; exit 3"), "s1", 1, "creating").unwrap_err();
        assert!(error.to_string().contains("exit status: 3: no such card"), "{error}");
        let error = run(&hook("exec sleep 60"), "s1", 1, "creating").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        let missing = VendorHook { path: "/no/such/program".into(), ..hook("") };
        assert_eq!(run(&missing, "s1", 1, "creating").unwrap_err().kind(), ErrorKind::NotFound);
    }
}
