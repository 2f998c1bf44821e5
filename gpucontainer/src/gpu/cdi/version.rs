//! Which version of the format has what.

use crate::gpu::cdi::spec::{ContainerEdits, Spec};

/// The versions that there are, but for two before the format had its present shape.
pub(crate) const VERSIONS: [&str; 8] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// The place of a version among the others. A leading `v` is allowed.
pub(crate) fn place(version: &str) -> Option<usize> {
    let number = version.strip_prefix('v').unwrap_or(version);
    VERSIONS.iter().position(|known| *known == number)
}

/// The lowest version that has all that `spec` uses.
pub(crate) fn minimum(spec: &Spec) -> &'static str {
    let edits = || spec.devices.iter().map(|device| &device.container_edits).chain([&spec.container_edits]);
    let any = |uses: fn(&ContainerEdits) -> bool| edits().any(uses);
    let class_has_dot = spec.kind.split_once('/').is_some_and(|(_, class)| class.contains('.'));
    let annotated = !spec.annotations.is_empty() || spec.devices.iter().any(|device| !device.annotations.is_empty());
    let digit_first = |name: &str| !name.starts_with(|first: char| first.is_ascii_alphabetic());
    if any(|edits| !edits.net_devices.is_empty())
        || any(|edits| {
            edits.intel_rdt.as_ref().is_some_and(|rdt| !rdt.schemata.is_empty() || rdt.enable_monitoring.is_some())
        })
    {
        "1.1.0"
    } else if any(|edits| edits.intel_rdt.is_some() || !edits.additional_gids.is_empty()) {
        "0.7.0"
    } else if annotated || class_has_dot {
        "0.6.0"
    } else if any(|edits| edits.device_nodes.iter().any(|node| node.host_path.is_some()))
        || spec.devices.iter().any(|device| digit_first(&device.name))
    {
        "0.5.0"
    } else if any(|edits| edits.mounts.iter().any(|mount| mount.kind.is_some())) {
        "0.4.0"
    } else {
        "0.3.0"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_has_the_version_that_brought_it() {
        let table = [
            (r#"{"name": "a", "containerEdits": {"env": ["A=b"]}}"#, "0.3.0"),
            (
                r#"{"name": "a", "containerEdits": {"mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "bind"}]}}"#,
                "0.4.0",
            ),
            (r#"{"name": "0", "containerEdits": {"env": ["A=b"]}}"#, "0.5.0"),
            (
                r#"{"name": "a", "containerEdits": {"deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/b"}]}}"#,
                "0.5.0",
            ),
            (r#"{"name": "a", "annotations": {"a": "b"}, "containerEdits": {"env": ["A=b"]}}"#, "0.6.0"),
            (r#"{"name": "a", "containerEdits": {"additionalGids": [7]}}"#, "0.7.0"),
            (r#"{"name": "a", "containerEdits": {"intelRdt": {"closID": "a", "enableCMT": true}}}"#, "0.7.0"),
            (r#"{"name": "a", "containerEdits": {"intelRdt": {"schemata": ["L3:0=f"]}}}"#, "1.1.0"),
            (r#"{"name": "a", "containerEdits": {"intelRdt": {"enableMonitoring": false}}}"#, "1.1.0"),
            (
                r#"{"name": "a", "containerEdits": {"netDevices": [{"hostInterfaceName": "ib0", "name": "ib0"}]}}"#,
                "1.1.0",
            ),
        ];
        for (device, needed) in table {
            for version in VERSIONS {
                let text =
                    format!(r#"{{"cdiVersion": "{version}", "kind": "vendor.com/class", "devices": [{device}]}}"#);
                let read = Spec::from_json(&text);
                let dropped = version == "1.1.0" && device.contains("enableCMT");
                assert_eq!(read.is_ok(), place(version) >= place(needed) && !dropped, "{version}: {text}: {read:?}");
                if let Ok(spec) = read {
                    assert_eq!(spec.minimum_version(), needed);
                }
            }
        }
        assert_eq!(place("v0.5.0"), place("0.5.0"));
        for unknown in ["", "0.2.0", "0.5", "1.2.0", "2.0.0", "latest"] {
            assert_eq!(place(unknown), None, "{unknown}");
        }
        let dotted = Spec { kind: "vendor.com/class.of".into(), ..Spec::default() };
        assert_eq!(dotted.minimum_version(), "0.6.0");
    }
}
