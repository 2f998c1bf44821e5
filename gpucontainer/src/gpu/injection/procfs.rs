//! The driver's directory of procfs, as a container may see it.

use crate::gpu::driver::root::DriverRoot;
use crate::gpu::grant::{FileTree, GpuGrant, TextFile};
use crate::gpu::request::GpuRequest;
use crate::gpu::select::Choice;

use std::path::Path;

/// The directory in which the driver tells its user space about itself and about every GPU.
pub(crate) const PROC: &str = "/proc/driver/nvidia";

/// The driver's directory of procfs, with nothing of GPUs that are not granted.
pub(crate) fn proc_files(request: &GpuRequest, choices: &[Choice<'_>], root: &DriverRoot, grant: &mut GpuGrant) {
    let mut files = Vec::new();
    let mut add = |path: String| {
        let Some(contents) = root.text(Path::new(PROC).join(&path)) else { return };
        if files.iter().all(|file: &TextFile| file.path != Path::new(&path)) {
            files.push(TextFile { path: path.into(), contents, mode: 0o444 });
        }
    };
    add("version".to_owned());
    add("params".to_owned());
    add("registry".to_owned());
    for right in request.extras.parts.iter().filter_map(|extra| extra.right()) {
        add(format!("capabilities/mig/{right}"));
    }
    for choice in choices {
        let gpu = choice.gpu();
        // The GPU in a processor is on no bus.
        if gpu.pci_bus_id.is_empty() {
            continue;
        }
        for name in ["information", "power", "registry"] {
            add(format!("gpus/{}/{name}", gpu.pci_bus_id));
        }
        if let Choice::Slice(gpu, slice) = choice {
            let instance = format!("capabilities/gpu{}/mig/gi{}", gpu.minor, slice.gpu_instance);
            add(format!("{instance}/access"));
            add(format!("{instance}/ci{}/access", slice.compute_instance));
        }
    }
    if files.is_empty() {
        return;
    }
    for file in files.iter_mut().filter(|file| file.path == Path::new("params")) {
        file.contents = without_node_making(&file.contents);
    }
    grant.trees.push(FileTree { path: PROC.into(), files });
}

/// Keeps the driver's user space from making device nodes, also of GPUs that were not granted.
pub(crate) fn without_node_making(params: &str) -> String {
    let line = |line: &str| match line.split_once(':') {
        Some(("ModifyDeviceFiles", _)) => "ModifyDeviceFiles: 0\n".to_owned(),
        _ => format!("{line}\n"),
    };
    params.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_is_told_to_make_no_nodes() {
        let params = "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\nDeviceFileUID: 0\n";
        let expected = "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 0\nDeviceFileUID: 0\n";
        assert_eq!(without_node_making(params), expected);
    }
}
