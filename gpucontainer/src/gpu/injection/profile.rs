//! The profile that tells the driver's drawing libraries which GPUs to offer.

use crate::gpu::grant::{GpuGrant, OwnFile};

use std::path::Path;

/// Where the libraries look for profiles.
const PATH: &str = "/etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf";

/// Libraries of the driver that draw.
const DRAWING: &[&str] = &["libEGL_nvidia.so.", "libGLX_nvidia.so."];

/// Adds the profile for the GPUs of a grant, if it has libraries that draw.
///
/// Without it EGL lists every GPU that the driver knows, and programs fail at the first that has no node here.
pub(crate) fn add_profile(grant: &mut GpuGrant) {
    let draws = |target: &Path| {
        let name = target.file_name().unwrap_or_default().as_encoded_bytes();
        DRAWING.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
    };
    if grant.mounts.iter().any(|mount| draws(&mount.target)) {
        let minor = |path: &Path| path.to_str()?.strip_prefix("/dev/nvidia")?.parse().ok();
        let minors: Vec<u32> = grant.device_nodes.iter().filter_map(|node| minor(&node.path)).collect();
        grant.files.extend(application_profile(minors.into_iter()));
    }
}

/// The profile for GPUs with these minors; none if there is none of them.
fn application_profile(minors: impl Iterator<Item = u32>) -> Option<OwnFile> {
    let mask = minors.filter(|minor| *minor < u64::BITS).fold(0_u64, |mask, minor| mask | 1 << minor);
    let text = format!(
        "{{\"profiles\":[{{\"name\":\"_container_\",\"settings\":[\"EGLVisibleDGPUDevices\",{mask:#x}]}}],\
         \"rules\":[{{\"pattern\":[],\"profile\":\"_container_\"}}]}}\n"
    );
    (mask != 0).then(|| OwnFile { path: PATH.into(), contents: text.into_bytes(), mode: 0o444 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_is_that_of_minors() {
        let text = |minors: &[u32]| {
            application_profile(minors.iter().copied()).map(|file| String::from_utf8(file.contents).unwrap())
        };
        assert!(text(&[0, 7]).unwrap().contains("\"EGLVisibleDGPUDevices\",0x81]"));
        assert_eq!(text(&[]), None);
        assert_eq!(text(&[64]), None);
    }
}
