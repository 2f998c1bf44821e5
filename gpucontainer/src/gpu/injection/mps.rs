//! What makes the processes of a container clients of the MPS daemon of its lease.

use crate::error::{Error, ErrorKind, Result};
use crate::gpu::grant::{FileMount, GpuGrant, MountKind};
use crate::gpu::request::{DriverCapability, GpuRequest};

/// Adds the pipes, the shared memory and the variables to the grant.
pub(crate) fn clients(request: &GpuRequest, grant: &mut GpuGrant) -> Result<()> {
    let Some(access) = request.access() else {
        if request.wishes.mps.is_some() {
            let why = "MPS of a lease is asked for, and there is no lease";
            return Err(Error::new(ErrorKind::InvalidArgument, why));
        }
        return Ok(());
    };
    if !request.wants(DriverCapability::Compute) {
        grant.left_out.push("MPS: it needs the driver's capability compute".to_owned());
        return Ok(());
    }
    for (source, target) in [&access.pipes, &access.shared_memory] {
        grant.mounts.push(FileMount {
            source: source.clone(),
            target: target.clone(),
            kind: MountKind::Directory,
            read_only: false,
            executable: false,
            recursive: false,
        });
    }
    grant.environment.extend(access.environment.iter().cloned());
    Ok(())
}
