//! The specifications of a host: which directories, and which file wins.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::cdi::names::DeviceName;
use crate::gpu::cdi::spec::{Device, Spec};
use crate::sys::fs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where specifications are: those of packages, and over them those made at run time.
const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// The devices that the files of some directories describe.
///
/// Read at once and never again: files that change later are not noticed.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    specs: Vec<(PathBuf, Spec)>,
    devices: BTreeMap<DeviceName, Place>,
    problems: Vec<String>,
}

/// Where a device is described.
#[derive(Clone, Debug)]
enum Place {
    /// Specification and device, by number; and the place of its directory.
    Known { spec: usize, device: usize, directory: usize },
    /// Files of one directory describe it, which are equally right.
    Conflict { files: Vec<PathBuf>, directory: usize },
}

impl Catalogue {
    /// Reads `/etc/cdi` and `/var/run/cdi`.
    ///
    /// Directories that are not there are empty. A file that cannot be used is left out, and is among the
    /// [`problems`](Self::problems).
    pub fn read() -> Self {
        Self::read_from(&Self::default_directories())
    }

    /// The directories that [`read`](Self::read) reads.
    pub fn default_directories() -> Vec<PathBuf> {
        DIRECTORIES.map(PathBuf::from).to_vec()
    }

    /// Reads the files that end in `.json` or `.yaml` of these directories.
    ///
    /// What a later directory says of a device counts. Where two files of one directory describe the same device,
    /// it cannot be used.
    pub fn read_from(directories: &[impl AsRef<Path>]) -> Self {
        let mut catalogue = Self::default();
        for (number, directory) in directories.iter().enumerate() {
            let directory = directory.as_ref();
            match fs::read_dir(directory) {
                Ok(files) => files.iter().filter(|file| is_spec(file)).for_each(|file| catalogue.add(number, file)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => catalogue.problems.push(error.to_string()),
            }
        }
        catalogue
    }

    fn add(&mut self, directory: usize, file: &Path) {
        let spec = match Spec::read(file) {
            Ok(spec) => spec,
            Err(error) => return self.problems.push(error.to_string()),
        };
        let number = self.specs.len();
        for (device, described) in spec.devices.iter().enumerate() {
            // Both parts were checked.
            let Ok(name) = format!("{}={}", spec.kind, described.name).parse::<DeviceName>() else { continue };
            let place = match self.devices.remove(&name) {
                Some(Place::Known { spec: other, directory: same, .. }) if same == directory => {
                    let files = vec![self.specs[other].0.clone(), file.to_owned()];
                    Place::Conflict { files, directory }
                }
                Some(Place::Conflict { mut files, directory: same }) if same == directory => {
                    files.push(file.to_owned());
                    Place::Conflict { files, directory }
                }
                _ => Place::Known { spec: number, device, directory },
            };
            self.devices.insert(name, place);
        }
        self.specs.push((file.to_owned(), spec));
    }

    /// The devices that can be used, in the order of their names.
    pub fn names(&self) -> impl Iterator<Item = &DeviceName> {
        self.devices.iter().filter(|(_, place)| matches!(place, Place::Known { .. })).map(|(name, _)| name)
    }

    /// What could not be read, and which devices are described twice.
    pub fn problems(&self) -> Vec<String> {
        let conflicts = self.devices.iter().filter_map(|(name, place)| match place {
            Place::Conflict { files, .. } => Some(format!("{name} is described by {}", listed(files))),
            Place::Known { .. } => None,
        });
        self.problems.iter().cloned().chain(conflicts).collect()
    }

    /// The file, the specification and the device of that name.
    ///
    /// # Errors
    /// [`ErrorKind::GpuUnavailable`] if there is none, or more than one; the text says what there is.
    pub fn find(&self, name: &DeviceName) -> Result<(&Path, &Spec, &Device)> {
        let unavailable = |why: String| Err(Error::new(ErrorKind::GpuUnavailable, format!("{name} asked for: {why}")));
        match self.devices.get(name) {
            Some(Place::Known { spec, device, .. }) => {
                let (file, spec) = &self.specs[*spec];
                Ok((file, spec, &spec.devices[*device]))
            }
            Some(Place::Conflict { files, .. }) => {
                unavailable(format!("{} all describe it, with equal right", listed(files)))
            }
            None => {
                let same_kind: Vec<&str> =
                    self.names().filter(|known| known.kind() == name.kind()).map(DeviceName::name).collect();
                let mut why = match same_kind.as_slice() {
                    [] => format!("no specification of {} was found", name.kind()),
                    names => format!("{} has {}", name.kind(), names.join(", ")),
                };
                for problem in &self.problems {
                    why += "; ";
                    why += problem;
                }
                unavailable(why)
            }
        }
    }
}

fn is_spec(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "json" || extension == "yaml")
}

fn listed(files: &[PathBuf]) -> String {
    let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    files.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(devices: &[(&str, &str)]) -> String {
        let device = |(name, value): &(&str, &str)| {
            format!(r#"{{"name": "{name}", "containerEdits": {{"env": ["VALUE={value}"]}}}}"#)
        };
        let devices: Vec<String> = devices.iter().map(device).collect();
        format!(r#"{{"cdiVersion": "0.5.0", "kind": "vendor.com/class", "devices": [{}]}}"#, devices.join(","))
    }

    #[test]
    fn a_later_directory_wins_and_equals_exclude_each_other() {
        let host = tempfile::tempdir().unwrap();
        let [first, second] = ["etc", "run"].map(|name| host.path().join(name));
        std::fs::create_dir(&first).unwrap();
        std::fs::create_dir(&second).unwrap();
        std::fs::write(first.join("a.json"), spec(&[("a", "first"), ("b", "first"), ("c", "first")])).unwrap();
        std::fs::write(first.join("b.yaml"), spec(&[("c", "other"), ("d", "other"), ("e", "other")])).unwrap();
        std::fs::write(second.join("a.json"), spec(&[("b", "second"), ("c", "second")])).unwrap();
        std::fs::write(second.join("broken.json"), "{").unwrap();
        std::fs::write(first.join("ignored.yml"), "{").unwrap();
        std::fs::create_dir(first.join("directory.json")).unwrap();
        let missing = host.path().join("missing");
        let catalogue = Catalogue::read_from(&[first.clone(), missing, second.clone()]);
        let value = |name: &str| {
            let name = format!("vendor.com/class={name}").parse().unwrap();
            catalogue.find(&name).map(|(_, _, device)| device.container_edits.env[0].clone())
        };
        assert_eq!(value("a").unwrap(), "VALUE=first");
        assert_eq!(value("b").unwrap(), "VALUE=second");
        assert_eq!(value("c").unwrap(), "VALUE=second", "what conflicts below does not matter");
        assert_eq!(value("d").unwrap(), "VALUE=other");
        let error = value("z").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GpuUnavailable);
        let words = error.to_string();
        assert!(words.contains("vendor.com/class has a, b, c, d, e") && words.contains("broken.json"), "{words}");
        assert_eq!(catalogue.problems().len(), 2, "{:?}", catalogue.problems());

        let alone = Catalogue::read_from(&[first]);
        let error = alone.find(&"vendor.com/class=c".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("a.json and") && error.contains("b.yaml all describe it"), "{error}");
        assert_eq!(alone.names().count(), 4);
        let error = alone.find(&"other.com/class=c".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("no specification of other.com/class was found"), "{error}");
    }
}
