//! The devices of NVIDIA's software beside the driver, for those who asked for them.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::driver::root::DriverRoot;
use crate::gpu::grant::{FileMount, GpuGrant, MountKind};
use crate::gpu::injection::devices::{CAPABILITIES, CHANNELS, Devices, parse_capabilities};
use crate::gpu::request::{Channels, DriverExtra, Extras, MAX_CHANNEL};

use std::path::Path;

/// The nodes of a part: the directory, and what names begin with; the first must be there, else there is no such part.
fn nodes_of(extra: DriverExtra) -> &'static [(&'static str, &'static str)] {
    match extra {
        DriverExtra::Gds => &[("/dev", "nvidia-fs")],
        DriverExtra::Mofed => &[("/dev/infiniband", "uverbs"), ("/dev/infiniband", "rdma_cm")],
        DriverExtra::GdrCopy => &[("/dev", "gdrdrv")],
        DriverExtra::NvSwitch => &[("/dev", "nvidia-nvswitch")],
        // Their nodes are known by number.
        DriverExtra::MigConfig | DriverExtra::MigMonitor => &[],
    }
}

/// What else a part needs of the host, if the host has it.
fn files_of(extra: DriverExtra) -> &'static [(&'static str, MountKind)] {
    match extra {
        DriverExtra::Gds => &[("/run/udev", MountKind::Directory), ("/etc/cufile.json", MountKind::File)],
        _ => &[],
    }
}

/// Adds what is asked for to the grant, or says what the host lacks.
pub(crate) fn extras(wanted: &Extras, root: &DriverRoot, grant: &mut GpuGrant) -> Result<()> {
    let devices = Devices::read(root);
    for extra in &wanted.parts {
        if let Some(right) = extra.right() {
            let minors = root.text(CAPABILITIES).map(|text| parse_capabilities(&text)).unwrap_or_default();
            let (_, minor) = minors.into_iter().find(|(name, _)| name == right).ok_or_else(|| {
                let why = format!("{extra:?} was asked for, and {CAPABILITIES} does not list the capability {right}");
                Error::new(ErrorKind::GpuUnavailable, why)
            })?;
            grant.device_nodes.push(devices.capability(minor)?);
        }
        for (number, (directory, prefix)) in nodes_of(*extra).iter().enumerate() {
            let names = root.names(Path::new(directory));
            let mut names = names.iter().filter(|name| name.starts_with(prefix)).peekable();
            if number == 0 && names.peek().is_none() {
                let why = format!("{extra:?} was asked for, and the host has no {directory}/{prefix}*");
                return Err(Error::new(ErrorKind::GpuUnavailable, why));
            }
            for name in names {
                grant.device_nodes.push(devices.existing(&Path::new(directory).join(name))?);
            }
        }
        for (path, kind) in files_of(*extra) {
            let Ok(source) = root.resolve(Path::new(path)) else { continue };
            let facts = crate::sys::fs::metadata(&source)?;
            if facts.is_dir() == (*kind == MountKind::Directory) && (facts.is_dir() || facts.is_file()) {
                let (read_only, executable, recursive) = (true, false, false);
                grant.mounts.push(FileMount {
                    source,
                    target: path.into(),
                    kind: *kind,
                    read_only,
                    executable,
                    recursive,
                });
            }
        }
    }
    match &wanted.channels {
        Channels::Numbered(numbers) => {
            if let Some(number) = numbers.iter().find(|number| **number > MAX_CHANNEL) {
                let why = format!("IMEX channel {number} was asked for, and the highest is {MAX_CHANNEL}");
                return Err(Error::new(ErrorKind::InvalidArgument, why));
            }
            for number in numbers {
                grant.device_nodes.push(devices.channel(*number)?);
            }
        }
        Channels::All => {
            for name in root.names(Path::new(CHANNELS)) {
                if let Some(number) = name.strip_prefix("channel").and_then(|number| number.parse().ok()) {
                    grant.device_nodes.push(devices.channel(number)?);
                }
            }
        }
    }
    Ok(())
}
