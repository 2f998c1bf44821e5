//! The configuration of an image that is built.

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

/// What the builder was told; `None` and empty leave the base's.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    pub(super) env: Vec<(String, String)>,
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) command: Option<Vec<String>>,
    pub(super) user: Option<String>,
    pub(super) working_dir: Option<String>,
    pub(super) labels: Vec<(String, String)>,
    pub(super) ports: Vec<u16>,
    pub(super) volumes: Vec<String>,
    pub(super) stop_signal: Option<String>,
}

fn bad(why: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, why)
}

fn object<'a>(value: &'a mut Value, key: &str) -> Result<&'a mut Map<String, Value>> {
    let parent = value.as_object_mut().ok_or_else(|| bad("the configuration of the base is no object".to_owned()))?;
    let child = parent.entry(key).or_insert(Value::Null);
    if child.is_null() {
        *child = json!({});
    }
    child.as_object_mut().ok_or_else(|| bad(format!("{key:?} in the configuration of the base is no object")))
}

impl Settings {
    fn check(&self) -> Result<()> {
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(bad(format!("environment variable {name:?}: a name has no `=`, and neither part a NUL")));
            }
        }
        let absolute = self.working_dir.iter().chain(&self.volumes);
        for path in absolute {
            if !path.starts_with('/') || path.contains('\0') {
                return Err(bad(format!("{path:?} is not an absolute path")));
            }
        }
        for argument in self.entrypoint.iter().chain(&self.command).flatten() {
            if argument.contains('\0') {
                return Err(bad(format!("argument {argument:?} has a NUL in it")));
            }
        }
        if self.ports.contains(&0) {
            return Err(bad("port 0 cannot be exposed".to_owned()));
        }
        Ok(())
    }

    /// Puts the settings into a configuration.
    pub(super) fn apply(&self, config: &mut Value, seconds: u64) -> Result<()> {
        self.check()?;
        config["created"] = timestamp(seconds).into();
        let run = object(config, "config")?;
        if let Some(entrypoint) = &self.entrypoint {
            run.insert("Entrypoint".to_owned(), json!(entrypoint));
            run.remove("Cmd");
        }
        let texts = [
            ("Cmd", self.command.as_ref().map(|command| json!(command))),
            ("User", self.user.as_ref().map(|user| json!(user))),
            ("WorkingDir", self.working_dir.as_ref().map(|path| json!(path))),
            ("StopSignal", self.stop_signal.as_ref().map(|signal| json!(signal))),
        ];
        for (key, value) in texts {
            if let Some(value) = value {
                run.insert(key.to_owned(), value);
            }
        }
        if !self.env.is_empty() {
            let env = run.entry("Env").or_insert(Value::Null);
            let mut list: Vec<String> = serde_json::from_value(env.take()).unwrap_or_default();
            for (name, value) in &self.env {
                let line = format!("{name}={value}");
                let same = |old: &&mut String| old.split_once('=').is_some_and(|(old, _)| old == name);
                match list.iter_mut().find(same) {
                    Some(old) => *old = line,
                    None => list.push(line),
                }
            }
            *env = json!(list);
        }
        let run = &mut config["config"];
        for (name, value) in &self.labels {
            object(run, "Labels")?.insert(name.clone(), json!(value));
        }
        for port in &self.ports {
            object(run, "ExposedPorts")?.insert(format!("{port}/tcp"), json!({}));
        }
        for path in &self.volumes {
            object(run, "Volumes")?.insert(path.clone(), json!({}));
        }
        Ok(())
    }
}

/// Adds a layer to a configuration.
pub(super) fn add_layer(config: &mut Value, diff_id: &Digest, seconds: u64) -> Result<()> {
    let diff_ids = object(config, "rootfs")?.entry("diff_ids").or_insert(Value::Null);
    if diff_ids.is_null() {
        *diff_ids = json!([]);
    }
    let list = diff_ids.as_array_mut().ok_or_else(|| bad("diff_ids of the base is no list".to_owned()))?;
    list.push(json!(diff_id.to_string()));
    // A base without a history stays without one: it must tell of every layer or of none.
    if let Some(history) = config.get_mut("history").and_then(Value::as_array_mut) {
        history.push(json!({"created": timestamp(seconds), "created_by": "gpucontainer"}));
    }
    Ok(())
}

/// Seconds since 1970 as RFC 3339 in UTC.
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut day) = (1970, days);
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if day < length {
            break;
        }
        day -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_those_of_date() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696, "2000-02-29T12:34:56Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
    }

    #[test]
    fn settings_go_over_those_of_the_base() {
        let mut config = json!({
            "config": {"Env": ["PATH=/bin", "A=1"], "Entrypoint": ["/old"], "Cmd": ["x"], "Labels": null,
                       "Healthcheck": {"Test": []}},
            "history": []
        });
        let settings = Settings {
            env: vec![("A".to_owned(), "2".to_owned()), ("B".to_owned(), "3".to_owned())],
            entrypoint: Some(vec!["/new".to_owned()]),
            labels: vec![("k".to_owned(), "v".to_owned())],
            ports: vec![80],
            ..Settings::default()
        };
        settings.apply(&mut config, 0).unwrap();
        assert_eq!(
            config["config"],
            json!({"Env": ["PATH=/bin", "A=2", "B=3"], "Entrypoint": ["/new"], "Labels": {"k": "v"},
                   "ExposedPorts": {"80/tcp": {}}, "Healthcheck": {"Test": []}})
        );
    }

    #[test]
    fn settings_that_cannot_be_are_refused() {
        let pair = |a: &str, b: &str| vec![(a.to_owned(), b.to_owned())];
        let table = [
            Settings { env: pair("", "x"), ..Settings::default() },
            Settings { env: pair("a=b", "x"), ..Settings::default() },
            Settings { env: pair("a", "\0"), ..Settings::default() },
            Settings { working_dir: Some("relative".to_owned()), ..Settings::default() },
            Settings { volumes: vec![String::new()], ..Settings::default() },
            Settings { ports: vec![0], ..Settings::default() },
            Settings { command: Some(vec!["a\0".to_owned()]), ..Settings::default() },
        ];
        for settings in table {
            let error = settings.apply(&mut json!({}), 0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{settings:?}");
        }
    }
}
