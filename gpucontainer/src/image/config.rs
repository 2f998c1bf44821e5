//! The configuration of an image: what runs in it, and how.

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use oci_spec::image::ImageConfiguration;
use std::collections::BTreeMap;

/// What an image says about how to run it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct ImageConfig {
    /// The program and its first arguments; empty if the image has none.
    pub entrypoint: Vec<String>,
    /// The arguments after the entrypoint, or the whole command if there is no entrypoint.
    pub command: Vec<String>,
    /// `NAME=VALUE`, in the image's order.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group` and so on; empty means root.
    pub user: String,
    /// Where the program starts; empty means `/`.
    pub working_dir: String,
    /// `port` or `port/protocol`, sorted.
    pub exposed_ports: Vec<String>,
    /// Free text by name.
    pub labels: BTreeMap<String, String>,
    /// Directories that the image expects to be written to, sorted.
    pub volumes: Vec<String>,
    /// The signal that asks the program to end, as in `SIGTERM` or `15`.
    pub stop_signal: Option<String>,
    /// `amd64`, `arm64` and so on.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// When it was made, as in `2025-01-31T12:00:00Z`.
    pub created: Option<String>,
}

/// A configuration as it is stored, read.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) config: ImageConfig,
    /// The layers, bottom first.
    pub(super) diff_ids: Vec<Digest>,
}

/// Reads the stored form.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed> {
    let invalid = |e: &dyn std::fmt::Display| Error::new(ErrorKind::InvalidImage, format!("image configuration: {e}"));
    let mut value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| invalid(&e))?;
    // An image without layers is written with `null` here by tools made in Go.
    if let Some(diff_ids) = value.pointer_mut("/rootfs/diff_ids").filter(|ids| ids.is_null()) {
        *diff_ids = serde_json::Value::Array(Vec::new());
    }
    let whole: ImageConfiguration = serde_json::from_value(value).map_err(|e| invalid(&e))?;
    let diff_ids: Result<Vec<Digest>> =
        whole.rootfs().diff_ids().iter().map(|text| text.parse().map_err(|e: Error| invalid(&e))).collect();
    let mut config = ImageConfig {
        architecture: whole.architecture().to_string(),
        os: whole.os().to_string(),
        created: whole.created().clone(),
        ..ImageConfig::default()
    };
    if let Some(run) = whole.config() {
        let sorted = |list: &Option<Vec<String>>| {
            let mut list = list.clone().unwrap_or_default();
            list.sort();
            list
        };
        config.entrypoint = run.entrypoint().clone().unwrap_or_default();
        config.command = run.cmd().clone().unwrap_or_default();
        config.env = run.env().clone().unwrap_or_default();
        config.user = run.user().clone().unwrap_or_default();
        config.working_dir = run.working_dir().clone().unwrap_or_default();
        config.exposed_ports = sorted(run.exposed_ports());
        config.volumes = sorted(run.volumes());
        config.labels = run.labels().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        config.stop_signal = run.stop_signal().clone();
    }
    Ok(Parsed { config, diff_ids: diff_ids? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_writes_is_read() {
        let text = r#"{
            "architecture": "amd64", "os": "linux", "created": "2025-01-01T00:00:00Z", "docker_version": "27",
            "config": {
                "Hostname": "", "Entrypoint": ["/e"], "Cmd": null, "Env": ["B=2", "A=1"], "User": "1000:1000",
                "WorkingDir": "/w", "ExposedPorts": {"80/tcp": {}, "443/tcp": {}}, "Volumes": {"/v": {}},
                "Labels": {"k": "v"}, "StopSignal": "SIGINT", "Healthcheck": {"Test": ["CMD", "x"]}, "OnBuild": null
            },
            "rootfs": {"type": "layers", "diff_ids": null}
        }"#;
        let Parsed { config, diff_ids } = parse(text.as_bytes()).unwrap();
        assert!(diff_ids.is_empty() && config.command.is_empty());
        assert_eq!(config.entrypoint, ["/e"]);
        assert_eq!(config.env, ["B=2", "A=1"]);
        assert_eq!(config.exposed_ports, ["443/tcp", "80/tcp"]);
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("1000:1000", "/w"));
        assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(config.labels["k"], "v");
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        let table: [&[u8]; 5] = [
            b"",
            b"[]",
            b"{}",
            br#"{"architecture":"amd64","os":"linux"}"#,
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:zz"]}}"#,
        ];
        for bytes in table {
            assert_eq!(parse(bytes).unwrap_err().kind(), ErrorKind::InvalidImage);
        }
    }
}
