//! The device nodes of NVIDIA's driver, and those of the cards that draw.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::grant::DeviceNode;
use crate::sys::device;

use std::path::Path;

/// The major number of `/dev/nvidia*`, fixed since the first driver.
const NVIDIA_MAJOR: u32 = 195;
/// The minor number of `/dev/nvidiactl`.
const CONTROL_MINOR: u32 = 255;
/// The directory of the channels of IMEX.
pub(crate) const CHANNELS: &str = "/dev/nvidia-caps-imex-channels";
/// Where the kernel module lists its capabilities about MIG devices.
pub(crate) const CAPABILITIES: &str = "/proc/driver/nvidia-caps/mig-minors";
/// The minor number of `/dev/nvidia-modeset`.
const MODESET_MINOR: u32 = 254;

/// The numbers that the kernel gave to NVIDIA's drivers, and where their nodes are.
#[derive(Debug)]
pub(crate) struct Devices<'a> {
    root: &'a DriverRoot,
    majors: Vec<(String, u32)>,
}

impl<'a> Devices<'a> {
    /// Reads the numbers from `/proc/devices`.
    pub(crate) fn read(root: &'a DriverRoot) -> Self {
        let text = root.text("/proc/devices").unwrap_or_default();
        Self { root, majors: parse_majors(&text) }
    }

    fn major(&self, names: &[&str]) -> Option<u32> {
        names.iter().find_map(|name| self.majors.iter().find(|(known, _)| known == name).map(|(_, major)| *major))
    }

    fn nvidia_major(&self) -> u32 {
        self.major(&["nvidia", "nvidia-frontend"]).unwrap_or(NVIDIA_MAJOR)
    }

    /// The node that every program opens first.
    pub(crate) fn control(&self) -> Result<DeviceNode> {
        self.node(Path::new("/dev/nvidiactl"), self.nvidia_major(), CONTROL_MINOR)
    }

    /// The node of a GPU, by its minor number.
    pub(crate) fn gpu(&self, minor: u32) -> Result<DeviceNode> {
        self.node(Path::new(&format!("/dev/nvidia{minor}")), self.nvidia_major(), minor)
    }

    /// The nodes of unified memory, without which there is no CUDA.
    ///
    /// After the boot of a host they are missing until somebody uses CUDA; the nodes then can be made, but not
    /// without the module of the kernel.
    pub(crate) fn unified_memory(&self) -> Result<Vec<DeviceNode>> {
        if self.major(&["nvidia", "nvidia-frontend"]).is_some() && self.major(&["nvidia-uvm"]).is_none() {
            let why = "CUDA needs the kernel module nvidia-uvm, which is not loaded (it is not in /proc/devices): \
                       `nvidia-modprobe -u -c 0` as root loads it";
            return Err(Error::new(ErrorKind::GpuUnavailable, why));
        }
        self.optional("nvidia-uvm", &[("/dev/nvidia-uvm", 0), ("/dev/nvidia-uvm-tools", 1)])
    }

    /// The node of mode setting.
    pub(crate) fn mode_setting(&self) -> Option<DeviceNode> {
        let node = self.node(Path::new("/dev/nvidia-modeset"), self.nvidia_major(), MODESET_MINOR).ok()?;
        node.host_path.is_some().then_some(node)
    }

    /// The node that stands for the right to use one part of a split GPU.
    pub(crate) fn capability(&self, minor: u32) -> Result<DeviceNode> {
        let path = format!("/dev/nvidia-caps/nvidia-cap{minor}");
        let major = self.major(&["nvidia-caps"]).ok_or_else(|| {
            let why = "the kernel module offers no capability devices (nvidia-caps is not in /proc/devices)";
            Error::new(ErrorKind::GpuUnavailable, format!("{path}: {why}"))
        })?;
        self.node(Path::new(&path), major, minor)
    }

    /// A channel of IMEX.
    pub(crate) fn channel(&self, number: u32) -> Result<DeviceNode> {
        let path = format!("{CHANNELS}/channel{number}");
        let major = self.major(&["nvidia-caps-imex-channels"]).ok_or_else(|| {
            let why = "the kernel module offers no IMEX channels (nvidia-caps-imex-channels is not in /proc/devices)";
            Error::new(ErrorKind::GpuUnavailable, format!("{path}: {why}"))
        })?;
        self.node(Path::new(&path), major, number)
    }

    /// A node of another driver, which must be there: its number is whatever the kernel says.
    pub(crate) fn existing(&self, path: &Path) -> Result<DeviceNode> {
        let host_path = self.root.resolve(path)?;
        match device::node(&host_path)? {
            Some(node) if node.character => {
                Ok(DeviceNode::character(path.to_owned(), Some(host_path), (node.major, node.minor), node.mode))
            }
            _ => Err(refuse(&host_path, "it is no character device")),
        }
    }

    fn optional(&self, driver: &str, nodes: &[(&str, u32)]) -> Result<Vec<DeviceNode>> {
        let Some(major) = self.major(&[driver]) else { return Ok(Vec::new()) };
        nodes.iter().map(|(path, minor)| self.node(Path::new(path), major, *minor)).collect()
    }

    /// The node `path`, which must have these numbers if it exists: a container must get the device
    /// that it was granted and no other, whatever somebody left in `/dev`.
    fn node(&self, path: &Path, major: u32, minor: u32) -> Result<DeviceNode> {
        let mut wanted = DeviceNode::character(path.to_owned(), None, (major, minor), 0o666);
        // The driver's user space makes nodes at first use, so a missing one is no sign of a missing device.
        let Ok(host_path) = self.root.resolve(path) else { return Ok(wanted) };
        match device::node(&host_path)? {
            Some(node) if node.character && (node.major, node.minor) == (major, minor) => {
                wanted.host_path = Some(host_path);
                wanted.mode = node.mode;
                Ok(wanted)
            }
            Some(node) if node.character => {
                let why = format!("it is device {}:{}, where {major}:{minor} was expected", node.major, node.minor);
                Err(refuse(&host_path, &why))
            }
            _ => Err(refuse(&host_path, "it is no character device")),
        }
    }
}

fn refuse(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::GpuUnavailable, format!("device node {}: {why}", path.display())).with_path(path)
}

/// The character devices of `/proc/devices`: name and major number.
fn parse_majors(text: &str) -> Vec<(String, u32)> {
    let character = text.lines().skip_while(|line| line.trim() != "Character devices:").skip(1);
    let lines = character.take_while(|line| !line.trim().is_empty() && !line.ends_with(':'));
    let parse = |line: &str| {
        let (major, name) = line.trim().split_once(' ')?;
        Some((name.trim().to_owned(), major.parse().ok()?))
    };
    lines.filter_map(parse).collect()
}

/// What the kernel says of the capabilities of split GPUs: name and minor number.
///
/// The names are `config`, `monitor`, `gpu<minor>/gi<instance>/access` and `gpu<minor>/gi<instance>/ci<instance>/access`.
pub(crate) fn parse_capabilities(text: &str) -> Vec<(String, u32)> {
    let parse = |line: &str| {
        let (name, minor) = line.trim().rsplit_once(' ')?;
        Some((name.trim().to_owned(), minor.parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majors_are_those_of_character_devices() {
        let text =
            "Character devices:\n  1 mem\n195 nvidia\n195 nvidiactl\n508 nvidia-uvm\n\nBlock devices:\n  7 loop\n";
        assert_eq!(parse_majors(text).iter().map(|(_, major)| *major).collect::<Vec<_>>(), [1, 195, 195, 508]);
        assert!(parse_majors("Block devices:\n  7 nvidia\n").is_empty());
        assert!(parse_majors("Character devices:\nx y\n 99999999999 nvidia\n").is_empty());
    }

    #[test]
    fn capabilities_are_read() {
        let text = "config 1\nmonitor 2\ngpu0/gi1/access 12\ngpu0/gi1/ci0/access 13\nbroken\n";
        let read = parse_capabilities(text);
        assert_eq!(read.len(), 4);
        assert_eq!(read[3], ("gpu0/gi1/ci0/access".to_owned(), 13));
    }

    #[test]
    fn a_node_with_foreign_numbers_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("dev")).unwrap();
        std::fs::write(directory.path().join("dev/nvidia0"), "").unwrap();
        let root = DriverRoot::new(directory.path());
        let devices = Devices::read(&root);
        assert!(devices.gpu(0).unwrap_err().to_string().contains("no character device"));
        let missing = devices.gpu(1).unwrap();
        assert_eq!((missing.host_path, missing.major, missing.minor), (None, 195, 1));
        let host = DriverRoot::default();
        let null = Devices::read(&host).existing(Path::new("/dev/null")).unwrap();
        assert_eq!((null.major, null.minor), (1, 3));
    }
}
