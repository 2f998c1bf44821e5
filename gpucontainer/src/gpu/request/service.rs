//! How a request is served by NVIDIA's Multi-Process Service: the host's, or the daemon of its lease.

use crate::gpu::allocator::Access;
use crate::gpu::request::GpuRequest;

impl GpuRequest {
    /// Whether a Multi-Process Service of the host, which somebody else runs, is shared with the container; it is not
    /// by default. For one that is the lease's own there is [`mps`](Self::mps).
    ///
    /// The service's pipes let a container talk to the daemon that all its clients share, so this
    /// is for containers that trust each other.
    pub fn multi_process_service(mut self, shared: bool) -> Self {
        self.multi_process_service = shared;
        self
    }

    pub(crate) fn wants_multi_process_service(&self) -> bool {
        self.multi_process_service
    }

    /// The request for what has this access to a daemon.
    pub(in crate::gpu) fn with_access(mut self, access: Option<Access>) -> Self {
        self.access = access;
        self
    }

    /// The access to the daemon of the lease that this is the request of.
    pub(in crate::gpu) fn access(&self) -> Option<&Access> {
        self.access.as_ref()
    }
}
