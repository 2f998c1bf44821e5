//! The rules of a specification beyond the shape of its fields.

use crate::gpu::cdi::names::{check_device, parse_kind};
use crate::gpu::cdi::spec::{ContainerEdits, DeviceNode, Hook, IntelRdt, Mount, NetDevice, Spec};
use crate::gpu::cdi::version;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

/// All annotations together, in bytes, as in Kubernetes.
const ANNOTATIONS: usize = 256 << 10;

/// The names of hooks' moments.
const MOMENTS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// What is wrong with `spec`, if something is.
pub(crate) fn spec(spec: &Spec) -> Result<(), String> {
    let stated = version::place(&spec.cdi_version)
        .ok_or_else(|| format!("cdiVersion {:?} is none of {}", spec.cdi_version, version::VERSIONS.join(", ")))?;
    parse_kind(&spec.kind).map_err(|why| format!("kind: {why}"))?;
    annotations(&spec.annotations)?;
    if spec.devices.is_empty() {
        return Err("it has no devices".to_owned());
    }
    edits(&spec.container_edits, stated).map_err(|why| format!("containerEdits: {why}"))?;
    let mut names = BTreeSet::new();
    for device in &spec.devices {
        let of = |why: String| format!("device {:?}: {why}", device.name);
        check_device(&device.name).map_err(|why| format!("device name {why}"))?;
        annotations(&device.annotations).map_err(of)?;
        if !names.insert(&device.name) {
            return Err(of("it is described twice".to_owned()));
        }
        if device.container_edits.is_empty() {
            return Err(of("its containerEdits are empty".to_owned()));
        }
        edits(&device.container_edits, stated).map_err(of)?;
    }
    let needed = version::minimum(spec);
    if version::place(needed) > Some(stated) {
        return Err(format!("it uses what came with version {needed}, but says cdiVersion {:?}", spec.cdi_version));
    }
    Ok(())
}

fn annotations(annotations: &BTreeMap<String, String>) -> Result<(), String> {
    if annotations.keys().any(String::is_empty) {
        return Err("an annotation has no name".to_owned());
    }
    let bytes: usize = annotations.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > ANNOTATIONS { Err(format!("annotations of {bytes} bytes, {ANNOTATIONS} are allowed")) } else { Ok(()) }
}

fn edits(edits: &ContainerEdits, stated: usize) -> Result<(), String> {
    variables(&edits.env)?;
    edits.device_nodes.iter().try_for_each(device_node)?;
    edits.mounts.iter().try_for_each(mount)?;
    edits.hooks.iter().try_for_each(hook)?;
    net_devices(&edits.net_devices)?;
    edits.intel_rdt.as_ref().map_or(Ok(()), |rdt| intel_rdt(rdt, stated))
}

fn variables(env: &[String]) -> Result<(), String> {
    let bad =
        env.iter().find(|line| line.contains('\0') || line.split_once('=').is_none_or(|(name, _)| name.is_empty()));
    bad.map_or(Ok(()), |line| Err(format!("env {line:?} is not NAME=value")))
}

/// Whether `path` is absolute, not the root itself, and never goes up.
fn is_plain(path: &str) -> bool {
    let named = |part| matches!(part, Component::Normal(_));
    let mut parts = Path::new(path).components();
    parts.next() == Some(Component::RootDir)
        && !path.contains('\0')
        && parts.clone().next().is_some()
        && parts.all(named)
}

fn paths<'a>(what: &str, paths: impl IntoIterator<Item = &'a str>) -> Result<(), String> {
    let bad = paths.into_iter().find(|path| !is_plain(path));
    bad.map_or(Ok(()), |path| Err(format!("{what} {path:?} is not an absolute path without \"..\"")))
}

fn device_node(node: &DeviceNode) -> Result<(), String> {
    paths("device node", [node.path.as_str()].into_iter().chain(node.host_path.as_deref()))?;
    let of = |why: String| Err(format!("device node {:?}: {why}", node.path));
    if let Some(kind) = node.kind.as_deref().filter(|kind| !matches!(*kind, "" | "b" | "c" | "u" | "p")) {
        return of(format!("type {kind:?} is none of c, u, b and p"));
    }
    // The kernel's numbers have 12 and 20 bits.
    let numbers = [("major", node.major, 1 << 12), ("minor", node.minor, 1 << 20)];
    for (name, number, limit) in numbers {
        if let Some(number) = number.filter(|number| !(0..limit).contains(number)) {
            return of(format!("{name} {number} is no number of a device"));
        }
    }
    match node.permissions.as_deref() {
        None | Some("none") => Ok(()),
        Some(letters) if letters.bytes().all(|letter| b"rwm".contains(&letter)) => Ok(()),
        Some(other) => of(format!("permissions {other:?} have other letters than r, w and m")),
    }
}

fn mount(mount: &Mount) -> Result<(), String> {
    paths("mount", [mount.host_path.as_str(), mount.container_path.as_str()])
}

fn hook(hook: &Hook) -> Result<(), String> {
    if !MOMENTS.contains(&hook.hook_name.as_str()) {
        return Err(format!("hookName {:?} is none of {}", hook.hook_name, MOMENTS.join(", ")));
    }
    let of = |why: String| format!("hook {:?}: {why}", hook.path);
    paths("hook", [hook.path.as_str()])?;
    variables(&hook.env).map_err(of)?;
    if hook.args.iter().any(|argument| argument.contains('\0')) {
        return Err(of("an argument has a NUL".to_owned()));
    }
    Ok(())
}

fn net_devices(devices: &[NetDevice]) -> Result<(), String> {
    let (mut outside, mut inside) = (BTreeSet::new(), BTreeSet::new());
    for device in devices {
        if device.host_interface_name.is_empty() || device.name.is_empty() {
            return Err("a network interface without a name".to_owned());
        }
        if !outside.insert(&device.host_interface_name) || !inside.insert(&device.name) {
            return Err(format!("network interface {:?} comes twice", device.host_interface_name));
        }
    }
    Ok(())
}

fn intel_rdt(rdt: &IntelRdt, stated: usize) -> Result<(), String> {
    let class = rdt.clos_id.as_deref().unwrap_or_default();
    // The one name with a slash is that of the root class.
    if class != "/" && (class.len() >= 4096 || matches!(class, "." | "..") || class.contains(['/', '\n'])) {
        return Err(format!("intelRdt: closID {class:?} is no file name"));
    }
    if stated >= version::place("1.1.0").unwrap_or(usize::MAX) && (rdt.enable_cmt.is_some() || rdt.enable_mbm.is_some())
    {
        return Err(
            "intelRdt: version 1.1.0 has no enableCMT and enableMBM; enableMonitoring took their place".to_owned()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    /// A specification with one device, `edits` being what it changes.
    fn with(edits: &str) -> String {
        format!(
            r#"{{"cdiVersion": "1.1.0", "kind": "v.com/c", "devices": [{{"name": "d", "containerEdits": {edits}}}]}}"#
        )
    }

    #[test]
    fn malformed_specifications_are_refused_with_the_reason() {
        let table = [
            ("", "EOF"),
            ("{}", "missing field"),
            ("[]", "invalid"),
            ("null", "invalid type"),
            (r#"{"cdiVersion": "1.1.0", "kind": "v.com/c", "devices": []}"#, "no devices"),
            (r#"{"cdiVersion": "1.1.0", "kind": "v.com/c"}"#, "no devices"),
            (r#"{"cdiVersion": "9.9.9", "kind": "v.com/c", "devices": []}"#, "none of 0.3.0"),
            (r#"{"cdiVersion": 1, "kind": "v.com/c", "devices": []}"#, "invalid type"),
            (r#"{"cdiVersion": "1.1.0", "kind": "v.com", "devices": []}"#, "kind"),
            (r#"{"cdiVersion": "1.1.0", "kind": "v.com/c", "kind": "v.com/d", "devices": []}"#, "duplicate field"),
            (
                r#"{"cdiVersion": "1.1.0", "kind": "v.com/c", "devices": [], "containers": 1}"#,
                "unknown field `containers`",
            ),
            (r#"{"cdiVersion": "1.1.0", "kind": "v.com/c", "devices": [{"name": "d"}]}"#, "containerEdits are empty"),
            (&with("{}"), "containerEdits are empty"),
            (&with(r#"{"env": []}"#), "containerEdits are empty"),
            (&with(r#"{"env": ["A"]}"#), "not NAME=value"),
            (&with(r#"{"env": ["=b"]}"#), "not NAME=value"),
            (&with(r#"{"env": "A=b"}"#), "invalid type"),
            (&with(r#"{"environment": ["A=b"]}"#), "unknown field"),
            (&with(r#"{"deviceNodes": [{}]}"#), "missing field `path`"),
            (&with(r#"{"deviceNodes": [{"path": ""}]}"#), "absolute path"),
            (&with(r#"{"deviceNodes": [{"path": "/"}]}"#), "absolute path"),
            (&with(r#"{"deviceNodes": [{"path": "dev/null"}]}"#), "absolute path"),
            (&with(r#"{"deviceNodes": [{"path": "/dev/../etc/x"}]}"#), "absolute path"),
            (&with(r#"{"deviceNodes": [{"path": "/dev/a", "hostPath": "../x"}]}"#), "absolute path"),
            (&with(r#"{"deviceNodes": [{"path": "/dev/a", "type": "x"}]}"#), "type \"x\""),
            (&with(r#"{"deviceNodes": [{"path": "/dev/a", "major": -1}]}"#), "major -1"),
            (&with(r#"{"deviceNodes": [{"path": "/dev/a", "major": 1, "minor": 1048576}]}"#), "minor 1048576"),
            (&with(r#"{"deviceNodes": [{"path": "/dev/a", "major": 1e30}]}"#), "invalid type"),
            (&with(r#"{"deviceNodes": [{"path": "/dev/a", "permissions": "rwx"}]}"#), "permissions"),
            (&with(r#"{"deviceNodes": [{"path": "/dev/a", "uid": -1}]}"#), "invalid value"),
            (&with(r#"{"mounts": [{"hostPath": "/a"}]}"#), "missing field"),
            (&with(r#"{"mounts": [{"hostPath": "/a", "containerPath": "b"}]}"#), "absolute path"),
            (&with(r#"{"mounts": [{"hostPath": "/a", "containerPath": "/b/.."}]}"#), "absolute path"),
            (&with(r#"{"hooks": [{"hookName": "later", "path": "/bin/a"}]}"#), "hookName"),
            (&with(r#"{"hooks": [{"hookName": "prestart", "path": "a"}]}"#), "absolute path"),
            (&with(r#"{"hooks": [{"hookName": "prestart", "path": "/a", "env": ["x"]}]}"#), "not NAME=value"),
            (&with(r#"{"hooks": [{"hookName": "prestart", "path": "/a", "timeout": 1.5}]}"#), "invalid type"),
            (&with(r#"{"netDevices": [{"hostInterfaceName": "", "name": "a"}]}"#), "without a name"),
            (
                &with(
                    r#"{"netDevices": [{"hostInterfaceName": "a", "name": "a"}, {"hostInterfaceName": "a", "name": "b"}]}"#,
                ),
                "twice",
            ),
            (&with(r#"{"intelRdt": {"closID": "../x"}}"#), "closID"),
            (&with(r#"{"intelRdt": {"enableMBM": true}}"#), "enableMonitoring"),
            (&with(r#"{"additionalGids": [-1]}"#), "invalid value"),
            (&with(r#"{"additionalGIDs": [1]}"#), "unknown field"),
        ];
        for (text, why) in table {
            let error = Spec::from_json(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text}");
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
        let twice = r#"{"cdiVersion": "1.1.0", "kind": "v.com/c", "devices": [
            {"name": "d", "containerEdits": {"env": ["A=b"]}}, {"name": "d", "containerEdits": {"env": ["A=b"]}}]}"#;
        assert!(Spec::from_json(twice).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn what_the_format_allows_is_read() {
        for edits in [
            r#"{"env": ["A=", "B=c=d"]}"#,
            r#"{"deviceNodes": [{"path": "/dev/a", "type": "", "permissions": "none", "major": 0, "fileMode": 438}]}"#,
            r#"{"hooks": [{"hookName": "poststop", "path": "/a", "args": ["a", ""], "timeout": 0}], "mounts": null}"#,
            r#"{"intelRdt": {"closID": "/", "schemata": []}}"#,
            r#"{"intelRdt": {}}"#,
        ] {
            let text = with(edits);
            let spec = Spec::from_json(&text).unwrap();
            assert_eq!(Spec::from_json(&spec.to_json().unwrap()).unwrap(), spec);
            assert_eq!(Spec::from_yaml(&text).unwrap(), spec, "JSON is YAML");
        }
    }
}
