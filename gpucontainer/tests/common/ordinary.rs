//! Ordinary users, for tests of a run that is root's.

use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Command, Stdio};

/// The user whom the script that runs all tests makes, with subordinate ids.
const WITH_SUBORDINATE_IDS: &str = "gpuc-test";

/// Who a test runs as once more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ordinary {
    user: u32,
    group: u32,
}

impl Ordinary {
    /// A user without any subordinate ids, who exists everywhere.
    pub(crate) fn nobody() -> Self {
        Self { user: 65534, group: 65534 }
    }

    /// A user with subordinate ids, if this host has the one for tests.
    pub(crate) fn with_subordinate_ids() -> Option<Self> {
        let text = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        let has = |file: &str| text(file).lines().any(|line| line.split(':').next() == Some(WITH_SUBORDINATE_IDS));
        let users = text("/etc/passwd");
        let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let found = fields.into_iter().find(|fields| fields[0] == WITH_SUBORDINATE_IDS)?;
        let known = Self { user: found.get(2)?.parse().ok()?, group: found.get(3)?.parse().ok()? };
        (has("/etc/subuid") && has("/etc/subgid")).then_some(known)
    }

    /// Runs the test called `test` of this program as the user, with directories of the user's own and these
    /// environment variables; returns what it printed.
    ///
    /// # Panics
    /// If the test fails, or does not run.
    #[track_caller]
    pub(crate) fn run(self, test: &str, environment: &[(&str, &OsStr)]) -> String {
        let directory = tempfile::Builder::new().prefix("gpuc-ordinary-").tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        // The test program may lie where other users cannot go.
        let program = directory.path().join("program");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let home = directory.path().join("home");
        std::fs::create_dir(&home).unwrap();
        std::fs::set_permissions(&home, PermissionsExt::from_mode(0o700)).unwrap();
        chown(&home, Some(self.user), Some(self.group)).unwrap();
        let output = Command::new("setpriv")
            .args([format!("--reuid={}", self.user), format!("--regid={}", self.group)])
            .args(["--clear-groups", "--inh-caps=-all", "--"])
            .arg(&program)
            .args([test, "--exact", "--nocapture"])
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("GPUC_REQUIRE", std::env::var_os("GPUC_REQUIRE").unwrap_or_default())
            .envs(["HOME", "TMPDIR", "XDG_RUNTIME_DIR"].map(|name| (name, &home)))
            .envs(environment.iter().copied())
            .current_dir("/")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{test} as {self:?}: {}\n{text}", output.status);
        text
    }
}
